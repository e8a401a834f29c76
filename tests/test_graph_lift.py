"""Lifting detections to a graph, floors from depth, drawing, and the commands that use them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, ResNetConfig

from allocentric.cli import main
from allocentric.geometry.boxes import Box3D
from allocentric.graph.floor_plan import estimate_up, floor_plan, leveled
from allocentric.graph.lift import lift, load_detector
from allocentric.graph.metrics import object_f1
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.source import open_graph
from allocentric.model import NANO
from allocentric.rooms import generate
from allocentric.scenes import save_scene
from allocentric.view.map import map_page, map_picture


def oracle(ids, scene, masks=True):
    """A detector that knows: every object of which 12 pixels are seen, frame after frame."""
    frames = iter(ids)
    labels = {o.id: o.label for o in scene.objects}

    def detect(image):
        ids = next(frames)
        assert image.size == ids.shape[::-1]
        found = []
        for k, label in labels.items():
            mask = ids == k
            if mask.sum() >= 12:
                y, x = np.nonzero(mask)
                box = {"xmin": int(x.min()), "ymin": int(y.min()), "xmax": int(x.max()) + 1, "ymax": int(y.max()) + 1}
                found.append({"label": label, "score": 1.0, "box": box} | ({"mask": mask} if masks else {}))
        return found

    return detect


def quality(graph, scene):
    """Precision, recall and F1 at an overlap of 0.25."""
    return object_f1([o.box for o in graph.objects], [o.box for o in scene.objects])


@pytest.fixture(scope="module")
def room():
    return generate(10_000_003)


def test_an_oracle_s_detections_become_the_scene(room):
    views, scene, ids = room
    graph = lift(views, oracle(ids, scene))
    assert quality(graph, scene)[2] >= 0.9
    exact = SceneGraph.from_scene(scene)
    firsts = {o.label: o.first_seen for o in exact.objects if exact.names.count(o.label)}
    agree = [abs(o.first_seen - firsts[o.label]) <= 1 for o in graph.objects if o.label in firsts and firsts[o.label] is not None]
    assert np.mean(agree) >= 0.8
    assert graph.room_area == pytest.approx(scene.room_area, rel=0.3)
    assert graph.viewpoint == pytest.approx(exact.viewpoint, abs=1e-4)


def test_boxes_without_masks_find_most(room):
    views, scene, ids = room
    graph = lift(views, oracle(ids, scene, masks=False))
    assert quality(graph, scene)[1] >= 0.6


def test_what_is_detected_once_but_seen_often_is_dropped(room):
    views, scene, ids = room
    everything = oracle(ids, scene)
    calls = iter(range(len(views)))

    def flickering(image):
        found = everything(image)
        return [dict(d, label="ghost") for d in found] if next(calls) == 5 else []

    assert lift(views, flickering).objects == ()


@pytest.mark.parametrize(
    ("detection", "message"),
    [({"label": "x", "score": 1.0}, "detection"), ({"label": "x", "score": 1.0, "box": {"xmin": 0, "ymin": 0, "xmax": 50, "ymax": 50},  # noqa: E501
                                                 "mask": np.ones((3, 3))}, "mask")],
)  # fmt: skip
def test_malformed_detections_are_refused(room, detection, message):
    with pytest.raises(ValueError, match=message):
        lift(room[0], lambda image: [detection])


def test_views_without_depth_are_refused(room):
    with pytest.raises(ValueError, match="depth"):
        lift(replace(room[0], depth=None), lambda image: [])


# --- Floor ---


def test_the_floor_is_found(room):
    views, scene, _ = room
    plan = floor_plan(views)
    assert plan.height == pytest.approx(0, abs=0.05)
    assert 0 < plan.free_area < scene.room_area and plan.occupied.any()
    assert not (plan.free & plan.occupied).any()


def test_up_is_found_in_a_world_that_is_tilted(room):
    views = room[0]
    assert np.degrees(np.arccos(estimate_up(views)[2])) < 3
    angle = math.radians(70)
    tilt = torch.eye(4)
    tilt[1:3, 1:3] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    tilted = replace(views, camera_to_world=tilt @ views.camera_to_world)
    up = estimate_up(tilted)
    assert np.degrees(np.arccos(up @ tilt[:3, 2].double().numpy())) < 3
    upright = leveled(tilted)
    assert np.degrees(np.arccos(estimate_up(upright)[2])) < 3
    assert leveled(views) is views


# --- Detectors of transformers ---


@pytest.fixture(scope="module")
def tiny_detr(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detr")
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], out_features=["stage4"])
    config = DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, d_model=16, encoder_layers=1,  # noqa: E501
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_queries=6,  # noqa: E501
        id2label={0: "chair", 1: "table"}, label2id={"chair": 0, "table": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def test_a_checkpoint_is_loaded_and_its_detections_lifted(tiny_detr, room):
    views = room[0].select([0, 5, 10])
    detector = load_detector(tiny_detr, threshold=0.0)
    found = detector(Image.fromarray(views.frames[0].permute(1, 2, 0).numpy()))
    assert found and {"label", "score", "box"} <= set(found[0]) and {d["label"] for d in found} <= {"chair", "table"}
    only = load_detector(tiny_detr, labels=["chair"], threshold=0.0)
    assert {d["label"] for d in only(Image.fromarray(views.frames[0].permute(1, 2, 0).numpy()))} <= {"chair"}
    graph = lift(views, detector, min_frames=1)
    assert {o.label for o in graph.objects} <= {"chair", "table"} and graph.room_area > 0


def test_other_models_are_refused():
    with pytest.raises(ValueError):
        load_detector(NANO)


# --- Drawing and commands ---


@pytest.fixture
def folder(room, tmp_path):
    _, scene, _ = room
    (tmp_path / "room").mkdir()
    save_scene(scene, tmp_path / "room" / "scene.json")
    return tmp_path / "room"


def test_a_map_is_drawn_with_free_space(room):
    _, scene, _ = room
    graph = SceneGraph.from_scene(scene)
    with_floor = map_picture(graph, size=300)
    pixels = np.asarray(with_floor).reshape(-1, 3)
    assert (pixels == (196, 222, 190)).all(1).mean() > 0.05  # free floor is green
    page = map_page(graph, with_floor, "exact")
    assert page.startswith("<!doctype html>") and "data:image/png;base64," in page and "&lt;map&gt;" in page
    assert all(name in page for name in graph.names)


def test_a_label_cannot_break_the_page():
    graph = SceneGraph.from_boxes([Box3D((0.0, 0.0, 0.5), (1.0, 1.0, 1.0), 0.0, "<script>alert(1)</script>")])
    assert "<script>" not in map_page(graph, map_picture(graph, size=200))


def test_map_command(folder, tmp_path, capsys):
    main(["map", str(folder), "--json"])
    graph = SceneGraph.from_json(capsys.readouterr().out)
    saved = tmp_path / "graph.json"
    saved.write_text(graph.to_json())
    png, html = tmp_path / "map.png", tmp_path / "map.html"
    main(["map", str(saved), "--png", str(png), "--html", str(html)])
    assert png.stat().st_size > 1000 and "</html>" in html.read_text()
    assert graph.objects[0].label in capsys.readouterr().out
    assert open_graph(saved).graph == graph == open_graph(folder).graph


def test_a_written_map_is_read(tmp_path):
    (tmp_path / "map.txt").write_text("<map>\nbed(2,7) desk(9,5) chair(6,3) r=3.4\nnonsense\n</map>")
    mapped = open_graph(tmp_path / "map.txt")
    assert mapped.graph.names == ("bed", "desk", "chair") and "1 of 2 lines dropped" in mapped.origin
    (tmp_path / "none.txt").write_text("no map here")
    with pytest.raises(ValueError, match="triplets"):
        open_graph(tmp_path / "none.txt")


def test_ask_via_graph_shows_what_it_used(folder, capsys):
    main(
        [
            "ask",
            str(folder),
            "How many unicorn(s) are in this room?",
            "What is the size of this room (in square meters)?",
            "--via",
            "graph",
        ]
    )
    out = capsys.readouterr().out
    assert "the graph has no unicorn" in out and "exact, from annotations" in out and "compute  measured area" in out
    main(["ask", str(folder), "How big is this room?", "--via", "graph", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    assert answer["missing"] == [] and float(answer["text"]) > 0


def test_what_cannot_be_mapped_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["map", str(tmp_path / "nothing")])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("allo: ")
