"""Spatial questions answered by geometry on a `SceneGraph`: one small program per kind of question.

    answer = ask_graph(graph, "If I am standing by the bed and facing the desk, is the lamp to my left, right, or back?")
    answer.text     "left"
    answer.steps    what was looked up and computed, line by line

What the graph lacks is named, never guessed (`GraphAnswer.missing`).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from allocentric.geometry.boxes import Box3D, box_distance, boxes_to_array
from allocentric.geometry.floor import polygon_area
from allocentric.graph.names import find, plain, similar
from allocentric.graph.questions import Asked, read_question
from allocentric.graph.routes import plan_route, read_turns, turn_name
from allocentric.graph.scene_graph import SceneGraph

Measure = Callable[[Box3D, Box3D], float]


@dataclass(frozen=True)
class GraphAnswer:
    """What the geometry of a graph says.

    text         the letter of an option, a number, or words; a sentence on what is missing when something is.
    question     what was asked.
    steps        the computation, line by line.
    objects      names of the objects it used.
    missing      what the question names and the graph has not.
    guess        the likeliest option of a route some of whose places are missing, averaged over where they could be.
    confidence   probability of that option, or of the answer where several objects fit a phrase; 1 when computed.
    """

    text: str
    question: str
    steps: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    guess: str = ""
    confidence: float = 1.0

    def __str__(self) -> str:
        return self.text


class _Missing(Exception):
    """Raised inside a program when the graph lacks what it needs; ends up in `GraphAnswer.missing`."""


def ask_graph(graph: SceneGraph, question: str, options: Sequence[str] = (), measure: Measure | None = None) -> GraphAnswer:
    """Answer a spatial question from a graph.

    question   the text, of any of the eight types of VSI-Bench or in everyday words; options may stand in it, one a line.
    options    "A. left", "B. right", ..., if they are not part of the text.
    measure    metres between two boxes, for "distance" and "nearest"; default: exact, between their closest points. VSI-Bench's
               answers were measured between points in the boxes (`geometry.sampled`, benchmarks/graph_vsibench.py).
    """
    asked = read_question(question, options)
    if asked is None:
        kinds = "count, distance, size, room size, nearest, direction, position, order of appearance, route"
        return GraphAnswer(f"no program for this question; there are ones for {kinds}", question)
    try:
        if asked.kind in ("distance", "nearest") and measure is not None:
            return PROGRAMS[asked.kind](graph, asked, question, measure)
        return PROGRAMS[asked.kind](graph, asked, question)
    except _Missing as lacking:
        return _lacks(graph, lacking.args[0], question)


# --- One program per kind ---


def count(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """Number of objects of a category; of several together when it is asked for "chairs and beds"."""
    (label,) = asked.objects
    parts = _counted(graph, label)
    found = {plain(part): find(graph, part) for part in parts}
    if lacking := tuple(part for part, some in found.items() if not some):
        raise _Missing(lacking)
    names = {part: _names(graph, some) for part, some in found.items()}
    used = tuple(dict.fromkeys(name for some in names.values() for name in some))
    sum_of = " + ".join(str(len(some)) for some in names.values()) + " = " if len(names) > 1 else ""
    steps = (*(f"{part}: {', '.join(some)}" for part, some in names.items()), f"count = {sum_of}{len(used)}")
    return GraphAnswer(str(len(used)), question, steps, used)


def distance(graph: SceneGraph, asked: Asked, question: str, measure: Measure | None = None) -> GraphAnswer:
    """Metres between the closest points of two objects; between centres where there are no boxes."""
    one, other = _pair(graph, asked)
    meters, i, j = _closest(graph, one, other, measure)
    names = _names(graph, [i, j])
    exact = "closest points of the boxes" if measure is None else "the boxes, by the measure given"
    by = exact if _boxed(graph, [i, j]) else "centres"
    steps = (*_placed(graph, [i, j]), f"{by}: {meters:.2f} {_unit(graph)}")
    return GraphAnswer(_number(graph, meters, 1, question), question, steps, names)


def size(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """Longest side of an object's box in centimetres, or its height when that is asked."""
    (phrase,) = asked.objects
    i = _one(graph, phrase)
    box = graph.objects[i].box
    if box is None:
        raise _Missing((f"box of the {plain(phrase)}, only its place",))
    length = box.size[2] if asked.level == "height" else max(box.size)
    sides = " x ".join(f"{100 * side:.0f}" for side in box.size)
    what = "height" if asked.level == "height" else "longest side"
    meters = re.search(r"\bmet(?:er|re)s\b", question) and not re.search(r"centi", question)
    text = _number(graph, length, 2, question) if meters else _number(graph, 100 * length, 0, question)
    steps = (f"{graph.names[i]}: {sides} cm", f"{what} = {100 * length:.0f} cm")
    return GraphAnswer(text, question, steps, (graph.names[i],))


