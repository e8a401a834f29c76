"""Reports, comparisons and logs of other harnesses."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from allocentric.evaluate.answers import Row
from allocentric.evaluate.logs import export_log, import_log
from allocentric.evaluate.report import compare, is_unread, make_report, to_html, to_markdown
from allocentric.evaluate.statistics import averages, bootstrap, interval, mcnemar
from allocentric.tasks.base import Question
from allocentric.tasks.mindcube import MindCube
from allocentric.tasks.vsibench import VSIBench

OPTIONS = ("A. a", "B. b", "C. c", "D. d")


def row(i: int, task: str, truth: str, said: str, scene: str = "") -> Row:
    question = Question(task, scene or f"s/{i % 5}", f"what is {i}?", OPTIONS if truth.isalpha() else (), truth, id=str(i))
    return Row(question, "prompt", said, "", (0, 2), VSIBench().score(question, said))


@pytest.fixture
def rows() -> list[Row]:
    rng = np.random.default_rng(0)
    numbers = [row(i, "object_counting", str(2 + i % 3), str(2 + int(rng.integers(3)))) for i in range(40)]
    letters = [row(40 + i, "route_planning", "ABCD"[i % 4], "ABCD"[rng.integers(4)]) for i in range(20)]
    levels = ["easy", "hard", "hard", "hard"]
    levels = [row(60 + i, f"object_rel_direction_{level}", "A", "AB"[i % 2]) for i, level in enumerate(levels)]
    return numbers + letters + levels


# ---- averages ----


def test_macro_and_micro_are_the_benchmarks(rows):
    found, numbers = averages(rows), VSIBench().aggregate([r.record() for r in rows])
    assert found.names == ("object_counting", "route_planning", "object_rel_direction")
    assert (found.macro[0], found.micro[0]) == pytest.approx((numbers["macro"], numbers["micro"]), abs=1e-9)
    for name, value in zip(found.names, found.tasks[0], strict=True):
        assert value == pytest.approx(numbers[f"task/{name}"], abs=1e-9)
    assert found.tasks[0, 2] == pytest.approx((100 + 100 / 3) / 2)  # easy 1 of 1, hard 1 of 3


def test_each_draw_is_the_average_of_its_scenes(rows):
    draws = bootstrap({"a": rows}, draws=20, seed=5)["a"]
    scenes = sorted({r.scene for r in rows})
    for i, pick in enumerate(np.random.default_rng(5).integers(0, 5, (20, 5))):
        drawn = [r for p in pick for r in rows if r.scene == scenes[p]]
        assert draws.micro[i] == pytest.approx(100 * np.mean([r.score for r in drawn]))
        assert draws.macro[i] == pytest.approx(averages(drawn).macro[0])
    assert interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_mcnemar_is_the_exact_binomial_test():
    a = [row(i, "route_planning", "A", "A" if i < 12 else "B") for i in range(30)]
    b = [row(i, "route_planning", "A", "A" if 10 <= i < 20 else "B") for i in range(30)]
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b, found.n) == (10, 8, 30)
    assert found.p == pytest.approx(min(1, 2 * binom.cdf(8, 18, 0.5)))
    partial = [row(i, "object_counting", "4", "5") for i in range(30, 40)]
    assert mcnemar(a + partial, b + partial) == found  # partial scores are left out
    assert mcnemar(a, a).p == 1


# ---- reports ----


def test_a_report_says_everything(rows):
    report = make_report(VSIBench(), rows, "official", {"model": "<nobody>"})
    lines = {line.name: line for line in report.lines}
    numbers = VSIBench().aggregate([r.record() for r in rows])
    assert lines["object_counting"].score == pytest.approx(numbers["task/object_counting"]) and lines["object_counting"].n == 40
    assert lines["route_planning"].chance == 25 and lines["object_rel_direction"].n == 4
    most = VSIBench()
    frequent = np.mean([most.score(r.question, "2") for r in rows[:40]])  # 2 and 3 are as frequent, 2 comes first
    assert lines["object_counting"].frequency == pytest.approx(100 * frequent)
    assert lines["object_rel_direction"].frequency == 100 and lines["macro"].chance == pytest.approx((0 + 25 + 25) / 3)
    headline = lines["overall (= macro)"]
    assert headline.score == pytest.approx(numbers["overall"]) and headline.low < headline.score < headline.high
    assert lines["macro/mra"].score == pytest.approx(numbers["macro/mra"]) and lines["macro/mra"].low is None
    assert any("none of the benchmark's" in note for note in report.notes)
    assert not any("Only a part" in note for note in report.notes)
    for facts in ({"only": "s/1"}, {"limit": 3}):
        assert any("Only a part" in note for note in make_report(VSIBench(), rows, "official", facts).notes)
    page = to_html(report)
    assert "&lt;nobody&gt;" in page and "<nobody>" not in page and "http" not in page and "<script" not in page
    text = to_markdown(report)
    assert f"| route_planning | {lines['route_planning'].score:.1f} |" in text and "- model: <nobody>" in text
    assert json.loads(json.dumps(report.to_dict()))["scores"]["macro"]["n"] == 64


def test_answers_that_nobody_can_read_are_counted(rows):
    question, number = rows[45].question, rows[0].question
    assert is_unread(VSIBench(), question, "I cannot tell", "official") and not is_unread(VSIBench(), question, "d. it", "official")
    assert is_unread(VSIBench(), number, "four", "official") and not is_unread(VSIBench(), number, "four", "vlmevalkit")
    assert is_unread(MindCube(), question, "no idea", "official")
    assert not is_unread(MindCube(), question, "<answer>B</answer>", "official")
    silent = [replace(r, prediction="", score=0.0) for r in rows]
    assert "in 64 of them" in make_report(VSIBench(), silent, "official", {}).notes[0]


def test_a_comparison_is_paired(rows):
    better = [replace(r, score=1.0) for r in rows]
    found = compare(rows, better[::-1], ("mine", "theirs"))
    lines = {line.name: line for line in found.lines}
    assert lines["micro"].b == 100 and lines["micro"].a == pytest.approx(averages(rows).micro[0])
    assert 0 < lines["micro"].low < lines["micro"].b - lines["micro"].a < lines["micro"].high and lines["micro"].p < 0.01
    same = {line.name: line for line in compare(rows, rows).lines}
    assert all((line.low, line.high, line.p) == (0, 0, 1) for line in same.values())
    assert "right in a alone 0" in to_markdown(found) and "+0.0 to +0.0" in to_html(compare(rows, rows))


def test_runs_over_different_questions_are_not_compared(rows):
    with pytest.raises(ValueError, match="found 64 and 63 answers"):
        compare(rows, rows[1:])
    moved = [replace(rows[0], question=replace(rows[0].question, text="another?")), *rows[1:]]
    with pytest.raises(ValueError, match="different questions with the id '0'"):
        compare(rows, moved)


# ---- logs ----


@pytest.mark.parametrize(("log_format", "name"), [("lmms-eval", "a.jsonl"), ("vlmevalkit", "a.tsv"), ("vlmevalkit", "a.csv")])
def test_a_log_comes_back_as_it_went(log_format, name, rows, tmp_path):
    said = ["two\nlines\tand a tab", '"quoted", with commas', "", " A "]
    rows = [replace(r, prediction=said[i % 4], score=VSIBench().score(r.question, said[i % 4])) for i, r in enumerate(rows)]
    export_log(rows, "vsibench", log_format, tmp_path / name)
    questions = [r.question for r in rows]
    found = import_log(tmp_path / name, log_format, VSIBench(), questions[::-1], "official")
    assert [(r.question, r.prediction, r.score) for r in found] == [(r.question, r.prediction, r.score) for r in rows[::-1]]
    assert sum(r.score for r in found) > 0


def test_lmms_evals_own_lines_are_read(rows, tmp_path):
    question = rows[41].question  # the answer is B
    kept = {"id": int(question.id), "question": question.text, "prediction": "B."}
    lines = [
        {"doc_id": 9, "filtered_resps": "B.", "target": "B", "input": "the prompt", "vsibench_overall": kept},
        {"doc_id": 9, "doc": kept, "resps": [["<think>x</think>B."]], "filtered_resps": ["B."]},
    ]
    for line, said in zip(lines, ["B.", "<think>x</think>B."], strict=True):
        (tmp_path / "log.jsonl").write_text(json.dumps(line) + "\n")
        [found] = import_log(tmp_path / "log.jsonl", "lmms-eval", VSIBench(), [question], "lmms_eval_0_7_3")
        assert found.prediction == said and found.score == 1  # the profile takes the thinking off


def test_logs_that_do_not_fit_are_refused(rows, tmp_path):
    log, questions = tmp_path / "log.jsonl", [r.question for r in rows]

    def complaint(*lines: dict) -> str:
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ValueError) as error:
            import_log(log, "lmms-eval", VSIBench(), questions, "official")
        return str(error.value)

    good = {"doc_id": 0, "filtered_resps": "2", "doc": {"id": 0, "question": "what is 0?"}}
    assert "found no answers to 63 of 64 questions" in complaint(good)
    assert "found a second answer to '0'" in complaint(good, good)
    assert "log.jsonl:1: found no official id" in complaint({"doc_id": 0, "filtered_resps": "2"})
    assert "found the id '999'" in complaint(good | {"doc": {"id": 999}})
    moved = good | {"doc": {"id": 0, "question": "what is 7?"}}
    assert "found 'what is 7?' for the id '0', expected 'what is 0?'" in complaint(moved)
    assert "expected text in `resps`" in complaint(good | {"filtered_resps": 2})
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["index", "answer"], ["0", "2"]])
    with pytest.raises(ValueError, match="expected `prediction`"):
        import_log(tmp_path / "t.csv", "vlmevalkit", VSIBench(), questions, "official")
    with pytest.raises(ValueError, match=r"ends in \.tsv or \.csv"):
        export_log(rows, "vsibench", "vlmevalkit", tmp_path / "t.xlsx")


# ---- tasks for lmms-eval ----


def test_a_benchmark_becomes_a_task_of_lmms_eval(rows, tmp_path):
    from allocentric.evaluate import lmms_tasks
    from test_evaluate_runs import write_vsibench

    data = write_vsibench(tmp_path / "data", count=2)
    (tmp_path / "videos" / "set").mkdir(parents=True)
    for scene in range(2):
        (tmp_path / "videos" / "set" / f"{scene:02d}.mp4").touch()
    lmms_tasks.write_task("vsibench", data, tmp_path / "tasks", tmp_path / "videos", profile="vlmevalkit")
    text = (tmp_path / "tasks" / "allocentric_vsibench.yaml").read_text()
    assert "task: allocentric_vsibench\n" in text and "!function allocentric.evaluate.lmms_tasks.overall" in text
    docs = [json.loads(line) for line in (tmp_path / "tasks" / "allocentric_vsibench.jsonl").read_text().splitlines()]
    questions = VSIBench().read(data)
    assert [doc["id"] for doc in docs] == [q.id for q in questions]
    assert lmms_tasks.doc_to_text(docs[2], {}) == VSIBench().prompt(questions[2], "vlmevalkit")
    assert lmms_tasks.doc_to_visual(docs[1]) == [str(tmp_path / "videos" / "set" / "01.mp4")]
    said = ["The answer is B.", "2"]
    kept = [lmms_tasks.process_results(doc, [said[i % 2]]) for i, doc in enumerate(docs)]
    scores = [VSIBench().score(q, said[i % 2], "vlmevalkit") for i, q in enumerate(questions)]
    assert [k["micro"]["score"] for k in kept] == scores and 0 < sum(scores) < 6
    assert lmms_tasks.micro([k["micro"] for k in kept]) == pytest.approx(100 * np.mean(scores))
    # its log comes back
    log = [{"doc_id": i, "filtered_resps": said[i % 2], "overall": k["overall"]} for i, k in enumerate(kept)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    found = import_log(tmp_path / "log.jsonl", "lmms-eval", VSIBench(), questions, "vlmevalkit")
    assert [r.score for r in found] == scores
