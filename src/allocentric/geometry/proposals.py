"""Boxes of things in a posed depth capture, whatever they are: what stands apart once floor, ceiling and walls are taken away.

Points of all views are counted in voxels; planes that bound the room are removed; what is left falls into connected components, at
several tolerances for gaps, and things that stand on one another are also offered one by one. What hangs on a wall or lies on the
floor is thinner than a voxel: it is found in the plane, as what stands off by more than the plane's own noise. No learning and no
colours: what stands off less (posters; with a real sensor most pictures and rugs) cannot be found, and things that touch are found
together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array

VOXEL = 0.05  # metres
MIN_POINTS = 2  # of a voxel that counts
PLANE = 0.09  # metres on either side of a plane in which a wall is looked for
WALL = 0.09  # metres in front of a wall that go with it, and with them what hangs there; more where its points are noisy
BEYOND = 0.03  # share of the points that lie behind the walls of a room at most: outlooks, noise
BELOW_TOP = 0.2  # metres below the highest that is seen up to which any other wall reaches: the front of a wardrobe does not
GAPS = (0, 1, 2)  # voxels by which things grow before they are joined
SIZE = (0.1, 3.2)  # metres: least and greatest length of the longest side
MIN_VOXELS = 12
SAME = 0.85  # overlap from which on two proposals are one
AGAINST = 0.15  # metres from a wall: what stands so near reaches to it
OFF_WALL = (0.07, 0.15)  # metres by which things hung on walls stand off at most: alone, and together with what is near
OFF_FLOOR = 0.04  # the same of things laid on the floor
LEAST_OFF = 0.008  # metres, and four deviations of the plane's own points
FLAT_SIDES = 0.2, 0.5  # metres: least shorter side of what hangs, and of what lies
COVERED = 0.4  # least share of its box on the floor that a thing covers: legs and lower edges of furniture do not

Voxels = Int[np.ndarray, "m 3"]


class Plane(NamedTuple):
    """A wall seen from above: points p with normal . p = offset; the room is where it is more. Metres; `noise` of its points."""

    normal: Float[np.ndarray, "2"]
    offset: float
    noise: float


class Bounds(NamedTuple):
    """What bounds a room: the layer of voxels the floor lies in, the heights between which there is neither floor nor ceiling
    (metres), and the walls."""

    floor: int
    low: float
    high: float
    walls: list[Plane]


def propose(points: Float[np.ndarray, "n 3"], most: int = 100, voxel: float = VOXEL) -> list[Box3D]:
    """Up to `most` upright boxes around what stands in a room, the largest evidence first.

    points   world metres, z up; those that are not finite are left out.
    score    share of the voxels of the room that are the thing's.
    """
    points = points[np.isfinite(points).all(1)]
    if not len(points):
        raise ValueError("points: found none that are finite, expected measured depth")
    if voxel <= 0:
        raise ValueError(f"voxel: found {voxel}, expected a positive length in metres")
    every = occupied(points, voxel)
    voxels, bounds = without_bounds(every, points, voxel)
    found = [*_flat_things(points, bounds, voxel), *_standing(voxels, bounds, voxel)]
    found = [(count, box) for count, box in found if SIZE[0] <= max(box.size) <= SIZE[1]]
    found.sort(key=lambda one: -one[0])
    kept = [found[i] for i in _distinct([box for _, box in found])[:most]]
    return [replace(box, score=min(count / len(every), 1.0)) for count, box in kept]


def _standing(voxels: Voxels, bounds: Bounds, voxel: float) -> Iterator[tuple[int, Box3D]]:
    """Connected parts of what is left of a room: how many voxels each has, and its box."""
    if not len(voxels):
        return
    low = voxels.min(0) - 3
    grid = np.zeros(voxels.max(0) - low + 4, dtype=bool)
    grid[tuple((voxels - low).T)] = True
    for part in _parts(grid):
        yield len(part), _up_to_walls(_box((part + low) * voxel, voxel, bounds.floor * voxel), bounds.walls)


def occupied(points: Float[np.ndarray, "n 3"], voxel: float = VOXEL) -> Voxels:
    """Voxels that hold at least `MIN_POINTS` points."""
    cells, counts = np.unique(np.floor(points / voxel).astype(np.int64), axis=0, return_counts=True)
    return cells[counts >= MIN_POINTS]


def without_bounds(
    voxels: Voxels, points: Float[np.ndarray, "n 3"], voxel: float = VOXEL
) -> tuple[Int[np.ndarray, "left 3"], Bounds]:
    """What is left without floor, ceiling and walls, and these. `points` are those that the voxels were counted from.

    Floor and ceiling are the fullest layers of the lowest and highest fifth. Walls are vertical planes that much of what is seen
    lies on, where they are occupied over nearly half the height of the room.
    """
    if not len(voxels):
        return voxels, Bounds(0, 0.0, 0.0, [])
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
    low = (base + margin + 1) * voxel
    high = (base + top - floor - margin) * voxel if has_ceiling else np.inf
    wall, planes = _on_walls(inside, points[(points[:, 2] > low) & (points[:, 2] < high)], voxel)
    return inside[~wall], Bounds(base, low, high, planes)


def _on_walls(voxels: Voxels, points: Float[np.ndarray, "n 3"], voxel: float) -> tuple[Bool[np.ndarray, " m"], list[Plane]]:
    """Voxels on vertical planes that are tall where they are looked at: the fullest planes first, each voxel on one at most.

    Also returns the planes. Where much is seen behind one, only those parts of it count that reach as high as anything does.
    """
    wall, free = np.zeros((2, len(voxels)), dtype=bool)
    planes: list[Plane] = []
    free[:] = True
    tall = (np.ptp(voxels[:, 2]) + 1) * 0.5 if len(voxels) else 0.0
    reach = PLANE / voxel
    least = (1.5 / voxel) * tall  # as much as 1.5 m of wall, half as high as the room
    places = voxels[:, :2] + 0.5
    for _ in range(24):
        best, plane = 0, None
        for degrees in range(0, 180, 3):
            normal = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
            offset = places[free] @ normal
            if not len(offset):
                return wall, planes
            strips = np.bincount(((offset - offset.min()) / reach).astype(np.int64), minlength=2)
            pairs = strips[:-1] + strips[1:]
            if pairs.max() > best:
                best, plane = int(pairs.max()), (normal, offset.min() + reach * (int(pairs.argmax()) + 1))
        if best < least:
            return wall, planes
        exact = _exact(plane[0], float(plane[1] * voxel), points)
        inward = places @ exact.normal * voxel - exact.offset
        thick = max(WALL, 4 * exact.noise)
        near = (free & (np.abs(places @ plane[0] - plane[1]) <= reach)) | (np.abs(inward) <= thick)
        inner = (points[:, :2] @ exact.normal < exact.offset - 0.15).mean() > BEYOND
        top = voxels[:, 2].max() - BELOW_TOP / voxel if inner else None
        on = _tall_columns(voxels, near, tall * 0.9, voxel, top)  # not the fronts of a row of low things
        if (near & on).any():
            planes.append(exact)
        wall |= (inward <= thick) & near & on
        free &= ~near
    return wall, planes


def _exact(normal: Float[np.ndarray, "2"], offset: float, points: Float[np.ndarray, "n 3"]) -> Plane:
    """The wall through the points near a plane that voxels gave: the thinnest full layer within 2 degrees of it."""
    near = points[np.abs(points[:, :2] @ normal - offset) < 2 * PLANE, :2]
    some = near[:: max(1, len(near) // 20_000)]
    centre = some.mean(0)
    first = np.arctan2(normal[1], normal[0])
    best, plane = -1, (normal, offset)
    for angle in first + np.radians(np.arange(-2, 2.01, 0.25)):
        turned = np.array([np.cos(angle), np.sin(angle)])
        distance = (some - centre) @ turned
        count, edges = np.histogram(distance, np.arange(-4 * PLANE, 4 * PLANE, 0.01))
        if count.max() > best:
            at = int(count.argmax())
            best, plane = count.max(), (turned, float(centre @ turned + (edges[at] + edges[at + 1]) / 2))
    normal, offset = plane
    for _ in range(3):  # by least squares, what lies further off left out
        on = some[np.abs(some @ normal - offset) < 0.02]
        centre = on.mean(0)
        normal = np.linalg.svd(on - centre, full_matrices=False)[2][1]
        offset = float(centre @ normal)
    if (points[:, :2] @ normal).mean() < offset:
        normal, offset = -normal, -offset
    return Plane(normal, offset, _noise(some @ normal - offset))


def _noise(distance: Float[np.ndarray, " n"]) -> float:
    """Standard deviation of what lies on a plane, from the median of how far off its points are."""
    off = np.abs(distance)
    near = off[off < 0.03]
    return 1.4826 * float(np.median(near)) if len(near) else 0.03


def _flat_things(points: Float[np.ndarray, "n 3"], bounds: Bounds, voxel: float) -> Iterator[tuple[int, Box3D]]:
    """What hangs on walls and lies on the floor, and how many cells of the plane, as large as voxels, each covers."""
    between = points[(points[:, 2] > bounds.low) & (points[:, 2] < bounds.high)]
    distance = np.array([between[:, :2] @ wall.normal - wall.offset for wall in bounds.walls])
    distance = distance.reshape(len(bounds.walls), len(between))
    least = np.array([max(LEAST_OFF, 4 * wall.noise) for wall in bounds.walls])[:, None]
    on_wall = np.abs(distance) <= least
    for i, wall in enumerate(bounds.walls):
        along = np.array([-wall.normal[1], wall.normal[0]])
        off_all = (distance[i] > least[i]) & ~on_wall.any(0)  # in a corner the next wall is near
        for most in OFF_WALL:
            standing = off_all & (distance[i] < most)
            off = distance[i, standing]
            place = np.column_stack([between[standing, :2] @ along, between[standing, 2]])
            for cells, inside in _patches(place, voxel):
                low, high = place[inside].min(0), place[inside].max(0)
                if min(high - low) < FLAT_SIDES[0]:
                    continue
                if low[1] - bounds.low <= voxel:  # it stands on the floor: a door
                    low[1] = bounds.floor * voxel
                thick = float(np.quantile(off[inside], 0.98))
                center = wall.normal * (wall.offset + thick / 2) + along * (low[0] + high[0]) / 2
                size = (float(high[0] - low[0]), thick, float(high[1] - low[1]))
                yaw = float(np.arctan2(along[1], along[0]))
                yield cells, Box3D((float(center[0]), float(center[1]), float(low[1] + high[1]) / 2), size, yaw)
    height = points[:, 2] / voxel - bounds.floor
    ground = points[(height > -1) & (height < 2), 2]
    if not len(ground):
        return
    count, edges = np.histogram(ground, np.arange(ground.min(), ground.max() + 0.01, 0.005))
    level = float(np.median(ground[np.abs(ground - edges[count.argmax()]) < 0.01]))
    off = points[:, 2] - level
    lying = (off > max(LEAST_OFF, 4 * _noise(ground - level))) & (off < OFF_FLOOR)
    place = points[lying, :2]
    for cells, inside in _patches(place, voxel):
        corners = np.unique(np.floor(place[inside] / voxel), axis=0) * voxel
        box = _box(np.column_stack([corners, np.zeros(len(corners))]), voxel, 0.0)
        if min(box.size[:2]) >= FLAT_SIDES[1] and cells * voxel**2 >= COVERED * box.size[0] * box.size[1]:
            thick = float(np.quantile(off[lying][inside], 0.98))
            yield cells, Box3D((*box.center[:2], level + thick / 2), (*box.size[:2], thick), box.yaw)


def _patches(place: Float[np.ndarray, "n 2"], voxel: float) -> Iterator[tuple[int, Bool[np.ndarray, " n"]]]:
    """Connected patches of points in a plane, across gaps of no cell and of two: cells of each, and which points are in it."""
    if not len(place):
        return
    cell = np.floor(place / voxel).astype(np.int64)
    cell -= cell.min(0) - 2
    grid = np.zeros(cell.max(0) + 3, dtype=bool)
    grid[tuple(cell.T)] = True
    for gap in GAPS[1:]:
        close = ndimage.binary_dilation(grid, np.ones((3, 3), dtype=bool), iterations=gap - 1) if gap > 1 else grid
        labels, count = ndimage.label(close, np.ones((3, 3), dtype=bool))
        of_point = labels[tuple(cell.T)]
        sizes = np.bincount(labels[grid], minlength=count + 1)
        for number in np.flatnonzero(sizes[1:] >= MIN_VOXELS) + 1:
            yield int(sizes[number]), of_point == number


def _up_to_walls(box: Box3D, walls: Sequence[Plane]) -> Box3D:
    """The box drawn out to a wall that one of its sides is parallel and near to: planes take what is near them with them."""
    for wall in walls:
        turned = np.arctan2(wall.normal[1], wall.normal[0]) - box.yaw
        quarter = round(turned / (np.pi / 2))
        if abs(turned - quarter * np.pi / 2) > np.radians(10):
            continue
        axis = quarter % 2
        gap = float(np.array(box.center[:2]) @ wall.normal - wall.offset) - box.size[axis] / 2
        if 0 < gap <= AGAINST:
            size, center = list(box.size), list(box.center)
            size[axis] += gap
            center[:2] = (np.array(center[:2]) - wall.normal * gap / 2).tolist()
            box = replace(box, center=tuple(center), size=tuple(size))
    return box


def _tall_columns(voxels: Voxels, near: np.ndarray, least: float, voxel: float, top: float | None = None) -> Bool[np.ndarray, " m"]:
    """Which voxels belong to stretches, 0.25 m wide, of a plane that is occupied over `least` layers, and up to `top` if given."""
    span = max(1, round(0.25 / voxel))
    columns, inverse = np.unique(voxels[:, :2] // span, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    layers = np.unique(np.stack([inverse[near], voxels[near, 2]], axis=1), axis=0)
    height = np.bincount(layers[:, 0], minlength=len(columns))
    tall = height >= least
    if top is not None:
        highest = np.full(len(columns), -np.inf)
        np.maximum.at(highest, inverse[near], voxels[near, 2])
        tall &= highest >= top
    return tall[inverse]


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
