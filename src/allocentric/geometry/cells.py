"""What the cells of a token grid show: world points, viewing rays, and how much of each lies in a box.

The grid covers a window of the source picture (all of it, or what resizing and cropping leave). Depth is read where it is
needed, at `per_cell` x `per_cell` places of each cell, and only there unprojected. Everything is float32.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

PAIRS = 1 << 13  # pairs of box and cell looked at together: bounds memory


class Window(NamedTuple):
    """The part of a picture that the grid covers, in its pixels."""

    top: float | int
    left: float | int
    height: float | int
    width: float | int


class CellBounds(NamedTuple):
    """Least and greatest coordinates of each cell's points, and how many points it has; empty cells meet no box."""

    low: Float[Tensor, "cells 3"]
    high: Float[Tensor, "cells 3"]
    count: Int[Tensor, " cells"]


def sample_points(
    depth: Float[Tensor, "v h w"],
    intrinsics: Float[Tensor, "v 3 3"],
    camera_to_world: Float[Tensor, "v 4 4"],
    grid: tuple[int, int],
    per_cell: int = 14,
    window: Window | None = None,
) -> Float[Tensor, "v rows columns places 3"]:
    """World points at `per_cell` x `per_cell` places of each cell, spread evenly over the window; NaN without measurement.

    Each place takes the depth pixel it falls in and unprojects that pixel's centre: what unprojecting the whole picture and
    resizing the points to nearest would give. In memory x, y and z of all places lie apart: whatever reads one axis reads it whole.
    """
    height, width = depth.shape[-2:]
    window = window or Window(0.0, 0.0, float(height), float(width))
    (rows, columns), n = grid, per_cell
    row = _places(window.top, window.height, rows * n, height, depth.device)
    column = _places(window.left, window.width, columns * n, width, depth.device)
    k, pose = intrinsics.float(), camera_to_world.float()
    y = (row + 0.5 - k[:, 1, 2:]) / k[:, 1, 1:2]
    x = (column + 0.5 - k[:, 0, 2:]) / k[:, 0, :1]
    slant = -y * k[:, 0, 1:2] / k[:, 0, :1]
    right, down, ahead = pose[:, :3, :3, None].unbind(2)
    # the direction of a place (times its depth) is one part of its column and one of its row: nothing is computed twice
    of_column = (right * x[:, None]).view(-1, 3, 1, columns, 1, n)
    of_row = (right * slant[:, None] + down * y[:, None] + ahead).view(-1, 3, rows, 1, n, 1)
    points = depth.new_empty(3, len(depth), rows, columns, n, n, dtype=torch.float32)
    for view in range(len(depth)):  # a picture fits the cache
        z = depth[view].index_select(0, row).index_select(1, column).float()
        z.masked_fill_(~((z > 0) & (z < torch.inf)), torch.nan)
        z = z.view(rows, n, columns, n).transpose(1, 2).contiguous()
        for axis in range(3):
            direction = torch.add(of_row[view, axis], of_column[view, axis], out=points[axis, view])
            torch.addcmul(pose[view, axis, 3:], direction, z, out=direction)
    return points.flatten(4).permute(1, 2, 3, 4, 0)


