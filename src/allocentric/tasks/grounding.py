"""Referring expressions about annotated scenes, each of which means exactly one object, and the scores of grounding.

After Sr3D (closest, farthest, between, above, below, on, left and right of a stated viewpoint), with several wordings each as
people put it in Nr3D, and with plain names and sizes as in ScanRefer.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from allocentric.geometry.boxes import Box3D, box_distance, box_iou, boxes_to_array, into_footprint_frame
from allocentric.geometry.canonical import wrap
from allocentric.models.grounding import grounding_prompt
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question, Task
from allocentric.tasks.facts import bearings, centers, pair_distances, seen, unique_objects

# {t} is what is meant, {a} and {b} are objects that are the only ones of their category. Only sentences that hold for one viewpoint
# may use a word of VIEW_WORDS: that is how ReferIt3D tells them apart.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("the {t}", "find the {t} in this place", "this is the only {t} here"),
    "closest": ("the {t} closest to the {a}", "the {t} that is nearest to the {a}", "the {t} with the least distance to the {a}"),
    "farthest": (
        "the {t} farthest from the {a}",
        "the {t} that is the most distant from the {a}",
        "the {t} furthest away from the {a}",
    ),
    "between": (
        "the {t} between the {a} and the {b}",
        "the {t} in the middle of the {a} and the {b}",
        "the {t} with the {a} on one side and the {b} on the other",
    ),
    "on": ("the {t} on the {a}", "the {t} that stands on top of the {a}", "the {t} you would pick up from the {a}"),
    "above": ("the {t} above the {a}", "the {t} over the {a}", "the {t} that is higher up than the {a}, straight over it"),
    "below": ("the {t} below the {a}", "the {t} under the {a}", "the {t} with the {a} overhead"),
    "left": (
        "standing at the {a} and facing the {b}, the {t} on the left",
        "if you stand by the {a} looking at the {b}, it is the {t} to your left",
        "facing the {b} from the {a}, choose the {t} on your left",
    ),
    "right": (
        "standing at the {a} and facing the {b}, the {t} on the right",
        "if you stand by the {a} looking at the {b}, it is the {t} to your right",
        "facing the {b} from the {a}, choose the {t} on your right",
    ),
    "largest": ("the largest {t}", "the {t} that takes up the most space", "the biggest {t} of all"),
    "smallest": ("the smallest {t}", "the {t} that takes up the least space", "the tiniest {t} of all"),
    "tallest": ("the tallest {t}", "the {t} that is the highest from bottom to top"),
}
VIEW_WORDS = frozenset("front behind back right left facing leftmost rightmost looking across".split())

GAP = 0.3  # metres by which the closest and farthest differ from the next
RATIO = 1.5  # of volumes, for the largest and smallest
TALLER = 0.2  # metres
NEAR, APART = 0.3, 0.8  # metres between footprints: above one another up to the first, surely not from the second on
SIDE = math.radians(20)  # least angle to the line of sight of what is on the left or right


class ReferringExpression(Task):
    """Descriptions of one object each. `boxes` of a question holds the one meant, `answer` its category, `groups` how hard it is.

    Whatever else is in the scene, an object of the same category either clearly fits a description or clearly does not: where it is
    neither, the description is not used. Groups are "unique" or "multiple" (other objects of the category), "easy" or "hard" (more
    than one other), "view_dependent" or "view_independent", and the relation.

    A prediction is a box as a JSON list of seven numbers (x, y, z, dx, dy, dz, yaw), or its first six.
    """

    name = "grounding"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        by_relation = defaultdict(list)
        for fact in referable(scene):
            by_relation[fact.relation].append(fact)
        facts = {relation: [found[i] for i in rng.permutation(len(found))] for relation, found in by_relation.items()}
        questions: list[Question] = []
        while len(questions) < limit and facts:
            relation = str(rng.choice(sorted(facts)))
            fact = facts[relation].pop()
            if not facts[relation]:
                del facts[relation]
            template = TEMPLATES[relation][int(rng.integers(len(TEMPLATES[relation])))]
            questions.append(describe(scene, fact, template))
        return questions

    def prompt(self, question: Question) -> str:
        return grounding_prompt(question.text)

    def parse(self, text: str) -> tuple[float, ...] | None:
        try:
            values = json.loads(text)
            box = tuple(float(value) for value in values)
        except (json.JSONDecodeError, TypeError, ValueError):
            return None
        return (*box, 0.0)[:7] if len(box) in (6, 7) and all(map(math.isfinite, box)) else None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        """1 when the box overlaps the one that is meant by at least 0.25 (profile "0.5": by 0.5)."""
        found = self.parse(prediction)
        if found is None:
            return 0.0
        truth = boxes_to_array(question.boxes)
        overlap = box_iou(np.broadcast_to(np.array(found), truth.shape), truth).max(initial=0.0)
        return float(overlap >= (0.5 if profile == "0.5" else 0.25))


@dataclass(frozen=True)
class Fact:
    """Something that holds for one object of its category alone: indices into `scene.objects`."""

    relation: str
    target: int
    anchors: tuple[int, ...] = ()


def describe(scene: AnnotatedScene, fact: Fact, template: str) -> Question:
    """A fact in words."""
    labels = [scene.objects[i].label for i in (fact.target, *fact.anchors)]
    text = template.format(**dict(zip("tab", labels, strict=False)))
    target = scene.objects[fact.target]
    same = sum(o.label == target.label for o in scene.objects)
    groups = (*description_groups(text, same), fact.relation)
    identity = f"{scene.name}/{target.id}/{fact.relation}/{'-'.join(str(scene.objects[i].id) for i in fact.anchors)}"
    return Question("grounding", scene.name, text, (), target.label, tuple(labels), identity, boxes=(target.box,), groups=groups)


def description_groups(text: str, same: int) -> tuple[str, str, str]:
    """The groups of a description of which `same` objects of the scene share the category (ReferIt3D, ScanRefer)."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return (
        "unique" if same == 1 else "multiple",
        "easy" if same <= 2 else "hard",
        "view_dependent" if words & VIEW_WORDS else "view_independent",
    )


