"""Boxes as text in one level metric frame: written and read back, converted from other worlds, and checked."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.geometry.canonical import first_camera_frame, move_box, rotation_to_z
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.text_boxes import (
    GlobalDetection,
    GlobalGrounding,
    best_frames,
    boxes_from_first_camera,
    global_quality,
    parse_boxes,
    write_box,
)
from allocentric.readers.conventions import (
    AXES,
    CONVENTIONS,
    Convention,
    check_world,
    reprojection,
    reprojects,
)
from allocentric.scenes import AnnotatedScene, SceneObject


def iou(a: Box3D, b: Box3D) -> float:
    return float(box_iou(boxes_to_array([a]), boxes_to_array([b]))[0])


# ---- the frame ----


def test_the_frame_is_that_of_canonical_graphs(scene):
    boxes = boxes_from_first_camera(scene)
    graph = SceneGraph.from_boxes([o.box for o in scene.objects], viewpoint=SceneGraph.from_scene(scene).viewpoint).canonical()
    for box, other in zip(boxes, graph.boxes(), strict=True):
        assert box.center == pytest.approx(other.center) and math.cos(box.yaw - other.yaw) == pytest.approx(1)


def test_in_it_the_first_camera_stands_at_the_origin_and_looks_along_y(scene):
    frame = first_camera_frame(scene.camera_to_world[0])
    first = frame @ scene.camera_to_world[0]
    assert first[:3, 3] == pytest.approx([0, 0, 0]) and first[0, 2] == pytest.approx(0, abs=1e-9) and first[1, 2] > 0
    for o, box in zip(scene.objects, boxes_from_first_camera(scene), strict=True):
        assert iou(move_box(box, np.linalg.inv(frame)), o.box) == pytest.approx(1, abs=1e-6)


def test_motions_that_tilt_are_refused(scene):
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("x", 0.1).as_matrix()
    with pytest.raises(ValueError, match="expected a turn about z"):
        move_box(scene.objects[0].box, tilt)
    down = np.eye(4)
    down[:3, :3] = np.diag([1.0, -1, -1])
    with pytest.raises(ValueError, match="straight up or down"):
        first_camera_frame(down)
    assert boxes_from_first_camera(replace(scene, camera_to_world=None)) is None


# ---- text ----


def test_boxes_are_read_as_they_were_written():
    box = Box3D((1.254, -3.0, -0.004), (0.6, 0.62, 0.9), 3 * math.pi / 2, "office chair")
    text = write_box(box, 12)
    assert json.loads(text) == {"label": "office chair", "bbox_3d": [1.25, -3.0, 0.0, 0.6, 0.62, 0.9, -1.57], "frame": 12}
    assert "-0.0," not in text
    parsed = parse_boxes(f"Here: {text}\n{write_box(box, decimals=1)} and so on")
    assert parsed.frames == (12, None) and parsed.n_bad == 0
    assert iou(parsed.boxes[0], box) > 0.95 and parsed.boxes[0].label == "office chair"


@pytest.mark.parametrize(
    "text",
    [
        '{"label": "bed"}', '{"label": "bed", "bbox_3d": [1, 2, 3]}', '{"label": "bed", "bbox_3d": [1,2,3,0,1,1,0]}', "{nonsense}",
        '{"label": 3, "bbox_3d": [1,2,3,1,1,1,0]}', '{"label": "bed", "bbox_3d": [1,2,NaN,1,1,1,0]}',
        '{"label": "bed", "bbox_3d": [1,2,1e999,1,1,1,0]}', '{"label": "bed", "bbox_3d": 7}', '{"bbox_3d": [[1],2,3,1,1,1,0]}',
    ],
)  # fmt: skip
def test_what_is_no_box_is_dropped_and_counted(text):
    good = '{"label": "bed", "bbox_3d": [1, 2, 3, 1, 1, 1, 0], "frame": true}'
    parsed = parse_boxes(f"{text}\n{good}")
    assert parsed.n_bad == 1 and parsed.frames == (None,) and parsed.boxes == (Box3D((1.0, 2.0, 3.0), (1.0, 1.0, 1.0), 0.0, "bed"),)


# ---- tasks ----


def test_descriptions_are_answered_by_the_box_that_is_meant(shards):
    task = GlobalGrounding()
    for i in range(3):
        scene = shards[i].scene
        boxes, best = boxes_from_first_camera(scene), best_frames(scene)
        made = task.make(scene, np.random.default_rng(i), 8)
        assert made == task.make(scene, np.random.default_rng(i), 8) and len(made) == 8
        for question in made:
            parsed = parse_boxes(question.answer)
            at = boxes.index(question.boxes[0])
            assert parsed.boxes[0].label == scene.objects[at].label and parsed.frames == (best[at],)
            assert task.score(question, question.answer) == 1
            assert task.score(question, "no idea") == 0 and task.parse("no idea") is None
            off = replace(question.boxes[0], center=(question.boxes[0].center[0] + 5, *question.boxes[0].center[1:]))
            assert task.score(question, write_box(off)) == 0


def test_detection_asks_for_all_or_for_one_category(scene):
    task = GlobalDetection(frames=False)
    made = [task.make(scene, np.random.default_rng(seed), 1)[0] for seed in range(12)]
    shown = int((scene.visibility >= 0.003).any(0).sum())
    whole = [q for q in made if "all objects" in q.text]
    assert 2 <= len(whole) <= 10 and {len(q.boxes) for q in whole} == {shown}
    for question in made:
        parsed = parse_boxes(question.answer)
        assert len(parsed.boxes) == len(question.boxes) and parsed.n_bad == 0 and set(parsed.frames) == {None}
        assert task.score(question, question.answer) == 1 and task.score(question, "[]") == 0
        if question not in whole:
            (label,) = {box.label for box in parsed.boxes}
            assert label in question.text
    half = "\n".join(whole[0].answer.splitlines()[: shown // 2])
    assert task.score(whole[0], half) == pytest.approx(2 * (shown // 2) / (shown + shown // 2))
    assert len(task.make(scene, np.random.default_rng(0), 100)) == 1 + len({o.label for o in scene.objects if o in _shown(scene)})


def _shown(scene):
    return [o for o, seen in zip(scene.objects, (scene.visibility >= 0.003).any(0), strict=True) if seen]


def test_scores_by_data_set_and_pooled():
    box = Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    near = replace(box, center=(0.4, 0.0, 0.0))  # IoU 0.6 / 1.4
    found = global_quality({"a": [box, None], "b": [near, near]}, {"a": [box, box], "b": [box, box]})
    assert found["a"]["acc_25"] == found["a"]["acc_50"] == found["a"]["answered"] == 0.5 and found["a"]["center_error"] == 0
    assert found["b"]["acc_25"] == 1 and found["b"]["acc_50"] == 0 and found["b"]["center_error"] == pytest.approx(0.4)
    assert found["pooled"]["acc_25"] == pytest.approx(0.75) and found["pooled"]["n"] == 4
    nothing = global_quality({"a": [None]}, {"a": [box]})["pooled"]
    assert nothing["acc_25"] == 0 and math.isnan(nothing["center_error"])
    with pytest.raises(ValueError, match="found answers on"):
        global_quality({"a": []}, {"b": []})


def test_questions_for_several_objects_have_an_f1():
    box = Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0, "chair")
    other, far = replace(box, center=(3.0, 0.0, 0.0)), replace(box, center=(9.0, 0.0, 0.0))
    one, true = {"a": [box], "b": [box]}, {"a": [[box, other]], "b": [[box], [box, other], [far]]}
    found = {"a": [[box]], "b": [[box], [far, box], []]}
    scores = global_quality(one, one, (found, true))
    assert scores["a"]["f1_25"] == pytest.approx(2 / 3) and scores["b"]["f1_25"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores["pooled"]["f1_25"] == pytest.approx((2 / 3 + 1.5) / 4)
    assert math.isnan(global_quality(one, one, ({"a": [[box]]}, {"a": [[box]]}))["b"]["f1_25"])
    assert "f1_25" not in global_quality(one, one)["a"]
    with pytest.raises(ValueError, match="several objects"):
        global_quality(one, one, ({"a": []}, {"c": []}))


# ---- other worlds ----


def written_as(scene: AnnotatedScene, convention: Convention, unit: float) -> tuple[np.ndarray, list[tuple]]:
    """Poses and oriented boxes of a scene as a data set of this convention would file them."""
    turn = rotation_to_z(np.array(AXES[convention.up], dtype=float)).T
    poses = scene.camera_to_world.copy()
    if convention.camera == "opengl":
        poses[:, :3, 1:3] *= -1
    poses[:, :3, :3] = turn @ poses[:, :3, :3]
    poses[:, :3, 3] = poses[:, :3, 3] @ turn.T / unit
    boxes = []
    for o in scene.objects:
        axes = Rotation.from_euler("z", o.box.yaw).as_matrix().T @ turn.T  # rows: directions of the sides
        boxes.append((turn @ np.array(o.box.center) / unit, np.array(o.box.size) / unit, axes, o.label))
    return poses, boxes


def converted(scene, convention, poses, boxes, **known) -> AnnotatedScene:
    motion, unit = convention.to_world(**known)
    objects = tuple(SceneObject(i + 1, b[3], convention.box(*b, motion, unit)) for i, b in enumerate(boxes))
    return replace(scene, objects=objects, camera_to_world=convention.poses(poses, motion, unit))


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_every_data_sets_world_becomes_ours(scene, name):
    convention = CONVENTIONS[name]
    unit = 0.0254 if convention.unit is None else convention.unit
    poses, boxes = written_as(scene, convention, unit)
    known = {"meters_per_unit": unit} if convention.unit is None else {}
    if convention.align:
        known["alignment"] = np.eye(4)
    back = converted(scene, convention, poses, boxes, **known)
    assert check_world(back) == []
    for one, other in zip(back.objects, scene.objects, strict=True):
        assert iou(one.box, other.box) == pytest.approx(1, abs=1e-6)
    assert back.camera_to_world == pytest.approx(scene.camera_to_world, abs=1e-6)


@pytest.mark.parametrize("up", sorted(AXES))
def test_every_axis_can_point_up(up):
    rotation = rotation_to_z(np.array(AXES[up], dtype=float))
    assert rotation @ AXES[up] == pytest.approx([0, 0, 1]) and np.linalg.det(rotation) == pytest.approx(1)
    assert rotation @ rotation.T == pytest.approx(np.eye(3))


def test_an_alignment_levels_a_tilted_scan(scene):
    tilt = np.eye(4)
    tilt[:3, :3], tilt[:3, 3] = Rotation.from_euler("xyz", [0.3, -0.2, 1.0]).as_matrix(), (4, -2, 1)
    raw = replace(scene, camera_to_world=tilt @ scene.camera_to_world)
    convention = CONVENTIONS["scannet"]
    motion, unit = convention.to_world(np.linalg.inv(tilt))
    assert convention.poses(raw.camera_to_world, motion, unit) == pytest.approx(scene.camera_to_world)
    with pytest.raises(ValueError, match="alignment: found none, expected one"):
        convention.to_world()
    with pytest.raises(ValueError, match="meters_per_unit: found None"):
        CONVENTIONS["hypersim"].to_world()
    with pytest.raises(ValueError, match="found up 'w'"):
        Convention(up="w")


def test_worlds_that_are_wrong_are_found_out(shards):
    """Each mistake that is easily made with a data set is named by the check."""
    scenes = [shards[i].scene for i in range(3)]
    assert [check_world(scene) for scene in scenes] == [[], [], []]
    mistakes = {
        "millimetres taken for metres": (Convention(unit=0.001), Convention(), "floor"),
        "metres taken for millimetres": (Convention(), Convention(unit=0.001), "floor"),
        "y up taken for z up": (Convention(up="y"), Convention(), "not held upright"),
        "OpenGL cameras taken for OpenCV": (Convention(camera="opengl"), Convention(), "not held upright"),
        "upside down": (Convention(up="-z"), Convention(), "not held upright"),
    }
    for what, (written, taken, complaint) in mistakes.items():
        for scene in scenes:
            poses, boxes = written_as(scene, written, written.unit)
            problems = check_world(converted(scene, taken, poses, boxes))
            assert any(complaint in problem for problem in problems), (what, problems)
    # boxes of another world than the poses: the objects are not where the cameras look
    elsewhere = zip(scenes[0].objects, boxes_from_first_camera(scenes[0]), strict=True)
    turned = replace(scenes[0], objects=tuple(replace(o, box=box) for o, box in elsewhere))
    assert any("look towards" in problem or "floor" in problem for problem in check_world(turned))
    left_handed = scenes[0].camera_to_world @ np.diag([-1.0, 1, 1, 1])
    assert check_world(replace(scenes[0], camera_to_world=left_handed)) == ["poses are not rigid motions of right-handed cameras"]
    assert check_world(replace(scenes[0], camera_to_world=None)) == ["no camera poses"]


def test_boxes_fall_where_their_2d_boxes_say(shards):
    """Whole boxes in view of a synthetic camera: exact rectangles agree, shifted ones do not."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # looks along y
    k = np.array([[100.0, 0, 100], [0, 100, 80], [0, 0, 1]])
    boxes = [Box3D((x, 4.0, 0.0), (1.0, 0.001, 1.0)) for x in (-1.0, 0.0, 1.0)]
    rectangles = np.array([[100 + 25 * (x - 0.5), 80 - 12.5, 100 + 25 * (x + 0.5), 80 + 12.5] for x in (-1, 0, 1)])
    poses, ks = np.stack([pose] * 3), np.stack([k] * 3)
    overlaps = reprojection(boxes, rectangles, ks, poses, (160, 200))
    assert overlaps == pytest.approx([1, 1, 1], abs=1e-3) and reprojects(overlaps)
    shifted = reprojection(boxes, rectangles + np.array([20, 0, 20, 0]), ks, poses, (160, 200))
    assert (shifted < 0.2).all() and not reprojects(shifted)
    behind = reprojection([Box3D((0.0, -4.0, 0.0), (1.0, 1.0, 1.0))], rectangles[:1], ks[:1], poses[:1], (160, 200))
    assert behind.tolist() == [0]
