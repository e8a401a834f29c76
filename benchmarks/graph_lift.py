"""Lifting with a detector that misses nothing: how much of a room's map is right, and what is not?

    python benchmarks/graph_lift.py --rooms 40

Rooms are filmed in 16 frames of 140 x 112 pixels, with depth and poses. The detector gives every object of which a frame shows at
least 12 pixels, with its mask (or only its box: --boxes). True are all annotated objects: those that fill at least 0.4% of a frame.
A box that was found counts when it has the label of a true one and overlaps it by at least 0.25 (IoU), one to one, best first.
"as seen" are boxes around what was seen, "completed" what `lift` gives.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.graph.lift import Detection, Detector, lift
from allocentric.graph.metrics import object_f1
from allocentric.rooms import generate
from allocentric.scenes import AnnotatedScene

FEWEST_PIXELS = 12
OVERLAP = 0.25


def oracle(ids: np.ndarray, scene: AnnotatedScene, masks: bool = True) -> Detector:
    """A detector that knows the instance ids (frames, height, width) of the pictures it is given in order."""
    frames = iter(ids)

    def detect(image) -> list[Detection]:
        shown, found = next(frames), []
        for o in scene.objects:
            mask = shown == o.id
            if mask.sum() >= FEWEST_PIXELS:
                y, x = np.nonzero(mask)
                box = {"xmin": x.min(), "ymin": y.min(), "xmax": x.max() + 1, "ymax": y.max() + 1}
                found.append({"label": o.label, "score": 1.0, "box": box} | ({"mask": mask} if masks else {}))
        return found

    return detect


def lost(found: Sequence[Box3D], true: Sequence[Box3D]) -> list[str]:
    """A line for every true box that no box of its label overlaps enough, with the sizes of the closest."""
    lines = []
    for box in true:
        same = [other for other in found if other.label == box.label]
        row = boxes_to_array([box])
        overlap = [float(box_iou(row, boxes_to_array([other]))[0]) for other in same]
        if max(overlap, default=0.0) < OVERLAP:
            size = " x ".join(f"{side:.2f}" for side in box.size)
            best = same[int(np.argmax(overlap))] if same else None
            closest = "none" if best is None else f"{' x '.join(f'{side:.2f}' for side in best.size)}, IoU {max(overlap):.2f}"
            lines.append(f"  {box.label} {size}: {closest}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", type=int, default=40)
    parser.add_argument("--seed", type=int, default=10_000_000, help="of the first room; for tuning take 3000 to 3100")
    parser.add_argument("--boxes", action="store_true", help="detections without masks")
    parser.add_argument("--lost", action="store_true", help="name the objects that are not found")
    arguments = parser.parse_args()

    counts = {"as seen": np.zeros(3), "completed": np.zeros(3)}  # hits, found, true
    rooms: dict[str, list[float]] = {name: [] for name in counts}
    for seed in range(arguments.seed, arguments.seed + arguments.rooms):
        views, scene, ids = generate(seed)
        true = [o.box for o in scene.objects]
        for name in counts:
            graph = lift(views, oracle(ids, scene, not arguments.boxes), complete=name == "completed")
            found = [o.box for o in graph.objects]
            precision, _, f1 = object_f1(found, true, OVERLAP)
            counts[name] += (round(precision * len(found)), len(found), len(true))
            rooms[name].append(f1)
            if arguments.lost and name == "completed":
                print("\n".join([f"room {seed}: F1 {f1:.2f}", *lost(found, true)]), flush=True)
    for name, (hits, found, true) in counts.items():
        error = np.std(rooms[name]) / np.sqrt(len(rooms[name]))
        print(
            f"{name:<10} {len(rooms[name])} rooms, {true:.0f} objects, {found:.0f} found: precision {hits / max(found, 1):.3f}, "
            f"recall {hits / max(true, 1):.3f}, F1 {2 * hits / max(found + true, 1):.3f} (mean of rooms {np.mean(rooms[name]):.3f} "
            f"+- {error:.3f})"
        )


if __name__ == "__main__":
    main()
