"""Furniture built from parts. Local frame: x width, y depth with the back at -y and the front at +y, z up, metres."""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np

from allocentric.rooms.mesh import Color, Material, Mesh, Pair, Real

Rng = np.random.Generator


# ---------------------------------------------------------------------------------------------------------- materials

_WOODS = ((0.58, 0.39, 0.22), (0.40, 0.25, 0.15), (0.76, 0.60, 0.40), (0.84, 0.74, 0.58), (0.27, 0.18, 0.13),
          (0.66, 0.45, 0.30), (0.92, 0.90, 0.86), (0.17, 0.16, 0.16))  # fmt: skip


def _jitter(rng: Rng, color: Color, amount: float = 0.05) -> Color:
    r, g, b = np.clip(np.asarray(color) + rng.normal(0, amount * 0.5) + rng.normal(0, amount * 0.5, 3), 0.02, 0.98)
    return float(r), float(g), float(b)


def _shade(color: Color, factor: Real) -> Color:
    return tuple(min(1.0, c * factor) for c in color)


def _hue(rng: Rng, s: Pair = (0.15, 0.75), v: Pair = (0.25, 0.9)) -> Color:
    return colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*s), rng.uniform(*v))


def wood(rng: Rng) -> Material:
    """A wood, stained or painted."""
    c = _jitter(rng, _WOODS[rng.integers(len(_WOODS))], 0.06) if rng.random() < 0.85 else _hue(rng, (0.2, 0.6), (0.3, 0.8))
    return Material(c, _shade(c, rng.uniform(0.8, 0.97)), "grain", rng.uniform(0.03, 0.07))


def fabric(rng: Rng, plain: float = 0.6) -> Material:
    """An upholstery or bedding cloth."""
    c = _hue(rng) if rng.random() < 0.75 else _hue(rng, (0.0, 0.12), (0.2, 0.95))
    if rng.random() < plain:
        return Material(c, _shade(c, 0.85), "speckle", 0.012)
    kind = ("stripes", "checker", "dots", "tiles")[rng.integers(4)]
    return Material(c, _hue(rng, (0.05, 0.6), (0.3, 0.95)), kind, rng.uniform(0.08, 0.22))


def paint(rng: Rng, light: bool = False) -> Material:
    """A flat lacquer."""
    return Material(_hue(rng, (0.0, 0.15), (0.75, 0.95)) if light else _hue(rng, (0.0, 0.8), (0.15, 0.9)))


def metal(rng: Rng) -> Material:
    """Chrome, brushed, black or brass."""
    base = ((0.75, 0.76, 0.78), (0.55, 0.56, 0.58), (0.12, 0.12, 0.13), (0.72, 0.58, 0.30), (0.9, 0.9, 0.9))
    return Material(_jitter(rng, base[rng.choice(5, p=(0.3, 0.2, 0.25, 0.1, 0.15))], 0.03))


def appliance(rng: Rng) -> Material:
    """White, steel, black and the odd colour."""
    if rng.random() < 0.12:
        return Material(_hue(rng, (0.3, 0.6), (0.4, 0.85)))
    base = ((0.93, 0.93, 0.92), (0.68, 0.69, 0.70), (0.14, 0.14, 0.15))
    return Material(_jitter(rng, base[rng.choice(3, p=(0.55, 0.3, 0.15))], 0.03))


BLACK = Material((0.05, 0.05, 0.06))
DARK = Material((0.13, 0.13, 0.14))
WHITE = Material((0.93, 0.93, 0.91))
CHROME = Material((0.78, 0.79, 0.81))
GLASS = Material((0.30, 0.38, 0.44))


# --------------------------------------------------------------------------------------------------------- furniture


def _legs(m: Mesh, w: Real, d: Real, z: Real, r: Real, mat: Material, inset: Real = 0.0, round_: bool = False) -> None:
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (w / 2 - r - inset), sy * (d / 2 - r - inset)
            if round_:
                m.lathe((x, y), [(r * 0.6, 0), (r, z)], mat, 8)
            else:
                m.box((x - r, x + r), (y - r, y + r), (0, z), mat)


def bed(rng: Rng) -> Mesh:
    m, w, l = Mesh(), rng.uniform(0.85, 2.05), rng.uniform(1.75, 2.2)
    frame, cover, sheet = wood(rng), fabric(rng, 0.5), Material(_hue(rng, (0.0, 0.12), (0.82, 0.97)))
    base, top = rng.uniform(0.2, 0.34), rng.uniform(0.42, 0.62)
    y0, y1 = -l / 2, l / 2
    head = rng.uniform(0.75, 1.3)
    _legs(m, w, l, base - 0.1, 0.04, frame)
    m.box((-w / 2, w / 2), (y0, y1), (base - 0.1, base), frame)
    if rng.random() < 0.5:
        m.box((-w / 2, w / 2), (y0 - 0.06, y0), (0, head), frame)
    elif rng.random() < 0.5:
        m.cushion((-w / 2, w / 2), (y0 - 0.1, y0 + 0.02), (0.1, head), fabric(rng, 0.8), 0.05)
    else:
        for x in (-w / 2 + 0.03, w / 2 - 0.03):
            m.box((x - 0.03, x + 0.03), (y0 - 0.05, y0), (0, head), frame)
        for z in np.linspace(top + 0.12, head - 0.05, 3):
            m.box((-w / 2, w / 2), (y0 - 0.04, y0 - 0.01), (z - 0.04, z + 0.04), frame)
    if rng.random() < 0.4:
        m.box((-w / 2, w / 2), (y1, y1 + 0.05), (0, top + rng.uniform(-0.1, 0.15)), frame)
    m.cushion((-w / 2 + 0.02, w / 2 - 0.02), (y0, y1 - 0.01), (base, top), sheet, 0.05)
    fold = y0 + l * rng.uniform(0.26, 0.42)
    m.cushion((-w / 2 - 0.03, w / 2 + 0.03), (fold, y1 + 0.01), (base + 0.02, top + 0.045), cover, 0.05)
    m.cushion((-w / 2 - 0.02, w / 2 + 0.02), (fold - 0.14, fold + 0.08), (top - 0.08, top + 0.06), sheet, 0.03)
    return m


def _seat(rng: Rng, w: Real, d: Real) -> Mesh:
    m, cloth = Mesh(), fabric(rng)
    seat, back = rng.uniform(0.36, 0.46), rng.uniform(0.68, 0.95)
    arm, arm_h, lift = rng.uniform(0.08, 0.24), rng.uniform(0.5, 0.66), rng.uniform(0.05, 0.14)
    feet = wood(rng)
    _legs(m, w, d, lift, 0.03, feet, 0.03)
    soft = Material(_shade(cloth.color, 1.08), cloth.second, cloth.texture, cloth.scale)
    m.box((-w / 2 + 0.01, w / 2 - 0.01), (-d / 2 + 0.02, d / 2 - 0.02), (lift, seat - 0.12), cloth)
    m.cushion((-w / 2, w / 2), (-d / 2, -d / 2 + 0.2), (lift, back), cloth, 0.06)
    for s in (-1, 1):
        x = sorted((s * w / 2, s * (w / 2 - arm)))
        m.cushion((x[0], x[1]), (-d / 2, d / 2 - 0.02), (lift, arm_h), cloth, min(0.09, arm * 0.4))
    inner = w - 2 * arm
    n = max(1, round(inner / rng.uniform(0.55, 0.95)))
    for k in range(n):
        x0, x1 = -inner / 2 + k * inner / n + 0.006, -inner / 2 + (k + 1) * inner / n - 0.006
        m.cushion((x0, x1), (-d / 2 + 0.18, d / 2), (seat - 0.13, seat), soft, 0.045)
        mark = m.mark()
        m.cushion((x0, x1), (-d / 2 + 0.16, -d / 2 + 0.32), (seat, min(back + 0.03, seat + 0.45)), soft, 0.06)
        m.turn(mark, "x", 0.12, (0, -d / 2 + 0.2, seat))
    return m


def sofa(rng: Rng) -> Mesh:
    return _seat(rng, rng.uniform(1.3, 3.0), rng.uniform(0.78, 1.08))


def armchair(rng: Rng) -> Mesh:
    return _seat(rng, rng.uniform(0.66, 1.08), rng.uniform(0.7, 0.95))


def chair(rng: Rng) -> Mesh:
    m = Mesh()
    w, d, seat, back = rng.uniform(0.38, 0.54), rng.uniform(0.38, 0.52), rng.uniform(0.42, 0.5), rng.uniform(0.76, 1.12)
    frame = wood(rng) if rng.random() < 0.65 else metal(rng)
    pad = fabric(rng, 0.8) if rng.random() < 0.6 else frame
    kind = rng.integers(4)
    if kind == 3:  # office chair
        pad = fabric(rng, 0.9)
        for k in range(5):
            a = k * 2 * pi / 5
            m.tube((0, 0, 0.09), (0.28 * cos(a), 0.28 * sin(a), 0.06), 0.025, DARK)
            m.ellipsoid((0.28 * cos(a), 0.28 * sin(a), 0.035), (0.035, 0.035, 0.035), BLACK, 6, 4)
        m.cylinder((0, 0), (0.08, seat - 0.05), 0.03, CHROME, n=8)
        m.cushion((-w / 2, w / 2), (-d / 2, d / 2), (seat - 0.07, seat + 0.02), pad, 0.05)
        mark = m.mark()
        m.cushion((-w / 2 + 0.02, w / 2 - 0.02), (-d / 2 - 0.05, -d / 2 + 0.03), (seat + 0.1, back), pad, 0.04)
        m.box((-0.03, 0.03), (-d / 2 - 0.06, -d / 2 - 0.03), (seat - 0.05, seat + 0.3), DARK)
        m.turn(mark, "x", 0.1, (0, -d / 2, seat))
        if rng.random() < 0.5:
            for s in (-1, 1):
                m.box((s * w / 2 - 0.03, s * w / 2 + 0.03), (-0.16, 0.12), (seat + 0.18, seat + 0.21), DARK)
                m.box((s * w / 2 - 0.02, s * w / 2 + 0.02), (-0.04, 0.0), (seat - 0.04, seat + 0.18), DARK)
        return m
    r = rng.uniform(0.014, 0.026)
    _legs(m, w, d, seat - 0.03, r, frame, 0.0, rng.random() < 0.4)
    m.cushion((-w / 2, w / 2), (-d / 2, d / 2), (seat - 0.045, seat), pad, 0.02)
    mark = m.mark()
    for s in (-1, 1):
        x = s * (w / 2 - r)
        m.box((x - r, x + r), (-d / 2, -d / 2 + 2 * r), (seat, back), frame)
    y = (-d / 2 + 0.004, -d / 2 + 0.026)
    if kind == 0:
        m.box((-w / 2 + r, w / 2 - r), y, (seat + (back - seat) * rng.uniform(0.15, 0.5), back - 0.01), pad)
    elif kind == 1:
        m.box((-w / 2, w / 2), y, (back - 0.09, back), frame)
        for x in np.linspace(-w / 2 + 0.09, w / 2 - 0.09, 4):
            m.box((x - 0.013, x + 0.013), y, (seat, back - 0.08), frame)
    else:
        for z in np.linspace(seat + 0.14, back - 0.05, 3):
            m.box((-w / 2, w / 2), y, (z - 0.032, z + 0.032), frame)
    m.turn(mark, "x", rng.uniform(0.04, 0.16), (0, -d / 2, seat))
    return m


