"""Ray casting a `Room` to colour, depth and instance ids, with lamps, daylight, shadows and a modest camera."""

import numpy as np
from jaxtyping import Float, Integer, UInt8

from allocentric.rooms.layout import Room, Surface
from allocentric.rooms.mesh import Real

FAR = 1e6


def render(
    room: Room,
    poses: Float[np.ndarray, "t 4 4"],
    height: int,
    width: int,
    intrinsics: Float[np.ndarray, "3 3"],
    samples: int = 2,
    shutter: Float[np.ndarray, "s t 4 4"] | None = None,
    seed: int = 0,
    gain: Float[np.ndarray, " t"] | None = None,
    chunk: int = 320_000,
) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"], UInt8[np.ndarray, "t h w"]]:
    """RGB frames, depth in metres along z (0 where nothing is hit) and instance ids of a room seen from `poses`.

    Depth and ids are those of the pixel's centre; colour averages samples x samples rays per pixel. `shutter` gives a
    camera_to_world for each colour ray of the pixel grid (s = samples squared), for motion blur. `seed` drives the noise.
    `gain` sets the exposure of each frame (see `meter`); without it the exposure is set from these frames.
    """
    if len(room.objects) > 255:
        raise ValueError(f"at most 255 objects can be told apart in an id image, found {len(room.objects)}")
    t = len(poses)
    frames = np.empty((t, height, width, 3), np.uint8)
    depth = np.empty((t, height, width), np.float32)
    ids = np.empty((t, height, width), np.uint8)
    rng = np.random.default_rng((room.seed & 0x7FFFFFFF, seed, 77))
    linear = np.empty((t, height, width, 3), np.float32)
    step = max(1, chunk // (height * width))
    shade = _Shading(room)
    for a in range(0, t, step):
        b = min(t, a + step)
        blur = None if shutter is None else shutter[:, a:b]
        linear[a:b], depth[a:b], ids[a:b] = _cast(room, shade, poses[a:b], height, width, intrinsics, samples, blur, rng)
    _develop(linear, frames, room.look, rng, metered(linear, room.look) if gain is None else gain)
    return frames, depth, ids


def directions(
    height: int, width: int, intrinsics: Float[np.ndarray, "3 3"], du: float = 0.5, dv: float = 0.5
) -> Float[np.ndarray, "p 3"]:
    """Camera rays with unit z through (column + du, row + dv) of every pixel, row by row."""
    u = (np.arange(width) + du - intrinsics[0, 2]) / intrinsics[0, 0]
    v = (np.arange(height) + dv - intrinsics[1, 2]) / intrinsics[1, 1]
    out = np.ones((height, width, 3), np.float32)
    out[..., 0] = u[None, :]
    out[..., 1] = v[:, None]
    return out.reshape(-1, 3)


def _rays(poses: np.ndarray, local: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(local)
    d = np.einsum("tij,pj->tpi", poses[:, :3, :3].astype(np.float32), local, optimize=True).reshape(-1, 3)
    o = np.repeat(poses[:, :3, 3].astype(np.float32), n, axis=0)
    return o, np.ascontiguousarray(d)


def quick_visibility(
    room: Room, poses: Float[np.ndarray, "t 4 4"], height: int = 24, width: int = 32, fov: Real = 75.0
) -> Float[np.ndarray, "t n"]:
    """Fraction of a coarse image that shows each object, without colour. Column order is that of `room.objects`."""
    f = width / 2 / np.tan(np.radians(fov) / 2)
    k = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])
    o, d = _rays(poses, directions(height, width, k))
    hit = room.scene().run(o, d)
    ids = np.where(hit >= 0, room.surface().id[hit], 0).reshape(len(poses), -1)
    return visibility_of(ids, len(room.objects))


def visibility_of(ids: Integer[np.ndarray, "t ..."], n: int) -> Float[np.ndarray, "t n"]:
    """Fraction of each image with value 1..n, float64."""
    flat = ids.reshape(len(ids), -1).astype(np.int64)
    counts = np.bincount((flat + np.arange(len(ids))[:, None] * (n + 1)).ravel(), minlength=len(ids) * (n + 1))
    return counts.reshape(len(ids), n + 1)[:, 1:] / flat.shape[1]


