"""Fusion by addition and interleaving (SSR, arXiv 2603.00409): each frame gives 2D tokens V and geometry tokens S anchored to them.

    A = projected geometry                S = V + gate x A + e
    A  [V1][S1] [V2][S2] ...   the default: anchored by addition, interleaved frame by frame
    B  [V1 + gate x A1] ...    addition only, no doubling
    C  [V1][A1] ...            interleaving only, no anchor
    D  v1 s1 v2 s2 ...         interleaved token by token
    E  [u1][V1 + gate x A1]    addition, with the camera token u interleaved
    F  [V1][V2] ... [S1][S2]   all 2D tokens, then all geometry tokens

No code of SSR is public. Its abstract names addition and interleaving; which of these readings it means is not known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRMSNorm

MODES = ("A", "B", "C", "D", "E", "F")
WITH_GEOMETRY_BLOCK = ("A", "C", "F")  # where a camera token can lead the geometry tokens


class Block(NamedTuple):
    """A run of tokens of one frame: "visual", "geometry", "fused", "pairs" or "camera"."""

    kind: str
    frame: int


def layout(frames: int, mode: str) -> list[Block]:
    """The blocks of a scene in the order in which the language model reads them."""
    kinds = {
        "A": ("visual", "geometry"),
        "B": ("fused",),
        "C": ("visual", "geometry"),
        "D": ("pairs",),
        "E": ("camera", "fused"),
        "F": ("visual", "geometry"),
    }
    if mode not in kinds:
        raise ValueError(f"fusion mode: found {mode!r}, expected one of {MODES}")
    if mode == "F":
        return [Block(kind, frame) for kind in kinds[mode] for frame in range(frames)]
    return [Block(kind, frame) for frame in range(frames) for kind in kinds[mode]]


def block_length(kind: str, tokens: int, camera: bool) -> int:
    """Number of tokens of a block whose frame has `tokens` 2D tokens."""
    return {"visual": tokens, "fused": tokens, "geometry": tokens + camera, "pairs": 2 * tokens, "camera": 1}[kind]


class InterleaveConnector(nn.Module):
    """Geometry in the language model's space, and the blocks made of it.

    Projection: RMSNorm -> 2 x 2 patches side by side -> Linear -> GELU -> Linear, as VG-LLM's. The last linear layer starts at
    zero and so does `offset` (e): at first S is V, which the language model knows how to read. `gate` is one number per channel.
    """

    def __init__(self, channels: int, merge: int, hidden_size: int, out_size: int, mode: str, camera: bool):
        super().__init__()
        layout(0, mode)
        if camera and mode not in WITH_GEOMETRY_BLOCK:
            raise ValueError(f"camera_token: found it with mode {mode!r}, expected one of the modes {WITH_GEOMETRY_BLOCK}")
        self.mode, self.with_camera, self.merge = mode, camera, merge
        self.norm = Qwen2_5_VLRMSNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels * merge**2, hidden_size), nn.GELU(), nn.Linear(hidden_size, out_size))
        self.gate = nn.Parameter(torch.ones(out_size))
        self.offset = nn.Parameter(torch.zeros(out_size))
        self.camera = None
        if camera or mode == "E":
            self.camera = nn.Sequential(nn.Linear(channels, out_size), nn.GELU(), nn.Linear(out_size, out_size))
        self.start_at_zero()

    def start_at_zero(self) -> None:
        """What is added to the 2D tokens is nothing yet."""
        for layer in (self.mlp[-1], *([] if self.camera is None else [self.camera[-1]])):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.ones_(self.gate)
        nn.init.zeros_(self.offset)

    def project(self, patches: Float[Tensor, "patches channels"], grid: tuple[int, int]) -> Float[Tensor, "tokens out"]:
        """A: one token for `merge` x `merge` patches of a frame, in raster order. `grid` counts patches."""
        (h, w), m = grid, self.merge
        if len(patches) != h * w or h % m or w % m:
            raise ValueError(f"geometry tokens: found {len(patches)} patches, expected {h} x {w} with sides in multiples of {m}")
        blocks = patches.view(h // m, m, w // m, m, -1).transpose(1, 2)
        return self.project_groups(blocks.reshape(h * w // m**2, -1))

    def project_groups(self, groups: Float[Tensor, "tokens grouped"]) -> Float[Tensor, "tokens out"]:
        """A, from the `merge` x `merge` patches of each token side by side."""
        return self.mlp(self.norm(groups.unflatten(-1, (self.merge**2, -1))).flatten(-2))

    def forward(
        self,
        visual: Sequence[Float[Tensor, "_ out"]],
        patches: Sequence[Float[Tensor, "_ channels"]],
        cameras: Sequence[Float[Tensor, " channels"]],
        grids: Sequence[tuple[int, int]],
    ) -> list[Float[Tensor, "_ out"]]:
        """The blocks of one scene, in reading order, from what each frame gave; frames may differ in size."""
        projected = [self.project(some, grid) for some, grid in zip(patches, grids, strict=True)]
        return self.blocks(visual, projected, cameras)

    def blocks(
        self,
        visual: Sequence[Float[Tensor, "_ out"]],
        projected: Sequence[Float[Tensor, "_ out"]],
        cameras: Sequence[Float[Tensor, " channels"]] | None = None,
    ) -> list[Float[Tensor, "_ out"]]:
        """`forward` behind the projection. `cameras` may be None where no block holds a camera token."""
        if self.camera is not None and cameras is None:
            raise ValueError(f"camera tokens: found none, expected one per frame in mode {self.mode!r} with a camera token")
        return [
            self._block(kind, visual[i], projected[i], None if cameras is None else cameras[i])
            for kind, i in layout(len(visual), self.mode)
        ]

    def _block(self, kind: str, visual: Tensor, projected: Tensor, camera: Tensor | None) -> Tensor:
        if kind == "visual":
            return visual
        if kind == "camera":
            return self.camera(camera)[None] + self.offset
        added = self.gate * projected
        if kind == "fused":
            return visual + added
        anchored = (added if self.mode == "C" else visual + added) + self.offset
        if kind == "pairs":
            return torch.stack([visual, anchored], dim=1).flatten(0, 1)
        return torch.cat([self.camera(camera)[None] + self.offset, anchored]) if self.with_camera else anchored