def stool(rng: Rng) -> Mesh:
    m, h, r = Mesh(), rng.uniform(0.42, 0.8), rng.uniform(0.15, 0.23)
    frame = wood(rng) if rng.random() < 0.6 else metal(rng)
    top = fabric(rng, 0.7) if rng.random() < 0.5 else frame
    thick = rng.uniform(0.04, 0.1)
    m.lathe((0, 0), [(r * 0.94, h - thick), (r, h - thick * 0.7), (r, h - 0.012), (r * 0.92, h)], top, 18)
    n = int(rng.integers(3, 5))
    a0 = rng.uniform(0, 1)
    feet = [(r * 1.02 * cos(a0 + k * 2 * pi / n), r * 1.02 * sin(a0 + k * 2 * pi / n)) for k in range(n)]
    for x, y in feet:
        m.tube((x * 0.65, y * 0.65, h - thick), (x, y, 0.0), 0.02, frame, 7)
    m.hoop((0, 0, h * 0.3), r * 0.9, 0.011, frame, "z", n=14)
    return m


def _table(rng: Rng, w: Real, d: Real, h: Real) -> Mesh:
    m, mat = Mesh(), wood(rng)
    t = rng.uniform(0.025, 0.055)
    leg = metal(rng) if rng.random() < 0.3 else (mat if rng.random() < 0.8 else wood(rng))
    kind = rng.choice(4, p=(0.5, 0.12, 0.2, 0.18))
    if kind == 3:  # round or oval on a pedestal
        m.lathe((0, 0), [(w / 2 * 0.98, h - t), (w / 2, h - t / 2), (w / 2 * 0.98, h)], mat, 28, squash=d / w)
        m.lathe((0, 0), [(0.05, 0.05), (0.035, h * 0.5), (0.07, h - t)], leg, 10)
        base = min(w, d) * 0.3
        m.lathe((0, 0), [(base, 0), (base, 0.025), (0.05, 0.06)], leg, 18)
        return m
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (h - t, h), mat)
    if kind == 0:
        r = rng.uniform(0.02, 0.05)
        _legs(m, w, d, h - t, r, leg, rng.uniform(0, 0.06), rng.random() < 0.35)
        if rng.random() < 0.7:
            for y in (-d / 2 + 0.07, d / 2 - 0.07):
                m.box((-w / 2 + 0.06, w / 2 - 0.06), (y - 0.01, y + 0.01), (h - t - 0.08, h - t), leg)
    elif kind == 1:
        for s in (-1, 1):
            x = s * (w / 2 - 0.06)
            m.box((x - 0.03, x + 0.03), (-d / 2 + 0.03, d / 2 - 0.03), (0, h - t), leg)
    else:
        for s in (-1, 1):
            x = s * w * 0.36
            for q in (-1, 1):
                m.tube((x, 0, h - t - 0.03), (x, q * d * 0.42, 0.0), 0.03, leg, 5)
            m.box((x - 0.03, x + 0.03), (-d * 0.42, d * 0.42), (h - t - 0.05, h - t), leg)
        m.tube((-w * 0.36, 0, h * 0.6), (w * 0.36, 0, h * 0.6), 0.022, leg, 5)
    return m


def table(rng: Rng) -> Mesh:
    w = rng.uniform(0.75, 2.4)
    return _table(rng, w, min(w, rng.uniform(0.7, 1.1)), rng.uniform(0.7, 0.79))


def coffee_table(rng: Rng) -> Mesh:
    w, h = rng.uniform(0.6, 1.4), rng.uniform(0.32, 0.47)
    m = _table(rng, w, min(w, rng.uniform(0.45, 0.8)), h)
    return m


def _front(m: Mesh, x: Pair, y: float, z: Pair, face: Material, knob: Material, kind: int) -> None:
    """A drawer or door front with a shadow gap and a handle."""
    g = 0.009
    m.box((x[0] + g, x[1] - g), (y, y + 0.016), (z[0] + g, z[1] - g), face)
    cx, cz, w = (x[0] + x[1]) / 2, (z[0] + z[1]) / 2, x[1] - x[0]
    if kind == 0:
        m.box((cx - min(0.09, w * 0.25), cx + min(0.09, w * 0.25)), (y + 0.016, y + 0.042), (cz - 0.011, cz + 0.011), knob)
    else:
        m.box((cx - 0.018, cx + 0.018), (y + 0.016, y + 0.045), (cz - 0.018, cz + 0.018), knob)


def _carcass(m: Mesh, w: Real, d: Real, z: Pair, mat: Material) -> None:
    m.box((-w / 2, w / 2), (-d / 2, d / 2 - 0.016), z, mat)


def _drawers(rng: Rng, w: Real, d: Real, h: Real, cols: int, rows: int) -> Mesh:
    m, body = Mesh(), wood(rng)
    lift = rng.uniform(0.03, 0.16)
    dark = Material(_shade(body.color, 0.4))
    face = body if rng.random() < 0.7 else wood(rng)
    knob, kind = metal(rng), int(rng.integers(2))
    _legs(m, w, d - 0.03, lift, 0.02, body, 0.01)
    _carcass(m, w, d, (lift, h), dark)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (h - 0.025, h), body)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (lift, lift + 0.03), body)
    for s in (-1, 1):
        x = sorted((s * w / 2, s * (w / 2 - 0.02)))
        m.box((x[0] - 0.001, x[1] + 0.001), (-d / 2, d / 2), (lift, h), body)
    for c in range(cols):
        for r in range(rows):
            inner, tall = w - 0.04, h - lift - 0.055
            x0, z0 = -inner / 2 + c * inner / cols, lift + 0.03 + r * tall / rows
            _front(m, (x0, x0 + inner / cols), d / 2 - 0.016, (z0, z0 + tall / rows), face, knob, kind)
    return m


def nightstand(rng: Rng) -> Mesh:
    return _drawers(rng, rng.uniform(0.34, 0.62), rng.uniform(0.3, 0.45), rng.uniform(0.4, 0.66), 1, int(rng.integers(1, 3)))


def dresser(rng: Rng) -> Mesh:
    w = rng.uniform(0.75, 1.8)
    return _drawers(rng, w, rng.uniform(0.38, 0.55), rng.uniform(0.74, 1.2), max(1, round(w / 0.6)), int(rng.integers(3, 6)))


def wardrobe(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.65, 2.4), rng.uniform(0.5, 0.66), rng.uniform(1.75, 2.22)
    body, knob = wood(rng), metal(rng)
    dark = Material(_shade(body.color, 0.35))
    face = body if rng.random() < 0.7 else wood(rng)
    _carcass(m, w, d, (0.0, h), dark)
    m.box((-w / 2 - 0.01, w / 2 + 0.01), (-d / 2, d / 2 + 0.01), (h, h + 0.04), body)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (0, 0.08), body)
    for s in (-1, 1):
        x = sorted((s * w / 2, s * (w / 2 - 0.02)))
        m.box((x[0] - 0.001, x[1] + 0.001), (-d / 2, d / 2 - 0.002), (0, h), body)
    n = max(1, round(w / 0.5))
    panel = rng.random() < 0.4
    for k in range(n):
        x0, x1 = -w / 2 + 0.02 + k * (w - 0.04) / n, -w / 2 + 0.02 + (k + 1) * (w - 0.04) / n
        m.box((x0 + 0.009, x1 - 0.009), (d / 2 - 0.016, d / 2 + 0.004), (0.09, h - 0.01), face)
        if panel:
            for z in ((0.2, h * 0.45), (h * 0.5, h - 0.12)):
                m.box((x0 + 0.08, x1 - 0.08), (d / 2 + 0.004, d / 2 + 0.014), z, Material(_shade(face.color, 0.82)))
        hx = x1 - 0.05 if k % 2 == 0 else x0 + 0.05
        m.box((hx - 0.013, hx + 0.013), (d / 2, d / 2 + 0.04), (h * 0.42, h * 0.58), knob)
    return m


