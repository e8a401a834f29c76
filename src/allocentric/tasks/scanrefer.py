"""ScanRefer: find the object that a description means in a ScanNet scene (Chen et al. 2020)."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Record, averages, percent
from allocentric.tasks.files import check_ids, field, official_files, read_rows
from allocentric.tasks.overlap import GroundingBenchmark, aligned_iou, read_boxes

CLASSES = (
    "cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, desk, curtain, refrigerator, shower curtain, "
    "toilet, sink, bathtub"
).split(", ")
NYU40_IDS = {*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39}
OTHER = "others"

# The two rules for unique and multiple, and what they make of a question.
BY_NAME, BY_ID = "by nyu40 class", "by nyu40 id"
GROUPS = tuple(f"{kind} {rule}" for kind in ("unique", "multiple") for rule in (BY_NAME, BY_ID))


class ScanRefer(GroundingBenchmark):
    """Percent of descriptions whose box overlaps the right one by at least 0.25, or 0.5, along the axes.

    A target is unique when, among the objects that the file describes in its scene, it is the only one of its class, else multiple.

    official       classes by nyu40 name: 17 and "others".
    m3dref_clip    classes by nyu40 id, walls and floors apart; overlap in float32.
    video_3d_llm   classes by nyu40 id.
    """

    name = "scanrefer"
    profiles = ("official", "m3dref_clip", "video_3d_llm")

    def read(
        self, path: str | Path, scenes: Mapping[str, AnnotatedScene] | None = None, labels: str | Path | None = None
    ) -> list[Question]:
        """ScanRefer_filtered_val.json, or the folder that holds it.

        scenes    annotated ScanNet scenes by name, which the true boxes come from; without them nothing can be scored.
        labels    scannetv2-labels.combined.tsv, for unique and multiple; looked for beside the file, too.
        """
        questions = []
        for file in official_files(path, "ScanRefer_filtered_val.json"):
            rows = list(read_rows(file))
            groups = unique_or_multiple(rows, labels or file.with_name("scannetv2-labels.combined.tsv"), file)
            for row, group in zip(rows, groups, strict=True):
                scene, target = field(row, "scene_id", file), str(field(row, "object_id", file))
                questions.append(
                    Question(
                        task=self.name,
                        scene=scene,
                        text=field(row, "description", file),
                        options=(),
                        answer=target,
                        objects=(field(row, "object_name", file).replace("_", " "),),
                        id=f"{scene}|{target}|{field(row, 'ann_id', file)}",
                        groups=group,
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions if scenes is None else [self.place(q, scenes) for q in questions]

    def targets(self, question: Question) -> list[str]:
        return [question.answer]

    def prompt(self, question: Question, profile: str = "") -> str:
        return grounding_prompt(question, self.check(profile))

    def parse(self, text: str) -> Box3D | None:
        """The first box; None when there is none."""
        boxes = read_boxes(text)
        return boxes[0] if boxes else None

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        """Whether the overlap is at least 0.25."""
        return float(self.iou(question, prediction, profile) >= 0.25)

    def iou(self, question: Question, prediction: str, profile: str = "") -> float:
        """Overlap of the first box that is written with the right one."""
        single = self.check(profile) == "m3dref_clip"
        if not question.boxes:
            raise ValueError(f"{self.name} {question.id}: the true box is unknown; give `read` the annotated scenes")
        box = self.parse(prediction)
        return float(aligned_iou([box], question.boxes[:1], single)[0, 0]) if box else 0.0

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """`overall` is Acc@0.25 of all; `unique/Acc@0.5` and the like where the file's groups are known."""
        rule = BY_NAME if self.check(profile) == "official" else BY_ID
        numbers = averages(records, without=GROUPS)
        ious = [(record.question, self.iou(record.question, record.prediction, profile)) for record in records]
        found = {"": [iou for _, iou in ious]}
        for kind in ("unique", "multiple"):
            found[f"{kind}/"] = [iou for question, iou in ious if f"{kind} {rule}" in question.groups]
        for prefix, values in found.items():
            if values:
                numbers |= {f"{prefix}Acc@{least}": percent([float(iou >= least) for iou in values]) for least in (0.25, 0.5)}
                numbers[f"n/{prefix}".rstrip("/")] = float(len(values))
        return {"overall": numbers["Acc@0.25"], **numbers}


def grounding_prompt(question: Question, profile: str) -> str:
    """Video-3D-LLM's wording, or the same with how to write a box, for models that answer in text."""
    description = question.text.capitalize()
    if profile == "video_3d_llm":
        return f"Identify the object according to the following description.\n{description}"
    return (
        f"Localize the object according to the following description.\n{description}\n"
        "Answer with its box in metres, along the axes of the scene: [x, y, z, dx, dy, dz]."
    )


def unique_or_multiple(rows: Sequence[Mapping[str, Any]], labels: str | Path, place: object) -> list[tuple[str, ...]]:
    """For each description, "unique by ..." or "multiple by ..." of either rule.

    Without the table of labels, the second rule's answer is taken from `eval_type`, where M3DRef-CLIP's script has added it.
    """
    if not Path(labels).is_file():
        return [(f"{row['eval_type']} {BY_ID}",) if row.get("eval_type") in ("unique", "multiple") else () for row in rows]
    by_name, by_id = read_labels(Path(labels))
    groups: list[tuple[str, ...]] = [()] * len(rows)
    for rule, table, rest in ((BY_NAME, by_name, OTHER), (BY_ID, by_id, 39)):
        keys = [(row["scene_id"], table.get(field(row, "object_name", place).replace("_", " "), rest)) for row in rows]
        objects: dict[tuple, tuple] = {}  # each object counts once, under the name of its first description
        for row, key in zip(rows, keys, strict=True):
            objects.setdefault((row["scene_id"], str(row["object_id"])), key)
        counts = Counter(objects.values())
        for i, key in enumerate(keys):
            groups[i] += (f"{'unique' if counts[key] == 1 else 'multiple'} {rule}",)
    return groups


def read_labels(file: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Raw category -> class of ScanRefer, and -> nyu40 id as M3DRef-CLIP keeps it."""
    by_name, by_id = {}, {}
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            raw, name = field(row, "raw_category", file), field(row, "nyu40class", file)
            number = int(field(row, "nyu40id", file))
            by_name[raw] = name if name in CLASSES else OTHER
            by_id[raw] = number if number in NYU40_IDS else 39
    return by_name, by_id
