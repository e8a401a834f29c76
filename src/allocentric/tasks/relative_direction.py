"""Relative direction: standing by one object and facing a second, where is a third?"""

import math

import numpy as np
from jaxtyping import Float, Int

from allocentric.geometry.boxes import oriented_corners, oriented_to_array
from allocentric.geometry.canonical import wrap
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, multiple_choice
from allocentric.tasks.facts import bearings, centers, oriented_box, pair_distances, the_box, unique_objects
from allocentric.tasks.vsibench import VSITask

NEAREST, FARTHEST = 0.3, 5.0  # metres between the boxes of any two of the three objects
MARGIN = math.radians(10)  # least angle between the queried object's centre and a boundary between two answers

# Angles are counter-clockwise from the direction faced. For each level: the answers, and the angles between them.
ANSWERS = {
    "easy": ("left", "right"),
    "medium": ("left", "right", "back"),
    "hard": ("front-left", "front-right", "back-left", "back-right"),
}
BOUNDARIES = {"easy": (0, 180), "medium": (0, 135, -135), "hard": (0, 90, -90, 180)}


class RelativeDirection(VSITask):
    """Triples of unique objects, in three levels of difficulty; every answer of a level is equally likely.

    Filters after the published generators (VSI-Bench, VLM-3R): boxes 0.3 to 5 m apart, not within 10 degrees of another
    answer, and not more than one corner in four seen under another answer.
    """

    name = "object_rel_direction"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        unique = unique_objects(scene)
        if len(unique) < 3:
            return []
        angle = _angles(scene, unique)
        apart = pair_distances(scene)[np.ix_(unique, unique)]
        apart = (apart >= NEAREST) & (apart <= FARTHEST)
        allowed = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]

        questions: list[Question] = []
        triples = {level: allowed & (_clearance(level, angle) >= MARGIN) for level in ANSWERS}
        sectors = {level: sector(level, angle) for level in ANSWERS}
        levels: list[str] = []
        for _ in range(3 * limit):
            if len(questions) == limit:
                break
            levels = levels or rng.permutation(list(ANSWERS)).tolist()
            level = levels.pop()
            triple = _draw(scene, unique, level, triples[level], sectors[level], rng)
            if triple is not None:
                triples[level][triple] = False
                answer = ANSWERS[level][sectors[level][triple]]
                labels = tuple(scene.objects[unique[i]].label for i in triple)
                options = rng.permutation(ANSWERS[level]).tolist()
                questions.append(multiple_choice(f"{self.name}_{level}", scene, _text(level, *labels), options, answer, labels))
        return questions


def direction_angle(scene: AnnotatedScene, standing: str, facing: str, query: str) -> float:
    """Radians to turn, counter-clockwise, from facing one object to facing another; centres seen from above."""
    points = np.array([the_box(scene, label).center[:2] for label in (standing, facing, query)])
    to_facing, to_query = bearings(points)[0, 1:]
    return math.remainder(to_query - to_facing, math.tau)


def sector(level: str, angle: Float[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """Which of `ANSWERS[level]` an angle in radians means."""
    right = (angle < 0).astype(np.int64)
    if level == "easy":
        return right
    if level == "medium":
        return np.where(np.abs(angle) >= math.radians(135), 2, right)
    return np.where(np.abs(angle) > math.radians(90), 2, 0) + right


def _angles(scene: AnnotatedScene, unique: np.ndarray) -> np.ndarray:
    """Angle for every triple (standing, facing, query)."""
    bearing = bearings(centers(scene)[unique])
    return wrap(bearing[:, None, :] - bearing[:, :, None])


def _clearance(level: str, angle: np.ndarray) -> np.ndarray:
    """Angle to the closest boundary between two answers."""
    return np.min([np.abs(wrap(angle - math.radians(b))) for b in BOUNDARIES[level]], axis=0)


def _draw(
    scene: AnnotatedScene, unique: np.ndarray, level: str, allowed: np.ndarray, sectors: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """A triple whose answer was drawn first."""
    for answer in rng.permutation(len(ANSWERS[level])):
        triples = np.argwhere(allowed & (sectors == answer))
        for triple in triples[rng.permutation(len(triples))[:20]].tolist():
            if _corners_agree(scene, unique[triple], level, int(answer)):
                return tuple(triple)
    return None


def _corners_agree(scene: AnnotatedScene, triple: np.ndarray, level: str, answer: int) -> bool:
    """Whether at least six of the eight corners of the queried object lie in the same direction as its centre."""
    standing, facing, query = oriented_to_array(oriented_box(scene.objects[i]) for i in triple)
    faced, to_corner = facing[0, :2] - standing[0, :2], oriented_corners(query)[:, :2] - standing[0, :2]
    angle = wrap(np.arctan2(to_corner[:, 1], to_corner[:, 0]) - np.arctan2(faced[1], faced[0]))
    return int((sector(level, angle) == answer).sum()) >= 6


def _text(level: str, standing: str, facing: str, query: str) -> str:
    start = f"If I am standing by the {standing} and facing the {facing}, is the {query} to "
    if level == "easy":
        return start + f"the left or the right of the {facing}?"
    if level == "medium":
        return start + (
            "my left, right, or back?\nAn object is to my back if I would have to turn at least 135 degrees in order to face it."
        )
    return start + (
        "my front-left, front-right, back-left, or back-right?\n"
        "The directions refer to the quadrants of a Cartesian plane "
        "(if I am standing at the origin and facing along the positive y-axis)."
    )
