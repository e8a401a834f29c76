"""Predictions in the log formats of lmms-eval and VLMEvalKit: others' outputs in, to be scored by ours; ours out.

lmms-eval    the `*_samples_*.jsonl` of `--log_samples`: a line per question with `filtered_resps` (and `resps`, where they differ).
             `doc_id` there is a row number, which moves when a data set is rearranged; questions are joined by the official id,
             which stands in `doc` (older versions) or in what the task's metrics keep.
vlmevalkit   the prediction table (`PRED_FORMAT=tsv`, `json`, or the default .xlsx): columns `prediction` and `id`, or `index`.

A question that the log does not answer is an error, and so is an answer to a question that differs from the benchmark's.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from allocentric.evaluate.answers import Row, by_id
from allocentric.files import write_whole
from allocentric.tasks.base import Benchmark, Question
from allocentric.tasks.files import read_rows

IDS = ("id", "question_id", "index")


def import_log(path: Path, log_format: str, benchmark: Benchmark, questions: Sequence[Question], profile: str) -> list[Row]:
    """A row for each question, in their order, with what the log says a model wrote, scored by `profile`."""
    read = {"lmms-eval": _lmms_eval, "vlmevalkit": _vlmevalkit}[log_format]
    asked = by_id(questions)
    if not path.is_file():
        raise ValueError(f"{path}: found no such file, expected a log of {log_format}")
    given: dict[str, tuple[str, str]] = {}
    for place, identity, text, prompt, prediction in read(path):
        if identity not in asked:
            raise ValueError(f"{place}: found the id {identity!r}, expected one of the {len(asked)} questions asked here")
        if text and not _same(asked[identity].text, text):
            raise ValueError(f"{place}: found {text!r} for the id {identity!r}, expected {asked[identity].text!r}")
        if identity in given:
            raise ValueError(f"{place}: found a second answer to {identity!r}")
        given[identity] = prompt, prediction
    if missing := asked.keys() - given.keys():
        raise ValueError(f"{path}: found no answers to {len(missing)} of {len(asked)} questions, such as {min(missing)!r}")
    return [
        Row(question, prompt, prediction, "", (), benchmark.score(question, prediction, profile))
        for question in questions
        for prompt, prediction in [given[question.id]]
    ]


def export_log(rows: Sequence[Row], task: str, log_format: str, path: Path) -> None:
    """Write a run as a log that `import_log`, and the tools of that framework, read."""
    if log_format == "lmms-eval":
        write_whole(path, "".join(json.dumps(_sample(i, row, task), ensure_ascii=False) + "\n" for i, row in enumerate(rows)))
        return
    if path.suffix not in (".tsv", ".csv"):
        raise ValueError(f"{path}: expected a name that ends in .tsv or .csv, the tables that VLMEvalKit reads and writes")
    partial = path.with_name(path.name + ".tmp")
    with partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(_table_row(rows[0])), delimiter="\t" if path.suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(_table_row(row) for row in rows)
    partial.replace(path)


def _sample(number: int, row: Row, task: str) -> dict[str, Any]:
    q = row.question
    kept = {"id": q.id, "question_type": q.task, "scene": q.scene, "question": q.text, "ground_truth": q.answer, "score": row.score}
    return {
        "doc_id": number,
        "target": q.answer,
        "input": row.prompt,
        "filtered_resps": row.prediction,
        f"{task}_score": kept | {"prediction": row.prediction},
    }


def _table_row(row: Row) -> dict[str, Any]:
    q = row.question
    return {
        "index": q.id,
        "id": q.id,
        "video": q.scene,
        "question_type": q.task,
        "question": q.text,
        "options": json.dumps(list(q.options)) if q.options else "",
        "answer": q.answer,
        "prediction": row.prediction,
    }


Entry = tuple[str, str, str, str, str]  # place, id, question text (if told), prompt (if told), prediction


def _lmms_eval(path: Path) -> Iterable[Entry]:
    for number, sample in enumerate(read_rows(path), start=1):
        place = f"{path}:{number}"
        docs = [d for d in (sample.get("doc"), *sample.values()) if isinstance(d, Mapping)]
        doc = next((d for d in docs if any(name in d for name in IDS[:2])), None)
        if doc is None:
            raise ValueError(f"{place}: found no official id, expected one in `doc` or in what the task's metrics keep; rows move")
        prediction = sample.get("resps", sample.get("filtered_resps"))
        while isinstance(prediction, list) and prediction:
            prediction = prediction[0]
        if not isinstance(prediction, str):
            raise ValueError(f"{place}: found {prediction!r}, expected text in `resps` or `filtered_resps`")
        text = str(doc.get("question", ""))
        text = json.loads(text)["text"] if text.startswith("{") else text  # as evaluate.lmms_tasks writes it
        yield place, _identity(doc, IDS[:2]), text, str(sample.get("input", "")), prediction


def _vlmevalkit(path: Path) -> Iterable[Entry]:
    rows = _sheet(path) if path.suffix == ".xlsx" else read_rows(path)
    for number, row in enumerate(rows, start=1):
        place = f"{path}, row {number}"
        if "prediction" not in row or not any(name in row for name in IDS):
            raise ValueError(f"{place}: found the columns {sorted(map(str, row))}, expected `prediction` and one of {IDS}")
        prediction = row["prediction"]
        yield place, _identity(row, IDS), str(row.get("question") or ""), "", "" if prediction is None else str(prediction)


def _sheet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ValueError(f"{path}: reading .xlsx needs openpyxl: pip install openpyxl (or write .tsv, PRED_FORMAT=tsv)") from error
    try:
        sheet = load_workbook(path, read_only=True).active
    except (BadZipFile, KeyError) as error:
        raise ValueError(f"{path}: expected an .xlsx file ({error})") from error
    names, *rows = sheet.iter_rows(values_only=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _identity(row: Mapping[str, Any], names: Sequence[str]) -> str:
    value = next(row[name] for name in names if name in row)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _same(ours: str, theirs: str) -> bool:
    """Whether their text, which may hold options and instructions too, asks our question; white space does not matter."""
    return "".join(ours.split()) in "".join(theirs.split())
