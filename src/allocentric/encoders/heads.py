"""Heads that read geometry out of encoder tokens: cameras, and dense maps (depth, points) through a DPT."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allocentric.encoders.layers import MLP, Block, init_linear

POSE_SIZE = 9  # translation 3, quaternion 4, field of view 2


class CameraHead(nn.Module):
    """Refines a pose encoding per frame from its camera token, in a few rounds (VGGT, arXiv 2503.11651, section 3.3).

    Each round sees the previous round's pose (detached: a round learns to correct, not to prepare), which modulates the
    token as in DiT's adaptive norm, and adds a correction. Frames attend to each other.
    """

    def __init__(
        self, dim: int, depth: int = 4, num_heads: int = 16, iterations: int = 4, mlp_ratio: float = 4.0, init_values: float = 0.01
    ):
        super().__init__()
        self.iterations = iterations
        self.token_norm = nn.LayerNorm(dim)
        self.empty_pose = nn.Parameter(torch.zeros(1, 1, POSE_SIZE))
        self.embed_pose = nn.Linear(POSE_SIZE, dim)
        self.modulation = nn.Linear(dim, 3 * dim)
        self.trunk = nn.ModuleList(Block(dim, num_heads, mlp_ratio, init_values) for _ in range(depth))
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = MLP(dim, dim // 2, POSE_SIZE)
        self.apply(init_linear)
        # Start from a camera at the origin that sees one radian: a field of view that starts below 0 would get no gradient.
        with torch.no_grad():
            self.pose_branch.fc2.bias.copy_(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1]) / iterations)

    def forward(self, tokens: Float[Tensor, "b s t c"]) -> list[Float[Tensor, "b s 9"]]:
        """Pose encoding after each round, the last being the answer; translation, quaternion (x, y, z, w), vertical and
        horizontal field of view in radians (`geometry.cameras.decode_pose`)."""
        camera = self.token_norm(tokens[:, :, 0])
        plain = F.layer_norm(camera, camera.shape[-1:], eps=1e-6)
        pose, rounds = self.empty_pose, []
        for i in range(self.iterations):
            shift, scale, gate = self.modulation(F.silu(self.embed_pose(pose.to(camera.dtype)))).chunk(3, dim=-1)
            x = camera + gate * (plain * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x)
            correction = self.pose_branch(self.trunk_norm(x)).float()
            raw = correction if i == 0 else pose + correction
            rounds.append(torch.cat([raw[..., :7], F.relu(raw[..., 7:])], dim=-1))
            pose = raw.detach()
        return rounds


class ResidualConv(nn.Module):
    """Two 3x3 convolutions around a skip.

    The skip carries relu(x), not x: the published blocks activate in place, and released weights were trained so.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        x = F.relu(x)
        return x + self.conv2(F.relu(self.conv1(x)))


class Fusion(nn.Module):
    """One step of the pyramid: add the finer level to the coarser, refine, enlarge."""

    def __init__(self, channels: int, has_skip: bool):
        super().__init__()
        self.skip = ResidualConv(channels) if has_skip else None
        self.refine = ResidualConv(channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "n c h w"], finer: Tensor | None, size: tuple[int, int]) -> Float[Tensor, "n c h2 w2"]:
        if self.skip is not None:
            x = x + self.skip(finer)
        # The 1x1 convolution commutes with interpolation; before it there are a quarter of the pixels.
        return F.interpolate(self.out(self.refine(x)), size, mode="bilinear", align_corners=True)