class _Shading:
    """Per-triangle look of a room, ready for lookup, and its lights."""

    def __init__(self, room: Room) -> None:
        s = room.surface()
        self.surface: Surface = s
        self.color = (s.color**2.2).astype(np.float32)[s.material]
        self.second = (s.second**2.2).astype(np.float32)[s.material]
        self.texture = s.texture[s.material].astype(np.int8)
        self.glow = s.glow[s.material]
        self.salt = (s.id * 7919 + s.material * 104729).astype(np.uint32)
        # triangles that face the same way, coarsely, share a number
        self.facing = (np.rint(s.normal * 6).astype(np.int32) + 8) @ np.array((1, 20, 400), np.int32)
        look = room.look
        self.ambient = np.float32(look["ambient"])
        self.daylight = np.float32(look["daylight"])
        n = len(room.plan.rects)
        self.lamp = room.lamps.astype(np.float32)
        self.window = np.zeros((n, 4, 3), np.float32)
        self.has_window = np.zeros(n, np.float32)
        for k, parts in room.windows.items():
            self.window[k] = np.stack(parts)
            self.has_window[k] = 1.0
        self.fineness = np.linalg.norm(s.axes[:, 0], axis=1).astype(np.float32)
        self.contact, self.contact_origin = _contact_map(room)


CONTACT = 0.05


def _contact_map(room: Room) -> tuple[np.ndarray, np.ndarray]:
    """How crowded the floor is around each 5 cm cell: darkens corners and the ground around furniture."""
    from scipy import ndimage

    floor = np.concatenate(room.floor)
    origin = floor.min(axis=0) - 0.5
    nx, ny = np.ceil((floor.max(axis=0) + 0.5 - origin) / CONTACT).astype(int)
    x, y = origin[0] + (np.arange(nx) + 0.5) * CONTACT, origin[1] + (np.arange(ny) + 0.5) * CONTACT
    solid = np.ones((ny, nx), np.float32)
    for (x0, y0, x1, y1), cut in zip(room.plan.rects, room.plan.cuts, strict=True):
        solid[np.ix_((y > y0) & (y < y1), (x > x0) & (x < x1))] = 0
        if cut is not None:
            solid[np.ix_((y > cut[1]) & (y < cut[3]), (x > cut[0]) & (x < cut[2]))] = 1
    for _, _, (x0, y0, x1, y1) in room.plan.openings:
        solid[np.ix_((y > y0) & (y < y1), (x > x0) & (x < x1))] = 0
    for o in room.objects:
        if o.position[2] < 0.2 and o.size[2] > 0.1:
            c, s = np.cos(o.yaw), np.sin(o.yaw)
            r = (o.size[0] + o.size[1]) / 2
            i = slice(*np.searchsorted(y, (o.position[1] - r, o.position[1] + r)))
            j = slice(*np.searchsorted(x, (o.position[0] - r, o.position[0] + r)))
            dx, dy = x[None, j] - o.position[0], y[i, None] - o.position[1]
            inside = (np.abs(dx * c + dy * s) < o.size[0] / 2) & (np.abs(dy * c - dx * s) < o.size[1] / 2)
            solid[i, j] = np.maximum(solid[i, j], inside * 0.85)
    return ndimage.gaussian_filter(solid, 3.0, truncate=2.5).astype(np.float32), origin.astype(np.float32)