def bookshelf(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.5, 1.9), rng.uniform(0.26, 0.4), rng.uniform(0.85, 2.2)
    body, t = wood(rng), 0.025
    for s in (-1, 1):
        x = sorted((s * w / 2, s * (w / 2 - t)))
        m.box((x[0], x[1]), (-d / 2, d / 2), (0, h), body)
    m.box((-w / 2, w / 2), (-d / 2, -d / 2 + 0.012), (0, h), Material(_shade(body.color, 0.7)))
    n = max(2, round(h / rng.uniform(0.3, 0.42)))
    levels = np.linspace(0.05, h - t, n + 1)
    spines = [Material(_hue(rng, (0.2, 0.85), (0.2, 0.9))) for _ in range(7)]
    fill = rng.uniform(0.5, 1.0)
    for k, z in enumerate(levels):
        m.box((-w / 2, w / 2), (-d / 2, d / 2), (z, z + t), body)
        if k == n:
            break
        x, room = -w / 2 + t + 0.01, levels[1] - levels[0] - t
        while x < w / 2 - t - 0.08:
            bw = rng.uniform(0.035, 0.09)
            if rng.random() < fill:
                tall = room * rng.uniform(0.6, 0.93)
                m.box((x, x + bw - 0.004), (-d / 2 + 0.02, d / 2 - rng.uniform(0.02, 0.09)), (z + t, z + t + tall),
                      spines[rng.integers(7)])  # fmt: skip
            else:
                bw = rng.uniform(0.08, 0.25)
            x += bw
    return m


def desk(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.95, 1.9), rng.uniform(0.5, 0.8), rng.uniform(0.71, 0.78)
    top = wood(rng)
    side = top if rng.random() < 0.6 else paint(rng)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (h - 0.035, h), top)
    m.box((-w / 2 + 0.03, w / 2 - 0.03), (-d / 2 + 0.05, -d / 2 + 0.07), (h * 0.45, h - 0.035), side)
    pw, knob = rng.uniform(0.32, 0.45), metal(rng)
    both = w > 1.5 and rng.random() < 0.5
    for s in (-1, 1):
        if s == 1 or both:
            x0 = w / 2 - pw - 0.01 if s == 1 else -w / 2 + 0.01
            m.box((x0, x0 + pw), (-d / 2 + 0.03, d / 2 - 0.03), (0.03, h - 0.035), side)
            for r in range(3):
                z0 = 0.04 + r * (h - 0.085) / 3
                _front(m, (x0, x0 + pw), d / 2 - 0.03, (z0, z0 + (h - 0.085) / 3), top, knob, 0)
        else:
            m.box((-w / 2 + 0.01, -w / 2 + 0.045), (-d / 2 + 0.02, d / 2 - 0.02), (0, h - 0.035), side)
    return m


def tv(rng: Rng, feet: bool = True) -> Mesh:
    m, w = Mesh(), rng.uniform(0.7, 1.6)
    h = w * 0.575
    z0 = 0.06
    m.box((-w / 2, w / 2), (-0.03, 0.02), (z0, z0 + h), BLACK)
    on = rng.random() < 0.4
    screen = Material(_hue(rng, (0.2, 0.7), (0.3, 0.8)), _hue(rng), "art", 0.25, 0.5) if on else Material((0.09, 0.10, 0.12))
    m.box((-w / 2 + 0.025, w / 2 - 0.025), (0.02, 0.024), (z0 + 0.03, z0 + h - 0.025), screen)
    for s in (-1, 1) if feet else ():
        m.box((s * w * 0.3 - 0.02, s * w * 0.3 + 0.02), (-0.11, 0.11), (0, 0.02), DARK)
        m.box((s * w * 0.3 - 0.015, s * w * 0.3 + 0.015), (-0.02, 0.01), (0, z0), DARK)
    return m


def tv_stand(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.95, 2.1), rng.uniform(0.35, 0.48), rng.uniform(0.36, 0.6)
    body, t, lift = wood(rng), 0.03, rng.uniform(0.02, 0.14)
    face = body if rng.random() < 0.5 else paint(rng)
    _legs(m, w, d, lift, 0.02, body, 0.02)
    n = 3 if w > 1.25 else 2
    m.box((-w / 2, w / 2), (-d / 2, -d / 2 + 0.02), (lift, h), Material(_shade(body.color, 0.45)))
    for z in (lift, h - t):
        m.box((-w / 2, w / 2), (-d / 2, d / 2), (z, z + t), body)
    for k in range(n + 1):
        x = -w / 2 + k * (w - t) / n
        m.box((x, x + t), (-d / 2, d / 2 - 0.001), (lift, h), body)
        if k < n and (k + n) % 2 == 1:
            _front(m, (x + t, x + (w - t) / n), d / 2 - 0.016, (lift + t, h - t), face, CHROME, 0)
        elif k < n:
            m.box((x + t, x + (w - t) / n), (-d / 2 + 0.02, d / 2 - 0.03), ((lift + h) / 2 - 0.01, (lift + h) / 2 + 0.01), body)
    return m


def _shade_mat(rng: Rng) -> Material:
    return Material(_hue(rng, (0.05, 0.45), (0.85, 1.0)), glow=rng.uniform(0.5, 0.95))


def floor_lamp(rng: Rng) -> Mesh:
    m, h, r = Mesh(), rng.uniform(1.25, 1.85), rng.uniform(0.15, 0.28)
    pole, shade, sh = metal(rng), _shade_mat(rng), rng.uniform(0.22, 0.38)
    if rng.random() < 0.3:
        for k in range(3):
            a = k * 2 * pi / 3 + 0.4
            m.tube((0, 0, h - sh), (0.26 * cos(a), 0.26 * sin(a), 0), 0.016, pole, 5)
    else:
        m.lathe((0, 0), [(0.16, 0), (0.16, 0.02), (0.03, 0.04)], pole, 16)
        m.cylinder((0, 0), (0.02, h - sh * 0.5), 0.014, pole, n=6)
    m.cylinder((0, 0), (h - sh, h), r, shade, r * rng.uniform(0.5, 0.95), 16)
    return m


def table_lamp(rng: Rng) -> Mesh:
    m, h, r = Mesh(), rng.uniform(0.36, 0.68), rng.uniform(0.11, 0.2)
    base, shade, sh = paint(rng), _shade_mat(rng), h * rng.uniform(0.38, 0.5)
    b = r * rng.uniform(0.45, 0.7)
    m.lathe((0, 0), [(b * 0.7, 0), (b * 0.7, 0.02), (b, (h - sh) * 0.35), (b * 0.5, (h - sh) * 0.8), (0.012, h - sh + 0.02)],
            base, 12)  # fmt: skip
    m.cylinder((0, 0), (h - sh, h), r, shade, r * rng.uniform(0.5, 0.85), 14)
    return m


def plant(rng: Rng) -> Mesh:
    m, h = Mesh(), rng.uniform(0.55, 1.75)
    pr = rng.uniform(0.12, 0.2) * (0.7 + 0.4 * h)
    ph = pr * rng.uniform(1.3, 2.2)
    pot = paint(rng) if rng.random() < 0.6 else Material(_jitter(rng, (0.68, 0.36, 0.22)))
    m.lathe((0, 0), [(pr * 0.7, 0), (pr, ph), (pr * 0.88, ph), (pr * 0.85, ph - 0.03)], pot, 14)
    m.cylinder((0, 0), (ph - 0.05, ph - 0.03), pr * 0.85, Material((0.2, 0.13, 0.09)), n=10)
    hue = rng.uniform(0.22, 0.40)
    leaf = [Material(colorsys.hsv_to_rgb(hue + rng.uniform(-0.02, 0.02), rng.uniform(0.45, 0.85), v))
            for v in (0.30, 0.42, 0.56)]  # fmt: skip
    kind, reach = rng.integers(3), rng.uniform(0.5, 1.0) * min(0.42, 0.35 * h + 0.1)
    if kind == 0:  # bush of leaf clumps
        m.cylinder((0, 0), (ph - 0.04, h * 0.7), 0.025, Material((0.35, 0.24, 0.14)), n=6)
        for k in range(9):
            a, rr = rng.uniform(0, 2 * pi), reach * rng.uniform(0.2, 0.75)
            s = reach * rng.uniform(0.35, 0.55)
            z = rng.uniform(ph + s * 0.6, h - s * 0.8) if h - s * 0.8 > ph + s * 0.6 else h - s
            m.ellipsoid((rr * cos(a), rr * sin(a), z), (s, s, s * 0.8), leaf[k % 3], 8, 5)
    else:  # arching or upright blades
        n = int(rng.integers(11, 18))
        bend = 1.0 if kind == 1 else 0.35
        for k in range(n):
            a = k * 2.4 + rng.uniform(-0.3, 0.3)
            length, droop, wide = (h - ph) * rng.uniform(0.75, 1.0), rng.uniform(0.1, 0.5) * bend, rng.uniform(0.025, 0.06)
            t = np.linspace(0, 1, 5)
            out = reach * bend * t**1.5 + 0.03 * t
            up = ph - 0.04 + length * (t - droop * t**3)
            spread = wide * np.sin(np.clip(t * 0.85 + 0.15, 0, 1) * pi) * (1 + h * 0.5) + 0.004
            c, s = cos(a), sin(a)
            left = np.stack([out * c - spread * s, out * s + spread * c, up], 1)
            right = np.stack([out * c + spread * s, out * s - spread * c, up], 1)
            quads = [np.stack([left[i], right[i], right[i + 1]]) for i in range(4)]
            quads += [np.stack([left[i], right[i + 1], left[i + 1]]) for i in range(4)]
            m.add(np.stack(quads), leaf[k % 3])
    return m


