"""Scores of rooms: averaged as VSI-Bench does, resampled in pairs, resumed without a trace."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from allocentric.evaluate.rooms import (
    Row,
    ask_rooms,
    blind_scene,
    bootstrap,
    chance_rows,
    constant_rows,
    note_error,
    read_rows,
    room_questions,
    room_views,
    row_of,
    summary,
    worked_out,
)
from allocentric.models.scene import Scene
from allocentric.tasks import make_questions
from allocentric.tasks.base import Question
from allocentric.tasks.notes import blurred, notes, workings
from allocentric.tasks.vsibench import aggregate
from test_spatial_mllm import tiny_model, tiny_processor

TYPES = [
    "object_counting",
    "object_abs_distance",
    "room_size_estimation",
    "object_rel_direction_easy",
    "object_rel_direction_hard",
    "route_planning",
]


def rows(rng: np.random.Generator, count: int = 300, rooms: int = 20) -> list[Row]:
    return [row(int(rng.integers(rooms)), TYPES[rng.integers(6)], float(rng.random())) for _ in range(count)]


def row(room: int, task: str, score: float) -> Row:
    return Row(Question(task, str(room), "?", (), "1"), "?", "1", "", (), score)


def number(task: str, answer: str) -> Question:
    return Question(task, "room", "How many?", (), answer)


def choice(answer: str, options: int = 4) -> Question:
    return Question("object_rel_distance", "room", "Which?", tuple(f"{x}. it" for x in "ABCD"[:options]), answer)


# ---- averages ----


def test_the_summary_is_vsibenchs_macro_average():
    answered = [
        row(0, "object_counting", 1.0),
        row(1, "object_counting", 0.4),
        row(0, "object_rel_direction_easy", 1.0),
        row(0, "object_rel_direction_easy", 1.0),
        row(0, "object_rel_direction_hard", 0.0),
    ]
    assert summary(answered) == pytest.approx({"object_counting": 70, "object_rel_direction": 50, "overall": 60})


def test_a_resample_of_all_rooms_once_is_the_plain_average():
    answered = rows(np.random.default_rng(0))
    expected = aggregate((row.task, row.score) for row in answered).macro
    assert summary(answered)["overall"] == pytest.approx(expected, abs=1e-9)
    # one room only: every draw is that room
    single = [row(0, found.task, found.score) for found in answered]
    assert bootstrap({"a": single}, rooms=1, draws=5)["a"] == pytest.approx([expected] * 5, abs=1e-9)


def test_each_draw_is_the_macro_average_of_its_rooms():
    answered = rows(np.random.default_rng(1), count=60, rooms=4)
    draws = bootstrap({"a": answered}, rooms=4, draws=50, seed=3)["a"]
    picks = np.random.default_rng(3).integers(0, 4, (50, 4))
    for pick, found in zip(picks, draws, strict=True):
        drawn = [(row.task, row.score) for room in pick for row in answered if row.scene == str(room)]
        assert found == pytest.approx(aggregate(drawn).macro, abs=1e-9)


def test_a_type_that_no_drawn_room_asks_does_not_count_as_zero():
    answered = [row(0, "object_counting", 1.0), row(1, "route_planning", 1.0)]
    assert bootstrap({"a": answered}, rooms=2, draws=40)["a"] == pytest.approx([100.0] * 40)


def test_the_bootstrap_is_repeatable_and_paired():
    better = rows(np.random.default_rng(2))
    worse = [replace(row, score=row.score - 0.25) for row in better]
    draws = bootstrap({"better": better, "worse": worse}, rooms=20, draws=200)
    again = bootstrap({"worse": worse, "better": better}, rooms=20, draws=200)
    assert np.array_equal(draws["better"], again["better"])
    assert draws["better"] - draws["worse"] == pytest.approx([25.0] * 200, abs=1e-9)  # the same rooms for both
    assert draws["better"].std() > 0.5
    assert draws["better"].mean() == pytest.approx(summary(better)["overall"], abs=1)
    assert not np.array_equal(draws["better"], bootstrap({"better": better}, rooms=20, draws=200, seed=1)["better"])


# ---- baselines ----


def test_the_constant_answer_is_the_best_single_one():
    # "2" is the most frequent and scores 2.1; "5" scores 1 + 0.6 on "4" + 0.7 on "6"
    train = [number("object_counting", n) for n in ("2", "2", "4", "5", "6")] + [choice(a) for a in "ABBC"]
    found = constant_rows(train, [[number("object_counting", "4"), choice("B")], [choice("C")]])
    assert [(row.scene, row.prediction) for row in found] == [("0", "5"), ("0", "B"), ("1", "B")]
    assert [row.score for row in found] == pytest.approx([0.6, 1.0, 0.0])
    assert [row.score for row in constant_rows(train[:5], [[choice("C")]])] == [0.0]  # never asked in training


def test_chance_knows_the_number_of_options():
    found = chance_rows([[choice("A"), choice("B", options=2)], [number("object_counting", "3")]])
    assert [(row.scene, row.score) for row in found] == [("0", 0.25), ("0", 0.5), ("1", 0.0)]


def test_rows_are_scored_by_the_rules_of_their_type():
    assert row_of(number("object_counting", "4"), "3").score == pytest.approx(0.6)
    assert row_of(choice("B"), "B. table").score == 1
    easy = Question("object_rel_direction_easy", "room", "?", ("A. left", "B. right"), "A")
    assert (row_of(easy, "A").score, row_of(easy, "B").score) == (1, 0)


# ---- notes ----

BY_PLACE = ("object_counting", "object_rel_distance", "object_rel_direction", "route_planning")


def noted(shards, error: float = 0.0, exact: bool = True) -> list[Row]:
    """All questions about the rooms with notes of a model that answers nothing of them."""
    found, rng = [], np.random.default_rng(0)
    for room in range(len(shards)):
        scene = shards[room].scene
        for question in make_questions(scene, rng, 3):
            written = notes(scene, question)
            written = blurred(written, rng, error) if error else written
            text = f"{written}; {workings(scene, question, written)}" if written else ""
            found.append(Row(replace(question, scene=str(room)), "", "none", text, (), 0.0))
    return found


def test_what_follows_from_exact_notes_is_right(shards):
    given = noted(shards)
    found = worked_out(given)
    by_place = [row for row in found if row.task.startswith(BY_PLACE)]
    assert len(by_place) >= 12 and np.mean([row.score for row in by_place]) > 0.95
    others = [pair for pair in zip(given, found, strict=True) if not pair[0].task.startswith((*BY_PLACE, "object_abs_distance"))]
    assert others and all(before is after for before, after in others)  # sizes, areas and orders stay what the model said


def test_places_are_off_by_what_they_were_moved(shards):
    assert note_error(noted(shards), shards) == 0
    off = note_error(noted(shards, error=0.3), shards)
    assert off == pytest.approx(0.3 * np.sqrt(2 * np.log(2)), rel=0.25)  # the median of a Rayleigh distribution
    assert np.isnan(note_error([row(0, "object_counting", 1.0)], shards))


# ---- asking ----


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def questions(shards):
    made = room_questions(shards, per_task=1)
    assert made == room_questions(shards, per_task=1)
    assert made != room_questions(shards, per_task=1, seed=1)
    return [asked[:3] for asked in made]


@pytest.fixture(scope="module")
def answered(tmp_path_factory, model, processor, shards, questions):
    file = tmp_path_factory.mktemp("answers") / "deep" / "a.jsonl"
    assert list(ask_rooms(model, processor, shards, questions, file)) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    return file


def test_every_question_is_asked_of_its_own_room(answered, model, processor, shards, questions):
    found = read_rows(answered)
    assert [(row.scene, row.task, row.question.text, row.question.options, row.question.answer) for row in found] == [
        (str(i), q.task, q.text, q.options, q.answer) for i, asked in enumerate(questions) for q in asked
    ]
    from allocentric.evaluate.rooms import MAX_NEW_TOKENS, base_task
    from allocentric.tasks import VSI_TASKS

    question = questions[1][2]
    task = VSI_TASKS[base_task(question.task)]
    views = room_views(shards, 1)
    assert torch.equal(views.frames[2], torch.from_numpy(shards[1].frames[2].copy()).permute(2, 0, 1))
    assert views.depth is None and views.camera_to_world is None
    answer = Scene.encode(model, processor, views).ask(task.prompt(question), max_new_tokens=MAX_NEW_TOKENS)
    assert found[5].prediction == answer.text
    assert found[5].score == task.score(question, answer.text)


@pytest.mark.parametrize("cut", ["half a line", "half a room", "nothing"])
def test_a_killed_run_goes_on_and_ends_the_same(cut, answered, tmp_path, model, processor, shards, questions, monkeypatch):
    lines = answered.read_text().splitlines(keepends=True)
    kept = {"half a line": "".join(lines[:3]) + lines[3][:20], "half a room": "".join(lines[:4]), "nothing": "".join(lines)}[cut]
    file = tmp_path / "a.jsonl"
    file.write_text(kept)
    encoded, encode = [], Scene.encode
    monkeypatch.setattr(Scene, "encode", lambda m, p, views: encoded.append(views.source) or encode(m, p, views))
    assert list(ask_rooms(model, processor, shards, questions, file))[-1] == (3, 3)
    assert encoded == ([] if cut == "nothing" else ["room 1", "room 2"])
    assert file.read_text() == "".join(lines)
    assert list(tmp_path.iterdir()) == [file]


def test_answers_to_other_questions_are_not_continued(answered, tmp_path, model, processor, shards, questions):
    file = tmp_path / "a.jsonl"
    file.write_text(answered.read_text())
    with pytest.raises(ValueError, match="that is not asked now"):
        next(ask_rooms(model, processor, shards, [asked[::-1] for asked in questions], file))
    assert file.read_text() == answered.read_text()


def test_the_blind_see_nothing(model, processor, shards, questions, tmp_path):
    texts = ["how many chairs?", "left or right?"]
    found = blind_scene(model, processor).first_logits(texts)
    for text, logits in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = model(**processor(text=[processor.prompt(text)])).logits[0, -1]
        assert torch.allclose(logits, expected, atol=1e-5 * float(expected.abs().max()))
    # the same questions about two rooms get the same answers
    asked = [questions[0], questions[0]]
    list(ask_rooms(model, processor, shards, asked, tmp_path / "blind.jsonl", blind=True))
    given = [json.loads(line)["prediction"] for line in (tmp_path / "blind.jsonl").read_text().splitlines()]
    assert given[:3] == given[3:]
