"""A graph's answer for people: what it used, what it computed, and whether a model says otherwise."""

import re
from collections.abc import Sequence

import numpy as np

from allocentric.graph.grammar import write_line
from allocentric.graph.names import CANONICAL, plain
from allocentric.graph.programs import GraphAnswer
from allocentric.graph.questions import Asked, read_question
from allocentric.graph.routes import read_turns
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.triplets import Triplet, local_triplet

SHOWN = 4  # triplets at most
AGREE = 0.1  # relative difference up to which numbers say the same
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMERIC = ("count", "distance", "size", "room_size", "position")
LETTER = re.compile(r"^\W*([A-Za-z])(?:\W+|$)")
SIDE = re.compile(r"front|back|behind|left|right")


def used_triplets(graph: SceneGraph, answer: GraphAnswer) -> list[Triplet]:
    """The triplets that an answer rests on: the one of its three objects, or those of the map that touch most of its objects. Of a
    map that was written, its own lines.
    """
    names = list(graph.names)
    used = [names.index(name) for name in answer.objects if name in names]
    wanted = {graph.nodes[i] for i in used}
    if len(used) == 3 and not graph.written:
        return [local_triplet(tuple(graph.nodes[i] for i in used), graph.points[used], metric=graph.scale == "metric")]
    touching = [t for t in graph.written or graph.triplets() if wanted & set(t.nodes)]
    exact = [t for t in touching if wanted == set(t.nodes)]
    return exact[:1] or sorted(touching, key=lambda t: -len(wanted & set(t.nodes)))[:SHOWN]


def explain(graph: SceneGraph, answer: GraphAnswer) -> list[str]:
    """Lines of text: triplets, then the computation."""
    repeated = {label for label, instance in graph.nodes if instance > 1}
    lines = [f"triplet  {write_line(t, repeated).strip()}" for t in used_triplets(graph, answer)]
    lines += [f"compute  {step}" for step in answer.steps]
    if answer.guess:
        lines.append(f"likeliest, averaged over where the missing may be: {answer.guess} ({answer.confidence:.2f})")
    return lines


def disagrees(answer: GraphAnswer, text: str, options: Sequence[str] = ()) -> bool:
    """Whether what a model wrote says something else than the graph's answer; never when the graph lacks something, or when there
    is no program for the question.

    An option is what its letter stands for. Numbers agree within 10 percent (a place: of its distance), turns and lists in their
    order, directions by their sides, things by their names.

    options   of the question, if they are not part of its text.
    """
    asked = read_question(answer.question, options)
    if answer.missing or asked is None:
        return False
    ours, theirs = _spelled_out(asked, answer.text), _spelled_out(asked, text)
    if asked.kind in NUMERIC:
        return not _same_numbers(_numbers(ours), _numbers(theirs))
    if asked.kind == "route":
        return read_turns(ours) != read_turns(theirs)
    if asked.kind == "direction":
        return _sides(ours) != _sides(theirs)
    if asked.kind == "order":
        return _things(ours) != _things(theirs)
    return _thing(ours) != _thing(theirs) and not _names_only(theirs, ours, asked.options)


def _spelled_out(asked: Asked, text: str) -> str:
    """What the letter of an option stands for; any other text as it is."""
    found = LETTER.match(text.strip())
    letter = found[1].upper() if found else ""
    if letter not in asked.letters:
        return text
    option, rest = asked.options[asked.letters.index(letter)], text.strip()[found.end() :]
    article = found[0] in ("A ", "a ") and plain(rest) != plain(option)
    return text if article else option


def _numbers(text: str) -> list[float]:
    words = re.sub(rf"\b({'|'.join(WORDS)})\b", lambda word: str(WORDS.index(word[0])), text.lower())
    return [float(number) for number in NUMBER.findall(words)]


def _same_numbers(ours: list[float], theirs: list[float]) -> bool:
    count = min(len(ours), len(theirs))
    if count == 0 or count < min(len(ours), 2):
        return False
    off = np.subtract(ours[:count], theirs[:count])
    return bool(np.linalg.norm(off) <= AGREE * np.linalg.norm(ours[:count]))


def _sides(text: str) -> set[str]:
    return {"back" if side == "behind" else side for side in SIDE.findall(text.lower())}


def _thing(text: str) -> str:
    return CANONICAL.get(plain(text), plain(text))


def _things(text: str) -> list[str]:
    parts = re.split(r",|;|->|\n|\b(?:and|then)\b", text.lower())
    return [_thing(part) for part in parts if plain(part)]


def _names_only(text: str, thing: str, options: Sequence[str]) -> bool:
    """Whether a text names one thing and no other option."""

    def named(phrase: str) -> bool:
        return f" {plain(phrase)} " in f" {' '.join(map(plain, text.split()))} "

    return named(thing) and not any(named(option) for option in options if plain(option) != plain(thing))
