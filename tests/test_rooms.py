"""Procedural rooms: the pictures, the geometry and the annotation agree with each other."""

import inspect
from collections import Counter

import av
import numpy as np
import pytest
from PIL import Image

from allocentric import cli
from allocentric.demo import one_of_each
from allocentric.evaluate.rooms import base_task
from allocentric.rooms import LABELS, generate, load_scene, make_room, render, walk, write_video
from allocentric.rooms.furniture import CATALOG, FIXTURES
from allocentric.rooms.generate import MIN_VISIBLE, pinhole, shutter_poses, staged
from allocentric.rooms.layout import blocks, footprints_touch
from allocentric.rooms.raycast import quick_visibility
from allocentric.tasks import VSI_TASKS, make_questions
from allocentric.train.shards import RoomsSpec, write_rooms

SEEDS = range(40, 47)


@pytest.fixture(scope="module")
def rooms():
    return [make_room(s) for s in SEEDS]


@pytest.fixture(scope="module")
def scenes():
    return [generate(s, frames=5, height=56, width=70) for s in (4, 10)]


def test_a_seed_gives_the_same_bits():
    a, b = generate(5, frames=3, height=40, width=50), generate(5, frames=3, height=40, width=50)
    assert (a[0].frames == b[0].frames).all() and (a[0].depth == b[0].depth).all() and (a[2] == b[2]).all()
    assert a[1].objects == b[1].objects and (a[0].camera_to_world == b[0].camera_to_world).all()
    assert (generate(6, frames=3, height=40, width=50)[0].frames != a[0].frames).any()


def test_unprojected_pixels_lie_in_the_box_of_their_id(scenes):
    for views, scene, ids in scenes:
        depth, pose, k = views.depth.numpy(), views.camera_to_world.numpy().astype(float), views.intrinsics.numpy()
        v, u = np.mgrid[0 : depth.shape[1], 0 : depth.shape[2]] + 0.5
        checked = 0
        for t in range(len(views)):
            x = (u - k[t, 0, 2]) / k[t, 0, 0] * depth[t]
            y = (v - k[t, 1, 2]) / k[t, 1, 1] * depth[t]
            world = np.stack([x, y, depth[t]], -1) @ pose[t, :3, :3].T + pose[t, :3, 3]
            for o in scene.objects:
                p = world[ids[t] == o.id] - np.array(o.box.center)
                c, s = np.cos(o.box.yaw), np.sin(o.box.yaw)
                local = np.stack([p[:, 0] * c + p[:, 1] * s, p[:, 1] * c - p[:, 0] * s, p[:, 2]], 1)
                assert (np.abs(local) <= np.array(o.box.size) / 2 + 0.003).all(), (scene.name, o.label)
                checked += len(p)
        assert checked > 1000


def test_boxes_are_tight(rooms):
    for room in rooms[:4]:
        s = room.surface()
        for o in room.objects:
            p = s.triangles[s.id == o.id].reshape(-1, 3) - np.array(o.box.center)
            c, r = np.cos(o.yaw), np.sin(o.yaw)
            local = np.stack([p[:, 0] * c + p[:, 1] * r, p[:, 1] * c - p[:, 0] * r, p[:, 2]], 1)
            assert np.allclose(local.max(0), np.array(o.size) / 2, atol=1e-4), o.label
            assert np.allclose(local.min(0), -np.array(o.size) / 2, atol=1e-4), o.label


def test_nothing_overlaps_but_what_stands_on_something(rooms):
    for room in rooms:
        for i, a in enumerate(room.objects):
            for b in room.objects[i + 1 :]:
                if a.support == b.id or b.support == a.id:
                    continue
                apart_in_height = a.position[2] >= b.position[2] + b.size[2] or b.position[2] >= a.position[2] + a.size[2]
                assert apart_in_height or not footprints_touch(a.position, a.size, a.yaw, b.position, b.size, b.yaw, 0.0)


