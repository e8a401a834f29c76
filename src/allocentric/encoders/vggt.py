"""VGGT (arXiv 2503.11651): images of one place in, geometry tokens, cameras, depth and points out.

    frames ─► patch encoder ─► + camera and register tokens ─► [frame block ─► global block] x depth ─► tokens
              (DINOv2)                                          each frame      all frames

Our own implementation. The aggregator's module names are the published ones; `our_name` maps the heads'.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, no_type_check

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers import PreTrainedConfig

from allocentric.encoders.checkpoints import load_exactly, located, read_tensors
from allocentric.encoders.heads import CameraHead, DPTHead
from allocentric.encoders.layers import Block, init_linear, rope_2d
from allocentric.geometry.cameras import decode_pose

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = ("camera", "depth", "point")


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class VGGTConfig(PreTrainedConfig):
    """Sizes of a VGGT. The default is VGGT-1B; fields left None follow from the others.

    img_size                  side, in pixels, of the square image the positional embedding is stored for.
    embed_dim, depth          width C, and number of (frame block, global block) pairs; tokens are 2C wide.
    num_heads                 head width (embed_dim / num_heads) is a multiple of 4: RoPE turns pairs on two axes.
    init_values               start of LayerScale in the alternating blocks and the camera head. 0.01 as published; 1.0 suits
                              small models trained from scratch.
    global_qk_norm            norm of queries and keys in the global blocks: "layernorm" as published, or "rmsnorm", with which
                              released Spa3R weights were made (`encoders.spa3r`).
    patch_embed_depth, patch_embed_num_heads, patch_embed_init_values
                              the DINOv2 patch encoder; None: `depth`, `num_heads`.
    camera_depth, camera_num_heads, camera_iterations
                              the camera head's blocks and rounds; None: `num_heads`.
    dpt_features, dpt_out_channels, dpt_layers
                              the dense heads: widths (None: C/4, and C/4, C/2, C, C) and the four pairs read, of which the
                              last is the last pair (None: evenly spread; for depth 24 the published 4, 11, 17, 23).
    """

    model_type = "vggt"
    base_config_key = "spatial_config"

    img_size: int = 518
    patch_size: int = 14
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float | int = 4.0
    num_register_tokens: int = 4
    rope_freq: float | int = 100.0
    init_values: float | int = 0.01
    global_qk_norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    patch_embed_depth: int | None = None
    patch_embed_num_heads: int | None = None
    patch_embed_init_values: float | int = 1.0
    camera_depth: int = 4
    camera_num_heads: int | None = None
    camera_iterations: int = 4
    dpt_features: int | None = None
    dpt_out_channels: list[int] | tuple[int, ...] | None = None
    dpt_layers: list[int] | tuple[int, ...] | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        c, depth = self.embed_dim, self.depth
        self.patch_embed_depth = depth if self.patch_embed_depth is None else self.patch_embed_depth
        self.patch_embed_num_heads = self.patch_embed_num_heads or self.num_heads
        self.camera_num_heads = self.camera_num_heads or self.num_heads
        self.dpt_features = self.dpt_features or c // 4
        self.dpt_out_channels = list(self.dpt_out_channels or (c // 4, c // 2, c, c))
        spread = (4, 11, 17, 23) if depth == 24 else ((depth * k + 3) // 4 - 1 for k in (1, 2, 3, 4))
        self.dpt_layers = list(self.dpt_layers or spread)
        if c % self.num_heads or (c // self.num_heads) % 4:
            raise ValueError(f"num_heads: found {self.num_heads} on embed_dim {c}, expected heads whose width is a multiple of 4")
        if self.img_size % self.patch_size:
            raise ValueError(f"img_size: found {self.img_size}, expected a multiple of patch_size {self.patch_size}")
        read = self.dpt_layers
        if len(read) != 4 or read[-1] != depth - 1 or not all(0 <= layer < depth for layer in read):
            raise ValueError(f"dpt_layers: found {read}, expected four pairs out of 0..{depth - 1}, the last one {depth - 1}")

    @property
    def special_tokens(self) -> int:
        """Tokens in front of each frame's patches: one camera token, then the registers."""
        return 1 + self.num_register_tokens

    @classmethod
    def tiny(cls, **changes) -> "VGGTConfig":
        """A few ten thousand parameters, for tests: the same code."""
        small = {"img_size": 70, "embed_dim": 32, "depth": 2, "num_heads": 2, "patch_embed_depth": 1, "camera_depth": 1}
        return cls(**{**small, "init_values": 1.0, **changes})


