"""3RScan: sequences -> `Views`; instance annotations -> `AnnotatedScene`.

    <scan>/sequence/_info.txt                   sizes, m_calibrationColorIntrinsic, m_calibrationDepthIntrinsic (4x4), m_depthShift
                    frame-000000.color.jpg      960 x 540, as the sensor took it (the phone was held upright: lying on its side)
                    frame-000000.depth.pgm      224 x 172, units of 1 / m_depthShift metres
                    frame-000000.pose.txt       camera_to_world
    <scan>/semseg.v2.json                       objects with oriented boxes
           labels.instances.annotated.v2.ply    the mesh

The world is that of the scan: metres, z up. Rescans of a room are each in their own (3RScan.json holds the motions between them).
"""

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from allocentric.readers.posed import Capture, PosedFrame, number_in, read_matrix
from allocentric.readers.scannetpp import stk_scene, with_mesh
from allocentric.scenes import STRUCTURE, AnnotatedScene
from allocentric.views import Views

INFO = "_info.txt"


def is_threerscan(path: Path) -> bool:
    """Whether a folder is a scan of 3RScan with its sequence, or the sequence itself."""
    return path.is_dir() and _sequence(path) is not None


def is_threerscan_annotation(path: Path) -> bool:
    """Whether a folder is a scan of 3RScan with annotation."""
    return (path / "semseg.v2.json").is_file()


def _sequence(path: Path) -> Path | None:
    return next((f for f in (path, path / "sequence") if (f / INFO).is_file()), None)


def open_threerscan(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
) -> Views:
    """Views of a scan's folder, or of its sequence/. Depth is registered to colour.

    `Views.indices` are the numbers in the file names.
    """
    return threerscan_capture(path).views(frames, max_side, drop_bad_poses)


def threerscan_capture(path: str | PathLike) -> Capture:
    """A scan of which no picture was read yet."""
    folder = Path(path)
    sequence = _sequence(folder) if folder.is_dir() else None
    if sequence is None:
        packed = " (unpack sequence.zip first)" if (folder / "sequence.zip").is_file() else ""
        raise ValueError(f"{folder}: found no sequence/{INFO}, expected a scan of 3RScan{packed}")
    info = _read_info(sequence / INFO)
    k, depth_k = (_intrinsics(info, f"m_calibration{kind}Intrinsic", sequence / INFO) for kind in ("Color", "Depth"))
    posed = []
    for color in sorted(sequence.glob("frame-*.color.jpg")):
        stem = color.name.removesuffix(".color.jpg")
        depth = next((f for f in (sequence / f"{stem}.depth.{s}" for s in ("pgm", "png")) if f.is_file()), None)
        pose = sequence / f"{stem}.pose.txt"
        if depth is not None and pose.is_file():
            posed.append(PosedFrame(number_in(stem), color, k, read_matrix(pose, (4, 4), "pose"), depth, depth_k, name=color.name))
    try:
        shift = float(info.get("m_depthShift", "1000"))
    except ValueError as error:
        raise ValueError(f"{sequence / INFO}: expected m_depthShift as a number, found {info['m_depthShift']!r}") from error
    return Capture(posed, str(folder), depth_scale=shift)


def _read_info(file: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in file.read_text().splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _intrinsics(info: dict[str, str], key: str, file: Path) -> np.ndarray:
    try:
        return np.array(info[key].split(), dtype=np.float64).reshape(4, 4)[:3, :3]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file}: expected {key} = 16 numbers, found {info.get(key, 'none')!r}") from error


def open_threerscan_scene(path: str | PathLike, skip: Collection[str] = STRUCTURE) -> AnnotatedScene:
    """Objects of a scan's semseg.v2.json; floor and area of its mesh, where that is there. `skip` as in `open_scannetpp_scene`."""
    folder = Path(path)
    return with_mesh(stk_scene(folder.name, folder / "semseg.v2.json", skip), folder / "labels.instances.annotated.v2.ply")
