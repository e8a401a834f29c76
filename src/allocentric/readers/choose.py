"""Which frames a caller asked for, as frame numbers, at which size, and whether they fit into memory."""

from collections.abc import Sequence

from allocentric.views import uniform_indices

MAX_BYTES = 8 << 30  # what a reader is willing to hold in memory


def chosen_frames(frames: int | Sequence[int] | None, total: int, source: str) -> list[int]:
    """None -> all of them, n -> n evenly spread, a sequence -> itself in ascending order, for `Views` are in time order."""
    if total == 0:
        raise ValueError(f"{source}: there are no frames")
    if frames is None:
        return list(range(total))
    if isinstance(frames, int):
        if frames < 1:
            raise ValueError(f"{source}: expected frames >= 1, found {frames}")
        return uniform_indices(total, frames)
    return sorted(existing_frames(frames, total, source))


def existing_frames(frames: Sequence[int], total: int, source: str) -> list[int]:
    """Frame numbers in the order given, once checked against the `total` there are."""
    indices = [int(i) for i in frames]
    if not indices:
        raise ValueError(f"{source}: the list of frames is empty")
    for i in indices:
        if not 0 <= i < total:
            raise ValueError(f"{source}: frame {i} does not exist, frames are 0 .. {total - 1}")
    return indices


def fit_within(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """(width, height) shrunk, never grown, so that the longer side is at most `max_side`."""
    if max_side is None or max(width, height) <= max_side:
        return width, height
    scale = max_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def check_memory(count: int, width: int, height: int, source: str, depth: bool = False, smaller: bool = True) -> None:
    """ValueError where so many frames, and depth of their size, are more than `MAX_BYTES`; asked before room is made for them.

    smaller   whether the reader takes max_side.
    """
    size = count * width * height * (7 if depth else 3)  # RGB, a byte each; depth, a float32
    if size > MAX_BYTES:
        raise ValueError(
            f"{source}: found {count} frames of {width}x{height}{' with depth' if depth else ''}, {size / 2**30:.1f} GiB, "
            f"expected at most {MAX_BYTES / 2**30:.0f} GiB; "
            f"ask for fewer (frames=16){' or smaller ones (max_side=640)' if smaller else ''}"
        )
