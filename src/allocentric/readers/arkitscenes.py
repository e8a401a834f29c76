"""ARKitScenes: raw and 3dod downloads -> `Views`; 3dod annotations -> `AnnotatedScene`.

    <id>/lowres_wide/<id>_<seconds>.png                 pictures 256 x 192; vga_wide/ 640 x 480 in the same way
         lowres_wide_intrinsics/<id>_<seconds>.pincam   width height fx fy cx cy
         lowres_depth/<id>_<seconds>.png                millimetres
         lowres_wide.traj                               seconds, axis-angle and translation of world to camera, 10 a second
         <id>.mov                                       the same capture as a video (a frame for each .pincam)
         <id>_3dod_annotation.json, <id>_3dod_mesh.ply
    <id>/<id>_frames/...                                the 3dod download keeps the same folders one level down

Poses between two samples of the trajectory are interpolated; frames farther than `MAX_GAP` from a sample are left out. The world is
that of the trajectory and of the boxes: metres, z up. Pictures are as the sensor took them, which may be sideways.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation, Slerp

from allocentric.readers.meshes import ply_points
from allocentric.readers.oriented import oriented_object
from allocentric.readers.posed import Capture, PosedFrame, numbered_files, pinhole_matrix, read_json, rigid
from allocentric.readers.video import VideoFile
from allocentric.scenes import AnnotatedScene, with_floor
from allocentric.views import Views

TRAJECTORY, MAX_GAP = "lowres_wide.traj", 0.12  # seconds; samples are 0.1 apart
PICTURES = ("lowres_wide", "vga_wide", "wide")
SAME_TIME = 0.009  # seconds: files of one frame may round its time differently; frames are 1/60 apart
MOST_METRES = 50.0


def is_arkitscenes(path: Path) -> bool:
    """Whether a folder is a scene of ARKitScenes with a trajectory."""
    return path.is_dir() and _frames_folder(path) is not None


def is_arkitscenes_annotation(path: Path) -> bool:
    """Whether a path is a scene's folder with 3dod annotation, or the annotation itself."""
    return (path.is_file() and path.name.endswith("_3dod_annotation.json")) or _annotation_in(path) is not None


def open_arkitscenes(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
) -> Views:
    """Views of a scene's folder. Depth, where it is there, is brought to the size of the pictures.

    `Views.indices` count the pictures in order of time; `times` are seconds from the first.
    """
    return arkitscenes_capture(path).views(frames, max_side, drop_bad_poses)


