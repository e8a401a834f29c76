"""ScanNet's `.sens` recordings, frame by frame: opening one reads headers only, and pictures are read when asked for.

Little-endian, version 4: u32 version; u64 length and bytes of the sensor's name; four f32 4x4 matrices (intrinsics and
extrinsics of colour, then of depth); i32 colour and depth compression; u32 width and height of colour, then of depth; f32 depth
units per metre; u64 number of frames. Each frame: f32 4x4 camera_to_world, u64 time stamps of colour and depth, u64 sizes of both,
both payloads. What follows (inertial measurements) is not read.
"""

import os
import struct
import zlib
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from allocentric.readers.posed import decode_image

COLOR = {0: "raw", 1: "png", 2: "jpeg"}
DEPTH = {0: "raw_ushort", 1: "zlib_ushort", 2: "occi_ushort"}
_FRAME = struct.Struct("<16fQQQQ")


class SensFile:
    """A `.sens` file: cameras and the place of every frame, without the pictures.

    intrinsic_color, intrinsic_depth   float64 (4, 4), pixels.
    camera_to_world                    float64 (n, 4, 4); -inf where tracking was lost.
    times                              float64 (n,), colour time stamps as filed.
    """

    def __init__(self, path: str | PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        with self.path.open("rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            (version,) = self._unpack(file, "<I", "the version")
            if version != 4:
                raise ValueError(f"{self.path}: expected a .sens file of version 4, found version {version}")
            (length,) = self._unpack(file, "<Q", "the header")
            if length > 4096:
                raise ValueError(f"{self.path}: not a .sens file (a sensor name of {length} bytes)")
            self.sensor = self._read(file, length, "the header").decode("utf-8", "replace")
            matrices = np.frombuffer(self._read(file, 256, "the header"), dtype="<f4").reshape(4, 4, 4).astype(np.float64)
            self.intrinsic_color, _, self.intrinsic_depth, _ = matrices
            color, depth = self._unpack(file, "<ii", "the header")
            self.color_width, self.color_height, self.depth_width, self.depth_height = self._unpack(file, "<4I", "the header")
            self.depth_scale, count = self._unpack(file, "<fQ", "the header")
            if color not in COLOR or depth not in DEPTH:
                raise ValueError(f"{self.path}: colour compression {color} and depth compression {depth} are not known")
            self.color_compression, self.depth_compression = COLOR[color], DEPTH[depth]
            if self.depth_compression == "occi_ushort":
                raise ValueError(f"{self.path}: depth is compressed as occi_ushort, expected zlib_ushort or raw_ushort")
            if not self.depth_scale > 0:
                raise ValueError(f"{self.path}: expected positive depth units per metre, found {self.depth_scale}")
            if count == 0:
                raise ValueError(f"{self.path}: the recording has no frames")
            if count > self._size // _FRAME.size:
                raise ValueError(f"{self.path}: truncated: {count} frames are announced, {self._size} bytes are there")
            poses, times, self._places = [], [], []
            for i in range(count):
                *pose, color_time, _, color_bytes, depth_bytes = self._unpack(file, _FRAME, f"frame {i} of {count}")
                start = file.tell()
                if start + color_bytes + depth_bytes > self._size:
                    raise ValueError(f"{self.path}: truncated: frame {i} of {count} ends beyond the file")
                poses.append(pose)
                times.append(color_time)
                self._places.append((start, color_bytes, depth_bytes))
                file.seek(color_bytes + depth_bytes, os.SEEK_CUR)
        self.camera_to_world = np.array(poses, dtype=np.float64).reshape(-1, 4, 4)
        self.times = np.array(times, dtype=np.float64)

    def __len__(self) -> int:
        return len(self._places)

    def color(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """The colour picture of a frame."""
        start, size, _ = self._places[index]
        data, name = self._at(start, size), f"{self.path}: colour of frame {index}"
        if self.color_compression != "raw":
            return decode_image(data, name)
        if len(data) != self.color_width * self.color_height * 3:
            raise ValueError(f"{name}: expected {self.color_width}x{self.color_height} RGB, found {len(data)} bytes")
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(self.color_height, self.color_width, 3)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def depth(self, index: int) -> Float[Tensor, "h w"]:
        """Depth of a frame in metres, 0 where nothing was measured."""
        start, before, size = self._places[index]
        data, name = self._at(start + before, size), f"{self.path}: depth of frame {index}"
        if self.depth_compression == "zlib_ushort":
            try:
                data = zlib.decompress(data)
            except zlib.error as error:
                raise ValueError(f"{name}: cannot be decompressed ({error})") from error
        if len(data) != 2 * self.depth_width * self.depth_height:
            raise ValueError(f"{name}: expected {self.depth_width}x{self.depth_height} 16-bit values, found {len(data)} bytes")
        raw = np.frombuffer(data, dtype="<u2").reshape(self.depth_height, self.depth_width).astype(np.float64)
        raw[raw == 65535] = 0
        return torch.from_numpy((raw / self.depth_scale).astype(np.float32))

    def _at(self, start: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(start)
            return self._read(file, size, "a picture")

    def _read(self, file, size: int, what: str) -> bytes:
        data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{self.path}: truncated in {what}")
        return data

    def _unpack(self, file, layout: str | struct.Struct, what: str) -> tuple:
        layout = struct.Struct(layout) if isinstance(layout, str) else layout
        return layout.unpack(self._read(file, layout.size, what))
