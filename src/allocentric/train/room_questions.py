"""Training questions about rooms, drawn anew each time a room is visited."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from allocentric.answer import END_THINK, THINK
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Task
from allocentric.tasks.notes import behind, blurred, notes, workings
from allocentric.train.features import RoomFeatures
from allocentric.train.sft import Turn, pack
from allocentric.train.shards import RoomShards, mirror_scene, random_generator


def draw_turns(
    scene: AnnotatedScene,
    tasks: Mapping[str, tuple[Task, float]],
    count: int,
    rng: np.random.Generator,
    think: bool = False,
    note_error: float = 0.0,
    bare: float = 0.0,
    given: bool = False,
) -> list[Turn]:
    """At most `count` questions; tasks are drawn by weight among those that can ask something here.

    think       puts notes before the answers, which the model is to write exactly but reads with an error (`tasks.notes.blurred`);
                what follows from them is worked out from what it reads.
    bare        share of questions put as a person types them, without the benchmark's words around them.
    given       notes are not to be learned, only what follows from them.
    """
    made = {name: (list(task.make(scene, rng, count)), weight) for name, (task, weight) in tasks.items()}
    turns: list[Turn] = []
    while len(turns) < count and (open_ := [(name, weight) for name, (questions, weight) in made.items() if questions]):
        weights = np.array([weight for _, weight in open_])
        name = open_[rng.choice(len(open_), p=weights / weights.sum())][0]
        question = made[name][0].pop(0)  # what a task draws first it asks most often
        prompt = "\n".join([question.text, *question.options]) if rng.random() < bare else tasks[name][0].prompt(question)
        written = notes(scene, question) if think else ""
        if written:
            shown = blurred(written, rng, note_error) if note_error else written
            worked = workings(scene, question, shown)
            answers = (behind(text, worked, question.answer) for text in (written, shown))
            turns.append(Turn(prompt, *answers, f"{THINK}{shown}{END_THINK if not worked else ''}" if given else ""))
        else:
            turns.append(Turn(prompt, question.answer))
    return turns


class RoomQuestions(Dataset):
    """Packed sequences about rooms whose features are cached.

    `see` is which parts of the features the model gets: ("2d", "3d"), ("2d",), or () for a model that is asked blind.
    """

    def __init__(
        self,
        features: RoomFeatures,
        processor: SpatialMLLMProcessor,
        tasks: Mapping[str, tuple[Task, float]],
        questions: int,
        grid: tuple[int, int, int],
        see: tuple[str, ...],
        think: bool = False,
        note_error: float = 0.0,
        bare: float = 0.0,
    ):
        self.features, self.processor = features, processor
        self.tasks, self.questions = tasks, questions
        self.grid, self.see = grid, see
        self.wording = {"think": think, "note_error": note_error, "bare": bare}

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene, features = self.features[index]
        turns = draw_turns(scene, self.tasks, self.questions, random_generator(), **self.wording)
        seen = [len(features["2d"])] if self.see else []
        example = pack(self.processor, seen, turns)
        if self.see:
            example["video_grid_thw"] = torch.tensor([self.grid])
        for part in self.see:
            example[f"video_features_{part}"] = features[part]
        return example


class Reckoning(Dataset):
    """Packed questions about rooms that nobody sees: notes are given, what follows from them is learned.

    Every room is entered at a random place and heading, and seen in a mirror half of the time, so that there are ever new places.
    """

    def __init__(
        self,
        shards: RoomShards,
        processor: SpatialMLLMProcessor,
        tasks: Mapping[str, tuple[Task, float]],
        questions: int,
        note_error: float = 0.0,
        bare: float = 0.0,
    ):
        self.shards, self.processor = shards, processor
        self.tasks, self.questions = tasks, questions
        self.wording = {"think": True, "note_error": note_error, "bare": bare, "given": True}

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random_generator()
        scene = self.shards[index].scene
        scene = entered(mirror_scene(scene) if rng.random() < 0.5 else scene, rng)
        return pack(self.processor, [], draw_turns(scene, self.tasks, self.questions, rng, **self.wording))


def entered(scene: AnnotatedScene, rng: np.random.Generator) -> AnnotatedScene:
    """The scene as if its first camera stood up to 2 m elsewhere and looked another way."""
    poses = scene.camera_to_world.copy()
    turn = rng.uniform(0.0, 2 * np.pi)
    around = np.array([[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0], [0.0, 0.0, 1.0]])
    poses[0, :3, :3] = around @ poses[0, :3, :3]
    poses[0, :2, 3] += rng.uniform(-2.0, 2.0, size=2)
    return replace(scene, camera_to_world=poses)
