"""Spa3-VLM at the size of nano: a run of nano's recipe once more, with a scene latent in place of added geometry.

    run of recipes/nano.yaml ─► rooms, 2D encoder and its features, VGGT ─┐
    pretraining of a Spa3R on those rooms, VGGT frozen ─► a latent a room ─┴► naming ─► fine-tuning ─► answers on other rooms

Every variant sees the rooms, questions and steps that nano and its controls saw, and starts as the control that has no geometry:
its connector adds nothing before naming. What is frozen is computed once.

Without such a run (`run: nano`), encoders and language model are those of the package, and nano and its controls are trained from
there just like the variants: projections from nothing, then fine-tuning.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import set_seed

from allocentric.encoders.spa3r import Spa3RConfig, Spa3REncoder, load_spa3r
from allocentric.evaluate.answers import Row
from allocentric.evaluate.rooms import (
    ask_rooms,
    bootstrap,
    chance_rows,
    constant_rows,
    numbered,
    read_rows,
    room_questions,
    summary,
    training_questions,
)
from allocentric.evaluate.spa3r import report_on
from allocentric.files import write_whole
from allocentric.model import NANO
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spa3_vlm import Spa3VLMConfig, Spa3VLMForConditionalGeneration, Spa3VLMModel, load_spa3_vlm
from allocentric.models.spatial_mllm import load_spatial_mllm
from allocentric.train import pretrain, run
from allocentric.train.card import HELD_OUT_SEED, CardPlan, unpack
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.recipe import Pretrain, Recipe, Spa3Variant, Spa3VLMTraining, keep_recipe, read_recipe
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms

Progress = Callable[[str, Iterable[tuple[int, int]]], None]

STYLE = "parts"  # of the rooms that are asked about: the style of training
BESIDE = tuple(run.VARIANTS)  # rows of the run that are put beside, where it has asked the same questions
PACKAGE = "nano"  # in place of the folder of a run: what comes with the package


def train_spa3_vlm(
    recipe: Spa3VLMTraining, out: Path, progress: Progress, stages: Sequence[str] = (), short: bool = False, workers: int = 2
) -> Path:
    """Train and ask the variants, and compare what has answered; returns the report. Run again to resume.

    stages   what to train, by name; "report" for the comparison alone; default: all variants, and from the package's nano all
             that is put beside them, too.
    short    a handful of rooms and steps, from the package's nano.
    """
    out, recipe = Path(out), replace(recipe, run=PACKAGE) if short else recipe
    beside = BESIDE if recipe.run == PACKAGE else ()
    if unknown := [stage for stage in stages if stage not in (*recipe.variants, *beside, "report")]:
        raise ValueError(f"stages: found {unknown}, expected some of {[*recipe.variants, *beside, 'report']}")
    nano, pretraining, plan = nano_of(recipe), read_recipe(Path(recipe.pretraining)), CardPlan()
    if not isinstance(pretraining, Pretrain):
        raise ValueError(f"{recipe.pretraining}: expected a recipe of kind spa3r")
    if short:
        nano, pretraining, plan = run.smoke(nano), pretrain.smoke(pretraining), CardPlan(rooms=4, per_task=1)
    source = source_of(recipe, out)
    if recipe.run == PACKAGE:
        if not (source / "package").exists():
            unpack(NANO, source)
        run.run(nano, source, progress, ["rooms", "features"], workers)
    if not (source / "package" / "config.json").is_file():
        raise ValueError(f"{source}: found no folder `package` in it, expected what a run of {recipe.nano} leaves")
    pretraining = like(pretraining, source, nano)
    for name in stages or (*recipe.variants, *beside):
        if name in recipe.variants:
            train_variant(name, recipe.variants[name], nano, pretraining, source, out, plan, progress, workers)
        elif name in beside:
            train_beside(name, nano, source, plan, progress, workers)
    return write_report(recipe, nano, out, plan, held_out(source, plan, progress, workers))


def nano_of(recipe: Spa3VLMTraining) -> Recipe:
    """The recipe of nano that is repeated, with the numbers that are set."""
    nano = read_recipe(Path(recipe.nano))
    if not isinstance(nano, Recipe):
        raise ValueError(f"{recipe.nano}: expected a recipe of kind rooms")
    for name, steps in (("naming", recipe.naming_steps), ("sft", recipe.sft_steps)):
        if steps is not None:
            stage = getattr(nano, name)
            nano = replace(nano, **{name: replace(stage, optimisation=replace(stage.optimisation, steps=steps))})
    return nano if recipe.rooms is None else replace(nano, rooms=replace(nano.rooms, count=recipe.rooms))


def source_of(recipe: Spa3VLMTraining, out: Path) -> Path:
    """The run of nano's recipe that is built upon."""
    return out / "nano" if recipe.run == PACKAGE else Path(recipe.run)


