"""Train SSRs on procedural rooms in two stages: structure (write maps and boxes), then reasoning (spec 8).

    allo train recipes/ssr_nano.yaml --out out/ssr_nano      run again to resume

The encoders are those of a nano and stay frozen, so what they say of each room is computed once. What is trained is the connector
of the fusion, the merger of the 2D tokens and the language model, on packed sequences as in `train.sft`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from transformers import PreTrainedConfig, set_seed

from allocentric.files import whole_folder
from allocentric.graph import map_tasks, text_boxes
from allocentric.graph.grammar import CLOSE, OPEN
from allocentric.graph.triplets import GRID
from allocentric.model import NANO
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import load_spatial_mllm
from allocentric.models.ssr import GEOMETRY_END, GEOMETRY_START, SSRConfig, SSRForConditionalGeneration, SSRProcessor, load_ssr
from allocentric.rooms import LABELS
from allocentric.tasks import TRAINING_TASKS
from allocentric.tasks.base import Task
from allocentric.train import run
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.numbers import number_features
from allocentric.train.recipe import SFTStage, SSRTraining, keep_recipe
from allocentric.train.room_questions import Reckoning, draw_turns
from allocentric.train.sft import IGNORE, pack
from allocentric.train.shards import RoomShards, RoomsSpec, random_generator, write_rooms

Progress = Callable[[str, Iterable[tuple[int, int]]], None]
TRAINED = ("structure", "reasoning")  # in this order, the second from the result of the first

# What maps and boxes are written with, each one token: a line of a map is 9 to 12 tokens with these and about 30 without.
CELLS = tuple(f"({x},{y})" for x in range(GRID) for y in range(GRID))
PIECES = (f"{OPEN}\n", CLOSE, " r=", '{"label": "', '", "bbox_3d": [', '], "frame": ', text_boxes.WHERE, text_boxes.DETECT_ALL)


def smoke(recipe: SSRTraining) -> SSRTraining:
    """The same recipe from nano on a handful of rooms, its first variant and a grid: about a minute, and teaches nothing."""

    def short(stage: SFTStage) -> SFTStage:
        brief = replace(stage.optimisation, steps=3, epochs=None, batch_size=2, workers=0, log_every=1, save_every=2)
        return replace(stage, questions=2, optimisation=brief)

    name, first = next(iter(recipe.variants.items()))
    variants = {name: first, "grid": replace(first, maps="grid")}
    return replace(
        recipe,
        start="nano",
        rooms=RoomsSpec(4),
        variants=variants,
        structure=short(recipe.structure),
        reasoning=short(recipe.reasoning),
        lines=min(recipe.lines, 2),
    )


def stages_of(recipe: SSRTraining) -> tuple[str, ...]:
    """The stages of a recipe in order: "rooms", "features", then "structure-A", "reasoning-A", ... for each variant."""
    return ("rooms", "features", *(f"{stage}-{name}" for name in recipe.variants for stage in TRAINED))


def train_ssr(recipe: SSRTraining, out: Path, progress: Progress, stages: Iterable[str] = (), workers: int = 2) -> None:
    """Run `stages` (default: all) in order, each from where it stopped. The trained models come to lie in `out/<variant>`."""
    out, known = Path(out), stages_of(recipe)
    stages = list(stages) or list(known)
    if unknown := [stage for stage in stages if stage not in known]:
        raise ValueError(f"stages: found {unknown}, expected some of {list(known)}")
    out.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        if stage == "rooms":
            if recipe.start == "nano":
                progress("rooms", write_rooms(out / "rooms", recipe.rooms, workers))
        elif stage == "features":
            if recipe.start == "nano":
                model = load_spatial_mllm(NANO, dtype=torch.float32).model
                shards = RoomShards(out / "rooms", recipe.rooms.count)
                progress("features", write_features(out / "features", model, shards, mirrored=False))
        else:
            train_stage(recipe, out, *stage.split("-", 1))


def training_rooms(recipe: SSRTraining, out: Path) -> RoomFeatures:
    """Rooms with what the frozen encoders say of them: of this run, or of the nano run that it starts from."""
    folder = out if recipe.start == "nano" else Path(recipe.start)
    features = RoomFeatures(folder / "features", RoomShards(folder / "rooms", recipe.rooms.count))
    if len(features) not in (recipe.rooms.count, 2 * recipe.rooms.count):
        raise ValueError(
            f"rooms: count: found {recipe.rooms.count}, expected the {len(features)} of {folder} (half of it, if mirrored)"
        )
    if missing := [part for part in ("2d", "3d") if part not in features.files]:
        raise ValueError(f"{folder / 'features'}: found no {missing}, expected features of both encoders")
    return features


# ------------------------------------------------------------------------------------------------------------------------- start


def start_folder(start: str | Path) -> Path:
    """The folder of the nano that training starts from: the package's ("nano"), or that of a finished run."""
    folder = NANO if start == "nano" else Path(start) / "nano"
    if not (folder / "config.json").is_file():
        raise ValueError(f"start: found no model in {folder}, expected 'nano' or the folder of a finished run of recipes/nano.yaml")
    return folder


