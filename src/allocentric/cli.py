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

from allocentric.processes import end_processes, mistakes_in_one_line

Sampling = Literal["uniform", "space_aware"]
JSON = Annotated[bool, arg(help="print JSON, one object, and nothing else")]
Detector = Annotated[str | None, arg(help="a transformers object detector, folder or hub id, that finds a capture's objects")]
Labels = Annotated[tuple[str, ...], arg(help="what a zero-shot detector looks for; which labels of a closed-set one to keep")]
Threshold = Annotated[float | None, arg(help="least score of a detection, 0 to 1; default: 0.3")]
OneOfMany = Annotated[str | None, arg(help="which scene, in an annotation file of many")]
Weights = Annotated[str | None, arg(help="folder or hub id of weights; default: nano, which comes with the package")]

ABOUT = "Ask about a place that a camera walked through, map it, find things in it; train and score models that do."

console = Console(stderr=True)


def ask(
    source: Annotated[Positional[Path], arg(help="a video, a folder of images, or a posed RGB-D folder")],
    questions: Annotated[Positional[tuple[str, ...]], arg(help="one or more questions, each in quotes")],
    model: Weights = None,
    processor: Annotated[str | None, arg(help="where tokenizer and image processor lie, if not with the weights")] = None,
    geometry: Annotated[str | None, arg(help="VGGT weights, for space-aware sampling of plain video")] = None,
    frames: Annotated[int | None, arg(help="how many frames to look at; default: 16, and of a capture's detector all")] = None,
    sampling: Annotated[
        Sampling | None, arg(help="evenly spread frames, or those that together show most of the place; default: uniform")
    ] = None,
    via: Annotated[
        Literal["model", "graph", "both"], arg(help="a model that looks; geometry on the scene's graph, step by step; or both")
    ] = "model",
    detector: Detector = None,
    labels: Labels = (),
    threshold: Threshold = None,
    scene: OneOfMany = None,
    latents: Annotated[Path | None, arg(help="folder in which a Spa3-VLM keeps the latents of places")] = None,
    max_new_tokens: Annotated[int | None, arg(help="longest answer, reasoning included; default: 128")] = None,
    json: JSON = False,
) -> None:
    """Ask about a place.

    allo ask kitchen.mp4 "How many chair(s) are in this room?"

    allo ask kitchen.mp4 $'Measuring from the closest point of each object, which of these objects (chair, table) is the
    closest to the stove?\\nOptions:\\nA. chair\\nB. table'

    allo ask room/ --via graph "If I am standing by the bed and facing the desk, is the lamp to my left, right, or back?"

    nano knows VSI-Bench's types of question in VSI-Bench's words (docs/nano.md). --via graph also takes a saved graph, a written
    map or an annotation file; of a video or images alone the graph is what the model notes before it answers.
    """
    from allocentric.answer import without_tags

    if not questions:
        raise ValueError('questions: found none, expected at least one: allo ask room.mp4 "How many chair(s) are in this room?"')
    _must_exist(source)
    maps, noted = [], False  # a map for each question; without depth or annotations they are what the model notes
    of_map = {"labels": labels or None, "threshold": threshold, "scene": scene}
    if via == "model":
        _takes_none("--via model, which takes none", "--via graph or both", detector=detector, **of_map)
    else:
        from allocentric.graph.source import kind_of

        kind = "capture" if detector is not None else kind_of(source)
        noted = kind == "pictures"
        if noted:
            _takes_none(f"{source}, of which a model's notes are the map", "depth and poses, or annotations", **of_map)
        elif via == "graph":
            asked = {"model": model, "processor": processor, "geometry": geometry, "sampling": sampling, "latents": latents}
            asked |= {"max_new_tokens": max_new_tokens}
            _takes_none(f"--via graph of {source}, which asks no model", "--via model or both", **asked)
        of_capture = None if via == "both" and kind == "read" else frames  # the others are the model's
        maps = [] if noted else [_map(source, detector, labels, threshold, of_capture, scene)] * len(questions)
    if via == "graph" and not noted:
        _print_graph_answers(source, maps, questions, json)
        return
    if sampling != "space_aware":
        _takes_none("frames spread evenly, which needs none", "--sampling space_aware", geometry=geometry)
    with console.status("loading the model"):
        loaded = _load(model, processor, geometry, latents)
    with console.status(f"looking at {source}"):
        watched = loaded.watch(source, 16 if frames is None else frames, sampling or "uniform")
        answers = watched.ask(list(questions), 128 if max_new_tokens is None else max_new_tokens)
    if noted:
        from allocentric.graph.source import Mapped, graph_of_notes

        maps = [Mapped(graph_of_notes(answer.notes, source.name), f"noted by {loaded.name}") for answer in answers]
    if maps:
        _print_graph_answers(source, maps, questions, json, [] if via == "graph" else answers, loaded.name)
        return
    if json:
        _print_json({"source": str(source), "model": loaded.name, "answers": [asdict(answer) for answer in answers]})
        return
    for answer in answers:
        print(f"{answer.question}\n  {without_tags(answer.text)}  (confidence {answer.confidence:.2f})")
    if loaded.name == "nano":
        console.print("nano was trained on procedural rooms alone: of real places its answers are guesses.", style="dim")


