"""Runs of a benchmark: every question asked once, of its own video, whatever interrupts them, by any number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from allocentric.evaluate.answers import by_id, collect, part, question_from_dict, question_to_dict, read_rows, to_line
from allocentric.evaluate.benchmark import Plan, evaluate, read_run
from allocentric.evaluate.responders import Chance, Frequency, find_sources, random_option
from allocentric.evaluate.run import Reply, Responder, ask, scenes
from allocentric.geometry.boxes import Box3D
from allocentric.tasks.base import Question
from allocentric.tasks.vsibench import VSIBench

SCRIPT = """
import sys
import time
from dataclasses import replace
from pathlib import Path

from test_evaluate_runs import Slow, ask, made, prompt, score

for _ in ask(made(), prompt, score, Slow(float(sys.argv[2])), Path(sys.argv[1])):
    pass
"""


def made(count: int = 12, each: int = 3) -> list[Question]:
    """Questions about `count` scenes, those of one scene not next to each other."""
    tasks = ("object_counting", "object_rel_distance", "route_planning")
    options = ("A. a", "B. b", "C. c", "D. d")
    return [
        Question(tasks[k % 3], f"set/{s:02d}", f"what {k} of {s}?", options if k % 3 else (), answer(k, s), id=f"{s}-{k}")
        for k in range(each)
        for s in range(count)
    ]


def answer(k: int, s: int) -> str:
    return "B" if k % 3 else str(s + 1)


def prompt(question: Question) -> str:
    return f"please: {question.text}"


def score(question: Question, text: str) -> float:
    return VSIBench().score(question, text)


class Echo(Responder):
    """Answers with what it was given, and remembers the order."""

    def __init__(self):
        self.asked: list[str] = []

    def see(self, questions):
        assert len({q.scene for q in questions}) == 1
        return f"video of {questions[0].scene}"

    def reply(self, seen, questions, prompts):
        assert seen == f"video of {questions[0].scene}"
        self.asked += [q.id for q in questions]
        return [Reply(f"B {p}\n\u2028\u00e9", "seen " + seen, (1, 5)) for p in prompts]


class Slow(Echo):
    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds

    def reply(self, seen, questions, prompts):
        time.sleep(self.seconds)
        return super().reply(seen, questions, prompts)


@pytest.fixture
def whole(tmp_path):
    """The file of a run that nothing interrupted."""
    file = tmp_path / "whole" / "answers.jsonl"
    assert list(ask(made(), prompt, score, Echo(), file)) == [(i, 12) for i in range(13)]
    return file


# ---- one run ----


def test_every_question_is_asked_once_with_its_scene(whole):
    rows = read_rows(whole)
    assert [row.question for row in rows] == made()
    for row in rows:
        assert row.prompt == f"please: {row.question.text}" and row.frames == (1, 5)
        assert row.prediction == f"B {row.prompt}\n\u2028\u00e9" and row.notes == f"seen video of {row.scene}"
        assert row.score == (1.0 if row.question.options else 0.0)
    assert [p.name for p in whole.parent.iterdir()] == ["answers.jsonl"]


def test_scenes_are_asked_together_in_order_of_appearance(tmp_path):
    responder = Echo()
    list(ask(made(4, 2), prompt, score, responder, tmp_path / "a.jsonl"))
    assert responder.asked == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1", "3-0", "3-1"]
    by_images = [Question("t", "s", "?", (), "1", id=str(i), images=(f"{i % 2}.png",)) for i in range(4)]
    assert [[q.id for q in group] for group in scenes(by_images)] == [["0", "2"], ["1", "3"]]


def test_what_comes_next_is_read_ahead_but_not_far(tmp_path):
    seen, replied = [], []

    class Counting(Echo):
        def see(self, questions):
            seen.append(questions[0].scene)
            return super().see(questions)

        def reply(self, given, questions, prompts):
            time.sleep(0.02)
            replied.append(len(seen))
            return super().reply(given, questions, prompts)

    list(ask(made(), prompt, score, Counting(), tmp_path / "a.jsonl", workers=2))
    assert replied[0] >= 3  # more than the scene that is asked
    assert all(ahead <= i + 1 + 4 for i, ahead in enumerate(replied))  # at most twice the workers wait
    assert len(seen) == 12


def test_an_error_in_reading_stops_the_run_and_keeps_what_is_done(tmp_path):
    class Broken(Echo):
        def see(self, questions):
            if questions[0].scene == "set/05":
                raise ValueError("set/05.mp4: not a video")
            return super().see(questions)

    file = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match="not a video"):
        list(ask(made(), prompt, score, Broken(), file))
    responder = Echo()
    assert next(iter(ask(made(), prompt, score, responder, file))) == (5, 12)


# ---- interruptions ----


@pytest.mark.parametrize("cut", range(0, 12))
def test_cut_off_anywhere_it_ends_the_same(cut, whole, tmp_path):
    written = b"".join(to_line(row).encode() for row in sorted(read_rows(whole), key=lambda row: row.scene))
    at = len(written) * cut // 11 + cut % 3
    file = tmp_path / "answers.jsonl"
    part(file, 0).write_bytes(written[:at])
    responder = Echo()
    list(ask(made(), prompt, score, responder, file))
    assert file.read_bytes() == whole.read_bytes()
    kept = written[:at].count(b"\n") // 3
    assert len(responder.asked) == 3 * (12 - kept)  # nothing that was complete is asked again
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers.jsonl", "whole"]


def test_kill_9_loses_nothing_and_doubles_nothing(whole, tmp_path):
    (tmp_path / "ask.py").write_text(SCRIPT)
    file = tmp_path / "answers.jsonl"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(tmp_path / "ask.py"), str(file), "0.05"], env=environment)
    for _ in range(60000):
        if (part(file, 0).exists() and part(file, 0).read_bytes().count(b"\n") >= 9) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = part(file, 0).read_bytes().count(b"\n")
    assert 9 <= done < 36
    responder = Echo()
    list(ask(made(), prompt, score, responder, file))
    assert len(responder.asked) == 36 - 3 * (done // 3)
    assert file.read_bytes() == whole.read_bytes()


def test_killed_between_merging_and_tidying_up_nothing_is_doubled(whole, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_bytes(whole.read_bytes())
    part(file, 1).write_bytes(whole.read_bytes())
    assert collect(file, made()) == read_rows(whole) and not part(file, 1).exists()
    assert file.read_bytes() == whole.read_bytes()


def test_parts_of_another_number_of_processes_are_used(whole, tmp_path):
    rows, file = read_rows(whole), tmp_path / "answers.jsonl"
    for rank in range(3):
        part(file, rank).write_text("".join(to_line(row) for row in rows if int(row.scene[-2:]) % 4 == rank))
    responder = Echo()
    list(ask(made(), prompt, score, responder, file))
    assert {i.split("-")[0] for i in responder.asked} == {"3", "7", "11"}
    assert file.read_bytes() == whole.read_bytes()


def test_other_peoples_answers_are_not_continued(whole):
    with pytest.raises(ValueError, match="that is not asked now; delete the file"):
        list(ask(made()[1:], prompt, score, Echo(), whole))
    whole.write_text("{}\n")
    with pytest.raises(ValueError, match=r"answers\.jsonl: found a line that is no answer"):
        list(ask(made(), prompt, score, Echo(), whole))


def test_ids_must_be_there_and_differ():
    with pytest.raises(ValueError, match="one without id"):
        by_id([Question("t", "s", "?", (), "1")])
    with pytest.raises(ValueError, match="the id '0-0' twice"):
        by_id(made() + made())


def test_questions_survive_being_written():
    box = Box3D((1.0, 2.0, 3.0), (0.5, 0.5, 1.0), 0.3, "chair", 0.9)
    question = Question("t", "s", "?", ("A. x",), "A", ("chair",), "7", ("a", "b"))
    question = replace(question, context="I stand.", images=("1.png",), boxes=(box, box), groups=("unique",))
    assert question_from_dict(json.loads(json.dumps(question_to_dict(question)))) == question
    assert question_from_dict(question_to_dict(made()[0])) == made()[0]
    with pytest.raises(ValueError, match="found fields"):
        question_from_dict({"task": "t", "colour": "red"})


# ---- baselines and sources ----


def test_chance_is_random_but_always_the_same():
    questions = [Question("t", "s", "?", ("A. x", "B. y", "C. z"), "A", id=str(i)) for i in range(300)]
    drawn = [random_option(q) for q in questions]
    assert drawn == [reply.text for reply in Chance().reply(None, questions, [""] * 300)]
    assert all(70 < drawn.count(letter) < 130 for letter in "ABC")
    assert random_option(made()[0]) == ""
    assert random_option(Question("t", "s", "?", ("(A) x",), "A", id="1")) == "A"


def test_frequency_answers_with_the_most_frequent_answer_of_the_task():
    asked = [Question("n", "s", "?", (), a) for a in ("3", "2", "2", "3", "9")] + [Question("c", "s", "?", ("A. x", "B. y"), "B")]
    assert [reply.text for reply in Frequency(asked).reply(None, asked, [""] * 6)] == ["2"] * 5 + ["B"]


def test_all_missing_videos_are_told_before_anything_is_asked(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "00.mp4").touch()
    (tmp_path / "set" / "01").mkdir()
    found = find_sources(made(2), tmp_path)
    assert found == {"set/00": tmp_path / "set" / "00.mp4", "set/01": tmp_path / "set" / "01"}
    with pytest.raises(ValueError, match=r"set/02 .* nor at 2 other places"):
        find_sources(made(5), tmp_path)
    with pytest.raises(ValueError, match="expected --videos"):
        find_sources(made(2), None)
    picture = Question("t", "s", "?", (), "1", id="1", images=(str(tmp_path / "no.png"),))
    with pytest.raises(ValueError, match=r"no\.png: found nothing there; --only"):
        find_sources([picture], None)


# ---- a benchmark ----


def write_vsibench(folder: Path, count: int = 12) -> Path:
    """A file in VSI-Bench's layout."""
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "id": i, "dataset": "set", "scene_name": q.scene[-2:], "question_type": q.task, "question": q.text,
            "options": list(q.options) or None, "ground_truth": q.answer,
        }
        for i, q in enumerate(made(count))
    ]  # fmt: skip
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_all(name, steps):
    assert list(steps)


