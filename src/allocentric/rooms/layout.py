"""Floor plans, placement, and `Room`: a furnished scene as labelled objects and as triangles."""

from dataclasses import dataclass, field, replace
from math import atan2, cos, pi, sin

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from allocentric.geometry.boxes import Box3D, box_corners
from allocentric.rooms import furniture as make
from allocentric.rooms.furniture import CATALOG, FIXTURES, Kind
from allocentric.rooms.mesh import TEXTURES, Material, Mesh, Pair, Real, Triple
from allocentric.scenes import AnnotatedScene, SceneObject

CELL = 0.1  # metres per cell of the free-space grid
CLEARANCE = 0.34  # metres kept between the camera and anything it could bump into
WALL = 0.12  # metres of wall between rooms
TALLEST = 2.15  # metres: furniture is not stretched beyond it

Rng = np.random.Generator
Rect = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Furniture:
    """One placed object: its triangles in its own frame (base centre at the origin) and where that frame stands.

    `support` is the id of the object it stands on, 0 for floor and walls.
    """

    id: int
    label: str
    triangles: Float[np.ndarray, "n 3 3"]
    materials: tuple[Material, ...]
    material: Int[np.ndarray, " n"]
    size: Triple
    position: Triple
    yaw: Real
    room: int
    support: int = 0

    @property
    def box(self) -> Box3D:
        """The tight upright box in world metres."""
        x, y, z = self.position
        return Box3D((x, y, z + self.size[2] / 2), self.size, self.yaw, self.label)


@dataclass(frozen=True)
class Plan:
    """Rooms as a rectangle each, less an optional corner rectangle; openings join rooms through a wall. Metres."""

    rects: tuple[Rect, ...]
    cuts: tuple[Rect | None, ...]
    openings: tuple[tuple[int, int, Rect], ...]
    height: Real
    opening_height: float

    def polygon(self, k: int) -> Float[np.ndarray, "v 2"]:
        """Floor outline of room `k`, counter-clockwise."""
        x0, y0, x1, y1 = self.rects[k]
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        cut = self.cuts[k]
        if cut is not None:
            a0, b0, a1, b1 = cut
            inner = {(x0, y0): [(a0, b1), (a1, b1), (a1, b0)], (x1, y0): [(a0, b0), (a0, b1), (a1, b1)],
                     (x1, y1): [(a1, b0), (a0, b0), (a0, b1)], (x0, y1): [(a1, b1), (a1, b0), (a0, b0)]}  # fmt: skip
            corners = [p for c in corners for p in (inner[c] if a0 <= c[0] <= a1 and b0 <= c[1] <= b1 else [c])]
        return np.array(corners, dtype=np.float64)

    def area(self, k: int) -> float:
        """Floor area of room `k`, square metres."""
        p = self.polygon(k)
        q = np.roll(p, -1, axis=0)
        return float(0.5 * np.sum(p[:, 0] * q[:, 1] - q[:, 0] * p[:, 1]))


