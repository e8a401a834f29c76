"""Object counting: "How many chair(s) are in this room?" """

from collections import Counter, defaultdict

import numpy as np

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.facts import asked_about, seen
from allocentric.tasks.vsibench import VSITask


class ObjectCounting(VSITask):
    """Categories with at least two instances, every one of them seen. Each count that the scene offers is equally likely."""

    name = "object_counting"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        hidden = {o.label for o, visible in zip(scene.objects, seen(scene), strict=True) if not (visible and asked_about(o))}
        by_count: dict[int, list[str]] = defaultdict(list)
        for label, count in Counter(o.label for o in scene.objects).items():
            if count >= 2 and label not in hidden:
                by_count[count].append(label)

        questions: list[Question] = []
        while by_count and len(questions) < limit:
            for count in rng.permutation(list(by_count))[: limit - len(questions)].tolist():
                labels = by_count[count]
                label = labels.pop(int(rng.integers(len(labels))))
                if not labels:
                    del by_count[count]
                text = f"How many {label}(s) are in this room?"
                questions.append(Question(self.name, scene.name, text, (), str(count), (label,)))
        return questions


def count(scene: AnnotatedScene, label: str) -> int:
    """Number of objects of a category."""
    return sum(o.label == label for o in scene.objects)
