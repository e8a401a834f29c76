"""What several question types need to know about a scene."""

from collections import Counter
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from allocentric.geometry.boxes import Box3D, box_distance, boxes_to_array
from allocentric.scenes import AnnotatedScene, SceneObject

VISIBLE = 0.003  # an object counts as seen from the frame on in which it covers this fraction of the image,
HINT = 0.0005  # and is possibly noticed from this fraction on: between the two, questions about its appearance are ambiguous


def seen(scene: AnnotatedScene) -> Bool[np.ndarray, " n"]:
    """Which objects the video shows well enough to be asked about; all of them when visibility is unknown."""
    if scene.visibility is None:
        return np.ones(len(scene.objects), dtype=bool)
    return (scene.visibility >= VISIBLE).any(0)


def unique_objects(scene: AnnotatedScene) -> Int[np.ndarray, " u"]:
    """Indices of the seen objects that are the only ones of their category, so that "the <label>" names one thing."""
    counts, visible = Counter(o.label for o in scene.objects), seen(scene)
    return np.array([i for i, o in enumerate(scene.objects) if counts[o.label] == 1 and visible[i]], dtype=np.int64)


def indices_of(scene: AnnotatedScene, label: str) -> list[int]:
    """Positions of a category's objects in `scene.objects`."""
    found = [i for i, o in enumerate(scene.objects) if o.label == label]
    if not found:
        raise ValueError(f"scene {scene.name}: expected an object labelled {label!r}, found {scene_labels(scene)}")
    return found


def index_of(scene: AnnotatedScene, label: str) -> int:
    """Position of a category's only object."""
    found = indices_of(scene, label)
    if len(found) > 1:
        raise ValueError(f"scene {scene.name}: expected one object labelled {label!r}, found {len(found)}")
    return found[0]


def the_box(scene: AnnotatedScene, label: str) -> Box3D:
    """The box of a category's only object."""
    return scene.objects[index_of(scene, label)].box


def scene_labels(scene: AnnotatedScene) -> list[str]:
    """Every category once, in alphabetical order."""
    return sorted({o.label for o in scene.objects})


def pair_distances(scene: AnnotatedScene) -> Float[np.ndarray, "n n"]:
    """Metres between the closest points of every two boxes. Kept per scene, since several tasks ask for it."""
    return _pair_distances(scene.objects)


@lru_cache(maxsize=64)
def _pair_distances(objects: tuple[SceneObject, ...]) -> np.ndarray:
    boxes = boxes_to_array(o.box for o in objects)
    i, j = np.triu_indices(len(boxes), k=1)
    distances = np.zeros((len(boxes), len(boxes)))
    distances[i, j] = distances[j, i] = box_distance(boxes[i], boxes[j])
    distances.setflags(write=False)
    return distances


def centers(scene: AnnotatedScene) -> Float[np.ndarray, "n 2"]:
    """Centres of all boxes seen from above, metres."""
    return np.array([o.box.center[:2] for o in scene.objects], dtype=np.float64).reshape(-1, 2)


def bearings(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n"]:
    """Direction from point i to point j in radians, counter-clockwise from the x axis."""
    offset = points[None, :] - points[:, None]
    return np.arctan2(offset[..., 1], offset[..., 0])


def wrap(angle: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The same angle in (-pi, pi]."""
    return np.pi - (np.pi - angle) % (2 * np.pi)