def train_beside(name: str, nano: Recipe, source: Path, plan: CardPlan, progress: Progress, workers: int = 2) -> None:
    """Train nano or a control of it as the variants are, and ask it."""
    see = run.VARIANTS[name]
    run.run(nano, source, progress, [*([f"naming-{name}"] if see else []), f"sft-{name}"], workers)
    asked = held_out(source, plan, progress, workers)
    folder, questions = source / name, room_questions(asked, plan.per_task)
    model, processor = load_spatial_mllm(folder, dtype=torch.float32), SpatialMLLMProcessor.from_pretrained(folder)
    progress(f"{name} ({STYLE})", ask_rooms(model, processor, asked, questions, answers_of(source, name), blind=not see))


def like(pretraining: Pretrain, source: Path, nano: Recipe) -> Pretrain:
    """The pretraining with the encoders of a run of nano's recipe as teachers, on its rooms."""
    package = str(source / "package")
    data = replace(pretraining.data, run=str(source), rooms=nano.rooms.count, frames=nano.rooms.frames)
    return replace(pretraining, geometry=package, semantic=package, data=data)


def train_variant(
    name: str,
    variant: Spa3Variant,
    nano: Recipe,
    pretraining: Pretrain,
    source: Path,
    out: Path,
    plan: CardPlan,
    progress: Progress,
    workers: int = 2,
) -> None:
    """Pretrain, encode the rooms, name, fine-tune and ask one variant; what is there already is not done again."""
    naming, tuning = out / f"naming-{name}", out / f"sft-{name}"
    keep_recipe(nano.naming, naming)
    keep_recipe(nano.sft, tuning)
    if not (out / name / "config.json").exists():
        encoder = scene_encoder(variant, pretraining, out, progress, workers)
        rooms, processor, see = run.training_rooms(nano, source), run.load_processor(source), ("2d", "3d")
        latents = out / f"latents-{name}"
        model = assemble(nano, source, variant, encoder, after="reckoning")  # as nano's naming begins
        progress(f"latents of {name}", write_features(latents, SceneBranch(model.model), rooms, nano.mirrored))
        features = LatentFeatures(source / "features", latents, rooms)
        if not (naming / "projections.safetensors").exists():
            run.name_tokens(one_room_a_pass(nano), model, processor, features, see, naming)
        model = assemble(nano, source, variant, encoder)
        run.load_projections(model, naming)
        run.fine_tune(nano, model, processor, features, see, tuning, out / name, run.told_rooms(nano, source))
    asked = held_out(source, plan, progress, workers)
    trained, processor = load_spa3_vlm(out / name, dtype=torch.float32), SpatialMLLMProcessor.from_pretrained(out / name)
    questions = room_questions(asked, plan.per_task)
    progress(f"{name} ({STYLE})", ask_rooms(trained, processor, asked, questions, answers_of(out, name)))


def scene_encoder(variant: Spa3Variant, pretraining: Pretrain, out: Path, progress: Progress, workers: int) -> Spa3REncoder:
    """The Spa3R of a variant, pretrained and measured if it is not there yet; for raw VGGT features, one that learned nothing."""
    if variant.raw_vggt:
        set_seed(pretraining.optimisation.seed)
        vggt = pretrain.geometric_teacher(pretraining.geometry)
        encoder = Spa3REncoder(Spa3RConfig(**pretraining.model, vggt_config=vggt.config))
        encoder.aggregator.load_state_dict(vggt.aggregator.state_dict())
        return encoder.eval()
    plan, folder = replace(pretraining, mask_ratio=variant.mask_ratio), out / f"spa3r-{round(100 * variant.mask_ratio)}"
    pretrain.pretrain(plan, folder, progress, workers)
    report_on(plan, folder, progress, workers)
    return load_spa3r(folder / "model", decoder=False)


def assemble(
    nano: Recipe, source: Path, variant: Spa3Variant, encoder: Spa3REncoder, after: str = "reading"
) -> Spa3VLMForConditionalGeneration:
    """nano's control without geometry, its language model as it was `after` a stage, and a connector that adds nothing yet."""
    base = run.assemble(nano, source, after, **run.NO_SPACE)
    given = {name: value for name, value in base.config.to_dict().items() if name not in ("model_type", "architectures")}
    config = Spa3VLMConfig(**given | {"spa3r_config": encoder.config, "raw_vggt": variant.raw_vggt})
    model = Spa3VLMForConditionalGeneration(config)
    model.model.spatial_encoder.load_state_dict(encoder.state_dict())
    new = model.load_state_dict(base.state_dict(), strict=False)
    assert not new.unexpected_keys and all(n.startswith(("model.spatial_encoder.", "model.connector.")) for n in new.missing_keys)
    assert model.model.connector.adds_nothing(), "a new connector must leave the tokens as they are"
    return model


def one_room_a_pass(nano: Recipe) -> Recipe:
    """The same naming, room by room: in a forward pass tokens ask one latent."""
    optimisation = nano.naming.optimisation
    passes = optimisation.batch_size * optimisation.accumulate
    return replace(nano, naming=replace(nano.naming, optimisation=replace(optimisation, batch_size=1, accumulate=passes)))


