"""Frame selection: the published choice where asked for, the better one by default."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from allocentric import sampling
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.geometry.boxes import Box3D
from allocentric.readers import VideoFile
from allocentric.sampling import (
    _median,
    _scatter,
    coverage,
    greedy_coverage,
    points_from_depth,
    points_from_vggt,
    preprocess_for_vggt,
    sample,
    space_aware,
    uniform,
)
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.view.contact_sheet import contact_sheet
from allocentric.view.topdown import FLOOR, label_color, topdown
from allocentric.views import Views
from test_readers import number, write_rgbd, write_video


def by_sets(points, confidence, k):
    """The published algorithm, plainly: sets of voxel tuples, strict greedy, stop at no gain. -> (picks, voxel sets)."""
    threshold = np.percentile(confidence.numpy().reshape(-1), 50)
    keep = (confidence >= threshold) & (confidence > 0.1)
    low, high = points[keep].amin(0), points[keep].amax(0)
    edge = (high - low).min() / 20
    voxels = [set(map(tuple, ((p[m] - low) / edge).floor().long().tolist())) for p, m in zip(points, keep, strict=True)]
    picks, covered = [], set()
    while len(picks) < k:
        gains = [len(v - covered) if i not in picks else 0 for i, v in enumerate(voxels)]
        if max(gains) == 0:
            break
        picks.append(gains.index(max(gains)))
        covered |= voxels[picks[-1]]
    return picks, voxels


def scene(rng, t, h=9, w=11):
    points = rng.normal(size=(t, h, w, 3)) * rng.uniform(0.05, 3, 3) + 2 * rng.normal(size=(t, 1, 1, 3))
    confidence = 1 + np.exp(rng.normal(size=(t, h, w)))
    return torch.from_numpy(points).float(), torch.from_numpy(confidence).float()


def duplicated(p, c):
    p[len(p) // 2], c[len(c) // 2] = p[0], c[0]


def all_duplicated(p, c):
    p[:], c[:] = p[0].clone(), c[0].clone()


def stray_below(p, c):
    """So far out that the scene's own voxels are numbered beyond what float32 counts exactly."""
    p[0, 0, 0, 0], c[0, 0, 0] = -3e4, 100.0


def changed(**how):
    return lambda p, c: (p.mul_(how.get("scale", 1)).add_(how.get("shift", 0)), c.add_(how.get("confidence", 0)))


CASES = {
    "plain": lambda p, c: None,
    "duplicate frames": duplicated,
    "all frames equal": all_duplicated,
    "constant confidence": lambda p, c: c.fill_(1.5),
    "rounded confidence": lambda p, c: c.copy_((c * 5).round() / 5),
    "empty frames": lambda p, c: c[::2].fill_(1.0),
    "confidence below 0.1": changed(confidence=-1.2),
    "tiny scale": changed(scale=1e-7),
    "far from the origin": changed(shift=1000.0),
    "points on voxel edges": lambda p, c: p.copy_((p * 2).round() / 2),
    "very thin scene": lambda p, c: p[..., 1].mul_(1e-4),
    "a stray point": lambda p, c: p[0, 0, 0].fill_(500.0),
    "a confident stray point far below": stray_below,
}


@pytest.mark.parametrize("name", CASES)
def test_reference_mode_is_the_published_choice(name):
    rng = np.random.default_rng(len(name))
    for _ in range(12):
        points, confidence = scene(rng, t=int(rng.integers(1, 14)))
        CASES[name](points, confidence)
        k = int(rng.integers(1, 12))
        picks, voxels = by_sets(points, confidence, k)
        ours = space_aware(points, k, confidence, mode="reference")
        assert list(ours.order) == picks
        assert list(ours.indices) == sorted(picks)
        union = set().union(*voxels)
        assert ours.total_voxels == len(union)
        together = [len(set().union(*(voxels[i] for i in picks[: n + 1]))) / len(union) for n in range(len(picks))]
        assert ours.coverage == pytest.approx(together)
        even = np.linspace(0, len(points) - 1, min(k, len(points)), dtype=int)
        assert ours.uniform_coverage == pytest.approx(len(set().union(*(voxels[i] for i in even))) / len(union))