def referable(scene: AnnotatedScene) -> list[Fact]:
    """Everything that can be said of one object of the scene and of no other of its category."""
    counts, visible = Counter(o.label for o in scene.objects), seen(scene)
    anchors = unique_objects(scene).tolist()
    facts = [Fact("name", i) for i in anchors]
    members = defaultdict(list)
    for i, o in enumerate(scene.objects):
        if counts[o.label] > 1:
            members[o.label].append(i)
    relations = _relations(scene, anchors)
    for same in members.values():
        facts += _superlatives(scene, same, anchors)
        for relation, (yes, no) in relations.items():
            one = (yes[..., same].sum(-1) == 1) & (yes[..., same] | no[..., same]).all(-1)
            for place in np.argwhere(one).tolist():
                target = same[int(yes[(*place, same)].argmax())]
                facts.append(Fact(relation, target, tuple(anchors[p] for p in place)))
    return [fact for fact in facts if visible[fact.target]]


def _superlatives(scene: AnnotatedScene, same: list[int], anchors: list[int]) -> list[Fact]:
    """Nearest, farthest, largest, smallest and tallest of a category, where it is so by a margin."""
    facts, meters = [], pair_distances(scene)
    for anchor in anchors:
        ordered = sorted(same, key=lambda i: meters[anchor, i])
        distance = meters[anchor, ordered]
        if distance[1] - distance[0] >= GAP:
            facts.append(Fact("closest", ordered[0], (anchor,)))
        if distance[-1] - distance[-2] >= GAP:
            facts.append(Fact("farthest", ordered[-1], (anchor,)))
    volume = {i: math.prod(scene.objects[i].box.size) for i in same}
    ordered = sorted(same, key=volume.__getitem__)
    if volume[ordered[-1]] >= RATIO * volume[ordered[-2]]:
        facts.append(Fact("largest", ordered[-1]))
    if volume[ordered[1]] >= RATIO * volume[ordered[0]]:
        facts.append(Fact("smallest", ordered[0]))
    height = {i: scene.objects[i].box.size[2] for i in same}
    ordered = sorted(same, key=height.__getitem__)
    if height[ordered[-1]] >= height[ordered[-2]] + TALLER:
        facts.append(Fact("tallest", ordered[-1]))
    return facts


Holds = tuple[Bool[np.ndarray, "*anchors n"], Bool[np.ndarray, "*anchors n"]]  # clearly so, clearly not so


def _relations(scene: AnnotatedScene, anchors: list[int]) -> dict[str, Holds]:
    """For each relation and all anchors: which objects clearly stand in it, and which clearly do not."""
    if not anchors:
        return {}
    return _vertical(scene, anchors) | _between(scene, anchors) | _sides(scene, anchors)


