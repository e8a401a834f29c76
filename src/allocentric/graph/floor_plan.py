"""The floor of a capture from its depth: which way is up, where the floor is, what is free, how large the room is."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from allocentric.geometry.cameras import unproject_depth
from allocentric.geometry.canonical import rotation_to_z
from allocentric.geometry.floor import HIGH, LOW, alpha_shape, alpha_shape_area, floor_points
from allocentric.graph.free_space import CELL
from allocentric.views import Views

ROWS = 60  # depth is looked at on a grid of about this many rows
FAR = 6.0  # metres: beyond, depth cameras are no measure
TILTED = 10.0  # degrees between the world's z axis and the estimated up direction that are taken for noise
FLOOR_BIN = 0.05  # metres
FLOOR_SHARE = 0.01
FEWEST = 3  # points in a cell that something stands on


@dataclass(frozen=True)
class FloorPlan:
    """The floor as seen.

    height     of the floor, world metres.
    outline    around everything that was seen from above, one polygon per part.
    area       square metres within.
    origin     (x, y) of the corner of the first cell, metres; cells are CELL wide.
    free       bool (rows along y, columns along x): floor was seen there and nothing on it.
    occupied   something between LOW and HIGH above the floor was seen there.
    """

    height: float
    outline: tuple[Float[np.ndarray, "v 2"], ...]
    area: float
    origin: Float[np.ndarray, "2"]
    free: Bool[np.ndarray, "r c"]
    occupied: Bool[np.ndarray, "r c"]

    @property
    def free_area(self) -> float:
        """Square metres of free floor."""
        return float(self.free.sum()) * CELL**2


def leveled(views: Views) -> Views:
    """The views in a world whose z axis points up. A world that has it within TILTED degrees of the estimate is left as it is."""
    up = estimate_up(views)
    if np.degrees(np.arccos(np.clip(up[2], -1, 1))) <= TILTED:
        return views
    turn = torch.eye(4)
    turn[:3, :3] = torch.from_numpy(rotation_to_z(up)).float()
    return replace(views, camera_to_world=turn @ views.camera_to_world)


def estimate_up(views: Views) -> Float[np.ndarray, "3"]:
    """The direction that is up, unit length: cameras are held upright on average, and most that lies flat is a floor or a table."""
    _check(views)
    held = -views.camera_to_world[:, :3, 1].double().numpy()
    up = held.mean(0) / max(np.linalg.norm(held.mean(0)), 1e-9)
    normals = _normals(views)
    for degrees in (35, 20, 10, 10):
        near = np.abs(normals @ up) > np.cos(np.radians(degrees))
        if near.sum() < 100:
            return up
        signed = normals[near] * np.sign(normals[near] @ up)[:, None]
        up = np.median(signed, axis=0)
        up = up / np.linalg.norm(up)
    return up


def floor_plan(views: Views) -> FloorPlan:
    """Floor, free space and area of posed RGB-D views whose z axis is up (`leveled`)."""
    _check(views)
    points = seen_points(views)
    if len(points) < 100:
        raise ValueError(f"{views.source or 'views'}: expected depth to find a floor in, found {len(points)} measured points")
    height = _floor_height(points[:, 2])
    low, high = points[:, :2].min(0) - CELL, points[:, :2].max(0) + CELL
    columns, rows = np.ceil((high - low) / CELL).astype(int)
    cell = np.floor((points[:, :2] - low) / CELL).astype(int)
    above = points[:, 2] - height

    def counted(chosen: np.ndarray) -> np.ndarray:
        grid = np.zeros((rows, columns), dtype=np.int64)
        np.add.at(grid, (cell[chosen, 1], cell[chosen, 0]), 1)
        return grid

    occupied = counted((above > LOW) & (above < HIGH)) >= FEWEST
    free = (counted(np.abs(above) <= LOW) > 0) & ~occupied
    flat = floor_points(points)
    return FloorPlan(height, alpha_shape(flat), alpha_shape_area(flat), low, free, occupied)


def seen_points(views: Views) -> Float[np.ndarray, "n 3"]:
    """World points of the measured depth, on a coarse grid of pixels, up to FAR metres from the camera."""
    depth, intrinsics = _coarse(views)
    points = unproject_depth(torch.where(depth <= FAR, depth, torch.zeros_like(depth)), intrinsics, views.camera_to_world)
    flat = points.reshape(-1, 3).double().numpy()
    return flat[np.isfinite(flat).all(1)]


def _normals(views: Views) -> Float[np.ndarray, "n 3"]:
    depth, intrinsics = _coarse(views)
    points = unproject_depth(torch.where(depth <= FAR, depth, torch.zeros_like(depth)), intrinsics, views.camera_to_world).double()
    right, down = points[:, :-1, 1:] - points[:, :-1, :-1], points[:, 1:, :-1] - points[:, :-1, :-1]
    smooth = (right.norm(dim=-1) < 0.15) & (down.norm(dim=-1) < 0.15)  # not across an edge
    normals = torch.linalg.cross(right, down)[smooth]
    return torch.nn.functional.normalize(normals, dim=-1).numpy()


def _coarse(views: Views) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth and intrinsics on every few pixels, each still the ray it was."""
    step = max(1, views.depth.shape[1] // ROWS)
    offset = step // 2
    intrinsics = views.intrinsics.double().clone()
    intrinsics[:, :2, 2] = intrinsics[:, :2, 2] - offset - 0.5 + 0.5 * step
    intrinsics[:, :2] /= step
    return views.depth[:, offset::step, offset::step], intrinsics.float()


def _floor_height(z: Float[np.ndarray, " n"]) -> float:
    """The lowest height at which a hundredth of all that was seen lies: a capture may show more of a table than of the floor."""
    low = z.min()
    counts = np.bincount(np.floor((z - low) / FLOOR_BIN).astype(int))
    first = int(np.argmax(counts >= FLOOR_SHARE * len(z)))
    best = first + int(np.argmax(counts[first : first + 3]))
    chosen = z[np.abs(z - (low + (best + 0.5) * FLOOR_BIN)) <= FLOOR_BIN]
    return float(np.median(chosen))


def _check(views: Views) -> None:
    for name in ("depth", "intrinsics", "camera_to_world"):
        if getattr(views, name) is None:
            raise ValueError(f"{views.source or 'views'}: expected posed RGB-D, found no {name}")
