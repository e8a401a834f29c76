"""Structure, position and pooling of S2-MLLM: golden values, symmetries, and slow versions that must agree."""

import math

import pytest
import torch

from allocentric.fusion.structure import (
    GroundingHead,
    RayEncoding,
    StructureAttention,
    info_nce,
    pool_objects,
    sinusoidal_3d,
)
from allocentric.geometry.cameras import unproject_depth
from allocentric.geometry.cells import (
    Window,
    as_pictures,
    box_shares,
    cell_means,
    grid_rays,
    sample_points,
    unit_rays,
)


def trained(module):
    """The module after some training: nothing is zero any more."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.eval()


# ---- coordinates ----


def metres(*grid):
    return torch.tensor(grid) * 0.1 - torch.tensor([15.0, 15.0, 5.0])


def test_coordinates_have_the_published_values():
    code = sinusoidal_3d(metres(150, 150, 50), 3584)
    assert code[:4].tolist() == pytest.approx([-0.714876, 0.699251, -0.048730, -0.998812], abs=1e-5)
    assert code[2388:2390].tolist() == pytest.approx([-0.262375, 0.964966], abs=1e-5)
    assert code[-2:].tolist() == [0, 0]
    assert code.square().sum().item() == pytest.approx(1791, abs=1e-2)
    code = sinusoidal_3d(metres(162, 141, 57), 3584)
    assert code[:2].tolist() == pytest.approx([-0.978450, 0.206482], abs=1e-5)
    assert code[1194:1196].tolist() == pytest.approx([0.363171, -0.931722], abs=1e-5)


def test_coordinates_are_rounded_to_voxels_clamped_and_masked():
    here = sinusoidal_3d(torch.tensor([0.0, 0.0, 0.0]), 24)
    assert torch.equal(sinusoidal_3d(torch.tensor([0.04, -0.04, 0.04]), 24), here)
    assert not torch.equal(sinusoidal_3d(torch.tensor([0.06, 0.0, 0.0]), 24), here)
    assert not torch.equal(sinusoidal_3d(torch.tensor([0.04, 0.0, 0.0]), 24, voxel=None), here)
    assert torch.equal(sinusoidal_3d(torch.tensor([99.0, 0.0, -99.0]), 24), sinusoidal_3d(torch.tensor([15.0, 0.0, -5.0]), 24))
    assert not sinusoidal_3d(torch.tensor([0.0, math.nan, 0.0]), 24).any()


def test_published_rounding_moves_many_coordinates_by_a_voxel():
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 5
    moved = (sinusoidal_3d(points, 12) != sinusoidal_3d(points, 12, bfloat16=True)).any(-1).float().mean()
    assert 0.2 < moved < 0.9


def test_rays_have_the_published_values():
    k = torch.tensor([[[462.2965, 0.0, 191.6], [0.0, 462.2965, 191.6], [0.0, 0.0, 1.0]]])
    places = torch.tensor([13.0, 13.0 + 27 * 7])  # pixels counted from 0, as published
    rays = unit_rays(places, places, k, torch.eye(4)[None])[0]
    assert rays[0].tolist() == pytest.approx([-0.339031, -0.339031, 0.877563], abs=1e-5)
    assert rays[1].tolist() == pytest.approx([0.022485, 0.022485, 0.999494], abs=1e-5)


def test_rays_turn_with_the_camera_and_forget_its_place():
    k = torch.tensor([[[50.0, 0.0, 28.0], [0.0, 50.0, 28.0], [0.0, 0.0, 1.0]]])
    pose = torch.eye(4)[None].clone()
    pose[0, :3, :3] = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    window = Window(0, 0, 56, 56)
    straight = grid_rays(k, torch.eye(4)[None], (3, 3), window)
    turned = grid_rays(k, pose, (3, 3), window)
    assert torch.allclose(turned[0, 1, 1], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)
    assert torch.allclose(turned, straight @ pose[0, :3, :3].T, atol=1e-6)
    pose[0, :3, 3] = 7.0
    assert torch.equal(grid_rays(k, pose, (3, 3), window), turned)


def test_ray_encoding_starts_at_zero_has_a_gain_and_masks():
    encode = RayEncoding(8, hidden=6)
    assert not encode(torch.randn(3, 3)).any()
    strong = RayEncoding(8, hidden=6, gain=5.0)
    strong.load_state_dict(trained(encode).state_dict())
    rays = torch.randn(2, 4, 3)
    rays[0, 1] = math.nan
    assert torch.allclose(strong(rays), 5 * encode(rays))
    assert not encode(rays)[0, 1].any() and encode(rays)[1].any()


# ---- attention ----


def test_structure_starts_as_the_identity_and_every_last_layer_has_a_gradient():
    block, tokens = StructureAttention(24, 4), torch.randn(2, 3, 5, 24)
    out = block(tokens)
    assert torch.equal(out, tokens)
    out.square().sum().backward()
    for last in (block.inter_out, block.intra.proj, block.mlp.fc2):
        assert last.weight.grad.abs().sum() > 0


def test_structure_has_the_published_size():
    with torch.device("meta"):
        block = StructureAttention(1152, 12)
    assert sum(p.numel() for p in block.parameters()) == 22_583_808


def test_views_may_come_in_any_order_and_places_too():
    block, tokens = trained(StructureAttention(24, 4)), torch.randn(2, 3, 5, 24)
    out = block(tokens)
    views, places = torch.tensor([2, 0, 1]), torch.randperm(5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(block(tokens[:, views]), out[:, views], atol=1e-5)
    assert torch.allclose(block(tokens[:, :, places]), out[:, :, places], atol=1e-5)


def test_inter_view_attention_stays_at_a_place_and_intra_view_in_a_view():
    tokens = torch.randn(1, 3, 5, 24)
    changed = tokens.clone()
    changed[0, 1, 3] = torch.randn(24)  # one place of one view
    inter, intra = trained(StructureAttention(24, 4)), trained(StructureAttention(24, 4))
    for last in (inter.intra.proj, inter.mlp.fc2, intra.inter_out, intra.mlp.fc2):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    for block, reached in ((inter, {(0, 3), (1, 3), (2, 3)}), (intra, {(1, s) for s in range(5)})):
        moved = (block(changed) - block(tokens)).abs().sum(-1)[0] > 1e-6
        assert {tuple(place) for place in moved.nonzero().tolist()} == reached


def test_absent_views_are_not_looked_at():
    block, tokens = trained(StructureAttention(24, 4)), torch.randn(2, 3, 5, 24)
    present = torch.tensor([[True, True, False], [True, True, True]])
    out = block(tokens, present)
    assert torch.allclose(out[0, :2], block(tokens[:1, :2])[0], atol=1e-5)
    assert torch.allclose(out[1], block(tokens[1:])[0], atol=1e-5)


def test_scrambled_groups_are_those_of_the_published_code():
    """Frame-major tokens read as patch-major: group g over 'views' holds tokens gV .. gV+V-1 of the flat clip, and 'view' t
    every V-th token from t on, with the clip's first token as a further key."""
    v, s, d = 3, 5, 24
    block = trained(StructureAttention(d, 4, scrambled=True))
    flat = torch.randn(v * s, d)
    expected = flat.clone()
    for group in range(s):
        rows = torch.arange(group * v, (group + 1) * v)
        expected[rows] = flat[rows] + block.inter_out(block.inter(block.inter_norm(flat[rows])[None])[0])
    after_inter = expected.clone()
    for start in range(v):
        rows = torch.arange(start, v * s, v)
        seen = torch.cat([flat[:1], after_inter[rows]])
        expected[rows] = after_inter[rows] + block.intra(block.intra_norm(seen)[None])[0, 1:]
    expected = expected + block.mlp(block.mlp_norm(expected))
    assert torch.allclose(block(flat.view(1, v, s, d)).view(-1, d), expected, atol=1e-5)
    block.scrambled = False
    assert not torch.allclose(block(flat.view(1, v, s, d)).view(-1, d), expected, atol=1e-2)


