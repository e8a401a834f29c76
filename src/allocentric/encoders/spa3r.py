"""Spa3R (arXiv 2602.21186): a place as one latent, learned by predicting what views that were not shown look like.

    context views ─► VGGT ─► project ─► [registers | queries | patches] ─► encoder ─► latent z (the query rows)
    a camera ──────► a ray per patch ─► [registers | z | rays] ─► decoder ─► that view's features

`Spa3REncoder` is what a language model needs; `Spa3R` adds the decoder for pretraining and for looking at what a latent knows.
Module names are the published ones (those of VGGT's camera head: `encoders.vggt`).
"""

import json
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, no_type_check

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float, Shaped, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from allocentric.encoders.checkpoints import FILE, load_exactly, located, read_tensors
from allocentric.encoders.heads import CameraHead
from allocentric.encoders.layers import MLP, Attention, attend, init_linear, rope_2d, rotate
from allocentric.encoders.vggt import VGGTAggregator, VGGTConfig
from allocentric.encoders.vggt import our_name as vggt_name
from allocentric.geometry.cameras import decode_pose, invert_rigid


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class Spa3RConfig(PreTrainedConfig):
    """Sizes of a Spa3R. The default has the published sizes on a VGGT-1B, put right; `compat()` is the released network.

    vggt_config         the VGGT whose tokens are read and predicted.
    embed_dim, num_heads, mlp_ratio, num_register_tokens, rope_freq   of encoder and decoder alike.
    num_queries         length of the latent.
    num_encoder_layers, num_decoder_layers
    semantic_dim        width of the semantic teacher's features; 1024 is DINOv3 ViT-L's.
    world               where cameras are given from: "first", the first view's own axes, or "predicted" (published), VGGT's
                        frame, in which the predicted first camera is only near the origin.
    """

    model_type = "spa3r"
    base_config_key = "spa3r_config"
    sub_configs_defaults = {"vggt_config": SubConfigSpec(VGGTConfig)}  # noqa: RUF012

    vggt_config: dict | PreTrainedConfig | None = None
    embed_dim: int = 768
    num_queries: int = 256
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 12
    mlp_ratio: float | int = 4.0
    num_register_tokens: int = 4
    rope_freq: float | int = 100.0
    semantic_dim: int = 1024
    world: Literal["first", "predicted"] = "first"

    def __post_init__(self, **kwargs):
        given = self.vggt_config
        if not isinstance(given, PreTrainedConfig):
            self.vggt_config = VGGTConfig(**{k: v for k, v in (given or {}).items() if k != "model_type"})
        super().__post_init__(**kwargs)
        for name in ("embed_dim", "num_heads", "num_queries", "num_encoder_layers", "num_decoder_layers", "semantic_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least 1")
        if self.embed_dim % self.num_heads or (self.embed_dim // self.num_heads) % 8:
            raise ValueError(
                f"num_heads: found {self.num_heads} on embed_dim {self.embed_dim}, expected heads whose width is a multiple of 8: "
                "the decoder turns half of it with the camera in fours, and a quarter with each image axis in pairs"
            )

    @classmethod
    def compat(cls, vggt_config: VGGTConfig | None = None, **changes) -> "Spa3RConfig":
        """The network of the released weights: RMSNorm in VGGT's global blocks, and cameras in VGGT's own frame."""
        vggt = (vggt_config or VGGTConfig()).to_dict() | {"global_qk_norm": "rmsnorm"}
        return cls(**{"vggt_config": vggt, "world": "predicted", **changes})

    @classmethod
    def tiny(cls, **changes) -> "Spa3RConfig":
        """A few ten thousand parameters, for tests: the same code."""
        small = {"embed_dim": 32, "num_heads": 2, "num_queries": 6, "num_encoder_layers": 2, "num_decoder_layers": 2}
        return cls(**{"vggt_config": VGGTConfig.tiny(), **small, "semantic_dim": 12, **changes})


# ------------------------------------------------------------------------------------------------------- asymmetric views


def context_count(views: int, mask_ratio: float) -> int:
    """How many of `views` are context: the share that is not masked, rounded down, at least one."""
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio: found {mask_ratio}, expected at least 0 and less than 1")
    return max(1, int(views * (1 - mask_ratio) + 1e-9))


def aggregate_views(
    aggregator: VGGTAggregator,
    images: Shaped[Tensor, "..."],
    targets: Bool[Tensor, "b s"] | None = None,
    layers: Sequence[int] = (-1,),
) -> list[Float[Tensor, "b s t c2"]]:
    """VGGT tokens where context views see context views and target views see all (section 3.2), in the order of `images`.

    targets   True for target views; the first view is context, and every sample has as many targets. None: all views are context.

    Exact without a mask: VGGT treats all views but the first alike, so context views go first and attend among themselves.
    """
    if targets is None or not targets.any():
        return aggregator(images, layers)
    counts = (~targets).sum(1)
    if targets[:, 0].any() or (counts != counts[0]).any():
        raise ValueError(
            f"targets: found {targets.int().tolist()}, expected a context view first, and equally many targets in every sample"
        )
    order = targets.int().argsort(dim=1, stable=True)
    back = order.argsort(dim=1)
    tokens = aggregator(_pick(images, order), layers, context=int(counts[0]))
    return [_pick(level, back) for level in tokens]


def _pick(x: Tensor, order: Tensor) -> Tensor:
    """Views of each sample in that sample's own order."""
    return x.take_along_dim(order.view(*order.shape, *[1] * (x.ndim - 2)), dim=1)


# -------------------------------------------------------------------------------------- where tokens are: RoPE and PRoPE


class Placement:
    """Position encoding inside attention: what is done to queries, keys, values and the output, (batch, token, head, dim).

    Queries may be those of some `rows` of the tokens only.
    """

    def query(self, x: Tensor, rows: slice) -> Tensor:
        return x

    def key(self, x: Tensor) -> Tensor:
        return x

    def value(self, x: Tensor) -> Tensor:
        return x

    def output(self, x: Tensor) -> Tensor:
        return x


class AxialRoPE(Placement):
    """2D RoPE on queries and keys: `unplaced` tokens, left as they are, then the patches of each view."""

    def __init__(self, grid: tuple[int, int], views: int, unplaced: int, head_dim: int, base: float | int, device: torch.device):
        table = rope_2d(*grid, unplaced, head_dim, float(base), device)
        self.cos, self.sin = (torch.cat([part[:unplaced], part[unplaced:].repeat(views, 1, 1, 1)]) for part in table)

    def query(self, x: Tensor, rows: slice) -> Tensor:
        return rotate(x, (self.cos[rows], self.sin[rows]))

    def key(self, x: Tensor) -> Tensor:
        return rotate(x, (self.cos, self.sin))


class PRoPE(Placement):
    """Projective positional encoding (arXiv 2507.10496): the last tokens are the patches of one camera, the others are unplaced.

    Of each head, half is moved by the camera's projection P = K E in groups of four, a quarter turns with the column and a
    quarter with the row. Queries get P^T, keys and values P^-1, outputs P: two placed tokens meet through P_i P_j^-1.
    With one camera in the sequence that cancels between patches, and what the latent is met with is P itself: an absolute pose.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        extrinsics: Float[Tensor, "b 3 4"],
        intrinsics: Float[Tensor, "b 3 3"],
        size: tuple[int, int],
        head_dim: int,
        base: float | int,
    ):
        self.patches = grid[0] * grid[1]
        self.projection, self.inverse = projections(extrinsics, intrinsics, size)
        count = head_dim // 8
        frequency = base ** -(torch.arange(count, device=extrinsics.device, dtype=torch.float32) / count)
        row, column = (torch.arange(n, device=extrinsics.device, dtype=torch.float32) for n in grid)
        place = torch.stack([column.expand(grid).flatten(), row[:, None].expand(grid).flatten()], dim=-1)
        angle = (place[..., None] * frequency)[:, None]
        self.cos, self.sin = angle.cos(), angle.sin()

    def query(self, x: Tensor, rows: slice) -> Tensor:
        return self._place(x, self.projection.mT, -1)

    def key(self, x: Tensor) -> Tensor:
        return self._place(x, self.inverse, -1)

    def value(self, x: Tensor) -> Tensor:
        return self._place(x, self.inverse, -1)

    def output(self, x: Tensor) -> Tensor:
        return self._place(x, self.projection, 1)

    def _place(self, x: Float[Tensor, "b t heads d"], matrix: Float[Tensor, "b 4 4"], turn: int) -> Float[Tensor, "b t heads d"]:
        unplaced, placed = x[:, : -self.patches], x[:, -self.patches :].float()
        half = x.shape[-1] // 2
        with torch.autocast(x.device.type, enabled=False):
            moved = torch.einsum("bij,bthgj->bthgi", matrix, placed[..., :half].unflatten(-1, (-1, 4)))
        a, b = placed[..., half:].unflatten(-1, (2, 2, -1)).unbind(-2)
        turned = torch.stack([a * self.cos - turn * b * self.sin, turn * a * self.sin + b * self.cos], dim=-2)
        return torch.cat([unplaced, torch.cat([moved.flatten(-2), turned.flatten(-3)], dim=-1).to(x.dtype)], dim=1)


def projections(
    extrinsics: Float[Tensor, "*b 3 4"], intrinsics: Float[Tensor, "*b 3 3"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*b 4 4"], Float[Tensor, "*b 4 4"]]:
    """P = K E as 4x4, with K in units of the image and measured from its centre, and the inverse of P; float32.

    extrinsics   world to camera.
    size         (height, width) in pixels, of `intrinsics`.
    """
    height, width = size
    extrinsics, intrinsics = extrinsics.float(), intrinsics.float()
    fx, fy = intrinsics[..., 0, 0] / width, intrinsics[..., 1, 1] / height
    cx, cy = intrinsics[..., 0, 2] / width - 0.5, intrinsics[..., 1, 2] / height - 0.5
    zero, one = torch.zeros_like(fx), torch.ones_like(fx)

    def lifted(*entries: Tensor) -> Tensor:
        return torch.stack([*entries, zero, zero, zero, zero, one], dim=-1).unflatten(-1, (4, 4))

    k = lifted(fx, zero, cx, zero, zero, fy, cy, zero, zero, zero, one)
    k_inverse = lifted(1 / fx, zero, -cx / fx, zero, zero, 1 / fy, -cy / fy, zero, zero, zero, one)
    with torch.autocast(extrinsics.device.type, enabled=False):
        return k @ _square(extrinsics), invert_rigid(extrinsics) @ k_inverse


def _square(extrinsics: Float[Tensor, "*b 3 4"]) -> Float[Tensor, "*b 4 4"]:
    last = extrinsics.new_tensor([0, 0, 0, 1]).expand(*extrinsics.shape[:-2], 1, 4)
    return torch.cat([extrinsics, last], dim=-2)


# ------------------------------------------------------------------------------------------------------------ transformer


class LatentAttention(Attention):
    """Self-attention with a placement, and queries only of the rows that are asked for."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__(dim, num_heads, nn.RMSNorm)

    def forward(self, x: Float[Tensor, "b t d"], place: Placement, rows: slice) -> Float[Tensor, "b rows d"]:
        batch, _, dim = x.shape
        heads = (batch, -1, self.num_heads, self.head_dim)
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, rows], weight[:dim], bias[:dim]).view(heads)
        k, v = F.linear(x, weight[dim:], bias[dim:]).view(batch, -1, 2, *heads[2:]).unbind(2)
        dtype = self.q_norm.weight.dtype  # under autocast float32, and RMSNorm has no fast path for two types
        q, k = place.query(self.q_norm(q.to(dtype)), rows).to(v.dtype), place.key(self.k_norm(k.to(dtype))).to(v.dtype)
        v = place.value(v)
        out = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        return self.proj(place.output(out).reshape(batch, -1, dim))


