"""Appearance order: in which order do four categories first appear in the video?"""

from itertools import permutations
from math import inf

import numpy as np
from jaxtyping import Float

from allocentric.scenes import VISIBLE, AnnotatedScene
from allocentric.tasks.base import Question, multiple_choice
from allocentric.tasks.facts import HINT, indices_of, scene_labels
from allocentric.tasks.vsibench import VSITask


class AppearanceOrder(VSITask):
    """Four categories that first appear in four different frames, whether barely or well visible.

    The options are four random orders of which one is right: none is closer to the others than the answer is.
    """

    name = "obj_appearance_order"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if scene.visibility is None:
            return []
        labels = scene_labels(scene)
        noticed, shown = (first_frames(scene, labels, threshold) for threshold in (HINT, VISIBLE))
        usable = np.flatnonzero(np.isfinite(shown))
        questions: list[Question] = []
        made: set[frozenset[int]] = set()
        for _ in range(10 * limit):
            if len(questions) == limit:
                break
            four = _draw_four(usable, noticed, shown, rng)
            if four is None or frozenset(four) in made:
                continue
            made.add(frozenset(four))
            asked = [labels[i] for i in rng.permutation(four)]
            correct = tuple(labels[i] for i in sorted(four, key=lambda i: shown[i]))
            orders = list(permutations(correct))
            wrong = [orders[i] for i in rng.permutation(np.arange(1, len(orders)))[:3]]
            options = [", ".join(order) for order in (correct, *wrong)]
            text = f"What will be the first-time appearance order of the following categories in the video: {', '.join(asked)}?"
            shuffled = rng.permutation(options).tolist()
            questions.append(multiple_choice(self.name, scene, text, shuffled, options[0], tuple(asked)))
        return questions


def first_frames(scene: AnnotatedScene, labels: list[str], threshold: float = VISIBLE) -> Float[np.ndarray, " k"]:
    """Frame in which any instance of each category first covers this fraction of the image; infinite when none does."""
    if scene.visibility is None:
        raise ValueError(f"scene {scene.name}: expected the visibility of its objects, found none")
    reached = scene.visibility >= threshold
    shown = np.stack([reached[:, indices_of(scene, label)].any(1) for label in labels], axis=1)
    return np.where(shown.any(0), shown.argmax(0), inf)


def _draw_four(usable: np.ndarray, noticed: np.ndarray, shown: np.ndarray, rng: np.random.Generator) -> list[int] | None:
    """Four categories whose order is strict, and the same for both thresholds."""
    chosen: list[int] = []
    for i in rng.permutation(usable).tolist():
        if all((noticed[i] - noticed[j]) * (shown[i] - shown[j]) > 0 for j in chosen):
            chosen.append(i)
        if len(chosen) == 4:
            return chosen
    return None
