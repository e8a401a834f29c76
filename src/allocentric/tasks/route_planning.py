"""Route planning: fill in the turns of a walk from object to object."""

import math
from itertools import product

import numpy as np
from jaxtyping import Bool, Float, Int

from allocentric.geometry.boxes import boxes_to_array, into_footprint_frame
from allocentric.geometry.floor import legs_on_floor
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, multiple_choice
from allocentric.tasks.facts import bearings, pair_distances, unique_objects, wrap
from allocentric.tasks.vsibench import VSITask

TURNS = ("Turn Left", "Turn Right", "Turn Back")
SIDEWAYS = math.radians(45), math.radians(135)  # angles that are surely a turn to one side,
BACK = math.radians(150)  # and from here on surely a turn back
LEG = 0.8, 8.0  # metres of floor between the two ends of a leg
STOP_SHORT = 0.2  # metres the robot keeps from what it walks to,
HALF_WIDTH = 0.15  # and from what it passes
LOW, HIGH = 0.15, 1.2  # metres above the floor between which things are in its way


class RoutePlanning(VSITask):
    """Walks of one to three turns along unique objects, on free floor, turning only by angles that have one name.

    With one turn the options are the three turns; with more, four different sequences of which the wrong ones are random.
    No sequence turns back twice in a row, neither as answer nor as option.
    """

    name = "route_planning"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        floor_map = _FloorMap(scene)
        questions: list[Question] = []
        made = set()
        for _ in range(2 * limit if len(floor_map.nodes) >= 3 else 0):
            if len(questions) == limit:
                break
            count = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))  # as often as the benchmark
            sequences = [s for s in product(range(3), repeat=count) if (2, 2) not in zip(s, s[1:], strict=False)]
            walk = floor_map.draw_walk(sequences, rng)
            if walk is None or walk[:2] in made:
                continue
            made.add(walk[:2])
            turns, route, turn_first = walk[2], walk[0], walk[1]
            wrong = [s for s in sequences if s != turns]
            chosen = [turns, *(wrong[i] for i in rng.permutation(len(wrong))[: 2 if count == 1 else 3])]
            options = [", ".join(TURNS[t] for t in s) for s in chosen]
            labels = tuple(scene.objects[floor_map.nodes[i]].label for i in route)
            text = _text(labels, turn_first)
            questions.append(
                multiple_choice(self.name, scene, text, rng.permutation(options).tolist(), options[0], labels)
            )
        return questions


