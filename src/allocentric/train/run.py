"""Run a recipe stage by stage. Every stage leaves its result in a folder of its own and is skipped once that is there."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import ConcatDataset, Dataset
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, set_seed

from allocentric import rooms
from allocentric.answer import END_THINK, THINK
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.files import whole_folder
from allocentric.models.processor import SYSTEM, SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, SpatialMLLMModel
from allocentric.tasks import TRAINING_TASKS
from allocentric.tasks.notes import number_words
from allocentric.tasks.object_position import ANSWER_FORM
from allocentric.train.card import CardPlan, export, make_card
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.geometry import GeometricRooms, GeometryLoss, PatchGuidance, collate_clips
from allocentric.train.naming import NamedRooms, Naming, VisualWords
from allocentric.train.numbers import number_features
from allocentric.train.optimizer import GroupedTrainer
from allocentric.train.reading import ReadingTrainer, ToldRooms
from allocentric.train.recipe import GeometryStage, Optimisation, Recipe, SFTStage, keep_recipe, resume_point
from allocentric.train.room_questions import Reckoning, RoomQuestions, draw_turns
from allocentric.train.semantics import SemanticRooms, TokenClassifier
from allocentric.train.sft import SFTTrainer, collate
from allocentric.train.shards import SHARD_SIZE, RoomShards, random_generator, write_rooms
from allocentric.train.tokenizer import fixed_phrases, train_tokenizer

# Parts of every prompt, each one token of the trained tokenizer.
CHAT_PHRASES = (SYSTEM, "system\n", "user\n", "assistant\n", THINK, END_THINK, ANSWER_FORM)
OPTION_PHRASES = ("Options:", "\nA.", "\nB.", "\nC.", "\nD.")

Progress = Callable[[str, Iterable[tuple[int, int]]], None]

# What each way of seeing gives the language model. The controls are trained like nano, on the same questions for as many steps.
NO_SPACE = {"use_spatial": False, "spatial_config": None, "connector_config": None}
VARIANTS = {"nano": ("2d", "3d"), "2d-only": ("2d",), "blind": ()}
TRAINED_FIRST = ("matching", "geometry", "semantics", "reckoning", "reading")
PROJECTIONS = ("visual.merger.", "connector.")
SEEING = [name for name, see in VARIANTS.items() if see]
STAGES = (
    *("rooms", "tokenizer", *TRAINED_FIRST, "features"),
    *(f"naming-{name}" for name in SEEING),
    *(f"sft-{name}" for name in VARIANTS),
    *("package", "card"),
)


def smoke(recipe: Recipe) -> Recipe:
    """The same recipe at a size that runs in about a minute and teaches nothing."""
    short = partial(replace, steps=3, batch_size=2, workers=0, log_every=1, save_every=2)
    return replace(
        recipe,
        rooms=replace(recipe.rooms, count=40),
        tokenizer=replace(recipe.tokenizer, rooms=40),
        matching=replace(recipe.matching, optimisation=short(recipe.matching.optimisation)),
        geometry=replace(recipe.geometry, optimisation=short(recipe.geometry.optimisation)),
        semantics=replace(recipe.semantics, optimisation=short(recipe.semantics.optimisation)),
        reckoning=replace(recipe.reckoning, optimisation=short(recipe.reckoning.optimisation)),
        reading=replace(recipe.reading, questions=4, optimisation=short(recipe.reading.optimisation)),
        naming=replace(recipe.naming, optimisation=short(recipe.naming.optimisation)),
        sft=replace(recipe.sft, questions=4, optimisation=short(recipe.sft.optimisation, batch_size=1)),
    )


def run(recipe: Recipe, out: Path, progress: Progress, stages: Iterable[str] = STAGES, workers: int = 2) -> Path | None:
    """Run `stages` (default: all) in order, each from where it stopped. `progress` shows work that counts its own steps.

    Returns the card, where its stage is among them.
    """
    out, stages = Path(out), list(stages)
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ValueError(f"stages: found {unknown}, expected some of {list(STAGES)}")
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if (name := stage.partition("-")[0]) in (*TRAINED_FIRST, "naming", "sft"):
            keep_recipe(getattr(recipe, name), out / stage)
        if stage == "rooms":
            progress("rooms", write_rooms(out / "rooms", recipe.rooms, workers))
        elif stage == "tokenizer":
            make_tokenizer(recipe, out)
        elif stage == "matching":
            train_geometry(recipe, out, recipe.matching, out / "matching")
        elif stage == "geometry":
            train_geometry(recipe, out, recipe.geometry, out / "geometry", start=out / "matching")
        elif stage == "semantics":
            train_semantics(recipe, out)
        elif stage == "reckoning":
            train_reckoning(recipe, out)
        elif stage == "reading":
            train_reading(recipe, out)
        elif stage == "features":
            model = assemble(recipe, out, after="reckoning").model.eval()
            progress("features", write_features(out / "features", model, training_rooms(recipe, out), recipe.mirrored))
        elif stage.startswith("naming-"):
            train_naming(recipe, out, stage.removeprefix("naming-"))
        elif stage.startswith("sft-"):
            train_sft(recipe, out, stage.removeprefix("sft-"))
        elif stage == "package":
            export(out, out / "package")
        elif stage == "card":
            make_card(recipe, out, progress, CardPlan(rooms=4, per_task=1) if recipe.rooms.count < SHARD_SIZE * 2 else CardPlan())
    return out / "card.md" if "card" in stages else None


def training_rooms(recipe: Recipe, out: Path) -> RoomShards:
    return RoomShards(out / "rooms", recipe.rooms.count)


def make_tokenizer(recipe: Recipe, out: Path) -> None:
    """Train the tokenizer on prompts and answers about training rooms and save the processor around it."""
    folder = out / "processor"
    if folder.exists():
        return
    set_seed(0)
    shards = training_rooms(recipe, out)
    tasks = {name: (task, 1.0) for name, task in TRAINING_TASKS.items()}
    scenes = (shards[i].scene for i in range(recipe.tokenizer.rooms))
    turns = [turn for scene in scenes for turn in draw_turns(scene, tasks, 24, random_generator(), recipe.sft.think)]
    texts = [text for turn in turns for text in (turn.prompt, turn.answer)]
    phrases = [*CHAT_PHRASES, *OPTION_PHRASES, *number_words(), *fixed_phrases(texts, rooms.LABELS)]
    tokenizer = train_tokenizer(texts, recipe.tokenizer.vocab_size, phrases)
    vision = SpatialMLLMConfig(**recipe.model).vision_config
    area = recipe.rooms.height * recipe.rooms.width
    patches = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        # about the area the encoders were trained at; with some room, so that 4:3 and 5:4 both become the trained size
        "size": {"shortest_edge": int(area / 1.25), "longest_edge": int(area * 1.25)},
    }
    processor = SpatialMLLMProcessor(
        Qwen2VLImageProcessor(**patches), tokenizer, Qwen2VLVideoProcessor(**patches), chat_template=tokenizer.chat_template
    )
    with whole_folder(folder) as unfinished:
        processor.save_pretrained(unfinished)


def load_processor(out: Path) -> SpatialMLLMProcessor:
    return SpatialMLLMProcessor.from_pretrained(out / "processor")


def model_config(recipe: Recipe, out: Path, **changes) -> SpatialMLLMConfig:
    """The recipe's model with the token ids of the trained tokenizer."""
    tokenizer = load_processor(out).tokenizer
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
            "image_token_id": "<|image_pad|>",
            "video_token_id": "<|video_pad|>",
        }.items()
    }
    text = recipe.model["text_config"] | {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return SpatialMLLMConfig(**{**recipe.model, "text_config": text, **ids, **changes})


def _train(
    model: nn.Module, optimisation: Optimisation, folder: Path, dataset, collator, trainer_class=GroupedTrainer, **kwargs
) -> nn.Module:
    """Train from the folder's newest checkpoint and mark the folder done; returns the trained model."""
    set_seed(optimisation.seed)
    arguments = optimisation.arguments(folder)
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=dataset, data_collator=collator, muon=optimisation.muon, **kwargs
    )
    trainer.train(resume_from_checkpoint=resume_point(folder))
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    return model


