"""Structured tasks on maps (SSR; spec 5 and 6.3): write a map, go on with one, fill a gap, answer with a map in or out.

A map is written in one of two forms: "triplets" (`graph.triplets`, the default) or "grid", one 10 x 10 grid for the whole place.
Axes and origin are those of the first camera, made level, so that right and ahead mean the same in the map and in the video.

A small model asked for everything at once names what stands out, again and again; asked for one category it knows where to look,
and that there is none. So it can be asked to count each category it knows (`Whereabouts`), and then for the lines of a map of what
it noted (`noted_graph`, `MapLine`; spec 6.2, conditioned on what is to be placed next).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat

import numpy as np

from allocentric.answer import split_notes
from allocentric.graph.grammar import CLOSE, OPEN, parse_map, write_map
from allocentric.graph.grid import grid_map, parse_grid, write_grid
from allocentric.graph.metrics import map_quality, matched_places, position_rmse
from allocentric.graph.scene_graph import GraphObject, SceneGraph
from allocentric.graph.solve import Layout, solve_layout
from allocentric.graph.triplets import GRID, Node, Triplet, local_triplet, usable_triples
from allocentric.graph.triplets import chain as chain_of
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import VSI_TASKS
from allocentric.tasks.base import Question, Task
from allocentric.tasks.notes import MOMENTS, behind, noted_places, notes, place_note, with_notes, workings

FORMS = ("triplets", "grid")
LEAST_SIDE = 0.1  # metres: smaller things are in no map
CORRUPTED = 0.1  # share of lines with an error in maps that are to be continued

WRITE = {
    "triplets": "Write the map of this place, three objects a line, each line on a 10 x 10 grid of its own (x right, y forward).",
    "grid": "Write the map of this place, all objects on one 10 x 10 grid (x right, y forward).",
}
CONTINUE = "This is the beginning of the map of this place; some lines may be wrong. Write the next line."
COMPLETE = "Fill in the missing place of this line of the map of this place."
GIVEN = "This is the map of this place."
FIRST = "First write a map of the objects that matter, then answer."
LINE = {
    "triplets": "Write the line of the map with these objects (x right, y forward, in meters).",
    "grid": "Write these objects (x right, y forward, in meters) on the grid from the corner and of the width that stand last.",
}
PERHAPS = "There may be none."
PROMPTS = (*WRITE.values(), CONTINUE, COMPLETE, GIVEN, FIRST, *LINE.values(), PERHAPS)
COUNTING = VSI_TASKS["object_counting"]

# What a map of places can answer.
MAP_QUESTIONS = (
    "object_counting",
    "object_abs_distance",
    "object_rel_distance",
    "object_rel_direction",
    "route_planning",
    "obj_appearance_order",
)

CELL = re.compile(r"\(\s*([0-9])\s*,\s*([0-9])\s*\)")
GAP = "(?,?)"


def map_graph(scene: AnnotatedScene) -> SceneGraph | None:
    """What a map of the scene holds: the objects that the video shows, in order of first appearance, as seen from its first camera.

    None when the first camera is unknown or looks straight up or down, or fewer than three objects are shown.
    """
    graph = SceneGraph.from_scene(scene)
    if graph.viewpoint is None:
        return None
    known = scene.visibility is not None
    shown = [o for o in graph.objects if (o.first_seen is not None or not known) and max(o.box.size) >= LEAST_SIDE]
    return with_objects(graph, shown).canonical() if len(shown) >= 3 else None


def with_objects(graph: SceneGraph, objects: Sequence[GraphObject]) -> SceneGraph:
    """The same place with only these objects, numbered anew."""
    return SceneGraph.from_objects(
        graph.name, objects, floor=graph.floor, room_area=graph.room_area, viewpoint=graph.viewpoint, scale=graph.scale
    )


def nodes_of(graph: SceneGraph) -> list[Node]:
    """Objects as maps name them."""
    return list(graph.nodes)


def names_in_map(graph: SceneGraph) -> list[str]:
    """Objects as the text of a map names them: "bed", "chair.2"."""
    count = Counter(label for label, _ in graph.nodes)
    return [f"{label}.{instance}" if count[label] > 1 else label for label, instance in graph.nodes]


def noted_objects(graph: SceneGraph, question: Question, written: str) -> list[GraphObject]:
    """The objects that the notes of a question are about (`tasks.notes.notes`), in their order."""
    found: list[GraphObject] = []
    for label, place in noted_places(written) or [(label, None) for label in question.objects]:
        left = [o for o in graph.objects if o.label == label and o not in found]
        if left:
            found.append(left[0] if place is None else min(left, key=lambda o: math.dist(o.xy, place)))
    return found


def where_is(label: str) -> Question:
    """What a model is asked to find all objects of one category: VSI-Bench's question of how many there are."""
    return Question(COUNTING.name, "", f"How many {label}(s) are in this room?", (), "", (label,))