def room_size(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """Square metres of floor."""
    area, how = graph.room_area, "measured area"
    if area is None and graph.floor:
        area, how = sum(polygon_area(polygon) for polygon in graph.floor), "area of the floor's outline"
    if area is None:
        raise _Missing(("floor",))
    return GraphAnswer(_number(graph, area, 1, question), question, (f"{how}: {area:.2f} square {_unit(graph)}",))


def nearest(graph: SceneGraph, asked: Asked, question: str, measure: Measure | None = None) -> GraphAnswer:
    """Which category has the instance closest to an object (or is farthest from it)."""
    anchor = _some(graph, asked.objects[0])
    choices = list(asked.options)
    if not choices:
        choices = list(dict.fromkeys(o.label for i, o in enumerate(graph.objects) if i not in anchor))
    found = {choice: [i for i in find(graph, choice) if i not in anchor] for choice in choices}
    if lacking := tuple(plain(choice) for choice in choices if not found[choice]):
        raise _Missing(lacking)
    reach = {choice: _closest(graph, anchor, found[choice], measure) for choice in choices}
    best = (max if asked.level == "farthest" else min)(choices, key=lambda choice: reach[choice][0])
    used = _names(graph, [anchor[0], *(reach[choice][2] for choice in choices)])
    unit = _unit(graph)
    steps = tuple(f"{plain(choice)}: {reach[choice][0]:.2f} {unit}" for choice in sorted(choices, key=lambda c: reach[c][0]))
    return GraphAnswer(_chosen(asked, best), question, (*steps, f"{asked.level} to the {used[0]}: {plain(best)}"), used)


def direction(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """Where the third object is for one who stands by the first and faces the second; centres seen from above."""
    if lacking := tuple(plain(phrase) for phrase in asked.objects if not find(graph, phrase)):
        raise _Missing(lacking)
    standing, facing, query = (_one(graph, phrase) for phrase in asked.objects)
    if len({standing, facing, query}) < 3:
        raise _Missing((f"three different objects for {_joined(tuple(map(plain, asked.objects)))}",))
    points = graph.points
    v, u = points[facing] - points[standing], points[query] - points[standing]
    angle = math.atan2(v[0] * u[1] - v[1] * u[0], float(v @ u))
    word = sector(asked.level, angle)
    side = "left" if angle > 0 else "right"
    steps = (
        *_placed(graph, [standing, facing, query]),
        f"facing = ({v[0]:.2f}, {v[1]:.2f}), query = ({u[0]:.2f}, {u[1]:.2f})",
        f"turn {abs(math.degrees(angle)):.0f} degrees to the {side}: {word}",
    )
    return GraphAnswer(_chosen(asked, word), question, steps, _names(graph, [standing, facing, query]))


def position(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """Where an object is from the first camera: metres to the right, forward, up. Without a camera, in the frame of the map, unless
    it is the camera that is asked about.
    """
    (phrase,) = asked.objects
    i = _one(graph, phrase)
    if graph.viewpoint is None and re.search(r"\bcamera\b", question, re.I):
        raise _Missing(("place of the first camera",))
    if graph.viewpoint is not None:
        o, frame = graph.canonical().objects[i], "from the first camera (x right, y forward, z up)"
    else:
        o, frame = graph.objects[i], "in the frame of the map"
    z = f" z {o.box.center[2]:z.1f}" if o.box is not None else ""
    return GraphAnswer(f"x {o.xy[0]:z.1f} y {o.xy[1]:z.1f}{z}", question, (f"{graph.names[i]} {frame}",), (graph.names[i],))


def order(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """In which order categories first appear in the video."""
    firsts: dict[str, int] = {}
    for phrase in asked.objects:
        frames = [first for i in _some(graph, phrase) if (first := graph.objects[i].first_seen) is not None]
        if frames:
            firsts[plain(phrase)] = min(frames)
    if lacking := tuple(f"first frame of the {plain(p)}" for p in asked.objects if plain(p) not in firsts):
        raise _Missing(lacking)
    ordered = sorted(firsts, key=lambda phrase: firsts[phrase])
    steps = tuple(f"{phrase}: frame {firsts[phrase]}" for phrase in ordered)
    if not asked.options:
        return GraphAnswer(", ".join(ordered), question, steps, tuple(ordered))

    def agreement(option: str) -> int:
        """Pairs in the right order; all of them for the right option."""
        listed = [firsts.get(plain(part), -1) for part in option.split(",")]
        return sum(a < b for k, a in enumerate(listed) for b in listed[k + 1 :])

    return GraphAnswer(_chosen(asked, max(asked.options, key=agreement)), question, steps, tuple(ordered))


def route(graph: SceneGraph, asked: Asked, question: str) -> GraphAnswer:
    """The turns of a described walk (`graph.routes`)."""
    count = asked.steps.count("?")
    options = [read_turns(option) for option in asked.options]
    written = list(asked.options)
    if not options:
        options = [()]
        for _ in range(count):
            options = [(*turns, turn) for turns in options for turn in ("left", "right", "back")]
        written = [", ".join(f"turn {turn}" for turn in turns) for turns in options]
    found = plan_route(graph, *asked.objects, asked.steps, options)
    best = int(np.argmax(found.probability))
    steps = tuple(f"turn {k}: {angle:+.0f} degrees, {turn_name(angle)}" for k, angle in enumerate(found.angles, start=1))
    steps += tuple(f"several objects fit {plain(phrase)!r}: averaged over them" for phrase in found.several)
    steps += tuple(f"{text}: {p:.2f}" for text, p in zip(written, found.probability, strict=True))
    choice = asked.letters[best] if asked.letters else written[best]
    missing = tuple(dict.fromkeys(map(plain, found.missing)))
    names = _names(graph, found.objects)
    if missing:
        return _lacks(graph, missing, question, steps, objects=names, guess=choice, confidence=found.probability[best])
    return GraphAnswer(choice, question, steps, names, confidence=found.probability[best])


PROGRAMS: dict[str, Callable[..., GraphAnswer]] = {
    "count": count,
    "distance": distance,
    "size": size,
    "room_size": room_size,
    "nearest": nearest,
    "direction": direction,
    "position": position,
    "order": order,
    "route": route,
}


# --- What they share ---


def sector(level: str, angle: float) -> str:
    """Name of an angle in radians, counter-clockwise from the direction faced. "medium" says back from 135 degrees on."""
    side = "left" if angle > 0 else "right"
    if level == "easy":
        return side
    if level == "medium":
        return "back" if abs(angle) >= math.radians(135) else side
    return f"{'back' if abs(angle) > math.pi / 2 else 'front'}-{side}"


def _lacks(graph: SceneGraph, what: tuple[str, ...], question: str, steps: Sequence[str] = (), **known) -> GraphAnswer:
    """The answer where the graph has not what is named. A label that is spelled nearly so is asked back, not used."""
    perhaps = tuple(dict.fromkeys(label for phrase in what if (label := similar(graph, phrase))))
    text = f"the graph has no {_joined(what)}" + (f" (did you mean {_joined(perhaps)}?)" if perhaps else "")
    return GraphAnswer(text, question, (f"not in the graph: {_joined(what)}", *steps), missing=what, **known)


def _counted(graph: SceneGraph, phrase: str) -> list[str]:
    """The categories that are counted together: a phrase is one ("table and chairs") where the graph has it by that name, or where
    its parts are no things themselves ("black and white chairs").
    """
    parts = [part for part in re.split(r",\s*(?:and\s+)?|\s+and\s+", phrase) if part.strip()]
    named = any(plain(o.label) == plain(phrase) for o in graph.objects)
    things = all(find(graph, part) or re.search(r"s\b|\(e?s\)$", part) for part in parts)
    return parts if len(parts) > 1 and things and not named else [phrase]


def _some(graph: SceneGraph, phrase: str) -> list[int]:
    found = find(graph, phrase)
    if not found:
        raise _Missing((plain(phrase),))
    return found


def _one(graph: SceneGraph, phrase: str) -> int:
    """The object a phrase means; the first seen where it fits several."""
    return _some(graph, phrase)[0]


def _pair(graph: SceneGraph, asked: Asked) -> tuple[list[int], list[int]]:
    """The two objects of a distance, split where both sides are in the graph."""
    sides = [(find(graph, a), find(graph, b)) for a, b in asked.pairs]
    for a, b in sides:
        if a and b and a != b:
            return a, b
    (a, b), (found_a, found_b) = asked.pairs[0], sides[0]
    raise _Missing(tuple(plain(p) for p, found in ((a, found_a), (b, found_b)) if not found) or (f"two objects for {plain(a)}",))


def _closest(
    graph: SceneGraph, some: list[int], others: list[int], measure: Measure | None = None
) -> tuple[float, int, int]:
    """Least distance between two groups, and which two objects have it."""
    pairs = [(i, j) for i in some for j in others if i != j]
    if not pairs:
        raise _Missing(("second object",))
    i, j = map(list, zip(*pairs, strict=True))
    if measure is not None and _boxed(graph, [*i, *j]):
        meters = np.array([measure(graph.objects[k].box, graph.objects[m].box) for k, m in pairs])
    elif _boxed(graph, [*i, *j]):
        meters = box_distance(*(boxes_to_array(graph.objects[k].box for k in side) for side in (i, j)))
    else:
        meters = np.linalg.norm(graph.points[i] - graph.points[j], axis=1)
    best = int(meters.argmin())
    return float(meters[best]), *pairs[best]


def _boxed(graph: SceneGraph, some: Sequence[int]) -> bool:
    return all(graph.objects[i].box is not None for i in some)


def _names(graph: SceneGraph, some: Sequence[int]) -> tuple[str, ...]:
    return tuple(graph.names[i] for i in some)


def _placed(graph: SceneGraph, some: Sequence[int]) -> tuple[str, ...]:
    lines = []
    for i in some:
        sigma = graph.objects[i].sigma
        off = f" +- {sigma:.2f}" if sigma else ""
        lines.append(f"{graph.names[i]} at ({graph.points[i][0]:.2f}, {graph.points[i][1]:.2f}){off}")
    return tuple(lines)


def _unit(graph: SceneGraph) -> str:
    return "metres" if graph.scale == "metric" else "units"


def _number(graph: SceneGraph, value: float, digits: int, question: str) -> str:
    """A number as text; without metric scale it says so, since it answers no question in metres."""
    text = f"{value:.{digits}f}"
    return text if graph.scale == "metric" else f"{text} units (the map has no metric scale)"


def _chosen(asked: Asked, answer: str) -> str:
    """The letter of the option that says `answer`; the answer itself when there are no letters."""
    if not asked.letters:
        return answer
    same = [letter for letter, option in zip(asked.letters, asked.options, strict=True) if plain(option) == plain(answer)]
    return same[0] if same else answer


def _joined(parts: tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
