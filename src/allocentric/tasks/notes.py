"""Notes: what to write down before answering. Computed from the annotation, they teach a model to look first and to reckon then.

    <think>sofa -1.2 3.4, stove 0.8 2.0; 2.0 -1.4 1.6</think>1.6

What was seen comes first: places, metres to the right and ahead of the first camera, as in `object_position`; sizes; or moments.
What follows from it comes behind the semicolon (`workings`): a small model does one step at a time or none.
"""

import math
import re
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from allocentric.answer import END_THINK, THINK
from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.appearance_order import first_frames
from allocentric.tasks.base import Question
from allocentric.tasks.facts import indices_of, pair_distances, seen, the_box
from allocentric.tasks.object_position import first_heading
from allocentric.tasks.route_planning import described_legs

MOMENTS = 16  # the video's length in the notes on when something appears
MOST = 9.9  # metres; the greatest number in notes
YES, NO = "yes", "no"
# Radians, clockwise, that a direction or turn says; the nearest of a question's options is the right one.
SAID = {
    "left": -math.pi / 2,
    "right": math.pi / 2,
    "back": math.pi,
    "front-left": -math.pi / 4,
    "front-right": math.pi / 4,
    "back-left": -3 * math.pi / 4,
    "back-right": 3 * math.pi / 4,
}
PLACE = re.compile(r"([^\W\d][^,]*?)(?:\.\d+)? (-?\d+\.\d) (-?\d+\.\d)(?:, |$)")


def with_notes(scene: AnnotatedScene, question: Question) -> str:
    """The answer, with notes before it where the question has any."""
    written = notes(scene, question)
    return behind(written, workings(scene, question, written), question.answer) if written else question.answer


def behind(written: str, worked: str, answer: str) -> str:
    """The answer behind its notes and what was worked out from them."""
    return f"{THINK}{written}{'; ' if worked else ''}{worked}{END_THINK}{answer}"


def notes(scene: AnnotatedScene, question: Question) -> str:
    """What the answer follows from: places, sizes or moments of first appearance; empty for other questions."""
    if question.task == "object_size_estimation":
        return size_note(the_box(scene, question.objects[0]))
    if question.task == "obj_appearance_order":
        return ", ".join(f"{label} {moment(scene, label)}" for label in question.objects)
    if not question.objects or question.task == "object_position" or (where := places(scene)) is None:
        return ""
    if question.task == "object_counting":
        (label,) = question.objects
        instances = [i for i in indices_of(scene, label) if seen(scene)[i]]
        return ", ".join(place_note(label, where[i]) for i in sorted(instances, key=lambda i: where[i, 0]))
    last = indices_of(scene, question.objects[-1])[0]
    written = []
    for label in question.objects:  # of several, the one next to what is asked about
        nearest = min(indices_of(scene, label), key=lambda i: float(np.hypot(*(where[i] - where[last]))))
        written.append(place_note(label, where[nearest]))
    return ", ".join(written)


def workings(scene: AnnotatedScene, question: Question, written: str) -> str:
    """The way from what is written to the answer, by the places as written (they may be inexact); empty where there is none to go.

    From one place to another: metres to the right and ahead, then what is asked of it, either the distance between the closest
    points, for which the scene says how much of the way the objects themselves take up, or the bearing in radians, clockwise.
    Where there are options, each stands there with its letter, what it says, and how well that fits: who writes down first what an
    option says need not find it while reckoning.

        object_abs_distance    way and distance
        object_rel_distance    of each option the way from what it is measured from, and distance
        object_rel_direction   way and bearing of what is faced and of what is asked for, the angle between them; of each option
                               what it says and how far the angle is from that
        route_planning         way and bearing of each leg, the angles between them; of each option its turns, how far the angles
                               are from each, and the sum
        obj_appearance_order   of each option its objects with their moments, and whether these ascend
    """
    options = [option.split(". ", 1) for option in question.options]
    if question.task == "obj_appearance_order":
        moments = {label: int(when) for label, when in re.findall(r"([^,]+?) (\d+)(?:, |$)", written)}
        told = []
        for letter, text in options:
            order = {label: moments[label] for label in text.split(", ")}
            ascends = list(order.values()) == sorted(order.values())
            told.append(" ".join([letter, *(f"{label} {when}" for label, when in order.items()), YES if ascends else NO]))
        return ", ".join(told)
    at = {label: np.array(place) for label, place in noted_places(written)}
    if question.task == "object_abs_distance":
        return _way_and_distance(scene, at, *question.objects)
    if question.task == "object_rel_distance":
        anchor = question.objects[-1]
        return ", ".join(f"{letter} {label} {_way_and_distance(scene, at, anchor, label)}" for letter, label in options)
    if question.task.startswith("object_rel_direction"):
        standing, facing, query = question.objects
        legs = [(standing, facing), (standing, query)]
    elif question.task == "route_planning":
        legs = described_legs(question.text)
    else:
        return ""
    ways = [at[b] - at[a] for a, b in legs]
    bearings = [math.atan2(x, y) for x, y in ways]
    turns = [math.remainder(after - before, math.tau) for before, after in pairwise(bearings)]
    told = [f"{_number(x)} {_number(y)} {_number(bearing)}" for (x, y), bearing in zip(ways, bearings, strict=True)]
    told.append(" ".join(map(_number, turns)))
    for letter, text in options:
        said = [turn.lower().removeprefix("turn ") for turn in text.split(", ")]
        off = [abs(math.remainder(turn - SAID[word], math.tau)) for turn, word in zip(turns, said, strict=True)]
        fits = [f"{word} {_number(angle)}" for word, angle in zip(said, off, strict=True)]
        told.append(" ".join([letter, *fits, *([_number(sum(off))] if len(off) > 1 else [])]))
    return ", ".join(told)


