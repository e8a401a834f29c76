"""What `allo eval` does, but for rooms: run a benchmark, or do something with runs."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from allocentric.evaluate.answers import write_rows, write_whole
from allocentric.evaluate.benchmark import (
    Plan,
    Progress,
    benchmark_named,
    evaluate,
    read_questions,
    read_run,
    rescore,
    write_report,
)
from allocentric.evaluate.logs import export_log, import_log
from allocentric.evaluate.report import Comparison, Report, compare, make_report
from allocentric.evaluate.run import process

EXPECTED = {
    "compare": "two runs",
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
    if len(files) != (1 if plan.task == "score" else 2):
        raise ValueError(f"allo eval {plan.task}: found {len(files)} files, expected {EXPECTED[plan.task]}")
    if plan.task == "compare":
        (about_a, a), (about_b, b) = map(read_run, files)
        if about_a.get("profile") != about_b.get("profile"):
            raise ValueError(
                f"compare: found scores of the profiles {about_a.get('profile')!r} and {about_b.get('profile')!r}, expected one; "
                "allo eval score RUN --profile writes those of another"
            )
        return compare(a, b, (str(files[0]), str(files[1])))
    if plan.task == "import":
        return _import(replace(plan, task=str(files[1])), files[0], log_format)
    about, rows = read_run(files[0])
    benchmark = benchmark_named(about.get("task", ""))
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


def _import(plan: Plan, log: Path, log_format: str) -> Report:
    """A run's folder, as if the questions had been asked here."""
    benchmark = benchmark_named(plan.task)
    profile = benchmark.check(plan.profile)
    rows = import_log(log, log_format, benchmark, read_questions(benchmark, plan), profile)
    folder = plan.out / f"{plan.task}-{log.stem}-{profile}"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"profile": profile, "questions": len(rows), "model": f"imported from {log.name} ({log_format})"}
    write_whole(folder / "run.json", json.dumps({"task": plan.task, **facts}, indent=1) + "\n")
    write_rows(folder / "answers.jsonl", rows)
    report = make_report(benchmark, rows, profile, facts)
    write_report(folder, report)
    return report
