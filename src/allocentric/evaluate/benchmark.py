"""`allo eval TASK`: read a benchmark, ask a model everything, score it, write a report.

A run lives in a folder of its own, named by task, model and a hash of everything that its answers depend on:

    run.json        what was asked of what, and how; versions
    answers.jsonl   one line per question: question, prompt, what the model wrote, frame numbers, score
    report.md, report.html, report.json

The same command goes on where it was interrupted, and, once all is answered, writes the same files again.
"""

import fnmatch
import hashlib
import inspect
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from allocentric.evaluate.answers import Row, question_to_dict, read_rows, write_whole
from allocentric.evaluate.report import Report, make_report, to_html, to_markdown
from allocentric.evaluate.responders import Blind, Chance, Frequency, Seeing, find_sources
from allocentric.evaluate.run import Responder, ask, device, process, scenes
from allocentric.sampling import CANDIDATES
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.base import Benchmark, Question

PACKAGES = ("allocentric", "torch", "transformers", "numpy", "av", "pillow")
Progress = Callable[[str, Iterable[tuple[int, int]]], None]


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and how. See `allo eval --help`."""

    task: str
    data: Path | None
    model: str | None = None
    processor: str | None = None
    geometry: str | None = None
    baseline: Literal["chance", "frequency", "blind"] | None = None
    videos: Path | None = None
    profile: str = ""
    subset: str | None = None
    images: Path | None = None
    only: str = "*"
    limit: int | None = None
    frames: int = 16
    sampling: Literal["uniform", "space_aware"] = "uniform"
    candidates: int = CANDIDATES
    max_new_tokens: int = 128
    out: Path = Path("out/eval")
    workers: int = 2


def evaluate(plan: Plan, progress: Progress) -> tuple[Path, Report]:
    """The folder of the run, and its report."""
    benchmark = benchmark_named(plan.task)
    profile = benchmark.check(plan.profile)
    questions = read_questions(benchmark, plan)
    responder, about = make_responder(plan, questions)
    prompts = {question.id: benchmark.prompt(question, profile) for question in questions}
    asked = json.dumps([[question_to_dict(q), prompts[q.id]] for q in questions])
    facts = {
        "profile": profile,
        "subset": plan.subset or "all",
        "only": plan.only,
        "questions": len(questions),
        "scenes": len(scenes(questions)),
        "asked": hashlib.sha256(asked.encode()).hexdigest()[:16],
        **about,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    digest = hashlib.sha256(json.dumps([plan.task, facts], sort_keys=True).encode()).hexdigest()[:8]
    folder = plan.out / f"{plan.task}-{Path(str(about['model'])).name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "answers.jsonl"
    if process()[0] == 0:
        write_whole(folder / "run.json", json.dumps({"task": plan.task, **facts}, indent=1) + "\n")
    steps = ask(
        questions,
        lambda question: prompts[question.id],
        lambda question, text: benchmark.score(question, text, profile),
        responder,
        file,
        plan.workers,
    )
    progress(plan.task, steps)
    report = make_report(benchmark, read_rows(file), profile, facts)
    if process()[0] == 0:
        write_report(folder, report)
    return folder, report


def benchmark_named(task: str) -> Benchmark:
    """The benchmark of that name."""
    if task not in BENCHMARKS:
        raise ValueError(f"task: found {task!r}, expected one of {', '.join(sorted(BENCHMARKS))}, or rooms")
    return BENCHMARKS[task]()


def read_questions(benchmark: Benchmark, plan: Plan) -> list[Question]:
    """The benchmark's questions about the scenes that match `plan.only`, at most `plan.limit`."""
    if plan.data is None or not plan.data.exists():
        raise ValueError(f"--data: found {plan.data or 'none'}, expected the official file or folder of {benchmark.name}")
    given = {name: value for name in ("subset", "images") if (value := getattr(plan, name)) is not None}
    if unknown := given.keys() - inspect.signature(benchmark.read).parameters.keys():
        raise ValueError(f"--{sorted(unknown)[0]}: {benchmark.name} has none")
    questions = [q for q in benchmark.read(plan.data, **given) if fnmatch.fnmatch(q.scene, plan.only)][: plan.limit]
    if not questions:
        raise ValueError(f"{plan.data}: found no questions about scenes {plan.only!r}")
    return questions


def make_responder(plan: Plan, questions: Sequence[Question]) -> tuple[Responder, dict[str, object]]:
    """What answers, and what its answers depend on."""
    if plan.baseline == "chance":
        return Chance(), {"model": "chance"}
    if plan.baseline == "frequency":
        return Frequency(questions), {"model": "frequency"}

    import allocentric
    from allocentric.models.scene import weights_id

    sources = {} if plan.baseline == "blind" else find_sources(questions, plan.videos)  # before a model is loaded for nothing
    model = allocentric.load(plan.model, plan.processor, plan.geometry, device=device())
    network = model.network
    about = {
        "model": model.name,
        "weights": weights_id(network)[:16],
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": network.device.type,
        "max_new_tokens": plan.max_new_tokens,
    }
    if plan.baseline == "blind":
        return Blind(network, model.processor, plan.max_new_tokens), {**about, "sees": "nothing (blind)"}
    about |= {"frames": plan.frames, "sampling": plan.sampling}
    about |= {"candidates": plan.candidates} if plan.sampling == "space_aware" else {}
    return Seeing(model, sources, plan.frames, plan.sampling, plan.candidates, plan.max_new_tokens), about


def write_report(folder: Path, report: Report) -> None:
    """report.md, report.html and report.json."""
    write_whole(folder / "report.md", to_markdown(report))
    write_whole(folder / "report.html", to_html(report))
    write_whole(folder / "report.json", json.dumps(report.to_dict(), indent=1) + "\n")


def read_run(path: Path) -> tuple[dict, list[Row]]:
    """What was run, and its rows: of a run's folder, or of a file of answers, of which only the task can be told by a run.json."""
    file = path / "answers.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: found no answers, expected the folder of a run, or its answers.jsonl")
    about = file.with_name("run.json")
    return json.loads(about.read_text()) if about.is_file() else {}, read_rows(file)


def rescore(rows: Sequence[Row], benchmark: Benchmark, profile: str) -> list[Row]:
    """The rows with the scores of another profile. The prompts stay those of the run."""
    return [replace(row, score=benchmark.score(row.question, row.prediction, profile)) for row in rows]