def refrigerator(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.55, 0.98), rng.uniform(0.58, 0.76), rng.uniform(1.35, 2.0)
    body, handle = appliance(rng), metal(rng)
    gap = Material(_shade(body.color, 0.35))
    m.box((-w / 2, w / 2), (-d / 2, d / 2 - 0.05), (0.03, h), body)
    m.box((-w / 2 + 0.01, w / 2 - 0.01), (-d / 2, d / 2 - 0.04), (0, h - 0.005), gap)
    if w > 0.8 and rng.random() < 0.6:
        cut = h * rng.uniform(0.3, 0.4)
        doors = [((-w / 2, 0), (cut, h)), ((0, w / 2), (cut, h)), ((-w / 2, w / 2), (0.05, cut))]
    else:
        cut = h * (rng.uniform(0.3, 0.42) if rng.random() < 0.5 else rng.uniform(0.62, 0.74))
        doors = [((-w / 2, w / 2), (0.05, cut)), ((-w / 2, w / 2), (cut, h))]
    side = 1 if rng.random() < 0.5 else -1
    for k, (x, z) in enumerate(doors):
        m.box((x[0] + 0.005, x[1] - 0.005), (d / 2 - 0.05, d / 2), (z[0] + 0.008, z[1] - 0.008), body)
        hx = {0: x[1] - 0.05, 1: x[0] + 0.05}.get(k, 0.0) if len(doors) == 3 else side * (w / 2 - 0.06)
        if k == 2:
            m.box((-w * 0.3, w * 0.3), (d / 2, d / 2 + 0.045), (z[1] - 0.09, z[1] - 0.06), handle)
        else:
            c, half = (z[0] + z[1]) / 2, (z[1] - z[0]) * 0.25
            m.box((hx - 0.014, hx + 0.014), (d / 2, d / 2 + 0.045), (c - half, c + half), handle)
    return m


def stove(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.5, 0.95), rng.uniform(0.55, 0.66), rng.uniform(0.84, 0.94)
    body = appliance(rng)
    m.box((-w / 2, w / 2), (-d / 2, d / 2 - 0.03), (0.04, h - 0.02), body)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (h - 0.02, h), DARK if rng.random() < 0.7 else CHROME)
    for x in (-w * 0.25, w * 0.25):
        for y in (-d * 0.22, d * 0.2):
            m.hoop((x, y, h + 0.015), w * 0.13, 0.015, Material((0.25, 0.25, 0.26)), "z", 12)
            m.cylinder((x, y), (h, h + 0.02), w * 0.06, Material((0.45, 0.44, 0.43)), n=10)
    m.box((-w / 2, w / 2), (-d / 2, -d / 2 + 0.05), (h, h + rng.uniform(0.1, 0.2)), body)
    m.box((-w / 2, w / 2), (d / 2 - 0.03, d / 2), (h - 0.14, h - 0.03), Material(_shade(body.color, 0.8)))
    for x in np.linspace(-w * 0.4, w * 0.4, 5):
        m.box((x - 0.022, x + 0.022), (d / 2, d / 2 + 0.03), (h - 0.108, h - 0.064), BLACK)
    m.box((-w / 2 + 0.01, w / 2 - 0.01), (d / 2 - 0.03, d / 2), (0.2, h - 0.15), body)
    m.box((-w * 0.36, w * 0.36), (d / 2, d / 2 + 0.004), (0.3, h - 0.3), BLACK)
    m.box((-w * 0.4, w * 0.4), (d / 2, d / 2 + 0.05), (h - 0.22, h - 0.19), CHROME)
    m.box((-w / 2 + 0.01, w / 2 - 0.01), (d / 2 - 0.03, d / 2), (0.05, 0.19), body)
    return m


def sink(rng: Rng) -> Mesh:
    m, h = Mesh(), rng.uniform(0.78, 0.92)
    basin = Material(_jitter(rng, (0.94, 0.94, 0.93), 0.02))
    if rng.random() < 0.45:  # pedestal
        w, d = rng.uniform(0.45, 0.7), rng.uniform(0.4, 0.52)
        m.lathe((0, -0.05), [(0.13, 0), (0.09, 0.1), (0.08, h * 0.6), (0.14, h - 0.16)], basin, 12)
        top = 0.0
    else:
        w, d = rng.uniform(0.55, 1.3), rng.uniform(0.45, 0.58)
        body, face = wood(rng), None
        _carcass(m, w - 0.02, d - 0.03, (0.08, h - 0.14), Material(_shade(body.color, 0.4)))
        m.box((-w / 2 + 0.01, -w / 2 + 0.03), (-d / 2, d / 2 - 0.03), (0.0, h - 0.14), body)
        m.box((w / 2 - 0.03, w / 2 - 0.01), (-d / 2, d / 2 - 0.03), (0.0, h - 0.14), body)
        face = body
        n = max(2, round(w / 0.4))
        for k in range(n):
            x0 = -w / 2 + 0.02 + k * (w - 0.04) / n
            _front(m, (x0, x0 + (w - 0.04) / n), d / 2 - 0.031, (0.1, h - 0.15), face, CHROME, 1)
        m.box((-w / 2, w / 2), (-d / 2, d / 2), (h - 0.14, h - 0.08), Material(_hue(rng, (0, 0.15), (0.2, 0.95))))
        top = 0.0
    bw, bd = min(w, 0.62), d
    if w > bw + 0.02:
        bw, bd = 0.55, d - 0.06
    rim, depth = 0.05, 0.13
    z1 = h + top
    for x in ((-bw / 2, -bw / 2 + rim), (bw / 2 - rim, bw / 2)):
        m.box(x, (-bd / 2, bd / 2), (z1 - depth - 0.02, z1), basin)
    m.box((-bw / 2, bw / 2), (-bd / 2, -bd / 2 + 0.1), (z1 - depth - 0.02, z1), basin)
    m.box((-bw / 2, bw / 2), (bd / 2 - rim, bd / 2), (z1 - depth - 0.02, z1), basin)
    m.box((-bw / 2, bw / 2), (-bd / 2, bd / 2), (z1 - depth - 0.02, z1 - depth), Material((0.72, 0.73, 0.74)))
    m.tube((0, -bd / 2 + 0.05, z1), (0, -bd / 2 + 0.05, z1 + 0.2), 0.016, CHROME)
    m.tube((0, -bd / 2 + 0.05, z1 + 0.19), (0, -bd / 2 + 0.2, z1 + 0.15), 0.014, CHROME)
    return m


def washer(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.55, 0.72), rng.uniform(0.5, 0.68), rng.uniform(0.8, 1.02)
    body = appliance(rng)
    m.cushion((-w / 2, w / 2), (-d / 2, d / 2 - 0.02), (0.0, h), body, 0.02)
    m.box((-w / 2 + 0.01, w / 2 - 0.01), (d / 2 - 0.02, d / 2), (h - 0.15, h - 0.01), Material(_shade(body.color, 0.72)))
    mark = m.mark()
    r = w * rng.uniform(0.3, 0.36)
    m.lathe((0, 0), [(r, 0), (r, 0.04), (r * 0.74, 0.055)], CHROME, 22)
    m.lathe((0, 0), [(r * 0.74, 0.05), (r * 0.6, 0.075), (r * 0.3, 0.085)], GLASS, 18)
    m.turn(mark, "x", -pi / 2)
    m.move(mark, (0, d / 2 - 0.03, h * 0.44))
    mark = m.mark()
    m.cylinder((0, 0), (0, 0.03), 0.035, DARK, n=10)
    m.turn(mark, "x", -pi / 2)
    m.move(mark, (w * 0.1, d / 2, h - 0.08))
    m.box((-w * 0.44, -w * 0.16), (d / 2, d / 2 + 0.004), (h - 0.12, h - 0.04), WHITE)
    m.box((w * 0.26, w * 0.44), (d / 2, d / 2 + 0.004), (h - 0.11, h - 0.05), BLACK)
    return m


def toilet(rng: Rng) -> Mesh:
    m = Mesh()
    c = Material(_jitter(rng, (0.95, 0.95, 0.94), 0.02)) if rng.random() < 0.85 else Material(_hue(rng, (0.15, 0.4), (0.7, 0.9)))
    w, d, seat, tank = rng.uniform(0.36, 0.44), rng.uniform(0.62, 0.76), rng.uniform(0.38, 0.46), rng.uniform(0.74, 0.92)
    m.cushion((-w / 2, w / 2), (-d / 2, -d / 2 + 0.2), (seat - 0.05, tank), c, 0.03)
    m.box((-w / 2 - 0.01, w / 2 + 0.01), (-d / 2, -d / 2 + 0.21), (tank, tank + 0.03), c)
    m.box((-0.04, 0.04), (-d / 2 + 0.07, -d / 2 + 0.13), (tank + 0.03, tank + 0.045), CHROME)
    y = d / 2 - 0.24
    m.lathe((0, y), [(0.12, 0), (0.1, 0.1), (w * 0.42, seat - 0.1), (w * 0.5, seat - 0.03)], c, 16, squash=1.2)
    m.box((-0.1, 0.1), (-d / 2 + 0.08, y), (0, seat - 0.06), c)
    lid = Material(_shade(c.color, 0.97)) if rng.random() < 0.7 else wood(rng)
    m.lathe((0, y), [(w * 0.51, seat - 0.03), (w * 0.51, seat), (w * 0.36, seat + 0.005)], lid, 18, squash=1.2)
    if rng.random() < 0.5:
        m.lathe((0, y), [(w * 0.33, seat + 0.0), (w * 0.33, seat + 0.008)], Material((0.35, 0.42, 0.48)), 16, squash=1.2)
    if rng.random() < 0.6:  # lid up
        mark = m.mark()
        m.lathe((0, 0), [(w * 0.5, 0), (w * 0.5, 0.025)], lid, 18, squash=1.15)
        m.turn(mark, "x", pi / 2 + 0.12)
        m.move(mark, (0, -d / 2 + 0.245, seat + w * 0.56))
    return m


