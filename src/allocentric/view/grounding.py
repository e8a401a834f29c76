"""Pictures of a found box: its edges in the frames that show it, and its place seen from above."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, ImageDraw

from allocentric.geometry.boxes import Box3D, box_corners, boxes_to_array, into_footprint_frame
from allocentric.geometry.cameras import project, unproject_depth
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.view.contact_sheet import GAP, INK, MARGIN, PAPER, font
from allocentric.view.topdown import topdown
from allocentric.views import Views

EDGE = (0, 158, 115)
EDGES = [(i, (i + 1) % 4) for i in range(4)] + [(i + 4, (i + 1) % 4 + 4) for i in range(4)] + [(i, i + 4) for i in range(4)]
NEAR = 0.05  # metres in front of the camera: nothing closer is drawn
VISIBLE = 0.001  # share of a frame's pixels whose point lies in the box


def frames_showing(views: Views, box: Box3D, margin: float = 0.03) -> Int[np.ndarray, " n"]:
    """Positions of the frames whose depth has points in the box, the fullest first. Views need depth and cameras."""
    points = unproject_depth(views.depth, views.intrinsics, views.camera_to_world).numpy()
    array = boxes_to_array([box])[0]
    flat = np.abs(into_footprint_frame(points[..., :2].reshape(-1, 2), array)).reshape(*points.shape[:-1], 2)
    inside = (flat <= array[3:5] / 2 + margin).all(-1) & (np.abs(points[..., 2] - array[2]) <= array[5] / 2 + margin)
    share = inside.mean(axis=(1, 2))
    order = np.argsort(-share, kind="stable")
    return order[share[order] >= VISIBLE]


def draw_box(image: Image.Image, box: Box3D, intrinsics: torch.Tensor, camera_to_world: torch.Tensor, scale: float = 1.0) -> None:
    """Draw the edges of a box into a picture that is `scale` times the frame; what is behind the camera is cut off."""
    corners = torch.from_numpy(box_corners(box)).float()
    rotation, place = camera_to_world[:3, :3].float(), camera_to_world[:3, 3].float()
    in_camera = (corners - place) @ rotation
    draw = ImageDraw.Draw(image)
    for a, b in EDGES:
        ends = [in_camera[a], in_camera[b]]
        if max(ends[0][2], ends[1][2]) <= NEAR:
            continue
        for i, (one, other) in enumerate(((0, 1), (1, 0))):
            if ends[one][2] < NEAR:
                share = (NEAR - ends[one][2]) / (ends[other][2] - ends[one][2])
                ends[i] = ends[one] + share * (ends[other] - ends[one])
        pixels, _ = project(torch.stack(ends), intrinsics)
        line = [tuple((scale * p).tolist()) for p in pixels]
        draw.line(line, fill=PAPER, width=5)
        draw.line(line, fill=EDGE, width=3)


def picture(
    views: Views, box: Box3D, proposals: Sequence[Box3D] = (), title: str = "", most: int = 4, width: int = 360
) -> Image.Image:
    """One sheet: up to `most` frames that show the box, and the map with the camera's path and the other proposals."""
    shown = frames_showing(views, box)[:most].tolist()
    h, w = views.frames.shape[-2:]
    cell = (width, max(1, round(width * h / w)))
    others = [SceneObject(i + 1, other.label or str(i), other) for i, other in enumerate(proposals) if not _same(other, box)]
    found = SceneObject(len(proposals) + 1, "found", box)
    poses = views.camera_to_world.double().numpy()
    plan = AnnotatedScene(views.source, (*others, found), camera_to_world=poses)
    metric = views.scale == "metric"
    title_above = f"from above, found box marked{'' if metric else ' (relative scale)'}"
    plan_image = topdown(plan, frames=shown or None, size=560, title=title_above, metric=metric)
    columns = 1 if len(shown) <= 1 else 2
    rows = math.ceil(len(shown) / columns)
    left = columns * (cell[0] + GAP) if shown else 0
    sheet = Image.new(
        "RGB",
        (2 * MARGIN + left + plan_image.width, 2 * MARGIN + 30 + max(rows * (cell[1] + GAP + 20), plan_image.height)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=font(18))
    for n, i in enumerate(shown):
        frame = Image.fromarray(views.frames[i].permute(1, 2, 0).contiguous().numpy()).resize(cell, Image.Resampling.LANCZOS)
        draw_box(frame, box, views.intrinsics[i], views.camera_to_world[i], cell[0] / w)
        x, y = MARGIN + (n % columns) * (cell[0] + GAP), MARGIN + 30 + (n // columns) * (cell[1] + GAP + 20)
        sheet.paste(frame, (x, y))
        number = int(views.indices[i]) if views.indices is not None else i
        draw.text((x, y + cell[1] + 3), f"{n + 1}: frame {number}", fill=INK, font=font(13))
    sheet.paste(plan_image, (MARGIN + left, MARGIN + 30))
    return sheet


def _same(a: Box3D, b: Box3D) -> bool:
    return (a.center, a.size, a.yaw) == (b.center, b.size, b.yaw)
