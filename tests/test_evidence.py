"""The comparison of what cold start and GRPO add: it runs, goes on where it stopped, and reckons right."""

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from allocentric.evaluate.answers import read_rows
from allocentric.evaluate.rooms import row_of
from allocentric.evaluate.statistics import averages, bootstrap
from allocentric.tasks import Question
from allocentric.train.evidence import ARMS, Plan, curves, differences, evidence, examples, over_seeds, run_name, smoothed
from allocentric.train.features import write_features
from allocentric.train.recipe import read_recipe
from test_sft import new_model, processor  # noqa: F401  (a fixture)


def quiet(name, steps):
    list(steps)


@pytest.fixture
def plan(request, tmp_path) -> Plan:
    recipes = request.config.rootpath / "recipes"
    grpo, nano = read_recipe(recipes / "grpo_nano.yaml"), read_recipe(recipes / "nano.yaml")
    stage = nano.sft.optimisation
    return Plan(grpo, nano.sft, tmp_path / "start", tmp_path / "out", stage, stage, heldout=20)


def answered(right: dict[str, bool], rooms: int = 20):
    """Rows of two questions a room: a choice and a count, each right or wrong."""
    rows = []
    for room in range(rooms):
        choice = Question("object_rel_distance", str(room), "Which?", ("A. bed", "B. desk"), "B")
        count = Question("object_counting", str(room), "How many?", (), "4")
        rows.append(row_of(choice, "B" if right["choice"] else "A"))
        rows.append(row_of(count, "4" if right["count"] else "400"))
    return rows


def test_differences_are_means_over_seeds_of_paired_scores(plan):
    right = dict.fromkeys(("choice", "count"), True)
    wrong = dict.fromkeys(("choice", "count"), False)
    rows = {run_name(arm, seed): answered(wrong) for arm in ARMS for seed in (0, 1)}
    rows[run_name("GRPO", 0)] = answered(right)
    rows[run_name("GRPO", 1)] = answered({**wrong, "choice": True})
    single = {name: averages(some) for name, some in rows.items()}
    drawn = over_seeds(plan, bootstrap(rows, scenes=[str(room) for room in range(20)]))
    means = over_seeds(plan, single)
    assert means["GRPO"].macro[0] == pytest.approx(75) and means["longer"].macro[0] == 0
    text = differences(plan, single, drawn)
    assert "| GRPO - longer | **+75.0** [+75.0, +75.0] | +100.0 | +50.0 |" in text
    assert "| longer - sft | **+0.0** [+0.0, +0.0] | +0.0 | +0.0 |" in text
    assert "| object_counting | +50.0 [+50.0, +50.0] |" in text and "| object_rel_distance | +100.0 [+100.0, +100.0] |" in text


def test_intervals_are_paired_by_room(plan):
    """Both arms swing from room to room, but one is always better in as many: the difference has no width, the scores do."""
    low, high = answered({"choice": False, "count": True}), answered({"choice": True, "count": True})
    hard = {str(room) for room in range(0, 20, 2)}
    worse = lambda rows: [row_of(row.question, "400") if row.scene in hard and not row.question.options else row for row in rows]  # noqa: E731
    rows = {run_name(arm, seed): worse(high if arm == "GRPO" else low) for arm in ARMS for seed in (0, 1)}
    drawn = over_seeds(plan, bootstrap(rows, scenes=[str(room) for room in range(20)]))
    assert np.ptp(drawn["GRPO"].macro) > 5
    text = differences(plan, {name: averages(some) for name, some in rows.items()}, drawn)
    assert "| GRPO - sft | **+50.0** [+50.0, +50.0] | +50.0 | +50.0 |" in text


def test_examples_show_what_became_right_and_wrong():
    choice, count = (row.question for row in answered(dict.fromkeys(("choice", "count"), True), 1))
    before = [replace(row_of(choice, "A"), notes="desk 1.0"), row_of(count, "4")]
    after = [replace(row_of(choice, "B"), notes="desk 2.0"), row_of(count, "400")]
    text = examples(before, after)
    became_right, became_wrong = text.split("### Became wrong")
    assert "Became right: 1 of 2" in became_right and "Which? A. bed B. desk (truth: B)" in became_right
    assert "  - cold start: `<think>desk 1.0</think>A`\n  - GRPO: `<think>desk 2.0</think>B`" in became_right
    assert became_wrong.startswith(": 1 of 2") and "How many? (truth: 4)" in became_wrong and "  - GRPO: `400`" in became_wrong


def test_curves_follow_the_log():
    log = [{"step": 10 * i, "reward": float(i), "length": 5.0} for i in range(1, 41)]
    line = smoothed(log, "reward")
    assert line[0].tolist() == [10, 1] and line[-1].tolist() == [400, 39.5]  # a window of two entries
    root = ElementTree.fromstring(curves({0: log, 1: log}))
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4  # reward and length, two seeds
    ends = [tuple(map(float, point.split(","))) for point in lines[0].get("points").split()]
    assert ends[0][0] < ends[-1][0] and ends[0][1] > ends[-1][1]  # it rises: y counts downwards


@pytest.mark.slow
def test_it_runs_and_goes_on_where_it_stopped(request, tmp_path, shards, processor):  # noqa: F811
    model = new_model(processor).eval()
    model.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    run = tmp_path / "run"
    run.mkdir()
    (run / "rooms").symlink_to(shards.folder)
    list(write_features(run / "features", model.model, shards, mirrored=False))
    recipes = request.config.rootpath / "recipes"
    keys = yaml.safe_load((recipes / "grpo_nano.yaml").read_text())
    keys["rooms"] |= {"run": str(run), "rooms": 3}
    keys["optimisation"]["bf16"] = False
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(keys))
    stages = yaml.safe_load((recipes / "nano.yaml").read_text())
    stages["sft"]["note_error"] = 0.0  # this tokenizer has no token for each number
    (tmp_path / "nano.yaml").write_text(yaml.safe_dump(stages))
    out = tmp_path / "out"
    how = {"nano": tmp_path / "nano.yaml", "start": tmp_path / "start", "smoke_": True}
    evidence(tmp_path / "grpo.yaml", out, seeds=(0,), **how)
    evidence(tmp_path / "grpo.yaml", out, seeds=(1,), **how)  # side by side with the first, if need be
    first = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert len({path.parent for path in first if path.parent.name == "model"}) == 6
    evidence(tmp_path / "grpo.yaml", out, seeds=(0, 1), **how)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == first

    traces = [json.loads(line) for line in (out / "seed-0" / "traces.jsonl").read_text().splitlines()]
    assert traces and all(line["reward"] > 0 for line in traces)
    noted = {(line["task"] == "room_size_estimation", "<think>" in line["conversations"][1]["value"]) for line in traces}
    assert noted <= {(False, True), (True, False)}, "notes everywhere but where nano takes none"
    log = json.loads((out / "seed-0" / "grpo" / "log.json").read_text())
    assert sum(entry.get("cpu_seconds", 0) for entry in log) > 0 and any("reward" in entry for entry in log)
    text = (out / "report.md").read_text()
    for arm in ARMS:
        macro = np.mean([averages(read_rows(answers(out, arm, seed))).macro[0] for seed in (0, 1)])
        row = next(line for line in text.splitlines() if line.startswith("| macro |"))
        assert f"**{macro:.1f}**" in row.split("|")[2 + ARMS.index(arm)]
    ElementTree.parse(out / "curves.svg")


def answers(out: Path, arm: str, seed: int) -> Path:
    return out / f"seed-{seed}" / f"{arm.lower().replace(' ', '-')}.jsonl"
