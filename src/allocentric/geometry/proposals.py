"""Boxes of things in a posed depth capture, whatever they are: what stands apart once floor, ceiling and walls are taken away.

Points of all views are counted in voxels; planes that bound the room are removed; what is left falls into connected components, at
several tolerances for gaps, and things that stand on one another are also offered one by one. No learning, no colours: flat things
on walls and floors (pictures, windows, doors, rugs) cannot be found, and things that touch are found together.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array

VOXEL = 0.05  # metres
MIN_POINTS = 2  # of a voxel that counts
PLANE = 0.09  # metres on either side of a wall that go with it
GAPS = (0, 1, 2)  # voxels by which things grow before they are joined
SIZE = (0.1, 3.2)  # metres: least and greatest length of the longest side
MIN_VOXELS = 12
SAME = 0.85  # overlap from which on two proposals are one

Voxels = Int[np.ndarray, "m 3"]


def propose(points: Float[np.ndarray, "n 3"], most: int = 100, voxel: float = VOXEL) -> list[Box3D]:
    """Up to `most` upright boxes around what stands in a room, the largest evidence first.

    points   world metres, z up; those that are not finite are left out.
    score    share of the room's remaining voxels that the box holds.
    """
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        raise ValueError("points: found none that are finite, expected measured depth")
    if voxel <= 0:
        raise ValueError(f"voxel: found {voxel}, expected a positive length in metres")
    voxels, floor = without_bounds(occupied(points, voxel), voxel)
    if not len(voxels):
        return []
    low = voxels.min(0) - 3
    grid = np.zeros(voxels.max(0) - low + 4, dtype=bool)
    grid[tuple((voxels - low).T)] = True
    found: list[tuple[int, Box3D]] = []
    for part in _parts(grid):
        box = _box((part + low) * voxel, voxel, floor * voxel)
        if SIZE[0] <= max(box.size) <= SIZE[1]:
            found.append((len(part), box))
    found.sort(key=lambda one: -one[0])
    kept = _distinct([box for _, box in found])[:most]
    return [Box3D(found[i][1].center, found[i][1].size, found[i][1].yaw, score=found[i][0] / len(voxels)) for i in kept]


def occupied(points: Float[np.ndarray, "n 3"], voxel: float = VOXEL) -> Voxels:
    """Voxels that hold at least `MIN_POINTS` points."""
    cells, counts = np.unique(np.floor(points / voxel).astype(np.int64), axis=0, return_counts=True)
    return cells[counts >= MIN_POINTS]


def without_bounds(voxels: Voxels, voxel: float = VOXEL) -> tuple[Int[np.ndarray, "left 3"], int]:
    """What is left without floor, ceiling and walls, and the layer the floor lies in.

    Floor and ceiling are the fullest layers of the lowest and highest fifth. Walls are vertical planes that much of what is seen
    lies on, where they are occupied over nearly half the height of the room.
    """
    if not len(voxels):
        return voxels, 0
    layers = voxels[:, 2] - voxels[:, 2].min()
    count = np.bincount(layers)
    fifth = max(1, len(count) // 5)
    floor = int(count[:fifth].argmax())
    top = len(count) - fifth + int(count[-fifth:].argmax())
    has_ceiling = count[top] >= 0.2 * count[floor]
    margin = max(1, round(0.06 / voxel))
    keep = layers > floor + margin
    if has_ceiling:
        keep &= layers < top - margin
    base = floor + int(voxels[:, 2].min())
    inside = voxels[keep]
    return inside[~_on_walls(inside, voxel)], base


def _on_walls(voxels: Voxels, voxel: float) -> Bool[np.ndarray, " m"]:
    """Voxels on vertical planes that are tall where they are looked at: the fullest planes first, each voxel on one at most."""
    wall, free = np.zeros((2, len(voxels)), dtype=bool)
    if not len(voxels):
        return wall
    free[:] = True
    tall = (np.ptp(voxels[:, 2]) + 1) * 0.5
    reach = PLANE / voxel
    least = (1.5 / voxel) * tall  # as much as 1.5 m of wall, half as high as the room
    places = voxels[:, :2] + 0.5
    for _ in range(24):
        best, plane = 0, None
        for degrees in range(0, 180, 3):
            normal = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
            offset = places[free] @ normal
            if not len(offset):
                return wall
            strips = np.bincount(((offset - offset.min()) / reach).astype(np.int64), minlength=2)
            pairs = strips[:-1] + strips[1:]
            if pairs.max() > best:
                best, plane = int(pairs.max()), (normal, offset.min() + reach * (int(pairs.argmax()) + 1))
        if best < least:
            return wall
        normal, middle = plane
        near = free & (np.abs(places @ normal - middle) <= reach)
        wall |= near & _tall_columns(voxels, near, tall * 0.9, voxel)  # not the fronts of a row of low things
        free &= ~near
    return wall


def _tall_columns(voxels: Voxels, near: np.ndarray, least: float, voxel: float) -> Bool[np.ndarray, " m"]:
    """Which voxels belong to stretches, 0.25 m wide, of a plane that is occupied over most of its height."""
    span = max(1, round(0.25 / voxel))
    columns, inverse = np.unique(voxels[:, :2] // span, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    layers = np.unique(np.stack([inverse[near], voxels[near, 2]], axis=1), axis=0)
    height = np.bincount(layers[:, 0], minlength=len(columns))
    return (height >= least)[inverse]


def _parts(grid: Bool[np.ndarray, "x y z"]) -> Iterator[Voxels]:
    """Components at every tolerance, and what stands on the tops within them."""
    everywhere = np.ones((3, 3, 3), dtype=bool)
    for gap in GAPS:
        grown = ndimage.binary_dilation(grid, everywhere, iterations=gap) if gap else grid
        for part in _components(grown, grid):
            yield part
            if gap == GAPS[0]:
                yield from _stacked(part, grid.shape)


def _components(grown: Bool[np.ndarray, "x y z"], grid: Bool[np.ndarray, "x y z"]) -> Iterator[Voxels]:
    labels, _ = ndimage.label(grown, np.ones((3, 3, 3), dtype=bool))
    labels = np.where(grid, labels, 0)
    for number, window in enumerate(ndimage.find_objects(labels), start=1):
        if window is None:
            continue
        part = np.argwhere(labels[window] == number) + [s.start for s in window]
        if len(part) >= MIN_VOXELS:
            yield part


def _stacked(part: Voxels, shape: tuple[int, ...]) -> Iterator[Voxels]:
    """A thing without what stands on it, and that by itself: cut at layers that hold far more voxels than the layers around."""
    bottom = part[:, 2].min()
    layers = np.bincount(part[:, 2] - bottom)
    typical = np.median(layers)
    for layer in np.flatnonzero(layers >= max(2 * typical, 20)).tolist():
        if layer + 2 >= len(layers) or layers[layer] < layers[max(layer - 1, 0) : layer + 2].max():
            continue
        above = part[part[:, 2] > bottom + layer + 1]
        if len(above) < MIN_VOXELS:
            continue
        below = part[part[:, 2] <= bottom + layer + 1]
        yield below
        grid = np.zeros(shape, dtype=bool)
        grid[tuple(above.T)] = True
        yield from _components(grid, grid)


def _box(corners: Float[np.ndarray, "n 3"], voxel: float, floor: float) -> Box3D:
    """The upright box of least footprint around voxels given by their low corners; it reaches down to a floor that is near."""
    low, high = corners[:, 2].min(), corners[:, 2].max() + voxel
    if low - floor <= 0.2:
        low = floor
    places = corners[:, :2] + voxel / 2
    try:
        hull = places[ConvexHull(places).vertices]
    except QhullError:  # all on one line
        hull = np.unique(places, axis=0)
    sides = np.roll(hull, -1, axis=0) - hull
    angles = np.unique(np.round(np.arctan2(sides[:, 1], sides[:, 0]) % (np.pi / 2), 4))
    best = None
    for angle in angles:
        cos, sin = np.cos(angle), np.sin(angle)
        turned = hull @ np.array([[cos, -sin], [sin, cos]])
        first, last = turned.min(0) - voxel / 2, turned.max(0) + voxel / 2
        area = np.prod(last - first)
        if best is None or area < best[0]:
            center = np.array([[cos, -sin], [sin, cos]]) @ ((first + last) / 2)
            best = (area, center, last - first, float(angle))
    _, center, size, yaw = best
    return Box3D(
        (float(center[0]), float(center[1]), float((low + high) / 2)), (float(size[0]), float(size[1]), float(high - low)), yaw
    )


def _distinct(boxes: list[Box3D]) -> list[int]:
    """Positions of boxes that overlap none before them by `SAME`."""
    array, kept = boxes_to_array(boxes), []
    for i in range(len(boxes)):
        others = array[kept]
        if not kept or box_iou(others, np.broadcast_to(array[i], others.shape)).max() < SAME:
            kept.append(i)
    return kept


def recall(proposals: list[Box3D], truth: list[Box3D]) -> Float[np.ndarray, " n"]:
    """The best overlap of any proposal with each true box: what bounds the accuracy of whoever chooses among them."""
    found, boxes = boxes_to_array(proposals), boxes_to_array(truth)
    if not len(found):
        return np.zeros(len(boxes))
    pairs = box_iou(np.tile(found, (len(boxes), 1)), np.repeat(boxes, len(found), axis=0))
    return pairs.reshape(len(boxes), len(found)).max(1)
