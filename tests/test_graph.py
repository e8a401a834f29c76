"""Scene graphs: from annotations, boxes and text; names, relations, JSON, canonical frame."""

import json
import math

import numpy as np
import pytest

import allocentric
from allocentric.geometry.boxes import Box3D
from allocentric.graph.grammar import write_map
from allocentric.graph.metrics import position_rmse
from allocentric.graph.names import find, plain
from allocentric.graph.perturb import perturb
from allocentric.graph.scene_graph import GraphObject, Relation, SceneGraph
from allocentric.graph.source import open_graph
from allocentric.scenes import AnnotatedScene, SceneObject


def box(label, x, y, z=0.4, size=(0.6, 0.6, 0.8), yaw=0.0):
    return Box3D((float(x), float(y), float(z)), tuple(map(float, size)), yaw, label)


def pose(x, y, z, heading):
    matrix = np.eye(4)
    forward = np.array([math.cos(heading), math.sin(heading), 0])
    matrix[:3, :3] = np.stack([np.cross(forward, [0, 0, 1]), [0, 0, -1], forward], axis=1)
    matrix[:3, 3] = x, y, z
    return matrix


@pytest.fixture
def scene():
    boxes = [
        box("desk", 2, 0), box("chair", 3, 1), box("chair", 1, 3), box("lamp", 2.1, 0, 0.95, (0.2, 0.2, 0.3)),
        box("bed", 0, 3.2, 0.3, (1.6, 2.0, 0.6), 0.3),
    ]  # fmt: skip
    visibility = np.zeros((4, 5))
    visibility[1, 0] = 0.1
    visibility[0, 2] = 0.2  # the second chair is seen first
    visibility[2, 1] = 0.1
    visibility[:, 3] = 0.002  # never enough
    visibility[1, 4] = 0.3  # in the same frame as the desk, and larger
    floor = (np.array([[-1.0, -1], [4, -1], [4, 5], [-1, 5]]),)
    return AnnotatedScene(
        "study", tuple(SceneObject(i + 1, b.label, b) for i, b in enumerate(boxes)), visibility,
        np.stack([pose(1, 1, 1.5, math.pi / 2)] * 4), floor,
    )  # fmt: skip


def test_from_scene_orders_by_first_appearance_and_numbers_instances(scene):
    graph = SceneGraph.from_scene(scene)
    assert graph.names == ("chair.1", "bed", "desk", "chair.2", "lamp")
    assert [o.first_seen for o in graph.objects] == [0, 1, 1, 2, None]
    assert graph.objects[0].xy == (1, 3)
    assert graph.room_area == pytest.approx(30.0)
    assert graph.viewpoint == pytest.approx((1, 1, 1.5, math.pi / 2))


def test_relations_say_what_stands_on_what(scene):
    relations = SceneGraph.from_scene(scene).relations
    assert Relation("lamp", "on", "desk") in relations
    assert Relation("chair.1", "next to", "bed") in relations or Relation("bed", "next to", "chair.1") in relations
    assert not any({r.subject, r.object} == {"bed", "desk"} for r in relations)


def test_a_picture_hangs_above_a_sofa_and_not_on_it():
    graph = SceneGraph.from_boxes([box("sofa", 0, 0, 0.4, (2, 0.9, 0.8)), box("picture", 0, 0.2, 1.6, (0.6, 0.03, 0.4))])
    assert graph.relations == (Relation("picture", "above", "sofa"),)


def test_json_round_trip(scene):
    graph = SceneGraph.from_scene(scene)
    back = SceneGraph.from_json(graph.to_json())
    assert back == graph
    np.testing.assert_array_equal(back.floor[0], graph.floor[0])
    points = SceneGraph("p", (GraphObject("bed", point=(1.0, 2.0), sigma=0.1),), scale="relative")
    assert SceneGraph.from_json(points.to_json()) == points


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "[" * 5000, '{"format": "allocentric-graph", "version": 2}', '{"format": "allocentric-graph", "version": 1}'],
)
def test_other_json_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="scene graph: "):
        SceneGraph.from_json(text)


