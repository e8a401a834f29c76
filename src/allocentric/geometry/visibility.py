"""What each frame shows of each object, from depth, boxes and poses."""

import numpy as np
from jaxtyping import Float, Int

MARGIN = 0.05  # metres a measured surface may lie outside the box of its object
MOST_ROWS = 120  # depth is looked at on a grid of about this many rows


def box_visibility(
    boxes: Float[np.ndarray, "n 7"],
    depth: Float[np.ndarray, "t h w"],
    intrinsics: Float[np.ndarray, "t 3 3"],
    camera_to_world: Float[np.ndarray, "t 4 4"],
    margin: float = MARGIN,
) -> Float[np.ndarray, "t n"]:
    """Fraction of the image that shows each object in each frame, float64.

    A pixel shows an object when the point it measured lies in the object's box grown by `margin` metres on every side, and
    shows one object only: of several boxes that hold the point, the smallest. What is hidden behind something else has no
    point, and so is not seen; pixels without measurement show nothing. Frames with many rows are looked at on a coarser grid.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if not (len(depth) == len(intrinsics) == len(camera_to_world)):
        raise ValueError(
            f"visibility: expected as many of each, found {len(depth)} depth maps, {len(intrinsics)} intrinsics, "
            f"{len(camera_to_world)} poses"
        )
    owners = box_owners(boxes, depth, intrinsics, camera_to_world, margin)
    seen = np.zeros((len(depth), len(boxes)))
    for row, owner in zip(seen, owners, strict=True):
        row[:] = np.bincount(owner[owner >= 0], minlength=len(boxes)) / owner.size
    return seen


def box_owners(
    boxes: Float[np.ndarray, "n 7"],
    depth: Float[np.ndarray, "t h w"],
    intrinsics: Float[np.ndarray, "t 3 3"],
    camera_to_world: Float[np.ndarray, "t 4 4"],
    margin: float = MARGIN,
) -> Int[np.ndarray, "t h2 w2"]:
    """The object that each pixel of a coarser grid shows, as a position in `boxes`; -1 for none."""
    step = max(1, round(depth.shape[1] / MOST_ROWS))
    rows, columns = np.arange(step // 2, depth.shape[1], step), np.arange(step // 2, depth.shape[2], step)
    order = np.argsort(boxes[:, 3:6].prod(1), kind="stable")  # smallest first: argmax below finds the first that holds the point
    sorted_boxes = boxes[order]
    half = sorted_boxes[:, 3:6] / 2 + margin
    cos, sin = np.cos(sorted_boxes[:, 6]), np.sin(sorted_boxes[:, 6])
    owners = np.full((len(depth), len(rows), len(columns)), -1, dtype=np.int64)
    if len(boxes) == 0:
        return owners
    for t in range(len(depth)):  # a frame at a time: points x boxes is what takes memory
        z = np.asarray(depth[t])[rows[:, None], columns].astype(np.float64)
        measured = np.isfinite(z) & (z > 0)
        k = np.asarray(intrinsics[t], dtype=np.float64)
        y = ((rows + 0.5)[:, None] - k[1, 2]) / k[1, 1]
        x = ((columns + 0.5) - k[0, 2] - k[0, 1] * y) / k[0, 0]
        camera = np.stack([(x * z)[measured], (y * z)[measured], z[measured]], axis=1)
        pose = np.asarray(camera_to_world[t], dtype=np.float64)
        offset = (camera @ pose[:3, :3].T + pose[:3, 3])[:, None] - sorted_boxes[:, :3]
        along = np.abs(cos * offset[..., 0] + sin * offset[..., 1])
        across = np.abs(cos * offset[..., 1] - sin * offset[..., 0])
        inside = (along <= half[:, 0]) & (across <= half[:, 1]) & (np.abs(offset[..., 2]) <= half[:, 2])
        owners[t][measured] = np.where(inside.any(1), order[inside.argmax(1)], -1)
    return owners