class LatentBlock(nn.Module):
    """Pre-norm block without LayerScale."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float | int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), LatentAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Float[Tensor, "b t d"], place: Placement, rows: slice = slice(None)) -> Float[Tensor, "b rows d"]:
        x = x[:, rows] + self.attn(self.norm1(x), place, rows)
        return x + self.mlp(self.norm2(x))


class LatentTransformer(nn.Module):
    """Register tokens, blocks and a final norm: encoder and decoder are two of these."""

    def __init__(self, config: Spa3RConfig, depth: int):
        super().__init__()
        dim = config.embed_dim
        self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, dim))
        self.blocks = nn.ModuleList(LatentBlock(dim, config.num_heads, config.mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.apply(init_linear)
        nn.init.normal_(self.register_tokens, std=1e-6)

    def forward(self, x: Float[Tensor, "b t d"], place: Placement, rows: slice) -> Float[Tensor, "b rows d"]:
        """Tokens `rows` of [registers | x]; the last block computes nothing else."""
        x = torch.cat([self.register_tokens.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        for block in self.blocks[:-1]:
            x = block(x, place)
        return self.norm(self.blocks[-1](x, place, rows))


# ----------------------------------------------------------------------------------------------------------------- models


def resize(frames: UInt8[Tensor, "v 3 h w"], width: int, patch: int) -> Float[Tensor, "v 3 h2 w2"]:
    """Frames in [0, 1], `width` wide, as high as keeps their shape, rounded to whole patches: in training as at use."""
    height = max(1, round(frames.shape[2] * width / frames.shape[3] / patch)) * patch
    if frames.shape[2:] != (height, width):  # in whole numbers, as Pillow did for the released weights
        frames = F.interpolate(frames, (height, width), mode="bicubic", antialias=True)
    return frames.float() / 255


class Spa3REncoder(nn.Module):
    """Views of a place to its latent: all that a language model needs of Spa3R."""

    def __init__(self, config: Spa3RConfig):
        super().__init__()
        self.config = config
        self.aggregator = VGGTAggregator(config.vggt_config)
        self.projection = nn.Linear(2 * config.vggt_config.embed_dim, config.embed_dim)
        self.query_embed = nn.Embedding(config.num_queries, config.embed_dim)
        self.encoder = LatentTransformer(config, config.num_encoder_layers)
        init_linear(self.projection)
        nn.init.trunc_normal_(self.query_embed.weight, std=0.02)

    def forward(self, images: Shaped[Tensor, "..."]) -> Float[Tensor, "b q d"]:
        """The latent of (B, S, 3, H, W) images in [0, 1]: all are context, the first is the reference view."""
        (tokens,) = self.aggregator(images)
        return self.encode(tokens[:, :, self.config.vggt_config.special_tokens :], self.grid(images.shape[-2:]))

    def encode(self, tokens: Float[Tensor, "b s n c2"], grid: tuple[int, int]) -> Float[Tensor, "b q d"]:
        """The latent of the patch tokens of context views; `grid` is (rows, columns) of patches."""
        config = self.config
        b, s = tokens.shape[:2]
        queries = self.query_embed.weight.expand(b, -1, -1)
        patches = self.projection(tokens).flatten(1, 2).to(queries.dtype)  # under autocast, what layers add up stays float32
        unplaced = config.num_register_tokens + config.num_queries
        head = config.embed_dim // config.num_heads
        place = AxialRoPE(grid, s, unplaced, head, config.rope_freq, tokens.device)
        return self.encoder(torch.cat([queries, patches], dim=1), place, slice(config.num_register_tokens, unplaced))

    def grid(self, size: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (height, width) pixels."""
        patch = self.config.vggt_config.patch_size
        return size[0] // patch, size[1] // patch


