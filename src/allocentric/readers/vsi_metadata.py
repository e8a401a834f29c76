"""Scene metadata in the format published with VSI-Bench (ARKitScenes, ScanNet, ScanNet++) -> `AnnotatedScene`.

One JSON file of many scenes, name -> {room_size (square metres), room_center, object_counts {label: n}, dataset,
object_bbox {label: [{centroid, axesLengths, normalizedAxes, min, max}]}}; VLM-3R's generator writes the same with `object_bboxes`
and more fields, which are not read. The first three numbers of `normalizedAxes` are the direction of the first side. ScanNet's
boxes are the smallest around the points of an object and lean in any way; they are kept as filed in `SceneObject.oriented`. A box
whose centre, sides or axes are missing or no numbers is taken from its `min` and `max`. Counts are those of the boxes;
`object_counts` is not read.
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from allocentric.readers.oriented import oriented_object, upright_box
from allocentric.readers.posed import read_json
from allocentric.scenes import AnnotatedScene, SceneObject


def is_vsi_metadata(path: Path) -> bool:
    """Whether a JSON file holds scene metadata in this format (a guess from its beginning, so that large files stay unread)."""
    if not (path.is_file() and path.suffix == ".json"):
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return '"object_bbox' in (start := file.read(1 << 16)) or '"object_counts' in start


def read_vsi_metadata(path: str | PathLike, drop_bad_boxes: bool = False) -> dict[str, AnnotatedScene]:
    """Every scene of a metadata file, by name.

    drop_bad_boxes   leave out boxes whose numbers are missing or not finite, in place of refusing them.
    """
    path = Path(path)
    data = read_json(path)
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path}: expected scenes by name, found {type(data).__name__}")
    return {str(name): metadata_scene(str(name), scene, f"{path}: {name}", drop_bad_boxes) for name, scene in data.items()}


def metadata_scene(name: str, data: Mapping, where: str = "", drop_bad_boxes: bool = False) -> AnnotatedScene:
    """One scene of a metadata file. Objects are numbered from 1 in the order of the file; a box left out keeps its number."""
    where = where or name
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected an object with object_bbox, found {type(data).__name__}")
    boxes = data.get("object_bbox", data.get("object_bboxes"))
    if not isinstance(boxes, Mapping):
        raise ValueError(f"{where}: expected object_bbox as boxes by label, found {', '.join(map(str, data)) or 'nothing'}")
    objects, number = [], 0
    for label, found in boxes.items():
        if isinstance(found, Mapping):  # one box, or boxes by instance
            found = [found] if "centroid" in found else found.values()
        for box in found or ():
            if not isinstance(box, Mapping):
                raise ValueError(f"{where}: a box of {label!r} is a {type(box).__name__}, expected an object")
            number += 1
            try:
                objects.append(_object(number, str(label), box, where))
            except ValueError as error:
                if not drop_bad_boxes:
                    raise ValueError(f"{error} (drop_bad_boxes=True leaves such boxes out)") from error
    area = data.get("room_size")
    if area is not None and (isinstance(area, bool) or not isinstance(area, (int, float))):
        raise ValueError(f"{where}: expected room_size in square metres, found {area!r}")
    known = area is not None and 0 < area < float("inf")
    return AnnotatedScene(name, tuple(objects), room_area=float(area) if known else None)


def _object(number: int, label: str, box: Mapping, where: str) -> SceneObject:
    measured = all(_finite(box.get(key), 3) for key in ("centroid", "axesLengths")) and _turns(box.get("normalizedAxes"))
    if not measured and _finite(box.get("min"), 3) and _finite(box.get("max"), 3):
        low, high = np.asarray(box["min"], dtype=np.float64), np.asarray(box["max"], dtype=np.float64)
        return SceneObject(number, label, upright_box((low + high) / 2, high - low, np.eye(3), label, where))
    for key in ("centroid", "axesLengths", "normalizedAxes"):
        if box.get(key) is None:
            raise ValueError(f"{where}: a box of {label!r} has no {key}")
    return oriented_object(number, label, box["centroid"], box["axesLengths"], box["normalizedAxes"], where)


def _finite(values: object, count: int) -> bool:
    """Whether these are so many finite numbers, nested or not."""
    flat = np.ravel(np.asarray(values, dtype=object))
    return len(flat) == count and all(isinstance(v, (int, float)) and np.isfinite(v) for v in flat)


def _turns(axes: object) -> bool:
    """Whether these are three directions at right angles."""
    if not _finite(axes, 9):
        return False
    rows = np.asarray(axes, dtype=np.float64).reshape(3, 3)
    return bool(np.abs(rows @ rows.T - np.eye(3)).max() < 0.01)
