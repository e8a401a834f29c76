"""SITE-Bench: spatial intelligence, in images and in videos (hub id franky-veteran/SITE-Bench)."""

from collections.abc import Sequence
from pathlib import Path

from allocentric.tasks.base import Question, Record, averages
from allocentric.tasks.choices import LETTERS, ChoiceBenchmark, image_paths, lettered
from allocentric.tasks.files import content_ids, field, official_files, read_rows

POST = "Give me the answer letter directly. The best answer is:"
VIDEO_PRE = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter of the correct option."
)
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm")


class SITEBench(ChoiceBenchmark):
    """Reports accuracy adjusted for chance: what is above guessing, of what could be.

    Where no letter is found the published scorer guesses at random, so that two runs differ; here that scores 0.
    """

    name = "site"

    def read(self, path: str | Path, images: str | Path | None = None) -> list[Question]:
        """`images` is the folder that the rows' paths start from. The first file that a question shows is its scene."""
        files = official_files(path, "**/*image_test*", "**/*.parquet", "*.jsonl", "*.json")
        if Path(path).is_dir():
            files = sorted({*files, *Path(path).glob("**/*video_test*")})
        rows = [(file, row) for file in files for row in read_rows(file)]
        ids = content_ids(
            (*map(str, field(row, "visual", file)), field(row, "question", file), *map(str, field(row, "options", file)))
            for file, row in rows
        )
        questions = []
        for (file, row), identity in zip(rows, ids, strict=True):
            visual, options = list(row["visual"]), list(row["options"])
            video = bool(visual) and visual[0].lower().endswith(VIDEOS)
            questions.append(
                Question(
                    task=field(row, "category", file),
                    scene=visual[0] if visual else identity,
                    text=row["question"].strip(),
                    options=lettered(options, ": "),
                    answer=field(row, "answer", file),
                    id=identity,
                    images=() if video else image_paths(visual, images),
                    groups=("video" if video else "image", field(row, "dataset", file)),
                )
            )
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        """Each <image> stands for the next image; where the question has none of its own, they all come first."""
        self.check(profile)
        options = "\n".join(question.options)
        body = f"Question: {question.text}\nOptions:\n{options}\n{POST}"
        if not question.images:
            return f"{VIDEO_PRE}\n{body}"
        placed = "<image>" in question.text or "<image>" in options
        return body if placed else "<image>" * len(question.images) + "\n" + body

    def letter(self, text: str, options: int = 4) -> str | None:
        padded, choices = f" {text} ", LETTERS[:options]
        rules = (("({})",), (" {} ",), ("{}.",), ("{}:", ":{}", ": {}"))
        for forms in rules:
            found = [choice for choice in choices if any(form.format(choice) in padded for form in forms)]
            if found:
                return max(found, key=lambda choice: padded.rfind(f" {choice} "))
        return None

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        self.check(profile)
        numbers = averages(records)
        adjusted = {"chance_adjusted": chance_adjusted(records)}
        for task in sorted({record.question.task for record in records}):
            adjusted[f"chance_adjusted/{task}"] = chance_adjusted([r for r in records if r.question.task == task])
        return {"overall": adjusted["chance_adjusted"], "accuracy": numbers["micro"], **numbers, **adjusted}


def chance_adjusted(records: Sequence[Record]) -> float:
    """Percent of what lies above chance: sum of (score - 1/options) over sum of (1 - 1/options)."""
    chance = [1 / (len(record.question.options) or 4) for record in records]
    above = sum(record.score - c for record, c in zip(records, chance, strict=True))
    possible = sum(1 - c for c in chance)
    return 100 * above / possible if possible else 0.0
