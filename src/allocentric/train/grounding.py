"""Train an S2-MLLM to point at things: L = grounding + language + 0.3 guidance (S2-MLLM, section 3.4).

    allo train recipes/s2_nano.yaml --out out/s2_nano      run again to resume

Rooms are rendered first, what the frozen 2D encoder says of them is kept (`data.cache`), the model is trained and then asked about
rooms nobody trained on (`train.grounding_card`); each leaves its result in a folder of `out` and is skipped once that is there.

Many descriptions and questions about one scene share a sequence, as in `train.sft`: the scene is seen once. Each description is
answered by "The chair is located at <ground> in global coordinates.", and the state at `<ground>` is compared with the objects.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, LoraModel
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

import allocentric
from allocentric.encoders.vggt import load_vggt
from allocentric.files import whole_folder
from allocentric.fusion.structure import info_nce
from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.geometry.cells import as_pictures
from allocentric.models.grounding import INSTRUCTION, S2Processor, Seen, grounding_prompt
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.s2_mllm import GROUND, GroundingOutput, S2LlavaConfig, S2Model, load_s2
from allocentric.models.spatial_mllm import SpatialMLLMModel
from allocentric.rooms import LABELS
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import TRAINING_TASKS
from allocentric.tasks.base import Question, Task
from allocentric.tasks.grounding import TEMPLATES, ReferringExpression
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.guidance import FrozenDecoder, PointMaps, VGGTFeatures, load_decoder
from allocentric.train.optimizer import GroupedTrainer, groups_by_rate
from allocentric.train.recipe import GroundingCard, GroundingData, GroundingTraining, Guide, LoRA, keep_recipe, resume_point
from allocentric.train.room_questions import draw_turns
from allocentric.train.sft import IGNORE, Turn, collate, mask_for, packed_mask, packed_positions
from allocentric.train.shards import RoomSample, RoomShards, RoomsSpec, mirror, random_generator, write_rooms
from allocentric.views import Views

NANO = Path(allocentric.__file__).parent / "nano"

# ------------------------------------------------------------------------------------------------------------------------ recipe


def smoke(recipe: GroundingTraining) -> GroundingTraining:
    """The same recipe from nano on a handful of rooms: about a minute, and teaches nothing."""
    short = replace(recipe.optimisation, steps=3, epochs=None, batch_size=2, accumulate=1, workers=0, log_every=1, save_every=2)
    rooms = RoomsSpec(4, frames=4)
    trained = ["structure|ground_head", *(["lora_"] if recipe.lora else []), *(["guidance"] if recipe.guidance else [])]
    rates = dict.fromkeys(trained, 1e-3)
    lora = recipe.lora and replace(recipe.lora, rank=4, targets=r".*language_model.*(q_proj|v_proj)")
    guide = recipe.guidance and Guide(
        "points", settings={"width": 32, "depth": 1, "heads": 4, "features": 16, "out_channels": [16, 16, 16, 16]}
    )
    data = replace(recipe.data, rooms=rooms, descriptions=2)
    structure = {**recipe.structure, "object_share": 0.1}
    return replace(
        recipe,
        start="nano",
        data=data,
        optimisation=short,
        learning_rates=rates,
        lora=lora,
        guidance=guide,
        structure=structure,
        card=recipe.card and GroundingCard(rooms=2, descriptions=4, ablation_steps=2),
    )


# -------------------------------------------------------------------------------------------------------------------------- data


class Asked(NamedTuple):
    """A scene, its objects, and what is asked of it. `features` are what the 2D encoder says of it, where that is kept."""

    views: Views
    boxes: list[Box3D]
    descriptions: list[Question]
    turns: list[Turn]
    features: Tensor | None = None


@runtime_checkable
class Scenes(Protocol):
    """Where training scenes come from."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Asked: ...


