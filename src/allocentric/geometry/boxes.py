"""3D boxes: `Box3D` and the functions on them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Box3D:
    """An upright box in world metres: centre, full side lengths along its own axes, rotation about z (up).

    `yaw` is in radians, counter-clockwise seen from above. `score` is a confidence in [0, 1] where one is known.
    """

    center: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float = 0.0
    label: str = ""
    score: float | None = None
