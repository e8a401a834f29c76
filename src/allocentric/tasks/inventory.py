"""Inventory: everything the video shows, with places, sizes or moments. For training only; no benchmark asks it.

One such list holds as much about the room as a dozen questions, in the words that notes before answers use.
"""

import math
import re
from collections import defaultdict

import numpy as np

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Task
from allocentric.tasks.facts import seen, unique_objects
from allocentric.tasks.notes import moment, place_note, places, size_note

ITEM = re.compile(r"\s*([^\d,]*[^\d,\s-])\s+(-?\d+(?:\.\d+)?(?:\s+-?\d+(?:\.\d+)?)*)\s*")


# What is listed, and how often it is asked for.
PLACES = "List all objects with their places (x right, y forward, in meters)."
SIZES = "List the objects that are the only one of their kind with their sizes (in meters)."
MOMENTS = "List the objects that are the only one of their kind with the moments when they appear (0 to 15)."
SHARES = {PLACES: 0.7, SIZES: 0.1, MOMENTS: 0.2}


class Inventory(Task):
    """Of all seen objects their places, of unique ones their sizes or moments of appearance; in ever another order.

    The score is the F1 of the list: an item counts as much as exp(-distance) between its numbers and those of the true item of
    that label which it fits best; every true item is matched once.
    """

    name = "inventory"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        unique = unique_objects(scene)
        lists = {SIZES: [f"{scene.objects[i].label} {size_note(scene.objects[i].box)}" for i in unique]}
        if scene.visibility is not None:
            lists[MOMENTS] = [f"{scene.objects[i].label} {moment(scene, scene.objects[i].label)}" for i in unique]
        if (where := places(scene)) is not None:
            lists[PLACES] = [place_note(scene.objects[i].label, where[i]) for i in np.flatnonzero(seen(scene))]
        asked = [text for text, items in lists.items() if items]
        if not asked:
            return []
        shares = np.array([SHARES[text] for text in asked])
        drawn = (asked[k] for k in rng.choice(len(asked), min(limit, len(asked)), replace=False, p=shares / shares.sum()))
        # always in another order: what comes next has to be looked up, it does not follow from the alphabet
        return [Question(self.name, scene.name, text, (), ", ".join(rng.permutation(lists[text]).tolist())) for text in drawn]

    def prompt(self, question: Question) -> str:
        return question.text

    def parse(self, text: str) -> tuple[tuple[str, tuple[float, ...]], ...] | None:
        items = [ITEM.fullmatch(part) for part in text.split(",")]
        return tuple((item[1], tuple(map(float, item[2].split()))) for item in items if item) or None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        written, truth = self.parse(prediction) or (), self.parse(question.answer) or ()
        left: dict[str, list[tuple[float, ...]]] = defaultdict(list)
        for label, numbers in truth:
            left[label].append(numbers)
        worth = 0.0
        for label, numbers in written:
            fits = [math.exp(-math.dist(numbers, true)) if len(numbers) == len(true) else 0.0 for true in left[label]]
            if fits:
                best = max(range(len(fits)), key=fits.__getitem__)
                worth += fits[best]
                left[label].pop(best)
        return 2 * worth / max(len(written) + len(truth), 1)
