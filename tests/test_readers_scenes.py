"""Annotated scenes: VSI-Bench metadata, scene folders and their schema, what views show of boxes, floors of scans."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from allocentric.geometry.boxes import Box3D, OrientedBox, boxes_to_array
from allocentric.geometry.floor import alpha_shape, alpha_shape_area, floor_points, polygon_area
from allocentric.geometry.visibility import box_owners, box_visibility
from allocentric.readers import layout_of, open_scene, open_scenes, open_views, with_visibility
from allocentric.readers.oriented import upright_box
from allocentric.scenes import AnnotatedScene, SceneObject, load_scene, save_scene, schema
from allocentric.views import Views

# --------------------------------------------------------------------------------------------------- VSI-Bench metadata


def metadata() -> dict:
    c, s = np.cos(0.5), np.sin(0.5)
    chair = {"centroid": [1, 2, 0.5], "axesLengths": [0.5, 0.6, 1.0], "normalizedAxes": [c, s, 0, -s, c, 0, 0, 0, 1]}
    nested = {"centroid": [3, 2, 0.5], "axesLengths": [0.5, 0.6, 1.0], "normalizedAxes": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
    lying = {"centroid": [0, 0, 1], "axesLengths": [0.8, 2.0, 1.0], "normalizedAxes": [0, 0, 1, 0, 1, 0, -1, 0, 0]}
    flat = {"centroid": [0, 0, 1], "axesLengths": [1, 1, 0], "normalizedAxes": [0] * 9, "min": [0, 0, 1], "max": [2, 1, 1]}
    return {
        "41069025": {
            "room_size": 26.4, "room_center": [0, 0, 0], "object_counts": {"chair": 2}, "object_bbox": {"chair": [chair, nested]},
            "dataset": "arkitscenes",
        },
        "scene0011_00": {"room_size": 12, "object_counts": {"table": 1}, "object_bbox": {"table": [lying], "rug": [flat]}},
        "0a5c013435": {"room_size": float("nan"), "object_counts": {}, "object_bbox": {}, "dataset": "scannetpp"},
    }  # fmt: skip


def test_vsi_metadata(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(metadata()))
    scenes = open_scenes(path)
    assert list(scenes) == ["41069025", "scene0011_00", "0a5c013435"]
    first = scenes["41069025"]
    assert first.room_area == 26.4 and [(o.id, o.label) for o in first.objects] == [(1, "chair"), (2, "chair")]
    assert first.objects[0].box.yaw == pytest.approx(0.5) and first.objects[1].box.yaw == 0
    assert first.objects[0].box.size == (0.5, 0.6, 1.0) and first.objects[0].box.center == (1, 2, 0.5)
    table, rug = open_scene(path, "scene0011_00").objects
    assert table.box.size[2] == 0.8 and sorted(table.box.size[:2]) == [1.0, 2.0]
    assert rug.box == Box3D((1.0, 0.5, 1.0), (2.0, 1.0, 0.0), 0.0, "rug")  # its axes are no directions: from min and max
    assert scenes["0a5c013435"].objects == () and scenes["0a5c013435"].room_area is None
    with pytest.raises(ValueError, match=r"which scene\? there are 3: 41069025"):
        open_scene(path)


@pytest.mark.parametrize(
    ("scene", "match"),
    [
        ({"object_counts": {}}, "expected object_bbox"),
        ({"object_bbox": {"bed": [{"centroid": [0, 0, 0]}]}}, "a box of 'bed' has no axesLengths"),
        ({"object_bbox": {"bed": [3]}}, "a box of 'bed' is a int"),
        ({"object_bbox": {}, "room_size": "large"}, "expected room_size in square metres, found 'large'"),
        ({"object_bbox": {"bed": [metadata()["41069025"]["object_bbox"]["chair"][0] | {"centroid": [0, 0]}]}}, "box of 'bed'"),
    ],
)
def test_bad_metadata_is_refused_by_name(tmp_path, scene, match):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"room7": scene}).replace('"room7": {', '"room7": {"object_counts": {}, '))
    with pytest.raises(ValueError, match=match) as error:
        open_scenes(path)
    assert "room7" in str(error.value)


def test_metadata_as_scannet_and_scannetpp_have_it(tmp_path):
    """Boxes that lean, sides in any order, fields of VLM-3R's generator, spelling, and boxes that hold no numbers."""
    nan = float("nan")
    turn = Rotation.from_euler("xyz", [0.6, -0.4, 1.0]).as_matrix()  # as the smallest box around some points may lie
    chair = {"centroid": [1, 2, 0.5], "axesLengths": [0.5, 0.9, 0.7], "normalizedAxes": turn.T.ravel().tolist()}
    half = np.abs(turn) @ np.array(chair["axesLengths"]) / 2
    chair |= {"min": (chair["centroid"] - half).tolist(), "max": (chair["centroid"] + half).tolist(), "instance_id": 17}
    door = {"centroid": [6.65, 1.9, 3.1], "axesLengths": [3.6, 0.3, 1.3], "normalizedAxes": [0, -1, 0, 0, 0, 1, -1, 0, 0]}
    lost = chair | {"normalizedAxes": [nan] * 9}
    nothing = chair | {"centroid": [nan, 0, 0], "min": [nan] * 3, "max": None}
    scene = {
        "video_path": "scannet/videos/val/scene0011_00.mp4", "dataset": "scannet", "split": "val", "img_width": 640,
        "room_size": 0.0, "room_center": [nan, nan, nan], "object_counts": {"office chair": 2, "door": 1, "shower_curtain": 1},
        "object_bboxes": {"office chair": [chair, lost], "door": [door], "shower_curtain": [nothing], "lamp": []},
    }  # fmt: skip
    path = tmp_path / "meta.json"
    path.write_text(json.dumps({"scene0011_00": scene, "scene0015_00": scene | {"object_bboxes": {}, "object_counts": {}}}))
    with pytest.raises(ValueError, match=r"scene0011_00: box of 'shower_curtain': .*drop_bad_boxes=True"):
        open_scenes(path)
    scenes = open_scenes(path, drop_bad_boxes=True)
    assert scenes["scene0015_00"].objects == () and scenes["scene0011_00"].room_area is None
    first, second, third = scenes["scene0011_00"].objects
    assert (first.id, second.id, third.id) == (1, 2, 3) and first.label == "office chair"
    assert first.oriented == OrientedBox((1.0, 2.0, 0.5), (0.5, 0.9, 0.7), tuple(map(tuple, turn.T.tolist())))
    assert first.box.center == (1, 2, 0.5) and sorted(first.box.size) == [0.5, 0.7, 0.9]
    assert second.oriented is None and np.allclose(second.box.size, 2 * half) and second.box.yaw == 0
    assert third.box.size == (3.6, 1.3, 0.3) and third.box.yaw == pytest.approx(-np.pi / 2)
    save_scene(replace(scenes["scene0011_00"], name="kitchen"), tmp_path / "scene.json")
    assert load_scene(tmp_path).objects == (first, second, third)


