"""Cameras: rotations, pose encodings, projection and unprojection, against closed forms and an independent library."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from allocentric.geometry.cameras import (
    decode_pose,
    encode_pose,
    invert_rigid,
    matrix_to_quaternion,
    project,
    quaternion_to_matrix,
    unproject_depth,
)

SIZE = (48, 64)


def rotations(count: int = 200) -> Rotation:
    """Random ones, and those where a component of the quaternion vanishes."""
    halves = [
        Rotation.from_rotvec(np.pi * np.array(axis) / np.linalg.norm(axis)) for axis in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0])
    ]
    return Rotation.concatenate([Rotation.random(count, rng=0), Rotation.identity(), *halves])


def cameras() -> tuple[torch.Tensor, torch.Tensor]:
    """camera_to_world and intrinsics of a few cameras, the principal point at the centre."""
    turns = rotations(20)
    poses = torch.eye(4).repeat(len(turns), 1, 1)
    poses[:, :3, :3] = torch.from_numpy(turns.as_matrix()).float()
    poses[:, :3, 3] = torch.from_numpy(np.random.default_rng(1).normal(size=(len(turns), 3))).float()
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 60, 24], [0, 0, 1]]).repeat(len(turns), 1, 1)
    return poses, intrinsics


def test_quaternions_agree_with_scipy():
    turns = rotations()
    matrices, quaternions = torch.from_numpy(turns.as_matrix()), torch.from_numpy(turns.as_quat())
    assert torch.allclose(quaternion_to_matrix(quaternions), matrices, atol=1e-12)
    assert torch.allclose(quaternion_to_matrix(3 * quaternions), matrices, atol=1e-12)
    found = matrix_to_quaternion(matrices)
    assert torch.allclose((found * quaternions).sum(-1).abs(), torch.ones(len(turns), dtype=torch.float64), atol=1e-12)
    assert (found[:, 3] >= 0).all()


def test_zero_quaternion_is_the_identity_and_has_a_gradient():
    quaternion = torch.zeros(4, requires_grad=True)
    matrix = quaternion_to_matrix(quaternion)
    matrix.sum().backward()
    assert torch.equal(matrix, torch.eye(3)) and quaternion.grad.isfinite().all()


def test_inverse_of_rigid_motions():
    poses, _ = cameras()
    assert torch.allclose(invert_rigid(poses) @ poses, torch.eye(4).expand_as(poses), atol=1e-5)
    assert torch.allclose(invert_rigid(poses[:, :3]), invert_rigid(poses))
    with pytest.raises(ValueError, match=r"found shape \(2, 4\), expected"):
        invert_rigid(torch.zeros(2, 4))


def test_pose_encoding_round_trip():
    poses, intrinsics = cameras()
    extrinsics = invert_rigid(poses)[:, :3]
    encoded = encode_pose(extrinsics, intrinsics, SIZE)
    assert torch.allclose(encoded[:, 7], torch.tensor(2 * math.atan(24 / 60)))  # vertical first
    assert torch.allclose(encoded[:, 8], torch.tensor(2 * math.atan(32 / 50)))
    found_extrinsics, found_intrinsics = decode_pose(encoded, SIZE)
    assert torch.allclose(found_extrinsics, extrinsics, atol=1e-5)
    assert torch.allclose(found_intrinsics, intrinsics, rtol=1e-5)


def test_a_closed_field_of_view_still_gives_a_finite_camera():
    _, intrinsics = decode_pose(torch.zeros(1, 9), SIZE)
    assert intrinsics.isfinite().all()


def test_geometry_is_float32_under_autocast_and_from_bfloat16():
    poses, intrinsics = cameras()
    depth = torch.rand(len(poses), *SIZE) + 1
    exact = unproject_depth(depth, intrinsics, poses)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unproject_depth(depth, intrinsics, poses), exact)
        assert torch.equal(invert_rigid(poses), invert_rigid(poses).float())
    assert decode_pose(torch.ones(9, dtype=torch.bfloat16), SIZE)[0].dtype == torch.float32
    assert unproject_depth(depth.double(), intrinsics.double(), poses.double()).dtype == torch.float64


def test_unprojection_of_one_pixel_by_hand():
    intrinsics = torch.tensor([[10.0, 0, 2], [0, 10, 1], [0, 0, 1]])
    depth = torch.full((2, 4), 5.0)
    points = unproject_depth(depth, intrinsics)
    assert torch.allclose(points[1, 3], torch.tensor([(3.5 - 2) / 10 * 5, (1.5 - 1) / 10 * 5, 5]))
    from_corner = unproject_depth(depth, intrinsics, pixel_center=0.0)
    assert torch.allclose(from_corner[1, 3], torch.tensor([(3 - 2) / 10 * 5, 0, 5]))


def test_what_is_unprojected_projects_back():
    poses, intrinsics = cameras()
    depth = torch.rand(len(poses), *SIZE) * 4 + 0.5
    points = unproject_depth(depth, intrinsics, poses)
    pixels, found = project(points.flatten(1, 2), intrinsics, poses)
    row, column = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    assert torch.allclose(pixels, torch.stack([column, row], -1).flatten(0, 1).expand_as(pixels), atol=2e-3)
    assert torch.allclose(found, depth.flatten(1), atol=1e-4)


def test_missing_depth_is_not_a_point():
    intrinsics = torch.tensor([[10.0, 0, 2], [0, 10, 1], [0, 0, 1]])
    depth = torch.tensor([[0.0, math.nan, math.inf, -1.0], [1, 1, 1, 1]], requires_grad=True)
    points = unproject_depth(depth, intrinsics, torch.eye(4))
    assert points[0].isnan().all() and points[1].isfinite().all()
    zeros = unproject_depth(depth, intrinsics, torch.eye(4), fill=0.0)
    assert (zeros[0] == 0).all()
    zeros.sum().backward()
    assert depth.grad.isfinite().all() and (depth.grad[0] == 0).all()


def test_points_behind_the_camera_have_no_pixel():
    intrinsics = torch.tensor([[10.0, 0, 2], [0, 10, 1], [0, 0, 1]])
    pixels, depth = project(torch.tensor([[0.0, 0, 2], [1, 1, -1], [1, 1, 0]]), intrinsics)
    assert torch.equal(pixels[0], torch.tensor([2.0, 1.0])) and pixels[1:].isnan().all()
    assert torch.equal(depth, torch.tensor([2.0, -1.0, 0.0]))
