"""Video files -> `Views`, through PyAV (its wheels bundle FFmpeg, so any codec FFmpeg decodes).

`VideoFile` is a lazy handle: opening it reads packet times only and decodes nothing, and `read` decodes one frame at a time,
so that memory does not grow with the length of the video.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from os import PathLike
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from allocentric.readers.choose import check_memory, chosen_frames, existing_frames, fit_within
from allocentric.views import Views, check_views

VP8_SHOW_FRAME = 0x10  # in the first byte of a packet


class VideoFile:
    """A video on disk: how many frames, when, how large, and the frames themselves when asked.

    Frames are numbered in the order they are shown. `times` are seconds from the first frame.
    `width` and `height` are those of the upright picture with square pixels: rotation metadata (phones) is applied, and where
    pixels are wider or narrower than high (anamorphic video) the stored picture is made as wide as it is shown.
    """

    def __init__(self, path: str | PathLike):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no such file")
        if self.path.is_dir():
            raise ValueError(f"{self.path}: expected a video file, found a folder")
        if self.path.stat().st_size == 0:
            raise ValueError(f"{self.path}: the file is empty")
        with self._open() as container:
            self._index(container)
        upright = next(self.read([0]))  # decodes one frame: the size after rotation, and an early error
        self.height, self.width = upright.shape[1:]

    def _open(self) -> av.container.InputContainer:
        try:
            container = av.open(str(self.path))
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path}: not a video that can be read, or it is truncated ({error.strerror})") from error
        if not self._video_streams(container):
            kinds = sorted({stream.type for stream in container.streams})
            container.close()
            raise ValueError(f"{self.path}: there is no video in this file, only {' and '.join(kinds) or 'an empty container'}")
        self._video_streams(container)[0].thread_type = "AUTO"
        return container

    @staticmethod
    def _video_streams(container: av.container.InputContainer) -> list:
        """Video streams that move: cover art of an audio file is a video stream of one picture."""
        return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]

    def _index(self, container: av.container.InputContainer) -> None:
        """Read the time stamp of every packet, decoding none."""
        stream = self._video_streams(container)[0]
        self.codec = stream.codec_context.name
        self._pixel_aspect = stream.sample_aspect_ratio or Fraction(1)  # width of a pixel by its height; 1 where the file is silent
        shown, left_out, keys, first_key, end_of_file = [], 0, [], None, 0.0
        # Whether every packet says when it is shown. AVI has no such field, and what FFmpeg guesses is wrong with B-frames.
        ordered = container.format.name != "avi"
        try:
            for packet in container.demux():
                if packet.size == 0:
                    continue
                if packet.pts is not None:
                    end_of_file = max(end_of_file, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream.index != stream.index:
                    continue
                if self.codec == "vp8" and not memoryview(packet)[0] & VP8_SHOW_FRAME:  # others are predicted from it, no more
                    continue
                if first_key is None and packet.is_keyframe:
                    first_key = packet.pts
                if packet.is_discard:  # decoded on the way to what is shown: the video was trimmed
                    left_out += 1
                    continue
                ordered &= packet.pts is not None
                shown.append(packet.pts if packet.pts is not None else len(shown))
                if packet.is_keyframe and packet.pts is not None:
                    keys.append(packet.pts)
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path}: truncated or damaged after {len(shown)} frames ({error.strerror})") from error
        if not shown:
            raise ValueError(f"{self.path}: the video has zero frames")
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        # A trimmed video (edit list) announces frames that it does not show. It is whole if what it shows lasts as long as it says,
        # up to one frame that its beginning cuts in two.
        lasts = float((max(shown) - min(shown)) * stream.time_base) + (2 / rate if rate else 0) if ordered else 0.0
        whole = stream.duration is not None and lasts >= 0.99 * stream.duration * stream.time_base
        if stream.frames and len(shown) + left_out < 0.99 * stream.frames and not whole:
            raise ValueError(f"{self.path}: truncated: {stream.frames} frames are announced, {len(shown)} are there")
        if container.duration is not None and end_of_file > 0:
            announced = container.duration / av.time_base + max(0, (container.start_time or 0) / av.time_base)
            if end_of_file < 0.95 * announced - 1.0:
                raise ValueError(f"{self.path}: truncated: {announced:.1f} s are announced, {end_of_file:.1f} s are there")

        # A stream cut where a group of pictures leans on the one before it (open GOP) starts with pictures that cannot be decoded,
        # shown before its first key frame. Decoders give none of them and no error: the video is what they do give.
        if ordered and first_key is not None and min(shown) < first_key:
            with self._open() as beginning:
                first = self._reach(enumerate(self._frames(beginning)), 0).pts
            if first is not None and first <= first_key:
                shown = [pts for pts in shown if pts >= first]

        # Raw streams and AVI give no presentation times: they are read from the start, frames counted as the decoder shows them.
        self._pts = sorted(set(shown)) if ordered else None
        self._number = {pts: i for i, pts in enumerate(self._pts)} if ordered else {}
        self._keys = sorted(keys)
        self.num_frames = len(self._pts) if ordered else len(shown)
        if ordered:
            self.times = (np.array(self._pts) - self._pts[0]) * float(stream.time_base)
        else:
            self.times = np.arange(self.num_frames) / (rate or 25.0)
        spacing = float(np.median(np.diff(self.times))) if self.num_frames > 1 else 0.0
        self.fps = rate or (1.0 / spacing if spacing else 0.0)
        self.duration = float(self.times[-1]) + (spacing or (1.0 / self.fps if self.fps else 0.0))

    def __len__(self) -> int:
        return self.num_frames

    def __repr__(self) -> str:
        return (
            f"VideoFile({self.path.name!r}, {self.num_frames} frames, {self.width}x{self.height}, "
            f"{self.fps:.3g} fps, {self.duration:.1f} s, {self.codec})"
        )

    def indices_at(self, times: Sequence[float | int]) -> list[int]:
        """The frames shown at these times, in seconds: the last frame that starts at or before each."""
        for time in times:
            if not 0 <= time <= self.duration:
                raise ValueError(f"{self.path}: {time} s is outside the video, which lasts {self.duration:.3f} s")
        # A thousandth of a second of slack: 0.1 s is meant to name the frame that starts at 0.1000 s.
        return [max(0, int(np.searchsorted(self.times, t + 1e-3, side="right")) - 1) for t in times]

    def read(self, indices: Sequence[int], max_side: int | None = None) -> Iterator[UInt8[Tensor, "3 h w"]]:
        """Frames by number, one at a time. Ascending order is fastest and keeps a single frame in memory.

        Skips ahead to the last key frame before the next wanted frame, and decodes from there.
        """
        wanted = existing_frames(indices, self.num_frames, str(self.path))
        if any(b < a for a, b in pairwise(wanted)):
            order = {i: row for row, i in enumerate(sorted(set(wanted)))}
            ascending = list(self.read(list(order), max_side))
            yield from (ascending[order[i]] for i in wanted)
            return
        with self._open() as container:
            last, image = None, None
            decoded = self._decode(container, 0)
            position = -1  # frames up to this one are decoded
            for i in wanted:
                if i != last:
                    if self._key_before(i) > position + 1:
                        decoded = self._decode(container, self._key_before(i))
                    image, last, position = _upright_rgb(self._reach(decoded, i), self._pixel_aspect, max_side), i, i
                yield image

    def _reach(self, decoded: Iterator[tuple[int, av.VideoFrame]], i: int) -> av.VideoFrame:
        """Frame `i` among (frame number, frame), or an error that names it."""
        try:
            position, frame = next((found for found in decoded if found[0] >= i), (None, None))
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path}: frame {i} cannot be decoded ({error.strerror}); truncated or damaged?") from error
        if frame is None:
            raise ValueError(f"{self.path}: frame {i} cannot be decoded: the video ends before it (truncated?)")
        if position != i:
            raise ValueError(f"{self.path}: frame {i} cannot be decoded (damaged?)")
        if frame.is_corrupt:
            raise ValueError(f"{self.path}: frame {i} is damaged")
        return frame

    def _key_before(self, index: int) -> int:
        """Number of the last key frame at or before this frame; 0 when the file has to be read from its start."""
        if self._pts is None:
            return 0
        k = bisect_right(self._keys, self._pts[index]) - 1
        return bisect_right(self._pts, self._keys[k]) - 1 if k >= 0 else 0

    def _decode(self, container: av.container.InputContainer, start: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """(frame number, frame) from key frame `start` on, or from the start of the file where the container cannot seek there."""
        if start > 0:
            container.seek(self._pts[start], stream=self._video_streams(container)[0])
            landed = None
            for frame in self._frames(container):
                i = self._number.get(frame.pts, -1)
                landed = i if landed is None else landed
                if landed > start:
                    break
                yield i, frame
            if landed is not None and landed <= start:
                return
        with self._open() as fresh:
            for i, frame in enumerate(self._frames(fresh)):
                yield (i if self._pts is None else self._number.get(frame.pts, -1)), frame

    def _frames(self, container: av.container.InputContainer) -> Iterator[av.VideoFrame]:
        try:
            yield from container.decode(self._video_streams(container)[0])
        except av.error.EOFError:
            return

    def frames_at(self, indices: Sequence[int], max_side: int | None = None) -> UInt8[Tensor, "t 3 h w"]:
        """Frames by number, stacked, in the order asked for."""
        indices = [int(i) for i in indices]
        width, height = fit_within(self.width, self.height, max_side)
        check_memory(len(indices), width, height, str(self.path))
        stack = torch.empty((len(indices), 3, height, width), dtype=torch.uint8)
        for row, image in enumerate(self.read(indices, max_side)):
            if image.shape != stack.shape[1:]:
                raise ValueError(
                    f"{self.path}: frame {indices[row]} is {image.shape[2]}x{image.shape[1]}, "
                    f"the first frame {width}x{height}; the picture size must not change"
                )
            stack[row] = image
        return stack

    def views(self, indices: Sequence[int], max_side: int | None = None) -> Views:
        """`Views` of these frames, in time order and with their times."""
        indices = sorted(int(i) for i in indices)
        frames = self.frames_at(indices, max_side)
        times = torch.from_numpy(self.times[indices])
        return Views(frames=frames, times=times, indices=torch.tensor(indices), source=str(self.path))


def _upright_rgb(frame: av.VideoFrame, pixel_aspect: Fraction, max_side: int | None) -> UInt8[Tensor, "3 h w"]:
    width, height = fit_within(max(1, round(frame.width * pixel_aspect)), frame.height, max_side)
    if (width, height) != (frame.width, frame.height):
        frame_rgb = frame.reformat(width, height, "rgb24", interpolation="AREA")
    else:
        frame_rgb = frame.reformat(format="rgb24")
    image = frame_rgb.to_ndarray()
    matrix = next((s for s in frame.side_data if s.type == av.sidedata.sidedata.Type.DISPLAYMATRIX), None)
    if matrix is not None:
        image = _apply_display_matrix(image, np.frombuffer(bytes(matrix), dtype="<i4", count=9))
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _apply_display_matrix(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Quarter turns and mirrorings of FFmpeg's display matrix (a b u / c d v / x y w): x' = a x + c y, y' = b x + d y."""
    a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
    if abs(a) >= abs(b):
        flip_x, flip_y = a < 0, d < 0
    else:
        image = image.swapaxes(0, 1)
        flip_x, flip_y = c < 0, b < 0
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def open_video(
    path: str | PathLike,
    frames: int | Sequence[int] | None = None,
    times: Sequence[float | int] | None = None,
    max_side: int | None = None,
) -> Views:
    """Views from a video: all frames, `frames` evenly spread, frames by number, or the frames shown at `times` (seconds)."""
    video = VideoFile(path)
    if times is not None:
        if frames is not None:
            raise ValueError(f"{path}: give frames or times, not both")
        return check_views(video.views(video.indices_at(times), max_side))
    return check_views(video.views(chosen_frames(frames, video.num_frames, str(path)), max_side))