def test_the_published_arkitscenes_metadata():
    folder = Path(os.environ.get("ALLOCENTRIC_DATA", Path(__file__).parents[2] / "shared" / "data")) / "vsibench"
    if not folder.is_dir():
        pytest.skip(f"no VSI-Bench metadata in {folder} (set ALLOCENTRIC_DATA to the folder that holds vsibench/)")
    raw = json.loads((folder / "arkitscenes_scenes.json").read_text())
    scenes = open_scenes(folder / "arkitscenes_scenes.json")
    assert len(scenes) == 150 and sum(len(s.objects) for s in scenes.values()) == 854
    for name, scene in scenes.items():
        assert scene.room_area == raw[name]["room_size"]
        filed = [(label, box) for label, boxes in raw[name]["object_bbox"].items() for box in boxes]
        for found, (label, box) in zip(scene.objects, filed, strict=True):
            assert found.label == label and sorted(found.box.size) == sorted(box["axesLengths"])
            # the box covers what its published minimum and maximum say, but for the dropped tilt
            cos, sin = abs(np.cos(found.box.yaw)), abs(np.sin(found.box.yaw))
            dx, dy, dz = found.box.size
            half = np.array([cos * dx + sin * dy, sin * dx + cos * dy, dz]) / 2
            tilt = 1 - np.abs(np.array(box["normalizedAxes"]).reshape(3, 3)[:, 2]).max()
            allowed = 1e-4 if tilt < 1e-9 else 0.15 * max(found.box.size)
            assert np.abs(np.array(box["max"]) - found.box.center - half).max() < allowed


