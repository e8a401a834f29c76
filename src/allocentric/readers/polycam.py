"""Polycam's raw data export (iPhone and iPad with LiDAR) -> `Views`.

    keyframes/images/1234.jpg            pictures, and cameras/1234.json of each
              corrected_images/          the same without lens distortion and with poses improved by Polycam, where there are
              corrected_cameras/         enough pictures; these are taken where they are there
              depth/1234.png             millimetres, 16 bit, the field of view of the pictures; may be missing

A camera is {width, height, fx, fy, cx, cy, t_00 ... t_23}: t_ is camera_to_world, rows first, with OpenGL's camera axes in ARKit's
world, metres, y up; y and z are turned here.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from allocentric.readers.posed import (
    OPENGL_TO_OPENCV,
    Y_UP_TO_Z_UP,
    Capture,
    PosedFrame,
    number_in,
    numbered_files,
    pinhole_matrix,
    read_json,
)
from allocentric.views import Views

KINDS = ("corrected_", "")
POSE = [f"t_{row}{column}" for row in range(3) for column in range(4)]


def is_polycam(path: Path) -> bool:
    """Whether a folder is a raw data export, or its keyframes/."""
    return path.is_dir() and _keyframes(path) is not None


def _keyframes(path: Path) -> tuple[Path, str] | None:
    """The folder of keyframes, and which of its pictures to take."""
    places = ((folder, kind) for folder in (path, path / "keyframes") for kind in KINDS)
    return next(((f, k) for f, k in places if (f / f"{k}images").is_dir() and (f / f"{k}cameras").is_dir()), None)


def open_polycam(
    path: str | PathLike, frames: int | Sequence[int] | None = None, max_side: int | None = None, drop_bad_poses: bool = True
) -> Views:
    """Views of a raw data export. Depth is there when every picture has one.

    `Views.indices` are the numbers in the files' names.
    """
    return polycam_capture(path).views(frames, max_side, drop_bad_poses)


def polycam_capture(path: str | PathLike) -> Capture:
    """An export; of the pictures no more than their sizes was read."""
    found = _keyframes(Path(path))
    if found is None:
        raise ValueError(f"{path}: expected a raw data export of Polycam: keyframes/images and keyframes/cameras")
    folder, kind = found
    cameras, depths = numbered_files(folder / f"{kind}cameras", ".json"), numbered_files(folder / "depth", ".png")
    pictures = {stem: p for stem, p in numbered_files(folder / f"{kind}images", ".jpg", ".jpeg", ".png").items() if stem in cameras}
    with_depth = bool(pictures) and all(stem in depths for stem in pictures)
    posed = []
    for stem, picture in pictures.items():
        k, pose = _camera(cameras[stem], picture)
        posed.append(PosedFrame(number_in(stem), picture, k, pose, depths[stem] if with_depth else None, name=picture.name))
    return Capture(posed, str(path), to_world=Y_UP_TO_Z_UP)


def _camera(file: Path, picture: Path) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "4 4"]]:
    data = read_json(file)
    missing = [key for key in ("width", "height", "fx", "fy", "cx", "cy", *POSE) if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{file}: expected a camera with intrinsics and pose, found no {', '.join(missing)}")
    with Image.open(picture) as opened:
        width, height = opened.size
    if abs(width / data["width"] - height / data["height"]) > 0.02 * width / data["width"]:
        raise ValueError(f"{file}: {picture.name} is {width}x{height}, but the camera {data['width']}x{data['height']}")
    stretch = np.diag([width / data["width"], height / data["height"], 1.0])
    rows = np.array([data[key] for key in POSE], dtype=np.float64).reshape(3, 4)
    k = stretch @ pinhole_matrix(data["fx"], data["fy"], data["cx"], data["cy"])
    return k, np.vstack([rows, [0.0, 0.0, 0.0, 1.0]]) @ OPENGL_TO_OPENCV
