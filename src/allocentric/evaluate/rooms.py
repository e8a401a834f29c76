"""Questions about rooms nobody trained on: ask, score, compare. `Rooms` is the benchmark; the rest is for the cards of recipes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from allocentric.evaluate import statistics
from allocentric.evaluate.answers import Row, read_rows
from allocentric.evaluate.responders import Blind, Seeing, blind_scene
from allocentric.evaluate.run import ask
from allocentric.evaluate.statistics import base_task
from allocentric.graph.programs import ask_graph
from allocentric.graph.source import graph_of_notes
from allocentric.model import Model
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.tasks import VSI_TASKS, make_questions
from allocentric.tasks.base import Question
from allocentric.tasks.files import load_json
from allocentric.tasks.notes import noted_places, notes
from allocentric.tasks.vsibench import VSIBench, aggregate
from allocentric.train.shards import RoomShards, RoomsSpec
from allocentric.views import Views, uniform_indices

__all__ = [
    "Rooms", "Row", "ask_rooms", "base_task", "blind_scene", "bootstrap", "chance_rows", "constant_rows", "note_error",
    "read_rows", "room_questions", "room_views", "row_of", "summary", "worked_out",
]  # fmt: skip

COUNT, SEED = 200, 10_000_000  # rooms that `allo eval rooms` asks about; training uses seeds below 1,000,000
MAX_NEW_TOKENS = 128


class Rooms(VSIBench):
    """VSI-Bench's questions about procedural rooms: made from what is true of these, asked and scored as VSI-Bench's are."""

    name = "rooms"

    def read(
        self, path: str | Path, count: int | None = None, seed: int | None = None, style: str | None = None, per_task: int = 2
    ) -> list[Question]:
        """At most `per_task` questions of each type for each of the first `count` rooms (None: all) of a folder of `write_rooms`.

        A folder of rooms of another first `seed`, or of another `style`, is refused.
        """
        shards = RoomShards(Path(path), count)
        spec = load_json(shards.folder / "spec.json")
        for name, wanted in (("first_seed", seed), ("style", style)):
            if wanted is not None and spec[name] != wanted:
                raise ValueError(f"{path}: found rooms of {name} {spec[name]!r}, expected {wanted!r}")
        return [
            replace(question, id=f"{question.scene}.{i}")
            for asked in room_questions(shards, per_task)
            for i, question in enumerate(asked)
        ]


def spec_of(folder: Path, count: int | None = None, seed: int | None = None, style: str | None = None) -> RoomsSpec:
    """The rooms that a folder is to hold: of the kind that is there already, and as asked for."""
    record = folder / "spec.json"
    made = load_json(record) if record.is_file() else {"first_seed": SEED}
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not (record.is_file() or empty) or not isinstance(made, dict) or made.keys() - {field.name for field in fields(RoomsSpec)}:
        raise ValueError(f"{folder}: found something else there, expected a folder of rooms, or none yet")
    asked = {"count": count or COUNT, "first_seed": seed, "style": style}
    return RoomsSpec(**made | {name: value for name, value in asked.items() if value is not None})


def room_questions(shards: RoomShards, per_task: int, seed: int = 0) -> list[list[Question]]:
    """The same questions every time: at most `per_task` of each type for each room."""
    return [make_questions(shards[i].scene, np.random.default_rng([seed, i]), per_task) for i in range(len(shards))]


def room_views(shards: RoomShards, index: int) -> Views:
    """The frames of a room as a model's input: nothing but RGB."""
    frames = torch.from_numpy(np.array(shards[index].frames)).permute(0, 3, 1, 2)
    return Views(frames=frames.contiguous(), indices=torch.arange(len(frames)), source=f"room {index}")


class SeeingRooms(Seeing):
    """A model that is shown a room's frames.

    places   which room of `shards` each scene is.
    """

    def __init__(self, model: Model, shards: RoomShards, places: Mapping[str, int], **looking):
        super().__init__(model, {}, **looking)
        self.shards, self.places = shards, places

    def see(self, questions: Sequence[Question]) -> Views:
        views = room_views(self.shards, self.places[questions[0].scene])
        return views.select(uniform_indices(len(views), self.frames)) if self.sampling == "uniform" else views


