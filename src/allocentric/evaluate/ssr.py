"""SSRs on rooms nobody trained on: how good are their maps and boxes, and what do the maps do for answers?

For every room a model is asked for each category of object it knows, writes its map of what it found and the boxes of those
categories, and the eight tasks of VSI-Bench are answered in six ways:

    model          it answers (with the notes it has learned to write)
    map first      it writes a map of what the question names, then answers
    exact map      it answers with the exact map in the prompt
    own map        geometry on the map that it wrote (`graph.programs`); what a map of places cannot tell scores 0
    own boxes      geometry on the boxes that it wrote
    exact graph    geometry on the exact graph: how far programs go

The model that training started from is asked the same questions.

What was written is kept, a line of JSON a room, so an interrupted run goes on and everything can be scored again.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from allocentric.evaluate import statistics
from allocentric.evaluate.answers import Row, read_rows
from allocentric.evaluate.rooms import (
    MAX_NEW_TOKENS,
    ask_rooms,
    constant_rows,
    numbered,
    prompt,
    room_questions,
    room_views,
    row_of,
    training_questions,
    worked_out,
)
from allocentric.files import write_whole
from allocentric.graph.map_tasks import AnswerWithMap, behind_map, map_graph, noted_graph, quality, read, write
from allocentric.graph.metrics import object_f1
from allocentric.graph.programs import ask_graph
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.source import LIST_TOKENS, ask_for_map
from allocentric.graph.text_boxes import (
    DETECT,
    GlobalGrounding,
    boxes_from_first_camera,
    global_quality,
    parse_boxes,
)
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene, weights_id
from allocentric.models.spatial_mllm import load_spatial_mllm
from allocentric.models.ssr import SSRForConditionalGeneration, SSRProcessor
from allocentric.rooms import LABELS
from allocentric.scenes import AnnotatedScene
from allocentric.tasks.base import Question
from allocentric.tasks.facts import seen
from allocentric.train.recipe import SSRTraining
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms
from allocentric.train.ssr import TRAINED, finished, load_stage, smoke, stages_of, start_folder, train_ssr, training_rooms

HELD_OUT_SEED = 30_000_000  # training rooms start at 0; rooms from 10 and 20 million on were looked at while the recipe was made
START = "start"  # in reports: the model that training started from
WAYS = ("model", "map first", "exact map", "own map", "own boxes", "exact graph")
FIRST_TOKENS = 320  # longest map of what a question names, with its answer
MAP_NUMBERS = (
    "object_precision", "object_recall", "direction", "direction_placed", "position_rmse", "metric_rmse", "validity", "tokens",
)  # fmt: skip

Progress = Callable[[str, Iterable[tuple[int, int]]], None]


@dataclass(frozen=True)
class Plan:
    """How much is asked: rooms, questions per type and room, descriptions per room.

    seed      of the first room.
    longest   tokens that boxes and answers behind a map may take, where that is less than usual.
    """

    rooms: int = 200
    per_task: int = 2
    descriptions: int = 4
    seed: int = HELD_OUT_SEED
    longest: int = 768


def train_and_report(
    recipe: SSRTraining, out: Path, small: bool, progress: Progress, stages: Sequence[str] = (), workers: int = 2
) -> Path | None:
    """Run a recipe of kind "ssr" (`train.ssr.train_ssr`), then score what is finished on rooms of its own (stage "report").

    Returns the report; None when `stages` leaves it out. `small`: the smoke variant.
    """
    recipe = smoke(recipe) if small else recipe
    wanted = list(stages) or [*stages_of(recipe), "report"]
    if training := [stage for stage in wanted if stage != "report"]:
        train_ssr(recipe, out, progress, training, workers)
    if "report" not in wanted:
        return None
    return report(
        recipe, out, Plan(rooms=2, per_task=1, descriptions=1, longest=32) if small else Plan(rooms=100), progress, workers
    )


def report(recipe: SSRTraining, out: Path, plan: Plan, progress: Progress, workers: int = 2) -> Path:
    """Score every finished variant and write `out/report.md`, and the numbers behind it as `out/report.json`."""
    out = Path(out)
    if not (names := finished(recipe, out)):
        raise ValueError(f"{out}: found no finished variant, expected one of {list(recipe.variants)}; train it first")
    folder = out / "held-out"
    progress("held-out rooms", write_rooms(folder, _like(recipe, plan), workers))
    shards = RoomShards(folder, plan.rooms)
    written = {}
    for name in names:
        model, processor = load_stage(out / name / TRAINED[1])
        asked = f"{plan.seed}-{plan.rooms}x{plan.per_task}x{plan.descriptions}"
        file = out / "written" / f"{name}-{weights_id(model)[:8]}-{asked}.jsonl"
        progress(name, write_answers(model, processor, shards, recipe.variants[name].maps, plan, file, recipe.redundancy))
        written[name] = [json.loads(line) for line in file.read_text().splitlines()]
    start = start_folder(recipe.start)
    model, processor = load_spatial_mllm(start, dtype=torch.float32), SpatialMLLMProcessor.from_pretrained(start)
    file = out / "written" / f"start-{weights_id(model)[:8]}-{plan.seed}-{plan.rooms}x{plan.per_task}.jsonl"
    progress(START, ask_rooms(model, processor, shards, room_questions(shards, plan.per_task), file))
    drawn = training_questions(training_rooms(recipe, out).shards)
    forms = {name: recipe.variants[name].maps for name in names}
    scores = score(written, shards, forms, plan, recipe.redundancy, drawn, read_rows(file))
    write_whole(out / "report.json", json.dumps(scores, indent=1))
    path = out / "report.md"
    write_whole(path, render(scores, recipe, plan))
    return path


def _like(recipe: SSRTraining, plan: Plan) -> RoomsSpec:
    """Rooms filmed as those of training."""
    spec = recipe.rooms
    return RoomsSpec(plan.rooms, plan.seed, spec.style, spec.frames, spec.height, spec.width)


# ----------------------------------------------------------------------------------------------------------------------- asking


def descriptions(scene: AnnotatedScene, room: int, plan: Plan) -> list[Question]:
    """The same descriptions of a room every time."""
    return GlobalGrounding().make(scene, np.random.default_rng([2, room]), plan.descriptions)


def with_maps(
    asked: Sequence[Question], scene: AnnotatedScene, task: AnswerWithMap, rng: np.random.Generator
) -> list[Question | None]:
    """The questions with the map that goes with them; None where a map does not hold what a question names."""
    if (graph := map_graph(scene)) is None:
        return [None] * len(asked)
    return [task.with_map(question, scene, graph, rng) for question in asked]


def write_answers(
    model: SSRForConditionalGeneration | None,
    processor: SSRProcessor | None,
    shards: RoomShards,
    form: str,
    plan: Plan,
    file: Path,
    redundancy: int,
) -> Iterator[tuple[int, int]]:
    """Everything that is asked of a model about each room, into a JSONL file; goes on with what it holds (None: all is there)."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    *whole, cut_off = file.read_text(encoding="utf-8").split("\n") if file.exists() else [""]
    if cut_off:
        write_whole(file, "".join(line + "\n" for line in whole))
    questions = room_questions(shards, plan.per_task)
    yield len(whole), len(shards)
    for room in range(len(whole), len(shards)):
        record = ask_room(model, processor, shards, room, questions[room], form, plan, redundancy)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        yield room + 1, len(shards)


