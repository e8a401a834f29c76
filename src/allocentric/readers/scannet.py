"""ScanNet v2: recordings, exported frames and posed images -> `Views`; instance annotations -> `AnnotatedScene`.

    scene0000_00/scene0000_00.sens                          a whole recording
                 color/0.jpg  depth/0.png  pose/0.txt       exported frames
                 intrinsic/intrinsic_color.txt, intrinsic_depth.txt
                 00000.jpg  00000.png  00000.txt            "posed images": intrinsic.txt (colour), depth_intrinsic.txt
                 scene0000_00.txt                           axisAlignment = 16 numbers, and more
                 scene0000_00.aggregation.json, scene0000_00_vh_clean_2.0.010000.segs.json, scene0000_00_vh_clean_2.ply

The world returned is the axis-aligned one (`axisAlignment` of the scene's .txt), for views and boxes alike. Poses of frames where
tracking was lost are -inf (or NaN) in the files; such frames are left out unless `drop_bad_poses=False`.
"""

import csv
from collections.abc import Collection, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D
from allocentric.readers.meshes import ply_points
from allocentric.readers.posed import Capture, PosedFrame, number_in, numbered_files, read_intrinsics, read_json, read_matrix
from allocentric.readers.sens import SensFile
from allocentric.scenes import STRUCTURE, AnnotatedScene, SceneObject, with_floor
from allocentric.views import Views

COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")
DEPTH_INTRINSICS = ("depth_intrinsic.txt", "intrinsic_depth.txt")
LABEL_COLUMNS = {"raw": "raw_category", "category": "category", "nyu40": "nyu40class", "nyu40id": "nyu40id"}
SEGMENTS = "_vh_clean_2.0.010000.segs.json"


def is_scannet(path: Path) -> bool:
    """Whether a path is a `.sens` recording or a folder with frames in one of ScanNet's layouts."""
    if path.is_file():
        return path.suffix == ".sens"
    return _sens_in(path) is not None or _is_exported(path) or _is_posed_images(path)


def is_scannet_annotation(path: Path) -> bool:
    """Whether a folder holds a scan with instance annotation."""
    return path.is_dir() and (path / f"{path.name}.aggregation.json").is_file()


def open_scannet(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
    axis_alignment: Float[np.ndarray, "4 4"] | None = None,
) -> Views:
    """Views of a `.sens` file, of a scene folder with one, of exported frames, or of a folder of posed images.

    frames           None for all, a number for that many evenly spread, or positions among the frames whose pose is usable.
    axis_alignment   used in place of that of the scene's .txt. Without either the world stays as it is filed.

    `Views.indices` are ScanNet's frame numbers. Depth is registered to colour.
    """
    return scannet_capture(path, axis_alignment).views(frames, max_side, drop_bad_poses)


def scannet_capture(path: str | PathLike, axis_alignment: Float[np.ndarray, "4 4"] | None = None) -> Capture:
    """A scan of which no picture was read yet, of a recording only the headers."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    sens = path if path.is_file() else _sens_in(path)
    folder = path.parent if path.is_file() else path
    if axis_alignment is None:
        info = _info_file(folder, sens.stem if sens else folder.name)
        axis_alignment = None if info is None else read_axis_alignment(info)
    if sens is not None:
        posed = _sens_frames(SensFile(sens))
    elif _is_exported(path):
        posed = _exported_frames(path)
    elif _is_posed_images(path):
        posed = _posed_images(path)
    else:
        raise ValueError(f"{path}: found no ScanNet frames, expected a .sens file, color/ and pose/, or posed images with .txt")
    return Capture(posed, str(path), to_world=axis_alignment)


def _sens_in(folder: Path) -> Path | None:
    named = folder / f"{folder.name}.sens"
    return named if named.is_file() else next(iter(sorted(folder.glob("*.sens"))), None)


def _is_exported(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in ("color", "pose", "intrinsic"))


def _is_posed_images(folder: Path) -> bool:
    return (folder / "intrinsic.txt").is_file() and bool(numbered_files(folder, *COLOR_SUFFIXES))


def _sens_frames(sens: SensFile) -> list[PosedFrame]:
    return [
        PosedFrame(
            number=i,
            color=partial(sens.color, i),
            intrinsics=sens.intrinsic_color[:3, :3],
            camera_to_world=sens.camera_to_world[i],
            depth=partial(sens.depth, i),
            depth_intrinsics=sens.intrinsic_depth[:3, :3],
        )
        for i in range(len(sens))
    ]


def _exported_frames(folder: Path) -> list[PosedFrame]:
    k = read_intrinsics(folder / "intrinsic" / "intrinsic_color.txt")
    depths, poses = numbered_files(folder / "depth", ".png"), numbered_files(folder / "pose", ".txt")
    depth_k = read_intrinsics(folder / "intrinsic" / "intrinsic_depth.txt") if depths else None
    return [
        PosedFrame(number_in(stem), color, k, read_matrix(poses[stem], (4, 4), "pose"), depths.get(stem), depth_k, name=color.name)
        for stem, color in numbered_files(folder / "color", *COLOR_SUFFIXES).items()
        if stem in poses and (not depths or stem in depths)
    ]


def _posed_images(folder: Path) -> list[PosedFrame]:
    k = read_intrinsics(folder / "intrinsic.txt")
    depth_files = [folder / name for name in DEPTH_INTRINSICS if (folder / name).is_file()]
    depth_k = read_intrinsics(depth_files[0]) if depth_files else None
    colors, depths = numbered_files(folder, ".jpg", ".jpeg"), numbered_files(folder, ".png")
    colors, depths = (colors, depths) if colors else (depths, {})
    found = []
    for stem, color in colors.items():
        pose = folder / f"{stem}.txt"
        if pose.is_file() and (not depths or stem in depths):
            matrix = read_matrix(pose, (4, 4), "pose")
            found.append(PosedFrame(number_in(stem), color, k, matrix, depths.get(stem), depth_k, name=color.name))
    return found


# --- annotation ---


def read_axis_alignment(file: str | PathLike) -> Float[np.ndarray, "4 4"]:
    """The `axisAlignment` of a scene's .txt, rows first; the identity where there is none (test scans are not aligned)."""
    file = Path(file)
    for line in file.read_text().splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "axisAlignment":
            numbers = value.split()
            try:
                matrix = np.array(numbers, dtype=np.float64).reshape(4, 4)
            except ValueError as error:
                raise ValueError(f"{file}: axisAlignment: expected 16 numbers, found {len(numbers)} words") from error
            if not np.isfinite(matrix).all():
                raise ValueError(f"{file}: axisAlignment: expected finite numbers, found {value.strip()}")
            return matrix
    return np.eye(4)