def test_other_paths_through_the_voxels_agree(monkeypatch):
    """Many voxels go by their names in place of their places, a GPU scatters: the same bits."""
    points, confidence = scene(np.random.default_rng(5), t=8)
    plain = space_aware(points, 5, confidence, mode="reference")
    valid = sampling._valid_points(points, confidence, None, only_finite=False)
    low, high, side = sampling._bounding_box(valid)
    size = side / np.float32(20)
    seen = sampling.voxel_bitmap(valid, low, high, size)
    dims = np.floor((high - low) / size).astype(int) + 1
    rows = _scatter(valid, low, high, size, np.array([dims[1] * dims[2], dims[2], 1]), int(dims.prod()))
    unpacked = np.unpackbits(seen.view(np.uint8), axis=1).astype(bool)
    assert np.array_equal(rows[:, rows.any(0)], unpacked[:, unpacked.any(0)])
    monkeypatch.setattr(sampling, "DENSE_VOXELS", 0)
    assert space_aware(points, 5, confidence, mode="reference") == plain


@pytest.mark.parametrize(("size", "voxel"), [((6, 5, 0.05), None), ((6, 5, 2.5), 0.02)])
def test_many_voxels_are_all_counted(size, voxel):
    points = torch.from_numpy(np.random.default_rng(0).uniform(0, 1, (6, 30, 40, 3)) * size).float()
    mode = "reference" if voxel is None else "fill"
    low, high, side = (sampling._bounding_box if voxel is None else sampling._bulk_box)([p.reshape(-1, 3) for p in points])
    edge = np.float32(voxel or side / np.float32(20))
    assert np.prod((high - low) / edge) > sampling.FLOAT32_EXACT
    expected = {tuple(cell) for cell in np.floor((points.reshape(-1, 3).numpy() - low) / edge).astype(int).tolist()}
    assert space_aware(points, 6, mode=mode, voxel_size=voxel).total_voxels == len(expected)


def test_median_is_numpys_to_the_bit():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 101, 1000):
        for values in (rng.random(n), np.round(rng.random(n), 1), rng.normal(size=n) * 1e6):
            values = values.astype(np.float32)
            assert _median(torch.from_numpy(values)) == np.percentile(values, 50)


def bits(*rows):
    """A bitmap from the voxels of each frame."""
    dense = np.zeros((len(rows), 64), dtype=bool)
    for row, voxels in zip(dense, rows, strict=True):
        row[list(voxels)] = True
    return np.packbits(dense, axis=1).view(np.uint64)


def test_greedy_fills_and_breaks_ties_by_time():
    seen = bits({0, 1}, {0, 1, 2}, {2}, {0}, {1}, {0, 1, 2})
    assert greedy_coverage(seen, 4) == [1]  # as published: the first of equals, and nothing else is new
    # the default goes on, each time to the frame farthest in time from those chosen
    assert greedy_coverage(seen, 4, times=np.arange(6.0)) == [1, 5, 3, 0]
    # real times decide, not positions
    assert greedy_coverage(seen, 3, times=np.array([0.0, 1, 2, 50, 51, 52])) == [1, 5, 3]
    assert greedy_coverage(seen, 99, times=np.arange(6.0))[:2] == [1, 5]
    assert sorted(greedy_coverage(seen, 99, times=np.arange(6.0))) == list(range(6))
    assert greedy_coverage(seen, 2, times=np.arange(6.0), first=0)[0] == 0
    assert coverage(seen, [3, 0, 1]) == pytest.approx([1 / 3, 2 / 3, 1])


def test_greedy_is_within_its_guarantee():
    rng = np.random.default_rng(3)
    for _ in range(20):
        sets = [set(rng.choice(40, size=rng.integers(1, 12), replace=False).tolist()) for _ in range(8)]
        best = max(len(set().union(*c)) for c in itertools.combinations(sets, 3))
        chosen = greedy_coverage(bits(*sets), 3)
        assert len(set().union(*(sets[i] for i in chosen))) >= (1 - 1 / np.e) * best