def arkitscenes_capture(path: str | PathLike) -> Capture:
    """A scene of which no picture was read yet."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    inner = _frames_folder(folder)
    if inner is None:
        raise ValueError(f"{folder}: found no {TRAJECTORY}, expected a scene of ARKitScenes")
    sample_times, samples = read_trajectory(inner / TRAJECTORY)
    kind = next((k for k in PICTURES if numbered_files(inner / k, ".png", ".jpg")), None)
    movie = next((f for f in sorted(folder.glob("*.mov"))), None)
    if kind is None and movie is None:
        raise ValueError(f"{folder}: found no pictures, expected lowres_wide/, vga_wide/ or {folder.name}.mov")
    cameras = _by_time(inner / f"{kind or 'lowres_wide'}_intrinsics", ".pincam")
    depths = _by_time(inner / "lowres_depth", ".png")
    if kind is not None:
        pictures = _by_time(inner / kind, ".png", ".jpg")
    else:
        video = VideoFile(movie)
        if len(cameras) < len(video):
            raise ValueError(f"{movie}: {len(video)} frames, but intrinsics of {len(cameras)}; expected one .pincam a frame")
        pictures = {time: partial(_video_frame, video, i) for i, time in enumerate(list(cameras)[: len(video)])}
    if not cameras:
        raise ValueError(f"{inner}: found no intrinsics, expected {kind or 'lowres_wide'}_intrinsics/*.pincam")

    camera_times, depth_times = list(cameras), list(depths)
    found = []
    for number, (time, color) in enumerate(pictures.items()):
        pose = pose_at(time, sample_times, samples)
        camera, depth = _nearest(time, camera_times), _nearest(time, depth_times)
        if pose is None or camera is None or (depths and depth is None):
            continue
        width, height, k = _read_pincam(cameras[camera])
        if kind is None:  # intrinsics are those of the low-resolution pictures
            k = np.diag([video.width / width, video.height / height, 1.0]) @ k
        seconds = time - next(iter(pictures))
        found.append(PosedFrame(number, color, k, pose, depths.get(depth), time=seconds, name=f"the frame at {time:.3f} s"))
    if not found:
        raise ValueError(f"{folder}: none of the {len(pictures)} frames has intrinsics and a pose within {MAX_GAP} s (and depth)")
    return Capture(found, str(folder))


def _frames_folder(folder: Path) -> Path | None:
    return next((f for f in (folder, folder / f"{folder.name}_frames") if (f / TRAJECTORY).is_file()), None)


def _video_frame(movie: VideoFile, number: int):
    return next(movie.read([number]))


def read_trajectory(file: str | PathLike) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n 4 4"]]:
    """(seconds, camera_to_world) of a .traj file: seconds, axis-angle (radians) and translation of world to camera in a line."""
    file = Path(file)
    rows = [line.split() for line in file.read_text().splitlines() if line.strip()]
    try:
        table = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
    except ValueError as error:
        raise ValueError(f"{file}: expected lines of 7 numbers ({error})") from error
    if not len(table):
        raise ValueError(f"{file}: the trajectory is empty")
    table = table[np.isfinite(table).all(1)]  # lost tracking: frames near it find no sample
    table = table[np.argsort(table[:, 0], kind="stable")]
    rotation = Rotation.from_rotvec(table[:, 1:4]).as_matrix().transpose(0, 2, 1)
    position = -(rotation @ table[:, 4:, None])[..., 0]
    return table[:, 0], np.stack([rigid(r, t) for r, t in zip(rotation, position, strict=True)])


def pose_at(
    time: float, times: Float[np.ndarray, " n"], poses: Float[np.ndarray, "n 4 4"], gap: float = MAX_GAP
) -> Float[np.ndarray, "4 4"] | None:
    """The pose at a time, interpolated between the samples around it; None when either is farther than `gap` seconds."""
    after = int(np.searchsorted(times, time))
    for i in (after, after - 1):
        if 0 <= i < len(times) and abs(times[i] - time) < 1e-3:
            return poses[i]
    if after == 0 or after == len(times) or times[after] - times[after - 1] > gap:
        return None
    share = (time - times[after - 1]) / (times[after] - times[after - 1])
    turn = Slerp([0.0, 1.0], Rotation.from_matrix(poses[after - 1 : after + 1, :3, :3]))(share).as_matrix()
    return rigid(turn, (1 - share) * poses[after - 1, :3, 3] + share * poses[after, :3, 3])


def _by_time(folder: Path, *suffixes: str) -> dict[float, Path]:
    """Files named <id>_<seconds> by their time, in order."""
    found = {}
    for stem, file in numbered_files(folder, *suffixes).items():
        try:
            found[float(stem.rsplit("_", 1)[-1])] = file
        except ValueError as error:
            raise ValueError(f"{file}: expected a name that ends in seconds (<id>_1234.567), found {stem}") from error
    return dict(sorted(found.items()))


def _nearest(time: float, times: list[float]) -> float | None:
    at = bisect_left(times, time)
    near = min(times[max(0, at - 1) : at + 1], key=lambda t: abs(t - time), default=None)
    return near if near is not None and abs(near - time) <= SAME_TIME else None


def _read_pincam(file: Path) -> tuple[float, float, np.ndarray]:
    words = file.read_text().split()
    try:
        width, height, fx, fy, cx, cy = map(float, words)
    except ValueError as error:
        raise ValueError(f"{file}: expected width height fx fy cx cy, found {len(words)} words") from error
    if not (width > 0 and height > 0 and fx > 0 and fy > 0):
        raise ValueError(f"{file}: expected positive sizes and focal lengths, found {' '.join(words)}")
    return width, height, pinhole_matrix(fx, fy, cx, cy)


def _annotation_in(folder: Path) -> Path | None:
    file = folder / f"{folder.name}_3dod_annotation.json"
    return file if file.is_file() else None


def open_arkitscenes_scene(path: str | PathLike) -> AnnotatedScene:
    """Objects of a 3dod annotation: its `obbAligned` boxes. Floor and room area are those of the mesh, where it is there."""
    path = Path(path)
    file = path if path.is_file() else _annotation_in(path)
    if file is None:
        raise ValueError(f"{path}: found no {path.name}_3dod_annotation.json")
    name, data = file.name.removesuffix("_3dod_annotation.json"), read_json(file)
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        found = ", ".join(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{file}: expected objects under data, found {found}")
    objects = []
    for item in data["data"]:
        try:
            label, obb = item["label"], item["segments"]["obbAligned"]
            number, sides = len(objects) + 1, obb["axesLengths"]
            found = oriented_object(number, label, obb["centroid"], sides, obb["normalizedAxes"], str(file))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: object {len(objects)}: expected label and segments.obbAligned ({error!r})") from error
        if max(found.box.size) > MOST_METRES:
            raise ValueError(f"{file}: the {label} is {max(found.box.size):.0f} long; expected metres, is this another unit?")
        objects.append(found)
    scene, mesh = AnnotatedScene(name, tuple(objects)), file.with_name(f"{name}_3dod_mesh.ply")
    return with_floor(scene, ply_points(mesh)) if mesh.is_file() else scene
