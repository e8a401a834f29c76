"""Find a described thing in a captured place: what `allo ground` does."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import allocentric
from allocentric.geometry.boxes import Box3D
from allocentric.geometry.cameras import unproject_depth
from allocentric.geometry.proposals import propose
from allocentric.models.grounding import Grounding, GroundingScene, load_grounding, with_geometry
from allocentric.readers import Source, open_views
from allocentric.readers.proposals import read_proposals
from allocentric.view.grounding import frames_showing, picture
from allocentric.views import Views

S2_NANO = Path(allocentric.__file__).parent / "s2_nano"


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
        partial = files[0].with_suffix(".part")
        partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        partial.replace(files[0])
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
    if model is None and not (S2_NANO / "config.json").is_file():
        raise ValueError(f"{S2_NANO}: found no grounding weights, expected some there; train them with recipes/s2_nano.yaml")
    views = source if isinstance(source, Views) else open_views(source, frames, **options)
    if views.depth is None or views.camera_to_world is None or views.intrinsics is None:
        nano = allocentric.load()
        views = with_geometry(views, nano.geometry, nano.geometry_width)
    boxes = read_proposals(proposals, Path(views.source).name) if proposals is not None else found_by_shape(views)
    network, processor = load_grounding(model or S2_NANO)
    scene = GroundingScene.encode(network, processor, views, boxes)
    return Search(views, boxes, scene.seen.count(False), scene.ground(descriptions))


def found_by_shape(views: Views) -> list[Box3D]:
    """Proposals out of the views' depth and poses alone."""
    points = unproject_depth(views.depth, views.intrinsics, views.camera_to_world).reshape(-1, 3)
    points = points[torch.isfinite(points).all(1)].numpy()
    spread = 1.0
    if views.scale == "relative" and len(points):  # sizes are those of rooms: about 2.5 m high
        spread = max(float(np.ptp(np.percentile(points[:, 2], [2, 98]))), 1e-6) / 2.5
    boxes = propose(points / spread)
    if not boxes:
        raise ValueError(f"{views.source or 'views'}: found nothing that stands apart in the depth, expected proposals=")
    return [Box3D(tuple(spread * c for c in b.center), tuple(spread * s for s in b.size), b.yaw, b.label, b.score) for b in boxes]


def _plain(box: Box3D) -> dict:
    return {"center": list(box.center), "size": list(box.size), "yaw": box.yaw, "label": box.label}
