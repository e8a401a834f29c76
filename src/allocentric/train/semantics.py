"""Teach a 2D encoder from scratch what things are called: which categories each of its tokens shows.

Qwen's ViT comes pretrained on images with text; a small model that starts from nothing learns to see here first. The linear head
belongs to training and is not kept.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset

from allocentric.models.patches import patchify
from allocentric.models.spatial_mllm import SpatialMLLMModel
from allocentric.train.shards import RoomSample, RoomShards, mirror, random_generator

PRESENT = 0.03  # share of a token's pixels from which a category counts as shown
POINTS = 4  # per side: a token also names what is at POINTS x POINTS places of its cell


def token_categories(sample: RoomSample, labels: Sequence[str], cell: int) -> Float[np.ndarray, "tokens labels"]:
    """1 where a category covers at least `PRESENT` of a token's `cell` x `cell` pixels, in the order of the merged 2D tokens."""
    index = {label: i for i, label in enumerate(labels)}
    table = np.full(256, len(labels))
    for item in sample.scene.objects:
        table[item.id] = index[item.label]
    t, h, w = sample.ids.shape
    cells = table[sample.ids].reshape(t, h // cell, cell, w // cell, cell).transpose(0, 1, 3, 2, 4).reshape(-1, cell * cell)
    token = np.arange(len(cells))[:, None]
    counts = np.bincount((token * (len(labels) + 1) + cells).ravel(), minlength=len(cells) * (len(labels) + 1))
    return (counts.reshape(len(cells), -1)[:, :-1] >= PRESENT * cell * cell).astype(np.float32)


def point_categories(sample: RoomSample, labels: Sequence[str], cell: int) -> Int[np.ndarray, "tokens points"]:
    """The category at an even grid of `POINTS` x `POINTS` pixels of each token's cell; len(labels) where there is none."""
    index = {label: i for i, label in enumerate(labels)}
    table = np.full(256, len(labels))
    for item in sample.scene.objects:
        table[item.id] = index[item.label]
    t, h, w = sample.ids.shape
    at = ((np.arange(POINTS) + 0.5) * cell / POINTS).astype(int)
    cells = table[sample.ids].reshape(t, h // cell, cell, w // cell, cell)[:, :, at][..., at]
    return cells.transpose(0, 1, 3, 2, 4).reshape(-1, POINTS * POINTS)


def augment_colour(frames: Float[Tensor, "t 3 h w"], rng: np.random.Generator) -> Float[Tensor, "t 3 h w"]:
    """One random brightness, contrast and tint for the whole clip; values stay in [0, 1]."""
    gain = torch.tensor(rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3), dtype=frames.dtype).view(3, 1, 1)
    mean = frames.mean()
    return ((frames - mean) * float(rng.uniform(0.8, 1.2)) + mean).mul(gain).clamp(0, 1)


class SemanticRooms(Dataset):
    """Clips of rooms as ViT input and the categories of each token."""

    def __init__(self, shards: RoomShards, labels: Sequence[str], model: SpatialMLLMModel, frames: int):
        self.shards, self.labels, self.frames = shards, labels, frames
        vision = model.config.vision_config
        self.cell = vision.patch_size * vision.spatial_merge_size
        self.config = model.config

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random_generator()
        sample = self.shards[index]
        if rng.random() < 0.5:
            sample = mirror(sample)
        chosen = np.sort(rng.choice(len(sample.frames), self.frames, replace=False))
        sample = sample.select(chosen)
        frames = torch.from_numpy(np.ascontiguousarray(sample.frames)).permute(0, 3, 1, 2).float() / 255
        pixel_values, grid = patchify(augment_colour(frames, rng), self.config)
        return {
            "pixel_values": pixel_values,
            "grid_thw": grid[None],
            "categories": torch.from_numpy(token_categories(sample, self.labels, self.cell)),
            "points": torch.from_numpy(point_categories(sample, self.labels, self.cell)),
        }


class TokenClassifier(nn.Module):
    """The 2D encoder with two linear layers: which categories a token shows, and what is where in its cell.

    The second says the same in more detail, and detail teaches: a cell of wall with the edge of a chair is told from one with
    a chair in it. `forward` returns the loss the Trainer wants.
    """

    def __init__(self, model: SpatialMLLMModel, labels: int):
        super().__init__()
        self.visual, self.labels = model.visual, labels
        self.head = nn.Linear(model.config.text_config.hidden_size, labels)
        self.where = nn.Linear(model.config.text_config.hidden_size, POINTS * POINTS * (labels + 1))

    def forward(
        self,
        pixel_values: Float[Tensor, "patches features"],
        grid_thw: Int[Tensor, "rows 3"],
        categories: Float[Tensor, "tokens labels"],
        points: Int[Tensor, "tokens points"],
    ) -> dict[str, Tensor]:
        # On a CPU, plain products beat the fused kernel on windows of a frame each, most of all in the backward pass.
        with sdpa_kernel(SDPBackend.MATH) if pixel_values.device.type == "cpu" else nullcontext():
            tokens = self.visual(pixel_values, grid_thw=grid_thw).pooler_output
        logits = self.head(tokens)
        # summed over categories: most are absent from most tokens, and a mean would vanish
        shown = nn.functional.binary_cross_entropy_with_logits(logits, categories, reduction="none").sum(-1).mean()
        where = nn.functional.cross_entropy(self.where(tokens).float().view(-1, self.labels + 1), points.flatten())
        return {"loss": shown + where, "logits": logits, "shown_loss": shown.detach(), "where_loss": where.detach()}
