"""Question data: the same for any number of workers, whole after an interruption, readable by trainers, honest about leaks."""

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

from allocentric.data.leaks import best_constant, report
from allocentric.data.make import Recipe, make, read_questions, scene_generator, task_of
from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene, SceneObject, save_scene
from allocentric.tasks import TRAINING_TASKS, VSI_TASKS
from allocentric.tasks.base import Question
from allocentric.train.jsonl import read_conversations

KINDS = {"object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation", "object_rel_distance"}
KINDS |= {"object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard", "obj_appearance_order"}
KINDS |= {"route_planning"}


def room(seed: int, objects: int = 14) -> AnnotatedScene:
    """Boxes on a floor of 9 x 7 metres that come into view one after the other."""
    rng = np.random.default_rng(seed)
    things = []
    for i in range(objects):
        label = f"thing{i}" if i < objects - 5 else ("stool", "lamp")[i % 2]
        size = tuple(rng.uniform(0.3, 0.8, 3).tolist())
        center = (1.2 + 2.2 * (i % 4) + rng.uniform(-0.3, 0.3), 1.0 + 1.6 * (i // 4) + rng.uniform(-0.3, 0.3), size[2] / 2)
        things.append(SceneObject(i + 1, label, Box3D(center, size, float(rng.uniform(-1, 1)), label)))
    visibility = np.where(np.arange(objects * 2)[:, None] >= 2 * rng.permutation(objects), 0.05, 0.0)
    floor = (np.array([[0.0, 0], [9, 0], [9, 7], [0, 7]]),)
    return AnnotatedScene(f"room-{seed}", tuple(things), visibility, None, floor, 63.0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A folder of 20 scene folders."""
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(20):
        (folder / f"room-{seed:02d}").mkdir()
        save_scene(room(seed), folder / f"room-{seed:02d}" / "scene.json")
    return folder


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "whole"
    assert list(make(Recipe(tuple(VSI_TASKS), (scenes,), 3), out, workers=1))[-1] == (20, 20)
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- making ----


def test_all_eight_types_are_made_with_the_tasks_own_answers(whole):
    questions = read_questions(whole / "questions.jsonl")
    assert {q.task for q in questions} == KINDS
    assert len({q.id for q in questions}) == len(questions) > 300
    scene = replace(room(7), name="room-07")
    for task in ("object_abs_distance", "route_planning"):
        expected = VSI_TASKS[task].make(scene, scene_generator(0, "room-07", task), 3)
        found = [q for q in questions if q.scene == "room-07" and q.task == task]
        assert [replace(q, id="") for q in found] == expected and expected
    assert all(task_of(q).score(q, q.answer) == 1 for q in questions)


@pytest.mark.slow
def test_neither_workers_nor_neighbours_matter(whole, scenes, tmp_path):
    list(make(Recipe(tuple(VSI_TASKS), (scenes,), 3), tmp_path / "three", workers=3))
    assert files(tmp_path / "three") == files(whole)


def test_a_scene_alone_gets_the_questions_it_gets_among_others(whole, scenes, tmp_path):
    recipe = Recipe(tuple(VSI_TASKS), (scenes / "room-11", scenes / "room-03"), 3)
    list(make(recipe, tmp_path / "two", workers=1))
    questions = read_questions(whole / "questions.jsonl")
    expected = [q for name in ("room-11", "room-03") for q in questions if q.scene == name]
    assert read_questions(tmp_path / "two" / "questions.jsonl") == expected
    list(make(replace(recipe, seed=1), tmp_path / "other", workers=1))
    assert read_questions(tmp_path / "other" / "questions.jsonl") != expected


def test_trainers_read_what_was_made(whole):
    conversations = read_conversations(str(whole / "conversations.jsonl"))
    questions = read_questions(whole / "questions.jsonl")
    assert len(conversations) == len(questions)
    for conversation, q in zip(conversations, questions, strict=True):
        assert (conversation.kind, conversation.paths) == ("video", (f"{q.scene}/video.mp4",))
        [turn] = conversation.turns
        assert (turn.prompt, turn.answer) == (task_of(q).prompt(q), q.answer)
    lines = [json.loads(line) for line in (whole / "conversations.jsonl").read_text().splitlines()]
    kinds = {line["question_type"]: line["problem_type"] for line in lines}
    assert kinds["object_counting"] == "numerical" and kinds["route_planning"] == "multiple_choice"


def test_questions_that_people_wrote_pass_through(tmp_path):
    none = {"object_ids": [], "object_names": []}
    rows = [
        {"scene_id": f"scene{i:04d}_00", "question": q, "question_id": f"val-{i}", "answers": a, **none}
        for i, (q, a) in enumerate([("What is on the desk?", ["a lamp", "lamp"]), ("How many chairs are there?", ["2"])])
    ]
    (tmp_path / "ScanQA_v1.0_val.json").write_text(json.dumps(rows))
    recipe = Recipe(("scanqa",), (tmp_path / "ScanQA_v1.0_val.json",), videos="scannet/{scene}.mp4")
    assert list(make(recipe, tmp_path / "out", workers=1))[-1] == (2, 2)
    first, second = (json.loads(line) for line in (tmp_path / "out" / "conversations.jsonl").read_text().splitlines())
    assert first["video"] == "scannet/scene0000_00.mp4" and first["conversations"][1]["value"] == "a lamp"
    assert "What is on the desk?" in first["conversations"][0]["value"]
    assert (first["problem_type"], second["problem_type"]) == ("verbal", "numerical")
    assert report(read_questions(tmp_path / "out" / "questions.jsonl")).types


# ---- interruptions ----


@pytest.mark.parametrize("cut", range(8))
def test_cut_off_anywhere_it_ends_the_same(cut, whole, scenes, tmp_path):
    written = (whole / "questions.jsonl").read_bytes()
    (tmp_path / "make.json").write_bytes((whole / "make.json").read_bytes())
    (tmp_path / "questions.jsonl").write_bytes(written[: len(written) * cut // 7 - (cut == 3)])
    (done, _), *_ = make(Recipe(tuple(VSI_TASKS), (scenes,), 3), tmp_path, workers=1)
    assert files(tmp_path) == files(whole)
    assert done == pytest.approx(20 * cut / 7, abs=2)  # what was complete is not made again


def test_kill_9_loses_nothing_and_doubles_nothing(whole, scenes, tmp_path):
    script = """
import sys, time
from pathlib import Path
from allocentric.data import make as module
from allocentric.tasks import VSI_TASKS

module.CHUNK = 1
for _ in module.make(module.Recipe(tuple(VSI_TASKS), (Path(sys.argv[1]),), 3), Path(sys.argv[2]), 1):
    time.sleep(0.1)
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, str(scenes), str(tmp_path)], env=environment)
    file = tmp_path / "questions.jsonl"
    for _ in range(60000):
        if (file.exists() and file.read_bytes().count(b"\n") > 60) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 60 < file.read_bytes().count(b"\n") < (whole / "questions.jsonl").read_bytes().count(b"\n")
    steps = list(make(Recipe(tuple(VSI_TASKS), (scenes,), 3), tmp_path, workers=1))
    assert steps[0][0] > 1  # what was done is not made again
    assert files(tmp_path) == files(whole)
    assert list(make(Recipe(tuple(VSI_TASKS), (scenes,), 3), tmp_path, workers=1)) == [(20, 20)]
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize(
    ("recipe", "complaint"),
    [
        ({"tasks": ("nothing",)}, "--task: found 'nothing'"),
        ({"tasks": ("scanqa", "route_planning")}, "are made alone"),
        ({"scenes": ()}, "--scenes: found none"),
        ({"scenes": (Path("nowhere"),)}, "nowhere: found no such file or folder"),
        ({"per_task": 0}, "--per-task: found 0"),
        ({"videos": "{name}.mp4"}, "--videos: found '{name}.mp4'"),
        ({"twice": True}, "'room-00' more than once"),
        ({"per_task": 4}, "found questions of per_task 3, expected 4; use another --out"),
    ],
)
def test_what_cannot_be_made_is_refused(recipe, complaint, whole, scenes, tmp_path):
    twice = (scenes, scenes) if recipe.pop("twice", False) else (scenes,)
    before = files(whole)
    with pytest.raises(ValueError, match=complaint):
        list(make(Recipe(**{"tasks": tuple(VSI_TASKS), "scenes": twice, "per_task": 3} | recipe), whole, workers=1))
    assert files(whole) == before


# ---- leaks ----


def questions(leak: str, count: int = 200) -> list[Question]:
    """Four options each; which one is right shows in nothing, the letter, or the option's text."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        names = rng.permutation(["a", "b", "c", "d", "e", "f"])[:4].tolist()
        right = {"letter": 2, "option": int(np.argmin(names))}.get(leak, int(rng.integers(4)))
        options = tuple(f"{letter}. {name}" for letter, name in zip("ABCD", names, strict=True))
        made.append(Question("object_rel_distance", f"s{i % 40}", "Which?", options, "ABCD"[right], tuple(names)))
    return made


def test_leaks_show():
    clean, letter, option = (report(questions(leak)).types[0] for leak in ("", "letter", "option"))
    assert clean.chance == 25 and all(10 < score < 40 for score in (clean.constant, clean.label, clean.option))
    assert letter.constant == 100 and letter.answers == {"C": 200}
    assert option.option > 85 and option.constant < 45


def test_a_label_that_tells_the_answer_shows():
    rng = np.random.default_rng(0)
    sizes = {"cup": 10, "sofa": 210, "door": 200, "stove": 60}
    made = [
        Question("object_size_estimation", f"s{i % 30}", "?", (), str(sizes[label] + int(rng.integers(3))), (label,))
        for i, label in enumerate(rng.choice(list(sizes), 200).tolist())
    ]
    [found] = report(made).types
    assert found.label > 90 > 60 > found.constant and found.option is None and found.n == 200 and found.scenes == 30


@pytest.mark.parametrize("last", [0, 1])
def test_some_questions_of_a_type_may_name_nothing(last):
    made = questions("letter")
    made[-last] = replace(made[-last], objects=(), options=())  # the last of them, or the first
    [found] = report(made).types
    assert found.label == found.constant == 100 and 10 < found.option < 45


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"options": 5}, "options: found 5, expected a list"),
        ({"options": "A. bed"}, "options: found 'A. bed', expected a list"),
        ({"options": [5]}, r"options: found \[5\], expected a list of texts"),
        ({"scene": 5}, "scene: found 5, expected text"),
        ({"scene": ["a"]}, r"scene: found \['a'\], expected text"),
        ({"colour": "red"}, r"question: found fields \['colour'\], expected only"),
        ({"boxes": [{"size": [1, 1, 1]}]}, "expected questions, one JSON object a line"),
        ({"task": "object_cuonting"}, r"question type: found 'object_cuonting', expected one of .*, or 'Number', as scanqa would"),
        ({"task": "object_cuonting", "context": "I sit."}, "question type: found .*, or 'how', as sqa3d would"),
    ],
)
def test_a_file_to_report_on_is_wrong_in_a_line(tmp_path, changes, complaint):
    good = {"task": "object_counting", "scene": "room", "text": "How many chairs are there?", "answer": "2"}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(good | changes)}\n")
    with pytest.raises(ValueError, match=rf"q\.jsonl:3: {complaint}"):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("line", ["{nonsense", "5", '"task"', "[]", "null", "{}"])
def test_a_line_to_report_on_is_an_object(tmp_path, line):
    (tmp_path / "q.jsonl").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=r"q\.jsonl:1: expected questions, one JSON object a line"):
        read_questions(tmp_path / "q.jsonl")


def test_the_best_constant_is_the_one_that_scores_best():
    made = [Question("object_counting", "s", "?", (), n) for n in ("2", "2", "4", "5", "6")]
    task = TRAINING_TASKS["object_counting"]
    scores = {n: sum(task.score(q, n) for q in made) for n in ("2", "4", "5", "6")}
    assert best_constant(made) == max(scores, key=scores.__getitem__) == "5"


def test_guesses_are_not_learned_from_the_scenes_they_are_scored_on():
    rng = np.random.default_rng(1)
    made = [Question("object_size_estimation", f"s{i}", "?", (), str(int(rng.integers(1, 10**6))), (f"l{i}",)) for i in range(60)]
    assert report(made).types[0].label < 30  # by heart it would be 100
    with pytest.raises(ValueError, match="found none"):
        report([])
