"""Which annotation lies at a path, and what views add to it."""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from allocentric.geometry.boxes import boxes_to_array
from allocentric.geometry.visibility import box_visibility
from allocentric.readers.arkitscenes import is_arkitscenes_annotation, open_arkitscenes_scene
from allocentric.readers.embodiedscan import read_embodiedscan
from allocentric.readers.faults import check_options, named
from allocentric.readers.images import natural_key
from allocentric.readers.scannet import is_scannet_annotation, open_scannet_scene
from allocentric.readers.scannetpp import is_scannetpp_annotation, open_scannetpp_scene
from allocentric.readers.scene_folder import is_scene_folder
from allocentric.readers.threerscan import is_threerscan_annotation, open_threerscan_scene
from allocentric.readers.vsi_metadata import is_vsi_metadata, read_vsi_metadata
from allocentric.scenes import AnnotatedScene, load_scene
from allocentric.views import Views

# In this order: a rule further down may also hold for what one further up describes better.
ONE = (
    ("scene folder", is_scene_folder, load_scene),
    ("scene.json", lambda path: path.is_file() and path.name == "scene.json", load_scene),
    ("ScanNet", is_scannet_annotation, open_scannet_scene),
    ("ScanNet++", is_scannetpp_annotation, open_scannetpp_scene),
    ("ARKitScenes", is_arkitscenes_annotation, open_arkitscenes_scene),
    ("3RScan", is_threerscan_annotation, open_threerscan_scene),
)
MANY = (
    ("VSI-Bench metadata", is_vsi_metadata, read_vsi_metadata),
    ("EmbodiedScan infos", lambda path: path.is_file() and path.suffix == ".pkl", read_embodiedscan),
)


def open_scene(path: str | PathLike, name: str | None = None, **options) -> AnnotatedScene:
    """The annotated scene at `path`: a scene folder (or scene.json), a scan of ScanNet, ScanNet++, ARKitScenes or 3RScan, or one
    scene of a file of many (VSI-Bench metadata, EmbodiedScan infos).

    name      which scene, in a file of more than one.
    options   passed to the reader of the layout: see `open_scannet_scene`, `open_scannetpp_scene`, ...
    """
    path = Path(path)
    for _, fits, read in ONE:
        if path.exists() and fits(path):
            check_options(read, options, path)
            with named(path):
                scene = read(path, **options)
            if name not in (None, scene.name):
                raise ValueError(f"{path}: holds the scene {scene.name!r}, not {name!r}")
            return scene
    scenes = open_scenes(path, **options)
    if name is None and len(scenes) == 1:
        return next(iter(scenes.values()))
    if name not in scenes:
        some = ", ".join(list(scenes)[:5])
        problem = "which scene?" if name is None else f"no scene {name!r};"
        raise ValueError(f"{path}: {problem} there are {len(scenes)}: {some}, ...")
    return scenes[name]


def open_scenes(path: str | PathLike, **options) -> dict[str, AnnotatedScene]:
    """Every annotated scene at `path` by name: those of a file of many, of a folder of scenes, or the one that `path` is."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for _, fits, read in MANY:
        if fits(path):
            check_options(read, options, path)
            with named(path):
                return read(path, **options)
    inside = [path]
    if path.is_dir() and not _is_one(path):
        inside = [p for p in sorted(path.iterdir(), key=lambda p: natural_key(p.name)) if _is_one(p) and not p.name.startswith(".")]
    found: dict[str, AnnotatedScene] = {}
    for each in inside:
        if not _is_one(each):
            break
        scene = open_scene(each, **options)
        if scene.name in found:
            raise ValueError(f"{path}: two scenes are named {scene.name!r}")
        found[scene.name] = scene
    if not found:
        expected = ", ".join(kind for kind, _, _ in ONE + MANY)
        raise ValueError(f"{path}: no annotated scene was found here; expected one of {expected}, or a folder of scenes")
    return found


def _is_one(path: Path) -> bool:
    return any(fits(path) for _, fits, _ in ONE)


def with_visibility(scene: AnnotatedScene, views: Views, frames: Sequence[int] | None = None) -> AnnotatedScene:
    """The scene with what views of it show of each object (see `box_visibility`), and with their poses and times.

    views    of the same place in the same world, with depth, intrinsics and poses; evenly spread over the video.
    frames   positions in `views` to use; None for all.
    """
    for field in ("depth", "intrinsics", "camera_to_world"):
        if getattr(views, field) is None:
            raise ValueError(f"{views.source or 'views'}: visibility needs {field}, found none")
    views = views if frames is None else views.select(list(frames))
    poses = views.camera_to_world.double().numpy()
    seen = box_visibility(boxes_to_array(o.box for o in scene.objects), views.depth.numpy(), views.intrinsics.numpy(), poses)
    times = None if views.times is None else views.times.double().numpy()
    return replace(scene, visibility=seen, camera_to_world=poses, times=times)
