"""EmbSpatial-Bench: six spatial relations between objects in one image (hub id FlagEval/EmbSpatial-Bench)."""

import base64
import binascii
import re
from pathlib import Path
from typing import Any

from allocentric.tasks.base import Question
from allocentric.tasks.choices import LETTERS, ChoiceBenchmark, lettered
from allocentric.tasks.files import check_ids, field, official_files, read_rows, unpack


class EmbSpatial(ChoiceBenchmark):
    """The authors published no scorer for written answers. The default is lmms-eval's: any letter with which the text begins."""

    name = "embspatial"
    profiles = ("lmms_eval_0_7_3", "vlmevalkit")

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """The images that the rows carry are written into the folder `images`, where one is given."""
        questions = []
        for file in official_files(path, "*.json", "*.jsonl", "**/test*.parquet", "**/*.parquet"):
            for row in read_rows(file, without=() if images else ("image",)):
                identity = str(field(row, "question_id", file))
                name = f"{identity}.jpg"
                if images:
                    unpack(_image(field(row, "image", file), f"{file}, question {identity}"), Path(images, name))
                options = lettered(field(row, "answer_options", file), ") ")
                answer = int(field(row, "answer", file))
                if not 0 <= answer < len(options):
                    raise ValueError(
                        f"{file}, question {identity}: found answer {answer}, expected an index of {len(options)} options"
                    )
                source = str(field(row, "data_source", file))
                questions.append(
                    Question(
                        task=field(row, "relation", file),
                        scene=f"{source}/{row.get('scene_id', '')}",
                        text=field(row, "question", file),
                        options=options,
                        answer=LETTERS[answer],
                        objects=tuple(o["name"] for o in row.get("objects") or ()),
                        id=identity,
                        images=(str(Path(images, name)) if images else name,),
                        groups=(source,),
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        if self.check(profile) == "vlmevalkit":
            options = "\n".join(option.replace(") ", ": ", 1) for option in question.options)
            return f"Question: {question.text}\nOptions:\n{options}\nGive me the answer letter directly. The best answer is:"
        note = "Note: You only need to respond with A, B, C, D without providing any additional information."
        return "\n".join([note, question.text, *question.options])

    def letter(self, text: str, options: int = 4) -> str | None:
        """The first character after opening brackets and spaces, if it is a letter: "The answer is A" reads T."""
        found = re.match(r"[\(\s]*([A-Z])", text, re.IGNORECASE)
        return found[1].upper() if found else None


def _image(value: Any, place: str) -> bytes:
    """The bytes of an image, from base64 text or from a row of the hub's image column."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"{place}: expected an image in base64 or as bytes, found {type(value).__name__}") from error
