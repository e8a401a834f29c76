"""Scenes for training: a room, a walk through it, and what the camera saw."""

import numpy as np
import torch

from allocentric.rooms.camera import Walk, plan_walk
from allocentric.rooms.layout import Room, make_room
from allocentric.rooms.mesh import Real
from allocentric.rooms.raycast import quick_visibility, render, visibility_of
from allocentric.scenes import AnnotatedScene
from allocentric.views import Views

MIN_VISIBLE = 0.004  # an object that never fills this much of any of the sampled frames is not there


def staged(seed: int, style: str = "parts") -> tuple[Room, Walk, float]:
    """The room of a seed, the walk through it, and the horizontal field of view in degrees.

    Objects that the walk hardly sees are taken out of the room itself, so that every object left can fairly be asked about.
    """
    room = make_room(seed, style)
    rng = np.random.default_rng((seed, 1))
    path = plan_walk(room, rng)
    fov = float(rng.uniform(70, 80))
    poses = path.poses(np.linspace(0, path.duration, 16))
    for _ in range(3):
        seen = quick_visibility(room, poses, 48, 60, fov).max(axis=0, initial=0)
        ids = {o.id for o, v in zip(room.objects, seen, strict=True) if v >= 1.6 * MIN_VISIBLE}
        if len(ids) == len(room.objects):
            break
        room = room.keep(ids)
    return room, path, fov


def pinhole(height: int, width: int, fov: Real) -> np.ndarray:
    """Intrinsics in pixels, (3, 3), for a horizontal field of view in degrees."""
    f = width / 2 / np.tan(np.radians(fov) / 2)
    return np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])


def shutter_poses(path: Walk, times: np.ndarray, samples: int, exposure: float) -> np.ndarray:
    """camera_to_world (s, T, 4, 4) for each colour ray while the shutter is open for `exposure` seconds."""
    n = samples * samples
    order = np.argsort(np.random.default_rng(0).random(n))
    return np.stack([path.poses(times + (order[k] / max(n - 1, 1) - 0.5) * exposure) for k in range(n)])


def generate(
    seed: int, frames: int = 16, height: int = 112, width: int = 140, style: str = "parts"
) -> tuple[Views, AnnotatedScene, np.ndarray]:
    """A scene from its seed: views with depth and poses, its ground truth, and instance ids uint8 (T, H, W).

    `frames` are evenly spaced over the walk. Image id k is the object with id k; 0 is the building.
    """
    room, path, fov = staged(seed, style)
    times = np.linspace(0, path.duration, frames)
    poses = path.poses(times)
    k = pinhole(height, width, fov)
    blur = np.random.default_rng((seed, 2)).uniform(0.0, 0.03)
    rgb, depth, ids = render(room, poses, height, width, k, samples=2, shutter=shutter_poses(path, times, 2, blur))
    views = Views(
        frames=torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous(),
        depth=torch.from_numpy(depth),
        intrinsics=torch.from_numpy(np.broadcast_to(k.astype(np.float32), (frames, 3, 3)).copy()),
        camera_to_world=torch.from_numpy(poses.astype(np.float32)),
        times=torch.from_numpy(times),
        indices=torch.arange(frames),
        scale="metric",
        source=room.name,
    )
    scene = room.annotate(visibility_of(ids, len(room.objects)), poses, MIN_VISIBLE)
    return views, scene, ids