def map_(
    source: Annotated[
        Positional[Path], arg(help="an annotated scene, a posed RGB-D capture, a saved graph or map; with --model any video")
    ],
    json: Annotated[bool, arg(help="print the graph as JSON, and nothing else")] = False,
    html: Annotated[Path | None, arg(help="write a self-contained page there")] = None,
    png: Annotated[Path | None, arg(help="write a picture there")] = None,
    detector: Detector = None,
    model: Annotated[str | None, arg(help="folder or hub id of an SSR, which looks and writes the map; no detector then")] = None,
    labels: Annotated[
        tuple[str, ...], arg(help="as of --detector; with --model, categories it is asked for (default: those of procedural rooms)")
    ] = (),
    threshold: Threshold = None,
    frames: Annotated[int | None, arg(help="how many frames of a capture to look at; default: all, 16 with --model")] = None,
    scene: OneOfMany = None,
) -> None:
    """Draw the metric map of a place: objects, floor, free space and area.

    allo map room/ --png room.png

    allo map kitchen/ --detector DETECTOR --html kitchen.html

    allo map room.mp4 --model out/ssr_nano/A/reasoning --png room.png
    """
    from allocentric.view.map import COLUMNS, heading, map_page, map_picture, object_rows

    if model is not None:
        _takes_none("--model, which takes none", "no --model", threshold=threshold, scene=scene)
        mapped = _map_by_model(source, model, labels, frames, detector)
    else:
        mapped = _map(source, detector, labels, threshold, frames, scene)
    if html or png:
        poses = None if mapped.views is None else mapped.views.camera_to_world.numpy()
        picture = map_picture(mapped.graph, mapped.plan, poses)
        if png:
            picture.save(png)
        if html:
            html.write_text(map_page(mapped.graph, picture, mapped.origin), encoding="utf-8")
    if json:
        print(mapped.graph.to_json())
        return
    table = Table(*COLUMNS, title=f"{heading(mapped.graph)}; {mapped.origin}")
    for row in object_rows(mapped.graph):
        table.add_row(*row)
    Console().print(table)
    for written in filter(None, (png, html)):
        print(f"map: {written}")


