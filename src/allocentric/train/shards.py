"""Rooms rendered ahead of training: folders of memory-mapped arrays that are written once and read many times.

    <folder>/00000/frames.npy   uint8   (n, T, H, W, 3)
                   depth.npy    float16 (n, T, H, W)      metres
                   ids.npy      uint8   (n, T, H, W)      0 is no object
                   cameras.npz  camera_to_world (n, T, 4, 4), intrinsics (n, T, 3, 3), float32
                   scenes.jsonl one AnnotatedScene a line

A shard appears under its name only when it is complete, so an interrupted run is continued by running it again. Every shard holds
`SHARD_SIZE` rooms but the last, which holds what is left; it is written anew when more rooms are asked for later.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from allocentric.files import write_whole
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
    record, wanted = folder / "spec.json", {k: v for k, v in vars(spec).items() if k != "count"}
    if record.exists() and (found := json.loads(record.read_text())) != wanted:
        raise ValueError(f"{folder}: found rooms of {found}, expected {wanted}; use another folder")
    wanted_rooms = [min(SHARD_SIZE, spec.count - start) for start in range(0, spec.count, SHARD_SIZE)]
    missing = {i: rooms for i, rooms in enumerate(wanted_rooms) if _rooms_in(folder / f"{i:05d}") < rooms}
    if missing and spec.style == "models":
        from allocentric.rooms.models import model_catalog

        model_catalog()  # says what to install before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    if not record.exists():
        write_whole(record, json.dumps(wanted))
    done = spec.count - sum(missing.values())
    yield done, spec.count
    if not missing:
        return
    # Not forked: a child forked from a process that has run torch on several threads can wait for them for ever.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        jobs = {pool.submit(_write_shard, folder, spec, i, rooms): rooms for i, rooms in missing.items()}
        for job in as_completed(jobs):
            job.result()
            done += jobs[job]
            yield done, spec.count


def _rooms_in(shard: Path) -> int:
    """How many rooms a shard holds; 0 when it is not there."""
    return len(np.load(shard / "frames.npy", mmap_mode="r")) if shard.is_dir() else 0


def _write_shard(folder: Path, spec: RoomsSpec, index: int, count: int) -> None:
    from allocentric import rooms

    first = spec.first_seed + index * SHARD_SIZE
    made = [rooms.generate(seed, spec.frames, spec.height, spec.width, spec.style) for seed in range(first, first + count)]
    views = [views for views, _, _ in made]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as scratch:
        work = Path(scratch) / "shard"
        work.mkdir()
        np.save(work / "frames.npy", np.stack([v.frames.permute(0, 2, 3, 1).numpy() for v in views]))
        np.save(work / "depth.npy", np.stack([v.depth.numpy() for v in views]).astype(np.float16))
        np.save(work / "ids.npy", np.stack([ids for _, _, ids in made]).astype(np.uint8))
        np.savez(
            work / "cameras.npz",
            camera_to_world=np.stack([v.camera_to_world.numpy() for v in views]),
            intrinsics=np.stack([v.intrinsics.numpy() for v in views]),
        )
        (work / "scenes.jsonl").write_text("".join(json.dumps(scene_to_dict(scene)) + "\n" for _, scene, _ in made))
        target = folder / f"{index:05d}"
        if target.exists():  # a shorter last shard of an earlier run
            shutil.rmtree(target)
        work.rename(target)


class RoomShards:
    """The rooms of a folder written by `write_rooms`, as a sequence of `RoomSample`. Arrays are views of the files."""

    def __init__(self, folder: Path, count: int | None = None):
        self.folder = Path(folder)
        held = shards = 0
        while held == shards * SHARD_SIZE and (rooms := _rooms_in(self._shard(shards))):  # up to the first gap
            held, shards = held + rooms, shards + 1
        if not held or held < (count or 0):
            raise ValueError(
                f"{folder}: found {held} rooms, expected {count or 'some'}; write them first (stage `rooms` of a recipe)"
            )
        self.count = held if count is None else count
        self._open: dict[int, tuple] = {}

    def _shard(self, index: int) -> Path:
        return self.folder / f"{index:05d}"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> RoomSample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        shard, row = divmod(index, SHARD_SIZE)
        if shard not in self._open:
            path = self._shard(shard)
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
    """A numpy generator seeded from torch's, which the Trainer seeds: two runs of a recipe draw the same numbers.

    A resumed run draws others, equally good, from where it resumes: its data loader had drawn ahead of the checkpoint.
    """
    return np.random.default_rng(int(torch.randint(2**31, (1,))))
