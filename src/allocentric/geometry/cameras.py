"""Cameras: rotations, rigid motions, pose encodings, projection and unprojection.

Camera axes are OpenCV's (x right, y down, z forward). Pixel (0.5, 0.5) is the centre of the first pixel. Everything is
computed in float32 or better and without matrix products, so that autocast leaves it alone.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MIN_FOV = 1e-3  # radians; keeps focal lengths finite


def _at_least_float32(*tensors: Tensor) -> list[Tensor]:
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


def quaternion_to_matrix(quaternion: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrix of a quaternion (x, y, z, w), which need not have unit length; zero gives the identity."""
    (quaternion,) = _at_least_float32(quaternion)
    x, y, z, w = F.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternion (x, y, z, w) with w >= 0 of a rotation matrix.

    4 q q^T is linear in the matrix, and each of its rows is a multiple of q; the row with the largest diagonal is the
    best conditioned.
    """
    (matrix,) = _at_least_float32(matrix)
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    outer = [
        [1 + a - e - i, b + d, c + g, h - f],
        [b + d, 1 - a + e - i, f + h, c - g],
        [c + g, f + h, 1 - a - e + i, d - b],
        [h - f, c - g, d - b, 1 + a + e + i],
    ]
    outer = torch.stack([torch.stack(row, dim=-1) for row in outer], dim=-2)
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    quaternion = F.normalize(outer.take_along_dim(best, dim=-2).squeeze(-2), dim=-1)
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def invert_rigid(transform: Float[Tensor, "*batch rows 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverse of a rigid motion given as 4x4 or 3x4 (camera_to_world <-> world_to_camera)."""
    if transform.shape[-2] not in (3, 4):
        raise ValueError(f"rigid motion: found shape {tuple(transform.shape)}, expected (..., 3, 4) or (..., 4, 4)")
    (transform,) = _at_least_float32(transform)
    rotation = transform[..., :3, :3].mT
    translation = -(rotation * transform[..., None, :3, 3]).sum(-1, keepdim=True)
    last = transform.new_zeros(*transform.shape[:-2], 1, 4)
    last[..., 3] = 1
    return torch.cat([torch.cat([rotation, translation], dim=-1), last], dim=-2)


def encode_pose(
    extrinsics: Float[Tensor, "*batch 3 4"], intrinsics: Float[Tensor, "*batch 3 3"], size: tuple[int, int]
) -> Float[Tensor, "*batch 9"]:
    """Pose encoding of VGGT ("absT_quaR_FoV"): translation and quaternion (x, y, z, w) of the world-to-camera motion,
    vertical and horizontal field of view in radians.

    size   (height, width) in pixels. The principal point is taken to be the centre of the image and is not encoded.
    """
    extrinsics, intrinsics = _at_least_float32(extrinsics, intrinsics)
    height, width = size
    fov_y = 2 * torch.atan2(torch.full_like(intrinsics[..., 1, 1], height / 2), intrinsics[..., 1, 1])
    fov_x = 2 * torch.atan2(torch.full_like(intrinsics[..., 0, 0], width / 2), intrinsics[..., 0, 0])
    rotation = matrix_to_quaternion(extrinsics[..., :3])
    return torch.cat([extrinsics[..., 3], rotation, fov_y[..., None], fov_x[..., None]], dim=-1)


def decode_pose(
    pose: Float[Tensor, "*batch 9"], size: tuple[int, int]
) -> tuple[Float[Tensor, "*batch 3 4"], Float[Tensor, "*batch 3 3"]]:
    """Extrinsics (world to camera) and intrinsics (pixels) of a pose encoding; inverse of `encode_pose`."""
    (pose,) = _at_least_float32(pose)
    height, width = size
    extrinsics = torch.cat([quaternion_to_matrix(pose[..., 3:7]), pose[..., :3, None]], dim=-1)
    fov = pose[..., 7:].clamp(MIN_FOV, math.pi - MIN_FOV)
    focal_y, focal_x = (height / 2) / torch.tan(fov[..., 0] / 2), (width / 2) / torch.tan(fov[..., 1] / 2)
    zero, one = torch.zeros_like(focal_x), torch.ones_like(focal_x)
    intrinsics = torch.stack([focal_x, zero, one * (width / 2), zero, focal_y, one * (height / 2), zero, zero, one], dim=-1)
    return extrinsics, intrinsics.unflatten(-1, (3, 3))


def unproject_depth(
    depth: Float[Tensor, "*batch h w"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    camera_to_world: Float[Tensor, "*batch 4 4"] | None = None,
    pixel_center: float = 0.5,
    fill: float = math.nan,
) -> Float[Tensor, "*batch h w 3"]:
    """World points of a depth map (metres along z); camera coordinates without `camera_to_world`.

    pixel_center   place of a pixel's centre. 0.5 is this library's; 0.0 is that of code which counts pixels from (0, 0).
    fill           value of points without measurement (depth 0, negative or not finite). NaN keeps them from passing for
                   geometry; a loss that masks by multiplication wants 0.
    """
    depth, intrinsics = _at_least_float32(depth, intrinsics)
    height, width = depth.shape[-2:]
    column = torch.arange(width, device=depth.device, dtype=depth.dtype) + pixel_center
    row = torch.arange(height, device=depth.device, dtype=depth.dtype) + pixel_center
    k = intrinsics[..., None, None, :, :]
    # the last row of intrinsics is (0, 0, 1); skew is honoured
    y = (row[:, None] - k[..., 1, 2]) / k[..., 1, 1]
    x = (column - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    valid = (depth > 0) & depth.isfinite()
    z = torch.where(valid, depth, torch.ones_like(depth))  # before any arithmetic: no inf or NaN, not even in gradients
    points = torch.stack([x * z, y * z, z], dim=-1)
    if camera_to_world is not None:
        points = transform_points(points, camera_to_world[..., None, None, :, :])
    return torch.where(valid[..., None], points, torch.full_like(points, fill))


def transform_points(points: Float[Tensor, "*batch 3"], transform: Float[Tensor, "*batch2 rows 4"]) -> Float[Tensor, "*batch3 3"]:
    """Points moved by a 3x4 or 4x4 rigid motion; leading axes broadcast."""
    points, transform = _at_least_float32(points, transform)
    x, y, z = points[..., :1], points[..., 1:2], points[..., 2:]
    return x * transform[..., :3, 0] + y * transform[..., :3, 1] + z * transform[..., :3, 2] + transform[..., :3, 3]


def project(
    points: Float[Tensor, "*batch n 3"],
    intrinsics: Float[Tensor, "*batch 3 3"],
    camera_to_world: Float[Tensor, "*batch 4 4"] | None = None,
) -> tuple[Float[Tensor, "*batch n 2"], Float[Tensor, "*batch n"]]:
    """Pixels (x, y) of world points, and their depth along z; camera coordinates without `camera_to_world`.

    Points at or behind the camera plane have no pixel: NaN.
    """
    points, intrinsics = _at_least_float32(points, intrinsics)
    if camera_to_world is not None:
        points = transform_points(points, invert_rigid(camera_to_world)[..., None, :, :])
    z = points[..., 2]
    plane = points[..., :2] / torch.where(z > 0, z, torch.full_like(z, math.nan))[..., None]
    x, y = plane.unbind(-1)
    k = intrinsics[..., None, :, :]
    return torch.stack([k[..., 0, 0] * x + k[..., 0, 1] * y + k[..., 0, 2], k[..., 1, 1] * y + k[..., 1, 2]], dim=-1), z