def bathtub(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(1.3, 1.9), rng.uniform(0.68, 0.92), rng.uniform(0.5, 0.64)
    shell = Material(_jitter(rng, (0.95, 0.95, 0.94), 0.02))
    out = shell if rng.random() < 0.6 else paint(rng)
    rim, floor = 0.07, 0.16
    water = Material((0.62, 0.78, 0.84)) if rng.random() < 0.4 else Material((0.86, 0.87, 0.88))
    m.box((-w / 2, w / 2), (-d / 2, -d / 2 + rim), (0, h - 0.03), out)
    m.box((-w / 2, w / 2), (d / 2 - rim, d / 2), (0, h - 0.03), out)
    m.box((-w / 2, -w / 2 + rim), (-d / 2, d / 2), (0, h - 0.03), out)
    m.box((w / 2 - rim * 1.6, w / 2), (-d / 2, d / 2), (0, h - 0.03), out)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (floor - 0.02, floor), water)
    for y in ((-d / 2 - 0.01, -d / 2 + rim + 0.02), (d / 2 - rim - 0.02, d / 2 + 0.01)):
        m.box((-w / 2, w / 2), y, (h - 0.03, h), shell)
    for x in ((-w / 2 - 0.01, -w / 2 + rim + 0.04), (w / 2 - rim * 1.6 - 0.04, w / 2 + 0.01)):
        m.box(x, (-d / 2, d / 2), (h - 0.03, h), shell)
    m.tube((w / 2 - 0.05, 0, h), (w / 2 - 0.05, 0, h + 0.2), 0.02, CHROME)
    m.tube((w / 2 - 0.05, 0, h + 0.19), (w / 2 - 0.22, 0, h + 0.15), 0.018, CHROME)
    return m


def _frame(m: Mesh, w: Real, h: Real, t: Real, frame: Material, face: Material, deep: Real = 0.035) -> None:
    for x in ((-w / 2, -w / 2 + t), (w / 2 - t, w / 2)):
        m.box(x, (0, deep), (0, h), frame)
    for z in ((0, t), (h - t, h)):
        m.box((-w / 2, w / 2), (0, deep), z, frame)
    m.box((-w / 2 + t, w / 2 - t), (0, deep * 0.5), (t, h - t), face)


def mirror(rng: Rng) -> Mesh:
    m = Mesh()
    face = Material((0.80, 0.84, 0.86), texture="mirror")
    frame = metal(rng) if rng.random() < 0.4 else wood(rng)
    _frame(m, rng.uniform(0.45, 1.0), rng.uniform(0.7, 1.7), rng.uniform(0.03, 0.08), frame, face)
    return m


def picture(rng: Rng) -> Mesh:
    m = Mesh()
    w = rng.uniform(0.4, 1.4)
    h = float(np.clip(w * rng.uniform(0.6, 1.5), 0.4, 1.1))
    c = _hue(rng, (0.2, 0.8), (0.4, 0.95))
    art = Material(c, _hue(rng, (0.3, 0.9), (0.2, 0.8)), "art", rng.uniform(0.15, 0.5))
    frame = Material(BLACK.color) if rng.random() < 0.3 else wood(rng)
    t = rng.uniform(0.02, 0.05)
    _frame(m, w, h, t, frame, WHITE)
    k = t + min(w, h) * rng.uniform(0.0, 0.14)
    m.box((-w / 2 + k, w / 2 - k), (0.017, 0.021), (k, h - k), art)
    return m


def trash_bin(rng: Rng) -> Mesh:
    m, h = Mesh(), rng.uniform(0.3, 0.8)
    r, body = h * rng.uniform(0.32, 0.42), paint(rng) if rng.random() < 0.6 else metal(rng)
    r = min(max(r, 0.13), 0.24)
    if rng.random() < 0.6:  # open bin
        m.lathe((0, 0), [(r * 0.75, 0), (r, h), (r * 0.93, h), (r * 0.7, 0.05)], body, 16)
        m.hoop((0, 0, h), r * 0.97, 0.016, Material(_shade(body.color, 0.7)), "z", 16)
        m.ellipsoid((0, 0, h * 0.72), (r * 0.75, r * 0.75, 0.08), WHITE, 7, 4)
    else:
        m.cylinder((0, 0), (0, h * 0.86), r, body, n=16)
        m.lathe((0, 0), [(r * 1.03, h * 0.86), (r * 1.03, h * 0.9), (r * 0.7, h * 0.98), (0.03, h)], DARK, 16)
        m.box((-0.06, 0.06), (r * 0.9, r + 0.07), (0.01, 0.03), BLACK)
    return m


def radiator(rng: Rng) -> Mesh:
    m, w, h = Mesh(), rng.uniform(0.5, 1.7), rng.uniform(0.45, 0.75)
    c = Material(_hue(rng, (0, 0.1), (0.75, 0.95))) if rng.random() < 0.85 else metal(rng)
    n = max(5, round(w / 0.085))
    for k in range(n):
        x = -w / 2 + (k + 0.5) * w / n
        m.cushion((x - w / n * 0.33, x + w / n * 0.33), (-0.06, 0.06), (0.1, h), c, 0.025)
    for z in (0.15, h - 0.06):
        m.box((-w / 2, w / 2), (-0.03, 0.03), (z - 0.02, z + 0.02), Material(_shade(c.color, 0.6)))
    for s in (-1, 1):
        m.box((s * w * 0.42 - 0.015, s * w * 0.42 + 0.015), (-0.03, 0.03), (0, 0.12), c)
    return m


def box(rng: Rng) -> Mesh:
    m = Mesh()
    w, d, h = rng.uniform(0.3, 0.75), rng.uniform(0.28, 0.55), rng.uniform(0.25, 0.6)
    card = Material(_jitter(rng, (0.70, 0.53, 0.34), 0.08))
    tape = Material(_jitter(rng, (0.86, 0.78, 0.60), 0.04))
    if rng.random() < 0.45:  # open, flaps out
        inside = Material(_shade(card.color, 0.6))
        for x in ((-w / 2, -w / 2 + 0.01), (w / 2 - 0.01, w / 2)):
            m.box(x, (-d / 2, d / 2), (0, h), card)
        for y in ((-d / 2, -d / 2 + 0.01), (d / 2 - 0.01, d / 2)):
            m.box((-w / 2, w / 2), y, (0, h), card)
        m.box((-w / 2, w / 2), (-d / 2, d / 2), (0, h * 0.35), inside)
        f = d * 0.4
        for s in (-1, 1):
            m.sheet(np.array([(-w / 2, s * d / 2, h), (w / 2, s * d / 2, h), (w / 2, s * (d / 2 + f * 0.6), h + f * 0.4),
                              (-w / 2, s * (d / 2 + f * 0.6), h + f * 0.4)]), card)  # fmt: skip
    else:
        m.box((-w / 2, w / 2), (-d / 2, d / 2), (0, h), card)
        m.box((-w / 2 - 0.002, w / 2 + 0.002), (-0.035, 0.035), (h * 0.7, h + 0.002), tape)
        m.box((-w * 0.3, -w * 0.05), (d / 2, d / 2 + 0.002), (h * 0.15, h * 0.4), WHITE)
    return m


def ball(rng: Rng) -> Mesh:
    m, r = Mesh(), rng.uniform(0.14, 0.4)
    c = _hue(rng, (0.45, 0.95), (0.5, 0.95))
    mat = Material(c) if rng.random() < 0.5 else Material(c, _hue(rng, (0.0, 0.4), (0.8, 1.0)), "stripes", r * 0.8)
    m.ellipsoid((0, 0, r), (r, r, r), mat, 22, 13)
    return m


def piano(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(1.15, 1.6), rng.uniform(0.5, 0.66), rng.uniform(0.98, 1.32)
    c = (Material((0.06, 0.06, 0.07)), wood(rng), Material((0.93, 0.92, 0.9)))[rng.choice(3, p=(0.5, 0.35, 0.15))]
    back = d * 0.55
    m.box((-w / 2, w / 2), (-d / 2, -d / 2 + back), (0.0, h), c)
    m.box((-w / 2 - 0.01, w / 2 + 0.01), (-d / 2, -d / 2 + back + 0.02), (h - 0.03, h), c)
    for s in (-1, 1):
        x = sorted((s * w / 2, s * (w / 2 - 0.06)))
        m.box((x[0], x[1]), (-d / 2, d / 2), (0.55, 0.76), c)
        m.box((x[0], x[1]), (d / 2 - 0.08, d / 2 - 0.02), (0, 0.55), c)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (0.58, 0.64), c)
    m.box((-w / 2 + 0.06, w / 2 - 0.06), (-d / 2 + back, d / 2 - 0.02), (0.64, 0.67), Material((0.97, 0.97, 0.94)))
    n = round((w - 0.12) / 0.06)
    for k in range(n):
        if k % 7 in (0, 1, 3, 4, 5):
            x = -w / 2 + 0.06 + (k + 1) * (w - 0.12) / n
            m.box((x - 0.014, x + 0.014), (-d / 2 + back, d / 2 - 0.1), (0.67, 0.685), BLACK)
    m.box((-w * 0.22, w * 0.22), (-d / 2 + back, -d / 2 + back + 0.03), (0.86, h - 0.06), Material((0.95, 0.94, 0.9)))
    for x in (-0.12, 0.0, 0.12):
        m.box((x - 0.02, x + 0.02), (-d / 2 + back, -d / 2 + back + 0.1), (0.04, 0.07), Material((0.75, 0.6, 0.3)))
    return m


def monitor(rng: Rng) -> Mesh:
    m, w = Mesh(), rng.uniform(0.42, 0.95)
    h = w * rng.uniform(0.48, 0.64) if w < 0.75 else w * rng.uniform(0.4, 0.5)
    z0 = rng.uniform(0.1, 0.16)
    shell = DARK if rng.random() < 0.7 else Material((0.8, 0.8, 0.8))
    m.box((-w / 2, w / 2), (-0.02, 0.02), (z0, z0 + h), shell)
    lit = Material(_hue(rng, (0.2, 0.6), (0.6, 1.0)), _hue(rng, (0.0, 0.5), (0.5, 1.0)), "tiles", rng.uniform(0.1, 0.2), 0.8)
    m.box((-w / 2 + 0.015, w / 2 - 0.015), (0.02, 0.023), (z0 + 0.025, z0 + h - 0.015), lit if rng.random() < 0.7 else BLACK)
    m.box((-0.03, 0.03), (-0.05, -0.02), (0, z0 + h * 0.4), shell)
    m.box((-0.14, 0.14), (-0.11, 0.09), (0, 0.015), shell)
    return m


