"""Posed RGB-D captures in the 7-Scenes layout -> `Views`.

    camera-intrinsics.txt            3x3, pixels
    frame-000000.color.jpg (or png)  RGB
    frame-000000.depth.png           uint16 millimetres along z; 0 and 65535 mean no measurement
    frame-000000.pose.txt            4x4 camera-to-world, metres, OpenCV axes

What the files do not say, and what to do about it:

- Whose intrinsics they are. In 7-Scenes they are the *depth* camera's (focal length 585); the colour camera's is about 525, and
  the two pictures are not registered. By default depth is returned as it is filed, with the intrinsics of the file: geometry from
  depth is exact, and colours sit a few pixels off. With `color_intrinsics=` depth is resampled into the colour picture, whose
  intrinsics are then the ones returned. (The few centimetres between the two lenses are not in the files and are ignored.)
- Which way is up. 7-Scenes worlds are those of the first camera. `up=(x, y, z)` names the direction that is up in the files'
  world; poses are turned so that it becomes +z. Without it the world stays as it is filed.
"""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allocentric.geometry.canonical import rotation_to_z
from allocentric.readers.choose import check_memory, chosen_frames
from allocentric.readers.images import natural_key, read_image
from allocentric.readers.posed import DROP_HINT, MAX_ASPECT_ERROR, check_intrinsics, read_depth, read_matrix, register
from allocentric.views import Views, check_views, pose_fault

COLOR_SUFFIXES = (".color.jpg", ".color.png", ".color.jpeg")
# Metres. Room-scale depth cameras see 0.3 to 8 m; a median outside that is another unit (TUM's files count 5000 to the metre).
PLAUSIBLE_MEDIAN = (0.3, 8.0)


def is_rgbd_folder(folder: str | PathLike) -> bool:
    """Whether a folder holds at least one frame with colour and depth in the 7-Scenes naming."""
    names = {p.name for p in Path(folder).iterdir()}
    return any(
        any(n.endswith(s) and n.removesuffix(s) + ".depth.png" in names for s in COLOR_SUFFIXES) for n in names
    )


