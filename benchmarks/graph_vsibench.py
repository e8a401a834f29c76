"""VSI-Bench answered from boxes alone: questions and scene metadata of a source, no video.

    python benchmarks/graph_vsibench.py questions.jsonl scenes.json

`questions` is the benchmark's test.jsonl or a part of it, `scenes` the metadata published beside it, one file per source (several
may be given). Distances are measured as the published generator does, between points in the boxes as filed; nothing is fitted. A
question that names something without a box is answered "the graph has no ..." and scores 0; "best guess" is what the geometry of
the rest makes likeliest. Questions on scenes that no metadata is given for are left out and counted; so is the order of appearance,
which boxes do not tell.
"""

import argparse
import json
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from allocentric.geometry.boxes import Box3D, as_oriented, oriented_to_array
from allocentric.geometry.sampled import sampled_distance, sampled_points
from allocentric.graph.programs import Measure, ask_graph
from allocentric.graph.scene_graph import SceneGraph
from allocentric.readers.vsi_metadata import read_vsi_metadata
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.vsibench import question_from_row, vsi_score


def published_measure(scene: AnnotatedScene) -> Measure:
    """The generator's distance between boxes of a scene, which depends on their side directions to the last digit."""
    filed = {o.box: as_oriented(o.box) if o.oriented is None else o.oriented for o in scene.objects}

    @cache
    def points(box: Box3D) -> tuple[np.ndarray, np.ndarray]:
        row = oriented_to_array([filed[box]])[0]
        return sampled_points(row), row

    return lambda a, b: sampled_distance(*points(a), *points(b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("scenes", type=Path, nargs="+")
    parser.add_argument("--exact", action="store_true", help="distances between the boxes themselves")
    parser.add_argument("--wrong", type=Path, help="write the questions that do not score 1 there, JSONL")
    arguments = parser.parse_args()

    scenes = {name: scene for file in arguments.scenes for name, scene in read_vsi_metadata(file).items()}
    graphs = {name: SceneGraph.from_scene(scene) for name, scene in scenes.items()}
    measures = {name: None if arguments.exact else published_measure(scene) for name, scene in scenes.items()}
    scores: dict[str, list[float]] = defaultdict(list)
    guesses: dict[str, list[float]] = defaultdict(list)
    complete: dict[str, list[float]] = defaultdict(list)
    unknown = 0
    wrong = []
    for line in arguments.questions.read_text().splitlines():
        row = json.loads(line)
        if row["scene_name"] not in graphs:
            unknown += 1
            continue
        question = question_from_row(row)
        name = row["scene_name"]
        answer = ask_graph(graphs[name], question.text, question.options, measures[name])
        score = vsi_score(question.task, question.answer, answer.text)
        scores[question.task].append(score)
        guesses[question.task].append(vsi_score(question.task, question.answer, answer.guess or answer.text))
        if not answer.missing:
            complete[question.task].append(score)
        if score < 1:
            wrong.append({**row, "answer": answer.text, "guess": answer.guess, "steps": answer.steps, "score": score})
    print(f"{'type':<30}{'questions':>10}{'score':>9}{'guess':>9}{'all named':>11}{'score':>9}")
    for task in sorted(scores):
        known = f"{100 * np.mean(complete[task]):9.2f}" if complete[task] else f"{'-':>9}"
        means = f"{100 * np.mean(scores[task]):9.2f}{100 * np.mean(guesses[task]):9.2f}"
        print(f"{task:<30}{len(scores[task]):>10}{means}{len(complete[task]):>11}{known}")
    if unknown:
        print(f"left out: {unknown} questions on scenes without metadata")
    if arguments.wrong:
        arguments.wrong.write_text("".join(json.dumps(row) + "\n" for row in wrong))


if __name__ == "__main__":
    main()
