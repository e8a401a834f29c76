"""Files of proposal boxes -> `Box3D`.

Read are JSON files that hold a list of boxes, of one scene, or a dictionary from scene names to such lists, of many ("scannet/"
in front of a name is ignored). A box is a list (x, y, z, dx, dy, dz) or (x, y, z, dx, dy, dz, yaw), or an object with `center`,
`size` and, if it has them, `yaw`, `label`, `score`. Also Mask3D masks as LEO distributes them (.mask.npz), with the vertices they
are about.
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import sparse

from allocentric.geometry.boxes import Box3D


def read_proposals(path: str | Path, scene: str | None = None) -> list[Box3D]:
    """The boxes of a JSON file; `scene` names the one that is meant in a file of many."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected JSON with boxes")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON ({error})") from error
    if isinstance(content, dict):
        named = {name.split("/", 1)[-1]: boxes for name, boxes in content.items()}
        if scene is None and len(named) == 1:
            scene = next(iter(named))
        if scene is None or scene.split("/", 1)[-1] not in named:
            raise ValueError(f"{path}: found boxes of {sorted(named)[:3]} ({len(named)} scenes), expected those of {scene!r}")
        content = named[scene.split("/", 1)[-1]]
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path}: found {type(content).__name__} with no boxes, expected a list of at least one")
    return [_box(entry, f"{path}: box {i}") for i, entry in enumerate(content)]


def _box(entry: object, where: str) -> Box3D:
    try:
        if isinstance(entry, dict):
            numbers = [*entry["center"], *entry["size"], entry.get("yaw", 0.0)]
            label, score = entry.get("label", ""), entry.get("score")
        else:
            numbers, label, score = list(entry), "", None
        numbers = [float(number) for number in numbers]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: found {entry!r}, expected 6 or 7 numbers, or center and size") from error
    numbers = numbers if len(numbers) == 7 else [*numbers, 0.0]
    if len(numbers) != 7 or not np.isfinite(numbers).all() or min(numbers[3:6]) <= 0:
        raise ValueError(f"{where}: found {entry!r}, expected 6 or 7 finite numbers with positive sides")
    numeric = isinstance(score, (int, float)) and not isinstance(score, bool) and np.isfinite(score)
    if not isinstance(label, str) or not (score is None or numeric):
        raise ValueError(f"{where}: found label {label!r} and score {score!r}, expected text and a finite number")
    return Box3D(tuple(numbers[:3]), tuple(numbers[3:6]), numbers[6], label, score)


def boxes_of_masks(path: str | Path, vertices: Float[np.ndarray, "v 3"], most: int = 50) -> list[Box3D]:
    """Aligned boxes around the vertices of the first `most` instance masks (.mask.npz, best first); empty masks are left out.

    vertices   of the mesh the masks were predicted on, in the world the boxes shall be in.
    """
    try:
        masks = sparse.load_npz(path).tocsr()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: expected masks as a scipy sparse matrix ({error})") from error
    if masks.shape[1] != len(vertices):
        raise ValueError(f"{path}: found masks of {masks.shape[1]} vertices, expected {len(vertices)}")
    boxes = []
    for row in masks[:most]:
        inside = vertices[row.indices[row.data != 0]]
        if len(inside):
            low, high = inside.min(0).astype(float), inside.max(0).astype(float)
            boxes.append(Box3D(tuple((low + high) / 2), tuple(high - low)))
    return boxes
