"""What cold start and GRPO add, measured with nano: one start, trained on in three ways, asked about rooms nobody trained on.

    allo train recipes/nano.yaml --out out/nano
    python -m allocentric.train.evidence recipes/grpo_nano.yaml --run out/nano --out out/evidence       run again to resume

    sft         nano as that run left it: where the others start
    longer      its supervised stage goes on, for about as much computation as the next two took together
    cold start  fine-tuned on traces that exact programs computed (`cold_start.by_notes`)
    GRPO        the cold start goes on by reward, as the recipe says

Leaves report.md and curves.svg in the output folder. An arm that has finished is skipped, one that was interrupted continues. Seeds
can run side by side, each in a command of its own on one core (OMP_NUM_THREADS=1, `--seeds 0` and `--seeds 1`); a last command with
all of them writes the report.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback

from allocentric.answer import END_THINK, THINK
from allocentric.evaluate.answers import Row, read_rows
from allocentric.evaluate.rooms import ask_rooms, chance_rows, constant_rows, room_questions, training_questions
from allocentric.evaluate.statistics import Averages, averages, bootstrap, interval
from allocentric.files import write_whole
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, load_spatial_mllm
from allocentric.processes import mistakes_in_one_line
from allocentric.tasks import TRAINING_TASKS, Question
from allocentric.train import cold_start
from allocentric.train.card import HELD_OUT_SEED
from allocentric.train.features import RoomFeatures
from allocentric.train.finetune import collate_with, load_to_train, train_and_save
from allocentric.train.jsonl import read_conversations
from allocentric.train.questions import Posed, cached_inputs, draw_questions
from allocentric.train.recipe import Annotations, FineTune, Optimisation, Recipe, Reinforce, SFTStage, Start, read_recipe
from allocentric.train.reinforce import cached_rooms, reinforce
from allocentric.train.room_questions import RoomQuestions
from allocentric.train.sft import SFTTrainer, Turn, pack
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms

ARMS = ("sft", "longer", "cold start", "GRPO")
COMPARED = (("GRPO", "longer"), ("GRPO", "cold start"), ("GRPO", "sft"), ("cold start", "sft"), ("longer", "sft"))
EXAMPLES = 3  # traces that became right, and as many that became wrong
INK = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
Show = Callable[[str, Iterable[tuple[int, int]]], None]
Log = Sequence[Mapping[str, float | int]]  # the Trainer's log history


@dataclass(frozen=True)
class Plan:
    """What is trained, and what is asked.

    grpo       recipe of the last arm; its `rooms` name the run of recipes/nano.yaml whose rooms and features all are trained on.
    sft        the supervised stage that goes on.
    start      the model all arms start from.
    traced     training rooms whose traces are learned from, `sft.questions` traces of each.
    cold, longer   how those arms are optimised; `longer_steps` None: as many as cost what cold start and GRPO did.
    heldout    rooms nobody trained on, `per_task` questions of each type about each.
    """

    grpo: Reinforce
    sft: SFTStage
    start: Path
    out: Path
    cold: Optimisation
    longer: Optimisation
    longer_steps: int | None = None
    traced: int = 500
    heldout: int = 200
    per_task: int = 2
    seeds: tuple[int, ...] = (0, 1)

    @property
    def run(self) -> Path:
        return Path(self.grpo.rooms.run)

    def folder(self, arm: str, seed: int) -> Path:
        return self.out / f"seed-{seed}" / arm.lower().replace(" ", "-")

    def model(self, arm: str, seed: int) -> Path:
        return self.start if arm == "sft" else self.folder(arm, seed) / "model"

    def answers(self, arm: str, seed: int) -> Path:
        return self.out / f"seed-{seed}" / f"{arm.lower().replace(' ', '-')}.jsonl"


def gather(plan: Plan, show: Show) -> str:
    """Train every arm with every seed, ask them all, and write the report, which is returned."""
    for seed in plan.seeds:
        train_cold(plan, write_traces(plan, seed, show), seed)
        train_grpo(plan, seed)
        train_longer(plan, seed)
    shards = held_out_rooms(plan, show)
    questions = room_questions(shards, plan.per_task)
    for seed in plan.seeds:
        for arm in ARMS:
            model = load_spatial_mllm(plan.model(arm, seed), dtype=torch.float32)
            processor = SpatialMLLMProcessor.from_pretrained(plan.model(arm, seed))
            show(run_name(arm, seed), ask_rooms(model, processor, shards, questions, plan.answers(arm, seed)))
    text = report(plan, questions)
    write_whole(plan.out / "report.md", text)
    return text


# ---- the arms ----


def write_traces(plan: Plan, seed: int, show: Show) -> Path:
    """Conversations with traces by the exact programs, about the first rooms of the run; the "video" is a room's number."""
    file = plan.out / f"seed-{seed}" / "traces.jsonl"
    if not file.exists():
        spec = plan.grpo.rooms
        shards = RoomShards(plan.run / "rooms", spec.rooms)
        tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in spec.tasks.items()}
        posed = []
        for row in range(min(plan.traced, len(shards))):
            scene, rng = shards[row].scene, np.random.default_rng([seed, row])
            drawn = draw_questions(scene, tasks, plan.sft.questions, rng)
            posed += [Posed(question, "video", (str(row),), f"room {row}", scene) for question in drawn]
        teacher = cold_start.program_teacher(cold_start.by_notes, "notes")
        show("traces", cold_start.cold_start(posed, teacher, file, "notes"))
    return file