@dataclass
class Field:
    """What a latent says is to be seen from a camera, per patch.

    geometry   (B, S, n, 2C), VGGT's last tokens.
    semantic   (B, S, n, semantic_dim), the semantic teacher's features.
    depth      (B, S, n), in VGGT's unit; a probe that reads the decoder without teaching it.
    """

    geometry: Tensor
    semantic: Tensor
    depth: Tensor


class Spa3R(Spa3REncoder):
    """Encoder, and the decoder that predicts a view's features from the latent and a camera."""

    def __init__(self, config: Spa3RConfig):
        super().__init__(config)
        vggt, dim = config.vggt_config, config.embed_dim
        hidden = int(dim * config.mlp_ratio)
        self.camera_head = CameraHead(
            2 * vggt.embed_dim, vggt.camera_depth, vggt.camera_num_heads, vggt.camera_iterations, vggt.mlp_ratio, vggt.init_values
        )
        self.pose_tokenizer = nn.Linear(3, dim)
        self.decoder = LatentTransformer(config, config.num_decoder_layers)
        self.heads = nn.ModuleDict({"geo": MLP(dim, hidden, 2 * vggt.embed_dim), "sem": MLP(dim, hidden, config.semantic_dim)})
        self.depth_prob = MLP(dim, hidden, 1)
        for part in (self.pose_tokenizer, self.heads, self.depth_prob):
            part.apply(init_linear)

    def cameras(
        self, tokens: Float[Tensor, "b s t c2"], size: Sequence[int]
    ) -> tuple[Float[Tensor, "b s 3 4"], Float[Tensor, "b s 3 3"]]:
        """Extrinsics (world to camera) and intrinsics (pixels) of each view by VGGT's camera head, float32.

        tokens   the aggregator's last, special tokens included. The world is what `config.world` says.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            pose = self.camera_head(tokens.to(self.camera_head.empty_pose.dtype))[-1]
        extrinsics, intrinsics = decode_pose(pose, tuple(size))
        if self.config.world == "first":
            extrinsics = relative_to_first(extrinsics)
        return extrinsics, intrinsics

    def decode(
        self,
        latent: Float[Tensor, "b q d"],
        extrinsics: Float[Tensor, "b s 3 4"],
        intrinsics: Float[Tensor, "b s 3 3"],
        size: Sequence[int],
    ) -> Field:
        """What is seen from each camera, independently of the others.

        size   (height, width) in pixels of the views, multiples of the patch size.
        """
        config, grid, size = self.config, self.grid(size), tuple(size)
        b, s = extrinsics.shape[:2]
        directions = rays(intrinsics.flatten(0, 1), grid, config.vggt_config.patch_size)
        tokens = self.pose_tokenizer(directions.to(self.pose_tokenizer.weight.dtype))
        head = config.embed_dim // config.num_heads
        place = PRoPE(grid, extrinsics.flatten(0, 1), intrinsics.flatten(0, 1), size, head, config.rope_freq)
        sequence = torch.cat([latent.repeat_interleave(s, dim=0), tokens.to(latent.dtype)], dim=1)
        seen = self.decoder(sequence, place, slice(config.num_register_tokens + config.num_queries, None))
        seen = seen.unflatten(0, (b, s))
        return Field(self.heads["geo"](seen), self.heads["sem"](seen), self.depth_prob(seen.detach())[..., 0])


def relative_to_first(extrinsics: Float[Tensor, "b s 3 4"]) -> Float[Tensor, "b s 3 4"]:
    """Extrinsics as seen from the first view, whose own become the identity."""
    with torch.autocast(extrinsics.device.type, enabled=False):
        return extrinsics @ invert_rigid(extrinsics[:, :1])


def rays(intrinsics: Float[Tensor, "b 3 3"], grid: tuple[int, int], patch_size: int) -> Float[Tensor, "b n 3"]:
    """Unit direction, in the camera's axes, of the ray through the centre of each patch, row by row; float32."""
    k = intrinsics.float() / patch_size
    row, column = (torch.arange(n, device=k.device, dtype=torch.float32) + 0.5 for n in grid)
    x = (column - k[:, 0, 2, None]) / k[:, 0, 0, None]
    y = (row - k[:, 1, 2, None]) / k[:, 1, 1, None]
    x, y = x[:, None, :].expand(-1, *grid), y[:, :, None].expand(-1, *grid)
    return F.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(1, 2), dim=-1, eps=1e-3)


