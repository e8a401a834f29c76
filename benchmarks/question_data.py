"""Making question data: distances between the boxes of a scene, and whole sets of questions.

    python benchmarks/question_data.py [--boxes 16] [--rounds 5] [--count 100]

Published pattern: for every pair, points are sampled on the surfaces of both boxes, and all distances between the two clouds are
computed for their least one. Two ways beside it:

- the same points, sampled once per box and searched through a k-d tree per box: the same minima, bit by bit;
- what `allo data make` uses, the exact distance of the boxes, all pairs at once. Its minima are never above the sampled ones, and
  below them by no more than the sampling's spacing; both are asserted, and how far they were apart is printed.
"""

import statistics
import sys
import time

import numpy as np
import tyro
from jaxtyping import Float
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from allocentric.geometry.boxes import Box3D, box_distance
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import VSI_TASKS

SPACING = 0.05  # metres between sampled points: about 3,400 on a box of furniture


def furniture(count: int, seed: int = 0) -> Float[np.ndarray, "n 7"]:
    """Boxes of furniture's sizes in a room of 8 x 6 metres."""
    rng = np.random.default_rng(seed)
    size = rng.uniform([0.5, 0.5, 0.4], [2.2, 1.6, 1.8], (count, 3))
    center = np.column_stack([rng.uniform(0, 8, count), rng.uniform(0, 6, count), size[:, 2] / 2])
    return np.column_stack([center, size, rng.uniform(-np.pi, np.pi, count)])


def surface(box: Float[np.ndarray, "7"]) -> Float[np.ndarray, "n 3"]:
    """Points on the six faces of a box, at most SPACING apart, edges included."""
    axes = [np.linspace(-side / 2, side / 2, int(np.ceil(side / SPACING)) + 1) for side in box[3:6]]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    points = grid[(np.abs(grid) >= box[3:6] / 2 - 1e-9).any(1)]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turned = np.column_stack([cos * points[:, 0] - sin * points[:, 1], sin * points[:, 0] + cos * points[:, 1], points[:, 2]])
    return turned + box[:3]


def published(boxes: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, " pairs"]:
    """Every pair on its own: sample both, all distances, the least."""
    i, j = np.triu_indices(len(boxes), k=1)
    return np.array([np.sqrt(cdist(surface(boxes[a]), surface(boxes[b]), "sqeuclidean").min()) for a, b in zip(i, j, strict=True)])


def by_trees(boxes: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, " pairs"]:
    """The same points, sampled once; each cloud asks the other's tree. The closest pair is measured as `published` measures it."""
    clouds = [surface(box) for box in boxes]
    trees = [cKDTree(cloud) for cloud in clouds]
    least = []
    for a in range(len(boxes)):
        for b in range(a + 1, len(boxes)):
            few, many = (a, b) if len(clouds[a]) < len(clouds[b]) else (b, a)
            bound = np.linalg.norm(clouds[few][0] - clouds[many], axis=1).min()  # nothing farther matters
            far, index = trees[many].query(clouds[few], distance_upper_bound=bound * (1 + 1e-9))
            closest = np.flatnonzero(far <= far.min() * (1 + 1e-9))  # several, where faces are parallel
            p, q = clouds[few][closest], clouds[many][index[closest]]
            least.append(np.sqrt(min(cdist(x[None], y[None], "sqeuclidean")[0, 0] for x, y in zip(p, q, strict=True))))
    return np.array(least)


def exact(boxes: Float[np.ndarray, "n 7"]) -> Float[np.ndarray, " pairs"]:
    """Distances of the boxes themselves, all at once."""
    i, j = np.triu_indices(len(boxes), k=1)
    return box_distance(boxes[i], boxes[j])


def check(boxes: Float[np.ndarray, "n 7"]) -> float:
    """Largest amount by which a sampled minimum is above the exact one; asserts both parities."""
    sampled, same, true = published(boxes), by_trees(boxes), exact(boxes)
    assert np.array_equal(sampled, same), f"minima on the same points differ by {np.abs(sampled - same).max():.1e}"
    above = sampled - true
    # an overlap has distance 0, while two surfaces that cross have points up to half a spacing's diagonal apart, each
    limit = SPACING * np.sqrt(2)
    apart = true > 0
    assert above.min() > -1e-9, f"an exact distance is {-above.min():.1e} above a sampled one"
    assert above[apart].max(initial=0) < limit, f"a sampled minimum is {above[apart].max():.3f} m above the exact one"
    return float(above[apart].max(initial=0))


def scenes(count: int, objects: int = 20) -> list[AnnotatedScene]:
    """Rooms of boxes, each of a category of its own but for a few, seen one after the other."""
    made = []
    for seed in range(count):
        boxes, rng = furniture(objects, seed), np.random.default_rng(seed)
        labels = [f"thing {i if i < objects - 6 else i % 3 + objects}" for i in range(objects)]
        things = [
            SceneObject(i + 1, label, Box3D(tuple(box[:3]), tuple(box[3:6]), float(box[6]), label))
            for i, (label, box) in enumerate(zip(labels, boxes.tolist(), strict=True))
        ]
        visibility = np.where(np.arange(32)[:, None] >= rng.integers(0, 28, objects), 0.02, 0.0)
        floor = (np.array([[-2.0, -2], [10, -2], [10, 8], [-2, 8]]),)
        made.append(AnnotatedScene(f"scene-{seed}", tuple(things), visibility, None, floor, 120.0))
    return made


def main(boxes: int = 16, rounds: int = 5, count: int = 100) -> None:
    """Pairs a second, and questions a second.

    Args:
        boxes: boxes in the scene.
        rounds: interleaved runs of each way.
        count: scenes that questions of all eight types are made about.
    """
    room = furniture(boxes)
    try:
        above = check(room)
    except AssertionError as error:
        sys.exit(f"parity: {error}")
    pairs = boxes * (boxes - 1) // 2
    ways = {"published": published, "trees": by_trees, "exact": exact}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times = 200 if name == "exact" else 1
            start = time.process_time()
            for _ in range(times):
                way(room)
            seconds[name].append((time.process_time() - start) / times)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{pairs} pairs of boxes, {np.mean([len(surface(box)) for box in room]):.0f} sampled points on a box")
    print(f"same points: minima equal bit by bit; exact ones lower by at most {1000 * above:.1f} mm")
    print(f"{'way':<46}{'ms a pair':>10}{'pairs/s':>10}{'ratio':>8}")
    names = {"published": "sampled for every pair (published)", "trees": "same points, a tree per box", "exact": "exact (ours)"}
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
