"""A person scanning a room: a smooth hand-held camera path through free space."""

from dataclasses import dataclass
from math import pi

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

from allocentric.rooms.layout import CELL, Room

Rng = np.random.Generator
TRIES = 5  # random walks of which the best is taken


@dataclass(frozen=True)
class Walk:
    """A camera path over `duration` seconds: splines for place and heading, sinusoids for the hand's shake."""

    duration: float
    knots: Float[np.ndarray, "k 2"]
    knot_times: Float[np.ndarray, " k"]
    yaw: Float[np.ndarray, " y"]
    height: float
    pitch: float
    shake: Float[np.ndarray, "5 3 3"]

    def poses(self, times: Float[np.ndarray, " t"]) -> Float[np.ndarray, "t 4 4"]:
        """camera_to_world at `times` seconds: OpenCV axes, world z up, metres."""
        s = np.clip(times / self.duration, 0, 1)
        x = np.interp(s, self.knot_times, self.knots[:, 0])
        y = np.interp(s, self.knot_times, self.knots[:, 1])
        yaw = np.interp(s, np.linspace(0, 1, len(self.yaw)), self.yaw)
        wobble = np.zeros((5, len(times)))
        for axis in range(5):
            for amplitude, rate, phase in self.shake[axis]:
                wobble[axis] += amplitude * np.sin(2 * pi * rate * times + phase)
        yaw = yaw + wobble[0]
        pitch = self.pitch + wobble[1]
        roll = wobble[2]
        z = self.height + wobble[3]
        forward = np.stack([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)], axis=1)
        right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=1)
        down = np.cross(forward, right)
        c, r = np.cos(roll)[:, None], np.sin(roll)[:, None]
        right, down = right * c + down * r, down * c - right * r
        out = np.zeros((len(times), 4, 4))
        out[:, :3, 0], out[:, :3, 1], out[:, :3, 2] = right, down, forward
        out[:, :3, 3] = np.stack([x, y, z], axis=1)
        out[:, 3, 3] = 1
        return out


def _path(free: np.ndarray, cost: np.ndarray, stops: list[tuple[int, int]]) -> np.ndarray:
    """Cheapest grid path through the stops, as (row, column) cells."""
    index = -np.ones(free.shape, int)
    cells = np.argwhere(free)
    index[free] = np.arange(len(cells))
    rows, cols, weights = [], [], []
    for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = index[: free.shape[0] - di, max(0, -dj) : free.shape[1] - max(0, dj)]
        b = index[di:, max(0, dj) : free.shape[1] + min(0, dj)]
        both = (a >= 0) & (b >= 0)
        i, j = a[both], b[both]
        w = np.hypot(di, dj) * (cost[free][i] + cost[free][j])
        rows += [i, j]
        cols += [j, i]
        weights += [w, w]
    graph = csr_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(cols))), shape=(len(cells),) * 2)
    starts = [index[s] for s in stops]
    _, back = dijkstra(graph, indices=starts[:-1], return_predecessors=True)
    out = [starts[0]]
    for k, goal in enumerate(starts[1:]):
        leg, at = [], goal
        while at != starts[k]:
            leg.append(at)
            at = back[k, at]
        out += leg[::-1]
    return cells[out]


def plan_walk(room: Room, rng: Rng) -> Walk:
    """The best of a few random walks: the one whose sixteen even samples see most objects, and those most often.

    One room is filmed from its sides, looking across it, or (one time in twelve) from within, turning around. Several rooms are
    walked through.
    """
    free, origin = room.free()
    depth = ndimage.distance_transform_edt(free)
    rooms = _room_masks(room, free, origin)
    across = len(rooms) == 1 and rng.random() < 0.92
    draw = _look_across if across else _draw
    candidates = [draw(room, free, depth, origin, rooms, rng) for _ in range(TRIES)]
    from allocentric.rooms.raycast import quick_visibility

    def score(w: Walk) -> float:
        seen = quick_visibility(room, w.poses(np.linspace(0, w.duration, 16)))
        if not seen.shape[1]:
            return 0.0
        objects, often = np.minimum(seen.max(axis=0) / 0.01, 1.0).sum(), (seen > 0.004).sum(axis=0).mean()
        return float(objects * np.sqrt(often)) if across else float(objects)

    return max(candidates, key=score)