def test_json_with_a_place_that_is_not_a_number_is_refused(scene):
    data = json.loads(SceneGraph.from_scene(scene).to_json())
    data["objects"][0]["center"] = [0, float("nan"), 0]
    with pytest.raises(ValueError, match="malformed"):
        SceneGraph.from_json(json.dumps(data))


def test_json_with_a_negative_side_is_refused(scene):
    data = json.loads(SceneGraph.from_scene(scene).to_json())
    data["objects"][0]["size"] = [1, -1, 1]
    with pytest.raises(ValueError, match="sides of at least 0"):
        SceneGraph.from_json(json.dumps(data))


@pytest.mark.parametrize("corners", [[], [[0, 0]], [[0, 0], [1, 0]], [[0, 0], [1, 0], [1, float("inf")]]])
def test_json_with_a_floor_that_is_no_polygon_is_refused(scene, corners):
    data = json.loads(SceneGraph.from_scene(scene).to_json())
    data["floor"].append(corners)
    with pytest.raises(ValueError, match=r"scene graph: .*expected a floor of at least 3 corners with finite numbers, found \["):
        SceneGraph.from_json(json.dumps(data))


def test_an_object_is_a_box_or_a_point():
    with pytest.raises(ValueError, match="neither"):
        GraphObject("bed")
    with pytest.raises(ValueError, match="without"):
        SceneGraph.from_boxes([Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))])


def test_canonical_puts_the_camera_at_the_origin_looking_along_y():
    graph = SceneGraph.from_boxes([box("bed", 3, 2, yaw=0.2)], viewpoint=(1.0, 2.0, 1.5, 0.0), floor=(np.eye(3)[:, :2],))
    turned = graph.canonical()
    assert turned.objects[0].box.center == pytest.approx((0, 2, -1.1))  # two metres ahead, below the eye
    assert turned.objects[0].box.yaw == pytest.approx(0.2 + math.pi / 2)
    assert turned.canonical().points == pytest.approx(turned.points)
    with pytest.raises(ValueError, match="viewpoint"):
        SceneGraph.from_boxes([box("bed", 0, 0)]).canonical()


def test_from_text_is_the_layout_up_to_the_grid(scene):
    graph = SceneGraph.from_scene(scene)
    back = SceneGraph.from_text(write_map(graph.triplets()))
    assert back.scale == "metric" and set(back.names) == set(graph.names)
    order = [back.names.index(name) for name in graph.names]
    offset = back.points[order] - graph.points
    assert np.abs(offset - offset.mean(0)).max() < 0.35  # grids of up to 3.4 m have cells of up to 0.34 m
    assert all(o.sigma > 0 for o in back.objects)


def test_what_a_written_map_does_not_place_is_said(tmp_path):
    file = tmp_path / "room.txt"
    file.write_text("<map>\nbed(0,0) desk(9,0) lamp(0,9) r=3.0\nfan.1(0,0) fan.2(9,0) box(0,9) r=3.0\n</map>")
    mapped = open_graph(file)
    assert mapped.graph.names == ("bed", "desk", "lamp") and mapped.origin.endswith("; not placed: fan, fan.2, box")


def test_lines_with_axes_of_their_own_are_read_as_such(scene):
    graph = SceneGraph.from_scene(scene)
    back = SceneGraph.from_text(write_map(graph.triplets(redundancy=6, axes="ego")), axes="free")
    order = [back.names.index(name) for name in graph.names]
    assert position_rmse(back.points[order], graph.points, scale=False) < 0.2


def test_perturb_moves_renames_and_misses():
    graph = SceneGraph.from_boxes([box(label, i, 0) for i, label in enumerate("abcdefgh" * 25)])
    moved = perturb(graph, np.random.default_rng(0), position=0.5)
    offset = moved.points - graph.points
    assert offset.std() == pytest.approx(0.5, rel=0.15) and len(moved.objects) == 200
    assert len(perturb(graph, np.random.default_rng(0), missed=0.25).objects) == pytest.approx(150, abs=20)
    renamed = perturb(graph, np.random.default_rng(0), labels=0.5)
    changed = sum(a.label != b.label for a, b in zip(graph.objects, renamed.objects, strict=True))
    assert changed == pytest.approx(100, abs=25)
    assert perturb(graph, np.random.default_rng(0)).points == pytest.approx(graph.points)
    with pytest.raises(ValueError, match="share"):
        perturb(graph, np.random.default_rng(0), missed=2.0)


