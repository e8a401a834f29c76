"""Triangle meshes with materials, built from lofted solids. Everything furniture is made of."""

from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from jaxtyping import Float, Int

Real = float | int
Pair = tuple[Real, Real]
Triple = tuple[Real, Real, Real]
Color = Triple

TEXTURES = ("plain", "stripes", "checker", "planks", "tiles", "grain", "speckle", "dots", "bricks", "art", "mirror")


@dataclass(frozen=True)
class Material:
    """Surface look. Colours are sRGB in [0, 1]; `texture` mixes `color` and `second` with period `scale` metres."""

    color: Color
    second: Color = (0.0, 0.0, 0.0)
    texture: str = "plain"
    scale: Real = 0.1
    glow: Real = 0.0


class Mesh:
    """Triangles (n, 3, 3) in metres and one material per triangle, collected part by part."""

    def __init__(self) -> None:
        self.parts: list[Float[np.ndarray, "n 3 3"]] = []
        self.part_material: list[Material] = []

    def triangles(self) -> Float[np.ndarray, "n 3 3"]:
        """All triangles, metres."""
        return np.concatenate(self.parts)

    def materials(self) -> tuple[list[Material], Int[np.ndarray, " n"]]:
        """The distinct materials and the index of each triangle's."""
        order: dict[Material, int] = {}
        index = [order.setdefault(m, len(order)) for m in self.part_material]
        return list(order), np.repeat(np.array(index, dtype=np.int32), [len(p) for p in self.parts])

    def mark(self) -> int:
        """A bookmark for `turn` and `move`."""
        return len(self.parts)

    def turn(self, mark: int, axis: str, angle: Real, about: Triple = (0.0, 0.0, 0.0)) -> None:
        """Rotate the parts added since `mark` by `angle` radians about the axis through `about` (metres)."""
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        r = np.eye(3)
        r[i, i] = r[j, j] = cos(angle)
        r[j, i], r[i, j] = sin(angle), -sin(angle)
        pivot = np.asarray(about)
        for k in range(mark, len(self.parts)):
            self.parts[k] = (self.parts[k] - pivot) @ r.T + pivot

    def move(self, mark: int, offset: Triple) -> None:
        """Translate the parts added since `mark` (metres)."""
        for k in range(mark, len(self.parts)):
            self.parts[k] = self.parts[k] + np.asarray(offset)

    def add(self, triangles: Float[np.ndarray, "n 3 3"], material: Material) -> None:
        """Append triangles (metres) of one material."""
        self.parts.append(triangles)
        self.part_material.append(material)

    def loft(self, rings: Float[np.ndarray, "k n 3"], material: Material, caps: bool = True) -> None:
        """A skin over `k` rings of `n` points (metres), closed at both ends by fans when `caps`."""
        a, b = rings[:-1], rings[1:]
        a2, b2 = np.roll(a, -1, axis=1), np.roll(b, -1, axis=1)
        faces = [np.stack([a, a2, b2], axis=2).reshape(-1, 3, 3), np.stack([a, b2, b], axis=2).reshape(-1, 3, 3)]
        if caps:
            for ring in (rings[0], rings[-1]):
                first = np.broadcast_to(ring[0], (len(ring) - 2, 3))
                faces.append(np.stack([first, ring[1:-1], ring[2:]], axis=1))
        self.add(np.concatenate(faces), material)

    def box(self, x: Pair, y: Pair, z: Pair, material: Material) -> None:
        """An axis-aligned block between the given ranges (metres)."""
        base = np.array([(x[0], y[0], z[0]), (x[1], y[0], z[0]), (x[1], y[1], z[0]), (x[0], y[1], z[0])])
        top = base.copy()
        top[:, 2] = z[1]
        self.loft(np.stack([base, top]), material)

    def cushion(self, x: Pair, y: Pair, z: Pair, material: Material, r: Real = 0.06) -> None:
        """A block with rounded edges of radius `r` (metres)."""
        h = (z[1] - z[0]) / 2
        r = min(r, (x[1] - x[0]) * 0.45, (y[1] - y[0]) * 0.45)
        rz = min(r, h)
        steps = [(z[0], r), (z[0] + rz * 0.3, r * 0.3), (z[0] + rz, 0.0)]
        steps += [(z[1] - rz, 0.0), (z[1] - rz * 0.3, r * 0.3), (z[1], r)]
        rings = []
        for height, inset in steps:
            rings.append(_rounded(x[0] + inset, x[1] - inset, y[0] + inset, y[1] - inset, r, height))
        self.loft(np.stack(rings), material)

    def lathe(
        self,
        center: Pair,
        profile: list[Pair],
        material: Material,
        n: int = 14,
        squash: Real = 1.0,
    ) -> None:
        """A solid of revolution about z: `profile` lists (radius, z) in metres; `squash` scales its y."""
        t = np.arange(n) * (2 * pi / n)
        p = np.asarray(profile)
        rings = np.empty((len(p), n, 3))
        rings[..., 0] = center[0] + p[:, :1] * np.cos(t)
        rings[..., 1] = center[1] + p[:, :1] * np.sin(t) * squash
        rings[..., 2] = p[:, 1:]
        self.loft(rings, material)

    def cylinder(
        self,
        center: Pair,
        z: Pair,
        r: Real,
        material: Material,
        r1: Real | None = None,
        n: int = 12,
    ) -> None:
        """An upright cylinder or cone frustum: radius `r` at z[0], `r1` at z[1] (metres)."""
        self.lathe(center, [(r, z[0]), (r if r1 is None else r1, z[1])], material, n)

    def ellipsoid(
        self,
        center: Triple,
        radii: Triple,
        material: Material,
        n: int = 12,
        m: int = 7,
    ) -> None:
        """An ellipsoid with `m` rings of `n` points (metres)."""
        s = np.linspace(-pi / 2 * 0.96, pi / 2 * 0.96, m)
        t = np.arange(n) * (2 * pi / n)
        unit = np.empty((m, n, 3))
        unit[..., 0] = np.cos(s)[:, None] * np.cos(t)
        unit[..., 1] = np.cos(s)[:, None] * np.sin(t)
        unit[..., 2] = np.sin(s)[:, None]
        self.loft(unit * np.asarray(radii) + np.asarray(center), material)

    def tube(self, p: Triple, q: Triple, r: Real, material: Material, n: int = 6) -> None:
        """A straight rod from `p` to `q` of radius `r` (metres)."""
        a, b = np.asarray(p, float), np.asarray(q, float)
        w = (b - a) / np.linalg.norm(b - a)
        u = np.cross(w, (0.0, 0.0, 1.0) if abs(w[2]) < 0.9 else (1.0, 0.0, 0.0))
        u /= np.linalg.norm(u)
        v = np.cross(w, u)
        t = np.arange(n) * (2 * pi / n)
        ring = r * (np.cos(t)[:, None] * u + np.sin(t)[:, None] * v)
        self.loft(np.stack([ring + a, ring + b]), material)

    def hoop(self, center: Triple, radius: Real, r: Real, material: Material, axis: str = "y", n: int = 18) -> None:
        """A torus of ring radius `radius` and wire radius `r` about `axis` through `center` (metres)."""
        i, j, k = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}[axis]
        t = np.arange(n + 1) * (2 * pi / n)
        s = np.arange(4) * (pi / 2)
        rings = np.zeros((n + 1, 4, 3))
        reach = radius + r * np.cos(s)
        rings[..., i] = np.cos(t)[:, None] * reach
        rings[..., j] = np.sin(t)[:, None] * reach
        rings[..., k] = r * np.sin(s)
        self.loft(rings + np.asarray(center), material, caps=False)

    def sheet(self, corners: Float[np.ndarray, "4 3"], material: Material) -> None:
        """A flat four-cornered sheet (metres)."""
        self.add(np.asarray(corners, float)[[[0, 1, 2], [0, 2, 3]]], material)


def _rounded(x0: Real, x1: Real, y0: Real, y1: Real, r: Real, z: Real) -> Float[np.ndarray, "12 3"]:
    r = min(r, (x1 - x0) * 0.45, (y1 - y0) * 0.45)
    a = np.array([0.0, pi / 4, pi / 2])
    corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, pi / 2), (x0 + r, y0 + r, pi), (x1 - r, y0 + r, 3 * pi / 2))
    ring = np.empty((4, 3, 3))
    for k, (cx, cy, start) in enumerate(corners):
        ring[k, :, 0] = cx + r * np.cos(a + start)
        ring[k, :, 1] = cy + r * np.sin(a + start)
    ring[..., 2] = z
    return ring.reshape(12, 3)
