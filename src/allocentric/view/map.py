"""A scene graph as a picture and as a page: objects on the floor, beside it where one can walk."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from allocentric.geometry.boxes import Box3D
from allocentric.graph.floor_plan import FloorPlan
from allocentric.graph.free_space import CELL, FreeSpace
from allocentric.graph.grammar import write_map
from allocentric.graph.scene_graph import SceneGraph
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.view.contact_sheet import INK, PAPER, font
from allocentric.view.topdown import topdown

FREE, OCCUPIED = (196, 222, 190), (122, 116, 108)
POINT = 0.2  # metres: objects known as points are drawn this large


def map_picture(
    graph: SceneGraph,
    plan: FloorPlan | None = None,
    camera_to_world: Float[np.ndarray, "t 4 4"] | None = None,
    size: int = 900,
    title: str | None = None,
) -> Image.Image:
    """The graph from above, true to scale, and beside it free floor (green) and what is in the way (grey).

    plan   the measured floor of a capture; without one, free space is the floor less the boxes on it.
    """
    metric = graph.scale == "metric"
    left = topdown(as_scene(graph), size=size, camera_to_world=camera_to_world, title=title or heading(graph), metric=metric)
    free, occupied, area = _grids(graph, plan)
    if free is None:
        return left
    right = _raster(free, occupied, size, f"free floor {area:.1f} sq m")
    sheet = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), PAPER)
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet


def map_page(graph: SceneGraph, picture: Image.Image, origin: str = "") -> str:
    """One self-contained HTML page: picture, objects, relations, triplets and the graph itself as JSON."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in object_rows(graph))
    header = "".join(f"<th>{name}</th>" for name in COLUMNS)
    relations = "".join(f"<li>{html.escape(f'{r.subject} {r.predicate} {r.object}')}</li>" for r in graph.relations)
    triplets = html.escape(write_map(graph.triplets())) if len(graph.objects) >= 3 else "fewer than three objects"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{html.escape(graph.name)}</title>"
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}"
        "img{max-width:100%}table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #ddd}"
        "pre{background:#f0ede6;padding:1rem;overflow:auto}</style>"
        f"<h1>{html.escape(graph.name)}</h1><p>{html.escape(heading(graph))}. {html.escape(origin)}</p>"
        f'<img alt="the place from above" src="data:image/png;base64,{image}">'
        f"<h2>Objects</h2><table><tr>{header}</tr>{rows}</table>"
        f"<h2>Relations</h2><ul>{relations}</ul>"
        f"<h2>As triplets</h2><pre>{triplets}</pre>"
        f"<h2>JSON</h2><pre>{html.escape(graph.to_json())}</pre></html>\n"
    )


COLUMNS = ("object", "place (m)", "size (m)", "first seen", "sigma (m)")


def object_rows(graph: SceneGraph) -> list[Sequence[str]]:
    """One row of text per object, as `COLUMNS` says."""
    rows = []
    for name, o in zip(graph.names, graph.objects, strict=True):
        place = o.box.center if o.box is not None else o.xy
        size = " x ".join(f"{s:.2f}" for s in o.box.size) if o.box is not None else "-"
        seen = "-" if o.first_seen is None else f"frame {o.first_seen}"
        rows.append((name, ", ".join(f"{v:.2f}" for v in place), size, seen, "-" if o.sigma is None else f"{o.sigma:.2f}"))
    return rows


def heading(graph: SceneGraph) -> str:
    """What a map shows, in one line."""
    area = "" if graph.room_area is None else f", {graph.room_area:.1f} sq m"
    scale = "" if graph.scale == "metric" else ", without metric scale"
    return f"{graph.name}: {len(graph.objects)} objects{area}{scale}"


def as_scene(graph: SceneGraph) -> AnnotatedScene:
    """The graph for drawing: names in place of labels, points as small boxes."""
    objects = []
    for i, (name, o) in enumerate(zip(graph.names, graph.objects, strict=True), start=1):
        objects.append(SceneObject(i, name, o.box if o.box is not None else Box3D((*o.xy, 0.0), (POINT, POINT, POINT), 0.0, name)))
    return AnnotatedScene(graph.name, tuple(objects), floor=graph.floor, room_area=graph.room_area)


def _grids(graph: SceneGraph, plan: FloorPlan | None) -> tuple[np.ndarray | None, np.ndarray | None, float]:
    if plan is not None:
        return plan.free, plan.occupied, plan.free_area
    if graph.floor and graph.scale == "metric":
        space = FreeSpace(graph)
        return space.free, space.floor & ~space.free, space.area
    return None, None, 0.0


def _raster(free: Bool[np.ndarray, "r c"], occupied: Bool[np.ndarray, "r c"], size: int, title: str) -> Image.Image:
    """One square per cell, +y up, the longer side about `size` pixels."""
    pixels = np.full((*free.shape, 3), PAPER, dtype=np.uint8)
    pixels[free], pixels[occupied] = FREE, OCCUPIED
    scale = max(1, (size - 72) // max(free.shape))
    grown = Image.fromarray(pixels[::-1]).resize((free.shape[1] * scale, free.shape[0] * scale), Image.Resampling.NEAREST)
    sheet = Image.new("RGB", (max(grown.width + 72, 360), grown.height + 106), PAPER)
    sheet.paste(grown, (36, 70))
    draw = ImageDraw.Draw(sheet)
    draw.text((36, 12), title, fill=INK, font=font(18))
    draw.line([(36, 56), (36 + round(scale / CELL), 56)], fill=INK, width=2)
    draw.text((42 + round(scale / CELL), 48), "1 m", fill=INK, font=font(12))
    return sheet