def laptop(rng: Rng) -> Mesh:
    m, w = Mesh(), rng.uniform(0.3, 0.44)
    d = w * 0.68
    shell = metal(rng)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (0, 0.02), shell)
    m.box((-w * 0.44, w * 0.44), (-d * 0.42, d * 0.1), (0.02, 0.023), DARK)
    mark = m.mark()
    m.box((-w / 2, w / 2), (-d / 2, -d / 2 + 0.012), (0.02, 0.02 + d), shell)
    lit = Material(_hue(rng, (0.2, 0.7), (0.6, 1.0)), _hue(rng, (0.0, 0.5), (0.6, 1.0)), "checker", 0.09, 0.9)
    m.box((-w / 2 + 0.012, w / 2 - 0.012), (-d / 2 + 0.012, -d / 2 + 0.015), (0.035, d), lit)
    m.turn(mark, "x", 0.25, (0, -d / 2, 0.02))
    return m


def fan(rng: Rng) -> Mesh:
    m, h, r = Mesh(), rng.uniform(0.95, 1.4), rng.uniform(0.19, 0.27)
    c = paint(rng) if rng.random() < 0.5 else WHITE
    wire = Material(_shade(c.color, 0.75)) if rng.random() < 0.5 else CHROME
    m.lathe((0, 0), [(0.2, 0), (0.2, 0.03), (0.03, 0.06)], c, 16)
    m.cylinder((0, 0), (0.04, h - r), 0.018, c, n=7)
    z = h - r
    m.ellipsoid((0, -0.03, z), (0.07, 0.1, 0.07), c, 9, 6)
    for y in (0.03, 0.12):
        m.hoop((0, y, z), r, 0.012, wire, "y", 20)
    m.hoop((0, 0.1, z), r * 0.55, 0.006, wire, "y", 14)
    for k in range(8):
        a = k * pi / 4
        m.tube((0, 0.135, z), (r * cos(a), 0.12, z + r * sin(a)), 0.005, wire, 4)
    blade = Material(_shade(c.color, 0.9)) if rng.random() < 0.5 else Material((0.45, 0.6, 0.75))
    for k in range(4):
        mark = m.mark()
        m.sheet(np.array([(0.02, 0.09, 0.02), (r * 0.85, 0.10, -0.03), (r * 0.8, 0.05, r * 0.5), (0.03, 0.06, 0.08)]), blade)
        m.turn(mark, "y", k * pi / 2 + 0.3)
        m.move(mark, (0, 0, z))
    m.cylinder((0, 0), (z - 0.03, z + 0.03), 0.03, c, n=8)
    return m


def guitar(rng: Rng) -> Mesh:
    m, s = Mesh(), rng.uniform(0.85, 1.15)
    body = Material(_jitter(rng, ((0.75, 0.45, 0.18), (0.55, 0.14, 0.1), (0.85, 0.68, 0.4), (0.1, 0.1, 0.11))[rng.integers(4)]))
    neck = Material((0.25, 0.15, 0.09))
    for z, r in ((0.33 * s, 0.2 * s), (0.58 * s, 0.145 * s)):
        mark = m.mark()
        m.lathe((0, 0), [(r, -0.05 * s), (r, 0.05 * s)], body, 18)
        m.turn(mark, "x", pi / 2)
        m.move(mark, (0, 0, z))
    m.box((-0.1 * s, 0.1 * s), (-0.05 * s, 0.05 * s), (0.4 * s, 0.58 * s), body)
    mark = m.mark()
    m.cylinder((0, 0), (0, 0.004), 0.055 * s, BLACK, n=14)
    m.turn(mark, "x", -pi / 2)
    m.move(mark, (0, 0.051 * s, 0.5 * s))
    m.box((-0.06 * s, 0.06 * s), (0.05 * s, 0.06 * s), (0.27 * s, 0.3 * s), neck)
    m.box((-0.03 * s, 0.03 * s), (0.03 * s, 0.065 * s), (0.55 * s, 1.05 * s), neck)
    m.box((-0.045 * s, 0.045 * s), (0.03 * s, 0.055 * s), (1.05 * s, 1.2 * s), neck)
    m.turn(0, "x", 0.14)
    for x in (-0.16, 0.16):
        m.tube((0, -0.16, 0.45 * s), (x, -0.22, 0.0), 0.012, BLACK, 5)
        m.tube((x * 0.7, -0.12, 0.12), (x * 0.7, 0.1, 0.12), 0.012, BLACK, 5)
        m.tube((x * 0.7, -0.12, 0.12), (x * 0.9, 0.08, 0.0), 0.012, BLACK, 5)
    return m


def suitcase(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.36, 0.56), rng.uniform(0.22, 0.34), rng.uniform(0.5, 0.8)
    c = Material(_hue(rng, (0.1, 0.9), (0.2, 0.85)))
    m.cushion((-w / 2, w / 2), (-d / 2, d / 2), (0.05, h), c, 0.06)
    rib = Material(_shade(c.color, 0.75))
    for x in np.linspace(-w * 0.34, w * 0.34, 5):
        m.box((x - 0.014, x + 0.014), (-d / 2 - 0.008, d / 2 + 0.008), (0.12, h - 0.07), rib)
    m.box((-w / 2 - 0.004, w / 2 + 0.004), (-0.012, 0.012), (0.06, h + 0.004), DARK)
    for s in (-1, 1):
        for q in (-1, 1):
            m.ellipsoid((s * (w / 2 - 0.05), q * (d / 2 - 0.05), 0.03), (0.03, 0.03, 0.03), BLACK, 6, 4)
        m.box((s * w * 0.22 - 0.008, s * w * 0.22 + 0.008), (-d * 0.38, -d * 0.38 + 0.016), (h - 0.03, h + 0.28), CHROME)
    m.box((-w * 0.24, w * 0.24), (-d * 0.42, -d * 0.42 + 0.04), (h + 0.27, h + 0.31), BLACK)
    return m


def backpack(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.28, 0.4), rng.uniform(0.18, 0.26), rng.uniform(0.42, 0.6)
    c = Material(_hue(rng, (0.2, 0.9), (0.25, 0.85)))
    trim = Material(_shade(c.color, 0.55)) if rng.random() < 0.6 else paint(rng)
    m.cushion((-w / 2, w / 2), (-d / 2, d / 2), (0, h), c, 0.09)
    m.cushion((-w * 0.38, w * 0.38), (d / 2 - 0.03, d / 2 + 0.07), (0.03, h * 0.5), trim, 0.05)
    m.hoop((0, -d * 0.2, h), 0.05, 0.012, trim, "y", 10)
    for s in (-1, 1):
        m.cushion((s * w / 2 - 0.045, s * w / 2 + 0.045), (-0.07, 0.07), (0.03, h * 0.4), trim, 0.03)
        m.tube((s * w * 0.28, d * 0.3, h * 0.95), (s * w * 0.28, d / 2 + 0.02, h * 0.55), 0.018, trim, 4)
    return m


def clock(rng: Rng) -> Mesh:
    m, r = Mesh(), rng.uniform(0.16, 0.36)
    rim = wood(rng) if rng.random() < 0.5 else metal(rng)
    face = WHITE if rng.random() < 0.75 else Material(_hue(rng, (0, 0.5), (0.5, 0.95)))
    m.lathe((0, 0), [(r, 0), (r, 0.035), (r * 0.88, 0.045)], rim, 26)
    m.lathe((0, 0), [(r * 0.88, 0.03), (r * 0.88, 0.047)], face, 26)
    for k in range(12):
        a, t = k * pi / 6, (0.022 if k % 3 == 0 else 0.012) * r / 0.25
        mark = m.mark()
        m.box((-t, t), (r * 0.7, r * 0.83), (0.047, 0.05), BLACK)
        m.turn(mark, "z", a)
    for length, thick in ((0.7, 0.03), (0.45, 0.045)):
        mark = m.mark()
        m.box((-r * thick, r * thick), (-r * 0.1, r * length), (0.05, 0.055), BLACK)
        m.turn(mark, "z", rng.uniform(0, 2 * pi))
    m.turn(0, "x", -pi / 2)
    m.move(0, (0, 0, r))
    return m


def tv_hung(rng: Rng) -> Mesh:
    return tv(rng, feet=False)


def pillow_propped(rng: Rng) -> Mesh:
    m = pillow(rng)
    m.turn(0, "x", rng.uniform(1.0, 1.25))
    return m


def pillow(rng: Rng) -> Mesh:
    m, w, d = Mesh(), rng.uniform(0.38, 0.7), rng.uniform(0.32, 0.46)
    mat = fabric(rng, 0.5) if rng.random() < 0.75 else Material(_hue(rng, (0, 0.1), (0.85, 0.98)))
    h = rng.uniform(0.12, 0.18)
    x, y = np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7), indexing="ij")
    bulge = np.clip((1 - x**4) * (1 - y**4), 0, 1) ** 0.5
    pinch = 1 - 0.06 * (np.abs(x) < 0.9) * (1 - x**2) * np.abs(y) ** 6 - 0.0
    for s in (1, -1):
        p = np.stack([x * w / 2, y * d / 2 * pinch, h / 2 * (1 + s * bulge)], -1)
        a, b, c, e = p[:-1, :-1], p[1:, :-1], p[1:, 1:], p[:-1, 1:]
        quads = np.concatenate([np.stack([a, b, c], 2).reshape(-1, 3, 3), np.stack([a, c, e], 2).reshape(-1, 3, 3)])
        m.add(quads, mat)
    return m


def rug(rng: Rng) -> Mesh:
    m, w, d = Mesh(), rng.uniform(1.0, 2.6), rng.uniform(0.8, 1.8)
    c = _hue(rng, (0.15, 0.8), (0.25, 0.85))
    kind = ("checker", "stripes", "tiles", "dots", "speckle")[rng.integers(5)]
    inner = Material(_hue(rng, (0.1, 0.7), (0.3, 0.9)), c, kind, rng.uniform(0.12, 0.4))
    if rng.random() < 0.3:
        m.lathe((0, 0), [(w / 2, 0), (w / 2, 0.012)], Material(c), 30, squash=d / w)
        m.lathe((0, 0), [(w * 0.42, 0.0), (w * 0.42, 0.016)], inner, 28, squash=d / w)
    else:
        b = rng.uniform(0.06, 0.16)
        m.box((-w / 2, w / 2), (-d / 2, d / 2), (0, 0.012), Material(c))
        m.box((-w / 2 + b, w / 2 - b), (-d / 2 + b, d / 2 - b), (0, 0.016), inner)
    return m


