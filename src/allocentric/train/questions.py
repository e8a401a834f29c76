"""Questions with known answers about videos and images: what is learned by reward, and what teachers are asked to explain.

One JSON object a line, paths relative to a root folder:

    {"video": "scannet/scene0000_00.mp4", "task": "object_rel_distance", "question": "Which of these objects is closest to ...?",
     "options": ["A. bed", "B. desk"], "answer": "B"}

`video` or `image` is a path or a list of paths; `options` is left out where there are none. Further keys are ignored. The questions
that `allo data make` writes are read too: they have `text` for `question`, and `scene` stands for the video "<scene>/video.mp4".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.readers import open_views
from allocentric.scenes import AnnotatedScene, load_scene
from allocentric.tasks.base import Question, Task
from allocentric.train.features import RoomFeatures
from allocentric.train.grpo import Asked
from allocentric.train.recipe import Annotations
from allocentric.train.rewards import reasoning_prompt, task_of
from allocentric.train.sft import pack

SEEN = ("input_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")


@dataclass(frozen=True)
class Posed:
    """A question and what it is about.

    kind    "video" or "image".
    paths   relative to the root.
    place   file and line, for messages.
    scene   what is true of the place, where that is known.
    """

    question: Question
    kind: str
    paths: tuple[str, ...]
    place: str
    scene: AnnotatedScene | None = None


def read_questions(file: str | Path) -> list[Posed]:
    """The questions of a JSONL file, in order."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected questions as JSONL")
    posed = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                posed.append(parse_question(json.loads(line), place))
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: expected JSON ({error.msg})") from error
    if not posed:
        raise ValueError(f"{path}: found no questions")
    return posed


def parse_question(item: Mapping[str, Any], place: str) -> Posed:
    """One question; what is missing or malformed is a ValueError that names the place."""
    if isinstance(item, Mapping) and {"scene", "text"} <= item.keys():  # as `allo data make` writes
        item = {"question": item["text"], "video": f"{item['scene']}/video.mp4", **item}
    kinds = [kind for kind in ("video", "image") if isinstance(item, Mapping) and kind in item]
    if len(kinds) != 1:
        raise ValueError(f"{place}: expected either `video` or `image`")
    shown = item[kinds[0]]
    paths = _texts([shown] if isinstance(shown, str) else shown, f"{place}: {kinds[0]}")
    needed = ("task", "question", "answer", *(name for name in ("scene", "context") if name in item))
    missing = [name for name in needed if not isinstance(item.get(name), str)]
    if missing or not paths:
        raise ValueError(f"{place}: expected text under {missing or kinds[0]}")
    question = Question(
        task=item["task"],
        scene=item.get("scene", paths[0]),
        text=item["question"],
        options=_texts(item.get("options") or [], f"{place}: options"),
        answer=item["answer"],
        references=_texts(item.get("references") or [], f"{place}: references"),
        context=item.get("context", ""),
    )
    try:
        task_of(question)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return Posed(question, kinds[0], paths, place)


def _texts(given: object, where: str) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise ValueError(f"{where}: found {given!r}, expected a list of texts")
    return tuple(given)


def question_line(posed: Posed) -> dict[str, Any]:
    """The JSON object that `parse_question` reads."""
    q, paths = posed.question, list(posed.paths)
    line = {posed.kind: paths[0] if len(paths) == 1 else paths, "task": q.task, "question": q.text}
    return line | ({"options": list(q.options)} if q.options else {}) | {"answer": q.answer}


def see(processor: SpatialMLLMProcessor, posed: Posed, root: str | Path, frames: int) -> dict[str, Tensor]:
    """The model's inputs of the prompt up to the question."""
    files = [Path(root) / path for path in posed.paths]
    try:
        if posed.kind == "video":
            shown = {"videos": [open_views(file, frames).frames for file in files]}
        else:
            shown = {"images": [open_views([file]).frames[0] for file in files]}
    except (ValueError, OSError) as error:
        raise ValueError(f"{posed.place}: {error}") from error
    text = processor.prefix(**{kind: len(some) for kind, some in shown.items()})
    inputs = processor(text=[text], **shown)
    return {name: torch.as_tensor(inputs[name]) for name in SEEN if name in inputs} | {"input_ids": inputs["input_ids"][0]}


