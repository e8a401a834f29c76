"""`Task` and `Question`: one object makes the questions, asks them, reads the answers and scores them.

A `Benchmark` is a task whose questions are read from its official files instead of made.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from allocentric.geometry.boxes import Box3D
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

    What not every task has:

    id          the official id, by which predictions are joined; never the row number.
    references  every right answer, or every reference caption; empty when `answer` is the only one.
    tokenized   the references as the data set itself splits them into words, where it does.
    context     what is said before the question, such as where somebody stands.
    images      image files that are shown instead of the scene's video, in order.
    boxes       where that which is asked for stands, for grounding and captions; empty when unknown, or when there is nothing.
    groups      further groups that the benchmark reports, e.g. "unique" or "view_dependent".
    """

    task: str
    scene: str
    text: str
    options: tuple[str, ...]
    answer: str
    objects: tuple[str, ...] = ()
    id: str = ""
    references: tuple[str, ...] = ()
    tokenized: tuple[str, ...] = ()
    context: str = ""
    images: tuple[str, ...] = ()
    boxes: tuple[Box3D, ...] = ()
    groups: tuple[str, ...] = ()


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


class Record(NamedTuple):
    """One answered question, as `aggregate` takes it. `score` is that of the profile which is aggregated."""

    question: Question
    prediction: str
    score: float


class Benchmark(Task):
    """A published benchmark: reads its official files, asks with its official wording, scores as its published scorers do.

    `profiles` names the published scorers that differ, the default first. A number means something only together with its profile.
    `headline` is the mean that the benchmark reports first, where that is a mean of scores at all.
    """

    name: str
    profiles: tuple[str, ...] = ("official",)
    headline: Literal["micro", "macro"] = "micro"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        """None: the questions of a benchmark are read."""
        return []

    @abstractmethod
    def read(self, path: str | Path) -> list[Question]:
        """The questions of an official file, or of the folder that holds the official files, in their order."""

    @abstractmethod
    def prompt(self, question: Question, profile: str = "") -> str:
        """The text beside the video or images, in the wording that goes with a profile; "" is the default one."""

    @abstractmethod
    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        """How good the written prediction is, from 0 to 1, as a profile judges it; "" is the default one."""

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """Named numbers in percent, as papers print them.

        `overall` is what the benchmark reports first; `micro` the mean of all answers, `macro` the mean of the tasks, `task/...`
        the mean of each task, `group/...` of each group; `n` and `n/...` count answers.
        """
        self.check(profile)
        numbers = averages(records)
        return {"overall": numbers["micro"], **numbers}

    def check(self, profile: str) -> str:
        """The profile's name; ValueError when the benchmark has no such profile."""
        profile = profile or self.profiles[0]
        if profile not in self.profiles:
            raise ValueError(f"scorer profile of {self.name}: expected one of {self.profiles}, found {profile!r}")
        return profile


def averages(records: Iterable[Record], without: Collection[str] = ()) -> dict[str, float]:
    """Micro, macro, per-task and per-group means in percent, and counts; nothing is said of the groups in `without`."""
    scores: list[float] = []
    by_task: dict[str, list[float]] = {}
    by_group: dict[str, list[float]] = {}
    for question, _, score in records:
        scores.append(score)
        by_task.setdefault(question.task, []).append(score)
        for group in set(question.groups) - set(without):
            by_group.setdefault(group, []).append(score)
    if not scores:
        raise ValueError("aggregate: expected at least one answer, found none")
    tasks = {task: percent(values) for task, values in by_task.items()}
    return {
        "micro": percent(scores),
        "macro": sum(tasks.values()) / len(tasks),
        **{f"task/{task}": tasks[task] for task in sorted(tasks)},
        **{f"group/{group}": percent(by_group[group]) for group in sorted(by_group)},
        "n": float(len(scores)),
        **{f"n/{name}": float(len(values)) for name, values in sorted({**by_group, **by_task}.items())},
    }


def percent(scores: Sequence[float]) -> float:
    """The mean, times 100."""
    return 100 * float(np.mean(scores))


def multiple_choice(
    task: str, scene: AnnotatedScene, text: str, options: list[str], correct: str, objects: tuple[str, ...]
) -> Question:
    """A question whose options stand in the given order."""
    lettered = tuple(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return Question(task, scene.name, text, lettered, LETTERS[options.index(correct)], objects)
