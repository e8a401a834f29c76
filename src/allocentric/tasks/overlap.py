"""What benchmarks about objects of annotated scenes share: boxes in written answers, overlap as published scorers compute it."""

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D, boxes_to_array, footprint_corners
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Benchmark, Question

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
LIST = re.compile(rf"\[\s*({NUMBER}(?:\s*,\s*{NUMBER}){{5,6}})\s*\]")


def read_boxes(text: str) -> list[Box3D]:
    """The boxes in a text, in order: lists [x, y, z, dx, dy, dz] or [x, y, z, dx, dy, dz, yaw], metres and radians."""
    boxes = []
    for found in LIST.finditer(text):
        numbers = [float(number) for number in found[1].split(",")]
        if all(math.isfinite(number) for number in numbers):
            x, y, z, dx, dy, dz = numbers[:6]
            boxes.append(Box3D((x, y, z), (dx, dy, dz), numbers[6] if len(numbers) == 7 else 0.0))
    return boxes


def bounds(boxes: Float[np.ndarray, "n 7"]) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Least and greatest coordinates over the corners of each box; a negative side counts as a positive one."""
    corners, height = footprint_corners(boxes), np.abs(boxes[:, 5:6]) / 2
    low = np.concatenate([corners.min(1), boxes[:, 2:3] - height], axis=1)
    high = np.concatenate([corners.max(1), boxes[:, 2:3] + height], axis=1)
    return low, high


def aligned_iou(a: Sequence[Box3D], b: Sequence[Box3D], single: bool = False) -> Float[np.ndarray, "n m"]:
    """Overlap of each of `a` with each of `b` along the axes, the rotation of a box widening it, as published scorers compute it.

    A small number in the denominator makes an overlap of exactly 0.25 or 0.5 a miss: 1e-8 in float64 (ScanRefer, Video-3D-LLM),
    or, with `single`, float32's epsilon in float32 (M3DRef-CLIP).
    """
    kind = np.float32 if single else np.float64
    epsilon = np.finfo(np.float32).eps if single else 1e-8
    with np.errstate(over="ignore", invalid="ignore"):  # boxes may be as large as a model likes to write
        a_low, a_high = (side.astype(kind)[:, None] for side in bounds(boxes_to_array(a)))
        b_low, b_high = (side.astype(kind)[None] for side in bounds(boxes_to_array(b)))
        shared = _product(np.maximum(np.minimum(a_high, b_high) - np.maximum(a_low, b_low), 0))
        union = _product(a_high - a_low) + _product(b_high - b_low) - shared + kind(epsilon)
        return np.nan_to_num(shared / union)


def _product(sides: np.ndarray) -> np.ndarray:
    return sides[..., 0] * sides[..., 1] * sides[..., 2]


class SceneBenchmark(Benchmark):
    """A benchmark about objects of annotated ScanNet scenes. Its files name the objects; where they stand, the scenes say."""

    @abstractmethod
    def targets(self, question: Question) -> list[str]:
        """ScanNet's ids of the objects that a question is about."""

    def place(self, question: Question, scenes: Mapping[str, AnnotatedScene]) -> Question:
        """The question with the boxes of what it is about."""
        where = f"{self.name} {question.id}"
        return replace(question, boxes=object_boxes(scenes, question.scene, self.targets(question), where))


class GroundingBenchmark(SceneBenchmark):
    """A benchmark whose answer is an object among candidates, or several."""

    def write(self, question: Question, candidates: Sequence[Box3D], chosen: Sequence[int], profile: str = "") -> str:
        """The chosen candidates, written as the profile reads answers: as boxes, at full precision."""
        self.check(profile)
        return ", ".join(write_box(candidates[i]) for i in chosen) or "none"


def write_box(box: Box3D) -> str:
    """What `read_boxes` reads."""
    return str([float(value) for value in (*box.center, *box.size, *([box.yaw] if box.yaw else []))])


def recall(questions: Sequence[Question], candidates: Mapping[str, Sequence[Box3D]], least: float) -> float:
    """Percent of the true boxes that some candidate of their scene overlaps by `least`: no choice among them can do better."""
    found = [
        bool(overlap >= least)
        for question in questions
        for overlap in aligned_iou(candidates[question.scene], question.boxes).max(axis=0, initial=0.0)
    ]
    return 100 * float(np.mean(found)) if found else 100.0


def object_boxes(scenes: Mapping[str, AnnotatedScene], scene: str, ids: Sequence[str], place: object) -> tuple[Box3D, ...]:
    """Boxes of objects by ScanNet's object ids, which count from 0, where `SceneObject.id` counts from 1."""
    if scene not in scenes:
        raise ValueError(f"{place}: expected the annotated scene {scene!r} among `scenes`, found {len(scenes)} others")
    boxes = {str(o.id - 1): o.box for o in scenes[scene].objects}
    if missing := [i for i in ids if i not in boxes]:
        raise ValueError(f"{place}: expected an object {missing[0]} in scene {scene}, found {len(boxes)} others")
    return tuple(boxes[i] for i in ids)
