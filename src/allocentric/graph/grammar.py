"""Maps as text: the compact grammar that models write, its JSON mirror, and a parser that takes what it can.

    <map>
    bed(2,7) desk(9,5) chair.2(6,3) r=3.4
    </map>

    map   = "<map>\\n", {line}, "</map>"
    line  = obj, " ", obj, " ", obj, [" r=", num], "\\n"
    obj   = label, [".", int], "(", digit, ",", digit, ")"
    label = [a-z][a-z0-9 _-]*

The instance ".k" is written only when a category repeats; r is the grid's extent in metres.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from allocentric.graph.triplets import Node, Triplet

OPEN, CLOSE = "<map>", "</map>"
OBJECT = r"([a-z][a-z0-9 _-]*?)\s*(?:\.\s*([0-9]+))?\s*\(\s*([0-9])\s*,\s*([0-9])\s*\)"
LINE = re.compile(rf"{OBJECT}[\s,;]*{OBJECT}[\s,;]*{OBJECT}(?:[\s,;]*r\s*=\s*([0-9]+(?:\.[0-9]+)?)\s*m?)?", re.ASCII)
NAMELESS = "object"
LONGEST_NUMBER = 9  # digits of an instance or extent: more is noise


@dataclass(frozen=True)
class ParsedMap:
    """What could be read from a text.

    triplets   in order.
    n_lines    lines that were there to be read (or triplets, in JSON).
    n_bad      how many of them were dropped,
    dropped    and why, one reason each.
    closed     whether the map was written to its end.
    """

    triplets: tuple[Triplet, ...] = ()
    n_lines: int = 0
    n_bad: int = 0
    dropped: tuple[str, ...] = ()
    closed: bool = False


def clean_label(label: str) -> str:
    """A label as the grammar spells it: lower case, letters, digits, spaces, "_" and "-", beginning with a letter."""
    if not (cleaned := _cleaned(label)):
        raise ValueError(f"label: expected at least one letter from a to z, found {label!r}")
    return cleaned


def spelled(label: str) -> str:
    """`clean_label`, and "object" for a label without a letter from a to z."""
    return _cleaned(label) or NAMELESS


def _cleaned(label: str) -> str:
    cleaned = re.sub(r"[^a-z0-9 _-]+", " ", label.lower())
    return re.sub(r"^[^a-z]+", "", " ".join(cleaned.split()))


def write_map(triplets: Iterable[Triplet]) -> str:
    """The compact text of a map; `parse_map` is its inverse for labels that are already clean (`clean_label`)."""
    triplets = list(triplets)
    instances: dict[str, set[int]] = {}
    for triplet in triplets:
        for label, instance in triplet.nodes:
            instances.setdefault(label, set()).add(instance)
    lines = [write_line(t, repeated={label for label, found in instances.items() if found != {1}}) for t in triplets]
    return f"{OPEN}\n{''.join(lines)}{CLOSE}"


def write_line(triplet: Triplet, repeated: Iterable[str] = ()) -> str:
    """One line of a map. Labels in `repeated` get their instance number."""
    repeated = set(repeated) | {label for label, instance in triplet.nodes if instance > 1}
    parts = []
    for (label, instance), (x, y) in zip(triplet.nodes, triplet.cells, strict=True):
        parts.append(f"{clean_label(label)}{f'.{instance}' if label in repeated else ''}({x},{y})")
    extent = "" if triplet.extent is None else f" r={triplet.extent:.1f}"
    return " ".join(parts) + extent + "\n"


def map_to_json(triplets: Iterable[Triplet]) -> str:
    """The JSON mirror: {"triplets": [{"objects": [["bed", 1, [2, 7]], ...], "extent_m": 3.4}]}."""
    written = [
        {
            "objects": [[label, instance, list(cell)] for (label, instance), cell in zip(t.nodes, t.cells, strict=True)],
            "extent_m": t.extent,
        }
        for t in triplets
    ]
    return json.dumps({"triplets": written})


def parse_map(text: str) -> ParsedMap:
    """The triplets in a text, lines or JSON, with or without code fences and tags. Never raises: what it cannot read it drops."""
    body = re.sub(r"^[ \t]*```[^\n]*$", "", str(text), flags=re.M)
    start = body.rfind(OPEN)
    closed = CLOSE in body[max(start, 0) :]
    if start >= 0:
        body = body[start + len(OPEN) :]
    body = body.partition(CLOSE)[0].strip()
    if body.startswith(("{", "[")):
        found = _parse_json(body)
        if found is not None:
            return found
    triplets, dropped = [], []
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    for line in lines:
        triplet = _read_line(line)
        if isinstance(triplet, Triplet):
            triplets.append(triplet)
        else:
            dropped.append(f"{line[:60]!r}: {triplet}")
    return ParsedMap(tuple(triplets), len(lines), len(dropped), tuple(dropped), closed)


def _read_line(line: str) -> Triplet | str:
    """The triplet of a line, or what is wrong with it."""
    found = LINE.fullmatch(line.lower())
    if found is None:
        return "expected three objects like label(x,y) with x and y from 0 to 9, and r= or nothing behind them"
    fields = found.groups()
    objects = [fields[4 * k : 4 * k + 4] for k in range(3)]
    if any(len(number or "") > LONGEST_NUMBER for number in (fields[12], *(o[1] for o in objects))):
        return "a number with too many digits"
    nodes = [(_label(label), int(instance or 1)) for label, instance, _, _ in objects]
    cells = [(int(x), int(y)) for _, _, x, y in objects]
    return _triplet(nodes, cells, None if fields[12] is None else float(fields[12]))


def _label(label: str) -> str:
    return " ".join(label.split())


def _triplet(nodes: Sequence[Node], cells: Sequence[tuple[int, int]], extent: float | None) -> Triplet | str:
    if any(instance < 1 for _, instance in nodes):
        return "instances count from 1"
    try:
        return Triplet(tuple(nodes), tuple(cells), extent)
    except ValueError as error:
        return str(error).removeprefix("triplet: ")


def _parse_json(body: str) -> ParsedMap | None:
    """Triplets of the JSON mirror; None when it is no JSON at all."""
    try:
        data, _ = json.JSONDecoder().raw_decode(body)
    except (ValueError, RecursionError):
        return None
    items = data.get("triplets") if isinstance(data, dict) else data
    if not isinstance(items, list):
        return ParsedMap((), 1, 1, ("JSON without a list of triplets",))
    triplets, dropped = [], []
    for item in items:
        triplet = _read_item(item)
        if isinstance(triplet, Triplet):
            triplets.append(triplet)
        else:
            dropped.append(f"{str(item)[:60]}: {triplet}")
    return ParsedMap(tuple(triplets), len(items), len(dropped), tuple(dropped), True)


def _read_item(item: object) -> Triplet | str:
    if not isinstance(item, dict) or not isinstance(item.get("objects"), list) or len(item["objects"]) != 3:
        return 'expected {"objects": [three of them], "extent_m": ...}'
    nodes, cells = [], []
    for part in item["objects"]:
        if not (isinstance(part, list) and len(part) == 3 and isinstance(part[0], str) and _is_int(part[1])):
            return 'expected objects like ["bed", 1, [2, 7]]'
        cell = part[2]
        if not (isinstance(cell, list) and len(cell) == 2 and all(map(_is_int, cell))):
            return "expected two whole numbers as a cell"
        try:
            nodes.append((clean_label(part[0]), part[1]))
        except ValueError as error:
            return str(error)
        cells.append((cell[0], cell[1]))
    extent = item.get("extent_m")
    if extent is not None and (isinstance(extent, bool) or not isinstance(extent, (int, float)) or not _finite(extent)):
        return "expected metres, or nothing, as extent"
    return _triplet(nodes, cells, None if extent is None else float(extent))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**LONGEST_NUMBER


def _finite(value: float) -> bool:
    return abs(value) < 10**LONGEST_NUMBER and math.isfinite(value)
