"""Train a VGGT from scratch on rooms: depth, point maps and cameras (VGGT, arXiv 2503.11651, section 3.3).

Unlike the published training, lengths stay in metres instead of being divided by the scene's size: every room has its
true scale, and a model that answers "how far" has to know it.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from allocentric.encoders.layers import rope_2d
from allocentric.encoders.vggt import VGGT
from allocentric.geometry.cameras import encode_pose, invert_rigid, project, unproject_depth
from allocentric.train.semantics import augment_colour
from allocentric.train.shards import RoomSample, RoomShards, mirror, random_generator

CONFIDENCE_WEIGHT = 0.2  # alpha of the confidence-weighted regression


class GeometricRooms(Dataset):
    """Clips of rooms: images in [0, 1], depth, and cameras relative to the first frame of the clip."""

    def __init__(self, shards: RoomShards, frames: tuple[int, int]):
        self.shards, self.frames = shards, frames

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random_generator()
        sample = self.shards[index]
        if rng.random() < 0.5:
            sample = mirror(sample)
        # neighbours in time, so that views overlap; walked backwards half of the time
        # short clips more often than long ones: two views of one thing are where matching is learned, and cost little
        low, high = np.log(self.frames[0]), np.log(self.frames[1] + 1)
        length = min(int(np.exp(rng.uniform(low, high))), len(sample.frames))
        chosen = np.arange(length) + rng.integers(len(sample.frames) - length + 1)
        sample = sample.select(chosen if rng.random() < 0.5 else chosen[::-1])
        clip = clip_tensors(sample)
        return clip | {"images": augment_colour(clip["images"], rng)}


def clip_tensors(sample: RoomSample) -> dict[str, Tensor]:
    """A clip as the loss takes it: images in [0, 1], depth in metres, camera poses relative to the first frame, intrinsics."""
    poses = torch.from_numpy(np.ascontiguousarray(sample.camera_to_world)).float()
    return {
        "images": torch.from_numpy(np.ascontiguousarray(sample.frames)).permute(0, 3, 1, 2).float() / 255,
        "depth": torch.from_numpy(sample.depth.astype(np.float32)),
        "camera_to_first": invert_rigid(poses[:1]) @ poses,
        "intrinsics": torch.from_numpy(sample.intrinsics.astype(np.float32)),
    }


def collate_clips(clips: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack clips, cut to the length of the shortest (the first frame stays first)."""
    length = min(len(clip["images"]) for clip in clips)
    return {key: torch.stack([clip[key][:length] for clip in clips]) for key in clips[0]}


def confident_regression(
    predicted: Float[Tensor, "*shape c"],
    target: Float[Tensor, "*shape c"],
    confidence: Float[Tensor, "*shape"],
    valid: Bool[Tensor, "*shape"],
) -> Float[Tensor, ""]:
    """Distance weighted by predicted confidence, minus the log of it (DUSt3R, equation 4; VGGT, equation 3), over valid pixels."""
    error = (predicted - target).norm(dim=-1)
    loss = confidence * error - CONFIDENCE_WEIGHT * confidence.log()
    return (loss * valid).sum() / valid.sum().clamp(min=1)


def gradient_loss(
    predicted: Float[Tensor, "b s h w c"], target: Float[Tensor, "b s h w c"], valid: Bool[Tensor, "b s h w"]
) -> Float[Tensor, ""]:
    """Mean difference between neighbouring pixels' steps, over pairs of valid pixels: keeps surfaces flat and edges sharp."""
    error, total = predicted - target, predicted.new_zeros(())
    for axis in (2, 3):
        size = error.shape[axis]
        step = error.narrow(axis, 1, size - 1) - error.narrow(axis, 0, size - 1)
        both = valid.narrow(axis, 1, size - 1) & valid.narrow(axis, 0, size - 1)
        total = total + (step.abs().mean(-1) * both).sum() / both.sum().clamp(min=1)
    return total


