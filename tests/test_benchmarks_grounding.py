"""Benchmarks of grounding: overlap of boxes, and ScanRefer, Nr3D, Sr3D and Multi3DRefer in their official files."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, intersection

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array, footprint_corners
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import BENCHMARKS
from allocentric.tasks.base import Question, Record
from allocentric.tasks.multi3drefer import choose_boxes, f1_score
from allocentric.tasks.overlap import aligned_iou, read_boxes
from allocentric.tasks.referit3d import same_category

PARITY = json.loads((Path(__file__).parent / "parity" / "scorers" / "grounding_parity.json").read_text())
SCENE = "scene0011_00"


def box(*numbers: float) -> Box3D:
    x, y, z, dx, dy, dz = map(float, numbers[:6])
    return Box3D((x, y, z), (dx, dy, dz), float(numbers[6]) if len(numbers) == 7 else 0.0)


def scenes_of(boxes: list[Box3D]) -> dict[str, AnnotatedScene]:
    return {SCENE: AnnotatedScene(SCENE, tuple(SceneObject(i + 1, "chair", b) for i, b in enumerate(boxes)))}


# --- Exact overlap ---

SIDE, PLACE, ANGLE = st.floats(0.05, 4), st.floats(-2, 2), st.sampled_from([0.0, 0.3, np.pi / 4, np.pi / 2, 2.0, np.pi, -7.5])
BOX = st.tuples(PLACE, PLACE, PLACE, SIDE, SIDE, SIDE, ANGLE)


def clipped_by_shapely(a: np.ndarray, b: np.ndarray) -> float:
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    footprints = [Polygon(footprint_corners(box)) for box in (a, b)]
    # on a grid: where edges of turned boxes coincide but for rounding, shapely may otherwise find nothing in common
    shared = intersection(*footprints, grid_size=1e-14).area * max(height, 0)
    return shared / (a[3:6].prod() + b[3:6].prod() - shared)


@settings(max_examples=150, deadline=None)
@given(BOX, BOX)
def test_overlap_equals_polygon_clipping(first, second):
    a, b = np.array([first]), np.array([second])
    assert box_iou(a, b)[0] == pytest.approx(clipped_by_shapely(a[0], b[0]), abs=1e-12)
    assert box_iou(b, a)[0] == pytest.approx(box_iou(a, b)[0], abs=1e-12)


def test_overlap_of_known_boxes():
    a = boxes_to_array([box(0, 0, 0, 2, 2, 2)] * 7)
    b = boxes_to_array(
        [
            box(0, 0, 0, 2, 2, 2),  # the same
            box(0, 0, 0, 2, 2, 2, np.pi / 2),  # the same again
            box(0, 0, 0, 2, 2, 2, np.pi / 4),  # an octagon in common
            box(2, 0, 0, 2, 2, 2),  # touching
            box(0, 0, 3, 2, 2, 2),  # above
            box(1, 1, 1, 2, 2, 2, np.pi),  # one corner
            box(0, 0, 0, -1, 1, 1, 1),  # inside, written with a negative side
        ]
    )
    octagon = 8 * (np.sqrt(2) - 1)
    expected = [1, 1, octagon / (8 - octagon), 0, 0, 1 / 15, 1 / 8]
    np.testing.assert_allclose(box_iou(a, b), expected, atol=1e-12)
    nothing = boxes_to_array([box(0, 0, 0, 0, 0, 0)])
    assert box_iou(nothing, nothing)[0] == 0
    assert box_iou(np.zeros((0, 7)), np.zeros((0, 7))).shape == (0,)


# --- Overlap as published ---


def test_overlap_and_accuracy_equal_the_published_ones():
    benchmark = BENCHMARKS["scanrefer"]()
    for row in PARITY["scanrefer"]:
        overlap = aligned_iou([box(*row["pred"])], [box(*row["gt"])])[0, 0]
        assert overlap == pytest.approx(row["iou"], abs=1e-9), row["note"]
        question = Question("scanrefer", SCENE, "a chair", (), "0", boxes=(box(*row["gt"]),))
        numbers = benchmark.aggregate([Record(question, str(row["pred"]), benchmark.score(question, str(row["pred"])))])
        assert (numbers["Acc@0.25"], numbers["Acc@0.5"]) == (100 * row["acc25"], 100 * row["acc50"]), row["note"]


@pytest.mark.parametrize("profile", ["official", "video_3d_llm"])
def test_f1_equals_the_published_one(profile):
    for row in PARITY["multi3drefer"]:
        found = f1_score([box(*b) for b in row["pred"]], [box(*b) for b in row["gt"]], profile)
        assert found == pytest.approx((row["f1_25"], row["f1_50"]), abs=1e-9), row["note"]


def test_a_turned_box_counts_with_its_bounds():
    turned = box(0, 0, 0, 2, 2, 1, np.pi / 4)
    assert aligned_iou([turned], [box(0, 0, 0, np.sqrt(8), np.sqrt(8), 1)])[0, 0] == pytest.approx(1, abs=1e-8)


def test_epsilon_of_either_kind():
    a, b = [box(0, 0, 0, 0.01, 0.01, 0.01)], [box(0, 0, 0, 0.01, 0.01, 0.01)]
    assert aligned_iou(a, b)[0, 0] == pytest.approx(1e-6 / (1e-6 + 1e-8))
    assert aligned_iou(a, b, single=True)[0, 0] == pytest.approx(1e-6 / (1e-6 + 1.1920929e-7), rel=1e-5)


def test_boxes_in_text():
    text = "It is at [0, -1.5, .5, 1e0, 2, 3] or [1,2,3,4,5,6,0.5], not [1, 2, 3] nor [1e999, 0, 0, 1, 1, 1] nor [a, 0, 0, 1, 1, 1]"
    assert read_boxes(text) == [box(0, -1.5, 0.5, 1, 2, 3), box(1, 2, 3, 4, 5, 6, 0.5)]


# --- ScanRefer ---

LABELS = [
    ("raw_category", "nyu40id", "nyu40class"),
    ("chair", "5", "chair"),
    ("office chair", "5", "chair"),
    ("wall", "1", "wall"),
    ("floor", "2", "floor"),
    ("desk", "14", "desk"),
]


def write_scanrefer(folder: Path, names: list[tuple[int, str]]) -> None:
    rows = [
        {"scene_id": SCENE, "object_id": str(i), "object_name": name, "ann_id": str(n), "description": "the one"}
        for n, (i, name) in enumerate(names)
    ]
    (folder / "ScanRefer_filtered_val.json").write_text(json.dumps(rows))


def test_scanrefer_groups(tmp_path):
    write_scanrefer(
        tmp_path, [(0, "chair"), (1, "office_chair"), (2, "wall"), (3, "floor"), (4, "desk"), (4, "desk"), (5, "gizmo")]
    )
    (tmp_path / "scannetv2-labels.combined.tsv").write_text("\n".join("\t".join(line) for line in LABELS))
    benchmark = BENCHMARKS["scanrefer"]()
    questions = benchmark.read(tmp_path, scenes=scenes_of([box(i, 0, 0, 1, 1, 1) for i in range(6)]))
    by_rule = {rule: [g.split()[0] for q in questions for g in q.groups if g.endswith(rule)] for rule in ("class", "id")}
    # wall, floor and gizmo are all "others" for the first rule; for the second, wall and floor are classes of their own
    assert by_rule["class"] == ["multiple", "multiple", "multiple", "multiple", "unique", "unique", "multiple"]
    assert by_rule["id"] == ["multiple", "multiple", "unique", "unique", "unique", "unique", "unique"]

    records = [Record(q, "[4, 0, 0, 1, 1, 1]", benchmark.score(q, "[4, 0, 0, 1, 1, 1]")) for q in questions]
    official, by_id = benchmark.aggregate(records), benchmark.aggregate(records, "m3dref_clip")
    assert official["overall"] == official["Acc@0.5"] == pytest.approx(200 / 7)
    assert (official["unique/Acc@0.25"], official["n/unique"], official["multiple/Acc@0.25"]) == (100, 2, 0)
    assert (by_id["unique/Acc@0.25"], by_id["n/unique"]) == (40, 5)


def test_scanrefer_without_tables_or_scenes(tmp_path):
    write_scanrefer(tmp_path, [(0, "chair"), (1, "office_chair")])
    benchmark = BENCHMARKS["scanrefer"]()
    question = benchmark.read(tmp_path)[0]
    assert question.groups == () and question.id == f"{SCENE}|0|0"
    with pytest.raises(ValueError, match="annotated scenes"):
        benchmark.score(question, "[0, 0, 0, 1, 1, 1]")
    with pytest.raises(ValueError, match="expected an object 1"):
        benchmark.read(tmp_path, scenes=scenes_of([box(0, 0, 0, 1, 1, 1)]))
    assert benchmark.prompt(question, "video_3d_llm") == "Identify the object according to the following description.\nThe one"
    assert benchmark.prompt(question).endswith("[x, y, z, dx, dy, dz].")
    rows = json.loads((tmp_path / "ScanRefer_filtered_val.json").read_text())
    (tmp_path / "ScanRefer_filtered_val.json").write_text(json.dumps([{**row, "eval_type": "unique"} for row in rows]))
    assert benchmark.read(tmp_path)[0].groups == ("unique by nyu40 id",)


# --- Nr3D and Sr3D ---

NR3D = "assignmentid stimulus_id utterance correct_guess scan_id instance_type target_id tokens mentions_target_class".split()


def write_csv(file: Path, names: list[str], rows: list[list]) -> None:
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([names, *rows])


def nr3d(folder: Path) -> list[Question]:
    rows = [
        [11, f"{SCENE}-chair-2-0-1", "left chair", "True", SCENE, "chair", 0, "['left', 'chair']", "True"],
        [12, f"{SCENE}-chair-3-1-0-2", "red, soft one", "True", SCENE, "chair", 1, "['red', 'soft', 'one']", "False"],
        [13, f"{SCENE}-chair-3-2-0-1", "the last chair", "False", SCENE, "chair", 2, "['the', 'last', 'chair']", "True"],
        [14, f"{SCENE}-chair-3-2-0-1", "the big chair", "True", SCENE, "chair", 2, "['the', 'big', 'chair']", "True"],
        [15, "scene0000_00-bed-1-9", "bed", "True", "scene0000_00", "bed", 9, "['bed']", "True"],
    ]
    write_csv(folder / "nr3d.csv", NR3D, rows)
    return BENCHMARKS["nr3d"]().read(folder, scenes=scenes_of([box(i, 0, 0, 1, 1, 1) for i in range(3)]), scans=[SCENE])


def test_nr3d_groups_and_prompts(tmp_path):
    benchmark, questions = BENCHMARKS["nr3d"](), nr3d(tmp_path)
    assert [q.id for q in questions] == ["11", "12", "13", "14"]
    assert questions[0].groups[:2] == ("easy", "view_dependent") and questions[1].groups[:2] == ("hard", "view_independent")
    prompt = benchmark.prompt(questions[0])
    assert "Left chair\n" in prompt and "\n2. [2.00, 0.00, 0.00, 1.00, 1.00, 1.00]\n" in prompt
    assert benchmark.prompt(questions[0], "video_3d_llm").endswith("description.\nLeft chair")
    assert [benchmark.parse(t) for t in ("Object 012.", "none", "-3")] == ["12", None, "3"]


def test_nr3d_protocols(tmp_path):
    benchmark, questions = BENCHMARKS["nr3d"](), nr3d(tmp_path)
    by_number = benchmark.aggregate([Record(q, "2", benchmark.score(q, "2")) for q in questions])
    assert (by_number["n"], by_number["overall"], by_number["group/easy"], by_number["group/hard"]) == (2, 50, 0, 100)
    text = "[2.3, 0, 0, 1, 1, 1]"  # overlaps the third box by 0.54
    results = {
        p: benchmark.aggregate([Record(q, text, benchmark.score(q, text, p)) for q in questions], p) for p in benchmark.profiles[1:]
    }
    assert (results["detected"]["n"], results["detected"]["overall"], results["detected"]["Acc@0.5"]) == (2, 50, 50)
    assert (results["m3dref_clip"]["n"], results["m3dref_clip"]["overall"]) == (4, 0)
    assert (results["video_3d_llm"]["n"], results["video_3d_llm"]["overall"]) == (4, 50)
    assert "group/correct_guess" not in results["detected"]


def test_sr3d(tmp_path):
    names = "scan_id target_id utterance stimulus_id coarse_reference_type instance_type tokens mentions_target_class".split()
    row = [SCENE, 5, "the lamp on the desk", f"{SCENE}-lamp-2-5-7", "support", "lamp", "['the', 'lamp']", "True"]
    write_csv(tmp_path / "sr3d.csv", names, [row, row])
    first, second = BENCHMARKS["sr3d"]().read(tmp_path)
    assert first.groups == ("easy", "view_independent", "support", "mentions_target_class", "correct_guess")
    assert second.id == f"{first.id}-2"


def test_stimulus_ids():
    assert same_category("scene0525_00-plant-5-9-10-11-12-13") == 5
    assert same_category("scene0525_00-t-shirt-1-4") == 1
    with pytest.raises(ValueError, match="stimulus_id"):
        same_category("scene0525_00-plant-5-9-10")


# --- Multi3DRefer ---


def test_multi3drefer(tmp_path):
    shared = {"scene_id": SCENE, "object_name": "chair", "description": "the chairs"}
    rows = [
        {**shared, "object_ids": [0, 1], "ann_id": 0, "eval_type": "mt"},
        {**shared, "object_ids": [], "ann_id": 1, "eval_type": "zt_w_d"},
        {**shared, "object_ids": [2], "ann_id": 2, "eval_type": "st_wo_d"},
    ]
    (tmp_path / "multi3drefer_val.json").write_text(json.dumps(rows))
    benchmark = BENCHMARKS["multi3drefer"]()
    questions = benchmark.read(tmp_path, scenes=scenes_of([box(2 * i, 0, 0, 1, 1, 1) for i in range(3)]))
    text = "[0, 0, 0, 1, 1, 1] and [2.4, 0, 0, 1, 1, 1]"  # overlaps the second by 0.43
    records = [Record(q, text, benchmark.score(q, text)) for q in questions]
    numbers = benchmark.aggregate(records)
    assert [r.score for r in records] == [1, 0, 0]
    assert (numbers["mt/F1@0.25"], numbers["mt/F1@0.5"], numbers["zt_w_d/F1@0.25"]) == (100, 50, 0)
    assert numbers["overall"] == numbers["F1@0.5"] == pytest.approx(50 / 3)
    assert benchmark.score(questions[1], "none") == 1 and benchmark.prompt(questions[0]).startswith("Localize the object")
    with pytest.raises(ValueError, match="annotated scenes"):
        benchmark.score(benchmark.read(tmp_path)[0], text)
    rows[1]["object_ids"] = [1]
    (tmp_path / "multi3drefer_val.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="zt_w_d"):
        benchmark.read(tmp_path)


def test_choice_among_proposals():
    boxes = [box(i, 0, 0, 1, 1, 1) for i in range(3)]
    assert choose_boxes(torch.tensor([0.1, 0.2, 0.3, 0.9]), boxes) == []
    assert choose_boxes(torch.tensor([0.1, 0.9, 0.3, 0.2]), boxes) == [boxes[1]]
    # three equal ones: a third each, so the second crosses 0.4
    assert len(choose_boxes(torch.tensor([0.5, 0.5, 0.5, -1.0]), boxes)) == 2
    with pytest.raises(ValueError, match="one more"):
        choose_boxes(torch.tensor([0.1, 0.2]), boxes)