def train_geometry(recipe: Recipe, out: Path, stage: GeometryStage, folder: Path, start: Path | None = None) -> None:
    """Train VGGT and its guidance in `folder`, from the end of the run in `start` or from nothing."""
    if (folder / "vggt.safetensors").exists():
        return
    set_seed(stage.optimisation.seed)
    vggt = new_vggt(recipe)
    loss = GeometryLoss(vggt, stage.dense_frames, guidance=PatchGuidance(vggt))
    if start is not None:
        loss.vggt.load_state_dict(load_file(start / "vggt.safetensors"))
        loss.guidance.load_state_dict(load_file(start / "guidance.safetensors"))
    dataset = GeometricRooms(training_rooms(recipe, out), stage.frames)
    _train(loss, stage.optimisation, folder, dataset, collate_clips)
    save_file(loss.guidance.state_dict(), folder / "guidance.safetensors")
    save_file(loss.vggt.state_dict(), folder / "vggt.safetensors")


def new_vggt(recipe: Recipe) -> VGGT:
    return VGGT(VGGTConfig(**recipe.model["spatial_config"]), heads=("camera", "depth", "point"))


def train_semantics(recipe: Recipe, out: Path) -> None:
    folder, stage = out / "semantics", recipe.semantics
    if (folder / "visual.safetensors").exists():
        return
    set_seed(stage.optimisation.seed)
    model = SpatialMLLMModel(model_config(recipe, out, **NO_SPACE))
    classifier = TokenClassifier(model, len(rooms.LABELS))
    dataset = SemanticRooms(training_rooms(recipe, out), rooms.LABELS, model, stage.frames)
    _train(classifier, stage.optimisation, folder, dataset, _concatenate)
    save_file(classifier.visual.state_dict(), folder / "visual.safetensors")