@torch.inference_mode()
def ask_room(
    model: SSRForConditionalGeneration,
    processor: SSRProcessor,
    shards: RoomShards,
    room: int,
    asked: Sequence[Question],
    form: str,
    plan: Plan,
    redundancy: int,
) -> dict:
    """What a model writes about one room, which it sees once."""
    annotation = shards[room].scene
    scene = Scene.encode(model, processor, room_views(shards, room))

    def answers(prompts: Sequence[str], longest: int) -> list[str]:
        return [answer.text for answer in scene.ask(list(prompts), longest)] if prompts else []

    inside, outside = (AnswerWithMap(place, form, redundancy) for place in ("in", "out"))
    given = with_maps(asked, annotation, inside, np.random.default_rng([3, room]))
    first = with_maps(asked, annotation, outside, np.random.default_rng([3, room]))
    grounding = GlobalGrounding()
    found, written_map = ask_for_map(scene, LABELS, form, redundancy)
    noticed = list(dict.fromkeys(o.label for o in noted_graph(found).objects))
    return {
        "room": room,
        "found": [notes for notes in found if notes],
        "map": written_map,
        "tokens": len(processor.tokenizer(written_map, add_special_tokens=False)["input_ids"]),
        "boxes": "\n".join(answers([DETECT.format(label) for label in noticed], min(LIST_TOKENS, plan.longest))),
        "grounding": answers([grounding.prompt(q) for q in descriptions(annotation, room, plan)], MAX_NEW_TOKENS),
        "model": answers([prompt(q) for q in asked], MAX_NEW_TOKENS),
        "exact map": _spread(answers([inside.prompt(q) for q in given if q], MAX_NEW_TOKENS), given),
        "map first": _spread(answers([outside.prompt(q) for q in first if q], min(FIRST_TOKENS, plan.longest)), first),
    }


def _spread(answers: Sequence[str], asked: Sequence[Question | None]) -> list[str | None]:
    """Answers at the places of the questions that were asked."""
    left = iter(answers)
    return [None if question is None else next(left) for question in asked]


# ---------------------------------------------------------------------------------------------------------------------- scoring


