"""ScanNet++: DSLR and iPhone captures -> `Views`; instance annotations -> `AnnotatedScene`.

    <scene>/dslr/resized_undistorted_images/DSC00001.JPG   pinhole pictures, with nerfstudio/transforms_undistorted.json
                 resized_images/DSC00001.JPG               fisheye pictures, straightened here
                 colmap/cameras.txt, images.txt            poses in the world of the mesh
    <scene>/iphone/rgb.mkv (or rgb.mp4), or rgb/frame_000000.jpg
                   depth.bin, or depth/frame_000000.png    192 x 256, metres or millimetres
                   pose_intrinsic_imu.json                 "aligned_pose" in the world of the mesh, "intrinsic", for each frame
    <scene>/scans/segments_anno.json                       objects with oriented boxes; mesh_aligned_0.05.ply

The world is that of the mesh: metres, z up. Poses in nerfstudio's files are in another one and are not used.
"""

import struct
import zlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allocentric.readers.colmap import read_colmap
from allocentric.readers.distortion import undistort
from allocentric.readers.images import natural_key, read_image
from allocentric.readers.meshes import ply_points
from allocentric.readers.oriented import oriented_object
from allocentric.readers.posed import Capture, PosedFrame, number_in, numbered_files, pinhole_matrix, read_json
from allocentric.readers.video import VideoFile
from allocentric.scenes import STRUCTURE, AnnotatedScene, with_floor
from allocentric.views import Views

DEPTH_SIZE = (192, 256)
POSES = "pose_intrinsic_imu.json"


def is_scannetpp(path: Path) -> bool:
    """Whether a folder is a ScanNet++ scene, or the dslr/ or iphone/ of one."""
    return _iphone_folder(path) is not None or _dslr_folder(path) is not None


def is_scannetpp_annotation(path: Path) -> bool:
    """Whether a folder is a ScanNet++ scene with instance annotation, or its scans/."""
    return (path / "scans" / "segments_anno.json").is_file() or (path / "segments_anno.json").is_file()


def open_scannetpp(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
    device: str | None = None,
) -> Views:
    """Views of a scene folder, or of its dslr/ or iphone/.

    device   "iphone" or "dslr": whose pictures. Of a scene that has both, the iPhone's unless told. The DSLR has no depth.

    `Views.indices` are the numbers in the pictures' names (iPhone: frames of the video).
    """
    return scannetpp_capture(path, device).views(frames, max_side, drop_bad_poses)


