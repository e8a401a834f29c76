"""Where a scene graph comes from: an annotated scene, a saved graph, a written map, a capture with a detector, a model's notes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from allocentric.graph.floor_plan import FloorPlan, floor_plan, leveled
from allocentric.graph.grammar import parse_map
from allocentric.graph.lift import Detector, lift_steps
from allocentric.graph.map_tasks import lines_to_ask, map_of_lines, noted_graph, read, where_are
from allocentric.graph.scene_graph import GraphObject, SceneGraph
from allocentric.models.scene import Scene
from allocentric.readers import layout_of, open_scene, open_views
from allocentric.readers.annotated import MANY, ONE
from allocentric.tasks.notes import noted_places
from allocentric.views import Views

LIST_TOKENS = 96  # longest list of all objects of one category
LINE_TOKENS = 64  # longest line of a map, with what was worked out before it


@dataclass(frozen=True)
class Mapped:
    """A graph and what it was made from.

    origin   how the graph came about, in words.
    views    the posed RGB-D views it was lifted from, z up; None when it was read.
    plan     their floor; None when it was read.
    """

    graph: SceneGraph
    origin: str
    views: Views | None = None
    plan: FloorPlan | None = None


def open_graph(
    path: str | PathLike, detector: Detector | None = None, frames: int | None = None, scene: str | None = None
) -> Mapped:
    """The scene graph of a place: see `graph_steps`."""
    *_, (_, _, mapped) = graph_steps(path, detector, frames, scene)
    return mapped


def graph_steps(
    path: str | PathLike, detector: Detector | None = None, frames: int | None = None, scene: str | None = None
) -> Iterator[tuple[int, int, Mapped | None]]:
    """`open_graph` as steps for a progress bar: yields (frames done, frames, None), at last with the result.

    path       a saved graph (.json of `SceneGraph.to_json`) or written map (.txt); an annotated scene; or a posed RGB-D capture.
    detector   finds objects in a capture (`graph.lift.load_detector`); with one, annotations are not looked at. Without one, a
               capture that is not annotated has floor and free space, but no objects.
    frames     how many evenly spread frames of a capture to look at; None: all. What is read has none.
    scene      which scene, in an annotation file of many.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: found no such file or folder")
    read = _read(path, scene) if detector is None else None
    if read is not None:
        if frames is not None:
            raise ValueError(f"--frames: found {path}, of which no frames are looked at, expected --detector or a capture")
        yield 1, 1, read
        return
    if scene is not None:
        raise ValueError(f"--scene: found {path}, of which the frames are looked at, expected an annotation file of many")
    views = open_views(path, frames)
    if views.depth is None or views.camera_to_world is None:
        raise ValueError(f"{path}: a map needs depth and poses, or annotations (scene.json); found neither")
    views = leveled(views)
    if detector is None:
        plan = floor_plan(views)
        graph = SceneGraph(path.name, (), floor=plan.outline, room_area=plan.area, scale=views.scale)
        yield 1, 1, Mapped(graph, "measured from depth, without a detector", views, plan)
        return
    for done, graph in lift_steps(views, detector):
        if graph is None:
            yield done, len(views), None
    yield len(views), len(views), Mapped(graph, f"lifted from detections in {len(views)} frames", views, floor_plan(views))


def kind_of(path: str | PathLike) -> Literal["read", "pictures", "capture"]:
    """How the graph of what lies at `path` comes about without a detector: it is read; a video or images are all there is, so that
    what is where can only be learned from a model's notes; or it is measured in a capture."""
    path = Path(path)
    if path.suffix in (".json", ".txt") or any(fits(path) for _, fits, _ in ONE + MANY):
        return "read"
    return "pictures" if layout_of(path) in ("video", "images") else "capture"


def graph_of_notes(written: str, name: str = "") -> SceneGraph:
    """What a model noted before it answered (`Answer.notes`, worded as in `tasks.notes`): places seen from the first camera.

    Numbers of sizes and moments are left aside, and so is everything behind the first semicolon: what the model made of it.
    """
    objects = [GraphObject(label, point=place) for label, place in noted_places(written)]
    return SceneGraph.from_objects(name, objects, viewpoint=(0.0, 0.0, 0.0, math.pi / 2))


def ask_for_map(scene: Scene, labels: Sequence[str], form: str = "triplets", redundancy: int = 2) -> tuple[list[str], str]:
    """What a model that has learned to write maps (SSR) notes of each category of object, and the map of that, which it writes line
    by line: which objects come next follows from its notes (`graph.triplets.chain`), where they are on their grid it says.

    labels   categories it is asked for; those it does not know it makes up.
    """
    counts = scene.ask([where_are(label) for label in labels], LIST_TOKENS)
    found = [answer.notes for answer in counts]
    graph = noted_graph(found)
    asked = lines_to_ask(graph, form, redundancy)
    written = [answer.text for answer in scene.ask(asked, LINE_TOKENS)] if asked else []
    return found, map_of_lines(written, graph, form)


def map_by_model(scene: Scene, labels: Sequence[str], name: str = "") -> Mapped:
    """The map that a model writes of a place, put together (`graph.solve`): places in metres, no boxes, floor or area."""
    _, text = ask_for_map(scene, labels)
    written = read(text)
    if not written.triplets:
        raise ValueError(f"{name}: found no map in what the model wrote ({text[:60]!r}), expected the weights of an SSR")
    graph = written.graph(name)
    dropped = f", {written.n_bad} of {written.n_lines} lines dropped" if written.n_bad else ""
    return Mapped(graph, f"written by the model, {len(written.triplets)} triplets{dropped}{_unplaced(graph)}")


def _unplaced(graph: SceneGraph) -> str:
    """What a written map names and its lines do not place, in words."""
    named = dict.fromkeys(node for t in graph.written for node in t.nodes)
    lost = [label if instance == 1 else f"{label}.{instance}" for label, instance in named if (label, instance) not in graph.nodes]
    return f"; not placed: {', '.join(lost)}" if lost else ""


def _read(path: Path, scene: str | None) -> Mapped | None:
    """A graph that need not be measured; None when `path` is no such thing."""
    written = _written(path)
    if written is not None and scene is not None:
        raise ValueError(f"--scene: found {path}, a map of one scene, expected an annotation file of many")
    if written is None and any(fits(path) for _, fits, _ in ONE + MANY):
        return Mapped(SceneGraph.from_scene(open_scene(path, scene)), "exact, from annotations")
    return written


def _written(path: Path) -> Mapped | None:
    """A saved graph, or a written map."""
    if path.suffix == ".txt":
        text = path.read_text(encoding="utf-8", errors="replace")
        parsed = parse_map(text)
        if not parsed.triplets:
            raise ValueError(f"{path}: expected a map of triplets, found none in {parsed.n_lines} lines")
        graph = SceneGraph.from_text(text, path.stem)
        dropped = f"; {parsed.n_bad} of {parsed.n_lines} lines dropped" if parsed.n_bad else ""
        return Mapped(graph, f"solved from {len(parsed.triplets)} written triplets{dropped}{_unplaced(graph)}")
    if path.is_file() and path.suffix == ".json":
        text = path.read_text(encoding="utf-8", errors="replace")
        if '"allocentric-graph"' in text[:200]:
            return Mapped(SceneGraph.from_json(text), "read from a saved graph")
    return None