# ---- objects and the head ----


def test_objects_are_means_over_their_cells_and_empty_ones_are_told():
    generator = torch.Generator().manual_seed(0)
    tokens, shares = torch.randn(2, 7, 4, generator=generator), torch.rand(2, 3, 7, generator=generator)
    shares[1, 2] = 0.4
    pooled, seen = pool_objects(tokens, shares, 0.5)
    for b in range(2):
        for k in range(3):
            cells = [tokens[b, c] for c in range(7) if shares[b, k, c] >= 0.5]
            assert bool(seen[b, k]) == bool(cells)
            assert torch.allclose(pooled[b, k], torch.stack(cells).mean(0) if cells else torch.zeros(4), atol=1e-6)
    assert seen.tolist()[1][2] is False


def test_the_head_compares_each_query_with_its_own_sample_and_leaves_out_padding():
    head = trained(GroundingHead(8))
    queries, objects = torch.randn(3, 8), torch.randn(2, 4, 8)
    candidate = torch.tensor([[True, True, True, False], [True] * 4])
    cosine = head(queries, objects, torch.tensor([0, 1, 1]), candidate)
    assert cosine.shape == (3, 5) and cosine[0, 3] == -torch.inf and cosine.isfinite().sum() == 14
    alone = head(queries[2:], objects[1:], torch.tensor([0]))
    assert torch.allclose(cosine[2], alone[0], atol=1e-6)
    key = torch.nn.functional.normalize(head.object_mlp(objects[1, 2]), dim=0)
    query = torch.nn.functional.normalize(head.query_mlp(queries[2]), dim=0)
    assert cosine[2, 2].item() == pytest.approx((key @ query).item(), abs=1e-6)


