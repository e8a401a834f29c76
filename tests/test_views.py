"""`Views`: selecting, and what `check_views` refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from allocentric.views import Views, check_views, pose_fault, uniform_indices


@pytest.fixture
def views():
    t, h, w = 3, 4, 6
    return Views(
        frames=torch.arange(t * 3 * h * w).reshape(t, 3, h, w).to(torch.uint8),
        depth=torch.ones(t, h, w),
        intrinsics=torch.tensor([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]]).expand(t, 3, 3).clone(),
        camera_to_world=torch.eye(4).expand(t, 4, 4).clone(),
        times=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64),
        indices=torch.tensor([10, 20, 30]),
        source="kitchen",
    )


def test_select_keeps_everything_together(views):
    chosen = views.select([2, 0])
    assert torch.equal(chosen.frames, views.frames[[2, 0]])
    assert chosen.indices.tolist() == [30, 10] and chosen.times.tolist() == [1.0, 0.0]
    assert chosen.source == "kitchen" and len(chosen) == 2
    assert Views(frames=views.frames).select([1]).depth is None


def test_uniform_indices_round_down_and_keep_both_ends():
    assert uniform_indices(10, 4) == [0, 3, 6, 9]
    assert uniform_indices(900, 16) == np.linspace(0, 899, 16, dtype=int).tolist()
    assert uniform_indices(3, 8) == [0, 1, 2]
    assert uniform_indices(5, 1) == [0]
    with pytest.raises(ValueError, match="at least 1 frame"):
        uniform_indices(0, 4)


def broken(views, field, index, value):
    tensor = getattr(views, field).clone()
    tensor[index] = value
    return replace(views, **{field: tensor})


def test_good_views_pass(views):
    assert check_views(views) is views


@pytest.mark.parametrize(
    ("field", "index", "value", "match"),
    [
        ("camera_to_world", (1, 0, 3), float("nan"), "pose of frame 20 .*not finite"),
        ("camera_to_world", (2, 0, 0), 1.5, "pose of frame 30 is not rigid"),
        ("camera_to_world", (0, 2, 2), -1.0, "pose of frame 10 is not rigid"),
        ("camera_to_world", (0, 3, 0), 0.1, "last row"),
        ("intrinsics", (1, 0, 0), 0.0, "intrinsics of frame 20"),
        ("intrinsics", (1, 0, 2), float("inf"), "intrinsics of frame 20"),
        ("depth", (2, 1, 1), -0.5, "frame 30 has negative depth"),
        ("times", (1,), 2.0, "times must not decrease"),
    ],
)
def test_bad_values_are_refused_by_name(views, field, index, value, match):
    with pytest.raises(ValueError, match=f"kitchen: .*{match}"):
        check_views(broken(views, field, index, value))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("depth", torch.ones(3, 2, 3), r"depth must have shape \(3, 4, 6\), found \(3, 2, 3\)"),
        ("times", torch.zeros(2), r"times must have shape \(3,\), found \(2,\)"),
        ("frames", torch.zeros(0, 3, 4, 6, dtype=torch.uint8), "there are no frames"),
        ("frames", torch.zeros(3, 3, 4, 6), "frames must be uint8"),
    ],
)
def test_shapes_that_disagree_are_refused(views, field, value, match):
    object.__setattr__(views, field, value)  # past the shape checks that tests run under and users do not
    with pytest.raises(ValueError, match=match):
        check_views(views)


def test_poses_of_real_trackers_pass():
    """Rotations stored with few digits are orthonormal to some 5e-4 only."""
    angle = 0.3
    pose = torch.eye(4, dtype=torch.float64)
    pose[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert pose_fault((pose * 1e3).round() / 1e3) is None
    assert "not rigid" in pose_fault(torch.diag(torch.tensor([1.0, 1.0, 1.1, 1.0])))
