"""Cold start: reasoning traces to fine-tune on before learning by reward (arXiv 2505.23747, 4.1 and B.4).

    questions ──► K traces each, by a teacher ──► scored by the question's task ──► the best of each question,
    if it is right to some degree and no worse than the median of its question type ──► conversations for `train.jsonl`

A teacher is a model that is loaded here, any server that speaks the OpenAI chat protocol, or, where the scene is annotated, a
program: the exact computation of the answer in words, or notes. Every answered question is written at once, so an interrupted
collection goes on where it stopped.
"""

import base64
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from allocentric.answer import split_notes
from allocentric.files import write_whole
from allocentric.graph.programs import ask_graph
from allocentric.graph.scene_graph import SceneGraph
from allocentric.model import Model
from allocentric.readers import open_views
from allocentric.rooms import load_scene
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import VSI_TASKS
from allocentric.tasks.base import Question
from allocentric.tasks.files import load_json
from allocentric.tasks.notes import with_notes
from allocentric.train.grpo import Asked, complete
from allocentric.train.questions import Posed, question_line, read_questions, see
from allocentric.train.recipe import GRPOSettings
from allocentric.train.rewards import answer_in, reasoning_prompt, task_of, well_formed, with_form

# Traces of one question; the second argument is its number in the collection, which seeds what is random.
Teacher = Callable[[Posed, int], list[str]]
# (reasoning, answer) from what is true of a scene; None when it does not say.
Program = Callable[[AnnotatedScene, Question], tuple[str, str] | None]

PLACELESS = ("object_size_estimation", "room_size_estimation", "obj_appearance_order")  # answered without coordinates


@dataclass(frozen=True)
class Trace:
    """The traces of one question and their scores."""

    number: int
    task: str
    question: str
    texts: tuple[str, ...]
    rewards: tuple[float, ...]


# ---- questions ----


def gather_questions(source: str | Path, count: int, per_task: int = 2, seed: int = 0) -> list[Posed]:
    """`count` questions drawn from a JSONL file, or made about the scene folders in a folder; the same every time, in order."""
    source = Path(source)
    if source.is_dir():
        scenes = sorted(path.parent for path in source.glob("*/scene.json"))
        if not scenes:
            raise ValueError(f"{source}: found no scene folders (scene.json, video.mp4), expected some; allo rooms makes them")
        posed = []
        for number, folder in enumerate(scenes):
            scene, rng = load_scene(folder), np.random.default_rng([seed, number])
            for question in (question for task in VSI_TASKS.values() for question in task.make(scene, rng, per_task)):
                posed.append(Posed(question, "video", (f"{folder.name}/video.mp4",), str(folder), scene))
    else:
        posed = read_questions(source)
    chosen = np.random.default_rng(seed).permutation(len(posed))[:count]
    return [posed[i] for i in sorted(chosen)]


# ---- teachers ----


def model_teacher(
    model: Model,
    root: str | Path,
    k: int = 3,
    frames: int = 16,
    form: str = "answer_tags",
    temperature: float = 1.0,
    max_new_tokens: int = 768,
    seed: int = 0,
) -> Teacher:
    """A model of this library, sampled K times on the scene that it encodes once."""
    settings = GRPOSettings(group=max(k, 2), temperature=temperature, max_new_tokens=max_new_tokens)

    def ask(posed: Posed, number: int) -> list[str]:
        network, processor = model.network, model.processor
        seen = {name: value.to(network.device) for name, value in see(processor, posed, root, frames).items()}
        noise = np.random.default_rng([seed, number]).random((settings.group, max_new_tokens))
        written = complete(network, processor, Asked(seen, [reasoning_prompt(posed.question, form)], {}), settings, noise)
        return processor.tokenizer.batch_decode([completion.ids for completion in written[:k]], skip_special_tokens=True)

    return ask


