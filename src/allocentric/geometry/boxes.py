"""3D boxes: `Box3D` and the functions on them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_SIGNS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])
_EDGES = np.array([[i, j] for i in range(8) for j in range(i) if np.abs(_SIGNS[i] - _SIGNS[j]).sum() == 2])


@dataclass(frozen=True)
class Box3D:
    """An upright box in world metres: centre, full side lengths along its own axes, rotation about z (up).

    `yaw` is in radians, counter-clockwise seen from above. `score` is a confidence in [0, 1] where one is known.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float = 0.0
    label: str = ""
    score: float | None = None


@dataclass(frozen=True)
class OrientedBox:
    """A box turned in any way, as scans are annotated: centre, full side lengths, and the direction of each side.

    Metres; `axes[i]` is the unit vector along the side of length `size[i]`.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    axes: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


def oriented_to_array(boxes: Iterable[OrientedBox]) -> Float[np.ndarray, "n 5 3"]:
    """Boxes as rows of centre, side lengths and the three side directions."""
    return np.array([(b.center, b.size, *b.axes) for b in boxes], dtype=np.float64).reshape(-1, 5, 3)


def as_oriented(box: Box3D) -> OrientedBox:
    """The same box with its side directions written out."""
    cos, sin = float(np.cos(box.yaw)), float(np.sin(box.yaw))
    return OrientedBox(box.center, box.size, ((cos, sin, 0.0), (-sin, cos, 0.0), (0.0, 0.0, 1.0)))


def boxes_to_array(boxes: Iterable[Box3D]) -> Float[np.ndarray, "n 7"]:
    """Boxes as rows of (x, y, z, dx, dy, dz, yaw), metres and radians."""
    return np.array([(*b.center, *b.size, b.yaw) for b in boxes], dtype=np.float64).reshape(-1, 7)


def footprint_corners(boxes: Float[np.ndarray, "*batch 7"]) -> Float[np.ndarray, "*batch 4 2"]:
    """Corners of each box seen from above, counter-clockwise, metres."""
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    across, along = np.moveaxis(signs * boxes[..., None, 3:5], -1, 0)
    cos, sin = np.cos(boxes[..., 6, None]), np.sin(boxes[..., 6, None])
    offsets = np.stack([cos * across - sin * along, sin * across + cos * along], axis=-1)
    return boxes[..., None, 0:2] + offsets


def box_corners(box: Box3D) -> Float[np.ndarray, "8 3"]:
    """Corners in metres: the lower four counter-clockwise, then the upper four."""
    flat = footprint_corners(boxes_to_array([box]))[0]
    low, high = box.center[2] - box.size[2] / 2, box.center[2] + box.size[2] / 2
    return np.concatenate([np.column_stack([flat, np.full(4, z)]) for z in (low, high)])


def box_distance(a: Float[np.ndarray, "n 7"], b: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, " n"]:
    """Exact distance in metres between the closest points of each two upright boxes; 0 when they touch or overlap.

    An upright box is a footprint times a height interval, so the squared distance is the sum of the two parts. Two disjoint
    rectangles are closest at a corner of one of them.
    """
    vertical = np.maximum(np.abs(a[..., 2] - b[..., 2]) - (a[..., 5] + b[..., 5]) / 2, 0.0)
    corner_to_box = np.minimum(_corner_to_footprint(a, b), _corner_to_footprint(b, a))
    horizontal = np.where(_footprints_overlap(a, b), 0.0, corner_to_box)
    return np.hypot(horizontal, vertical)


def oriented_corners(boxes: Float[np.ndarray, "*batch 5 3"]) -> Float[np.ndarray, "*batch 8 3"]:
    """Corners of boxes turned in any way, metres."""
    return boxes[..., 0:1, :] + (_SIGNS / 2 * boxes[..., 1:2, :]) @ boxes[..., 2:5, :]


def oriented_distance(a: Float[np.ndarray, "n 5 3"], b: Float[np.ndarray, "n 5 3"]) -> Float[np.ndarray, " n"]:
    """Exact distance in metres between the closest points of each two boxes turned in any way; 0 when they touch or overlap.

    Two disjoint boxes are closest at a corner of one of them, or at an edge of each.
    """
    corners = oriented_corners(a), oriented_corners(b)
    to_box = np.minimum(points_to_box(corners[0], b).min(-1), points_to_box(corners[1], a).min(-1))
    (p, u), (q, v) = ((c[:, _EDGES[:, 0]], c[:, _EDGES[:, 1]] - c[:, _EDGES[:, 0]]) for c in corners)
    between_edges = _segment_distance(p[:, :, None], u[:, :, None], q[:, None], v[:, None]).min((-1, -2))
    return np.where(_boxes_overlap(a, b), 0.0, np.minimum(to_box, between_edges))


def points_to_box(
    points: Float[np.ndarray, "*batch k 3"], box: Float[np.ndarray, "*batch 5 3"]
) -> Float[np.ndarray, "*batch k"]:
    """Distance in metres from each point to a box turned in any way; 0 inside."""
    local = (points - box[..., 0:1, :]) @ np.swapaxes(box[..., 2:5, :], -1, -2)
    return np.linalg.norm(np.maximum(np.abs(local) - box[..., 1:2, :] / 2, 0.0), axis=-1)


def _segment_distance(p: np.ndarray, u: np.ndarray, q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance between the segments from p to p + u and from q to q + v (Ericson, Real-Time Collision Detection, 5.1.9)."""
    offset = p - q
    uu, vv, uv, uo, vo = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1), (u * offset).sum(-1), (v * offset).sum(-1)
    across = uu * vv - uv * uv  # 0 for parallel segments: any point of the first will do, ends are corners and looked at elsewhere
    s = np.clip(_ratio(uv * vo - uo * vv, across), 0.0, 1.0)
    t = np.clip(_ratio(uv * s + vo, vv), 0.0, 1.0)
    s = np.clip(_ratio(uv * t - uo, uu), 0.0, 1.0)
    return np.linalg.norm(offset + s[..., None] * u - t[..., None] * v, axis=-1)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 1e-12)


