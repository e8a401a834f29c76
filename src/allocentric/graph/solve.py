"""From local triplets to one layout (spec 6.4): a joint, robust, linear solve.

Points are complex numbers z. A triplet with cells q gives one equation that knows nothing of its own origin, turn and scale,

    (q_b - q_a) z_c + (q_a - q_c) z_b + (q_c - q_b) z_a = 0,

and the smallest right-singular vector of all of them, other than the constant one, is the layout up to one similarity. Triplets
that share their axes (the default frame) also say how things are turned: then each difference of points is a positive multiple of
the difference of cells, and with extents ("r=") that multiple is known, which fixes scale and heading as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Complex, Float

from allocentric.graph.triplets import GRID, Node, Triplet

HUBER = 1.5  # cells: residuals beyond count less and less
ROUNDS = 10  # of reweighting
ROUNDING = 1 / 12  # squared cells: variance of a rounded coordinate, the least that is ever assumed


@dataclass(frozen=True)
class Layout:
    """A solved map.

    nodes      (label, instance) of what could be placed.
    points     (x, y) of each; metres when `metric`, otherwise the mean distance between points is 1.
    sigma      standard deviation of each point, in the unit of the points.
    residual   of each triplet given, in cells; NaN for those that hang in the air.
    unplaced   nodes that share too little with the others.
    metric     whether the extents fixed the scale.
    """

    nodes: tuple[Node, ...]
    points: Float[np.ndarray, "n 2"]
    sigma: Float[np.ndarray, " n"]
    residual: Float[np.ndarray, " m"]
    unplaced: tuple[Node, ...]
    metric: bool

    def place(self, node: Node) -> Float[np.ndarray, "2"] | None:
        """Where a node is; None when it was not placed."""
        return self.points[self.nodes.index(node)] if node in self.nodes else None


def solve_layout(
    triplets: Sequence[Triplet],
    axes: Literal["shared", "free"] = "shared",
    weights: Sequence[float] | None = None,
    robust: bool = True,
) -> Layout:
    """One layout for all triplets that hang together; those that do not are reported, not forced in.

    axes      "shared": all triplets have the same axes, and so has the layout; "free": each may be turned as it likes, and the
              layout's heading is arbitrary (the first triplet's axes).
    weights   of the triplets; 1 unless given.
    robust    give less weight to triplets that disagree with the rest (Huber on residuals in cells).
    """
    triplets = list(triplets)
    weight = np.ones(len(triplets)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(weight) != len(triplets):
        raise ValueError(f"weights: expected one for each of {len(triplets)} triplets, found {len(weight)}")
    everything = list(dict.fromkeys(node for t in triplets for node in t.nodes))
    metric = bool(triplets) and sum(t.extent is not None for t in triplets) * 2 > len(triplets)
    anchored = axes == "shared" and metric  # with axes and extents, one shared object is enough
    used = _component(triplets, anchored)
    chosen = [triplets[i] for i in used]
    placed = {node for t in chosen for node in t.nodes}
    nodes = [node for node in everything if node in placed]
    lost = tuple(node for node in everything if node not in placed)
    residual = np.full(len(triplets), np.nan)
    if not chosen:
        return Layout((), np.zeros((0, 2)), np.zeros(0), residual, lost, False)

    index = {node: i for i, node in enumerate(nodes)}
    ids = np.array([[index[node] for node in t.nodes] for t in chosen])
    q = np.array([t.offsets for t in chosen]) @ np.array([1, 1j])
    extent = np.array([t.extent or np.nan for t in chosen])
    solve = _solve_metric if anchored else _solve_free
    # An error of one cell is worth as many metres as the cell has. Where the extents tell, small grids count more; guessed from
    # the layout itself, that would let it shrink into its own best-fitting corner.
    cell_size = extent / GRID if anchored else np.ones(len(chosen))
    factor = np.ones(len(chosen))
    for _ in range(ROUNDS if robust else 1):
        z, variance = solve(ids, q, extent, weight[used] * factor / cell_size**2, len(nodes))
        off, cell = _residual(z, ids, q, extent if anchored else None)
        if robust:
            factor = 1 / np.maximum(off / HUBER, 1.0)
    unit = 1.0
    if not anchored:
        z, unit = _oriented(z, ids, q, extent)
    # Laying a triplet over the layout uses up 2 of its 6 coordinates, 4 when it may be scaled and turned.
    noise = np.average(off**2, weights=factor) * 3 / (4 if anchored else 2) + ROUNDING
    one_cell = 1.0 if anchored else unit * math.sqrt(float(np.mean(cell**2)))
    sigma = one_cell * np.sqrt(np.maximum(variance, 0) * noise)
    residual[used] = off
    return Layout(tuple(nodes), np.stack([z.real, z.imag], -1), sigma, residual, lost, metric)


def solve_linear(ids: np.ndarray, q: Complex[np.ndarray, "m 3"], count: int) -> Complex[np.ndarray, " n"]:
    """The plain solve of spec 6.4 for triplets given as indices (m, 3) and complex cells: one SVD, rows normalised, no
    reweighting. Known up to one similarity.
    """
    z, _ = _solve_free(ids, q, np.full(len(q), np.nan), np.ones(len(q)), count)
    return z


def _component(triplets: Sequence[Triplet], anchored: bool) -> list[int]:
    """Indices of the largest set of triplets that can be put together one by one: each shares two objects with those before, or
    one where axes and extents are known (then triplets without extent stay out).
    """
    left = {i for i, t in enumerate(triplets) if not anchored or t.extent is not None}
    best: set[int] = set()
    while len(left) > len(best):
        group, placed, joining = set(), set(), {min(left)}
        while joining:
            group |= joining
            placed |= {node for i in joining for node in triplets[i].nodes}
            joining = {i for i in left - group if len(placed & set(triplets[i].nodes)) >= (1 if anchored else 2)}
        left -= group
        best = group if len(group) > len(best) else best
    return sorted(best)


def _solve_free(
    ids: np.ndarray, q: np.ndarray, extent: np.ndarray, weight: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Layout up to a similarity, and the variance of each point per squared cell."""
    coefficients = np.stack([q[:, 2] - q[:, 1], q[:, 0] - q[:, 2], q[:, 1] - q[:, 0]], axis=1)
    norm = np.linalg.norm(coefficients, axis=1)
    root = np.sqrt(weight) / np.maximum(norm, 1e-12)
    rows = np.zeros((len(q), count), dtype=complex)
    np.add.at(rows, (np.arange(len(q))[:, None], ids), coefficients * root[:, None])
    # An orthonormal basis of everything but the constant vector.
    basis = np.linalg.qr(np.concatenate([np.ones((count, 1)), np.eye(count)[:, : count - 1]], axis=1))[0][:, 1:]
    _, values, right = np.linalg.svd(rows @ basis, full_matrices=True)
    z = basis @ right[-1].conj()
    z = z - z.mean()
    scale = max(float(np.abs(z).mean()), 1e-12)
    # Information about the directions in which the layout can still move: all but the solution itself, its scale and turn.
    information = np.zeros(count - 1)
    information[: len(values)] = values**2
    vectors = basis @ right.conj().T
    variance = (np.abs(vectors[:, :-1]) ** 2 / np.maximum(information[:-1], 1e-12)).sum(1)
    return z / scale, variance


