"""What can be asked: a model that sees, the same model blind, and baselines that know nothing but the questions."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize
from transformers import PreTrainedModel

from allocentric.answer import Answer
from allocentric.evaluate.run import Reply, Responder
from allocentric.model import Model
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene
from allocentric.readers import open_views
from allocentric.sampling import CANDIDATES, points_from_depth, points_from_vggt, space_aware
from allocentric.tasks.base import Question
from allocentric.views import Views

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")


class Seeing(Responder):
    """A model that is shown the scene: encoded once, asked everything there is to ask about it.

    sources   where the video of each scene lies (`find_sources`); not needed for questions that bring their images.
    frames    how many frames of a video the model gets, evenly spread ("uniform": frame numbers linspace(0, last, frames), rounded
              down), or those of `candidates` evenly spread ones that together show most of the place ("space_aware").
    """

    def __init__(
        self,
        model: Model,
        sources: dict[str, Path],
        frames: int = 16,
        sampling: Literal["uniform", "space_aware"] = "uniform",
        candidates: int = CANDIDATES,
        max_new_tokens: int = 128,
    ):
        self.model, self.sources = model, sources
        self.frames, self.sampling, self.candidates = frames, sampling, candidates
        self.max_new_tokens = max_new_tokens

    def see(self, questions: Sequence[Question]) -> Views:
        if questions[0].images:
            return as_video([open_views(Path(file)) for file in questions[0].images])
        count = self.frames if self.sampling == "uniform" else max(self.candidates, self.frames)
        return open_views(self.sources[questions[0].scene], count)

    def reply(self, seen: Views, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        if self.sampling == "space_aware" and not questions[0].images and len(seen) > self.frames:
            seen = seen.select(list(self._cover(seen)))
        scene = self.model.watch(seen)
        return replies(scene.ask(list(prompts), self.max_new_tokens))

    def _cover(self, views: Views) -> tuple[int, ...]:
        if views.depth is not None and views.intrinsics is not None and views.camera_to_world is not None:
            points, mask = points_from_depth(views)
            return space_aware(points, self.frames, mask=mask, times=views.times).indices
        if self.model.geometry is None:
            raise ValueError(f"{views.source}: space-aware sampling needs 3D points: give --geometry, or sample uniformly")
        points, confidence = points_from_vggt(self.model.geometry, views, width=self.model.geometry_width)
        return space_aware(points, self.frames, confidence, times=views.times).indices


class Blind(Responder):
    """The same model, shown nothing: what the wording of the questions gives away."""

    def __init__(self, network: PreTrainedModel, processor: SpatialMLLMProcessor, max_new_tokens: int = 128):
        self.scene, self.max_new_tokens = blind_scene(network, processor), max_new_tokens

    def reply(self, seen: None, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        return replies(self.scene.ask(list(prompts), self.max_new_tokens))


class Chance(Responder):
    """A random option, the same one every time; nothing where there are no options."""

    def reply(self, seen: None, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        return [Reply(random_option(question)) for question in questions]


class Frequency(Responder):
    """The most frequent answer of each task among `questions`: what VSI-Bench calls "Chance Level (Frequency)"."""

    def __init__(self, questions: Sequence[Question]):
        self.answers = most_frequent(questions)

    def reply(self, seen: None, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        return [Reply(self.answers[question.task]) for question in questions]


def replies(answers: Sequence[Answer]) -> list[Reply]:
    return [Reply(answer.text, answer.notes, answer.frames) for answer in answers]


def letters(question: Question) -> list[str]:
    """The letters of a question's options; of objects to choose among, their numbers."""
    return [found[1] if (found := re.match(r"[\s(]*(\w+)", option)) else "" for option in question.options]


def random_option(question: Question) -> str:
    """A letter drawn with the question's id as the seed."""
    if not question.options:
        return ""
    seed = np.frombuffer(question.id.encode(), dtype=np.uint8).tolist()
    return str(np.random.default_rng(seed).choice(letters(question)))


def most_frequent(questions: Sequence[Question]) -> dict[str, str]:
    """The most frequent answer of each task; of equally frequent ones the first in the alphabet."""
    counts: dict[str, Counter[str]] = {}
    for question in questions:
        counts.setdefault(question.task, Counter())[question.answer] += 1
    return {task: min(found, key=lambda answer: (-found[answer], answer)) for task, found in counts.items()}


def blind_scene(network: PreTrainedModel, processor: SpatialMLLMProcessor) -> Scene:
    """The prompt with nothing seen."""
    ids = processor.tokenizer(processor.prefix(), return_tensors="pt", add_special_tokens=False)["input_ids"].to(network.device)
    with torch.inference_mode():
        cache = network.model(input_ids=ids, use_cache=True).past_key_values
    prefix = [(layer.keys, layer.values) for layer in cache.layers]
    return Scene(network, processor, prefix, ids.shape[1], (), "blind", tuple(ids[0].tolist()))


def as_video(images: Sequence[Views]) -> Views:
    """Images as the frames of one video. All take the size of the first: a video has one."""
    height, width = images[0].frames.shape[-2:]
    frames = [
        image.frames if image.frames.shape[-2:] == (height, width) else resize(image.frames, [height, width], antialias=True)
        for image in images
    ]
    return Views(frames=torch.cat(frames), source=images[0].source)


def find_sources(questions: Sequence[Question], root: Path | None) -> dict[str, Path]:
    """The video, image folder or RGB-D folder of every scene: `root`/<scene>, with or without a video's suffix.

    Questions that bring images need those. ValueError says how many are missing, before anything is asked.
    """
    sources: dict[str, Path] = {}
    missing: list[str] = []
    for question in questions:
        if question.images:
            missing += [file for file in question.images if not Path(file).is_file()]
        elif root is None:
            raise ValueError(f"videos: found no folder, expected --videos: the question {question.id!r} is about a video")
        elif question.scene not in sources:
            sources[question.scene] = next(
                (p for p in (root / f"{question.scene}{suffix}" for suffix in (*VIDEO_SUFFIXES, "")) if p.exists()), Path()
            )
            if sources[question.scene] == Path():
                missing.append(f"{root / question.scene} (a folder, or a file {', '.join(VIDEO_SUFFIXES)})")
    if missing:
        others = f", nor at {len(missing) - 1} other places" if len(missing) > 1 else ""
        raise ValueError(f"{missing[0]}: found nothing there{others}; --only takes some of the scenes alone")
    return sources
