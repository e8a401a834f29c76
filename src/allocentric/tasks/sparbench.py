"""SPAR-Bench: 20 tasks of spatial perception and reasoning (hub ids jasonzhango/SPAR-Bench and SPAR-Bench-Tiny)."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from allocentric.tasks.base import Benchmark, Question, Record, averages
from allocentric.tasks.choices import listed_options
from allocentric.tasks.files import check_ids, field, official_files, read_rows, unpack
from allocentric.tasks.vsibench import to_float

LOW = tuple(f"{what}_prediction_{kind}{views}" for what in ("depth", "distance") for kind in ("oc", "oo") for views in ("", "_mv"))
MIDDLE = ("view_change_infer", "position_matching", "camera_motion_infer")
HIGH = (
    "obj_spatial_relation_oo",
    "obj_spatial_relation_oc_mv",
    "obj_spatial_relation_oo_mv",
    "spatial_imagination_oc",
    "spatial_imagination_oo",
    "spatial_imagination_oc_mv",
    "spatial_imagination_oo_mv",
    "distance_infer_center_oo",
    "distance_infer_center_oo_mv",
)
TASKS = (*LOW, *MIDDLE, *HIGH)

LETTER = "Answer with the option's letter from the given choices directly."
PHRASE = "Please answer the question using a single word or phrase."
BOXES = (
    "The values represent the bounding box coordinates normalized to a 0-1000 scale, with the top-left corner as the origin of the "
    "image."
)
AXES = (
    ("move_right", "move_left"),
    ("move_up", "move_down"),
    ("move_forward", "move_backward"),
    ("rotate_right", "rotate_left"),
    ("rotate_up", "rotate_down"),
)


class SPARBench(Benchmark):
    """Lenient where options are letters (any part of the right answer is right, also nothing), strict where numbers are asked for.

    `official` is the authors' fork of lmms-eval. In `lmms_eval_0_7_3` as released on the package index, an import is missing and
    every number scores 0.
    """

    name = "sparbench"
    profiles = ("official", "lmms_eval_0_7_3")
    headline = "macro"

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """The images that the rows hold are written into the folder `images`, where one is given."""
        questions = []
        for file in official_files(path, "**/test*.parquet", "**/*.parquet", "*.jsonl", "*.json"):
            for row in read_rows(file, without=() if images else ("image",)):
                identity = str(field(row, "id", file))
                task = field(row, "task", file)
                if task not in TASKS:
                    raise ValueError(f"{file}: found the task {task!r}, expected one of {TASKS}")
                pictures = (row.get("image") or []) if images else []
                names = [f"{identity.replace('/', '_')}_{i}.jpg" for i in range(len(pictures))]
                for name, picture in zip(names, pictures, strict=True):
                    unpack(picture["bytes"] if isinstance(picture, dict) else picture, Path(images, name))
                questions.append(
                    Question(
                        task=task,
                        scene=identity,
                        text=field(row, "question", file),
                        options=() if task in (*LOW, "view_change_infer") else listed_options(row["question"]),
                        answer=str(field(row, "answer", file)),
                        id=identity,
                        images=tuple(str(Path(images, name)) for name in names) if images else (),
                        groups=tuple(str(row[key]) for key in ("img_type",) if row.get(key)),
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        self.check(profile)
        if question.task in LOW:
            return f"\n{question.text}\n{PHRASE}"
        if question.task == "view_change_infer":
            return f"\n{question.text}\n\n"
        note = BOXES if question.task in ("position_matching", "camera_motion_infer") else ""
        return f"\n{question.text}\n{note}\n{LETTER}"

    def parse(self, text: str, task: str = "") -> str | float | dict[str, float] | None:
        """What is compared with the answer: the lower-case text, a number, or motions; it depends on the task."""
        text = text.strip()
        if task in LOW:
            return read_number(text, several_views=task.endswith("_mv"))
        return read_motions(text) if task == "view_change_infer" else text.lower()

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        found = self.parse(prediction, question.task)
        if question.task in LOW:
            truth = to_float(question.answer)
            if self.check(profile) == "lmms_eval_0_7_3" or found is None or truth is None:
                return 0.0
            return relative_accuracy(found, truth)
        self.check(profile)
        if question.task == "view_change_infer":
            truth = read_motions(question.answer)
            return motion_score(found, truth) if found is not None and truth is not None else 0.0
        right = question.answer.lower()
        return float(found in right or found[0] == right)

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """`overall` is the mean of the task means; `middle` leaves view_change_infer out, as the published code does by mistake."""
        self.check(profile)
        numbers = averages(records)
        for level, tasks in (("low", LOW), ("middle", MIDDLE[1:]), ("high", HIGH), ("middle_with_view_change", MIDDLE)):
            if means := [numbers[f"task/{task}"] for task in tasks if f"task/{task}" in numbers]:
                numbers[level] = float(np.mean(means))
        partial = float(any(f"task/{task}" not in numbers for task in TASKS))
        return {"overall": numbers["macro"], **numbers, "partial": partial}


def read_number(text: str, several_views: bool) -> float | None:
    """The first number of a text, or the last where several views are asked about (-1 for none there). Signs are not read."""
    numbers = re.findall(r"(?<!\^)\d+\.\d+|(?<!\^)\d+", text)
    if not numbers:
        return -1.0 if several_views else None
    return to_float(numbers[-1 if several_views else 0])


def relative_accuracy(number: float, truth: float) -> float:
    """Mean relative accuracy as in VSI-Bench; the error itself where the truth is zero."""
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(np.float64(number) - truth) / (abs(truth) or 1.0)
    return float((error <= 1 - np.linspace(0.5, 0.95, 10)).mean())


def read_motions(text: str) -> dict[str, float] | None:
    """Motions by name, of "move_right:0.5,rotate_up:10"; None for anything else. A space after a comma makes a name unknown."""
    pairs = [item.split(":") for item in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        return None
    values = [to_float(value) for _, value in pairs]
    return None if None in values else {name: value for (name, _), value in zip(pairs, values, strict=True)}


def motion_score(motions: dict[str, float], truth: dict[str, float]) -> float:
    """Mean over five axes of the relative accuracy of the net motion, the prediction taken as the reference, as published."""
    net = [[m.get(plus, 0.0) - m.get(minus, 0.0) for plus, minus in AXES] for m in (motions, truth)]
    return float(np.mean([relative_accuracy(right, said) for said, right in zip(*net, strict=True)]))
