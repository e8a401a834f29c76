"""How good is a map? Per triplet, per map, and per box (spec 4.5, 7.4)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array, footprint_corners
from allocentric.graph.solve import Layout
from allocentric.graph.triplets import GRID, Node, Triplet

MATCHING_ROUNDS = 10  # of assigning and aligning, at most


def align(points: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"], scale: bool = True) -> Float[np.ndarray, "n 2"]:
    """`points` moved onto `target` by the similarity that leaves least squares (without `scale`, the rigid motion)."""
    return _aligned(points, points, target, scale)


def _aligned(
    moved: Float[np.ndarray, "m 2"], points: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"], scale: bool = True
) -> Float[np.ndarray, "m 2"]:
    """`moved` as the alignment of `points` with `target` moves them."""
    z, t = points @ np.array([1, 1j]), target @ np.array([1, 1j])
    middle = z.mean()
    fit = (t * (z - middle).conj()).sum() / max(float((np.abs(z - middle) ** 2).sum()), 1e-12)
    if not scale:
        fit = fit / max(abs(fit), 1e-12)
    turned = fit * (moved @ np.array([1, 1j]) - middle) + t.mean()
    return np.stack([turned.real, turned.imag], axis=-1)


def matched_places(layout: Layout, nodes: Sequence[Node], points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Where a layout has each true object; NaN where it has none.

    Objects go together by label. Which of several chairs is chair 1 is no part of a map: they are matched so that, after
    alignment, squared distances are least (assignment and alignment in turns, from the numbers they carry).
    """
    written = {label: [i for i, node in enumerate(layout.nodes) if node[0] == label] for label, _ in layout.nodes}
    true = {label: [i for i, node in enumerate(nodes) if node[0] == label] for label in written}
    pairs = {i: layout.nodes.index(node) for i, node in enumerate(nodes) if node in layout.nodes}
    for _ in range(MATCHING_ROUNDS):
        if len(pairs) < 2:
            break
        moved = _aligned(layout.points, layout.points[list(pairs.values())], points[list(pairs)])
        better = {}
        for label, some in true.items():
            square = ((points[some][:, None] - moved[written[label]][None]) ** 2).sum(-1)
            better |= {some[row]: written[label][column] for row, column in zip(*linear_sum_assignment(square), strict=True)}
        if better == pairs:
            break
        pairs = better
    places = np.full((len(nodes), 2), np.nan)
    places[list(pairs)] = layout.points[list(pairs.values())]
    return places


def position_rmse(points: Float[np.ndarray, "n 2"], target: Float[np.ndarray, "n 2"], scale: bool = True) -> float:
    """Root mean squared distance after alignment, in the unit of `target`."""
    return float(np.sqrt(((align(points, target, scale) - target) ** 2).sum(1).mean()))


def direction_signs(points: Float[np.ndarray, "... 3 2"]) -> Float[np.ndarray, "... 2"]:
    """Signs of cross and dot product for one at the first point who faces the second and looks for the third: (1, .) is left,
    (., -1) is behind.
    """
    v, u = points[..., 1, :] - points[..., 0, :], points[..., 2, :] - points[..., 0, :]
    cross = v[..., 0] * u[..., 1] - v[..., 1] * u[..., 0]
    return np.sign(np.stack([cross, (v * u).sum(-1)], axis=-1))


def direction_agreement(written: Float[np.ndarray, "m 3 2"], true: Float[np.ndarray, "m 3 2"]) -> float:
    """Share of triplets with the same quadrant; NaN when there are none."""
    if len(true) == 0:
        return float("nan")
    return float((direction_signs(written) == direction_signs(true)).all(-1).mean())


def ratio_agreement(written: Float[np.ndarray, "m 3 2"], true: Float[np.ndarray, "m 3 2"]) -> float:
    """Share of triplets whose three sides have the same order of length; NaN when there are none."""
    if len(true) == 0:
        return float("nan")

    def order(points: np.ndarray) -> np.ndarray:
        return np.linalg.norm(points - np.roll(points, 1, axis=-2), axis=-1).argsort(-1)

    return float((order(written) == order(true)).all(-1).mean())


def map_quality(
    triplets: Sequence[Triplet],
    layout: Layout,
    nodes: Sequence[Node],
    points: Float[np.ndarray, "n 2"],
    asked: Sequence[tuple[int, int, int]],
    n_lines: int | None = None,
) -> dict[str, float]:
    """A written map against the truth.

    nodes, points   true objects and their places in metres.
    asked           triples of indices in `nodes`, ordered as (standing, facing, query), to compare directions on. Triples that
                    the layout does not hold count as wrong in `direction` and are left out of `direction_placed`.
    n_lines         lines the model wrote, for `validity`; default: as many as there are triplets.

    object_precision, object_recall, object_f1    of named objects, matched by label: a label counts as often as it was named,
                                                  at most as often as it is there.
    position_rmse                                 metres after similarity alignment of objects in both (`matched_places`); NaN
                                                  below 3.
    spacer                                        map score as in SpaceR, on a common 10 x 10 grid.
    """
    true, named = list(nodes), list(dict.fromkeys(node for t in triplets for node in t.nodes))
    labels = {label for label, _ in true}
    count = {label: sum(n == label for n, _ in true) for label in labels}
    hits = sum(min(count[label], sum(n == label for n, _ in named)) for label in labels)
    precision, recall = hits / max(len(named), 1), hits / max(len(true), 1)
    placed = matched_places(layout, true, points)
    both = np.flatnonzero(np.isfinite(placed).all(1)).tolist()
    quality = {
        "object_precision": precision,
        "object_recall": recall,
        "object_f1": 2 * precision * recall / max(precision + recall, 1e-12),
        "validity": len(triplets) / max(n_lines if n_lines is not None else len(triplets), 1),
        "position_rmse": float("nan"),
    }
    if len(both) >= 3:
        quality["position_rmse"] = position_rmse(placed[both], points[both])
    held = [triple for triple in asked if set(triple) <= set(both)]
    asked_of = np.array(held, dtype=int).reshape(-1, 3)
    solved, truth = placed[asked_of], points[asked_of]
    agree = direction_agreement(solved, truth)
    quality["direction_placed"] = agree
    quality["direction"] = agree * len(held) / len(asked) if held else (0.0 if asked else float("nan"))
    quality["ratio"] = ratio_agreement(solved, truth)
    if len(both) >= 2:
        moved = align(placed[both], points[both])
        quality["spacer"] = spacer_score([true[i][0] for i in both], moved, [label for label, _ in true], points)
    else:
        quality["spacer"] = 0.0
    return quality


