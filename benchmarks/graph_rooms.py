"""The eight spatial tasks answered from scene graphs of rooms nobody trained on: exact graphs, then graphs with errors.

    python benchmarks/graph_rooms.py --rooms 300 --out out/graph-rooms

Rooms are furnished and walked through as `allocentric.rooms.generate` does, with visibility from a quick ray cast in place of
pictures; `--out` keeps them for the next run. Questions are those of the tasks, scores those of VSI-Bench.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from allocentric.graph.perturb import perturb
from allocentric.graph.programs import ask_graph
from allocentric.graph.scene_graph import SceneGraph
from allocentric.rooms.generate import MIN_VISIBLE, staged
from allocentric.rooms.raycast import quick_visibility
from allocentric.scenes import AnnotatedScene, scene_from_dict, scene_to_dict
from allocentric.tasks import make_questions
from allocentric.tasks.vsibench import aggregate, vsi_score

FRAMES, HEIGHT, WIDTH = 16, 112, 140
NOISE = {
    "position": (0.1, 0.2, 0.3, 0.5, 1.0),
    "labels": (0.05, 0.1, 0.2, 0.4),
    "missed": (0.05, 0.1, 0.2, 0.4),
}


def annotated(seed: int) -> AnnotatedScene:
    """The ground truth of `rooms.generate(seed)`, without pictures."""
    room, path, fov = staged(seed)
    poses = path.poses(np.linspace(0, path.duration, FRAMES))
    return room.annotate(quick_visibility(room, poses, HEIGHT, WIDTH, fov), poses, MIN_VISIBLE)


def rooms(out: Path, seed: int, count: int) -> list[AnnotatedScene]:
    """The rooms of `count` seeds; those already in `out` are read, the others made and added."""
    out.mkdir(parents=True, exist_ok=True)
    scenes = []
    for s in range(seed, seed + count):
        file = out / f"room-{s}.json"
        if not file.is_file():
            part = file.with_suffix(".part")
            part.write_text(json.dumps(scene_to_dict(annotated(s))))
            part.replace(file)
            print(f"\rrooms {s - seed + 1}/{count}", end="", flush=True)
        scenes.append(scene_from_dict(json.loads(file.read_text())))
    print()
    return scenes


def score(scenes: list[AnnotatedScene], per_task: int, **noise: float) -> dict[str, float]:
    """Score of each task and their mean, over questions that are the same for every kind of noise."""
    rows = []
    for i, scene in enumerate(scenes):
        graph = SceneGraph.from_scene(scene)
        if noise:
            graph = perturb(graph, np.random.default_rng([1, i]), **noise)
        for q in make_questions(scene, np.random.default_rng([0, i]), per_task):
            rows.append((q.task, vsi_score(q.task, q.answer, ask_graph(graph, q.text, q.options).text)))
    summary = aggregate(rows)
    return {**summary.tasks, "macro": summary.macro, "questions": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", type=int, default=300)
    parser.add_argument("--seed", type=int, default=10_000_000, help="of the first room; training uses seeds below 1,000,000")
    parser.add_argument("--per-task", type=int, default=2, help="questions of each type per room")
    parser.add_argument("--out", type=Path, default=Path("out/graph-rooms"), help="folder of rooms and scores.json")
    parser.add_argument("--exact", action="store_true", help="no graphs with errors")
    arguments = parser.parse_args()

    scenes = rooms(arguments.out, arguments.seed, arguments.rooms)
    table: dict[str, list[dict[str, float]]] = defaultdict(list)
    exact = score(scenes, arguments.per_task)
    names = [name for name in exact if name != "questions"]
    print(f"{len(scenes)} rooms, {exact['questions']} questions")
    print(f"{'noise':<16}" + "".join(f"{name.removeprefix('object_')[:11]:>13}" for name in names))
    runs = [("exact", 0.0)] + ([] if arguments.exact else [(kind, level) for kind, levels in NOISE.items() for level in levels])
    for kind, level in runs:
        scores = exact if kind == "exact" else score(scenes, arguments.per_task, **{kind: level})
        table[kind].append({"level": level, **scores})
        print(f"{kind + (f' {level:g}' if level else ''):<16}" + "".join(f"{scores[name]:13.1f}" for name in names), flush=True)
    (arguments.out / "scores.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