class TracedRooms(Dataset):
    """Packed sequences of the conversations in `file` about rooms whose features are cached, `questions` at a time."""

    def __init__(
        self, file: Path, features: RoomFeatures, processor: SpatialMLLMProcessor, grid: tuple[int, int, int], questions: int
    ):
        self.features, self.processor, self.grid = features, processor, grid
        turns: dict[int, list[Turn]] = {}
        for conversation in read_conversations(str(file)):
            turns.setdefault(int(conversation.paths[0]), []).extend(conversation.turns)
        self.packs = [(row, some[i : i + questions]) for row, some in turns.items() for i in range(0, len(some), questions)]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row, turns = self.packs[index]
        _, features = self.features[row]
        return pack(self.processor, [len(features["2d"])], turns) | cached_inputs(features, self.grid)


def train_cold(plan: Plan, traces: Path, seed: int) -> None:
    def dataset(processor: SpatialMLLMProcessor, config: SpatialMLLMConfig) -> Dataset:
        features, grid = cached_rooms(plan.grpo.rooms, config)
        return TracedRooms(traces, features, processor, grid, plan.sft.questions)

    supervise(plan, plan.cold, dataset, plan.folder("cold start", seed), seed)


def train_longer(plan: Plan, seed: int) -> None:
    def dataset(processor: SpatialMLLMProcessor, config: SpatialMLLMConfig) -> Dataset:
        features, grid = cached_rooms(plan.grpo.rooms, config)
        tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in plan.sft.tasks.items()}
        stage, see = plan.sft, ("2d", "3d")
        return RoomQuestions(features, processor, tasks, stage.questions, grid, see, stage.think, stage.note_error, stage.bare)

    steps = plan.longer_steps or steps_for_the_same(plan, seed)
    supervise(plan, replace(plan.longer, steps=steps), dataset, plan.folder("longer", seed), seed)


def steps_for_the_same(plan: Plan, seed: int) -> int:
    """How many supervised steps take the processor time of cold start and GRPO, at the pace of the cold start's."""
    cold, grpo = (processor_seconds(read_log(plan, arm, seed)) for arm in ("cold start", "GRPO"))
    return max(1, round((cold + grpo) / cold * plan.cold.steps))


def read_log(plan: Plan, arm: str, seed: int) -> Log:
    return json.loads((plan.folder(arm, seed) / "log.json").read_text())


def processor_seconds(log: Log) -> float:
    """What `Clock` counted."""
    return sum(entry.get("cpu_seconds", 0.0) for entry in log)


