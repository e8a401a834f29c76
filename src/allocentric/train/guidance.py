"""Spatial guidance: what visual tokens are made to know about shape while an S2-MLLM trains (arXiv 2512.01223, section 3.1).

A teacher looks at the model's visual tokens before any position is added to them (else it could read the answer off) and returns a
loss. Three teachers share one signature:

    PointMaps       our own DPT heads, trained jointly, on point maps made from depth and poses
    VGGTFeatures    the features of a frozen VGGT, by cosine (as 3DRS does)
    FrozenDecoder   a pretrained point-map decoder that the user supplies, such as Fast3R's, frozen

Teachers live beside the model, never in it: a saved model has none of their parameters, and gives the same outputs without them.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allocentric.encoders.checkpoints import load_exactly, read_tensors
from allocentric.encoders.heads import DPTHead
from allocentric.encoders.layers import Block
from allocentric.encoders.vggt import VGGTAggregator
from allocentric.geometry.cameras import invert_rigid, transform_points
from allocentric.train.geometry import confident_regression

GRID_PIXELS = 14  # of a point map along a side of a cell


class PointMap(NamedTuple):
    """Points of every pixel and which of them were measured; 0 where not."""

    points: Float[Tensor, "b v h w 3"]
    valid: Bool[Tensor, "b v h w"]


def point_maps(points: Float[Tensor, "b v h w 3"], camera_to_world: Float[Tensor, "b v 4 4"]) -> dict[str, PointMap]:
    """World points (NaN without measurement) in each view's own camera ("local") and in the first view's ("first"), metres."""
    valid = ~points.isnan().any(-1)
    filled = points.masked_fill(~valid[..., None], 0.0)
    world_to_camera = invert_rigid(camera_to_world)
    frames = {"local": world_to_camera, "first": world_to_camera[:, :1].expand_as(world_to_camera)}
    return {
        name: PointMap(transform_points(filled, motion[:, :, None, None]) * valid[..., None], valid)
        for name, motion in frames.items()
    }


def point_map_loss(points: Float[Tensor, "b v h w 3"], confidence: Float[Tensor, "b v h w"], target: PointMap) -> Float[Tensor, ""]:
    """Confidence-weighted distance of two point maps, each divided by its mean distance from the origin over all views.

    mean(C |x / z - y / z'| - 0.2 log C) over measured pixels (DUSt3R, equation 4). Scale-free in both maps; unmeasured pixels take
    no part and get no gradient. A sample without any measured pixel adds nothing.
    """
    scaled = _unit_scale(points, target.valid)
    truth = _unit_scale(target.points, target.valid)
    return confident_regression(scaled, truth, confidence, target.valid)


def _unit_scale(points: Tensor, valid: Tensor) -> Tensor:
    distance = (points.norm(dim=-1) * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)).clamp(min=1)
    return points / distance.clamp(min=1e-8)[:, None, None, None, None]


class PointMaps(nn.Module):
    """Point-map heads learned from nothing: a projection, a few blocks over all views, and one DPT head per frame of reference.

    width, depth, heads   of the blocks. `features` and `out_channels` are those of the DPT heads.
    frames                "local", "first", or both (the paper's two terms; its code has the second only).
    views                 decoded in each step, drawn at random: the heads are what costs. None: all, as always in evaluation.
    """

    def __init__(
        self,
        dim: int,
        width: int = 512,
        depth: int = 3,
        heads: int = 8,
        features: int = 128,
        out_channels: Sequence[int] = (96, 192, 384, 512),
        frames: Sequence[str] = ("local", "first"),
        views: int | None = None,
    ):
        super().__init__()
        self.views = views
        self.project = nn.Linear(dim, width)
        self.reference = nn.Parameter(torch.zeros(width))  # marks the first view
        self.blocks = nn.ModuleList(Block(width, heads, init_values=1.0) for _ in range(depth))
        make = lambda: DPTHead(width, "point", GRID_PIXELS, 0, features, out_channels)  # noqa: E731
        self.heads = nn.ModuleDict({name: make() for name in frames})

    def forward(
        self, features: Float[Tensor, "b v s d"], points: Tensor, camera_to_world: Tensor, images: Tensor | None = None
    ) -> Float[Tensor, ""]:
        b, v, s, _ = features.shape
        tokens = self.project(features.float())
        tokens = torch.cat([tokens[:, :1] + self.reference, tokens[:, 1:]], dim=1)
        levels = [tokens]
        for block in self.blocks:
            levels.append(block(levels[-1].reshape(b, v * s, -1)).view(b, v, s, -1))
        chosen = [levels[round(i * (len(levels) - 1) / 3)] for i in range(4)]  # shallow to deep
        targets = point_maps(points, camera_to_world)
        if self.training and self.views is not None:
            some = torch.randperm(v)[: self.views].to(features.device)
            chosen = [level[:, some] for level in chosen]
            targets = {name: PointMap(target.points[:, some], target.valid[:, some]) for name, target in targets.items()}
        size = tuple(points.shape[2:4])
        losses = [point_map_loss(*head(chosen, size), targets[name]) for name, head in self.heads.items()]
        return torch.stack(losses).mean()


class VGGTFeatures(nn.Module):
    """1 - cosine between the projected tokens and what a frozen VGGT says of the same frames, on the tokens' grid."""

    def __init__(self, dim: int, teacher: VGGTAggregator, layer: int = -1):
        super().__init__()
        width = 2 * teacher.config.embed_dim
        self.project = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width))
        self.teacher, self.layer = frozen(teacher), layer

    def train(self, mode: bool = True) -> "VGGTFeatures":
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def features(self, images: Float[Tensor, "b v 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "b v s c"]:
        """The teacher's patch tokens, pooled to `grid`. Images in [0, 1]; resized to whole patches within its trained size."""
        config, (h, w) = self.teacher.config, images.shape[-2:]
        shrink = min(1.0, config.img_size / max(h, w))
        size = [max(1, round(side * shrink / config.patch_size)) * config.patch_size for side in (h, w)]
        resized = F.interpolate(images.flatten(0, 1), size, mode="bilinear", antialias=True).unflatten(0, images.shape[:2])
        (tokens,) = self.teacher(resized, layers=(self.layer,))
        patches = tokens[:, :, config.special_tokens :].unflatten(2, [side // config.patch_size for side in size])
        pooled = F.adaptive_avg_pool2d(patches.flatten(0, 1).permute(0, 3, 1, 2), grid)
        return pooled.flatten(2).transpose(1, 2).unflatten(0, images.shape[:2])

    def forward(
        self, features: Float[Tensor, "b v s d"], points: Tensor, camera_to_world: Tensor, images: Tensor | None = None
    ) -> Float[Tensor, ""]:
        if images is None:
            raise ValueError("VGGT features: found no images, expected the frames in [0, 1]")
        grid = (points.shape[2] // GRID_PIXELS, points.shape[3] // GRID_PIXELS)
        target = self.features(images, grid)
        return 1 - F.cosine_similarity(self.project(features.float()), target.float(), dim=-1).mean()


class FrozenDecoder(nn.Module):
    """A projection into a pretrained decoder of point maps, which stays as it is (S2-MLLM's own guidance, with Fast3R).

    decoder   (b, v, s, width) tokens and their (rows, columns) -> point map (b, v, h, w, 3) in the first view's camera and
              confidence (b, v, h, w), for h, w = 14 times the grid. Supplied by the user; nothing of it is in this library.
    width     of the decoder's input (Fast3R: 1024).
    """

    def __init__(self, dim: int, decoder: nn.Module, width: int = 1024):
        super().__init__()
        self.project, self.decoder = nn.Linear(dim, width), frozen(decoder)

    def train(self, mode: bool = True) -> "FrozenDecoder":
        super().train(mode)
        self.decoder.eval()  # always: in training mode Fast3R decodes views one by one
        return self

    def forward(
        self, features: Float[Tensor, "b v s d"], points: Tensor, camera_to_world: Tensor, images: Tensor | None = None
    ) -> Float[Tensor, ""]:
        grid = (points.shape[2] // GRID_PIXELS, points.shape[3] // GRID_PIXELS)
        found, confidence = self.decoder(self.project(features.float()), grid)
        if found.shape != points.shape:
            raise ValueError(f"decoder: found a point map of shape {tuple(found.shape)}, expected {tuple(points.shape)}")
        return point_map_loss(found, confidence, point_maps(points, camera_to_world)["first"])


def frozen(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, its parameters without gradients. Gradients still flow through it to its input."""
    return module.requires_grad_(False).eval()


def load_decoder(factory: str, checkpoint: str | Path, **kwargs) -> nn.Module:
    """A decoder for `FrozenDecoder` out of the user's own code and weights.

    factory      "package.module:name" of something in the user's environment that makes the module; `kwargs` go to it.
    checkpoint   safetensors file or folder with Fast3R's tensor names: a leading "net." is dropped, the image encoder
                 ("encoder.") is not read. All other names must be the module's, exactly.
    """
    module, colon, name = factory.partition(":")
    if not colon:
        raise ValueError(f"decoder: found {factory!r}, expected 'package.module:name'")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"decoder: {factory} cannot be imported ({error}), expected it in your environment") from error
    decoder = make(**kwargs)

    def rename(stored: str) -> str | None:
        stored = stored.removeprefix("net.")
        return None if stored.startswith("encoder.") else stored

    load_exactly(decoder, read_tensors(checkpoint, rename), checkpoint)
    return frozen(decoder)
