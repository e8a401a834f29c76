"""Which frames a caller asked for, as frame numbers."""

from collections.abc import Sequence

from allocentric.views import uniform_indices


def chosen_frames(frames: int | Sequence[int] | None, total: int, source: str) -> list[int]:
    """None -> all of them, n -> n evenly spread, a sequence -> itself once checked against the `total` there are."""
    if total == 0:
        raise ValueError(f"{source}: there are no frames")
    if frames is None:
        return list(range(total))
    if isinstance(frames, int):
        if frames < 1:
            raise ValueError(f"{source}: expected frames >= 1, found {frames}")
        return uniform_indices(total, frames)
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
