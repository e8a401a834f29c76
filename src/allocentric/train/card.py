"""nano's card: how it, its controls and two baselines score on rooms nobody trained on."""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.evaluate.rooms import (
    ask_rooms,
    bootstrap,
    chance_rows,
    constant_rows,
    note_error,
    read_rows,
    room_questions,
    summary,
    training_questions,
    worked_out,
)
from allocentric.files import whole_folder, write_whole
from allocentric.model import HEADS_FILE
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import weights_id
from allocentric.models.spatial_mllm import load_spatial_mllm
from allocentric.train.geometry import geometry_errors
from allocentric.train.recipe import Recipe
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms

HELD_OUT_SEED = 10_000_000  # training rooms start at 0
STYLES = {"parts": "the style of training", "models": "real furniture models, a style never trained on"}


@dataclass(frozen=True)
class CardPlan:
    """How much is asked: rooms of each style, questions per type and room."""

    rooms: int = 200
    per_task: int = 2


def export(out: Path, folder: Path) -> None:
    """Write nano as the package ships it: bfloat16 weights, processor, and the VGGT heads that sampling needs."""
    model = load_spatial_mllm(out / "nano", dtype=torch.float32).to(torch.bfloat16)
    vggt = load_file(out / "geometry" / "vggt.safetensors")
    heads = {name: tensor.to(torch.bfloat16) for name, tensor in vggt.items() if not name.startswith("aggregator.")}
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        SpatialMLLMProcessor.from_pretrained(out / "nano").save_pretrained(unfinished)
        save_file(heads, unfinished / HEADS_FILE)


def unpack(package: Path, out: Path) -> None:
    """Lay out what `export` wrote as a run whose encoders and language model are trained, and whose projections are yet to be.

    The language model has gone through fine-tuning, too: it stands in for what it was after `reckoning` and after `reading`.
    """
    model = load_spatial_mllm(package, dtype=torch.float32).model
    vggt = {f"aggregator.{name}": tensor for name, tensor in model.spatial_encoder.state_dict().items()}
    language = model.language_model.state_dict()
    parts = {
        "geometry/vggt": vggt | {name: tensor.float() for name, tensor in load_file(package / HEADS_FILE).items()},
        "semantics/visual": model.visual.state_dict(),
        "reckoning/language_model": language,
        "reading/language_model": language,
    }
    for name, tensors in parts.items():
        file = (out / name).with_suffix(".safetensors")
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file)
    SpatialMLLMProcessor.from_pretrained(package).save_pretrained(out / "processor")
    partial = out / "package.partial"  # the whole package last and at once: it says that all the rest is there
    shutil.copytree(package, partial, dirs_exist_ok=True)
    partial.rename(out / "package")


def make_card(
    recipe: Recipe, out: Path, progress: Callable[[str, Iterable[tuple[int, int]]], None], plan: CardPlan = CardPlan()
) -> str:
    """Ask every model the same questions and write `out/card.md`; styles that cannot be rendered here are named as missing."""
    parts = [_head(recipe, out, plan)]
    vggt = VGGT(VGGTConfig(**recipe.model["spatial_config"])).eval()
    vggt.load_state_dict(load_file(out / "geometry" / "vggt.safetensors"))
    training = RoomShards(out / "rooms", recipe.rooms.count)
    for style, meaning in STYLES.items():
        parts.append(f"\n## Rooms of style `{style}`: {meaning}\n")
        try:
            folder = out / "held-out" / style
            progress(f"rooms ({style})", write_rooms(folder, RoomsSpec(plan.rooms, HELD_OUT_SEED, style)))
        except FileNotFoundError as missing:
            parts.append(f"Not measured: {missing}")
            continue
        shards = RoomShards(folder, plan.rooms)
        asked = room_questions(shards, plan.per_task)
        rows = {}
        for name in ("nano", "2d-only", "blind"):
            if not (out / name / "config.json").is_file():
                continue
            model, processor = load_spatial_mllm(out / name, dtype=torch.float32), SpatialMLLMProcessor.from_pretrained(out / name)
            file = out / "answers" / f"{style}-{name}-{weights_id(model)[:8]}.jsonl"
            progress(f"{name} ({style})", ask_rooms(model, processor, shards, asked, file, blind=name == "blind"))
            rows[name] = read_rows(file)
        rows["constant answer"] = constant_rows(training_questions(training), asked)
        rows["chance"] = chance_rows(asked)
        seeing = [name for name in ("nano", "2d-only") if name in rows]
        parts.append(_table(rows | {f"{name}, worked out": worked_out(rows[name]) for name in seeing}, plan.rooms))
        off = ", ".join(f"{name} {note_error(rows[name], shards):.2f}" for name in seeing)
        parts.append(f"\nPlaces in their notes, median error (m): {off}.")
        errors = geometry_errors(vggt, shards, min(50, plan.rooms))
        parts.append("\nIts VGGT alone, median error: " + ", ".join(f"{name} {value:.2f}" for name, value in errors.items()) + ".")
    text = "\n".join(parts) + "\n"
    write_whole(out / "card.md", text)
    return text