def supervise(
    plan: Plan,
    optimisation: Optimisation,
    dataset: Callable[[SpatialMLLMProcessor, SpatialMLLMConfig], Dataset],
    out: Path,
    seed: int,
) -> None:
    """Fine-tune the start on a dataset, at one learning rate for all that the supervised stage trains: the encoders are frozen."""
    if (out / "model" / "config.json").exists():
        return
    rates = dict.fromkeys(plan.sft.learning_rates, optimisation.learning_rate)
    recipe = FineTune(
        start=Start(checkpoint=str(plan.start)),
        data=Annotations((), ""),
        batch=optimisation.batch_size,
        learning_rates=rates,
        optimisation=replace(optimisation, seed=seed),
    )
    model, processor = load_to_train(recipe)
    trainer = SFTTrainer(
        model=model,
        args=recipe.optimisation.arguments(out / "checkpoints"),
        train_dataset=dataset(processor, model.config),
        data_collator=collate_with(processor),
        learning_rates=rates,
        muon=optimisation.muon,
        callbacks=[Clock()],
    )
    train_and_save(trainer, recipe, out, processor)


def train_grpo(plan: Plan, seed: int) -> None:
    recipe = replace(
        plan.grpo,
        start=Start(checkpoint=str(plan.model("cold start", seed))),
        rooms=replace(plan.grpo.rooms, heldout=0, seed=seed),
        optimisation=replace(plan.grpo.optimisation, seed=seed),
    )
    reinforce(recipe, plan.folder("GRPO", seed), callbacks=[Clock()])


class Clock(TrainerCallback):
    """Adds to every entry of the log how many seconds of processor time passed since the last. Evaluation is not among them."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = time.process_time()

    def on_log(self, args, state, control, **kwargs):
        now = time.process_time()
        state.log_history[-1]["cpu_seconds"] = now - self.last
        self.last = now


def held_out_rooms(plan: Plan, show: Show) -> RoomShards:
    """Rooms like those trained on, with other seeds: the ones nano's card is made on."""
    like = json.loads((plan.run / "rooms" / "spec.json").read_text())
    folder = plan.run / "held-out" / like["style"]
    show("held-out rooms", write_rooms(folder, RoomsSpec(plan.heldout, **like | {"first_seed": HELD_OUT_SEED})))
    return RoomShards(folder, plan.heldout)


# ---- the report ----


def report(plan: Plan, questions: Sequence[Sequence[Question]]) -> str:
    """Scores, differences, curves and examples as Markdown, from what is in the output folder."""
    rows = {run_name(arm, seed): read_rows(plan.answers(arm, seed)) for arm in ARMS for seed in plan.seeds}
    logs = {run_name(arm, seed): read_log(plan, arm, seed) for arm in ARMS[1:] for seed in plan.seeds}
    single = {name: averages(some) for name, some in rows.items()}
    drawn = bootstrap(rows, scenes=[str(room) for room in range(plan.heldout)])
    learned = {seed: logs[run_name("GRPO", seed)] for seed in plan.seeds}
    write_whole(plan.out / "curves.svg", curves(learned))
    parts = [
        head(plan, logs, sum(map(len, questions))),
        scores(plan, single, over_seeds(plan, drawn), logs, questions),
        differences(plan, single, over_seeds(plan, drawn)),
        "## Reward\n\n![Reward, its parts and the length of completions while learning](curves.svg)\n\n"
        "Running means over a twentieth of the run, one line per seed; sampled completions on training rooms.",
        examples(*(rows[run_name(arm, plan.seeds[0])] for arm in ("cold start", "GRPO"))),
    ]
    return "\n\n".join(parts) + "\n"


def run_name(arm: str, seed: int) -> str:
    return f"{arm}, seed {seed}"


def over_seeds(plan: Plan, found: Mapping[str, Averages]) -> dict[str, Averages]:
    """The mean over seeds of each arm, draw by draw."""
    means = {}
    for arm in ARMS:
        some = [found[run_name(arm, seed)] for seed in plan.seeds]
        mean = lambda name: np.mean([getattr(one, name) for one in some], axis=0)  # noqa: E731, B023
        means[arm] = Averages(some[0].names, mean("tasks"), mean("macro"), mean("micro"))
    return means


