"""What `allo eval` does: run a benchmark, or do something with runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from allocentric.evaluate.answers import write_rows
from allocentric.evaluate.benchmark import (
    Plan,
    Progress,
    benchmark_named,
    evaluate,
    open_run,
    place,
    read_questions,
    read_run,
    rescore,
    write_report,
)
from allocentric.evaluate.logs import export_log, import_log
from allocentric.evaluate.report import Comparison, Report, compare, make_report, to_html, to_markdown
from allocentric.evaluate.run import process
from allocentric.files import write_whole
from allocentric.readers.faults import named

EXPECTED = {
    "compare": "two runs, and a .md or .html file to write if wanted",
    "score": "one run",
    "import": "a log and the name of its benchmark",
    "export": "a run and a new file",
}


def run(plan: Plan, files: Sequence[Path], log_format: str, progress: Progress) -> Report | Comparison | None:
    """The scores to show; None where there are none, or where another process shows them."""
    if plan.task not in EXPECTED:
        if files:
            raise ValueError(f"{plan.task}: found {files[0]} behind it, expected only options")
        _, report = evaluate(plan, progress)
        return report if process()[0] == 0 else None
    counts = {"score": (1,), "compare": (2, 3)}.get(plan.task, (2,))
    if len(files) not in counts:
        raise ValueError(f"allo eval {plan.task}: found {len(files)} files, expected {EXPECTED[plan.task]}")
    if plan.task == "compare":
        page = {".md": to_markdown, ".html": to_html}.get(files[-1].suffix) if len(files) == 3 else None
        if len(files) == 3 and page is None:
            raise ValueError(f"compare: found {files[2]}, expected a file to write that ends in .md or .html")
        (about_a, a), (about_b, b) = map(read_run, files[:2])
        if about_a.get("profile") != about_b.get("profile"):
            raise ValueError(
                f"compare: found scores of the profiles {about_a.get('profile')!r} and {about_b.get('profile')!r}, expected one; "
                "allo eval score RUN --profile writes those of another"
            )
        found = compare(a, b, (str(files[0]), str(files[1])))
        if page is not None:
            write_whole(files[2], page(found))
        return found
    if plan.task == "import":
        return _import(replace(plan, task=str(files[1])), files[0], log_format, progress)
    about, rows = read_run(files[0])
    if not {"task", "profile"} <= about.keys():
        raise ValueError(f"{files[0]}: found no run.json beside the answers that names task and profile, expected a run's folder")
    benchmark = benchmark_named(about["task"])
    if plan.task == "export":
        export_log(rows, benchmark.name, log_format, files[1])
        return None
    profile = benchmark.check(plan.profile or about["profile"])
    facts = {name: value for name, value in about.items() if name not in ("task", "profile")}
    if profile != about["profile"]:
        facts["prompts"] = f"those of the profile {about['profile']}"
    report = make_report(benchmark, rescore(rows, benchmark, profile), profile, facts)
    if files[0].is_dir() and profile != about["profile"]:
        folder = files[0] / profile
        folder.mkdir(exist_ok=True)
        write_report(folder, report)
    return report


def _import(plan: Plan, log: Path, log_format: str, progress: Progress) -> Report:
    """A run's folder, as if the questions had been asked here."""
    benchmark = benchmark_named(plan.task)
    profile = benchmark.check(plan.profile)
    questions, _ = place(benchmark, plan, read_questions(benchmark, plan), progress)
    with named(log):
        rows = import_log(log, log_format, benchmark, questions, profile)
    about = {
        "model": f"imported from {log.name} ({log_format})",
        "log": f"sha256 {hashlib.sha256(log.read_bytes()).hexdigest()[:16]}",
    }
    folder, facts = open_run(benchmark, plan, profile, log.stem, [(row.question, row.prompt) for row in rows], about)
    write_rows(folder / "answers.jsonl", rows)
    report = make_report(benchmark, rows, profile, facts)
    write_report(folder, report)
    return report
