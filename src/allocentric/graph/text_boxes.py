"""Global 3D grounding as text (SSR; spec 7): boxes in the first camera's level frame, one JSON object a line.

    {"label": "office chair", "bbox_3d": [1.25, 3.04, -0.51, 0.60, 0.62, 0.90, 1.57], "frame": 12}

Centre, sides and yaw; metres and radians; x to the right, y ahead, z up, from the optical centre of the first frame. `frame` is the
one that shows it best, where that is known. No proposals: the model writes the box.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.geometry.canonical import first_camera_frame, level_angle, move_box
from allocentric.graph.metrics import grounding_quality, object_f1
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Task
from allocentric.tasks.facts import seen
from allocentric.tasks.grounding import ReferringExpression

DECIMALS = 2
WHERE = "Write its 3D box as JSON (x right, y forward, z up from the first camera, in meters)."
DETECT_ALL = "Write the 3D boxes of all objects as JSON (x right, y forward, z up from the first camera, in meters)."
DETECT = "Write the 3D boxes of every {} as JSON (x right, y forward, z up from the first camera, in meters)."
OBJECT = re.compile(r"\{[^{}]*\}")
LARGEST = 1e4  # metres: more is noise


def write_box(box: Box3D, frame: int | None = None, decimals: int = DECIMALS) -> str:
    """One box as a line of JSON. No side is written as nothing: one unit of the last digit is the least."""
    values = [round(float(v), decimals) + 0.0 for v in (*box.center, *box.size, level_angle(box.yaw))]
    values[3:6] = [max(side, 10.0**-decimals) for side in values[3:6]]
    return json.dumps({"label": box.label, "bbox_3d": values} | ({} if frame is None else {"frame": frame}))


@dataclass(frozen=True)
class ParsedBoxes:
    """Boxes out of a text, and the frames named beside them (None where none is). `n_bad` could not be read."""

    boxes: tuple[Box3D, ...] = ()
    frames: tuple[int | None, ...] = ()
    n_bad: int = 0


def parse_boxes(text: str) -> ParsedBoxes:
    """Every box in a text, whatever stands around it. Never raises: what is no box is dropped and counted."""
    boxes, frames, bad = [], [], 0
    for found in OBJECT.findall(text):
        try:
            data = json.loads(found)
            values = [float(v) for v in data["bbox_3d"]]
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            bad += 1
            continue
        label, frame = data.get("label", ""), data.get("frame")
        sound = len(values) == 7 and all(math.isfinite(v) and abs(v) < LARGEST for v in values) and min(values[3:6]) > 0
        if not sound or not isinstance(label, str):
            bad += 1
            continue
        boxes.append(Box3D(tuple(values[:3]), tuple(values[3:6]), values[6], label))
        frames.append(frame if isinstance(frame, int) and not isinstance(frame, bool) and frame >= 0 else None)
    return ParsedBoxes(tuple(boxes), tuple(frames), bad)


def best_frames(scene: AnnotatedScene) -> list[int | None]:
    """The frame that shows most of each object; None where visibility is unknown or nothing is seen of it."""
    if scene.visibility is None:
        return [None] * len(scene.objects)
    return [int(column.argmax()) if column.any() else None for column in scene.visibility.T]


def boxes_from_first_camera(scene: AnnotatedScene) -> list[Box3D] | None:
    """All boxes in the first camera's level frame; None when that is unknown."""
    if scene.camera_to_world is None or len(scene.camera_to_world) == 0:
        return None
    pose = scene.camera_to_world[0]
    if not np.isfinite(pose).all() or math.hypot(*pose[:2, 2]) < 1e-3:
        return None
    frame = first_camera_frame(pose)
    return [replace(move_box(o.box, frame), label=o.label) for o in scene.objects]


class GlobalGrounding(Task):
    """The box of a described object. `boxes` holds it in the first camera's frame.

    decimals, frames   how many digits are written, and whether the best frame is.
    """

    name = "global_grounding"

    def __init__(self, decimals: int = DECIMALS, frames: bool = True):
        self.decimals, self.frames, self.expressions = decimals, frames, ReferringExpression()

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if (boxes := boxes_from_first_camera(scene)) is None:
            return []
        best = best_frames(scene) if self.frames else [None] * len(boxes)
        place = {o.box: i for i, o in enumerate(scene.objects)}
        questions = []
        for question in self.expressions.make(scene, rng, limit):
            i = place[question.boxes[0]]
            answer = write_box(boxes[i], best[i], self.decimals)
            questions.append(replace(question, task=self.name, answer=answer, boxes=(boxes[i],), objects=()))
        return questions

    def prompt(self, question: Question) -> str:
        return global_prompt(question.text)

    def parse(self, text: str) -> tuple[float, ...] | None:
        """x, y, z, dx, dy, dz, yaw of the first box; None without one."""
        found = parse_boxes(text).boxes
        return tuple(boxes_to_array(found[:1])[0].tolist()) if found else None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        """1 when the box overlaps the one that is meant by at least 0.25 (profile "0.5": by 0.5)."""
        if (found := self.parse(prediction)) is None:
            return 0.0
        overlap = box_iou(np.array([found]), boxes_to_array(question.boxes[:1]))[0]
        return float(overlap >= (0.5 if profile == "0.5" else 0.25))


