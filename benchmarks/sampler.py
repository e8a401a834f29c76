"""Space-aware sampling after geometry: ours against the pattern of the published code, side by side on a synthetic room.

    python benchmarks/sampler.py [--frames 128] [--size 392 518] [-k 16] [--rounds 5]

The baseline does what the published sampler does once VGGT has spoken: `np.percentile` over all confidences, `torch.unique` and a
Python set of tuples for each frame, greedy picks by set difference. Both must choose the same frames before anything is timed.
Process time on one thread, interleaved runs, medians.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from allocentric.sampling import (
    VOXELS_ACROSS,
    _bounding_box,
    _valid_points,
    greedy_coverage,
    space_aware,
    voxel_bitmap,
)

# ------------------------------------------------------------------------------------------ the baseline, in the published pattern


def baseline_voxels(points: torch.Tensor, confidence: torch.Tensor) -> list[set[tuple[int, int, int]]]:
    threshold = np.percentile(confidence.reshape(-1).numpy(), 50)
    keep = (confidence >= threshold) & (confidence > 0.1)
    valid = points.reshape(-1, 3)[(confidence.reshape(-1) >= threshold) & (confidence.reshape(-1) > 0.1)]
    low, high = valid.min(dim=0)[0], valid.max(dim=0)[0]
    voxel = min(high - low) / VOXELS_ACROSS
    sets = []
    for frame, kept in zip(points, keep, strict=True):
        inside = frame.reshape(-1, 3)[kept.flatten()]
        cells = ((inside - low) / voxel).floor().long()
        sets.append(set(map(tuple, torch.unique(cells, dim=0).tolist())))
    return sets


def baseline_greedy(sets: list[set[tuple[int, int, int]]], k: int) -> list[int]:
    chosen, covered, left = [], set(), set(range(len(sets)))
    while left and len(chosen) < k:
        best, best_gain = None, 0
        for frame in left:
            gain = len(sets[frame] - covered)
            if gain > best_gain:
                best, best_gain = frame, gain
        if best is None:
            break
        chosen.append(best)
        covered |= sets[best]
        left.remove(best)
    return chosen


# --------------------------------------------------------------------------------------------------------------- a room to look at


def box_room(frames: int, height: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Points and confidence as a camera walking through a furnished box room would give: rays cast to walls and boxes."""
    rng = np.random.default_rng(seed)
    room = np.array([6.0, 4.5, 2.6])
    solids = [(np.zeros(3), room)]
    for _ in range(12):
        size = rng.uniform([0.4, 0.4, 0.4], [1.4, 1.0, 1.6])
        corner = np.append(rng.uniform([0, 0], room[:2] - size[:2]), 0.0)
        solids.append((corner, corner + size))
    v, u = np.mgrid[0:height, 0:width] + 0.5
    rays = np.stack([(u - width / 2) / (0.8 * width), (v - height / 2) / (0.8 * width), np.ones_like(u)], -1)
    points = torch.empty(frames, height, width, 3)
    confidence = torch.empty(frames, height, width)
    for t in range(frames):
        s = t / max(frames - 1, 1)
        eye = np.array([1.0 + 4.0 * s, 2.2 + 0.8 * np.sin(6 * s), 1.5])
        yaw, pitch = 7.0 * s, -0.25 + 0.15 * np.sin(11 * s)
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        direction = rays @ np.stack([right, np.cross(forward, right), forward])
        nearest = np.full((height, width), np.inf)
        for number, (low, high) in enumerate(solids):
            with np.errstate(divide="ignore"):
                a, b = (low - eye) / direction, (high - eye) / direction
            enter, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
            hit = leave if number == 0 else np.where((enter < leave) & (enter > 0.05), enter, np.inf)
            nearest = np.minimum(nearest, hit)
        noise = 1 + 0.01 * rng.standard_normal(nearest.shape)
        points[t] = torch.from_numpy(eye + direction * (nearest * noise)[..., None])
        confidence[t] = torch.from_numpy(1 + np.exp(rng.normal(1.5 - 0.3 * nearest, 0.4)))
    return points, confidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--size", type=int, nargs=2, default=(392, 518), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("-k", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    points, confidence = box_room(args.frames, *args.size)

    sets = baseline_voxels(points, confidence)
    expected = baseline_greedy(sets, args.k)
    ours = space_aware(points, args.k, confidence, mode="reference")
    assert list(ours.order) == expected, f"the selections differ: {list(ours.order)} and {expected}"
    assert ours.total_voxels == len(set().union(*sets))
    valid = _valid_points(points, confidence, None, only_finite=False)
    low, high, side = _bounding_box(valid)
    seen = voxel_bitmap(valid, low, high, side / np.float32(VOXELS_ACROSS))
    del valid

    steps = {
        "greedy": (lambda: baseline_greedy(sets, args.k), lambda: greedy_coverage(seen, args.k)),
        "all after geometry": (
            lambda: baseline_greedy(baseline_voxels(points, confidence), args.k),
            lambda: space_aware(points, args.k, confidence, mode="reference"),
        ),
        "all, mode fill": (None, lambda: space_aware(points, args.k, confidence)),
    }
    seconds = {(name, i): [] for name in steps for i in range(2)}
    for _ in range(args.rounds):
        for name, pair in steps.items():
            for i, run in enumerate(pair):
                if run is not None:
                    repeat = 1 if i == 0 or name != "greedy" else 20
                    start = time.process_time()
                    for _ in range(repeat):
                        run()
                    seconds[name, i].append((time.process_time() - start) / repeat)

    height, width = args.size
    print(f"{args.frames} frames of {height}x{width}, k = {args.k}, {ours.total_voxels} voxels; same frames, same order")
    print(f"{'step':<20}{'published':>12}{'ours':>12}{'ratio':>9}")
    for name in steps:
        mine = statistics.median(seconds[name, 1])
        theirs = statistics.median(seconds[name, 0] or seconds["all after geometry", 0])
        print(f"{name:<20}{theirs:>10.3f} s{mine * 1e3:>9.1f} ms{theirs / mine:>8.1f}x")


if __name__ == "__main__":
    main()