def _places(start: float | int, length: float | int, count: int, pixels: int, device: torch.device) -> Int[Tensor, " count"]:
    """Pixels at the middles of `count` equal parts of an interval."""
    middles = start + (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * (length / count)
    return middles.floor().long().clamp(0, pixels - 1)


def cell_means(points: Float[Tensor, "v rows columns places 3"]) -> Float[Tensor, "v rows columns 3"]:
    """Mean of each cell's measured points; NaN where it has none."""
    return points.nanmean(dim=3)


def as_pictures(cells: Shaped[Tensor, "v rows columns places *channel"]) -> Shaped[Tensor, "v n m *channel"]:
    """What is known of the places of each cell, in rows and columns of places as in a picture."""
    side = math.isqrt(cells.shape[3])
    return cells.unflatten(3, (side, side)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


def unit_rays(
    x: Float[Tensor, "*batch"],
    y: Float[Tensor, "*batch"],
    intrinsics: Float[Tensor, "v 3 3"],
    camera_to_world: Float[Tensor, "v 4 4"],
) -> Float[Tensor, "v *batch 3"]:
    """Directions in the world, of length 1, from each camera through pixels (x, y) (S2-MLLM, equation 3)."""
    k = intrinsics.float().view(-1, *(1,) * x.ndim, 3, 3)
    across = (y - k[..., 1, 2]) / k[..., 1, 1]
    along = (x - k[..., 0, 2] - k[..., 0, 1] * across) / k[..., 0, 0]
    rays = torch.stack([along, across, torch.ones_like(along)], dim=-1)
    turn = camera_to_world.float().view(-1, *(1,) * x.ndim, 4, 4)
    turned = rays[..., :1] * turn[..., :3, 0] + rays[..., 1:2] * turn[..., :3, 1] + rays[..., 2:] * turn[..., :3, 2]
    return torch.nn.functional.normalize(turned, dim=-1)


def grid_rays(
    intrinsics: Float[Tensor, "v 3 3"], camera_to_world: Float[Tensor, "v 4 4"], grid: tuple[int, int], window: Window
) -> Float[Tensor, "v rows columns 3"]:
    """Rays through the middle of every cell."""
    rows, columns = grid
    y = window.top + (torch.arange(rows, device=intrinsics.device) + 0.5) * (window.height / rows)
    x = window.left + (torch.arange(columns, device=intrinsics.device) + 0.5) * (window.width / columns)
    return unit_rays(x.expand(rows, columns), y[:, None].expand(rows, columns), intrinsics, camera_to_world)


def cell_bounds(points: Float[Tensor, "cells places 3"]) -> CellBounds:
    """The box around each cell's points: what lets most pairs of box and cell go unlooked at. Kept per scene."""
    axes = [axis.aminmax(dim=1) for axis in points.unbind(-1)]
    low, high = (torch.stack(side, dim=1) for side in zip(*axes, strict=True))
    count = torch.full_like(low[:, 0], points.shape[1], dtype=torch.long)
    holes = low[:, 0].isnan().nonzero().squeeze(1)  # a cell with one unmeasured place has no bounds yet
    some = points[holes]
    missing = some[..., 0].isnan()
    low[holes] = some.masked_fill(missing[..., None], torch.inf).amin(1)
    high[holes] = some.masked_fill(missing[..., None], -torch.inf).amax(1)
    count[holes] = (~missing).sum(1)
    return CellBounds(low, high, count)


def box_shares(
    points: Float[Tensor, "cells places 3"], boxes: Float[Tensor, "k 7"], bounds: CellBounds | None = None
) -> Float[Tensor, "k cells"]:
    """Share of each cell's places whose point lies in each upright box (x, y, z, dx, dy, dz, yaw), sides included.

    Places without depth count as outside. A cell whose bounds miss a box has share 0 and one whose bounds lie in an aligned
    box has all of its points in it; only the pairs between are looked at point by point. The result is exact.
    """
    bounds = cell_bounds(points) if bounds is None else bounds
    boxes = boxes.to(points)
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    half = boxes[:, 3:6] / 2
    reach_x = cos.abs() * half[:, 0] + sin.abs() * half[:, 1]
    reach_y = sin.abs() * half[:, 0] + cos.abs() * half[:, 1]
    reach = torch.stack([reach_x, reach_y, half[:, 2]], dim=1)
    outer_low, outer_high = (boxes[:, :3] - reach).T[..., None], (boxes[:, :3] + reach).T[..., None]  # (3, k, 1)
    cell_low, cell_high = bounds.low.T[:, None].contiguous(), bounds.high.T[:, None].contiguous()  # (3, 1, cells)
    meets = _all_axes(cell_low, outer_high) & _all_axes(outer_low, cell_high)
    box, cell = meets.nonzero().unbind(1)
    inner = (bounds.low[cell] >= outer_low[:, box, 0].T) & (bounds.high[cell] <= outer_high[:, box, 0].T)
    within = inner.all(1) & (boxes[box, 6] == 0)

    shares = points.new_zeros(len(boxes), len(points))
    shares[box[within], cell[within]] = bounds.count[cell[within]] / points.shape[1]
    center = torch.stack([cos * boxes[:, 0] + sin * boxes[:, 1], cos * boxes[:, 1] - sin * boxes[:, 0], boxes[:, 2]], 1)
    low, high = center - half, center + half  # in the box's own axes
    axes = points.unbind(-1)
    for pairs in (~within).nonzero().squeeze(1).split(PAIRS):
        one, other = box[pairs], cell[pairs]
        x, y, z = (axis[other] for axis in axes)
        if (boxes[one, 6] != 0).any():
            c, s = cos[one, None], sin[one, None]
            x, y = c * x + s * y, c * y - s * x
        inside = _between(x, low[one, 0], high[one, 0]) & _between(y, low[one, 1], high[one, 1])
        shares[one, other] = (inside & _between(z, low[one, 2], high[one, 2])).sum(1) / points.shape[1]
    return shares


def _all_axes(less: Float[Tensor, "3 #k #cells"], more: Float[Tensor, "3 #k #cells"]) -> Bool[Tensor, "k cells"]:
    """Where each of x, y and z of the one is at most that of the other."""
    return (less[0] <= more[0]) & (less[1] <= more[1]) & (less[2] <= more[2])


def _between(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (value >= low[:, None]) & (value <= high[:, None])
