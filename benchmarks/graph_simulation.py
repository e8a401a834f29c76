"""Why local triplets, and why a joint solve: the two simulations of SSR's specification, run again.

    python benchmarks/graph_simulation.py --rooms 200

Random 6 x 5 m rooms with 20 objects; to every written cell of a 10 x 10 grid comes Gaussian noise of sigma cells, rounded and
kept on the grid. Beside each number, its standard error over rooms and in brackets what the specification reports.

directions   accuracy of the quadrant in which a third object lies (front-left, ...), over triples that VSI-Bench's filters pass
layouts      metres of error (RMSE after similarity alignment) of the whole layout
readings     (--readings) the same for placing objects one after the other, of which the specification does not say how: anchors
             that are cheapest by its cost, make the smallest triangle, or are random; placed by similarity to the two anchors, by
             the triplet's axes with the scale of the anchors, or by its axes and extent
"""

import argparse
from collections.abc import Callable
from itertools import combinations

import numpy as np

from allocentric.geometry.boxes import Box3D, box_distance, boxes_to_array, footprint_corners
from allocentric.graph.metrics import direction_signs, position_rmse
from allocentric.graph.solve import solve_layout, solve_linear
from allocentric.graph.triplets import GRID, Triplet, chain, local_triplet

ROOM, OBJECTS, SMALL = (6.0, 5.0), 20, 2.5
NODES = (("a", 1), ("b", 1), ("c", 1))
SPEC_DIRECTIONS = {  # sigma: global, local, ego, small triples global, small triples local
    0.0: (97.0, 99.1, 97.7, 94.2, 100.0),
    0.5: (90.5, 95.6, 93.8, 77.3, 97.1),
    1.0: (78.8, 88.0, 86.7, 63.1, 91.7),
    1.5: (68.5, 80.3, 79.6, 53.1, 84.0),
    2.0: (58.1, 74.3, 71.1, 43.4, 75.4),
}
SPEC_LAYOUTS = {  # for sigma 0, 0.5, 1
    "one global grid": (0.23, 0.42, 0.65),
    "sequential, good anchors": (0.38, 0.65, 1.00),
    "sequential, random anchors": (0.74, 1.47, 1.98),
    "sequential, 6 averaged": (0.19, 0.26, 0.44),
    "joint, 2 per object": (0.12, 0.22, 0.41),
    "joint, 3 per object": (0.09, 0.17, 0.31),
    "joint, 6 per object": (0.06, 0.12, 0.20),
    "joint, 12 per object": (0.05, 0.09, 0.15),
}


def room(rng: np.random.Generator) -> np.ndarray:
    """Boxes (20, 7) that do not touch, 0.2 to 0.9 m wide, along the walls' axes."""
    rows: list[np.ndarray] = []
    while len(rows) < OBJECTS:
        size = rng.uniform(0.2, 0.9, 2)
        center = size / 2 + rng.random(2) * (np.array(ROOM) - size)
        row = boxes_to_array([Box3D((*center.tolist(), 0.4), (*size.tolist(), 0.8))])
        if not rows or box_distance(np.repeat(row, len(rows), 0), np.concatenate(rows)).min() > 0.05:
            rows.append(row)
    return np.concatenate(rows)


def asked_triples(rows: np.ndarray, rng: np.random.Generator, count: int = 60) -> list[tuple[int, int, int]]:
    """Triples (standing, facing, query) that the benchmark would ask about: boxes 0.3 to 5 m apart, the query's centre at least
    10 degrees from a boundary between two quadrants and at most two of its corners in another one.
    """
    points, corners, found = rows[:, :2], footprint_corners(rows), []
    for _ in range(50 * count):
        a, b, c = (int(i) for i in rng.choice(OBJECTS, 3, replace=False))
        gaps = box_distance(rows[[a, a, b]], rows[[b, c, c]])
        angle = _angle(points[c] - points[a]) - _angle(points[b] - points[a])
        margin = np.degrees(np.abs(np.angle(np.exp(1j * (angle - np.pi / 2 * np.arange(4))))).min())
        quadrant = direction_signs(points[[a, b, c]])
        same = [(direction_signs(np.array([points[a], points[b], p])) == quadrant).all() for p in corners[c]]
        if gaps.min() >= 0.3 and gaps.max() <= 5 and margin >= 10 and sum(same) >= 2:
            found.append((a, b, c))
        if len(found) == count:
            break
    return found


def noisy(cells: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.rint(cells + rng.normal(0, sigma, cells.shape)), 0, GRID - 1) if sigma else cells


def global_cells(points: np.ndarray) -> np.ndarray:
    low = points.min(0)
    return np.clip(np.floor(GRID * (points - low) / (points.max(0) - low).max()), 0, GRID - 1)