@dataclass
class Room:
    """A furnished scene: one to three joined rooms. World metres, z up; everything follows from `seed` and `style`.

    `objects` are annotated; walls, floors, ceilings and ceiling lamps are not (id 0 in images).
    """

    name: str
    seed: int
    plan: Plan
    objects: tuple[Furniture, ...]
    shell: "Surface"
    lamps: Float[np.ndarray, "r 4"]
    windows: dict[int, tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"], Float[np.ndarray, "3"]]]
    look: dict[str, float]
    _surface: "Surface | None" = field(default=None, repr=False)
    _scene: EmbreeScene | None = field(default=None, repr=False)

    @property
    def floor(self) -> tuple[Float[np.ndarray, "v 2"], ...]:
        """Floor outline of each room, counter-clockwise, metres."""
        return tuple(self.plan.polygon(k) for k in range(len(self.plan.rects)))

    @property
    def area(self) -> float:
        """Total floor area, square metres."""
        return sum(self.plan.area(k) for k in range(len(self.plan.rects)))

    def surface(self) -> "Surface":
        """All triangles of the scene with their look."""
        if self._surface is None:
            self._surface = join([self.shell, *[placed_surface(o) for o in self.objects]])
        return self._surface

    def scene(self) -> EmbreeScene:
        """The ray-casting structure over `surface()`."""
        if self._scene is None:
            self._scene = EmbreeScene()
            TriangleMesh(self._scene, self.surface().triangles)
        return self._scene

    def keep(self, ids: set[int]) -> "Room":
        """The room with only these objects, and what stands on a removed object removed too; ids become 1..n."""
        kept, order = [], {0: 0}
        for o in self.objects:
            if o.id in ids and o.support in order:
                order[o.id] = len(order)
                kept.append(replace(o, id=order[o.id], support=order[o.support]))
        return replace(self, objects=tuple(kept), _surface=None, _scene=None)

    def free(self) -> tuple[Bool[np.ndarray, "ny nx"], Float[np.ndarray, "2"]]:
        """Cells (CELL metres) where a camera may be, and the world xy of the grid's corner."""
        grid = FreeGrid(self.plan)
        for o in self.objects:
            grid.add(o)
        return grid.largest(), grid.origin

    def annotate(
        self,
        visibility: Float[np.ndarray, "t n"] | None = None,
        camera_to_world: Float[np.ndarray, "t 4 4"] | None = None,
        min_visible: float = 0.0,
    ) -> AnnotatedScene:
        """The scene's ground truth. With `visibility` (fraction of the image, columns in the order of `objects`), objects
        that never reach `min_visible` are left out."""
        keep = range(len(self.objects))
        if visibility is not None:
            best = visibility.max(axis=0) if len(visibility) else np.zeros(len(self.objects))
            keep = [i for i in keep if best[i] >= min_visible and best[i] > 0]
            visibility = visibility[:, keep]
        objects = tuple(SceneObject(self.objects[i].id, self.objects[i].label, self.objects[i].box) for i in keep)
        return AnnotatedScene(self.name, objects, visibility, camera_to_world, self.floor, self.area)


# --------------------------------------------------------------------------------------------------------- surfaces


@dataclass(frozen=True)
class Surface:
    """Triangles (metres) with per-triangle id, room, material, unit normal and texture frame, plus a material table.

    Texture coordinates of a point p are `p @ axes[k].T + offset[k]`, in periods of the texture.
    """

    triangles: Float[np.ndarray, "n 3 3"]
    normal: Float[np.ndarray, "n 3"]
    id: Int[np.ndarray, " n"]
    room: Int[np.ndarray, " n"]
    material: Int[np.ndarray, " n"]
    axes: Float[np.ndarray, "n 2 3"]
    offset: Float[np.ndarray, "n 2"]
    color: Float[np.ndarray, "m 3"]
    second: Float[np.ndarray, "m 3"]
    texture: Int[np.ndarray, " m"]
    glow: Float[np.ndarray, " m"]


def surface_of(
    triangles: Float[np.ndarray, "n 3 3"],
    materials: list[Material] | tuple[Material, ...],
    material: Int[np.ndarray, " n"],
    id: int,
    room: int,
    position: Triple = (0.0, 0.0, 0.0),
    yaw: Real = 0.0,
) -> Surface:
    """Local triangles (metres) set at `position` and `yaw`, with texture frames that follow the object."""
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    r = np.array([[cos(yaw), -sin(yaw), 0.0], [sin(yaw), cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    t = np.asarray(position, float)
    e = np.eye(3)
    frames = np.stack([np.stack([e[1], e[2]]), np.stack([e[0], e[2]]), np.stack([e[0], e[1]])])
    scale = np.array([m.scale for m in materials])[material]
    axes = frames[np.abs(normal).argmax(axis=1)] @ r.T / scale[:, None, None]
    n = len(triangles)
    return Surface(
        (triangles @ r.T + t).astype(np.float32), (normal @ r.T).astype(np.float32), np.full(n, id, np.int32),
        np.full(n, room, np.int32), material, axes.astype(np.float32), (-(axes @ t)).astype(np.float32),
        np.array([m.color for m in materials], np.float32), np.array([m.second for m in materials], np.float32),
        np.array([TEXTURES.index(m.texture) for m in materials], np.int32), np.array([m.glow for m in materials], np.float32),
    )  # fmt: skip


def placed_surface(o: Furniture) -> Surface:
    """The triangles of one object in the world."""
    return surface_of(o.triangles, o.materials, o.material, o.id, o.room, o.position, o.yaw)


def join(parts: list[Surface]) -> Surface:
    """One surface from several; material tables are stacked."""
    shift = np.cumsum([0, *[len(p.color) for p in parts[:-1]]])
    columns = {k: np.concatenate([getattr(p, k) for p in parts]) for k in Surface.__dataclass_fields__ if k != "material"}
    return Surface(material=np.concatenate([p.material + s for p, s in zip(parts, shift, strict=True)]).astype(np.int32), **columns)


# ------------------------------------------------------------------------------------------------------- free space


class FreeGrid:
    """Where a camera can walk: inside the rooms and their openings, CLEARANCE away from walls and furniture."""

    def __init__(self, plan: Plan) -> None:
        x0 = min(r[0] for r in plan.rects)
        y0 = min(r[1] for r in plan.rects)
        x1 = max(r[2] for r in plan.rects)
        y1 = max(r[3] for r in plan.rects)
        self.plan = plan
        self.origin = np.array([x0, y0])
        self.x = x0 + (np.arange(int(np.ceil((x1 - x0) / CELL))) + 0.5) * CELL
        self.y = y0 + (np.arange(int(np.ceil((y1 - y0) / CELL))) + 0.5) * CELL
        self.mask = np.zeros((len(self.y), len(self.x)), bool)
        self.rooms = []
        for rect, cut in zip(plan.rects, plan.cuts, strict=True):
            inside = self._inside(rect, -CLEARANCE)
            if cut is not None:
                inside &= ~self._inside(cut, CLEARANCE)
            self.rooms.append(inside)
            self.mask |= inside
        self.doors = []
        for _, _, (a0, b0, a1, b1) in plan.openings:
            along_x = (a1 - a0) < (b1 - b0)  # the wall is crossed along x
            reach, side = CLEARANCE + 0.1, 0.28
            channel = (a0 - reach, b0 + side, a1 + reach, b1 - side) if along_x else (a0 + side, b0 - reach, a1 - side, b1 + reach)
            cells = self._inside(channel, 0.0)
            self.doors.append(cells)
            self.mask |= cells

    def _inside(self, rect: Rect, grow: Real) -> Bool[np.ndarray, "ny nx"]:
        x0, y0, x1, y1 = rect
        inx = (self.x > x0 - grow) & (self.x < x1 + grow)
        iny = (self.y > y0 - grow) & (self.y < y1 + grow)
        return iny[:, None] & inx[None, :]

    def covered(self, center: tuple[Real, ...], size: tuple[Real, ...], yaw: Real) -> Bool[np.ndarray, "ny nx"]:
        """Cells within CLEARANCE of an upright box's footprint."""
        dx, dy = self.x[None, :] - center[0], self.y[:, None] - center[1]
        c, s = cos(yaw), sin(yaw)
        u = np.maximum(np.abs(dx * c + dy * s) - size[0] / 2, 0)
        v = np.maximum(np.abs(dy * c - dx * s) - size[1] / 2, 0)
        return u * u + v * v < CLEARANCE * CLEARANCE

    def add(self, o: Furniture) -> None:
        """Block the cells around an object that stands in a walker's way."""
        if blocks(o.label, o.position[2], o.size[2]):
            self.mask &= ~self.covered(o.position, o.size, o.yaw)

    def largest(self, mask: Bool[np.ndarray, "ny nx"] | None = None) -> Bool[np.ndarray, "ny nx"]:
        """The largest connected piece of free space."""
        mask = self.mask if mask is None else mask
        labels, n = ndimage.label(mask)
        if n == 0:
            return mask
        return labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])

    def passable(self, mask: Bool[np.ndarray, "ny nx"]) -> bool:
        """Whether one connected piece reaches every opening and leaves enough of every room to walk in."""
        piece = self.largest(mask)
        if any(not (piece & d).any() for d in self.doors):
            return False
        return all((piece & r).sum() >= max(90, 0.22 * r.sum()) for r in self.rooms)


def blocks(label: str, z: Real, height: Real) -> bool:
    """Whether an object with its base at `z` metres keeps a walking camera out of its footprint."""
    return z < 1.75 and z + height > 0.06 and label not in ("door", "window", "picture", "clock", "mirror")


# ------------------------------------------------------------------------------------------------------------- plans


def draw_plan(rng: Rng) -> Plan:
    """A random floor plan of one to three rooms, 10 to 45 square metres."""
    count = rng.choice((1, 2, 3), p=(0.9, 0.08, 0.02))
    height, opening = rng.uniform(2.35, 3.0), rng.uniform(2.0, 2.15)

    def sides(low: float, high: float) -> Pair:
        area, aspect = np.exp(rng.uniform(np.log(low), np.log(high))), rng.uniform(1.0, 1.9)
        short = max(2.5, np.sqrt(area / aspect))
        pair = (area / short, short)
        return pair if rng.random() < 0.5 else pair[::-1]

    w, d = sides(10.5, 42.0) if count == 1 else sides(9.5, 19.0)
    rects: list[Rect] = [(0.0, 0.0, float(w), float(d))]
    cuts: list[Rect | None] = [None]
    openings = []
    if count == 1 and w * d > 15 and min(w, d) > 3.4 and rng.random() < 0.36:
        cw, cd = w * rng.uniform(0.28, 0.5), d * rng.uniform(0.28, 0.5)
        cw, cd = min(cw, w - 2.2), min(cd, d - 2.2)
        left, low = rng.random() < 0.5, rng.random() < 0.5
        x0, y0 = 0.0 if left else w - cw, 0.0 if low else d - cd
        cuts[0] = (float(x0), float(y0), float(x0 + cw) if left else float(w), float(y0 + cd) if low else float(d))
    across = rng.random() < 0.5
    flip = rng.random() < 0.5
    for k in range(1, count):
        a, b = sides(8.5, 15.0)
        gap = rng.uniform(0.85, 1.3)
        along, deep = (a, b)
        span = d if across else w
        shift = rng.uniform(-0.3, 0.3) * along + (span - along) / 2
        shift = float(np.clip(shift, -along + gap + 0.7, span - gap - 0.7))
        lo, hi = max(0.0, shift) + 0.3, min(span, shift + along) - 0.3
        start = rng.uniform(lo, max(lo, hi - gap))
        after = (k == 1) != flip
        if across:
            x0 = w + WALL if after else -WALL - deep
            rects.append((float(x0), shift, float(x0 + deep), float(shift + along)))
            ox = (float(w), float(w + WALL)) if after else (-WALL, 0.0)
            openings.append((0, k, (ox[0], float(start), ox[1], float(start + gap))))
        else:
            y0 = d + WALL if after else -WALL - deep
            rects.append((shift, float(y0), float(shift + along), float(y0 + deep)))
            oy = (float(d), float(d + WALL)) if after else (-WALL, 0.0)
            openings.append((0, k, (float(start), oy[0], float(start + gap), oy[1])))
        cuts.append(None)
    return Plan(tuple(rects), tuple(cuts), tuple(openings), float(height), float(opening))


def _edges(plan: Plan, k: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """Walls of room `k`: start, unit direction, inward normal, length. The inside is on the left."""
    p = plan.polygon(k)
    out = []
    for a, b in zip(p, np.roll(p, -1, axis=0), strict=True):
        length = float(np.linalg.norm(b - a))
        u = (b - a) / length
        out.append((a, u, np.array([-u[1], u[0]]), length))
    return out


def build_shell(plan: Plan, rng: Rng) -> Surface:
    """Floors, walls with their openings, baseboards, ceilings and ceiling lamps."""
    parts = []
    h, oh = plan.height, plan.opening_height
    for k in range(len(plan.rects)):
        m = Mesh()
        wall = make._hue(rng, (0.02, 0.35), (0.72, 0.96)) if rng.random() < 0.8 else make._hue(rng, (0.2, 0.55), (0.45, 0.8))
        accent = make._hue(rng, (0.1, 0.6), (0.35, 0.85)) if rng.random() < 0.35 else wall
        style = rng.random()
        if style < 0.72:
            walls = Material(wall)
        elif style < 0.86:
            walls = Material(wall, make._shade(wall, 0.88), "stripes", rng.uniform(0.2, 0.5))
        else:
            walls = Material(wall, make._shade(wall, 0.86), "tiles", rng.uniform(0.25, 0.5))
        accented = Material(accent)
        kind = rng.choice(4, p=(0.45, 0.2, 0.25, 0.1))
        if kind == 0:
            c = make._jitter(rng, make._WOODS[rng.integers(7)], 0.08)
            floor = Material(c, make._shade(c, 0.72), "planks", rng.uniform(0.12, 0.22))
        elif kind == 1:
            c = make._hue(rng, (0.0, 0.3), (0.5, 0.92))
            floor = Material(c, make._shade(c, 0.7), "tiles", rng.uniform(0.3, 0.6))
        elif kind == 2:
            c = make._hue(rng, (0.05, 0.4), (0.35, 0.8))
            floor = Material(c, make._shade(c, 0.88), "speckle", 0.02)
        else:
            c = make._hue(rng, (0.0, 0.2), (0.6, 0.9))
            floor = Material(c, make._hue(rng, (0.0, 0.3), (0.25, 0.6)), "checker", rng.uniform(0.3, 0.5))
        ceiling = Material(make._hue(rng, (0.0, 0.06), (0.86, 0.97)))
        board = Material(make._hue(rng, (0, 0.1), (0.8, 0.95))) if rng.random() < 0.6 else make.wood(rng)
        edges = _edges(plan, k)
        special = int(rng.integers(len(edges)))
        for e, (a, u, n, length) in enumerate(edges):
            holes = _holes(plan, k, a, u, n, length)
            paint = accented if e == special else walls
            spans, at = [], 0.0
            for s0, s1 in holes:
                spans.append((at, s0, 0.0, h))
                spans.append((s0, s1, oh, h))
                at = s1
            spans.append((at, length, 0.0, h))
            for s0, s1, z0, z1 in spans:
                p, q = a + u * s0, a + u * s1
                m.sheet(np.array([(*p, z0), (*q, z0), (*q, z1), (*p, z1)]), paint)
                if z0 == 0.0 and s1 - s0 > 0.1:
                    i, j = p + n * 0.015, q + n * 0.015
                    m.sheet(np.array([(*i, 0), (*j, 0), (*j, 0.08), (*i, 0.08)]), board)
                    m.sheet(np.array([(*i, 0.08), (*j, 0.08), (*q, 0.08), (*p, 0.08)]), board)
        for x0, y0, x1, y1 in _pieces(plan, k):
            for z, mat in ((0.0, floor), (h, ceiling)):
                m.sheet(np.array([(x0, y0, z), (x1, y0, z), (x1, y1, z), (x0, y1, z)]), mat)
        if k == 0:
            frame = Material(make._hue(rng, (0, 0.12), (0.75, 0.95)))
            for _, _, (x0, y0, x1, y1) in plan.openings:
                m.sheet(np.array([(x0, y0, 0.001), (x1, y0, 0.001), (x1, y1, 0.001), (x0, y1, 0.001)]), floor)
                m.sheet(np.array([(x0, y0, oh), (x1, y0, oh), (x1, y1, oh), (x0, y1, oh)]), frame)
                if x1 - x0 < y1 - y0:
                    ends = [((x0, y), (x1, y)) for y in (y0, y1)]
                else:
                    ends = [((x, y0), (x, y1)) for x in (x0, x1)]
                for p, q in ends:
                    m.sheet(np.array([(*p, 0), (*q, 0), (*q, oh), (*p, oh)]), frame)
        cx, cy = _middle(plan, k)
        m.lathe((cx, cy), [(0.02, h - 0.12), (0.16, h - 0.1), (0.2, h - 0.03), (0.2, h)], Material((1.0, 0.97, 0.9), glow=1.0), 14)
        materials, index = m.materials()
        parts.append(surface_of(m.triangles(), materials, index, 0, k))
    return join(parts)


def _pieces(plan: Plan, k: int) -> list[Rect]:
    """Room `k` as one or two rectangles."""
    x0, y0, x1, y1 = plan.rects[k]
    cut = plan.cuts[k]
    if cut is None:
        return [plan.rects[k]]
    a0, b0, a1, b1 = cut
    low = b0 == y0
    rest = (x0, b1, x1, y1) if low else (x0, y0, x1, b0)
    side = (a1, b0, x1, b1) if a0 == x0 else (x0, b0, a0, b1)
    return [rest, side]


def _middle(plan: Plan, k: int) -> Pair:
    x0, y0, x1, y1 = max(_pieces(plan, k), key=lambda r: (r[2] - r[0]) * (r[3] - r[1]))
    return (x0 + x1) / 2, (y0 + y1) / 2


def _holes(plan: Plan, k: int, a: np.ndarray, u: np.ndarray, n: np.ndarray, length: Real) -> list[Pair]:
    """Openings in one wall of room `k`, as sorted ranges along it."""
    out = []
    for i, j, (x0, y0, x1, y1) in plan.openings:
        if k not in (i, j):
            continue
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - a
        depth, along = corners @ n, corners @ u
        crosses_along_normal = abs((x1 - x0) * n[0] + (y1 - y0) * n[1]) < abs((x1 - x0) * u[0] + (y1 - y0) * u[1])
        if crosses_along_normal and depth.max() < 0.01 and depth.min() > -WALL - 0.01 and along.max() > 0 and along.min() < length:
            out.append((float(along.min()), float(along.max())))
    return sorted(out)


# --------------------------------------------------------------------------------------------------------- placement


class _Placer:
    """Tries positions and keeps those that fit: inside the plan, touching nothing, leaving a way through."""

    def __init__(self, plan: Plan, rng: Rng) -> None:
        self.plan, self.rng = plan, rng
        self.grid = FreeGrid(plan)
        self.placed: list[Furniture] = []
        self.low = np.zeros((0, 3))
        self.high = np.zeros((0, 3))
        self.keepout: list[Rect] = []
        for _, _, (x0, y0, x1, y1) in plan.openings:
            g = 0.75
            self.keepout.append((x0 - g, y0, x1 + g, y1) if x1 - x0 < y1 - y0 else (x0, y0 - g, x1, y1 + g))
        self.areas = np.array([plan.area(k) for k in range(len(plan.rects))])
        self.share = self.areas / self.areas.sum()
        self.edges = [_edges(plan, k) for k in range(len(plan.rects))]

    def _fits(self, label: str, size: tuple[Real, ...], p: Triple, yaw: Real, room: int, support: int) -> bool:
        c, s = abs(cos(yaw)), abs(sin(yaw))
        hx, hy = (size[0] * c + size[1] * s) / 2, (size[0] * s + size[1] * c) / 2
        x0, y0, x1, y1 = p[0] - hx, p[1] - hy, p[0] + hx, p[1] + hy
        rx0, ry0, rx1, ry1 = self.plan.rects[room]
        e = 1e-6
        if x0 < rx0 - e or y0 < ry0 - e or x1 > rx1 + e or y1 > ry1 + e or p[2] + size[2] > self.plan.height - 0.02:
            return False
        cut = self.plan.cuts[room]
        if cut is not None and x0 < cut[2] - e and x1 > cut[0] + e and y0 < cut[3] - e and y1 > cut[1] + e:
            return False
        fixture = label in ("door", "window")
        if not support and not fixture and label != "rug" and p[2] < 2.0:
            for a0, b0, a1, b1 in self.keepout:
                if x0 < a1 and x1 > a0 and y0 < b1 and y1 > b0:
                    return False
        g = 0.012
        low, high = np.array([x0, y0, p[2]]), np.array([x1, y1, p[2] + size[2]])
        near = np.nonzero((self.low < high + g).all(axis=1) & (self.high > low - g).all(axis=1))[0]
        for k in near:
            o = self.placed[k]
            if o.id == support:
                continue
            if footprints_touch(p, size, yaw, o.position, o.size, o.yaw, g):
                return False
        if not support and blocks(label, p[2], size[2]):
            mask = self.grid.mask & ~self.grid.covered(p, size, yaw)
            if not self.grid.passable(mask):
                return False
            self.grid.mask = mask
        return True

    def put(self, label: str, mesh: Mesh, p: Triple, yaw: Real, room: int, support: int = 0) -> Furniture | None:
        """Place a mesh with its base centre at `p` if it fits there."""
        triangles = mesh.triangles()
        points = triangles.reshape(-1, 3)
        lo, hi = points.min(axis=0), points.max(axis=0)
        size = tuple(float(v) for v in hi - lo)
        p = (float(p[0]), float(p[1]), float(p[2]))
        yaw = float((yaw + pi) % (2 * pi) - pi)
        if not self._fits(label, size, p, yaw, room, support):
            return None
        base = np.array([(lo[0] + hi[0]) / 2, (lo[1] + hi[1]) / 2, lo[2]])
        materials, index = mesh.materials()
        o = Furniture(len(self.placed) + 1, label, triangles - base, tuple(materials), index, size, p, yaw, room, support)
        self.placed.append(o)
        corners = box_corners(o.box)
        self.low = np.vstack([self.low, corners.min(axis=0)])
        self.high = np.vstack([self.high, corners.max(axis=0)])
        return o

    def room(self) -> int:
        return int(self.rng.choice(len(self.share), p=self.share))

    def at_wall(self, label: str, mesh: Mesh, z: Real = 0.0, gap: Real | None = None, tries: int = 14) -> Furniture | None:
        """Back against a random wall, facing in."""
        rng, (lo, hi) = self.rng, _bounds(mesh)
        w, d = hi[0] - lo[0], hi[1] - lo[1]
        room = self.room()
        edges = self.edges[room]
        lengths = np.array([e[3] for e in edges])
        chance = lengths * (lengths > w + 0.04)
        if chance.sum() == 0:
            return None
        for _ in range(tries):
            a, u, n, length = edges[rng.choice(len(edges), p=chance / chance.sum())]
            t = rng.uniform(w / 2 + 0.02, length - w / 2 - 0.02)
            snug = rng.random()
            if snug < 0.25:  # into a corner
                t = w / 2 + rng.uniform(0.02, 0.12) if snug < 0.125 else length - w / 2 - rng.uniform(0.02, 0.12)
            if self._blocked_by_opening(room, a, u, n, length, t - w / 2, t + w / 2, z, z + hi[2] - lo[2]):
                continue
            c = a + u * t + n * (d / 2 + (rng.uniform(0.02, 0.07) if gap is None else gap))
            o = self.put(label, mesh, (c[0], c[1], z), atan2(n[1], n[0]) - pi / 2, room)
            if o is not None:
                return o
        return None

    def _blocked_by_opening(
        self, room: int, a: np.ndarray, u: np.ndarray, n: np.ndarray, length: Real, t0: Real, t1: Real, z0: Real, z1: Real
    ) -> bool:
        return any(
            t0 < s1 and t1 > s0 and z0 < self.plan.opening_height + 0.05 for s0, s1 in _holes(self.plan, room, a, u, n, length)
        )

    def anywhere(self, label: str, mesh: Mesh, any_yaw: bool, tries: int = 14, edge: Real = 0.05) -> Furniture | None:
        """Somewhere on the floor."""
        rng, (lo, hi) = self.rng, _bounds(mesh)
        w, d = hi[0] - lo[0], hi[1] - lo[1]
        room = self.room()
        x0, y0, x1, y1 = self.plan.rects[room]
        for _ in range(tries):
            yaw = rng.uniform(-pi, pi) if any_yaw else int(rng.integers(4)) * pi / 2 + rng.normal(0, 0.05) * (rng.random() < 0.4)
            hx, hy = (w, d) if abs(cos(yaw)) > 0.7 else (d, w)
            mx, my = hx / 2 + edge, hy / 2 + edge
            if x1 - x0 <= 2 * mx or y1 - y0 <= 2 * my:
                continue
            x, y = rng.uniform(x0 + mx, x1 - mx), rng.uniform(y0 + my, y1 - my)
            if any_yaw and rng.random() < 0.6:  # most loose things end up near a wall
                side = rng.integers(4)
                x = (x0 + mx, x1 - mx, x, x)[side]
                y = (y, y, y0 + my, y1 - my)[side]
            o = self.put(label, mesh, (x, y, 0.0), yaw, room)
            if o is not None:
                return o
        return None

    def beside(self, label: str, mesh: Mesh, kind: Kind, tries: int = 12) -> Furniture | None:
        """Next to something it belongs with: chairs at tables, nightstands by beds, coffee tables before sofas."""
        rng = self.rng
        hosts = [o for o in self.placed if o.label in kind.near]
        if not hosts:
            return None
        (lo, hi) = _bounds(mesh)
        w, d = hi[0] - lo[0], hi[1] - lo[1]
        for _ in range(tries):
            host = hosts[rng.integers(len(hosts))]
            hw, hd = host.size[0] / 2, host.size[1] / 2
            if label == "nightstand":
                side = 1 if rng.random() < 0.5 else -1
                local, turn = (side * (hw + w / 2 + rng.uniform(0.03, 0.2)), -hd + d / 2 + rng.uniform(0, 0.05)), 0.0
            elif label == "coffee table":
                local, turn = (rng.uniform(-0.2, 0.2), hd + d / 2 + rng.uniform(0.28, 0.5)), 0.0
            else:
                side = 0 if host.label in ("desk", "piano") else int(rng.integers(4))
                out = d / 2 + rng.uniform(0.03, 0.22)
                t = rng.uniform(-1, 1)
                if side % 2 == 0:
                    local = (t * max(hw - w / 2, 0), (hd + out) * (1 if side == 0 else -1))
                    turn = pi if side == 0 else 0.0
                else:
                    local = ((hw + out) * (1 if side == 1 else -1), t * max(hd - w / 2, 0))
                    turn = pi / 2 if side == 1 else -pi / 2
                turn += rng.normal(0, 0.12)
            c, s = cos(host.yaw), sin(host.yaw)
            x = host.position[0] + local[0] * c - local[1] * s
            y = host.position[1] + local[0] * s + local[1] * c
            o = self.put(label, mesh, (x, y, 0.0), host.yaw + turn, host.room)
            if o is not None:
                return o
        return None

    def on_top(self, label: str, kind: Kind, tries: int = 4) -> Furniture | None:
        """On a flat part of something that may carry it."""
        rng = self.rng
        hosts = [o for o in self.placed if o.label in kind.on]
        if not hosts:
            return None
        for _ in range(tries):
            host = hosts[rng.integers(len(hosts))]
            soft = host.label in ("sofa", "armchair")
            mesh = varied(make.pillow_propped(rng) if kind.build is make.pillow and soft else kind.build(rng), rng)
            lo, hi = _bounds(mesh)
            w, d = hi[0] - lo[0], hi[1] - lo[1]
            scene = EmbreeScene()
            TriangleMesh(scene, host.triangles.astype(np.float32))
            for _ in range(6):
                turn = 0.0
                if host.label == "table" and label != "monitor":
                    turn = int(rng.integers(4)) * pi / 2
                elif label not in ("tv", "monitor", "microwave", "pillow"):
                    turn = rng.uniform(-0.5, 0.5)
                hw = (abs(cos(turn)) * w + abs(sin(turn)) * d) / 2
                hd = (abs(sin(turn)) * w + abs(cos(turn)) * d) / 2
                fx, fy = host.size[0] / 2 - hw - 0.01, host.size[1] / 2 - hd - 0.01
                if fx < 0 or fy < 0:
                    continue
                x, y = rng.uniform(-fx, fx), rng.uniform(-fy, fy)
                if label in ("monitor", "tv", "table lamp"):
                    y = -fy + rng.uniform(0, 0.4) * fy
                elif label == "pillow" and host.label == "bed":
                    y = rng.uniform(-fy, -0.5 * fy)
                probe = np.array([(x + i * hw * 0.95, y + j * hd * 0.95, 5.0) for i in (-1, 0, 1) for j in (-1, 0, 1)], np.float32)
                hit = 5.0 - scene.run(probe, np.tile(np.array([[0, 0, -1]], np.float32), (9, 1)), query="DISTANCE")
                if hit.min() < 0.2 or np.ptp(hit) > (0.09 if host.label in ("bed", "sofa", "armchair") else 0.02):
                    continue
                c, s = cos(host.yaw), sin(host.yaw)
                p = (host.position[0] + x * c - y * s, host.position[1] + x * s + y * c, host.position[2] + float(hit.max()))
                o = self.put(label, mesh, p, host.yaw + turn, host.room, host.id)
                if o is not None:
                    return o
        return None

    def furnish(self, label: str, kind: Kind) -> Furniture | None:
        """One object of a label, wherever its kind may stand."""
        rng = self.rng
        if kind.on and (kind.only_on or rng.random() < (0.7 if label == "tv" else 0.35)):
            o = self.on_top(label, kind)
            if o is not None or kind.only_on:
                return o
        for _ in range(3):
            if kind.place == "hang":
                mesh = varied(make.tv_hung(rng) if kind.build is make.tv else kind.build(rng), rng)
                lo, hi = _bounds(mesh)
                z = rng.uniform(*kind.hang) - (0.0 if label == "mirror" else (hi[2] - lo[2]) / 2)
                o = self.at_wall(label, mesh, z=max(0.05, z), gap=0.004)
            else:
                mesh = varied(kind.build(rng), rng)
                o = self.beside(label, mesh, kind) if kind.near and rng.random() < 0.8 else None
                if o is None and kind.place == "wall":
                    o = self.at_wall(label, mesh)
                elif o is None:
                    o = self.anywhere(
                        label, mesh, kind.place == "loose", edge=0.05 if kind.place == "loose" or label == "rug" else 0.3
                    )
            if o is not None:
                return o
        return None


def varied(mesh: Mesh, rng: Rng) -> Mesh:
    """The mesh larger or smaller as a whole, and a little in each direction: a label alone does not tell a size."""
    scale = np.exp(rng.uniform(-0.36, 0.40)) * np.exp(rng.uniform(-0.08, 0.08, 3))
    height = max(part[..., 2].max() for part in mesh.parts)
    scale[2] = min(scale[2], max(TALLEST / height, 1.0) if height > 0 else 1.0)
    out = Mesh()
    out.parts, out.part_material = [part * scale for part in mesh.parts], list(mesh.part_material)
    return out


def _bounds(mesh: Mesh) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    points = np.concatenate(mesh.parts).reshape(-1, 3)
    return points.min(axis=0), points.max(axis=0)


def footprints_touch(
    p: tuple[Real, ...], size: tuple[Real, ...], yaw: Real, q: tuple[Real, ...], other: tuple[Real, ...], turn: Real, gap: Real
) -> bool:
    """Whether two upright boxes come within `gap` metres of each other seen from above (separating axes)."""
    dx, dy = q[0] - p[0], q[1] - p[1]
    for angle in (yaw, turn):
        c, s = cos(angle), sin(angle)
        for ax, ay in ((c, s), (-s, c)):
            reach = gap
            for w, d, a in ((size[0], size[1], yaw), (other[0], other[1], turn)):
                reach += abs(w * (cos(a) * ax + sin(a) * ay)) / 2 + abs(d * (-sin(a) * ax + cos(a) * ay)) / 2
            if abs(dx * ax + dy * ay) >= reach:
                return False
    return True


# --------------------------------------------------------------------------------------------------------- make_room


def _shopping_list(rng: Rng, area: float, catalog: dict[str, Kind]) -> tuple[list[tuple[str, int]], list[str]]:
    """What to place, at least five labels once and some two to six times; and what to try where that does not fit."""
    labels = list(catalog)
    weight = np.array([catalog[k].weight for k in labels])
    order = [labels[i] for i in rng.choice(len(labels), len(labels), replace=False, p=weight / weight.sum())]
    small = area < 14
    target = int(rng.integers(11, 16)) if small else int(rng.integers(14, 21))
    singles = int(rng.integers(5, 7)) if small else int(rng.integers(5, 8))
    groups = 2 if small else int(rng.integers(2, 5))
    chosen: dict[str, int] = {}
    for label in order:
        kind = catalog[label]
        total = sum(chosen.values())
        many = sum(v > 1 for v in chosen.values())
        if label in chosen:
            continue
        if kind.many > 1 and many < groups and total + 2 <= target:
            n = np.arange(2, min(kind.many, max(2, target - total)) + 1)
            chosen[label] = int(rng.choice(n, p=(n + 1.0) / (n + 1.0).sum()))
        elif len(chosen) - many < singles:
            chosen[label] = 1
        else:
            break
        hosts = [h for h in kind.on if h in catalog]
        if kind.only_on and hosts and not any(h in chosen for h in hosts):
            chosen[hosts[rng.integers(len(hosts))]] = 1
    return list(chosen.items()), [k for k in order if k not in chosen and not catalog[k].only_on]


def make_room(seed: int, style: str = "parts") -> Room:
    """A furnished scene from a seed. `style` "parts" builds furniture here; "models" uses installed 3D models."""
    if style not in ("parts", "models"):
        raise ValueError(f"style must be 'parts' or 'models', got {style!r}")
    rng = np.random.default_rng(seed)
    plan = draw_plan(rng)
    shell = build_shell(plan, rng)
    placer = _Placer(plan, rng)
    catalog: dict[str, Kind] = CATALOG
    if style == "models":
        from allocentric.rooms.models import model_catalog

        catalog = model_catalog()
    rooms = len(plan.rects)
    windows = {}
    for _ in range(int(rng.integers(1, 3 if plan.area(0) < 16 else 4)) if rooms == 1 else int(rng.integers(0, 3))):
        o = placer.at_wall("door", make.door(rng, min(rng.uniform(1.95, 2.15), plan.height - 0.2)), gap=0.0)
        if o is not None:
            x, y, _ = o.position
            n = np.array([-sin(o.yaw), cos(o.yaw)])
            c = np.array([x, y]) + n * 0.4
            half = np.abs(n) * 0.42 + np.abs(n[::-1]) * 0.46
            placer.keepout.append((c[0] - half[0], c[1] - half[1], c[0] + half[0], c[1] + half[1]))
    for _ in range(int(rng.integers(0, 3 if sum(placer.areas) < 14 else 5))):
        mesh = make.window(rng)
        o = placer.at_wall("window", mesh, z=rng.uniform(0.75, 1.0), gap=0.0)
        if o is not None:
            n = np.array([-sin(o.yaw), cos(o.yaw), 0.0])
            u = np.array([cos(o.yaw), sin(o.yaw), 0.0])
            center = np.array(o.position) + np.array([0, 0, o.size[2] / 2]) + n * (o.size[1] / 2 + 0.02)
            extent = (u * o.size[0] * 0.42, np.array([0, 0, o.size[2] * 0.42]))
            if o.room not in windows or rng.random() < 0.4:
                windows[o.room] = (center, n, *extent)
    wanted, spare = _shopping_list(rng, float(placer.areas.sum()), catalog)
    stage = {label: _stage(catalog[label], label) for label, _ in wanted}
    queue = [label for label, n in wanted for _ in range(n)]
    jitter = rng.random(len(queue))
    for k in sorted(range(len(queue)), key=lambda k: (stage[queue[k]], jitter[k])):
        placer.furnish(queue[k], catalog[queue[k]])
    fixtures = sum(o.label in FIXTURES for o in placer.placed)
    for label in spare:  # what did not fit is made up for
        if len(placer.placed) - fixtures >= min(len(queue), 14):
            break
        placer.furnish(label, catalog[label])
    lamps = np.array([(*_middle(plan, k), plan.height - 0.22, rng.uniform(0.5, 1.0)) for k in range(rooms)])
    look = {
        "warm": rng.normal(0, 0.05), "exposure": rng.uniform(0.47, 0.62), "vignette": rng.uniform(0.0, 0.3),
        "noise": rng.uniform(0.002, 0.012), "daylight": rng.uniform(0.5, 1.2), "ambient": rng.uniform(0.32, 0.5),
        "contrast": rng.uniform(0.95, 1.12),
    }  # fmt: skip
    look = {k: float(v) for k, v in look.items()}
    return Room(f"room-{style}-{seed}", seed, plan, tuple(placer.placed), shell, lamps, windows, look)


def _stage(kind: Kind, label: str) -> int:
    """Big things first, then what stands by them, on walls, on the floor's rest and on tops."""
    if kind.only_on or (kind.on and label != "backpack"):
        return 4
    if label in (
        "bed",
        "sofa",
        "wardrobe",
        "piano",
        "bathtub",
        "table",
        "desk",
        "fireplace",
        "refrigerator",
        "bookshelf",
        "tv stand",
    ):
        return 0
    if kind.near:
        return 1
    return {"wall": 2, "free": 2, "hang": 3, "loose": 3}[kind.place]