class Rooms:
    """Procedural rooms, and mirrored ones, with new descriptions each time. `features` are those of the same rooms."""

    def __init__(self, shards: RoomShards, data: GroundingData, features: RoomFeatures | None = None):
        self.shards, self.data, self.features, self.task = shards, data, features, ReferringExpression()
        self.tasks: Mapping[str, tuple[Task, float]] = {name: (TRAINING_TASKS[name], weight) for name, weight in data.tasks.items()}

    def __len__(self) -> int:
        return len(self.shards) * (1 + self.data.mirrored)

    def __getitem__(self, index: int) -> Asked:
        sample = self.shards[index % len(self.shards)]
        sample = mirror(sample) if index >= len(self.shards) else sample
        rng = random_generator()
        descriptions = self.task.make(sample.scene, rng, self.data.descriptions)
        turns = draw_turns(sample.scene, self.tasks, self.data.questions, rng)
        features = None if self.features is None else self.features[index][1]["2d"]
        return Asked(room_views(sample), [o.box for o in sample.scene.objects], descriptions, turns, features)


def room_views(sample: RoomSample) -> Views:
    """A rendered room as the views of its camera."""
    tensor = lambda array: torch.from_numpy(np.array(array))  # noqa: E731
    return Views(
        frames=tensor(sample.frames).permute(0, 3, 1, 2).contiguous(),
        depth=tensor(sample.depth.astype(np.float32)),
        intrinsics=tensor(sample.intrinsics.astype(np.float32)),
        camera_to_world=tensor(sample.camera_to_world.astype(np.float32)),
        scale="metric",
        source=sample.scene.name,
    )


class BenchmarkScenes:
    """Scenes of ScanRefer, Nr3D, Sr3D or Multi3DRefer with a few of their descriptions each time; GT boxes are the objects.

    views    opens the frames of a scene by its name.
    scenes   the annotated scenes by name: all their objects are candidates.
    """

    def __init__(
        self, questions: Sequence[Question], scenes: Mapping[str, AnnotatedScene], views: Callable[[str], Views], descriptions: int
    ):
        self.scenes, self.views, self.descriptions = scenes, views, descriptions
        by_scene: dict[str, list[Question]] = {}
        for question in questions:
            by_scene.setdefault(question.scene, []).append(question)
        if unknown := sorted(by_scene.keys() - scenes.keys()):
            raise ValueError(f"scenes: found questions about {unknown[:3]} ({len(unknown)} in all), expected annotations of them")
        # every description is in one group of its scene, so an epoch asks each once
        self.groups = [group[i : i + descriptions] for group in by_scene.values() for i in range(0, len(group), descriptions)]

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Asked:
        group = self.groups[index]
        scene = self.scenes[group[0].scene]
        return Asked(self.views(scene.name), [o.box for o in scene.objects], group, [])


BEGIN, END = "The {} is located at ", " in global coordinates."


def answer(question: Question, language: bool = True) -> str:
    """What the model learns to write. The first of a question's objects is what is asked for; where it is unnamed, "object"."""
    if not language:
        return GROUND
    label = question.objects[0].replace("_", " ") if question.objects and question.objects[0] else "object"
    return f"{BEGIN.format(label)}{GROUND}{END}"


def positives(question: Question, boxes: Sequence[Box3D]) -> Bool[np.ndarray, " k"]:
    """Which candidates are meant: for each true box the one that overlaps it most, if by half at least."""
    found = np.zeros(len(boxes), dtype=bool)
    given = boxes_to_array(boxes)
    for truth in boxes_to_array(question.boxes):
        overlap = box_iou(given, np.broadcast_to(truth, given.shape))
        if overlap.max(initial=0.0) >= 0.5:
            found[overlap.argmax()] = True
    return found


