"""One picture of the chosen frames: which they are, when they were taken, and what each added."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from allocentric.sampling import Selection
from allocentric.views import Views

PAPER, INK, FAINT, ACCENT = (252, 252, 250), (38, 40, 44), (150, 152, 156), (0, 114, 178)
MARGIN, GAP, CAPTION = 20, 12, 24


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def contact_sheet(
    views: Views,
    selection: Selection | None = None,
    columns: int | None = None,
    cell_width: int = 240,
    title: str | None = None,
) -> Image.Image:
    """The frames in time order with their number and time; below, where a selection is given, its coverage curve.

    `views` are the chosen frames (as `sample` returns them), of which each caption also says when it was picked and what it added.
    """
    n, (height, width) = len(views), views.frames.shape[2:]
    cell_height = max(1, round(cell_width * height / width))
    columns = columns or _columns(n)
    rows = math.ceil(n / columns)
    curve = 190 if selection is not None and len(selection.coverage) > 0 else 0
    top = MARGIN + 34
    sheet_width = max(2 * MARGIN + columns * cell_width + (columns - 1) * GAP, 520)
    sheet_height = top + rows * (cell_height + CAPTION + GAP) + curve + MARGIN // 2
    sheet = Image.new("RGB", (sheet_width, sheet_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    title = title if title is not None else f"{Path(views.source).name or 'views'}: {n} frames"
    draw.text((MARGIN, MARGIN - 6), title, fill=INK, font=font(20))

    picked = _picks(views, selection)
    for i in range(n):
        x = MARGIN + (i % columns) * (cell_width + GAP)
        y = top + (i // columns) * (cell_height + CAPTION + GAP)
        frame = Image.fromarray(views.frames[i].permute(1, 2, 0).contiguous().numpy())
        sheet.paste(frame.resize((cell_width, cell_height), Image.Resampling.LANCZOS), (x, y))
        number = int(views.indices[i]) if views.indices is not None else i
        caption = f"#{number}" + (f"   {float(views.times[i]):.1f} s" if views.times is not None else "")
        draw.text((x, y + cell_height + 4), caption, fill=INK, font=font(14))
        if picked:
            place, added = picked[i]
            note = f"pick {place + 1}   +{100 * added:.1f}%"
            draw.text((x + cell_width, y + cell_height + 4), note, fill=ACCENT, font=font(14), anchor="ra")
    if curve:
        _coverage_curve(draw, selection, (MARGIN, sheet_height - curve - MARGIN // 2, sheet_width - MARGIN, sheet_height - MARGIN))
    return sheet


def _columns(n: int) -> int:
    """About as many columns as rows, or one or two more, with the fewest empty cells in the last row."""
    near = math.ceil(math.sqrt(n))
    return min(range(near, min(near + 2, n) + 1), key=lambda c: (-n % c, c))


def _picks(views: Views, selection: Selection | None) -> list[tuple[int, float]]:
    """For each frame in time order: when it was picked (0 first) and the fraction of voxels it added."""
    if selection is None or len(selection.indices) != len(views):
        return []
    before = (0.0, *selection.coverage)
    place = {frame: p for p, frame in enumerate(selection.order)}
    return [(place[i], selection.coverage[place[i]] - before[place[i]]) for i in selection.indices]


def _coverage_curve(draw: ImageDraw.ImageDraw, selection: Selection, area: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = area
    x0, x1, y0, y1 = left + 46, right - 8, bottom - 26, top + 34
    unit = f"voxels of {selection.voxel_size:.3g}"
    heading = (
        f"{100 * selection.coverage[-1]:.0f}% of {selection.total_voxels} {unit} seen by {len(selection.order)} of "
        f"{selection.candidates} candidates;  evenly spread: {100 * selection.uniform_coverage:.0f}%"
    )
    draw.text((left, top + 4), heading, fill=INK, font=font(15))
    for level in (0.0, 0.5, 1.0):
        y = y0 + (y1 - y0) * level
        draw.line([(x0, y), (x1, y)], fill=(224, 224, 222))
        draw.text((x0 - 8, y), f"{100 * level:.0f}%", fill=FAINT, font=font(12), anchor="rm")
    picks = len(selection.coverage)

    def at(pick: int, level: float) -> tuple[float, float]:
        return x0 + (x1 - x0) * pick / picks, y0 + (y1 - y0) * level

    even = at(0, selection.uniform_coverage)[1]
    for x in range(x0, x1, 12):
        draw.line([(x, even), (min(x + 6, x1), even)], fill=FAINT, width=1)
    points = [at(0, 0.0)] + [at(p + 1, level) for p, level in enumerate(selection.coverage)]
    draw.line(points, fill=ACCENT, width=3, joint="curve")
    every = math.ceil(picks / 16)
    for p, (x, y) in enumerate(points[1:], start=1):
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=ACCENT)
        if p % every == 0:
            draw.text((x, y0 + 6), str(p), fill=FAINT, font=font(12), anchor="ma")
