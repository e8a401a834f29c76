"""Where one can walk: free floor as a grid, and shortest walks on it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from allocentric.geometry.boxes import boxes_to_array, footprint_corners, into_footprint_frame
from allocentric.geometry.floor import HIGH, LOW, inside_polygon
from allocentric.graph.scene_graph import SceneGraph

CELL = 0.1  # metres
BODY = 0.1  # metres kept from what one passes: little, since one can turn sideways
BORDER = 0.5  # metres of floor assumed around the objects where no outline of the room is known


class FreeSpace:
    """Floor of a scene graph that no object stands on.

    origin    (x, y) of the corner of the first cell, metres.
    floor     bool (rows along y, columns along x): inside the room.
    free      the same, less what is in the way.
    """

    def __init__(self, graph: SceneGraph):
        rows = boxes_to_array(o.box for o in graph.objects if o.box is not None)
        outlines = [np.asarray(polygon, dtype=np.float64) for polygon in graph.floor]
        corners = footprint_corners(rows).reshape(-1, 2)
        around = np.concatenate([*outlines, graph.points, corners])
        if len(around) == 0:
            raise ValueError(f"{graph.name}: expected objects or a floor to find free space on, found neither")
        border = CELL if outlines else BORDER
        self.origin = around.min(0) - border
        columns, lines = np.ceil((around.max(0) + border - self.origin) / CELL).astype(int)
        x, y = (self.origin[k] + (np.arange(n) + 0.5) * CELL for k, n in enumerate((columns, lines)))
        self._centers = np.stack(np.meshgrid(x, y), axis=-1)
        flat = self._centers.reshape(-1, 2)
        inside = np.any([inside_polygon(flat, p) for p in outlines], axis=0) if outlines else np.ones(len(flat), dtype=bool)
        inside = inside.reshape(lines, columns)
        self.floor: Bool[np.ndarray, "r c"] = _joined(inside) if outlines else inside
        ground = (rows[:, 2] - rows[:, 5] / 2).min(initial=np.inf)
        low, high = rows[:, 2] - rows[:, 5] / 2 - ground, rows[:, 2] + rows[:, 5] / 2 - ground
        self.obstacles = rows[(low < HIGH) & (high > LOW)]
        self.free: Bool[np.ndarray, "r c"] = self.floor & ~self._covered(self.obstacles)

    @property
    def area(self) -> float:
        """Square metres of free floor."""
        return float(self.free.sum()) * CELL**2

    def walk(
        self,
        start: Sequence[float] | np.ndarray,
        end: Sequence[float] | np.ndarray,
        through: Float[np.ndarray, "k 7"] | None = None,
    ) -> Float[np.ndarray, "n 2"] | None:
        """Corners of the shortest walk from start to end, both included: two points when the straight way is free, None when there
        is no way.

        What covers an end is no obstacle (one walks up to an object, not into it), nor are the boxes in `through`.
        """
        start, end = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        blocking = self.obstacles
        ends = np.stack([start, end])
        covers_end = (np.abs(into_footprint_frame(ends[:, None], blocking[None])) <= blocking[:, 3:5] / 2 + BODY).all(-1).any(0)
        blocking = blocking[~covers_end]
        if through is not None and len(through):
            blocking = blocking[~(np.abs(blocking[:, None] - through[None]).max(-1) < 1e-9).any(1)]
        free = self.floor & ~self._covered(blocking)
        for point in ends:  # an end may lie in a wall: a window, a door
            free |= np.hypot(*(self._centers - point).transpose(2, 0, 1)) <= 4 * CELL
        if _clear(free, self._cell(start), self._cell(end)):
            return ends
        cells = _shortest(free, self._cell(start), self._cell(end))
        if cells is None:
            return None
        corners = _pulled(free, cells)
        inner = self.origin + (np.array(corners)[1:-1, ::-1] + 0.5) * CELL
        return np.concatenate([start[None], inner.reshape(-1, 2), end[None]])

    def _covered(self, boxes: np.ndarray) -> np.ndarray:
        inside = np.abs(into_footprint_frame(self._centers[:, :, None], boxes)) <= boxes[:, 3:5] / 2 + BODY
        return inside.all(-1).any(-1)

    def _cell(self, point: np.ndarray) -> tuple[int, int]:
        column, row = np.floor((point - self.origin) / CELL).astype(int)
        rows, columns = self.floor.shape
        return int(np.clip(row, 0, rows - 1)), int(np.clip(column, 0, columns - 1))


def _joined(inside: np.ndarray) -> np.ndarray:
    """Rooms are joined through their walls: gaps of up to 0.3 m between outlines count as floor."""
    _, count = ndimage.label(inside)
    if count < 2:
        return inside
    padded = np.pad(inside, 2)
    return ndimage.binary_closing(padded, np.ones((3, 3)), iterations=2)[2:-2, 2:-2] | inside


def _clear(free: np.ndarray, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether every cell on the straight line is free."""
    steps = 2 * max(abs(a[0] - b[0]), abs(a[1] - b[1])) + 1
    line = np.rint(np.linspace(a, b, steps)).astype(int)
    return bool(free[line[:, 0], line[:, 1]].all())


def _shortest(free: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]] | None:
    """Cells of the shortest 8-connected walk."""
    index = np.arange(free.size).reshape(free.shape)
    one, other, length = [], [], []
    rows, columns = free.shape
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = np.s_[: rows - down, max(0, -right) : columns - max(0, right)]
        there = np.s_[down:, max(0, right) : columns + min(0, right)]
        both = free[here] & free[there]
        one.append(index[here][both])
        other.append(index[there][both])
        length.append(np.full(both.sum(), np.hypot(down, right)))
    edges = coo_array((np.concatenate(length), (np.concatenate(one), np.concatenate(other))), shape=(free.size, free.size))
    _, before = dijkstra(edges.tocsr(), directed=False, indices=index[start], return_predecessors=True)
    at, cells = int(index[end]), []
    if at != index[start] and before[at] < 0:
        return None
    while at >= 0:
        cells.append(tuple(map(int, np.unravel_index(at, free.shape))))
        at = int(before[at])
    return cells[::-1]


def _pulled(free: np.ndarray, cells: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The walk as few straight legs: from each corner straight on to the last cell in sight."""
    corners, at = [cells[0]], 0
    while at < len(cells) - 1:
        ahead = next(i for i in range(len(cells) - 1, at, -1) if i == at + 1 or _clear(free, cells[at], cells[i]))
        corners.append(cells[ahead])
        at = ahead
    return corners
