"""TUM RGB-D (and ICL-NUIM in its layout) -> `Views`.

    rgb.txt, depth.txt   seconds and file, a line each; # begins a comment
    groundtruth.txt      seconds tx ty tz qx qy qz qw, camera_to_world
    rgb/*.png, depth/*.png   640 x 480, registered to each other; 5000 units a metre, 0 is no measurement

The streams are not synchronous: a picture is joined with the nearest depth and the nearest pose within `MAX_OFFSET` seconds, and
left out without them. The world is the motion capture system's, z up.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from allocentric.readers.posed import Capture, PosedFrame, pinhole_matrix, rigid
from allocentric.views import Views

MAX_OFFSET = 0.02  # seconds; the frames of a stream are 1/30 apart
DEPTH_SCALE = 5000.0
# fx fy cx cy of the three cameras (by the sequence's name), and the one the data set's page recommends where none is known
CAMERAS = {
    "1": (517.3, 516.5, 318.6, 255.3), "2": (520.9, 521.0, 325.1, 249.7), "3": (535.4, 539.2, 320.1, 247.6),
    "": (525.0, 525.0, 319.5, 239.5),
}  # fmt: skip


def is_tum(path: Path) -> bool:
    """Whether a folder is a TUM RGB-D sequence."""
    return path.is_dir() and all((path / name).is_file() for name in ("rgb.txt", "groundtruth.txt"))


def open_tum(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
    intrinsics: Float[np.ndarray, "3 3"] | None = None,
) -> Views:
    """Views of a sequence's folder. Depth is there where depth.txt is.

    intrinsics   in place of those of the camera in the folder's name (freiburg1, freiburg2, freiburg3).

    `Views.indices` count the lines of rgb.txt; `times` are seconds from the first. The lens distortion of freiburg1 and 2 (a few
    pixels at the corners) is not corrected: depth is registered to the pictures as they are.
    """
    return tum_capture(path, intrinsics).views(frames, max_side, drop_bad_poses)


def tum_capture(path: str | PathLike, intrinsics: Float[np.ndarray, "3 3"] | None = None) -> Capture:
    """A sequence of which no picture was read yet."""
    folder = Path(path)
    if not is_tum(folder):
        raise ValueError(f"{folder}: expected a TUM RGB-D sequence with rgb.txt and groundtruth.txt")
    camera = re.search(r"freiburg([123])", folder.resolve().name)
    k = pinhole_matrix(*CAMERAS[camera[1] if camera else ""]) if intrinsics is None else np.asarray(intrinsics, dtype=np.float64)
    pictures = _table(folder / "rgb.txt", 2)
    depths = _table(folder / "depth.txt", 2) if (folder / "depth.txt").is_file() else []
    poses = _table(folder / "groundtruth.txt", 8)
    depth_times, pose_times = [t for t, _ in depths], [t for t, _ in poses]
    posed = []
    for number, (time, words) in enumerate(pictures):
        pose, depth = _nearest(time, pose_times), _nearest(time, depth_times)
        if pose is None or (depths and depth is None):
            continue
        try:
            tx, ty, tz, *quaternion = map(float, poses[pose][1])
        except ValueError as error:
            raise ValueError(f"{folder / 'groundtruth.txt'}: expected numbers, found {' '.join(poses[pose][1])}") from error
        if np.isfinite(quaternion).all() and np.linalg.norm(quaternion) > 0:
            matrix = rigid(Rotation.from_quat(quaternion).as_matrix(), np.array([tx, ty, tz]))
        else:
            matrix = np.full((4, 4), np.nan)
        file = folder / depths[depth][1][0] if depths else None
        posed.append(PosedFrame(number, folder / words[0], k, matrix, file, time=time - pictures[0][0], name=words[0]))
    if not posed:
        raise ValueError(f"{folder}: none of the {len(pictures)} pictures has a pose (and depth) within {MAX_OFFSET} s")
    return Capture(posed, str(folder), depth_scale=DEPTH_SCALE)


def _table(file: Path, columns: int) -> list[tuple[float, list[str]]]:
    """(seconds, other words) of every line, in order of time."""
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            time = float(words[0])
        except ValueError as error:
            raise ValueError(f"{file}:{number}: expected seconds first, found {words[0]!r}") from error
        if len(words) < columns:
            raise ValueError(f"{file}:{number}: expected {columns} columns, found {len(words)}")
        rows.append((time, words[1:columns]))
    if not rows:
        raise ValueError(f"{file}: expected lines of {columns} columns, found none")
    return sorted(rows, key=lambda row: row[0])


def _nearest(time: float, times: list[float]) -> int | None:
    at = bisect_left(times, time)
    near = min(range(max(0, at - 1), min(len(times), at + 1)), key=lambda i: abs(times[i] - time), default=None)
    return near if near is not None and abs(times[near] - time) <= MAX_OFFSET else None
