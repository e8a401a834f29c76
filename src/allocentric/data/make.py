"""Questions from annotated scenes: in parallel, the same for any number of processes, resumable.

    questions.jsonl       one question a line (`evaluate.answers.question_to_dict`), scene by scene; it grows as scenes are done
    conversations.jsonl   the same as trainers read them (`train.jsonl`), written when all is done
    make.json             how they were made; another run into the same folder must be the same

Every scene has random numbers of its own, seeded by its name, so that neither its neighbours nor the workers matter.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from allocentric.evaluate.answers import question_from_dict, question_to_dict
from allocentric.files import write_whole
from allocentric.readers import open_scene, open_scenes
from allocentric.readers.annotated import MANY, ONE
from allocentric.readers.faults import named
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import BENCHMARKS, TRAINING_TASKS
from allocentric.tasks.base import Benchmark, Question, Task
from allocentric.tasks.files import check_texts
from allocentric.tasks.scanqa import question_class
from allocentric.tasks.sqa3d import question_type
from allocentric.tasks.vsibench import DIRECTION_LEVELS

PASSED_THROUGH = ("scanqa", "sqa3d")  # questions that people wrote: read, not made
CHUNK = 8


@dataclass(frozen=True)
class Recipe:
    """What to make.

    tasks      question types, or one of PASSED_THROUGH.
    scenes     annotated scenes, folders of them, files of many; or official files.
    per_task   most questions of each type about each scene.
    videos     where a trainer finds the video of a {scene}, below its root folder.
    """

    tasks: tuple[str, ...]
    scenes: tuple[Path, ...]
    per_task: int = 6
    seed: int = 0
    videos: str = "{scene}/video.mp4"


def make(recipe: Recipe, out: Path, workers: int = 2) -> Iterator[tuple[int, int]]:
    """Make what `out` does not hold yet; yields (scenes done, scenes)."""
    check(recipe)
    jobs = list_scenes(recipe)
    out.mkdir(parents=True, exist_ok=True)
    _same_recipe(recipe, jobs, out)
    file = out / "questions.jsonl"
    done = _scenes_done(file, [name for _, name in jobs])
    yield done, len(jobs)
    chunks = [jobs[i : i + CHUNK] for i in range(done, len(jobs), CHUNK)]
    with file.open("a", encoding="utf-8") as lines:
        for chunk, made in zip(chunks, _made(chunks, recipe, workers), strict=True):
            lines.write("".join(json.dumps(question_to_dict(question)) + "\n" for question in made))
            lines.flush()
            done += len(chunk)
            yield done, len(jobs)
    said = [conversation(question, recipe.videos) for question in read_questions(file)]
    write_whole(out / "conversations.jsonl", "".join(json.dumps(item) + "\n" for item in said))


def _made(chunks: list, recipe: Recipe, workers: int) -> Iterator[list[Question]]:
    """The questions of each chunk of scenes, in order."""
    if workers <= 1 or len(chunks) <= 1:
        yield from (make_chunk(chunk, recipe) for chunk in chunks)
        return
    # Not forked: a child forked from a process that has run torch on several threads can wait for them for ever.
    with ProcessPoolExecutor(min(workers, len(chunks)), get_context("spawn")) as pool:
        yield from pool.map(make_chunk, chunks, [recipe] * len(chunks))


def make_chunk(jobs: Sequence[tuple[Path, str]], recipe: Recipe) -> list[Question]:
    """The questions about some scenes."""
    return [question for path, name in jobs for question in scene_questions(path, name, recipe)]


def scene_questions(path: Path, name: str, recipe: Recipe) -> list[Question]:
    """The questions about one scene, with ids."""
    if recipe.tasks[0] in PASSED_THROUGH:
        return list(_official(recipe.tasks[0], path)[name])
    scene = replace(_open(path, name), name=name)
    questions = []
    for task in recipe.tasks:
        made = TRAINING_TASKS[task].make(scene, scene_generator(recipe.seed, name, task), recipe.per_task)
        questions += [replace(question, id=f"{name}/{question.task}/{i}") for i, question in enumerate(made)]
    return questions


def scene_generator(seed: int, scene: str, task: str) -> np.random.Generator:
    """Random numbers of one task about one scene."""
    words = np.frombuffer(hashlib.sha256(f"{scene}\0{task}".encode()).digest(), dtype=np.uint32)
    return np.random.default_rng([seed, *words.tolist()])


def check(recipe: Recipe) -> None:
    """ValueError for what cannot be made."""
    known = (*TRAINING_TASKS, *PASSED_THROUGH)
    if unknown := [task for task in recipe.tasks if task not in known]:
        raise ValueError(f"--task: found {unknown[0]!r}, expected some of {', '.join(known)}")
    if not recipe.tasks or (set(recipe.tasks) & set(PASSED_THROUGH) and len(recipe.tasks) > 1):
        raise ValueError(f"--task: found {' '.join(recipe.tasks) or 'none'}; {' and '.join(PASSED_THROUGH)} are made alone")
    if recipe.per_task < 1:
        raise ValueError(f"--per-task: found {recipe.per_task}, expected at least 1")
    try:
        recipe.videos.format(scene="")
    except (LookupError, AttributeError, ValueError) as error:
        raise ValueError(f"--videos: found {recipe.videos!r}, expected a path in which {{scene}} stands for the scene") from error
    if not recipe.scenes:
        raise ValueError("--scenes: found none, expected annotated scenes, or folders of them")


def list_scenes(recipe: Recipe) -> list[tuple[Path, str]]:
    """Where every scene lies, and its name; in the order given, folders in alphabetical order."""
    jobs: list[tuple[Path, str]] = []
    for path in recipe.scenes:
        if not path.exists():
            raise ValueError(f"{path}: found no such file or folder, expected annotated scenes")
        if recipe.tasks[0] in PASSED_THROUGH:
            jobs += [(path, name) for name in _official(recipe.tasks[0], path)]
        elif _holds_many(path):
            jobs += [(path, name) for name in _scenes_in(path)]
        elif path.is_dir() and not _is_one(path) and (inside := [child for child in sorted(path.iterdir()) if _is_one(child)]):
            jobs += [(child, child.name) for child in inside]
        else:
            jobs.append((path, path.parent.name if path.name == "scene.json" else path.stem if path.is_file() else path.name))
    count = Counter(name for _, name in jobs)
    if repeated := [name for name in count if count[name] > 1]:
        raise ValueError(f"--scenes: found the name {repeated[0]!r} more than once, expected scenes to have names of their own")
    return jobs


def _open(path: Path, name: str) -> AnnotatedScene:
    return _scenes_in(path)[name] if _holds_many(path) else open_scene(path)


def _is_one(path: Path) -> bool:
    return any(fits(path) for _, fits, _ in ONE)


def _holds_many(path: Path) -> bool:
    return any(fits(path) for _, fits, _ in MANY)


@lru_cache(maxsize=4)
def _scenes_in(path: Path) -> dict[str, AnnotatedScene]:
    """The scenes of a file of many, read once by each process."""
    return open_scenes(path)


@lru_cache(maxsize=4)
def _official(task: str, path: Path) -> Mapping[str, list[Question]]:
    """The questions of an official file by scene."""
    by_scene: dict[str, list[Question]] = {}
    with named(path):
        questions = BENCHMARKS[task]().read(path)
        check_texts(questions, path)
        for question in questions:
            by_scene.setdefault(question.scene, []).append(question)
    return by_scene


def _same_recipe(recipe: Recipe, jobs: Sequence[tuple[Path, str]], out: Path) -> None:
    """Record the recipe in `out`; ValueError when it holds what another one made."""
    names = hashlib.sha256("\n".join(name for _, name in jobs).encode()).hexdigest()[:16]
    wanted = {
        "tasks": list(recipe.tasks), "scenes": len(jobs), "names": names, "per_task": recipe.per_task, "seed": recipe.seed,
        "videos": recipe.videos,
    }  # fmt: skip
    record = out / "make.json"
    if record.exists():
        if (found := json.loads(record.read_text())) != wanted:
            other = next(name for name in wanted if found.get(name) != wanted[name])
            raise ValueError(f"{out}: found questions of {other} {found.get(other)}, expected {wanted[other]}; use another --out")
    else:
        write_whole(record, json.dumps(wanted, indent=1) + "\n")


def _scenes_done(file: Path, names: list[str]) -> int:
    """How many scenes `file` holds completely. It is cut off behind them: the last scene it names may have been interrupted."""
    if not file.exists():
        return 0
    written = file.read_bytes()
    lines = written[: written.rfind(b"\n") + 1].splitlines(keepends=True)
    if (file.parent / "conversations.jsonl").exists():  # written last of all
        return len(names)
    scenes = [json.loads(line)["scene"] for line in lines]
    if not scenes:
        write_whole(file, "")
        return 0
    kept = [line for line, scene in zip(lines, scenes, strict=True) if scene != scenes[-1]]
    write_whole(file, b"".join(kept).decode())
    return names.index(scenes[-1])


def read_questions(file: Path) -> list[Question]:
    """The questions of a file that `make` wrote."""
    numbered = enumerate(file.read_text(encoding="utf-8").split("\n"), start=1)
    return [_read_question(line, f"{file}:{number}") for number, line in numbered if line]


def _read_question(line: str, place: str) -> Question:
    try:
        data = json.loads(line)
        for field in fields(Question):
            if field.name in data and field.name != "boxes":
                _check_field(field.name, data[field.name], many=field.type is not str)
        question = question_from_dict(data)
        task_of(question)
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: expected questions, one JSON object a line ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return question


def _check_field(name: str, value: object, many: bool) -> None:
    texts = value if many else [value]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: found {value!r}, expected {'a list of texts' if many else 'text'}")


def task_of(question: Question) -> Task | Benchmark:
    """What asks and scores a question that `make` made."""
    name = next((question.task.removesuffix(f"_{level}") for level in DIRECTION_LEVELS if question.task.endswith(f"_{level}")), "")
    if (task := TRAINING_TASKS.get(name) or TRAINING_TASKS.get(question.task)) is not None:
        return task
    name, its_type = ("sqa3d", question_type) if question.context else ("scanqa", question_class)
    if question.task != its_type(question.text):
        expected = f"one of {sorted(TRAINING_TASKS)}, or {its_type(question.text)!r}, as {name} would have it"
        raise ValueError(f"question type: found {question.task!r}, expected {expected}")
    return BENCHMARKS[name]()


def conversation(question: Question, videos: str) -> dict:
    """A question as LLaVA and Qwen trainers read it."""
    kind = "multiple_choice" if question.options else "numerical" if _is_number(question.answer) else "verbal"
    answer = question.answer or next(iter(question.references), "")
    return {
        "id": question.id,
        "video": videos.format(scene=question.scene),
        "conversations": [
            {"from": "human", "value": f"<video>\n{task_of(question).prompt(question)}"},
            {"from": "gpt", "value": answer},
        ],
        "problem_type": kind,
        "question_type": question.task,
        "scene": question.scene,
    }


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