def test_objects_are_inside_their_room(rooms):
    for room in rooms:
        for o in room.objects:
            x0, y0, x1, y1 = room.plan.rects[o.room]
            c, s = abs(np.cos(o.yaw)), abs(np.sin(o.yaw))
            hx, hy = (o.size[0] * c + o.size[1] * s) / 2, (o.size[0] * s + o.size[1] * c) / 2
            assert x0 - 1e-3 <= o.position[0] - hx and o.position[0] + hx <= x1 + 1e-3
            assert y0 - 1e-3 <= o.position[1] - hy and o.position[1] + hy <= y1 + 1e-3
            assert o.position[2] + o.size[2] <= room.plan.height


def test_the_camera_walks_in_free_space(rooms):
    for room in rooms:
        poses, times = walk(room, 60, np.random.default_rng(0))
        assert (np.diff(times) > 0).all()
        r = poses[:, :3, :3]
        assert np.allclose(r @ r.transpose(0, 2, 1), np.eye(3), atol=1e-9) and np.allclose(np.linalg.det(r), 1)
        assert (r[:, 2, 1] < -0.5).all()  # the image's down points down
        assert ((poses[:, 2, 3] > 1.2) & (poses[:, 2, 3] < 1.8)).all()
        floors = [room.plan.rects[k] for k in range(len(room.plan.rects))] + [o[2] for o in room.plan.openings]
        for p in poses[:, :2, 3]:
            assert any(x0 <= p[0] <= x1 and y0 <= p[1] <= y1 for x0, y0, x1, y1 in floors)
            cut = room.plan.cuts[0]
            assert cut is None or not (cut[0] <= p[0] <= cut[2] and cut[1] <= p[1] <= cut[3])
            for o in room.objects:
                if blocks(o.label, o.position[2], o.size[2]) and not o.support:
                    d = p - np.array(o.position[:2])
                    c, s = np.cos(o.yaw), np.sin(o.yaw)
                    out = np.abs([d[0] * c + d[1] * s, d[1] * c - d[0] * s]) - np.array(o.size[:2]) / 2
                    assert np.hypot(*np.maximum(out, 0)) > 0.25, o.label


def test_visibility_is_the_share_of_id_pixels(scenes):
    for _, scene, ids in scenes:
        assert scene.visibility.shape == (len(ids), len(scene.objects))
        for j, o in enumerate(scene.objects):
            assert np.array_equal(scene.visibility[:, j], (ids == o.id).reshape(len(ids), -1).mean(axis=1))
        assert (scene.visibility.max(axis=0) >= MIN_VISIBLE).all()


def test_every_visible_object_is_annotated_at_training_size():
    for seed in (3, 10):
        _, scene, ids = generate(seed)
        assert set(np.unique(ids)) - {0} <= {o.id for o in scene.objects}


def test_area_is_that_of_the_floor(rooms):
    from shapely import Polygon

    shapes = Counter()
    for room in rooms:
        polygons = [Polygon(p) for p in room.floor]
        assert all(p.is_valid and p.exterior.is_ccw for p in polygons)
        assert sum(p.area for p in polygons) == pytest.approx(room.annotate().room_area)
        assert 8 < room.area < 46
        shapes[tuple(len(p) for p in room.floor)] += 1
    assert len(shapes) >= 2


def test_depth_meets_the_floor_where_geometry_says():
    room = make_room(1)
    grounded = 0
    poses, _ = walk(room, 6, np.random.default_rng(1))
    k = pinhole(48, 64, 75)
    _, depth, ids = render(room, poses, 48, 64, k, samples=1)
    v, u = np.mgrid[0:48, 0:64] + 0.5
    for t in range(6):
        local = np.stack([(u - 32) / k[0, 0], (v - 24) / k[1, 1], np.ones_like(u)], -1)
        down = (local @ poses[t, :3, :3].T)[..., 2]
        expected = np.where(down < 0, -poses[t, 2, 3] / np.where(down < 0, down, -1), np.inf)
        assert (depth[t] <= expected + 1e-3).all() and (depth[t] > 0).all()
        ground = (ids[t] == 0) & (np.abs(depth[t] - expected) < 1e-3)
        grounded += ground.sum()
    assert grounded > 300