def sample(
    source: Annotated[Positional[Path], arg(help="a video, a folder of images, or a posed RGB-D folder")],
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="how many frames to choose")] = 16,
    sampling: Sampling = "space_aware",
    mode: Annotated[
        Literal["fill", "reference"] | None, arg(help="reference: stop and break ties as the published code does; default: fill")
    ] = None,
    candidates: Annotated[int | None, arg(help="evenly spread frames to choose from; default: 128")] = None,
    points: Annotated[
        Literal["auto", "measured", "point_head", "depth_camera"] | None,
        arg(help="of 3D points: measured depth, VGGT's point head, its depth and cameras; default: auto, the first there is"),
    ] = None,
    bf16: Annotated[bool, arg(help="run VGGT's encoder in bfloat16, as the published code does")] = False,
    model: Annotated[str | None, arg(help="weights whose own VGGT is taken; default: nano's")] = None,
    geometry: Annotated[str | None, arg(help="VGGT weights with heads, taken instead")] = None,
    out: Annotated[Path, arg(help="where to write the contact sheet, a PNG")] = Path("sample.png"),
    json: JSON = False,
) -> None:
    """Choose the frames that show most of a place, and draw them with what each one added.

    allo sample kitchen.mp4 -k 16 --out kitchen.png

    allo sample kitchen.mp4 --geometry VGGT-1B --mode reference --points point_head --bf16      the frames of the published code
    """
    import torch

    from allocentric.readers import layout_of
    from allocentric.sampling import CANDIDATES
    from allocentric.sampling import sample as choose
    from allocentric.view.contact_sheet import contact_sheet

    _must_exist(source)
    if sampling == "uniform":
        asked = {"mode": mode, "candidates": candidates, "points": points, "bf16": bf16 or None, "model": model}
        _takes_none("--sampling uniform, which takes none", "--sampling space_aware", **asked, geometry=geometry)
    mode, points, candidates = mode or "fill", points or "auto", CANDIDATES if candidates is None else candidates
    needed = points in ("point_head", "depth_camera") or (points == "auto" and layout_of(source) != "rgbd")
    vggt = _geometry(model, geometry) if sampling == "space_aware" and needed else None
    autocast = torch.bfloat16 if bf16 else None
    selection, views = choose(source, k, sampling, mode, candidates, vggt, points, autocast=autocast)
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


def ground(
    source: Annotated[Positional[Path], arg(help="a posed RGB-D capture; or a video or images, whose scale is then relative")],
    descriptions: Annotated[Positional[tuple[str, ...]], arg(help="one or more descriptions of an object, each in quotes")],
    proposals: Annotated[Path | None, arg(help="JSON of boxes to choose from; default: what stands apart in the depth")] = None,
    model: Annotated[str | None, arg(help="folder or hub id of an S2-MLLM; default: the one that comes with the package")] = None,
    frames: Annotated[int, arg(help="how many frames the model sees")] = 16,
    up: Annotated[tuple[float, float, float] | None, arg(help="what is up in a 7-Scenes capture's world")] = None,
    globally: Annotated[bool, arg(name="global", help="no proposals: the model, an SSR, writes the box itself")] = False,
    out: Annotated[Path, arg(help="folder for grounding.json and a picture of each box")] = Path("ground"),
    json: JSON = False,
) -> None:
    """Find a described object: its 3D box, drawn into the frames that show it and into a map.

    allo ground room/ "the chair closest to the window" --proposals boxes.json

    allo ground room.mp4 "the chair closest to the window" --global --model out/ssr_nano/A/reasoning
    """
    from allocentric.ground import search, search_globally

    _must_exist(source)
    _no_bars()
    options = {} if up is None else {"up": up}
    if globally:
        if model is None or proposals is not None:
            raise ValueError("--global: found no --model, or --proposals beside it; expected --model weights of an SSR alone")
        with console.status(f"looking at {source}"):
            found = search_globally(source, list(descriptions), model, frames, **options)
            files = found.write(out)
        if json:
            _print_json(found.as_dict() | {"files": [str(file) for file in files]})
            return
        print("\n".join([*found.lines(), ", ".join(map(str, files))]))
        return
    with console.status(f"looking at {source}"):
        found = search(source, list(descriptions), model, proposals, frames, **options)
        files = found.write(out)
    if json:
        _print_json(found.as_dict() | {"files": [str(file) for file in files]})
        return
    unit = "m" if found.views.scale == "metric" else "(relative scale)"
    for one in found.found:
        center, size = (", ".join(f"{value:.2f}" for value in part) for part in (one.box.center, one.box.size))
        print(f"{one.description}\n  center {center} {unit}, size {size} {unit}, yaw {one.box.yaw:.2f}  ({one.box.score:.2f})")
    print(f"{', '.join(map(str, files))}")