def test_upright_boxes():
    tilt, yaw = np.radians(5), 0.4
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    lean = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    box = upright_box([0, 0, 0], [1, 2, 3], (turn @ lean).T, "box", "here")
    assert box.size == (1, 2, 3) and box.yaw == pytest.approx(yaw)
    moved = np.block([[turn, np.array([[1.0], [2], [3]])], [np.zeros((1, 3)), 1]])
    box = upright_box([1, 0, 0], [1, 2, 3], np.eye(3), "box", "here", to_world=moved)
    assert box.yaw == pytest.approx(yaw) and box.center == pytest.approx((1 + np.cos(yaw), 2 + np.sin(yaw), 3))
    for axes, match in ((np.ones((3, 3)), "not orthonormal"), (np.full((3, 3), np.nan), "finite")):
        with pytest.raises(ValueError, match=match):
            upright_box([0, 0, 0], [1, 2, 3], axes, "box", "here")


# -------------------------------------------------------------------------------------------------------- scene folders


def a_scene() -> AnnotatedScene:
    return AnnotatedScene(
        "kitchen",
        (SceneObject(1, "table", Box3D((1.0, 2.0, 0.4), (1.2, 0.8, 0.8), 0.3, "table")),),
        visibility=np.array([[0.1], [1 / 3]]),
        camera_to_world=np.stack([np.eye(4), np.eye(4)]),
        floor=(np.array([[0.0, 0], [4, 0], [4, 3], [0, 3]]),),
        room_area=12.0,
        times=np.array([0.0, 1.5]),
    )


