"""Averages, intervals and tests of scored answers.

Scenes are resampled, not questions: those about one scene stand or fall together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import binomtest

from allocentric.evaluate.answers import Row
from allocentric.tasks.vsibench import DIRECTION_LEVELS

DRAWS = 2000


def base_task(name: str) -> str:
    """The task a question type belongs to: the three difficulties of relative direction are one task."""
    return next((name.removesuffix(f"_{level}") for level in DIRECTION_LEVELS if name == f"object_rel_direction_{level}"), name)


@dataclass(frozen=True)
class Averages:
    """Percent; one number for each draw, or one draw that is the plain average.

    A task whose questions no drawn scene asks is left out of that draw's macro average.

    tasks   of each task, difficulties merged by an unweighted mean, (draws, tasks).
    macro   mean of the tasks, (draws,).
    micro   mean of all answers, (draws,).
    """

    names: tuple[str, ...]
    tasks: Float[np.ndarray, "draws tasks"]
    macro: Float[np.ndarray, " draws"]
    micro: Float[np.ndarray, " draws"]


def by_scene(
    rows: Sequence[Row], scenes: Sequence[str]
) -> tuple[list[str], Float[np.ndarray, "scenes types"], Float[np.ndarray, "scenes types"]]:
    """Question types in order of appearance, and for each scene and type the sum of scores and the number of questions."""
    types = {task: i for i, task in enumerate(dict.fromkeys(row.task for row in rows))}
    places = {scene: i for i, scene in enumerate(scenes)}
    cells = np.array([(places[row.scene], types[row.task]) for row in rows]).reshape(-1, 2).T
    sums, counts = np.zeros((len(scenes), len(types))), np.zeros((len(scenes), len(types)))
    np.add.at(sums, tuple(cells), [row.score for row in rows])
    np.add.at(counts, tuple(cells), 1)
    return list(types), sums, counts


def averages(rows: Sequence[Row], weights: Float[np.ndarray, "draws scenes"] | None = None, scenes: Sequence[str] = ()) -> Averages:
    """Averages of the rows, or of as many draws as there are rows of `weights`: how often each of `scenes` was drawn."""
    scenes = scenes or sorted({row.scene for row in rows})
    types, sums, counts = by_scene(rows, scenes)
    weights = np.ones((1, len(scenes))) if weights is None else weights
    asked, scored = weights @ counts, weights @ sums
    means = np.ma.masked_array(100 * scored / np.maximum(asked, 1), mask=asked == 0)
    names = tuple(dict.fromkeys(base_task(name) for name in types))
    columns = [[i for i, name in enumerate(types) if base_task(name) == task] for task in names]
    tasks = np.ma.stack([means[:, found].mean(axis=1) for found in columns], axis=1)
    micro = 100 * scored.sum(1) / np.maximum(asked.sum(1), 1)
    return Averages(names, tasks.filled(np.nan), np.asarray(tasks.mean(axis=1)), micro)


def bootstrap(
    runs: Mapping[str, Sequence[Row]], draws: int = DRAWS, seed: int = 0, scenes: Sequence[str] = ()
) -> dict[str, Averages]:
    """Averages of each run over resampled scenes; draw i takes the same scenes for every run, so that differences are paired."""
    scenes = scenes or sorted({row.scene for rows in runs.values() for row in rows})
    picks = np.random.default_rng(seed).integers(0, len(scenes), (draws, len(scenes)))
    weights = np.stack([np.bincount(pick, minlength=len(scenes)) for pick in picks]).astype(float)
    return {name: averages(rows, weights, scenes) for name, rows in runs.items()}


def interval(values: Float[np.ndarray, " draws"]) -> tuple[float, float]:
    """The middle 95 % of the draws."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test between two runs on the questions that can only be right or wrong.

    only_a, only_b   how many only the one run answered right.
    n                how many questions were compared.
    p                probability of so uneven a split, or a more uneven one, if both were equally good.
    """

    only_a: int
    only_b: int
    n: int
    p: float


def mcnemar(a: Sequence[Row], b: Sequence[Row]) -> McNemar:
    """Of two runs with the same questions in the same order. Tasks with partial scores in either run are left out."""
    partial = {row.task for row in (*a, *b) if row.score not in (0, 1)}
    pairs = [(x.score, y.score) for x, y in zip(a, b, strict=True) if x.task not in partial]
    only_a, only_b = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    p = binomtest(min(only_a, only_b), only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, len(pairs), float(p))


def sign_probability(differences: Float[np.ndarray, " draws"]) -> float:
    """Two-sided bootstrap probability of a difference of the other sign."""
    low = (1 + int((differences <= 0).sum())) / (len(differences) + 1)
    high = (1 + int((differences >= 0).sum())) / (len(differences) + 1)
    return min(1.0, 2 * min(low, high))