def info(
    what: Annotated[Positional[str], arg(help="a video, images, an RGB-D folder, a folder of weights, or nano")],
    json: JSON = False,
) -> None:
    """What a video or a model is.

    allo info room.mp4

    allo info nano
    """
    from allocentric.info import describe

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
    seconds: Annotated[float, arg(help="how long the walk takes")] = 20.0,
    width: Annotated[int, arg(help="pixels")] = 640,
    height: Annotated[int, arg(help="pixels")] = 480,
    rgbd: Annotated[bool, arg(help="also the frames with depth, poses and intrinsics, as a 7-Scenes capture")] = False,
    json: JSON = False,
) -> None:
    """Make furnished rooms: a video, and everything that is true of it (objects, boxes, floor, cameras).

    allo rooms out/rooms --count 4 --seed 7
    """
    from allocentric.rooms import write_video

    if count < 1:
        raise ValueError(f"count: found {count}, expected at least 1 room")

    folders = [out / f"room-{seed + i}" for i in range(count)]

    def made():
        yield 0, count
        for i, folder in enumerate(folders):
            size = {"seconds": seconds, "width": width, "height": height}
            write_video(seed + i, folder, **size, style=style, samples=2, posed_rgbd=rgbd)
            yield i + 1, count

    show_progress("rooms", made())
    if json:
        _print_json({"rooms": [str(folder) for folder in folders]})
        return
    print(f"{count} room{'s' * (count > 1)} in {out}")


def train(
    recipe: Annotated[Positional[Path], arg(help="a YAML file, such as recipes/nano.yaml")],
    out: Annotated[Path, arg(help="folder of everything the run makes; run again to resume")],
    smoke: Annotated[bool, arg(help="the same code on a handful of rooms, in about a minute")] = False,
    stages: Annotated[tuple[str, ...], arg(help="only these stages")] = (),
    workers: Annotated[int, arg(help="processes that render rooms")] = 2,
    json: JSON = False,
) -> None:
    """Train a model by a recipe, stage by stage; interrupted runs continue where they stopped.

    allo train recipes/nano.yaml --out out/nano
    """
    from allocentric.evaluate.run import process
    from allocentric.train import finetune, reinforce, run
    from allocentric.train.recipe import FineTune, GroundingTraining, Pretrain, Reinforce, Spa3VLMTraining, SSRTraining, read_recipe

    plan = read_recipe(recipe)
    one_stage = isinstance(plan, (Pretrain, Reinforce, FineTune))
    if stages and one_stage:
        raise ValueError(f"--stages: found {list(stages)}, expected none: {recipe} has one stage")
    if not one_stage and process()[1] > 1:
        raise ValueError(f"{recipe}: found {process()[1]} processes, expected one: only recipes of one stage train in several")
    reports: Iterable[Path | None] = ()
    if isinstance(plan, GroundingTraining):
        from allocentric.train.grounding_card import train_and_report

        reports = train_and_report(plan, out, smoke, show_progress, stages, workers)
    elif isinstance(plan, Pretrain):
        from allocentric.evaluate.spa3r import pretrain_and_report

        reports = [pretrain_and_report(plan, out, smoke, show_progress, workers)]
    elif isinstance(plan, Spa3VLMTraining):
        from allocentric.train.spa3_vlm import train_spa3_vlm

        reports = [train_spa3_vlm(plan, out, show_progress, stages, smoke, workers)]
    elif isinstance(plan, SSRTraining):
        from allocentric.evaluate.ssr import train_and_report

        reports = [train_and_report(plan, out, smoke, show_progress, stages, workers)]
    elif isinstance(plan, Reinforce):
        reinforce.reinforce(reinforce.smoke(plan) if smoke else plan, out)
    elif isinstance(plan, FineTune):
        finetune.finetune(finetune.smoke(plan) if smoke else plan, out)
    else:
        reports = [run.run(run.smoke(plan) if smoke else plan, out, show_progress, stages or run.STAGES, workers)]
    written = [report for report in reports if report is not None]
    trained = next((folder for name in ("package", "model") if (folder := out / name).is_dir()), None)
    if json:
        _print_json({"reports": [str(report) for report in written], "model": trained and str(trained)})
        return
    for report in written:
        print(report.read_text())
    if trained is not None:
        print(f"trained: {trained}")


