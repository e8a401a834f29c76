"""Making question data: distances between the boxes of a scene, and whole sets of questions.

    python benchmarks/question_data.py [--boxes 16] [--rounds 3] [--count 100]

Published pattern: for every pair, points are sampled in both boxes, and all distances between the two clouds are computed for their
least one. Two ways beside it:

- `geometry.sampled`, which the published answers are checked with: the same points, sampled once per box, and of them only those
  that can belong to the closest pair are compared. The same minima, bit by bit.
- what `allo data make` uses, the exact distance of the boxes, all pairs at once. Its minima are never above the sampled ones; how
  far they were below is printed.
"""

import statistics
import sys
import time

import numpy as np
import tyro
from jaxtyping import Float
from scipy.spatial.distance import cdist

from allocentric.geometry.boxes import Box3D, as_oriented, box_distance, boxes_to_array, oriented_to_array
from allocentric.geometry.sampled import SPACING, sampled_distance, sampled_points
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import VSI_TASKS


def furniture(count: int, seed: int = 0) -> list[Box3D]:
    """Boxes of furniture's sizes in a room of 8 x 6 metres, every second one along the walls: sides then face each other."""
    rng = np.random.default_rng(seed)
    size = rng.uniform([0.4, 0.4, 0.3], [1.8, 1.4, 1.4], (count, 3))
    center = np.column_stack([rng.uniform(0, 8, count), rng.uniform(0, 6, count), size[:, 2] / 2])
    yaw = np.where(np.arange(count) % 2 == 0, rng.integers(0, 4, count) * np.pi / 2, rng.uniform(-np.pi, np.pi, count))
    rows = zip(center.tolist(), size.tolist(), yaw.tolist(), strict=True)
    return [Box3D(tuple(c), tuple(s), y) for c, s, y in rows]


def turned(boxes: list[Box3D]) -> Float[np.ndarray, "n 5 3"]:
    """The boxes with their side directions."""
    return oriented_to_array(map(as_oriented, boxes))


def published(boxes: list[Box3D]) -> Float[np.ndarray, " pairs"]:
    """Every pair on its own: sample both, all distances, the least."""
    rows = turned(boxes)
    pairs = zip(*np.triu_indices(len(rows), k=1), strict=True)
    return np.array([cdist(sampled_points(rows[a]), sampled_points(rows[b])).min() for a, b in pairs])


def sampled(boxes: list[Box3D]) -> Float[np.ndarray, " pairs"]:
    """The same points, sampled once a box; points that cannot be the closest are left out."""
    rows = turned(boxes)
    clouds = [sampled_points(row) for row in rows]
    pairs = zip(*np.triu_indices(len(rows), k=1), strict=True)
    return np.array([sampled_distance(clouds[a], rows[a], clouds[b], rows[b]) for a, b in pairs])


def exact(boxes: list[Box3D]) -> Float[np.ndarray, " pairs"]:
    """Distances of the boxes themselves, all at once."""
    rows = boxes_to_array(boxes)
    i, j = np.triu_indices(len(rows), k=1)
    return box_distance(rows[i], rows[j])


def check(boxes: list[Box3D]) -> tuple[float, float]:
    """Mean and largest amount by which sampled minima are above exact ones, of boxes apart; asserts both parities."""
    every, some, true = published(boxes), sampled(boxes), exact(boxes)
    assert np.array_equal(every, some), f"minima on the same points differ by {np.abs(every - some).max():.1e}"
    above = every - true
    assert above.min() > -1e-9, f"an exact distance is {-above.min():.1e} above a sampled one"
    above = above[true > 0]  # an overlap has distance 0, points of two crossing lattices need not meet
    limit = 2 * np.sqrt(3) * SPACING  # a step of the lattice in each direction, in both boxes
    assert above.max(initial=0) < limit, f"a sampled minimum is {above.max():.3f} m above the exact one"
    return float(above.mean()) if len(above) else 0.0, float(above.max(initial=0))


def scenes(count: int, objects: int = 20) -> list[AnnotatedScene]:
    """Rooms of boxes, each of a category of its own but for a few, seen one after the other."""
    made = []
    for seed in range(count):
        boxes, rng = furniture(objects, seed), np.random.default_rng(seed)
        labels = [f"thing {i if i < objects - 6 else i % 3 + objects}" for i in range(objects)]
        things = [SceneObject(i, label, box) for i, (label, box) in enumerate(zip(labels, boxes, strict=True), 1)]
        visibility = np.where(np.arange(32)[:, None] >= rng.integers(0, 28, objects), 0.02, 0.0)
        floor = (np.array([[-2.0, -2], [10, -2], [10, 8], [-2, 8]]),)
        made.append(AnnotatedScene(f"scene-{seed}", tuple(things), visibility, None, floor, 120.0))
    return made


def main(boxes: int = 16, rounds: int = 3, count: int = 100) -> None:
    """Pairs a second, and questions a second.

    Args:
        boxes: boxes in the scene.
        rounds: interleaved runs of each way.
        count: scenes that questions of all eight types are made about.
    """
    room = furniture(boxes)
    try:
        mean, most = check(room)
    except AssertionError as error:
        sys.exit(f"parity: {error}")
    pairs = boxes * (boxes - 1) // 2
    ways = {"published": published, "sampled": sampled, "exact": exact}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times = 200 if name == "exact" else 1
            start = time.process_time()
            for _ in range(times):
                way(room)
            seconds[name].append((time.process_time() - start) / times)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{pairs} pairs of boxes, {np.mean([len(sampled_points(row)) for row in turned(room)]):.0f} sampled points in a box")
    print(f"same points: minima equal bit by bit; exact ones lower by {1000 * mean:.0f} mm, at most {1000 * most:.0f} mm")
    print(f"{'way':<46}{'ms a pair':>10}{'pairs/s':>10}{'ratio':>8}")
    names = {"published": "sampled for every pair (published)", "sampled": "same minima (ours)", "exact": "exact (ours)"}
    for name, text in names.items():
        ms = 1000 * median[name] / pairs
        print(f"{text:<46}{ms:>10.4f}{1000 / ms:>10.0f}{median['published'] / median[name]:>7.0f}x")

    rooms = scenes(count)
    start = time.process_time()
    questions = [q for room in rooms for task in VSI_TASKS.values() for q in task.make(room, np.random.default_rng(0), 6)]
    spent = time.process_time() - start
    print(f"{len(questions)} questions about {count} scenes in {spent:.2f} s: {len(questions) / spent:.0f} a second")
    print(f"all pairs of such a scene, sampled: {median['published'] / pairs * 190:.1f} s a scene, before any question")


if __name__ == "__main__":
    tyro.cli(main)
