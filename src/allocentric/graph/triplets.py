"""LocalCogMap triplets: three objects at a time on a small grid of their own (SSR; arXiv 2603.00409).

A triplet keeps only how its three objects lie to each other: there is no origin, scale or heading that one triplet shares with
another, so an error in one moves nothing in the others. A chain of triplets in which each new object comes with two that were
placed before fixes the whole layout up to one similarity (`graph.solve`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

GRID = 10  # cells along each side of a local grid
SMALLEST = 0.3  # metres: least extent of a grid
NEAREST_GAP, LONGEST = 0.3, 5.0  # metres: boxes at least this far apart, no side longer than this
LEAST_RATIO, LEAST_AREA = 0.2, 0.05  # shortest side by longest, and area by longest side squared: not nearly on one line
FIRST = 6  # the seed is chosen among this many objects

Node = tuple[str, int]  # label, instance


@dataclass(frozen=True)
class Triplet:
    """Three objects on one local grid of 10 x 10 cells seen from above.

    nodes     (label, instance) of each, all different.
    cells     (x, y) of each, 0 to 9; x to the right, y ahead.
    extent    metres along the grid; None when unknown.
    """

    nodes: tuple[Node, Node, Node]
    cells: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    extent: float | None = None

    def __post_init__(self):
        if len(set(self.nodes)) != 3:
            raise ValueError(f"triplet: expected three different objects, found {self.nodes}")
        if not all(0 <= value < GRID for cell in self.cells for value in cell):
            raise ValueError(f"triplet: expected cells from 0 to {GRID - 1}, found {self.cells}")
        if self.extent is not None and not 0 < self.extent < float("inf"):
            raise ValueError(f"triplet: expected a positive extent in metres, found {self.extent}")

    @property
    def points(self) -> Float[np.ndarray, "3 2"]:
        """Cells as numbers, for computing with."""
        return np.array(self.cells, dtype=np.float64)

    @property
    def offsets(self) -> Float[np.ndarray, "3 2"]:
        """Best estimate of each place in cells from the corner of the triplet's extent.

        An object is in the middle of its cell, but on either axis the lowest one marks the corner, and cell 9 the far side.
        """
        cells = self.points - self.points.min(0)
        return np.where(cells == 0, 0.0, np.where(cells == GRID - 1, GRID, cells + 0.5))


def local_triplet(
    nodes: tuple[Node, Node, Node],
    points: Float[np.ndarray, "3 2"],
    axes: Literal["shared", "ego", "random"] = "shared",
    rng: np.random.Generator | None = None,
    metric: bool = True,
) -> Triplet:
    """The triplet of three points in metres, seen from above (spec 4.1): one scale for both axes, the shorter one centred.

    axes     "shared": those of the points, in practice the first camera's heading; "ego": standing at the first object, facing
             the second, which is ahead; "random": turned by a random angle from `rng`.
    metric   whether to keep the extent, rounded to 0.1 m.
    """
    points = np.asarray(points, dtype=np.float64)
    if axes == "ego":
        ahead = points[1] - points[0]
        points = _turned(points, np.pi / 2 - np.arctan2(ahead[1], ahead[0]))
    elif axes == "random":
        if rng is None:
            raise ValueError('axes="random": expected a random generator, found none')
        points = _turned(points, rng.uniform(0, 2 * np.pi))
    elif axes != "shared":
        raise ValueError(f'axes: expected "shared", "ego" or "random", found {axes!r}')
    low = points.min(0)
    extent = max(float((points.max(0) - low).max()), SMALLEST)
    cells = np.clip(np.floor(GRID * (points - low) / extent), 0, GRID - 1).astype(int)
    cells += (GRID - 1 - cells.max(0)) // 2
    a, b, c = (tuple(cell) for cell in cells.tolist())
    return Triplet(nodes, (a, b, c), max(round(extent, 1), SMALLEST) if metric else None)


def usable_triples(points: Float[np.ndarray, "n 2"], gaps: Float[np.ndarray, "n n"] | None = None) -> Bool[np.ndarray, "n n n"]:
    """Which triples are well shaped (spec 5.4): boxes apart, sides not too long, not nearly on one line.

    gaps   metres between the closest points of the boxes; centres count where that is unknown.
    """
    side = np.linalg.norm(points[:, None] - points[None], axis=-1)
    apart = ((side if gaps is None else gaps) >= NEAREST_GAP) & (side <= LONGEST)
    a, b, c = side[:, :, None], side[:, None, :], side[None]
    longest, shortest = np.maximum(np.maximum(a, b), c), np.minimum(np.minimum(a, b), c)
    offset = points[None] - points[:, None]
    area = np.abs(offset[:, :, None, 0] * offset[:, None, :, 1] - offset[:, :, None, 1] * offset[:, None, :, 0]) / 2
    shaped = (shortest >= LEAST_RATIO * longest) & (area >= LEAST_AREA * longest**2)
    return apart[:, :, None] & apart[:, None, :] & apart[None] & shaped


def chain(
    points: Float[np.ndarray, "n 2"], gaps: Float[np.ndarray, "n n"] | None = None, redundancy: int = 3
) -> list[tuple[int, int, int]]:
    """Triples that place the points one after the other (spec 5.5, 5.6); points are in order of first appearance.

    The first triple is the best conditioned among the first few objects; every further object comes with the `redundancy`
    cheapest pairs of placed ones, where a long baseline and a near object are cheap. An object that no well-shaped triple
    reaches takes the cheapest of any shape, so that all are placed when there are three at all.
    """
    if redundancy < 1:
        raise ValueError(f"redundancy: expected at least 1, found {redundancy}")
    n = len(points)
    if n < 3:
        return []
    points = np.asarray(points, dtype=np.float64)
    side = np.linalg.norm(points[:, None] - points[None], axis=-1)
    usable = usable_triples(points, gaps)
    seed = _best_seed(side, usable, min(n, FIRST))
    triples, placed = [seed], list(seed)
    waiting = [i for i in range(n) if i not in seed]
    while waiting:
        # In order of appearance, but an object that placed ones cannot reach well yet waits for others.
        ready = next((c for c in waiting if usable[np.ix_(placed, placed, [c])].any()), waiting[0])
        triples += _anchored(ready, placed, side, usable, redundancy)
        placed.append(ready)
        waiting.remove(ready)
    return triples


def build_chain(
    nodes: Sequence[Node],
    points: Float[np.ndarray, "n 2"],
    gaps: Float[np.ndarray, "n n"] | None = None,
    redundancy: int = 3,
    axes: Literal["shared", "ego", "random"] = "shared",
    rng: np.random.Generator | None = None,
    metric: bool = True,
) -> list[Triplet]:
    """The map of a scene as triplets: `chain` in order, each on its own grid (`local_triplet`)."""
    points = np.asarray(points, dtype=np.float64)
    return [
        local_triplet(tuple(nodes[i] for i in triple), points[list(triple)], axes, rng, metric)
        for triple in chain(points, gaps, redundancy)
    ]


def _best_seed(side: np.ndarray, usable: np.ndarray, first: int) -> tuple[int, int, int]:
    """The triple closest to equilateral, by shortest over longest side; a usable one where there is any."""
    triples = [(i, j, k) for i in range(first) for j in range(i + 1, first) for k in range(j + 1, first)]

    def quality(triple: tuple[int, int, int]) -> tuple[bool, float]:
        i, j, k = triple
        sides = (side[i, j], side[i, k], side[j, k])
        return bool(usable[triple]), min(sides) / max(*sides, 1e-9)

    return max(triples, key=quality)


def _anchored(c: int, placed: list[int], side: np.ndarray, usable: np.ndarray, count: int) -> list[tuple[int, int, int]]:
    """The `count` cheapest triples of an object with two placed ones: cost m / |ab| + 0.15 m, m the longest side in metres."""
    i, j = np.triu_indices(len(placed), k=1)
    a, b = np.array(placed)[i], np.array(placed)[j]
    longest = np.maximum(np.maximum(side[a, b], side[a, c]), side[b, c])
    cost = longest / np.maximum(side[a, b], 1e-9) + 0.15 * longest
    cost = cost + np.where(usable[a, b, c], 0.0, 1e6)
    cheapest = np.argsort(cost, kind="stable")[:count]
    if usable[a, b, c].any():
        cheapest = cheapest[cost[cheapest] < 1e6]
    return [(int(a[k]), int(b[k]), c) for k in cheapest]


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])