def where_are(label: str) -> str:
    """`where_is` as a prompt, which says that there may be none: VSI-Bench never counts what is not there twice."""
    return Whereabouts().prompt(where_is(label))


def found_notes(label: str, objects: Sequence[GraphObject], last: int) -> str:
    """Where the objects of a category are, from left to right, and the moments (0 to 15) at which they first appear:
    "chair -1.2 3.4, chair 0.8 2.0; 5 0". `last` is the number of the last frame.
    """
    found = sorted(objects, key=lambda o: o.xy)
    moments = [str(round((o.first_seen or 0) * (MOMENTS - 1) / max(last, 1))) for o in found]
    return f"{', '.join(place_note(label, np.array(o.xy)) for o in found)}; {' '.join(moments)}"


def noted_graph(notes: Iterable[str], name: str = "") -> SceneGraph:
    """What a model noted of one category after the other (`found_notes`), in order of first appearance."""
    found = []
    for written in notes:
        moments = [int(moment) for moment in re.findall(r"\d{1,3}", written.partition(";")[2])]
        for (label, place), first in zip(noted_places(written), chain(moments, repeat(0)), strict=False):
            found.append(GraphObject(label, point=place, first_seen=first))
    return SceneGraph.from_objects(name, sorted(found, key=lambda o: o.first_seen), viewpoint=(0.0, 0.0, 0.0, math.pi / 2))


@dataclass(frozen=True)
class Line:
    """A piece of a map that is asked for by itself.

    prompt   its objects with their places; on one grid for the whole place, that grid too.
    worked   how far right of and ahead of the grid's corner each is: what is worked out first.
    answer   the objects in their cells, and the extent of a grid of their own.
    """

    prompt: str
    worked: str
    answer: str


def map_lines_of(graph: SceneGraph, form: str, triples: Iterable[Sequence[int]]) -> list[Line]:
    """The lines of a map with these objects (indices) each, three in a line of triplets; places as notes have them, in tenths."""
    names, points = names_in_map(graph), np.round(graph.points.astype(np.float64), 1)
    nodes, lines = nodes_of(graph), []
    whole = grid_map(nodes, points) if form == "grid" else None
    for triple in map(list, triples):
        places = points[triple]
        told = ", ".join(place_note(names[i], points[i]) for i in triple)
        if whole is None:
            local = local_triplet(tuple(nodes[i] for i in triple), places)
            corner, cells, extent = places.min(0), local.cells, f" r={local.extent:.1f}"
        else:
            shift = np.array([min(cell[axis] for cell in whole.cells) for axis in (0, 1)])
            corner = np.round(points.min(0) - shift * whole.extent / GRID, 1)
            cells, extent = [whole.cells[i] for i in triple], ""
            told = f"{told}; {corner[0]:z.1f} {corner[1]:z.1f} {whole.extent:.1f}"
        worked = " ".join(f"{value:z.1f}" for value in (places - corner).ravel())
        written = " ".join(f"{names[i]}({x},{y})" for i, (x, y) in zip(triple, cells, strict=True))
        lines.append(Line(f"{LINE[form]}\n{told}", worked, written + extent))
    return lines


