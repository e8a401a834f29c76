"""The baseline of triplets: one global 10 x 10 grid for the whole place (the cognitive map of VSI-Bench).

    <map>
    bed(2,7)
    chair.2(6,3)
    r=6.4
    </map>

r is the grid's extent in metres.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from allocentric.graph.grammar import CLOSE, LONGEST_LINE, OBJECT, OPEN, map_lines
from allocentric.graph.solve import Layout
from allocentric.graph.triplets import GRID, SMALLEST, Node, Triplet

LINE = re.compile(OBJECT, re.ASCII)
EXTENT = re.compile(r"r\s*=\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*m?", re.ASCII)


@dataclass(frozen=True)
class GridMap:
    """What stands in which cell.

    nodes, cells   (label, instance) and (x, y) of each object, x to the right, y ahead.
    extent         metres along the grid; None when unknown.
    n_lines        lines that were there to be read (as many as there are objects, when made and not read),
    n_bad          and how many of them were dropped.
    """

    nodes: tuple[Node, ...] = ()
    cells: tuple[tuple[int, int], ...] = ()
    extent: float | None = None
    n_lines: int = 0
    n_bad: int = 0

    def layout(self) -> Layout:
        """Every object in the middle of its cell, metres where the extent is known."""
        cell = 1.0 if self.extent is None else self.extent / GRID
        points = cell * (np.array(self.cells, dtype=np.float64).reshape(-1, 2) + 0.5)
        sigma = np.full(len(points), cell / np.sqrt(12))
        return Layout(self.nodes, points, sigma, np.zeros(0), (), self.extent is not None)

    def triplets(self) -> list[Triplet]:
        """The same places three at a time, all on the one grid; none when there are fewer than three objects."""
        return [Triplet(self.nodes[i : i + 3], self.cells[i : i + 3], self.extent) for i in range(len(self.nodes) - 2)]


def grid_map(nodes: Sequence[Node], points: Float[np.ndarray, "n 2"]) -> GridMap:
    """Points in metres on one grid: one scale for both axes, the shorter one centred, as triplets have it."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(points) == 0:
        return GridMap()
    low = points.min(0)
    extent = max(float((points.max(0) - low).max()), SMALLEST)
    cells = np.clip(np.floor(GRID * (points - low) / extent), 0, GRID - 1).astype(int)
    cells += (GRID - 1 - cells.max(0)) // 2
    return GridMap(tuple(nodes), tuple(map(tuple, cells.tolist())), max(round(extent, 1), SMALLEST), len(points))


def write_grid(grid: GridMap) -> str:
    """The text of a grid; `parse_grid` is its inverse."""
    repeated = {label for label, instance in grid.nodes if instance > 1}
    lines = [
        f"{label}{f'.{instance}' if label in repeated else ''}({x},{y})\n"
        for (label, instance), (x, y) in zip(grid.nodes, grid.cells, strict=True)
    ]
    extent = "" if grid.extent is None else f"r={grid.extent:.1f}\n"
    return f"{OPEN}\n{''.join(lines)}{extent}{CLOSE}"


def parse_grid(text: str) -> GridMap:
    """The objects in a text. Never raises: lines that cannot be read, and second places for one object, are dropped."""
    lines = [line.lower() for line in map_lines(text)[0]]
    places: dict[Node, tuple[int, int]] = {}
    extent, bad = None, 0
    for line in lines:
        if found := EXTENT.fullmatch(line):
            extent = float(found[1]) or None
            continue
        found = LINE.fullmatch(line) if len(line) <= LONGEST_LINE else None
        if found is None or len(found[2] or "") > 6 or int(found[2] or 1) < 1:
            bad += 1
            continue
        node = (" ".join(found[1].split()), int(found[2] or 1))
        bad += node in places
        places.setdefault(node, (int(found[3]), int(found[4])))
    return GridMap(tuple(places), tuple(places.values()), extent, len(lines), bad)
