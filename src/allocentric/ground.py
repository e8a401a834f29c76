"""Find a described thing in a captured place: what `allo ground` does."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import allocentric
from allocentric.geometry.boxes import Box3D
from allocentric.geometry.cameras import unproject_depth
from allocentric.geometry.canonical import first_camera_frame, move_box
from allocentric.geometry.proposals import propose
from allocentric.graph.text_boxes import global_prompt, parse_boxes
from allocentric.models.grounding import Grounding, GroundingScene, load_grounding, with_geometry
from allocentric.readers import Source, open_views
from allocentric.readers.proposals import read_proposals
from allocentric.view.grounding import frames_showing, picture
from allocentric.views import Views


@dataclass(frozen=True)
class Search:
    """A place, its proposals, and what was found there. `found` is in the order of the descriptions."""

    views: Views
    proposals: list[Box3D]
    unseen: int
    found: list[Grounding]

    def as_dict(self) -> dict:
        """Plain JSON types: boxes in the scene's world, of `scale` "metric" (metres) or "relative"."""
        return {
            "source": self.views.source,
            "scale": self.views.scale,
            "proposals": len(self.proposals),
            "proposals_without_view": self.unseen,
            "found": [
                {
                    "description": one.description,
                    "box": _plain(one.box),
                    "proposal": one.index,
                    "probability": one.box.score,
                    "probability_absent": one.absent,
                    "written": one.text,
                    "complete": one.complete,
                    "frames": self._frames(one.box),
                }
                for one in self.found
            ],
        }

    def _frames(self, box: Box3D) -> list[int]:
        shown = frames_showing(self.views, box).tolist()
        return shown if self.views.indices is None else self.views.indices[shown].tolist()

    def write(self, out: Path) -> list[Path]:
        """`grounding.json`, and a picture for each description; returns the files, the JSON first."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "grounding.json"]
        for i, one in enumerate(self.found):
            files.append(out / f"grounding-{i}.png")
            picture(self.views, one.box, self.proposals, f"{one.description}  ({one.box.score:.2f})").save(files[-1])
        _write_json(files[0], self.as_dict())
        return files


def search(
    source: Source | Views,
    descriptions: list[str],
    model: str | Path | None = None,
    proposals: str | Path | None = None,
    frames: int = 16,
    **options,
) -> Search:
    """Look up descriptions among the boxes of a file, or among what stands apart in the scene's own geometry.

    source      a posed RGB-D capture; or video or images, whose depth and cameras then come from nano's VGGT, in its own scale.
    model       folder or hub id of an S2-MLLM; None: the one that comes with the package.
    proposals   JSON of boxes in the scene's world (`readers.proposals`); None: `geometry.proposals`.
    options     of the reader, such as `up` for captures whose world is not upright.
    """
    if not descriptions:
        raise ValueError("descriptions: found none, expected at least one, such as 'the chair closest to the window'")
    views = source if isinstance(source, Views) else open_views(source, frames, **options)
    if views.depth is None or views.camera_to_world is None or views.intrinsics is None:
        nano = allocentric.load()
        views = with_geometry(views, nano.geometry, nano.geometry_width)
    boxes = read_proposals(proposals, Path(views.source).name) if proposals is not None else found_by_shape(views)
    network, processor = load_grounding(model)
    scene = GroundingScene.encode(network, processor, views, boxes)
    return Search(views, boxes, scene.seen.count(False), scene.ground(descriptions))


@dataclass(frozen=True)
class Written:
    """A box that a model wrote for a description, without proposals.

    box    in the scene's world where its cameras are known, else in the level frame of its first camera; None when the model
           wrote none.
    frame  number of the source's frame that shows it best, as the model says; None when it does not say.
    """

    description: str
    box: Box3D | None
    frame: int | None
    text: str


@dataclass(frozen=True)
class GlobalSearch:
    """A place and what a model wrote of it. `world`: boxes are in the scene's own world, not in the first camera's level frame."""

    views: Views
    found: list[Written]
    world: bool

    def as_dict(self) -> dict:
        """Plain JSON types, metres."""
        return {
            "source": self.views.source,
            "frame": "world" if self.world else "first camera",
            "found": [
                {
                    "description": one.description,
                    "box": None if one.box is None else _plain(one.box),
                    "frame": one.frame,
                    "written": one.text,
                }
                for one in self.found
            ],
        }

    def lines(self) -> list[str]:
        """What was found, for people."""
        said = []
        for one in self.found:
            said.append(one.description)
            if one.box is None:
                said.append(f"  no box: the model wrote {one.text[:60]!r}")
                continue
            center, size = (", ".join(f"{value:.2f}" for value in part) for part in (one.box.center, one.box.size))
            where = "" if self.world else " from the first camera (right, ahead, up)"
            said.append(f"  {one.box.label}: center {center} m{where}, size {size} m, yaw {one.box.yaw:.2f}")
        return said

    def write(self, out: Path) -> list[Path]:
        """`grounding.json`, and a picture for each box where depth and cameras are known; returns the files, the JSON first."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "grounding.json"]
        for i, one in enumerate(self.found):
            if one.box is not None and self.world and self.views.depth is not None and self.views.intrinsics is not None:
                files.append(out / f"grounding-{i}.png")
                picture(self.views, one.box, title=one.description).save(files[-1])
        _write_json(files[0], self.as_dict())
        return files