def jittered(boxes: Sequence[Box3D], amount: float, rng: np.random.Generator) -> list[Box3D]:
    """Boxes moved and resized by up to `amount` of their size along each axis."""
    moved = []
    for box in boxes:
        size = np.array(box.size)
        center = np.array(box.center) + rng.uniform(-amount, amount, 3) * size
        size = size * (1 + rng.uniform(-amount, amount, 3))
        moved.append(replace(box, center=tuple(center.tolist()), size=tuple(size.tolist())))
    return moved


class GroundingDataset(Dataset):
    """Packed sequences about scenes, with their geometry and candidates."""

    def __init__(self, scenes: Scenes, processor: S2Processor, data: GroundingData, images: bool = False):
        self.scenes, self.processor, self.data, self.images = scenes, processor, data, images

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        asked = self.scenes[index]
        boxes = asked.boxes
        truth = [positives(question, boxes) for question in asked.descriptions]
        if self.data.jitter:
            boxes = jittered(boxes, self.data.jitter, random_generator())
        seen = self.processor.see(asked.views)
        turns = [Turn(grounding_prompt(question.text), answer(question, self.data.language)) for question in asked.descriptions]
        example = pack_seen(self.processor, seen, [*turns, *asked.turns])
        example |= {name: value[0] for name, value in seen.proposals(boxes).items()}
        example["positive"] = torch.from_numpy(np.array(truth, dtype=bool).reshape(len(truth), len(boxes)))
        example |= seen.inputs
        if asked.features is not None:
            tokens = int(example["video_grid_thw"].prod()) // self.processor.config.vision_config.spatial_merge_size**2
            if len(asked.features) != tokens:
                raise ValueError(
                    f"features: found {len(asked.features)} tokens, expected {tokens} of the frames as the processor resizes them"
                )
            del example["pixel_values_videos"]
            example["video_features_2d"] = asked.features
        rows, columns = seen.inputs["cells"].shape[2:4]
        example["points"] = as_pictures(seen.points.unflatten(0, (-1, rows, columns)))[None]
        example["camera_to_world"] = asked.views.camera_to_world[None]
        if self.images:
            example["images"] = asked.views.frames[None].float() / 255
        return example


def pack_seen(processor: S2Processor, seen: Seen, turns: Sequence[Turn]) -> dict[str, Tensor]:
    """Token ids, labels and segments of one sequence (`train.sft.pack`, for either base)."""
    ids = processor.prefix_ids(seen.inputs)[0].tolist()
    labels, segments = [IGNORE] * len(ids), [0] * len(ids)
    for i, turn in enumerate(turns, start=1):
        question, said = processor.encode(processor.suffix(turn.prompt)), processor.encode(turn.answer + "<|im_end|>")
        ids += question + said
        labels += [IGNORE] * len(question) + said
        segments += [i] * (len(question) + len(said))
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "segments": torch.tensor(segments)}


def collate_groundings(examples: Sequence[dict[str, Tensor]], pad_token_id: int) -> dict[str, Tensor]:
    """Pad sequences and candidates; a box of padding is NaN and has no cell. `positive` has a row per description of the batch."""
    most = max(len(example["boxes"]) for example in examples)

    def widened(value: Tensor, axis: int, fill: float | bool) -> Tensor:
        pad = [0, 0] * (value.ndim - 1 - axis) + [0, most - value.shape[axis]]
        return nn.functional.pad(value, pad, value=fill)

    plain = [
        {
            **{k: v for k, v in example.items() if k not in ("boxes", "shares", "positive")},
            "boxes": widened(example["boxes"], 0, torch.nan)[None],
            "shares": widened(example["shares"], 0, 0.0)[None],
            "positive": with_none(widened(example["positive"], 1, False)),
        }
        for example in examples
    ]
    return collate(plain, pad_token_id)


def with_none(positive: Bool[Tensor, "n k"]) -> Bool[Tensor, "n k1"]:
    """A last column for "none of them": right where no candidate is."""
    return torch.cat([positive, ~positive.any(1, keepdim=True)], dim=1)


# ---------------------------------------------------------------------------------------------------------------------- training


