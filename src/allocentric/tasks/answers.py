"""Short free answers: the cleaning and matching that SQA3D, LEO, VLM-3R and Video-3D-LLM share."""

import re
from collections.abc import Sequence

MISSPELT = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
}
NUMBERS = dict(
    enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen twenty".split()
    )
) | {23: "twenty-three"}

# In this order, each over the whole text.
RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r" +$", ""),
        (r"^ +", ""),
        (r" {2,}", " "),
        (r"[^a-zA-Z0-9,'\s\-:]+", ""),
        *((rf"\b{wrong}\b", right) for wrong, right in MISSPELT.items()),
        (r"\bo' +clock\b", "o'clock"),
        (r"\b0\b|\bnone\b", "zero"),
        *((rf"\b{number}\b", word) for number, word in NUMBERS.items() if number),
        (r"\b([a-zA-Z]+)[0-9]\b", r"\1"),
        *((rf"\b{article}\b ([a-zA-Z]+)", r"\1") for article in ("a", "an", "the")),
        (r"\bbackwards\b", "backward"),
    )
]


def clean_answer(text: str) -> str:
    """Lower case, no punctuation but , ' - :, common typing errors mended, numbers to twenty as words, articles dropped once.

    Only spaces are trimmed, so that a final line break stays; "tv" becomes "TV"; "3.5" becomes "35".
    """
    text = text.lower()
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text


def contains_either(prediction: str, reference: str) -> bool:
    """Whether one text is part of the other, white space aside. Nothing is part of everything."""
    a, b = "".join(prediction.split()), "".join(reference.split())
    return a in b or b in a


def match_leo(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """(exact, refined) match of cleaned texts by the first reference that equals, contains or is part of the prediction (LEO)."""
    for reference in references:
        if prediction == reference:
            return True, True
        if contains_either(prediction, reference):
            return False, True
    return False, False


def match_any(prediction: str, references: Sequence[str]) -> tuple[bool, bool]:
    """(exact, refined) match of cleaned texts with any of the references (VLM-3R, LLaVA-3D)."""
    if prediction in references:
        return True, True
    return False, any(contains_either(prediction, reference) for reference in references)
