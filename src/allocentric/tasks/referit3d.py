"""ReferIt3D: choose the object that an utterance means in a ScanNet scene (Achlioptas et al. 2020); Nr3D and Sr3D."""

import ast
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Record, averages, percent
from allocentric.tasks.files import check_ids, content_ids, field, official_files, read_rows
from allocentric.tasks.overlap import GroundingBenchmark, aligned_iou, read_boxes
from allocentric.tasks.scanrefer import grounding_prompt

VIEW_WORDS = frozenset("front behind back right left facing leftmost rightmost looking across".split())

# What utterances must be for the protocols of the official code and of detectors to count them.
MENTIONS, GUESSED = "mentions_target_class", "correct_guess"


class ReferIt3D(GroundingBenchmark):
    """Percent of utterances understood, also of the easy ones (at most one other object of the category) and by view.

    official       the true boxes are given, the answer is the number of one.
    detected       the answer is a box, right when it overlaps the true one by more than 0.25 (BUTD-DETR).
    m3dref_clip    the answer is one of the true boxes, right when it overlaps by at least 0.9; every utterance counts.
    video_3d_llm   the answer is a box, right when it overlaps by at least 0.25; every utterance counts.

    The first two count only utterances that name the category of the target and, in Nr3D, were understood; so compare `n`.
    """

    profiles = ("official", "detected", "m3dref_clip", "video_3d_llm")

    def read(
        self, path: str | Path, scenes: Mapping[str, AnnotatedScene] | None = None, scans: Collection[str] | None = None
    ) -> list[Question]:
        """The official CSV file, or the folder that holds it.

        scenes   annotated ScanNet scenes by name, which boxes come from.
        scans    names of the scenes of a split; the rest is left out.
        """
        questions, contents = [], []
        for file in official_files(path, f"{self.name}*.csv"):
            for row in read_rows(file):
                scene, target = field(row, "scan_id", file), str(int(field(row, "target_id", file)))
                if scans is not None and scene not in scans:
                    continue
                contents.append((scene, field(row, "stimulus_id", file), field(row, "utterance", file)))
                questions.append(
                    Question(
                        task=self.name,
                        scene=scene,
                        text=row["utterance"],
                        options=(),
                        answer=target,
                        objects=(field(row, "instance_type", file),),
                        id=str(row.get("assignmentid") or ""),
                        groups=utterance_groups(row, file),
                    )
                )
        ids = [q.id for q in questions]
        if not all(ids) or len(set(ids)) < len(ids):  # Sr3D has none
            ids = content_ids(contents)
        check_ids(ids, path)
        questions = [replace(q, id=i) for q, i in zip(questions, ids, strict=True)]
        return questions if scenes is None else [self.place(q, scenes) for q in questions]

    def targets(self, question: Question) -> list[str]:
        return [question.answer]

    def place(self, question: Question, scenes: Mapping[str, AnnotatedScene]) -> Question:
        """The question with the box of its target, and every object of the scene as an option."""
        placed = super().place(question, scenes)
        return replace(placed, options=tuple(f"{o.id - 1}. {_rounded(o.box)}" for o in scenes[question.scene].objects))

    def write(self, question: Question, candidates: Sequence[Box3D], chosen: Sequence[int], profile: str = "") -> str:
        """The number of the chosen object for the official protocol, whose candidates are the options: all objects of the scene."""
        if self.check(profile) != "official":
            return super().write(question, candidates, chosen, profile)
        return question.options[chosen[0]].split(".")[0]

    def prompt(self, question: Question, profile: str = "") -> str:
        """Candidates by number for the official protocol, whose models were classifiers; a box is asked for in the others."""
        profile = self.check(profile)
        if profile != "official":
            return grounding_prompt(question, profile)
        listed = "\n".join(question.options)
        return (
            f"Identify the object according to the following description.\n{question.text.capitalize()}\n"
            f"Objects, with their boxes in metres as [x, y, z, dx, dy, dz]:\n{listed}\n"
            "Answer with the number of the object directly."
        )

    def parse(self, text: str, profile: str = "") -> str | Box3D | None:
        """The first whole number, or the first box."""
        if self.check(profile) == "official":
            found = re.search(r"\d+", text)
            return (found[0].lstrip("0") or "0") if found else None
        boxes = read_boxes(text)
        return boxes[0] if boxes else None

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        if self.check(profile) == "official":
            return float(self.parse(prediction, profile) == question.answer)
        iou = self.iou(question, prediction, profile)
        if profile == "detected":
            return float(iou > 0.25)
        return float(iou >= (0.9 if profile == "m3dref_clip" else 0.25))

    def iou(self, question: Question, prediction: str, profile: str) -> float:
        """Overlap of the first box that is written with the right one."""
        if not question.boxes:
            raise ValueError(f"{self.name} {question.id}: the true box is unknown; give `read` the annotated scenes")
        box = self.parse(prediction, profile)
        return float(aligned_iou([box], question.boxes[:1], single=profile == "m3dref_clip")[0, 0]) if box else 0.0

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """`overall` is the share of the utterances that count, `n` their number; `Acc@0.5` too where boxes are asked for."""
        profile = self.check(profile)
        if profile in ("official", "detected"):
            records = [r for r in records if {MENTIONS, GUESSED} <= set(r.question.groups)]
            if not records:
                raise ValueError(f"{self.name}: found no utterance that counts in the protocol {profile!r}")
        numbers = averages(records, without=(MENTIONS, GUESSED))
        if profile in ("detected", "video_3d_llm"):
            ious = [self.iou(r.question, r.prediction, profile) for r in records]
            hits = [iou > 0.5 if profile == "detected" else iou >= 0.5 for iou in ious]
            numbers |= {"Acc@0.25": numbers["micro"], "Acc@0.5": percent([float(hit) for hit in hits])}
        return {"overall": numbers["micro"], **numbers}


class Nr3D(ReferIt3D):
    """41,503 utterances of people who played a game of reference."""

    name = "nr3d"


class Sr3D(ReferIt3D):
    """83,572 utterances made from templates; a relation each, which is reported as a group."""

    name = "sr3d"


def utterance_groups(row: Mapping[str, Any], place: object) -> tuple[str, ...]:
    """easy or hard, view_dependent or view_independent, the relation of Sr3D, and what protocols filter by."""
    words = ast.literal_eval(field(row, "tokens", place))
    groups = [
        "easy" if same_category(field(row, "stimulus_id", place)) <= 2 else "hard",
        "view_dependent" if VIEW_WORDS & set(words) else "view_independent",
    ]
    if relation := row.get("coarse_reference_type"):
        groups.append(relation)
    # A column that a file lacks filters nothing: Sr3D has no listeners.
    groups += [name for name in (MENTIONS, GUESSED) if str(row.get(name, "True")).lower() == "true"]
    return tuple(groups)


def same_category(stimulus: str) -> int:
    """Objects of the target's category in the scene, itself included, from "scene-category-count-target-distractor-..."."""
    for found in re.finditer(r"-(?=(\d+)-\d+((?:-\d+)*)$)", stimulus):
        if found[2].count("-") == int(found[1]) - 1:
            return int(found[1])
    raise ValueError(f"stimulus_id: found {stimulus!r}, expected scene-category-count-target-distractors")


def _rounded(box: Box3D) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in (*box.center, *box.size)) + "]"