def _way_and_distance(scene: AnnotatedScene, at: dict[str, Float[np.ndarray, "2"]], a: str, b: str) -> str:
    way = at[b] - at[a]
    there, meters = places(scene), pair_distances(scene)
    first, second = min(((i, j) for i in indices_of(scene, a) for j in indices_of(scene, b)), key=lambda pair: float(meters[pair]))
    filled = float(np.hypot(*(there[second] - there[first]))) - float(meters[first, second])
    return f"{_number(way[0])} {_number(way[1])} {_number(max(float(np.hypot(*way)) - filled, 0.0))}"


def blurred(written: str, rng: np.random.Generator, error: float) -> str:
    """Notes as inexact as a model's own will be: places moved by about `error` metres each way, sides by half that share.

    Who learns to answer behind exact notes learns to believe them to the letter.
    """
    places = re.search("[a-z]", written) is not None

    def moved(number: re.Match) -> str:
        value = float(number[0])
        if places:
            return _number(np.clip(value + rng.normal(0.0, error), -MOST, MOST))
        return _number(np.clip(value * np.exp(rng.normal(0.0, error / 2)), 0.1, MOST))

    return re.sub(r"-?\d+\.\d", moved, written)


def places(scene: AnnotatedScene) -> Float[np.ndarray, "n 2"] | None:
    """Metres right of and ahead of the first camera, of every object; None when the camera's heading is unknown."""
    if scene.camera_to_world is None or (heading := first_heading(scene)) is None:
        return None
    away = np.array([o.box.center[:2] for o in scene.objects]) - scene.camera_to_world[0][:2, 3]
    sin, cos = np.sin(heading), np.cos(heading)
    return away @ np.array([[sin, cos], [-cos, sin]])


def place_note(label: str, place: Float[np.ndarray, "2"]) -> str:
    """Where something is: "sofa -1.2 3.4"."""
    return f"{label} {_number(place[0])} {_number(place[1])}"


def noted_places(written: str) -> list[tuple[str, tuple[float, float]]]:
    """What notes say is where, in their order: (label, (metres right, metres ahead of the first camera)). "chair.2" is a chair."""
    return [(label, (float(x), float(y))) for label, x, y in PLACE.findall(written.split(";")[0].strip())]


def size_note(box: Box3D) -> str:
    """The sides of a box, metres: "0.8 0.9 1.1"."""
    return " ".join(_number(side) for side in box.size)


def moment(scene: AnnotatedScene, label: str) -> int:
    """When a unique object is first seen, in sixteenths of the video: 0 to 15."""
    first = first_frames(scene, [label])[0]
    return round(float(first * (MOMENTS - 1) / max(len(scene.visibility) - 1, 1)))


def _number(value: float) -> str:
    return f"{min(max(float(value), -MOST), MOST):z.1f}"


def number_words() -> dict[str, float]:
    """Numbers as notes and answers usually hold them, each of which a small tokenizer makes one token, and their values.

    Tenths behind a space, as in notes; tenths and whole numbers at the beginning, as in answers.
    """
    spaced = {f" {tenths / 10:z.1f}": tenths / 10 for tenths in range(-99, 100)}
    plain = {f"{tenths / 10:.1f}": tenths / 10 for tenths in range(500)}
    return spaced | plain | {str(whole): float(whole) for whole in range(400)}
