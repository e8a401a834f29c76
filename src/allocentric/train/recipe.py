"""Recipes: training runs as YAML files. `allo train recipes/nano.yaml --out out/nano` runs one, stage by stage.

A stage that has finished is skipped and one that was interrupted continues, so running the command again is how to resume.
`kind` in the file says which class below its keys belong to (`KINDS`); "rooms" is the default.
"""

import inspect
import json
import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from allocentric.encoders.spa3r import Spa3RConfig
from allocentric.files import write_whole
from allocentric.graph.map_tasks import map_tasks
from allocentric.graph.text_boxes import box_tasks
from allocentric.models.loading import check_config
from allocentric.models.s2_mllm import StructureConfig
from allocentric.models.spatial_mllm import SpatialMLLMConfig
from allocentric.tasks import TRAINING_TASKS
from allocentric.train.guidance import PointMaps, VGGTFeatures
from allocentric.train.shards import RoomsSpec

# the Trainer's that need no settings of their own
SCHEDULES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt")


@dataclass(frozen=True)
class Optimisation:
    """How a stage is optimised: AdamW, linear warm-up, then `schedule` (SCHEDULES).

    steps, epochs   how long: one of the two.
    batch_size      examples per process and forward pass; `accumulate` of these make a step.
    learning_rate   the highest; a stage that names learning rates of parts goes by those instead.
    warmup          share of the steps, or their number.
    clip            largest norm of the gradient.
    muon            matrices of transformer blocks are trained by Muon at this multiple of the learning rate; 0: AdamW for all.
    bf16            compute in bfloat16 where that pays; None: where the hardware does it natively.
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
    muon: float = 0.0
    bf16: bool | None = False
    checkpointing: bool = False
    workers: int = 1
    log_every: int = 25
    save_every: int = 250
    seed: int = 0

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"optimisation: found steps {self.steps} and epochs {self.epochs}, expected one of the two")
        least = {"batch_size": 1, "steps": 1, "accumulate": 1, "workers": 0, "log_every": 1, "save_every": 1}
        for name, value in least.items():
            if getattr(self, name) is not None and getattr(self, name) < value:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected at least {value}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs: found {self.epochs}, expected more than 0")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule: found {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")

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
            bf16=native_bf16() if self.bf16 is None else self.bf16,
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


def _check_tasks(tasks: dict[str, float], where: str, known: Collection[str] = TRAINING_TASKS) -> None:
    if unknown := tasks.keys() - set(known):
        raise ValueError(f"{where}: found unknown {sorted(unknown)}, expected some of {sorted(known)}")


def _check_patterns(patterns: Iterable[str], where: str) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{where}: found {pattern!r}, expected a regular expression ({error})") from error


def native_bf16() -> bool:
    """Whether this machine multiplies bfloat16 matrices in hardware; emulated, they are several times slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu.get_capabilities().get("avx512_bf16", False)


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
    """Questions about rooms: `questions` per room and step, drawn from `tasks` by weight.

    think       teaches notes before answers.
    note_error  how inexact the notes are that answers are learned behind, metres (`tasks.notes.blurred`).
    bare        share of questions put without the benchmark's words around them.
    """

    questions: int
    tasks: dict[str, float]
    learning_rates: dict[str, float]
    optimisation: Optimisation
    think: bool = False
    note_error: float = 0.0
    bare: float = 0.0


@dataclass(frozen=True)
class ReadingStage(SFTStage):
    """Questions about rooms told by tokens with `noise`, each token's place off by `place_error` metres (`train.reading`)."""

    noise: float = 0.5
    place_error: float = 0.3


@dataclass(frozen=True)
class NamingStage:
    """Merger and connector on the words of what their tokens show (`train.naming`)."""

    optimisation: Optimisation


