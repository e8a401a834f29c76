"""Notes before answers say what the answer follows from, and are taken apart again."""

import numpy as np
import pytest

from allocentric.answer import split_notes
from allocentric.geometry.boxes import Box3D
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import VSI_TASKS
from allocentric.tasks.base import Question
from allocentric.tasks.notes import notes, number_words, with_notes


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
    assert with_notes(scene, asked("object_abs_distance", "sofa", answer="2.2")) == "<think>sofa 0.0 3.0</think>2.2"


def test_every_instance_is_counted_from_left_to_right(scene):
    assert notes(scene, asked("object_counting", "chair")) == "chair -3.0 2.0, chair 2.0 1.0"


def test_of_several_the_one_next_to_what_is_asked_about(scene):
    assert notes(scene, asked("object_rel_distance", "chair", "sofa", "stove")) == "chair 2.0 1.0, sofa 0.0 3.0, stove 2.0 0.0"


def test_sizes_moments_and_nothing(scene):
    assert notes(scene, asked("object_size_estimation", "sofa")) == "1.0 0.5 0.4"
    assert notes(scene, asked("obj_appearance_order", "sofa", "stove", "chair")) == "sofa 3, stove 0, chair 9"
    assert with_notes(scene, asked("room_size_estimation", answer="20.0")) == "20.0"


def test_notes_and_answer_come_apart_again(scene):
    assert split_notes("<think>sofa 0.0 3.0</think>2.2") == ("sofa 0.0 3.0", "2.2")
    assert split_notes(" B ") == ("", "B")
    assert split_notes("<think>on and on") == ("on and on", "")


def test_numbers_of_notes_are_words(scene):
    words = set(number_words())
    assert {" 0.0", " -9.9", " 9.9", " -0.1"} <= words and " -0.0" not in words and len(words) == 199


def test_the_answer_behind_notes_is_scored():
    task, question = VSI_TASKS["object_counting"], asked("object_counting", "chair", answer="4")
    assert task.score(question, split_notes("<think>chair 1.0 2.0</think>4")[1]) == 1.0
