"""Route planning: fill in the turns of a walk from object to object."""

import math
import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from allocentric.geometry.boxes import boxes_to_array, into_footprint_frame
from allocentric.geometry.canonical import wrap
from allocentric.geometry.floor import HIGH, LOW, legs_on_floor
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, multiple_choice
from allocentric.tasks.facts import bearings, pair_distances, unique_objects
from allocentric.tasks.vsibench import VSITask

TURNS = ("Turn Left", "Turn Right", "Turn Back")
SIDEWAYS = math.radians(45), math.radians(135)  # angles that are surely a turn to one side,
BACK = math.radians(150)  # and from here on surely a turn back
FACING = 0.3  # metres at least between an object and what one faces when standing by it
LEG = 0.6, 8.0  # metres of floor between two stops
STOP_SHORT = 0.2  # metres that a walk keeps from what it leads to,
HALF_WIDTH = 0.05  # and from what it passes: next to nothing, since it can sidestep


@dataclass(frozen=True)
class Walk:
    """A robot stands by `start` facing `faced`, then goes to each stop. `turns` are indices in TURNS.

    It either turns first, or goes forward first; then `faced` is the first stop.
    """

    start: int
    faced: int
    stops: tuple[int, ...]
    turns: tuple[int, ...]

    @property
    def turns_first(self) -> bool:
        return self.stops[0] != self.faced


class RoutePlanning(VSITask):
    """Walks of one to three turns along unique objects, over free floor, turning only by angles that have one name.

    The options are sequences of turns of which each fits some walk in this room, drawn before it is decided which one is
    asked about; so nothing but the room tells the answer. With one turn they are all three turns.
    """

    name = "route_planning"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if len(unique_objects(scene)) < 3:
            return []
        paths = Paths(scene)
        questions: dict[Walk, Question] = {}
        for _ in range(2 * limit):
            if len(questions) == limit:
                break
            count = int(rng.choice(3, p=[0.45, 0.35, 0.2])) + 1  # about as often as in the benchmark
            turns_first = bool(rng.integers(2))
            fitting = paths.fitting_turns(count, turns_first)
            options = [fitting[i] for i in rng.permutation(len(fitting))[: 3 if count == 1 else 4]]
            walk = paths.draw(options[0], turns_first, rng) if len(options) == (3 if count == 1 else 4) else None
            if walk is not None:
                questions[walk] = self._question(scene, paths, walk, options, rng)
        return list(questions.values())

    def _question(
        self, scene: AnnotatedScene, paths: "Paths", walk: Walk, options: list[tuple[int, ...]], rng: np.random.Generator
    ) -> Question:
        written = [", ".join(TURNS[t] for t in turns) for turns in options]
        labels = {i: scene.objects[paths.objects[i]].label for i in (walk.start, walk.faced, *walk.stops)}
        text = _text(labels[walk.start], labels[walk.faced], [labels[i] for i in walk.stops], walk.turns_first)
        return multiple_choice(self.name, scene, text, rng.permutation(written).tolist(), written[0], tuple(labels.values()))