def evaluate(
    task: Annotated[Positional[str], arg(help="a benchmark, such as vsibench; rooms; or compare, score, import, export")],
    files: Annotated[Positional[tuple[Path, ...]], arg(help="runs, for what is done with runs")] = (),
    data: Annotated[Path | None, arg(help="the benchmark's official file, or the folder that holds it; rooms: theirs")] = None,
    videos: Annotated[Path | None, arg(help="folder of videos: <scene>.mp4, or a folder <scene>")] = None,
    images: Annotated[Path | None, arg(help="folder of the images of an image benchmark")] = None,
    scenes: Annotated[Path | None, arg(help="folder of annotated scans: scanrefer, nr3d, sr3d, multi3drefer, scan2cap")] = None,
    proposals: Annotated[Path | None, arg(help="JSON of boxes by scene to choose from; default: the true ones")] = None,
    labels: Annotated[Path | None, arg(help="scanrefer: scannetv2-labels.combined.tsv, if not beside the data")] = None,
    scans: Annotated[Path | None, arg(help="file of scene names, such as scannetv2_val.txt; others are left out")] = None,
    model: Weights = None,
    processor: Annotated[str | None, arg(help="where tokenizer and image processor lie, if not with the weights")] = None,
    geometry: Annotated[str | None, arg(help="VGGT weights, for space-aware sampling of plain video")] = None,
    baseline: Annotated[Literal["chance", "frequency", "blind"] | None, arg(help="ask this; blind: the model sees nothing")] = None,
    profile: Annotated[str, arg(help="published scorer and prompt to follow; default: the benchmark's own")] = "",
    subset: Annotated[str | None, arg(help="part of a benchmark, such as debiased or tiny of vsibench")] = None,
    only: Annotated[str, arg(help="scenes to ask about, such as 'arkitscenes/*'")] = "*",
    limit: Annotated[int | None, arg(help="ask only the first questions")] = None,
    frames: Annotated[int, arg(help="how many frames the model sees")] = 16,
    sampling: Sampling = "uniform",
    max_new_tokens: Annotated[int | None, arg(help="longest answer; default: 128")] = None,
    count: Annotated[int | None, arg(help="rooms: how many rooms; default: 200")] = None,
    seed: Annotated[int | None, arg(help="rooms: seed of the first room; default: 10000000, far from those of training")] = None,
    style: Annotated[Literal["parts", "models"] | None, arg(help="rooms: their furniture; default: parts")] = None,
    per_task: Annotated[int | None, arg(help="rooms: most questions of each type about each room; default: 2")] = None,
    log_format: Annotated[Literal["lmms-eval", "vlmevalkit"], arg(help="import, export: whose logs")] = "lmms-eval",
    workers: Annotated[int, arg(help="threads that decode ahead")] = 2,
    out: Annotated[Path, arg(help="folder of runs; run again to resume")] = Path("out/eval"),
    json: JSON = False,
) -> None:
    """Score a model on a benchmark, or on rooms it has never seen; compare two runs.

    allo eval rooms --count 200

    allo eval vsibench --data VSI-Bench --videos VSI-Bench --model weights

    allo eval scanrefer --data ScanRefer --scenes scans --model weights

    allo eval compare out/eval/vsibench-a-1f2e3d4c out/eval/vsibench-b-5a6b7c8d difference.html

    allo eval score out/eval/vsibench-a-1f2e3d4c --profile spatial_mllm

    allo eval import samples.jsonl vsibench --data VSI-Bench

    torchrun --nproc-per-node 8 -m allocentric.cli eval ...

    Rooms are rendered where they are not there yet. score: another scorer, nothing asked again. import: other people's outputs as a
    run. Under torchrun the same files come sooner.
    """
    from allocentric.evaluate import command
    from allocentric.evaluate.benchmark import Plan

    if model in (None, "nano") or Path(model).is_dir():
        _no_bars()
    plan = Plan(
        task, data, model, processor, geometry, baseline, videos, profile, subset, images, scenes, proposals, labels, scans,
        only, limit, frames, sampling, max_new_tokens=max_new_tokens, out=out, workers=workers,
        count=count, seed=seed, style=style, per_task=per_task,
    )  # fmt: skip
    found = command.run(plan, files, log_format, show_progress)
    if found is not None:
        _print_found(found, json)


