"""Scan2Cap: describe an object of a ScanNet scene so that it can be told from others (Chen et al. 2021), over ScanRefer's files."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Record, averages
from allocentric.tasks.files import field, official_files, read_rows
from allocentric.tasks.ngrams import caption_metrics, rouge_l
from allocentric.tasks.overlap import LIST, SceneBenchmark, aligned_iou, read_boxes

LEAST = 0.5  # overlap with the true box below which a caption does not count
WORDS = 30  # of a reference, in the official protocol
MISSED = "missed"


class Scan2Cap(SceneBenchmark):
    """CIDEr, BLEU-4, METEOR and ROUGE-L at an overlap of 0.5, one caption for each described object. All objects stay in the mean.

    Captions and references stand between the words "sos" and "eos", which count. An answer may hold the box it describes; without
    one, the box that was asked about is meant.

    official       references are the first 30 words of the data set's own splitting; the overlap must be greater than 0.5.
    leo            the same references; of a caption, only full stops before a space are set apart.
    video_3d_llm   whole references; full stops and commas set apart, lower case; a missed object leaves two spaces.
    """

    name = "scan2cap"
    profiles = ("official", "leo", "video_3d_llm")

    def read(
        self,
        path: str | Path,
        scenes: Mapping[str, AnnotatedScene] | None = None,
        proposals: Mapping[str, Sequence[Box3D]] | None = None,
    ) -> list[Question]:
        """ScanRefer_filtered_val.json, or the folder that holds it.

        scenes      annotated ScanNet scenes by name: where the true boxes come from.
        proposals   detected boxes by scene. The one that overlaps the true box most is asked about, an object that none overlaps by
                    0.5 counts as missed. Without proposals the true box is asked about.
        """
        questions = []
        for file in official_files(path, "ScanRefer_filtered_val.json"):
            described: dict[str, list[dict]] = {}
            for row in read_rows(file):
                key = "|".join(str(field(row, name, file)) for name in ("scene_id", "object_id", "object_name"))
                described.setdefault(key, []).append(row)
            for key, rows in described.items():
                scene, name = rows[0]["scene_id"], rows[0]["object_name"]
                questions.append(
                    Question(
                        task=self.name,
                        scene=scene,
                        text="",
                        options=(),
                        answer=rows[0]["description"],
                        objects=(name.replace("_", " "),),
                        id=key,
                        references=tuple(field(row, "description", file) for row in rows),
                        tokenized=tuple(" ".join(field(row, "token", file)) for row in rows),
                    )
                )
        if scenes is None and proposals is not None:
            raise ValueError("Scan2Cap: found proposals without annotated scenes, expected `scenes`, too")
        return questions if scenes is None else [self.place(q, scenes, proposals) for q in questions]

    def targets(self, question: Question) -> list[str]:
        return [question.id.split("|")[1]]

    def place(
        self,
        question: Question,
        scenes: Mapping[str, AnnotatedScene],
        proposals: Mapping[str, Sequence[Box3D]] | None = None,
    ) -> Question:
        """The question with the true box, and the centre of the one that is asked about as its text; see `read`."""
        placed = super().place(question, scenes)
        asked = placed.boxes if proposals is None else _nearest(placed.boxes, proposals.get(question.scene, ()))
        where = ", ".join(f"{value:.2f}" for value in asked[0].center) if asked else ""
        return replace(placed, text=where, groups=() if asked else (MISSED,))

    def prompt(self, question: Question, profile: str = "") -> str:
        """Video-3D-LLM's wording, with the centre of the box in metres where its own model takes an embedding of it."""
        self.check(profile)
        return f"Given an object located at {question.text}, describe the object in detail."

    def parse(self, text: str) -> str:
        """The caption, without boxes."""
        return LIST.sub("", text).strip()

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        """ROUGE-L: of the benchmark's metrics the one that judges a caption by itself."""
        said, references = self.sentences(question, prediction, profile)
        return rouge_l(said, references)

    def sentences(self, question: Question, prediction: str, profile: str = "") -> tuple[str, list[str]]:
        """The caption and its references as a profile compares them."""
        profile = self.check(profile)
        if profile == "video_3d_llm":
            references = [f"sos {_spaced(text)} eos" for text in question.references]
        else:
            references = [f"sos {' '.join(text.split(' ')[:WORDS])} eos" for text in question.tokenized]
        counts = MISSED not in question.groups and self._overlaps(question, prediction, strictly=profile == "official")
        caption = self.parse(prediction) if counts else ""
        if not caption:
            return ("sos  eos" if profile == "video_3d_llm" else "sos eos"), references
        if profile == "leo":
            return f"sos {caption} eos".replace(". ", " . "), references
        if profile == "official":
            return f"sos {' '.join(_spaced(caption).split())} eos", references
        return f"sos {_spaced(caption)} eos", references

    def _overlaps(self, question: Question, prediction: str, strictly: bool) -> bool:
        boxes = read_boxes(prediction)
        if not boxes:
            return True
        if not question.boxes:
            raise ValueError(f"{self.name} {question.id}: the true box is unknown; give `read` the annotated scenes")
        overlap = aligned_iou(boxes[:1], question.boxes[:1])[0, 0]
        return bool(overlap > LEAST if strictly else overlap >= LEAST)

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """`overall` is CIDEr, of just these objects; `missed` counts those that no proposal finds."""
        numbers = averages(records, without=(MISSED,))
        said, references = zip(*(self.sentences(r.question, r.prediction, profile) for r in records), strict=True)
        metrics = caption_metrics(said, references)
        missed = float(sum(MISSED in record.question.groups for record in records))
        return {"overall": metrics["CIDEr"], **numbers, **metrics, MISSED: missed}


def _spaced(text: str) -> str:
    """Full stops and commas as words of their own, in lower case."""
    return re.sub(r"[.,]", r" \g<0> ", text).lower()


def _nearest(truth: Sequence[Box3D], proposals: Sequence[Box3D]) -> Sequence[Box3D]:
    """The proposal that overlaps the true box most, if by enough."""
    if not proposals:
        return ()
    overlap = aligned_iou(proposals, truth[:1])[:, 0]
    best = int(np.argmax(overlap))
    return (proposals[best],) if overlap[best] >= LEAST else ()
