"""Which reader a path is for."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from allocentric.readers.arkitscenes import arkitscenes_capture, is_arkitscenes, open_arkitscenes
from allocentric.readers.faults import named
from allocentric.readers.images import IMAGE_SUFFIXES, list_images, open_images
from allocentric.readers.polycam import is_polycam, open_polycam, polycam_capture
from allocentric.readers.record3d import is_record3d, open_record3d, record3d_capture
from allocentric.readers.rgbd import count_rgbd, is_rgbd_folder, open_rgbd
from allocentric.readers.scannet import is_scannet, open_scannet, scannet_capture
from allocentric.readers.scannetpp import is_scannetpp, open_scannetpp, scannetpp_capture
from allocentric.readers.scene_folder import is_scene_folder, open_scene_folder, pictures_of
from allocentric.readers.threerscan import is_threerscan, open_threerscan, threerscan_capture
from allocentric.readers.transforms import is_transforms, open_transforms, transforms_capture
from allocentric.readers.tum import is_tum, open_tum, tum_capture
from allocentric.readers.video import VideoFile, open_video

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
    "record3d": (is_record3d, open_record3d),
    "polycam": (is_polycam, open_polycam),
}
CAPTURES = {
    "3rscan": threerscan_capture, "scannet": scannet_capture, "scannet++": scannetpp_capture, "arkitscenes": arkitscenes_capture,
    "tum": tum_capture, "transforms": transforms_capture, "record3d": record3d_capture, "polycam": polycam_capture,
}  # fmt: skip
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
READERS = {name: read for name, (_, read) in POSED.items()} | {"rgbd": open_rgbd, "video": open_video, "images": open_images}


def layout_of(path: Source) -> str:
    """How `open_views` would read this path; ValueError when nothing fits.

    "video", "images", "rgbd" (7-Scenes naming), or one of "scene", "scannet", "scannet++", "arkitscenes", "3rscan", "tum",
    "transforms", "record3d", "polycam".
    """
    if not isinstance(path, (str, PathLike)):
        return "images"
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for layout, (fits, _) in POSED.items():
        if fits(path):
            return layout
    if path.is_file() and path.suffix.lower() in ARCHIVES:
        raise ValueError(f"{path}: found an archive, expected what is in it: unpack it first")
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


def count_frames(path: Source) -> int:
    """How many frames `open_views` finds at a path, from headers, file names and poses: no picture is decoded.

    Of posed captures these are the frames whose pose can be used; of the 7-Scenes naming all, since one bad pose there is an error.
    """
    layout = layout_of(path)
    if not isinstance(path, (str, PathLike)):
        return len(path)
    path = Path(path)
    if layout == "video":
        return len(VideoFile(path))
    if layout == "images":
        return len(list_images(path)) if path.is_dir() else 1
    if layout == "rgbd":
        return count_rgbd(path)
    if layout == "scene":
        return count_frames(pictures_of(path))
    with named(path):
        return len(CAPTURES[layout](path))
