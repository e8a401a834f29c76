"""Our benchmarks as tasks of lmms-eval: a folder for its `--include_path`.

    python -m allocentric.evaluate.lmms_tasks sqa3d --data SQA3D --videos videos --out tasks
    lmms-eval eval --model ... --tasks allocentric_sqa3d --include_path tasks

writes `allocentric_sqa3d.yaml` and the questions beside it. Prompts, parsing, scores and averages are those of `allo eval`. Names
begin with `allocentric_`, because among tasks of one name lmms-eval takes its own. This module does not import lmms-eval.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional, arg

from allocentric.evaluate.answers import question_from_dict, question_to_dict
from allocentric.evaluate.benchmark import Plan, benchmark_named, place, read_questions
from allocentric.evaluate.responders import find_sources
from allocentric.files import write_whole
from allocentric.processes import mistakes_in_one_line
from allocentric.tasks.base import Record

HERE = "allocentric.evaluate.lmms_tasks"


def write_task(
    task: Annotated[Positional[str], arg(help="a benchmark, such as sqa3d")],
    data: Annotated[Path, arg(help="the benchmark's official file, or the folder that holds it")],
    out: Annotated[Path, arg(help="folder for --include_path")],
    videos: Annotated[Path | None, arg(help="folder of videos: <scene>.mp4, or a folder <scene>")] = None,
    images: Annotated[Path | None, arg(help="folder of the images of an image benchmark")] = None,
    scenes: Annotated[Path | None, arg(help="folder of annotated scans, for benchmarks about their objects")] = None,
    proposals: Annotated[Path | None, arg(help="scan2cap: JSON of detected boxes by scene; default: the true ones")] = None,
    labels: Annotated[Path | None, arg(help="scanrefer: scannetv2-labels.combined.tsv")] = None,
    scans: Annotated[Path | None, arg(help="file of scene names, such as scannetv2_val.txt; others are left out")] = None,
    profile: Annotated[str, arg(help="published scorer and prompt to follow; default: the benchmark's own")] = "",
    subset: str | None = None,
    limit: int | None = None,
    max_new_tokens: int = 128,
) -> None:
    """Write a benchmark as a task of lmms-eval, named allocentric_TASK."""
    benchmark = benchmark_named(task)
    profile = benchmark.check(profile)
    plan = Plan(
        task, data, subset=subset, images=images, scenes=scenes, proposals=proposals, labels=labels, scans=scans, limit=limit
    )
    questions, _ = place(benchmark, plan, read_questions(benchmark, plan), lambda _, steps: deque(steps, maxlen=0))
    sources = find_sources(questions, videos or scenes)
    name = f"allocentric_{task}"
    docs = [
        {
            "id": q.id,
            "benchmark": task,
            "profile": profile,
            "prompt": benchmark.prompt(q, profile),
            "target": q.answer,
            "visuals": [str(Path(file).resolve()) for file in (q.images or (sources[q.scene],))],
            "question": json.dumps(question_to_dict(q)),  # as text: a column of objects would unite their fields
        }
        for q in questions
    ]
    out.mkdir(parents=True, exist_ok=True)
    file = (out / f"{name}.jsonl").resolve()
    write_whole(file, "".join(json.dumps(doc) + "\n" for doc in docs))
    lines = [
        f"task: {name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(file))}}}}}",
        "test_split: test",
        "output_type: generate_until",
        f"doc_to_visual: !function {HERE}.doc_to_visual",
        f"doc_to_text: !function {HERE}.doc_to_text",
        "doc_to_target: target",
        f'generation_kwargs: {{max_new_tokens: {max_new_tokens}, do_sample: false, temperature: 0, until: ["<|endoftext|>"]}}',
        f"process_results: !function {HERE}.process_results",
        "metric_list:",
    ]
    for metric in ("overall", "micro"):
        lines += [f"  - metric: {metric}", f"    aggregation: !function {HERE}.{metric}", "    higher_is_better: true"]
    write_whole(out / f"{name}.yaml", "\n".join(lines) + "\n")


def doc_to_visual(doc: Mapping[str, Any]) -> list:
    """The path of the video; or the images, as lmms-eval wants them."""
    if not question_from_dict(json.loads(doc["question"])).images:
        return list(doc["visuals"])
    from PIL import Image

    return [Image.open(file).convert("RGB") for file in doc["visuals"]]


def doc_to_text(doc: Mapping[str, Any], kwargs: Mapping[str, Any] | None = None) -> str:
    """The prompt of the benchmark's profile, whatever the model is."""
    return doc["prompt"]


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict]:
    """What the averages need, and what an import of the log needs."""
    question = question_from_dict(json.loads(doc["question"]))
    score = benchmark_named(doc["benchmark"]).score(question, results[0], doc["profile"])
    kept = {name: doc[name] for name in ("id", "benchmark", "profile", "question")} | {"prediction": results[0], "score": score}
    return {"overall": kept, "micro": kept}


def overall(kept: Sequence[Mapping[str, Any]]) -> float:
    """The benchmark's first number, in percent."""
    return _aggregate(kept)["overall"]


def micro(kept: Sequence[Mapping[str, Any]]) -> float:
    """The mean of all answers, in percent."""
    return _aggregate(kept)["micro"]


def _aggregate(kept: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    records = [Record(question_from_dict(json.loads(k["question"])), k["prediction"], k["score"]) for k in kept]
    return benchmark_named(kept[0]["benchmark"]).aggregate(records, kept[0]["profile"])


if __name__ == "__main__":
    with mistakes_in_one_line("lmms_tasks"):
        tyro.cli(write_task)