def data(
    action: Annotated[Positional[Literal["make", "report"]], arg(help="make questions, or describe those in files")],
    files: Annotated[Positional[tuple[Path, ...]], arg(help="report: files of questions")] = (),
    task: Annotated[tuple[str, ...], arg(help="question types; default: the eight of VSI-Bench")] = (),
    scenes: Annotated[tuple[Path, ...], arg(help="annotated scenes or folders of them; scanqa, sqa3d: official files")] = (),
    per_task: Annotated[int, arg(help="most questions of each type per scene")] = 6,
    seed: int = 0,
    videos: Annotated[str, arg(help="where trainers find the video of a {scene}")] = "{scene}/video.mp4",
    out: Annotated[Path, arg(help="folder to write to; run again to resume")] = Path("out/data"),
    workers: Annotated[int, arg(help="processes")] = 2,
    json: JSON = False,
) -> None:
    """Make questions from annotated scenes, and show what their answers give away.

    allo data make --task object_counting object_abs_distance --scenes out/rooms --out out/data

    allo data report out/data/questions.jsonl

    allo data cold-start --help        a third action: reasoning to fine-tune on
    """
    from allocentric.data import command

    found = command.run(action, files, task, scenes, per_task, seed, videos, out, workers, show_progress)
    _print_found(found, json)


