"""Vertices of PLY meshes, as far as scans need them."""

from os import PathLike
from pathlib import Path

import numpy as np
from jaxtyping import Float

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


def ply_vertices(path: str | PathLike) -> dict[str, Float[np.ndarray, " n"]]:
    """Every property of a PLY file's vertices by name ("x", "y", "z", "objectId", ...); faces are not read.

    Text and binary files of either byte order.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such mesh")
    with path.open("rb") as file:
        if file.readline().strip() != b"ply":
            raise ValueError(f"{path}: not a PLY file")
        kind, count, fields, at_vertices, before = "", -1, [], False, 0
        while (line := file.readline().split()) != [b"end_header"]:
            words = [word.decode("ascii", "replace") for word in line]
            if not words:
                if file.tell() == path.stat().st_size:
                    raise ValueError(f"{path}: not a PLY file (its header does not end)")
            elif words[0] == "format":
                kind = words[1]
            elif words[0] == "element":
                at_vertices = words[1] == "vertex"
                count = int(words[2]) if at_vertices else count
                before += count < 0
            elif words[0] == "property" and at_vertices:
                if words[1] not in _TYPES:
                    raise ValueError(f"{path}: vertex property of type {words[1]} is not read, expected plain numbers")
                fields.append((words[2], words[1]))
        if count < 0 or before or kind not in ("ascii", "binary_little_endian", "binary_big_endian"):
            raise ValueError(f"{path}: expected a PLY file whose first element is vertex, found format {kind or 'none'}")
        if kind == "ascii":
            rows = [file.readline().split() for _ in range(count)]
            if any(len(row) != len(fields) for row in rows):
                raise ValueError(f"{path}: truncated: {count} vertices of {len(fields)} numbers are announced")
            table = np.array(rows, dtype=np.float64).reshape(count, len(fields))
            return {name: table[:, i] for i, (name, _) in enumerate(fields)}
        order = "<" if kind == "binary_little_endian" else ">"
        layout = np.dtype([(name, order + _TYPES[kind_]) for name, kind_ in fields])
        data = file.read(count * layout.itemsize)
    if len(data) != count * layout.itemsize:
        raise ValueError(f"{path}: truncated: {count} vertices are announced, {len(data) // layout.itemsize} are there")
    table = np.frombuffer(data, dtype=layout)
    return {name: table[name].astype(np.float64) for name, _ in fields}


def ply_points(path: str | PathLike) -> Float[np.ndarray, "n 3"]:
    """Vertex positions of a PLY file."""
    vertices = ply_vertices(path)
    if not {"x", "y", "z"} <= vertices.keys():
        raise ValueError(f"{path}: expected vertices with x, y and z, found {', '.join(vertices)}")
    return np.stack([vertices["x"], vertices["y"], vertices["z"]], axis=1)