def _boxes_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether boxes share a point: none of the 15 directions of sides and of their cross products separates them."""
    offset, (ax, bx) = b[:, 0] - a[:, 0], (a[:, 2:5], b[:, 2:5])
    directions = np.concatenate([ax, bx, np.cross(ax[:, :, None], bx[:, None]).reshape(-1, 9, 3)], axis=1)
    reach = sum((np.abs(directions @ np.swapaxes(box[:, 2:5], 1, 2)) * box[:, None, 1] / 2).sum(-1) for box in (a, b))
    return (np.abs((directions @ offset[:, :, None])[..., 0]) <= reach + 1e-12).all(-1)


def box_iou(a: Float[np.ndarray, "n 7"], b: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, " n"]:
    """Exact intersection over union of the volumes of each two upright boxes, 0 to 1; 0 where neither has a volume.

    Negative sides count as positive ones.
    """
    a, b = (np.concatenate([boxes[:, :3], np.abs(boxes[:, 3:6]), boxes[:, 6:]], axis=1) for boxes in (a, b))
    top = np.minimum(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = np.maximum(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    shared = _footprint_intersection(a, b) * np.maximum(top - bottom, 0.0)
    union = a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _footprint_intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Area that two footprints share: the corners of `a`, in the frame of `b`, cut off at the four sides of `b`."""
    polygon = into_footprint_frame(footprint_corners(a), b[:, None])
    for axis in (0, 1):
        for side in (1.0, -1.0):
            polygon = side * _cut(side * polygon, axis, b[:, None, 3 + axis] / 2)
    x, y = np.moveaxis(polygon, -1, 0)
    return np.abs((x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(1)) / 2


def _cut(polygon: np.ndarray, axis: int, limit: np.ndarray) -> np.ndarray:
    """Polygons (n, k, 2) with (n, 2k, 2) corners: what lies beyond `limit` is pushed back onto that line, where it has no area."""
    following = np.roll(polygon, -1, axis=1)
    beyond, beyond_following = polygon[..., axis] - limit, following[..., axis] - limit
    crosses = beyond * beyond_following < 0
    along = np.divide(beyond, beyond - beyond_following, out=np.zeros_like(beyond), where=crosses)
    crossings = polygon + along[..., None] * (following - polygon)
    cut = np.stack([polygon, crossings], axis=2).reshape(len(polygon), 2 * polygon.shape[1], 2)
    cut[..., axis] = np.minimum(cut[..., axis], limit)
    return cut


def _corner_to_footprint(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Least distance from a corner of `a` to the footprint of `b`; 0 when a corner lies inside."""
    outside = np.maximum(np.abs(into_footprint_frame(footprint_corners(a), b[..., None, :])) - b[..., None, 3:5] / 2, 0.0)
    return np.hypot(outside[..., 0], outside[..., 1]).min(-1)


def into_footprint_frame(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Points (..., 2) seen from above, in the frame of boxes (..., 7): origin at the centre, axes along the sides."""
    offset = points - boxes[..., 0:2]
    cos, sin = np.cos(boxes[..., 6]), np.sin(boxes[..., 6])
    return np.stack([cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]], axis=-1)


def _footprints_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether two rectangles share a point: no side direction of either separates them."""
    offset = b[..., 0:2] - a[..., 0:2]
    cos, sin = np.abs(np.cos(a[..., 6] - b[..., 6])), np.abs(np.sin(a[..., 6] - b[..., 6]))
    overlap = True
    for one, other in ((a, b), (b, a)):
        c, s = np.cos(one[..., 6]), np.sin(one[..., 6])
        along = np.abs(c * offset[..., 0] + s * offset[..., 1])
        across = np.abs(c * offset[..., 1] - s * offset[..., 0])
        reach_along = (one[..., 3] + cos * other[..., 3] + sin * other[..., 4]) / 2
        reach_across = (one[..., 4] + sin * other[..., 3] + cos * other[..., 4]) / 2
        overlap = overlap & (along <= reach_along) & (across <= reach_across)
    return overlap
