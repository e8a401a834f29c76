"""From local triplets to one layout (spec 6.4): a joint, robust, linear solve.

Points are complex numbers z. A triplet with cells q gives one equation that knows nothing of its own origin, turn and scale,

    (q_b - q_a) z_c + (q_a - q_c) z_b + (q_c - q_b) z_a = 0,

and the smallest right-singular vector of all of them, other than the constant one, is the layout up to one similarity. Triplets
that share their axes (the default frame) are not turned: places are cells times one number per triplet, and a shift. With extents
("r=") that number is known, which fixes scale and heading; without, it is solved for.
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
TINY = 1e-12


@dataclass(frozen=True)
class Layout:
    """A solved map.

    nodes      (label, instance) of what could be placed.
    points     (x, y) of each; metres when `metric`, otherwise the mean distance between points is 1.
    sigma      standard deviation of each point, in the unit of the points.
    residual   of each triplet given, in cells; NaN for those that hang in the air.
    unplaced   nodes that share too little with the others.
    metric     whether extents fixed the scale: most triplets have one.
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
              layout's heading is arbitrary (that which the triplets' axes agree with best).
    weights   of the triplets, positive; 1 unless given.
    robust    give less weight to triplets that disagree with the rest (Huber on residuals in cells), and next to none to extents
              that do.
    """
    if axes not in ("shared", "free"):
        raise ValueError(f'axes: expected "shared" or "free", found {axes!r}')
    triplets = list(triplets)
    weight = np.ones(len(triplets)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(weight) != len(triplets):
        raise ValueError(f"weights: expected one for each of {len(triplets)} triplets, found {len(weight)}")
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"weights: expected positive numbers, found {weight.tolist()}")
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
    written = extent / GRID if anchored else np.full(len(chosen), np.nan)
    known = np.isfinite(written)
    # An error of one cell is worth as many metres as the cell has. Where the extents tell, small grids count more (none more than
    # the typical one, until the layout bears it out); guessed from the layout itself, that would let it shrink into its own
    # best-fitting corner.
    typical = float(np.median(written[known])) if anchored else 1.0
    cell = np.where(known, np.maximum(written, typical) if robust else written, typical)
    factor, believed = np.ones(len(chosen)), known.astype(float)
    for _ in range(ROUNDS if robust else 1):
        share = weight[used] * factor / cell**2
        if axes == "free":
            z, variance = _solve_free(ids, q, share, len(nodes))
        else:
            z, variance = _solve_shared(ids, q, written, share, believed, len(nodes))
        off, fitted, contradicted = _residual(z, ids, q, written, believed, axes)
        if robust:
            factor = 1 / np.maximum(off / HUBER, 1.0)
            believed = np.where(known, 1 / (1 + (contradicted / HUBER) ** 4), 0.0)
            cell = np.maximum(np.where(known, written, typical), fitted) if anchored else cell
    unit = 1.0
    if not anchored:
        z, unit = _oriented(z, ids, q, extent)
    # Laying a triplet over the layout uses up 2 of its 6 coordinates, one more when it may be scaled, one when it may be turned.
    left = 4 - (believed < 0.5) - (axes == "free")
    noise = np.average(3 * off**2 / left, weights=factor) + ROUNDING
    one_cell = 1.0 if anchored else unit * math.sqrt(float(np.mean(fitted**2)))
    sigma = one_cell * np.sqrt(np.maximum(variance, 0) * noise)
    residual[used] = off
    return Layout(tuple(nodes), np.stack([z.real, z.imag], -1), sigma, residual, lost, metric)


def solve_linear(ids: np.ndarray, q: Complex[np.ndarray, "m 3"], count: int) -> Complex[np.ndarray, " n"]:
    """The plain solve of spec 6.4 for triplets given as indices (m, 3) and complex cells: one SVD, rows normalised, no
    reweighting. Known up to one similarity.
    """
    z, _ = _solve_free(ids, q, np.ones(len(q)), count)
    return z


def _component(triplets: Sequence[Triplet], anchored: bool) -> list[int]:
    """Indices of the largest set of triplets that can be put together one by one.

    With axes and extent known (`anchored`) a triplet has to share one object with those before; without, two in different cells,
    or nothing tells its scale. One whose objects are all in one cell, of unknown size, says nothing.
    """
    known = [anchored and t.extent is not None for t in triplets]
    left = {i for i, t in enumerate(triplets) if known[i] or len(set(t.cells)) > 1}

    def joins(i: int, placed: set[Node]) -> bool:
        shared = {cell for node, cell in zip(triplets[i].nodes, triplets[i].cells, strict=True) if node in placed}
        return len(shared) >= (1 if known[i] else 2)

    best: set[int] = set()
    while seeds := {i for i in left if known[i] or not anchored}:
        group, placed, joining = set(), set(), {min(seeds)}
        while joining:
            group |= joining
            placed |= {node for i in joining for node in triplets[i].nodes}
            joining = {i for i in left - group if joins(i, placed)}
        left -= group
        best = group if len(group) > len(best) else best
    return sorted(best)


def _solve_free(ids: np.ndarray, q: np.ndarray, weight: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Layout up to a similarity, and the variance of each point per squared cell."""
    coefficients = np.stack([q[:, 2] - q[:, 1], q[:, 0] - q[:, 2], q[:, 1] - q[:, 0]], axis=1)
    root = np.sqrt(weight) / np.maximum(np.linalg.norm(coefficients, axis=1), TINY)
    rows = np.zeros((len(q), count), dtype=complex)
    np.add.at(rows, (np.arange(len(q))[:, None], ids), coefficients * root[:, None])
    return _smallest(rows, _without_constant(count))


