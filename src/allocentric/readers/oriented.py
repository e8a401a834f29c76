"""Oriented boxes as data sets file them -> upright `Box3D`, and objects that keep both."""

import numpy as np
from jaxtyping import Float

from allocentric.geometry.boxes import Box3D, OrientedBox
from allocentric.scenes import SceneObject

Numbers = list | tuple | np.ndarray


def oriented_object(number: int, label: str, center: Numbers, lengths: Numbers, axes: Numbers, where: str) -> SceneObject:
    """An object with its box as filed (`axes` as in `upright_box`), and the upright one of it."""
    box = upright_box(center, lengths, axes, label, where)
    rows = np.asarray(axes, dtype=np.float64).reshape(3, 3).tolist()
    size = tuple(np.asarray(lengths, dtype=np.float64).ravel().tolist())
    return SceneObject(number, label, box, OrientedBox(box.center, size, tuple(map(tuple, rows))))


def upright_box(
    center: Numbers, lengths: Numbers, axes: Numbers, label: str, where: str, to_world: Float[np.ndarray, "4 4"] | None = None
) -> Box3D:
    """The upright box of an oriented one: the axis nearest to the vertical becomes z, the longer other axis gives yaw.

    axes       3x3 or 9 numbers: the first three are the direction of the first side ("normalizedAxes" of ARKitScenes, ScanNet++,
               3RScan and VSI-Bench).
    to_world   rigid motion applied first.

    Side lengths stay those of the box; a tilt (a few degrees in hand-made annotations) is dropped.
    """
    try:
        center, lengths = np.asarray(center, dtype=np.float64).reshape(3), np.asarray(lengths, dtype=np.float64).reshape(3)
        rows = np.asarray(axes, dtype=np.float64).reshape(3, 3)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: box of {label!r}: expected 3 centre, 3 length and 9 axis numbers ({error})") from error
    if not (np.isfinite(center).all() and np.isfinite(lengths).all() and np.isfinite(rows).all()) or (lengths < 0).any():
        raise ValueError(f"{where}: box of {label!r}: expected finite numbers and lengths that are not negative")
    if np.abs(rows @ rows.T - np.eye(3)).max() > 0.01:
        raise ValueError(f"{where}: box of {label!r}: its axes are not orthonormal: {rows.tolist()}")
    if to_world is not None:
        center, rows = to_world[:3, :3] @ center + to_world[:3, 3], rows @ to_world[:3, :3].T
    up = int(np.abs(rows[:, 2]).argmax())
    first, second = (i for i in range(3) if i != up)
    if rows[first, :2] @ rows[first, :2] < rows[second, :2] @ rows[second, :2]:
        first, second = second, first  # the more level of the two says where the box points
    yaw = float(np.arctan2(rows[first, 1], rows[first, 0]))
    return Box3D(tuple(center.tolist()), (float(lengths[first]), float(lengths[second]), float(lengths[up])), yaw, label)