def _look_across(
    room: Room, free: np.ndarray, depth: np.ndarray, origin: np.ndarray, rooms: list[np.ndarray], rng: Rng
) -> Walk:
    """A few steps along the side of a room, looking to its middle and from there left and right."""
    cells = np.argwhere(rooms[0])
    places = origin + (cells[:, ::-1] + 0.5) * CELL
    middle = places.mean(axis=0)
    outer = np.hypot(*(places - middle).T)
    outer = (outer / max(outer.max(), 1e-6)) ** 6
    pick = rng.choice(len(cells), p=outer / outer.sum())
    stops, reach = [tuple(cells[pick].tolist())], rng.uniform(0.6, 2.2)
    for _ in range(2):
        away = np.hypot(*(cells - cells[pick]).T) * CELL
        chance = np.exp(-(((away - reach / 2) / 0.35) ** 2)) * outer + 1e-9
        pick = rng.choice(len(cells), p=chance / chance.sum())
        stops.append(tuple(cells[pick].tolist()))
    path = _path(free, np.ones_like(depth), stops)
    points = _smooth(origin + (path[:, ::-1] + 0.5) * CELL, free, origin)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    points, along = points[along <= 4.0], along[along <= 4.0]
    if along[-1] > 0.05:
        times = along / along[-1]
    else:
        points, times = np.repeat(points[:1], 2, axis=0), np.array([0.0, 1.0])

    grain = 400
    s = np.linspace(0, 1, grain)
    xy = np.stack([np.interp(s, times, points[:, 0]), np.interp(s, times, points[:, 1])], axis=1)
    ahead = middle + rng.normal(0, 0.4, 2) - xy
    sweep = np.radians(rng.uniform(12, 36)) * np.sin(2 * pi * (rng.uniform(0.45, 0.9) * s + rng.uniform()))
    yaw = ndimage.gaussian_filter1d(np.unwrap(np.arctan2(ahead[:, 1], ahead[:, 0])) + sweep, grain * 0.018, mode="nearest")
    return _hand_held(room, points, times, yaw, rng)


def _room_masks(room: Room, free: np.ndarray, origin: np.ndarray) -> list[np.ndarray]:
    ny, nx = free.shape
    x, y = origin[0] + (np.arange(nx) + 0.5) * CELL, origin[1] + (np.arange(ny) + 0.5) * CELL
    out = []
    for x0, y0, x1, y1 in room.plan.rects:
        out.append(free & ((y > y0) & (y < y1))[:, None] & ((x > x0) & (x < x1))[None, :])
    return out


def _draw(room: Room, free: np.ndarray, depth: np.ndarray, origin: np.ndarray, rooms: list[np.ndarray], rng: Rng) -> Walk:
    order = list(range(len(rooms)))
    if len(order) > 1:
        if len(order) == 3:  # rooms 1 and 2 both open into room 0
            order = [1, 0, 2] if rng.random() < 0.5 else [2, 0, 1]
        elif rng.random() < 0.5:
            order.reverse()
    turn = 1.0 if rng.random() < 0.5 else -1.0
    total, start = rng.uniform(310, 400) * pi / 180, rng.uniform(-pi, pi)
    if len(order) == 1 and rng.random() < 0.8:
        stops = _around(room, free, depth, origin, start, turn * total, rng)
        return _finish(room, free, depth, origin, order, stops, start, turn, total, rng)
    reach = rng.uniform(1.5, 3.2)
    stops = []
    for k in order:
        cells = np.argwhere(rooms[k])
        chance = depth[rooms[k]] ** 0.7
        pick = cells[rng.choice(len(cells), p=chance / chance.sum())]
        for j in range(3 if len(order) == 1 else 2):
            if j:
                d = np.hypot(*(cells - pick).T) * CELL
                chance = np.exp(-(((d - reach / 2) / 0.35) ** 2)) * depth[rooms[k]] ** 0.5 + 1e-9
                pick = cells[rng.choice(len(cells), p=chance / chance.sum())]
            stops.append((int(pick[0]), int(pick[1])))
    return _finish(room, free, depth, origin, order, stops, start, turn, total, rng)


