"""Recipes: training runs as YAML files. `allo train recipes/nano.yaml --out out/nano` runs one, stage by stage.

A stage that has finished is skipped and one that was interrupted continues, so running the command again is how to resume.
"""

import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from allocentric.train.shards import RoomsSpec


@dataclass(frozen=True)
class Optimisation:
    """How a stage is optimised: AdamW, linear warm-up, then `schedule`. `batch_size` is per process; `accumulate` multiplies it."""

    steps: int
    batch_size: int
    learning_rate: float
    accumulate: int = 1
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.05
    clip: float = 1.0
    bf16: bool = False
    workers: int = 1
    log_every: int = 25
    save_every: int = 250
    seed: int = 0

    def arguments(self, out: Path) -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(out),
            max_steps=self.steps,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup,
            lr_scheduler_type=self.schedule,
            weight_decay=self.weight_decay,
            max_grad_norm=self.clip,
            bf16=self.bf16,
            dataloader_num_workers=self.workers,
            dataloader_persistent_workers=self.workers > 0,
            logging_steps=self.log_every,
            save_steps=self.save_every,
            save_total_limit=2,
            seed=self.seed,
            remove_unused_columns=False,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
        )


@dataclass(frozen=True)
class TokenizerStage:
    """A tokenizer trained on the questions of `rooms` training rooms."""

    vocab_size: int
    rooms: int


@dataclass(frozen=True)
class GeometryStage:
    """VGGT on depth, points and cameras of clips of `frames` (least, most) frames; `dense_frames` of them reach the dense heads."""

    frames: tuple[int, int]
    dense_frames: int
    optimisation: Optimisation


@dataclass(frozen=True)
class SemanticsStage:
    """The 2D encoder on which categories its tokens show."""

    frames: int
    optimisation: Optimisation


@dataclass(frozen=True)
class SFTStage:
    """Questions about rooms: `questions` per room and step, drawn from `tasks` by weight."""

    questions: int
    tasks: dict[str, float]
    learning_rates: dict[str, float]
    optimisation: Optimisation


@dataclass(frozen=True)
class Recipe:
    """A small Spatial-MLLM from nothing but procedural rooms."""

    model: dict[str, Any]
    rooms: RoomsSpec
    tokenizer: TokenizerStage
    geometry: GeometryStage
    semantics: SemanticsStage
    sft: SFTStage
    mirrored: bool = True


def read_recipe(path: Path, kind: type = Recipe) -> Any:
    """A recipe from YAML; an unknown or missing key is an error that names it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected a recipe (see recipes/)")
    return _build(kind, yaml.safe_load(path.read_text()), path.name)


def _build(kind: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _build(next(a for a in typing.get_args(kind) if a is not type(None)), value, where)
    if origin is tuple:
        return tuple(value)
    if not is_dataclass(kind):
        return float(value) if kind is float else value
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {value!r}, expected keys {[f.name for f in fields(kind)]}")
    known = {f.name: f for f in fields(kind)}
    if unknown := value.keys() - known.keys():
        raise ValueError(f"{where}: found unknown {sorted(unknown)}, expected keys among {sorted(known)}")
    if missing := [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in value]:
        raise ValueError(f"{where}: found no {missing}, expected every one of them")
    hints = typing.get_type_hints(kind)
    return kind(**{name: _build(hints[name], item, f"{where}: {name}") for name, item in value.items()})


def resume_point(out: Path) -> str | None:
    """The newest checkpoint in a stage's folder, or None."""
    return get_last_checkpoint(str(out)) if out.is_dir() else None
