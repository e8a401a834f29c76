"""A floor plan of an annotated scene: rooms, boxes with their labels, the camera's path and where the frames were taken."""

import colorsys
import math
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from allocentric.geometry.boxes import boxes_to_array, footprint_corners
from allocentric.scenes import AnnotatedScene
from allocentric.view.contact_sheet import FAINT, INK, PAPER, font

FLOOR, WALL, PATH = (240, 237, 230), (92, 90, 86), (200, 60, 40)
MARGIN = 36
OVERSAMPLE = 2  # Pillow draws without smoothing: draw larger, then shrink


def topdown(
    scene: AnnotatedScene,
    frames: Sequence[int] | None = None,
    size: int = 900,
    camera_to_world: Float[np.ndarray, "t 4 4"] | None = None,
    title: str | None = None,
    metric: bool = True,
) -> Image.Image:
    """The scene seen from above: +x to the right, +y up, true to scale, the longer side about `size` pixels.

    frames            which frames to mark with a numbered view cone (positions in the camera path); None: eight, evenly spread.
    camera_to_world   the camera's path, in place of the scene's own.
    metric            whether lengths are metres; otherwise the bar says that it is one unit of the scene's own.
    """
    poses = camera_to_world if camera_to_world is not None else scene.camera_to_world
    poses = None if poses is None else np.asarray(poses, dtype=float)
    outlines = [np.asarray(polygon, dtype=float) for polygon in scene.floor]
    corners = list(footprint_corners(boxes_to_array(o.box for o in scene.objects)))
    everything = [*outlines, *corners, *([poses[:, :2, 3]] if poses is not None else [])]
    if not everything:
        raise ValueError(f"{scene.name}: nothing to draw; the scene has no floor, no objects and no camera path")
    low, high = np.concatenate(everything).min(0), np.concatenate(everything).max(0)
    metres = float(max(*(high - low), 0.5))
    scale = OVERSAMPLE * (size - 2 * MARGIN) / metres
    head = 34 * OVERSAMPLE
    border = MARGIN * OVERSAMPLE
    width, height = (int(2 * border + scale * extent) for extent in np.maximum(high - low, 0.2))
    image = Image.new("RGB", (max(width, 360 * OVERSAMPLE), height + head), PAPER)
    draw = ImageDraw.Draw(image, "RGBA")

    def at(xy: np.ndarray) -> list[tuple[float, float]]:
        pixels = np.asarray(xy, dtype=float).reshape(-1, 2)
        return [(border + scale * (x - low[0]), head + height - border - scale * (y - low[1])) for x, y in pixels]

    for polygon in outlines:
        draw.polygon(at(polygon), fill=FLOOR)
    _grid(draw, at, low, high, outlines)
    for polygon in outlines:
        loop = at(polygon)
        draw.line([*loop, *loop[:2]], fill=WALL, width=5 * OVERSAMPLE, joint="curve")

    # Low things first, so that what stands on a table is seen on the table.
    by_height = sorted(range(len(corners)), key=lambda i: scene.objects[i].box.center[2] + scene.objects[i].box.size[2] / 2)
    for i in by_height:
        color = label_color(scene.objects[i].label)
        loop = at(corners[i])
        draw.polygon(loop, fill=(*color, 110))
        draw.line([*loop, *loop[:2]], fill=(*(int(0.6 * c) for c in color), 255), width=2 * OVERSAMPLE, joint="curve")
    if poses is not None:
        _camera_path(draw, at, poses, frames, scale)
    _labels(draw, at, scene, corners, image.size)

    area = f", {scene.room_area:.1f} sq m" if scene.room_area is not None else ""
    heading = title if title is not None else f"{scene.name}: {len(scene.objects)} objects{area}"
    draw.text((border, 12 * OVERSAMPLE), heading, fill=INK, font=font(18 * OVERSAMPLE))
    _scale_bar(draw, image.size, scale, "1 m" if metric else "1 unit")
    return image.resize((image.width // OVERSAMPLE, image.height // OVERSAMPLE), Image.Resampling.LANCZOS)


def label_color(label: str) -> tuple[int, int, int]:
    """One colour per label, the same in every picture."""
    hue = (zlib.crc32(label.encode()) % 997) / 997
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.55, 0.82))


