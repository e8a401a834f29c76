"""Preparing a posed RGB-D scene for a grounding query: ours against the pattern of the published code, side by side.

    python benchmarks/grounding.py [--frames 32] [--boxes 50] [--rounds 5]

Published pattern: for every query, every depth picture is unprojected whole in float64 and then resized to nearest and cropped; and
for every box, every pixel of every frame is compared with it, and the cells that are half inside are averaged in a loop. Both must
agree before anything is timed. Process time on one thread, interleaved runs, medians; and, which no other load disturbs, how many
points are unprojected and how many numbers the object features take to compute.
"""

import argparse
import statistics
import sys
import time

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allocentric.fusion.structure import pool_objects
from allocentric.geometry.cells import Window, as_pictures, box_shares, cell_bounds, sample_points

HEIGHT, WIDTH, SIDE, PATCH = 480, 640, 27, 14  # depth as ScanNet has it, resized to 512 x 384, of which 378 x 378 are seen
SCALE, LEFT = 0.8, 64
WINDOW = Window(0.0, LEFT / SCALE, SIDE * PATCH / SCALE, SIDE * PATCH / SCALE)


def capture(frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth of a box room with boxes in it, intrinsics and poses of a camera that turns around in its middle."""
    generator = np.random.default_rng(seed)
    low, high = np.array([-3.0, -2.5, 0.0]), np.array([3.0, 2.5, 2.6])
    corners = generator.uniform([-2.8, -2.3, 0], [2.0, 1.6, 0.01], (20, 3))
    solids = [(c, c + s) for c, s in zip(corners, generator.uniform(0.3, 1.2, (20, 3)), strict=True)]
    k = np.array([[577.87, 0, 319.5], [0, 577.87, 239.5], [0, 0, 1]])
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    rays = np.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], np.ones_like(u)], -1)
    depth, poses = [], []
    for t in range(frames):
        yaw, pitch, eye = 2 * np.pi * t / frames, -0.25, np.array([0.3 * np.cos(t), 0.3 * np.sin(t), 1.5])
        ahead = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = np.stack([right, np.cross(ahead, right), ahead], 1), eye
        direction = rays @ pose[:3, :3].T
        with np.errstate(divide="ignore", invalid="ignore"):
            nearest = np.maximum((low - eye) / direction, (high - eye) / direction).min(-1)
            for a, b in solids:
                one, two = (a - eye) / direction, (b - eye) / direction
                enter, leave = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
                nearest = np.where((enter < leave) & (enter > 0.1), np.minimum(nearest, enter), nearest)
        depth.append(nearest)
        poses.append(pose)
    to = lambda value: torch.from_numpy(np.stack(value)).float()  # noqa: E731
    return to(depth), torch.from_numpy(k).float().expand(frames, 3, 3), to(poses)


def some_boxes(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 3, generator=generator) * torch.tensor([5.6, 4.6, 1.2]) - torch.tensor([2.8, 2.3, 0.0])
    return torch.cat([center, 0.4 + 1.2 * torch.rand(count, 3, generator=generator), torch.zeros(count, 1)], dim=1)


def published_points(depth: torch.Tensor, intrinsics: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """(frames, 378, 378, 3): whole pictures to world points, one frame at a time, then nearest resize and crop."""
    out = []
    for frame, k, pose in zip(depth.numpy(), intrinsics.numpy(), poses.numpy(), strict=True):
        v, u = np.meshgrid(np.arange(HEIGHT) + 0.5, np.arange(WIDTH) + 0.5, indexing="ij")
        pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
        camera = np.linalg.inv(k.astype(np.float64)) @ pixels * frame.reshape(1, -1).astype(np.float64)
        world = pose.astype(np.float64) @ np.concatenate([camera, np.ones((1, camera.shape[1]))])
        picture = world[:3].T.reshape(HEIGHT, WIDTH, 3)
        rows = np.floor((np.arange(384) + 0.5) / SCALE).astype(int)
        columns = np.floor((np.arange(512) + 0.5) / SCALE).astype(int)
        out.append(picture[rows][:, columns][: SIDE * PATCH, LEFT : LEFT + SIDE * PATCH])
    return torch.from_numpy(np.stack(out)).float()


def published_objects(points: torch.Tensor, tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """(k, channels): for each box, all pixels of all frames, then the mean of the cells that are half inside."""
    frames = len(points)
    cells = points.view(frames, SIDE, PATCH, SIDE, PATCH, 3).transpose(2, 3).reshape(frames * SIDE * SIDE, PATCH * PATCH, 3)
    features = []
    for box in boxes:
        low, high = box[:3] - box[3:6] / 2, box[:3] + box[3:6] / 2
        inside = ((cells >= low) & (cells <= high)).all(-1)
        member = inside.sum(1) >= PATCH * PATCH // 2
        features.append(tokens[member].mean(0) if member.any() else torch.zeros(tokens.shape[1]))
    return torch.stack(features)


def our_points(depth: torch.Tensor, intrinsics: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    return sample_points(depth, intrinsics, poses, (SIDE, SIDE), PATCH, WINDOW)


def our_objects(points: torch.Tensor, tokens: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    cells = points.flatten(0, 2)
    pooled, _ = pool_objects(tokens[None], box_shares(cells, boxes, cell_bounds(cells))[None], 0.5)
    return pooled[0]


def check(frames: int, boxes: int, channels: int = 64) -> tuple[float, float]:
    """Largest differences of points (metres) and object features; raises when they are not rounding."""
    depth, k, poses = capture(frames)
    points, ours = published_points(depth, k, poses), our_points(depth, k, poses)
    difference = (points - as_pictures(ours)).abs().max().item()
    assert difference <= 1e-5, f"points differ by {difference} m"
    tokens = torch.randn(frames * SIDE * SIDE, channels, generator=torch.Generator().manual_seed(0))
    given = some_boxes(boxes)
    features = published_objects(as_pictures(ours), tokens, given), our_objects(ours, tokens, given)
    assert (features[0] != 0).any(1).sum() >= max(1, boxes // 4), "too few boxes hold anything"
    off = (features[0] - features[1]).abs().max().item()
    assert off <= 1e-5, f"object features differ by {off}"
    return difference, off


class Numbers(TorchDispatchMode):
    """Counts the elements of all tensors that are computed within it; views cost nothing."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.count += sum(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))
        return out


def numbers(work) -> int:
    with Numbers() as counted:
        work()
    return counted.count


def timed(work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--boxes", type=int, default=50)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        points_off, objects_off = check(args.frames, args.boxes)
    except AssertionError as error:
        sys.exit(f"parity: {error}")
    print(f"parity: points within {points_off:.1e} m, object features within {objects_off:.1e}")
    depth, k, poses = capture(args.frames)
    points, boxes = our_points(depth, k, poses), some_boxes(args.boxes)
    pictures = as_pictures(points)
    tokens = torch.randn(args.frames * SIDE * SIDE, args.channels)
    pairs = {
        "depth to points": (lambda: published_points(depth, k, poses), lambda: our_points(depth, k, poses), 5),
        "object features": (lambda: published_objects(pictures, tokens, boxes), lambda: our_objects(points, tokens, boxes), 20),
    }
    print(f"{args.frames} frames, {args.boxes} boxes; seconds of process time, medians of {args.rounds}")
    for name, (published, ours, goal) in pairs.items():
        runs = [(timed(published), timed(ours)) for _ in range(args.rounds)]
        one, other = (statistics.median(times) for times in zip(*runs, strict=True))
        ratios = sorted(a / b for a, b in runs)
        print(f"{name:<18}{one:>8.3f}{other:>9.4f}{one / other:>8.1f}x  (pairs {ratios[0]:.1f} to {ratios[-1]:.1f}; goal {goal}x)")
    points_each = HEIGHT * WIDTH, (SIDE * PATCH) ** 2
    published, ours, _ = pairs["object features"]
    counted = numbers(published), numbers(ours)
    print(f"points unprojected a frame: {points_each[0]:,} and {points_each[1]:,}, {points_each[0] / points_each[1]:.1f}x")
    print(f"numbers computed for object features: {counted[0]:,} and {counted[1]:,}, {counted[0] / counted[1]:.1f}x")
    print("further queries of the same scene: neither is done again, both are kept with it")


if __name__ == "__main__":
    main()
