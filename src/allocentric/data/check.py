"""Do our rules give the answers that VSI-Bench published? For scene metadata in its format, and the questions about those scenes.

    python -m allocentric.data.check arkitscenes_questions.jsonl arkitscenes_scenes.json

prints the agreement of each question type, and every disagreement with what explains it. Types that the metadata cannot answer
(appearance order, routes) are left out. Distances are those of the closest points sampled in two boxes, as in the published answers
(`tasks.facts.published_distances`); the exact ones, which `allo data make` writes, are printed beside a disagreement.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import Positional, arg

from allocentric.processes import mistakes_in_one_line
from allocentric.readers import open_scenes
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.counting import count
from allocentric.tasks.facts import published_distances
from allocentric.tasks.object_size import longest_side
from allocentric.tasks.relative_direction import ANSWERS, direction_angle, sector
from allocentric.tasks.relative_distance import category_distances
from allocentric.tasks.room_size import floor_area
from allocentric.tasks.vsibench import VSIBench

LABELS = {
    "object_counting": r"How many (.*?)\(s\)",
    "object_abs_distance": r"between the (.*?) and the (.*?) \(",
    "object_size_estimation": r"height\) of the (.*?), measured",
    "room_size_estimation": r"size of this room()",
    "object_rel_distance": r"objects \((.*?)\) is the closest to the (.*?)\?",
    "object_rel_direction": r"standing by the (.*?) and facing the (.*?), is the (.*?) to ",
}


@dataclass(frozen=True)
class Checked:
    """Our answer to a published question. `score` is what the official scorer gives it."""

    question: Question
    ours: str
    score: float
    why: str = ""

    @property
    def agrees(self) -> bool:
        return self.ours == self.question.answer


def check(questions: Sequence[Question], scenes: Mapping[str, AnnotatedScene]) -> list[Checked]:
    """Our answers to every question that the scenes can answer, numbers at the precision of the published ones.

    Questions about scenes that are not among `scenes` are left out: a benchmark's file is of several data sets.
    """
    checked = []
    for question in questions:
        kind = re.sub("_(easy|medium|hard)$", "", question.task)
        name = question.scene.rpartition("/")[2]
        if kind not in LABELS or name not in scenes:
            continue
        labels = re.search(LABELS[kind], question.text)
        if labels is None:
            raise ValueError(f"question {question.id}: found {question.text!r}, expected the wording of {kind}")
        asked = [_filed(label, scenes[name]) for label in labels.groups()]
        try:
            ours = answer(scenes[name], question, kind, asked)
        except ValueError as error:
            checked.append(Checked(question, "", 0.0, str(error)))
            continue
        score = VSIBench().score(question, ours)
        why = "" if ours == question.answer else explain(scenes[name], question, kind, asked, ours)
        checked.append(Checked(question, ours, score, why))
    return checked


def _filed(label: str, scene: AnnotatedScene) -> str:
    """A category as the scene's file spells it: "shower curtain" may be filed as "showercurtain" or "shower_curtain"."""
    found = [name for name in sorted({o.label for o in scene.objects}) if _letters(name) == _letters(label)]
    return label if label in found or len(found) != 1 else found[0]


def _letters(label: str) -> str:
    return re.sub(r"[\s_-]", "", label.lower())


def _options(question: Question, scene: AnnotatedScene) -> list[str]:
    """The categories offered, as the scene's file spells them."""
    return [_filed(option.partition(". ")[2], scene) for option in question.options]


def answer(scene: AnnotatedScene, question: Question, kind: str, labels: Sequence[str]) -> str:
    """What our rules say."""
    if kind == "object_counting":
        return str(count(scene, *labels))
    if kind == "object_abs_distance":
        return f"{published_distances(scene, labels[0], labels[1:])[0]:.1f}"
    if kind == "object_size_estimation":
        return str(round(100 * longest_side(scene, *labels)))
    if kind == "room_size_estimation":
        area = floor_area(scene)
        if area is None:
            raise ValueError(f"scene {scene.name}: its area is not known")
        return f"{area:.1f}"
    if kind == "object_rel_distance":
        return "ABCD"[int(published_distances(scene, labels[1], _options(question, scene)).argmin())]
    options = [option.partition(". ")[2] for option in question.options]
    level = question.task.rsplit("_", 1)[1]
    word = ANSWERS[level][int(sector(level, np.array([direction_angle(scene, *labels)]))[0])]
    return "ABCD"[options.index(word)]


def explain(scene: AnnotatedScene, question: Question, kind: str, labels: Sequence[str], ours: str) -> str:
    """Where a disagreement comes from, as far as boxes can tell."""
    if kind == "object_abs_distance":
        sampled, true = (metres(scene, labels[0], labels[1:])[0] for metres in (published_distances, category_distances))
        return f"{sampled:.3f} m between the nearest sampled points, {true:.3f} m between the boxes"
    if kind == "object_counting":
        return f"the metadata holds {count(scene, labels[0])} boxes of {labels[0]!r}"
    if kind == "object_size_estimation":
        return f"{100 * longest_side(scene, *labels):.2f} cm exactly"
    if kind == "object_rel_distance":
        options = _options(question, scene)
        metres = published_distances(scene, labels[1], options)
        return "distances " + ", ".join(f"{name} {m:.2f} m" for name, m in zip(options, metres, strict=True))
    if kind == "object_rel_direction":
        return f"the angle is {np.degrees(direction_angle(scene, *labels)):.1f} degrees"
    return f"{floor_area(scene)} square metres"


def main(
    questions: Annotated[Positional[Path], arg(help="questions in VSI-Bench's layout")],
    scenes: Annotated[Positional[Path], arg(help="scene metadata: boxes, counts, room sizes")],
    drop_bad_boxes: Annotated[bool, arg(help="leave out boxes whose numbers are missing or not finite")] = False,
) -> None:
    """Agreement of our rules with published answers."""
    asked, known = VSIBench().read(questions), open_scenes(scenes, **({"drop_bad_boxes": True} if drop_bad_boxes else {}))
    checked = check(asked, known)
    if not checked:
        raise ValueError(f"{questions}: found no questions that boxes can answer about any of the {len(known)} scenes of {scenes}")
    if strange := sum(question.scene.rpartition("/")[2] not in known for question in asked):
        print(f"{strange} of {len(asked)} questions are about scenes that {scenes} does not hold")
    print(f"{'type':<28}{'n':>6}{'same':>6}{'score':>8}")
    for task in dict.fromkeys(c.question.task for c in checked):
        some = [c for c in checked if c.question.task == task]
        print(f"{task:<28}{len(some):>6}{sum(c.agrees for c in some):>6}{100 * np.mean([c.score for c in some]):>8.2f}")
    for c in checked:
        if not c.agrees:
            q = c.question
            print(f"{q.id} {q.scene} {q.task} {' '.join(q.options)}: {q.answer}, ours {c.ours or 'none'}; {c.why}")


if __name__ == "__main__":
    with mistakes_in_one_line("check"):
        tyro.cli(main)
