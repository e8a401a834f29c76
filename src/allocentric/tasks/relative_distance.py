"""Relative distance: which of four categories is closest to an object."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, multiple_choice
from allocentric.tasks.facts import index_of, indices_of, pair_distances, scene_labels, seen, unique_objects
from allocentric.tasks.vsibench import VSITask

TOUCHING = 0.15  # metres; what stands on or against the anchor could be told from its name alone (a lamp on a nightstand)
GAP = 0.15  # least difference in metres between any two options,
WIN_GAP = 0.30  # and between the closest one and the others


class RelativeDistance(VSITask):
    """A unique anchor and four other categories, each as far away as its closest instance.

    Which category is right is drawn first, from all that can be, so that the scene's overall nearest is not always the answer.
    """

    name = "object_rel_distance"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        questions: list[Question] = []
        made: set[tuple[str, frozenset[str]]] = set()
        visible = seen(scene)
        hidden = {o.label for o, shown in zip(scene.objects, visible, strict=True) if not shown}
        labels = [label for label in scene_labels(scene) if label not in hidden]
        anchors = unique_objects(scene)
        if len(labels) < 5 or len(anchors) == 0:
            return []
        nearest = _distances_to_categories(scene, labels)
        for _ in range(4 * limit):
            if len(questions) == limit:
                break
            i = rng.choice(anchors)
            anchor = scene.objects[i].label
            options = _draw_options(labels, nearest[i], anchor, rng)
            if options is None or (anchor, frozenset(options)) in made:
                continue
            made.add((anchor, frozenset(options)))
            correct, shuffled = options[0], rng.permutation(options).tolist()
            text = (
                "Measuring from the closest point of each object, which of these objects "
                f"({', '.join(shuffled)}) is the closest to the {anchor}?"
            )
            questions.append(multiple_choice(self.name, scene, text, shuffled, correct, (*shuffled, anchor)))
        return questions


def category_distances(scene: AnnotatedScene, anchor: str, labels: Sequence[str]) -> Float[np.ndarray, " k"]:
    """Metres from a unique object to the closest instance of each category, closest points of the boxes; 0 for itself."""
    return _distances_to_categories(scene, labels)[index_of(scene, anchor)]


def _distances_to_categories(scene: AnnotatedScene, labels: Sequence[str]) -> Float[np.ndarray, "n k"]:
    meters = pair_distances(scene)
    return np.stack([meters[:, indices_of(scene, label)].min(1) for label in labels], axis=1)


def _draw_options(labels: list[str], distances: np.ndarray, anchor: str, rng: np.random.Generator) -> list[str] | None:
    """Four labels, the closest one first and all clearly apart; None when chance or the scene offers none."""
    by_distance = [i for i in np.argsort(distances).tolist() if labels[i] != anchor and distances[i] >= TOUCHING]
    if len(by_distance) < 4:
        return None
    rank = int(rng.integers(len(by_distance) - 3))  # three farther ones must remain
    chosen = [by_distance[rank]]
    for i in rng.permutation(by_distance[rank + 1 :]).tolist():
        if distances[i] - distances[chosen[0]] >= WIN_GAP and (np.abs(distances[chosen] - distances[i]) >= GAP).all():
            chosen.append(i)
        if len(chosen) == 4:
            return [labels[i] for i in chosen]
    return None