def directions(rooms: int) -> None:
    """Table 4.3."""
    heads = ("global grid", "local", "local, ego", "small: global", "small: local")
    print(f"\naccuracy of directions, {rooms} rooms\n{'sigma':<8}" + "".join(f"{h:>24}" for h in heads))
    for sigma, spec in SPEC_DIRECTIONS.items():
        rng = np.random.default_rng(0)
        scores: list[list[float]] = []
        for _ in range(rooms):
            rows = room(rng)
            points = rows[:, :2]
            written = noisy(global_cells(points), sigma, rng)
            hits: list[list[float]] = [[] for _ in heads]
            for triple in asked_triples(rows, rng):
                some = points[list(triple)]
                truth = direction_signs(some)

                def right(cells: np.ndarray, truth: np.ndarray = truth) -> float:
                    return float((direction_signs(cells) == truth).all())

                local = right(noisy(local_triplet(NODES, some).points, sigma, rng))
                ego = right(noisy(local_triplet(NODES, some, "ego").points, sigma, rng))
                small = max(np.linalg.norm(some - np.roll(some, 1, 0), axis=1)) < SMALL
                everywhere = right(written[list(triple)])
                for column, value in zip(hits, (everywhere, local, ego), strict=False):
                    column.append(value)
                if small:
                    hits[3].append(everywhere)
                    hits[4].append(local)
            scores.append([100 * float(np.mean(column)) if column else np.nan for column in hits])
        print(f"{sigma:<8g}" + _cells(np.array(scores), spec, 1), flush=True)


def layouts(rooms: int) -> None:
    """Table 6.4, and the robust solver beside the plain one."""
    print(f"\nRMSE of layouts in metres, {rooms} rooms\n{'':<28}" + "".join(f"{f'sigma {s:g}':>24}" for s in (0, 0.5, 1.0)))
    found: dict[str, list[np.ndarray]] = {}
    for sigma in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(0)
        errors: dict[str, list[float]] = {}
        for _ in range(rooms):
            points = room(rng)[:, :2]
            errors.setdefault("one global grid", []).append(position_rmse(noisy(global_cells(points), sigma, rng), points))
            for name, k, good in (("good anchors", 1, True), ("random anchors", 1, False), ("6 averaged", 6, True)):
                placed = sequential(points, k, good, sigma, rng)
                errors.setdefault(f"sequential, {name}", []).append(position_rmse(placed, points))
            for k in (2, 3, 6, 12):
                triples = chain(points, redundancy=k)
                local = [local_triplet(tuple(("o", i + 1) for i in t), points[list(t)]) for t in triples]
                cells = noisy(np.array([t.points for t in local]), sigma, rng)
                z = solve_linear(np.array(triples), cells @ np.array([1, 1j]), OBJECTS)
                errors.setdefault(f"joint, {k} per object", []).append(position_rmse(np.stack([z.real, z.imag], -1), points))
                if k == 3:
                    whole = np.clip(np.rint(cells), 0, GRID - 1).astype(int)
                    written = [
                        Triplet(t.nodes, tuple(map(tuple, q.tolist())), t.extent) for t, q in zip(local, whole, strict=True)
                    ]
                    layout = solve_layout(written)
                    order = [layout.nodes.index(("o", i + 1)) for i in range(OBJECTS)]
                    errors.setdefault("joint, 3, axes and extents", []).append(position_rmse(layout.points[order], points, False))
        for name, values in errors.items():
            found.setdefault(name, []).append(np.array(values))
    for name, columns in found.items():
        print(f"{name:<28}" + _cells(np.stack(columns, -1), SPEC_LAYOUTS.get(name), 2))


