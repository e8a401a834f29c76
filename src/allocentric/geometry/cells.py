"""What the cells of a token grid show: world points, viewing rays, and how much of each lies in a box.

The grid covers a window of the source picture (all of it, or what resizing and cropping leave). Depth is read where it is
needed, at `per_cell` x `per_cell` places of each cell, and only there unprojected. Everything is float32.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allocentric.geometry.cameras import transform_points

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
) -> Float[Tensor, "v n m 3"]:
    """World points at (rows x per_cell, columns x per_cell) places spread evenly over the window; NaN without measurement.

    Each place takes the depth pixel it falls in and unprojects that pixel's centre: what unprojecting the whole picture and
    resizing the points to nearest would give.
    """
    height, width = depth.shape[-2:]
    window = window or Window(0.0, 0.0, float(height), float(width))
    rows = _places(window.top, window.height, grid[0] * per_cell, height, depth.device)
    columns = _places(window.left, window.width, grid[1] * per_cell, width, depth.device)
    chosen = depth[:, rows][:, :, columns].float()
    k = intrinsics.float()[:, None, None]
    y = (rows[:, None] + 0.5 - k[..., 1, 2]) / k[..., 1, 1]
    x = (columns + 0.5 - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    valid = (chosen > 0) & chosen.isfinite()
    z = torch.where(valid, chosen, torch.nan)
    return transform_points(torch.stack([x * z, y * z, z], dim=-1), camera_to_world[:, None, None])


def _places(start: float | int, length: float | int, count: int, pixels: int, device: torch.device) -> Int[Tensor, " count"]:
    """Pixels at the middles of `count` equal parts of an interval."""
    middles = start + (torch.arange(count, dtype=torch.float64, device=device) + 0.5) * (length / count)
    return middles.floor().long().clamp(0, pixels - 1)


def cell_means(points: Float[Tensor, "v n m 3"], per_cell: int) -> Float[Tensor, "v rows columns 3"]:
    """Mean of each cell's measured points; NaN where it has none."""
    return _cells(points, per_cell).nanmean(dim=3)


def cell_points(points: Float[Tensor, "v n m 3"], per_cell: int) -> Float[Tensor, "cells places 3"]:
    """The points of each cell side by side; cells in the order (view, row, column)."""
    return _cells(points, per_cell).flatten(0, 2).contiguous()


def _cells(points: Tensor, per_cell: int) -> Float[Tensor, "v rows columns places 3"]:
    v, n, m, _ = points.shape
    blocks = points.view(v, n // per_cell, per_cell, m // per_cell, per_cell, 3)
    return blocks.transpose(2, 3).flatten(3, 4)


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
    missing = points[..., 0].isnan()
    low = points.masked_fill(missing[..., None], torch.inf).amin(1)
    high = points.masked_fill(missing[..., None], -torch.inf).amax(1)
    return CellBounds(low, high, (~missing).sum(1))


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
    outer_low, outer_high = boxes[:, :3] - reach, boxes[:, :3] + reach
    meets = _all_axes(bounds.low[None] <= outer_high[:, None]) & _all_axes(bounds.high[None] >= outer_low[:, None])
    within = meets & _all_axes(bounds.low[None] >= outer_low[:, None]) & _all_axes(bounds.high[None] <= outer_high[:, None])
    within &= (boxes[:, 6] == 0)[:, None]

    counts = within * bounds.count
    center = torch.stack([cos * boxes[:, 0] + sin * boxes[:, 1], cos * boxes[:, 1] - sin * boxes[:, 0], boxes[:, 2]], 1)
    low, high = center - half, center + half  # in the box's own axes
    for pairs in (meets & ~within).nonzero().split(PAIRS):
        box, cell = pairs.unbind(1)
        x, y, z = points[cell].unbind(-1)
        c, s = cos[box, None], sin[box, None]
        inside = _between(c * x + s * y, low[box, 0], high[box, 0]) & _between(c * y - s * x, low[box, 1], high[box, 1])
        counts[box, cell] = (inside & _between(z, low[box, 2], high[box, 2])).sum(1)
    return counts / points.shape[1]


def _all_axes(flags: Bool[Tensor, "k cells 3"]) -> Bool[Tensor, "k cells"]:
    return flags[..., 0] & flags[..., 1] & flags[..., 2]


def _between(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return (value >= low[:, None]) & (value <= high[:, None])