def _concatenate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([example[key] for example in examples]) for key in examples[0]}


def train_reckoning(recipe: Recipe, out: Path) -> None:
    """Train the language model alone on what follows from notes."""
    folder, stage = out / "reckoning", recipe.reckoning
    if (folder / "language_model.safetensors").exists():
        return
    set_seed(stage.optimisation.seed)
    model, processor = SpatialMLLMForConditionalGeneration(model_config(recipe, out, **NO_SPACE)), load_processor(out)
    number_embeddings(model, processor)
    tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in stage.tasks.items()}
    dataset = Reckoning(training_rooms(recipe, out), processor, tasks, stage.questions, stage.note_error, stage.bare)
    train_on_questions(model, processor, stage, dataset, folder, stage.learning_rates)
    save_file(model.model.language_model.state_dict(), folder / "language_model.safetensors")


def train_reading(recipe: Recipe, out: Path) -> None:
    """Train the language model alone to read tokens that say what a video shows."""
    folder, stage = out / "reading", recipe.reading
    if (folder / "language_model.safetensors").exists():
        return
    # what tells a room takes the place of what is seen: no encoder is needed, and none need be trained yet
    model, processor = speaker(recipe, out, "reckoning", **NO_SPACE), load_processor(out)
    dataset = told_rooms(recipe, out)
    train_on_questions(model, processor, stage, dataset, folder, stage.learning_rates, ReadingTrainer)
    save_file(model.model.language_model.state_dict(), folder / "language_model.safetensors")


def told_rooms(recipe: Recipe, out: Path) -> ToldRooms:
    """Questions about training rooms that are told, in the words that the language model had after `reckoning`."""
    stage, config, processor = recipe.reading, model_config(recipe, out, **NO_SPACE), load_processor(out)
    embedding = load_file(out / "reckoning" / "language_model.safetensors")["embed_tokens.weight"]
    tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in stage.tasks.items()}
    wording = {"think": stage.think, "note_error": stage.note_error, "bare": stage.bare}
    words = VisualWords(embedding, processor.tokenizer, rooms.LABELS)
    told = (video_grid(recipe, config), words, rooms.LABELS, stage.noise, stage.place_error)
    return ToldRooms(training_rooms(recipe, out), processor, tasks, stage.questions, *told, **wording)


def video_grid(recipe: Recipe, config: SpatialMLLMConfig) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of a room's video."""
    vision = config.vision_config
    return (
        recipe.rooms.frames // vision.temporal_patch_size,
        recipe.rooms.height // vision.patch_size,
        recipe.rooms.width // vision.patch_size,
    )


def number_embeddings(model: SpatialMLLMForConditionalGeneration, processor: SpatialMLLMProcessor) -> None:
    """Let near numbers begin alike (`train.numbers`)."""
    numbers, embedding = number_words(), model.get_input_embeddings().weight
    ids = processor.tokenizer.convert_tokens_to_ids(list(numbers))
    with torch.no_grad():
        embedding[ids] = number_features(list(numbers.values()), embedding.shape[1], model.config.text_config.initializer_range)


def train_on_questions(
    model: SpatialMLLMForConditionalGeneration,
    processor: SpatialMLLMProcessor,
    stage: SFTStage,
    dataset: Dataset,
    folder: Path,
    learning_rates: dict[str, float],
    trainer_class: type[SFTTrainer] = SFTTrainer,
) -> None:
    if not torch.cuda.is_available():
        model.model.language_model.set_attn_implementation("eager")  # on a CPU the fused kernel's backward pass takes far longer
    collator = partial(collate, pad_token_id=processor.tokenizer.pad_token_id)
    _train(model, stage.optimisation, folder, dataset, collator, trainer_class, learning_rates=learning_rates)


