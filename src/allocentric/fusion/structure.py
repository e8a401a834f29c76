"""Structure and position for 2D tokens of several posed views (S2-MLLM, arXiv 2512.01223).

    ViT tokens ─► attention over views ─► attention within views ─► projector ─► + coordinates ─► pooling ─► + ray directions

Tokens are (batch, views, places, channels) throughout.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allocentric.encoders.layers import MLP, ZeroLinear, attend

BOUNDS = ((-15.0, -15.0, -5.0), (15.0, 15.0, 5.0))  # metres; coordinates outside are clamped
VOXEL = 0.1  # metres


class MaskedAttention(nn.Module):
    """Multi-head self-attention that may leave out keys; `last` makes its last layer."""

    def __init__(self, dim: int, num_heads: int, last: type[nn.Linear] = nn.Linear):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention: found {num_heads} heads on width {dim}, expected a divisor of the width")
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), last(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch token dim"], keep: Bool[Tensor, "batch token"] | None = None
    ) -> Float[Tensor, "batch token dim"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if keep is None:
            attended = attend(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        return self.proj(attended.transpose(1, 2).flatten(2))


class StructureAttention(nn.Module):
    """Divided attention: over the views at one place of the grid, then over the places of one view, then an MLP.

    All three add to their input and start at zero, so training begins at the pretrained model. Each adds nothing before its
    last layer has learned something, and that layer has a gradient from the first step on.

    scrambled   the groups of the published code, which reads frame-major tokens as patch-major: "over views" are then runs
                of neighbouring patches and "within a view" every V-th token of the clip, each with the clip's first token
                as one more key. For weights that were trained so.
    """

    def __init__(self, dim: int, num_heads: int = 12, mlp_ratio: float = 4.0, scrambled: bool = False):
        super().__init__()
        self.scrambled = scrambled
        norm = partial(nn.LayerNorm, dim, eps=1e-6)
        self.inter_norm, self.inter, self.inter_out = norm(), MaskedAttention(dim, num_heads), ZeroLinear(dim, dim)
        self.intra_norm, self.intra = norm(), MaskedAttention(dim, num_heads, ZeroLinear)
        self.mlp_norm, self.mlp = norm(), MLP(dim, int(dim * mlp_ratio))
        self.mlp.fc2 = ZeroLinear(int(dim * mlp_ratio), dim)

    def forward(
        self, tokens: Float[Tensor, "b v s d"], present: Bool[Tensor, "b v"] | None = None
    ) -> Float[Tensor, "b v s d"]:
        """`present` marks the real views of a batch whose samples have different numbers of them."""
        if self.scrambled:
            return self._scrambled(tokens)
        b, v, s, _ = tokens.shape
        over_views = self.inter_norm(tokens).transpose(1, 2).flatten(0, 1)  # (b s) v d
        keep = None if present is None else present.repeat_interleave(s, dim=0)
        over_views = self.inter_out(self.inter(over_views, keep)).unflatten(0, (b, s)).transpose(1, 2)
        tokens = tokens + over_views
        tokens = tokens + self.intra(self.intra_norm(tokens).flatten(0, 1)).unflatten(0, (b, v))
        return tokens + self.mlp(self.mlp_norm(tokens))

    def _scrambled(self, tokens: Float[Tensor, "b v s d"]) -> Float[Tensor, "b v s d"]:
        b, v, s, d = tokens.shape
        grouped = tokens.reshape(b, s, v, d)  # not a transpose: this is the mistake
        first = grouped[:, :1, 0].expand(b, v, d).flatten(0, 1)[:, None]
        over_views = self.inter_out(self.inter(self.inter_norm(grouped).flatten(0, 1))).unflatten(0, (b, s))
        grouped = grouped + over_views
        within = torch.cat([first, grouped.transpose(1, 2).flatten(0, 1)], dim=1)
        within = self.intra(self.intra_norm(within))[:, 1:].unflatten(0, (b, v)).transpose(1, 2)
        grouped = grouped + within
        return (grouped + self.mlp(self.mlp_norm(grouped))).reshape(b, v, s, d)


def sinusoidal_3d(
    points: Float[Tensor, "*shape 3"],
    dim: int,
    voxel: float | None = VOXEL,
    bounds: Sequence[Sequence[float]] = BOUNDS,
    bfloat16: bool = False,
) -> Float[Tensor, "*shape dim"]:
    """Sines and cosines of world coordinates in metres, a third of the channels per axis; 0 where a point is NaN.

    Coordinates are clamped and counted in voxels from the lower bound, rounded to whole ones as published (`voxel=None`: tenths
    of a metre, not rounded). Channel 2i and 2i + 1 of an axis have wavelength 2 pi 10000^(2i / n), n = dim // 3; what is left of
    `dim` is 0. `bfloat16` rounds coordinates as published training did, which moves a third of them by a voxel.
    """
    low, high = (torch.tensor(bound, device=points.device) for bound in bounds)
    points = points.float()
    missing = points.isnan().any(-1, keepdim=True)
    points = torch.where(missing, 0.0, points)
    if bfloat16:
        points, low, high = points.bfloat16(), low.bfloat16(), high.bfloat16()
    grid = (torch.minimum(torch.maximum(points, low), high) - low) / (voxel or VOXEL)
    grid = grid.float() if voxel is None else grid.round().float()
    per_axis = dim // 3
    channel = torch.arange(per_axis, device=points.device)
    angle = grid[..., None] * 10000.0 ** (-2 * (channel // 2) / per_axis)
    code = torch.where(channel % 2 == 0, angle.sin(), angle.cos()).flatten(-2)
    return F.pad(code.masked_fill(missing, 0.0), (0, dim - 3 * per_axis))


class RayEncoding(nn.Module):
    """MLP of viewing directions, starting at zero; 0 where a ray is NaN.

    gain   the published code multiplies by 5, of which the paper says nothing.
    """

    def __init__(self, dim: int, hidden: int = 512, gain: float = 1.0):
        super().__init__()
        self.gain = gain
        self.mlp = nn.Sequential(nn.Linear(3, hidden), nn.LayerNorm(hidden), nn.ReLU(), ZeroLinear(hidden, dim))

    def forward(self, rays: Float[Tensor, "*shape 3"]) -> Float[Tensor, "*shape dim"]:
        missing = rays.isnan().any(-1, keepdim=True)
        rays = torch.where(missing, 0.0, rays).to(self.mlp[0].weight.dtype)
        return torch.where(missing, 0.0, self.gain * self.mlp(rays))


def pool_objects(
    tokens: Float[Tensor, "b cells d"], shares: Float[Tensor, "b k cells"], least: float
) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b k"]]:
    """Mean of the tokens of the cells that lie in each box by at least the share `least`; and which boxes have any.

    A box without cells gets zeros. All boxes of all samples are pooled by one product, over the cells that lie in any box.
    """
    member = shares >= least
    count = member.sum(-1, keepdim=True)
    used = member.any(dim=(0, 1)).nonzero().squeeze(1)
    pooled = member[..., used].to(tokens.dtype) @ tokens[:, used]
    return pooled / count.clamp(min=1), count.squeeze(-1) > 0


class GroundingHead(nn.Module):
    """Cosine similarity of a query with every object, and with a learned vector that stands for "none of them"."""

    def __init__(self, dim: int):
        super().__init__()
        self.object_mlp, self.query_mlp = _projection(dim), _projection(dim)
        self.zero_target = nn.Parameter(torch.randn(dim))

    def forward(
        self,
        queries: Float[Tensor, "n d"],
        objects: Float[Tensor, "b k d"],
        rows: Tensor,
        candidate: Bool[Tensor, "b k"] | None = None,
    ) -> Float[Tensor, "n k1"]:
        """Cosines in float32, (n, k + 1); the last column is the zero target. `rows`: which sample each query belongs to.

        Objects that are not candidates (padding) get -inf.
        """
        zero = self.zero_target.to(objects.dtype).expand(len(objects), 1, -1)
        keys = F.normalize(self.object_mlp(torch.cat([objects, zero], dim=1)).float(), dim=-1)
        asked = F.normalize(self.query_mlp(queries).float(), dim=-1)
        cosine = (asked[:, None] * keys[rows]).sum(-1)  # not a product of matrices, which autocast would round
        if candidate is None:
            return cosine
        return cosine.masked_fill(~F.pad(candidate, (0, 1), value=True)[rows], -torch.inf)


def _projection(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim), nn.Linear(dim, dim))


def info_nce(
    cosine: Float[Tensor, "n k1"], positive: Bool[Tensor, "n k1"], temperature: float = 0.07
) -> Float[Tensor, " n"]:
    """-log of the probability that the positives have together, per query (S2-MLLM, section 3.3).

    A query may have several positives; one without any is answered by the zero target, which is its last column.
    """
    none = ~positive.any(-1)
    positive = torch.cat([positive[:, :-1], (positive[:, -1] | none)[:, None]], dim=1)
    scores = cosine / temperature
    return scores.logsumexp(-1) - scores.masked_fill(~positive, -torch.inf).logsumexp(-1)
