"""What the readers of posed captures share: numbers, depth and poses from files, and frames -> `Views`.

Principal points are returned as they are filed: the data sets do not agree on whether (0, 0) or (0.5, 0.5) is the centre of the
first pixel, and most do not say.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from allocentric.readers.choose import check_memory, chosen_frames, fit_within
from allocentric.readers.images import natural_key, read_image
from allocentric.views import Views, check_views, pose_fault

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])  # camera axes (x right, y up, z back) of phones and renderers to ours
Y_UP_TO_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # ARKit's world to ours
NO_MEASUREMENT = 65535
DROP_HINT = "(drop_bad_poses=True leaves such frames out)"
MAX_ASPECT_ERROR = 0.02  # how much the proportions of depth and colour may differ and still be one field of view


@dataclass(frozen=True)
class PosedFrame:
    """One frame of a capture, not yet read.

    number             in the source, as its files count.
    color              a picture on disk, or a function that returns one, RGB (3, h, w).
    intrinsics         (3, 3), pixels of the colour picture as filed.
    camera_to_world    (4, 4); may hold NaN or infinities where tracking was lost.
    depth              picture on disk (units of `depth_scale` a metre), function that returns metres (h, w), or None.
    depth_intrinsics   (3, 3), pixels of the depth picture; None when it covers the field of view of the colour picture.
    time               seconds.
    name               for messages.
    """

    number: int
    color: Path | Callable[[], UInt8[Tensor, "3 h w"]]
    intrinsics: np.ndarray
    camera_to_world: np.ndarray
    depth: Path | Callable[[], Float[Tensor, "h w"]] | None = None
    depth_intrinsics: np.ndarray | None = None
    time: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Capture:
    """A posed capture of which no picture was read yet: what `views_from` needs to read some. `len` are the frames it can give."""

    posed: Sequence[PosedFrame]
    source: str
    depth_scale: float | int = 1000.0
    to_world: Float[np.ndarray, "4 4"] | None = None
    scale: Literal["metric", "relative"] = "metric"

    def __len__(self) -> int:
        return sum(fault is None for fault in _faults(self.posed))

    def views(self, frames: int | Sequence[int] | None = None, max_side: int | None = None, drop_bad_poses: bool = True) -> Views:
        """See `views_from`."""
        given = self.depth_scale, self.to_world, self.scale
        return views_from(self.posed, self.source, frames, max_side, drop_bad_poses, *given)


def views_from(
    posed: Sequence[PosedFrame],
    source: str,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
    depth_scale: float | int = 1000.0,
    to_world: Float[np.ndarray, "4 4"] | None = None,
    scale: Literal["metric", "relative"] = "metric",
) -> Views:
    """Read the frames asked for. Depth is brought to the size of the colour pictures, never blended.

    frames           None for all, a number for that many evenly spread, or positions among the usable frames; in time order.
    max_side         shrink colour, and with it depth and intrinsics, so that the longer side has at most this many pixels.
    drop_bad_poses   leave out frames whose pose is not finite or not rigid, in place of refusing them.
    to_world         moves the files' world into the one returned (axis alignment).
    """
    if not posed:
        raise ValueError(f"{source}: found no frame that has a picture and a pose, expected at least one")
    faults = _faults(posed)
    if drop_bad_poses:
        if all(faults):
            raise ValueError(f"{source}: none of the {len(posed)} poses can be used; the first {faults[0]}")
        posed = [f for f, fault in zip(posed, faults, strict=True) if fault is None]
        faults = [None] * len(posed)
    chosen = chosen_frames(frames, len(posed), source)
    for i in chosen:
        if faults[i] is not None:
            raise ValueError(f"{source}: the pose of {posed[i].name or f'frame {posed[i].number}'} {faults[i]} {DROP_HINT}")
    posed = [posed[i] for i in chosen]

    to_world = np.eye(4) if to_world is None else np.asarray(to_world, dtype=np.float64)
    if (fault := pose_fault(torch.from_numpy(to_world))) is not None:
        raise ValueError(f"{source}: the axis alignment {fault}")
    with_depth = [f.depth is not None for f in posed]
    if any(with_depth) and not all(with_depth):
        missing = posed[with_depth.index(False)]
        raise ValueError(f"{source}: {missing.name or f'frame {missing.number}'} has no depth, other frames do")

    rgb: Tensor | None = None
    depth: Tensor | None = None
    intrinsics = torch.empty((len(posed), 3, 3), dtype=torch.float64)
    first_size = (0, 0)
    for row, frame in enumerate(posed):
        image = read_image(frame.color) if isinstance(frame.color, Path) else frame.color()
        height, width = image.shape[1:]
        if rgb is None:
            first_size = (height, width)
            small = fit_within(width, height, max_side)
            check_memory(len(posed), *small, source, depth=with_depth[0])
            rgb = torch.empty((len(posed), 3, small[1], small[0]), dtype=torch.uint8)
            depth = torch.zeros((len(posed), small[1], small[0])) if with_depth[0] else None
        if (height, width) != first_size:
            raise ValueError(
                f"{source}: pictures must have one size; {frame.name or f'frame {frame.number}'} is {width}x{height}, "
                f"{posed[0].name or f'frame {posed[0].number}'} {first_size[1]}x{first_size[0]}"
            )
        size = (rgb.shape[2], rgb.shape[3])
        rgb[row] = resize_image(image, size)
        shrink = np.diag([size[1] / width, size[0] / height, 1.0])
        intrinsics[row] = torch.from_numpy(shrink @ np.asarray(frame.intrinsics, dtype=np.float64))
        if depth is not None:
            measured = read_depth(frame.depth, depth_scale) if isinstance(frame.depth, Path) else frame.depth()
            depth[row] = depth_at_color(measured, frame, intrinsics[row], size, source)
    assert rgb is not None
    poses = np.stack([to_world @ np.asarray(f.camera_to_world, dtype=np.float64) for f in posed])
    times = None if any(f.time is None for f in posed) else torch.tensor([f.time for f in posed], dtype=torch.float64)
    return check_views(
        Views(
            frames=rgb,
            depth=depth,
            intrinsics=intrinsics.float(),
            camera_to_world=torch.from_numpy(poses).float(),
            times=times,
            indices=torch.tensor([f.number for f in posed]),
            scale=scale,
            source=source,
        )
    )


def _faults(posed: Sequence[PosedFrame]) -> list[str | None]:
    """What is wrong with each pose, None where it can be used."""
    return [pose_fault(torch.from_numpy(np.asarray(f.camera_to_world, dtype=np.float64))) for f in posed]


def depth_at_color(
    depth: Float[Tensor, "h w"], frame: PosedFrame, color_k: Float[Tensor, "3 3"], size: tuple[int, int], source: str
) -> Float[Tensor, "h2 w2"]:
    """Depth at the colour picture's `size` (height, width): by rays where both cameras are known, else by proportion."""
    if frame.depth_intrinsics is not None:
        depth_k = torch.as_tensor(np.asarray(frame.depth_intrinsics), dtype=torch.float64)
        return register(depth[None], depth_k, color_k, size)[0]
    height, width = depth.shape
    if abs(width * size[0] / (height * size[1]) - 1) > MAX_ASPECT_ERROR:
        raise ValueError(
            f"{source}: depth of {frame.name or f'frame {frame.number}'} is {width}x{height}, colour {size[1]}x{size[0]}: "
            "expected one field of view, or intrinsics of both"
        )
    return nearest(depth[None], size)[0]


