"""Files and folders that are there whole, or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there completely or, when interrupted, as it was before."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name, and the place of what had it, once all is in it."""
    partial = part_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    put(partial, folder)


def part_of(folder: Path) -> Path:
    """Where a folder is filled."""
    return folder.with_name(folder.name + ".part")


def put(partial: Path, folder: Path) -> None:
    """Give a filled folder its name."""
    if folder.exists():
        shutil.rmtree(folder)
    partial.replace(folder)