def _cast(
    room: Room,
    shade: _Shading,
    poses: np.ndarray,
    height: int,
    width: int,
    k: np.ndarray,
    samples: int,
    shutter: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scene, surface = room.scene(), shade.surface
    t, n = len(poses), height * width
    pixel = np.float32(1.0 / k[0, 0])

    # The pixel's centre: depth, ids, and the light that falls there.
    o, d = _rays(poses, directions(height, width, k))
    hit = scene.run(o, d, output=True)
    prim, far = hit["primID"], hit["tfar"]
    missed = prim < 0
    prim = np.where(missed, 0, prim)
    far = np.where(missed, 0, far).astype(np.float32)
    points = o + d * far[:, None]
    ids = np.where(missed, 0, surface.id[prim])
    light = _light(room, shade, prim, points, d, rng)
    facing = shade.facing[prim]
    light = _even(light.reshape(t, height, width, 3), facing.reshape(t, height, width), far.reshape(t, height, width)).reshape(
        -1, 3
    )

    # Colour: every ray of the pixel looks up its own triangle, and borrows the light of the centre when it is the same
    # surface facing the same way.
    total = np.zeros((t * n, 3), np.float32)
    offsets = (np.arange(samples) + 0.5) / samples
    if samples == 1 and shutter is None:
        total += _albedo(shade, prim, points, far, d, pixel) * light
        total += _glow(shade, prim)
    else:
        for j, dv in enumerate(offsets):
            for i, du in enumerate(offsets):
                view = poses if shutter is None else shutter[j * samples + i]
                o2, d2 = _rays(view, directions(height, width, k, du, dv))
                hit = scene.run(o2, d2, output=True)
                p2 = np.maximum(hit["primID"], 0)
                f2 = hit["tfar"].astype(np.float32, copy=False)
                np.minimum(f2, 1e3, out=f2)
                x2 = o2 + d2 * f2[:, None]
                other = np.nonzero((shade.facing[p2] != facing) | (np.abs(f2 - far) > 0.15 * far))[0]
                mine = light
                if len(other):
                    mine = light.copy()
                    mine[other] = _light(room, shade, p2[other], x2[other], d2[other], rng)
                total += _albedo(shade, p2, x2, f2, d2, pixel) * mine
                total += _glow(shade, p2)
        total /= samples * samples
    shiny = np.nonzero(shade.texture[prim] == MIRROR)[0]
    if len(shiny):
        total[shiny] = _reflection(room, shade, prim[shiny], points[shiny], d[shiny], pixel, rng)
    shape = (t, height, width)
    return total.reshape(*shape, 3), far.reshape(shape), ids.reshape(shape)


def _reflection(
    room: Room, shade: _Shading, prim: np.ndarray, points: np.ndarray, d: np.ndarray, pixel: np.float32, rng: np.random.Generator
) -> np.ndarray:
    normal = shade.surface.normal[prim]
    away = d - 2 * _dot(d, normal)[:, None] * normal
    start = points + away * 0.005
    hit = room.scene().run(start, np.ascontiguousarray(away), output=True)
    p2, f2 = np.maximum(hit["primID"], 0), np.minimum(hit["tfar"], 1e3).astype(np.float32)
    x2 = start + away * f2[:, None]
    seen = _albedo(shade, p2, x2, f2, away, pixel) * _light(room, shade, p2, x2, away, rng) + _glow(shade, p2)
    return seen * np.float32(0.82) + np.float32(0.03)


def _glow(shade: _Shading, prim: np.ndarray) -> np.ndarray:
    g = shade.glow[prim]
    out = np.zeros((len(prim), 3), np.float32)
    lit = np.nonzero(g > 0)[0]
    out[lit] = shade.color[prim[lit]] * g[lit, None]
    return out


def _light(
    room: Room, shade: _Shading, prim: np.ndarray, points: np.ndarray, d: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """RGB light arriving at surface points: ambient with contact shade, ceiling lamp and window with cast shadows."""
    s = shade.surface
    normal = s.normal[prim]
    normal[_dot(normal, d) > 0] *= -1
    where = s.room[prim]
    start = points + normal * np.float32(0.004)

    cell = ((points[:, :2] - shade.contact_origin) * np.float32(1 / CONTACT)).astype(np.int32)
    ny, nx = shade.contact.shape
    crowd = shade.contact[np.clip(cell[:, 1], 0, ny - 1), np.clip(cell[:, 0], 0, nx - 1)]
    z = points[:, 2]
    dark = crowd * np.exp(-np.maximum(z, 0) * np.float32(3.0))
    dark += np.float32(0.25) * crowd * np.exp((z - np.float32(room.plan.height)) * np.float32(4.0))
    ambient = shade.ambient * (np.float32(0.78) + np.float32(0.28) * normal[:, 2]) * (1 - np.float32(0.75) * np.minimum(dark, 1))

    out = np.empty((len(prim), 3), np.float32)
    tint = np.array((1.0, 0.99, 0.97), np.float32)
    out[:] = ambient[:, None] * tint

    spread = np.zeros((len(prim), 3), np.float32)
    spread[:, :2] = (rng.random((len(prim), 2), dtype=np.float32) - np.float32(0.5)) * np.float32(0.28)
    lamp = shade.lamp[where]
    glow = _direct(room, start, normal, lamp[:, :3] - start, spread, lamp[:, 3] * np.float32(3.4), np.float32(1.2))
    out += glow[:, None] * np.array((1.0, 0.95, 0.86), np.float32)

    lit = np.nonzero(shade.has_window[where] > 0)[0]
    if len(lit):
        w = shade.window[where[lit]]
        jitter = rng.random((len(lit), 2), dtype=np.float32) * np.float32(1.2) - np.float32(0.6)
        spread = w[:, 2] * jitter[:, :1] + w[:, 3] * jitter[:, 1:]
        to = w[:, 0] - start[lit]
        far = np.sqrt(_dot(to, to)) + np.float32(1e-6)
        facing = np.maximum(-_dot(to, w[:, 1]) / far, 0)
        glow = _direct(room, start[lit], normal[lit], to, spread, facing * shade.daylight * np.float32(4.5), np.float32(1.4))
        out[lit] += glow[:, None] * np.array((0.94, 1.0, 1.08), np.float32)
    return out


def _direct(
    room: Room, start: np.ndarray, normal: np.ndarray, to: np.ndarray, spread: np.ndarray, power: np.ndarray, soft: np.float32
) -> np.ndarray:
    """Light from around `start + to`: cosine and softened inverse square of its middle, one shadow ray to a point of it."""
    square = _dot(to, to)
    cosine = _dot(to, normal) / np.sqrt(np.maximum(square, np.float32(1e-6)))
    gain = np.maximum(cosine, 0) * power / (square + soft)
    ask = np.nonzero(gain > 1e-3)[0]
    out = np.zeros(len(start), np.float32)
    if len(ask):
        reach = to[ask] + spread[ask]
        hidden = room.scene().run(start[ask], reach, dists=np.full(len(ask), 0.97, np.float32), query="OCCLUDED")
        out[ask] = gain[ask] * (hidden != 0)
    return out


def _even(light: np.ndarray, facing: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Average light over three by three pixels of the same surface: takes the grain out of soft shadows."""
    for axis in (1, 2):
        a = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
        b = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
        same = (facing[a] == facing[b]) & (np.abs(far[a] - far[b]) < np.float32(0.06) * far[a])
        step = (light[b] - light[a]) * (same * np.float32(1 / 3))[..., None]
        light = light.copy()
        light[a] += step
        light[b] -= step
    return light


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1] + a[:, 2] * b[:, 2]


# ---------------------------------------------------------------------------------------------------------- textures

(PLAIN, STRIPES, CHECKER, PLANKS, TILES, GRAIN, SPECKLE, DOTS, BRICKS, ART, MIRROR) = range(11)


def _hash(a: np.ndarray, b: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Uniform float32 in [0, 1) from integers."""
    h = a.astype(np.int64).astype(np.uint32) * np.uint32(374761393)
    h += b.astype(np.int64).astype(np.uint32) * np.uint32(668265263)
    h += salt
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    h ^= h >> np.uint32(16)
    return (h & np.uint32(0xFFFF)).astype(np.float32) * np.float32(1 / 65536)


def _noise(u: np.ndarray, v: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Smooth value noise in [0, 1]."""
    iu, iv = np.floor(u), np.floor(v)
    fu, fv = u - iu, v - iv
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    a, b = _hash(iu, iv, salt), _hash(iu + 1, iv, salt)
    c, e = _hash(iu, iv + 1, salt), _hash(iu + 1, iv + 1, salt)
    top = a + (b - a) * fu
    return top + (c + (e - c) * fu - top) * fv


def _pattern(kind: int, u: np.ndarray, v: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """How much of the second colour shows at texture coordinates, in [0, 1]."""
    if kind == STRIPES:
        return (u - np.floor(u) < 0.5).astype(np.float32)
    if kind == CHECKER:
        return ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    if kind == PLANKS:
        row = np.floor(v)
        x = u * np.float32(0.14) + _hash(row, row, salt) * 7
        seam = (v - row < 0.06) | (x - np.floor(x) < 0.01)
        return np.where(seam, np.float32(1.0), np.float32(0.7) * _hash(row, np.floor(x), salt))
    if kind == TILES or kind == BRICKS:
        if kind == BRICKS:
            u = u * np.float32(0.45) + 0.5 * (np.floor(v) % 2)
        iu, iv = np.floor(u), np.floor(v)
        seam = (u - iu < 0.05) | (v - iv < (0.12 if kind == BRICKS else 0.05))
        return np.where(seam, np.float32(1.0), np.float32(0.25) * _hash(iu, iv, salt))
    if kind == GRAIN:
        wave = v + np.float32(0.3) * np.sin(u * np.float32(0.25) + np.float32(0.8) * np.sin(v * np.float32(0.6)))
        return np.float32(0.5) + np.float32(0.3) * np.sin(wave * np.float32(4.0)) + np.float32(0.2) * np.sin(wave * np.float32(9.7))
    if kind == SPECKLE:
        return _hash(np.floor(u), np.floor(v), salt)
    if kind == DOTS:
        x, y = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
        return (x * x + y * y < 0.09).astype(np.float32)
    if kind == ART:
        p = _noise(u * 1.7, v * 1.7, salt) + np.float32(0.5) * _noise(u * 4.1, v * 4.1, salt)
        return np.clip((p - np.float32(0.5)) * np.float32(3.0), 0, 1)
    return np.zeros(len(u), np.float32)


# fraction of the second colour once a pattern is too fine to see, and the finest detail in periods
_MEAN = np.array([0, 0.5, 0.5, 0.4, 0.2, 0.5, 0.5, 0.28, 0.3, 0.4, 0], np.float32)
_DETAIL = np.array([1, 1, 1, 0.5, 0.5, 1.5, 1, 1, 0.5, 0.4, 1], np.float32)


def _albedo(shade: _Shading, prim: np.ndarray, points: np.ndarray, far: np.ndarray, d: np.ndarray, pixel: np.float32) -> np.ndarray:
    """Linear RGB reflectance at surface points; patterns fade to their mean where a pixel covers more than a period."""
    color = shade.color[prim]
    kinds = shade.texture[prim]
    s = shade.surface
    for kind in range(1, MIRROR):
        at = np.nonzero(kinds == kind)[0]
        if not len(at):
            continue
        p = prim[at]
        axes, x = s.axes[p], points[at]
        u = _dot(axes[:, 0], x) + s.offset[p, 0]
        v = _dot(axes[:, 1], x) + s.offset[p, 1]
        mix = _pattern(kind, u, v, shade.salt[p])
        slant = np.abs(_dot(s.normal[p], d[at])) + np.float32(0.05)
        per_pixel = far[at] * pixel * shade.fineness[p] / slant
        fade = np.clip(np.float32(1.6) * _DETAIL[kind] - per_pixel * np.float32(1.2), 0, 1)
        mix = _MEAN[kind] + (mix - _MEAN[kind]) * fade
        color[at] += (shade.second[p] - color[at]) * mix[:, None]
    return color


# ------------------------------------------------------------------------------------------------------------ camera


def metered(linear: Float[np.ndarray, "t h w 3"], look: dict[str, float]) -> Float[np.ndarray, " t"]:
    """Exposure gain per frame: it follows the view part of the way, and keeps most of the highlights."""
    step = 3 if linear.shape[1] > 60 else 1
    thin = linear[:, ::step, ::step].mean(axis=3).reshape(len(linear), -1)
    level = np.median(thin, axis=1) * 0.5 + thin.mean(axis=1) * 0.5
    overall = np.exp(np.mean(np.log(level + 1e-4)))
    gain = look["exposure"] ** 2.2 / (overall**0.6 * (level + 1e-4) ** 0.4)
    gain *= min(1.0, 0.85 / float(np.mean(np.quantile(thin, 0.9, axis=1) * gain)))
    return gain.astype(np.float64)


def meter(room: Room, poses: Float[np.ndarray, "t 4 4"], fov: Real) -> Float[np.ndarray, " t"]:
    """Exposure gain per pose from a coarse look at each, for rendering a long clip in pieces."""
    height, width = 30, 40
    f = width / 2 / np.tan(np.radians(fov) / 2)
    k = np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]])
    linear, _, _ = _cast(room, _Shading(room), poses, height, width, k, 1, None, np.random.default_rng(0))
    return metered(linear, room.look)


def _develop(linear: np.ndarray, frames: np.ndarray, look: dict[str, float], rng: np.random.Generator, gain: np.ndarray) -> None:
    """White balance, vignetting, tone curve and sensor noise, into 8 bits."""
    t, h, w, _ = linear.shape
    warm = look["warm"]
    balance = np.array((1 + warm, 1.0, 1 - warm), np.float32)
    y, x = np.linspace(-1, 1, h, dtype=np.float32), np.linspace(-1, 1, w, dtype=np.float32)
    fall = 1 - np.float32(look["vignette"]) * (y[:, None] ** 2 + x[None, :] ** 2) / 2
    for k in range(t):
        f = linear[k] * (np.float32(gain[k]) * balance) * fall[..., None]
        f = f * (1 + f * np.float32(0.12)) / (1 + f * np.float32(0.6))  # soft shoulder
        np.clip(f, 0, 1, out=f)
        f = f ** np.float32(look["contrast"] / 2.2)
        f += rng.standard_normal(f.shape, dtype=np.float32) * np.float32(look["noise"])
        frames[k] = np.clip(f * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
