"""Route planning on a scene graph: which turns does a described walk make?

A walk is a start, what one faces there, and steps: "go forward until the bed", "[please fill in]". Each leg is the shortest walk
over free floor, and each turn is the angle between how one arrives and how one leaves. What the graph does not hold (doors and
windows have no boxes in most annotations), or holds several times, is averaged over where it could be.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from shapely.geometry import MultiPoint, Polygon

from allocentric.geometry.boxes import boxes_to_array, footprint_corners
from allocentric.geometry.canonical import wrap
from allocentric.graph.free_space import FreeSpace
from allocentric.graph.names import find, plain
from allocentric.graph.scene_graph import SceneGraph

CENTERS = {"left": math.pi / 2, "right": -math.pi / 2, "back": math.pi, "straight": 0.0}
SHARPNESS = 2.0  # of exp(k cos(angle off)): people call 40 degrees and 130 degrees a left turn alike
WORLDS = 2000  # draws of where unknown things are
AT_WALL = 0.75  # share of unknown furniture that stands along a wall; doors, windows and the like always do
WALL_THINGS = re.compile(
    r"\b(door|doorway|doorframe|entrance|window|wall|mirror|curtain|picture|radiator|closet|shower|outlet|stairs)\b"
)
GO = re.compile(
    r"^(?:go|walk|move|continue|head)\b.*?\b(?:until|till|to|towards?|past)\s+(?:you (?:reach|see|get to) )?(.+)$", re.I
)
ABEAM = re.compile(r"^(.+?)\s+(?:is )?(?:on|to) (?:your|the|my) (left|right)(?: side)?$", re.I)
SEED = 0


@dataclass(frozen=True)
class Route:
    """How well each option fits.

    options         sequences of turns as given.
    probability     of each option, given what the graph knows; sums to 1.
    angles          turns in degrees, counter-clockwise, one per turn; only when every place is known.
    missing         phrases that the graph has nothing for.
    several         phrases that fit several objects.
    objects         positions in `graph.objects` of what the walk may touch.
    """

    options: tuple[tuple[str, ...], ...]
    probability: tuple[float, ...]
    angles: tuple[float, ...]
    missing: tuple[str, ...]
    several: tuple[str, ...]
    objects: tuple[int, ...]


def plan_route(graph: SceneGraph, start: str, faced: str, steps: Sequence[str], options: Sequence[Sequence[str]]) -> Route:
    """Score sequences of turns ("left", "right", "back") for a walk described in words.

    steps     "?" for a turn to fill in, "left" / "right" / "back" for one that is given, else a sentence on where to go.
    """
    stops = [_stop(step) for step in steps]
    phrases = [start, faced, *(phrase for phrase, _ in stops if phrase)]
    origin = graph.points[some[0]] if (some := find(graph, start)) else None
    places = {plain(phrase): find(graph, phrase, origin) for phrase in phrases}
    missing = tuple(dict.fromkeys(p for p in phrases if not places[plain(p)] and not _is_view(p)))
    several = tuple(dict.fromkeys(p for p in phrases if len(places[plain(p)]) > 1))
    rng = np.random.default_rng(SEED)
    turns_back = plain(start) == plain(faced) or _is_view(faced)
    worlds = WORLDS if missing or several or turns_back else 1
    where = _draw_places(graph, places, worlds, rng)
    straight = None if worlds > 1 else _legs(graph, places)
    angles, beside = _walk(graph, where, start, faced, steps, stops, straight, rng)
    likelihood = np.array([_fit(option, angles, beside) for option in options])
    total = likelihood.sum()
    probability = likelihood / total if total > 0 else np.full(len(options), 1 / max(len(options), 1))
    certain = tuple(round(math.degrees(a[0]), 1) for a in angles) if worlds == 1 else ()
    touched = tuple(dict.fromkeys(i for found in places.values() for i in found))
    return Route(tuple(map(tuple, options)), tuple(probability.tolist()), certain, missing, several, touched)


def read_turns(option: str) -> tuple[str, ...]:
    """Turns in an option: "Turn Left, Turn Back" -> ("left", "back")."""
    words = re.findall(r"\b(left|right|back|around|straight|forward)\b", option.lower())
    return tuple({"around": "back", "forward": "straight"}.get(word, word) for word in words)


def _stop(step: str) -> tuple[str, str]:
    """Where a step leads ("" when it names no place) and on which side that is passed ("" when one walks up to it)."""
    if step in ("?", *CENTERS):
        return "", ""
    found = GO.match(step)
    phrase = found[1] if found else step
    phrase = re.sub(r"^(?:about |past |on |at )+|^\d+ (?:foot|feet|meters?|metres?|m) (?:before|from) ", "", phrase, flags=re.I)
    if re.fullmatch(r"(?:about )?(?:one|two|three|a few|\d+(?:\.\d+)?)\s+(?:foot|feet|steps?|meters?|metres?|m)", phrase, re.I):
        return "", ""
    abeam = ABEAM.match(phrase)
    return (abeam[1], abeam[2].lower()) if abeam else (phrase, "")


def _is_view(phrase: str) -> bool:
    """Whether a phrase says which way to look, not at what: "into the room", "the outside"."""
    return plain(phrase) in ("room", "inside", "outside", "out", "inward", "outward", "bathroom", "kitchen")


def _draw_places(
    graph: SceneGraph, places: dict[str, list[int]], worlds: int, rng: np.random.Generator
) -> dict[str, Float[np.ndarray, "w 2"]]:
    """Where each phrase is in each world: at one of the objects it fits, else anywhere in the room."""
    points, drawn = graph.points, {}
    outline = room_outline(graph)
    for phrase, candidates in places.items():
        if candidates:
            drawn[phrase] = points[rng.choice(candidates, worlds)]
        elif outline is not None:
            along = np.array([outline.exterior.interpolate(t, normalized=True).coords[0] for t in rng.random(worlds)])
            low, high = np.array(outline.bounds[:2]), np.array(outline.bounds[2:])
            inner = low + rng.random((worlds, 2)) * (high - low)
            at_wall = rng.random(worlds) < (1.0 if WALL_THINGS.search(phrase) else AT_WALL)
            drawn[phrase] = np.where(at_wall[:, None], along, inner)
        else:
            drawn[phrase] = rng.normal(size=(worlds, 2)) * 2
    return drawn


def turn_name(degrees: float) -> str:
    """What a turn is called, counter-clockwise positive: the nearest of left, right, back and straight."""
    return min(CENTERS, key=lambda turn: abs(math.remainder(math.radians(degrees) - CENTERS[turn], math.tau)))


def room_outline(graph: SceneGraph) -> Polygon | None:
    """The floor's outline; where that is unknown, the smallest rectangle around the boxes, grown to the room's known area."""
    if graph.floor:
        return MultiPoint(np.concatenate(list(graph.floor))).convex_hull
    rows = boxes_to_array(o.box for o in graph.objects if o.box is not None)
    hull = MultiPoint(np.concatenate([footprint_corners(rows).reshape(-1, 2), graph.points])).minimum_rotated_rectangle
    if not isinstance(hull, Polygon) or hull.area < 1e-6:
        return None
    if graph.room_area is not None and graph.room_area > hull.area:
        side = math.sqrt(hull.area)
        return hull.buffer((math.sqrt(graph.room_area) - side) / 2, join_style="mitre")
    return hull


def _legs(graph: SceneGraph, places: dict[str, list[int]]) -> FreeSpace | None:
    """Free space to walk on, where the graph has boxes to know it by."""
    return FreeSpace(graph) if any(o.box is not None for o in graph.objects) and graph.scale == "metric" else None


def _walk(
    graph: SceneGraph,
    where: dict[str, np.ndarray],
    start: str,
    faced: str,
    steps: Sequence[str],
    stops: Sequence[tuple[str, str]],
    floor: FreeSpace | None,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Angle of every "?" in every world, and how well what is passed on a side lies there (cosines)."""
    at = where[plain(start)]
    previous = at
    outline = room_outline(graph)
    middle = np.zeros(2) if outline is None else np.array(outline.centroid.coords[0])
    if plain(start) == plain(faced) or _is_view(faced):
        # One who stands at a thing and faces it has the room behind; one who looks into the room has it ahead.
        ahead = middle - at if _is_view(faced) and "out" not in faced else at - middle
        heading = _angle(ahead) + rng.normal(0, math.radians(30), len(at))
    else:
        heading = _angle(where[plain(faced)] - at)
    angles, beside = [], []
    turned = True  # before the first step one has turned to what is faced
    for i, (step, (phrase, side)) in enumerate(zip(steps, stops, strict=True)):
        if step == "?" or step in CENTERS:
            target = next((where[plain(p)] for p, _ in stops[i + 1 :] if p), None)
            leaving = heading if target is None else _leave(floor, at, target, previous)
            if step == "?":
                angles.append(wrap(leaving - heading))
                heading = leaving
            else:
                heading = heading + CENTERS[step]
            turned = True
            continue
        if not phrase:
            continue
        target = where[plain(phrase)]
        if i == 0 and plain(phrase) != plain(faced) and turned:
            # Forward without a turn: along the heading until the target is reached or abeam.
            direction = np.stack([np.cos(heading), np.sin(heading)], -1)
            reach = ((target - at) * direction).sum(-1, keepdims=True)
            previous, at = at, at + np.maximum(reach, 0.3) * direction
        else:
            arriving = _arrive(floor, at, target)
            previous, at = at, target
            heading = arriving
        if side:
            beside.append(np.cos(wrap(_angle(target - previous) - heading) - CENTERS[side] / 4))
        turned = False
    return angles, beside