def scene_of(posed: Posed, root: str | Path) -> AnnotatedScene | None:
    """What is true of the place: known already, or written beside the video in its scene folder (docs/scene_folder.md)."""
    folder = (Path(root) / posed.paths[0]).parent
    if posed.scene is None and Path(posed.paths[0]).name == "video.mp4" and (folder / "scene.json").is_file():
        return load_scene(folder)
    return posed.scene


class AskedScenes(Dataset):
    """Questions of files, at most `data.questions` about one video or set of images together."""

    def __init__(self, data: Annotations, processor: SpatialMLLMProcessor, form: str):
        self.data, self.processor, self.form = data, processor, form
        by_scene: dict[tuple, list[Posed]] = {}
        for posed in (posed for file in data.files for posed in read_questions(file)):
            by_scene.setdefault((posed.kind, posed.paths), []).append(posed)
        k = data.questions
        self.groups = [some[i : i + k] for some in by_scene.values() for i in range(0, len(some), k)]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Asked:
        group = self.groups[index]
        questions = [posed.question for posed in group]
        seen = see(self.processor, group[0], self.data.root, self.data.frames)
        columns = {"question": questions, "scene": [scene_of(group[0], self.data.root)] * len(questions)}
        return Asked(seen, [reasoning_prompt(question, self.form) for question in questions], columns)


class AskedRooms(Dataset):
    """`questions` questions about each procedural room, its features cached. An index gives the same questions every time.

    Rows are the rooms `rows` of the features, `rounds` times over with other questions.
    """

    def __init__(
        self,
        features: RoomFeatures,
        processor: SpatialMLLMProcessor,
        tasks: Mapping[str, tuple[Task, float]],
        questions: int,
        grid: tuple[int, int, int],
        rows: Sequence[int],
        form: str = "notes",
        seed: int = 0,
        rounds: int = 1,
    ):
        self.features, self.processor, self.tasks, self.questions = features, processor, tasks, questions
        self.grid, self.rows, self.form, self.seed, self.rounds = grid, list(rows), form, seed, rounds

    def __len__(self) -> int:
        return len(self.rows) * self.rounds

    def __getitem__(self, index: int) -> Asked:
        scene, features = self.features[self.rows[index % len(self.rows)]]
        questions = draw_questions(scene, self.tasks, self.questions, np.random.default_rng([self.seed, index]))
        if not questions:
            raise ValueError(f"room {self.rows[index % len(self.rows)]}: found no question of {sorted(self.tasks)} to ask")
        ids = pack(self.processor, [len(features["2d"])], [])["input_ids"]
        seen = {"input_ids": ids, **cached_inputs(features, self.grid)}
        prompts = [reasoning_prompt(question, self.form) for question in questions]
        return Asked(seen, prompts, {"question": questions, "scene": [scene] * len(questions)})


def cached_inputs(features: Mapping[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Tensor]:
    """The model's inputs that stand for a video whose features are cached; `grid` is that of its patches."""
    return {"video_grid_thw": torch.tensor([grid])} | {f"video_features_{part}": value for part, value in features.items()}


def draw_questions(
    scene: AnnotatedScene, tasks: Mapping[str, tuple[Task, float]], count: int, rng: np.random.Generator
) -> list[Question]:
    """At most `count` questions; tasks are drawn by weight among those that can ask something here."""
    made = {name: (list(task.make(scene, rng, count)), weight) for name, (task, weight) in tasks.items()}
    questions: list[Question] = []
    while len(questions) < count and (left := [(name, weight) for name, (some, weight) in made.items() if some]):
        weights = np.array([weight for _, weight in left])
        questions.append(made[left[rng.choice(len(left), p=weights / weights.sum())][0]][0].pop())
    return questions