def open_rgbd(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    intrinsics: Float[np.ndarray, "3 3"] | None = None,
    color_intrinsics: Float[np.ndarray, "3 3"] | None = None,
    depth_scale: float | int | None = None,
    resize_depth: bool = False,
    drop_bad_poses: bool = False,
    up: Sequence[float | int] | None = None,
) -> Views:
    """Views from a posed RGB-D folder (7-Scenes layout). `Views.indices` are the numbers in the file names.

    frames             None for all, a number for that many evenly spread, or positions (0 is the first there is); in time order.
    intrinsics         used in place of camera-intrinsics.txt; pixels of the depth pictures.
    color_intrinsics   register depth to the colour pictures (see the module's text); pixels of the colour pictures.
    depth_scale        depth units per metre; 1000 unless given. When given, no check for a wrong unit is made.
    resize_depth       accept depth of another size that covers the same field of view: resampled to nearest.
    drop_bad_poses     leave out frames whose pose is missing, not finite or not rigid, in place of refusing them.
    up                 direction that is up in the files' world; it becomes +z.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if depth_scale is not None and not 0 < depth_scale < np.inf:
        raise ValueError(f"depth_scale: found {depth_scale}, expected a positive number of depth units per metre")
    color = _color_files(folder)
    stems = sorted(color, key=natural_key)
    if not stems:
        raise ValueError(f"{folder}: no frames; expected frame-NNNNNN.color.jpg or .color.png")
    poses = {stem: folder / f"{stem}.pose.txt" for stem in stems}
    if drop_bad_poses:  # before choosing, so that `frames=16` gives 16
        stems = [s for s in stems if poses[s].is_file() and pose_fault(_read_pose(poses[s], check=False)) is None]
        if not stems:
            raise ValueError(f"{folder}: no frame has a usable pose")
    stems = [stems[i] for i in chosen_frames(frames, len(stems), str(folder))]

    camera_to_world = torch.stack([_read_pose(poses[s]) for s in stems])
    if up is not None:
        camera_to_world = _turn_up(up) @ camera_to_world
    depth_k = _intrinsics(folder, intrinsics)
    color_k = None if color_intrinsics is None else torch.from_numpy(check_intrinsics(color_intrinsics, "color_intrinsics"))

    rgb: Tensor | None = None
    measured = []  # some of the depth of each frame, for a look at its unit
    for row, stem in enumerate(stems):
        image = read_image(color[stem])
        filed = read_depth(folder / f"{stem}.depth.png", 1000.0 if depth_scale is None else depth_scale)
        if rgb is None:
            size, depth_size = tuple(image.shape[1:]), tuple(filed.shape)
            k = depth_k if color_k is None else color_k
            if color_k is None and size != depth_size:
                k = _stretched(folder, depth_k, depth_size, size, resize_depth)
            check_memory(len(stems), size[1], size[0], str(folder), depth=True, smaller=False)
            rgb = torch.empty((len(stems), 3, *size), dtype=torch.uint8)
            depth = torch.empty((len(stems), *size))
        if image.shape[1:] != size:
            sizes = [f"{color[s].name} is {x[1]}x{x[0]}" for s, x in ((stems[0], size), (stem, image.shape[1:]))]
            raise ValueError(f"{folder}: colour pictures must have one size; {sizes[0]}, {sizes[1]}")
        if filed.shape != depth_size:
            raise ValueError(
                f"{folder}: depth pictures must have one size; {stem}.depth.png is {filed.shape[1]}x{filed.shape[0]}, "
                f"{stems[0]}.depth.png is {depth_size[1]}x{depth_size[0]}"
            )
        rgb[row] = image
        # Nearest, never blended: a mean of the table's depth and the wall's is a point in mid-air.
        depth[row] = filed if k is depth_k else register(filed[None], depth_k, k, size)[0]
        some = filed[::4, ::4]
        measured.append(some[some > 0])
    assert rgb is not None
    if depth_scale is None:
        _check_unit(folder, torch.cat(measured), len(stems))

    digits = [re.search(r"(\d+)$", s) for s in stems]
    return check_views(
        Views(
            frames=rgb,
            depth=depth,
            intrinsics=k.float().expand(len(stems), 3, 3).contiguous(),
            camera_to_world=camera_to_world.float(),
            indices=torch.tensor([int(m[1]) if m else i for i, m in enumerate(digits)]),
            scale="metric",
            source=str(folder),
        )
    )


def count_rgbd(folder: str | PathLike) -> int:
    """Number of colour pictures in a folder, each of which is a frame."""
    return len(_color_files(Path(folder)))


def _color_files(folder: Path) -> dict[str, Path]:
    return {p.name[: p.name.index(".color.")]: p for p in folder.iterdir() if p.name.endswith(COLOR_SUFFIXES)}


def _intrinsics(folder: Path, given: np.ndarray | None) -> Float[Tensor, "3 3"]:
    if given is not None:
        return torch.from_numpy(check_intrinsics(given, "intrinsics"))
    file = folder / "camera-intrinsics.txt"
    if not file.is_file():
        raise ValueError(f"{folder}: camera-intrinsics.txt is missing; put it there or give intrinsics=")
    return torch.from_numpy(check_intrinsics(read_matrix(file, (3, 3)), str(file)))


def _stretched(
    folder: Path, depth_k: Float[Tensor, "3 3"], depth_size: tuple[int, int], size: tuple[int, int], resize_depth: bool
) -> Float[Tensor, "3 3"]:
    """Intrinsics of the colour pictures where both cameras show one field of view at two sizes (height, width)."""
    sizes = f"{folder}: depth is {depth_size[1]}x{depth_size[0]}, colour {size[1]}x{size[0]}"
    if not resize_depth:
        raise ValueError(
            f"{sizes}; give color_intrinsics= to register them, or resize_depth=True if both show the same field of view"
        )
    across, down = size[1] / depth_size[1], size[0] / depth_size[0]
    if abs(across / down - 1) > MAX_ASPECT_ERROR:
        raise ValueError(f"{sizes}: expected one field of view of the same proportions; give color_intrinsics= to register them")
    return torch.diag(torch.tensor([across, down, 1.0], dtype=torch.float64)) @ depth_k


def _read_pose(file: Path, check: bool = True) -> Float[Tensor, "4 4"]:
    """A pose from a text file, float64; one that is not rigid is refused by name when `check`."""
    matrix = torch.from_numpy(read_matrix(file, (4, 4), f"pose {DROP_HINT}"))
    if check and (fault := pose_fault(matrix)) is not None:
        raise ValueError(f"{file}: this pose {fault} {DROP_HINT}")
    return matrix


def _check_unit(folder: Path, measured: Float[Tensor, " n"], frames: int) -> None:
    if measured.numel() == 0:
        raise ValueError(f"{folder}: no depth was measured in any of the {frames} frames")
    median, (low, high) = measured.median().item(), PLAUSIBLE_MEDIAN
    if not low <= median <= high:
        raise ValueError(
            f"{folder}: half of the depth lies {'beyond' if median > high else 'below'} {median:.3g} m when read as millimetres, "
            f"expected a median of {low} to {high} m; is it another unit? Give depth_scale= (units per metre) to settle it"
        )


def _turn_up(up: Sequence[float | int]) -> Float[Tensor, "4 4"]:
    """The shortest rotation that takes `up` to +z."""
    direction = np.asarray(up, dtype=np.float64)
    if direction.shape != (3,) or not np.isfinite(direction).all() or not np.linalg.norm(direction) > 0:
        raise ValueError(f"up: expected a direction of three numbers, found {up}")
    turn = np.eye(4)
    turn[:3, :3] = rotation_to_z(direction / np.linalg.norm(direction))
    return torch.from_numpy(turn)
