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