# --- Names ---


@pytest.fixture
def house():
    labels = ["tv", "trash bin", "office chair", "chair", "chair", "table", "floor lamp", "bathtub", "refrigerator", "window"]
    places = [(0, 0), (1, 0), (2, 0), (3, 0), (6, 0), (4, 4), (5, 0), (0, 5), (1, 5), (7, 0)]
    return SceneGraph.from_boxes([box(label, *place) for label, place in zip(labels, places, strict=True)])


@pytest.mark.parametrize(
    ("phrase", "names"),
    [
        ("the TV", ["tv"]),
        ("television", ["tv"]),
        ("trash can", ["trash bin"]),
        ("chairs", ["chair.1", "chair.2"]),
        ("chair.2", ["chair.2"]),
        ("black office chair", ["office chair"]),
        ("red chair", ["chair.1", "chair.2"]),
        ("dining table", ["table"]),
        ("lamp", ["floor lamp"]),
        ("bath tub", ["bathtub"]),
        ("bathtube", ["bathtub"]),
        ("fridge", ["refrigerator"]),
        ("edge of the table", ["table"]),
        ("the chair by the window", ["chair.2"]),
        ("chair closest to the tv", ["chair.1"]),
        ("chair with the blanket on it", ["chair.1", "chair.2"]),
        ("tv remote", []),
        ("stool", []),
        ("coffee machine", []),
        ("door", []),
    ],
)
def test_phrases_find_objects(house, phrase, names):
    assert [house.names[i] for i in find(house, phrase)] == names


def test_closest_and_farthest_are_measured_from_where_one_stands(house):
    assert find(house, "the farthest chair", origin=(0.0, 0.0)) == [4]
    assert find(house, "closest chair", origin=(0.0, 0.0)) == [3]


def test_an_exact_label_wins_over_a_longer_one():
    graph = SceneGraph.from_boxes([box("coffee table", 0, 0), box("table", 1, 0)])
    assert find(graph, "table") == [1] and find(graph, "coffee tables") == [0]


@pytest.mark.parametrize(
    ("labels", "phrase", "count"),
    [
        (["book", "book", "book", "books"], "book(s)", 3),
        (["book", "book", "book", "books"], "books", 1),
        (["glass", "glass", "glasses"], "the glass(es)", 2),
        (["curtain", "curtain", "curtains"], "curtain", 2),
        (["Curtain", "curtain", "curtains"], "curtain", 2),
        (["curtains"], "curtain", 1),
    ],
)
def test_a_label_wins_over_its_plural(labels, phrase, count):
    graph = SceneGraph.from_boxes([box(label, i, 0) for i, label in enumerate(labels)])
    assert len(find(graph, phrase)) == count


@pytest.mark.parametrize(
    ("label", "phrase"),
    [("table", "tablet"), ("speaker", "sneaker"), ("trowel", "towel"), ("painter", "printer"), ("bead", "bed"), ("table 2", "table 1")],  # noqa: E501
)
def test_what_is_spelled_nearly_alike_is_something_else(label, phrase):
    graph = SceneGraph.from_boxes([box(label, 0, 0), box("desk", 1, 0)])
    assert find(graph, phrase) == []


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("the Shelves", "shelf"), ("boxes", "box"), ("a bus", "bus"), ("glasses", "glass"), ("table(s)", "table")],
)
def test_plain_is_singular(phrase, expected):
    assert plain(phrase) == expected


def test_the_graph_is_part_of_the_public_interface():
    assert allocentric.SceneGraph is SceneGraph and "SceneGraph" in dir(allocentric)
