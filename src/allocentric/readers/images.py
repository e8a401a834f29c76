"""Images on disk -> `Views`: a folder, one file, or a list of files."""

import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from allocentric.readers.choose import check_memory, chosen_frames, fit_within
from allocentric.views import Views, check_views

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"}


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", name.lower())
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts if part]


def list_images(folder: str | PathLike) -> list[Path]:
    """The images in a folder (not in folders below it, nor hidden files), in natural order of their names."""
    found = (p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=lambda p: natural_key(p.name))


def read_image(path: str | PathLike, max_side: int | None = None) -> UInt8[Tensor, "3 h w"]:
    """One picture as RGB, turned upright as its EXIF orientation says; transparency is laid on white."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        raise ValueError(f"{path}: expected an RGB image, found one {image.mode} channel (a depth map?)")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    image = image.convert("RGB")
    size = fit_within(*image.size, max_side)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def read_images(files: Sequence[Path], source: str, max_side: int | None = None) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """Pictures of one size, one at a time; one that differs from the first is an error that names both."""
    first = None
    for file in files:
        image = read_image(file, max_side)
        first = image.shape if first is None else first
        if image.shape != first:
            sizes = [f"{f.name} is {shape[2]}x{shape[1]}" for f, shape in ((files[0], first), (file, image.shape))]
            raise ValueError(f"{source}: images must have one size; {sizes[0]}, {sizes[1]}")
        yield image


def open_images(
    path: str | PathLike | Sequence[str | PathLike],
    frames: int | Sequence[int] | None = None,
    max_side: int | None = None,
) -> Views:
    """Views from a folder of images (natural order), one image, or a list of images (order kept). All of one size.

    Images carry no times; their order stands for it. `indices` are positions in the folder or list.
    """
    if isinstance(path, (str, PathLike)):
        source, path = str(path), Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        files = list_images(path) if path.is_dir() else [path]
    else:
        files = [Path(p) for p in path]
        source = f"list of {len(files)} images"
    if not files:
        raise ValueError(f"{source}: there are no images ({', '.join(sorted(IMAGE_SUFFIXES))})")

    indices = chosen_frames(frames, len(files), source)
    for row, image in enumerate(read_images([files[i] for i in indices], source, max_side)):
        if row == 0:
            check_memory(len(indices), image.shape[2], image.shape[1], source)
            stack = torch.empty((len(indices), *image.shape), dtype=torch.uint8)
        stack[row] = image
    return check_views(Views(frames=stack, indices=torch.tensor(indices), source=source))