# ------------------------------------------------------------------------------------------------------------ checkpoints

# Of a published checkpoint: teachers, heads of VGGT that are not read, DINOv2's training mask. And what only the decoder needs.
UNUSED = r"^(dino|point_head|depth_head|track_head)\.|\.patch_embed\.mask_token$"
DECODER_PARTS = r"^(camera_head|pose_tokenizer|decoder|heads|depth_prob)\."


def our_name(published: str, decoder: bool = True) -> str | None:
    """Our name of a tensor of a published `spa3r.ckpt`, without Lightning's "model."; None for what is not read."""
    if re.search(UNUSED, published) or (not decoder and re.search(DECODER_PARTS, published)):
        return None
    return vggt_name(published)


def load_spa3r(
    path: str | Path, config: Spa3RConfig | None = None, decoder: bool = True, dtype: torch.dtype | None = None
) -> Spa3R | Spa3REncoder:
    """A Spa3R with the released weights (`spa3r.ckpt`, a Lightning checkpoint), or from a folder written by `save_spa3r`.

    path      of the file or folder; "hustvl/Spa3-VLM/spa3r.ckpt" is that of the hub repository.
    config    default: that of the folder, or for a checkpoint file the published sizes (`Spa3RConfig.compat`).
    decoder   False: only what a language model needs (`Spa3REncoder`); the rest is not kept.
    dtype     default: as stored.

    Missing, unexpected and misshapen tensors are an error that names them. A released file differs from VGGT in nothing but
    the biases of the global blocks' query and key norms, which its RMSNorm has not; so a config with layer norms does not fit it.
    """
    path = Path(located(path))
    if path.is_file() and path.suffix in (".ckpt", ".pt", ".pth"):
        published = _lightning_tensors(path)
        tensors = {ours: t for name, t in published.items() if (ours := our_name(name, decoder)) is not None}
        tensors = tensors if dtype is None else {name: t.to(dtype) for name, t in tensors.items()}
        config = config or Spa3RConfig.compat()
    elif (path / "config.json").is_file() or config is not None:
        config = config or read_config(path)
        tensors = read_tensors(path, lambda name: our_name(name, decoder), dtype)
    else:
        raise ValueError(f"{path}: found no Spa3R, expected spa3r.ckpt or a folder with config.json and {FILE}")
    with torch.device("meta"):
        model = (Spa3R if decoder else Spa3REncoder)(config)
    load_exactly(model, tensors, path)
    return model.eval()


