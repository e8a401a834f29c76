"""What an evaluation costs beside the model: VSI-Bench's size, 5,130 questions about 288 videos, with a model that answers at once.

    python benchmarks/evaluation.py [--questions 5130] [--scenes 288]

Ours: questions read, grouped, asked, scored, appended as JSONL, merged, averaged with intervals and written as a report. Published
pattern for the same answers: questions one by one, each scored with ten small tensors, and the whole result file written again
every ten questions. Nothing is decoded on either side. The scores of both must be the same to 1e-6 (the published ones are in
float32).
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import tyro

from allocentric.evaluate.answers import read_rows
from allocentric.evaluate.report import make_report, to_html, to_markdown
from allocentric.evaluate.run import Reply, Responder, ask
from allocentric.tasks.base import Question
from allocentric.tasks.vsibench import CHOICE, DIRECTION_LEVELS, NUMERIC, VSIBench

PROFILE = "spatial_mllm"  # the scorer of the published loop


class Instant(Responder):
    """Answers at once: a number near the truth, or the letter A."""

    def reply(self, seen, questions, prompts):
        return [Reply(answer_of(question), "", (0, 1, 2, 3)) for question in questions]


def answer_of(question: Question) -> str:
    return "A" if question.options else f"{float(question.answer) * (0.8 + 0.05 * (int(question.id) % 9)):.2f}"


def write_questions(file: Path, questions: int, scenes: int) -> None:
    """A file in VSI-Bench's layout, the questions of one video spread over it as in the release."""
    rng = np.random.default_rng(0)
    levels = [f"object_rel_direction_{level}" for level in DIRECTION_LEVELS]
    kinds = [*NUMERIC, *levels, *(kind for kind in CHOICE if kind != "object_rel_direction")]
    with file.open("w") as out:
        for i in range(questions):
            kind = kinds[i * len(kinds) // questions]
            options = None if kind in NUMERIC else [f"{letter}. thing {letter}" for letter in "ABCD"]
            truth = "ABCD"[rng.integers(4)] if options else f"{rng.uniform(1, 50):.1f}"
            row = {"id": i, "dataset": "set", "scene_name": f"{i % scenes:04d}", "question_type": kind, "options": options}
            out.write(json.dumps(row | {"question": f"What about thing {i} in this room?", "ground_truth": truth}) + "\n")


def ours(data: Path, out: Path) -> list[float]:
    """The whole way, but for the model."""
    benchmark = VSIBench()
    questions = benchmark.read(data)
    file = out / "answers.jsonl"
    prompts = {question.id: benchmark.prompt(question, PROFILE) for question in questions}
    for _ in ask(questions, lambda q: prompts[q.id], lambda q, text: benchmark.score(q, text, PROFILE), Instant(), file):
        pass
    rows = read_rows(file)
    report = make_report(benchmark, rows, PROFILE, {})
    (out / "report.md").write_text(to_markdown(report))
    (out / "report.html").write_text(to_html(report))
    return [row.score for row in rows]


def published(data: Path, out: Path) -> list[float]:
    """The published loop."""
    results = []
    for i, question in enumerate(VSIBench().read(data)):
        said = answer_of(question)
        if question.options:
            score = float(said.lower() == question.answer.lower())
        else:
            score = tensor_score(float(said), float(question.answer))
        results.append({"id": question.id, "question": question.text, "answer": question.answer, "said": said, "score": score})
        if (i + 1) % 10 == 0:
            (out / "results.json").write_text(json.dumps(results, indent=2))
    (out / "results.json").write_text(json.dumps(results, indent=2))
    return [row["score"] for row in results]


def tensor_score(number: float, truth: float) -> float:
    """Mean relative accuracy with tensors of one and of ten elements."""
    error = torch.abs(torch.tensor(number) - torch.tensor(truth)) / (torch.abs(torch.tensor(truth)) + 1e-8)
    tolerances = 1 - torch.arange(0.5, 0.95 + 0.05 / 2, 0.05)
    return (error < tolerances).float().mean().item()


def main(questions: int = 5130, scenes: int = 288) -> None:
    """Seconds of an evaluation without its model.

    Args:
        questions: how many.
        scenes: videos that they are about.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_questions(folder / "test.jsonl", questions, scenes)
        start, wall = time.process_time(), time.perf_counter()
        scores = ours(folder / "test.jsonl", folder)
        spent, waited = time.process_time() - start, time.perf_counter() - wall
        start, wall = time.process_time(), time.perf_counter()
        expected = published(folder / "test.jsonl", folder)
        theirs, their_wall = time.process_time() - start, time.perf_counter() - wall
    if len(scores) != questions or not np.allclose(scores, expected, atol=1e-6):
        sys.exit(f"parity: {int((~np.isclose(scores, expected, atol=1e-6)).sum())} of {questions} scores differ")
    print(f"{questions} questions about {scenes} videos, all {questions} scores equal")
    print(f"{'':<52}{'process s':>10}{'wall s':>9}")
    print(f"{'published loop (no intervals, no report)':<52}{theirs:>10.2f}{their_wall:>9.2f}")
    print(f"{'ours, with intervals, baselines and report':<52}{spent:>10.2f}{waited:>9.2f}")
    print(f"ratio {theirs / spent:.1f}x of process time")


if __name__ == "__main__":
    tyro.cli(main)
