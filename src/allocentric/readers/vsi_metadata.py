"""Scene metadata in the format published with VSI-Bench (ARKitScenes, ScanNet, ScanNet++) -> `AnnotatedScene`.

One JSON file of many scenes, name -> {room_size (square metres), room_center, object_counts {label: n}, dataset,
object_bbox {label: [{centroid, axesLengths, normalizedAxes, min, max}]}}. The first three numbers of `normalizedAxes` are the
direction of the first side. A box whose axes are missing or are not a rotation is taken from its `min` and `max`. Counts are those
of the boxes; `object_counts` is not read.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from allocentric.geometry.boxes import Box3D
from allocentric.readers.oriented import upright_box
from allocentric.readers.posed import read_json
from allocentric.scenes import AnnotatedScene, SceneObject


def is_vsi_metadata(path: Path) -> bool:
    """Whether a JSON file holds scene metadata in this format (a guess from its beginning, so that large files stay unread)."""
    if not (path.is_file() and path.suffix == ".json"):
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return '"object_bbox' in (start := file.read(1 << 16)) or '"object_counts' in start


def read_vsi_metadata(path: str | PathLike) -> dict[str, AnnotatedScene]:
    """Every scene of a metadata file, by name."""
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path}: expected scenes by name, found {type(data).__name__}")
    return {str(name): metadata_scene(str(name), scene, f"{path}: {name}") for name, scene in data.items()}


def metadata_scene(name: str, data: Mapping, where: str = "") -> AnnotatedScene:
    """One scene of a metadata file. Objects are numbered from 1 in the order of the file."""
    where = where or name
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object with object_bbox, found {type(data).__name__}")
    boxes = data.get("object_bbox", data.get("object_bboxes"))
    if not isinstance(boxes, Mapping):
        raise ValueError(f"{where}: expected object_bbox as boxes by label, found {', '.join(map(str, data)) or 'nothing'}")
    objects = []
    for label, found in boxes.items():
        if isinstance(found, Mapping):  # one box, or boxes by instance
            found = [found] if "centroid" in found else found.values()
        for box in found or ():
            if not isinstance(box, Mapping):
                raise ValueError(f"{where}: a box of {label!r} is a {type(box).__name__}, expected an object")
            objects.append(SceneObject(len(objects) + 1, label, _box(box, label, where)))
    area = data.get("room_size")
    if area is not None and not isinstance(area, (int, float)):
        raise ValueError(f"{where}: expected room_size in square metres, found {area!r}")
    known = area is not None and 0 < area < float("inf")
    return AnnotatedScene(name, tuple(objects), room_area=float(area) if known else None)


def _box(box: Mapping, label: str, where: str) -> Box3D:
    if not _turns(box.get("normalizedAxes")) and "min" in box and "max" in box:
        low, high = np.asarray(box["min"], dtype=np.float64), np.asarray(box["max"], dtype=np.float64)
        return upright_box((low + high) / 2, high - low, np.eye(3), label, where)
    for key in ("centroid", "axesLengths", "normalizedAxes"):
        if key not in box:
            raise ValueError(f"{where}: a box of {label!r} has no {key}")
    return upright_box(box["centroid"], box["axesLengths"], box["normalizedAxes"], label, where)


def _turns(axes: object) -> bool:
    """Whether these are three directions at right angles."""
    if np.size(axes) != 9 or None in np.ravel(axes):
        return False
    rows = np.asarray(axes, dtype=np.float64).reshape(3, 3)
    return bool(np.isfinite(rows).all() and np.abs(rows @ rows.T - np.eye(3)).max() < 0.01)
