"""Sides of objects that no frame shows: a cupboard is seen from its front, yet it stands on the floor and against the wall.

A lifted box ends where the seen surface ends. Its underside and its four upright sides are moved out to what the object rests on or
stands against (the top of a box below, the floor, the room's outline) where that is near and the space between stayed hidden. Space
that a camera looked through is known to be free, and so is not filled.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from shapely.geometry import LineString, Point, Polygon

from allocentric.geometry.boxes import Box3D, boxes_to_array, footprint_corners
from allocentric.graph.floor_plan import FloorPlan
from allocentric.views import Views

THINNEST = 0.05  # metres across: of a door or a picture only the front is seen
TO_FLOOR = 1.2  # metres: farther down nothing is taken to reach
HANGING = 0.5  # of its height: farther down nothing thin is taken to reach, it hangs
TO_WALL = 0.7  # metres: as deep as a wardrobe
TOUCHING = 0.08  # metres: what is as near stands against it, hidden or not
HIDDEN = 0.7  # share of the space between that must have stayed unseen
NEAR_SURFACE = 0.05  # metres in front of a measured surface that count as seen
SAMPLES = 5  # along each side of the space between
SIDES = ((0, 1), (0, -1), (1, 1), (1, -1))  # axis of the box and direction along it


def completed(boxes: Sequence[Box3D], views: Views, plan: FloorPlan) -> list[Box3D]:
    """The boxes with hidden sides moved out: backwards to a least thickness, downwards to what they rest on, sideways to the room's
    outline.
    """
    boxes = [_thickened(box, views.camera_to_world[:, :2, 3].double().mean(0).numpy()) for box in boxes]
    boxes = [_lowered(box, boxes, views, plan.height) for box in boxes]
    outlines = [Polygon(outline) for outline in plan.outline]
    return [_deepened(box, views, outlines, plan.height) for box in boxes]


def seen_through(points: Float[np.ndarray, "n 3"], views: Views) -> Bool[np.ndarray, " n"]:
    """Whether some frame measured a surface at a world point (metres) or beyond it."""
    seen = np.zeros(len(points), dtype=bool)
    height, width = views.depth.shape[1:]
    intrinsics, poses = views.intrinsics.double().numpy(), views.camera_to_world.double().numpy()
    for depth, k, pose in zip(views.depth.numpy(), intrinsics, poses, strict=True):
        x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
        ahead = z > NEAR_SURFACE
        z = np.where(ahead, z, 1.0)
        column, row = np.floor((k[0, 0] * x + k[0, 1] * y) / z + k[0, 2]), np.floor(k[1, 1] * y / z + k[1, 2])
        within = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        measured = depth[row[within].astype(int), column[within].astype(int)]
        seen[within] |= np.isfinite(measured) & (measured > 0) & (measured >= z[within] - NEAR_SURFACE)
    return seen


def _thickened(box: Box3D, eye: Float[np.ndarray, "2"]) -> Box3D:
    """The box at least THINNEST across, grown away from the cameras."""
    size, center = list(box.size), np.array(box.center)
    for axis in (0, 1):
        lacking, direction = THINNEST - size[axis], _direction(box, axis)
        if lacking > 0:
            size[axis] = THINNEST
            center[:2] += direction * np.sign(direction @ (center[:2] - eye)) * lacking / 2
    return replace(box, center=tuple(center.tolist()), size=tuple(size))


def _lowered(box: Box3D, others: Sequence[Box3D], views: Views, floor: float) -> Box3D:
    """The box let down on what lies under it."""
    bottom, top = box.center[2] - box.size[2] / 2, box.center[2] + box.size[2] / 2
    # What is lower than the underside and overlaps it seen from above carries it; what reaches higher than that holds it.
    under = [o for o in others if o is not box and o.center[2] - o.size[2] / 2 < bottom and _overlap(box, o)]
    ground = max([floor, *(min(o.center[2] + o.size[2] / 2, bottom) for o in under)])
    reach = TO_FLOOR if min(box.size[:2]) > THINNEST else min(HANGING * box.size[2], TO_FLOOR)
    if not 0 < bottom - ground <= reach or not _hidden(box, 2, -1, bottom - ground, views):
        return box
    return replace(box, center=(*box.center[:2], (top + ground) / 2), size=(*box.size[:2], top - ground))


def _deepened(box: Box3D, views: Views, outlines: Sequence[Polygon], floor: float) -> Box3D:
    """The box with its upright sides moved out to the room's outline; from what does not stand on the floor, only touching ones."""
    reach = TO_WALL if box.center[2] - box.size[2] / 2 <= floor + TOUCHING else TOUCHING
    room = next((outline for outline in outlines if outline.contains(Point(box.center[:2]))), None)
    if room is None:
        return box
    for axis, sign in SIDES:
        direction = _direction(box, axis) * sign
        face = np.array(box.center[:2]) + direction * box.size[axis] / 2
        if not room.contains(Point(face)):
            continue
        way = LineString([face, face + direction * 2 * reach]).intersection(room.exterior)
        gap = Point(face).distance(way) if not way.is_empty else np.inf
        if gap <= reach and _hidden(box, axis, sign, gap, views):
            size, center = list(box.size), np.array(box.center)
            size[axis] += gap
            center[:2] += direction * gap / 2
            box = replace(box, center=tuple(center.tolist()), size=tuple(size))
    return box


def _hidden(box: Box3D, axis: int, sign: int, gap: float, views: Views) -> bool:
    """Whether the space of `gap` metres beyond a side is narrow, or was seen by no camera."""
    if gap <= TOUCHING:
        return True
    inner = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    own = np.stack(np.meshgrid(inner, inner, inner, indexing="ij"), axis=-1).reshape(-1, 3) * box.size
    # Not quite up to either end: there are the surfaces of the object itself and of what it may touch.
    own[:, axis] = sign * (box.size[axis] / 2 + NEAR_SURFACE + (own[:, axis] / box.size[axis] + 0.5) * (gap - 2 * NEAR_SURFACE))
    world = own[:, :1] * np.append(_direction(box, 0), 0) + own[:, 1:2] * np.append(_direction(box, 1), 0)
    world[:, 2] = own[:, 2]
    return float(seen_through(world + box.center, views).mean()) <= 1 - HIDDEN


def _direction(box: Box3D, axis: int) -> Float[np.ndarray, "2"]:
    cos, sin = np.cos(box.yaw), np.sin(box.yaw)
    return np.array([cos, sin]) if axis == 0 else np.array([-sin, cos])


def _overlap(box: Box3D, other: Box3D) -> bool:
    """Whether two boxes overlap seen from above."""
    return Polygon(footprint_corners(boxes_to_array([box]))[0]).intersects(Polygon(footprint_corners(boxes_to_array([other]))[0]))
