"""Question types: one object per type makes examples, prompts, parses and scores."""

import numpy as np

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.absolute_distance import AbsoluteDistance
from allocentric.tasks.appearance_order import AppearanceOrder
from allocentric.tasks.base import Question, Task
from allocentric.tasks.counting import ObjectCounting
from allocentric.tasks.object_position import ObjectPosition
from allocentric.tasks.object_size import ObjectSize
from allocentric.tasks.relative_direction import RelativeDirection
from allocentric.tasks.relative_distance import RelativeDistance
from allocentric.tasks.room_size import RoomSize
from allocentric.tasks.route_planning import RoutePlanning

# The eight question types of VSI-Bench, in the order in which it reports them.
VSI_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        ObjectCounting(),
        AbsoluteDistance(),
        ObjectSize(),
        RoomSize(),
        RelativeDistance(),
        RelativeDirection(),
        RoutePlanning(),
        AppearanceOrder(),
    )
}

# What models are trained on: also the question types that no benchmark asks.
TRAINING_TASKS: dict[str, Task] = VSI_TASKS | {task.name: task for task in (ObjectPosition(),)}


def make_questions(scene: AnnotatedScene, rng: np.random.Generator, per_task: int = 1) -> list[Question]:
    """Up to `per_task` questions of each of the eight types."""
    return [question for task in VSI_TASKS.values() for question in task.make(scene, rng, per_task)]


__all__ = ["TRAINING_TASKS", "VSI_TASKS", "Question", "Task", "make_questions"]