def head(plan: Plan, logs: Mapping[str, Log], asked: int) -> str:
    grpo, settings, rooms = plan.grpo.optimisation, plan.grpo.grpo, plan.grpo.rooms
    seeds = f"seed{'s' * (len(plan.seeds) > 1)} {', '.join(map(str, plan.seeds))}"
    questions, longer = plan.sft.questions, sorted({logs[run_name("longer", seed)][-1]["step"] for seed in plan.seeds})
    return f"""# Does learning by reward help nano?

Made by `python -m allocentric.train.evidence`. All arms start from the same nano and are trained on the same {rooms.rooms} rooms,
{seeds}. They answer the same {asked} questions about {plan.heldout} rooms nobody trained on, greedily; scores
are VSI-Bench's. Brackets: 95 % bootstrap intervals over rooms, the same rooms drawn for all arms, of means over seeds.

| arm | |
|---|---|
| sft | the start |
| longer | {" or ".join(map(str, longer))} more supervised steps of {plan.longer.batch_size} rooms, {questions} questions each |
| cold start | {plan.cold.steps} steps of {plan.cold.batch_size} rooms, {questions} traces each by exact programs |
| GRPO | the cold start, then {grpo.steps} steps of {plan.grpo.batch} rooms, {rooms.questions} questions each, {settings.group} \
completions of each; learning rate {grpo.learning_rate:g}, beta {settings.beta:g} |"""


def bracket(values: Float[np.ndarray, " draws"], sign: str = "") -> str:
    low, high = interval(values)
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]"


def scores(
    plan: Plan,
    single: Mapping[str, Averages],
    drawn: Mapping[str, Averages],
    logs: Mapping[str, Log],
    questions: Sequence[Sequence[Question]],
) -> str:
    """Per task and macro, arm beside arm, and what answers without looking score."""
    shards = RoomShards(plan.run / "rooms", plan.grpo.rooms.rooms)
    constant = constant_rows(training_questions(shards), questions)
    blind = {"constant answer": averages(constant), "chance": averages(chance_rows(questions))}
    means = over_seeds(plan, single) | blind
    lines = ["## Scores", "", "| | " + " | ".join(means) + " |", "|---" * (1 + len(means)) + "|"]
    for i, task in enumerate(means["sft"].names):
        lines.append(f"| {task} | " + " | ".join(f"{found.tasks[0, i]:.1f}" for found in means.values()) + " |")
    cells = [f"**{means[arm].macro[0]:.1f}** {bracket(drawn[arm].macro)}" for arm in ARMS]
    lines.append("| macro | " + " | ".join([*cells, *(f"{found.macro[0]:.1f}" for found in blind.values())]) + " |")
    for seed in plan.seeds:
        cells = [f"{single[run_name(arm, seed)].macro[0]:.1f}" for arm in ARMS]
        lines.append(f"| macro, seed {seed} | " + " | ".join(cells) + " | | |")
    seconds = {arm: np.mean([processor_seconds(logs[run_name(arm, seed)]) for seed in plan.seeds]) for arm in ARMS[1:]}
    seconds["GRPO"] += seconds["cold start"]
    lines.append("| processor minutes from sft on | 0 | " + " | ".join(f"{seconds[arm] / 60:.1f}" for arm in ARMS[1:]) + " | | |")
    return "\n".join(lines)


