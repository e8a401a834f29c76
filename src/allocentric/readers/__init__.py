"""Readers: what is on disk -> `Views`, and where it is annotated -> `AnnotatedScene`. One file per layout.

`open_views` and `open_scene` decide by looking at the path.
"""

from collections.abc import Sequence
from os import PathLike

from allocentric.readers.annotated import open_scene, open_scenes, with_visibility
from allocentric.readers.faults import check_options, named
from allocentric.readers.images import open_images
from allocentric.readers.layouts import READERS, Source, count_frames, layout_of
from allocentric.readers.rgbd import is_rgbd_folder, open_rgbd
from allocentric.readers.video import VideoFile, open_video
from allocentric.views import Views

__all__ = [
    "Source",
    "VideoFile",
    "count_frames",
    "is_rgbd_folder",
    "layout_of",
    "open_images",
    "open_rgbd",
    "open_scene",
    "open_scenes",
    "open_video",
    "open_views",
    "with_visibility",
]


def open_views(
    path: Source, frames: int | Sequence[int] | None = None, max_side: int | None = None, **options
) -> Views:
    """The views at `path`: a video, a folder or list of images, or a posed capture in one of the layouts of `layout_of`.

    frames     None for all, a number for that many evenly spread over the source, or a list of positions in it (of posed captures:
               among the frames whose pose can be used), given back in time order whatever the order of the list.
    max_side   shrink frames so that the longer side has at most this many pixels.
    options    passed to the reader of the layout: see `open_video`, `open_images`, `open_rgbd`, `open_scannet`, ...
    """
    layout = layout_of(path)
    if layout == "rgbd" and max_side is not None:
        raise ValueError(f"{path}: max_side is for videos and images; an RGB-D capture is read at its own size")
    sized = {} if layout == "rgbd" else {"max_side": max_side}
    check_options(READERS[layout], options, path)
    if not isinstance(path, (str, PathLike)):
        return READERS[layout](path, frames, **sized, **options)
    with named(path):
        return READERS[layout](path, frames, **sized, **options)
