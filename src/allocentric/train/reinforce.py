"""Run a recipe of kind "grpo": a model trained by reward, wholly or with adapters."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from peft import PeftModel
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration
from allocentric.rooms import load_scene
from allocentric.tasks import TRAINING_TASKS, make_questions
from allocentric.train.features import RoomFeatures
from allocentric.train.finetune import load_to_train, prepare, tiny_start, train_and_save
from allocentric.train.grpo import Completer, GRPOTrainer, backbone_of
from allocentric.train.questions import AskedRooms, AskedScenes, Posed, question_line
from allocentric.train.recipe import Annotations, NanoRooms, Reinforce, Start, keep_recipe
from allocentric.train.rewards import rewards_of
from allocentric.train.shards import RoomShards, random_generator


def smoke(recipe: Reinforce) -> Reinforce:
    """The same recipe with a tiny random model on a few rooms: about a minute, and teaches nothing."""
    few = {"steps": 3, "epochs": None, "batch_size": 1, "workers": 0, "log_every": 1, "save_every": 2 * recipe.grpo.updates}
    data = replace(recipe.data or Annotations(files=(), root=""), frames=4, questions=2)
    grpo = replace(recipe.grpo, group=4, max_new_tokens=8)
    short = replace(recipe.optimisation, **few)
    return replace(recipe, start=None, rooms=None, data=data, batch=2, pixel_clamp=None, optimisation=short, grpo=grpo, heldout=())


def reinforce(recipe: Reinforce, out: Path, sampler: Completer | None = None, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train and save model and processor in `out/model`; adapters also in `out/adapters`. Run again to resume."""
    out = Path(out)
    keep_recipe(recipe, out)
    if (out / "model" / "config.json").exists():
        return
    recipe, arguments = prepare(recipe, out, tiny_questions)
    model, processor = load_to_train(recipe)
    backbone_of(model).language_model.set_attn_implementation("sdpa")  # to sample, and for long packs, the faster one on a CPU too
    train, heldout = datasets(recipe, processor, model)
    if heldout is not None:
        arguments.eval_strategy, arguments.eval_steps = IntervalStrategy.STEPS, recipe.evaluate_every
    trainer = GRPOTrainer(
        model=model,
        processor=processor,
        rewards=rewards_of(recipe.form, recipe.mra),
        weights=recipe.rewards,
        settings=recipe.grpo,
        train_dataset=train,
        eval_dataset=heldout,
        learning_rates=recipe.learning_rates,
        muon=recipe.optimisation.muon,
        sampler=sampler,
        args=arguments,
        callbacks=list(callbacks),
    )
    train_and_save(trainer, recipe, out, processor)


def datasets(
    recipe: Reinforce, processor: SpatialMLLMProcessor, model: SpatialMLLMForConditionalGeneration | PeftModel
) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what is only asked."""
    if recipe.rooms is None:
        heldout = AskedScenes(replace(recipe.data, files=recipe.heldout), processor, recipe.form) if recipe.heldout else None
        return AskedScenes(recipe.data, processor, recipe.form), heldout
    spec = recipe.rooms
    features, grid = cached_rooms(spec, model.config)
    tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in spec.tasks.items()}
    train = [row for row in range(len(features)) if row % spec.rooms < spec.rooms - spec.heldout]  # mirror images follow the rooms
    ask = lambda rows, seed, rounds: AskedRooms(  # noqa: E731
        features, processor, tasks, spec.questions, grid, rows, recipe.form, seed, rounds
    )
    heldout = ask(range(spec.rooms - spec.heldout, spec.rooms), spec.seed + 1, 1) if spec.heldout else None
    return ask(train, spec.seed, 16), heldout


def cached_rooms(spec: NanoRooms, config: SpatialMLLMConfig) -> tuple[RoomFeatures, tuple[int, int, int]]:
    """Rooms with their features, and the grid (frames, rows, columns) of the patches that these stand for."""
    shards, vision = RoomShards(Path(spec.run) / "rooms", spec.rooms), config.vision_config
    frames, height, width = shards[0].frames.shape[:3]
    grid = (frames // vision.temporal_patch_size, height // vision.patch_size, width // vision.patch_size)
    features = RoomFeatures(Path(spec.run) / "features", shards)
    if len(features) not in (spec.rooms, 2 * spec.rooms):
        raise ValueError(
            f"{spec.run}: found features of {len(features)} rooms, expected {spec.rooms}, or twice as many with mirrored ones"
        )
    return features, grid


def tiny_questions(folder: Path, data: Annotations) -> tuple[Start, Annotations]:
    """`finetune.tiny_start`, and the questions about its rooms."""
    start, made = tiny_start(folder, data)
    file, lines = folder / "questions.jsonl", []
    if not file.exists():
        for room in sorted(folder.glob("room-*")):
            for question in make_questions(load_scene(room), random_generator(), 1):
                lines.append(question_line(Posed(question, "video", (f"{room.name}/video.mp4",), "")))
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return start, replace(made, files=(str(file),))
