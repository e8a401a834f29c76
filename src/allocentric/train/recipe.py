"""Recipes: training runs as YAML files. `allo train recipes/nano.yaml --out out/nano` runs one, stage by stage.

A stage that has finished is skipped and one that was interrupted continues, so running the command again is how to resume.
`kind` in the file says which class below its keys belong to: "rooms" (the default) or "finetune".
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
    """How a stage is optimised: AdamW, linear warm-up, then `schedule`.

    steps, epochs   how long: one of the two.
    batch_size      examples per process and forward pass; `accumulate` of these make a step.
    learning_rate   the highest; a stage that names learning rates of parts goes by those instead.
    warmup          share of the steps, or their number.
    clip            largest norm of the gradient.
    checkpointing   recompute activations in the backward pass: less memory, a third more time.
    """

    batch_size: int
    learning_rate: float
    steps: int | None = None
    epochs: float | None = None
    accumulate: int = 1
    warmup: float = 0.03
    schedule: str = "cosine"
    weight_decay: float = 0.05
    clip: float = 1.0
    bf16: bool = False
    checkpointing: bool = False
    workers: int = 1
    log_every: int = 25
    save_every: int = 250
    seed: int = 0

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"optimisation: found steps {self.steps} and epochs {self.epochs}, expected one of the two")

    def arguments(self, out: Path) -> TrainingArguments:
        """The Trainer's arguments for a run whose checkpoints go to `out`."""
        return TrainingArguments(
            output_dir=str(out),
            max_steps=self.steps or -1,
            num_train_epochs=self.epochs or 1,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.accumulate,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup,
            lr_scheduler_type=self.schedule,
            weight_decay=self.weight_decay,
            max_grad_norm=self.clip,
            bf16=self.bf16,
            gradient_checkpointing=self.checkpointing,
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
    """Questions about rooms: `questions` per room and step, drawn from `tasks` by weight; `think` teaches notes before answers."""

    questions: int
    tasks: dict[str, float]
    learning_rates: dict[str, float]
    optimisation: Optimisation
    think: bool = False


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


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from, as local folders: a Spatial-MLLM `checkpoint`, or the two models it is built from."""

    checkpoint: str | None = None
    qwen: str | None = None
    vggt: str | None = None

    def __post_init__(self):
        if (self.checkpoint is None) == (self.qwen is None) or (self.qwen is None) != (self.vggt is None):
            raise ValueError(f"start: found {vars(self)}, expected `checkpoint` alone, or `qwen` and `vggt`")


@dataclass(frozen=True)
class Annotations:
    """Conversations about videos and images (`train.jsonl`).

    files      JSONL or JSON files; "mix.jsonl%25" takes a random quarter of one.
    root       folder that the paths in them are relative to.
    frames     evenly spread frames of each video.
    questions  at most this many conversations about one video share a sequence; 1 as published.
    """

    files: tuple[str, ...]
    root: str
    frames: int = 16
    questions: int = 1
    seed: int = 42


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685) on the linear layers whose full name matches `targets`; `whole` parts train entirely."""

    rank: int
    alpha: float
    targets: str
    whole: tuple[str, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True)
class FineTune:
    """A Spatial-MLLM fine-tuned on conversations about videos and images.

    start            None: a tiny random model and a few rooms made on the spot, for smoke runs.
    batch            conversations (with packing: sequences) per optimiser step, over all processes.
    learning_rates   by beginning of parameter name; what matches none is frozen.
    pixel_clamp, newline_after_vision   switches of the processor (`SpatialMLLMProcessor`).
    mrope_time_step  switch of the model (`SpatialMLLMConfig`); None keeps what the start has.
    """

    start: Start | None
    data: Annotations
    batch: int
    learning_rates: dict[str, float]
    optimisation: Optimisation
    lora: LoRA | None = None
    pixel_clamp: str | None = None
    newline_after_vision: bool = False
    mrope_time_step: int | None = None


KINDS = {"rooms": Recipe, "finetune": FineTune}


def read_recipe(path: Path) -> Recipe | FineTune:
    """A recipe from YAML; an unknown, missing or mistyped key is an error that names it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected a recipe (see recipes/)")
    try:
        keys = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML ({error})") from error
    kind = keys.pop("kind", "rooms") if isinstance(keys, dict) else "rooms"
    if kind not in KINDS:
        raise ValueError(f"{path.name}: kind: found {kind!r}, expected one of {list(KINDS)}")
    return _build(KINDS[kind], keys, path.name)


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, as YAML gives it, as a `kind`: a dataclass, or what its fields are annotated with."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # of something and None
        return None if value is None else _build(inner[0], value, where)
    if origin is tuple and isinstance(value, list) and (inner[1] is ... or len(inner) == len(value)):
        return tuple(_build(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _build(inner[1], item, f"{where}: {key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-3, without a point, as text
            return float(value)
        except ValueError:
            pass
    if not is_dataclass(kind):
        if origin or not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{where}: found {value!r}, expected {kind if origin else kind.__name__}")
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {value!r}, expected keys {[f.name for f in fields(kind)]}")
    known = {f.name: f for f in fields(kind)}
    if unknown := value.keys() - known.keys():
        raise ValueError(f"{where}: found unknown {sorted(unknown)}, expected keys among {sorted(known)}")
    if missing := [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in value]:
        raise ValueError(f"{where}: found no {missing}, expected every one of them")
    hints = typing.get_type_hints(kind)
    built = {name: _build(hints[name], item, f"{where}: {name}") for name, item in value.items()}
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def resume_point(out: Path) -> str | None:
    """The newest checkpoint in a stage's folder, or None."""
    return get_last_checkpoint(str(out)) if out.is_dir() else None