class PatchEncoder(nn.Module):
    """DINOv2 with registers (arXiv 2304.07193, 2309.16588): images in [0, 1] in, patch tokens out."""

    def __init__(self, config: VGGTConfig):
        super().__init__()
        c, p = config.embed_dim, config.patch_size
        self.patch_size, self.side = p, config.img_size // p
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, c, p, p)})
        self.cls_token = nn.Parameter(torch.empty(1, 1, c))
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, c))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.side**2, c))
        self.blocks = nn.ModuleList(
            Block(c, config.patch_embed_num_heads, config.mlp_ratio, config.patch_embed_init_values, eps=1e-6)
            for _ in range(config.patch_embed_depth)
        )
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.apply(init_linear)
        for parameter in (self.cls_token, self.register_tokens, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        x = self._embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 1 + self.register_tokens.shape[1] :])

    def _embed(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n t c"]:
        """Class token, registers, then patches with their positions."""
        # Channel by channel with plain numbers: no constant tensor to copy to the device.
        normal = [(images[:, i] - mean) / std for i, (mean, std) in enumerate(zip(IMAGE_MEAN, IMAGE_STD, strict=True))]
        grid = self.patch_embed["proj"](torch.stack(normal, dim=1).to(self.cls_token.dtype))
        patches = grid.flatten(2).transpose(1, 2) + self._positions(*grid.shape[-2:])
        first = torch.cat([self.cls_token + self.pos_embed[:, :1], self.register_tokens], dim=1)
        return torch.cat([first.expand(len(images), -1, -1).to(patches.dtype), patches], dim=1)

    def _positions(self, height: int, width: int) -> Float[Tensor, "1 p c"]:
        """Positional embedding resampled to the patch grid, in float32, as published: bicubic with antialiasing."""
        stored = self.pos_embed[:, 1:]
        if (height, width) == (self.side, self.side):
            return stored
        square = stored.float().unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        resized = F.interpolate(square, (height, width), mode="bicubic", antialias=True)
        return resized.flatten(2).transpose(1, 2).to(stored.dtype)


class VGGTAggregator(nn.Module):
    """Images to geometry tokens: patch encoder, then blocks that attend within each frame and across all, in turn.

    The first frame is the reference frame: its camera and register tokens differ from those of all others.
    """

    def __init__(self, config: VGGTConfig):
        super().__init__()
        self.config = config
        c = config.embed_dim
        self.patch_embed = PatchEncoder(config)
        self.camera_token = nn.Parameter(torch.empty(1, 2, 1, c))
        self.register_token = nn.Parameter(torch.empty(1, 2, config.num_register_tokens, c))
        block = partial(Block, c, config.num_heads, config.mlp_ratio, config.init_values, qk_norm=nn.LayerNorm)
        self.frame_blocks = nn.ModuleList(block() for _ in range(config.depth))
        global_norm = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}[config.global_qk_norm]
        self.global_blocks = nn.ModuleList(block(qk_norm=global_norm) for _ in range(config.depth))
        self.frame_blocks.apply(init_linear)
        self.global_blocks.apply(init_linear)
        nn.init.trunc_normal_(self.camera_token, std=0.02)
        nn.init.trunc_normal_(self.register_token, std=0.02)

    def forward(
        self, images: Shaped[Tensor, "..."], layers: Sequence[int] = (-1,), context: int | None = None
    ) -> list[Float[Tensor, "b s t c2"]]:
        """Tokens after the asked pairs of blocks: (B, S, 1 + registers + patches, 2C), frame half then global half.

        images   (B, S, 3, H, W) in [0, 1]; H and W multiples of the patch size.
        layers   which pairs; negative counts from the last. Nothing else is kept, and nothing deeper than the deepest is run.
        context  the first so many frames see only each other, the others see all (Spa3R's asymmetric views); None: all see all.
        """
        config = self.config
        b, s, height, width = self._check(images)
        wanted = self._pairs(layers)
        grid = (height // config.patch_size, width // config.patch_size)

        x = self._tokens(images)
        tokens, c = x.shape[2:]

        rotation = rope_2d(*grid, config.special_tokens, c // config.num_heads, config.rope_freq, x.device)
        kept: dict[int, Tensor] = {}
        for i in range(max(wanted) + 1):
            x = self.frame_blocks[i](x.view(b * s, tokens, c), rotation)
            within = x if i in wanted else None
            x = self.global_blocks[i](x.view(b, s * tokens, c), rotation, None if context is None else context * tokens)
            if within is not None:
                kept[i] = torch.cat([within.view(b, s, tokens, c), x.view(b, s, tokens, c)], dim=-1)
        return [kept[i] for i in wanted]

    def _tokens(self, images: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b s t c"]:
        """Camera token and registers, one set for the first frame and one for all others, then the patches."""
        b, s = images.shape[:2]
        patches = self.patch_embed(images.flatten(0, 1)).unflatten(0, (b, s))
        special = torch.cat([self.camera_token, self.register_token], dim=2).to(patches.dtype)
        special = torch.cat([special[:, :1].expand(b, 1, -1, -1), special[:, 1:].expand(b, s - 1, -1, -1)], dim=1)
        return torch.cat([special, patches], dim=2)

    def _check(self, images: Tensor) -> tuple[int, int, int, int]:
        patch = self.config.patch_size
        if images.ndim != 5 or images.shape[2] != 3 or not images.is_floating_point():
            raise ValueError(
                f"images: found {images.dtype} of shape {tuple(images.shape)}, expected floats in [0, 1] of shape "
                "(batch, frames, 3, height, width)"
            )
        if 0 in images.shape:
            raise ValueError(f"images: found shape {tuple(images.shape)}, expected at least one frame")
        b, s, _, height, width = images.shape
        if height % patch or width % patch:
            raise ValueError(f"images: found {height} x {width} pixels, expected multiples of the patch size {patch}")
        return b, s, height, width

    def _pairs(self, layers: Sequence[int]) -> list[int]:
        depth = self.config.depth
        if not layers or not all(-depth <= layer < depth for layer in layers):
            raise ValueError(f"layers: found {tuple(layers)}, expected one or more of {-depth} to {depth - 1}")
        return [layer % depth for layer in layers]


@dataclass
class VGGTOutput:
    """What VGGT says of each frame; None for heads it was built without. World: the first camera's axes, its own scale.

    pose_enc             (B, S, 9), `geometry.cameras.decode_pose`; pose_rounds has that of every round, for training.
    extrinsics           (B, S, 3, 4) world to camera.
    intrinsics           (B, S, 3, 3) pixels.
    depth, depth_conf    (B, S, H, W, 1), (B, S, H, W); confidence is 1 or more.
    world_points, world_points_conf   (B, S, H, W, 3), (B, S, H, W).
    """

    pose_enc: Tensor | None = None
    pose_rounds: list[Tensor] | None = None
    extrinsics: Tensor | None = None
    intrinsics: Tensor | None = None
    depth: Tensor | None = None
    depth_conf: Tensor | None = None
    world_points: Tensor | None = None
    world_points_conf: Tensor | None = None


class VGGT(nn.Module):
    """The aggregator with the heads that are asked for; the others are None and cost nothing."""

    def __init__(self, config: VGGTConfig, heads: Sequence[str] = HEADS):
        super().__init__()
        if unknown := set(heads) - set(HEADS):
            raise ValueError(f"heads: found {sorted(unknown)}, expected some of {HEADS}")
        self.config = config
        width = 2 * config.embed_dim
        self.aggregator = VGGTAggregator(config)
        self.camera_head = self.depth_head = self.point_head = None
        if "camera" in heads:
            self.camera_head = CameraHead(
                width, config.camera_depth, config.camera_num_heads, config.camera_iterations, config.mlp_ratio, config.init_values
            )
        dense = partial(
            DPTHead,
            width,
            patch_size=config.patch_size,
            special=config.special_tokens,
            features=config.dpt_features,
            out_channels=config.dpt_out_channels,
        )
        if "depth" in heads:
            self.depth_head = dense("depth")
        if "point" in heads:
            self.point_head = dense("point")

    def built(self) -> tuple[str, ...]:
        """The heads this model has."""
        return tuple(head for head in HEADS if getattr(self, f"{head}_head") is not None)

    def aggregate(self, images: Shaped[Tensor, "..."], heads: Sequence[str] | None = None) -> list[Float[Tensor, "b s t c2"]]:
        """The tokens that `heads` (default: those it has) read: all of them for the dense heads, the last for the camera head."""
        dense = {"depth", "point"} & set(self.built() if heads is None else heads)
        return self.aggregator(images, self.config.dpt_layers if dense else (-1,))

    def forward(
        self, images: Shaped[Tensor, "..."], frame_chunk: int | None = 8, heads: Sequence[str] | None = None
    ) -> VGGTOutput:
        """Geometry of (B, S, 3, H, W) images in [0, 1].

        frame_chunk   frames the dense heads decode at a time: bounds memory, changes nothing else. None: all.
        heads         which heads to run; default: those it has.
        """
        heads = self.built() if heads is None else heads
        if missing := [head for head in heads if head not in self.built()]:
            raise ValueError(f"heads: found {missing}, expected some of {self.built()}, which this model was built with")
        tokens, size, out = self.aggregate(images, heads), tuple(images.shape[-2:]), VGGTOutput()
        # As published, heads work at the precision of their weights even under autocast: they write metres and pixels.
        with torch.autocast(images.device.type, enabled=False):
            tokens = [level.to(self.aggregator.camera_token.dtype) for level in tokens]
            if "camera" in heads:
                out.pose_rounds = self.camera_head(tokens[-1])
                out.pose_enc = out.pose_rounds[-1]
                out.extrinsics, out.intrinsics = decode_pose(out.pose_enc, size)
            if "depth" in heads:
                out.depth, out.depth_conf = self.depth_head(tokens, size, frame_chunk)
            if "point" in heads:
                out.world_points, out.world_points_conf = self.point_head(tokens, size, frame_chunk)
        return out


# ------------------------------------------------------------------------------------------------------------------- checkpoints

# What released files carry and this model has no use for: the tracker, and the token of DINOv2's masked pretraining.
UNUSED = r"^(track_head\.|aggregator\.patch_embed\.mask_token$)"

_HEAD_NAMES = (
    (r"^camera_head\.empty_pose_tokens$", "camera_head.empty_pose"),
    (r"^camera_head\.poseLN_modulation\.1\.", "camera_head.modulation."),
    (r"^(depth|point)_head\.projects\.", r"\1_head.project."),
    (r"^(depth|point)_head\.resize_layers\.", r"\1_head.resize."),
    (r"^(depth|point)_head\.scratch\.layer(\d)_rn\.", lambda m: f"{m[1]}_head.adapt.{int(m[2]) - 1}."),
    (r"^(depth|point)_head\.scratch\.refinenet(\d)\.", lambda m: f"{m[1]}_head.fuse.{int(m[2]) - 1}."),
    (r"^(depth|point)_head\.scratch\.output_conv1\.", r"\1_head.reduce."),
    (r"^(depth|point)_head\.scratch\.output_conv2\.", r"\1_head.predict."),
    (r"(\.fuse\.\d\.)resConfUnit1\.", r"\1skip."),
    (r"(\.fuse\.\d\.)resConfUnit2\.", r"\1refine."),
    (r"(\.fuse\.\d\.)out_conv\.", r"\1out."),
)


def our_name(published: str) -> str | None:
    """Our name of a tensor of VGGT-1B; None for what this model has no use for. Our own names stay as they are."""
    if re.search(UNUSED, published):
        return None
    for pattern, ours in _HEAD_NAMES:
        published = re.sub(pattern, ours, published)
    return published


def load_vggt(
    path: str | Path,
    heads: Sequence[str] = HEADS,
    config: VGGTConfig | None = None,
    dtype: torch.dtype | None = None,
) -> VGGT:
    """A VGGT with released weights ("facebook/VGGT-1B") or ones saved under our names; only what is needed is read.

    path     a .safetensors file, a folder, or a hub id: `encoders.checkpoints.read_tensors`.
    config   default: that of the folder if it holds a `config.json` of ours, else VGGT-1B.
    dtype    default: as stored.
    """
    path = located(path)
    with torch.device("meta"):
        model = VGGT(config or _config_beside(path), heads)
    absent = tuple(f"{head}_head." for head in HEADS if head not in heads)

    def wanted(name: str) -> str | None:
        return None if name.startswith(absent) else our_name(name)

    load_exactly(model, read_tensors(path, wanted, dtype), path)
    return model.eval()


def _config_beside(path: str | Path) -> VGGTConfig:
    local = Path(path)
    if local.exists():
        file = (local if local.is_dir() else local.parent) / "config.json"
    else:
        file = _from_hub(str(path), "config.json")
    found = json.loads(file.read_text()) if file is not None and file.is_file() else None
    if isinstance(found, dict) and found.get("model_type") == VGGTConfig.model_type:
        return VGGTConfig.from_pretrained(file.parent)
    return VGGTConfig()


def _from_hub(repository: str, name: str) -> Path | None:
    """A file of a hub repository; None if it has none of that name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name))
    except EntryNotFoundError:
        return None