class Guided(nn.Module):
    """A model and the teacher that looks at its visual tokens while it trains. Only `model` is ever saved for use."""

    def __init__(self, model: S2Model, guidance: nn.Module | None = None):
        super().__init__()
        self.model, self.guidance = model, guidance

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        """Of the model; the Trainer asks for it."""
        self.model.gradient_checkpointing_enable(**kwargs)

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """Names that a checkpoint holds once for two; the Trainer, going on from one, asks for them and ties them again."""
        return {f"model.{name}" for name in self.model.all_tied_weights_keys}

    def tie_weights(self) -> None:
        """Of the model; the Trainer asks for it."""
        self.model.tie_weights()

    def forward(
        self, points: Float[Tensor, "b v h w 3"], camera_to_world: Tensor, images: Tensor | None = None, **inputs
    ) -> tuple[GroundingOutput, Tensor | None]:
        output = self.model(**inputs)
        if self.guidance is None:
            return output, None
        return output, self.guidance(output.features, points, camera_to_world, images)


class GroundingTrainer(GroupedTrainer):
    """Hugging Face's Trainer with the three losses. `learning_rates` are those of the recipe."""

    def __init__(
        self, *args, learning_rates: dict[str, float], guidance_weight: float = 0.3, language_weight: float = 1.0, **kwargs
    ):
        super().__init__(*args, **kwargs)
        self.learning_rates, self.guidance_weight, self.language_weight = learning_rates, guidance_weight, language_weight
        self.model_accepts_loss_kwargs = False
        self.parts: dict[str, list[float]] = {}

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        return groups_by_rate(model.named_parameters(), lambda name: rate_of(name, self.learning_rates), self.args.weight_decay)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels, segments, positive = (inputs.pop(name) for name in ("labels", "segments", "positive"))
        network = self.accelerator.unwrap_model(model).model
        mask = (segments >= 0).long()
        straight = network.model.prompt_positions(inputs["input_ids"], mask, inputs.get("video_grid_thw"))
        positions = packed_positions(straight.expand(3, -1, -1), segments)
        targets = labels[:, 1:]
        keep = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)  # logits only where some row has an answer token to predict
        output, guidance = model(
            **inputs,
            attention_mask=mask_for(network.model.language_model, packed_mask(segments)),
            position_ids=positions[0] if len(straight) == 1 else positions,
            logits_to_keep=keep,
            use_cache=False,
        )
        # sums over counts of at least one: a scene may have nothing that can be described
        asked, words = max(len(positive), 1), (targets != IGNORE).sum().clamp(min=1)
        spelled = nn.functional.cross_entropy(
            output.logits.float().flatten(0, 1), targets[:, keep].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        losses = {
            "ground": info_nce(output.cosine, positive, network.config.structure_config.temperature).sum() / asked,
            "language": spelled / words,
        }
        weights = {"ground": 1.0, "language": self.language_weight, "guidance": self.guidance_weight}
        if guidance is not None:
            losses["guidance"] = guidance
        right = positive.gather(1, output.cosine.argmax(1, keepdim=True)).float().sum() / asked
        for name, value in {**losses, "accuracy": right}.items():
            self.parts.setdefault(name, []).append(float(value.detach()))
        loss = sum(weights[name] * value for name, value in losses.items())
        return (loss, output) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Checkpoints to resume from hold model and teacher; embeddings that serve as output layer too are written once."""
        state_dict = self.model.state_dict() if state_dict is None else state_dict
        if self.accelerator.unwrap_model(self.model).model.config.tie_word_embeddings:
            state_dict = {name: value for name, value in state_dict.items() if name != "model.lm_head.weight"}
        super()._save(output_dir, state_dict)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """The parts of the loss beside their sum, each the mean since the last time."""
        logs |= {name: round(sum(values) / len(values), 4) for name, values in self.parts.items()}
        self.parts = {}
        super().log(logs, *args, **kwargs)


def rate_of(name: str, learning_rates: Mapping[str, float]) -> float | None:
    """The learning rate of a parameter; None when it is frozen."""
    return next((rate for pattern, rate in learning_rates.items() if re.search(pattern, name)), None)


def freeze_rest(model: nn.Module, learning_rates: Mapping[str, float]) -> None:
    """Let only parameters with a learning rate train. A pattern that is in no name is an error."""
    names = [name for name, _ in model.named_parameters()]
    for pattern in learning_rates:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"learning_rates: found {pattern!r}, which is in no parameter's name, such as {names[0]!r}")
    teachers = ("guidance.decoder.", "guidance.teacher.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rate_of(name, learning_rates) is not None and not name.startswith(teachers))


def with_adapters(model: nn.Module, lora: LoRA) -> LoraModel:
    """Put low-rank adapters into the layers of `model` whose full name matches; the result merges them again."""
    if lora.whole:
        raise ValueError(f"lora: whole: found {list(lora.whole)}, expected none: here parts train whole by their learning rate")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=lora.dropout)
    return LoraModel(model, config, "default")


def make_guidance(guide: Guide | None, hidden_size: int) -> nn.Module | None:
    if guide is None:
        return None
    settings = dict(guide.settings)
    if guide.kind == "points":
        return PointMaps(hidden_size, **settings)
    if guide.kind == "vggt":
        return VGGTFeatures(hidden_size, load_vggt(settings.pop("weights"), heads=()).aggregator, **settings)
    width = settings.pop("width", 1024)
    return FrozenDecoder(hidden_size, load_decoder(settings.pop("factory"), settings.pop("checkpoint"), **settings), width)


def load_start(recipe: GroundingTraining) -> tuple[S2Model, S2Processor]:
    """The model to train, in float32, and its processor; the tokenizer and embeddings get `<ground>` if they lack it."""
    path = NANO if recipe.start == "nano" else recipe.start
    model = load_s2(path, dtype=torch.float32, structure=recipe.structure)
    frames = None if isinstance(model.config, S2LlavaConfig) else SpatialMLLMProcessor.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path) if frames is None else frames.tokenizer
    if recipe.start == "nano":
        add_phrases(model, tokenizer, room_phrases())
    tokenizer.add_tokens([GROUND], special_tokens=True)
    model.config.ground_token_id = tokenizer.convert_tokens_to_ids(GROUND)
    if len(tokenizer) > model.config.text_config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return model, S2Processor(tokenizer, model.config, frames)


def room_phrases() -> list[str]:
    """What descriptions of rooms and answers are made of: the fixed parts of sentences, and categories with their space."""
    sentences = [template[:1].upper() + template[1:] for templates in TEMPLATES.values() for template in templates]
    parts = [part.removesuffix(" ") for sentence in sentences for part in re.split(r"\{[tab]\}", sentence)]
    whole = [f"{INSTRUCTION}\n", BEGIN.split("{}")[1], END]
    return [*whole, *(part for part in parts if " " in part.strip()), *(f" {label}" for label in LABELS)]


def add_phrases(model: S2Model, tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str]) -> None:
    """Make one token of each phrase, which starts as the mean of the tokens that it took before.

    A small model's tokenizer does not know these words: with this a description and its answer take a quarter of the tokens.
    """
    pieces = {phrase: tokenizer(phrase, add_special_tokens=False)["input_ids"] for phrase in dict.fromkeys(phrases)}
    pieces = {phrase: ids for phrase, ids in pieces.items() if len(ids) > 1}
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in pieces])
    if len(tokenizer) > model.config.text_config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        for phrase, ids in pieces.items():
            embedding[tokenizer.convert_tokens_to_ids(phrase)] = embedding[ids].mean(0)


def train_grounding(
    recipe: GroundingTraining,
    out: Path,
    scenes: Scenes | None = None,
    progress: Callable | None = None,
    workers: int = 2,
    rooms: Path | None = None,
) -> None:
    """Train and save model and processor in `out/model`. Run again to resume.

    scenes   default: the rooms of the recipe, rendered into the folder `rooms` (default: `out/rooms`) first.
    """
    out = Path(out)
    keep_recipe(recipe, out)
    if (out / "model" / "config.json").exists():
        return
    set_seed(recipe.optimisation.seed)
    model, processor = load_start(recipe)
    guided = Guided(model, make_guidance(recipe.guidance, model.config.text_config.hidden_size))
    adapters = with_adapters(guided, recipe.lora) if recipe.lora else None
    freeze_rest(guided, recipe.learning_rates)
    arguments = recipe.optimisation.arguments(out / "checkpoints")
    if scenes is None:
        with arguments.main_process_first(local=False):
            scenes = prepare_rooms(recipe, rooms or out / "rooms", model, progress, workers)
    images = recipe.guidance is not None and recipe.guidance.kind == "vggt"
    if not torch.cuda.is_available():
        model.set_attn_implementation("eager")  # as `encoders.layers.attend`: on a CPU the fused kernel is slower to train through
    set_seed(recipe.optimisation.seed)  # the order of the rooms does not depend on what was made before
    trainer = GroundingTrainer(
        model=guided,
        args=arguments,
        train_dataset=GroundingDataset(scenes, processor, recipe.data, images),
        data_collator=partial(collate_groundings, pad_token_id=processor.tokenizer.pad_token_id),
        learning_rates=recipe.learning_rates,
        guidance_weight=recipe.guidance.weight if recipe.guidance else 0.0,
        language_weight=recipe.language_weight,
        muon=recipe.optimisation.muon,
    )
    trainer.train(resume_from_checkpoint=resume_point(out / "checkpoints"))
    if trainer.is_world_process_zero():
        (out / "log.json").write_text(json.dumps(trainer.state.log_history))
        if adapters is not None:
            adapters.merge_and_unload()
        with whole_folder(out / "model") as unfinished:
            processor.save_pretrained(unfinished)
            model.save_pretrained(unfinished)  # the model alone: no teacher


def prepare_rooms(recipe: GroundingTraining, folder: Path, model: S2Model, progress: Callable | None, workers: int = 2) -> "Rooms":
    """The recipe's rooms, rendered into `folder`, and, if the recipe says so, encoded into `features` beside it."""
    if recipe.data.rooms is None:
        raise ValueError("data: found no rooms in the recipe, expected `rooms`, or scenes of a benchmark (`BenchmarkScenes`)")
    show = progress or (lambda name, steps: [None for _ in steps])
    encoder = encoder_2d(model) if recipe.data.cache else None
    show("rooms", write_rooms(folder, recipe.data.rooms, workers))
    shards = RoomShards(folder, recipe.data.rooms.count)
    if encoder is None:
        return Rooms(shards, recipe.data)
    kept = folder.with_name("features")
    show("features", write_features(kept, encoder, shards, recipe.data.mirrored))
    return Rooms(shards, recipe.data, RoomFeatures(kept, shards))


def encoder_2d(model: S2Model) -> SpatialMLLMModel:
    """The model's 2D encoder alone, for outputs that are kept: it must be Qwen's, of single frames, and stay as it is."""
    if isinstance(model.config, S2LlavaConfig) or model.config.vision_config.temporal_patch_size != 1:
        raise ValueError("data: cache: found a base whose 2D encoder is not like nano's (Qwen's, of single frames), expected false")
    trained = [n for n, p in model.model.visual.named_parameters() if p.requires_grad and not n.startswith("merger.")]
    if trained:
        raise ValueError(f"data: cache: found that the 2D encoder is trained ({trained[0]}), expected false")
    with torch.device("meta"):
        encoder = SpatialMLLMModel(model.config)
    encoder.visual, encoder.language_model = model.model.visual, None
    return encoder