def _around(
    room: Room, free: np.ndarray, depth: np.ndarray, origin: np.ndarray, start: float, sweep: float, rng: Rng
) -> list[tuple[int, int]]:
    """Stops on a loop about the room's middle, each across the room from where the camera will look."""
    x0, y0, x1, y1 = room.plan.rects[0]
    middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + rng.normal(0, 0.2, 2)
    cut = room.plan.cuts[0]
    if cut is not None:
        middle += (middle - np.array([(cut[0] + cut[2]) / 2, (cut[1] + cut[3]) / 2])) * 0.3
    part = rng.uniform(0.35, 0.8)
    half = np.minimum(np.array([x1 - x0, y1 - y0]) / 2 - 0.4, 1.3) * part
    cells = np.argwhere(free)
    at = origin + (cells[:, ::-1] + 0.5) * CELL
    stops = []
    for s in np.linspace(0, 1, 6):
        angle = start + sweep * s
        goal = middle - half * np.array([np.cos(angle), np.sin(angle)])
        cost = np.hypot(*(at - goal).T) - 0.25 * np.minimum(depth[free] * CELL, 0.4)
        row, column = cells[np.argmin(cost)]
        stops.append((int(row), int(column)))
    return stops


def _finish(
    room: Room,
    free: np.ndarray,
    depth: np.ndarray,
    origin: np.ndarray,
    order: list[int],
    stops: list[tuple[int, int]],
    start: float,
    turn: float,
    total: float,
    rng: Rng,
) -> Walk:
    """A path through the stops, a heading and a hand."""
    cells = _path(free, 1.0 + 3.0 / (depth + 0.5), stops)
    points = origin + (cells[:, ::-1] + 0.5) * CELL
    points = _smooth(points, free, origin)
    step = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(step)])
    limit = 5.0 if len(order) == 1 else 3.2 + 2.2 * len(order)
    if along[-1] > limit and len(order) == 1:
        keep = along <= limit
        points, along = points[keep], along[keep]
    length = max(along[-1], 1e-6)
    times = along / length if length > 0.05 else np.linspace(0, 1, len(along))
    if len(order) > 1 and len(points) > 4:
        times = _share_time(room, points, along, len(order))
    if len(points) < 2:
        points, times = np.repeat(points[:1], 2, axis=0), np.array([0.0, 1.0])

    # Heading: a sweep in each room, with a change of pace; in the door, the way one walks.
    grain = 400
    s = np.linspace(0, 1, grain)
    xy = np.stack([np.interp(s, times, points[:, 0]), np.interp(s, times, points[:, 1])], axis=1)
    if len(order) == 1:
        pace = 1.0 + 0.55 * np.sin(2 * pi * (rng.uniform(0.6, 1.6) * s + rng.uniform()))
        if rng.random() < 0.35:  # look back for a moment
            at, wide = rng.uniform(0.25, 0.75), 0.07
            pace -= rng.uniform(1.2, 2.0) * np.exp(-(((s - at) / wide) ** 2))
        yaw = np.cumsum(pace)
        yaw = (yaw - yaw[0]) / abs(yaw[-1] - yaw[0]) * total * turn
        yaw += start
    else:
        yaw = _multi_room_heading(room, xy, s, order, turn, rng)
    yaw = ndimage.gaussian_filter1d(yaw, grain * 0.018, mode="nearest")
    return _hand_held(room, points, times, yaw, rng)


