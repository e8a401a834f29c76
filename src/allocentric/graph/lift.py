"""From 2D detections in posed RGB-D views to a metric `SceneGraph`.

    detector = load_detector("google/owlv2-base-patch16", labels=["chair", "table"])      # or any callable of the same output
    graph = lift(views, detector)

A detector takes a picture (PIL) and gives a list of {"label", "score", "box": {xmin, ymin, xmax, ymax} in pixels}, and "mask"
(height x width) where it has one: what transformers' detection pipelines return. Each detection is lifted by depth and pose; of
several of the same thing in one frame the surest stays; what overlaps in space and has one label is one object; what should often
have been detected, and was not, is dropped; sides that no frame shows are completed (`graph.complete`); each object is dated by the
first frame that shows it, detected there or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage
from shapely.geometry import MultiPoint, Polygon

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.geometry.cameras import unproject_depth
from allocentric.geometry.visibility import box_visibility
from allocentric.graph.complete import completed
from allocentric.graph.floor_plan import FAR, FloorPlan, floor_plan
from allocentric.graph.scene_graph import GraphObject, SceneGraph
from allocentric.scenes import VISIBLE
from allocentric.views import Views

Detection = Mapping[str, Any]
Detector = Callable[[Image.Image], Sequence[Detection]]

VOXEL = 0.05  # metres
FEWEST_POINTS = 12  # pixels with depth that a detection needs
JUMP = 0.06  # of the depth: neighbouring pixels farther apart are on different surfaces
OVERLAP = 0.25  # of the smaller one's voxels: detections of one label that share as many are one object
TWICE = 0.5  # of the smaller one's voxels: no two objects of one label share as many, even where one frame shows both
SAME_BOX = 0.25  # overlap of boxes (IoU) that also makes them one, as when seen from opposite sides
INSIDE = 0.6  # share of the smaller box that lies in the larger
OFTEN = 0.2  # share of the frames that show an object in which it must have been detected
TRIM = 1.5  # percent of an object's points left out at either end of each axis: depth is noisy at edges
STRUCTURE_GAP = 0.04  # metres above the floor at which a detection without mask begins


@dataclass
class Track:
    """One object as it is put together from detections."""

    label: str
    voxels: set[tuple[int, int, int]]
    points: list[Float[np.ndarray, "n 3"]]
    frames: list[int]
    scores: list[float]
    centers: list[Float[np.ndarray, "3"]] = field(default_factory=list)

    def absorb(self, other: "Track") -> None:
        """Everything the other saw is this one's."""
        self.voxels |= other.voxels
        for name in ("points", "frames", "scores", "centers"):
            getattr(self, name).extend(getattr(other, name))


def load_detector(
    path: str | PathLike, labels: Sequence[str] = (), threshold: float = 0.3, device: str | None = None
) -> Detector:
    """A transformers object detector from a folder or hub id, of either kind.

    labels      what a zero-shot detector is to look for; for a closed-set one, which of its labels to keep (none: all).
    threshold   least score of a detection.
    """
    from transformers import AutoConfig, pipeline
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_OBJECT_DETECTION_MAPPING,
        MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING,
    )

    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, found {threshold}")
    config = AutoConfig.from_pretrained(path)
    zero_shot = type(config) in MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING
    if not zero_shot and type(config) not in MODEL_FOR_OBJECT_DETECTION_MAPPING:
        raise ValueError(f"{path}: expected an object detector (zero-shot or closed-set), found a {config.model_type}")
    if zero_shot and not labels:
        raise ValueError(f"{path}: a zero-shot detector ({config.model_type}) looks for labels, found none given")
    known = set(config.id2label.values())
    if not zero_shot and (unknown := sorted(set(labels) - known)):
        raise ValueError(f"{path}: found the labels {', '.join(unknown)}, expected some of {', '.join(sorted(known))}")
    try:
        found = pipeline(f"{'zero-shot-' if zero_shot else ''}object-detection", model=str(path), device=device)
    except ImportError as error:  # some checkpoints need a package that transformers does without: older DETR's backbone timm
        raise ValueError(f"{path}: found a package missing, expected it installed: {str(error).strip().splitlines()[0]}") from error
    if zero_shot:
        return lambda image: found(image, candidate_labels=list(labels), threshold=threshold)
    return lambda image: [d for d in found(image, threshold=threshold) if not labels or d["label"] in labels]


