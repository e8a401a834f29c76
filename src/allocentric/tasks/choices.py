"""What benchmarks of multiple-choice questions about images share."""

import re
from abc import abstractmethod
from pathlib import Path

from allocentric.tasks.base import Benchmark, Question
from allocentric.tasks.vsibench import read_letter

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class ChoiceBenchmark(Benchmark):
    """One letter is right. Each benchmark has its own way to find the letter in a text; `vlmevalkit` has one for all."""

    profiles = ("official", "vlmevalkit")

    @abstractmethod
    def letter(self, text: str, options: int = 4) -> str | None:
        """The letter that the benchmark's own rule finds, in a text without surrounding white space; None when it finds none."""

    def parse(self, text: str, profile: str = "", options: int = 4) -> str | None:
        """The upper-case letter that a profile finds, None when it finds none."""
        if self.check(profile) == "vlmevalkit":
            found = read_letter(text, "vlmevalkit")
            return found.upper() if found else None
        return self.letter(text.strip(), options)

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        return float(self.parse(prediction, profile, len(question.options) or 4) == question.answer)


def lettered(options: list[str], separator: str) -> tuple[str, ...]:
    """Options with their letters: "A) left" for the separator ") "."""
    return tuple(f"{letter}{separator}{option}" for letter, option in zip(LETTERS, options, strict=False))


def listed_options(text: str, mark: str = ".") -> tuple[str, ...]:
    """The options that a text lists, as "A. left B. right": the last list that begins with A and follows the alphabet."""
    found = list(re.finditer(rf"(?:(?<=\s)|^)([A-Z]){re.escape(mark)}(?=\s)", text))
    starts: list[int] = []
    for start in found:
        if start[1] == "A":
            starts = [start.start()]
        elif starts and start[1] == LETTERS[len(starts)]:
            starts.append(start.start())
    ends = [*starts[1:], len(text)]
    return tuple(text[start:end].strip().rstrip(",;") for start, end in zip(starts, ends, strict=True)) if len(starts) > 1 else ()


def image_paths(names: list[str], images: str | Path | None) -> tuple[str, ...]:
    """Image files as the benchmark names them, below the folder `images` where one is given."""
    return tuple(str(Path(images, name)) if images else name for name in names)
