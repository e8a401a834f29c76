"""Furnished rooms a minute, as training draws them: 16 frames of 112x140 with shading, shadows, motion blur and noise.

    python benchmarks/rooms.py [--count 12]

No published code makes rooms; beside a whole room stand its parts: building and furnishing the room with its walk, and a bare
embree pass, one ray for every pixel and nothing but what it hits. Parity: the pass hits the very objects of the instance images.
"""

import statistics
import time

import numpy as np
import tyro

from allocentric.rooms.generate import generate, pinhole, staged
from allocentric.rooms.raycast import directions

FRAMES, HEIGHT, WIDTH = 16, 112, 140


def bare_pass(seed: int) -> tuple[np.ndarray, float, float]:
    """Instance images by one ray a pixel, (T, H, W); process seconds of building the room, and of the rays."""
    start = time.process_time()
    room, path, fov = staged(seed)
    scene, owner = room.scene(), room.surface().id
    built = time.process_time()
    poses = path.poses(np.linspace(0, path.duration, FRAMES)).astype(np.float32)
    local = directions(HEIGHT, WIDTH, pinhole(HEIGHT, WIDTH, fov))
    rays = np.einsum("tij,pj->tpi", poses[:, :3, :3], local).reshape(-1, 3)
    eyes = np.repeat(poses[:, :3, 3], len(local), axis=0)
    hit = scene.run(eyes, rays)
    ids = np.where(hit >= 0, owner[hit], 0).reshape(FRAMES, HEIGHT, WIDTH)
    return ids, built - start, time.process_time() - built


def check(ids: np.ndarray, expected: np.ndarray) -> None:
    """Both ways see the same objects; of rays along an edge some may fall to the other side."""
    differ = float((ids != expected).mean())
    assert differ < 1e-3, f"{differ:.2%} of the pixels show other objects"


def main(count: int = 12) -> None:
    """Process seconds a room, and rooms a minute of one core.

    Args:
        count: rooms, the same ones every time.
    """
    seconds = {"a room as training draws it": [], "  of it: building, furnishing, walk": [], "a bare pass of rays": []}
    for seed in range(count):
        start = time.process_time()
        _, _, expected = generate(seed, FRAMES, HEIGHT, WIDTH)
        whole = time.process_time() - start
        ids, built, cast = bare_pass(seed)
        check(ids, expected)
        for row, value in zip(seconds.values(), (whole, built, cast), strict=True):
            row.append(value)
    for name, values in seconds.items():
        print(f"{name:<38} median {statistics.median(values):6.3f} s   mean {statistics.mean(values):6.3f} s")
    whole, _, cast = map(statistics.mean, seconds.values())
    print(f"{60 / whole:.0f} rooms a minute and core (goal: 40); a room takes as long as {whole / cast:.0f} bare passes")


if __name__ == "__main__":
    tyro.cli(main)
