"""Our rules against published answers: the check itself, and VSI-Bench's own files where they are at hand."""

import json
import os
from pathlib import Path

import pytest

from allocentric.data.check import check, main
from allocentric.readers import open_scenes
from allocentric.tasks.vsibench import VSIBench

AXES = [1, 0, 0, 0, 1, 0, 0, 0, 1]


def box(x: float, y: float) -> dict:
    return {"centroid": [x, y, 0.5], "axesLengths": [1.0, 0.5, 1.2], "normalizedAxes": AXES, "min": [0, 0, 0], "max": [1, 1, 1]}


@pytest.fixture
def files(tmp_path):
    """A room with a sofa, a tv, a stove and two chairs, and questions with one wrong answer of each kind."""
    objects = {"sofa": [box(0, 0)], "tv": [box(0, 3)], "stove": [box(3, 1)], "chair": [box(1, 5), box(2, 5)]}
    scene = {"room_size": 20.04, "room_center": [0, 0, 0], "object_counts": {}, "dataset": "set", "object_bbox": objects}
    (tmp_path / "scenes.json").write_text(json.dumps({"1": scene}))
    distance = "Measuring from the closest point of each object, what is the distance between the sofa and the tv (in meters)?"
    direction = "If I am standing by the sofa and facing the tv, is the stove to the left or the right of the tv?"
    near = "Measuring from the closest point of each object, which of these objects (tv, stove) is the closest to the sofa?"
    longest = "What is the length of the longest dimension (length, width, or height) of the tv, measured in centimeters?"
    rows = [
        ("object_counting", "How many chair(s) are in this room?", None, "3"),
        ("object_abs_distance", distance, None, "2.8"),
        ("object_size_estimation", longest, None, "120"),
        ("room_size_estimation", "What is the size of this room (in square meters)?", None, "20.0"),
        ("object_rel_direction_easy", direction, ["A. left", "B. right"], "B"),
        ("object_rel_distance", near, ["A. tv", "B. stove"], "A"),
        ("route_planning", "You are a robot ...", ["A. Turn Left", "B. Turn Right"], "A"),
    ]
    names = ("question_type", "question", "options", "ground_truth")
    lines = [{"id": i, "dataset": "set", "scene_name": "1", **dict(zip(names, row, strict=True))} for i, row in enumerate(rows)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "questions.jsonl", tmp_path / "scenes.json"


def test_agreement_and_what_explains_disagreement(files, capsys):
    found = {c.question.task: c for c in check(VSIBench().read(files[0]), open_scenes(files[1]))}
    assert len(found) == 6 and {task for task, c in found.items() if not c.agrees} == {
        "object_counting",
        "object_abs_distance",
        "object_rel_distance",
    }
    assert found["object_counting"].why == "the metadata holds 2 boxes of 'chair'"
    assert found["object_abs_distance"].ours == "2.5"
    assert found["object_abs_distance"].why == "2.500 m between the nearest sampled points, 2.500 m between the boxes"
    assert found["object_rel_distance"].why == "distances tv 2.50 m, stove 2.06 m"
    assert found["object_size_estimation"].score == 1 and found["object_counting"].score == pytest.approx(0.4)
    main(*files)
    printed = capsys.readouterr().out
    assert "0 set/1 object_counting : 3, ours 2; the metadata holds 2 boxes" in printed and "route_planning" not in printed


def test_questions_of_other_scenes_and_other_spellings(files, capsys):
    questions, scenes = files
    known = json.loads(scenes.read_text())
    known["1"]["object_bbox"]["TV_"] = known["1"]["object_bbox"].pop("tv")
    scenes.write_text(json.dumps(known))
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    extra = [rows[0] | {"id": 99, "scene_name": "2"}, rows[0] | {"id": 98, "question": "How many lamp(s) are in this room?"}]
    questions.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *extra]))
    main(questions, scenes)
    printed = capsys.readouterr().out
    assert "1 of 9 questions are about scenes that" in printed and "object_rel_direction_easy        1     1  100.00" in printed
    assert "98 set/1 object_counting : 3, ours 0; the metadata holds 0 boxes of 'lamp'" in printed
    scenes.write_text(json.dumps({"other": known["1"]}))
    with pytest.raises(ValueError, match="found no questions that boxes can answer about any of the 1 scenes"):
        main(questions, scenes)


def test_the_official_answers_of_vsibench_are_ours():
    folder = Path(os.environ.get("ALLOCENTRIC_DATA", Path(__file__).parents[2] / "shared" / "data")) / "vsibench"
    if not (folder / "arkitscenes_scenes.json").is_file():
        pytest.skip(f"no VSI-Bench metadata in {folder} (set ALLOCENTRIC_DATA to the folder that holds vsibench/)")
    checked = check(VSIBench().read(folder / "arkitscenes_questions.jsonl"), open_scenes(folder / "arkitscenes_scenes.json"))
    by_task = {task: [c for c in checked if c.question.task == task] for task in {c.question.task for c in checked}}
    agreement = {task: sum(c.agrees for c in some) / len(some) for task, some in by_task.items()}
    assert len(checked) == 1497 and agreement.pop("object_counting") >= 0.99
    for task in ("object_abs_distance", "object_size_estimation"):
        agreement.pop(task)
        assert sum(c.score for c in by_task[task]) / len(by_task[task]) >= (0.95 if "distance" in task else 0.97)
    assert set(agreement.values()) == {1.0} and len(agreement) == 5
    assert all(c.agrees for c in by_task["object_abs_distance"])  # by the published rule, to the last of 277
    assert all(c.why for c in checked if not c.agrees)
