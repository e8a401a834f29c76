"""Floor outlines: area, and what lies inside."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import Delaunay


def polygon_area(polygon: Float[np.ndarray, "v 2"]) -> float:
    """Area of a simple polygon in its own unit squared (shoelace formula), whatever its direction."""
    x, y = np.asarray(polygon, dtype=np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def alpha_shape_area(points: Float[np.ndarray, "n 2"], alpha: float = 0.5) -> float:
    """Area covered by a cloud of floor points: its Delaunay triangles whose circumradius is at most 1 / `alpha`.

    This is how VSI-Bench measures rooms that are known as scans only. `points` and 1 / `alpha` share their unit (metres).
    """
    points = np.asarray(points, dtype=np.float64)
    if len(points) < 3:
        raise ValueError(f"alpha shape: expected at least 3 points, found {len(points)}")
    a, b, c = np.moveaxis(points[Delaunay(points).simplices], 1, 0)
    area = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    sides = [np.linalg.norm(p - q, axis=1) for p, q in ((a, b), (b, c), (c, a))]
    circumradius = np.prod(sides, axis=0) / (4 * np.maximum(area, 1e-12))
    return float(area[circumradius <= 1 / alpha].sum())


def inside_polygon(points: Float[np.ndarray, "n 2"], polygon: Float[np.ndarray, "v 2"]) -> Bool[np.ndarray, " n"]:
    """Whether each point lies inside a simple polygon (even-odd rule)."""
    x, y = points[:, :1], points[:, 1:]
    (x0, y0), (x1, y1) = np.asarray(polygon).T, np.roll(polygon, -1, axis=0).T
    spans = (y0 > y) != (y1 > y)
    crossing = x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1.0, y1 - y0)
    return ((spans & (x < crossing)).sum(1) % 2).astype(bool)


def legs_on_floor(
    start: Float[np.ndarray, "n 2"], end: Float[np.ndarray, "n 2"], floor: Sequence[Float[np.ndarray, "v 2"]]
) -> Bool[np.ndarray, " n"]:
    """Whether each straight leg stays within one of the floor polygons (its middle is inside, and it crosses no side)."""
    inside = np.zeros(len(start), dtype=bool)
    for polygon in floor:
        p, q = np.asarray(polygon, dtype=np.float64), np.roll(polygon, -1, axis=0)
        leg, side = end[:, None] - start[:, None], q - p
        ends_apart = _cross(side, start[:, None] - p) * _cross(side, end[:, None] - p) < 0
        corners_apart = _cross(leg, p - start[:, None]) * _cross(leg, q - start[:, None]) < 0
        inside |= inside_polygon((start + end) / 2, p) & ~(ends_apart & corners_apart).any(1)
    return inside


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
