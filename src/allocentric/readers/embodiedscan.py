"""EmbodiedScan's infos (`embodiedscan_infos_{train,val}.pkl`) -> `AnnotatedScene` and, where the pictures are there, `Views`.

A pickle of {"metainfo": {"categories": {label: id}}, "data_list": [{sample_idx, axis_align_matrix, cam2img, depth_cam2img,
images: [{img_path, depth_path, cam2global, visible_instance_ids}], instances: [{bbox_3d, bbox_label_3d, bbox_id}]}]}. Boxes are
centre, size and Euler angles (about z, then x, then y) in the axis-aligned world, into which `axis_align_matrix` takes the poses.

A pickle can run code when it is read. This one is read with nothing but plain values and numpy arrays allowed.
"""

import pickle
from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from allocentric.readers.oriented import oriented_object
from allocentric.readers.posed import PosedFrame, number_in, views_from
from allocentric.scenes import STRUCTURE, AnnotatedScene
from allocentric.views import Views

DEPTH_SCALES = {"matterport3d": 4000.0}  # units a metre; 1000 elsewhere
_ALLOWED = {
    *((module, name) for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("ndarray", "dtype", "_reconstruct", "scalar")),
    *((module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")),
    *(("builtins", name) for name in ("set", "frozenset", "slice", "range", "complex", "bytearray")),
    ("collections", "OrderedDict"), ("_codecs", "encode"),
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"the pickle wants to use {module}.{name}; only plain values and numpy arrays are read")
        return super().find_class(module, name)


def read_pickle(path: str | PathLike) -> Any:
    """What a pickle of plain values and numpy arrays holds; anything else in it is refused, and nothing of it is run."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except (ValueError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as infos: {error}") from error


def _items(path: Path) -> tuple[dict[int, str], list[dict]]:
    infos = read_pickle(path)
    if not isinstance(infos, dict) or not isinstance(infos.get("data_list"), list) or "metainfo" not in infos:
        found = ", ".join(map(str, infos)) if isinstance(infos, dict) else type(infos).__name__
        raise ValueError(f"{path}: expected metainfo and data_list, found {found}")
    categories = infos["metainfo"].get("categories", {})
    named = enumerate(categories) if isinstance(categories, (list, tuple)) else ((int(i), name) for name, i in categories.items())
    names = dict(named)
    for number, item in enumerate(infos["data_list"]):
        if "sample_idx" not in item:
            raise ValueError(f"{path}: item {number} has no sample_idx, found {', '.join(map(str, item))}")
    return names, infos["data_list"]


def read_embodiedscan(path: str | PathLike, skip: Collection[str] = STRUCTURE) -> dict[str, AnnotatedScene]:
    """Every scene of an infos file that has instances, by name ("scannet/scene0415_00").

    skip   labels that are not objects; `()` keeps all.

    `camera_to_world` are the poses of the item's images; `SceneObject.id` is bbox_id + 1.
    """
    path = Path(path)
    names, items = _items(path)
    return {str(item["sample_idx"]): _scene(item, names, path, skip) for item in items if "instances" in item}


def _scene(item: dict, names: dict[int, str], path: Path, skip: Collection[str]) -> AnnotatedScene:
    where = f"{path}: {item['sample_idx']}"
    objects = []
    for instance in item["instances"]:
        missing = [key for key in ("bbox_3d", "bbox_label_3d", "bbox_id") if key not in instance]
        if missing:
            raise ValueError(f"{where}: an instance has no {', '.join(missing)}")
        if int(instance["bbox_label_3d"]) not in names:
            raise ValueError(f"{where}: label {instance['bbox_label_3d']} is not among the {len(names)} categories")
        label, box = names[int(instance["bbox_label_3d"])], np.asarray(instance["bbox_3d"], dtype=np.float64).ravel()
        if len(box) not in (7, 9):
            raise ValueError(f"{where}: the box of {label!r} has {len(box)} numbers, expected 9 (or 7)")
        if label.lower() in skip:
            continue
        angles = np.append(box[6:], np.zeros(9 - len(box)))
        axes = Rotation.from_euler("ZXY", angles).as_matrix().T
        objects.append(oriented_object(int(instance["bbox_id"]) + 1, label, box[:3], box[3:6], axes, where))
    align = _matrix(item.get("axis_align_matrix", np.eye(4)), f"{where}: axis_align_matrix")
    images = [image for image in item.get("images", ()) if "cam2global" in image]
    poses = [align @ _matrix(image["cam2global"], f"{where}: cam2global") for image in images]
    return AnnotatedScene(str(item["sample_idx"]), tuple(objects), camera_to_world=np.stack(poses) if poses else None)


def open_embodiedscan(
    path: str | PathLike,
    name: str,
    root: str | PathLike,
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
    drop_bad_poses: bool = True,
) -> Views:
    """Views of one scene of an infos file; `root` is the folder that img_path and depth_path start from."""
    path, root = Path(path), Path(root)
    _, items = _items(path)
    item = next((item for item in items if item["sample_idx"] == name), None)
    if item is None:
        raise ValueError(f"{path}: no scene {name!r}, found {len(items)}, the first {items[0]['sample_idx'] if items else 'none'}")
    where = f"{path}: {name}"
    posed = []
    for image in item.get("images", ()):
        k = image.get("cam2img", item.get("cam2img"))
        if k is None:
            raise ValueError(f"{where}: {image.get('img_path')} has no cam2img")
        depth_k = image.get("depth_cam2img", item.get("depth_cam2img"))
        posed.append(
            PosedFrame(
                number=number_in(Path(image["img_path"]).stem),
                color=root / image["img_path"],
                intrinsics=np.asarray(k, dtype=np.float64)[:3, :3],
                camera_to_world=_matrix(image["cam2global"], f"{where}: cam2global", finite=False),
                depth=root / image["depth_path"] if image.get("depth_path") else None,
                depth_intrinsics=None if depth_k is None else np.asarray(depth_k, dtype=np.float64)[:3, :3],
                name=image["img_path"],
            )
        )
    align = _matrix(item.get("axis_align_matrix", np.eye(4)), f"{where}: axis_align_matrix")
    scale = DEPTH_SCALES.get(name.split("/")[0], 1000.0)
    return views_from(posed, where, frames, max_side, drop_bad_poses, depth_scale=scale, to_world=align)


def _matrix(values: Any, what: str, finite: bool = True) -> np.ndarray:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != (4, 4) or (finite and not np.isfinite(matrix).all()):
        raise ValueError(f"{what}: expected a finite 4x4 matrix, found shape {matrix.shape}")
    return matrix