def lines_to_ask(graph: SceneGraph, form: str = "triplets", redundancy: int = 3) -> list[str]:
    """What to ask for the whole map: of triplets the lines that place every object, of a grid all objects in threes."""
    if form == "grid":
        triples = [range(i, min(i + 3, len(graph.objects))) for i in range(0, len(graph.objects), 3)]
    else:
        triples = chain_of(graph.points, redundancy=redundancy)
    return [line.prompt for line in map_lines_of(graph, form, triples)]


def map_of_lines(answers: Sequence[str], graph: SceneGraph, form: str = "triplets") -> str:
    """The map as text out of the answers to `lines_to_ask`."""
    lines = [answer.strip() for answer in answers]
    if form == "grid":
        lines = [found[0].strip() for answer in answers for found in re.finditer(r"[a-z][a-z0-9 ._-]*\([^)]*\)", answer)]
        lines += [f"r={grid_map(nodes_of(graph), np.round(graph.points.astype(np.float64), 1)).extent:.1f}"] if lines else []
    return "\n".join([OPEN, *lines, CLOSE])


def write(graph: SceneGraph, form: str = "triplets", redundancy: int = 3) -> str:
    """The map of a graph. `redundancy`: triplets for each object beyond the third (`graph.triplets.chain`)."""
    if form not in FORMS:
        raise ValueError(f"form of maps: found {form!r}, expected one of {FORMS}")
    return write_map(graph.triplets(redundancy)) if form == "triplets" else write_grid(grid_map(nodes_of(graph), graph.points))


@dataclass(frozen=True)
class WrittenMap:
    """A map that was read back and put together.

    triplets           as written, or what a grid amounts to.
    layout             one place for each object.
    n_lines, n_bad     lines there were to be read, and how many were dropped.
    """

    triplets: tuple[Triplet, ...]
    layout: Layout
    n_lines: int
    n_bad: int

    def graph(self, name: str = "") -> SceneGraph:
        """The places as a graph; objects appear in the order in which they were written."""
        order = list(dict.fromkeys(node for t in self.triplets for node in t.nodes))
        layout = self.layout
        placed = sorted(range(len(layout.nodes)), key=lambda i: order.index(layout.nodes[i]))
        objects = [
            GraphObject(*layout.nodes[i], None, tuple(layout.points[i].tolist()), first, float(layout.sigma[i]))
            for first, i in enumerate(placed)
        ]
        scale = "metric" if layout.metric else "relative"
        return SceneGraph(name, tuple(objects), scale=scale, written=self.triplets)


def read(text: str, form: str = "triplets") -> WrittenMap:
    """A map of either form out of what a model wrote; what cannot be read is dropped and counted."""
    if form == "grid":
        grid = parse_grid(text)
        triplets = grid.triplets()
        return WrittenMap(tuple(triplets), grid.layout() if triplets else solve_layout([]), grid.n_lines, grid.n_bad)
    parsed = parse_map(text)
    return WrittenMap(parsed.triplets, solve_layout(parsed.triplets), parsed.n_lines, parsed.n_bad)


def quality(text: str, truth: SceneGraph, form: str = "triplets") -> dict[str, float]:
    """`graph.metrics.map_quality` of a written map; directions are asked of all well-shaped triples of true objects.

    metric_rmse   metres, without scaling: what the written extents are worth; NaN where there are none.
    lines, bad    that were written, and dropped.
    """
    written, nodes, points = read(text, form), nodes_of(truth), truth.points
    asked = [tuple(triple) for triple in np.argwhere(usable_triples(points)).tolist()]
    found = map_quality(written.triplets, written.layout, nodes, points, asked, max(written.n_lines - (form == "grid"), 1))
    places = matched_places(written.layout, nodes, points)
    both = np.isfinite(places).all(1)
    metric = float("nan")
    if written.layout.metric and both.sum() >= 3:
        metric = position_rmse(places[both], points[both], scale=False)
    if form == "grid":  # a line is an object there
        found["validity"] = 1 - written.n_bad / max(written.n_lines, 1)
    return found | {"metric_rmse": metric, "lines": float(written.n_lines), "bad": float(written.n_bad)}


