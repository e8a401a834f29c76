"""`Views`: what a camera saw. The one input type of the library."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Views:
    """RGB frames of one place, in time order, with whatever geometry was measured.

    Camera axes are OpenCV's (x right, y down, z forward). Pixel (0.5, 0.5) is the centre of the first pixel.

    frames            uint8 RGB (T, 3, H, W).
    depth             metres along the camera z axis, float32 (T, H, W); 0 means no measurement.
    intrinsics        pixels of `frames`, float32 (T, 3, 3).
    camera_to_world   float32 (T, 4, 4), rigid; the world is metres, z up, right-handed, unless `scale` says otherwise.
    times             seconds from the start of the source, float64 (T,).
    indices           frame numbers in the source, int64 (T,).
    scale             "metric", or "relative" when lengths are only known up to one factor.
    source            where the frames came from, for messages and reports.
    """

    frames: UInt8[Tensor, "t 3 h w"]
    depth: Float[Tensor, "t h w"] | None = None
    intrinsics: Float[Tensor, "t 3 3"] | None = None
    camera_to_world: Float[Tensor, "t 4 4"] | None = None
    times: Float[Tensor, " t"] | None = None
    indices: Tensor | None = None
    scale: Literal["metric", "relative"] = "relative"
    source: str = ""

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, indices: list[int] | Tensor) -> "Views":
        """The views at these positions, in the order given."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        per_frame = ("frames", "depth", "intrinsics", "camera_to_world", "times", "indices")
        return replace(self, **{k: v[chosen] for k in per_frame if (v := getattr(self, k)) is not None})


def uniform_indices(n_frames: int, k: int) -> list[int]:
    """`k` frame numbers evenly over 0 .. n_frames - 1, first and last included; all of them when there are fewer than `k`.

    Rounds down, as `np.linspace(0, n - 1, k, dtype=int)` does in the published samplers.
    """
    if n_frames < 1 or k < 1:
        raise ValueError(f"uniform frames: expected at least 1 frame and k >= 1, found {n_frames} frames and k = {k}")
    return np.linspace(0, n_frames - 1, min(k, n_frames), dtype=int).tolist()


def check_views(views: Views) -> Views:
    """The same views, or a ValueError that names the first thing that is wrong with them."""
    name = views.source or "views"
    if views.frames.ndim != 4 or views.frames.shape[1] != 3 or views.frames.dtype != torch.uint8:
        raise ValueError(
            f"{name}: frames must be uint8 (T, 3, H, W), found {views.frames.dtype} {tuple(views.frames.shape)}"
        )
    t, _, h, w = views.frames.shape
    if t == 0:
        raise ValueError(f"{name}: there are no frames")

    shapes = {
        "depth": (t, h, w), "intrinsics": (t, 3, 3), "camera_to_world": (t, 4, 4), "times": (t,), "indices": (t,),
    }  # fmt: skip
    for field, shape in shapes.items():
        value = getattr(views, field)
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(f"{name}: {field} must have shape {shape}, found {tuple(value.shape)}")

    def label(i: int) -> str:
        return f"frame {int(views.indices[i])}" if views.indices is not None else f"view {i}"

    if views.depth is not None and (bad := (views.depth < 0).flatten(1).any(1)).any():
        raise ValueError(f"{name}: {label(int(bad.nonzero()[0]))} has negative depth")
    if views.intrinsics is not None:
        for i, k in enumerate(views.intrinsics.double()):
            if not torch.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
                raise ValueError(f"{name}: intrinsics of {label(i)} need finite values and positive focal lengths")
    if views.camera_to_world is not None:
        for i, pose in enumerate(views.camera_to_world):
            if (fault := pose_fault(pose)) is not None:
                raise ValueError(f"{name}: the pose of {label(i)} {fault}")
    if views.times is not None and bool((views.times[1:] < views.times[:-1]).any()):
        raise ValueError(f"{name}: times must not decrease, frames are in time order")
    return views


def pose_fault(pose: Float[Tensor, "4 4"], tolerance: float = 1e-2) -> str | None:
    """What keeps a matrix from being a rigid camera-to-world pose, in words; None when it is one.

    Tracked captures store rotations that are orthonormal to about 5e-4 only, hence the tolerance.
    """
    pose = pose.double()
    if not torch.isfinite(pose).all():
        return "has values that are not finite (tracking was lost)"
    rotation, eye = pose[:3, :3], torch.eye(3, dtype=torch.float64)
    error = (rotation @ rotation.T - eye).abs().max().item()
    if error > tolerance or torch.linalg.det(rotation) < 0:
        return (
            f"is not rigid (R R^T differs from the identity by {error:.3g}, det {torch.linalg.det(rotation).item():.3g})"
        )
    if (pose[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)).abs().max() > 1e-6:
        return f"is not rigid (its last row is {pose[3].tolist()}, expected 0 0 0 1)"
    return None