def test_fill_mode_always_gives_k_and_ignores_outliers():
    rng = np.random.default_rng(1)
    points = torch.from_numpy(rng.uniform(0, 1, size=(12, 20, 20, 3))).float() * torch.tensor([5.0, 4.0, 2.5])
    clean = space_aware(points, 6)
    assert len(clean.indices) == 6 and clean.voxel_size == pytest.approx(2.5 / 20, rel=0.05)
    stray = points.clone()
    stray[3, 0, 0], stray[4, 1, 1, 2], stray[5, 2, 2] = 900.0, float("nan"), float("-inf")
    dirty = space_aware(stray, 6)
    assert dirty.voxel_size == pytest.approx(clean.voxel_size, rel=0.01)
    # The published box swallows the stray point: a few huge voxels, covered at once, and the search stops.
    stray[4, 1, 1], stray[5, 2, 2] = points[4, 1, 1], points[5, 2, 2]
    published = space_aware(stray, 6, mode="reference")
    assert published.voxel_size == pytest.approx(45, rel=0.01) and len(published.indices) == 1
    assert dirty.coverage == tuple(sorted(dirty.coverage)) and 0 < dirty.coverage[0] < dirty.coverage[-1] <= 1
    assert dirty.indices == tuple(sorted(dirty.order))


def test_fill_mode_takes_the_one_frame_that_shows_another_room():
    points = scene(np.random.default_rng(0), 1)[0].expand(127, -1, -1, -1)
    apart = points[:1] + 10 * (points.amax() - points.amin())
    chosen = space_aware(torch.cat([points[:90], apart, points[90:]]), 2)
    assert 90 in chosen.indices and chosen.coverage[0] < 0.6 and chosen.coverage[1] == 1
    assert chosen.voxel_size == pytest.approx(space_aware(points, 2).voxel_size, rel=0.5)  # its points are too few to set the scale
    few = torch.full_like(apart, float("nan"))
    few[0, 0, 0] = apart[0, 0, 0]  # a single point is no room
    assert space_aware(torch.cat([points[:90], few, points[90:]]), 2).coverage[0] == 1


def test_fill_mode_with_equal_frames_spreads_over_time():
    points = torch.rand(1, 6, 6, 3).expand(9, 6, 6, 3)
    assert space_aware(points, 3).indices == (0, 4, 8)
    assert space_aware(points, 20).indices == tuple(range(9))
    assert 5 in space_aware(points, 2, mask=torch.arange(9)[:, None, None].expand(9, 6, 6) == 5).indices


def test_space_aware_beats_uniform_where_the_camera_lingers():
    """A camera that stares at one wall for 30 frames and then turns through the room in 10."""
    rng = np.random.default_rng(0)
    places = np.concatenate([np.zeros(30), np.arange(1, 11)])
    points = torch.from_numpy(rng.uniform(0, 1, size=(40, 16, 16, 3))).float()
    points[..., 0] += torch.from_numpy(places)[:, None, None].float()
    selection = space_aware(points, 8, voxel_size=0.25)
    assert selection.coverage[-1] > selection.uniform_coverage + 0.3
    assert len({places[i] for i in selection.indices}) == 8


def test_voxel_size_mask_and_keep_first():
    points = torch.zeros(3, 1, 4, 3)
    points[:, 0, :, 0] = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0, 1, 2, 3], [0, 1, 2, 2.05]])
    points[0, 0, 0, 1] = 1.0
    selection = space_aware(points, 1, voxel_size=0.5, mode="reference")
    assert selection.indices == (1,) and selection.total_voxels == 5  # 0, 1, 2, 3 along x, and the one at y = 1
    mask = torch.ones(3, 1, 4, dtype=torch.bool)
    mask[1] = False
    assert space_aware(points, 1, mask=mask, voxel_size=0.5, mode="reference").indices == (2,)
    assert space_aware(points, 2, keep_first=True).order[0] == 0


