"""`AnnotatedScene`: what is known to be true of a place. Questions are made from it and answers are checked against it.

On disk it is one JSON document (docs/scene_folder.md, scene.schema.json), the same in a scene folder and in a line of JSONL.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D, OrientedBox
from allocentric.geometry.floor import alpha_shape, floor_points, polygon_area

FORMAT, VERSION = "allocentric-scene", 1
STRUCTURE = ("wall", "floor", "ceiling", "remove", "split")  # in lower case: annotated in scans, but no objects in a room
VISIBLE = 0.003  # an object counts as seen from the frame on in which it covers this fraction of the image


@dataclass(frozen=True)
class SceneObject:
    """One annotated object.

    id         its value in instance-id images (>= 1, 0 is no object): the number of the data set where that starts at 1, one more
               where it starts at 0 (ScanNet's objectId, EmbodiedScan's bbox_id).
    box        upright.
    oriented   the box as annotated, where the annotation turns boxes in any way; distances are between these. `box` then has the
               same centre and side lengths, set upright.
    """

    id: int
    label: str
    box: Box3D
    oriented: OrientedBox | None = None


@dataclass(frozen=True)
class AnnotatedScene:
    """Objects, rooms and camera path of one scene, in world metres (z up).

    visibility        fraction of the image that shows object i in frame t, float (T, n_objects), frames in time order and
                      evenly spaced over the video; None when unknown. Column order is that of `objects`.
    camera_to_world   float (T, 4, 4) for the same frames; None when unknown.
    floor             floor outline of each room as an (n, 2) polygon, counter-clockwise; empty when unknown.
    room_area         square metres; the area of `floor` where that is known.
    times             seconds of the same frames, float (T,); None when unknown.
    """

    name: str
    objects: tuple[SceneObject, ...]
    visibility: Float[np.ndarray, "t n"] | None = None
    camera_to_world: Float[np.ndarray, "t 4 4"] | None = None
    floor: tuple[Float[np.ndarray, "v 2"], ...] = field(default=())
    room_area: float | None = None
    times: Float[np.ndarray, " t"] | None = None


def with_floor(scene: AnnotatedScene, points: Float[np.ndarray, "n 3"]) -> AnnotatedScene:
    """The scene with floor outlines and room area from the points of a scan, as VSI-Bench measures rooms."""
    outlines = alpha_shape(floor_points(points))
    return replace(scene, floor=outlines, room_area=sum(map(polygon_area, outlines))) if outlines else scene


def scene_to_dict(scene: AnnotatedScene) -> dict:
    """The scene as plain JSON types; `scene_from_dict` is its inverse."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": scene.name,
        "objects": [_object_to_dict(o) for o in scene.objects],
        "room_area": scene.room_area,
        "floor": [np.asarray(polygon).tolist() for polygon in scene.floor],
        "times": _list(scene.times),
        "camera_to_world": _list(scene.camera_to_world),
        "visibility": _list(scene.visibility),
    }


def scene_from_dict(data: dict) -> AnnotatedScene:
    """Read what `scene_to_dict` wrote; a missing or malformed field raises ValueError. `times` may be absent."""
    try:
        objects = tuple(
            SceneObject(
                o["id"], o["label"], Box3D(_floats(o["center"]), _floats(o["size"]), float(o["yaw"]), o["label"]), _oriented(o)
            )
            for o in data["objects"]
        )
        visibility, poses, times = data["visibility"], data["camera_to_world"], data.get("times")
        return AnnotatedScene(
            name=data["name"],
            objects=objects,
            visibility=None if visibility is None else np.array(visibility, dtype=float).reshape(len(visibility), len(objects)),
            camera_to_world=None if poses is None else np.array(poses, dtype=float).reshape(-1, 4, 4),
            floor=tuple(np.array(polygon, dtype=float).reshape(-1, 2) for polygon in data["floor"]),
            room_area=data["room_area"],
            times=None if times is None else np.array(times, dtype=float).reshape(len(times)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"scene: found something malformed ({error!r}), expected what scene_to_dict writes") from error


def save_scene(scene: AnnotatedScene, path: str | os.PathLike, camera: dict | None = None) -> None:
    """Write a scene to `path` (a scene.json).

    camera   {"width", "height", "intrinsics" 3x3 in pixels} of the pictures in the scene's folder, where one is known.
    """
    document = scene_to_dict(scene) | ({} if camera is None else {"camera": camera})
    check_document(document, str(path))
    Path(path).write_text(json.dumps(document) + "\n", encoding="utf-8")


def load_scene(path: str | os.PathLike) -> AnnotatedScene:
    """The scene of a scene folder, or of a scene.json itself, checked against the schema."""
    return scene_from_dict(load_document(path))


def load_document(path: str | os.PathLike) -> dict:
    """The checked JSON document of a scene folder, or of a scene.json itself."""
    file = Path(path)
    file = file / "scene.json" if file.is_dir() else file
    if not file.is_file():
        raise ValueError(f"{path}: expected a scene folder with scene.json, found none")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from None
    check_document(document, str(file))
    return document


def check_document(document: object, source: str) -> None:
    """Refuse a document that is not a scene, saying where it goes wrong: by the schema, then lengths that must agree."""
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("version") != VERSION:
        raise ValueError(f"{source}: expected an {FORMAT} file of version {VERSION}")
    from jsonschema.exceptions import best_match

    if (error := best_match(_validator().iter_errors(document))) is not None:
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
        raise ValueError(f"{source}: {place or 'scene'}: {_short(error.message)}")
    ids = [o["id"] for o in document["objects"]]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{source}: objects: id {next(i for i in ids if ids.count(i) > 1)} is used twice")
    lengths = {name: len(document[name]) for name in ("times", "camera_to_world", "visibility") if document.get(name) is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{source}: expected as many of each, found {', '.join(f'{n} {name}' for name, n in lengths.items())}")
    for t, row in enumerate(document["visibility"] or ()):
        if len(row) != len(ids):
            raise ValueError(f"{source}: visibility[{t}]: expected {len(ids)} numbers, one an object, found {len(row)}")


def schema() -> dict:
    """The JSON schema of a scene document."""
    return json.loads((files("allocentric") / "scene.schema.json").read_text(encoding="utf-8"))


@cache
def _validator():
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema())


def _short(message: str, most: int = 200) -> str:
    """One line of an error message that may quote a whole document."""
    line = " ".join(message.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def _object_to_dict(o: SceneObject) -> dict:
    plain = {"id": o.id, "label": o.label, "center": list(o.box.center), "size": list(o.box.size), "yaw": o.box.yaw}
    if o.oriented is not None:
        box = o.oriented
        plain["oriented"] = {"center": list(box.center), "size": list(box.size), "axes": [list(axis) for axis in box.axes]}
    return plain


def _oriented(data: dict) -> OrientedBox | None:
    if (box := data.get("oriented")) is None:
        return None
    x, y, z = map(_floats, box["axes"])
    return OrientedBox(_floats(box["center"]), _floats(box["size"]), (x, y, z))


def _list(array: np.ndarray | None) -> list | None:
    return None if array is None else np.asarray(array).tolist()


def _floats(values: Sequence) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z