def _solve_shared(
    ids: np.ndarray, q: np.ndarray, written: np.ndarray, weight: np.ndarray, believed: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Layout with shared axes: centred places of a triplet are its centred cells, times the written metres of a cell as far as
    they are believed (0 to 1), times any factor where not. Centred; where nothing is written, up to scale. And variances.
    """
    own = q - q.mean(1, keepdims=True)
    own = np.concatenate([own.real, own.imag], axis=1)
    along = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), TINY)
    centred = np.kron(np.eye(2), np.eye(3) - 1 / 3)
    # Errors along the triplet's own shape are errors of its extent; the rest are those of its cells.
    measured = centred - (1 - np.sqrt(believed))[:, None, None] * along[:, :, None] * along[:, None]
    measured = measured * np.sqrt(weight)[:, None, None]
    rows = np.zeros((len(q), 6, 2 * count))
    rows[np.arange(len(q))[:, None, None], np.arange(6)[:, None], np.concatenate([ids, ids + count], 1)[:, None]] = measured
    rows = rows.reshape(-1, 2 * count)
    basis = np.kron(np.eye(2), _without_constant(count))
    if not np.isfinite(written).any():
        points, variance = _smallest(rows, basis)
        points = points * np.sign(points[np.concatenate([ids, ids + count], 1)].ravel() @ own.ravel())
    else:
        wanted = (measured @ (np.nan_to_num(written)[:, None] * own)[:, :, None]).ravel()
        inverse = basis @ np.linalg.pinv(rows @ basis)
        points, variance = inverse @ wanted, (inverse**2).sum(1)
    return points[:count] + 1j * points[count:], (variance[:count] + variance[count:]) / 2


def _without_constant(count: int) -> np.ndarray:
    """An orthonormal basis of everything but the constant vector."""
    return np.linalg.qr(np.concatenate([np.ones((count, 1)), np.eye(count)[:, : count - 1]], axis=1))[0][:, 1:]


def _smallest(rows: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vector of the basis that the rows make least of, of mean length 1, and the variance of each of its entries."""
    _, values, right = np.linalg.svd(rows @ basis, full_matrices=len(rows) < basis.shape[1])
    vectors = basis @ right.conj().T
    # Information about the directions in which the layout can still move: all but the solution itself, its scale and turn.
    information = np.zeros(len(right))
    information[: len(values)] = values**2
    variance = (np.abs(vectors[:, :-1]) ** 2 / np.maximum(information[:-1], TINY)).sum(1)
    z = vectors[:, -1]
    return z / max(float(np.abs(z).mean()), TINY), variance


def _residual(
    z: np.ndarray, ids: np.ndarray, q: np.ndarray, written: np.ndarray, believed: np.ndarray, axes: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far each triplet is off, in cells, when it is laid over the layout by a shift, a scale and (with free axes) a turn; how
    many units of the layout its cell is then; and by how many cells its written extent contradicts that.
    """
    placed, own = z[ids], q - q.mean(1, keepdims=True)
    placed = placed - placed.mean(1, keepdims=True)
    fit = (placed * own.conj()).sum(1) / np.maximum((np.abs(own) ** 2).sum(1), TINY)
    if axes == "shared":
        fit = np.maximum(fit.real, 0)
    fitted = np.abs(fit)
    apart = np.nan_to_num(written - fitted) * np.sqrt((np.abs(own) ** 2).mean(1))
    cell = np.maximum(np.where(np.isfinite(written), written, 0), fitted)
    off = np.sqrt((np.abs(placed - fit[:, None] * own) ** 2).mean(1) + believed * apart**2)
    return off / np.maximum(cell, TINY), fitted, np.abs(apart) / np.maximum(cell, TINY)


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