def test_a_run_is_written_down_and_repeats(tmp_path):
    plan = Plan("vsibench", write_vsibench(tmp_path / "data"), baseline="frequency", out=tmp_path / "out")
    folder, report = evaluate(plan, run_all)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(files) == {"run.json", "answers.jsonl", "report.md", "report.html", "report.json"}
    about, rows = read_run(folder)
    assert about["model"] == "frequency" and about["questions"] == 36 and about["scenes"] == 12 and "torch" in about["versions"]
    assert rows[0].prompt.startswith("These are frames of a video.\nwhat 0 of 0?\n")
    scores = {line.name: line.score for line in report.lines}
    assert scores["object_rel_distance"] == scores["route_planning"] == 100
    counting = np.mean([VSIBench().score(row.question, "1") for row in rows[:12]])
    assert scores["object_counting"] == pytest.approx(100 * counting)
    assert scores["overall (= macro)"] == pytest.approx((200 + 100 * counting) / 3)
    again, _ = evaluate(plan, run_all)
    assert again == folder and {p.name: p.read_bytes() for p in folder.iterdir()} == files
    other, _ = evaluate(Plan("vsibench", plan.data, baseline="frequency", out=plan.out, profile="spatial_mllm"), run_all)
    fewer, _ = evaluate(Plan("vsibench", plan.data, baseline="frequency", out=plan.out, only="set/0*", limit=7), run_all)
    assert len({folder, other, fewer}) == 3 and len(read_run(fewer)[1]) == 7


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ({"task": "nothing"}, "task: found 'nothing', expected one of"),
        ({"data": None}, "--data: found none"),
        ({"profile": "mine"}, "scorer profile of vsibench"),
        ({"only": "elsewhere/*"}, "found no questions about scenes"),
        ({"images": Path("x")}, "--images: vsibench has none"),
        ({"baseline": None}, "expected --videos"),
    ],
)
def test_what_cannot_be_run_is_refused(plan, complaint, tmp_path):
    given = {"task": "vsibench", "data": write_vsibench(tmp_path / "data"), "baseline": "frequency", "out": tmp_path / "out"} | plan
    with pytest.raises(ValueError, match=complaint):
        evaluate(Plan(**given), run_all)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path):
    data = write_vsibench(tmp_path / "data", count=30)
    words = ["-m", "allocentric.cli", "eval", "vsibench", "--data", str(data), "--baseline", "chance", "--json", "--out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    printed = []
    for name, command in (("two", two), ("one", [sys.executable])):
        words_here = [*command, *words, str(tmp_path / name)]
        done = subprocess.run(words_here, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        printed.append([line for line in done.stdout.splitlines() if line.startswith("{")])
    assert printed[0] == printed[1] and len(printed[0]) == 1
    [a], [b] = (list((tmp_path / name).iterdir()) for name in ("two", "one"))
    assert a.name == b.name
    assert {p.name: p.read_bytes() for p in a.iterdir()} == {p.name: p.read_bytes() for p in b.iterdir()}
    assert len(read_run(a)[1]) == 90


@pytest.mark.slow
def test_two_processes_share_the_scenes(tmp_path):
    script = SCRIPT.replace("Slow(float(sys.argv[2]))", "Signed(float(sys.argv[2]))") + (
        "Path(sys.argv[1]).with_name(f'asked-{Signed.rank}').write_text(' '.join(Signed.all))\n"
    )
    script = script.replace("for _ in", "from test_evaluate_runs import Signed\nfor _ in", 1)
    (tmp_path / "ask.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    # with --cpu, accelerate would start one process
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(tmp_path / "ask.py"), str(tmp_path / "a.jsonl"), "0.01"]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    shares = [set((tmp_path / f"asked-{rank}").read_text().split()) for rank in (0, 1)]
    assert not shares[0] & shares[1] and len(shares[0]) == len(shares[1]) == 18
    assert [row.question for row in read_rows(tmp_path / "a.jsonl")] == made()


class Signed(Slow):
    """Remembers in the class what this process was asked."""

    rank = os.environ.get("RANK", "0")
    all: list[str] = []  # noqa: RUF012

    def reply(self, seen, questions, prompts):
        Signed.all.extend(q.id for q in questions)
        return super().reply(seen, questions, prompts)
