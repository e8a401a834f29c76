"""Which frames to look at: evenly in time, or those that together see the most of the place.

Space-aware sampling (Spatial-MLLM, section 3.2): put every candidate frame's 3D points into voxels and pick, one by one, the frame
that adds most voxels not seen yet (greedy maximum coverage; at least 1 - 1/e of the best possible).

    points, confidence = points_from_vggt(model, views)        # or points_from_depth(views) for a posed RGB-D capture
    selection = space_aware(points, k=16, confidence=confidence)
    chosen = views.select(selection.indices)

Each frame's voxels are one row of a bitmap, so that a pick is one AND and one popcount over packed words.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from allocentric.geometry.cameras import invert_rigid, unproject_depth
from allocentric.readers import Source, VideoFile, layout_of, open_images, open_views
from allocentric.readers.faults import check_options
from allocentric.readers.images import list_images, read_images
from allocentric.readers.layouts import READERS
from allocentric.views import Views, uniform_indices

CANDIDATES = 128  # frames the published sampler looks at
VOXELS_ACROSS = 20  # lambda in the paper: voxels along the shortest side of the scene
DENSE_VOXELS = 1 << 20  # up to this many voxels in the box, one bit each; beyond, only those that hold points
FLOAT32_EXACT = 1 << 24  # whole numbers up to this are exact in float32

uniform = uniform_indices


@dataclass(frozen=True)
class Selection:
    """Chosen frames, and what was gained by choosing them.

    indices            positions among the candidates, in time order: the earliest chosen frame is VGGT's reference frame.
    order              the same positions in the order they were picked.
    coverage           fraction of all voxels any candidate sees, after each pick.
    uniform_coverage   the same fraction for equally many evenly spread candidates.
    voxel_size         edge of a voxel, in the points' unit (metres where they are metric).
    total_voxels       voxels seen by any candidate.
    candidates         how many frames there were to choose from.
    """

    indices: tuple[int, ...]
    order: tuple[int, ...]
    coverage: tuple[float, ...]
    uniform_coverage: float
    voxel_size: float
    total_voxels: int
    candidates: int


# ------------------------------------------------------------------------------------------------------------ selection


def space_aware(
    points: Float[Tensor, "t h w 3"],
    k: int,
    confidence: Float[Tensor, "t h w"] | None = None,
    mask: Bool[Tensor, "t h w"] | None = None,
    mode: Literal["fill", "reference"] = "fill",
    voxel_size: float | int | None = None,
    times: Float[Tensor, " t"] | None = None,
    keep_first: bool = False,
) -> Selection:
    """Up to `k` frames whose points cover most voxels.

    points       world points of each pixel of each candidate frame.
    confidence   of each point; those below the median over all frames, or not above 0.1, are left out.
    mask         points to use (measured depth: where there is a measurement).
    mode         "fill": k frames always (as far as there are candidates); among equal gains, zero included, the frame
                 farthest in time from those chosen; points far outside the scene's bulk, or not finite, are left out.
                 "reference": exactly the frames that the published code selects for these points. It stops when nothing new is to
                 be seen, so it may return fewer than k; takes the earliest of equal gains; and a single stray point can blow up
                 its voxels.
    voxel_size   edge of a voxel; by default 1/20 of the scene's shortest side (extent of the points, in "fill" without the 1%
                 at either end).
    times        seconds, for "farthest in time"; positions are used where they are not given.
    keep_first   pick candidate 0 before all others ("fill" only).
    """
    t = len(points)
    if k < 1 or t < 1:
        raise ValueError(f"space-aware sampling: expected at least 1 frame and k >= 1, found {t} frames and k = {k}")
    if mode not in ("fill", "reference"):
        raise ValueError(f'space-aware sampling: expected mode "fill" or "reference", found {mode!r}')
    if mode == "reference" and keep_first:
        raise ValueError('space-aware sampling: keep_first is for mode "fill"; the published code has no such rule')
    if voxel_size is not None and not 0 < voxel_size < float("inf"):
        raise ValueError(f"space-aware sampling: expected a positive voxel size, found {voxel_size}")
    if times is not None and len(times) != t:
        raise ValueError(f"space-aware sampling: expected {t} times, found {len(times)}")

    valid = _valid_points(points, confidence, mask, only_finite=mode == "fill")
    low, high, shortest = _bulk_box(valid) if mode == "fill" else _bounding_box(valid)
    size = np.float32(voxel_size) if voxel_size is not None else shortest / np.float32(VOXELS_ACROSS)
    seen = voxel_bitmap(valid, low, high, size)
    when = np.arange(t, dtype=float) if times is None else times.double().cpu().numpy()
    if mode == "fill":
        order = greedy_coverage(seen, k, times=when, first=0 if keep_first else None)
    else:
        order = greedy_coverage(seen, k)
    total = int(_count(np.bitwise_or.reduce(seen, axis=0)))
    return Selection(
        indices=tuple(sorted(order)),
        order=tuple(order),
        coverage=tuple(coverage(seen, order)),
        uniform_coverage=coverage(seen, uniform(t, k))[-1],
        voxel_size=float(size),
        total_voxels=total,
        candidates=t,
    )


def greedy_coverage(
    seen: np.ndarray, k: int, times: Float[np.ndarray, " t"] | None = None, first: int | None = None
) -> list[int]:
    """Rows of a packed bitmap, uint64 (T, words), in the order of greedy maximum coverage.

    Without `times`: the first of equal gains, and stop when no row adds anything (as published).
    With `times`: the one farthest in time from those chosen, also when the gain is zero, until there are k.
    """
    gap = None if times is None else np.full(len(seen), np.inf)  # seconds to the nearest chosen frame
    missing = np.full(seen.shape[1], ~np.uint64(0))
    left = np.ones(len(seen), dtype=bool)
    order: list[int] = []
    while len(order) < min(k, len(seen)):
        gains = np.where(left, _count(seen & missing), -1)
        best = int(gains.argmax())
        if first is not None and not order:
            best = first
        elif gap is not None:
            best = int(np.where(gains == gains[best], gap, -1.0).argmax())
        elif gains[best] == 0:
            break
        order.append(best)
        left[best] = False
        missing &= ~seen[best]
        if gap is not None:
            gap = np.minimum(gap, np.abs(times - times[best]))
    return order


def coverage(seen: np.ndarray, indices: Sequence[int]) -> list[float]:
    """Fraction of the voxels any row sees that the first 1, 2, ... of these rows see together."""
    total = int(_count(np.bitwise_or.reduce(seen, axis=0)))
    together = np.bitwise_or.accumulate(seen[list(indices)], axis=0)
    return [float(n) / max(total, 1) for n in _count(together)]


def _count(bits: np.ndarray) -> np.ndarray | np.int64:
    """Set bits of each row."""
    return np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)


# --------------------------------------------------------------------------------------------------------------- voxels


def _valid_points(
    points: Float[Tensor, "t h w 3"],
    confidence: Float[Tensor, "t h w"] | None,
    mask: Bool[Tensor, "t h w"] | None,
    only_finite: bool,
) -> list[Float[Tensor, "_ 3"]]:
    """The points of each frame that count, float32."""
    points = points.detach().float().reshape(len(points), -1, 3)
    keep = None if mask is None else mask.reshape(len(points), -1)
    if confidence is not None:
        confidence = confidence.detach().float().reshape(len(points), -1)
        if only_finite:
            confidence = confidence.nan_to_num(nan=0.0, posinf=torch.finfo(torch.float32).max, neginf=0.0)
        elif confidence.isnan().any():
            raise ValueError("space-aware sampling: confidence holds NaN")
        threshold = _median(confidence if keep is None else confidence[keep])
        sure = (confidence >= threshold).logical_and_(confidence > 0.1)
        keep = sure if keep is None else keep & sure

    valid = []
    for i, frame in enumerate(points):
        if keep is not None:
            # Row numbers and then rows: six times faster than a boolean index. (NumPy where we can, its gather is quicker.)
            if frame.device.type == "cpu":
                frame = torch.from_numpy(frame.numpy().take(np.flatnonzero(keep[i].numpy()), axis=0))
            else:
                frame = frame[keep[i]]
        if only_finite and len(frame) and not frame.sum().isfinite():
            frame = frame[frame.isfinite().all(dim=1)]
        valid.append(frame)
    if not any(len(v) for v in valid):
        raise ValueError("space-aware sampling: no frame has a single valid 3D point")
    return valid


def _median(values: Float[Tensor, "*n"]) -> np.float32:
    """`np.percentile(values, 50)` of float32 values, to the bit, at a fraction of its cost.

    NumPy computes the rank in the dtype of the values. Beyond 2^24 of them that rounds, and may move the threshold by one value:
    a selection is only the published one if ours moves too.
    """
    flat = values.reshape(-1)
    if flat.numel() == 0:
        return np.float32(0)
    rank = (flat.numel() - 1) * np.true_divide(50, np.float32(100))
    below = int(np.floor(rank))
    fraction = np.float32(rank - np.floor(rank))
    if flat.device.type == "cpu":
        parted = np.partition(flat.numpy(), below)
        a = parted[below]
        b = parted[below + 1 :].min() if fraction else a
    else:
        a = np.float32(flat.kthvalue(below + 1).values.item())
        b = np.float32(flat.kthvalue(below + 2).values.item()) if fraction else a
    return np.float32(b - (b - a) * (1 - fraction)) if fraction >= 0.5 else np.float32(a + (b - a) * fraction)


Box = tuple[np.ndarray, np.ndarray, np.float32]  # lowest corner (3,), highest corner (3,), shortest side, all float32


def _bounding_box(valid: list[Float[Tensor, "_ 3"]]) -> Box:
    """Of all points, as published."""
    lows, highs = zip(*(_extremes(v) for v in valid if len(v)), strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError('space-aware sampling: there are points that are not finite (mode "fill" leaves them out)')
    return low, high, np.min(high - low)


def _extremes(points: Float[Tensor, "n 3"]) -> tuple[np.ndarray, np.ndarray]:
    if points.device.type != "cpu":
        low, high = points.aminmax(dim=0)
        return low.cpu().numpy(), high.cpu().numpy()
    array = points.numpy()
    # A reduction over rows of 3 does not vectorise. Over rows of 64 points it does.
    whole = len(array) // 64 * 64
    rows, rest = array[:whole].reshape(-1, 192), array[whole:]
    low = [rows.min(axis=0).reshape(64, 3)] if whole else []
    high = [rows.max(axis=0).reshape(64, 3)] if whole else []
    return np.concatenate([*low, rest]).min(axis=0), np.concatenate([*high, rest]).max(axis=0)


def _bulk_box(valid: list[Float[Tensor, "_ 3"]], tail: float = 1.0) -> Box:
    """Of the scene's bulk: outer 1% percentiles of each axis, then half as far again on each side.

    The percentiles set the scale and no stray point moves them. The margin takes back walls and ceilings that are real but rarely
    seen; what lies beyond it is an outlier. A frame is not: where the middle half of its points (a tenth of the usual number at
    least) lies elsewhere, in a room that no other frame shows, the box reaches there too.
    """
    step = max(1, sum(len(v) for v in valid) // 200_000)  # a fixed stride, so that the result is reproducible
    some = [v[::step].cpu().numpy() for v in valid]
    low, high = np.percentile(np.concatenate(some), [tail, 100 - tail], axis=0).astype(np.float32)
    extent = high - low
    margin = np.float32(0.5) * extent.max()
    sides = extent[extent > 1e-3 * extent.max()] if extent.max() > 0 else np.ones(1)  # a flat wall has two sides
    least = 0.1 * sum(map(len, some)) / len(some)
    middles = [np.percentile(points, [25, 75], axis=0).astype(np.float32) for points in some if len(points) >= least]
    low, high = np.minimum(low, np.min(middles, axis=0)[0]), np.maximum(high, np.max(middles, axis=0)[1])
    return low - margin, high + margin, np.float32(sides.min())


def voxel_bitmap(
    valid: list[Float[Tensor, "_ 3"]], low: np.ndarray, high: np.ndarray, size: np.float32
) -> np.ndarray:
    """Which voxels each frame's points fall into: one packed row a frame, one bit for each voxel any frame sees, uint64 (T, words).

    Points outside the box are left out.

    The arithmetic is the published one, float32 and in its order (subtract, divide, floor), so that a point on the edge of a
    voxel falls on the same side.
    """
    low, high, size = np.float32(low), np.float32(high), np.float32(size)
    if size == 0:  # flat along an axis: the published code's division by zero lands every point in one voxel
        dims = np.ones(3, dtype=np.int64)
    else:
        dims = np.floor((high - low) / size).astype(np.float64) + 1
        if not np.isfinite(dims).all() or np.prod(dims) >= 2**62:
            raise ValueError(f"space-aware sampling: voxels of {size:.3g} are too small for a scene of {(high - low).tolist()}")
        dims = dims.astype(np.int64)
    strides, cells = np.array([dims[1] * dims[2], dims[2], 1]), int(np.prod(dims))
    if cells <= DENSE_VOXELS:
        rows = np.zeros((len(valid), cells), dtype=bool)
        if valid[0].device.type == "cpu":
            for row, points in zip(rows, valid, strict=True):
                row[_keys(points.numpy(), low, high, size, strides, cells)] = True
        else:
            rows = _scatter(valid, low, high, size, strides, cells)
        rows = rows[:, rows.any(axis=0)]  # most of a room is air: a pick is the quicker for not looking there
    else:
        keys = [np.unique(_keys(points.cpu().numpy(), low, high, size, strides, cells)) for points in valid]
        names = np.unique(np.concatenate(keys))
        rows = np.zeros((len(valid), len(names)), dtype=bool)
        for row, key in zip(rows, keys, strict=True):
            row[np.searchsorted(names, key)] = True
    padded = np.zeros((len(rows), -(-rows.shape[1] // 64) * 64), dtype=bool)
    padded[:, : rows.shape[1]] = rows
    return np.packbits(padded, axis=1).view(np.uint64)


def _keys(
    points: np.ndarray, low: np.ndarray, high: np.ndarray, size: np.float32, strides: np.ndarray, cells: int
) -> np.ndarray:
    """One number per point, below `cells`: its voxel's place in the box."""
    if size == 0:
        return np.zeros(min(len(points), 1), dtype=np.int64)
    if not _all_inside(points, low, high):
        points = points[((points >= low) & (points <= high)).all(axis=1)]
    cell = points - low
    cell /= size
    np.floor(cell, out=cell)
    if cells <= FLOAT32_EXACT:  # a product of matrices is quickest in float32
        return (cell @ strides.astype(np.float32)).astype(np.int64)
    return cell.astype(np.int64) @ strides