def score(
    written: Mapping[str, Sequence[Mapping]],
    shards: RoomShards,
    forms: Mapping[str, str],
    plan: Plan,
    redundancy: int,
    training: Sequence[Question],
    start: Sequence[Row],
) -> dict:
    """All numbers, with 95 % intervals over rooms: [value, low, high].

    start      answers of the model that training started from.

    maps       of each variant and of the exact maps in either form: `MAP_NUMBERS`.
    boxes      F1 at 0.25 of all boxes, and `global_quality` of the described ones, per variant.
    answers    macro score of each variant and way, and of each task.
    gaps       of the first variant to the others, in maps and answers, and to the start in answers, on the same rooms.
    """
    asked = room_questions(shards, plan.per_task)
    graphs = [map_graph(shards[i].scene) for i in range(len(shards))]
    maps = {
        name: map_table([r["map"] for r in rows], [r["tokens"] for r in rows], graphs, forms[name])
        for name, rows in written.items()
    }
    for form in dict.fromkeys(forms.values()):
        exact = ["" if graph is None else write(graph, form, redundancy) for graph in graphs]
        maps[f"exact, as {form}"] = map_table(exact, [0] * len(exact), graphs, form)
    runs = {
        f"{name}: {way}": answer_rows(rows, way, asked, shards, forms[name])
        for name, rows in written.items()
        for way in WAYS
        if way != "exact graph"
    }
    first = next(iter(written))
    runs["exact graph"] = answer_rows(written[first], "exact graph", asked, shards, forms[first])
    runs |= {START: list(start), f"{START}, worked out": worked_out(start), "constant answer": constant_rows(training, asked)}
    drawn = statistics.bootstrap(runs, scenes=[str(room) for room in range(len(shards))])
    plain = {name: statistics.averages(rows) for name, rows in runs.items()}
    answers = {
        name: {"macro": [float(plain[name].macro[0]), *statistics.interval(drawn[name].macro)]}
        | dict(zip(plain[name].names, plain[name].tasks[0].tolist(), strict=True))
        for name in runs
    }

    def ahead(other: str) -> list[float]:
        """Macro score of the first variant's own answers above those of `other`."""
        one = f"{first}: model"
        return [
            answers[one]["macro"][0] - answers[other]["macro"][0],
            *statistics.interval(drawn[one].macro - drawn[other].macro),
        ]

    gaps = {
        f"{first} minus {other}": {
            number: mean_interval(np.array(maps[first][number]) - np.array(maps[other][number])) for number in MAP_NUMBERS
        }
        | {"macro": ahead(f"{other}: model")}
        for other in written
        if other != first
    } | {f"{first} minus {START}": {"macro": ahead(START)}}
    return {
        "rooms": len(shards),
        "maps": {name: {number: mean_interval(values) for number, values in table.items()} for name, table in maps.items()},
        "boxes": {name: box_scores(rows, shards, plan) for name, rows in written.items()},
        "answers": answers,
        "gaps": gaps,
    }


def map_table(
    texts: Sequence[str], tokens: Sequence[int], graphs: Sequence[SceneGraph | None], form: str
) -> dict[str, Float[np.ndarray, " rooms"]]:
    """`MAP_NUMBERS` of each room; NaN where there is nothing to compare."""
    rows = []
    for text, count, graph in zip(texts, tokens, graphs, strict=True):
        found = dict.fromkeys(MAP_NUMBERS, float("nan")) if graph is None else quality(text, graph, form) | {"tokens": float(count)}
        rows.append([found[number] for number in MAP_NUMBERS])
    return dict(zip(MAP_NUMBERS, np.array(rows, dtype=np.float64).T, strict=True))