class DPTHead(nn.Module):
    """Dense prediction from four levels of patch tokens (DPT, arXiv 2103.13413), as VGGT uses it.

    kind       "depth": one channel, positive. "point": three channels, signed.
    special    tokens in front of each frame's patches that are not patches.
    """

    CHANNELS = {"depth": 1, "point": 3}  # noqa: RUF012

    def __init__(
        self,
        dim: int,
        kind: str = "depth",
        patch_size: int = 14,
        special: int = 5,
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
    ):
        super().__init__()
        if kind not in self.CHANNELS:
            raise ValueError(f"DPT head: found kind {kind!r}, expected one of {sorted(self.CHANNELS)}")
        if len(out_channels) != 4 or any(c % 4 for c in out_channels) or features % 8:
            raise ValueError(
                f"DPT head: found out_channels {list(out_channels)} and features {features}, expected four multiples of 4, "
                "and a multiple of 8"
            )
        self.kind, self.patch_size, self.special = kind, patch_size, special
        c1, c2, _, c4 = out_channels
        self.norm = nn.LayerNorm(dim)
        self.project = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in out_channels)
        self.resize = nn.ModuleList(  # to 4, 2, 1 and 1/2 times the patch grid
            [nn.ConvTranspose2d(c1, c1, 4, 4), nn.ConvTranspose2d(c2, c2, 2, 2), nn.Identity(), nn.Conv2d(c4, c4, 3, 2, 1)]
        )
        self.adapt = nn.ModuleList(nn.Conv2d(c, features, 3, padding=1, bias=False) for c in out_channels)
        self.fuse = nn.ModuleList(Fusion(features, has_skip=level < 3) for level in range(4))
        self.reduce = nn.Conv2d(features, features // 2, 3, padding=1)
        self.predict = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, self.CHANNELS[kind] + 1, 1)
        )

    def forward(
        self, tokens: Sequence[Float[Tensor, "b s t c"]], size: tuple[int, int], frame_chunk: int | None = None
    ) -> tuple[Float[Tensor, "b s h w d"], Float[Tensor, "b s h w"]]:
        """Map and its confidence (1 to infinity), float32, of `size` = (height, width) pixels.

        tokens        one tensor per level, shallow to deep, special tokens included.
        frame_chunk   frames decoded at a time: bounds memory, changes nothing else. None: all.
        """
        b, s = tokens[0].shape[:2]
        parts = zip(*(level.flatten(0, 1).split(frame_chunk or b * s) for level in tokens), strict=True)
        out = torch.cat([self._decode(part, size) for part in parts]).unflatten(0, (b, s))
        values, confidence = out[..., :-1], 1 + out[..., -1].exp()
        if self.kind == "depth":
            return values.exp(), confidence
        return values.sign() * values.abs().expm1(), confidence

    def _decode(self, levels: Sequence[Float[Tensor, "n t c"]], size: tuple[int, int]) -> Float[Tensor, "n h w d"]:
        height, width = size
        grid = (height // self.patch_size, width // self.patch_size)
        aspect = width / height
        maps = []
        for tokens, project, resize, adapt in zip(levels, self.project, self.resize, self.adapt, strict=True):
            x = self.norm(tokens[:, self.special :]).transpose(1, 2).unflatten(2, grid)
            maps.append(adapt(resize(add_position(project(x), aspect))))
        sizes = [(8 * grid[0], 8 * grid[1]), *(m.shape[-2:] for m in maps[:-1])]  # what each level is enlarged to
        x = maps[3]
        for level in (3, 2, 1, 0):
            x = self.fuse[level](x, None if level == 3 else maps[level], sizes[level])
        x = F.interpolate(self.reduce(x), size, mode="bilinear", align_corners=True)
        return self.predict(add_position(x, aspect)).permute(0, 2, 3, 1).float()


def add_position(x: Float[Tensor, "n c h w"], aspect: float, gain: float = 0.1) -> Float[Tensor, "n c h w"]:
    """Add sines and cosines of each pixel's place on the image plane, whose half diagonal is 1; first columns, then rows.

    Depends on the image's shape, not its resolution, so levels of different size agree.
    """
    _, channels, height, width = x.shape
    quarter = channels // 4
    frequency = 100.0 ** -(torch.arange(quarter, device=x.device, dtype=torch.float32) / quarter)

    def axis(count: int, span: float) -> Tensor:
        centres = torch.linspace(-1, 1, count, device=x.device) * (span * (count - 1) / count)
        angle = frequency[:, None] * centres
        return gain * torch.cat([angle.sin(), angle.cos()])

    diagonal = (1 + aspect**2) ** 0.5
    columns = axis(width, aspect / diagonal)[:, None, :].expand(-1, height, -1)
    rows = axis(height, 1 / diagonal)[:, :, None].expand(-1, -1, width)
    return x + torch.cat([columns, rows]).to(x.dtype)