def patch_matches(
    points: Float[Tensor, "b s p 3"],
    valid: Bool[Tensor, "b s p"],
    depth: Float[Tensor, "b s h w"],
    camera_to_first: Float[Tensor, "b s 4 4"],
    intrinsics: Float[Tensor, "b s 3 3"],
    patch: int,
    tolerance: float = 0.05,
) -> Int[Tensor, "b s p s"]:
    """Which patch of every frame shows the point at the centre of each patch; -1 where it is hidden or out of sight.

    points      in the first camera's axes, metres.
    tolerance   share of the depth by which the other frame may disagree and still be said to show the same surface.
    """
    frames = valid.shape[1]
    height, width = depth.shape[-2:]
    into = (-1, frames, -1, -1, -1)  # (b, from, to, ...)
    pixel, z = project(
        points[:, :, None].expand(-1, -1, frames, -1, -1),
        intrinsics[:, None].expand(into),
        camera_to_first[:, None].expand(into),
    )
    x, y = (pixel[..., i].nan_to_num(-1.0).floor().long() for i in (0, 1))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > 0) & valid[:, :, None]
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    there = depth.flatten(2)[:, None].expand(-1, frames, -1, -1).gather(-1, flat)
    seen = inside & ((there - z).abs() < tolerance * z)
    match = (y // patch) * (width // patch) + x // patch
    return torch.where(seen, match, -1).transpose(2, 3)


class PatchGuidance(nn.Module):
    """Helps a VGGT from scratch off the ground; belongs to training and is not kept. Three losses on patch tokens:

    matching   Descriptors, linear in the first frame block's tokens (which have seen their own frame alone), learn by InfoNCE which
               patches of two frames show the same place, as in MASt3R (arXiv 2406.09756, section 3.2).
    lookup     The first head of every global block learns to look there: -log of what it gives to all patches that show the same
               place. Left to themselves heads take very long to find that matches are worth a look, and no camera is found before.
    place      Linear in the last tokens, for every frame and next to nothing, where the dense heads decode a few frames: the place
               of each patch's centre, its depth, and the ray it is seen along (from where, and which way, as in Depth Anything 3,
               arXiv 2511.10647). Once each patch knows its ray, the camera token has but to collect them.
    """

    def __init__(self, vggt: VGGT, width: int = 64, temperature: float = 0.1):
        super().__init__()
        self.config, self.temperature = vggt.config, temperature
        self.describe = nn.Linear(vggt.config.embed_dim, width)
        self.place = nn.Linear(2 * vggt.config.embed_dim, 10)  # place, depth, origin and direction of the ray

    def forward(
        self,
        vggt: VGGT,
        tokens: list[Float[Tensor, "b s t c2"]],
        depth: Float[Tensor, "b s h w"],
        camera_to_first: Float[Tensor, "b s 4 4"],
        intrinsics: Float[Tensor, "b s 3 3"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The losses by name: nats, nats, and the sum of four mean errors (metres; for directions, between unit vectors)."""
        special, patch = self.config.special_tokens, self.config.patch_size
        middle = slice(patch // 2, None, patch)
        points = unproject_depth(depth, intrinsics, camera_to_first, fill=0.0)[:, :, middle, middle].flatten(2, 3)
        z = depth[:, :, middle, middle].flatten(2)
        valid = z > 0
        origin = camera_to_first[:, :, None, :3, 3]
        ahead = unproject_depth(torch.ones_like(depth), intrinsics, camera_to_first, fill=0.0)[:, :, middle, middle].flatten(2, 3)
        direction = nn.functional.normalize(ahead - origin, dim=-1)

        at, far, seen_from, along = self.place(tokens[-1][:, :, special:]).float().split((3, 1, 3, 3), dim=-1)
        placed = (at - points).norm(dim=-1) + (far[..., 0] - z).abs()
        ray = (seen_from - origin).norm(dim=-1) + (along - direction).norm(dim=-1)
        place = (placed * valid).sum() / valid.sum().clamp(min=1) + ray.mean()

        matches = patch_matches(points, valid, depth, camera_to_first, intrinsics, patch)
        frames = torch.arange(depth.shape[1], device=depth.device)
        found = (matches >= 0) & (frames[:, None, None] != frames)
        described = nn.functional.normalize(self.describe(tokens[0][:, :, special:, : self.config.embed_dim]).float(), dim=-1)
        likeness = torch.einsum("bspc,btqc->bsptq", described, described) / self.temperature
        right = likeness.log_softmax(-1).gather(-1, matches.clamp(min=0)[..., None])[..., 0]
        matching = -(right * found).sum() / found.sum().clamp(min=1)

        grid = (depth.shape[2] // patch, depth.shape[3] // patch)
        return {"matching_loss": matching, "lookup_loss": self._lookup(vggt, tokens, matches, found, grid), "place_error": place}

    def _lookup(
        self,
        vggt: VGGT,
        tokens: list[Float[Tensor, "b s t c2"]],
        matches: Int[Tensor, "b s p s"],
        found: Bool[Tensor, "b s p s"],
        grid: tuple[int, int],
    ) -> Float[Tensor, ""]:
        """-log of the attention that patches with matches pay to all of them, mean over global blocks."""
        config, (b, s, p) = self.config, matches.shape[:3]
        special, c = config.special_tokens, config.embed_dim
        rotation = rope_2d(*grid, special, c // config.num_heads, config.rope_freq, matches.device)
        wanted = torch.zeros(b, s, p, s, p, dtype=torch.bool, device=matches.device)
        wanted = nn.functional.pad(wanted.scatter(-1, matches.clamp(min=0)[..., None], found[..., None]), (special, 0)).flatten(3)
        some, losses = found.any(-1), []
        for pair, level in zip(config.dpt_layers, tokens, strict=True):
            block = vggt.aggregator.global_blocks[pair]
            within = level[..., :c].flatten(1, 2)  # what the frame block leaves is what the global block gets
            q, k, _ = block.attn.project(block.norm1(within), rotation)
            q = q[:, 0].unflatten(1, (s, -1))[:, :, special:]
            paid = (torch.einsum("bspc,bnc->bspn", q.float(), k[:, 0].float()) * q.shape[-1] ** -0.5).log_softmax(-1)
            right = paid.masked_fill(~wanted, -1e4).logsumexp(-1)
            losses.append(-(right * some).sum() / some.sum().clamp(min=1))
        return torch.stack(losses).mean()


class GeometryLoss(nn.Module):
    """VGGT with its training loss: cameras of every iteration (weight 10), depth and points of a few frames of the clip.

    The dense heads cost most of the time and need no context of their own, so `dense_frames` random frames (the first always among
    them) are decoded per step; with 0 the heads wait. `guidance` adds the losses on patches.
    """

    def __init__(self, vggt: VGGT, dense_frames: int = 4, guidance: PatchGuidance | None = None):
        super().__init__()
        self.vggt, self.dense_frames, self.guidance = vggt, dense_frames, guidance

    def forward(
        self,
        images: Float[Tensor, "b s 3 h w"],
        depth: Float[Tensor, "b s h w"],
        camera_to_first: Float[Tensor, "b s 4 4"],
        intrinsics: Float[Tensor, "b s 3 3"],
    ) -> dict[str, Tensor]:
        size = images.shape[-2:]
        vggt, frames = self.vggt, images.shape[1]
        tokens = vggt.aggregate(images)

        target = encode_pose(invert_rigid(camera_to_first)[..., :3, :], intrinsics, size)
        iterations = vggt.camera_head(tokens[-1])
        camera = sum(0.6 ** (len(iterations) - 1 - i) * pose_error(pose, target) for i, pose in enumerate(iterations)) / len(
            iterations
        )

        loss, parts = 10.0 * camera, {"camera_loss": camera.detach()}
        if self.guidance is not None:
            guided = self.guidance(vggt, tokens, depth, camera_to_first, intrinsics)
            loss = loss + sum(guided.values())
            parts |= {name: value.detach() for name, value in guided.items()}
        if self.dense_frames:
            rest = torch.randperm(frames - 1, device=images.device)[: self.dense_frames - 1] + 1
            chosen = torch.cat([rest.new_zeros(1), rest])
            some_depth, valid = depth[:, chosen], depth[:, chosen] > 0
            points = unproject_depth(some_depth, intrinsics[:, chosen], camera_to_first[:, chosen], fill=0.0)
            some_tokens = [layer[:, chosen] for layer in tokens]
            (d, d_conf), (p, p_conf) = vggt.depth_head(some_tokens, size), vggt.point_head(some_tokens, size)
            for found, truth, confidence in ((d, some_depth[..., None], d_conf), (p, points, p_conf)):
                loss = loss + confident_regression(found, truth, confidence, valid) + gradient_loss(found, truth, valid)
            parts |= {
                "depth_error": ((d[..., 0] - some_depth).abs() * valid).sum().detach() / valid.sum().clamp(min=1),
                "point_error": ((p - points).norm(dim=-1) * valid).sum().detach() / valid.sum().clamp(min=1),
            }
        return parts | {"loss": loss}


def pose_error(predicted: Float[Tensor, "b s 9"], target: Float[Tensor, "b s 9"]) -> Float[Tensor, ""]:
    """Mean absolute error of translation (metres), quaternion and field of view, summed; half weight for the last.

    A quaternion and its negative are one rotation: the nearer counts, so that a full turn has no jump in it.
    """
    error = (predicted - target).abs()
    rotation = torch.minimum(error[..., 3:7].mean(-1), (predicted[..., 3:7] + target[..., 3:7]).abs().mean(-1))
    return error[..., :3].mean() + rotation.mean() + 0.5 * error[..., 7:].mean()


@torch.no_grad()
def geometry_errors(vggt: VGGT, shards: RoomShards, rooms: int) -> dict[str, float]:
    """Median errors on whole clips: metres of depth, points and camera place, degrees of rotation (first frames left out)."""
    found: dict[str, list[Tensor]] = {"depth (m)": [], "point (m)": [], "camera place (m)": [], "camera rotation (deg)": []}
    for index in range(rooms):
        clip = clip_tensors(shards[index])
        truth = clip["camera_to_first"]
        output = vggt(clip["images"][None])
        valid = clip["depth"] > 0
        points = unproject_depth(clip["depth"], clip["intrinsics"], truth, fill=0.0)
        found["depth (m)"].append((output.depth[0, ..., 0] - clip["depth"]).abs()[valid])
        found["point (m)"].append((output.world_points[0] - points).norm(dim=-1)[valid])
        camera_to_first = invert_rigid(output.extrinsics[0])[1:]
        found["camera place (m)"].append((camera_to_first - truth[1:])[:, :3, 3].norm(dim=-1))
        cosine = ((camera_to_first[:, :3, :3].mT @ truth[1:, :3, :3]).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
        found["camera rotation (deg)"].append(cosine.clamp(-1, 1).acos().rad2deg())
    return {name: float(torch.cat(values).median()) for name, values in found.items()}