def endpoint_teacher(
    url: str,
    model: str,
    root: str | Path,
    k: int = 3,
    frames: int = 16,
    form: str = "answer_tags",
    temperature: float = 1.0,
    max_new_tokens: int = 768,
    seed: int = 0,
    timeout: float = 600.0,
) -> Teacher:
    """A server with OpenAI's chat protocol at `url` (the part before /chat/completions), which is sent the frames as JPEG.

    One request per trace, so that servers without `n` will do. The key, where one is needed, is read from OPENAI_API_KEY.
    """

    def ask(posed: Posed, number: int) -> list[str]:
        files = [Path(root) / path for path in posed.paths]
        shown = [open_views(file, frames) for file in files] if posed.kind == "video" else [open_views(files)]
        pictures = [frame for views in shown for frame in views.frames.permute(0, 2, 3, 1).numpy()]
        content = [{"type": "image_url", "image_url": {"url": jpeg_url(picture)}} for picture in pictures]
        content.append({"type": "text", "text": reasoning_prompt(posed.question, form)})
        request = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": temperature}
        request |= {"max_tokens": max_new_tokens}
        return [chat(url, request | {"seed": seed + k * number + i}, timeout) for i in range(k)]

    return ask


def chat(url: str, request: dict, timeout: float = 600.0) -> str:
    """The answer of a chat server to one request."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{url.rstrip('/')}/chat/completions"
    call = urllib.request.Request(address, json.dumps(request).encode(), headers)
    try:
        with urllib.request.urlopen(call, timeout=timeout) as response:
            answer = json.load(response)
        return answer["choices"][0]["message"]["content"] or ""
    except urllib.error.HTTPError as error:
        raise ValueError(f"{address}: found status {error.code} ({error.read(300).decode(errors='replace')})") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise ValueError(f"{address}: found no server that answers ({error})") from error
    except (json.JSONDecodeError, LookupError, TypeError) as error:
        raise ValueError(f"{address}: found no chat completion in the answer, expected OpenAI's format") from error


def jpeg_url(picture: np.ndarray) -> str:
    """An (H, W, 3) uint8 image as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def by_geometry(scene: AnnotatedScene, question: Question) -> tuple[str, str] | None:
    """The exact computation on the scene's graph: which objects, which coordinates, which comparison; with the answer it gives.

    Coordinates are metres right of and ahead of the first camera, or the world's where its pose is unknown.
    """
    graph = SceneGraph.from_scene(scene)
    graph = graph if graph.viewpoint is None else graph.canonical()
    answer = ask_graph(graph, question.text, question.options)
    if answer.missing or not answer.steps:
        return None
    where = {name: f"{name} at ({x:.2f}, {y:.2f})" for name, (x, y) in zip(graph.names, graph.points, strict=True)}
    placed = [] if question.task in PLACELESS else [where[name] for name in dict.fromkeys(answer.objects)]
    return "\n".join([*(line for line in placed if line not in answer.steps), *answer.steps]), answer.text


def by_notes(scene: AnnotatedScene, question: Question) -> tuple[str, str]:
    """Notes as nano learns them (`tasks.notes`), exact, with the known answer; no notes where nano takes none."""
    return split_notes(with_notes(scene, question))


PROGRAMS: dict[str, Program] = {"geometry": by_geometry, "notes": by_notes}


def program_teacher(program: Program = by_geometry, form: str = "answer_tags") -> Teacher:
    """A program in place of a model: one trace of each question about an annotated scene, as far as the program has one."""

    def ask(posed: Posed, number: int) -> list[str]:
        if posed.scene is None:
            raise ValueError(f"{posed.place}: found no annotated scene, expected a folder of scene folders for traces by a program")
        found = program(posed.scene, posed.question)
        text = with_form(*found, form) if found else ""
        return [text] if well_formed(text, form) else []

    return ask


# ---- collect, select, write ----


