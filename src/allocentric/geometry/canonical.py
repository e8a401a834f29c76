"""What is upright: directions, angles, and one gravity-aligned metric frame per scene, the first camera's, made level.

In that frame (SSR, spec 7.1) the first optical centre is the origin, z is up, y the first viewing direction made level, x to its
right; metres.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D


def rotation_to_z(up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation of least angle that takes a direction of unit length to +z; half a turn about x for -z."""
    z = np.array([0.0, 0.0, 1.0])
    v, c = np.cross(up, z), up @ z
    if c < -1 + 1e-9:
        return np.diag([1.0, -1.0, -1.0])
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + c)


def first_camera_frame(camera_to_world: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """World (z up) -> the level frame of this camera, a rigid motion. ValueError when it looks straight up or down."""
    pose = np.asarray(camera_to_world, dtype=np.float64)
    if not np.isfinite(pose).all():
        raise ValueError("camera_to_world: expected a finite pose of the first camera, found NaN or infinity")
    if math.hypot(*pose[:2, 2]) < 1e-3:
        raise ValueError("camera_to_world: expected a first camera that looks ahead, found one that looks straight up or down")
    turn = math.pi / 2 - math.atan2(pose[1, 2], pose[0, 2])
    cos, sin = math.cos(turn), math.sin(turn)
    frame = np.eye(4)
    frame[:2, :2] = [[cos, -sin], [sin, cos]]
    frame[:3, 3] = -frame[:3, :3] @ pose[:3, 3]
    return frame


def move_box(box: Box3D, motion: Float[np.ndarray, "4 4"]) -> Box3D:
    """An upright box after a motion that keeps the vertical: a turn about z and a shift. Yaw in (-pi, pi]."""
    motion = np.asarray(motion, dtype=np.float64)
    if np.abs(motion[2, :3] - [0, 0, 1]).max() > 1e-6 or np.abs(motion[:3, :3] @ motion[:3, :3].T - np.eye(3)).max() > 1e-6:
        raise ValueError(f"motion: expected a turn about z and a shift, found {motion[:3, :3].round(3).tolist()}")
    center = motion[:3, :3] @ np.array(box.center) + motion[:3, 3]
    return replace(box, center=tuple(center.tolist()), yaw=level_angle(box.yaw + math.atan2(motion[1, 0], motion[0, 0])))


def level_angle(angle: float) -> float:
    """The same angle in (-pi, pi]."""
    turned = math.remainder(angle, math.tau)
    return math.pi if turned == -math.pi else turned


def wrap(angle: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """`level_angle` of an array, up to rounding."""
    return np.pi - (np.pi - angle) % (2 * np.pi)
