"""Files of answers: one JSON object a line, appended as they come, whole after any interruption.

While a run goes on, every process appends to a part of its own (`answers.part-0.jsonl`, ...), a scene at a time. `collect` puts the
parts together with what was there: rows of scenes that are answered completely, each once, in the order of the questions.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from allocentric.files import write_whole
from allocentric.geometry.boxes import Box3D
from allocentric.tasks.base import Question, Record


@dataclass(frozen=True)
class Row:
    """One answered question: everything needed to read it, and to score it again.

    prompt      the text the model was given.
    prediction  what the model wrote, as it wrote it, without its notes.
    notes       what it wrote between <think> and </think> before that.
    frames      frame numbers, in the source, of what it was shown.
    score       of the run's profile, 0 to 1.
    """

    question: Question
    prompt: str
    prediction: str
    notes: str
    frames: tuple[int, ...]
    score: float

    @property
    def task(self) -> str:
        return self.question.task

    @property
    def scene(self) -> str:
        return self.question.scene

    def record(self) -> Record:
        return Record(self.question, self.prediction, self.score)


def scene_of(question: Question) -> tuple:
    """What questions have in common that are answered together: they are about the same video, or the same images."""
    return question.scene, question.images


def question_to_dict(question: Question) -> dict:
    """The question as plain JSON types; what is empty is left out."""
    return {name: value for name, value in asdict(question).items() if value or name in ("task", "scene", "text", "answer")}


def question_from_dict(data: dict) -> Question:
    """Read what `question_to_dict` wrote."""
    known = {field.name for field in fields(Question)}
    if not known >= set(data):
        raise ValueError(f"question: found fields {sorted(set(data) - known)}, expected only {sorted(known)}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    boxes = tuple(
        Box3D(**box | {"center": tuple(box["center"]), "size": tuple(box["size"])}) for box in values.pop("boxes", ())
    )
    return Question(**{"options": ()} | values, boxes=boxes)


def to_line(row: Row) -> str:
    """A row as a line of JSON."""
    data = {field.name: getattr(row, field.name) for field in fields(Row)} | {"question": question_to_dict(row.question)}
    return json.dumps(data) + "\n"


def from_line(line: str) -> Row:
    """Read what `to_line` wrote."""
    try:
        data = json.loads(line)
        question, frames = question_from_dict(data.pop("question")), tuple(data.pop("frames"))
        return Row(question=question, frames=frames, **data)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"found a line that is no answer ({error!r}): {line[:80]!r}") from error


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file of answers. A last line that was cut off is no row."""
    written = Path(path).read_bytes()
    try:
        return [from_line(line) for line in written[: written.rfind(b"\n") + 1].decode().split("\n") if line]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a whole file of answers, or nothing."""
    write_whole(path, "".join(map(to_line, rows)))


def part(file: Path, rank: int) -> Path:
    """Where the process `rank` appends."""
    return file.with_name(f"{file.stem}.part-{rank}{file.suffix}")


def collect(file: Path, questions: Sequence[Question]) -> list[Row]:
    """What is answered so far, in the order of the questions, written to `file`; the parts are gone.

    Of a scene that was being written when a run was killed nothing is kept: all its questions are asked together again, so that an
    interrupted run ends with the same file as one that was not.
    """
    parts = sorted(file.parent.glob(f"{file.stem}.part-*{file.suffix}"))
    given: dict[str, Row] = {}
    asked = by_id(questions)
    for source in [file, *parts]:
        if not source.exists():
            continue
        for row in read_rows(source):
            if asked.get(row.question.id) != row.question:
                raise ValueError(
                    f"{source}: found an answer to {row.question.id!r}, {row.question.text!r}, that is not asked now; "
                    "delete the file, or write elsewhere"
                )
            given.setdefault(row.question.id, row)
    open_scenes = {scene_of(question) for question in questions if question.id not in given}
    rows = [given[question.id] for question in questions if scene_of(question) not in open_scenes]
    if parts or len(rows) < len(given):
        write_rows(file, rows)
    for source in parts:
        source.unlink()
    return rows


def by_id(questions: Iterable[Question]) -> dict[str, Question]:
    """Questions by their id, which must be there and differ."""
    found: dict[str, Question] = {}
    for question in questions:
        if not question.id or question.id in found:
            raise ValueError(f"questions: found {'the id ' + repr(question.id) + ' twice' if question.id else 'one without id'}")
        found[question.id] = question
    return found
