"""Multi3DRefer: find none, one or several objects that a description means in a ScanNet scene (Zhang et al. 2023)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Record, averages, percent
from allocentric.tasks.files import check_ids, field, official_files, read_rows
from allocentric.tasks.overlap import GroundingBenchmark, aligned_iou, read_boxes

TYPES = ("zt_w_d", "zt_wo_d", "st_w_d", "st_wo_d", "mt")  # zero, single and multiple targets; with and without distractors


class Multi3DRefer(GroundingBenchmark):
    """F1 at an overlap of 0.25 and 0.5, mean over descriptions. Overlaps are compared in float32.

    official       M3DRef-CLIP: overlap computed in float32, with its epsilon in the denominator.
    video_3d_llm   overlap computed in float64 with 1e-8, then rounded to float32.
    """

    name = "multi3drefer"
    profiles = ("official", "video_3d_llm")

    def read(self, path: str | Path, scenes: Mapping[str, AnnotatedScene] | None = None) -> list[Question]:
        """multi3drefer_val.json, or the folder that holds it; `scenes` are annotated ScanNet scenes by name."""
        questions = []
        for file in official_files(path, "multi3drefer_val.json"):
            for row in read_rows(file):
                scene, kind = field(row, "scene_id", file), field(row, "eval_type", file)
                if kind not in TYPES:
                    raise ValueError(f"{file}: found eval_type {kind!r}, expected one of {TYPES}")
                targets = [str(i) for i in field(row, "object_ids", file)]
                if kind.startswith("zt") != (not targets):
                    raise ValueError(f"{file}: found {len(targets)} objects for a description of type {kind}")
                questions.append(
                    Question(
                        task=kind,
                        scene=scene,
                        text=field(row, "description", file),
                        options=(),
                        answer=", ".join(targets),
                        objects=(str(row.get("object_name", "")).replace("_", " "),),
                        id=f"{scene}|{'-'.join(targets)}|{row.get('object_name', '')}|{field(row, 'ann_id', file)}",
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions if scenes is None else [self.place(q, scenes) for q in questions]

    def targets(self, question: Question) -> list[str]:
        return question.answer.split(", ") if question.answer else []

    def prompt(self, question: Question, profile: str = "") -> str:
        """Video-3D-LLM's wording, or the same with how to write boxes, for models that answer in text."""
        asked = question.text.capitalize()
        none = "There may be no corresponding object, or there may be one or more objects."
        if self.check(profile) == "video_3d_llm":
            return f"Identify the object according to the following description.\n{asked}\n{none}"
        return (
            f"Localize the object according to the following description.\n{asked}\n{none}\n"
            "Answer with the box of each in metres, along the axes of the scene: [x, y, z, dx, dy, dz]; with none, write: none."
        )

    def parse(self, text: str) -> list[Box3D]:
        """All boxes, perhaps none."""
        return read_boxes(text)

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        """F1 at an overlap of 0.25."""
        return self.f1(question, prediction, profile)[0]

    def f1(self, question: Question, prediction: str, profile: str = "") -> tuple[float, float]:
        """F1 at overlaps of 0.25 and 0.5."""
        profile = self.check(profile)
        if not question.boxes and not question.task.startswith("zt"):
            raise ValueError(f"{self.name} {question.id}: the true boxes are unknown; give `read` the annotated scenes")
        return f1_score(self.parse(prediction), question.boxes, profile)

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """`overall` is F1@0.5 of all descriptions, as papers compare it; `zt_w_d/F1@0.25` and the like for each type."""
        self.check(profile)
        both = [(r.question.task, self.f1(r.question, r.prediction, profile)) for r in records]
        numbers = averages(records)
        for kind in ("", *TYPES):
            scores = [f1 for task, f1 in both if kind in ("", task)]
            if scores:
                prefix = f"{kind}/" if kind else ""
                low, high = zip(*scores, strict=True)
                numbers |= {f"{prefix}F1@0.25": percent(low), f"{prefix}F1@0.5": percent(high)}
        return {"overall": numbers["F1@0.5"], **numbers}


def f1_score(boxes: Sequence[Box3D], truth: Sequence[Box3D], profile: str = "official") -> tuple[float, float]:
    """F1 at overlaps of 0.25 and 0.5, after the assignment that makes the total overlap greatest, not the number of hits."""
    if not boxes or not truth:
        return (1.0, 1.0) if not boxes and not truth else (0.0, 0.0)
    overlap = aligned_iou(boxes, truth, single=profile == "official").astype(np.float32)
    side = max(overlap.shape)
    square = np.zeros((side, side), dtype=np.float32)
    square[: len(boxes), : len(truth)] = overlap
    rows, columns = linear_sum_assignment(-square)
    matched = square[rows, columns][: len(boxes)]
    low, high = (2 * int((matched >= least).sum()) / (len(boxes) + len(truth)) for least in (0.25, 0.5))
    return low, high


def choose_boxes(scores: Float[torch.Tensor, " n_plus_1"], boxes: Sequence[Box3D]) -> list[Box3D]:
    """Video-3D-LLM's choice among n proposals from n + 1 scores, the last of which means "none".

    Nothing when "none" scores highest; otherwise the likeliest boxes until their probability (temperature 0.07) reaches 0.4.
    """
    if len(scores) != len(boxes) + 1:
        raise ValueError(f"scores: found {len(scores)} for {len(boxes)} boxes, expected one more than boxes")
    if int(scores.argmax()) == len(boxes):
        return []
    likely, order = torch.softmax(scores / 0.07, dim=0)[:-1].sort(descending=True)
    count = int((likely.cumsum(0) < 0.4).sum()) + 1
    return [boxes[i] for i in order[:count].tolist()]