def _info_file(folder: Path, scene: str) -> Path | None:
    """The scene's .txt: beside the frames, or under `scans/` where the frames lie in `posed_images/`."""
    roots = [folder, *(folder.parent.parent / part / scene for part in ("scans", "scans_test"))]
    return next((root / f"{scene}.txt" for root in roots if (root / f"{scene}.txt").is_file()), None)


def read_label_map(tsv: str | PathLike, to: str = "nyu40") -> dict[str, str]:
    """raw_category -> "nyu40" class name, "nyu40id", "category" or "raw", from scannetv2-labels.combined.tsv."""
    if to not in LABEL_COLUMNS:
        raise ValueError(f"label map: expected one of {', '.join(LABEL_COLUMNS)}, found {to!r}")
    tsv = Path(tsv)
    if not tsv.is_file():
        raise ValueError(f"{tsv}: no such label map; expected scannetv2-labels.combined.tsv")
    with tsv.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = {"raw_category", LABEL_COLUMNS[to]} - set(reader.fieldnames or ())
        if missing:
            found = ", ".join(reader.fieldnames or ())
            raise ValueError(f"{tsv}: expected the columns {', '.join(sorted(missing))}, found {found}")
        return {row["raw_category"]: row[LABEL_COLUMNS[to]] or "unannotated" for row in reader}


def read_split(file: str | PathLike) -> list[str]:
    """Scene names of a split file (scannetv2_val.txt, splits/nvs_sem_val.txt), one a line."""
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such split file")
    names = file.read_text().split()
    if not names:
        raise ValueError(f"{file}: the split names no scenes")
    if len(set(names)) != len(names):
        raise ValueError(f"{file}: {next(n for n in names if names.count(n) > 1)} is named twice")
    return names


def open_scannet_scene(
    path: str | PathLike,
    labels: dict[str, str] | None = None,
    skip: Collection[str] = STRUCTURE,
    axis_alignment: Float[np.ndarray, "4 4"] | None = None,
) -> AnnotatedScene:
    """Objects of a scan as boxes in the axis-aligned frame: minimum and maximum over the vertices of the aligned mesh.

    labels           raw label -> label, see `read_label_map`; a raw label that is not in it is an error. None keeps raw labels.
    skip             labels that are not objects (walls, floors, ceilings); `()` keeps all.
    axis_alignment   used in place of that of the scene's .txt.

    `SceneObject.id` is ScanNet's objectId + 1, as in its instance images. Floor and room area are those of the mesh.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    scene = folder.name
    groups = _field(read_json(folder / f"{scene}.aggregation.json"), "segGroups", folder / f"{scene}.aggregation.json")
    over = folder / f"{scene}{SEGMENTS}"
    segments = np.asarray(_field(read_json(over), "segIndices", over), dtype=np.int64)
    vertices = ply_points(folder / f"{scene}_vh_clean_2.ply")
    if len(vertices) != len(segments):
        raise ValueError(f"{folder}: the mesh has {len(vertices)} vertices, its segmentation {len(segments)}")
    if axis_alignment is None:
        info = folder / f"{scene}.txt"
        if not info.is_file():
            raise ValueError(f"{info}: no such file; it holds the axis alignment, or give axis_alignment= (np.eye(4) for none)")
        axis_alignment = read_axis_alignment(info)
    vertices = vertices @ axis_alignment[:3, :3].T + axis_alignment[:3, 3]

    # Vertices in the order of their segments: an object is then a few slices, not a search through the mesh.
    order = np.argsort(segments, kind="stable")
    names, starts = np.unique(segments[order], return_index=True)
    members = dict(zip(names.tolist(), np.split(order, starts[1:]), strict=True))
    objects = []
    for group in groups:
        number, raw = int(_field(group, "objectId", folder)), _field(group, "label", folder)
        if labels is not None and raw not in labels:
            raise ValueError(f"{folder}: object {number} is labelled {raw!r}, which the label map does not know")
        label = raw if labels is None else labels[raw]
        if label.lower() in skip:
            continue
        parts = [members[s] for s in _field(group, "segments", folder) if s in members]
        if not parts:
            raise ValueError(f"{folder}: none of the segments of object {number} ({raw}) are in the mesh")
        points = vertices[np.concatenate(parts)]
        low, high = points.min(0), points.max(0)
        box = Box3D(tuple(((low + high) / 2).tolist()), tuple((high - low).tolist()), 0.0, label)
        objects.append(SceneObject(number + 1, label, box))
    return with_floor(AnnotatedScene(scene, tuple(objects)), vertices)


def _field(data: dict, key: str, where: Path) -> object:
    if not isinstance(data, dict) or key not in data:
        raise ValueError(f"{where}: expected {key!r}, found {', '.join(data) if isinstance(data, dict) else type(data).__name__}")
    return data[key]