def nearest(depth: Float[Tensor, "t h w"], size: tuple[int, int]) -> Float[Tensor, "t h2 w2"]:
    """Depth at another size (height, width), each pixel the nearest one there was: a blend of near and far is neither."""
    rows = ((torch.arange(size[0]) + 0.5) * depth.shape[1] / size[0]).long()
    columns = ((torch.arange(size[1]) + 0.5) * depth.shape[2] / size[1]).long()
    return depth[:, rows[:, None], columns]


def register(
    depth: Float[Tensor, "t h w"], depth_k: Float[Tensor, "3 3"], color_k: Float[Tensor, "3 3"], size: tuple[int, int]
) -> Float[Tensor, "t h2 w2"]:
    """Depth as seen through `color_k` from the same point: each colour pixel takes the depth pixel its ray passes through.

    The few centimetres between the two lenses are ignored.
    """
    h, w = size
    v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1).double() @ (depth_k @ torch.linalg.inv(color_k)).T
    column, row = rays[..., 0].floor().long(), rays[..., 1].floor().long()
    inside = (column >= 0) & (column < depth.shape[2]) & (row >= 0) & (row < depth.shape[1])
    return depth[:, row.clamp(0, depth.shape[1] - 1), column.clamp(0, depth.shape[2] - 1)] * inside