def fireplace(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(1.0, 1.8), rng.uniform(0.3, 0.45), rng.uniform(1.0, 1.35)
    if rng.random() < 0.5:
        c = _jitter(rng, (0.58, 0.30, 0.22), 0.06)
        stone = Material(c, (0.78, 0.74, 0.70), "bricks", 0.11)
    else:
        stone = Material(_hue(rng, (0, 0.12), (0.6, 0.95)))
    side, lintel = w * rng.uniform(0.18, 0.26), h * 0.62
    for s in (-1, 1):
        x = sorted((s * w / 2, s * (w / 2 - side)))
        m.box((x[0], x[1]), (-d / 2, d / 2), (0, lintel), stone)
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (lintel, h), stone)
    m.box((-w / 2 - 0.08, w / 2 + 0.08), (-d / 2, d / 2 + 0.08), (h, h + 0.07), wood(rng))
    m.box((-w / 2 + side, w / 2 - side), (-d / 2, -d / 2 + 0.04), (0, lintel), BLACK)
    m.box((-w / 2 + side, w / 2 - side), (-d / 2, d / 2 - 0.02), (0, 0.03), DARK)
    log = Material((0.3, 0.18, 0.1))
    for k, y in enumerate((-0.05, 0.05, 0.0)):
        m.tube((-w * 0.18, y, 0.08 + 0.07 * (k == 2)), (w * 0.18, y + 0.03, 0.08 + 0.07 * (k == 2)), 0.045, log, 7)
    if rng.random() < 0.7:
        for k in range(5):
            x = (k - 2) * w * 0.06
            m.lathe((x, -0.02), [(0.05, 0.12), (0.06, 0.18), (0.004, rng.uniform(0.3, 0.48))],
                    Material((1.0, 0.55 + 0.1 * (k % 2), 0.12), glow=1.0), 7)  # fmt: skip
    return m


def crib(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(1.0, 1.45), rng.uniform(0.6, 0.8), rng.uniform(0.8, 1.05)
    frame = wood(rng)
    _legs(m, w, d, h, 0.028, frame)
    for y in (-d / 2 + 0.028, d / 2 - 0.028):
        for z in (0.24, h - 0.05):
            m.box((-w / 2, w / 2), (y - 0.02, y + 0.02), (z - 0.025, z + 0.025), frame)
        for x in np.linspace(-w / 2 + 0.1, w / 2 - 0.1, max(8, round(w / 0.11))):
            m.box((x - 0.011, x + 0.011), (y - 0.011, y + 0.011), (0.24, h - 0.05), frame)
    for x in (-w / 2 + 0.028, w / 2 - 0.028):
        for z in (0.24, h - 0.05):
            m.box((x - 0.02, x + 0.02), (-d / 2, d / 2), (z - 0.025, z + 0.025), frame)
        for y in np.linspace(-d / 2 + 0.1, d / 2 - 0.1, 5):
            m.box((x - 0.011, x + 0.011), (y - 0.011, y + 0.011), (0.24, h - 0.05), frame)
    m.cushion((-w / 2 + 0.06, w / 2 - 0.06), (-d / 2 + 0.06, d / 2 - 0.06), (0.26, 0.42), fabric(rng, 0.4), 0.04)
    return m


def fish_tank(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.6, 1.4), rng.uniform(0.32, 0.5), rng.uniform(1.0, 1.35)
    stand, z0 = wood(rng), rng.uniform(0.55, 0.72)
    _carcass(m, w, d, (0, z0), Material(_shade(stand.color, 0.5)))
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (z0 - 0.03, z0), stand)
    for k in range(2):
        x0 = -w / 2 + k * w / 2
        _front(m, (x0, x0 + w / 2), d / 2 - 0.016, (0.02, z0 - 0.03), stand, CHROME, 1)
    water = Material((0.30, 0.62, 0.80), (0.42, 0.74, 0.88), "art", 0.4, 0.45)
    m.box((-w / 2 + 0.01, w / 2 - 0.01), (-d / 2 + 0.01, d / 2 - 0.01), (z0, h - 0.05), water)
    m.box((-w / 2 + 0.008, w / 2 - 0.008), (-d / 2 + 0.008, d / 2 - 0.008), (z0, z0 + 0.06), Material((0.76, 0.66, 0.46)))
    m.box((-w / 2, w / 2), (-d / 2, d / 2), (h - 0.05, h), BLACK)
    for s in (-1, 1):
        for q in (-1, 1):
            x, y = s * (w / 2 - 0.01), q * (d / 2 - 0.01)
            m.box((x - 0.012, x + 0.012), (y - 0.012, y + 0.012), (z0, h), BLACK)
    for _ in range(6):
        fish = Material(colorsys.hsv_to_rgb(rng.uniform(0, 0.15), 0.9, 1.0), glow=0.4)
        p = (rng.uniform(-w * 0.4, w * 0.4), d / 2 - 0.008, rng.uniform(z0 + 0.14, h - 0.12))
        m.ellipsoid(p, (0.05, 0.012, 0.026), fish, 8, 4)
    weed = Material((0.12, 0.45, 0.2))
    for _ in range(4):
        x = rng.uniform(-w * 0.42, w * 0.42)
        m.box((x - 0.012, x + 0.012), (d / 2 - 0.012, d / 2 - 0.004), (z0 + 0.05, rng.uniform(z0 + 0.15, h - 0.1)), weed)
    return m


def coat_rack(rng: Rng) -> Mesh:
    m, h = Mesh(), rng.uniform(1.6, 1.9)
    c = wood(rng) if rng.random() < 0.6 else metal(rng)
    for k in range(4):
        a = k * pi / 2 + 0.5
        m.tube((0, 0, 0.18), (0.24 * cos(a), 0.24 * sin(a), 0), 0.018, c, 5)
        m.tube((0, 0, h - 0.12), (0.16 * cos(a), 0.16 * sin(a), h - 0.02), 0.013, c, 5)
    m.cylinder((0, 0), (0.1, h), 0.025, c, n=8)
    for k in range(int(rng.integers(1, 4))):
        a = k * pi / 2 + 0.5
        x, y, coat = 0.15 * cos(a), 0.15 * sin(a), fabric(rng, 0.85)
        m.lathe((x, y), [(0.13, h - 0.85 - 0.1 * k), (0.12, h - 0.35), (0.09, h - 0.17), (0.03, h - 0.08)], coat, 9)
    return m


def microwave(rng: Rng) -> Mesh:
    m, w, d, h = Mesh(), rng.uniform(0.44, 0.62), rng.uniform(0.32, 0.44), rng.uniform(0.26, 0.36)
    c = appliance(rng)
    m.box((-w / 2, w / 2), (-d / 2, d / 2 - 0.015), (0.015, h), c)
    _legs(m, w, d, 0.015, 0.02, BLACK, 0.02)
    m.box((-w / 2, w / 2), (d / 2 - 0.015, d / 2), (0.015, h), c)
    m.box((-w * 0.46, w * 0.22), (d / 2, d / 2 + 0.004), (0.05, h - 0.035), BLACK)
    m.box((w * 0.24, w * 0.275), (d / 2, d / 2 + 0.035), (0.06, h - 0.05), CHROME)
    m.box((w * 0.31, w * 0.46), (d / 2, d / 2 + 0.004), (h - 0.09, h - 0.04), Material((0.2, 0.7, 0.5), glow=0.6))
    for r in range(3):
        m.box((w * 0.31, w * 0.46), (d / 2, d / 2 + 0.004), (0.05 + r * 0.04, 0.075 + r * 0.04), DARK)
    return m


def bicycle(rng: Rng) -> Mesh:
    m, r, span = Mesh(), rng.uniform(0.24, 0.35), rng.uniform(0.85, 1.1)
    c = Material(_hue(rng, (0.5, 0.95), (0.4, 0.9)))
    a, b = -span / 2, span / 2
    for x in (a, b):
        m.hoop((x, 0, r), r - 0.022, 0.022, BLACK, "y", 24)
        for k in range(8):
            t = k * pi / 4
            m.tube((x, 0, r), (x + (r - 0.03) * cos(t), 0, r + (r - 0.03) * sin(t)), 0.004, CHROME, 3)
    top, bb, seat, head = r + 0.38, (-0.02, 0, r - 0.02), (-span * 0.2, 0, r + 0.42), (b - 0.2, 0, r + 0.42)
    for p, q in (((a, 0, r), bb), ((a, 0, r), seat), (bb, seat), (seat, head), (bb, head)):
        m.tube(p, q, 0.02, c, 6)
    m.tube((b, 0, r), (b - 0.22, 0, top + 0.18), 0.018, c, 6)
    m.tube((b - 0.22, -0.26, top + 0.2), (b - 0.22, 0.26, top + 0.2), 0.016, DARK, 6)
    m.tube(seat, (-span * 0.22, 0, top + 0.16), 0.016, CHROME, 6)
    m.cushion((-span * 0.22 - 0.14, -span * 0.22 + 0.12), (-0.07, 0.07), (top + 0.15, top + 0.21), BLACK, 0.03)
    m.hoop((bb[0], 0.03, bb[2]), 0.085, 0.012, DARK, "y", 14)
    m.tube((bb[0], -0.1, bb[2]), (bb[0], 0.1, bb[2]), 0.014, DARK, 5)
    return m