def spacer_score(
    labels: Sequence[str], points: Float[np.ndarray, "n 2"], true_labels: Sequence[str], true_points: Float[np.ndarray, "m 2"]
) -> float:
    """Map score of SpaceR: per label, greedy matching worth 1 - d / (10 sqrt 2) in cells of a 10 x 10 grid over the true points,
    divided by the larger of the two counts; labels weighted by their true counts.
    """
    if len(true_labels) == 0:
        return 0.0
    low = true_points.min(0)
    cell = max(float((true_points.max(0) - low).max()), 1e-9) / GRID
    total = 0.0
    for label in sorted(set(true_labels)):
        written = points[[i for i, name in enumerate(labels) if name == label]]
        true = true_points[[i for i, name in enumerate(true_labels) if name == label]]
        worth = 1 - np.linalg.norm(written[:, None] - true[None], axis=-1) / cell / (GRID * np.sqrt(2))
        worth, matched = np.maximum(worth, 0), 0.0
        for _ in range(min(worth.shape)):
            i, j = np.unravel_index(worth.argmax(), worth.shape)
            matched += float(worth[i, j])
            worth = np.delete(np.delete(worth, i, 0), j, 1)
        total += len(true) * matched / max(len(written), len(true))
    return total / len(true_labels)


# --- Boxes (spec 7.4) ---


def grounding_quality(found: Sequence[Box3D], true: Sequence[Box3D]) -> dict[str, float]:
    """Boxes found for phrases against the true ones, pair by pair.

    acc_25, acc_50            share with an overlap (IoU) of at least 0.25 and 0.5, boxes as they are turned,
    aligned_25, aligned_50    and of the boxes along the world's axes around them: what most published numbers are.
    center_error              median distance of the centres in metres.
    size_mra                  mean relative accuracy of the sorted sides: thresholds 0.5 to 0.95, as for numbers in VSI-Bench.
    """
    if len(found) != len(true) or not true:
        raise ValueError(f"boxes: expected as many found as true and at least one, found {len(found)} and {len(true)}")
    a, b = boxes_to_array(found), boxes_to_array(true)
    iou, aligned = box_iou(a, b), box_iou(_around(a), _around(b))
    sides, true_sides = np.sort(a[:, 3:6], axis=1), np.sort(b[:, 3:6], axis=1)
    off = np.abs(sides - true_sides) / np.maximum(true_sides, 1e-9)
    return {
        "acc_25": float((iou >= 0.25).mean()),
        "acc_50": float((iou >= 0.5).mean()),
        "aligned_25": float((aligned >= 0.25).mean()),
        "aligned_50": float((aligned >= 0.5).mean()),
        "center_error": float(np.median(np.linalg.norm(a[:, :3] - b[:, :3], axis=1))),
        "size_mra": float((off[..., None] <= 1 - np.linspace(0.5, 0.95, 10)).mean()),
    }


def object_f1(found: Sequence[Box3D], true: Sequence[Box3D], threshold: float = 0.25) -> tuple[float, float, float]:
    """Precision, recall and F1 of labelled boxes: one to one, best overlap first, equal labels, IoU of at least `threshold`."""
    hits = 0
    for label in {box.label for box in true} & {box.label for box in found}:
        some, others = (boxes_to_array(box for box in boxes if box.label == label) for boxes in (found, true))
        pairs = np.repeat(some, len(others), axis=0), np.tile(others, (len(some), 1))
        iou = box_iou(*pairs).reshape(len(some), len(others))
        while iou.size and iou.max() >= threshold:
            i, j = np.unravel_index(iou.argmax(), iou.shape)
            iou = np.delete(np.delete(iou, i, 0), j, 1)
            hits += 1
    precision, recall = hits / max(len(found), 1), hits / max(len(true), 1)
    return precision, recall, 2 * hits / max(len(found) + len(true), 1)


def _around(boxes: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, "n 7"]:
    """The box along the world's axes around each box."""
    corners = footprint_corners(boxes)
    extent = corners.max(1) - corners.min(1)
    return np.concatenate([boxes[:, :3], extent, boxes[:, 5:6], np.zeros((len(boxes), 1))], axis=1)
