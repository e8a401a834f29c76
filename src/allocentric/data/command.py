"""What `allo data` does: make questions, and describe them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from allocentric.data.leaks import DataReport, report
from allocentric.data.make import Recipe, make, read_questions
from allocentric.files import write_whole
from allocentric.tasks import VSI_TASKS


def run(
    action: str,
    files: Sequence[Path],
    tasks: Sequence[str],
    scenes: Sequence[Path],
    per_task: int,
    seed: int,
    videos: str,
    out: Path,
    workers: int,
    progress: Callable[[str, Iterable[tuple[int, int]]], None],
) -> DataReport:
    """The statistics of what was made, or of the files given; those of what was made are kept in `out`/report.json."""
    if action == "report":
        if not files:
            raise ValueError("allo data report: found no files, expected questions.jsonl of `allo data make`")
        if missing := [file for file in files if not file.is_file()]:
            raise ValueError(f"{missing[0]}: found no such file, expected questions.jsonl of `allo data make`")
        return report([question for file in files for question in read_questions(file)])
    if files:
        raise ValueError(f"allo data make: found {files[0]}, expected scenes behind --scenes")
    recipe = Recipe(tuple(tasks) or tuple(VSI_TASKS), tuple(scenes), per_task, seed, videos)
    progress("questions", make(recipe, out, workers))
    found = report(read_questions(out / "questions.jsonl"))
    write_whole(out / "report.json", json.dumps(found.to_dict(), indent=1) + "\n")
    return found
