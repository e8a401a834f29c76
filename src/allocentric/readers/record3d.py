"""Record3D's own exports (iPhone and iPad) -> `Views`; what it exports as transforms.json is read in `transforms.py`.

    capture.r3d                              a zip of the files below (unpacked, a folder with them)
    metadata                                 JSON, see below
    rgbd/0.jpg  rgbd/0.depth  rgbd/0.conf    depth: float32 metres along z, compressed with LZFSE; confidence is not read

    EXR_RGBD/metadata.json                   "EXR + RGB" exports
             rgb/0.jpg  depth/0.exr          depth in metres

    metadata: w h (pictures), dw dh (depth), K (9 numbers, columns first) and perFrameIntrinsicCoeffs [fx fy cx cy], both in pixels
    of w x h, poses [qx qy qz qw tx ty tz], frameTimestamps (seconds)

Poses are camera_to_world with OpenGL's camera axes in ARKit's world, metres, y up; y and z are turned here. Depth and pictures show
the same field of view. LZFSE and EXR are decoded by packages that `pip install allocentric[record3d]` brings.
"""

import json
import zipfile
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from scipy.spatial.transform import Rotation
from torch import Tensor

from allocentric.readers.posed import OPENGL_TO_OPENCV, Y_UP_TO_Z_UP, Capture, PosedFrame, decode_image, pinhole_matrix, rigid
from allocentric.views import Views

Place = Path | zipfile.Path  # a file or folder, on disk or in a .r3d
NEEDS = "pip install allocentric[record3d], or depth=False to do without depth"


def is_record3d(path: Path) -> bool:
    """Whether a path is a .r3d, an unpacked one, or an EXR + RGB export."""
    return (path.is_file() and path.suffix.lower() == ".r3d") or (path.is_dir() and _layout(path) is not None)


def open_record3d(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
    depth: bool = True,
) -> Views:
    """Views of a .r3d file, of the folder it was unpacked to, or of an EXR + RGB export.

    depth   False leaves depth unread.

    `Views.indices` are the numbers of the pictures; `times` are seconds from the first.
    """
    return record3d_capture(path, depth).views(frames, max_side, drop_bad_poses)