def test_what_cannot_be_sampled_is_refused():
    points = torch.rand(2, 3, 3, 3)
    with pytest.raises(ValueError, match="no frame has a single valid"):
        space_aware(points, 2, mask=torch.zeros(2, 3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="k = 0"):
        space_aware(points, 0)
    with pytest.raises(ValueError, match="NaN"):
        space_aware(points, 1, torch.full((2, 3, 3), float("nan")), mode="reference")
    with pytest.raises(ValueError, match="not finite"):
        space_aware(points * float("inf"), 1, mode="reference")
    with pytest.raises(ValueError, match="voxel size"):
        space_aware(points, 1, voxel_size=0.0)


# ------------------------------------------------------------------------------------------------------ where points come from


def tilted_wall():
    """Two cameras at different places look at the plane z = 3 + 0.2 x (world), through ray casting done here by hand."""
    t, h, w = 2, 20, 30
    k = torch.tensor([[25.0, 0, 15], [0, 25, 10], [0, 0, 1]])
    poses = torch.eye(4).repeat(t, 1, 1)
    angle = 0.2
    poses[1, :3, :3] = torch.tensor([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    poses[1, :3, 3] = torch.tensor([0.4, -0.2, 0.1])
    v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    rays = torch.stack([(u - 15) / 25, (v - 10) / 25, torch.ones_like(u)], -1)
    depth = torch.empty(t, h, w)
    for i in range(t):
        d, o = rays @ poses[i, :3, :3].T, poses[i, :3, 3]
        depth[i] = (3 + 0.2 * o[0] - o[2]) / (d[..., 2] - 0.2 * d[..., 0])
    frames = torch.zeros(t, 3, h, w, dtype=torch.uint8)
    return Views(frames=frames, depth=depth, intrinsics=k.repeat(t, 1, 1), camera_to_world=poses, scale="metric")


def test_points_from_depth_lie_where_the_rays_met_the_wall():
    views = tilted_wall()
    points, valid = points_from_depth(views)
    assert valid.all()
    assert (points[..., 2] - 3 - 0.2 * points[..., 0]).abs().max() < 1e-5
    fewer, _ = points_from_depth(views, step=3)
    assert torch.allclose(fewer, points[:, ::3, ::3], atol=1e-5)
    views.depth[0, 4, 5], views.depth[1, 2, 3] = 0.0, float("nan")
    assert (~points_from_depth(views)[1]).nonzero().tolist() == [[0, 4, 5], [1, 2, 3]]
    with pytest.raises(ValueError, match="depth"):
        points_from_depth(Views(frames=views.frames))


def test_preprocess_for_vggt_follows_the_published_rules():
    def size(h, w):
        return tuple(preprocess_for_vggt(torch.zeros(1, 3, h, w, dtype=torch.uint8)).shape[2:])

    assert size(480, 640) == (392, 518)
    assert size(1080, 1920) == (294, 518)
    assert size(640, 480) == (392, 518)  # portrait is turned
    assert size(500, 500) == (518, 518)
    image = torch.zeros(1, 3, 56, 28, dtype=torch.uint8)
    image[:, :, :28] = 255  # bright above: after a clockwise quarter turn, bright to the right
    turned = preprocess_for_vggt(image, width=56)
    assert turned.shape == (1, 3, 28, 56) and turned[0, :, :, 40:].min() > 0.9 and turned[0, :, :, :16].max() < 0.1
    smooth = (np.add.outer(np.arange(60), np.arange(80)) * 255 / 138).astype(np.uint8)
    expected = np.asarray(Image.fromarray(smooth).resize((70, 56), Image.Resampling.BICUBIC)) / 255
    ours = preprocess_for_vggt(torch.from_numpy(smooth).expand(1, 3, 60, 80), width=70)
    assert np.abs(ours[0, 0].numpy() - expected).max() < 1e-6


@pytest.fixture(scope="module")
def vggt():
    torch.manual_seed(0)
    return VGGT(VGGTConfig.tiny()).eval()


def test_points_from_vggt_are_those_of_its_heads(vggt):
    patch, width = vggt.config.patch_size, 4 * vggt.config.patch_size
    frames = torch.randint(0, 256, (3, 3, 2 * patch, width), dtype=torch.uint8)  # this size needs no resizing
    with torch.no_grad():
        expected = vggt(frames[None].float() / 255)
    points, confidence = points_from_vggt(vggt, Views(frames=frames), "point_head", width)
    assert torch.allclose(points, expected.world_points[0]) and torch.allclose(confidence, expected.world_points_conf[0])

    points, confidence = points_from_vggt(vggt, iter(frames), "depth_camera", width)
    assert torch.allclose(confidence, expected.depth_conf[0])
    # seen from its own camera each point has the predicted depth, at its own pixel
    seen = torch.einsum("tij,thwj->thwi", expected.extrinsics[0, :, :, :3], points) + expected.extrinsics[0, :, None, None, :, 3]
    assert torch.allclose(seen[..., 2], expected.depth[0, ..., 0], rtol=1e-4, atol=1e-5)
    pixel = torch.einsum("tij,thwj->thwi", expected.intrinsics[0], seen / seen[..., 2:])
    assert torch.allclose(pixel[:, 5, 7, :2], torch.tensor([7.5, 5.5]).expand(3, 2), atol=1e-2)

    with pytest.raises(ValueError, match="needs depth_head; this model was built without"):
        points_from_vggt(VGGT(VGGTConfig.tiny(), heads=("camera", "point")), Views(frames=frames), "depth_camera", width)


def test_sample_a_video_through_vggt(vggt, tmp_path):
    video = write_video(tmp_path / "a.mp4", n=30)
    for source in ("point_head", "depth_camera"):
        selection, views = sample(video, k=4, candidates=10, model=vggt, source=source, width=4 * vggt.config.patch_size)
        assert selection.candidates == 10
        assert views.indices.tolist() == [uniform(30, 10)[i] for i in selection.indices]
        assert [number(f) for f in views.frames] == views.indices.tolist()  # at full size, from the video itself


# --------------------------------------------------------------------------------------------------------------- from a path


def test_sample_from_rgbd_and_video(tmp_path):
    folder = write_rgbd(tmp_path / "scene", n=6)
    selection, views = sample(folder, k=3)
    assert len(views) == 3 and views.indices.tolist() == [8 * i for i in selection.indices]
    assert selection.candidates == 6 and selection.coverage[-1] >= selection.uniform_coverage - 1e-9
    selection, views = sample(folder, k=3, method="uniform")
    assert selection is None and views.indices.tolist() == [0, 16, 40]

    video = write_video(tmp_path / "a.mp4", n=30)
    assert sample(video, k=4, method="uniform", candidates=10)[1].indices.tolist() == uniform(30, 4)
    with pytest.raises(ValueError, match="give a VGGT"):
        sample(video)
    with pytest.raises(ValueError, match="measured points need"):
        sample(video, source="measured")
    with pytest.raises(ValueError, match="found k = 0"):
        sample(video, k=0)


def test_uniform_frames_are_spread_over_the_source_itself(tmp_path):
    """Not over 128 candidates of it, and as many as are asked for."""
    video = write_video(tmp_path / "a.mp4", n=200)
    for k in (16, 150):
        assert sample(video, k, "uniform")[1].indices.tolist() == np.linspace(0, 199, k, dtype=int).tolist()
    folder = write_rgbd(tmp_path / "scene", n=12)
    assert (sample(folder, 7, "uniform", candidates=5)[1].indices // 8).tolist() == uniform(12, 7)


def test_more_frames_than_candidates_are_found_all_the_same(tmp_path, vggt):
    assert len(sample(write_rgbd(tmp_path / "scene", n=6), k=5, candidates=2)[1]) == 5
    video = write_video(tmp_path / "a.mp4", n=8)
    assert len(sample(video, k=5, candidates=2, model=vggt, width=4 * vggt.config.patch_size)[1]) == 5


def test_ties_go_by_time_where_there_is_one(tmp_path, monkeypatch):
    """Of measured points too: cameras that see the same are told apart by when, not by their place in the list."""
    still = tilted_wall().select([0, 0, 0, 0])
    timed = replace(still, times=torch.tensor([0.0, 1, 2, 50]), indices=torch.arange(4))
    monkeypatch.setattr(sampling, "open_views", lambda *given, **options: timed)
    assert sample(write_rgbd(tmp_path / "scene"), 3)[1].indices.tolist() == [0, 2, 3]


def test_images_of_several_sizes_are_refused_by_name(tmp_path, vggt):
    for i, size in enumerate([(64, 48), (64, 48), (48, 48)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    for method in ("uniform", "space_aware"):
        with pytest.raises(ValueError, match=r"images must have one size; 0\.png is 64x48, 2\.png is 48x48"):
            sample(tmp_path, 3, method, model=vggt)
    with pytest.raises(ValueError, match="frame 1 is 48x48, the first 64x48"):
        preprocess_for_vggt(torch.zeros(3, *size, dtype=torch.uint8) for size in ((48, 64), (48, 48)))


def test_sample_runs_vggt_as_it_is_told(vggt, tmp_path, monkeypatch):
    """The point source and the encoder's precision reach VGGT; the published code's are the point head and bfloat16."""
    told = []

    def points(model, frames, **how):
        told.append(how)
        return points_from_vggt(model, frames, **how)

    monkeypatch.setattr(sampling, "points_from_vggt", points)
    video = write_video(tmp_path / "a.mp4", n=6)
    width = 4 * vggt.config.patch_size
    full, _ = sample(video, 3, mode="reference", model=vggt, width=width)
    half, _ = sample(video, 3, mode="reference", model=vggt, source="depth_camera", width=width, autocast=torch.bfloat16)
    assert told == [
        {"source": "point_head", "width": width, "autocast": None},
        {"source": "depth_camera", "width": width, "autocast": torch.bfloat16},
    ]
    points, confidence = points_from_vggt(vggt, VideoFile(video).read(range(6)), "depth_camera", width, torch.bfloat16)
    assert half == space_aware(points, 3, confidence, mode="reference") != full


# ------------------------------------------------------------------------------------------------------------- pictures of it


def test_contact_sheet_shows_the_chosen_frames(tmp_path):
    selection, views = sample(write_rgbd(tmp_path / "scene", n=6), k=4)
    sheet = contact_sheet(views, selection, columns=2, cell_width=64)
    first = np.asarray(sheet)[54 : 54 + 48, 20 : 20 + 64]  # the first cell holds the first frame, pixel for pixel
    assert np.array_equal(first, views.frames[0].permute(1, 2, 0).numpy())
    taller = sheet.height - contact_sheet(views, None, columns=2, cell_width=64).height
    assert taller > 100  # the coverage curve


def test_a_map_of_relative_scale_claims_no_metres():
    scene = AnnotatedScene("s", (SceneObject(1, "bed", Box3D((0.0, 0.0, 0.2), (4.0, 2.0, 0.4))),))
    metric, relative = (np.asarray(topdown(scene, size=400, metric=metric)).astype(int) for metric in (True, False))
    (rows, _) = np.nonzero((metric != relative).any(-1))
    assert len(rows) > 20 and rows.min() > 0.8 * metric.shape[0], "the words beside the bar differ, and nothing else"


def test_topdown_draws_things_where_they_are():
    """A 10 x 5 m room with a box right of the middle: its colour right of the middle, floor left of it, +y up."""
    floor = np.array([[0.0, 0], [10, 0], [10, 5], [0, 5]])
    box = Box3D(center=(7.5, 3.75, 0.5), size=(2.0, 1.0, 1.0), label="bed")
    scene = AnnotatedScene("room", (SceneObject(1, "bed", box),), floor=(floor,))
    image = np.asarray(topdown(scene, size=572)).astype(int)  # 50 pixels to the metre

    def pixel(x, y):
        return image[image.shape[0] - 36 - round(50 * y), 36 + round(50 * x)]

    assert np.abs(pixel(2.3, 3.6) - FLOOR).max() < 12
    assert np.abs(pixel(7.5, 1.2) - FLOOR).max() < 12
    tint = (np.array(FLOOR) * 145 + np.array(label_color("bed")) * 110) / 255
    assert np.abs(pixel(6.8, 3.9) - tint).max() < 12
    with pytest.raises(ValueError, match="nothing to draw"):
        topdown(AnnotatedScene("void", ()))
