"""Ask many questions: a scene at a time, what is seen next being read meanwhile, over any number of processes, resumable.

    torchrun --nproc_per_node 2 -m allocentric.cli eval vsibench ...      (or accelerate launch -m ...)

shares the scenes among the processes; the file of answers is the same as with one.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from allocentric.evaluate.answers import Row, collect, part, scene_of, to_line
from allocentric.tasks.base import Question


@dataclass(frozen=True)
class Reply:
    """What a model wrote, the notes it wrote before, and the frame numbers it was shown."""

    text: str
    notes: str = ""
    frames: tuple[int, ...] = ()


class Responder(ABC):
    """What answers questions."""

    def prompt(self, question: Question, wording: str) -> str:
        """What the model is asked, given the benchmark's wording of the question."""
        return wording

    def see(self, questions: Sequence[Question]) -> Any:
        """Read what these questions, all about one scene, are about. Runs ahead, in a thread: files only, no model."""
        return None

    @abstractmethod
    def reply(self, seen: Any, questions: Sequence[Question], prompts: Sequence[str]) -> Sequence[Reply]:
        """Answer them, given what `see` returned."""


def scenes(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions of each scene, scenes in the order in which they first occur."""
    found: dict[tuple, list[Question]] = {}
    for question in questions:
        found.setdefault(scene_of(question), []).append(question)
    return list(found.values())


def ask(
    questions: Sequence[Question],
    prompt: Callable[[Question], str],
    score: Callable[[Question, str], float],
    responder: Responder,
    file: Path,
    workers: int = 2,
) -> Iterator[tuple[int, int]]:
    """Answer every question into the JSONL file `file`, going on with what it holds; yields (scenes done, scenes).

    workers  threads that read what is seen next; at most twice as many scenes wait in memory.

    Under a launcher, every process answers its share, and all of them wait at the end until `file` is whole.
    """
    rank, world = process()
    file.parent.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        collect(file, questions)
    wait_for_all()
    done = {scene_of(row.question) for row in collect(file, questions)} if file.exists() else set()
    wait_for_all()  # nobody begins a part while others still look for parts
    every = scenes(questions)
    left = [asked for asked in every if scene_of(asked[0]) not in done]
    mine = left[rank::world]
    yield len(every) - len(mine), len(every)
    if mine:
        with part(file, rank).open("a", encoding="utf-8") as out:
            for i, (asked, seen) in enumerate(_ahead(responder.see, mine, workers)):
                prompts = [prompt(question) for question in asked]
                replies = responder.reply(seen, asked, prompts)
                rows = [
                    Row(question, text, reply.text, reply.notes, reply.frames, score(question, reply.text))
                    for question, text, reply in zip(asked, prompts, replies, strict=True)
                ]
                out.write("".join(map(to_line, rows)))
                out.flush()
                yield len(every) - len(mine) + i + 1, len(every)
    wait_for_all()
    if rank == 0:
        found = len(collect(file, questions))
        if found < len(questions):
            raise ValueError(f"{file}: found {found} of {len(questions)} answers; does another run write here?")
    wait_for_all()


def _ahead(see: Callable, groups: Sequence[list[Question]], workers: int) -> Iterator[tuple[list[Question], Any]]:
    """Each group and what `see` read of it, in order; at most 2 x workers are read before they are wanted."""
    waiting: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for group in groups:
                waiting.append((group, pool.submit(see, group)))
                if len(waiting) > 2 * workers:
                    asked, seen = waiting.popleft()
                    yield asked, seen.result()
            while waiting:
                asked, seen = waiting.popleft()
                yield asked, seen.result()
        finally:
            for _, seen in waiting:
                seen.cancel()


# ---- processes ----


def process() -> tuple[int, int]:
    """This process's number and how many there are, as `torchrun` and `accelerate launch` tell."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def device() -> str | None:
    """The GPU of this process among several; None leaves the choice to `load`."""
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if process()[1] > 1 and torch.cuda.is_available() else None


def wait_for_all() -> None:
    """Return when every process has come here. Shares differ in length, so the wait may be long: gloo, and weeks of patience."""
    if process()[1] == 1:
        return
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=timedelta(weeks=4))
    distributed.barrier()
