"""MMSI-Bench: spatial questions about several images (hub id RunsenXu/MMSI-Bench)."""

import re
from pathlib import Path

from allocentric.tasks.base import Question
from allocentric.tasks.choices import ChoiceBenchmark, listed_options
from allocentric.tasks.files import check_ids, field, official_files, read_rows, unpack

POST = "Answer with the option's letter from the given choices directly. Enclose the option's letter within ``."


class MMSI(ChoiceBenchmark):
    """The letter inside double backticks, single ones or braces, if there are any; not one before a word, as in "A chair"."""

    name = "mmsi"

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """MMSI_Bench.parquet; the images it holds are written into the folder `images`, where one is given."""
        questions = []
        for file in official_files(path, "MMSI_Bench.parquet", "**/test*.parquet", "**/*.parquet", "*.jsonl"):
            for row in read_rows(file, without=() if images else ("images", "thought")):
                identity = str(field(row, "id", file))
                pictures = (row.get("images") or []) if images else []
                names = [f"{identity}_{i}.jpg" for i in range(len(pictures))]
                for name, picture in zip(names, pictures, strict=True):
                    unpack(picture["bytes"] if isinstance(picture, dict) else picture, Path(images, name))
                text = field(row, "question", file).strip()
                questions.append(
                    Question(
                        # The hub's rows spell the pairs with hyphens or with dashes.
                        task=field(row, "question_type", file).replace("–", "-"),
                        scene=identity,
                        text=text,
                        options=listed_options(text, ":"),
                        answer=field(row, "answer", file).strip().upper(),
                        id=identity,
                        images=tuple(str(Path(images, name)) for name in names) if images else (),
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        self.check(profile)
        return f"{question.text}\n{POST}"

    def letter(self, text: str, options: int = 4) -> str | None:
        for enclosed in (r"``([^`]*)``", r"`([^`]*)`", r"\{([^}]*)\}"):
            if found := re.search(enclosed, text):
                text = found[1]
        found = re.search(r"\b[A-F]\b(?!\s[a-zA-Z])", text, re.IGNORECASE)
        return found[0].upper() if found else None
