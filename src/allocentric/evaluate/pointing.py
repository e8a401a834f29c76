"""Grounding benchmarks: what chooses among boxes, and where the boxes come from.

A choice is written as the benchmark's profile reads answers, so that everything behind it (files, scores, reports) is the same as
for models that answer in words.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from allocentric.encoders.checkpoints import located
from allocentric.evaluate.run import Reply, Responder
from allocentric.geometry.boxes import Box3D
from allocentric.models.grounding import GroundingScene, S2Processor, grounding_prompt
from allocentric.models.loading import read_config
from allocentric.models.s2_mllm import S2LlavaConfig, S2Model, S2QwenConfig
from allocentric.readers import open_scene, open_views
from allocentric.readers.scannet import is_scannet_annotation
from allocentric.sampling import CANDIDATES, points_from_depth, space_aware
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.multi3drefer import Multi3DRefer
from allocentric.tasks.overlap import GroundingBenchmark
from allocentric.views import Views

Boxes = Mapping[str, Sequence[Box3D]]


class Pointing(Responder):
    """An S2-MLLM, which sees a scene once and chooses among its candidates for every description.

    candidates   boxes of each scene, in the world of its frames.
    sources      posed RGB-D frames of each scene.
    blind        the pictures are black: what boxes, geometry and words give away.
    """

    def __init__(
        self,
        network: S2Model,
        processor: S2Processor,
        benchmark: GroundingBenchmark,
        profile: str,
        candidates: Boxes,
        sources: Mapping[str, Path],
        frames: int = 16,
        sampling: Literal["uniform", "space_aware"] = "uniform",
        blind: bool = False,
    ):
        self.network, self.processor, self.benchmark, self.profile = network.eval(), processor, benchmark, profile
        self.candidates, self.sources, self.frames, self.sampling, self.blind = candidates, sources, frames, sampling, blind

    def prompt(self, question: Question, wording: str) -> str:
        """The words that the model was trained with, whatever the profile's are: it answers with a box of its own accord."""
        return grounding_prompt(question.text)

    def see(self, questions: Sequence[Question]) -> Views:
        count = self.frames if self.sampling == "uniform" else max(CANDIDATES, self.frames)
        views = open_views(self.sources[questions[0].scene], count)
        if views.depth is None or views.intrinsics is None or views.camera_to_world is None:
            raise ValueError(f"{views.source}: found frames alone, expected depth and poses, too: a posed RGB-D capture")
        return replace(views, frames=torch.zeros_like(views.frames)) if self.blind else views

    def reply(self, seen: Views, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        if self.sampling == "space_aware" and len(seen) > self.frames:
            points, mask = points_from_depth(seen)
            seen = seen.select(list(space_aware(points, self.frames, mask=mask).indices))
        boxes = list(self.candidates[questions[0].scene])
        shown = tuple(range(len(seen)) if seen.indices is None else seen.indices.tolist())
        found = GroundingScene.encode(self.network, self.processor, seen, boxes).ground([q.text for q in questions])
        chosen = [one.several() if isinstance(self.benchmark, Multi3DRefer) else [one.index] for one in found]
        return [
            Reply(self.benchmark.write(question, boxes, picks, self.profile), one.text, shown)
            for question, one, picks in zip(questions, found, chosen, strict=True)
        ]


class ChanceBox(Responder):
    """A random candidate, the same one every time."""

    def __init__(self, benchmark: GroundingBenchmark, profile: str, candidates: Boxes):
        self.benchmark, self.profile, self.candidates = benchmark, profile, candidates

    def reply(self, seen: None, questions: Sequence[Question], prompts: Sequence[str]) -> list[Reply]:
        boxes = self.candidates[questions[0].scene]
        return [Reply(self.benchmark.write(q, boxes, [_drawn(q, len(boxes))] if boxes else [], self.profile)) for q in questions]


def _drawn(question: Question, count: int) -> int:
    """A number below `count`, drawn with the question's id as the seed."""
    return int(np.random.default_rng(list(question.id.encode())).integers(count))


def points(path: str | Path) -> bool:
    """Whether the weights at `path` (a folder or hub id) are a model that points."""
    config = read_config(located(path))
    return config.get("model_type") in (S2LlavaConfig.model_type, S2QwenConfig.model_type)


def open_annotated(root: Path, names: Sequence[str], found: dict[str, AnnotatedScene]) -> Iterator[tuple[int, int]]:
    """Put the annotated scenes of these names in the folder `root` into `found`; yields (scenes read, scenes).

    Walls and floors are kept: benchmarks describe them, too.
    """
    if missing := [name for name in names if not (root / name).is_dir()]:
        others = f", nor {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(f"--scenes: found no folder {root / missing[0]}{others}, expected annotated scans there")
    for i, name in enumerate(names):
        yield i, len(names)
        every = {"skip": ()} if is_scannet_annotation(root / name) else {}
        found[name] = open_scene(root / name, **every)
    yield len(names), len(names)