def search_globally(
    source: Source | Views, descriptions: list[str], model: str | Path, frames: int = 16, max_new_tokens: int = 128, **options
) -> GlobalSearch:
    """Have a model write the box of each description in one metric frame of the whole scene (SSR; `graph.text_boxes`).

    source    anything the readers know. With camera poses in a world with z up, boxes come out in that world.
    model     folder or hub id of a model that has learned to write boxes, such as one of recipes/ssr_nano.yaml.
    options   of the reader, such as `up` for captures whose world is not upright.
    """
    if not descriptions:
        raise ValueError("descriptions: found none, expected at least one, such as 'the chair closest to the window'")
    views = source if isinstance(source, Views) else open_views(source, frames, **options)
    world = views.camera_to_world is not None and views.scale == "metric"
    to_world = np.eye(4)
    if world:
        to_world = np.linalg.inv(first_camera_frame(views.camera_to_world[0].double().numpy()))
    answers = allocentric.load(model).watch(views, frames).ask([global_prompt(text) for text in descriptions], max_new_tokens)
    found = []
    for description, answer in zip(descriptions, answers, strict=True):
        parsed = parse_boxes(answer.text)
        box = replace(move_box(parsed.boxes[0], to_world), label=parsed.boxes[0].label) if parsed.boxes else None
        frame = parsed.frames[0] if parsed.frames else None
        if frame is not None:
            frame = answer.frames[frame] if frame < len(answer.frames) else None
        found.append(Written(description, box, frame, answer.text))
    return GlobalSearch(views, found, world)


def found_by_shape(views: Views) -> list[Box3D]:
    """Proposals out of the views' depth and poses alone."""
    step = max(1, views.depth.shape[-1] // 200)  # at 200 columns a voxel is seen by several pixels across a room
    points = unproject_depth(views.depth, views.intrinsics, views.camera_to_world)[:, ::step, ::step].reshape(-1, 3)
    points = points[torch.isfinite(points).all(1)].numpy()
    spread = 1.0
    if views.scale == "relative" and len(points):  # sizes are those of rooms: about 2.5 m high
        spread = max(float(np.ptp(np.percentile(points[:, 2], [2, 98]))), 1e-6) / 2.5
    boxes = propose(points / spread)
    if not boxes:
        raise ValueError(f"{views.source or 'views'}: found nothing that stands apart in the depth, expected proposals=")
    return [Box3D(tuple(spread * c for c in b.center), tuple(spread * s for s in b.size), b.yaw, b.label, b.score) for b in boxes]


def _write_json(file: Path, report: dict) -> None:
    """Whole or not at all."""
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def _plain(box: Box3D) -> dict:
    return {"center": list(box.center), "size": list(box.size), "yaw": box.yaw, "label": box.label}
