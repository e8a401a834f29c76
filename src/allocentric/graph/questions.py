"""What a spatial question asks, read from its text: the wordings of VSI-Bench, and the everyday ones that mean the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["count", "distance", "size", "room_size", "nearest", "direction", "position", "order", "route"]

ROOM = r"(?:room|space|place|apartment|flat|house|floor|scene)"
I = re.IGNORECASE

UNIT = r"(?:,? (?:measured )?in \w+)?[?.]?$"
METERS = r"\s*(?:\(in [^)]*\)|,? in (?:centi)?met(?:er|re)s.*|,? measur.*)?[?.]?$"
FAR = r"(closest|nearest|farthest|furthest)"
COUNT = (
    re.compile(r"how many (.+?)(?:\(e?s\))?(?:,? (?:are|is|can|do|does|in)\b.*)?[?.]?$", I),
    re.compile(r"number of (.+?)(?:\(e?s\))?(?: (?:in|are|that)\b.*)?[?.]?$", I),
)
BETWEEN = (
    re.compile(rf"distance (?:between|from) (.+?){METERS}", I),
    re.compile(rf"how (?:far|distant)(?: apart)?(?: away)? (?:is|are) (.+?){METERS}", I),
)
APART = re.compile(r",?\s+(?:and|from|to)\s+", I)
SIZE = (
    re.compile(rf"(?:longest|largest|greatest) (?:dimension|side|edge)\b.*?\bof (.+?){UNIT}", I),
    re.compile(rf"how (?:long|big|large|wide|tall|high|deep) (?:is|are) (.+?){UNIT}", I),
    re.compile(rf"\b(?:size|length|width|height|depth) of (.+?){UNIT}", I),
)
ROOM_SIZE = (
    re.compile(rf"(?:size|area|square met(?:er|re)s) (?:of|does) (?:this|the|these|all|combined) (?:\w+ )?{ROOM}s?\b", I),
    re.compile(rf"how (?:big|large|spacious) (?:is|are) (?:this|the|these) (?:\w+ )?{ROOM}s?\b", I),
    re.compile(r"\b(?:floor|room) area\b", I),
)
NEAREST_OF = re.compile(rf"which of (?:these|the following) \w+\s*\((.+)\) is (?:the )?{FAR} (?:to|from) (.+?)[?.]?$", I)
NEAREST = re.compile(rf"wh(?:ich|at)\b.*?\b{FAR}\b (?:to|from) (.+?)(?:[:,(]\s*(?P<options>.+?)\)?)?[?.]?$", I)
STANDING = (
    r"standing (?:by|at|near|next to|beside|in front of) (.+?),? (?:and )?(?:i am |i'm )?(?:am )?"
    r"(?:facing|looking at|looking to|looking toward|looking towards|turned to)(?: to| towards?)? (.+?),? "
    r"(?:is|are|where is|on which side is|in which direction is) "
)
SIDE = r"(?:the |my )?(?:front|back|rear|left|right|behind)\b(?:[- ](?:left|right)\b)?(?: side)?"
DIRECTION = (  # up to where nothing but sides follows, for labels hold words like "on" and "in"; else up to a weaker sign of them
    re.compile(
        rf"{STANDING}(.+?),? to (?=the|my){SIDE}(?:,?(?: or| and)? (?:to )?{SIDE})*(?: of (?!.* to (?:the|my) {SIDE}).+)?[?.]?$", I
    ),
    re.compile(rf"{STANDING}(.+?)(?:,? (?:(?:to|on|at|in) (?:the|my|your|which|front)|behind|left(?=,| or\b)|my)\b.*)?[?.]?$", I),
)
POSITION = re.compile(r"where (?:is|are) (.+?)(?: from the first camera.*| in (?:this|the) \w+)?[?.]?$", I)
ORDER = re.compile(
    r"(?:appearance order|order of appearance|appear(?:s|ance)? first|first[- ]time appearance)[^:]*:\s*(.+?)[?.]?$", I
)
ROUTE = re.compile(
    r"(?:beginning|starting|start|begin|standing) (?:at|by|from|near) (.+?),? (?:and )?facing (?:(?:to|towards?|into) )?"
    r"(.+?)\. (?=(?-i:[A-Z\d])|(?:you|i|please|then|go|turn)\b)",
    I,
)
STEP = re.compile(r"(?:^|\s)\d+\.\s+")
OPTION = re.compile(r"^\(?([A-Za-z])[.):]\s*(.+)$")


@dataclass(frozen=True)
class Asked:
    """A question as a program needs it.

    objects   phrases that name objects, as `kind` wants them: what is counted; the two of a distance; what is sized; the
              anchor of a nearest; (standing, facing, query) of a direction; categories in order of mention; (start, faced) of
              a route. A phrase that joins two ("the bed and the table") stays whole.
    options   answers to choose from, without their letters.
    letters   the letter of each option; empty when the answer is to be written out.
    level     "easy", "medium" or "hard" for a direction; "farthest" for a nearest that asks for the opposite;
              "height" or "longest" for a size.
    steps     actions of a route: a turn ("left", "right", "back"), "?" for one to fill in, or where to go forward to.
    pairs     the ways to split a phrase that joins two; the graph knows which.
    """

    kind: Kind
    objects: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    letters: tuple[str, ...] = ()
    level: str = ""
    steps: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()


def read_question(text: str, options: Sequence[str] = ()) -> Asked | None:
    """What a question asks; None when it is none of the kinds there are programs for.

    text      the question; options may stand in it, one a line ("A. left"), as in the prompts of VSI-Bench.
    options   "A. left", "B. right", ..., if they are not part of the text.
    """
    lines = [re.sub(r"\s*\bOptions:$", "", line.strip(), flags=I) for line in text.splitlines()]
    within = [line for line in lines if OPTION.match(line)] if not options else []
    given = [m for option in (options or within) if (m := OPTION.match(option.strip()))]
    bare = () if given else tuple(option.strip() for option in options)
    choices, letters = tuple(m[2].strip() for m in given) or bare, tuple(m[1].upper() for m in given)
    boilerplate = ("these are frames of", "options:", "answer with the option", "please answer")
    kept = [line for line in lines if line and line not in within and not line.lower().startswith(boilerplate)]
    words = " ".join(" ".join(kept).split())
    asked = _read(words, choices)
    if asked is None:
        return None
    choices = choices or asked.options
    return Asked(asked.kind, asked.objects, choices, letters, asked.level, asked.steps, asked.pairs)


def _read(words: str, options: tuple[str, ...]) -> Asked | None:
    if (found := ROUTE.search(words)) and "go forward" in words.lower():
        return Asked("route", (found[1], found[2]), steps=_steps(words[found.end() :]))
    sentences = words.split("? ")
    first = sentences[0].rstrip("?") + "?" if len(sentences) > 1 else words
    if found := _first(DIRECTION, first):
        return Asked("direction", found.groups(), level=_level(first, options))
    if found := ORDER.search(first):
        return Asked("order", _listed(found[1]))
    if found := NEAREST_OF.search(first):
        return Asked("nearest", (found[3],), _listed(found[1]), level=_far(found[2]))
    if found := NEAREST.search(first):
        listed = _listed(found["options"]) if found["options"] else ()
        return Asked("nearest", (found[2],), options or listed, level=_far(found[1]))
    if found := _first(COUNT, first):
        return Asked("count", (found[1],))
    if _first(ROOM_SIZE, first):
        return Asked("room_size")
    if found := _first(BETWEEN, first):
        joints = list(APART.finditer(found[1]))
        pairs = tuple((found[1][: joint.start()], found[1][joint.end() :]) for joint in joints)
        return Asked("distance", (found[1],), pairs=pairs) if pairs else None
    if found := _first(SIZE, first):
        upright = re.search(r"how (?:tall|high)|^what is the height|\bheight of", first, I) and "longest" not in first.lower()
        return Asked("size", (found[1],), level="height" if upright else "longest")
    if found := POSITION.search(first):
        return Asked("position", (found[1],))
    return None


def _first(patterns: Sequence[re.Pattern], text: str) -> re.Match | None:
    return next((found for pattern in patterns if (found := pattern.search(text))), None)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in re.split(r",\s*(?:or |and )?|\s+or\s+", text) if part.strip())


def _far(word: str) -> str:
    return "farthest" if word.lower().startswith("f") else "closest"


def _level(text: str, options: tuple[str, ...]) -> str:
    """How finely a direction is asked for: by its options, else by its words."""
    words = "; ".join(options).lower() or text.lower()
    if re.search(r"front[- ]left|back[- ]right", words):
        return "hard"
    return "medium" if re.search(r"\bback\b|\bbehind\b", words) else "easy"


def _steps(text: str) -> tuple[str, ...]:
    """Actions of a route, in order. What stands before "1." is introduction."""
    actions = []
    for part in STEP.split(text)[1:]:
        part = re.sub(r"\s*You have reached.*$", "", part, flags=I).strip(" .")
        lower = part.lower()
        if "fill in" in lower:
            actions.append("?")
        elif turned := re.match(r"turn (left|right|back|around)", lower):
            actions.append("back" if turned[1] == "around" else turned[1])
        else:
            actions.append(part)
    return tuple(actions)
