"""Question types and benchmarks: one object each makes or reads examples, prompts, parses and scores."""

import numpy as np

from allocentric.scenes import AnnotatedScene
from allocentric.tasks.absolute_distance import AbsoluteDistance
from allocentric.tasks.appearance_order import AppearanceOrder
from allocentric.tasks.base import Benchmark, Question, Record, Task
from allocentric.tasks.counting import ObjectCounting
from allocentric.tasks.embspatial import EmbSpatial
from allocentric.tasks.inventory import Inventory
from allocentric.tasks.mindcube import MindCube
from allocentric.tasks.mmsi import MMSI
from allocentric.tasks.mmsi_video import MMSIVideo
from allocentric.tasks.multi3drefer import Multi3DRefer
from allocentric.tasks.object_position import ObjectPosition
from allocentric.tasks.object_size import ObjectSize
from allocentric.tasks.referit3d import Nr3D, Sr3D
from allocentric.tasks.relative_direction import RelativeDirection
from allocentric.tasks.relative_distance import RelativeDistance
from allocentric.tasks.room_size import RoomSize
from allocentric.tasks.route_planning import RoutePlanning
from allocentric.tasks.scan2cap import Scan2Cap
from allocentric.tasks.scanqa import ScanQA
from allocentric.tasks.scanrefer import ScanRefer
from allocentric.tasks.sitebench import SITEBench
from allocentric.tasks.sparbench import SPARBench
from allocentric.tasks.sqa3d import SQA3D
from allocentric.tasks.viewspatial import ViewSpatial
from allocentric.tasks.vsibench import VSIBench

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
TRAINING_TASKS: dict[str, Task] = VSI_TASKS | {task.name: task for task in (ObjectPosition(), Inventory())}

# Published benchmarks, read from their official files.
BENCHMARKS: dict[str, type[Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        VSIBench,
        ScanQA,
        SQA3D,
        ScanRefer,
        Nr3D,
        Sr3D,
        Multi3DRefer,
        Scan2Cap,
        SPARBench,
        MindCube,
        ViewSpatial,
        EmbSpatial,
        MMSI,
        MMSIVideo,
        SITEBench,
    )
}


def make_questions(scene: AnnotatedScene, rng: np.random.Generator, per_task: int = 1) -> list[Question]:
    """Up to `per_task` questions of each of the eight types."""
    return [question for task in VSI_TASKS.values() for question in task.make(scene, rng, per_task)]


__all__ = ["BENCHMARKS", "TRAINING_TASKS", "VSI_TASKS", "Benchmark", "Question", "Record", "Task", "make_questions"]