def _hand_held(room: Room, points: np.ndarray, times: np.ndarray, yaw: np.ndarray, rng: Rng) -> Walk:
    """The path as a person with a phone would film it: height, slight downward pitch, shake."""
    duration = float(rng.uniform(14, 26))
    shake = np.zeros((5, 3, 3))
    for axis, size in enumerate((0.012, 0.014, 0.012, 0.012, 0.0)):
        shake[axis, :, 0] = size * rng.uniform(0.3, 1.0, 3) * (1.0, 0.6, 0.25)
        shake[axis, :, 1] = rng.uniform((0.15, 0.7, 1.6), (0.5, 1.4, 2.6))
        shake[axis, :, 2] = rng.uniform(0, 2 * pi, 3)
    shake[1, 0, 0] += rng.uniform(0.02, 0.07)  # slow nodding
    height, pitch = rng.uniform(1.35, 1.7), -rng.uniform(0.24, 0.48)
    height = min(height, room.plan.height - 0.5)
    return Walk(duration, points, times, yaw, float(height), float(pitch), shake)


def _multi_room_heading(room: Room, xy: np.ndarray, s: np.ndarray, order: list[int], turn: float, rng: Rng) -> np.ndarray:
    """Each room is swept while the camera is in it; the sweep ends facing the way out."""
    inside = np.full(len(s), -1)
    for k, (x0, y0, x1, y1) in enumerate(room.plan.rects):
        inside[(xy[:, 0] > x0) & (xy[:, 0] < x1) & (xy[:, 1] > y0) & (xy[:, 1] < y1)] = k
    yaw = np.zeros(len(s))
    last = None
    for k in order:
        span = np.nonzero(inside == k)[0]
        if len(span) == 0:
            continue
        i, j = span[0], span[-1]
        out = xy[min(j + 12, len(s) - 1)] - xy[max(j - 6, 0)]
        leaving = float(np.arctan2(out[1], out[0])) if k != order[-1] else None
        sweep = rng.uniform(200, 260 if len(order) == 2 else 220) * pi / 180
        if last is None:
            end = leaving if leaving is not None else rng.uniform(-pi, pi)
            start = end - turn * sweep
        else:
            start, end = last, last + turn * sweep
            if leaving is not None:
                gap = (leaving - start) * turn % (2 * pi)
                end = start + turn * (gap if gap > pi * 0.8 else gap + 2 * pi)
        yaw[i : j + 1] = np.linspace(start, end, j + 1 - i)
        if last is not None and i > 0:
            door = i - 1
            while door >= 0 and inside[door] < 0:
                door -= 1
            yaw[door + 1 : i] = start
        last = end
        turn = -turn if rng.random() < 0.3 else turn
    tail = np.nonzero(inside == order[-1])[0]
    if len(tail):
        yaw[tail[-1] + 1 :] = yaw[tail[-1]]
    return yaw


def _share_time(room: Room, points: np.ndarray, along: np.ndarray, count: int) -> np.ndarray:
    """Path times in [0, 1] that give every room of a longer walk its due, however short the way through it."""
    middle = (points[1:] + points[:-1]) / 2
    step = np.diff(along)
    where = np.full(len(middle), -1)
    for k, (x0, y0, x1, y1) in enumerate(room.plan.rects):
        where[(middle[:, 0] > x0) & (middle[:, 0] < x1) & (middle[:, 1] > y0) & (middle[:, 1] < y1)] = k
    spent = np.where(where < 0, step * 0.06, 0.0)
    for k in range(len(room.plan.rects)):
        mine = where == k
        if mine.any():
            spent[mine] = (step[mine] + 1e-3) / (step[mine] + 1e-3).sum()
    times = np.concatenate([[0.0], np.cumsum(spent)])
    return times / times[-1]


def _smooth(points: np.ndarray, free: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Round off a grid path without leaving free space."""
    if len(points) < 5:
        return points
    p = points.copy()
    for _ in range(30):
        q = p.copy()
        q[1:-1] = (p[:-2] + 2 * p[1:-1] + p[2:]) / 4
        cell = ((q - origin) / CELL).astype(int)
        ok = free[np.clip(cell[:, 1], 0, free.shape[0] - 1), np.clip(cell[:, 0], 0, free.shape[1] - 1)]
        p = np.where(ok[:, None], q, p)
    return p


def walk(room: Room, n: int, rng: Rng) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, " n"]]:
    """`n` even samples of a hand-held walk: camera_to_world (OpenCV axes, metres, z up) and times in seconds."""
    path = plan_walk(room, rng)
    times = np.linspace(0, path.duration, n)
    return path.poses(times), times
