"""Rooms on disk: what is written is what was rendered, a killed run continues, and a mirrored room is a true room."""

import json
import multiprocessing
import os
import shutil
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

import allocentric.train.shards as module
from allocentric import rooms
from allocentric.geometry.boxes import Box3D
from allocentric.geometry.cameras import unproject_depth
from allocentric.scenes import AnnotatedScene, SceneObject, scene_from_dict, scene_to_dict
from allocentric.tasks.relative_direction import ANSWERS, RelativeDirection, direction_angle, sector
from allocentric.train.shards import RoomSample, RoomShards, RoomsSpec, mirror, mirror_scene, write_rooms
from allocentric.views import Views


def test_a_shard_holds_what_was_rendered(shards):
    views, scene, ids = rooms.generate(51, 4, 56, 84)
    found = shards[1]
    assert len(shards) == 3
    assert np.array_equal(found.frames, views.frames.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(found.ids, ids)
    assert np.allclose(found.depth, views.depth.numpy(), rtol=1e-3)
    assert np.array_equal(found.camera_to_world, views.camera_to_world.numpy())
    assert np.array_equal(found.intrinsics, views.intrinsics.numpy())
    assert scene_to_dict(found.scene) == scene_to_dict(scene)
    with pytest.raises(IndexError):
        shards[3]


def test_selected_frames_are_those_asked_for(shards):
    whole, some = shards[0], shards[0].select(np.array([3, 1]))
    for name in ("frames", "depth", "ids", "camera_to_world", "intrinsics"):
        assert np.array_equal(getattr(some, name), getattr(whole, name)[[3, 1]])
    assert some.scene is whole.scene


# ---- writing ----


def stand_in(seed: int, frames: int, height: int, width: int, style: str):
    """A "room" that costs nothing and shows its seed."""
    views = Views(
        frames=torch.full((frames, 3, height, width), seed, dtype=torch.uint8),
        depth=torch.ones(frames, height, width),
        intrinsics=torch.eye(3).expand(frames, 3, 3),
        camera_to_world=torch.eye(4).expand(frames, 4, 4),
    )
    return views, AnnotatedScene(f"room {seed}", ()), np.zeros((frames, height, width), dtype=np.uint8)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(rooms, "generate", stand_in)
    monkeypatch.setattr(module, "SHARD_SIZE", 2)
    fork = multiprocessing.get_context("fork")  # so that the workers see these stand-ins too
    monkeypatch.setattr(module, "get_context", lambda _: fork)


def spec(count: int, **changes) -> RoomsSpec:
    return RoomsSpec(**{"count": count, "first_seed": 7, "frames": 1, "height": 2, "width": 2, **changes})


def seeds(folder, count: int | None = None) -> list[int]:
    shards = RoomShards(folder, count)
    return [int(shards[i].frames[0, 0, 0, 0]) for i in range(len(shards))]


def test_a_killed_run_leaves_no_half_shard_and_goes_on(tmp_path, quick, monkeypatch):
    assert list(write_rooms(tmp_path, spec(2), workers=1)) == [(0, 2), (2, 2)]
    with monkeypatch.context() as killed:
        killed.setattr(np, "savez", lambda *_, **__: os._exit(1))  # in the middle of the second shard
        with pytest.raises(BrokenProcessPool):
            list(write_rooms(tmp_path, spec(5), workers=1))
    assert seeds(tmp_path) == [7, 8]
    assert not (tmp_path / "00001").exists()
    first = (tmp_path / "00000" / "frames.npy").stat().st_mtime_ns
    assert list(write_rooms(tmp_path, spec(5), workers=1)) == [(2, 5), (4, 5), (5, 5)]
    assert seeds(tmp_path) == [7, 8, 9, 10, 11]
    assert (tmp_path / "00000" / "frames.npy").stat().st_mtime_ns == first
    assert list(write_rooms(tmp_path, spec(5), workers=1)) == [(5, 5)]


def test_more_rooms_can_be_asked_for_later(tmp_path, quick):
    list(write_rooms(tmp_path, spec(3), workers=1))
    done = list(write_rooms(tmp_path, spec(6), workers=1))
    assert done[0] == (2, 6) and done[-1] == (6, 6)  # the last shard, half full, is written anew
    assert seeds(tmp_path) == [7, 8, 9, 10, 11, 12]
    assert seeds(tmp_path, 4) == [7, 8, 9, 10]


def test_rooms_of_another_kind_are_refused(tmp_path, quick):
    list(write_rooms(tmp_path, spec(2), workers=1))
    with pytest.raises(ValueError, match=r"found rooms of .*'first_seed': 7.*, expected .*'first_seed': 8.*; use another folder"):
        list(write_rooms(tmp_path, spec(2, first_seed=8), workers=1))
    assert seeds(tmp_path) == [7, 8]


def test_missing_rooms_are_noticed(tmp_path, quick):
    with pytest.raises(ValueError, match="found 0 rooms, expected some"):
        RoomShards(tmp_path)
    list(write_rooms(tmp_path, spec(6), workers=1))
    with pytest.raises(ValueError, match="found 6 rooms, expected 7"):
        RoomShards(tmp_path, 7)
    shutil.rmtree(tmp_path / "00001")  # rooms behind a gap would pass for others
    assert seeds(tmp_path) == [7, 8]


# ---- mirror ----


def share_inside(sample: RoomSample, boxes: tuple[SceneObject, ...]) -> float:
    """Share of object pixels whose point in space lies in the box of the object with the pixel's id."""
    points = unproject_depth(
        torch.from_numpy(sample.depth.astype(np.float64)),
        torch.from_numpy(sample.intrinsics.astype(np.float64)),
        torch.from_numpy(sample.camera_to_world.astype(np.float64)),
    ).numpy()
    inside = total = 0
    for item in boxes:
        found = points[sample.ids == item.id] - item.box.center
        cos, sin = np.cos(item.box.yaw), np.sin(item.box.yaw)
        local = np.stack([cos * found[:, 0] + sin * found[:, 1], cos * found[:, 1] - sin * found[:, 0], found[:, 2]], axis=1)
        inside += int((np.abs(local) <= np.array(item.box.size) / 2 + 0.02).all(axis=1).sum())
        total += len(found)
    assert total > 500
    return inside / total


def test_points_of_a_mirrored_room_lie_in_its_mirrored_boxes(shards):
    for i in range(3):
        sample, mirrored = shards[i], mirror(shards[i])
        assert share_inside(sample, sample.scene.objects) > 0.99
        assert share_inside(mirrored, mirrored.scene.objects) > 0.99
        assert share_inside(mirrored, sample.scene.objects) < 0.6
        assert [(o.id, o.label) for o in mirrored.scene.objects] == [(o.id, o.label) for o in sample.scene.objects]
        rotation = mirrored.camera_to_world[:, :3, :3].astype(float)
        assert np.allclose(np.linalg.det(rotation), 1, atol=1e-5)


def test_mirroring_twice_changes_nothing(shards):
    sample, again = shards[2], mirror(mirror(shards[2]))
    for name in ("frames", "depth", "ids", "camera_to_world", "intrinsics"):
        assert np.allclose(getattr(again, name), getattr(sample, name), atol=1e-5)
    for a, b in zip(again.scene.objects, sample.scene.objects, strict=True):
        assert a.box == b.box
    for a, b in zip(again.scene.floor, sample.scene.floor, strict=True):
        assert np.array_equal(a, b)


def test_left_and_right_change_places_in_a_mirror(shards):
    swap = {"left": "right", "right": "left"}
    compared = 0
    for i in range(3):
        scene = shards[i].scene
        mirrored = mirror_scene(scene)
        for question in RelativeDirection().make(scene, np.random.default_rng(0), limit=12):
            level = question.task.rsplit("_", 1)[1]
            told = question.options["ABCD".index(question.answer)][3:]
            angle = direction_angle(mirrored, *question.objects)
            seen = ANSWERS[level][int(sector(level, np.array([angle]))[0])]
            assert seen == "-".join(swap.get(word, word) for word in told.split("-"))
            compared += told != "back"
    assert compared >= 5


def test_the_floor_of_a_mirrored_room_keeps_its_area_and_sense(shards):
    def area(polygon):  # positive for counter-clockwise
        x, y = polygon.T
        return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)

    scene = shards[0].scene
    assert [area(p) for p in mirror_scene(scene).floor] == pytest.approx([area(p) for p in scene.floor])
    assert area(scene.floor[0]) > 0


