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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from allocentric.evaluate.answers import Row, question_to_dict, read_rows
from allocentric.evaluate.pointing import ChanceBox, Pointing, open_annotated, points
from allocentric.evaluate.report import Report, make_report, to_html, to_markdown
from allocentric.evaluate.responders import Blind, Chance, Frequency, Seeing, find_sources
from allocentric.evaluate.rooms import MAX_NEW_TOKENS, SEED, Rooms, SeeingRooms, spec_of
from allocentric.evaluate.run import Responder, ask, device, process, scenes, wait_for_all
from allocentric.files import write_whole
from allocentric.geometry.boxes import Box3D
from allocentric.model import Model, load
from allocentric.models.grounding import S2_NANO, load_grounding
from allocentric.models.scene import weights_id
from allocentric.readers.faults import named
from allocentric.readers.proposals import read_proposals
from allocentric.readers.scannet import read_split
from allocentric.sampling import CANDIDATES
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.base import Benchmark, Question
from allocentric.tasks.files import check_texts, load_json
from allocentric.tasks.overlap import GroundingBenchmark, SceneBenchmark, recall
from allocentric.tasks.referit3d import ReferIt3D
from allocentric.tasks.scan2cap import Scan2Cap
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms

GUESSES = ("chance", "frequency")  # baselines that need no model
WEIGHTS = ("model", "processor", "geometry")
PACKAGES = ("allocentric", "torch", "transformers", "numpy", "av", "pillow")
READ_OPTIONS = ("subset", "images", "labels", "count", "seed", "style", "per_task")  # what not every benchmark's `read` takes
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
    scenes: Path | None = None
    proposals: Path | None = None
    labels: Path | None = None
    scans: Path | None = None
    only: str = "*"
    limit: int | None = None
    frames: int = 16
    sampling: Literal["uniform", "space_aware"] = "uniform"
    candidates: int = CANDIDATES
    max_new_tokens: int | None = None  # None: MAX_NEW_TOKENS
    out: Path = Path("out/eval")
    workers: int = 2
    count: int | None = None  # this and the next three: of rooms
    seed: int | None = None
    style: str | None = None
    per_task: int | None = None

    def __post_init__(self) -> None:
        for name in ("limit", "frames", "candidates", "max_new_tokens", "workers", "count", "per_task"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')}: found {value}, expected at least 1")
        if self.baseline in GUESSES:
            refuse(self, WEIGHTS, f"found --baseline {self.baseline}, which asks none, expected --baseline blind or no baseline")
        if self.sampling != "space_aware":
            refuse(self, ("geometry",), "found frames spread evenly, which needs none, expected --sampling space_aware")


def refuse(plan: Plan, names: Iterable[str], why: str) -> None:
    """Of these options none may be given, as nothing would look at it."""
    for name in names:
        if getattr(plan, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: {why}")


def evaluate(plan: Plan, progress: Progress) -> tuple[Path, Report]:
    """The folder of the run, and its report."""
    benchmark = benchmark_named(plan.task)
    profile = benchmark.check(plan.profile)
    if isinstance(benchmark, Rooms):
        questions, responder, about = open_rooms(benchmark, plan, progress)
    else:
        questions, candidates = place(benchmark, plan, read_questions(benchmark, plan), progress)
        if isinstance(benchmark, GroundingBenchmark):
            responder, about = make_pointing(plan, questions, benchmark, profile, candidates)
        else:
            responder, about = make_responder(plan, questions)
    prompts = {question.id: responder.prompt(question, benchmark.prompt(question, profile)) for question in questions}
    asked = [(question, prompts[question.id]) for question in questions]
    folder, facts = open_run(benchmark, plan, profile, Path(str(about["model"])).name, asked, about)
    file = folder / "answers.jsonl"
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


def open_run(
    benchmark: Benchmark, plan: Plan, profile: str, name: str, asked: Sequence[tuple[Question, str]], about: Mapping[str, object]
) -> tuple[Path, dict[str, object]]:
    """The folder of a run with its run.json, and what stands there: what was asked, with which prompts, and what answered.

    name    what answered, for the folder's name.
    about   all else that the answers depend on.
    """
    questions = [question for question, _ in asked]
    words = json.dumps([[question_to_dict(question), prompt] for question, prompt in asked])
    facts = {
        "profile": profile,
        "subset": plan.subset or "all",
        "only": plan.only,
        "limit": plan.limit or "none",
        "scans": "all" if plan.scans is None else plan.scans.name,
        "questions": len(questions),
        "scenes": len(scenes(questions)),
        "asked": hashlib.sha256(words.encode()).hexdigest()[:16],
        **({"boxes": boxes_of(plan)} if isinstance(benchmark, SceneBenchmark) else {}),
        **about,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    digest = hashlib.sha256(json.dumps([plan.task, facts], sort_keys=True).encode()).hexdigest()[:8]
    folder = plan.out / f"{plan.task}-{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    if process()[0] == 0:
        write_whole(folder / "run.json", json.dumps({"task": plan.task, **facts}, indent=1) + "\n")
    return folder, facts


def benchmark_named(task: str) -> Benchmark:
    """The benchmark of that name."""
    known = BENCHMARKS | {Rooms.name: Rooms}
    if task not in known:
        raise ValueError(f"task: found {task!r}, expected one of {', '.join(sorted(known))}")
    return known[task]()


def read_questions(benchmark: Benchmark, plan: Plan) -> list[Question]:
    """The benchmark's questions about the scenes in `plan.scans` that match `plan.only`, at most `plan.limit`."""
    if plan.data is None or not plan.data.exists():
        raise ValueError(f"--data: found {plan.data or 'none'}, expected the official file or folder of {benchmark.name}")
    given = {name: value for name in READ_OPTIONS if (value := getattr(plan, name)) is not None}
    if unknown := given.keys() - inspect.signature(benchmark.read).parameters.keys():
        raise ValueError(f"--{min(unknown).replace('_', '-')}: {benchmark.name} has none")
    with named(plan.data):
        questions = benchmark.read(plan.data, **given)
        check_texts(questions, plan.data)
        questions = [q for q in questions if fnmatch.fnmatch(q.scene, plan.only)]
    if plan.scans is not None:
        listed = set(read_split(plan.scans))
        questions = [q for q in questions if {q.scene, q.scene.split("/")[-1]} & listed]
    if not questions[: plan.limit]:
        listed = f" that {plan.scans} lists" if plan.scans else ""
        raise ValueError(f"{plan.data}: found no questions about scenes {plan.only!r}{listed}")
    return questions[: plan.limit]


def place(
    benchmark: Benchmark, plan: Plan, questions: list[Question], progress: Progress
) -> tuple[list[Question], dict[str, list[Box3D]]]:
    """The questions with the boxes of what they are about, and the candidates of every scene: proposals, or its true boxes.

    Benchmarks that are not about objects of annotated scenes stay as they are.
    """
    if not isinstance(benchmark, SceneBenchmark):
        refuse(plan, ("scenes", "proposals"), f"{benchmark.name} has none")
        return questions, {}
    if plan.scenes is None:
        raise ValueError(f"--scenes: found none, expected the folder of annotated scans where the boxes of {benchmark.name} are")
    names = list(dict.fromkeys(q.scene for q in questions))
    boxes = None if plan.proposals is None else {name: read_proposals(plan.proposals, name) for name in names}
    scenes: dict[str, AnnotatedScene] = {}
    progress("scenes", open_annotated(plan.scenes, names, scenes))
    if isinstance(benchmark, Scan2Cap):
        return [benchmark.place(q, scenes, boxes) for q in questions], {}
    return [benchmark.place(q, scenes) for q in questions], boxes or {n: [o.box for o in scenes[n].objects] for n in names}


def boxes_of(plan: Plan) -> str:
    """Whose boxes are chosen among, or described: numbers with true ones and with detected ones are not comparable."""
    if plan.proposals is None:
        return "the true ones"
    return f"{plan.proposals.name} (sha256 {hashlib.sha256(plan.proposals.read_bytes()).hexdigest()[:16]})"


def open_rooms(benchmark: Rooms, plan: Plan, progress: Progress) -> tuple[list[Question], Responder, dict[str, object]]:
    """Questions about rooms, what answers them, and what its answers depend on.

    The rooms lie in `plan.data`, or in a folder beside the runs; those that are not there yet are rendered.
    """
    refuse(plan, ("videos", "scenes", "proposals"), f"{benchmark.name} has none")
    seed = SEED if plan.seed is None else plan.seed
    folder = plan.data or plan.out / f"{benchmark.name}-{plan.style or RoomsSpec.style}-{seed}"
    spec = spec_of(folder, plan.count, plan.seed, plan.style)
    if plan.frames > spec.frames:
        raise ValueError(f"--frames: found {plan.frames}, but a room has {spec.frames}")
    plan = replace(plan, data=folder, count=spec.count, seed=spec.first_seed, style=spec.style)
    model = None if plan.baseline in GUESSES else load_model(plan)  # before rooms are rendered for nothing
    if process()[0] == 0:
        progress("rendering", write_rooms(folder, spec, plan.workers))
    wait_for_all()
    questions = read_questions(benchmark, plan)
    if model is None:
        responder, about = guess(plan, questions)
    else:
        shards = RoomShards(folder, spec.count)
        places = {shards[room].scene.name: room for room in range(len(shards))}
        responder, about = look(plan, model, partial(SeeingRooms, shards=shards, places=places))
    return questions, responder, {**about, "rooms": vars(spec)}


def make_responder(plan: Plan, questions: Sequence[Question]) -> tuple[Responder, dict[str, object]]:
    """What answers, and what its answers depend on."""
    if plan.baseline in GUESSES:
        return guess(plan, questions)
    # before a model is loaded for nothing
    sources = {} if plan.baseline == "blind" else find_shown(plan, questions)
    return look(plan, load_model(plan), partial(Seeing, sources=sources))


def guess(plan: Plan, questions: Sequence[Question]) -> tuple[Responder, dict[str, object]]:
    """A baseline that needs no model."""
    return Chance() if plan.baseline == "chance" else Frequency(questions), {"model": plan.baseline}


def load_model(plan: Plan) -> Model:
    """The model that is asked, on the device of this process."""
    return load(plan.model, plan.processor, plan.geometry, device=device())


def look(plan: Plan, model: Model, seeing: Callable[..., Responder]) -> tuple[Responder, dict[str, object]]:
    """The model, with `seeing` for eyes, or blind."""
    longest = plan.max_new_tokens or MAX_NEW_TOKENS
    about = {**describe(model.name, model.network), "max_new_tokens": longest}
    if plan.processor is not None:
        about["processor"] = plan.processor
    if plan.baseline == "blind":
        return Blind(model.network, model.processor, longest), {**about, "sees": "nothing (blind)"}
    shown: dict[str, object] = {"frames": plan.frames, "sampling": plan.sampling}
    about |= shown | ({"candidates": plan.candidates} if plan.sampling == "space_aware" else {})
    if plan.geometry is not None:
        about["geometry"] = f"{plan.geometry} (weights {weights_id(model.geometry)[:16]})"
    looking = {**shown, "candidates": plan.candidates, "max_new_tokens": longest}
    return seeing(model, **looking), about


def find_shown(plan: Plan, questions: Sequence[Question]) -> dict[str, Path]:
    """`find_sources` where the plan says; of benchmarks about images, the images must be somewhere."""
    root = plan.videos or plan.scenes
    told = plan.images or root or all(q.images and Path(q.images[0]).is_file() for q in questions)
    if not told and "images" in inspect.signature(BENCHMARKS[plan.task].read).parameters:
        raise ValueError(
            f"--images: found none, expected the folder of the images of {plan.task}; those that its file carries are written there"
        )
    return find_sources(questions, root)


def make_pointing(
    plan: Plan, questions: Sequence[Question], benchmark: GroundingBenchmark, profile: str, candidates: Mapping[str, list[Box3D]]
) -> tuple[Responder, dict[str, object]]:
    """`make_responder` for grounding: a model that points chooses among the candidates, one that answers in words writes a box.

    Without a model, the one that comes with the package and points is asked, as by `allo ground`.
    """
    if plan.baseline == "frequency":
        raise ValueError(f"--baseline frequency: answers of {benchmark.name} are places, none is most frequent; take chance")
    if plan.proposals is not None and isinstance(benchmark, ReferIt3D) and profile == "official":
        raise ValueError(f"--proposals: {benchmark.name} official chooses among the true boxes; take --profile detected")
    about = {f"recall@{least} of the candidates": round(recall(questions, candidates, least), 2) for least in (0.25, 0.5)}
    if plan.baseline == "chance":
        return ChanceBox(benchmark, profile, candidates), {"model": "chance", **about}
    if plan.model is not None and not points(plan.model):
        if plan.proposals is not None:
            raise ValueError(f"--proposals: {plan.model} answers in words, expected a model that chooses among boxes")
        return make_responder(plan, questions)
    unused = ("processor", "geometry", "max_new_tokens")
    refuse(plan, unused, "found a model that points, which takes none, expected one that answers in words")
    sources = find_shown(plan, questions)
    network, processor = load_grounding(plan.model, device())
    about = {**describe(plan.model or S2_NANO.name, network), "frames": plan.frames, "sampling": plan.sampling, **about}
    if blind := plan.baseline == "blind":
        about["sees"] = "boxes and geometry, black pictures (blind)"
    return Pointing(network, processor, benchmark, profile, candidates, sources, plan.frames, plan.sampling, blind), about


def describe(name: str, network: PreTrainedModel) -> dict[str, object]:
    """Which weights answered, and how they were run."""
    return {
        "model": name,
        "weights": weights_id(network)[:16],
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": network.device.type,
        "decoding": "greedy",
    }


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
    record = file.with_name("run.json")
    about = load_json(record) if record.is_file() else {}
    if not isinstance(about, dict):
        raise ValueError(f"{record}: found {type(about).__name__}, expected what a run writes")
    if not (rows := read_rows(file)):
        raise ValueError(f"{file}: found no answers yet, expected some; the command of that run goes on with it")
    return about, rows


def rescore(rows: Sequence[Row], benchmark: Benchmark, profile: str) -> list[Row]:
    """The rows with the scores of another profile. The prompts stay those of the run."""
    return [replace(row, score=benchmark.score(row.question, row.prediction, profile)) for row in rows]
