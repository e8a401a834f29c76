"""Frames -> Qwen's flattened patches, in tensors: what the image processor does behind resizing."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allocentric.models.spatial_mllm import SpatialMLLMConfig


def patchify(
    frames: Float[Tensor, "t 3 h w"], config: SpatialMLLMConfig
) -> tuple[Float[Tensor, "patches features"], Int[Tensor, "3"]]:
    """Normalise frames in [0, 1] and cut them up; returns pixel values and their (t, h, w) grid. Inverse of `unpatchify`."""
    vision = config.vision_config
    p, m, step = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    t, _, h, w = frames.shape
    if t % step or h % (p * m) or w % (p * m):
        raise ValueError(f"frames: found {t} of {h} x {w}, expected a multiple of {step} with sides in multiples of {p * m}")
    mean, std = (torch.tensor(v, device=frames.device).view(3, 1, 1) for v in (config.image_mean, config.image_std))
    grid = (t // step, h // p, w // p)
    blocks = ((frames - mean) / std).view(grid[0], step, 3, grid[1] // m, m, p, grid[2] // m, m, p)
    pixels = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], 3 * step * p * p)
    return pixels, torch.tensor(grid, device=frames.device)
