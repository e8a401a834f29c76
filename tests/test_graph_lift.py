"""Lifting detections to a graph, floors from depth, drawing, and the commands that use them."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPTokenizer,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    ResNetConfig,
)

from allocentric.cli import main
from allocentric.geometry.boxes import Box3D
from allocentric.graph.complete import completed, seen_through
from allocentric.graph.floor_plan import FloorPlan, estimate_up, floor_plan, leveled
from allocentric.graph.lift import lift, load_detector
from allocentric.graph.metrics import object_f1
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.source import open_graph
from allocentric.model import NANO
from allocentric.rooms import generate
from allocentric.scenes import save_scene
from allocentric.view.map import map_page, map_picture
from allocentric.views import Views


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


def write_rgbd(views, folder):
    """A capture as a folder in the layout of 7-Scenes."""
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", views.intrinsics[0].numpy())
    for t in range(len(views)):
        stem = folder / f"frame-{t:06d}"
        Image.fromarray(views.frames[t].permute(1, 2, 0).numpy()).save(f"{stem}.color.png")
        Image.fromarray((1000 * views.depth[t]).round().numpy().astype(np.uint16)).save(f"{stem}.depth.png")
        np.savetxt(f"{stem}.pose.txt", views.camera_to_world[t].numpy())


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


@pytest.mark.parametrize("masks", [True, False])
def test_an_object_detected_several_times_in_a_frame_is_one(room, masks):
    """As detectors do whose output nobody has thinned out."""
    views, scene, ids = room
    once, again = oracle(ids, scene, masks), oracle(ids, scene, masks)

    def thrice(image):
        found = once(image)
        moved = [{side: value + by for side, value in d["box"].items()} for by in (-1, 1) for d in found]
        return [*({**d, "score": 0.9, "box": box} for d, box in zip(found * 2, moved, strict=True)), *found]

    assert Counter(o.label for o in lift(views, thrice).objects) == Counter(o.label for o in lift(views, again).objects)


@pytest.mark.parametrize("overlap", [0, 4])
def test_two_things_side_by_side_stay_two(facing_wall, overlap):
    views, _ = facing_wall
    views = hide(hide(views, slice(20, 48), slice(40, 80), 2.0), slice(48, 76), slice(40, 80), 2.0)
    boxes = [(20, 48 + overlap), (48 - overlap, 76)]
    found = [{"label": "chair", "score": 0.9, "box": {"xmin": a, "ymin": 40, "xmax": b, "ymax": 80}} for a, b in boxes]
    chairs = lift(views, lambda image: found, complete=False).objects
    assert [o.label for o in chairs] == ["chair", "chair"]
    assert abs(chairs[0].box.center[0] - chairs[1].box.center[0]) == pytest.approx(28 * 2 / 50, abs=0.2)


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


CORNERS = {"xmin": 0, "ymin": 0, "xmax": 50, "ymax": 50}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([{"label": "x", "score": 1.0}], "detection: expected"),
        ([{"label": "x", "score": 1.0, "box": CORNERS, "mask": np.ones((3, 3))}], "mask"),
        ([{"label": "x", "score": 1.0, "box": CORNERS | {"xmax": math.nan}}], "of finite numbers, found 'x' with .* nan"),
        ([{"label": "x", "score": math.nan, "box": CORNERS}], "of finite numbers, found 'x' with score nan"),
        ([{"label": "x", "score": 1.0, "box": CORNERS | {"xmin": 60}}], "corners in order"),
        (None, "a list of detections of each picture, found None"),
    ],
)
def test_malformed_detections_are_refused(room, found, message):
    with pytest.raises(ValueError, match=message):
        lift(room[0], lambda image: found)


def test_views_without_depth_are_refused(room):
    with pytest.raises(ValueError, match="depth"):
        lift(replace(room[0], depth=None), lambda image: [])


# --- Completion ---


@pytest.fixture
def facing_wall():
    """A camera at (0, 0, 1) that looks along y, at a wall 3 m away and a floor at 0; the room is 4 m wide."""
    pose = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
    intrinsics = torch.tensor([[50.0, 0, 50], [0, 50, 50], [0, 0, 1]])
    down = (torch.arange(100) + 0.5 - 50) / 50
    depth = torch.where(down > 1 / 3, 1 / down.clamp_min(1e-6), 3.0)[:, None].repeat(1, 100)
    views = Views(
        frames=torch.zeros(1, 3, 100, 100, dtype=torch.uint8), depth=depth[None], intrinsics=intrinsics[None],
        camera_to_world=pose[None], indices=torch.arange(1), scale="metric", source="wall",
    )  # fmt: skip
    nothing = np.zeros((1, 1), dtype=bool)
    outline = np.array([[-2.0, -1], [2, -1], [2, 3], [-2, 3]])
    return views, FloorPlan(0.0, (outline,), 16.0, np.zeros(2), nothing, nothing)


def hide(views, columns, rows, at):
    """The views with something `at` metres in front of the camera in a part of the picture."""
    depth = views.depth.clone()
    depth[0, rows, columns] = at
    return replace(views, depth=depth)


def test_space_that_was_looked_through_is_known(facing_wall):
    views, _ = facing_wall
    points = np.array([[0.0, 1.0, 1.0], [0, 2.9, 1], [0, 3.5, 1], [0, -1, 1], [0, 1, 5]])
    assert seen_through(points, views).tolist() == [True, True, False, False, False]
    assert seen_through(points, hide(views, slice(None), slice(None), 0.5)).tolist() == [False] * 5


def test_hidden_sides_reach_floor_and_wall(facing_wall):
    views, plan = facing_wall
    front = Box3D((0.0, 2.55, 0.7), (1.0, 0.1, 0.6), 0.0, "cupboard")  # its face, 0.5 m before the wall, 0.4 m above the floor
    (same,) = completed([front], views, plan)  # wall and floor are seen where the rest of it would be
    assert same == front
    (whole,) = completed([front], hide(views, slice(30, 70), slice(40, 95), 2.0), plan)
    assert whole.size == pytest.approx((1.0, 0.5, 1.0)) and whole.center == pytest.approx((0.0, 2.75, 0.5))
    picture = Box3D((0.0, 2.96, 1.2), (1.0, 0.02, 0.6), 0.0, "picture")
    (hung,) = completed([picture], views, plan)  # flush with the wall, and wall is seen below it
    assert hung.size == pytest.approx((1.0, 0.05, 0.6)) and hung.center[2] == pytest.approx(1.2)
    assert completed([picture], hide(views, slice(None), slice(None), 0.5), plan) == [hung]  # nor is it taken for a door


def test_what_rests_on_something_is_let_down_on_it(facing_wall):
    views, plan = facing_wall
    hidden = hide(views, slice(None), slice(None), 0.5)
    table, lamp = Box3D((0.0, 1.5, 0.35), (1.0, 1.0, 0.7), 0.0, "table"), Box3D((0.1, 1.5, 1.1), (0.2, 0.2, 0.4), 0.0, "lamp")
    _, lowered = completed([table, lamp], hidden, plan)
    assert lowered.center[2] - lowered.size[2] / 2 == pytest.approx(0.7) and lowered.size[2] == pytest.approx(0.6)


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


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"labels": ["Chair", "table"]}, "found the labels Chair, expected some of chair, table"),
        ({"threshold": 1.5}, "threshold: expected a score from 0 to 1, found 1.5"),
        ({"threshold": math.nan}, "found nan"),
    ],
)
def test_what_a_detector_cannot_be_asked_for_is_refused(tiny_detr, asked, message):
    with pytest.raises(ValueError, match=message):
        load_detector(tiny_detr, **asked)


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_checkpoint_that_needs_another_package_names_it(tiny_detr, tmp_path, capsys):
    """As DETR's first checkpoints do."""
    shutil.copytree(tiny_detr, tmp_path / "detr")
    DetrConfig(use_timm_backbone=True, backbone="resnet50", use_pretrained_backbone=False).save_pretrained(tmp_path / "detr")
    write_rgbd(generate(3, frames=2)[0], tmp_path / "capture")
    with pytest.raises(SystemExit) as stop:
        main(["map", str(tmp_path / "capture"), "--detector", str(tmp_path / "detr")])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "requires the timm library" in err