def lift(
    views: Views, detector: Detector, threshold: float = 0.0, min_frames: int = 2, complete: bool = True
) -> SceneGraph:
    """The scene graph of posed RGB-D views, objects from a detector, floor and area from depth. The world's z axis is up.

    threshold    least score of a detection.
    min_frames   frames in which an object must have been detected; 1 is enough for what only one frame shows.
    complete     take hidden sides to reach the floor, a wall or what an object rests on (`graph.complete`); False: boxes hold what
                 was seen.
    """
    *_, (_, graph) = lift_steps(views, detector, threshold, min_frames, complete)
    return graph


def lift_steps(
    views: Views, detector: Detector, threshold: float = 0.0, min_frames: int = 2, complete: bool = True
) -> Iterator[tuple[int, SceneGraph | None]]:
    """`lift` as steps for a progress bar: yields (frames done, None), at last (frames, graph)."""
    plan = floor_plan(views)
    tracks: list[Track] = []
    for t in range(len(views)):
        detections = detector(Image.fromarray(views.frames[t].permute(1, 2, 0).numpy()))
        if not isinstance(detections, Sequence):
            raise ValueError(f"detector: expected a list of detections of each picture, found {detections!r:.120}")
        points = unproject_depth(views.depth[t], views.intrinsics[t], views.camera_to_world[t]).double().numpy()
        lifted = [_lifted(views.depth[t].numpy(), points, t, detection, plan, threshold) for detection in detections]
        for found in _distinct([track for track in lifted if track is not None]):
            _assign(tracks, found)
        yield t + 1, None
    tracks = _merged(tracks)
    yield len(views), _graph(views, tracks, plan, min_frames, complete)


def _lifted(
    depth: Float[np.ndarray, "h w"],
    points: Float[np.ndarray, "h w 3"],
    t: int,
    detection: Detection,
    plan: FloorPlan,
    threshold: float,
) -> Track | None:
    """A detection as a track of one frame; None when too little of it has depth."""
    label, score, box = _read(detection)
    if score < threshold:
        return None
    height, width = depth.shape
    x0, x1 = (int(np.clip(np.round(box[k]), 0, width)) for k in ("xmin", "xmax"))
    y0, y1 = (int(np.clip(np.round(box[k]), 0, height)) for k in ("ymin", "ymax"))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    points, depth = points[y0:y1, x0:x1], depth[y0:y1, x0:x1]
    measured = np.isfinite(points).all(-1) & (depth <= FAR)
    mask = detection.get("mask")
    if mask is not None:
        inside = np.asarray(mask).astype(bool)
        if inside.shape != (height, width):
            raise ValueError(f"mask of {label!r}: expected the picture's size {(height, width)}, found {inside.shape}")
        kept = measured & inside[y0:y1, x0:x1]
    else:
        kept = _foreground(depth, measured & (points[..., 2] > plan.height + STRUCTURE_GAP))
    cloud = points[kept]
    if len(cloud) < FEWEST_POINTS:
        return None
    cells = np.floor(cloud / VOXEL).astype(int)
    low, high = cells.min(0), cells.max(0)
    _, firsts = np.unique(np.ravel_multi_index((cells - low).T, high - low + 1), return_index=True)  # rows as such sort slowly
    voxels = set(map(tuple, cells[firsts].tolist()))
    if len(cloud) > 1500:
        cloud = cloud[np.linspace(0, len(cloud) - 1, 1500).astype(int)]
    return Track(label, voxels, [cloud], [t], [score], [np.median(cloud, axis=0)])


