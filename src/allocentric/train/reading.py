"""The language model learns to read visual tokens before there are any: tokens made from the annotation alone.

What `train.naming` has the projections say can be said without them, exactly and of any room entered anywhere. Finding the tokens
that show a thing, and turning what they say back into words, takes a language model from nothing thousands of steps, however good
the tokens are. With tokens that are right it takes a third of the time, and no video has to be encoded.
Fine-tuning on rooms that are seen goes on with such rooms between them (`run.fine_tune`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import Dataset

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.tasks.base import Task
from allocentric.train.naming import VisualWords, token_places
from allocentric.train.room_questions import draw_turns, entered
from allocentric.train.semantics import token_categories
from allocentric.train.sft import SFTTrainer, pack
from allocentric.train.shards import RoomShards, mirror, random_generator


class ToldRooms(Dataset):
    """Packed questions about rooms whose visual tokens (`told`) say what they show, where from a random place and heading.

    words   what tokens can say; `noise` blurs it, and each token's places are off by `place_error` metres, as what projections say
            will be: who reads several tokens of one thing knows better.
    """

    def __init__(
        self,
        shards: RoomShards,
        processor: SpatialMLLMProcessor,
        tasks: Mapping[str, tuple[Task, float]],
        questions: int,
        grid: tuple[int, int, int],
        words: VisualWords,
        labels: Sequence[str],
        noise: float,
        place_error: float,
        **wording,
    ):
        self.shards, self.processor = shards, processor
        self.tasks, self.questions, self.grid = tasks, questions, grid
        self.words, self.labels, self.wording = words, labels, wording
        self.noise, self.place_error = noise, place_error

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng, sample = random_generator(), self.shards[index]
        if rng.random() < 0.5:
            sample = mirror(sample)
        sample = replace(sample, scene=entered(sample.scene, rng))
        cell = self.processor.video_processor.patch_size * self.processor.video_processor.merge_size
        places = torch.from_numpy(token_places(sample, cell))
        places = places + self.place_error * torch.randn_like(places)
        told = self.words.say(torch.from_numpy(token_categories(sample, self.labels, cell)), places, self.noise)
        turns = draw_turns(sample.scene, self.tasks, self.questions, rng, **self.wording)
        return pack(self.processor, [len(told)], turns) | {"told": told, "video_grid_thw": torch.tensor([self.grid])}


class ReadingTrainer(SFTTrainer):
    """Supervised fine-tuning on `ToldRooms` and on rooms that are seen; a batch holds rooms of one kind."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "told" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        if seen := [name for name in inputs if name.startswith("video_features")]:
            raise ValueError(f"a batch of rooms that are told: found {seen} too, expected one kind only (batch_size: 1)")
        backbone = self.accelerator.unwrap_model(model).model
        inputs["mm_encoder_outputs"] = {"video": backbone.per_row(inputs.pop("told"), inputs["video_grid_thw"])}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