def map_lines(text: str) -> list[str]:
    """The lines of a written map."""
    return text.removeprefix(f"{OPEN}\n").removesuffix(CLOSE).splitlines()


def corrupt(lines: Sequence[str], rng: np.random.Generator, share: float = CORRUPTED) -> list[str]:
    """Lines of which about `share` have one object somewhere else."""
    spoiled = []
    for line in lines:
        cells = list(CELL.finditer(line))
        if cells and rng.random() < share:
            cell = cells[int(rng.integers(len(cells)))]
            elsewhere = [f"({x},{y})" for x in range(GRID) for y in range(GRID) if f"({x},{y})" != cell[0]]
            line = line[: cell.start()] + elsewhere[int(rng.integers(len(elsewhere)))] + line[cell.end() :]
        spoiled.append(line)
    return spoiled


class MapTask(Task):
    """What tasks on maps share. Only the text is asked and scored; `objects` stays empty.

    form    of maps.
    think   what is to be worked out before stands before the answer: of lines, places from the grid's corner; of questions, notes
            and what follows from them (`tasks.notes`), with the places of all that is in the map that is written.
    """

    def __init__(self, form: str = "triplets", redundancy: int = 3, think: bool = False):
        if form not in FORMS:
            raise ValueError(f"form of maps: found {form!r}, expected one of {FORMS}")
        self.form, self.redundancy, self.think = form, redundancy, think

    def write(self, graph: SceneGraph) -> str:
        return write(graph, self.form, self.redundancy)

    def prompt(self, question: Question) -> str:
        return f"{question.text}\n{question.context}" if question.context else question.text


class Whereabouts(Task):
    """How many there are of a category, behind notes of their places and first moments (`found_notes`); also of what is there once
    or not at all.

    labels   that are asked for where there is none, two for each that is there.
    """

    name = "whereabouts"

    def __init__(self, labels: Sequence[str] = ()):
        self.labels = tuple(labels)

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if (graph := map_graph(scene)) is None:
            return []
        there = rng.permutation(sorted({o.label for o in graph.objects})).tolist()
        absent = rng.permutation(sorted(set(self.labels) - set(there))).tolist()
        questions, last = [], len(scene.camera_to_world) - 1
        while len(questions) < limit and (there or absent):
            label = (there if there and (not absent or rng.random() < 1 / 3) else absent).pop()
            found = [o for o in graph.objects if o.label == label]
            answer = behind(found_notes(label, found, last), "", str(len(found))) if found else "0"
            questions.append(replace(where_is(label), task=self.name, scene=scene.name, answer=answer, objects=()))
        return questions

    def prompt(self, question: Question) -> str:
        return f"{PERHAPS}\n{COUNTING.prompt(replace(question, task=COUNTING.name))}"

    def parse(self, text: str) -> float | None:
        """How many there are."""
        return COUNTING.parse(split_notes(text)[1])

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        """As for counts of VSI-Bench where there are any; that there are none is right or wrong."""
        true, said = split_notes(question.answer)[1], split_notes(prediction)[1]
        if true == "0":
            return float(self.parse(prediction) == 0)
        return COUNTING.score(replace(question, task=COUNTING.name, answer=true), said, profile)


class WriteMap(MapTask):
    """The whole map. The score is that of SpaceR's maps: places within the right label, after alignment."""

    name = "scene_map"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if limit < 1 or (graph := map_graph(scene)) is None:
            return []
        return [Question(self.name, scene.name, WRITE[self.form], (), self.write(graph))]

    def parse(self, text: str) -> tuple[float, ...] | None:
        """x, y of each object, one after the other; None without any."""
        points = read(text, self.form).layout.points
        return tuple(points.ravel().tolist()) or None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        truth = read(question.answer, self.form).graph()
        return quality(prediction, truth, self.form)["spacer"]