def _grid(draw: ImageDraw.ImageDraw, at, low: np.ndarray, high: np.ndarray, outlines: list[np.ndarray]) -> None:
    """A faint line every metre."""
    for axis in range(2):
        for value in range(math.ceil(low[axis]), math.floor(high[axis]) + 1):
            ends = np.array([low, high])
            ends[:, axis] = value
            draw.line(at(ends), fill=(0, 0, 0, 16), width=OVERSAMPLE)


def _camera_path(
    draw: ImageDraw.ImageDraw, at, poses: np.ndarray, frames: Sequence[int] | None, scale: float
) -> None:
    known = np.isfinite(poses).all(axis=(1, 2))
    path = at(poses[known, :2, 3])
    if len(path) > 1:
        draw.line(path, fill=(*PATH, 150), width=2 * OVERSAMPLE, joint="curve")
    if frames is None:
        frames = np.linspace(0, len(poses) - 1, min(8, len(poses)), dtype=int).tolist()
    reach = 26 * OVERSAMPLE / scale
    for place, i in enumerate(frames, start=1):
        if not known[i]:
            continue
        eye, forward = poses[i, :2, 3], poses[i, :2, 2]  # the camera looks along its z axis
        if np.linalg.norm(forward) > 1e-3:
            heading = math.atan2(forward[1], forward[0])
            rim = [eye + reach * np.array([math.cos(heading + d), math.sin(heading + d)]) for d in np.linspace(-0.5, 0.5, 9)]
            draw.polygon(at(np.array([eye, *rim])), fill=(*PATH, 60), outline=(*PATH, 200))
        (x, y), r = at(eye)[0], 8 * OVERSAMPLE
        draw.ellipse([x - r, y - r, x + r, y + r], fill=(*PATH, 255), outline=PAPER, width=OVERSAMPLE)
        draw.text((x, y), str(place), fill=PAPER, font=font(10 * OVERSAMPLE), anchor="mm")


def _labels(draw: ImageDraw.ImageDraw, at, scene: AnnotatedScene, corners: list[np.ndarray], size: tuple[int, int]) -> None:
    """Each label on its box, moved up or down a little where it would lie on another; large boxes choose first."""
    face, taken = font(13 * OVERSAMPLE), []
    order = sorted(range(len(corners)), key=lambda i: -scene.objects[i].box.size[0] * scene.objects[i].box.size[1])
    for i in order:
        (x, y) = at(np.array(scene.objects[i].box.center[:2]))[0]
        left, top, right, bottom = draw.textbbox((0, 0), scene.objects[i].label, font=face, anchor="mm")
        x = min(max(x, 4 - left), size[0] - 4 - right)
        for step in (0, 1, -1, 2, -2, 3, -3, 4, -4):
            moved = y + step * 0.62 * (bottom - top + 6)
            place = (x + left - 3, moved + top - 2, x + right + 3, moved + bottom + 2)
            if not any(place[0] < b[2] and b[0] < place[2] and place[1] < b[3] and b[1] < place[3] for b in taken):
                break
        taken.append(place)
        draw.rounded_rectangle(place, radius=4 * OVERSAMPLE, fill=(255, 255, 255, 190))
        draw.text((x, moved), scene.objects[i].label, fill=INK, font=face, anchor="mm")


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], scale: float, unit: str) -> None:
    x1, y = size[0] - MARGIN * OVERSAMPLE, size[1] - 14 * OVERSAMPLE
    x0 = x1 - scale
    draw.line([(x0, y), (x1, y)], fill=FAINT, width=2 * OVERSAMPLE)
    for x in (x0, x1):
        draw.line([(x, y - 5 * OVERSAMPLE), (x, y + 5 * OVERSAMPLE)], fill=FAINT, width=2 * OVERSAMPLE)
    draw.text((x0 - 6 * OVERSAMPLE, y), unit, fill=FAINT, font=font(12 * OVERSAMPLE), anchor="rm")
