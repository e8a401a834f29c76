"""`transforms.json` of nerfstudio, and of what exports to it (Record3D, Polycam, instant-ngp, Blender scenes) -> `Views`.

    fl_x fl_y cx cy w h camera_model k1 ... p1 p2   for all frames, or for each in its entry; or camera_angle_x (radians)
    frames: [{file_path, transform_matrix, depth_file_path, ...}]

`transform_matrix` is camera_to_world with OpenGL's camera axes (x right, y up, z back); y and z are turned here. The world is the
files', z up. Depth is uint16 millimetres unless `depth_unit_scale_factor` says otherwise. Nothing in the format says whether
lengths are metres: captures with depth are taken to be, others to be known up to a factor, unless `scale=` says which. Pictures of
distorted lenses are straightened to pinholes of the same intrinsics.
"""

from collections.abc import Sequence
from functools import partial
from math import tan
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from allocentric.readers.distortion import Lens, undistort, undistort_depth
from allocentric.readers.images import IMAGE_SUFFIXES, natural_key, read_image
from allocentric.readers.posed import OPENGL_TO_OPENCV, Capture, PosedFrame, number_in, pinhole_matrix, read_depth, read_json
from allocentric.views import Views

PERSPECTIVE = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


def transforms_file(path: Path) -> Path | None:
    """The transforms.json that a path names or holds."""
    if path.is_file():
        return path if path.name.startswith("transforms") and path.suffix == ".json" else None
    return next((f for f in (path / "transforms.json", path / "transforms_train.json") if f.is_file()), None)


def is_transforms(path: Path) -> bool:
    """Whether a path is a transforms.json or a folder with one."""
    return transforms_file(path) is not None


def open_transforms(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
    scale: Literal["metric", "relative"] | None = None,
) -> Views:
    """Views of a transforms.json or of its folder, in natural order of the pictures' names."""
    return transforms_capture(path, scale).views(frames, max_side, drop_bad_poses)


def transforms_capture(path: str | PathLike, scale: Literal["metric", "relative"] | None = None) -> Capture:
    """The capture of a transforms.json; of the pictures no more than their sizes was read."""
    path = Path(path)
    file = transforms_file(path)
    if file is None:
        raise ValueError(f"{path}: found no transforms.json")
    data = read_json(file)
    entries = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{file}: expected a list of frames, found {found}")
    for i, entry in enumerate(entries):
        missing = [key for key in ("file_path", "transform_matrix") if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise ValueError(f"{file}: frame {i} has no {', '.join(missing)}")
    posed = []
    for position, entry in enumerate(sorted(entries, key=lambda e: natural_key(e["file_path"]))):
        picture = _picture(file.parent, entry["file_path"])
        if picture is None:
            raise ValueError(f"{file}: {entry['file_path']}: the picture is missing")
        pose = np.array(entry["transform_matrix"], dtype=np.float64)
        if pose.shape == (3, 4):
            pose = np.vstack([pose, [0, 0, 0, 1]])
        if pose.shape != (4, 4):
            raise ValueError(f"{file}: {entry['file_path']}: expected a 4x4 transform_matrix, found shape {pose.shape}")
        k, lens = _camera(data | entry, picture, file)
        color = picture if lens.straight else partial(_straight_picture, picture, k, lens)
        depth = None
        if entry.get("depth_file_path"):
            units = 1 / float(data.get("depth_unit_scale_factor", 1e-3))
            depth = partial(_depth, file.parent / entry["depth_file_path"], units, k, lens, (data | entry).get("w"))
        number = number_in(picture.stem) if any(c.isdigit() for c in picture.stem) else position
        time = next((float(entry[key]) for key in ("time", "timestamp") if entry.get(key) is not None), None)
        posed.append(PosedFrame(number, color, k, pose @ OPENGL_TO_OPENCV, depth, time=time, name=entry["file_path"]))
    if scale is None:
        scale = "metric" if posed[0].depth is not None else "relative"
    return Capture(posed, str(path), scale=scale)


def _picture(folder: Path, name: str) -> Path | None:
    """A picture by its path in the file; Blender scenes leave the suffix away."""
    plain = folder / name
    if plain.is_file():
        return plain
    return next((p for p in (plain.with_name(plain.name + suffix) for suffix in sorted(IMAGE_SUFFIXES)) if p.is_file()), None)


def _camera(values: dict[str, Any], picture: Path, file: Path) -> tuple[np.ndarray, Lens]:
    model = values.get("camera_model", "OPENCV")
    fisheye = model == "OPENCV_FISHEYE" or bool(values.get("is_fisheye"))
    if not fisheye and model not in PERSPECTIVE:
        raise ValueError(f"{file}: camera_model {model} is not read, expected OPENCV_FISHEYE or one of {', '.join(PERSPECTIVE)}")
    with Image.open(picture) as opened:
        width, height = opened.size
    filed_width, filed_height = values.get("w", width), values.get("h", height)
    if "fl_x" in values:
        fx = values["fl_x"]
    elif "camera_angle_x" in values:
        fx = filed_width / 2 / tan(values["camera_angle_x"] / 2)
    else:
        raise ValueError(f"{file}: expected fl_x or camera_angle_x, for all frames or for each")
    if "fl_y" in values or "camera_angle_y" not in values:
        fy = values.get("fl_y", fx)
    else:
        fy = filed_height / 2 / tan(values["camera_angle_y"] / 2)
    k = pinhole_matrix(fx, fy, values.get("cx", filed_width / 2), values.get("cy", filed_height / 2))
    # Pictures may lie there at half or a quarter of the size the numbers are for.
    if abs(width / filed_width - height / filed_height) > 0.02 * width / filed_width:
        raise ValueError(f"{file}: {picture.name} is {width}x{height}, but the camera {filed_width}x{filed_height}")
    k = np.diag([width / filed_width, height / filed_height, 1.0]) @ k
    radial = tuple(float(values.get(f"k{i}", 0.0)) for i in range(1, 5 if fisheye else 4))
    return k, Lens(radial, (float(values.get("p1", 0.0)), float(values.get("p2", 0.0))), fisheye)


def _straight_picture(picture: Path, k: np.ndarray, lens: Lens) -> Tensor:
    return undistort(read_image(picture), k, lens)


def _depth(file: Path, units: float, k: np.ndarray, lens: Lens, width: int | None) -> Tensor:
    if file.suffix == ".npy":
        depth = torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32).squeeze() * np.float32(1000 / units))
        depth = torch.where(depth.isfinite(), depth, 0)
    else:
        depth = read_depth(file, units)
    if lens.straight:
        return depth
    size = depth.shape[1] / (2 * k[0, 2]) if width is None else depth.shape[1] / width
    return undistort_depth(depth, np.diag([size, size, 1.0]) @ k, lens)
