"""Floor outlines: area, and what lies inside."""

from collections.abc import Sequence

import numpy as np
import shapely
from jaxtyping import Bool, Float
from scipy.spatial import Delaunay, QhullError

CELL = 0.05  # metres: points of a scan that share such a cell say the same about the floor
LOW, HIGH = 0.15, 1.2  # metres above the ground: what lies in between is in the way


def polygon_area(polygon: Float[np.ndarray, "v 2"]) -> float:
    """Area of a simple polygon in its own unit squared (shoelace formula), whatever its direction."""
    x, y = np.asarray(polygon, dtype=np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def alpha_shape_area(points: Float[np.ndarray, "n 2"], alpha: float = 0.5) -> float:
    """Area covered by a cloud of floor points: its Delaunay triangles whose circumradius is at most 1 / `alpha`.

    This is how VSI-Bench measures rooms that are known as scans only. `points` and 1 / `alpha` share their unit (metres).
    """
    _, area = _alpha_triangles(points, alpha)
    return float(area.sum())


def alpha_shape(
    points: Float[np.ndarray, "n 2"], alpha: float = 0.5, smallest: float = 1.0
) -> tuple[Float[np.ndarray, "v 2"], ...]:
    """Outlines of the same shape, counter-clockwise, largest first; parts below `smallest` square units are left out.

    Holes are filled: a floor goes on under a table. `alpha_shape_area` leaves holes out, where they are as wide as 2 / `alpha`.
    """
    triangles, _ = _alpha_triangles(points, alpha)
    if not len(triangles):
        return ()
    # Sides of one triangle only are the border of the shape; rings of them enclose it and its holes.
    corners, names = np.unique(triangles.reshape(-1, 2), axis=0, return_inverse=True)
    sides = np.sort(names.reshape(-1, 3)[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    border, times = np.unique(sides, axis=0, return_counts=True)
    faces = shapely.polygonize(list(shapely.linestrings(corners[border[times == 1]])))
    parts = shapely.get_parts(shapely.union_all(shapely.get_parts(faces)))
    outlines = [np.asarray(shapely.geometry.polygon.orient(part).exterior.coords)[:-1] for part in parts]
    outlines = [o for o in outlines if polygon_area(o) >= smallest]
    return tuple(sorted(outlines, key=polygon_area, reverse=True))


def floor_points(points: Float[np.ndarray, "n 3"], cell: float = CELL) -> Float[np.ndarray, "m 2"]:
    """Points of a scan seen from above, one for each `cell` (metres) that holds any; points that are not finite are left out."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"scan: expected points (n, 3), found shape {points.shape}")
    seen = points[np.isfinite(points).all(1), :2]
    if not len(seen):
        raise ValueError("scan: expected points, found none that are finite")
    _, first = np.unique(np.floor(seen / cell).astype(np.int64), axis=0, return_index=True)
    return seen[np.sort(first)]


def _alpha_triangles(
    points: Float[np.ndarray, "n 2"], alpha: float
) -> tuple[Float[np.ndarray, "k 3 2"], Float[np.ndarray, " k"]]:
    """Delaunay triangles whose circumradius is at most 1 / `alpha`, and their areas."""
    points = np.asarray(points, dtype=np.float64)
    if len(points) < 3:
        raise ValueError(f"alpha shape: expected at least 3 points, found {len(points)}")
    if not alpha > 0:
        raise ValueError(f"alpha shape: expected alpha > 0, found {alpha}")
    try:
        triangles = points[Delaunay(points - points.mean(0)).simplices]
    except QhullError:  # all on one line
        return np.empty((0, 3, 2)), np.empty(0)
    a, b, c = np.moveaxis(triangles, 1, 0)
    area = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    sides = [np.linalg.norm(p - q, axis=1) for p, q in ((a, b), (b, c), (c, a))]
    circumradius = np.prod(sides, axis=0) / (4 * np.maximum(area, 1e-12))
    kept = (circumradius <= 1 / alpha) & (area > 0)
    return triangles[kept], area[kept]


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