class GlobalDetection(Task):
    """Boxes of all objects that the video shows, or of all of one category, in order of appearance. Score: F1 at an IoU of 0.25.

    whole   share of scenes whose whole list is asked for first: at a half, as often as all categories together.
    """

    name = "global_detection"

    def __init__(self, decimals: int = DECIMALS, frames: bool = True, whole: float = 0.5):
        self.decimals, self.frames, self.whole = decimals, frames, whole

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        shown = np.flatnonzero(seen(scene)).tolist()
        if not shown or (boxes := boxes_from_first_camera(scene)) is None:
            return []
        best = best_frames(scene) if self.frames else [None] * len(boxes)
        if scene.visibility is not None:
            first = (scene.visibility > 0).argmax(0)
            shown.sort(key=lambda i: (first[i], i))
        labels = sorted({scene.objects[i].label for i in shown})
        asked = [(DETECT_ALL, shown)]
        asked += [
            (DETECT.format(label), [i for i in shown if scene.objects[i].label == label]) for label in rng.permutation(labels)
        ]
        order = [0, *range(1, len(asked))] if rng.random() < self.whole else [*range(1, len(asked)), 0]
        return [
            Question(
                self.name, scene.name, text, (), "\n".join(write_box(boxes[i], best[i], self.decimals) for i in some),
                boxes=tuple(boxes[i] for i in some),
            )
            for text, some in (asked[i] for i in order[:limit])
        ]  # fmt: skip

    def prompt(self, question: Question) -> str:
        return question.text

    def parse(self, text: str) -> tuple[float, ...] | None:
        """The numbers of all boxes, one after the other; None without any."""
        return tuple(boxes_to_array(parse_boxes(text).boxes).ravel().tolist()) or None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        return object_f1(parse_boxes(prediction).boxes, question.boxes)[2]


def global_prompt(description: str) -> str:
    """How a description is asked for."""
    return f"{description}\n{WHERE}"


def box_tasks(decimals: int = DECIMALS, frames: bool = True, whole: float = 0.5) -> dict[str, Task]:
    """The tasks of this file by name."""
    return {task.name: task for task in (GlobalGrounding(decimals, frames), GlobalDetection(decimals, frames, whole))}


Several = Mapping[str, Sequence[Sequence[Box3D]]]


def global_quality(
    found: Mapping[str, Sequence[Box3D | None]],
    true: Mapping[str, Sequence[Box3D]],
    several: tuple[Several, Several] | None = None,
) -> dict[str, dict[str, float]]:
    """`graph.metrics.grounding_quality` of each data set by name, and of all answers ("pooled") (spec 7.4).

    None is an answer without a box: wrong in every accuracy; `center_error` is that of the answers that have one (NaN without
    any), `answered` their share.

    several   boxes found and true of questions for several objects, in the same data sets: `f1_25` is the mean of their F1 at 0.25
              (`graph.metrics.object_f1`; NaN in a data set without such questions).
    """
    if found.keys() != true.keys():
        raise ValueError(f"data sets: found answers on {sorted(found)}, expected some on {sorted(true)}")
    f1 = {name: {} for name in (*true, "pooled")} if several is None else _f1(*several, list(true))
    pairs = {name: list(zip(found[name], true[name], strict=True)) for name in true}
    pairs["pooled"] = [pair for some in pairs.values() for pair in some]
    return {name: _quality(some) | f1[name] for name, some in pairs.items()}


def _f1(found: Several, true: Several, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean F1 of each data set, and of all questions."""
    if not found.keys() == true.keys() <= set(names):
        raise ValueError(f"several objects: found answers on {sorted(found)}, expected some on {sorted(true)} of {sorted(names)}")
    pairs = {name: zip(found.get(name, ()), true.get(name, ()), strict=True) for name in names}
    scores = {name: [object_f1(some, right)[2] for some, right in asked] for name, asked in pairs.items()}
    scores["pooled"] = [score for some in scores.values() for score in some]
    return {name: {"f1_25": sum(some) / len(some) if some else math.nan} for name, some in scores.items()}


def _quality(pairs: Iterable[tuple[Box3D | None, Box3D]]) -> dict[str, float]:
    pairs = list(pairs)
    answered = [(box, true) for box, true in pairs if box is not None]
    share = len(answered) / max(len(pairs), 1)
    if not answered:
        nothing = dict.fromkeys(("acc_25", "acc_50", "aligned_25", "aligned_50", "size_mra"), 0.0)
        return nothing | {"center_error": math.nan, "answered": share, "n": float(len(pairs))}
    scores = grounding_quality(*zip(*answered, strict=True))
    weighed = {name: value if name == "center_error" else value * share for name, value in scores.items()}
    return weighed | {"answered": share, "n": float(len(pairs))}
