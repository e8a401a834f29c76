"""Benchmarks in general: files, ids, profiles, averages, VSI-Bench's subsets, and any text as an answer."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.base import Question, Record, averages
from allocentric.tasks.files import content_ids, official_files, read_rows, unpack
from allocentric.tasks.vsibench import NUMERIC, aggregate, question_from_row, vsi_score

HERE = Path(__file__).parent
BOXES = (Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),)
CHOICES = ("A. left", "B. right", "C. front", "D. back")
TASKS = {
    "vsibench": ("object_counting", "object_rel_distance"),
    "sparbench": ("depth_prediction_oc", "depth_prediction_oo_mv", "view_change_infer", "position_matching"),
    "multi3drefer": ("mt", "zt_w_d"),
}
ANSWERS = {"object_counting": "4", "depth_prediction_oc": "2.5", "depth_prediction_oo_mv": "0", "view_change_infer": "move_up:1"}


def question_for(name: str, task: str) -> Question:
    answer = ANSWERS.get(
        task, "7" if name in ("nr3d", "sr3d") else "brown chair" if name in ("scanqa", "sqa3d", "scan2cap") else "A"
    )
    return Question(
        task, "s", "text", CHOICES, answer, id="1", references=(answer, "a b"), tokenized=("a chair .",),
        boxes=() if task == "zt_w_d" else BOXES, groups=("mentions_target_class", "correct_guess"),
    )  # fmt: skip


# --- Any text as an answer ---

WORDS = "A|B.|(C)| |\n|<answer>|</answer>|<think>|answer is |``|{|4|-2.5|1e400|nan|inf|²|٣|move_up:1|,|'|n't|the |\x00".split("|")
PIECES = st.sampled_from([*WORDS, "9" * 400, "[0, 0, 0, 1, 1, 1]", "[1e308, 0, 0, 1e308, 1e308, 1e308]", "|||"])
TEXT = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join))


@pytest.mark.parametrize("name", BENCHMARKS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
@example("")
@example("\ud800")  # half a character
@example("9" * 5000)
def test_any_text_scores_between_0_and_1(name, text):
    benchmark = BENCHMARKS[name]()
    for task in TASKS.get(name, (name,)):
        question = question_for(name, task)
        for profile in benchmark.profiles:
            assert 0 <= benchmark.score(question, text, profile) <= 1
        benchmark.parse(text)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_profiles(name):
    benchmark = BENCHMARKS[name]()
    task = TASKS.get(name, (name,))[-1]
    question = question_for(name, task)
    assert benchmark.name == name and benchmark.check("") == benchmark.profiles[0]
    assert benchmark.make(AnnotatedScene("s", ()), np.random.default_rng(0)) == []  # its questions are read
    for profile in benchmark.profiles:
        assert isinstance(benchmark.prompt(question, profile), str)
    for use in (
        lambda: benchmark.score(question, "A", "strict"),
        lambda: benchmark.prompt(question, "strict"),
        lambda: benchmark.aggregate([Record(question, "A", 1.0)], "strict"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*'strict'"):
            use()


# --- Averages and files ---


def test_averages():
    questions = [Question(task, "s", "q", (), "A", groups=groups) for task, groups in (("a", ("x",)), ("a", ()), ("b", ("x", "y")))]
    numbers = averages([Record(q, "", score) for q, score in zip(questions, (1.0, 0.0, 1.0), strict=True)], without=("y",))
    assert numbers == {
        "micro": pytest.approx(200 / 3),
        "macro": 75,
        "task/a": 50,
        "task/b": 100,
        "group/x": 100,
        "n": 3,
        "n/a": 2,
        "n/b": 1,
        "n/x": 2,
    }
    with pytest.raises(ValueError, match="at least one"):
        averages([])


def test_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    (tmp_path / "a.json").write_text('[{"x": 1}, {"x": 2}]')
    (tmp_path / "a.csv").write_text('x,y\n1,"a, b"\n2,c\n')
    (tmp_path / "a.tsv").write_text("x\ty\n1\ta\n2\tb\n")
    for ending in ("jsonl", "json", "csv", "tsv"):
        assert [int(row["x"]) for row in read_rows(tmp_path / f"a.{ending}")] == [1, 2]
    (tmp_path / "b.jsonl").write_text('{"x": 1}\n{"x": \n')
    (tmp_path / "b.json").write_text('{"x": 1}')
    for file, message in (
        ("b.jsonl", r"b.jsonl:2: expected JSON"),
        ("b.json", "expected a JSON list"),
        ("b.txt", "found a .txt file"),
    ):
        with pytest.raises(ValueError, match=message):
            list(read_rows(tmp_path / file))
    for file in ("c.jsonl", "c.json", "c.csv"):
        (tmp_path / file).write_bytes(b'{"x": "\xff"}\n')
        with pytest.raises(ValueError, match=rf"{file}: expected .*UTF-8 text"):
            list(read_rows(tmp_path / file))
    assert official_files(tmp_path, "*.zip", "a.json*") == [tmp_path / "a.json", tmp_path / "a.jsonl"]
    with pytest.raises(ValueError, match="no such file or folder"):
        official_files(tmp_path / "missing", "a")
    with pytest.raises(ValueError, match=r"expected a file or a folder with x.json or y.json"):
        official_files(tmp_path, "x.json", "y.json")


def test_ids_and_images(tmp_path):
    ids = content_ids([("a", "b"), ("ab", ""), ("a", "b")])
    assert len(set(ids)) == 3 and ids[2] == f"{ids[0]}-2"
    unpack(b"one", tmp_path / "deep" / "a.jpg")
    unpack(b"two", tmp_path / "deep" / "a.jpg")  # kept, as it is there
    assert (tmp_path / "deep" / "a.jpg").read_bytes() == b"one" and len(list((tmp_path / "deep").iterdir())) == 1


# --- VSI-Bench ---


def vsi_row(identity: int, task: str = "object_counting", **more) -> dict:
    options = None if task in NUMERIC else ["A. left", "B. right"]
    shared = {"id": identity, "dataset": "scannet", "scene_name": "scene0000_00", "question_type": task}
    return {**shared, "question": f"Q{identity}?", "options": options, "ground_truth": "4" if options is None else "A", **more}


def test_vsi_subsets(tmp_path):
    benchmark = BENCHMARKS["vsibench"]()
    rows = [vsi_row(3, pruned=False), vsi_row(4, "route_planning", pruned=True), vsi_row(9, pruned=True)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ids = {subset: [q.id for q in benchmark.read(tmp_path, subset=subset)] for subset in ("full", "debiased", "pruned", "tiny")}
    assert ids == {"full": ["3", "4", "9"], "debiased": ["3"], "pruned": ["4", "9"], "tiny": ["3", "9"]}
    for row in rows:
        del row["pruned"]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"no pruned_ids.txt"):
        benchmark.read(tmp_path, subset="pruned")
    (tmp_path / "pruned_ids.txt").write_text("9\n")
    assert [q.id for q in benchmark.read(tmp_path, subset="debiased")] == ["3", "4"]
    with pytest.raises(ValueError, match="'hard'"):
        benchmark.read(tmp_path, subset="hard")
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows + rows[:1])))
    with pytest.raises(ValueError, match="'3' more than once"):
        benchmark.read(tmp_path)


def test_vsi_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [vsi_row(5, "object_rel_distance"), vsi_row(7)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test_debiased.parquet")
    questions = BENCHMARKS["vsibench"]().read(tmp_path, subset="debiased")
    assert questions == [question_from_row(row) for row in rows] and questions[0].options == ("A. left", "B. right")


def test_vsi_prompts_of_profiles():
    benchmark, question = BENCHMARKS["vsibench"](), question_from_row(vsi_row(1, "route_planning"))
    number = question_from_row(vsi_row(2))
    letter = "Answer with the option's letter from the given choices directly."
    assert benchmark.prompt(question) == f"These are frames of a video.\nQ1?\nOptions:\nA. left\nB. right\n{letter}"
    assert benchmark.prompt(question, "lmms_eval_0_7_3") == benchmark.prompt(question)
    assert benchmark.prompt(question, "spatial_mllm") == f"Q1?\nOptions:\nA. left\nB. right\n{letter}"
    assert benchmark.prompt(question, "vlmevalkit") == f"These are frames of a video.\nQ1?\nA. left\nB. right\n{letter}"
    tagged = benchmark.prompt(number, "spatial_mllm_v1")  # whose answers are scored without the tags
    assert tagged.endswith("within the <answer> </answer> tags.")
    assert benchmark.score(number, f"<answer>{number.answer}</answer>", "spatial_mllm_v1") == 1
    assert benchmark.score(question, "<think>a or b</think><answer>A</answer>", "spatial_mllm_v1") == float(question.answer == "A")
    assert benchmark.prompt(number, "vlmevalkit").endswith("Q2?\nAnswer briefly and directly in one float number.")


def test_vsi_averages_equal_the_published_ones():
    table = json.loads((HERE / "parity" / "scorers" / "vsibench_aggregate_parity.json").read_text())
    benchmark, records = BENCHMARKS["vsibench"](), []
    for i, doc in enumerate(table["docs"]):
        question = Question(doc["question_type"], "s", "q", (), doc["ground_truth"], id=str(i))
        records.append(Record(question, doc["prediction"], benchmark.score(question, doc["prediction"])))
    numbers = benchmark.aggregate(records)
    assert numbers["overall"] == numbers["macro"] == pytest.approx(table["official"]["overall"], abs=1e-9)
    assert numbers["micro"] == pytest.approx(table["micro_average_percent"], abs=1e-9) and numbers["partial"] == 0
    assert benchmark.aggregate(records, "lmms_eval_0_7_3")["overall"] == pytest.approx(
        100 * table["lmms_eval_0_7_3_overall"], abs=1e-9
    )
    summary = aggregate([(r.question.task, r.score) for r in records])
    assert numbers["macro/mra"] == pytest.approx(sum(summary.tasks[t] for t in NUMERIC) / 4)
    assert numbers["macro/accuracy"] == pytest.approx(2 * numbers["macro"] - numbers["macro/mra"])
    assert benchmark.aggregate(records[:1])["partial"] == 1


def test_vsi_official_files():
    folder = Path(os.environ.get("ALLOCENTRIC_DATA", HERE.parents[1] / "shared" / "data")) / "vsibench"
    if not folder.is_dir():
        pytest.skip(f"no VSI-Bench in {folder} (set ALLOCENTRIC_DATA to the folder that holds vsibench/)")
    benchmark = BENCHMARKS["vsibench"]()
    questions = benchmark.read(folder / "arkitscenes_questions.jsonl")
    assert len(questions) == 1601 and len({q.scene for q in questions}) == 150
    assert len(benchmark.read(folder / "arkitscenes_questions.jsonl", subset="tiny")) == 140
    for profile in benchmark.profiles:
        records = [Record(q, q.answer, benchmark.score(q, q.answer, profile)) for q in questions]
        assert benchmark.aggregate(records, profile)["overall"] == pytest.approx(100)
        assert all(r.score == vsi_score(r.question.task, r.question.answer, r.prediction, profile) for r in records)