def start_model(start: str | Path, fusion: str) -> tuple[SSRForConditionalGeneration, SSRProcessor]:
    """An SSR with the encoders, merger, language model and projection of geometry of a nano, and tokens for maps.

    V + A, which all modes but C show, then is what nano's language model has learned to read (A within 2 %: nano's connector
    normalises the patches of a token together, SSR's one by one). In mode C it has yet to put V and A together.

    start   "nano", or the folder of a finished run of recipes/nano.yaml.
    """
    folder = start_folder(start)
    nano, plain = load_spatial_mllm(folder, dtype=torch.float32), SpatialMLLMProcessor.from_pretrained(folder)
    tokenizer, pieces = plain.tokenizer, new_pieces()
    old = {piece: tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces}
    tokenizer.add_tokens([GEOMETRY_START, GEOMETRY_END], special_tokens=True)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    given, _ = PreTrainedConfig.get_config_dict(folder)
    given = {key: value for key, value in given.items() if key not in ("model_type", "architectures")}
    delimiters = tokenizer.convert_tokens_to_ids([GEOMETRY_START, GEOMETRY_END])
    ids = dict(zip(("geometry_start_token_id", "geometry_end_token_id"), delimiters, strict=True))
    model = SSRForConditionalGeneration(SSRConfig(**{**given, **ids, "fusion_mode": fusion}))
    projection = "model.connector.mlp."
    state = {n: v for n, v in nano.state_dict().items() if not n.startswith("model.connector.") or n.startswith(projection)}
    state[f"{projection}0.weight"] = state[f"{projection}0.weight"] * nano.model.connector.ln_q.weight  # one gain per channel left
    report = model.load_state_dict(state, strict=False)
    unset = [name for name in report.missing_keys if name.startswith(projection) or not name.startswith("model.connector.")]
    assert not report.unexpected_keys and not unset, report
    model.generation_config = nano.generation_config
    if len(tokenizer) > model.config.text_config.vocab_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)  # `start_tokens` says where the new rows start
    start_tokens(model, {tokenizer.convert_tokens_to_ids(piece): pieces for piece, pieces in old.items()})
    processor = SSRProcessor(
        plain.image_processor, tokenizer, plain.video_processor, chat_template=plain.chat_template, fusion_mode=fusion
    )
    return model.eval(), processor


def new_pieces() -> tuple[str, ...]:
    """What becomes one token: cells of grids, the pieces of maps and boxes, and the sentences that ask for them."""
    return (*CELLS, *PIECES, *map_tasks.PROMPTS)


