"""What questions give away: how many there are, how their answers spread, and what guessing blind would score.

A guess is learned on one half of the scenes and scored on the other, and the other way round; so it is what a model could learn
from the wording alone, not what it could learn by heart.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from allocentric.data.make import task_of
from allocentric.tasks.base import Question

CANDIDATES, SAMPLE = 24, 200  # answers that are tried as the best constant one, and questions that they are tried on


@dataclass(frozen=True)
class TypeReport:
    """One question type; scores in percent, by the official scorer.

    answers     the most frequent answers, with how many questions they are right for.
    chance      a random option; 0 where there are none.
    constant    always the same answer, the best one.
    label       the best answer for the first object that the question names.
    option      the option whose text is right most often of the times it is offered.
    """

    task: str
    n: int
    scenes: int
    distinct: int
    answers: dict[str, int]
    chance: float
    constant: float
    label: float | None
    option: float | None


@dataclass(frozen=True)
class DataReport:
    """A set of questions, type by type."""

    types: tuple[TypeReport, ...]

    def to_dict(self) -> dict:
        return {"questions": sum(t.n for t in self.types), "types": {t.task: asdict(t) for t in self.types}}

    def table(self) -> tuple[list[str], list[list[str]]]:
        columns = ["task", "n", "scenes", "answers", "most frequent", "chance", "constant", "by label", "by option"]
        rows = []
        for t in self.types:
            answer, count = max(t.answers.items(), key=lambda item: item[1])
            top = f"{answer} ({100 * count / t.n:.0f}%)"
            scores = ["" if s is None else f"{s:.1f}" for s in (t.chance, t.constant, t.label, t.option)]
            rows.append([t.task, str(t.n), str(t.scenes), str(t.distinct), top, *scores])
        return columns, rows

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            "Scores of guessing blind, learned on one half of the scenes and scored on the other: always the same answer, "
            "the best answer for the first object named, the option that is right most often.",
        )


def report(questions: Sequence[Question]) -> DataReport:
    """Counts, answer distributions and blind-guess scores of every question type."""
    if not questions:
        raise ValueError("questions: found none, expected some to describe")
    by_type: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_type[question.task].append(question)
    return DataReport(tuple(_type_report(task, by_type[task]) for task in sorted(by_type)))


def _type_report(task: str, questions: list[Question]) -> TypeReport:
    spread = Counter(q.answer for q in questions)
    return TypeReport(
        task=task,
        n=len(questions),
        scenes=len({q.scene for q in questions}),
        distinct=len(spread),
        answers=dict(spread.most_common(10)),
        chance=100 * float(np.mean([1 / len(q.options) if q.options else 0.0 for q in questions])),
        constant=_guessed(questions, lambda seen: _by_key(seen, lambda q: "")),
        label=_guessed(questions, lambda seen: _by_key(seen, _first_object)) if any(q.objects for q in questions) else None,
        option=_guessed(questions, _by_option) if any(q.options for q in questions) else None,
    )


def _first_object(question: Question) -> str:
    return question.objects[0] if question.objects else ""


Guess = Callable[[Question], str]


def _guessed(questions: Sequence[Question], learn: Callable[[Sequence[Question]], Guess]) -> float:
    """Percent scored by what is learned on one half of the scenes on the other; on few scenes one half may be all there is."""
    halves: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        halves[hashlib.sha256(question.scene.encode()).digest()[0] % 2].append(question)
    scores = []
    for seen, asked in (halves, halves[::-1]):
        guess = learn(seen) if seen and asked else None
        scores += [task_of(q).score(q, guess(q)) if guess else 0.0 for q in asked]
    return 100 * float(np.mean(scores))


def _by_key(seen: Sequence[Question], key: Callable[[Question], str]) -> Guess:
    """The best constant answer among questions of the same key; of all of them for a new key."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for question in seen:
        groups[key(question)].append(question)
    anything = best_constant(seen)
    best = {name: best_constant(group) for name, group in groups.items()}
    return lambda question: best.get(key(question), anything)


def best_constant(questions: Sequence[Question]) -> str:
    """The one answer that scores best: among the most frequent ones and, for numbers, ones spread over their range."""
    frequent = Counter(q.answer for q in questions)
    candidates = [answer for answer, _ in sorted(frequent.items(), key=lambda item: (-item[1], item[0]))[:CANDIDATES]]
    if not questions[0].options:
        try:
            ordered = sorted(frequent, key=float)
        except ValueError:
            ordered = []
        candidates += [ordered[i] for i in np.linspace(0, len(ordered) - 1, CANDIDATES).astype(int)] if ordered else []
    some = [questions[i] for i in np.unique(np.linspace(0, len(questions) - 1, SAMPLE).astype(int))]
    if len(set(candidates)) == 1:
        return candidates[0]
    scored = {answer: sum(task_of(q).score(q, answer) for q in some) for answer in dict.fromkeys(candidates)}
    return max(scored, key=scored.__getitem__)


def _by_option(seen: Sequence[Question]) -> Guess:
    """The option that was right most often of the times it was offered (new ones: as often as chance)."""
    offered, right = Counter(), Counter()
    for question in seen:
        for option in question.options:
            offered[option[3:]] += 1
            right[option[3:]] += option[:1] == question.answer

    def guess(question: Question) -> str:
        rate = [(right[o[3:]] + 0.25) / (offered[o[3:]] + 1) for o in question.options]
        return question.options[int(np.argmax(rate))][:1] if rate else ""  # some of a type may have no options

    return guess
