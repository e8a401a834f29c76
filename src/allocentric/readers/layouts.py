"""Which reader a path is for."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from allocentric.readers.arkitscenes import is_arkitscenes, open_arkitscenes
from allocentric.readers.images import IMAGE_SUFFIXES, list_images, open_images
from allocentric.readers.rgbd import is_rgbd_folder, open_rgbd
from allocentric.readers.scannet import is_scannet, open_scannet
from allocentric.readers.scannetpp import is_scannetpp, open_scannetpp
from allocentric.readers.scene_folder import is_scene_folder, open_scene_folder
from allocentric.readers.threerscan import is_threerscan, open_threerscan
from allocentric.readers.transforms import is_transforms, open_transforms
from allocentric.readers.tum import is_tum, open_tum
from allocentric.readers.video import open_video

Source = str | PathLike | Sequence[str | PathLike]

# In this order: what a rule further down would take for a mere RGB-D or image folder may be more.
POSED = {
    "scene": (is_scene_folder, open_scene_folder),
    "3rscan": (is_threerscan, open_threerscan),
    "scannet": (is_scannet, open_scannet),
    "scannet++": (is_scannetpp, open_scannetpp),
    "arkitscenes": (is_arkitscenes, open_arkitscenes),
    "tum": (is_tum, open_tum),
    "transforms": (is_transforms, open_transforms),
}
READERS = {name: read for name, (_, read) in POSED.items()} | {"rgbd": open_rgbd, "video": open_video, "images": open_images}


def layout_of(path: Source) -> str:
    """How `open_views` would read this path; ValueError when nothing fits.

    "video", "images", "rgbd" (7-Scenes naming), or one of "scene", "scannet", "scannet++", "arkitscenes", "3rscan", "tum",
    "transforms".
    """
    if not isinstance(path, (str, PathLike)):
        return "images"
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for layout, (fits, _) in POSED.items():
        if fits(path):
            return layout
    if path.is_file():
        return "images" if path.suffix.lower() in IMAGE_SUFFIXES else "video"
    if is_rgbd_folder(path):
        return "rgbd"
    if list_images(path):
        return "images"
    raise ValueError(
        f"{path}: nothing to read in this folder; expected images ({', '.join(sorted(IMAGE_SUFFIXES))}), "
        f"a posed RGB-D capture (frame-NNNNNN.color.jpg, .depth.png, .pose.txt), or one of {', '.join(POSED)}"
    )