def save_spa3r(model: Spa3REncoder, folder: str | Path) -> None:
    """Write config and weights to a folder that `load_spa3r` reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / (FILE + ".part")
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / FILE)
    model.config.save_pretrained(folder)


def read_config(folder: Path) -> Spa3RConfig:
    """The config of a folder written by `save_spa3r`."""
    file = Path(folder) / "config.json"
    found = json.loads(file.read_text()).get("model_type") if file.is_file() else None
    if found != Spa3RConfig.model_type:
        raise ValueError(f"{file}: found model_type {found!r}, expected {Spa3RConfig.model_type!r}")
    return Spa3RConfig.from_pretrained(folder)


def _lightning_tensors(path: Path) -> dict[str, Tensor]:
    """The network's tensors: under `state_dict`, `model_state_dict` or nothing, named "model.*" in what Lightning wrote."""
    with path.open("rb") as file:
        if not file.read(4).startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as torch wrote it before
            raise ValueError(f"{path}: found no checkpoint, expected one that torch.save wrote (is the download complete?)")
    try:
        stored = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a checkpoint of tensors alone ({str(error).splitlines()[0]}); if it holds other objects and you "
            "trust it, rewrite it once: torch.save({'state_dict': torch.load(path, weights_only=False)['state_dict']}, path)"
        ) from error
    for key in ("state_dict", "model_state_dict"):
        stored = stored[key] if isinstance(stored, dict) and key in stored else stored
    if not isinstance(stored, dict) or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in stored.items()):
        raise ValueError(f"{path}: found {type(stored).__name__}, expected tensors by name, or a state_dict of these")
    prefix = "model."
    named = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    return named or stored