def cold_start(
    questions: Annotated[Positional[Path], arg(help="questions with answers (JSONL), or a folder of scenes as `allo rooms` makes")],
    out: Annotated[Path, arg(help="the conversations, a JSONL file to train on; traces go to OUT.traces, run again to resume")],
    root: Annotated[Path | None, arg(help="folder that the paths in the questions are relative to; default: theirs")] = None,
    model: Annotated[str | None, arg(help="teacher: a folder of weights, a hub id, or nano")] = None,
    endpoint: Annotated[str | None, arg(help="teacher: a server with OpenAI's chat protocol, http://localhost:8000/v1")] = None,
    served: Annotated[str, arg(help="name of the model on the server")] = "",
    program: Annotated[Literal["geometry", "notes"] | None, arg(help="no teacher: from annotated scenes")] = None,
    count: Annotated[int, arg(help="how many questions, drawn at random")] = 5000,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"], help="traces of each question")] = 3,
    form: Annotated[Literal["answer_tags", "notes"], arg(help="notes: as nano writes")] = "answer_tags",
    frames: Annotated[int, arg(help="how many frames the teacher sees")] = 16,
    temperature: float = 1.0,
    max_new_tokens: int = 768,
    workers: Annotated[int, arg(help="questions under way at a time, for servers")] = 1,
    seed: int = 0,
) -> None:
    """Collect reasoning to fine-tune on: K traces of each question, the best kept if right and not below its type's median.

    allo data cold-start questions.jsonl --root videos --endpoint http://localhost:8000/v1 --served NAME --out cold_start.jsonl

    allo data cold-start out/rooms --program geometry --out out/rooms/cold_start.jsonl
    """
    from allocentric.train import cold_start as collecting

    if sum(teacher is not None for teacher in (model, endpoint, program)) != 1:
        raise ValueError("teacher: expected one of --model, --endpoint and --program")
    root = root or (questions if questions.is_dir() else questions.parent)
    posed = collecting.gather_questions(questions, count, seed=seed)
    settings = {"k": k, "frames": frames, "form": form, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    if model is not None:
        from allocentric.models.scene import weights_id

        loaded = _load(model)
        teacher = collecting.model_teacher(loaded, root, **settings)
        settings |= {"model": model, "weights": weights_id(loaded.network)[:16]}
    elif endpoint is not None:
        teacher = collecting.endpoint_teacher(endpoint, served, root, **settings)
        settings |= {"endpoint": endpoint, "served": served}
    else:
        teacher = collecting.program_teacher(collecting.PROGRAMS[program], form)
        settings = {"program": program, "form": form}  # a program looks at nothing else
    show_progress("questions", collecting.cold_start(posed, teacher, out, form, workers if endpoint else 1, settings))
    print(f"{sum(1 for _ in out.open())} of {len(posed)} questions in {out}")


def view(
    source: Annotated[Positional[Path], arg(help="a video, a folder of images, or a posed RGB-D folder")],
    features: Annotated[Path, arg(help="Spa3R weights with their decoder: a folder, or spa3r.ckpt")],
    like: Annotated[int, arg(help="start from the camera of this view, counted from 0")] = 0,
    move: Annotated[tuple[float, float, float], arg(help="move it right, down, forward; for nano in metres")] = (0, 0, 0),
    turn: Annotated[tuple[float, float], arg(help="then turn it right and down; degrees")] = (0, 0),
    frames: Annotated[int, arg(help="how many views the latent is made of")] = 8,
    out: Annotated[Path, arg(help="where to write the picture, a PNG")] = Path("features.png"),
    json: JSON = False,
) -> None:
    """Show what a scene latent knows: features and depth predicted at a camera nobody filmed from.

    allo view room.mp4 --features out/spa3r-nano/model --like 3 --move 0.5 0 0 --turn 30 0
    """
    from allocentric.view.features import Camera, picture_of

    _must_exist(source)
    report = picture_of(source, features, Camera(like, move, turn), frames, out)
    if json:
        _print_json(report)
        return
    print(f"depth there: {report['depth_min']:.2f} to {report['depth_max']:.2f}, in the unit of the weights")
    print(f"picture: {out}")


def demo(
    out: Annotated[Path, arg(help="folder for the video and pictures")] = Path("demo"),
    seed: Annotated[int, arg(help="which room; training never used one this high")] = 20_000_002,
) -> None:
    """Make a room nobody trained on, film it, draw its map, and ask one question of every type."""
    from allocentric.demo import run_demo

    run_demo(out, seed, console)


COMMANDS = {
    "ask": ask,
    "map": map_,
    "sample": sample,
    "ground": ground,
    "info": info,
    "rooms": rooms,
    "train": train,
    "eval": evaluate,
    "data": data,
    "view": view,
    "demo": demo,
}


def show_progress(name: str, steps: Iterable[tuple[int, int]]) -> None:
    """Run through `steps` of (done, total) with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        for done, total in steps:
            bar.update(task, completed=done, total=total)


def _map(
    source: Path, detector: str | None, labels: tuple[str, ...], threshold: float | None, frames: int | None, scene: str | None
):
    """`allocentric.graph.source.open_graph` with a progress bar."""
    from allocentric.graph.lift import load_detector
    from allocentric.graph.source import graph_steps

    _must_exist(source)
    if detector is None:
        _takes_none("no --detector", "one, which finds objects", labels=labels or None, threshold=threshold)
        found = None
    else:
        _no_bars()
        found = load_detector(detector, labels, 0.3 if threshold is None else threshold)
    result = None

    def steps():
        nonlocal result
        for done, total, mapped in graph_steps(source, found, frames, scene):
            result = mapped
            yield done, total

    show_progress("map", steps())
    return result


def _map_by_model(source: Path, model: str, labels: tuple[str, ...], frames: int | None, detector: str | None):
    """The map that an SSR writes of what it sees."""
    if detector is not None:
        raise ValueError("--model, --detector: found both, expected one: either a model writes the map, or detections are lifted")
    from allocentric.graph.source import map_by_model
    from allocentric.rooms import LABELS

    _must_exist(source)
    with console.status("loading the model"):
        loaded = _load(model)
    with console.status(f"looking at {source}"):
        return map_by_model(loaded.watch(source, 16 if frames is None else frames), labels or LABELS, source.name)


def _print_graph_answers(source: Path, maps: list, questions: tuple[str, ...], as_json: bool, by_model=(), name: str = "") -> None:
    """Answers from the map of each question with what they rest on; beside those of the model of that name where there are any."""
    from allocentric.graph.explain import disagrees, explain, used_triplets
    from allocentric.graph.grammar import map_to_json
    from allocentric.graph.programs import ask_graph

    answers = [ask_graph(mapped.graph, question) for mapped, question in zip(maps, questions, strict=True)]
    if as_json:
        used = [used_triplets(mapped.graph, answer) for mapped, answer in zip(maps, answers, strict=True)]
        found = [asdict(answer) | json.loads(map_to_json(triplets)) for answer, triplets in zip(answers, used, strict=True)]
        report = {"answers": found}
        if by_model:
            for entry, answer, said in zip(found, answers, by_model, strict=True):
                entry["disagrees"] = disagrees(answer, said.text)
            report = {"model": name, "answers": [asdict(answer) for answer in by_model], "graph_answers": found}
        _print_json({"source": str(source), "graph": maps[0].origin} | report)
        return
    for i, answer in enumerate(answers):
        print(f"{answer.question}\n  {answer.text}  (graph: {maps[i].origin})")
        for line in explain(maps[i].graph, answer):
            print(f"    {line}")
        if by_model:
            differ = "   <- disagrees with the graph" if disagrees(answer, by_model[i].text) else ""
            print(f"  {by_model[i].text}  (model){differ}")


def _load(model: str | None, processor: str | None = None, geometry: str | None = None, latents: Path | None = None):
    """`allocentric.load`, without transformers' progress bars where there is nothing to download."""
    import allocentric

    if model in (None, "nano") or Path(model).is_dir():
        _no_bars()
    return allocentric.load(model, processor, geometry, latents=latents)


def _geometry(model: str | None, geometry: str | None):
    """The VGGT that frames are chosen with, and where it has weights of its own nothing else."""
    import torch

    from allocentric.encoders.vggt import load_vggt
    from allocentric.model import HEADS_FILE

    if geometry is not None:
        return load_vggt(geometry).to("cuda" if torch.cuda.is_available() else "cpu")
    if model is not None and Path(model).is_dir() and not (Path(model) / HEADS_FILE).is_file():
        raise ValueError(f"{model}: found no {HEADS_FILE}, expected it there or --geometry weights of a VGGT")
    return _load(model).geometry


def _takes_none(found: str, expected: str, **options: object) -> None:
    """Refuse options that were given though nothing looks at them on the path taken."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: found {found}, expected {expected}")


def _no_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _must_exist(path: Path) -> None:
    """Before a model is loaded for nothing."""
    if not path.exists():
        raise ValueError(f"{path}: found no such file or folder")


def _print_json(value: dict) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _print_found(found, as_json: bool) -> None:
    """What was measured, as one line of JSON or as a table with notes."""
    if as_json:
        _print_json(found.to_dict())
        return
    columns, rows = found.table()
    table = Table(*columns)
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)
    for note in found.notes:
        console.print(note, style="dim", markup=False)


def main(argv: list[str] | None = None) -> None:
    """Run one command. What the user got wrong ends in one line and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    commands, prog = COMMANDS, "allo"
    if argv[:2] == ["data", "cold-start"]:  # with options of its own
        commands, prog, argv = {"cold-start": cold_start}, "allo data", argv[1:]
    with mistakes_in_one_line("allo"):
        tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=ABOUT, args=argv)
        end_processes()


if __name__ == "__main__":
    main()