def _all_inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    if len(points) == 0:
        return True
    lowest, highest = _extremes(torch.from_numpy(points))
    return bool((lowest >= low).all() and (highest <= high).all())


def _scatter(
    valid: list[Float[Tensor, "_ 3"]], low: np.ndarray, high: np.ndarray, size: np.float32, strides: np.ndarray, cells: int
) -> np.ndarray:
    """The dense rows, computed where the points are (a GPU)."""
    device = valid[0].device
    low, high = torch.from_numpy(low).to(device), torch.from_numpy(high).to(device)
    strides = torch.from_numpy(strides).to(device)
    size = torch.tensor(size, device=device)  # on the device: dividing by a Python number multiplies by a rounded reciprocal there
    rows = torch.zeros(len(valid), cells, dtype=torch.bool, device=device)
    for row, points in zip(rows, valid, strict=True):
        if size == 0:
            row[: min(len(points), 1)] = True
            continue
        points = points[((points >= low) & (points <= high)).all(dim=1)]
        row[(((points - low) / size).floor().long() * strides).sum(dim=1)] = True
    return rows.cpu().numpy()


# -------------------------------------------------------------------------------------------------------- where points come from


def points_from_depth(views: Views, step: int = 1) -> tuple[Float[Tensor, "t h w 3"], Bool[Tensor, "t h w"]]:
    """World points of measured depth, metres, and where there was a measurement; every `step`-th pixel each way."""
    missing = [f for f in ("depth", "intrinsics", "camera_to_world") if getattr(views, f) is None]
    if missing:
        raise ValueError(f"{views.source or 'views'}: measured points need depth, intrinsics and poses; {missing} not given")
    depth = views.depth[:, ::step, ::step].float()
    intrinsics = views.intrinsics.float() / torch.tensor([[step], [step], [1.0]])  # in pixels of every step-th
    points = _unproject(depth, intrinsics, views.camera_to_world.float(), pixel_center=0.5 / step)
    return points, torch.isfinite(depth) & (depth > 0)