def mean_interval(values: Float[np.ndarray, " rooms"], draws: int = statistics.DRAWS, seed: int = 0) -> list[float]:
    """Mean over rooms that have a value, and the middle 95 % of it over resampled rooms."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    if not known.any():
        return [float("nan")] * 3
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    counts = known[picks].sum(1)
    means = np.where(known, values, 0.0)[picks].sum(1) / np.where(counts, counts, np.nan)
    return [float(values[known].mean()), *statistics.interval(means)]


def box_scores(rows: Sequence[Mapping], shards: RoomShards, plan: Plan) -> dict[str, list[float] | float]:
    """F1 of the boxes that were written of whole rooms, and how well described objects were found."""
    f1, found, true = [], [], []
    for row in rows:
        scene = shards[row["room"]].scene
        boxes = boxes_from_first_camera(scene)
        asked = descriptions(scene, row["room"], plan)
        shown = [box for box, visible in zip(boxes or [], seen(scene), strict=bool(boxes)) if visible]
        f1.append(object_f1(parse_boxes(row["boxes"]).boxes, shown)[2] if boxes else float("nan"))
        for question, text in zip(asked, row["grounding"], strict=True):
            found.append(next(iter(parse_boxes(text).boxes), None))
            true.append(question.boxes[0])
    return {"f1_25": mean_interval(np.array(f1))} | global_quality({"rooms": found}, {"rooms": true})["pooled"]


def answer_rows(rows: Sequence[Mapping], way: str, asked: Sequence[Sequence[Question]], shards: RoomShards, form: str) -> list[Row]:
    """The scored answers of one way. Where a map lacks what a question names, "exact map" and "map first" are the plain answer."""
    scored = []
    for row, questions in zip(rows, numbered([asked[row["room"]] for row in rows]), strict=True):
        graph = None
        if way == "own map":
            graph = read(row["map"], form).graph()
        elif way == "own boxes":
            boxes = [box for box in parse_boxes(row["boxes"]).boxes if box.label]
            graph = SceneGraph.from_boxes(boxes, first_seen=list(range(len(boxes))))  # categories were asked in that order
        elif way == "exact graph":
            graph = SceneGraph.from_scene(shards[row["room"]].scene)
        for i, question in enumerate(questions):
            if graph is not None:
                text = ask_graph(graph, question.text, question.options).text if graph.objects else ""
            else:
                text = row["model"][i] if way == "model" or row[way][i] is None else behind_map(row[way][i])
            scored.append(row_of(question, text))
    return scored


# -------------------------------------------------------------------------------------------------------------------- the report


def render(scores: Mapping, recipe: SSRTraining, plan: Plan) -> str:
    """The report as markdown."""
    steps = {stage: getattr(recipe, stage).optimisation.steps for stage in TRAINED}
    variants = ", ".join(f"{name} (fusion {v.fusion}, {v.maps})" for name, v in recipe.variants.items())
    lines = [
        "# SSR on held-out rooms",
        "",
        f"{scores['rooms']} rooms from seed {plan.seed:,}, at most {plan.per_task} questions of each type a room. Trained on "
        f"{recipe.rooms.count} rooms from `{recipe.start}`: {steps['structure']} steps of structure, {steps['reasoning']} of "
        f"reasoning. Variants: {variants}. Brackets: 95% bootstrap interval over rooms.",
        "",
        "## Maps",
        "",
        "`direction`: share of all well-shaped triples of true objects whose quadrant the solved map has right, missing objects "
        "counted as wrong; `placed`: of those it holds. RMSE in metres after the solver, over rooms with three objects placed: "
        "after alignment with scale, and with the written scale.",
        "",
        _table(
            "map",
            ("precision", "recall", "direction", "placed", "RMSE", "RMSE, metric", "valid lines", "tokens"),
            {name: [_cell(table[number], 100 if i in (0, 1, 2, 3, 6) else 1, 0 if i == 7 else 1 if i not in (4, 5) else 2)
                    for i, number in enumerate(MAP_NUMBERS)] for name, table in scores["maps"].items()},
        ),
        "",
        "## Boxes",
        "",
        _table(
            "model",
            ("F1@0.25", "Acc@0.25", "Acc@0.5", "aligned@0.25", "centre error (m)", "size MRA", "answered"),
            {
                name: [
                    _cell(table["f1_25"], 100),
                    *(f"{100 * table[key]:.1f}" for key in ("acc_25", "acc_50", "aligned_25")),
                    f"{table['center_error']:.2f}",
                    *(f"{100 * table[key]:.1f}" for key in ("size_mra", "answered")),
                ]
                for name, table in scores["boxes"].items()
            },
        ),
        "",
        "## Answers",
        "",
        "VSI-Bench's official scorer. A map holds places only: by geometry on it, sizes and the room's area score 0. "
        f"`{START}` is `{recipe.start}`, which training started from; `worked out`: by geometry on its notes where that answers.",
        "",
    ]  # fmt: skip
    tasks = [name for name in next(iter(scores["answers"].values())) if name != "macro"]
    table = {
        name: [*(f"{found.get(task, float('nan')):.1f}" for task in tasks), _cell(found["macro"])]
        for name, found in scores["answers"].items()
    }
    lines += [_table("way", (*tasks, "macro"), table), ""]
    if scores["gaps"]:
        lines += ["## Differences on the same rooms", ""]
        for name, gap in scores["gaps"].items():
            cells = {number: _cell(value, 1, 3 if number != "macro" else 1) for number, value in gap.items()}
            lines.append(f"- {name}: " + ", ".join(f"{number} {cell}" for number, cell in cells.items()))
    return "\n".join(lines) + "\n"


def _cell(value: Sequence[float], times: int = 1, digits: int = 1) -> str:
    middle, low, high = (times * v for v in value)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    head = [f"| {corner} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    return "\n".join([*head, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items())])
