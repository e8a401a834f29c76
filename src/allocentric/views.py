"""`Views`: what a camera saw. The one input type of the library."""

from dataclasses import dataclass, replace
from typing import Literal

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
