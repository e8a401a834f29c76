"""Absolute distance: how many metres are between two objects, measured from their closest points."""

import numpy as np

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.facts import index_of, pair_distances, unique_objects
from allocentric.tasks.vsibench import VSITask

NEAREST = 0.3  # metres; closer objects make the rounding to 0.1 m a matter of luck


class AbsoluteDistance(VSITask):
    """Pairs of unique objects, spread evenly over the distances that the scene offers."""

    name = "object_abs_distance"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        unique = unique_objects(scene)
        first, second = np.triu_indices(len(unique), k=1)
        first, second = unique[first], unique[second]
        meters = pair_distances(scene)[first, second]
        far_enough = meters >= NEAREST
        first, second, meters = first[far_enough], second[far_enough], meters[far_enough]

        questions = []
        left = np.ones(len(meters), dtype=bool)
        for _ in range(min(limit, len(meters))):
            wanted = rng.uniform(meters.min(), meters.max())
            pair = int(np.argmin(np.where(left, np.abs(meters - wanted), np.inf)))
            left[pair] = False
            a, b = (scene.objects[i].label for i in rng.permutation([first[pair], second[pair]]))
            text = f"Measuring from the closest point of each object, what is the distance between the {a} and the {b} (in meters)?"
            questions.append(Question(self.name, scene.name, text, (), f"{meters[pair]:.1f}", (a, b)))
        return questions


def distance(scene: AnnotatedScene, a: str, b: str) -> float:
    """Metres between the closest points of two unique objects.

    Exact, where VSI-Bench takes the least distance between points sampled in the two boxes and so comes out a little higher
    (`facts.published_distances`).
    """
    return float(pair_distances(scene)[index_of(scene, a), index_of(scene, b)])