def _solve_metric(
    ids: np.ndarray, q: np.ndarray, extent: np.ndarray, weight: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Layout with shared axes and known extents: differences of points are differences of cells in metres. Centred."""
    one, other = ids[:, [0, 0, 1]].ravel(), ids[:, [1, 2, 2]].ravel()
    offset = ((q[:, [1, 2, 2]] - q[:, [0, 0, 1]]) * extent[:, None] / GRID).ravel()
    root = np.sqrt(np.repeat(weight, 3))
    rows = np.zeros((len(offset) + 1, count))
    at = np.arange(len(offset))
    rows[at, other] = root
    rows[at, one] = -root
    rows[-1] = math.sqrt(weight.max())  # the mean is 0
    inverse = np.linalg.pinv(rows)
    z = inverse @ np.append(offset * root, 0)
    return z, (inverse**2).sum(1)


def _residual(z: np.ndarray, ids: np.ndarray, q: np.ndarray, extent: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """How far each triplet is off, in cells, and how many units of the layout its cell is.

    The triplet is laid over the layout: by a similarity, or by a shift alone where its axes and extent are known.
    """
    placed, own = z[ids], q - q.mean(1, keepdims=True)
    placed = placed - placed.mean(1, keepdims=True)
    if extent is None:
        fit = (placed * own.conj()).sum(1) / np.maximum((np.abs(own) ** 2).sum(1), 1e-12)
        cell = np.abs(fit)
        off = placed - fit[:, None] * own
    else:
        cell = extent / GRID
        off = placed - cell[:, None] * own
    return np.sqrt((np.abs(off) ** 2).mean(1)) / np.maximum(cell, 1e-12), cell


def _oriented(z: np.ndarray, ids: np.ndarray, q: np.ndarray, extent: np.ndarray) -> tuple[np.ndarray, float]:
    """The layout turned so that the triplets' axes agree with it, and scaled by the extents where there are any."""
    one, other = [0, 0, 1], [1, 2, 2]
    cells, placed = q[:, other] - q[:, one], z[ids[:, other]] - z[ids[:, one]]
    turn = np.angle((cells * placed.conj()).sum())
    known = np.isfinite(extent)
    unit = 1.0
    if known.sum() * 2 > len(extent):
        long = np.abs(cells[known]) > 0
        ratio = (extent[known, None] / GRID * np.abs(cells[known]))[long] / np.maximum(np.abs(placed[known]), 1e-12)[long]
        unit = float(np.median(ratio))
    return z * unit * np.exp(1j * turn), unit
