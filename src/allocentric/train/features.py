"""What frozen encoders say of each training room, computed once and kept in memory-mapped files."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from allocentric.files import write_whole
from allocentric.models.patches import patchify
from allocentric.models.scene import weights_id
from allocentric.scenes import AnnotatedScene
from allocentric.train.shards import RoomShards, mirror, mirror_scene

PARTS = ("2d", "3d")


def write_features(folder: Path, model: nn.Module, shards: RoomShards, mirrored: bool, block: int = 8) -> Iterator[tuple[int, int]]:
    """Encode every room, and its mirror image too if asked; yields (done, total). Continues where an interrupted run stopped.

    Row i holds room i; with `mirrored`, row len(shards) + i holds its mirror image. float16, (rows, tokens, channels) per part.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    total, progress = len(shards) * (1 + mirrored), folder / "progress.json"
    wanted = {"total": total, "weights": weights_id(model)}
    state = json.loads(progress.read_text()) if progress.exists() else wanted | {"done": 0}
    done = state.pop("done")
    if state != wanted:
        raise ValueError(
            f"{folder}: found features of other rooms or another model ({state}), expected {wanted}; delete the folder"
        )
    files: dict[str, np.memmap] = {}
    yield done, total
    while done < total:
        rows = range(done, min(done + block, total))
        samples = [mirror(shards[i - len(shards)]) if i >= len(shards) else shards[i] for i in rows]
        frames = [torch.from_numpy(np.ascontiguousarray(s.frames)).permute(0, 3, 1, 2).float() / 255 for s in samples]
        pixels, grids = zip(*(patchify(f, model.config) for f in frames), strict=True)
        pixels, grids = torch.cat(pixels).to(model.device), torch.stack(grids).to(model.device)
        with torch.no_grad():
            encoded = {"2d": model.encode_2d(pixels, grids), "3d": model.encode_3d(pixels, grids)}
        for part, value in encoded.items():
            if value is None:
                continue
            value = value.view(len(rows), -1, value.shape[-1]).to(torch.float16).cpu().numpy()
            if part not in files:
                mode = "r+" if rows.start > 0 else "w+"  # from nothing: what lies there is of a run that wrote no progress
                files[part] = np.lib.format.open_memmap(folder / f"{part}.npy", mode, np.float16, (total, *value.shape[1:]))
            files[part][rows.start : rows.stop] = value
        done = rows.stop
        for file in files.values():
            file.flush()
        write_whole(progress, json.dumps(wanted | {"done": done}))
        yield done, total


class RoomFeatures:
    """Rooms with their cached features: index -> (annotation, features by part). Rows are those of `write_features`."""

    def __init__(self, folder: Path, shards: RoomShards):
        self.folder, self.shards = Path(folder), shards
        record = self.folder / "progress.json"
        progress = json.loads(record.read_text()) if record.is_file() else {"done": 0, "total": len(shards)}
        if progress["done"] < progress["total"]:
            raise ValueError(
                f"{folder}: found features of {progress['done']} rooms, expected {progress['total']}; write them first"
            )
        self.rows = progress["total"]
        self.files = {part: np.load(path, mmap_mode="r") for part in PARTS if (path := self.folder / f"{part}.npy").exists()}

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> tuple[AnnotatedScene, dict[str, Tensor]]:
        scene = self.shards[index % len(self.shards)].scene
        if index >= len(self.shards):
            scene = mirror_scene(scene)
        return scene, {part: torch.from_numpy(file[index].astype(np.float32)) for part, file in self.files.items()}
