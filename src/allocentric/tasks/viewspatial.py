"""ViewSpatial-Bench: directions from the camera's and from a person's point of view (hub id lidingm/ViewSpatial-Bench)."""

import re
from dataclasses import replace
from pathlib import Path

from allocentric.tasks.base import Question
from allocentric.tasks.choices import ChoiceBenchmark, image_paths
from allocentric.tasks.files import content_ids, field, official_files, read_rows


class ViewSpatial(ChoiceBenchmark):
    """The first of A to D that stands alone in the last line, also in lower case: the article of "a chair" counts as A.

    `lmms_eval_0_7_3` writes "Question:" and "Choices:" in the prompt and strips the answer; the authors' `official` code does not.
    """

    name = "viewspatial"
    profiles = ("lmms_eval_0_7_3", "official", "vlmevalkit")

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """`images` is the folder that holds ViewSpatial-Bench/scannetv2_val and ViewSpatial-Bench/val2017.

        The official file has no ids; they are made from the images and the question.
        """
        rows = [
            (file, row) for file in official_files(path, "ViewSpatial-Bench.json", "*.json", "*.jsonl") for row in read_rows(file)
        ]
        questions = []
        for file, row in rows:
            names = field(row, "image_path", file)
            choices, answer = field(row, "choices", file), field(row, "answer", file)
            right = first_option(answer)
            if right is None:
                raise ValueError(f"{file}: found the answer {answer!r}, expected it to begin with a letter from A to D")
            questions.append(
                Question(
                    task=field(row, "question_type", file),
                    scene="/".join(Path(names[0]).parts[1:3]) if names else "",
                    text=field(row, "question", file),
                    options=tuple(choices.split("\n")),
                    answer=right,
                    images=image_paths(names, images),
                )
            )
        ids = content_ids((*row["image_path"], row["question"], row["choices"]) for _, row in rows)
        return [replace(q, id=i) for q, i in zip(questions, ids, strict=True)]

    def prompt(self, question: Question, profile: str = "") -> str:
        choices = "\n".join(question.options)
        if self.check(profile) == "official":
            return f"{question.text}{choices}\nReply only to the corresponding option.\nAnswer:"
        return f"Question: {question.text}\nChoices: {choices}\nReply only to the corresponding option.\nAnswer:"

    def parse(self, text: str, profile: str = "", options: int = 4) -> str | None:
        return self.letter(text, options) if self.check(profile) == "official" else super().parse(text, profile, options)

    def letter(self, text: str, options: int = 4) -> str | None:
        return first_option(text.split("\n")[-1])


def first_option(text: str) -> str | None:
    """The first letter from A to D that is a word of its own."""
    found = re.search(r"\b([A-D])\b", text, re.IGNORECASE)
    return found[1].upper() if found else None
