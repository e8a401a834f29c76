"""Fusion by addition (Spatial-MLLM): geometry tokens are grouped like the 2D tokens, projected, and added to them."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

Layout = Literal["v1.1", "v1.0"]


def group_tokens(
    tokens: Float[Tensor, "frames patches channels"],
    grid: tuple[int, int, int],
    merge: int,
    layout: Layout = "v1.1",
) -> Float[Tensor, "tokens grouped"]:
    """Concatenate the geometry tokens that share one language-model token, in the order of Qwen's merged 2D tokens.

    `grid` is (t, h, w) in patches as Qwen counts them: `t` steps of `frames / t` frames each. One language-model token
    covers (frames / t) x merge x merge patches. Row order: (t, h / merge, w / merge). Order within, slowest first:
    "v1.1": (row, column, channel, frame); "v1.0": (frame, row, column, channel). Released weights differ only in this.
    """
    t, h, w = grid
    frames, patches, channels = tokens.shape
    if patches != h * w or frames % t or h % merge or w % merge:
        raise ValueError(
            f"geometry tokens: found {frames} frames of {patches} patches, expected frames divisible by {t} "
            f"and {h} x {w} = {h * w} patches with sides divisible by {merge}"
        )
    step = frames // t
    blocks = tokens.view(t, step, h // merge, merge, w // merge, merge, channels)
    order = {"v1.1": (0, 2, 4, 3, 5, 6, 1), "v1.0": (0, 2, 4, 1, 3, 5, 6)}[layout]
    return blocks.permute(order).reshape(t * (h // merge) * (w // merge), step * merge * merge * channels)


class AdditionConnector(nn.Module):
    """Project grouped geometry tokens to the language model's width; the result is added to the 2D tokens.

    RMSNorm -> Linear -> GELU -> Linear; the v1.0 weights have a second RMSNorm -> Linear -> GELU -> Linear behind it.
    """

    def __init__(self, in_size: int, hidden_size: int, out_size: int, layout: Layout = "v1.1"):
        super().__init__()
        self.ln_q = Qwen2_5_VLRMSNorm(in_size, eps=1e-6)
        self.mlp = _mlp(in_size, hidden_size, out_size)
        self.refine = None
        if layout == "v1.0":
            self.refine = nn.Sequential(Qwen2_5_VLRMSNorm(out_size, eps=1e-6), *_mlp(out_size, out_size, out_size))

    def forward(self, grouped: Float[Tensor, "tokens in_size"]) -> Float[Tensor, "tokens out_size"]:
        projected = self.mlp(self.ln_q(grouped))
        return projected if self.refine is None else self.refine(projected)


def _mlp(in_size: int, hidden_size: int, out_size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, out_size))
