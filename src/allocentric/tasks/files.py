"""Official benchmark files: rows of JSON, JSONL, CSV, TSV and parquet files, and the images that some of them carry."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from allocentric.tasks.base import Question

csv.field_size_limit(2**31 - 1)  # rows of TSV files hold whole images


def official_files(path: str | Path, *patterns: str) -> list[Path]:
    """The file itself; of a folder, what matches the first pattern that matches anything, sorted."""
    path = Path(path)
    if path.is_file():
        return [path]
    for pattern in patterns:
        if found := sorted(file for file in path.glob(pattern) if file.is_file()):
            return found
    where = "no such file or folder" if not path.exists() else "none of them"
    raise ValueError(f"{path}: found {where}, expected a file or a folder with {' or '.join(patterns)}")


def read_rows(path: Path, without: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl, .json (one list), .csv, .tsv or .parquet file, in order; of parquet, columns in `without` are not read."""
    try:
        yield from _rows(path, without)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected UTF-8 text with rows ({error})") from error


def _rows(path: Path, without: Collection[str]) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, without)
    elif path.suffix in (".csv", ".tsv"):
        with path.open(newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = _json(line, f"{path}:{number}")
                    if not isinstance(row, dict):
                        raise ValueError(f"{path}:{number}: found {type(row).__name__}, expected a JSON object")
                    yield row
    elif path.suffix == ".json":
        rows = load_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{path}: found {type(rows).__name__}, expected a JSON list of objects")
        yield from rows
    else:
        raise ValueError(f"{path}: found a {path.suffix or 'nameless'} file, expected .json, .jsonl, .csv, .tsv or .parquet")


def load_json(path: Path) -> Any:
    """The content of a JSON file."""
    try:
        return _json(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected JSON, which is UTF-8 text ({error})") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: expected JSON ({error.msg})") from error


def _parquet_rows(path: Path, without: Collection[str]) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from error
    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a parquet file ({error})") from error
    with file:
        columns = [name for name in file.schema_arrow.names if name not in without]
        for batch in file.iter_batches(batch_size=64, columns=columns):
            yield from batch.to_pylist()


def field(row: Mapping[str, Any], name: str, place: object) -> Any:
    """A field that every row must have."""
    if name not in row:
        raise ValueError(f"{place}: expected a field {name!r}, found {sorted(map(str, row))}")
    return row[name]


def content_ids(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Ids for files that have none: made of what is asked, so that they stay when rows move. Repetitions are numbered."""
    seen: Counter[str] = Counter()
    ids = []
    for parts in rows:
        digest = hashlib.sha256("\x1f".join(parts).encode(errors="surrogatepass")).hexdigest()[:16]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


def check_ids(ids: Iterable[str], place: object) -> None:
    """ValueError when an id occurs twice: predictions could not be joined."""
    if repeated := [i for i, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{place}: found the id {repeated[0]!r} more than once, expected ids to be unique")


def check_texts(questions: Iterable[Question], place: object) -> None:
    """ValueError when a question has something else where it should have text: files may hold numbers there."""
    for question in questions:
        for name in ("id", "task", "scene", "text", "answer", "context"):
            if not isinstance(value := getattr(question, name), str):
                raise ValueError(f"{place}: found {value!r} as {name} of the question {question.id!r}, expected text")
        for name in ("options", "objects", "references", "tokenized", "images", "groups"):
            values = getattr(question, name)
            if not all(isinstance(value, str) for value in values):
                raise ValueError(f"{place}: found {values!r} as {name} of the question {question.id!r}, expected texts")


def unpack(data: bytes, file: Path) -> None:
    """Write an image that a row carries, unless it is there already."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".part")
        partial.write_bytes(data)
        partial.replace(file)
