"""Training questions about rooms, drawn anew each time a room is visited."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Task
from allocentric.tasks.notes import behind, blurred, notes
from allocentric.train.features import RoomFeatures
from allocentric.train.sft import Turn, pack
from allocentric.train.shards import random_generator


def draw_turns(
    scene: AnnotatedScene,
    tasks: Mapping[str, tuple[Task, float]],
    count: int,
    rng: np.random.Generator,
    think: bool = False,
    note_error: float = 0.0,
    bare: float = 0.0,
) -> list[Turn]:
    """At most `count` questions; tasks are drawn by weight among those that can ask something here.

    `think` puts notes before the answers, which the model is to write exactly but reads with an error (`tasks.notes.blurred`).
    `bare` is the share of questions put as a person types them, without the benchmark's words around them.
    """
    made = {name: (list(task.make(scene, rng, count)), weight) for name, (task, weight) in tasks.items()}
    turns: list[Turn] = []
    while len(turns) < count and (open_ := [(name, weight) for name, (questions, weight) in made.items() if questions]):
        weights = np.array([weight for _, weight in open_])
        name = open_[rng.choice(len(open_), p=weights / weights.sum())][0]
        question = made[name][0].pop()
        prompt = "\n".join([question.text, *question.options]) if rng.random() < bare else tasks[name][0].prompt(question)
        written = notes(scene, question) if think else ""
        if written:
            shown = blurred(written, rng, note_error) if note_error else written
            turns.append(Turn(prompt, behind(written, question.answer), behind(shown, question.answer)))
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