def test_catalog_builds_and_sizes_vary():
    assert len(LABELS) >= 25 and all(label == label.lower() for label in LABELS)
    for label, build in [*((k, v.build) for k, v in CATALOG.items()), *FIXTURES.items()]:
        sizes = np.array([np.ptp(build(np.random.default_rng(s)).triangles().reshape(-1, 3), axis=0) for s in range(8)])
        assert np.isfinite(sizes).all() and (sizes.max(axis=0) / sizes.min(axis=0)).max() > 1.1, label
        sizes = sizes.max(axis=1)
        assert 0.2 < sizes.min() and sizes.max() < 3.2, label


def test_rooms_hold_repeats_and_single_things():
    scenes = [staged(s)[0] for s in range(60, 66)]
    counts = [Counter(o.label for o in r.objects) for r in scenes]
    assert np.mean([sum(n == 1 for n in c.values()) for c in counts]) >= 5
    assert np.mean([any(n > 1 and k not in FIXTURES for k, n in c.items()) for c in counts]) > 0.6


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style"):
        make_room(0, "wax")


def test_scene_folder_round_trip(tmp_path):
    scene = write_video(7, tmp_path, seconds=1.0, fps=8, height=96, width=128, annotated_frames=4, posed_rgbd=True, workers=1)
    again = load_scene(tmp_path)
    assert again.objects == scene.objects and again.room_area == scene.room_area and again.name == scene.name
    assert np.array_equal(again.visibility, scene.visibility)
    assert np.array_equal(again.camera_to_world, scene.camera_to_world)
    with av.open(str(tmp_path / "video.mp4")) as video:
        frames = [f.to_ndarray(format="rgb24") for f in video.decode(video=0)]
    assert len(frames) == 8 and frames[0].shape == (96, 128, 3)
    still = np.asarray(Image.open(tmp_path / "rgbd" / "frame-000003.color.jpg")).astype(float)
    assert np.abs(still - frames[3]).mean() < 8
    room, path, _ = staged(7)
    pose = np.loadtxt(tmp_path / "rgbd" / "frame-000003.pose.txt")
    assert np.allclose(pose, path.poses(np.linspace(0, path.duration, 8))[3], atol=1e-6)
    millimetres = np.asarray(Image.open(tmp_path / "rgbd" / "frame-000003.depth.png"))
    k = np.loadtxt(tmp_path / "rgbd" / "camera-intrinsics.txt")
    _, depth, _ = render(room, pose[None], 96, 128, k, samples=1)
    assert np.abs(millimetres / 1000 - depth[0]).max() < 0.002
    assert not list(tmp_path.glob(".partial*"))


def test_a_video_is_blurred_by_motion(tmp_path, monkeypatch):
    def film(folder):
        write_video(7, tmp_path / folder, seconds=1.0, fps=4, height=48, width=64, samples=2, posed_rgbd=True, workers=1)
        shots = [tmp_path / folder / "rgbd" / f"frame-{i:06d}" for i in range(4)]
        return [np.asarray(Image.open(f"{shot}.{kind}")).astype(float) for kind in ("color.jpg", "depth.png") for shot in shots]

    moving, open_for = film("moving"), []
    shut = lambda path, times, samples, exposure: open_for.append(exposure) or shutter_poses(path, times, samples, 0.0)  # noqa: E731
    monkeypatch.setattr("allocentric.rooms.scene_io.shutter_poses", shut)
    still = film("still")
    assert open_for == [pytest.approx(0.015 * staged(7)[1].duration)]
    for frame in range(4):
        assert np.abs(moving[frame] - still[frame]).mean() > 0.5  # colours are taken on the way,
        assert np.array_equal(moving[4 + frame], still[4 + frame])  # depth where the frame stands