def ask_rooms(
    model: PreTrainedModel,
    processor: SpatialMLLMProcessor,
    shards: RoomShards,
    questions: Sequence[Sequence[Question]],
    out: Path,
    blind: bool = False,
) -> Iterator[tuple[int, int]]:
    """Ask every question, into the JSONL file `out`; yields (rooms done, rooms). Continues a file it began (`evaluate.run.ask`).

    `blind` asks without showing the room: what the wording of the questions gives away.
    """
    if blind:
        responder = Blind(model, processor, MAX_NEW_TOKENS)
    else:
        places = {str(room): room for room in range(len(shards))}
        responder = SeeingRooms(Model(model, processor), shards, places, max_new_tokens=MAX_NEW_TOKENS)
    yield from ask([question for asked in numbered(questions) for question in asked], prompt, score, responder, out)


def numbered(questions: Sequence[Sequence[Question]]) -> list[list[Question]]:
    """The questions with the number of their room as the scene, and ids."""
    return [[replace(q, scene=str(room), id=f"{room}.{i}") for i, q in enumerate(asked)] for room, asked in enumerate(questions)]


def prompt(question: Question) -> str:
    """VSI-Bench's wording."""
    return VSI_TASKS[base_task(question.task)].prompt(question)


def score(question: Question, prediction: str) -> float:
    """VSI-Bench's official score."""
    return VSI_TASKS[base_task(question.task)].score(question, prediction)


def row_of(question: Question, prediction: str) -> Row:
    """The row of an answer that no model was asked for."""
    return Row(question, "", prediction, "", (), score(question, prediction))


def worked_out(rows: Sequence[Row]) -> list[Row]:
    """The same answers, but where geometry on the model's own notes gives one (`graph.programs`), that one."""
    found = []
    for row in rows:
        by_graph = ask_graph(graph_of_notes(row.notes), row.question.text, row.question.options)
        known = by_graph.objects and not by_graph.missing
        found.append(replace(row, prediction=by_graph.text, score=score(row.question, by_graph.text)) if known else row)
    return found


def note_error(rows: Sequence[Row], shards: RoomShards) -> float:
    """Metres that places in notes are off: median over the labels that the notes, and exact ones, have once; NaN without any."""
    off = []
    for row in rows:
        true, written = (_once(text) for text in (notes(shards[int(row.scene)].scene, row.question), row.notes))
        off += [math.dist(written[label], true[label]) for label in written.keys() & true.keys()]
    return float(np.median(off)) if off else math.nan


def _once(written: str) -> dict[str, tuple[float, float]]:
    """Places of the labels that notes name once."""
    places = noted_places(written)
    labels = [label for label, _ in places]
    return {label: place for label, place in places if labels.count(label) == 1}


def bootstrap(
    rows_by_model: Mapping[str, Sequence[Row]], rooms: int, draws: int = statistics.DRAWS, seed: int = 0
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Macro score of each model over resampled rooms, paired (`evaluate.statistics.bootstrap`)."""
    found = statistics.bootstrap(rows_by_model, draws, seed, [str(room) for room in range(rooms)])
    return {name: drawn.macro for name, drawn in found.items()}


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Score per task and `overall`, their mean, times 100: VSI-Bench's macro average."""
    scores = aggregate((row.task, row.score) for row in rows)
    return {**scores.tasks, "overall": scores.macro}


def training_questions(shards: RoomShards, most: int = 400) -> list[Question]:
    """Questions about the first `most` training rooms, for what can be known of answers without looking."""
    return [q for i in range(min(most, len(shards))) for q in make_questions(shards[i].scene, np.random.default_rng([1, i]), 2)]


def constant_rows(train: Sequence[Question], asked: Sequence[Sequence[Question]]) -> list[Row]:
    """Always the best single answer per question type, chosen on training questions ("most frequent" in VSI-Bench).

    A type that is not among them is answered with nothing.
    """
    by_type: dict[str, list[Question]] = {}
    for question in train:
        by_type.setdefault(question.task, []).append(question)
    best = {name: best_constant(questions) for name, questions in by_type.items()}
    return [row_of(q, best.get(q.task, "")) for questions in numbered(asked) for q in questions]


def best_constant(questions: Sequence[Question], most: int = 400) -> str:
    """The one answer, among those that are right somewhere, that scores best on the first `most` of these questions."""
    some = questions[:most]
    return max(sorted({q.answer for q in questions}), key=lambda answer: sum(score(question, answer) for question in some))


def chance_rows(asked: Sequence[Sequence[Question]]) -> list[Row]:
    """Expected score of a uniformly random option; 0 where there are no options, as in VSI-Bench's chance row."""
    return [
        Row(q, "", "", "", (), 1 / len(q.options) if q.options else 0.0) for questions in numbered(asked) for q in questions
    ]