@pytest.fixture(scope="module")
def tiny_owl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owlvit")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    # The first is padding: a label that starts with it is not looked for.
    tokens = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="!", model_max_length=16)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1}
    text, vision = small | ids | {"vocab_size": len(tokens)}, small | {"image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    OwlViTProcessor(OwlViTImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


def test_a_zero_shot_checkpoint_looks_for_the_labels_it_is_given(tiny_owl, room):
    picture = Image.fromarray(room[0].frames[0].permute(1, 2, 0).numpy())
    detector = load_detector(tiny_owl, labels=["chair", "paper bag"], threshold=0.0)
    found = detector(picture)
    assert len(found) == 2 * 16 and {"label", "score", "box"} <= set(found[0])  # one per label and patch
    assert {d["label"] for d in found} == {"chair", "paper bag"}
    graph = lift(room[0].select([0, 5, 10]), detector, min_frames=1)
    assert {o.label for o in graph.objects} <= {"chair", "paper bag"}
    with pytest.raises(ValueError, match="labels"):
        load_detector(tiny_owl)


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


def test_map_command_with_a_detector(tiny_owl, room, tmp_path, capsys):
    capture = tmp_path / "capture"
    write_rgbd(room[0].select([0, 5, 10]), capture)
    main(["map", str(capture), "--detector", str(tiny_owl), "--labels", "chair", "table", "--json"])
    graph = SceneGraph.from_json(capsys.readouterr().out)
    assert {o.label for o in graph.objects} <= {"chair", "table"} and graph.room_area > 0
    with pytest.raises(SystemExit) as stop:
        main(["map", str(capture), "--detector", str(tiny_owl)])
    assert stop.value.code == 2 and "labels" in capsys.readouterr().err


def test_detections_below_the_threshold_are_left_out(tiny_detr, room, tmp_path, capsys):
    capture = tmp_path / "capture"
    write_rgbd(room[0].select([0, 5, 10]), capture)
    found = []
    for threshold in ("0", "1"):
        main(["map", str(capture), "--detector", str(tiny_detr), "--threshold", threshold, "--json"])
        found.append(len(SceneGraph.from_json(capsys.readouterr().out).objects))
    assert found[0] > 0 == found[1]


def test_ask_via_graph_lifts_as_many_frames_as_it_is_told(tiny_detr, room, tmp_path, capsys):
    capture = tmp_path / "capture"
    write_rgbd(room[0].select([0, 5, 10]), capture)
    question, detector = "How many chair(s) are in this room?", ["--detector", str(tiny_detr), "--threshold", "0"]
    for frames, expected in (["--frames", "2"], 2), ([], 3):
        main(["ask", str(capture), question, "--via", "graph", *detector, *frames, "--json"])
        assert json.loads(capsys.readouterr().out)["graph"] == f"lifted from detections in {expected} frames"


def test_ask_via_graph_takes_the_scene_it_is_told(tmp_path, capsys):
    scenes = {name: {"room_size": size, "object_counts": {}, "object_bbox": {}} for name, size in (("first", 11), ("second", 22))}
    (tmp_path / "scenes.json").write_text(json.dumps(scenes))
    question = "What is the size of this room (in square meters)?"
    main(["ask", str(tmp_path / "scenes.json"), question, "--via", "graph", "--scene", "second", "--json"])
    assert float(json.loads(capsys.readouterr().out)["answers"][0]["text"]) == 22
    with pytest.raises(SystemExit) as stop:
        main(["ask", str(tmp_path / "scenes.json"), question, "--scene", "second"])
    assert stop.value.code == 2 and "expected --via graph or both" in capsys.readouterr().err


def test_options_that_nothing_looks_at_are_refused(folder, room, tmp_path, capsys):
    saved, capture = tmp_path / "graph.json", tmp_path / "capture"
    saved.write_text(open_graph(folder).graph.to_json())
    write_rgbd(room[0].select([0, 5, 10]), capture)
    question = "How big is this room?"
    for words, complaint in (
        (("map", saved, "--scene", "x"), f"--scene: found {saved}, a map of one scene, expected an annotation file of many"),
        (("map", saved, "--frames", 2), f"--frames: found {saved}, of which no frames are looked at, expected --detector or"),
        (("map", saved, "--threshold", 0), "--threshold: found no --detector, expected one"),
        (("map", capture, "--scene", "x"), f"--scene: found {capture}, of which the frames are looked at, expected"),
        (("ask", saved, question, "--via", "graph", "--model", "x"), f"--model: found --via graph of {saved}, which asks no model"),
        (("ask", folder, question, "--via", "graph", "--latents", "x"), "--latents: found --via graph of"),
        (("ask", capture, question, "--via", "graph", "--sampling", "uniform"), "--sampling: found --via graph of"),
        (("ask", folder, question, "--via", "graph", "--frames", 2), f"--frames: found {folder}, of which no frames"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.startswith("allo: " + complaint) and err.count("\n") == 1, err


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
    assert answer["missing"] == [] and float(answer["text"]) > 0 and answer["triplets"] == []


def test_what_cannot_be_mapped_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["map", str(tmp_path / "nothing")])
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("allo: ")
