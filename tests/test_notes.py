"""Notes before answers say what the answer follows from, and are taken apart again."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from allocentric.answer import split_notes
from allocentric.geometry.boxes import Box3D
from allocentric.graph.programs import ask_graph
from allocentric.graph.source import graph_of_notes
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import TRAINING_TASKS, VSI_TASKS
from allocentric.tasks.base import Question
from allocentric.tasks.facts import pair_distances
from allocentric.tasks.notes import behind, blurred, notes, number_words, with_notes, workings
from allocentric.train.numbers import number_features


def thing(number: int, label: str, x: float, y: float, size=(1.0, 0.5, 0.4)) -> SceneObject:
    return SceneObject(number, label, Box3D((float(x), float(y), 0.2), size, 0.0, label))


@pytest.fixture
def scene() -> AnnotatedScene:
    # the first camera stands at (1, 1), 1.5 m high, and looks along +x: right is -y, ahead is +x
    camera = np.array([[0, 0, 1, 1], [-1, 0, 0, 1], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=float)
    objects = (thing(1, "sofa", 4, 1), thing(2, "stove", 1, -1), thing(3, "chair", 3, 4), thing(4, "chair", 2, -1))
    visibility = np.zeros((16, 4))
    visibility[3:, 0] = visibility[0:, 1] = visibility[9:, 2] = visibility[12:, 3] = 0.1
    return AnnotatedScene("hand-made", objects, visibility, np.stack([camera] * 16))


def asked(task: str, *labels: str, answer: str = "1") -> Question:
    return Question(task, "hand-made", "?", (), answer, labels)


def test_places_are_metres_right_of_and_ahead_of_the_first_camera(scene):
    assert notes(scene, asked("object_abs_distance", "sofa", "stove")) == "sofa 0.0 3.0, stove 2.0 0.0"
    written = with_notes(scene, asked("object_abs_distance", "sofa", "stove", answer="2.2"))
    assert re.fullmatch("<think>sofa 0.0 3.0, stove 2.0 0.0; 2.0 -3.0 [0-9.]+</think>2.2", written)


def test_every_instance_is_counted_from_left_to_right(scene):
    assert notes(scene, asked("object_counting", "chair")) == "chair -3.0 2.0, chair 2.0 1.0"


def test_of_several_the_one_next_to_what_is_asked_about(scene):
    assert notes(scene, asked("object_rel_distance", "chair", "sofa", "stove")) == "chair 2.0 1.0, sofa 0.0 3.0, stove 2.0 0.0"


def test_sizes_moments_and_nothing(scene):
    assert notes(scene, asked("object_size_estimation", "sofa")) == "1.0 0.5 0.4"
    assert notes(scene, asked("obj_appearance_order", "sofa", "stove", "chair")) == "sofa 3, stove 0, chair 9"
    assert with_notes(scene, asked("room_size_estimation", answer="20.0")) == "20.0"


def test_distances_are_worked_out_from_the_places_as_written(scene):
    """All boxes are 1.0 x 0.5 x 0.4: along x the sofa and the stove fill 1 m of the way between their centres."""
    question = asked("object_abs_distance", "sofa", "stove")
    assert workings(scene, question, notes(scene, question)).startswith("2.0 -3.0 ")
    straight = pair_distances(scene)[0, 1]
    filled = np.hypot(2, 3) - straight
    assert workings(scene, question, "sofa 0.0 3.0, stove 2.0 0.0") == f"2.0 -3.0 {straight:.1f}"
    assert workings(scene, question, "sofa 0.0 4.0, stove 0.0 0.0") == f"0.0 -4.0 {4 - filled:.1f}"
    assert workings(scene, question, "sofa 0.0 0.1, stove 0.0 0.0") == "0.0 -0.1 0.0"  # never below zero

    options = ("A. chair", "B. sofa")
    question = replace(asked("object_rel_distance", "chair", "sofa", "stove"), options=options)
    near, far = pair_distances(scene)[[1, 1], [3, 0]]
    assert workings(scene, question, notes(scene, question)) == f"A chair 0.0 1.0 {near:.1f}, B sofa -2.0 3.0 {far:.1f}"


def test_directions_are_worked_out_by_bearings(scene):
    question = replace(asked("object_rel_direction_easy", "sofa", "stove", "chair"), options=("A. left", "B. right"), answer="B")
    # one faces (1, 0), to the right, a quarter clockwise from ahead; the chair lies behind, half around: another quarter
    worked = workings(scene, question, "sofa 0.0 3.0, stove 1.0 3.0, chair 0.0 2.0")
    assert worked == "1.0 0.0 1.6, 0.0 -1.0 3.1, 1.6, A left 3.1, B right 0.0"
    # from facing back (bearing pi) to the left (-pi / 2) it is a quarter, not three
    worked = workings(scene, question, "sofa 0.0 3.0, stove 0.0 1.0, chair -2.0 3.0")
    assert worked == "0.0 -2.0 3.1, -2.0 0.0 -1.6, 1.6, A left 3.1, B right 0.0"


@pytest.mark.parametrize("turns_first", [True, False])
def test_routes_are_worked_out_leg_by_leg(scene, turns_first):
    turn, bed, stand = "[please fill in]", "Go forward until the bed", "Go forward until the tv stand"
    actions = (turn, stand) if turns_first else (bed, turn, stand)
    steps = " ".join(f"{number}. {action}" for number, action in enumerate(actions, start=1))
    text = (
        "You are a robot beginning at the coat rack and facing the bed. You want to navigate to the tv stand. You will perform the "
        f"following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn right.'): {steps}. "
        "You have reached the final destination."
    )
    question = Question("route_planning", "s", text, ("A. Turn Left", "B. Turn Right"), "A", ("coat rack", "bed", "tv stand"))
    written = "coat rack 0.0 0.0, bed 0.0 2.0, tv stand -2.0 2.0"
    first = "0.0 2.0 0.0"
    second = "-2.0 2.0 -0.8, -0.8, A left 0.8, B right 2.4" if turns_first else "-2.0 0.0 -1.6, -1.6, A left 0.0, B right 3.1"
    assert workings(scene, question, written) == f"{first}, {second}"


def test_of_several_turns_each_is_compared_and_all_are_summed(scene):
    text = (
        "You are a robot beginning at the sofa and facing the bed. You want to navigate to the bed. You will perform the following "
        "actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn right.'): 1. [please fill in] "
        "2. Go forward until the desk 3. [please fill in] 4. Go forward until the bed. You have reached the final destination."
    )
    options = ("A. Turn Right, Turn Left", "B. Turn Right, Turn Back")
    question = Question("route_planning", "s", text, options, "A", ("sofa", "bed", "desk"))
    written = "sofa 0.0 0.0, bed 2.0 2.0, desk 2.0 0.0"
    legs = "2.0 2.0 0.8, 2.0 0.0 1.6, 0.0 2.0 0.0"
    assert workings(scene, question, written) == f"{legs}, 0.8 -1.6, A right 0.8 left 0.0 0.8, B right 0.8 back 1.6 2.4"


def test_an_order_is_worked_out_by_sorting(scene):
    options = ("A. sofa, stove, chair", "B. stove, sofa, chair")
    question = replace(asked("obj_appearance_order", "sofa", "stove", "chair"), options=options)
    assert workings(scene, question, notes(scene, question)) == "A sofa 3 stove 0 chair 9 no, B stove 0 sofa 3 chair 9 yes"
    assert workings(scene, asked("object_counting", "chair"), "chair -3.0 2.0") == ""
    assert behind("chair -3.0 2.0", "", "1") == "<think>chair -3.0 2.0</think>1" and behind("a", "b", "c") == "<think>a; b</think>c"


def test_notes_and_answer_come_apart_again(scene):
    assert split_notes("<think>sofa 0.0 3.0</think>2.2") == ("sofa 0.0 3.0", "2.2")
    assert split_notes(" B ") == ("", "B")
    assert split_notes("<think>on and on") == ("on and on", "")


def test_blurred_notes_are_off_by_about_the_error_and_keep_their_form():
    rng, exact = np.random.default_rng(0), "sofa -1.2 3.4, tv stand 9.8 0.0"
    found = np.array([[float(x) for x in re.findall(r"-?[0-9.]+", blurred(exact, rng, 0.4))] for _ in range(2000)])
    assert found.shape == (2000, 4) and np.abs(found).max() == 9.9
    assert found[:, :2].mean(0) == pytest.approx([-1.2, 3.4], abs=0.05) and found[:, 0].std() == pytest.approx(0.4, rel=0.1)
    assert re.sub(r"-?[0-9.]+", "_", blurred(exact, rng, 0.4)) == "sofa _ _, tv stand _ _"
    sides = np.array([[float(x) for x in blurred("0.1 2.0 0.8", rng, 0.4).split()] for _ in range(2000)])
    assert sides.min() >= 0.1 and sides[:, 1].std() == pytest.approx(2.0 * 0.2, rel=0.15)
    assert blurred("sofa 3, stove 11", rng, 5.0) == "sofa 3, stove 11"  # moments stay


def test_numbers_of_notes_and_answers_are_words():
    words = number_words()
    assert {" 0.0", " -9.9", " 9.9", " -0.1", "0.0", "49.9", "0", "399"} <= set(words) and " -0.0" not in words
    assert len(words) == 199 + 500 + 400 and all(float(word) == value for word, value in words.items())


def test_near_numbers_start_alike():
    values = list(number_words().values())
    rows = number_features(values, 256, 0.02)
    assert torch.equal(rows, number_features(values, 256, 0.02))
    assert float(rows.std()) == pytest.approx(0.02, rel=0.05)
    row = {value: rows[i] for i, value in enumerate(values[:199])}
    like = lambda a, b: float(nn.functional.cosine_similarity(row[a], row[b], dim=0))  # noqa: E731
    assert like(1.0, 1.1) > 0.9 > like(1.0, 1.5) > like(1.0, 4.0) and like(-1.0, 1.0) < 0.5
    whole = {value: rows[699 + i] for i, value in enumerate(values[699:])}
    near = nn.functional.cosine_similarity(whole[150.0], whole[160.0], dim=0)
    assert near > nn.functional.cosine_similarity(whole[150.0], whole[300.0], dim=0)


def test_an_inventory_lists_what_is_there_and_is_scored_by_it(scene):
    task = TRAINING_TASKS["inventory"]
    rng = np.random.default_rng(0)
    made = [question for _ in range(100) for question in task.make(scene, rng, 1)]
    listed = {q.text: ", ".join(sorted(q.answer.split(", "))) for q in made}
    places = "chair -3.0 2.0, chair 2.0 1.0, sofa 0.0 3.0, stove 2.0 0.0"
    assert sorted(listed.values()) == sorted([places, "sofa 1.0 0.5 0.4, stove 1.0 0.5 0.4", "sofa 3, stove 0"])
    asked_places = [q for q in made if "places" in q.text]
    assert 55 < len(asked_places) < 85 and len({q.answer for q in asked_places}) > 15, "most often places, in ever new orders"
    question = asked_places[0]
    assert task.score(question, places) == pytest.approx(1)
    assert task.score(question, "stove 2.0 0.0, chair 2.0 1.0, sofa 0.0 3.0, chair -3.0 2.0") == pytest.approx(1)
    assert task.score(question, "sofa 0.0 2.0") == pytest.approx(2 * np.exp(-1) / 5)
    assert task.score(question, places + ", bed 1.0 1.0") == pytest.approx(8 / 9)
    assert task.score(question, "sofa 1") == task.score(question, "") == task.score(question, "a, b 3, ,") == 0
    assert len(task.make(scene, np.random.default_rng(0), 2)) == 2


def test_the_answer_behind_notes_is_scored():
    task, question = VSI_TASKS["object_counting"], asked("object_counting", "chair", answer="4")
    assert task.score(question, split_notes("<think>chair 1.0 2.0</think>4")[1]) == 1.0


def test_what_was_noted_is_a_graph_that_geometry_answers_from(scene):
    written = notes(scene, asked("object_rel_direction_easy", "sofa", "stove", "chair"))
    graph = graph_of_notes(f"{written}; 1.0 2.0 -0.5, A left 0.1", "hand-made")
    assert graph.names == ("sofa", "stove", "chair") and graph.scale == "metric"
    np.testing.assert_allclose(graph.points, [[0, 3], [2, 0], [-3, 2]])
    text = "If I am standing by the sofa and facing the stove, is the chair to the left or the right of the stove?"
    answer = ask_graph(graph, text, ("A. left", "B. right"))
    assert answer.text == "B"  # facing (2, -3), the chair is at (-3, -1) from there
    assert ask_graph(graph, "Where is the stove?").text == "x 2.0 y 0.0"  # as seen from the first camera
    assert "no lamp" in ask_graph(graph, "How far is the sofa from the lamp?").text


@pytest.mark.parametrize("written", ["", "1.0 0.5 0.4", "sofa 3, stove 0", "; sofa 1.0 2.0", "I see a sofa at about 1.0 2.05 m"])
def test_what_names_no_place_is_an_empty_graph(written):
    assert graph_of_notes(written).objects == ()