def collect(
    questions: Sequence[Posed],
    teacher: Teacher,
    file: Path,
    form: str = "answer_tags",
    workers: int = 1,
    settings: Mapping[str, object] | None = None,
) -> Iterator[tuple[int, int]]:
    """Ask the teacher every question that `file` (JSONL) has no traces of, appending as they come; yields (done, questions).

    workers    questions under way at a time, for servers.
    settings   who the teacher is and how it is asked, as plain JSON types; traces that were made otherwise are refused.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {trace.number for trace in read_traces(file, questions)}
    if settings is not None:
        keep_settings(file, settings)
    left = [number for number in range(len(questions)) if number not in done]
    yield len(done), len(questions)

    def traced(number: int) -> Trace:
        posed = questions[number]
        texts = tuple(teacher(posed, number))
        rewards = tuple(score_trace(posed.question, text, form) for text in texts)
        return Trace(number, posed.question.task, posed.question.text, texts, rewards)

    with ThreadPoolExecutor(workers) as pool, file.open("a", encoding="utf-8") as out:
        traces = pool.map(traced, left) if workers > 1 else map(traced, left)
        try:
            for count, trace in enumerate(traces, start=len(done) + 1):
                out.write(json.dumps(vars(trace), ensure_ascii=False) + "\n")
                out.flush()
                yield count, len(questions)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def keep_settings(file: Path, settings: Mapping[str, object]) -> None:
    """Write down, beside the traces in `file`, how they are made. Traces made otherwise are an error: they would pass for new ones.

    Traces without such a record are older than it, and are taken as they are.
    """
    record = file.with_name(file.name + ".json")
    if file.exists() and record.exists():
        kept = load_json(record)
        if other := [name for name in {**settings, **kept} if kept.get(name) != settings.get(name)]:
            found, expected = (", ".join(f"{name} {made.get(name, 'none')}" for name in other) for made in (kept, settings))
            raise ValueError(f"{file}: found traces of {found}, expected {expected}; take another --out")
    write_whole(record, json.dumps(settings, indent=1) + "\n")


def score_trace(question: Question, text: str, form: str = "answer_tags") -> float:
    """The task's score of the answer; 0 where the form is wrong, as such a trace cannot be learned from."""
    return float(task_of(question).score(question, answer_in(text, form))) if well_formed(text, form) else 0.0


def read_traces(file: Path, questions: Sequence[Posed]) -> list[Trace]:
    """The traces in a file; what a killed run left of a line is cut off. Traces of other questions are an error."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        partial = file.with_name(file.name + ".part")
        partial.write_text("".join(line + "\n" for line in lines[:-1]), encoding="utf-8")
        partial.replace(file)
    traces = []
    for line in lines[:-1]:
        item = json.loads(line)
        trace = Trace(**item | {"texts": tuple(item["texts"]), "rewards": tuple(item["rewards"])})
        if trace.number >= len(questions) or questions[trace.number].question.text != trace.question:
            raise ValueError(f"{file}: found traces of other questions, expected those asked now; delete the file")
        traces.append(trace)
    return traces


def select(traces: Sequence[Trace]) -> list[tuple[Trace, int]]:
    """The best trace of each question, where its score is above 0 and not below the median of the best of its question type.

    Returns traces with the index of their best text, in the order of the questions. The earliest of equally good texts is taken.
    """
    best = {trace.number: int(np.argmax(trace.rewards)) for trace in traces if trace.rewards}
    answered = [trace for trace in sorted(traces, key=lambda trace: trace.number) if trace.rewards]
    by_task: dict[str, list[float]] = {}
    for trace in answered:
        by_task.setdefault(trace.task, []).append(max(trace.rewards))
    medians = {task: float(np.median(rewards)) for task, rewards in by_task.items()}
    kept = [trace for trace in answered if max(trace.rewards) > 0 and max(trace.rewards) >= medians[trace.task]]
    return [(trace, best[trace.number]) for trace in kept]


def write_conversations(
    chosen: Sequence[tuple[Trace, int]], questions: Sequence[Posed], out: Path, form: str = "answer_tags"
) -> None:
    """The chosen traces as JSONL that `train.jsonl` reads."""
    lines = []
    for trace, index in chosen:
        posed = questions[trace.number]
        tags = f"<{posed.kind}>" * len(posed.paths)
        said = [
            {"from": "human", "value": f"{tags}\n{reasoning_prompt(posed.question, form)}"},
            {"from": "gpt", "value": trace.texts[index]},
        ]
        lines.append(question_line(posed) | {"reward": trace.rewards[index], "conversations": said})
    partial = out.with_name(out.name + ".part")
    partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    partial.replace(out)


def cold_start(
    questions: Sequence[Posed],
    teacher: Teacher,
    out: Path,
    form: str = "answer_tags",
    workers: int = 1,
    settings: Mapping[str, object] | None = None,
) -> Iterator[tuple[int, int]]:
    """Collect, select and write: traces of all questions to OUT.traces, the selection to `out`. Yields progress.

    What they are made by is kept in OUT.traces.json: see `collect`.
    """
    traces = out.with_name(out.name + ".traces")
    yield from collect(questions, teacher, traces, form, workers, settings)
    write_conversations(select(read_traces(traces, questions)), questions, out, form)