class SceneBranch(nn.Module):
    """The branch of a Spa3-VLM that makes latents, in the shape that `write_features` asks: its 2D features are kept already."""

    def __init__(self, model: Spa3VLMModel):
        super().__init__()
        self.encoder, self.config, self.device = model.spatial_encoder, model.config, model.device
        self.encode_3d = model.encode_3d

    def encode_2d(self, pixels: Tensor, grids: Tensor) -> None:
        return None


class LatentFeatures(RoomFeatures):
    """The 2D features that a run has kept, and latents in place of the tokens of its VGGT."""

    def __init__(self, features: Path, latents: Path, shards: RoomShards):
        super().__init__(features, shards)
        kept = RoomFeatures(latents, shards)
        if len(kept) != len(self):
            raise ValueError(f"{latents}: found latents of {len(kept)} rooms, expected {len(self)} as in {features}")
        self.files["3d"] = kept.files["3d"]


# ---------------------------------------------------------------------------------------------------------------- measuring


def held_out(source: Path, plan: CardPlan, progress: Progress, workers: int = 2) -> RoomShards:
    """The rooms that nano's card asks about."""
    folder = source / "held-out" / STYLE
    progress(f"rooms ({STYLE})", write_rooms(folder, RoomsSpec(plan.rooms, HELD_OUT_SEED, STYLE), workers))
    return RoomShards(folder, plan.rooms)


def answers_of(folder: Path, name: str) -> Path:
    return folder / "answers" / f"{STYLE}-{name}.jsonl"


def write_report(recipe: Spa3VLMTraining, nano: Recipe, out: Path, plan: CardPlan, shards: RoomShards) -> Path:
    """Scores of all variants that have answered, beside those of the run, in `out/report.md`."""
    asked, source = room_questions(shards, plan.per_task), source_of(recipe, out)
    wanted = [question for questions in numbered(asked) for question in questions]
    rows: dict[str, Sequence[Row]] = {}
    notes = []
    for folder, names in ((out, recipe.variants), (source, BESIDE)):
        for name in names:
            file = answers_of(folder, name)
            found = read_rows(file) if file.is_file() else []
            if [row.question for row in found] == wanted:
                rows[name] = found
            else:
                notes.append(f"Not in the table: {name}, which was {'asked other questions' if found else 'not asked'} ({file}).")
    if not rows.keys() & recipe.variants.keys():
        raise ValueError(f"{out}: found no answers of {list(recipe.variants)}, expected those of one at least; name it as a stage")
    training = run.training_rooms(nano, source)
    rows |= {"constant answer": constant_rows(training_questions(training), asked), "chance": chance_rows(asked)}
    steps = nano.sft.optimisation.steps
    begun = "the encoders and the language model of the package's nano" if recipe.run == PACKAGE else f"those of {recipe.run}"
    lines = [
        "# Spa3-VLM beside Spatial-MLLM, at the size of nano\n",
        f"VSI-Bench's eight types on {plan.rooms} held-out rooms, at most {plan.per_task} questions of each type a room; official",
        f"scorer. Each began with {begun}, new projections that learned for {nano.naming.optimisation.steps} steps to name what",
        f"they show, and was then fine-tuned on {nano.rooms.count} rooms for {steps} steps, with questions of the same kinds.",
        "Brackets: 95 % bootstrap interval over rooms; a difference takes the same rooms for both. One run of each: what another",
        "seed would change is not in the intervals.\n",
        table(rows, plan.rooms),
        *(f"\n{note}" for note in notes),
    ]
    file = out / "report.md"
    write_whole(file, "\n".join(lines) + "\n")
    return file


def table(rows: Mapping[str, Sequence[Row]], rooms: int) -> str:
    """Scores by task, their mean with its interval, and the first row's difference to each of the others."""
    draws, scores = bootstrap(rows, rooms), {name: summary(answered) for name, answered in rows.items()}
    first, *others = rows
    span = lambda values, sign="": "[{:{s}.1f}, {:{s}.1f}]".format(*np.percentile(values, [2.5, 97.5]), s=sign)  # noqa: E731
    tasks = [task for task in scores[first] if task != "overall"]
    lines = ["| task | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
    lines += [f"| {task} | " + " | ".join(f"{scores[name].get(task, float('nan')):.1f}" for name in rows) + " |" for task in tasks]
    lines.append("| macro | " + " | ".join(f"**{scores[name]['overall']:.1f}** {span(draws[name])}" for name in rows) + " |")
    gap = lambda other: scores[first]["overall"] - scores[other]["overall"]  # noqa: E731
    lines += ["", f"| {first} minus | macro |", "|---|---|"]
    lines += [f"| {other} | {gap(other):+.1f} {span(draws[first] - draws[other], '+')} |" for other in others]
    return "\n".join(lines)
