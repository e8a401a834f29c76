"""MindCube: what is where, from a few views of a scene (MLL-Lab/MindCube; hub id oscarqjh/MindCube_lmmseval for lmms-eval)."""

import re
from collections.abc import Sequence
from pathlib import Path

from allocentric.tasks.base import Question, Record, averages
from allocentric.tasks.choices import ChoiceBenchmark, image_paths, listed_options
from allocentric.tasks.files import check_ids, field, official_files, read_rows

TASK = (
    "[Task]\nYour task is to analyze the spatial arrangement of objects in the scene by examining the provided images, which show "
    "the scene from different viewpoints.\n"
    "[Answer Instruction]\nYou only need to provide *ONE* correct answer selecting from the options listed below. For example, if "
    "you think the correct answer is 'A. Above' from 'A. Above B. Under C. Front D. Behind', your response should **only** be "
    "'<answer>A. Above</answer>'.\n"
)

# In an <Answer> block, and then in the whole text: the surest wording first, its last occurrence.
IN_BLOCK = (r"[Mm]y answer is ([A-E])", r"[Tt]he answer is ([A-E])", r"\b([A-E])\b")
ANYWHERE = (
    r"(?:^|\n)(?:Answer: )?([A-E])(?:\.|$|\s)",
    r"[\*\"]([A-E])[\*\"]",
    r"\bAnswer:?\s*([A-E])\b",
    r"[Mm]y answer is ([A-E])",
    r"answer is ([A-E])",
)


class MindCube(ChoiceBenchmark):
    """Settings are among, around and rotation; `official` leaves translation out of its total, lmms-eval counts it."""

    name = "mindcube"
    profiles = ("official", "lmms_eval_0_7_3", "vlmevalkit")

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """A JSONL file such as MindCube_tinybench.jsonl, raw or with prompts; `images` is the folder that its paths start from."""
        questions = []
        for file in official_files(path, "MindCube_tinybench*.jsonl", "*.jsonl", "**/*.jsonl"):
            for row in read_rows(file):
                identity = str(field(row, "id", file))
                text = field(row, "question", file)
                questions.append(
                    Question(
                        task=setting(identity),
                        scene=identity,
                        text=text,
                        options=listed_options(text),
                        answer=field(row, "gt_answer", file),
                        id=identity,
                        context=row.get("input_prompt") or f"{TASK}\n[Question]\n{text}",
                        images=image_paths(row.get("images") or [], images),
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        """The prompt that the file holds, or the benchmark's "raw QA" one. Each <image> in it stands for the next image."""
        self.check(profile)
        return question.context

    def letter(self, text: str, options: int = 4) -> str | None:
        if dotted := re.findall(r"([A-E])\.", text):
            return dotted[-1]
        if block := re.search(r"<Answer>(.*?)(?:<|$)", text, re.DOTALL):
            for pattern in IN_BLOCK:
                if found := re.findall(pattern, block[1]):
                    return found[-1]
        for pattern in ANYWHERE:
            if found := re.findall(pattern, text):
                return found[-1]
        for line in reversed(text.split("\n")):
            if alone := re.search(r"\b([A-E])\b", line):
                return alone[1]
        return None

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        official = self.check(profile) == "official"
        counted = [r for r in records if not (official and r.question.task == "translation")]
        return {"overall": averages(counted)["micro"], **averages(records)} if counted else averages(records)


def setting(identity: str) -> str:
    """The setting that an id names."""
    names = ("around", "rotation", "translation", "among")
    return next((name for name in names if name in identity.lower()), "other")
