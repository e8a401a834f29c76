"""Conversations about videos and images, as LLaVA and Qwen write them, for supervised fine-tuning.

One JSON object a line (or one JSON list of them), paths relative to a root folder:

    {"video": "scannet/videos/scene0000_00.mp4",
     "conversations": [{"from": "human", "value": "<video>\\nHow many chairs are in this room?"}, {"from": "gpt", "value": "4"}]}

`video` or `image` is a path or a list of paths; several are one scene. Keys `role` and `content` are read like `from` and `value`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.readers import open_views
from allocentric.train.recipe import Annotations
from allocentric.train.sft import Turn, pack
from allocentric.train.video_features import VideoFeatures

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
TAG = r"<(?:video|image)>"


class Conversation(NamedTuple):
    """What is shown, what is said about it, and where that stands, for messages."""

    kind: str
    paths: tuple[str, ...]
    turns: tuple[Turn, ...]
    place: str


def read_conversations(file: str, seed: int = 42) -> list[Conversation]:
    """The conversations of a JSONL or JSON file, in order; "name.jsonl%25" is a random quarter, the same each time."""
    name, _, percent = file.rpartition("%")
    path = Path(name if percent.isdigit() and name else file)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected conversations as JSONL or JSON")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            content = json.loads(text)
            if not isinstance(content, list):
                raise ValueError(f"{path}: found {type(content).__name__}, expected a JSON list of conversations")
            items = [(f"{path}[{i}]", item) for i, item in enumerate(content)]
        else:
            items = [(f"{path}:{i}", json.loads(line)) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    except json.JSONDecodeError as error:
        line = error.lineno if path.suffix == ".json" else text.split("\n").index(error.doc) + 1
        raise ValueError(f"{path}:{line}: expected JSON ({error.msg})") from error
    if path != Path(file):
        count = round(len(items) * int(percent) / 100)
        items = [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[:count])]
    return [parse_conversation(item, place) for place, item in items]


def parse_conversation(item: Mapping[str, Any], place: str) -> Conversation:
    """One object of the file. Every answer is a turn of its own; what was said before it is part of its prompt."""
    kinds = [kind for kind in ("video", "image") if isinstance(item, Mapping) and kind in item]
    if len(kinds) != 1 or "conversations" not in item:
        found = sorted(item) if isinstance(item, Mapping) else item
        raise ValueError(f"{place}: found {found}, expected `conversations` and either `video` or `image`")
    paths, messages = item[kinds[0]], item["conversations"]
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{place}: {kinds[0]}: found {paths!r}, expected a path or a list of paths")
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise ValueError(f"{place}: conversations: found {messages!r}, expected a list of messages, each a JSON object")
    said = []
    for message in messages:
        role, text = message.get("from", message.get("role")), message.get("value", message.get("content"))
        expected = ("user", "assistant")[len(said) % 2]
        if not isinstance(role, str) or ROLES.get(role) != expected or not isinstance(text, str):
            raise ValueError(f"{place}: found a message of {role!r}, expected text of the {expected}")
        said.append(text)
    if not said or len(said) % 2:
        raise ValueError(f"{place}: found {len(said)} messages, expected questions and answers in turn")
    tags = re.match(rf"(?:\s*{TAG})*", said[0]).group()
    said[0] = said[0][len(tags) :].lstrip("\n")
    if len(re.findall(TAG, tags)) != len(paths) or any(re.search(TAG, text) for text in said):
        raise ValueError(f"{place}: expected {len(paths)} tags <{kinds[0]}> before the first question, no others")
    turns, before = [], ""
    for question, answer in zip(said[::2], said[1::2], strict=True):
        turns.append(Turn(before + question, answer))
        before += f"{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n<|im_start|>user\n"
    return Conversation(kinds[0], tuple(paths), tuple(turns), place)


@contextmanager
def _named(conversation: Conversation) -> Iterator[None]:
    """What goes wrong is said with the place of the conversation."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{conversation.place}: {error}") from error


class Conversations(Dataset):
    """Packed sequences: up to `data.questions` conversations about the same video or images, which are read when asked for.

    With `features` a video's are read in place of its pixels. What cannot be read is an error that names the file and line it
    stands in.
    """

    def __init__(self, data: Annotations, processor: SpatialMLLMProcessor, features: VideoFeatures | None = None):
        self.data, self.processor, self.features = data, processor, features
        self.merge = processor.video_processor.merge_size**2
        by_scene: dict[tuple, list[Conversation]] = {}
        for file in data.files:
            for conversation in read_conversations(file, data.seed):
                by_scene.setdefault((conversation.kind, conversation.paths), []).append(conversation)
        k = data.questions
        self.packs = [group[i : i + k] for group in by_scene.values() for i in range(0, len(group), k)]
        self.videos = [group[0] for (kind, _), group in by_scene.items() if kind == "video"]
        if not self.packs:
            raise ValueError(f"{', '.join(data.files)}: found no conversations")

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        group = self.packs[index]
        with _named(group[0]):
            if self.features is not None and group[0].kind == "video":
                seen = self.features.read(self.paths(group[0]))
            else:
                seen = self._see(group[0])
        count = lambda grid: (seen[grid].prod(-1) // self.merge).tolist() if grid in seen else []  # noqa: E731
        turns = [turn for conversation in group for turn in conversation.turns]
        return pack(self.processor, count("video_grid_thw"), turns, count("image_grid_thw")) | seen

    def paths(self, conversation: Conversation) -> list[Path]:
        return [Path(self.data.root) / path for path in conversation.paths]

    def without_features(self, video: Conversation) -> dict[str, Tensor] | None:
        """The model's vision inputs of a video whose features are still to be made; None where they are there."""
        with _named(video):
            return None if self.features.path(self.paths(video)).exists() else self._see(video)

    def _see(self, conversation: Conversation) -> dict[str, Tensor]:
        """The model's vision inputs."""
        files = self.paths(conversation)
        if conversation.kind == "video":
            videos = [open_views(file, self.data.frames).frames for file in files]
            inputs = self.processor(text=["<|video_pad|>" * len(files)], videos=videos)
        else:
            images = [open_views([file]).frames[0] for file in files]
            inputs = self.processor(text=["<|image_pad|>" * len(files)], images=images)
        names = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
        return {name: inputs[name] for name in names if name in inputs}