def turn(angle: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Index in TURNS of a change of heading in radians, counter-clockwise; -1 where it has no clear name."""
    sideways = (np.abs(angle) >= SIDEWAYS[0]) & (np.abs(angle) <= SIDEWAYS[1])
    return np.where(np.abs(angle) >= BACK, 2, np.where(sideways, np.where(angle > 0, 0, 1), -1))


class Paths:
    """Which of a scene's unique objects can be walked between, and how one turns on the way.

    objects               index in `scene.objects` of each place, (u,).
    turning[t][x, y, z]   one who stands by x and faces y can turn by t and go to z.
    forward[t][x, y, z]   one who stands by x and faces y can go there, turn by t and go to z.
    onward[t][x, y, z]    one who came from x to y can turn by t and go to z.
    """

    def __init__(self, scene: AnnotatedScene):
        boxes = boxes_to_array(o.box for o in scene.objects)
        bottom, top = boxes[:, 2] - boxes[:, 5] / 2, boxes[:, 2] + boxes[:, 5] / 2
        in_the_way = (bottom - bottom.min() < HIGH) & (top - bottom.min() > LOW)
        unique = unique_objects(scene)
        self.objects = unique[in_the_way[unique]]
        places, obstacles = boxes[self.objects], boxes[in_the_way]
        is_leg, hits = _legs(scene, places, obstacles)

        # What stands at a place, or carries what is asked for there, is no obstacle to a leg that begins or ends there;
        # nor, for one who turns back, is what stands where the last leg began.
        elsewhere = (np.abs(into_footprint_frame(places[:, None, :2], obstacles)) > obstacles[:, 3:5] / 2).any(-1)
        blocks = hits & elsewhere[:, None] & elsewhere[None]
        free = is_leg & ~blocks.any(-1)
        free_after = is_leg & ~(blocks & elsewhere[:, None, None]).any(-1)

        bearing = bearings(places[:, :2])
        at_start = turn(wrap(bearing[:, None, :] - bearing[:, :, None]))
        at_stop = turn(wrap(bearing[None, :, :] - bearing[:, :, None]))
        u = np.arange(len(places))
        x, y, z = u[:, None, None], u[:, None], u
        different = (x != y) & (y != z) & (x != z)
        can_face = different & (pair_distances(scene)[np.ix_(self.objects, self.objects)] >= FACING)[:, :, None]
        self.onward = [different & free_after & (at_stop == t) for t in range(len(TURNS))]
        self.forward = [free[:, :, None] & can_face & onward for onward in self.onward]
        self.turning = [free[:, None, :] & can_face & (at_start == t) for t in range(len(TURNS))]

    def fitting_turns(self, count: int, turns_first: bool) -> list[tuple[int, ...]]:
        """Sequences of turns that some walk makes, never back twice in a row. (A walk that returns to its start counts here.)"""
        reached = {  # For each sequence, what its last leg can be.
            (t,): self.turning[t].any(1) if turns_first else self.forward[t].any(0) for t in range(len(TURNS))
        }
        for _ in range(count - 1):
            reached = {
                (*turns, t): (last_leg[:, :, None] & self.onward[t]).any(0)
                for turns, last_leg in reached.items()
                for t in range(len(TURNS))
                if (turns[-1], t) != (2, 2)
            }
        return [turns for turns, last_leg in reached.items() if last_leg.any()]

    def draw(self, turns: tuple[int, ...], turns_first: bool, rng: np.random.Generator) -> Walk | None:
        """A random walk with these turns; None when a number of tries finds none."""
        beginnings = np.argwhere((self.turning if turns_first else self.forward)[turns[0]])
        for start, faced, place in beginnings[rng.permutation(len(beginnings))[:16]].tolist():
            walked = self._follow(turns[1:], (start, place) if turns_first else (start, faced, place), faced, rng)
            if walked is not None:
                return Walk(start, faced, walked[1:], turns)
        return None

    def _follow(
        self, turns: tuple[int, ...], walked: tuple[int, ...], faced: int, rng: np.random.Generator
    ) -> tuple[int, ...] | None:
        """`walked` and one more place per turn, all different; None when there are none."""
        if not turns:
            return walked
        for place in rng.permutation(np.flatnonzero(self.onward[turns[0]][walked[-2:]])).tolist():
            if place not in (*walked, faced):
                longer = self._follow(turns[1:], (*walked, place), faced, rng)
                if longer is not None:
                    return longer
        return None


def _legs(
    scene: AnnotatedScene, places: Float[np.ndarray, "u 7"], obstacles: Float[np.ndarray, "m 7"]
) -> tuple[Bool[np.ndarray, "u u"], Bool[np.ndarray, "u u m"]]:
    """Which straight legs have a sensible length and stay on the floor, and which obstacles each one hits."""
    center = places[:, :2]
    offset = center[None] - center[:, None]
    length = np.maximum(np.hypot(offset[..., 0], offset[..., 1]), 1e-9)
    # A leg leaves x where the line between the centres leaves its footprint, and ends where it enters that of y.
    slope = np.abs(into_footprint_frame(center[None], places[:, None])) / length[..., None]
    out_of_x = np.min(places[:, None, 3:5] / 2 / np.maximum(slope, 1e-9), axis=-1)
    walked = length - out_of_x - out_of_x.T
    is_leg = (walked >= LEG[0]) & (walked <= LEG[1])
    step = offset / length[..., None]
    start = center[:, None] + step * (out_of_x + STOP_SHORT)[..., None]
    end = center[None] - step * (out_of_x.T + STOP_SHORT)[..., None]
    if scene.floor:
        is_leg &= legs_on_floor(start.reshape(-1, 2), end.reshape(-1, 2), scene.floor).reshape(is_leg.shape)
    return is_leg, _hits(start[:, :, None], end[:, :, None], obstacles)


def _hits(start: np.ndarray, end: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether segments pass within HALF_WIDTH of footprints (slab test in the frame of each box)."""
    p, q = into_footprint_frame(start, boxes), into_footprint_frame(end, boxes)
    half = boxes[:, 3:5] / 2 + HALF_WIDTH
    along = np.where(np.abs(q - p) < 1e-9, 1e-9, q - p)
    one, other = (-half - p) / along, (half - p) / along
    enter, leave = np.minimum(one, other).max(-1), np.maximum(one, other).min(-1)
    return (enter <= leave) & (leave >= 0) & (enter <= 1)


def described_legs(text: str) -> list[tuple[str, str]]:
    """From where to where one looks or walks in a question of this task, label by label: at first, and then at each turn."""
    start, facing = re.search(r"beginning at the (.+?) and facing the (.+?)\. You want", text).groups()
    stops = re.findall(r"Go forward until the (.+?)(?= \d+\. |\. You have)", text)
    legs = list(zip((start, *stops), stops, strict=False))
    return legs if stops[0] == facing else [(start, facing), *legs]


def _text(start: str, faced: str, stops: list[str], turns_first: bool) -> str:
    """The benchmark's wording."""
    actions = [action for stop in stops for action in ("[please fill in]", f"Go forward until the {stop}")]
    actions = actions if turns_first else actions[1:]
    steps = " ".join(f"{number}. {action}" for number, action in enumerate(actions, start=1))
    return (
        f"You are a robot beginning at the {start} and facing the {faced}. You want to navigate to the {stops[-1]}. "
        "You will perform the following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' "
        f"or 'turn right.'): {steps}. You have reached the final destination."
    )
