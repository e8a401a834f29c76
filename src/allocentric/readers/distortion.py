"""Pictures of lenses that bend lines -> pictures of a pinhole with the same intrinsics."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Lens:
    """How a lens bends rays: radial `k` (k1, k2, ...), tangential `p` (p1, p2), and whether it is a fisheye.

    Perspective lenses follow Brown and Conrady (OpenCV, COLMAP's OPENCV), fisheyes Kannala and Brandt with four k
    (OPENCV_FISHEYE): r = theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8).
    """

    k: tuple[float, ...] = ()
    p: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def straight(self) -> bool:
        """Whether this is a pinhole already."""
        return not self.fisheye and not any(self.k) and not any(self.p)

    def bend(self, x: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
        """Where the lens puts rays that a pinhole puts at (x, y), both at focal length 1."""
        r2 = x * x + y * y
        if self.fisheye:
            r = np.sqrt(r2)
            theta = np.arctan(r)
            bent = theta * (1 + sum(k * theta ** (2 * i + 2) for i, k in enumerate(self.k)))
            factor = np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1.0)
            return x * factor, y * factor
        radial = 1 + sum(k * r2 ** (i + 1) for i, k in enumerate(self.k))
        p1, p2 = self.p
        return x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y


def undistort(image: UInt8[Tensor, "3 h w"], intrinsics: Float[np.ndarray, "3 3"], lens: Lens) -> UInt8[Tensor, "3 h w"]:
    """The picture a pinhole of these intrinsics would have taken; black where the lens saw nothing."""
    return _straighten(image.float(), intrinsics, lens, "bilinear").round().clamp(0, 255).to(torch.uint8)


def undistort_depth(depth: Float[Tensor, "h w"], intrinsics: Float[np.ndarray, "3 3"], lens: Lens) -> Float[Tensor, "h w"]:
    """The same for depth along z, each pixel the nearest measured one; 0 where the lens saw nothing."""
    return _straighten(depth[None].float(), intrinsics, lens, "nearest")[0]


def _straighten(picture: Tensor, intrinsics: np.ndarray, lens: Lens, mode: str) -> Tensor:
    height, width = picture.shape[1:]
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    x, y = lens.bend((u - cx) / fx, (v - cy) / fy)
    grid = np.stack([2 * (fx * x + cx) / width - 1, 2 * (fy * y + cy) / height - 1], axis=-1)
    return F.grid_sample(picture[None], torch.from_numpy(grid).float()[None], mode=mode, align_corners=False)[0]