def ladder(rng: Rng) -> Mesh:
    m, h, w = Mesh(), rng.uniform(1.1, 1.95), rng.uniform(0.42, 0.55)
    c = metal(rng) if rng.random() < 0.5 else wood(rng)
    run = h * 0.32
    for s in (-1, 1):
        m.tube((s * w / 2, run, 0), (s * w * 0.36, 0.03, h), 0.024, c, 5)
        m.tube((s * w / 2, -run, 0), (s * w * 0.36, -0.03, h), 0.02, c, 5)
    n = max(4, round(h / 0.28))
    for k in range(1, n):
        t = k / n
        x, y = w / 2 - t * w * 0.14, run - t * (run - 0.03)
        m.box((-x, x), (y - 0.07, y + 0.02), (t * h - 0.02, t * h + 0.012), c)
    m.box((-w * 0.4, w * 0.4), (-0.1, 0.1), (h - 0.01, h + 0.03), paint(rng))
    return m


def treadmill(rng: Rng) -> Mesh:
    m, w, l, h = Mesh(), rng.uniform(0.62, 0.85), rng.uniform(1.35, 1.85), rng.uniform(1.15, 1.4)
    c = DARK if rng.random() < 0.6 else Material((0.7, 0.71, 0.73))
    m.box((-w / 2, w / 2), (-l / 2, l / 2), (0.04, 0.16), c)
    m.box((-w / 2 + 0.1, w / 2 - 0.1), (-l / 2 + 0.25, l / 2 - 0.02), (0.16, 0.175), Material((0.04, 0.04, 0.04)))
    m.cushion((-w / 2 + 0.02, w / 2 - 0.02), (-l / 2, -l / 2 + 0.28), (0.1, 0.32), c, 0.06)
    bar = metal(rng)
    for s in (-1, 1):
        x = s * (w / 2 - 0.04)
        m.tube((x, -l / 2 + 0.2, 0.15), (x, -l / 2 + 0.1, h - 0.08), 0.035, bar, 6)
        m.tube((x, -l / 2 + 0.1, h - 0.25), (x, -l / 2 + 0.55, h - 0.28), 0.028, BLACK, 6)
    mark = m.mark()
    m.box((-w / 2, w / 2), (-l / 2 + 0.02, -l / 2 + 0.12), (h - 0.25, h), c)
    m.box((-w * 0.22, w * 0.22), (-l / 2 + 0.12, -l / 2 + 0.125), (h - 0.2, h - 0.04), Material((0.2, 0.55, 0.8), glow=0.7))
    m.turn(mark, "x", 0.3, (0, -l / 2 + 0.1, h - 0.2))
    return m


def door(rng: Rng, height: Real = 2.0) -> Mesh:
    m, w, h = Mesh(), rng.uniform(0.78, 0.98), height
    c = wood(rng)
    frame = Material(_hue(rng, (0, 0.1), (0.7, 0.95))) if rng.random() < 0.6 else c
    panel = Material(_shade(c.color, 0.78))
    t = 0.07
    for x in ((-w / 2 - t, -w / 2), (w / 2, w / 2 + t)):
        m.box(x, (0, 0.045), (0, h + t), frame)
    m.box((-w / 2, w / 2), (0, 0.045), (h, h + t), frame)
    m.box((-w / 2, w / 2), (0, 0.02), (0, h), c)
    kind = rng.integers(3)
    if kind == 0:
        for z in ((0.15, h * 0.42), (h * 0.5, h - 0.15)):
            for s in (-1, 1):
                x = sorted((s * w * 0.06, s * w * 0.4))
                m.box((x[0], x[1]), (0.02, 0.028), z, panel)
    elif kind == 1:
        m.box((-w * 0.36, w * 0.36), (0.02, 0.028), (h * 0.55, h - 0.15), Material((0.62, 0.70, 0.74)))
        m.box((-w * 0.36, w * 0.36), (0.02, 0.028), (0.15, h * 0.45), panel)
    x = w * 0.41 * (1 if rng.random() < 0.5 else -1)
    m.tube((x, 0.02, 1.0), (x, 0.065, 1.0), 0.016, CHROME)
    m.tube((x, 0.065, 1.0), (x - np.sign(x) * 0.12, 0.065, 1.0), 0.014, CHROME)
    return m


def window(rng: Rng) -> Mesh:
    m, w, h = Mesh(), rng.uniform(0.7, 2.0), rng.uniform(0.8, 1.35)
    frame = Material(_hue(rng, (0, 0.08), (0.82, 0.98))) if rng.random() < 0.75 else wood(rng)
    sky = Material((0.70, 0.84, 0.98), (0.92, 0.96, 1.0), "art", 0.9, 1.0)
    _frame(m, w, h, 0.06, frame, sky, 0.05)
    low = h * rng.uniform(0.12, 0.35)
    m.box((-w / 2 + 0.06, w / 2 - 0.06), (0, 0.026), (0.06, low), Material((0.40, 0.55, 0.36), (0.50, 0.62, 0.44), "art", 0.4, 0.8))
    n = max(1, round(w / 0.65))
    for k in range(1, n):
        x = -w / 2 + k * w / n
        m.box((x - 0.03, x + 0.03), (0, 0.048), (0.03, h - 0.03), frame)
    if rng.random() < 0.4:
        m.box((-w / 2 + 0.03, w / 2 - 0.03), (0, 0.042), (h * 0.62, h * 0.62 + 0.04), frame)
    m.box((-w / 2 - 0.05, w / 2 + 0.05), (0, 0.1), (-0.04, 0.0), frame)
    return m


# ------------------------------------------------------------------------------------------------------------ catalog


@dataclass(frozen=True)
class Kind:
    """How one label is built and where it may stand.

    place   wall (back to a wall), free (anywhere on the floor), loose (floor, any heading), hang (on a wall, off the floor).
    on      labels that may carry it; `only_on` when it never stands on the floor.
    many    the largest number of them in one scene.
    """

    build: Callable[[Rng], Mesh]
    place: str
    many: int = 6
    on: tuple[str, ...] = ()
    only_on: bool = False
    near: tuple[str, ...] = ()
    hang: Pair = (0.0, 0.0)
    weight: float = 1.0


_TOPS = ("table", "desk", "dresser", "coffee table", "nightstand", "tv stand")

CATALOG: dict[str, Kind] = {
    "armchair": Kind(armchair, "wall", 6),
    "backpack": Kind(backpack, "loose", 6, on=("sofa", "bed", "table"), weight=0.4),
    "ball": Kind(ball, "loose", 6, weight=0.4),
    "bathtub": Kind(bathtub, "wall", 2),
    "bed": Kind(bed, "wall", 3, weight=1.3),
    "bicycle": Kind(bicycle, "wall", 5),
    "bookshelf": Kind(bookshelf, "wall", 6, weight=1.3),
    "box": Kind(box, "loose", 6, weight=0.7),
    "chair": Kind(chair, "loose", 6, near=("table", "desk"), weight=1.5),
    "clock": Kind(clock, "hang", 6, hang=(1.5, 1.9), weight=0.4),
    "coat rack": Kind(coat_rack, "wall", 6, weight=0.7),
    "coffee table": Kind(coffee_table, "free", 6, near=("sofa",)),
    "crib": Kind(crib, "wall", 3),
    "desk": Kind(desk, "wall", 5, weight=1.3),
    "dresser": Kind(dresser, "wall", 5, weight=1.2),
    "fan": Kind(fan, "loose", 6, weight=0.5),
    "fireplace": Kind(fireplace, "wall", 1),
    "fish tank": Kind(fish_tank, "wall", 5),
    "floor lamp": Kind(floor_lamp, "wall", 6, weight=0.7),
    "guitar": Kind(guitar, "wall", 6, weight=0.6),
    "ladder": Kind(ladder, "loose", 5),
    "laptop": Kind(laptop, "free", 6, on=("desk", "table", "coffee table", "bed"), only_on=True, weight=0.4),
    "microwave": Kind(microwave, "free", 6, on=("table", "dresser", "desk"), only_on=True, weight=0.4),
    "mirror": Kind(mirror, "hang", 6, hang=(0.15, 1.0), weight=0.7),
    "monitor": Kind(monitor, "free", 6, on=("desk", "table"), only_on=True, weight=0.5),
    "nightstand": Kind(nightstand, "wall", 6, near=("bed",), weight=0.7),
    "piano": Kind(piano, "wall", 2),
    "picture": Kind(picture, "hang", 6, hang=(1.2, 1.6), weight=0.7),
    "pillow": Kind(pillow, "free", 6, on=("bed", "sofa", "armchair"), only_on=True, weight=0.4),
    "plant": Kind(plant, "wall", 6, weight=1.2),
    "radiator": Kind(radiator, "wall", 6, weight=0.6),
    "refrigerator": Kind(refrigerator, "wall", 5),
    "rug": Kind(rug, "free", 4),
    "sink": Kind(sink, "wall", 5),
    "sofa": Kind(sofa, "wall", 3, weight=1.3),
    "stool": Kind(stool, "loose", 6, near=("table", "piano"), weight=0.6),
    "stove": Kind(stove, "wall", 5),
    "suitcase": Kind(suitcase, "loose", 6, weight=0.6),
    "table": Kind(table, "free", 5, weight=1.4),
    "table lamp": Kind(table_lamp, "free", 6, on=_TOPS, only_on=True, weight=0.5),
    "toilet": Kind(toilet, "wall", 5),
    "trash bin": Kind(trash_bin, "wall", 6, weight=0.5),
    "treadmill": Kind(treadmill, "wall", 2),
    "tv": Kind(tv, "hang", 5, on=("tv stand", "dresser"), hang=(0.9, 1.4)),
    "tv stand": Kind(tv_stand, "wall", 4),
    "wardrobe": Kind(wardrobe, "wall", 4, weight=1.2),
    "washer": Kind(washer, "wall", 6),
}

# Doors and windows belong to the walls; they are annotated like everything else.
FIXTURES: dict[str, Callable[[Rng], Mesh]] = {"door": door, "window": window}

LABELS: tuple[str, ...] = tuple(sorted((*CATALOG, *FIXTURES)))