def sequential(points: np.ndarray, k: int, good: bool, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Each object from `k` pairs of placed ones, averaged; no going back. Anchors as the chain chooses them, or at random."""
    triples = chain(points, redundancy=k)
    z = np.zeros(OBJECTS, dtype=complex)
    seed, order = triples[0], list(dict.fromkeys(i for t in triples for i in t))
    cells = noisy(local_triplet(NODES, points[list(seed)]).points, sigma, rng) @ np.array([1, 1j])
    z[list(seed)] = cells
    for place, c in enumerate(order[3:], start=3):
        pairs = [t[:2] for t in triples[1:] if t[2] == c]
        if not good:
            pairs = [tuple(rng.choice(order[:place], 2, replace=False)) for _ in range(k)]
        guesses = []
        for a, b in pairs:
            q = noisy(local_triplet(NODES, points[[a, b, c]]).points, sigma, rng) @ np.array([1, 1j])
            if abs(q[1] - q[0]) > 0.5:
                guesses.append(z[a] + (q[2] - q[0]) / (q[1] - q[0]) * (z[b] - z[a]))
        z[c] = np.mean(guesses) if guesses else z[pairs[0][0]]
    return np.stack([z.real, z.imag], -1)


ANCHORS = {  # cost of a pair of anchors by the longest side of the triangle and the distance of the two
    "cheapest": lambda longest, apart, rng: longest / apart + 0.15 * longest,
    "smallest": lambda longest, apart, rng: longest,
    "random": lambda longest, apart, rng: rng.random(len(longest)),
}
PLACED = ("similarity", "axes, scale of anchors", "axes and extent")


def readings(rooms: int) -> None:
    """Sequential rows of table 6.4 under other readings: centres anywhere on the floor, objects in order, seed of the first six."""
    heads = "".join(f"{f'sigma {s:g}':>18}" for s in (0, 0.5, 1.0))
    print(f"\nRMSE in metres of sequential placement, {rooms} rooms\n{'':<44}{heads}")
    found: dict[tuple[str, str, int], list[list[float]]] = {}
    for sigma in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(0)
        errors: dict[tuple[str, str, int], list[float]] = {}
        for _ in range(rooms):
            points = rng.random((OBJECTS, 2)) * ROOM
            for anchors, cost in ANCHORS.items():
                for k in (1, 6):
                    triples = _in_order(points, k, cost, rng)
                    local = [local_triplet(NODES, points[list(t)]).points for t in triples]
                    q = noisy(np.array(local), sigma, rng) @ np.array([1, 1j])
                    extent = np.array([np.ptp(points[list(t)], axis=0).max() for t in triples])
                    for how in PLACED:
                        errors.setdefault((anchors, how, k), []).append(position_rmse(_placed(triples, q, extent, how), points))
        for key, values in errors.items():
            found.setdefault(key, []).append(values)
    for name in (name for name in SPEC_LAYOUTS if name.startswith("sequential")):
        print(f"{f'specification: {name}':<44}" + "".join(f"{value:>18.2f}" for value in SPEC_LAYOUTS[name]))
    for (anchors, how, k), columns in found.items():
        texts = [f"{np.mean(c):.2f} +- {np.std(c) / rooms**0.5:.2f}" for c in columns]
        print(f"{f'{anchors}, {how}, {k} averaged':<44}" + "".join(f"{text:>18}" for text in texts))


def _in_order(points: np.ndarray, k: int, cost: Callable, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """The best-shaped triple of the first six objects, then each other object with its `k` cheapest pairs of earlier ones."""
    side = np.linalg.norm(points[:, None] - points[None], axis=-1)

    def shape(triple: tuple[int, ...]) -> float:
        sides = [side[a, b] for a, b in combinations(triple, 2)]
        return min(sides) / max(sides)

    seed = max(combinations(range(6), 3), key=shape)
    triples, placed = [seed], list(seed)
    for c in (i for i in range(len(points)) if i not in seed):
        i, j = np.triu_indices(len(placed), 1)
        a, b = np.array(placed)[i], np.array(placed)[j]
        longest = np.maximum(np.maximum(side[a, b], side[a, c]), side[b, c])
        triples += [(int(a[x]), int(b[x]), c) for x in np.argsort(cost(longest, side[a, b], rng), kind="stable")[:k]]
        placed.append(c)
    return triples


def _placed(triples: list[tuple[int, int, int]], q: np.ndarray, extent: np.ndarray, how: str) -> np.ndarray:
    """Objects one after the other from complex cells (m, 3) and extents in metres, means where there are several triples."""
    z = np.zeros(OBJECTS, dtype=complex)
    z[list(triples[0])] = q[0] * (extent[0] / GRID if how == "axes and extent" else 1)
    guesses: dict[int, list[complex]] = {}
    for (a, b, c), (qa, qb, qc), metres in zip(triples[1:], q[1:], extent[1:], strict=True):
        at = guesses.setdefault(c, [])
        if how == "axes and extent":
            at.append((z[a] + z[b]) / 2 + (qc - (qa + qb) / 2) * metres / GRID)
        elif abs(qb - qa) > 0:
            turn = (z[b] - z[a]) / (qb - qa)
            at.append(z[a] + (qc - qa) * (turn if how == "similarity" else abs(turn)))
        z[c] = np.mean(at) if at else z[a]
    return np.stack([z.real, z.imag], -1)


def _cells(scores: np.ndarray, spec: tuple[float, ...] | None, digits: int) -> str:
    mean, error = np.nanmean(scores, 0), np.nanstd(scores, 0) / np.sqrt(np.maximum((~np.isnan(scores)).sum(0), 1))
    reported = [f" [{value:g}]" for value in spec] if spec else [""] * len(mean)
    texts = [f"{m:.{digits}f} +- {e:.{digits + 1}f}{r}" for m, e, r in zip(mean, error, reported, strict=True)]
    return "".join(f"{text:>24}" for text in texts)


def _angle(vector: np.ndarray) -> float:
    return float(np.arctan2(vector[1], vector[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", type=int, default=200)
    parser.add_argument("--readings", action="store_true", help="only the readings of sequential placement")
    arguments = parser.parse_args()
    if arguments.readings:
        readings(arguments.rooms)
        return
    directions(arguments.rooms)
    layouts(arguments.rooms)


if __name__ == "__main__":
    main()