@torch.no_grad()
def start_tokens(model: SSRForConditionalGeneration, pieces: Mapping[int, list[int]]) -> None:
    """Start the embeddings of new tokens: as the mean of the tokens that they stand for; near cells alike (`train.numbers`)."""
    model.start_delimiters()
    weight = model.get_input_embeddings().weight
    known = weight[: min(pieces)].clone()
    for token, old in pieces.items():
        weight[token] = known[old].mean(0)
    width, places = weight.shape[1], [(float(x), float(y)) for x in range(GRID) for y in range(GRID)]
    axes = [number_features([place[i] for place in places], width // 2, float(known.std()), seed=i) for i in range(2)]
    first = min(pieces)  # cells come first
    weight[first : first + len(CELLS)] = torch.cat(axes, dim=1)


# -------------------------------------------------------------------------------------------------------------------------- data


def tasks_of(recipe: SSRTraining, variant: str, stage: SFTStage) -> dict[str, tuple[Task, float]]:
    """The tasks of a stage with their weights; maps are in the variant's form. A stage that thinks writes them behind notes, and is
    asked for boxes of a whole room category by category.
    """
    known = TRAINING_TASKS | map_tasks.map_tasks(recipe.variants[variant].maps, recipe.redundancy, stage.think, LABELS)
    known |= text_boxes.box_tasks(recipe.decimals, whole=0.0 if stage.think else 0.5)
    if unknown := sorted(stage.tasks.keys() - known.keys()):
        raise ValueError(f"tasks: found {unknown}, expected some of {sorted(known)}")
    if stage.bare:
        raise ValueError(f"bare: found {stage.bare}, expected 0: without its wording a question of these lacks its map or its form")
    return {name: (known[name], weight) for name, weight in stage.tasks.items()}


class SSRRooms(Dataset):
    """Packed sequences about rooms whose features are cached, as SSR reads them: every frame gives its blocks.

    grid   rows and columns of patches of a frame, which has one token for `merge` x `merge` of them.
    """

    def __init__(
        self,
        features: RoomFeatures,
        processor: SSRProcessor,
        tasks: Mapping[str, tuple[Task, float]],
        stage: SFTStage,
        frames: int,
        grid: tuple[int, int],
        merge: int,
    ):
        self.features, self.processor, self.tasks, self.stage = features, processor, tasks, stage
        self.grid = torch.tensor([(1, *grid)] * frames)
        shown = processor.blocks([grid[0] * grid[1] // merge**2] * frames)
        self.shown = processor.tokenizer(shown, add_special_tokens=False, return_tensors="pt")["input_ids"][0]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene, features = self.features[index]
        stage = self.stage
        turns = draw_turns(scene, self.tasks, stage.questions, random_generator(), stage.think, stage.note_error)
        example = pack(self.processor, (), turns)
        prefix = int((example["segments"] == 0).sum())  # what is seen comes last in it
        for name, value in {"input_ids": self.shown, "labels": IGNORE, "segments": 0}.items():
            between = value if isinstance(value, Tensor) else torch.full_like(self.shown, value)
            example[name] = torch.cat([example[name][:prefix], between, example[name][prefix:]])
        return example | {
            "image_grid_thw": self.grid,
            "video_features_2d": features["2d"],
            "video_features_3d": features["3d"],
        }


# ---------------------------------------------------------------------------------------------------------------------- training


def train_stage(recipe: SSRTraining, out: Path, stage: str, variant: str) -> None:
    """Train one stage of one variant and save it: `out/<variant>/<stage>`, checkpoints beside it."""
    plan: SFTStage = getattr(recipe, stage)
    target, checkpoints = out / variant / stage, out / variant / f"{stage}-checkpoints"
    keep_recipe(plan, checkpoints)
    if (target / "config.json").exists():
        return
    features = training_rooms(recipe, out)
    set_seed(plan.optimisation.seed)
    if stage == TRAINED[0]:
        model, processor = start_model(recipe.start, recipe.variants[variant].fusion)
    else:
        model, processor = load_stage(out / variant / TRAINED[0])
    frames, height, width = features.shards[0].frames.shape[:3]
    vision = model.config.vision_config
    dataset = SSRRooms(
        features,
        processor,
        tasks_of(recipe, variant, plan),
        plan,
        frames,
        (height // vision.patch_size, width // vision.patch_size),
        vision.spatial_merge_size,
    )
    if recipe.lines and stage == TRAINED[0]:
        task = map_tasks.MapLine(recipe.variants[variant].maps, think=plan.think)
        lines = Reckoning(features.shards, processor, {task.name: (task, 1.0)}, recipe.lines)
        dataset = ConcatDataset([dataset, *[lines] * (len(dataset) // len(lines))])
    run.train_on_questions(model, processor, plan, dataset, checkpoints, plan.learning_rates)
    with whole_folder(target) as unfinished:
        processor.save_pretrained(unfinished)
        model.save_pretrained(unfinished)


def load_stage(folder: Path) -> tuple[SSRForConditionalGeneration, SSRProcessor]:
    """A trained stage, in float32."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: found no trained model, expected one; run its stage first")
    return load_ssr(folder, dtype=torch.float32), SSRProcessor.from_pretrained(folder)


def finished(recipe: SSRTraining, out: Path) -> list[str]:
    """The variants that have gone through both stages."""
    return [name for name in recipe.variants if (Path(out) / name / TRAINED[1] / "config.json").is_file()]