def _unproject(
    depth: Float[Tensor, "t h w"], intrinsics: Float[Tensor, "t 3 3"], camera_to_world: Float[Tensor, "t 4 4"], pixel_center: float
) -> Float[Tensor, "t h w 3"]:
    """One frame at a time: the steps on the way would take several times the memory of the result."""
    points = torch.empty(*depth.shape, 3, device=depth.device)
    for i, frame in enumerate(depth):
        points[i] = unproject_depth(frame, intrinsics[i], camera_to_world[i], pixel_center)
    return points


def preprocess_for_vggt(
    frames: Iterable[UInt8[Tensor, "3 h w"]], width: int = 518, patch: int = 14
) -> Float[Tensor, "t 3 h2 w2"]:
    """Frames as the published sampler feeds them to VGGT, values 0 to 1.

    Portrait frames are turned 90 degrees clockwise; then the width becomes `width` and the height, in proportion, the nearest
    multiple of `patch` (bicubic, on 8-bit values).
    """
    images, size = [], None
    for i, frame in enumerate(frames):
        size = size or frame.shape
        if frame.shape != size:
            found = f"frame {i} is {frame.shape[2]}x{frame.shape[1]}, the first {size[2]}x{size[1]}"
            raise ValueError(f"points from VGGT: frames must have one size; {found}")
        image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
        if image.height > image.width:
            image = image.rotate(-90, expand=True)
        height = max(1, round(image.height * (width / image.width) / patch)) * patch
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255)
    return torch.stack(images)


