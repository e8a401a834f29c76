"""Penn Treebank tokens of a caption, as the COCO caption evaluation makes them with Stanford's tokenizer, which needs Java.

An imitation in Python: the same on ordinary captions and answers; rare symbols and abbreviations can come apart differently.
"""

import re

# Dropped after tokenising. Brackets are meant to be, too, but the published list has them in upper case, so that they stay.
PUNCTUATION = {"''", "'", "``", "`", '"', ".", "?", "!", ",", ":", "-", "--", "...", ";"}

PLAIN = str.maketrans({"’": "'", "‘": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "–": " -- ", "—": " -- ", "…": " ... "})
RENAMED = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "£": "#", "€": "$"})

ABBREVIATIONS = (
    "mr|mrs|ms|messrs|dr|drs|prof|gen|rep|sen|gov|lt|sgt|col|capt|maj|rev|hon|st|ste|ave|blvd|rd|mt|jr|sr|etc|vs|no|nos|inc|ltd|"
    "co|corp|bros|dept|univ|fig|figs|vol|ext|ph\\.d|jan|feb|mar|apr|aug|sept|sep|oct|nov|dec|al"
)
WORD = r"(?:[^\W_](?:\w*[^\W_])?)"
PART = rf"(?:[-/&_]|(?<=[^\W\d_])\.(?=[^\W\d_])){WORD}"  # what can follow a word and still belong to it

# Tried in this order at every place of the lower-case text.
TOKEN = re.compile(
    rf"""
      </?[a-z][^<>]*>                                             # <b>
    | (?:https?://|www\.)[^\s"<>|()]+ | [\w.+-]+@[\w-]+\.[\w.]+   # addresses
    | '' | [:;=]-?[()](?!\w)                              # also :)
    | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b) | 't(?=is\b|was\b)
    | n't(?!\w) | '(?:s|d|m|re|ve|ll)(?!\w) | 'n'(?=\s|$)         # what contractions end with
    | o'clock(?!\w) | [ody]'(?=[^\W\d_]{{2}})
    | (?<![\w.])[+-]?(?:\d+(?:[.,:/]\d+)+|\.\d+|\d+(?![\w-]))(?!n't)  # numbers
    | (?<!\w)(?:[a-z]\.)+(?:[a-z]\.)(?!\w) | (?<!\w)[a-z]\.(?=[\s.]|$)  # u.s., initials
    | (?<!\w)(?:{ABBREVIATIONS})\.(?!\w)
    | {WORD}(?:{PART})*?(?=n't(?!\w))                             # did, of didn't
    | {WORD}(?:{PART})*
    | '\d\ds?(?!\w)                                               # '90s
    | \.{{3}} | --+ | [?!]+
    | \S
    """,
    re.VERBOSE,
)


def ptb_tokens(text: str) -> list[str]:
    """All tokens in lower case, punctuation among them."""
    tokens = TOKEN.findall(text.lower().replace("&amp;", "&").translate(PLAIN))
    return [re.sub("^--+", "--", token).translate(RENAMED) for token in tokens]


def ptb_tokenize(text: str) -> str:
    """The words of a caption in lower case, separated by single spaces; punctuation dropped, "it's" split into "it 's"."""
    return " ".join(token for token in ptb_tokens(text) if token not in PUNCTUATION)
