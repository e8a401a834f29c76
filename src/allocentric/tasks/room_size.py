"""Room size: the floor area in square metres, of all rooms together."""

import numpy as np

from allocentric.geometry.floor import polygon_area
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.vsibench import VSITask

TEXT = "What is the size of this room (in square meters)? \nIf multiple rooms are shown, estimate the size of the combined space."


class RoomSize(VSITask):
    """One question, where the floor is known."""

    name = "room_size_estimation"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        area = floor_area(scene)
        if area is None or float(f"{area:.1f}") == 0 or limit < 1:  # no answer is near a truth of 0
            return []
        return [Question(self.name, scene.name, TEXT, (), f"{area:.1f}")]


def floor_area(scene: AnnotatedScene) -> float | None:
    """Square metres of floor; None when neither the area nor the outline is known."""
    if scene.room_area is not None:
        return scene.room_area
    return sum(polygon_area(polygon) for polygon in scene.floor) if scene.floor else None
