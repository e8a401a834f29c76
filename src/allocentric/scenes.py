"""`AnnotatedScene`: what is known to be true of a place. Questions are made from it and answers are checked against it."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D


@dataclass(frozen=True)
class SceneObject:
    """One annotated object. `id` is its value in instance-id images (>= 1)."""

    id: int
    label: str
    box: Box3D


@dataclass(frozen=True)
class AnnotatedScene:
    """Objects, rooms and camera path of one scene, in world metres (z up).

    visibility        fraction of the image that shows object i in frame t, float (T, n_objects), frames in time order and
                      evenly spaced over the video; None when unknown. Column order is that of `objects`.
    camera_to_world   float (T, 4, 4) for the same frames; None when unknown.
    floor             floor outline of each room as an (n, 2) polygon, counter-clockwise; empty when unknown.
    room_area         square metres; the area of `floor` where that is known.
    """

    name: str
    objects: tuple[SceneObject, ...]
    visibility: Float[np.ndarray, "t n"] | None = None
    camera_to_world: Float[np.ndarray, "t 4 4"] | None = None
    floor: tuple[Float[np.ndarray, "v 2"], ...] = field(default=())
    room_area: float | None = None


def scene_to_dict(scene: AnnotatedScene) -> dict:
    """The scene as plain JSON types; `scene_from_dict` is its inverse, but for visibility, which keeps six decimals."""
    return {
        "name": scene.name,
        "objects": [
            {"id": o.id, "label": o.label, "center": list(o.box.center), "size": list(o.box.size), "yaw": o.box.yaw}
            for o in scene.objects
        ],
        "visibility": None if scene.visibility is None else np.round(scene.visibility, 6).tolist(),
        "camera_to_world": None if scene.camera_to_world is None else np.asarray(scene.camera_to_world).tolist(),
        "floor": [np.asarray(polygon).tolist() for polygon in scene.floor],
        "room_area": scene.room_area,
    }


def scene_from_dict(data: dict) -> AnnotatedScene:
    """Read what `scene_to_dict` wrote; a missing or malformed field raises ValueError."""
    try:
        objects = tuple(
            SceneObject(o["id"], o["label"], Box3D(_floats(o["center"]), _floats(o["size"]), float(o["yaw"]), o["label"]))
            for o in data["objects"]
        )
        visibility, poses = data["visibility"], data["camera_to_world"]
        return AnnotatedScene(
            name=data["name"],
            objects=objects,
            visibility=None if visibility is None else np.array(visibility, dtype=float).reshape(len(visibility), len(objects)),
            camera_to_world=None if poses is None else np.array(poses, dtype=float).reshape(-1, 4, 4),
            floor=tuple(np.array(polygon, dtype=float).reshape(-1, 2) for polygon in data["floor"]),
            room_area=data["room_area"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"scene: found something malformed ({error!r}), expected what scene_to_dict writes") from error


def _floats(values: list) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z
