"""Rooms rendered ahead of training: folders of memory-mapped arrays that are written once and read many times.

    <folder>/00000/frames.npy   uint8   (n, T, H, W, 3)
                   depth.npy    float16 (n, T, H, W)      metres
                   ids.npy      uint8   (n, T, H, W)      0 is no object
                   cameras.npz  camera_to_world (n, T, 4, 4), intrinsics (n, T, 3, 3), float32
                   scenes.jsonl one AnnotatedScene a line

A shard appears under its name only when it is complete, so an interrupted run is continued by running it again.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from allocentric.scenes import AnnotatedScene, scene_from_dict, scene_to_dict

SHARD_SIZE = 40


@dataclass(frozen=True)
class RoomsSpec:
    """Which rooms: `count` of them with seeds `first_seed`, `first_seed + 1`, ..., in one style and at one image size."""

    count: int
    first_seed: int = 0
    style: str = "parts"
    frames: int = 16
    height: int = 112
    width: int = 140


@dataclass(frozen=True)
class RoomSample:
    """One room as arrays: frames (T, H, W, 3) uint8, depth (T, H, W) metres, ids (T, H, W), cameras, and its annotation."""

    frames: np.ndarray
    depth: np.ndarray
    ids: np.ndarray
    camera_to_world: np.ndarray
    intrinsics: np.ndarray
    scene: AnnotatedScene

    def select(self, indices: np.ndarray) -> "RoomSample":
        """The frames at `indices`, in that order; the annotation stays that of the whole room."""
        return RoomSample(*(part[indices] if isinstance(part, np.ndarray) else part for part in vars(self).values()))


def write_rooms(folder: Path, spec: RoomsSpec, workers: int = 2) -> Iterator[tuple[int, int]]:
    """Render the rooms that `folder` does not hold yet; yields (rooms there, rooms asked for) as they arrive."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record, wanted = folder / "spec.json", {k: v for k, v in vars(spec).items() if k != "count"}
    if record.exists():
        if (found := json.loads(record.read_text())) != wanted:
            raise ValueError(f"{folder}: found rooms of {found}, expected {wanted}; use another folder")
    else:
        record.write_text(json.dumps(wanted))
    shards = range((spec.count + SHARD_SIZE - 1) // SHARD_SIZE)
    missing = [i for i in shards if not (folder / f"{i:05d}").exists()]
    done = (len(shards) - len(missing)) * SHARD_SIZE
    yield min(done, spec.count), spec.count
    with ProcessPoolExecutor(workers) as pool:
        for job in as_completed([pool.submit(_write_shard, folder, spec, i) for i in missing]):
            job.result()
            done += SHARD_SIZE
            yield min(done, spec.count), spec.count


def _write_shard(folder: Path, spec: RoomsSpec, index: int) -> None:
    from allocentric import rooms

    seeds = range(spec.first_seed + index * SHARD_SIZE, spec.first_seed + (index + 1) * SHARD_SIZE)
    made = [rooms.generate(seed, spec.frames, spec.height, spec.width, spec.style) for seed in seeds]
    partial = folder / f"{index:05d}.partial-{os.getpid()}"
    partial.mkdir()
    views = [views for views, _, _ in made]
    np.save(partial / "frames.npy", np.stack([v.frames.permute(0, 2, 3, 1).numpy() for v in views]))
    np.save(partial / "depth.npy", np.stack([v.depth.numpy() for v in views]).astype(np.float16))
    np.save(partial / "ids.npy", np.stack([ids for _, _, ids in made]).astype(np.uint8))
    np.savez(
        partial / "cameras.npz",
        camera_to_world=np.stack([v.camera_to_world.numpy() for v in views]),
        intrinsics=np.stack([v.intrinsics.numpy() for v in views]),
    )
    (partial / "scenes.jsonl").write_text("".join(json.dumps(scene_to_dict(scene)) + "\n" for _, scene, _ in made))
    target = folder / f"{index:05d}"
    if target.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(target)


class RoomShards:
    """The rooms of a folder written by `write_rooms`, as a sequence of `RoomSample`. Arrays are views of the files."""

    def __init__(self, folder: Path, count: int | None = None):
        self.folder = Path(folder)
        self.shards = sorted(p for p in self.folder.glob("[0-9]" * 5) if p.is_dir())
        if not self.shards:
            raise ValueError(f"{folder}: found no shards of rooms; write them with `allo rooms`")
        held = len(self.shards) * SHARD_SIZE
        if count is not None and count > held:
            raise ValueError(f"{folder}: found {held} rooms, expected {count}; write more with `allo rooms`")
        self.count = held if count is None else count
        self._open: dict[int, tuple] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RoomSample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        shard, row = divmod(index, SHARD_SIZE)
        if shard not in self._open:
            path = self.shards[shard]
            cameras = np.load(path / "cameras.npz")
            self._open[shard] = (
                *(np.load(path / f"{name}.npy", mmap_mode="r") for name in ("frames", "depth", "ids")),
                cameras["camera_to_world"],
                cameras["intrinsics"],
                [scene_from_dict(json.loads(line)) for line in (path / "scenes.jsonl").read_text().splitlines()],
            )
        return RoomSample(*(part[row] for part in self._open[shard]))


def mirror(sample: RoomSample) -> RoomSample:
    """The same room seen in a mirror (world x and image x negated): a second, equally valid room for training."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    intrinsics = sample.intrinsics.copy()
    intrinsics[..., 0, 2] = sample.frames.shape[2] - intrinsics[..., 0, 2]
    return RoomSample(
        frames=sample.frames[:, :, ::-1],
        depth=sample.depth[..., ::-1],
        ids=sample.ids[..., ::-1],
        camera_to_world=(flip @ sample.camera_to_world @ flip).astype(sample.camera_to_world.dtype),
        intrinsics=intrinsics,
        scene=mirror_scene(sample.scene),
    )


def mirror_scene(scene: AnnotatedScene) -> AnnotatedScene:
    """The annotation of a mirrored room (world x negated)."""
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    return replace(
        scene,
        name=f"{scene.name}-mirrored",
        objects=tuple(
            replace(o, box=replace(o.box, center=(-o.box.center[0], *o.box.center[1:]), yaw=-o.box.yaw)) for o in scene.objects
        ),
        camera_to_world=None if scene.camera_to_world is None else flip @ scene.camera_to_world @ flip,
        floor=tuple(polygon[::-1] * (-1.0, 1.0) for polygon in scene.floor),
    )


def random_generator() -> np.random.Generator:
    """A numpy generator seeded from torch's, which the Trainer seeds, saves and restores: resumed runs draw the same numbers."""
    return np.random.default_rng(int(torch.randint(2**31, (1,))))