@torch.no_grad()
def points_from_vggt(
    model: torch.nn.Module,
    views: Views | Iterable[UInt8[Tensor, "3 h w"]],
    source: Literal["point_head", "depth_camera"] = "point_head",
    width: int | None = None,
    autocast: torch.dtype | None = None,
) -> tuple[Float[Tensor, "t h w 3"], Float[Tensor, "t h w"]]:
    """World points of each frame and their confidence, from VGGT, in the frame of the first camera and VGGT's own scale.

    model      an `encoders.vggt.VGGT` (sampling stands before encoders and does not import them).
    source     "point_head": the point maps, as the published code. "depth_camera": depth unprojected through the predicted
               cameras, as the paper describes (it finds this the more accurate).
    width      frames are resized to this width; default: the model's `img_size` (518 in VGGT-1B, as published). Portrait frames
               are turned, see `preprocess_for_vggt`.
    autocast   dtype for the encoder; the published code runs torch.bfloat16. None: the model's own dtype.
    """
    needed = {"point_head": ("point",), "depth_camera": ("depth", "camera")}
    if source not in needed:
        raise ValueError(f'points from VGGT: expected source "point_head" or "depth_camera", found {source!r}')
    heads = needed[source]
    if missing := [f"{head}_head" for head in heads if getattr(model, f"{head}_head") is None]:
        raise ValueError(f"points from VGGT: source {source!r} needs {' and '.join(missing)}; this model was built without")
    frames = views.frames if isinstance(views, Views) else views
    images = preprocess_for_vggt(frames, width or model.config.img_size, model.config.patch_size)
    weight = next(model.parameters())
    images = images[None].to(weight.device, autocast or weight.dtype)
    with torch.autocast(weight.device.type, dtype=autocast, enabled=autocast is not None):
        output = model(images, heads=heads)
    if source == "point_head":
        return output.world_points[0].float(), output.world_points_conf[0].float()
    camera_to_world = invert_rigid(output.extrinsics[0])
    points = _unproject(output.depth[0, ..., 0].float(), output.intrinsics[0], camera_to_world, pixel_center=0.5)
    return points, output.depth_conf[0].float()