def _leave(floor: FreeSpace | None, at: np.ndarray, target: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Direction of the first leg of the way to a target. One who turns back may pass by what the last leg began at."""
    if floor is not None and (way := floor.walk(at[0], target[0], _boxes_over(floor, previous[0]))) is not None and len(way) > 2:
        return _angle((way[1] - way[0])[None])
    return _angle(target - at)


def _arrive(floor: FreeSpace | None, at: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Direction of the last leg of the way to a target."""
    if floor is not None and (way := floor.walk(at[0], target[0])) is not None and len(way) > 2:
        return _angle((way[-1] - way[-2])[None])
    return _angle(target - at)


def _boxes_over(floor: FreeSpace, point: np.ndarray) -> np.ndarray:
    inside = np.abs(footprint_corners(floor.obstacles).mean(-2) - point) <= floor.obstacles[:, 3:5].max(-1, keepdims=True) / 2
    return floor.obstacles[inside.all(-1)]


def _fit(option: Sequence[str], angles: Sequence[np.ndarray], beside: Sequence[np.ndarray]) -> float:
    """Mean likelihood of an option's turns over the worlds; 0 when it has another number of turns."""
    if len(option) != len(angles) or not angles:
        return 0.0
    exponent = sum(np.cos(angle - CENTERS[turn]) - 1 for turn, angle in zip(option, angles, strict=True))
    exponent = exponent + sum((cosine - 1) for cosine in beside)
    return float(np.exp(SHARPNESS * exponent).mean())


def _angle(vector: np.ndarray) -> np.ndarray:
    return np.arctan2(vector[..., 1], vector[..., 0])
