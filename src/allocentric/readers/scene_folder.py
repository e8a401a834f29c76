"""Our own scene folders: `scene.json` (docs/scene_folder.md) beside the pictures it annotates.

    scene.json                       objects, rooms, camera path; checked against the schema
    rgbd/, video.mp4 or images/      what the camera saw; the first of these that is there is read
"""

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch

from allocentric.readers.faults import check_options
from allocentric.readers.images import list_images, open_images
from allocentric.readers.rgbd import is_rgbd_folder, open_rgbd
from allocentric.readers.video import open_video
from allocentric.scenes import load_document
from allocentric.views import Views, check_views


def is_scene_folder(path: Path) -> bool:
    """Whether a folder holds a scene.json."""
    return (path / "scene.json").is_file()


def open_scene_folder(
    path: str | PathLike, frames: int | Sequence[int] | None = None, max_side: int | None = None, **options
) -> Views:
    """The pictures of a scene folder, with depth and poses from rgbd/, or with the intrinsics of scene.json.

    options   passed to the reader of the pictures: `open_rgbd`, `open_video` or `open_images`.
    """
    folder = Path(path)
    document = load_document(folder)
    pictures = pictures_of(folder)
    read = {"rgbd": open_rgbd, "video.mp4": open_video, "images": open_images}[pictures.name]
    check_options(read, options, folder)
    if read is open_rgbd:
        if max_side is not None:
            raise ValueError(f"{folder}: max_side is for videos and images; an RGB-D capture is read at its own size")
        return replace(open_rgbd(pictures, frames, **options), source=str(folder))
    views = read(pictures, frames, max_side=max_side, **options)
    camera = document.get("camera")
    if camera is None:
        return replace(views, source=str(folder))
    height, width = views.frames.shape[2:]
    shrink = torch.diag(torch.tensor([width / camera["width"], height / camera["height"], 1.0], dtype=torch.float64))
    if abs(shrink[0, 0] / shrink[1, 1] - 1) > 0.02:
        filed = f"{camera['width']}x{camera['height']}"
        raise ValueError(f"{folder}: the pictures are {width}x{height}, the camera of scene.json {filed}")
    k = (shrink @ torch.tensor(camera["intrinsics"], dtype=torch.float64)).float()
    return check_views(replace(views, intrinsics=k.expand(len(views), 3, 3).contiguous(), source=str(folder)))


def pictures_of(folder: Path) -> Path:
    """The rgbd/, video.mp4 or images/ of a scene folder, whichever is there first."""
    if (folder / "rgbd").is_dir() and is_rgbd_folder(folder / "rgbd"):
        return folder / "rgbd"
    if (folder / "video.mp4").is_file():
        return folder / "video.mp4"
    if (folder / "images").is_dir() and list_images(folder / "images"):
        return folder / "images"
    raise ValueError(f"{folder}: found no pictures, expected rgbd/, video.mp4 or images/")