def test_bad_scene_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"scene\.json"):
        load_scene(tmp_path)
    (tmp_path / "scene.json").write_text("{}")
    with pytest.raises(ValueError, match="version 1"):
        load_scene(tmp_path)


def test_models_style_says_what_to_install(tmp_path):
    from allocentric.rooms.models import model_catalog

    with pytest.raises(FileNotFoundError, match="apt-get install sweethome3d-furniture"):
        model_catalog(tmp_path)


def test_rooms_of_models_that_are_not_installed_leave_nothing_behind(tmp_path, monkeypatch):
    from allocentric.rooms.models import model_catalog

    monkeypatch.setattr("allocentric.rooms.models.model_catalog", lambda: model_catalog(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get install"):
        list(write_rooms(tmp_path / "rooms", RoomsSpec(2, style="models"), workers=1))
    assert list(tmp_path.iterdir()) == []


def test_models_are_read_at_catalog_size(tmp_path):
    """A catalog of one box, 2 x 4 x 1 units in the file (y up, front +z), sold as 80 x 50 x 40 cm."""
    import zipfile

    from allocentric.rooms.models import load_model

    corners = [(x, y, z) for x in (0, 2) for y in (0, 4) for z in (0, 1)]
    obj = "mtllib b.mtl\n" + "".join(f"v {x} {y} {z}\n" for x, y, z in corners)
    obj += "usemtl back\nf 1 3 7 5\nusemtl front\nf 2/1 4/1 8/1 6/1\nf -8 -7 -5 -6\n"
    catalog = "name#1=Box\nmodel#1=/b/b.obj\nwidth#1=80\ndepth#1=50\nheight#1=40\n"
    with zipfile.ZipFile(tmp_path / "a.sh3f", "w") as z:
        z.writestr("PluginFurnitureCatalog.properties", catalog)
        z.writestr("b/b.obj", obj)
        z.writestr("b/b.mtl", "newmtl front\nKd 0.8 0.1 0.2\nnewmtl back\nKd 0.1 0.1 0.9\n")
    mesh = load_model(tmp_path / "a.sh3f", "b/b.obj")
    assert np.allclose(np.ptp(mesh.triangles().reshape(-1, 3), axis=0), (0.8, 0.5, 0.4))
    colour = {m.color: p.reshape(-1, 3)[:, 1].max() for m, p in zip(mesh.part_material, mesh.parts, strict=True)}
    assert colour[(0.1, 0.1, 0.9)] == pytest.approx(0.0) and colour[(0.8, 0.1, 0.2)] == pytest.approx(0.5)
    assert [len(p) for p in mesh.parts] == [2, 4]


def test_models_style_furnishes_with_known_labels():
    from allocentric.rooms.models import FOLDER

    if not FOLDER.is_dir():
        pytest.skip("sweethome3d-furniture is not installed")
    views, scene, ids = generate(3, frames=3, height=40, width=50, style="models")
    assert len(scene.objects) >= 4 and {o.label for o in scene.objects} <= set(LABELS)
    assert np.isin(ids[ids > 0], [o.id for o in scene.objects]).mean() > 0.9 and len(views) == 3


def test_every_type_of_question_can_be_asked_about_the_demos_room():
    """`allo demo` asks one of each; what it films is told here by one ray a pixel, as its visibility is."""
    seed = inspect.signature(cli.demo).parameters["seed"].default
    room, path, fov = staged(seed)
    poses = path.poses(np.linspace(0, path.duration, 200)[np.round(np.linspace(0, 199, 32)).astype(int)])
    scene = room.annotate(quick_visibility(room, poses, 256, 320, fov), poses, MIN_VISIBLE)
    questions = one_of_each(make_questions(scene, np.random.default_rng(seed), per_task=1))
    assert {base_task(question.task) for question in questions} == VSI_TASKS.keys()