def turn(angle: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Index in `TURNS` of a change of heading in radians, counter-clockwise; -1 where it has no clear name."""
    sideways = (np.abs(angle) >= SIDEWAYS[0]) & (np.abs(angle) <= SIDEWAYS[1])
    return np.where(np.abs(angle) >= BACK, 2, np.where(sideways, np.where(angle > 0, 0, 1), -1))


class _FloorMap:
    """Which unique objects can be walked between, and which turn each pair of legs needs.

    nodes           index in `scene.objects` of each place, (u,).
    turns[x, y, z]  turn when one has come from x to y, or stands at x... see `draw_walk`.
    """

    def __init__(self, scene: AnnotatedScene):
        boxes = boxes_to_array(o.box for o in scene.objects)
        ground = min((b[2] - b[5] / 2 for b in boxes), default=0.0)
        bottom, top = boxes[:, 2] - boxes[:, 5] / 2 - ground, boxes[:, 2] + boxes[:, 5] / 2 - ground
        obstacle = (bottom < HIGH) & (top > LOW)
        unique = unique_objects(scene)
        self.nodes = unique[obstacle[unique]]
        places = boxes[self.nodes]
        bearing = bearings(places[:, :2])
        self.at_stop = turn(wrap(bearing[None, :, :] - bearing[:, :, None]))  # [x, y, z]: came from x to y, goes on to z
        self.at_start = turn(wrap(bearing[:, None, :] - bearing[:, :, None]))  # [x, y, z]: at x facing y, goes to z
        self.facing = pair_distances(scene)[np.ix_(self.nodes, self.nodes)] >= 0.3
        self.legs, self.in_the_way = _legs(scene, places, boxes[obstacle])
        # Objects of the route itself are no obstacles to it: `obstacle_of[i]` is the column of node i.
        self.column_of = np.cumsum(obstacle)[self.nodes] - 1

    def draw_walk(self, sequences: list[tuple[int, ...]], rng: np.random.Generator):
        """(places, whether the first action is a turn, turns) of a random walk; None when none of some tries succeeds."""
        u = len(self.nodes)
        for s in rng.permutation(len(sequences))[:6]:
            turns = sequences[s]
            for turn_first in rng.permutation([True, False]).tolist():
                for start in rng.permutation(u * u)[:40].tolist():
                    a, b = divmod(start, u)
                    if a == b or not self.facing[a, b]:
                        continue
                    if turn_first:
                        places = self._extend([a], b, turns, rng)
                    else:
                        places = self._extend([a, b], None, turns, rng) if self.legs[a, b] and self._free(a, b, {a, b}) else None
                    if places is not None:
                        return ((a, b, *places[1:]) if turn_first else (*places,)), turn_first, turns
        return None

    def _extend(self, places: list[int], faced: int | None, turns: tuple[int, ...], rng: np.random.Generator) -> list[int] | None:
        """`places` followed by one more place per turn, each reached on free floor."""
        if not turns:
            return places
        here = places[-1]
        needed = self.at_start[here, faced] if faced is not None else self.at_stop[places[-2], here]
        for z in rng.permutation(np.flatnonzero((needed == turns[0]) & self.legs[here])).tolist():
            if z not in places and z != faced and self._free(here, z, {*places, z}):
                longer = self._extend([*places, z], None, turns[1:], rng)
                if longer is not None:
                    return longer
        return None

    def _free(self, x: int, y: int, visited: set[int]) -> bool:
        """Whether nothing but the route's own objects stands between two places."""
        blocked = self.in_the_way[x, y].copy()
        blocked[self.column_of[list(visited)]] = False
        return not blocked.any()


def _legs(
    scene: AnnotatedScene, places: Float[np.ndarray, "u 7"], obstacles: Float[np.ndarray, "m 7"]
) -> tuple[Bool[np.ndarray, "u u"], Bool[np.ndarray, "u u m"]]:
    """Which straight legs have a sensible length and stay on the floor, and which obstacles each one hits."""
    center = places[:, :2]
    offset = center[None] - center[:, None]
    length = np.maximum(np.hypot(offset[..., 0], offset[..., 1]), 1e-9)
    # The leg leaves x where the line between the centres leaves its footprint, and ends a little before the footprint of y.
    to_side = into_footprint_frame(center[None], places[:, None]) / length[..., None]
    half = places[:, None, 3:5] / 2
    exit_x = np.min(half / np.maximum(np.abs(to_side), 1e-9), axis=-1) + STOP_SHORT
    walked = length - exit_x - exit_x.T
    ok = (walked + 2 * STOP_SHORT >= LEG[0]) & (walked <= LEG[1]) & (walked > 0)
    step = offset / length[..., None]
    start, end = center[:, None] + step * exit_x[..., None], center[None] - step * exit_x.T[..., None]
    if scene.floor:
        ok &= legs_on_floor(start.reshape(-1, 2), end.reshape(-1, 2), scene.floor).reshape(ok.shape)
    return ok, _segments_hit(start[:, :, None], end[:, :, None], obstacles)


def _segments_hit(start: np.ndarray, end: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether segments pass within `HALF_WIDTH` of footprints (slab test in the frame of each box)."""
    p, q = into_footprint_frame(start, boxes), into_footprint_frame(end, boxes)
    half = boxes[:, 3:5] / 2 + HALF_WIDTH
    along = q - p
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    one, other = (-half - p) / along, (half - p) / along
    enter, leave = np.minimum(one, other).max(-1), np.maximum(one, other).min(-1)
    return (enter <= leave) & (leave >= 0) & (enter <= 1)


def _text(labels: tuple[str, ...], turn_first: bool) -> str:
    """The benchmark's wording. `labels`: start, what it faces, and the further stops; a walk that goes forward first stops there."""
    stops = labels[2:] if turn_first else labels[1:]
    actions = []
    for i, stop in enumerate(stops):
        if i > 0 or turn_first:
            actions.append("[please fill in]")
        actions.append(f"Go forward until the {stop}" + ("." if stop is stops[-1] and i == len(stops) - 1 else ""))
    steps = " ".join(f"{number}. {action}" for number, action in enumerate(actions, start=1))
    return (
        f"You are a robot beginning at the {labels[0]} and facing the {labels[1]}. "
        f"You want to navigate to the {labels[-1]}. "
        "You will perform the following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' "
        f"or 'turn right.'): {steps} You have reached the final destination."
    )