@dataclass(frozen=True)
class Recipe:
    """A small Spatial-MLLM from nothing but procedural rooms.

    matching   the start of `geometry`, on short clips: there matching views is learned, at a fraction of the cost of long ones.
    reckoning  what the language model learns first, without any video: `questions` per sequence whose notes are given.
    reading    then, on tokens that say what a video shows.
    """

    model: dict[str, Any]
    rooms: RoomsSpec
    tokenizer: TokenizerStage
    matching: GeometryStage
    geometry: GeometryStage
    semantics: SemanticsStage
    reckoning: SFTStage
    reading: ReadingStage
    naming: NamingStage
    sft: SFTStage
    mirrored: bool = True

    def __post_init__(self):
        for stage in ("reckoning", "reading", "sft"):
            _check_tasks(getattr(self, stage).tasks, f"{stage}: tasks")
        if missing := [part for part in ("text_config", "vision_config", "spatial_config") if self.model.get(part) is None]:
            raise ValueError(f"model: found no {missing}, expected every one of them")
        check_config(SpatialMLLMConfig, "model", self.model)


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from, as local folders: a `checkpoint`, or the two models a new one is built from.

    qwen, vggt    a Spatial-MLLM.
    qwen, spa3r   a Spa3-VLM; `spa3r` may be a `spa3r.ckpt`.
    """

    checkpoint: str | None = None
    qwen: str | None = None
    vggt: str | None = None
    spa3r: str | None = None

    def __post_init__(self):
        given = {name for name, folder in vars(self).items() if folder is not None}
        if given not in ({"checkpoint"}, {"qwen", "vggt"}, {"qwen", "spa3r"}):
            raise ValueError(f"start: found {sorted(given)}, expected checkpoint alone, qwen and vggt, or qwen and spa3r")


@dataclass(frozen=True)
class Annotations:
    """Conversations about videos and images (`train.jsonl`).

    files      JSONL or JSON files; "mix.jsonl%25" takes a random quarter of one.
    root       folder that the paths in them are relative to.
    frames     evenly spread frames of each video.
    questions  at most this many conversations about one video share a sequence; 1 as published.
    cache      folder, in that of the run if it is relative, in which what frozen encoders say of each video is kept: then no video
               is decoded or encoded twice (`train.video_features`). None: encoded anew for every sequence, as published.
    """

    files: tuple[str, ...]
    root: str
    frames: int = 16
    questions: int = 1
    seed: int = 42
    cache: str | None = None


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (arXiv 2106.09685) on the linear layers whose full name matches `targets`; `whole` parts train entirely."""

    rank: int
    alpha: float
    targets: str
    whole: tuple[str, ...] = ()
    dropout: float = 0.0

    def __post_init__(self):
        _check_patterns([self.targets], "targets")