def test_info_nce_equals_its_formula_with_one_several_and_no_positives():
    cosine = torch.tensor([[0.5, -0.2, 0.1, 0.3]]).repeat(3, 1)
    cosine[0, 1] = -torch.inf
    positive = torch.tensor([[True, False, False, False], [True, False, True, False], [False] * 4])
    loss = info_nce(cosine, positive)
    e = (cosine / 0.07).exp()
    assert loss[0].item() == pytest.approx(-math.log(e[0, 0] / e[0].sum()), abs=1e-5)
    assert loss[1].item() == pytest.approx(-math.log((e[1, 0] + e[1, 2]) / e[1].sum()), abs=1e-5)
    assert loss[2].item() == pytest.approx(-math.log(e[2, 3] / e[2].sum()), abs=1e-5)
    assert info_nce(torch.tensor([[1.0, -1.0]]), torch.tensor([[False, True]])).item() == pytest.approx(2 / 0.07, rel=1e-4)


# ---- cells ----


def scene(v=2, h=24, w=32):
    generator = torch.Generator().manual_seed(0)
    depth = 1 + 3 * torch.rand(v, h, w, generator=generator)
    depth[:, :3] = 0  # not measured
    k = torch.tensor([[30.0, 0.0, 16.0], [0.0, 31.0, 12.0], [0.0, 0.0, 1.0]]).expand(v, 3, 3)
    pose = torch.eye(4).repeat(v, 1, 1)
    pose[1, :3, 3] = torch.tensor([1.0, -0.5, 0.2])
    return depth, k, pose


def test_sampled_points_are_those_of_the_whole_picture():
    depth, k, pose = scene()
    whole = unproject_depth(depth, k, pose)
    assert torch.allclose(as_pictures(sample_points(depth, k, pose, (6, 8), 4)), whole, atol=1e-6, equal_nan=True)
    coarse = as_pictures(sample_points(depth, k, pose, (3, 4), 2))
    assert torch.allclose(coarse, whole[:, 2::4, 2::4], atol=1e-6, equal_nan=True)
    part = as_pictures(sample_points(depth, k, pose, (2, 2), 4, Window(8, 16, 8, 8)))
    assert torch.allclose(part, whole[:, 8:16, 16:24], atol=1e-6, equal_nan=True)


def test_cell_means_leave_out_what_was_not_measured():
    depth, k, pose = scene()
    means = cell_means(sample_points(depth, k, pose, (6, 8), 4))
    first = unproject_depth(depth, k, pose)[0, :4, :4].reshape(-1, 3)
    assert torch.allclose(means[0, 0, 0], first[~first[:, 0].isnan()].mean(0))
    depth[0, :4, :4] = 0
    assert cell_means(sample_points(depth, k, pose, (6, 8), 4))[0, 0, 0].isnan().all()


def test_shares_of_boxes_equal_counting_point_by_point():
    depth, k, pose = scene()
    cells = sample_points(depth, k, pose, (6, 8), 4).flatten(0, 2)
    generator = torch.Generator().manual_seed(1)
    boxes = torch.cat([torch.randn(40, 3, generator=generator), 3 * torch.rand(40, 3, generator=generator), torch.zeros(40, 1)], 1)
    boxes[:, 2] += 2
    boxes[20:, 6] = torch.rand(20, generator=generator) * 6
    boxes[0, 3:6] = 100.0
    found = box_shares(cells, boxes)
    for b, (x, y, z, dx, dy, dz, yaw) in enumerate(boxes.tolist()):
        p = cells - torch.tensor([x, y, z])
        along = p[..., 0] * math.cos(yaw) + p[..., 1] * math.sin(yaw)
        across = p[..., 1] * math.cos(yaw) - p[..., 0] * math.sin(yaw)
        inside = (along.abs() <= dx / 2) & (across.abs() <= dy / 2) & (p[..., 2].abs() <= dz / 2)
        assert (found[b] - inside.float().mean(1)).abs().max() <= 1 / 16 + 1e-6  # a point on a side may round either way
        assert (found[b] == inside.float().mean(1)).float().mean() > 0.99
    assert found[0].max() == 1.0 and found[0].min() < 1.0  # cells that are partly unmeasured