def record3d_capture(path: str | PathLike, depth: bool = True) -> Capture:
    """An export of which one picture's size was read."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    try:
        layout = _layout(zipfile.Path(path) if path.is_file() else path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: cannot be read as a .r3d ({error})") from error
    if layout is None:
        raise ValueError(f"{path}: expected a Record3D export: metadata and rgbd/, or metadata.json and rgb/")
    file, pictures, depths, suffix = layout
    data = _metadata(file)
    found = {int(p.name.removesuffix(".jpg")): p for p in pictures.iterdir() if p.name.removesuffix(".jpg").isdecimal()}
    numbers = [i for i in sorted(found) if i < len(data["poses"])]
    if not numbers:
        raise ValueError(f"{path}: found {len(found)} pictures and {len(data['poses'])} poses, expected some pictures with a pose")
    stretch = _stretch(found[numbers[0]], data)
    times = data.get("frameTimestamps") or []
    times = times if len(times) == len(data["poses"]) else None
    read = {".depth": _lzfse_depth, ".exr": _exr_depth}[suffix]
    posed = []
    for i in numbers:
        measured = depths / f"{i}{suffix}"
        if depth and not measured.is_file():
            continue
        posed.append(
            PosedFrame(
                number=i,
                color=partial(_picture, found[i]),
                intrinsics=stretch @ _intrinsics(data, i, file),
                camera_to_world=_pose(data["poses"][i], i, file),
                depth=partial(read, measured, data) if depth else None,
                time=None if times is None else float(times[i]) - float(times[numbers[0]]),
                name=f"{pictures.name}/{i}.jpg",
            )
        )
    return Capture(posed, str(path), to_world=Y_UP_TO_Z_UP)


def _layout(root: Place) -> tuple[Place, Place, Place, str] | None:
    """(metadata, folder of pictures, folder of depth, its suffix) of an export."""
    if (root / "metadata").is_file() and (root / "rgbd").is_dir():
        return root / "metadata", root / "rgbd", root / "rgbd", ".depth"
    for inner in (root, root / "EXR_RGBD"):
        if (inner / "metadata.json").is_file() and (inner / "rgb").is_dir():
            return inner / "metadata.json", inner / "rgb", inner / "depth", ".exr"
    return None


def _metadata(file: Place) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    missing = [key for key in ("poses", "w", "h") if not isinstance(data, dict) or key not in data]
    if missing or not isinstance(data["poses"], list):
        raise ValueError(f"{file}: expected poses, w and h, found no {', '.join(missing) or 'list of poses'}")
    return data


def _stretch(picture: Place, data: dict[str, Any]) -> Float[np.ndarray, "3 3"]:
    """From pixels of w x h to pixels of the pictures, which may lie there at another size."""
    try:
        with Image.open(BytesIO(picture.read_bytes())) as opened:
            width, height = opened.size
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{picture}: cannot be read as an image ({error})") from error
    if abs(width / data["w"] - height / data["h"]) > 0.02 * width / data["w"]:
        raise ValueError(f"{picture}: the picture is {width}x{height}, metadata says {data['w']}x{data['h']}")
    return np.diag([width / data["w"], height / data["h"], 1.0])


def _intrinsics(data: dict[str, Any], i: int, file: Place) -> Float[np.ndarray, "3 3"]:
    each = data.get("perFrameIntrinsicCoeffs") or []
    if i < len(each) and len(each[i]) == 4:
        return pinhole_matrix(*map(float, each[i]))
    k = np.asarray(data.get("K", ()), dtype=np.float64)
    if k.size != 9:
        raise ValueError(f"{file}: expected K as 9 numbers, found {k.size}")
    return k.reshape(3, 3).T


def _pose(values: Sequence[float | int], i: int, file: Place) -> Float[np.ndarray, "4 4"]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (7,):
        raise ValueError(f"{file}: pose {i}: expected qx qy qz qw tx ty tz, found {numbers.size} numbers")
    if not np.isfinite(numbers).all() or not numbers[:4].any():
        return np.full((4, 4), np.nan)
    return rigid(Rotation.from_quat(numbers[:4]).as_matrix(), numbers[4:]) @ OPENGL_TO_OPENCV


def _picture(file: Place) -> Tensor:
    return decode_image(file.read_bytes(), str(file))


def _lzfse_depth(file: Place, data: dict[str, Any]) -> Float[Tensor, "h w"]:
    try:
        import lzfse
    except ImportError as error:
        raise ValueError(f"{file}: depth is compressed with LZFSE, which nothing installed reads: {NEEDS}") from error
    try:
        values = np.frombuffer(lzfse.decompress(file.read_bytes()), dtype="<f4")
    except (lzfse.error, MemoryError, ValueError) as error:
        raise ValueError(f"{file}: cannot be unpacked as depth ({error or 'broken LZFSE data'})") from error
    height, width = _depth_size(data, len(values))
    if height * width != len(values):
        raise ValueError(f"{file}: expected {width}x{height} depths, found {len(values)}")
    return _measured(values.reshape(height, width))


def _depth_size(data: dict[str, Any], count: int) -> tuple[int, int]:
    """(height, width) of depth. Older exports do not name it; it has the proportions of the pictures."""
    if data.get("dw") and data.get("dh"):
        return int(data["dh"]), int(data["dw"])
    height = round((count * data["h"] / data["w"]) ** 0.5)
    return height, count // max(height, 1)


def _exr_depth(file: Path, data: dict[str, Any]) -> Float[Tensor, "h w"]:
    try:
        import OpenEXR
    except ImportError as error:
        raise ValueError(f"{file}: depth is an EXR picture, which nothing installed reads: {NEEDS}") from error
    try:
        with OpenEXR.File(str(file), separate_channels=True) as opened:
            channels = {name: channel.pixels for name, channel in opened.channels().items()}
    except RuntimeError as error:
        raise ValueError(f"{file}: cannot be read as an EXR picture ({error})") from error
    name = next((name for name in ("R", "Y", "Z", "V") if name in channels), None)
    if name is None:
        raise ValueError(f"{file}: expected depth in channel R, Y, Z or V, found {', '.join(channels)}")
    return _measured(channels[name])


def _measured(values: np.ndarray) -> Float[Tensor, "h w"]:
    values = values.astype(np.float32)
    return torch.from_numpy(np.where(np.isfinite(values) & (values > 0), values, np.float32(0)))