@dataclass(frozen=True)
class FineTune:
    """A Spatial-MLLM or Spa3-VLM fine-tuned on conversations about videos and images.

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


@dataclass(frozen=True)
class GRPOSettings:
    """Group relative policy optimisation (`train.grpo`).

    group            completions of each question, sampled at `temperature`, at most `max_new_tokens` long.
    stop             a completion also ends where its text ends in one of these.
    beta             weight of the KL divergence to the reference, the model training starts from.
    clip, clip_high  the ratio to the policy that sampled is kept within [1 - clip, 1 + clip_high]; None: as `clip`.
    updates          optimiser steps on each batch of completions.
    divide_by_std    advantages in deviations of their group; False: only centred (arXiv 2503.20783).
    average          of token losses: over each completion ("sequence"), or divided by `max_new_tokens` ("constant", 2503.20783).
    log_samples      completions written to samples.jsonl per batch.
    """

    group: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 768
    stop: tuple[str, ...] = ()
    beta: float = 0.04
    clip: float = 0.2
    clip_high: float | None = None
    updates: int = 1
    divide_by_std: bool = True
    average: str = "sequence"
    log_samples: int = 8

    def __post_init__(self):
        least = {"group": 2, "max_new_tokens": 1, "updates": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"grpo: {name}: found {getattr(self, name)}, expected at least {value}")
        if self.temperature <= 0:
            raise ValueError(f"grpo: temperature: found {self.temperature}, expected more than 0")
        if self.average not in ("sequence", "constant"):
            raise ValueError(f"grpo: average: found {self.average!r}, expected 'sequence' or 'constant'")


@dataclass(frozen=True)
class NanoRooms:
    """Rooms and cached features that a run of recipes/nano.yaml left in the folder `run`; `tasks` are drawn from by weight."""

    run: str
    rooms: int
    tasks: dict[str, float]
    questions: int = 4
    heldout: int = 0
    seed: int = 0

    def __post_init__(self):
        _check_tasks(self.tasks, "tasks")


@dataclass(frozen=True, kw_only=True)
class Reinforce(FineTune):
    """A model trained by reward (GRPO). As `FineTune`, but that data are questions with known answers instead of conversations.

    data            JSONL files of questions (`train.questions`); or
    rooms           procedural rooms. A batch counts scenes.
    heldout         JSONL files of questions that are only asked, every `evaluate_every` steps.
    form            "answer_tags" (published) or "notes" (nano): how completions are written (`train.rewards`).
    rewards         weight of each reward; `mra` says which form of mean relative accuracy the reward of that name takes.
    """

    data: Annotations | None = None
    rooms: NanoRooms | None = None
    heldout: tuple[str, ...] = ()
    evaluate_every: int = 100
    form: str = "answer_tags"
    rewards: dict[str, float]
    mra: str = "released"
    grpo: GRPOSettings

    def __post_init__(self):
        if (self.data is None) == (self.rooms is None):
            raise ValueError("data: expected either `data` or `rooms`")
        if self.data is not None and self.data.cache is not None:
            raise ValueError(f"data: cache: found {self.data.cache!r}, expected none: features are kept for fine-tuning alone")


@dataclass(frozen=True)
class SceneFolder:
    """A folder of scenes.

    scenes   a file that names those to take, one a line, such as a published split; default: all.
    gaps     in place of `SceneData.gaps`.
    """

    path: str
    scenes: str | None = None
    gaps: tuple[int, int] | None = None


@dataclass(frozen=True)
class SceneData:
    """Places to pretrain on: folders of videos, image folders or posed captures; or procedural rooms.

    folders   each holds scenes; none: `rooms` rooms of `frames` frames are rendered, and `heldout` others to measure on.
    heldout_folders   folders of scenes to measure on.
    run       folder of a run of recipes/nano.yaml: its rooms are taken instead of being rendered again.
    width     of the images, pixels; the height follows.
    gaps      least and most frames from one view of a clip to the next.
    """

    width: int
    gaps: tuple[int, int]
    folders: tuple[SceneFolder, ...] = ()
    rooms: int = 0
    heldout: int = 0
    heldout_folders: tuple[SceneFolder, ...] = ()
    run: str | None = None
    frames: int = 16

    def __post_init__(self):
        if bool(self.folders) == bool(self.rooms):
            found = f"folders {[f.path for f in self.folders]} and {self.rooms} rooms"
            raise ValueError(f"data: found {found}, expected one of the two")
        for gaps in (self.gaps, *(f.gaps for f in (*self.folders, *self.heldout_folders) if f.gaps)):
            if not 1 <= gaps[0] <= gaps[1]:
                raise ValueError(f"data: gaps: found {list(gaps)}, expected 1 <= least <= most")
        if self.heldout == 1:
            raise ValueError("data: heldout: found 1, expected none, or at least 2: intervals are over scenes")


@dataclass(frozen=True)
class Objective:
    """What is compared, and how. The default is the paper's.

    views        "targets", or "all" (published code): also those whose features went into the latent.
    regression   "l1", or "smooth_l1" (published code); beside one minus the cosine.
    asymmetric   True: one pass of VGGT in which context views see context only and target views see all. False (published code):
                 context views alone, then all views for targets, cameras and depth.
    """

    views: str = "targets"
    regression: str = "l1"
    asymmetric: bool = True

    def __post_init__(self):
        if self.views not in ("targets", "all") or self.regression not in ("l1", "smooth_l1"):
            raise ValueError(
                f"objective: found views {self.views!r} and regression {self.regression!r}, expected 'targets' or 'all', and 'l1' "
                "or 'smooth_l1'"
            )


@dataclass(frozen=True)
class Pretrain:
    """A Spa3R, learned by predicting features of views that were not shown.

    model            keys of `Spa3RConfig`; VGGT's sizes and the semantic width come from the teachers.
    geometry         VGGT: a folder or hub id with its heads, or "nano", or a folder with a model like nano.
    semantic         a DINOv2 or DINOv3 of transformers: a folder or hub id; or "nano" as above, whose 2D encoder it then is.
    semantic_square  side, in pixels, that images are squeezed to for the semantic teacher; 224 as published. None: their own shape.
    views            least and most views of a clip.
    images           images of a batch on each process; a batch holds images / views clips.
    mask_ratio       share of the views that are targets.
    clips            clips drawn from a scene before they repeat; what teachers say of them is kept on disk. None: nothing is kept.
    """

    data: SceneData
    model: dict[str, Any]
    geometry: str
    semantic: str
    views: tuple[int, int]
    images: int
    optimisation: Optimisation
    semantic_square: int | None = None
    mask_ratio: float = 0.5
    clips: int | None = None
    objective: Objective = Objective()

    def __post_init__(self):
        if self.optimisation.steps is None:
            raise ValueError("optimisation: found epochs, expected steps: clips are drawn without end")
        known = Spa3RConfig.__annotations__.keys() - {"vggt_config", "semantic_dim"}
        if unknown := self.model.keys() - known:
            raise ValueError(f"model: found unknown {sorted(unknown)}, expected keys among {sorted(known)}")
        check_config(Spa3RConfig, "model", self.model)
        least, most = self.views
        if not 2 <= least <= most <= self.images:
            found = f"{least} to {most} with {self.images} images a batch"
            raise ValueError(f"views: found {found}, expected 2 <= least <= most <= images")
        if self.data.rooms and self.data.frames < most:
            raise ValueError(f"views: found up to {most} of rooms of {self.data.frames} frames, expected no more than these")
        if not 0 <= self.mask_ratio < 1 or (self.mask_ratio == 0 and self.objective.views == "targets"):
            raise ValueError(f"mask_ratio: found {self.mask_ratio}, expected more than 0 and less than 1")
        if self.clips is not None and self.clips < 1:
            raise ValueError(f"clips: found {self.clips}, expected at least 1, or none at all")


@dataclass(frozen=True)
class Spa3Variant:
    """One Spa3-VLM among those that are compared.

    mask_ratio   of the pretraining of its Spa3R, in place of the recipe's.
    raw_vggt     no Spa3R: the language model reads VGGT's patch tokens of all frames as they are.
    """

    mask_ratio: float = 0.5
    raw_vggt: bool = False


@dataclass(frozen=True)
class Spa3VLMTraining:
    """Spa3-VLMs trained as the Spatial-MLLM of recipes/nano.yaml: on its rooms, with its questions, for as many steps.

    nano          that recipe; a path from where this one lies, as that of `pretraining`.
    run           the folder it was run in: rooms, tokenizer, 2D encoder, features and, for the table, answers are read there. Or
                  "nano": the encoders and the language model of the package's nano, from where that and its controls are then
                  trained as well.
    pretraining   recipe of the Spa3R. Its teachers and rooms are those of the run.
    variants      by name; the first is compared with all others.
    rooms, naming_steps, sft_steps   where the recipe's numbers are not to be used.
    """

    nano: str
    run: str
    pretraining: str
    variants: dict[str, Spa3Variant]
    rooms: int | None = None
    naming_steps: int | None = None
    sft_steps: int | None = None

    def __post_init__(self):
        taken = ("nano", "2d-only", "blind", "report")
        if not self.variants or self.variants.keys() & set(taken):
            raise ValueError(f"variants: found {list(self.variants)}, expected some, none of them named one of {list(taken)}")


@dataclass(frozen=True)
class GroundingData:
    """What a scene is asked. `descriptions` and `questions` of each go into one sequence.

    rooms          procedural rooms; None when benchmarks are trained on (`BenchmarkScenes`).
    descriptions   referring expressions per scene and step.
    questions      other questions per scene and step, drawn from `tasks` by weight: grounding is then learned beside them.
    language       True: answers name the category before `<ground>` (language guidance); False: `<ground>` alone.
    jitter         boxes are moved and resized by up to this share of their size, so that the model gets used to proposals.
    cache          what the frozen 2D encoder says of rooms is computed once and kept on disk (0.5 MB a room of nano's size).
    """

    rooms: RoomsSpec | None = None
    descriptions: int = 8
    questions: int = 0
    tasks: dict[str, float] = field(default_factory=dict)
    language: bool = True
    jitter: float = 0.0
    mirrored: bool = True
    cache: bool = False

    def __post_init__(self):
        _check_tasks(self.tasks, "tasks")


@dataclass(frozen=True)
class Guide:
    """The teacher of `train.guidance`: "points", "vggt" or "decoder".

    settings   keyword arguments of the teacher; for "vggt" `weights`, for "decoder" `factory` and `checkpoint`.
    """

    kind: str
    weight: float = 0.3
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in ("points", "vggt", "decoder"):
            raise ValueError(f"guidance: found kind {self.kind!r}, expected 'points', 'vggt' or 'decoder'")
        needed = {"points": [], "vggt": ["weights"], "decoder": ["factory", "checkpoint"]}[self.kind]
        if missing := [name for name in needed if name not in self.settings]:
            raise ValueError(f"settings: found no {missing}, expected every one of them")
        if self.kind == "decoder":  # what else there is goes to the user's own factory
            return
        teacher = PointMaps if self.kind == "points" else VGGTFeatures
        known = {*needed, *inspect.signature(teacher).parameters} - {"dim", "teacher"}  # these two are not for recipes to say
        if unknown := self.settings.keys() - known:
            raise ValueError(f"settings: found unknown {sorted(unknown)}, expected keys among {sorted(known)}")


@dataclass(frozen=True)
class GroundingCard:
    """What a model trained on rooms is asked about rooms nobody trained on (`train.grounding_card`).

    rooms, descriptions   how many rooms, and referring expressions about each.
    ablation_steps        steps that every row of the table of ablations is trained for.
    """

    rooms: int = 200
    descriptions: int = 20
    ablation_steps: int = 1000


@dataclass(frozen=True)
class GroundingTraining:
    """An S2-MLLM trained on descriptions of objects.

    start            what to start from (`load_s2`): a folder or hub id; "nano" for the model that comes with the package.
    structure        keys of `StructureConfig`.
    learning_rates   by regular expression on parameter names; the first that is found in a name holds, what none matches is frozen.
    language_weight  of the language loss (lambda of the paper: 1).
    frames           evenly spread frames of scenes that are not rooms.
    card             how the model is asked when it has been trained on rooms; None: it is not.
    """

    start: str
    data: GroundingData
    learning_rates: dict[str, float]
    optimisation: Optimisation
    structure: dict[str, Any] = field(default_factory=dict)
    guidance: Guide | None = None
    language_weight: float = 1.0
    lora: LoRA | None = None
    frames: int = 16
    card: GroundingCard | None = None

    def __post_init__(self):
        _check_patterns(self.learning_rates, "learning_rates")
        check_config(StructureConfig, "structure", self.structure)


@dataclass(frozen=True)
class SSRVariant:
    """One SSR: its fusion mode (`fusion.interleave`) and the form in which it writes maps ("triplets" or "grid")."""

    fusion: str = "A"
    maps: str = "triplets"

    def __post_init__(self):
        if self.fusion not in ("A", "B", "C", "D", "F") or self.maps not in ("triplets", "grid"):
            raise ValueError(
                f"variant: found fusion {self.fusion!r} and maps {self.maps!r}, expected one of A, B, C, D, F (E needs "
                "camera tokens, which are not kept) and 'triplets' or 'grid'"
            )


@dataclass(frozen=True)
class SSRTraining:
    """SSRs on procedural rooms, each in two stages: `structure` (maps and boxes), then `reasoning` (answers, some with a map).

    start        whose frozen encoders and language model to start from: "nano" for the model that comes with the package, or the
                 folder of a finished run of recipes/nano.yaml, whose rooms and cached features are then used, too.
    variants     by name; all are trained on the same rooms for as many steps.
    redundancy   triplets for each object beyond the third.
    decimals     digits of the numbers in boxes.
    lines        lines of maps that every second step of structure works out from given places, without a video; 0: none.

    The tasks of a stage are those of `tasks.TRAINING_TASKS`, `graph.map_tasks` and `graph.text_boxes`.
    """

    start: str
    rooms: RoomsSpec
    variants: dict[str, SSRVariant]
    structure: SFTStage
    reasoning: SFTStage
    redundancy: int = 3
    decimals: int = 2
    lines: int = 0

    def __post_init__(self):
        known = {*TRAINING_TASKS, *map_tasks(), *box_tasks()}
        for stage in ("structure", "reasoning"):
            _check_tasks(getattr(self, stage).tasks, f"{stage}: tasks", known)


KINDS = {
    "rooms": Recipe,
    "finetune": FineTune,
    "grpo": Reinforce,
    "spa3r": Pretrain,
    "spa3_vlm": Spa3VLMTraining,
    "grounding": GroundingTraining,
    "ssr": SSRTraining,
}


def read_recipe(path: Path) -> Recipe | FineTune | Reinforce | Pretrain | Spa3VLMTraining | GroundingTraining | SSRTraining:
    """A recipe from YAML; an unknown, missing or mistyped key is an error that names it."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected a recipe (see recipes/)")
    try:
        keys = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML ({error})") from error
    kind = keys.pop("kind", "rooms") if isinstance(keys, dict) else "rooms"
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path.name}: kind: found {kind!r}, expected one of {list(KINDS)}")
    recipe = _build(KINDS[kind], keys, path.name)
    if isinstance(recipe, Spa3VLMTraining):  # recipes that a recipe names lie beside it
        recipe = replace(recipe, nano=str(path.parent / recipe.nano), pretraining=str(path.parent / recipe.pretraining))
    return recipe


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, as YAML gives it, as a `kind`: a dataclass, or what its fields are annotated with."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # of something and None
        return None if value is None else _build(inner[0], value, where)
    if origin is tuple and isinstance(value, list) and (inner[1] is ... or len(inner) == len(value)):
        return tuple(_build(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {_build(inner[0], key, where): _build(inner[1], item, f"{where}: {key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-3, without a point, as text
            return float(value)
        except ValueError:
            pass
    if kind is SceneFolder and isinstance(value, str):
        value = {"path": value}
    if not is_dataclass(kind):
        if origin or not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"{where}: found {value!r}, expected {kind if origin else kind.__name__}")
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{where}: found {value!r}, expected keys {[f.name for f in fields(kind)]}")
    known = {f.name: f for f in fields(kind)}
    if unknown := value.keys() - known.keys():
        raise ValueError(f"{where}: found unknown {sorted(unknown, key=str)}, expected keys among {sorted(known)}")
    if missing := [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in value]:
        raise ValueError(f"{where}: found no {missing}, expected every one of them")
    hints = typing.get_type_hints(kind)
    built = {name: _build(hints[name], item, f"{where}: {name}") for name, item in value.items()}
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def resume_point(out: Path) -> str | None:
    """The newest whole checkpoint in a stage's folder, or None; of one that was being written the state is still missing."""
    whole = [state.parent for state in out.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def keep_recipe(recipe: Any, out: Path, free: Sequence[str] = ()) -> None:
    """Write the recipe to `out/recipe.json`; where training by another one has begun there, an error says what differs.

    free   keys that may differ, for they change nothing that is learned; beside those of every recipe.
    """
    if int(os.environ.get("RANK", "0")) > 0:  # one process of many says it
        return
    said = _flat(json.loads(json.dumps(asdict(recipe))))
    for name in ("optimisation.workers", "optimisation.log_every", "optimisation.save_every", *free):
        said.pop(name, None)
    file = out / "recipe.json"
    begun = resume_point(out) or resume_point(out / "checkpoints") or (out / "model").exists() or any(out.glob("*.safetensors"))
    if file.is_file() and begun:
        found = json.loads(file.read_text())
        for name in sorted(said.keys() | found.keys()):
            if said.get(name) != found.get(name):
                met = f"found a run with {name} {found.get(name)}, expected {said.get(name)}"
                raise ValueError(f"{file}: {met}: take another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(said, indent=1))


def _flat(keys: dict, before: str = "") -> dict:
    return {
        name: value
        for key, inner in keys.items()
        for name, value in (_flat(inner, f"{before}{key}.") if isinstance(inner, dict) else {before + key: inner}).items()
    }