def _vertical(scene: AnnotatedScene, anchors: list[int]) -> dict[str, Holds]:
    boxes = boxes_to_array(o.box for o in scene.objects)
    low, high = boxes[:, 2] - boxes[:, 5] / 2, boxes[:, 2] + boxes[:, 5] / 2
    flat = boxes.copy()
    flat[:, 2] = 0
    a, n = np.repeat(anchors, len(boxes)), np.tile(np.arange(len(boxes)), len(anchors))
    apart = box_distance(flat[a], flat[n]).reshape(len(anchors), len(boxes))
    a_low, a_high, a_middle = (value[anchors, None] for value in (low, high, boxes[:, 2]))
    inside = np.abs(into_footprint_frame(boxes[None, :, :2], boxes[anchors, None])) <= boxes[anchors, None, 3:5] / 2
    inside = inside.all(-1)
    # on a bed: above its lower part, below its headboard's top
    on = inside & (low > a_low + 0.25) & (low <= a_high + 0.06)
    not_on = (apart > 0.05) | (low < a_low + 0.1) | (low > a_high + 0.3)
    return {
        "on": (on, not_on),
        "above": ((apart <= NEAR) & (low >= a_high + 0.1), (apart >= APART) | (low < a_middle)),
        "below": ((apart <= NEAR) & (high <= a_low), (apart >= APART) | (high > a_middle)),
    }


def _between(scene: AnnotatedScene, anchors: list[int]) -> dict[str, Holds]:
    """Seen from above: near the line from one anchor to the other, and not near its ends. Each pair of anchors once."""
    places = centers(scene)
    start, along = places[anchors], places[anchors][None] - places[anchors][:, None]
    length = np.maximum(np.linalg.norm(along, axis=-1), 1e-9)[..., None]
    offset = places[None] - start[:, None]
    share = np.einsum("abx,anx->abn", along, offset) / length**2
    cross = along[:, :, None, 0] * offset[:, None, :, 1] - along[:, :, None, 1] * offset[:, None, :, 0]
    aside = np.abs(cross) / length**2
    pair = np.triu(np.ones((len(anchors), len(anchors)), dtype=bool), k=1)[..., None] & (length >= 1.5)
    yes = pair & (share >= 0.2) & (share <= 0.8) & (aside <= 0.3)
    return {"between": (yes, (share <= 0.05) | (share >= 0.95) | (aside >= 0.6))}


def _sides(scene: AnnotatedScene, anchors: list[int]) -> dict[str, Holds]:
    """From one anchor, facing the other: to the left or right by angle, whatever the distance."""
    places, n = centers(scene), len(scene.objects)
    heading = bearings(places)[anchors]  # (a, n)
    angle = wrap(heading[:, None, :] - heading[:, anchors, None])  # (a, b, n), counter-clockwise from the line of sight
    meters = pair_distances(scene)
    posed = (meters[np.ix_(anchors, anchors)] >= 0.5)[..., None] & np.ones(n, dtype=bool)
    away = (meters[anchors] >= 0.2)[:, None, :]
    left = (angle >= SIDE) & (angle <= np.pi - SIDE) & away
    right = (angle <= -SIDE) & (angle >= SIDE - np.pi) & away
    return {"left": (posed & left, right), "right": (posed & right, left)}


# --- Scores ---


@dataclass(frozen=True)
class Found:
    """The outcome of one question.

    iou     overlap of the chosen proposal with the nearest of the boxes that are meant.
    best    largest overlap of any proposal with it: what the proposals allow.
    """

    question: Question
    iou: float
    best: float


def outcome(question: Question, chosen: Box3D, proposals: Sequence[Box3D]) -> Found:
    """Compare the chosen box, and all that could have been chosen, with the truth."""
    truth = boxes_to_array(question.boxes)
    if not len(truth):
        raise ValueError(f"question {question.id or question.text!r}: found no box of what is meant, expected at least one")
    boxes = boxes_to_array([chosen, *proposals])
    overlap = box_iou(np.repeat(boxes, len(truth), axis=0), np.tile(truth, (len(boxes), 1))).reshape(len(boxes), -1).max(1)
    return Found(question, float(overlap[0]), float(overlap[1:].max(initial=0.0)))


def grounding_report(found: Sequence[Found]) -> Mapping[str, dict[str, float]]:
    """Per group and overall, in percent: Acc@0.25 and Acc@0.5, the recall of the proposals at both, which bounds it, and `n`."""
    groups: dict[str, list[Found]] = {"overall": list(found)}
    for one in found:
        for group in one.question.groups:
            groups.setdefault(group, []).append(one)

    def share(values: list[float], least: float) -> float:
        return 100 * float(np.mean([value >= least for value in values]))

    return {
        name: {
            "Acc@0.25": share([one.iou for one in rows], 0.25),
            "Acc@0.5": share([one.iou for one in rows], 0.5),
            "recall@0.25": share([one.best for one in rows], 0.25),
            "recall@0.5": share([one.best for one in rows], 0.5),
            "n": float(len(rows)),
        }
        for name, rows in groups.items()
        if rows
    }
