"""The demonstration: a room nobody trained on, filmed, drawn, and asked about."""

import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from allocentric.evaluate.rooms import base_task
from allocentric.model import load
from allocentric.rooms import load_scene, write_video
from allocentric.sampling import sample
from allocentric.tasks import VSI_TASKS, Question, make_questions
from allocentric.view.contact_sheet import contact_sheet
from allocentric.view.topdown import topdown

FRAMES = 16


def one_of_each(questions: list[Question]) -> list[Question]:
    """The first question of every type there is."""
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(base_task(question.task), question)
    return list(first.values())


def run_demo(out: Path, seed: int, console: Console) -> None:
    """Write `room/` (video, scene), `frames.png` and `map.png` to `out`; print question, answer, truth and score."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    folder = out / "room"
    with console.status("building and filming a room nobody trained on"):
        write_video(seed, folder, height=256, width=320, samples=2)
    scene, video = load_scene(folder), folder / "video.mp4"
    with console.status("loading nano"):
        model = load()
    with console.status("choosing the frames that show most of it"):
        selection, chosen = sample(video, FRAMES, "space_aware", candidates=64, model=model.geometry, width=model.geometry_width)
    contact_sheet(chosen, selection, title="the frames that together show most of the room").save(out / "frames.png")
    topdown(scene, title="the room from above: what is true, for comparison").save(out / "map.png")
    with console.status("watching and asking"):
        watched = model.watch(chosen)
        questions = one_of_each(make_questions(scene, np.random.default_rng(seed), per_task=1))
        answers = watched.ask([VSI_TASKS[base_task(q.task)].prompt(q) for q in questions], max_new_tokens=96)

    table = Table("type", "question", "answer", "truth", "score", show_lines=True)
    for question, answer in zip(questions, answers, strict=True):
        score = VSI_TASKS[base_task(question.task)].score(question, answer.text)
        text = "\n".join((question.text, *question.options))
        table.add_row(question.task.removeprefix("object_"), escape(text), escape(answer.text), question.answer, f"{score:.1f}")
    Console().print(table)
    if missing := VSI_TASKS.keys() - {base_task(q.task) for q in questions}:
        print(f"this room has nothing to ask of type {', '.join(sorted(missing))}")
    print(f"video: {video}   chosen frames: {out / 'frames.png'}   map: {out / 'map.png'}")
    print(f"{len(scene.objects)} objects, {scene.room_area:.1f} square metres; {time.perf_counter() - start:.0f} s in all")
