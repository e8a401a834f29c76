"""`Task` and `Question`: one object makes the questions, asks them, reads the answers and scores them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from allocentric.scenes import AnnotatedScene

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One question about one scene, with its answer.

    task       official name of the question type, e.g. "object_rel_direction_hard".
    scene      name of the scene.
    text       the question sentence, without options and instructions.
    options    "A. left", "B. right", ...; empty when the answer is a number.
    answer     the letter, or the number as text.
    objects    labels that the question names, in the order of the sentence.
    """

    task: str
    scene: str
    text: str
    options: tuple[str, ...]
    answer: str
    objects: tuple[str, ...] = ()


class Task(ABC):
    """One question type: examples, prompt, parsing and score. The score is also the reward."""

    name: str

    @abstractmethod
    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        """Up to `limit` different questions about the scene; fewer, or none, when it has no unambiguous ones."""

    @abstractmethod
    def prompt(self, question: Question) -> str:
        """The text a model is given, beside the video."""

    @abstractmethod
    def parse(self, text: str) -> str | float | tuple[float, ...] | None:
        """The answer in what a model wrote; None when there is none."""

    @abstractmethod
    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        """How good the written prediction is, from 0 to 1."""


def multiple_choice(
    task: str, scene: AnnotatedScene, text: str, options: list[str], correct: str, objects: tuple[str, ...]
) -> Question:
    """A question whose options stand in the given order."""
    lettered = tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Question(task, scene.name, text, lettered, LETTERS[options.index(correct)], objects)
