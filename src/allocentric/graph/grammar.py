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
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from allocentric.graph.triplets import Node, Triplet

OPEN, CLOSE = "<map>", "</map>"
NUMBER = r"\s*([0-9])(?:\.0)?\s*"
OBJECT = rf"([a-z][a-z0-9 _-]*?)\s*(?:\.\s*([0-9]+))?\s*\({NUMBER},{NUMBER}\)"
LINE = re.compile(rf"{OBJECT}[\s,;]*{OBJECT}[\s,;]*{OBJECT}(?:[\s,;]*r\s*=\s*([0-9]+(?:\.[0-9]+)?)\s*m?)?", re.ASCII)
MARK = re.compile(r"^(?:[-*•]|[0-9]{1,3}[.)])\s+")  # of a list
ITEM = re.compile(r'\{\s*"(triplets|objects|extent_m)"')
NAMELESS = "object"
LONGEST_NUMBER = 9  # digits of an instance or extent: more is noise
LONGEST_LINE = 500
MOST_FAILURES = 100  # openings of JSON that turn out to be none


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
    """The triplets in a text, lines or JSON, with or without code fences, tags, words before the JSON and marks of a list. Never
    raises: what it cannot read it drops.
    """
    lines, closed = map_lines(text)
    if (found := _parse_json("\n".join(lines))) is not None:
        return found
    triplets, dropped = [], []
    for line in lines:
        triplet = _read_line(line)
        if isinstance(triplet, Triplet):
            triplets.append(triplet)
        else:
            dropped.append(f"{line[:60]!r}: {triplet}")
    return ParsedMap(tuple(triplets), len(lines), len(dropped), tuple(dropped), closed)


def map_lines(text: str) -> tuple[list[str], bool]:
    """The lines of the last map in a text, or of the text where no map begins, and whether it was written to its end. Blanks are
    collapsed; marks of lists and code fences are left out.
    """
    *_, body = re.split(OPEN, str(text), flags=re.I)
    body, *rest = re.split(CLOSE, body, maxsplit=1, flags=re.I)
    lines = [MARK.sub("", " ".join(line.split())) for line in body.splitlines()]
    return [line for line in lines if line and not line.startswith("```")], bool(rest)


def _read_line(line: str) -> Triplet | str:
    """The triplet of a line, or what is wrong with it."""
    if len(line) > LONGEST_LINE:
        return f"longer than {LONGEST_LINE} characters"
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
    """Triplets of the JSON mirror, as far as it was written; None when there is none."""
    lists, cut, end, failures = [], [], 0, 0
    for opening in re.finditer(r"[{\[]", body):
        if opening.start() < end or failures == MOST_FAILURES:
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(body, opening.start())
        except (ValueError, RecursionError):
            failures += 1
            if begun := ITEM.match(body, opening.start()):
                cut.append((begun[1], body[opening.start() :][:60]))
            continue
        if isinstance(value, dict) and isinstance(value.get("triplets"), list):
            lists.append(value["triplets"])
        elif isinstance(value, dict) and "objects" in value:
            lists.append([value])
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lists.append(value)
    if not lists and not cut:
        return None
    triplets = []
    dropped = [f"{text}: cut off" for key, text in cut if key != "triplets"]
    for item in chain.from_iterable(lists):
        triplet = _read_item(item)
        if isinstance(triplet, Triplet):
            triplets.append(triplet)
        else:
            dropped.append(f"{str(item)[:60]}: {triplet}")
    return ParsedMap(tuple(triplets), len(triplets) + len(dropped), len(dropped), tuple(dropped), not cut)


def _read_item(item: object) -> Triplet | str:
    if not isinstance(item, dict) or not isinstance(item.get("objects"), list) or len(item["objects"]) != 3:
        return 'expected three "objects" and "extent_m" or nothing'
    nodes, cells = [], []
    for part in item["objects"]:
        if not (isinstance(part, list) and len(part) == 3 and isinstance(part[0], str)):
            return 'expected objects like ["bed", 1, [2, 7]]'
        cell = part[2]
        numbers = [_number(value) for value in (part[1], *cell)] if isinstance(cell, list) and len(cell) == 2 else []
        if not numbers or not all(number is not None and number.is_integer() for number in numbers):
            return "expected a whole number as instance, and two as a cell"
        if not (label := _cleaned(part[0])):
            return "expected a label with at least one letter from a to z"
        instance, x, y = map(int, numbers)
        nodes.append((label, instance))
        cells.append((x, y))
    extent = item.get("extent_m")
    if extent is not None and (extent := _number(extent)) is None:
        return "expected metres, or nothing, as extent"
    return _triplet(nodes, cells, extent)


def _number(value: object) -> float | None:
    """A number of JSON, or one in quotes; None when it is none, or too long."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?", value, re.ASCII):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 10**LONGEST_NUMBER:
        return None
    return float(value)
