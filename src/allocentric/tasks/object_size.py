"""Object size: the longest side of an object in centimetres."""

import numpy as np

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.facts import the_box, unique_objects
from allocentric.tasks.vsibench import VSITask


class ObjectSize(VSITask):
    """Unique objects."""

    name = "object_size_estimation"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        questions = []
        for i in rng.permutation(unique_objects(scene))[:limit]:
            label = scene.objects[i].label
            text = (
                f"What is the length of the longest dimension (length, width, or height) of the {label}, measured in centimeters?"
            )
            answer = str(round(longest_side(scene, label) * 100))
            questions.append(Question(self.name, scene.name, text, (), answer, (label,)))
        return questions


def longest_side(scene: AnnotatedScene, label: str) -> float:
    """Longest side of a unique object's box, metres."""
    return max(the_box(scene, label).size)