class MapLine(MapTask):
    """The line of a map with three objects whose places are given: to be worked out, not seen. Score: that of a line."""

    name = "map_line"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if (graph := map_graph(scene)) is None:
            return []
        triples = [rng.permutation(len(graph.objects))[:3].tolist() for _ in range(limit)]
        lines = map_lines_of(graph, self.form, triples)
        answers = [behind(line.worked, "", line.answer) if self.think else line.answer for line in lines]
        return [Question(self.name, scene.name, line.prompt, (), said) for line, said in zip(lines, answers, strict=True)]

    def parse(self, text: str) -> str | None:
        return split_notes(text)[1] or None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        return line_score(self.parse(prediction) or "", self.parse(question.answer))


class ContinueMap(MapTask):
    """The line that follows the first few, of which some are spoiled; after the last, the end of the map.

    Score: what `line_score` says of the line; the end of the map is right or wrong.
    """

    name = "map_continuation"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if (graph := map_graph(scene)) is None:
            return []
        lines = map_lines(self.write(graph))
        questions = []
        for j in rng.permutation(np.arange(1, len(lines) + 1))[:limit].tolist():
            before = "".join(f"{line}\n" for line in corrupt(lines[:j], rng))
            answer = lines[j] if j < len(lines) else CLOSE
            questions.append(Question(self.name, scene.name, CONTINUE, (), answer, context=f"{OPEN}\n{before}".rstrip("\n")))
        return questions

    def parse(self, text: str) -> str | None:
        return next((line.strip() for line in text.splitlines() if line.strip()), None)

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        written = self.parse(prediction) or ""
        if CLOSE in (written, question.answer):
            return float(written == question.answer)
        return line_score(written, question.answer)


def line_score(written: str, true: str) -> float:
    """1 for the same objects in the same cells, less by a tenth for each cell (|dx| + |dy|, on average over the objects) it is off;
    0 when it is about other objects. A line of extent alone counts by its relative error.
    """
    names, cells = CELL.sub(" ", written).split(" r=")[0], CELL.findall(written)
    true_names, true_cells = CELL.sub(" ", true).split(" r=")[0], CELL.findall(true)
    if not true_cells:
        sizes = [re.fullmatch(r"r=(\d+(?:\.\d+)?)", line.strip()) for line in (written, true)]
        return max(0.0, 1 - abs(float(sizes[0][1]) / float(sizes[1][1]) - 1)) if all(sizes) else 0.0
    if names.split() != true_names.split() or len(cells) != len(true_cells):
        return 0.0
    off = np.abs(np.array(cells, dtype=int) - np.array(true_cells, dtype=int)).sum(1).mean()
    return max(0.0, 1 - float(off) / GRID)


class CompleteMap(MapTask):
    """One cell of a line of three objects is missing. Score: 1 less a tenth for each cell it is off."""

    name = "map_completion"

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if (graph := map_graph(scene)) is None:
            return []
        triplets = (
            graph.triplets(self.redundancy) if self.form == "triplets" else grid_map(nodes_of(graph), graph.points).triplets()
        )
        lines = map_lines(write_map(triplets))
        questions = []
        for line in (lines[i] for i in rng.permutation(len(lines))[:limit]):
            cell = list(CELL.finditer(line))[int(rng.integers(3))]
            asked = line[: cell.start()] + GAP + line[cell.end() :]
            questions.append(Question(self.name, scene.name, COMPLETE, (), cell[0], context=asked))
        return questions

    def parse(self, text: str) -> tuple[float, ...] | None:
        found = CELL.search(text)
        return tuple(map(float, found.groups())) if found else None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        written, true = self.parse(prediction), self.parse(question.answer)
        return max(0.0, 1 - float(np.abs(np.subtract(written, true)).sum()) / GRID) if written else 0.0


