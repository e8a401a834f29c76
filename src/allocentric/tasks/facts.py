"""What several question types need to know about a scene."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from allocentric.geometry.boxes import (
    Box3D,
    OrientedBox,
    as_oriented,
    box_distance,
    boxes_to_array,
    oriented_distance,
    oriented_to_array,
)
from allocentric.geometry.sampled import sampled_distance, sampled_points
from allocentric.scenes import STRUCTURE, VISIBLE, AnnotatedScene, SceneObject

HINT = 0.0005  # an object is possibly noticed from this fraction on: up to VISIBLE, questions about its appearance are ambiguous
NOT_ASKED = {*STRUCTURE, "object"}  # labels that name no one thing
SMALLEST = 0.10  # metres along the longest side: what is smaller is not named in a question
UPRIGHT = 1e-6  # a box counts as upright when the steepest of its directions has a z that is this close to 1: 0.1 degrees


def seen(scene: AnnotatedScene) -> Bool[np.ndarray, " n"]:
    """Which objects the video shows well enough to be asked about; all of them when visibility is unknown."""
    if scene.visibility is None:
        return np.ones(len(scene.objects), dtype=bool)
    return (scene.visibility >= VISIBLE).any(0)


def asked_about(o: SceneObject) -> bool:
    """Whether a question may name an object: no wall, nothing that was labelled "object", nothing tiny."""
    return o.label.lower() not in NOT_ASKED and max(o.box.size) >= SMALLEST


def unique_objects(scene: AnnotatedScene) -> Int[np.ndarray, " u"]:
    """Indices of the seen objects that are the only ones of their category, so that "the <label>" names one thing."""
    counts, visible = Counter(o.label for o in scene.objects), seen(scene)
    only = [i for i, o in enumerate(scene.objects) if counts[o.label] == 1 and visible[i] and asked_about(o)]
    return np.array(only, dtype=np.int64)


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
    """Every category that a question may name once, in alphabetical order."""
    return sorted({o.label for o in scene.objects} - {o.label for o in scene.objects if not asked_about(o)})


def pair_distances(scene: AnnotatedScene) -> Float[np.ndarray, "n n"]:
    """Metres between the closest points of every two boxes. Kept per scene, since several tasks ask for it."""
    return _pair_distances(scene.objects)


@lru_cache(maxsize=64)
def _pair_distances(objects: tuple[SceneObject, ...]) -> np.ndarray:
    i, j = np.triu_indices(len(objects), k=1)
    turned = oriented_to_array(map(oriented_box, objects))
    if (np.abs(turned[:, 2:5, 2]).max(1, initial=0) < 1 - UPRIGHT).any():
        apart = oriented_distance(turned[i], turned[j])
    else:
        boxes = boxes_to_array(o.box for o in objects)
        apart = box_distance(boxes[i], boxes[j])
    distances = np.zeros((len(objects), len(objects)))
    distances[i, j] = distances[j, i] = apart
    distances.setflags(write=False)
    return distances


def oriented_box(o: SceneObject) -> OrientedBox:
    """The box as annotated; the upright one where no other is known."""
    return as_oriented(o.box) if o.oriented is None else o.oriented


def published_distances(scene: AnnotatedScene, anchor: str, labels: Sequence[str]) -> Float[np.ndarray, " k"]:
    """Metres from a unique object to the nearest instance of each category, by VSI-Bench's rule.

    That is the distance of the closest of the points sampled in the two boxes (`geometry.sampled`), up to a few centimetres more
    than the exact one of `pair_distances`. Published answers are made so.
    """
    one = oriented_box(scene.objects[index_of(scene, anchor)])
    others = [[oriented_box(scene.objects[i]) for i in indices_of(scene, label)] for label in labels]
    return np.array([min(_sampled_distance(one, other) for other in boxes) for boxes in others])


@lru_cache(maxsize=4096)
def _sampled_distance(a: OrientedBox, b: OrientedBox) -> float:
    return sampled_distance(*_sampled(a), *_sampled(b))


@lru_cache(maxsize=256)
def _sampled(box: OrientedBox) -> tuple[np.ndarray, np.ndarray]:
    row = oriented_to_array([box])[0]
    return sampled_points(row), row


def centers(scene: AnnotatedScene) -> Float[np.ndarray, "n 2"]:
    """Centres of all boxes seen from above, metres."""
    return np.array([o.box.center[:2] for o in scene.objects], dtype=np.float64).reshape(-1, 2)


def bearings(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n n"]:
    """Direction from point i to point j in radians, counter-clockwise from the x axis."""
    offset = points[None, :] - points[:, None]
    return np.arctan2(offset[..., 1], offset[..., 0])