def differences(plan: Plan, single: Mapping[str, Averages], drawn: Mapping[str, Averages]) -> str:
    """Paired differences of the macro average, by seed too, and of the tasks."""
    means = over_seeds(plan, single)
    lines = ["## Differences", "", "| | macro | " + " | ".join(f"seed {seed}" for seed in plan.seeds) + " |"]
    lines.append("|---" * (2 + len(plan.seeds)) + "|")
    for one, other in COMPARED:
        apart = means[one].macro[0] - means[other].macro[0]
        each = [single[run_name(one, seed)].macro[0] - single[run_name(other, seed)].macro[0] for seed in plan.seeds]
        cells = [f"**{apart:+.1f}** {bracket(drawn[one].macro - drawn[other].macro, '+')}", *(f"{value:+.1f}" for value in each)]
        lines.append(f"| {one} - {other} | " + " | ".join(cells) + " |")
    lines += ["", "| | " + " | ".join(f"{one} - {other}" for one, other in COMPARED) + " |", "|---" * (1 + len(COMPARED)) + "|"]
    for i, task in enumerate(means["sft"].names):
        cells = []
        for one, other in COMPARED:
            apart = means[one].tasks[0, i] - means[other].tasks[0, i]
            cells.append(f"{apart:+.1f} {bracket(drawn[one].tasks[:, i] - drawn[other].tasks[:, i], '+')}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def examples(before: Sequence[Row], after: Sequence[Row]) -> str:
    """Questions whose answer became right by reward, and some that became wrong, with what was written before and after."""
    pairs = list(zip(before, after, strict=True))
    lines = ["## What changed"]
    for title, changed in (
        ("Became right", [(a, b) for a, b in pairs if a.score <= 0.2 and b.score >= 0.8]),
        ("Became wrong", [(a, b) for a, b in pairs if a.score >= 0.8 and b.score <= 0.2]),
    ):
        lines.append(f"\n### {title}: {len(changed)} of {len(pairs)}\n")
        by_task = {a.task: (a, b) for a, b in reversed(changed)}  # the first of each question type
        for a, b in list(by_task.values())[:EXAMPLES]:
            asked = " ".join([a.question.text.split("\n")[0], *a.question.options])
            lines += [f"- {asked} (truth: {a.question.answer})"]
            lines += [f"  - {name}: `{written(row)}`" for name, row in (("cold start", a), ("GRPO", b))]
    return "\n".join(lines)


def written(row: Row) -> str:
    return f"{THINK}{row.notes}{END_THINK}{row.prediction}" if row.notes else row.prediction


def curves(logs: Mapping[int, Log]) -> str:
    """An SVG of what was logged by step: one panel for each quantity, one line for each seed."""
    panels = {"reward": "reward", "rewards/accuracy": "accuracy reward", "rewards/format": "format reward", "length": "tokens"}
    known = {name for log in logs.values() for entry in log for name in entry}
    panels = {name: title for name, title in panels.items() if name in known}
    width, height, margin = 280, 180, 34
    parts = []
    for i, (name, title) in enumerate(panels.items()):
        series = {seed: smoothed(log, name) for seed, log in logs.items()}
        steps = np.concatenate([line[:, 0] for line in series.values()])
        values = np.concatenate([line[:, 1] for line in series.values()])
        low, high = float(values.min()), float(max(values.max(), values.min() + 1e-6))
        left, last = i * width + margin, max(float(steps.max()), 1.0)
        parts.append(f'<text x="{left}" y="16">{title}</text>')
        parts.append(f'<rect x="{left}" y="24" width="{width - margin - 12}" height="{height - 52}" fill="none" stroke="#bbb"/>')
        for value, y in ((high, 30), (low, height - 30)):
            parts.append(f'<text x="{left - 4}" y="{y}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<text x="{left}" y="{height - 12}">step 0</text>')
        parts.append(f'<text x="{left + width - margin - 12}" y="{height - 12}" text-anchor="end">{last:.0f}</text>')
        for color, (seed, line) in zip(INK * len(series), series.items(), strict=False):
            x = left + line[:, 0] / last * (width - margin - 12)
            y = height - 28 - (line[:, 1] - low) / (high - low) * (height - 52)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{color}"><title>seed {seed}</title></polyline>')
    size = f'width="{len(panels) * width}" height="{height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">{"".join(parts)}</svg>\n'


def smoothed(log: Log, name: str) -> Float[np.ndarray, "entries 2"]:
    """Step and running mean over a twentieth of the entries."""
    found = np.array([(entry["step"], entry[name]) for entry in log if name in entry], dtype=np.float64)
    window = max(1, len(found) // 20)
    sums = np.concatenate([[0.0], found[:, 1].cumsum()])
    first = np.maximum(np.arange(len(found)) + 1 - window, 0)
    last = np.arange(len(found)) + 1
    return np.stack([found[:, 0], (sums[last] - sums[first]) / (last - first)], axis=1)


# ---- the command ----


def smoke(plan: Plan) -> Plan:
    """The same at a size that shows nothing but that it runs."""
    short = {"steps": 2, "batch_size": 1, "log_every": 1, "save_every": 1, "workers": 0}
    grpo = replace(
        plan.grpo,
        batch=1,
        rooms=replace(plan.grpo.rooms, questions=2),
        grpo=replace(plan.grpo.grpo, group=2),
        optimisation=replace(plan.grpo.optimisation, **short),
    )
    cold, longer = replace(plan.cold, **short), replace(plan.longer, **short)
    return replace(plan, grpo=grpo, cold=cold, longer=longer, longer_steps=2, traced=4, heldout=2, per_task=1)


def evidence(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="a recipe of kind grpo on rooms: recipes/grpo_nano.yaml")],
    out: Annotated[Path, tyro.conf.arg(help="folder for everything; run again to resume")],
    run: Annotated[Path | None, tyro.conf.arg(help="what recipes/nano.yaml left; default: the one that the recipe names")] = None,
    nano: Annotated[Path, tyro.conf.arg(help="recipe whose supervised stage goes on")] = Path("recipes/nano.yaml"),
    start: Annotated[Path | None, tyro.conf.arg(help="weights to start from; default: the run's nano")] = None,
    seeds: tuple[int, ...] = (0, 1),
    rooms: Annotated[int | None, tyro.conf.arg(help="training rooms of the run; default: the recipe's")] = None,
    heldout: int = 200,
    per_task: int = 2,
    traced: Annotated[int, tyro.conf.arg(help="rooms that traces are computed for")] = 500,
    cold_steps: int = 400,
    cold_rate: float = 3e-4,
    grpo_steps: Annotated[int | None, tyro.conf.arg(help="default: the recipe's")] = None,
    longer_steps: Annotated[int | None, tyro.conf.arg(help="default: as many as cost what cold start and GRPO did")] = None,
    longer_rate: float = 3e-4,
    smoke_: Annotated[bool, tyro.conf.arg(name="smoke", help="a minute, to see it run")] = False,
) -> None:
    """Compare supervised fine-tuning, more of it, cold start, and cold start with GRPO, on held-out rooms."""
    grpo, stages = read_recipe(recipe), read_recipe(nano)
    if not isinstance(grpo, Reinforce) or grpo.rooms is None:
        raise ValueError(f"{recipe}: expected a recipe of kind grpo about rooms (recipes/grpo_nano.yaml)")
    if not isinstance(stages, Recipe):
        raise ValueError(f"{nano}: expected a recipe of kind rooms (recipes/nano.yaml)")
    spec = replace(grpo.rooms, run=str(run or grpo.rooms.run), rooms=rooms or grpo.rooms.rooms)
    optimisation = replace(grpo.optimisation, workers=0, steps=grpo_steps or grpo.optimisation.steps)
    supervised = replace(stages.sft.optimisation, workers=0, schedule="cosine")
    plan = Plan(
        grpo=replace(grpo, rooms=spec, optimisation=optimisation),
        sft=stages.sft,
        start=start or Path(spec.run) / "nano",
        out=out,
        cold=replace(supervised, steps=cold_steps, learning_rate=cold_rate),
        longer=replace(supervised, learning_rate=longer_rate),
        longer_steps=longer_steps,
        traced=traced,
        heldout=heldout,
        per_task=per_task,
        seeds=seeds,
    )
    gather(smoke(plan) if smoke_ else plan, show_progress)
    print(out / "report.md")


def show_progress(name: str, steps: Iterable[tuple[int, int]]) -> None:
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        for done, total in steps:
            bar.update(task, completed=done, total=total)


if __name__ == "__main__":
    with mistakes_in_one_line("evidence"):
        tyro.cli(evidence)