def resize_image(image: UInt8[Tensor, "3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "3 h2 w2"]:
    """A picture at another size (height, width)."""
    if tuple(image.shape[1:]) == size:
        return image
    resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def decode_image(data: bytes, name: str) -> UInt8[Tensor, "3 h w"]:
    """An RGB picture from the bytes of a JPEG or PNG file."""
    try:
        with Image.open(BytesIO(data)) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name}: cannot be read as an image ({error})") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def read_depth(path: Path, depth_scale: float | int = 1000.0) -> Float[Tensor, "h w"]:
    """Metres from a 16-bit PNG or PGM; 0 where nothing was measured (0 or 65535)."""
    if not path.is_file():
        raise ValueError(f"{path}: the depth picture is missing")
    raw = _read_pgm(path) if path.suffix.lower() == ".pgm" else _read_png16(path)
    raw[raw == NO_MEASUREMENT] = 0
    return torch.from_numpy((raw / depth_scale).astype(np.float32))


def _read_png16(path: Path) -> Int[np.ndarray, "h w"]:
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("I;16", "I;16B", "I"):
                raise ValueError(f"{path}: expected 16-bit depth in millimetres, found a picture of mode {image.mode}")
            return np.asarray(image).astype(np.int32)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: cannot be read as a depth picture ({error})") from error


def _read_pgm(path: Path) -> Int[np.ndarray, "h w"]:
    """Binary PGM, numbers as filed: Pillow would stretch them to 65535 where the header names another maximum."""
    data = path.read_bytes()
    header = re.match(rb"P5\s+(?:#[^\n]*\n\s*)*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s", data)
    if header is None:
        raise ValueError(f"{path}: cannot be read as a depth picture (no PGM header)")
    width, height, maximum = (int(g) for g in header.groups())
    kind, pixels = (">u2" if maximum > 255 else "u1"), data[header.end() :]
    if len(pixels) < width * height * np.dtype(kind).itemsize:
        raise ValueError(f"{path}: cannot be read as a depth picture (truncated: {width}x{height} announced)")
    return np.frombuffer(pixels, dtype=kind, count=width * height).reshape(height, width).astype(np.int32)


def read_matrix(path: Path, shape: tuple[int, int], what: str = "matrix") -> Float[np.ndarray, "n m"]:
    """Numbers from a text file as a matrix, float64; NaN and infinities pass."""
    if not path.is_file():
        raise ValueError(f"{path}: the {what} is missing")
    try:
        values = [float(x) for x in path.read_text().replace(",", " ").split()]
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected {shape[0]}x{shape[1]} numbers, found other text") from error
    if len(values) != shape[0] * shape[1]:
        raise ValueError(f"{path}: expected {shape[0]}x{shape[1]} numbers, found {len(values)}")
    return np.array(values).reshape(shape)


def read_intrinsics(path: Path) -> Float[np.ndarray, "3 3"]:
    """The upper left 3x3 of intrinsics filed as 3x3 or 4x4 text."""
    if not path.is_file():
        raise ValueError(f"{path}: the intrinsics are missing")
    count = len(path.read_text().replace(",", " ").split())
    return check_intrinsics(read_matrix(path, (4, 4) if count == 16 else (3, 3), "matrix of intrinsics")[:3, :3], str(path))


def check_intrinsics(k: Any, what: str) -> Float[np.ndarray, "3 3"]:
    """Intrinsics as float64, or a ValueError: with any other matrix some pixel has no ray, or several."""
    k = np.asarray(k, dtype=np.float64)
    if k.shape != (3, 3) or not np.isfinite(k).all() or not np.allclose(np.tril(k, -1), 0) or (np.diag(k) <= 0).any():
        raise ValueError(f"{what}: expected 3x3 intrinsics, upper triangular with positive focal lengths, found {k.tolist()}")
    return k


def read_json(path: Path) -> Any:
    """A JSON file; what is wrong with it is said with its name."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error


def pinhole_matrix(fx: float | int, fy: float | int, cx: float | int, cy: float | int) -> Float[np.ndarray, "3 3"]:
    """Intrinsics as a matrix."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def rigid(rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """A rigid motion as a 4x4 matrix."""
    return np.block([[np.asarray(rotation), np.asarray(translation).reshape(3, 1)], [np.zeros((1, 3)), np.ones((1, 1))]])


def numbered_files(folder: Path, *suffixes: str) -> dict[str, Path]:
    """Files of a folder by their name without suffix, in natural order; a missing folder has none."""
    if not folder.is_dir():
        return {}
    found = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    return {p.stem: p for p in sorted(found, key=lambda p: natural_key(p.name))}


def number_in(name: str) -> int:
    """The last number in a name; 0 when there is none."""
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else 0
