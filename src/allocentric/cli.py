"""The command line, `allo`. Parsing and printing only; what a command does lives in the library."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional, arg

Sampling = Literal["uniform", "space_aware"]
JSON = Annotated[bool, arg(help="print JSON, one object, and nothing else")]
Weights = Annotated[str | None, arg(help="folder or hub id of weights; default: nano, which comes with the package")]

console = Console(stderr=True)


def ask(
    source: Annotated[Positional[Path], arg(help="a video, a folder of images, or a posed RGB-D folder")],
    questions: Annotated[Positional[tuple[str, ...]], arg(help="one or more questions, each in quotes")],
    model: Weights = None,
    processor: Annotated[str | None, arg(help="where tokenizer and image processor lie, if not with the weights")] = None,
    geometry: Annotated[str | None, arg(help="VGGT weights, for space-aware sampling of plain video")] = None,
    frames: Annotated[int, arg(help="how many frames the model sees")] = 16,
    sampling: Annotated[Sampling, arg(help="evenly spread frames, or those that together show most of the place")] = "uniform",
    json: JSON = False,
) -> None:
    """Ask about a place.

    allo ask kitchen.mp4 "How many chairs are in this room?" "What is the size of this room (in square meters)?"
    """
    if not questions:
        raise ValueError('questions: found none, expected at least one: allo ask room.mp4 "How many chairs are in this room?"')
    _must_exist(source)
    with console.status("loading the model"):
        loaded = _load(model, processor, geometry)
    with console.status(f"looking at {source}"):
        scene = loaded.watch(source, frames, sampling)
        answers = scene.ask(list(questions))
    if json:
        _print_json({"source": str(source), "model": loaded.name, "answers": [asdict(answer) for answer in answers]})
        return
    for answer in answers:
        print(f"{answer.question}\n  {answer.text}  (confidence {answer.confidence:.2f})")
    if loaded.name == "nano":
        console.print("nano was trained on procedural rooms alone: of real places its answers are guesses.", style="dim")


def sample(
    source: Annotated[Positional[Path], arg(help="a video, a folder of images, or a posed RGB-D folder")],
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many frames to choose")] = 16,
    sampling: Sampling = "space_aware",
    mode: Annotated[Literal["fill", "reference"], arg(help="reference: exactly the frames the published code selects")] = "fill",
    candidates: Annotated[int, arg(help="evenly spread frames to choose from")] = 128,
    model: Weights = None,
    geometry: Annotated[str | None, arg(help="VGGT weights; default: nano's")] = None,
    out: Annotated[Path, arg(help="where to write the contact sheet, a PNG")] = Path("sample.png"),
    json: JSON = False,
) -> None:
    """Choose the frames that show most of a place, and draw them with what each one added.

    allo sample kitchen.mp4 -k 16 --out kitchen.png
    """
    from allocentric.readers import layout_of
    from allocentric.sampling import sample as choose
    from allocentric.view.contact_sheet import contact_sheet

    _must_exist(source)
    vggt, width = None, 518
    if sampling == "space_aware" and layout_of(source) != "rgbd":
        loaded = _load(model, geometry=geometry)
        vggt, width = loaded.geometry, loaded.geometry_width
    selection, views = choose(source, k, sampling, mode, candidates, vggt, width=width)
    contact_sheet(views, selection, title=Path(source).name).save(out)
    frames = views.indices.tolist() if views.indices is not None else list(range(len(views)))
    report = {"source": str(source), "frames": frames, "contact_sheet": str(out)}
    if selection is not None:
        report |= {name: getattr(selection, name) for name in ("coverage", "uniform_coverage", "voxel_size", "total_voxels")}
    if json:
        _print_json(report)
        return
    print(f"frames {', '.join(map(str, frames))}")
    if selection is not None:
        seen, even = 100 * selection.coverage[-1], 100 * selection.uniform_coverage
        print(f"they show {seen:.1f}% of what {selection.candidates} candidates show; evenly spread ones {even:.1f}%")
    print(f"contact sheet: {out}")


def info(
    what: Annotated[Positional[str], arg(help="a video, images, an RGB-D folder, a folder of weights, or nano")],
    json: JSON = False,
) -> None:
    """What a video or a model is.

    allo info room.mp4        allo info nano
    """
    from allocentric.info import describe

    _no_bars()
    facts = describe(what)
    if json:
        _print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:<18} {value}")


def rooms(
    out: Annotated[Positional[Path], arg(help="folder to write to; one folder per room")],
    count: Annotated[int, arg(help="how many rooms")] = 1,
    seed: Annotated[int, arg(help="seed of the first room; the others follow")] = 0,
    style: Annotated[Literal["parts", "models"], arg(help="furniture from parts, or models of sweethome3d-furniture")] = "parts",
    seconds: float = 20.0,
    width: int = 640,
    height: int = 480,
) -> None:
    """Make furnished rooms: a video, and everything that is true of it (objects, boxes, floor, cameras).

    allo rooms out/rooms --count 4 --seed 7
    """
    from allocentric.rooms import write_video

    def made():
        yield 0, count
        for i in range(count):
            write_video(seed + i, out / f"room-{seed + i}", seconds=seconds, width=width, height=height, style=style)
            yield i + 1, count

    show_progress("rooms", made())
    print(f"{count} rooms in {out}")


def train(
    recipe: Annotated[Positional[Path], arg(help="a YAML file, such as recipes/nano.yaml")],
    out: Annotated[Path, arg(help="folder of everything the run makes; run again to resume")],
    smoke: Annotated[bool, arg(help="the same code on a handful of rooms, in about a minute")] = False,
    stages: Annotated[tuple[str, ...], arg(help="only these stages")] = (),
    workers: Annotated[int, arg(help="processes that render rooms")] = 2,
) -> None:
    """Train a model by a recipe, stage by stage; interrupted runs continue where they stopped.

    allo train recipes/nano.yaml --out out/nano
    """
    from allocentric.train import finetune, run
    from allocentric.train.recipe import FineTune, read_recipe

    plan = read_recipe(recipe)
    if isinstance(plan, FineTune):
        finetune.finetune(finetune.smoke(plan) if smoke else plan, out)
    else:
        run.run(run.smoke(plan) if smoke else plan, out, show_progress, stages or run.STAGES, workers)


def evaluate(
    task: Annotated[Positional[Literal["rooms"]], arg(help="rooms: VSI-Bench's eight question types about unseen rooms")],
    model: Weights = None,
    count: Annotated[int, arg(help="how many rooms")] = 200,
    seed: Annotated[int, arg(help="seed of the first room; training uses seeds below 1,000,000")] = 10_000_000,
    style: Literal["parts", "models"] = "parts",
    per_task: Annotated[int, arg(help="questions of each type per room")] = 2,
    out: Annotated[Path, arg(help="folder of rooms and answers; run again to resume")] = Path("out/eval"),
    json: JSON = False,
) -> None:
    """Score a model on questions about rooms it has never seen.

    allo eval rooms --count 200
    """
    from allocentric.evaluate.rooms import ask_rooms, read_rows, room_questions, summary
    from allocentric.models.scene import weights_id
    from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms

    loaded = _load(model)
    spec = RoomsSpec(count, seed, style)
    folder = out / f"rooms-{style}-{seed}"
    show_progress("rooms", write_rooms(folder, spec))
    shards = RoomShards(folder, count)
    # named by the weights: two models in folders of one name must not continue each other's answers
    answers = out / f"{Path(loaded.name).name}-{weights_id(loaded.network)[:8]}-{style}-{seed}-{count}x{per_task}.jsonl"
    show_progress("questions", ask_rooms(loaded.network, loaded.processor, shards, room_questions(shards, per_task), answers))
    scores = summary(read_rows(answers))
    if json:
        _print_json({"model": loaded.name, "rooms": count, "style": style, "scorer": "vsibench official", "scores": scores})
        return
    table = Table("task", "score")
    for name, score in scores.items():
        table.add_row(name, f"{score:.1f}")
    Console().print(table)


def demo(
    out: Annotated[Path, arg(help="folder for the video and pictures")] = Path("demo"),
    seed: Annotated[int, arg(help="which room; training never used one this high")] = 20_000_000,
) -> None:
    """Make a room nobody trained on, film it, draw its map, and ask one question of every type."""
    from allocentric.demo import run_demo

    run_demo(out, seed, console)


COMMANDS = {
    "ask": ask,
    "sample": sample,
    "info": info,
    "rooms": rooms,
    "train": train,
    "eval": evaluate,
    "demo": demo,
}


def show_progress(name: str, steps: Iterable[tuple[int, int]]) -> None:
    """Run through `steps` of (done, total) with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        for done, total in steps:
            bar.update(task, completed=done, total=total)


def _load(model: str | None, processor: str | None = None, geometry: str | None = None):
    """`allocentric.load`, without transformers' progress bars where there is nothing to download."""
    import allocentric

    if model is None or Path(model).is_dir():
        _no_bars()
    return allocentric.load(model, processor, geometry)


def _no_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _must_exist(path: Path) -> None:
    """Before a model is loaded for nothing."""
    if not path.exists():
        raise ValueError(f"{path}: found no such file or folder")


def _print_json(value: dict) -> None:
    print(json.dumps(value, ensure_ascii=False))


def main(argv: list[str] | None = None) -> None:
    """Run one command. What the user got wrong ends in one line and exit code 2."""
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="allo", description=__doc__.splitlines()[0], args=argv)
    except (ValueError, OSError) as error:
        print(f"allo: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("allo: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