def _head(recipe: Recipe, out: Path, plan: CardPlan) -> str:
    config = json.loads((out / "nano" / "config.json").read_text())
    tensors = load_file(out / "nano" / "model.safetensors")
    heads = {k: v for k, v in load_file(out / "geometry" / "vggt.safetensors").items() if not k.startswith("aggregator.")}
    count = sum(t.numel() for t in tensors.values()) / 1e6
    extra = sum(t.numel() for t in heads.values()) / 1e6
    stages = (recipe.matching, recipe.geometry, recipe.semantics, recipe.reckoning, recipe.reading, recipe.naming, recipe.sft)
    matching, geometry, semantics, reckoning, reading, naming, sft = (stage.optimisation for stage in stages)
    clips = lambda stage: f"{stage.batch_size} clip{'s' * (stage.batch_size > 1)}"  # noqa: E731
    without_video = reckoning.batch_size * recipe.reckoning.questions
    return f"""# nano

A Spatial-MLLM (`{config["model_type"]}`) of {count:.1f} M parameters, and {extra:.1f} M of VGGT heads used for sampling only,
trained from nothing on {recipe.rooms.count} procedural rooms by the recipe `recipes/nano.yaml`.
It knows those rooms. It does not know your kitchen.

Steps and what each takes: geometry {matching.steps} with {clips(matching)}, then {geometry.steps} with {clips(geometry)} of more
frames; semantics {semantics.steps} with {clips(semantics)}; reckoning {reckoning.steps} with {without_video} questions without a
video; reading {reading.steps} with {recipe.reading.questions} questions about told rooms; naming {naming.steps} with
{naming.batch_size} room(s); fine-tuning {sft.steps} with {sft.batch_size} room(s) and at most {recipe.sft.questions} questions
about each.

Scores are VSI-Bench's (official scorer, mean of the eight tasks), on {plan.rooms} held-out rooms and at most {plan.per_task}
questions of each type a room. Brackets: 95% bootstrap interval over rooms. `2d-only` and `blind` are the same model trained on
the same questions for as many steps without the spatial branch, and without any video; they learned to reckon and read as nano did
(who is blind is told no rooms between those of fine-tuning).
`worked out`: where geometry on the model's own notes gives an answer (`allo ask --via graph`), that one; distances are then between
centres. `constant answer` is the best single answer per question type on training rooms. `chance`
guesses an option; it has none to guess for numbers."""


def _table(rows: dict[str, Sequence], rooms: int) -> str:
    draws = bootstrap(rows, rooms)
    scores = {name: summary(answered) for name, answered in rows.items()}
    tasks = list(next(iter(scores.values())))
    lines = ["| task | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    for task in tasks[:-1]:
        lines.append(f"| {task} | " + " | ".join(f"{scores[name].get(task, float('nan')):.1f}" for name in scores) + " |")
    cells = []
    for name in scores:
        low, high = np.percentile(draws[name], [2.5, 97.5])
        cells.append(f"**{scores[name]['overall']:.1f}** [{low:.1f}, {high:.1f}]")
    lines.append("| macro | " + " | ".join(cells) + " |")
    for other in ("2d-only", "blind"):
        if "nano" in draws and other in draws:
            low, high = np.percentile(draws["nano"] - draws[other], [2.5, 97.5])
            gap = scores["nano"]["overall"] - scores[other]["overall"]
            lines.append(f"\nnano minus {other}: {gap:+.1f} [{low:+.1f}, {high:+.1f}] (same rooms resampled for both).")
    return "\n".join(lines)