def _read(detection: Detection) -> tuple[str, float, Mapping[str, float]]:
    expected = 'detection: expected {"label", "score", "box": {xmin, ymin, xmax, ymax}}'
    try:
        label, score = str(detection["label"]), float(detection["score"])
        box = {k: float(detection["box"][k]) for k in ("xmin", "ymin", "xmax", "ymax")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{expected}, found {detection!r:.120}") from error
    if not np.isfinite([score, *box.values()]).all():
        raise ValueError(f"{expected} of finite numbers, found {label!r} with score {score} and box {box}")
    if box["xmin"] > box["xmax"] or box["ymin"] > box["ymax"]:
        raise ValueError(f"{expected} with corners in order, found {label!r} with box {box}")
    return label, score, box


def _foreground(depth: Float[np.ndarray, "h w"], usable: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The surface a box is about: of the patches without a jump in depth, the one that fills most of the box's middle.

    Nearer patches win ties: what is in front of the middle hides what the box would otherwise be about.
    """
    edges = np.zeros_like(usable)
    for axis in (0, 1):
        ahead, here = np.swapaxes(depth, 0, axis)[1:], np.swapaxes(depth, 0, axis)[:-1]
        np.swapaxes(edges, 0, axis)[:-1] |= np.abs(ahead - here) > JUMP * np.minimum(ahead, here)
    patches, count = ndimage.label(usable & ~edges)
    if count == 0:
        return usable
    rows, columns = depth.shape
    middle = patches[rows // 5 : rows - rows // 5, columns // 5 : columns - columns // 5]
    size = np.bincount(middle.ravel(), minlength=count + 1).astype(float)
    size[0] = 0
    if not size.any():
        return np.zeros_like(usable)
    near = ndimage.median(depth, patches, np.arange(1, count + 1))
    size[1:] /= np.maximum(near, 0.1)
    # Thin parts of one object fall into several patches: keep all at about the depth of the main one.
    main = int(size.argmax())
    reach = 0.15 * near[main - 1] + 0.1
    together = [k for k in range(1, count + 1) if abs(near[k - 1] - near[main - 1]) <= reach]
    return np.isin(patches, together)


def _distinct(found: list[Track]) -> list[Track]:
    """One frame's detections, the surest of each object: many detectors give one thing several times."""
    kept: list[Track] = []
    for track in sorted(found, key=lambda track: -track.scores[0]):
        if all(other.label != track.label or _shared(other, track) < TWICE for other in kept):
            kept.append(track)
    return kept


def _shared(a: Track, b: Track) -> float:
    """Share of the smaller one's voxels that are also the other's."""
    return len(a.voxels & b.voxels) / min(len(a.voxels), len(b.voxels))


def _same(a: Track, b: Track) -> float:
    """How surely two tracks are one object; 0 when they are not."""
    if a.label != b.label:
        return 0.0
    shared = _shared(a, b)
    if shared >= OVERLAP:
        return 1 + shared
    boxes = boxes_to_array([_aligned(a), _aligned(b)])
    iou = float(box_iou(boxes[:1], boxes[1:])[0])
    volumes = boxes[:, 3:6].prod(1)
    contained = iou / (1 + iou) * volumes.sum() / max(volumes.min(), 1e-9)
    return max(iou, contained) if iou >= SAME_BOX or contained >= INSIDE else 0.0


def _aligned(track: Track) -> Box3D:
    """Box along the world's axes: cheap, for telling tracks apart."""
    cells = np.array(sorted(track.voxels)) * VOXEL
    low, high = np.percentile(cells, 1, axis=0), np.percentile(cells, 99, axis=0) + VOXEL
    return Box3D(tuple(((low + high) / 2).tolist()), tuple((high - low).tolist()), 0.0, track.label)


def _assign(tracks: list[Track], found: Track) -> None:
    """Give a detection to the track that fits best, or start a new one. Two detections of one frame are two objects."""
    best = max(tracks, key=lambda track: _same(track, found) * (found.frames[0] not in track.frames), default=None)
    if best is not None and found.frames[0] not in best.frames and _same(best, found) > 0:
        best.absorb(found)
    else:
        tracks.append(found)


def _merged(tracks: list[Track]) -> list[Track]:
    """Tracks that have grown into each other become one."""
    merged = True
    while merged:
        merged = False
        for i in range(len(tracks)):
            for j in range(len(tracks) - 1, i, -1):
                together = set(tracks[i].frames) & set(tracks[j].frames)
                apart = len(together) > 0.5 * min(len(tracks[i].frames), len(tracks[j].frames))
                apart = apart and _shared(tracks[i], tracks[j]) < TWICE
                if not apart and _same(tracks[i], tracks[j]) > 0:
                    tracks[i].absorb(tracks.pop(j))
                    merged = True
    return tracks


def _graph(views: Views, tracks: list[Track], plan: FloorPlan, min_frames: int, complete: bool) -> SceneGraph:
    """Boxes, dates and filtering by visibility."""
    boxes = [_fitted(track) for track in tracks]
    seen = box_visibility(
        boxes_to_array(boxes), views.depth.numpy(), views.intrinsics.numpy(), views.camera_to_world.numpy()
    )
    numbers = views.indices.tolist() if views.indices is not None else list(range(len(views)))
    kept = [i for i, track in enumerate(tracks) if _believed(track, seen[:, i], min_frames)]
    boxes = [boxes[i] for i in kept]
    objects, dates = [], []
    for i, box in zip(kept, completed(boxes, views, plan) if complete else boxes, strict=True):
        track, column = tracks[i], seen[:, i]
        first = min([*np.flatnonzero(column >= VISIBLE)[:1].tolist(), min(track.frames)])
        spread = np.std(track.centers, axis=0)[:2] if len(track.centers) > 1 else np.full(2, VOXEL)
        sigma = float(np.hypot(*spread) / np.sqrt(2 * len(track.centers)))
        objects.append(GraphObject(track.label, 1, box, None, numbers[first], round(sigma, 4)))
        dates.append((first, -float(column[first])))
    order = sorted(range(len(objects)), key=dates.__getitem__)
    forward = views.camera_to_world[0, :3, 2].double().numpy()
    eye = views.camera_to_world[0, :3, 3].double().tolist()
    heading = float(np.arctan2(forward[1], forward[0])) if np.hypot(*forward[:2]) > 1e-3 else None
    return SceneGraph.from_objects(
        Path(views.source).name,
        [objects[i] for i in order],
        floor=plan.outline,
        room_area=plan.area,
        viewpoint=None if heading is None else (*eye, heading),
        scale=views.scale,
    )


def _believed(track: Track, column: Float[np.ndarray, " t"], min_frames: int) -> bool:
    """Whether an object was detected often enough for how often it is seen (`column`: its share of each frame)."""
    shown, detected = int((column >= VISIBLE).sum()), len(set(track.frames))
    return detected >= min(min_frames, max(1, shown)) and detected >= OFTEN * shown


def _fitted(track: Track) -> Box3D:
    """The upright box around an object's points, turned so that its footprint is smallest."""
    cloud = np.concatenate(track.points)
    _, cell = np.unique(np.floor(cloud / (VOXEL / 2)).astype(int), axis=0, return_inverse=True)
    # What was seen often counts no more than what was seen once: one mean per cell.
    even = np.stack([np.bincount(cell.ravel(), axis) for axis in cloud.T], axis=1) / np.bincount(cell.ravel())[:, None]
    low, high = np.percentile(even[:, 2], [TRIM, 100 - TRIM])
    yaw = _yaw(_trimmed(even[:, :2]))
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = even[:, :2] @ np.array([[cos, -sin], [sin, cos]])
    (x0, y0), (x1, y1) = np.percentile(turned, [TRIM, 100 - TRIM], axis=0)
    center = np.array([[cos, -sin], [sin, cos]]) @ np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    size = np.maximum([x1 - x0, y1 - y0, high - low], 0.01)
    return Box3D(
        (float(center[0]), float(center[1]), float((low + high) / 2)),
        tuple(map(float, size)),
        float(yaw),
        track.label,
        float(np.mean(track.scores)),
    )


def _trimmed(points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "m 2"]:
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    return points[distance <= np.percentile(distance, 100 - TRIM)]


def _yaw(points: Float[np.ndarray, "n 2"]) -> float:
    """Direction of the longer side of the smallest rectangle around the points, in (-pi/2, pi/2]."""
    rectangle = MultiPoint(points).minimum_rotated_rectangle
    if not isinstance(rectangle, Polygon):
        return 0.0
    corners = np.array(rectangle.exterior.coords)
    sides = np.diff(corners[:3], axis=0)
    longer = sides[np.linalg.norm(sides, axis=1).argmax()]
    return float(np.arctan2(longer[1], longer[0]) % np.pi)
