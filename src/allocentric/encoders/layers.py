"""Transformer blocks shared by the image encoders: pre-norm, fused QKV, LayerScale, optional QK norm and 2D RoPE.

Module names are those of the DINOv2 family, so released weights fit without renaming.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Without gradients the MLP runs over this many tokens at a time: its 4x wide hidden layer is the peak of memory otherwise.
MLP_CHUNK = 4096

Rotation = tuple[Float[Tensor, "place 1 2 quarter"], Float[Tensor, "place 1 2 quarter"]]


def rope_2d(
    height: int, width: int, special: int, head_dim: int, base: float = 100.0, device: torch.device | None = None
) -> Rotation:
    """Cosines and sines, float32, for `special` tokens followed by the patches of a height x width grid.

    Half of each head turns with the row, half with the column. Special tokens sit at 0 and patches start at 1, so the
    former are left as they are.
    """
    quarter = head_dim // 4
    frequency = base ** -(torch.arange(quarter, device=device, dtype=torch.float32) / quarter)
    row = torch.arange(1, height + 1, device=device, dtype=torch.float32)[:, None].expand(height, width)
    column = torch.arange(1, width + 1, device=device, dtype=torch.float32)[None, :].expand(height, width)
    position = torch.stack([row, column], dim=-1).reshape(height * width, 2)
    position = F.pad(position, (0, 0, special, 0))
    angle = (position[..., None] * frequency)[:, None]
    return angle.cos(), angle.sin()


def rotate(x: Float[Tensor, "batch token head dim"], rotation: Rotation) -> Float[Tensor, "batch token head dim"]:
    """Turn queries or keys by their positions, in float32; the frames of a clip share one table."""
    cos, sin = rotation
    batch, tokens, heads, dim = x.shape
    places = cos.shape[0]
    pairs = x.view(batch, tokens // places, places, heads, 2, 2, dim // 4)  # ..., row and column, the two of a pair
    a, b = pairs.unbind(-2)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-2).view(batch, tokens, heads, dim)


def attend(
    q: Float[Tensor, "batch head query dim"], k: Float[Tensor, "batch head token dim"], v: Float[Tensor, "batch head token dim"]
) -> Float[Tensor, "batch head query dim"]:
    """Scaled dot-product attention.

    Training on a CPU in bfloat16 it is written out: the fused kernel there takes 2 to 7 times as long forward and backward (one
    thread, 85 to 1360 tokens), and clips that are trained on are short enough for the matrix of weights.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad:
        return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention through `scaled_dot_product_attention`.

    qk_norm   makes the norm of queries and keys from the head's width; None for no norm.
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: Callable[[int], nn.Module] | None = None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention: found {num_heads} heads on width {dim}, expected a divisor of the width")
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = qk_norm(self.head_dim) if qk_norm else None
        self.k_norm = qk_norm(self.head_dim) if qk_norm else None
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch token dim"], rotation: Rotation | None = None, context: int | None = None
    ) -> Float[Tensor, "batch token dim"]:
        """`context`: the first so many tokens see only each other, the others see all; None: all see all."""
        batch, tokens, _ = x.shape
        q, k, v = self.project(x, rotation)
        if context is None:
            out = attend(q, k, v)
        else:  # two calls stand for the block mask, which would be tokens x tokens large and rule out fast kernels
            first = attend(q[:, :, :context], k[:, :, :context], v[:, :, :context])
            out = torch.cat([first, attend(q[:, :, context:], k, v)], dim=2)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))

    def project(self, x: Float[Tensor, "batch token dim"], rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, head, token, head dim) each, as they meet."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        q, k = _place(q, self.q_norm, rotation), _place(k, self.k_norm, rotation)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _place(x: Tensor, norm: nn.Module | None, rotation: Rotation | None) -> Tensor:
    dtype = x.dtype  # the table, and norms under autocast, are float32
    x = x if norm is None else norm(x)
    return (x if rotation is None else rotate(x, rotation)).to(dtype)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        if torch.is_grad_enabled() or x.shape[:-1].numel() <= MLP_CHUNK:
            return self.fc2(F.gelu(self.fc1(x)))
        parts = [self.fc2(F.gelu(self.fc1(part))) for part in x.flatten(0, -2).split(MLP_CHUNK)]
        return torch.cat(parts).view(*x.shape[:-1], -1)


class LayerScale(nn.Module):
    """x + gamma * y: a learned gain per channel on what a block adds (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Float[Tensor, "*batch dim"], y: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return torch.addcmul(x, y, self.gamma)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale.

    init_values   start of LayerScale. Released VGGT trained with 0.01; 1.0 suits small models trained from scratch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        init_values: float = 0.01,
        eps: float = 1e-5,
        qk_norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        norm = partial(nn.LayerNorm, dim, eps=eps)
        self.norm1, self.attn, self.ls1 = norm(), Attention(dim, num_heads, qk_norm), LayerScale(dim, init_values)
        self.norm2, self.mlp, self.ls2 = norm(), MLP(dim, int(dim * mlp_ratio)), LayerScale(dim, init_values)

    def forward(
        self, x: Float[Tensor, "batch token dim"], rotation: Rotation | None = None, context: int | None = None
    ) -> Float[Tensor, "batch token dim"]:
        x = self.ls1(x, self.attn(self.norm1(x), rotation, context))
        return self.ls2(x, self.mlp(self.norm2(x)))


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what ends in it changes nothing until it has learned something.

    A class of its own so that whoever draws weights anew can tell: the published code of Spa3-VLM zeroed a plain layer, and
    loading the base model drew it again (standard deviation 0.02).
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def init_linear(module: nn.Module) -> None:
    """Truncated normal weights of standard deviation 0.02 and zero biases, for `module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