# ------------------------------------------------------------------------------------------------------- from a path, in one call


def sample(
    path: Source,
    k: int = 16,
    method: Literal["space_aware", "uniform"] = "space_aware",
    mode: Literal["fill", "reference"] = "fill",
    candidates: int = CANDIDATES,
    model: torch.nn.Module | None = None,
    source: Literal["auto", "measured", "point_head", "depth_camera"] = "auto",
    width: int | None = None,
    voxel_size: float | int | None = None,
    max_side: int | None = None,
    autocast: torch.dtype | None = None,
    **options,
) -> tuple[Selection | None, Views]:
    """The `k` chosen frames of what lies at `path`, at full size, and how they were chosen.

    method       "uniform": evenly spread over the source. "space_aware": those of the candidates that show most of the place.
    candidates   evenly spread frames to choose from, `k` at least. `Selection.indices` count among these; `Views.indices` are the
                 frames' numbers in the source.
    model        a VGGT with the heads `source` needs; not needed for a posed RGB-D capture.
    width        of the frames VGGT sees; see `points_from_vggt`.
    source       of the 3D points: "measured" depth and poses, VGGT's "point_head", VGGT's "depth_camera"; "auto" takes measured
                 ones where there are any and the point head where not.
    autocast     dtype for VGGT's encoder; see `points_from_vggt`.
    options      passed to the reader.

    The published code's frames are those of VGGT-1B with mode "reference", source "point_head" and autocast torch.bfloat16.
    Uniform sampling gives no `Selection`: nothing is known of what the frames cover.
    """
    if method not in ("space_aware", "uniform"):
        raise ValueError(f'sampling: expected method "space_aware" or "uniform", found {method!r}')
    if k < 1 or candidates < 1:
        raise ValueError(f"sampling: expected k >= 1 of at least 1 candidate, found k = {k} and {candidates} candidates")
    if method == "uniform":
        return None, open_views(path, k, max_side, **options)
    layout = layout_of(path)
    choose = partial(space_aware, k=k, mode=mode, voxel_size=voxel_size)
    look = partial(points_from_vggt, model, source="point_head" if source == "auto" else source, width=width, autocast=autocast)
    if layout in ("video", "images"):
        if source == "measured":
            raise ValueError(f"{path}: measured points need a posed RGB-D capture; this is read as {layout}")
        _check_given(model, path)
        return _sample_frames(path, layout, max(candidates, k), look, choose, max_side, options)
    views = open_views(path, max(candidates, k), max_side, **options)
    measured = all(given is not None for given in (views.depth, views.intrinsics, views.camera_to_world))
    if source == "measured" or (source == "auto" and measured):
        points, mask = points_from_depth(views)
        selection = choose(points, mask=mask, times=views.times)
    else:
        _check_given(model, path)
        points, confidence = look(views)
        selection = choose(points, confidence=confidence, times=views.times)
    return selection, views.select(list(selection.indices))