class AnswerWithMap(MapTask):
    """Questions of VSI-Bench with a map. A question's task is "map_in/..." or "map_out/...", then the official name.

    place   "in": the whole map stands in the prompt. "out": a map of the objects that the answer follows from, and of others where
            these are fewer than three, is written before it (spec 6.2, query-conditioned); so few need no line twice.
    """

    def __init__(
        self,
        place: str,
        form: str = "triplets",
        redundancy: int = 3,
        think: bool = False,
        tasks: Sequence[str] = MAP_QUESTIONS,
    ):
        super().__init__(form, redundancy, think)
        if place not in ("in", "out"):
            raise ValueError(f'place of the map: found {place!r}, expected "in" or "out"')
        self.place, self.name = place, f"map_{place}"
        self.tasks: Mapping[str, Task] = {name: VSI_TASKS[name] for name in tasks}

    def make(self, scene: AnnotatedScene, rng: np.random.Generator, limit: int = 1) -> list[Question]:
        if (graph := map_graph(scene)) is None:
            return []
        drawn = [question for task in self.tasks.values() for question in task.make(scene, rng, limit)]
        questions = []
        for question in (drawn[i] for i in rng.permutation(len(drawn))):
            if len(questions) == limit:
                break
            if (asked := self.with_map(question, scene, graph, rng)) is not None:
                questions.append(asked)
        return questions

    def with_map(
        self, question: Question, scene: AnnotatedScene, graph: SceneGraph, rng: np.random.Generator
    ) -> Question | None:
        """A question of VSI-Bench with the scene's map; None when a map does not help, or lacks what the question names."""
        helped = any(question.task.startswith(name) for name in self.tasks)
        if not helped or not set(question.objects) <= {o.label for o in graph.objects}:
            return None
        plain = replace(question, task=f"{self.name}/{question.task}", objects=())
        if self.place == "in":
            answer = with_notes(scene, question) if self.think else question.answer
            return replace(plain, context=self.write(graph), answer=answer)
        looked_up = notes(scene, question)
        matter = noted_objects(graph, question, looked_up)
        others = [o for o in graph.objects if o.label not in question.objects]
        matter += [others[i] for i in rng.permutation(len(others))[: max(3 - len(matter), 0)]]
        if len(matter) < 3:
            return None
        written = write(with_objects(graph, matter), self.form, 1)
        if self.think:
            seen = ", ".join(place_note(o.label, np.array(o.xy)) for o in matter)
            written = behind(seen, workings(scene, question, looked_up), written)
        return replace(plain, answer=f"{written}\n{question.answer}")

    def prompt(self, question: Question) -> str:
        wording = self._task(question).prompt(self._plain(question))
        return f"{GIVEN}\n{question.context}\n{wording}" if self.place == "in" else f"{FIRST}\n{wording}"

    def parse(self, text: str) -> str | float | tuple[float, ...] | None:
        """The answer alone: the first letter or number behind the map."""
        said = behind_map(split_notes(text)[1]).split()
        return said[0] if said else None

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        plain, answer = self._plain(question), behind_map(split_notes(question.answer)[1])
        return self._task(question).score(replace(plain, answer=answer), behind_map(split_notes(prediction)[1]), profile)

    def _plain(self, question: Question) -> Question:
        return replace(question, task=question.task.removeprefix(f"{self.name}/"))

    def _task(self, question: Question) -> Task:
        name = question.task.removeprefix(f"{self.name}/")
        return next(task for key, task in self.tasks.items() if name.startswith(key))


def behind_map(text: str) -> str:
    """What was written after the map; everything where there is none, nothing where it never ends."""
    if CLOSE in text:
        return text.rpartition(CLOSE)[2].strip()
    return "" if OPEN in text else text.strip()


def map_tasks(
    form: str = "triplets", redundancy: int = 3, think: bool = False, labels: Sequence[str] = ()
) -> dict[str, Task]:
    """The tasks of this file by name; `labels` are the categories that may be asked for in vain."""
    tasks = (
        Whereabouts(labels),
        MapLine(form, redundancy, think),
        WriteMap(form, redundancy),
        ContinueMap(form, redundancy),
        CompleteMap(form, redundancy),
        AnswerWithMap("in", form, redundancy, think),
        AnswerWithMap("out", form, redundancy, think),
    )
    return {task.name: task for task in tasks}
