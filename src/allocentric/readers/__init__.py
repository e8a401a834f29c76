"""Readers: what is on disk -> `Views`. One file per layout; `open_views` decides which by looking at the path."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from allocentric.readers.images import IMAGE_SUFFIXES, list_images, open_images
from allocentric.readers.rgbd import is_rgbd_folder, open_rgbd
from allocentric.readers.video import VideoFile, open_video
from allocentric.views import Views

__all__ = ["Source", "VideoFile", "is_rgbd_folder", "layout_of", "open_images", "open_rgbd", "open_video", "open_views"]

Source = str | PathLike | Sequence[str | PathLike]


def layout_of(path: Source) -> str:
    """"video", "images" or "rgbd": how `open_views` would read this path. ValueError when nothing fits."""
    if not isinstance(path, (str, PathLike)):
        return "images"
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        return "images" if path.suffix.lower() in IMAGE_SUFFIXES else "video"
    if is_rgbd_folder(path):
        return "rgbd"
    if list_images(path):
        return "images"
    raise ValueError(
        f"{path}: nothing to read in this folder; expected images ({', '.join(sorted(IMAGE_SUFFIXES))}) "
        "or a posed RGB-D capture (frame-NNNNNN.color.jpg, .depth.png, .pose.txt)"
    )


def open_views(
    path: Source, frames: int | Sequence[int] | None = None, max_side: int | None = None, **options
) -> Views:
    """The views at `path`: a video file, a folder or list of images, or a posed RGB-D folder.

    frames     None for all, a number for that many evenly spread over the source, or a list of frame numbers.
    max_side   shrink frames so that the longer side has at most this many pixels (videos and images).
    options    passed to the reader of the layout: see `open_video`, `open_images`, `open_rgbd`.
    """
    layout = layout_of(path)
    if layout == "video":
        return open_video(path, frames, max_side=max_side, **options)
    if layout == "images":
        return open_images(path, frames, max_side=max_side, **options)
    if max_side is not None:
        raise ValueError(f"{path}: max_side is for videos and images; an RGB-D capture is read at its own size")
    return open_rgbd(path, frames, **options)