def speaker(recipe: Recipe, out: Path, after: str, **changes) -> SpatialMLLMForConditionalGeneration:
    """A new model with its language model as it was `after` that stage."""
    set_seed(recipe.sft.optimisation.seed)
    model = SpatialMLLMForConditionalGeneration(model_config(recipe, out, **changes))
    model.model.language_model.load_state_dict(load_file(out / after / "language_model.safetensors"))
    return model


def assemble(recipe: Recipe, out: Path, after: str = "reading", **changes) -> SpatialMLLMForConditionalGeneration:
    """The model with its trained encoders, and its language model as it was `after` that stage. Its projections are new."""
    model = speaker(recipe, out, after, **changes)
    model.model.visual.load_state_dict(load_file(out / "semantics" / "visual.safetensors"))
    if model.model.spatial_encoder is not None:
        vggt = new_vggt(recipe)
        vggt.load_state_dict(load_file(out / "geometry" / "vggt.safetensors"))
        model.model.spatial_encoder.load_state_dict(vggt.aggregator.state_dict())
    return model


def train_naming(recipe: Recipe, out: Path, variant: str) -> None:
    """Teach the projections of one variant to say what they show."""
    folder, see = out / f"naming-{variant}", VARIANTS[variant]
    if (folder / "projections.safetensors").exists():
        return
    model = assemble(recipe, out, after="reckoning", **({} if "3d" in see else NO_SPACE))  # whose words `reading` was told in
    name_tokens(recipe, model, load_processor(out), RoomFeatures(out / "features", training_rooms(recipe, out)), see, folder)


def name_tokens(
    recipe: Recipe,
    model: SpatialMLLMForConditionalGeneration,
    processor: SpatialMLLMProcessor,
    features: RoomFeatures,
    see: Sequence[str],
    folder: Path,
) -> None:
    """Train merger and connector alone (`train.naming`), and write them to `folder`."""
    naming = Naming(model, processor.tokenizer, rooms.LABELS)
    vision = model.config.vision_config
    dataset = NamedRooms(features, rooms.LABELS, vision.patch_size * vision.spatial_merge_size, see)
    for name, parameter in naming.backbone.named_parameters():
        parameter.requires_grad_(name.startswith(PROJECTIONS))
    _train(naming, recipe.naming.optimisation, folder, dataset, _concatenate)
    learned = {name: value for name, value in naming.backbone.state_dict().items() if name.startswith(PROJECTIONS)}
    save_file(learned, folder / "projections.safetensors")


def train_sft(recipe: Recipe, out: Path, variant: str) -> None:
    """Fine-tune one variant and save it, with its processor, in `out/<variant>`."""
    see = VARIANTS[variant]
    if (out / variant / "config.json").exists():
        return
    model = assemble(recipe, out, **({} if "3d" in see else NO_SPACE))
    if see:
        load_projections(model, out / f"naming-{variant}")
    features = RoomFeatures(out / "features", training_rooms(recipe, out))
    told = told_rooms(recipe, out) if see else None
    fine_tune(recipe, model, load_processor(out), features, see, out / f"sft-{variant}", out / variant, told)


def load_projections(model: SpatialMLLMForConditionalGeneration, folder: Path) -> None:
    """Take over what `name_tokens` wrote to `folder`."""
    if unknown := model.model.load_state_dict(load_file(folder / "projections.safetensors"), strict=False).unexpected_keys:
        raise ValueError(f"{folder}: found {unknown}, expected parts of the model")


def fine_tune(
    recipe: Recipe,
    model: SpatialMLLMForConditionalGeneration,
    processor: SpatialMLLMProcessor,
    features: RoomFeatures,
    see: Sequence[str],
    folder: Path,
    target: Path,
    told: ToldRooms | None = None,
) -> None:
    """Fine-tune a model on questions about rooms whose features are kept, in `folder`; save it and its processor in `target`.

    told   rooms to go on reading about meanwhile, entered anywhere: ever new ones, where those that are seen are few.
    """
    stage, grid = recipe.sft, video_grid(recipe, model.config)
    tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in stage.tasks.items()}
    dataset = RoomQuestions(features, processor, tasks, stage.questions, grid, see, stage.think, stage.note_error, stage.bare)
    rates = {name: rate for name, rate in stage.learning_rates.items() if see or "language_model" in name}
    if "3d" not in see:
        rates.pop("model.connector", None)
    dataset = ConcatDataset([dataset, told]) if told is not None else dataset
    train_on_questions(model, processor, stage, dataset, folder, rates, ReadingTrainer)
    with whole_folder(target) as unfinished:
        processor.save_pretrained(unfinished)
        model.save_pretrained(unfinished)