def test_scene_folder(tmp_path):
    """The folder of the documentation's example: pictures and a scene.json written by hand."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 24), (i, i, i)).save(tmp_path / "images" / f"{i}.png")
    document = {
        "format": "allocentric-scene", "version": 1, "name": "kitchen", "room_area": None, "floor": [],
        "objects": [{"id": 1, "label": "table", "center": [1, 2, 0.4], "size": [1.2, 0.8, 0.8], "yaw": 0}],
        "camera_to_world": None, "visibility": None,
        "camera": {"width": 64, "height": 48, "intrinsics": [[50, 0, 32], [0, 50, 24], [0, 0, 1]]},
    }  # fmt: skip
    (tmp_path / "scene.json").write_text(json.dumps(document))
    assert layout_of(tmp_path) == "scene"
    views = open_views(tmp_path, 2)
    assert views.indices.tolist() == [0, 2] and views.intrinsics[1].tolist() == [[25, 0, 16], [0, 25, 12], [0, 0, 1]]
    assert open_views(tmp_path, max_side=16).intrinsics[0, 0, 0] == 12.5
    scene = open_scene(tmp_path)
    assert scene.objects[0].box == Box3D((1.0, 2.0, 0.4), (1.2, 0.8, 0.8), 0.0, "table") and scene.visibility is None
    assert open_scene(tmp_path / "scene.json") == scene
    document["camera"]["height"] = 64
    (tmp_path / "scene.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"the pictures are 32x24, the camera of scene\.json 64x64"):
        open_views(tmp_path)


def test_an_option_is_one_of_what_reads_the_pictures(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 24)).save(tmp_path / "images" / "0.png")
    save_scene(a_scene(), tmp_path / "scene.json")
    with pytest.raises(ValueError, match="found the option up, which open_images does not take"):
        open_views(tmp_path, up="z")
    (tmp_path / "video.mp4").touch()
    with pytest.raises(ValueError, match="found the option up, which open_video does not take"):
        open_views(tmp_path, up="z")


def test_scene_round_trip_is_exact(tmp_path):
    scene = a_scene()
    save_scene(scene, tmp_path / "scene.json")
    again = load_scene(tmp_path)
    assert (again.name, again.objects, again.room_area) == (scene.name, scene.objects, scene.room_area)
    for field in ("visibility", "camera_to_world", "times"):
        assert np.array_equal(getattr(again, field), getattr(scene, field))
    with pytest.raises(ValueError, match=r"found no pictures, expected rgbd/, video\.mp4 or images/"):
        open_views(tmp_path)


def without(key):
    return lambda d: d.pop(key)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("objects"), "'objects' is a required property"),
        (lambda d: d.update(colour=1), "colour"),
        (lambda d: d["objects"][0].update(id=0), r"objects\[0\]\.id"),
        (lambda d: d["objects"][0].update(size=[1, -1, 1]), r"objects\[0\]\.size\[1\]"),
        (lambda d: d["objects"].append(d["objects"][0]), "id 1 is used twice"),
        (lambda d: d.update(room_area="12"), "room_area"),
        (lambda d: d["visibility"].append([0.2]), "2 times, 2 camera_to_world, 3 visibility"),
        (lambda d: d["visibility"][1].append(0.2), r"visibility\[1\]: expected 1 numbers"),
        (lambda d: d["visibility"][1].__setitem__(0, 1.5), r"visibility\[1\]\[0\]"),
        (lambda d: d["camera_to_world"][0].pop(), r"camera_to_world\[0\]"),
        (lambda d: d["floor"][0].__setitem__(slice(1, None), []), r"floor\[0\]"),
        (lambda d: d.update(version=2), "expected an allocentric-scene file of version 1"),
    ],
)
def test_a_scene_that_breaks_the_schema_is_refused(tmp_path, change, match):
    save_scene(a_scene(), tmp_path / "scene.json")
    document = json.loads((tmp_path / "scene.json").read_text())
    change(document)
    (tmp_path / "scene.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=match) as error:
        load_scene(tmp_path)
    assert "scene.json" in str(error.value) and "\n" not in str(error.value)


def test_the_documented_example_is_valid(tmp_path):
    """docs/scene_folder.md: its example is a scene, and it names every field of the schema."""
    page = (Path(__file__).parents[1] / "docs" / "scene_folder.md").read_text()
    example = page.split("```json\n")[1].split("```")[0]
    (tmp_path / "scene.json").write_text(example)
    assert len(load_scene(tmp_path).objects) == 2
    for name in schema()["properties"]:
        assert f"`{name}`" in page


def test_a_folder_of_scenes(tmp_path):
    for name in ("b", "a", "notes"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        save_scene(AnnotatedScene(name, ()), tmp_path / name / "scene.json")
    assert list(open_scenes(tmp_path)) == ["a", "b"] and open_scene(tmp_path, "b").name == "b"
    with pytest.raises(ValueError, match="holds the scene 'a', not 'b'"):
        open_scene(tmp_path / "a", "b")
    with pytest.raises(ValueError, match="no annotated scene was found here"):
        open_scenes(tmp_path / "notes")
    save_scene(AnnotatedScene("a", ()), tmp_path / "b" / "scene.json")
    with pytest.raises(ValueError, match="two scenes are named 'a'"):
        open_scenes(tmp_path)


# ----------------------------------------------------------------------------------------------------------- visibility

K = np.array([[100.0, 0, 80], [0, 100.0, 60], [0, 0, 1]])
LEVEL = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 1]])  # at (0, 0, 1), looking along +y


def test_visibility_from_depth():
    """A wall at 4 m with a box before its left half; a second box behind the wall; a cup on the first."""
    depth = np.full((1, 120, 160), 4.0)
    depth[:, :, :40] = 2.0
    boxes = boxes_to_array(
        [
            Box3D((-1.2, 2.2, 1.0), (1.6, 0.4, 4.0)),  # its front is at y = 2
            Box3D((0.5, 6.0, 1.0), (4.0, 1.0, 4.0)),  # behind the wall
            Box3D((-0.5, 2.0, 1.0), (0.2, 0.1, 0.2)),  # within the first: a smaller thing wins
        ]
    )
    seen = box_visibility(boxes, depth, K[None], LEVEL[None])
    x = (np.arange(160) + 0.5 - 80) / 100 * 2
    z = (np.arange(120) + 0.5 - 60) / 100 * 2
    cup = ((np.abs(x + 0.5) <= 0.15) & (np.arange(160) < 40)).sum() * (np.abs(z) <= 0.15).sum() / (120 * 160)
    assert seen.shape == (1, 3) and seen[0, 1] == 0 and seen[0, 2] == pytest.approx(cup)
    assert seen[0, 0] == pytest.approx(0.25 - cup)
    depth[:] = 0  # nothing was measured
    assert box_visibility(boxes, depth, K[None], LEVEL[None]).max() == 0
    assert box_visibility(boxes[:0], depth, K[None], LEVEL[None]).shape == (1, 0)


def test_visibility_agrees_with_rendered_rooms():
    """Against instance images of a ray caster, which know what each pixel shows."""
    from allocentric.rooms import generate

    views, scene, ids = generate(50, frames=3, height=56, width=84)
    boxes = boxes_to_array(o.box for o in scene.objects)
    owners = box_owners(boxes, views.depth.numpy(), views.intrinsics.numpy(), views.camera_to_world.numpy())
    truth = np.array([0, *[o.id for o in scene.objects]])[owners + 1]
    shown = np.isin(ids, [o.id for o in scene.objects])
    assert (truth == ids)[shown].mean() > 0.9
    seen = with_visibility(scene, views)
    assert np.corrcoef(seen.visibility.ravel(), scene.visibility.ravel())[0, 1] > 0.95
    assert np.array_equal(seen.times, views.times.numpy())
    with pytest.raises(ValueError, match="visibility needs depth"):
        with_visibility(scene, Views(torch.zeros((1, 3, 4, 4), dtype=torch.uint8)))


# ---------------------------------------------------------------------------------------------------------------- floor


def test_floor_of_a_scan():
    """An L-shaped room of 4 x 4 less 2 x 2 metres, scanned with walls; far from the origin, and some points not finite."""
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 4, (20000, 2))
    points = points[(points[:, 0] < 2) | (points[:, 1] < 2)] + (1000.0, -500.0)
    scan = np.column_stack([points, rng.uniform(0, 2.5, len(points))])
    scan = np.concatenate([scan, [[np.nan, 0, 0]]])
    thin = floor_points(scan)
    assert 3500 < len(thin) < 5500 and len(floor_points(thin_3d := np.column_stack([thin, np.zeros(len(thin))]))) == len(thin_3d)
    (outline,) = alpha_shape(thin, alpha=4.0)
    assert polygon_area(outline) == pytest.approx(12.0, rel=0.03) == alpha_shape_area(thin, alpha=4.0)
    x, y = outline.T
    assert x @ np.roll(y, -1) - y @ np.roll(x, -1) > 0  # counter-clockwise
    with pytest.raises(ValueError, match="none that are finite"):
        floor_points(np.full((3, 3), np.nan))


def test_two_rooms_have_two_outlines():
    grid = np.stack(np.meshgrid(np.arange(0, 3, 0.25), np.arange(0, 3, 0.25)), -1).reshape(-1, 2)
    outlines = alpha_shape(np.concatenate([grid, grid[:, :] * (0.6, 1) + (10, 0), [[30.0, 30.0]]]))
    assert [polygon_area(o) for o in outlines] == pytest.approx([2.75**2, 2.75**2 * 0.6])
    assert alpha_shape(np.stack([np.arange(5.0), np.arange(5.0)], 1)) == ()  # on one line
