"""Questions about rooms nobody trained on: ask, score, compare."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene
from allocentric.tasks import VSI_TASKS, make_questions
from allocentric.tasks.base import Question
from allocentric.tasks.vsibench import aggregate
from allocentric.train.shards import RoomShards
from allocentric.views import Views


@dataclass(frozen=True)
class Row:
    """One answered question: everything needed to score it again."""

    room: int
    task: str
    question: str
    options: tuple[str, ...]
    truth: str
    prediction: str
    score: float


def room_questions(shards: RoomShards, per_task: int, seed: int = 0) -> list[list[Question]]:
    """The same questions every time: at most `per_task` of each type for each room."""
    return [make_questions(shards[i].scene, np.random.default_rng([seed, i]), per_task) for i in range(len(shards))]


def room_views(shards: RoomShards, index: int) -> Views:
    """The frames of a room as a model's input: nothing but RGB."""
    frames = torch.from_numpy(np.ascontiguousarray(shards[index].frames)).permute(0, 3, 1, 2)
    return Views(frames=frames.contiguous(), source=f"room {index}")


def ask_rooms(
    model: PreTrainedModel,
    processor: SpatialMLLMProcessor,
    shards: RoomShards,
    questions: Sequence[Sequence[Question]],
    out: Path,
    blind: bool = False,
) -> Iterator[tuple[int, int]]:
    """Ask every question, appending to the JSONL file `out` room by room; yields (rooms done, rooms). Continues a file it began.

    `blind` asks without showing the room: what the wording of the questions gives away.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _rooms_answered(out, questions) if out.exists() else set()
    unseen = blind_scene(model, processor) if blind else None
    with out.open("a") as file:
        for index, asked in enumerate(questions):
            if index not in done and asked:
                scene = unseen or Scene.encode(model, processor, room_views(shards, index))
                answers = scene.ask([VSI_TASKS[base_task(q.task)].prompt(q) for q in asked], max_new_tokens=96)
                rows = [row_of(index, question, answer.text) for question, answer in zip(asked, answers, strict=True)]
                file.write("".join(json.dumps(asdict(row)) + "\n" for row in rows))
                file.flush()
            yield index + 1, len(questions)


def _rooms_answered(file: Path, questions: Sequence[Sequence[Question]]) -> set[int]:
    """Rooms all of whose questions are answered in `file`; what a killed run left of another is cut off."""
    lines = file.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = [_row(line) for line in lines]
    answered: dict[int, list[str]] = {}
    for row in rows:
        answered.setdefault(row.room, []).append(row.question)
    for room, texts in answered.items():
        asked = [question.text for question in questions[room]] if room < len(questions) else []
        if texts != asked[: len(texts)]:
            raise ValueError(
                f"{file}: found answers to other questions about room {room}, expected those asked now; delete the file"
            )
    done = {room for room, texts in answered.items() if len(texts) == len(questions[room])}
    if kept := [line for line, row in zip(lines, rows, strict=True) if row.room in done]:
        partial = file.with_name(file.name + ".part")
        partial.write_text("".join(kept))
        partial.replace(file)
    else:
        file.unlink()
    return done


def row_of(room: int, question: Question, prediction: str) -> Row:
    """The row of one answer, scored as VSI-Bench does."""
    score = VSI_TASKS[base_task(question.task)].score(question, prediction)
    return Row(room, question.task, question.text, question.options, question.answer, prediction, score)


def base_task(name: str) -> str:
    """The task a question type belongs to: the three difficulties of relative direction are one task."""
    return "object_rel_direction" if name.startswith("object_rel_direction") else name


def blind_scene(model: PreTrainedModel, processor: SpatialMLLMProcessor) -> Scene:
    """The prompt with nothing seen."""
    ids = processor.tokenizer(processor.prefix(), return_tensors="pt", add_special_tokens=False)["input_ids"].to(model.device)
    with torch.inference_mode():
        cache = model.model(input_ids=ids, use_cache=True).past_key_values
    return Scene(model, processor, [(layer.keys, layer.values) for layer in cache.layers], ids.shape[1], (), "blind")


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file written by `ask_rooms`."""
    return [_row(line) for line in path.read_text().splitlines()]


def _row(line: str) -> Row:
    fields = json.loads(line)
    return Row(**fields | {"options": tuple(fields["options"])})


def scores_by_room(
    rows: Sequence[Row], rooms: int
) -> tuple[list[str], Float[np.ndarray, "rooms types"], Float[np.ndarray, "rooms types"]]:
    """Question types, and for each room and type the sum of scores and the number of questions."""
    types = sorted({row.task for row in rows})
    sums, counts = np.zeros((rooms, len(types))), np.zeros((rooms, len(types)))
    for row in rows:
        column = types.index(row.task)
        sums[row.room, column] += row.score
        counts[row.room, column] += 1
    return types, sums, counts


def bootstrap(
    rows_by_model: Mapping[str, Sequence[Row]], rooms: int, draws: int = 2000, seed: int = 0
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Macro score of each model over resampled rooms; draw i resamples the same rooms for every model, so differences are paired.

    A question type that no drawn room asks is left out of that draw's mean.
    """
    picks = np.random.default_rng(seed).integers(0, rooms, (draws, rooms))
    weights = np.stack([np.bincount(pick, minlength=rooms) for pick in picks]).astype(float)
    result = {}
    for name, rows in rows_by_model.items():
        types, sums, counts = scores_by_room(rows, rooms)
        asked = weights @ counts
        means = np.ma.masked_array(weights @ sums / np.maximum(asked, 1), mask=asked == 0)
        columns = [[i for i, t in enumerate(types) if base_task(t) == task] for task in VSI_TASKS]
        tasks = [means[:, found].mean(axis=1) for found in columns if found]
        result[name] = np.asarray(100 * np.ma.stack(tasks, axis=1).mean(axis=1))
    return result


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """Score per task and `overall`, their mean, times 100: VSI-Bench's macro average."""
    scores = aggregate((row.task, row.score) for row in rows)
    return {**scores.tasks, "overall": scores.macro}


def constant_rows(train: Sequence[Question], asked: Sequence[Sequence[Question]]) -> list[Row]:
    """Always the best single answer per question type, chosen on training questions ("most frequent" in VSI-Bench).

    A type that is not among them is answered with nothing.
    """
    by_type: dict[str, list[Question]] = {}
    for question in train:
        by_type.setdefault(question.task, []).append(question)
    best = {}
    for name, questions in by_type.items():
        task = VSI_TASKS[base_task(name)]
        candidates = {question.answer for question in questions}
        some = questions[:400]
        best[name] = max(sorted(candidates), key=lambda answer: sum(task.score(question, answer) for question in some))
    return [row_of(room, q, best.get(q.task, "")) for room, questions in enumerate(asked) for q in questions]


def chance_rows(asked: Sequence[Sequence[Question]]) -> list[Row]:
    """Expected score of a uniformly random option; 0 where there are no options, as in VSI-Bench's chance row."""
    return [
        Row(room, q.task, q.text, q.options, q.answer, "", 1 / len(q.options) if q.options else 0.0)
        for room, questions in enumerate(asked)
        for q in questions
    ]