# ---- annotation ----


def test_a_scene_survives_json(shards):
    scene = shards[0].scene
    again = scene_from_dict(json.loads(json.dumps(scene_to_dict(scene))))
    assert (again.name, again.objects, again.room_area) == (scene.name, scene.objects, scene.room_area)
    assert np.allclose(again.visibility, scene.visibility, atol=1e-6)
    assert np.array_equal(again.camera_to_world, scene.camera_to_world)
    assert all(np.array_equal(a, b) for a, b in zip(again.floor, scene.floor, strict=True))
    bare = AnnotatedScene("bare", (SceneObject(1, "chair", Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.5, "chair")),))
    assert scene_from_dict(json.loads(json.dumps(scene_to_dict(bare)))) == bare


@pytest.mark.parametrize(
    "fault",
    [
        {"objects": None},
        {"objects": [{"id": 1, "label": "chair", "center": [0, 0, 0], "size": [1, 1, 1]}]},  # no yaw
        {"visibility": [[0.1, 0.2], [0.3, 0.4]]},  # two columns, one object
        {"camera_to_world": [[1, 2, 3]]},
        {"floor": [[1, 2, 3]]},
    ],
)
def test_a_malformed_scene_is_refused(fault):
    good = scene_to_dict(AnnotatedScene("bare", (SceneObject(1, "chair", Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.5, "chair")),)))
    assert scene_from_dict(good).name == "bare"
    with pytest.raises(ValueError, match="scene: found something malformed"):
        scene_from_dict(good | fault)
    with pytest.raises(ValueError, match="room_area"):
        scene_from_dict({key: value for key, value in good.items() if key != "room_area"})
