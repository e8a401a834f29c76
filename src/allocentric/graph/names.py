"""Which objects of a graph a phrase means: "the dining table", "bath tub", "the chair by the window", "chair.2"."""

import difflib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from allocentric.graph.scene_graph import SceneGraph

# Words for one thing, as annotators of different data sets use them. The first is the form that words are compared in.
SYNONYMS = (
    ("tv", "television", "tv monitor", "tv screen", "telly"),
    ("refrigerator", "fridge"),
    ("sofa", "couch", "settee"),
    ("trash bin", "trash can", "garbage bin", "garbage can", "wastebasket", "waste bin", "rubbish bin", "trashcan", "bin", "trash"),
    ("washer", "washing machine", "laundry machine"),
    ("bookshelf", "bookcase", "book shelf"),
    ("nightstand", "bedside table", "night table"),
    ("bathtub", "tub", "bathtube"),
    ("stove", "cooker", "gas stove", "cooktop", "stovetop"),
    ("wardrobe", "closet", "armoire"),
    ("monitor", "computer monitor", "computer screen", "screen"),
    ("radiator", "heater"),
    ("picture", "painting", "poster"),
    ("rug", "carpet"),
    ("curtain", "drape"),
    ("microwave", "microwave oven"),
    ("backpack", "rucksack"),
    ("phone", "telephone"),
    ("potted plant", "plant", "houseplant"),
)
CANONICAL = {word: group[0] for group in SYNONYMS for word in group}

ARTICLES = re.compile(r"^(?:(?:the|a|an|this|that|my|your|same)\s+)+")
PART = re.compile(
    r"^(?:(?:the )?(?:[a-z]+[- ])?(?:edge|corner|end|head|foot|side|front|back|top|bottom|middle|center|centre) of )(.+)$"
)
BESIDE = re.compile(
    r"^(.+?)\s+(?:near by|nearby|near|right next to|next to|beside|closest to|closer to|close to|by|under|on)\s+(.+)$"
)
WITH = re.compile(r"^(.+?)\s+(?:with|seen|that|which)\s+.+$")
NEAREST = re.compile(r"^(closest|nearest|farthest|furthest)\s+(.+)$")
CLOSE_SPELLING = 0.8  # of `difflib`: what may be a slip of the pen


def plain(phrase: str) -> str:
    """Lower case, without article, punctuation and plural: the form in which phrases and labels are compared."""
    head, _, last = _literal(phrase).rpartition(" ")
    return f"{head} {_singular(last)}".strip()


def find(graph: SceneGraph, phrase: str, origin: Sequence[float] | Float[np.ndarray, "2"] | None = None) -> list[int]:
    """Positions in `graph.objects` that a phrase may mean; none when the graph has no such thing, several when it says no more.

    origin   (x, y) that "the closest sofa" is measured from.
    """
    words = _literal(phrase)
    if found := _with_label(graph, [words]):
        return found
    if named := [i for i, name in enumerate(graph.names) if name.lower() == words]:
        return named
    if part := PART.match(words):
        return find(graph, part[1], origin)
    if (nearest := NEAREST.match(words)) and not nearest[2].startswith("to "):
        some = find(graph, nearest[2], origin)
        if origin is None or len(some) < 2:
            return some
        far = np.hypot(*(graph.points[some] - np.asarray(origin)).T)
        return [some[int(far.argmax() if nearest[1] in ("farthest", "furthest") else far.argmin())]]
    if beside := BESIDE.match(words):
        some, anchors = find(graph, beside[1], origin), find(graph, beside[2], origin)
        if len(some) < 2 or not anchors:
            return some
        apart = np.linalg.norm(graph.points[some][:, None] - graph.points[anchors][None], axis=-1).min(1)
        return [some[int(apart.argmin())]]
    if described := WITH.match(words):
        return find(graph, described[1], origin)
    # a "black office chair" is an "office chair", or else a "chair"; a "lamp" may be a "floor lamp"
    if found := _with_label(graph, [" ".join(words.split()[i:]) for i in range(1, len(words.split()))]):
        return found
    return [i for i, o in enumerate(graph.objects) if plain(o.label).endswith(f" {plain(words)}")]


def similar(graph: SceneGraph, phrase: str) -> str:
    """The label that a phrase, of which the graph has nothing, may be a misspelling of; "" when there is none. Only to be asked
    back: a "tablet" is no "table".
    """
    labels = sorted({plain(o.label) for o in graph.objects})
    return next(iter(difflib.get_close_matches(plain(phrase), labels, 1, CLOSE_SPELLING)), "")


def _literal(phrase: str) -> str:
    """Lower case, without article and punctuation."""
    words = re.sub(r"\(e?s\)", "", phrase.lower())
    words = re.sub(r"[^\w.&' ]+|_", " ", words).strip(" .'")
    return ARTICLES.sub("", " ".join(words.split()))


def _with_label(graph: SceneGraph, phrases: Sequence[str]) -> list[int]:
    """Objects whose label one of the phrases is, by the first phrase and the strictest comparison that find any."""
    labels = [(_literal(o.label), plain(o.label)) for o in graph.objects]
    for written in phrases:
        wanted = plain(written)
        for same in (
            lambda literal, label, w=written: literal == w,
            lambda literal, label, w=wanted: label == w,
            lambda literal, label, w=wanted: CANONICAL.get(label, label) == CANONICAL.get(w, w),
            lambda literal, label, w=wanted: label.replace(" ", "") == w.replace(" ", ""),
        ):
            if found := [i for i, label in enumerate(labels) if same(*label)]:
                return found
    return []


def _singular(word: str) -> str:
    """English singular by ending; applied to both sides of a comparison, so that what it gets wrong still agrees."""
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    for ending, replacement in (("ies", "y"), ("lves", "lf"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if word.endswith(ending):
            return word.removesuffix(ending) + replacement
    return word.removesuffix("s")