def scannetpp_capture(path: str | PathLike, device: str | None = None) -> Capture:
    """A scene's pictures, of which none was read yet."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    iphone, dslr = _iphone_folder(folder), _dslr_folder(folder)
    if device not in (None, "iphone", "dslr"):
        raise ValueError(f"{folder}: expected device iphone or dslr, found {device!r}")
    if iphone is not None and device != "dslr":
        posed = _iphone_frames(iphone)
    elif dslr is not None and device != "iphone":
        posed = _dslr_frames(dslr)
    else:
        raise ValueError(f"{folder}: found no {device or 'ScanNet++'} capture, expected iphone/{POSES} or dslr/colmap/images.txt")
    return Capture(posed, str(folder))


def _iphone_folder(path: Path) -> Path | None:
    return next((f for f in (path, path / "iphone") if (f / POSES).is_file()), None)


def _dslr_folder(path: Path) -> Path | None:
    inside = [path / "dslr", *([path] if path.name == "dslr" else [])]
    return next((f for f in inside if (f / "colmap" / "images.txt").is_file()), None)


def _dslr_frames(folder: Path) -> list[PosedFrame]:
    straight, bent = folder / "resized_undistorted_images", folder / "resized_images"
    transforms = folder / "nerfstudio" / "transforms_undistorted.json"
    if straight.is_dir():
        camera = read_json(transforms)
        missing = [key for key in ("fl_x", "fl_y", "cx", "cy") if key not in camera]
        if missing:
            raise ValueError(f"{transforms}: expected the intrinsics of the undistorted pictures, found no {', '.join(missing)}")
        k = pinhole_matrix(camera["fl_x"], camera["fl_y"], camera["cx"], camera["cy"])
    elif not bent.is_dir():
        raise ValueError(f"{folder}: found no pictures, expected resized_undistorted_images/ or resized_images/")
    found = []
    for image in read_colmap(folder / "colmap"):
        file = (straight if straight.is_dir() else bent) / image.name
        if not file.is_file():  # pictures held back for the test of novel views have poses, but are not there
            continue
        if straight.is_dir():
            color, matrix = file, k
        else:
            color, matrix = partial(_straightened, file, image.intrinsics, image.lens), image.intrinsics
        found.append(PosedFrame(number_in(file.stem), color, matrix, image.camera_to_world, name=image.name))
    return sorted(found, key=lambda frame: natural_key(frame.name))


def _straightened(file: Path, intrinsics: np.ndarray, lens) -> Tensor:
    image = read_image(file)
    return image if lens.straight else undistort(image, intrinsics, lens)


def _iphone_frames(folder: Path) -> list[PosedFrame]:
    records = read_json(folder / POSES)
    if not isinstance(records, dict):
        raise ValueError(f"{folder / POSES}: expected frames by name, found {type(records).__name__}")
    pictures = numbered_files(folder / "rgb", ".jpg", ".jpeg", ".png")
    video = next((file for file in (folder / f"rgb.{s}" for s in ("mkv", "mp4", "mov")) if file.is_file()), None)
    movie = VideoFile(video) if video is not None and not pictures else None
    if not pictures and movie is None:
        raise ValueError(f"{folder}: found no pictures, expected rgb.mkv, rgb.mp4 or rgb/frame_NNNNNN.jpg")
    depths, packed = numbered_files(folder / "depth", ".png"), folder / "depth.bin"
    stream = DepthStream(packed) if packed.is_file() and not depths else None
    found = []
    for name in sorted(records, key=natural_key):
        number, record = number_in(name), records[name]
        if (pictures and name not in pictures) or (movie and number >= len(movie)) or (depths and name not in depths):
            continue
        if stream is not None and number >= len(stream):
            continue
        for key in ("aligned_pose", "intrinsic"):
            if key not in record:
                raise ValueError(f"{folder / POSES}: {name} has no {key}")
        depth = depths[name] if depths else partial(stream.read, number) if stream else None
        color = pictures[name] if pictures else partial(_video_frame, movie, number)
        k, pose = np.array(record["intrinsic"], dtype=np.float64), np.array(record["aligned_pose"], dtype=np.float64)
        if k.shape != (3, 3) or pose.size != 16:
            raise ValueError(f"{folder / POSES}: {name}: expected a 3x3 intrinsic and a 4x4 aligned_pose")
        time = None if record.get("timestamp") is None else float(record["timestamp"])
        found.append(PosedFrame(number, color, k, pose.reshape(4, 4), depth, time=time, name=name))
    return found


def _video_frame(movie: VideoFile, number: int) -> Tensor:
    return next(movie.read([number]))


class DepthStream:
    """`depth.bin` of the iPhone, in each of the ways it is packed; frames are unpacked when asked for.

    Either one raw deflate stream of all frames as float32 metres, or frame by frame: u32 size, then an LZ4 block of uint16
    millimetres or a raw deflate stream of float32 metres.
    """

    def __init__(self, path: Path):
        self.path = path
        self._places = self._frame_places()
        self._unpacked: Callable | None = None
        self._next = 0
        self._count = len(self._places) if self._places else self._count_whole()

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Float[Tensor, "h w"]:
        """Depth of a frame in metres, 0 where nothing was measured. Of one whole stream, ascending order is fastest."""
        height, width = DEPTH_SIZE
        if not self._places:
            data, kind = self._from_whole(index), "<f4"
        else:
            start, size = self._places[index]
            with self.path.open("rb") as file:
                file.seek(start)
                packed = file.read(size)
            try:
                data, kind = lz4_block(packed, height * width * 2), "<u2"
            except ValueError:
                data, kind = self._inflate(packed, index), "<f4"
        if len(data) != height * width * np.dtype(kind).itemsize:
            raise ValueError(f"{self.path}: frame {index}: expected {height}x{width} values, found {len(data)} bytes")
        values = np.frombuffer(data, dtype=kind).astype(np.float32) / (1000 if kind == "<u2" else 1)
        return torch.from_numpy(np.where(np.isfinite(values) & (values > 0), values, 0).astype(np.float32).reshape(height, width))

    def _inflate(self, packed: bytes, index: int) -> bytes:
        try:
            return zlib.decompress(packed, wbits=-zlib.MAX_WBITS)
        except zlib.error as error:
            raise ValueError(f"{self.path}: depth of frame {index} is neither LZ4 nor deflate ({error})") from error

    def _frame_places(self) -> list[tuple[int, int]]:
        """(start, size) of each frame; empty when the file is not made of sized frames that end where the file ends."""
        places, total = [], self.path.stat().st_size
        with self.path.open("rb") as file:
            while (at := file.tell()) < total:
                head = file.read(4)
                size = struct.unpack("<I", head)[0] if len(head) == 4 else 0
                if size == 0 or at + 4 + size > total:
                    return []
                places.append((at + 4, size))
                file.seek(size, 1)
        return places

    def _whole(self):
        """Frames of one deflate stream, one after another."""
        frame, unpack, pending = DEPTH_SIZE[0] * DEPTH_SIZE[1] * 4, zlib.decompressobj(-zlib.MAX_WBITS), b""
        with self.path.open("rb") as file:
            while chunk := file.read(1 << 20):
                try:
                    pending += unpack.decompress(chunk)
                except zlib.error as error:
                    raise ValueError(f"{self.path}: cannot be unpacked as depth ({error})") from error
                while len(pending) >= frame:
                    yield pending[:frame]
                    pending = pending[frame:]
        if not unpack.eof or pending:
            raise ValueError(f"{self.path}: truncated: the last frame of depth is not whole")

    def _count_whole(self) -> int:
        return sum(1 for _ in self._whole())

    def _from_whole(self, index: int) -> bytes:
        if self._unpacked is None or index < self._next:
            self._unpacked, self._next = self._whole(), 0
        for data in self._unpacked:
            self._next += 1
            if self._next == index + 1:
                return data
        raise ValueError(f"{self.path}: frame {index} does not exist, there are {len(self)}")


def lz4_block(packed: bytes, size: int) -> bytes:
    """An LZ4 block unpacked to `size` bytes (block format: token, literals, little-endian offset, match)."""
    out, at, end = bytearray(), 0, len(packed)
    try:
        while at < end:
            token = packed[at]
            at += 1
            length = token >> 4
            if length == 15:
                while (more := packed[at]) == 255:
                    length, at = length + 255, at + 1
                length, at = length + more, at + 1
            out += packed[at : at + length]
            at += length
            if at >= end or len(out) > size:
                break
            offset = packed[at] | packed[at + 1] << 8
            at += 2
            length = (token & 15) + 4
            if token & 15 == 15:
                while (more := packed[at]) == 255:
                    length, at = length + 255, at + 1
                length, at = length + more, at + 1
            start = len(out) - offset
            if offset == 0 or start < 0:
                raise ValueError("not an LZ4 block: a match lies before its beginning")
            piece = out[start : start + length]
            out += (piece * (length // len(piece) + 1))[:length]  # a match may reach into what it writes
    except IndexError as error:
        raise ValueError("not an LZ4 block: it ends early") from error
    if at != end or len(out) != size:
        raise ValueError(f"not an LZ4 block of {size} bytes: found {len(out)}")
    return bytes(out)


def open_scannetpp_scene(path: str | PathLike, skip: Collection[str] = STRUCTURE) -> AnnotatedScene:
    """Objects of a scene's scans/segments_anno.json, in the world of the mesh.

    skip   labels that are not objects (walls, floors, ceilings, marks of the annotators); `()` keeps all.

    `SceneObject.id` is ScanNet++'s objectId + 1 where ids start at 0, else the objectId. Floor and room area are those of the
    mesh, where it is there.
    """
    folder = Path(path)
    scans = folder / "scans" if (folder / "scans").is_dir() else folder
    scene = scans.parent.name if scans.name == "scans" else scans.name
    return with_mesh(stk_scene(scene, scans / "segments_anno.json", skip), scans / "mesh_aligned_0.05.ply")


def stk_scene(name: str, file: Path, skip: Collection[str]) -> AnnotatedScene:
    """Objects of an annotation with segGroups of {objectId, label, obb}, as ScanNet++ and 3RScan share it."""
    data = read_json(file)
    if not isinstance(data, dict) or not isinstance(data.get("segGroups"), list):
        raise ValueError(f"{file}: expected segGroups, found {', '.join(data) if isinstance(data, dict) else type(data).__name__}")
    groups = data["segGroups"]
    for group in groups:
        missing = [key for key in ("objectId", "label", "obb") if key not in group]
        if missing:
            raise ValueError(f"{file}: object {group.get('objectId', '?')} has no {', '.join(missing)}")
    first = 1 if any(int(group["objectId"]) == 0 for group in groups) else 0
    objects = []
    for group in groups:
        label, obb = str(group["label"]).strip(), group["obb"]
        if label.lower() in skip:
            continue
        for key in ("centroid", "axesLengths", "normalizedAxes"):
            if key not in obb:
                raise ValueError(f"{file}: the box of object {group['objectId']} ({label}) has no {key}")
        number, sides = int(group["objectId"]) + first, obb["axesLengths"]
        objects.append(oriented_object(number, label, obb["centroid"], sides, obb["normalizedAxes"], str(file)))
    return AnnotatedScene(name, tuple(objects))


def with_mesh(scene: AnnotatedScene, mesh: Path) -> AnnotatedScene:
    """The scene with the floor and area of its mesh; as it is where there is no mesh."""
    return with_floor(scene, ply_points(mesh)) if mesh.is_file() else scene