def _sample_frames(path, layout, candidates, look, choose, max_side, options):
    """`sample` of a video or of images: candidates pass through memory one by one, the chosen ones are read again at full size."""
    check_options(READERS[layout], options, path)
    video = VideoFile(path) if layout == "video" else None
    files = _image_files(path) if layout == "images" else []
    numbers = uniform(video.num_frames if video else len(files), candidates)
    name = str(path) if isinstance(path, (str, PathLike)) else f"list of {len(files)} images"
    points, confidence = look(video.read(numbers) if video else read_images([files[i] for i in numbers], name))
    selection = choose(points, confidence=confidence, times=torch.from_numpy(video.times[numbers]) if video else None)
    chosen = [numbers[i] for i in selection.indices]
    return selection, video.views(chosen, max_side) if video else open_images(files, chosen, max_side, **options)


def _check_given(model: torch.nn.Module | None, path: Source) -> None:
    if model is None:
        raise ValueError(
            f"{path}: space-aware sampling needs 3D points: give a VGGT (model= here, geometry= of `load`, --geometry of allo), "
            "or use uniform sampling"
        )


def _image_files(path: Source) -> list[Path]:
    if not isinstance(path, (str, PathLike)):
        return [Path(p) for p in path]
    return list_images(path) if Path(path).is_dir() else [Path(path)]
