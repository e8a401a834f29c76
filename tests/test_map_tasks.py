"""Structured tasks: what is to be written parses back to the graph it came from, and scores say how far off an answer is."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from allocentric.answer import END_THINK, THINK, split_notes
from allocentric.graph.grammar import CLOSE, OPEN, parse_map
from allocentric.graph.grid import GridMap, grid_map, parse_grid, write_grid
from allocentric.graph.map_tasks import (
    CELL,
    GAP,
    MAP_QUESTIONS,
    AnswerWithMap,
    CompleteMap,
    ContinueMap,
    Whereabouts,
    WriteMap,
    behind_map,
    corrupt,
    line_score,
    lines_to_ask,
    map_graph,
    map_lines,
    map_lines_of,
    map_of_lines,
    map_tasks,
    names_in_map,
    nodes_of,
    noted_graph,
    quality,
    read,
    where_are,
    where_is,
    write,
)
from allocentric.graph.programs import ask_graph
from allocentric.rooms import LABELS
from allocentric.tasks import VSI_TASKS
from allocentric.tasks.base import Question
from allocentric.tasks.notes import noted_places, notes, places, workings


@pytest.fixture(scope="module")
def graph(scene):
    return map_graph(scene)


def test_a_map_holds_what_the_video_shows_as_the_first_camera_sees_it(scene, graph):
    seen = scene.visibility.copy()
    seen[:, 0] = 0.002  # too little to be seen
    hidden = map_graph(replace(scene, visibility=seen))
    assert len(graph.objects) == (scene.visibility >= 0.003).any(0).sum() == len(hidden.objects) + 1
    assert scene.objects[0].box.size not in {o.box.size for o in hidden.objects}
    firsts = [o.first_seen for o in graph.objects]
    assert firsts == sorted(firsts) and None not in firsts
    where = {(o.label, round(float(p[0]), 6), round(float(p[1]), 6)) for o, p in zip(scene.objects, places(scene), strict=True)}
    assert {(o.label, round(o.xy[0], 6), round(o.xy[1], 6)) for o in graph.objects} <= where


@pytest.mark.parametrize("form", ["triplets", "grid"])
def test_a_written_map_parses_back_to_the_graph(graph, form):
    text = write(graph, form)
    found = read(text, form)
    assert found.n_bad == 0 and set(found.layout.nodes) == set(nodes_of(graph)) and found.layout.metric
    good = quality(text, graph, form)
    assert good["object_precision"] == good["object_recall"] == good["validity"] == 1
    cell = np.ptp(graph.points, axis=0).max() / 10
    assert good["position_rmse"] < cell / 2 and good["metric_rmse"] < cell and good["direction"] > 0.75
    back = found.graph()
    assert back.scale == "metric" and sorted(back.names) == sorted(graph.names)
    if form == "grid":  # the order of writing is that of appearance
        assert back.names == graph.names


def test_triplets_are_better_than_a_grid_on_exact_maps(shards):
    graphs = [map_graph(shards[i].scene) for i in range(3)]
    found = {form: [quality(write(g, form), g, form)["direction"] for g in graphs] for form in ("triplets", "grid")}
    assert np.mean(found["triplets"]) > np.mean(found["grid"])


def test_quality_falls_with_what_is_missing_wrong_and_unreadable(graph):
    text = write(graph, "grid")
    lines = map_lines(text)
    missing = quality(f"{OPEN}\n" + "\n".join(lines[2:]) + f"\n{CLOSE}", graph, "grid")
    assert missing["object_recall"] == pytest.approx(1 - 2 / len(graph.objects)) and missing["object_precision"] == 1
    more = quality(text.replace(OPEN, f"{OPEN}\nunicorn(3,3)\nthis is no line"), graph, "grid")
    assert more["object_precision"] == pytest.approx(1 - 1 / (len(graph.objects) + 1)) and more["bad"] == 1
    mirrored = CELL.sub(lambda cell: f"({9 - int(cell[1])},{cell[2]})", text)
    assert quality(mirrored, graph, "grid")["direction"] < 0.5 < quality(text, graph, "grid")["direction"]
    nothing = quality("I do not know.", graph)
    assert nothing["object_recall"] == nothing["direction"] == nothing["spacer"] == 0 and np.isnan(nothing["position_rmse"])


def test_a_grid_is_read_tolerantly():
    grid = grid_map([("bed", 1), ("chair", 1), ("chair", 2)], np.array([[0.0, 0.0], [3.9, 1.0], [2.0, 2.0]]))
    assert grid.extent == 3.9 and grid.cells[0][0] == 0 and grid.cells[1][0] == 9
    back = parse_grid(write_grid(grid))
    assert (back.nodes, back.cells, back.extent, back.n_lines, back.n_bad) == (grid.nodes, grid.cells, 3.9, 4, 0)
    text = f"Sure!\n{OPEN}\nBed ( 2 , 7 )\nbed(1,1)\ndesk(12,3)\nr=0\nlamp.0(1,1)\nsofa(3,4)"
    found = parse_grid(text)
    assert found.nodes == (("bed", 1), ("sofa", 1)) and found.cells == ((2, 7), (3, 4)) and found.extent is None
    assert (found.n_lines, found.n_bad) == (6, 3)
    assert found.triplets() == [] and parse_grid("") == GridMap()


# ---- the tasks ----


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("form", ["triplets", "grid"])
def test_every_task_asks_and_knows_its_answer(shards, form, think):
    for name, task in map_tasks(form, 2, think).items():
        made = [q for i in range(3) for q in task.make(shards[i].scene, np.random.default_rng(i), 4)]
        again = [q for i in range(3) for q in task.make(shards[i].scene, np.random.default_rng(i), 4)]
        assert made == again and task.name == name
        assert len(made) == (3 if name == "scene_map" else 12)
        for question in made:
            assert task.score(question, question.answer) == pytest.approx(1, abs=0.02), (
                question,
                task.score(question, question.answer),
            )
            assert task.score(question, "nothing I know") == 0
            assert task.parse(question.answer) is not None
            assert notes(shards[0].scene, question) == "", "notes are not for these"
            assert "None" not in task.prompt(question)


@pytest.mark.parametrize("form", ["triplets", "grid"])
def test_a_map_asked_for_line_by_line_is_that_of_its_places(graph, form):
    """Every line asked for is answered as `MapLine` teaches; together they are as good as the map written at once."""
    asked = lines_to_ask(graph, form, 2)
    triples = [
        [names_in_map(graph).index(name.rsplit(" ", 2)[0]) for name in prompt.splitlines()[1].split(";")[0].split(", ")]
        for prompt in asked
    ]
    lines = map_lines_of(graph, form, triples)
    assert [line.prompt for line in lines] == asked
    text = map_of_lines([line.answer for line in lines], graph, form)
    good = quality(text, graph, form)
    assert good["object_precision"] == good["object_recall"] == good["validity"] == 1
    at_once = quality(write(graph, form, 2), graph, form)
    assert good["direction"] > at_once["direction"] - 0.05 and good["metric_rmse"] < at_once["metric_rmse"] + 0.05
    for line in lines:  # what is worked out first are metres from the corner, of which cells are tenths of the extent
        metres = np.array(line.worked.split(), dtype=float).reshape(-1, 2)
        cells = np.array([cell for cell in CELL.findall(line.answer)], dtype=float)
        extent = float(re.search(r"r=([0-9.]+)", line.answer)[1] if form == "triplets" else line.prompt.split()[-1])
        moved = cells - 10 * metres / extent
        assert metres.min() >= 0 and np.ptp(moved, axis=0).max() < 2.01, (line, "one shift for all")
    assert map_of_lines([], graph, form) == f"{OPEN}\n{CLOSE}" and lines_to_ask(noted_graph([]), form) == []
    assert quality(map_of_lines(["what?"] * len(asked), graph, form), graph, form)["object_recall"] == 0


def named(question: Question) -> str:
    return re.fullmatch(r"How many (.+)\(s\) are in this room\?", question.text)[1]


def test_whereabouts_are_asked_of_what_is_there_and_of_what_is_not(scene, graph):
    task, labels = Whereabouts((*LABELS, "unicorn")), {o.label for o in graph.objects}
    made = task.make(scene, np.random.default_rng(0), 1000)
    asked = {named(q): q for q in made}
    assert set(asked) == {*LABELS, "unicorn"} and len(made) == len(asked)
    assert {label for label, q in asked.items() if q.answer != "0"} == labels
    for label in labels:
        written, count = split_notes(asked[label].answer)
        xs, moments = [x for _, (x, _) in noted_places(written)], written.partition(";")[2].split()
        there = sorted((o for o in graph.objects if o.label == label), key=lambda o: o.xy)
        assert len(xs) == len(moments) == len(there) == int(count) and xs == sorted(xs)
        frames = len(scene.camera_to_world) - 1
        assert [int(moment) for moment in moments] == [round(o.first_seen * 15 / frames) for o in there]
    some = [q for seed in range(20) for q in task.make(scene, np.random.default_rng(seed), 6)]
    assert 0.2 < np.mean([q.answer != "0" for q in some]) < 0.5
    assert all(q.answer != "0" for q in Whereabouts().make(scene, np.random.default_rng(0), 1000))
    counting = VSI_TASKS["object_counting"]
    assert task.prompt(asked["bed"]) == where_are("bed") != counting.prompt(where_is("bed"))  # which is of two or more
    for question in counting.make(scene, np.random.default_rng(0), 9):  # what the benchmark asks stands in them
        assert task.prompt(asked[named(question)]).endswith(counting.prompt(question))


def test_the_graph_of_what_was_noted_is_that_of_the_room(scene, graph):
    made = Whereabouts(LABELS).make(scene, np.random.default_rng(0), 1000)
    found = noted_graph(split_notes(q.answer)[0] for q in made)
    assert sorted(found.names) == sorted(graph.names)
    moments = [o.first_seen for o in found.objects]
    assert moments == sorted(moments) and moments[0] < moments[-1]
    rounded = np.round(graph.points.astype(float), 1) + 0.0
    where = {(o.label, *place) for o, place in zip(graph.objects, rounded.tolist(), strict=True)}
    assert {(o.label, *o.xy) for o in found.objects} == where
    assert noted_graph(["", "I do not know"]).objects == ()
    some = noted_graph(["bed 1.0 2.0, bed 2.0 2.0; 4", "sofa 0.0 1.0; 3 9 9"])  # moments that are missing or too many
    assert [(o.label, o.first_seen) for o in some.objects] == [("bed", 0), ("sofa", 3), ("bed", 4)]


def test_whereabouts_are_worth_what_counts_are():
    task = Whereabouts()
    question = replace(where_is("chair"), task="whereabouts", answer=f"{THINK}chair -1.0 2.0, chair 1.0 2.0; 3 4{END_THINK}2")
    assert task.score(question, "2") == task.score(question, question.answer) == 1 and task.score(question, "0") == 0
    nothing = replace(question, answer="0")
    assert task.score(nothing, "0") == 1 and task.score(nothing, question.answer) == 0 and task.score(nothing, "what?") == 0


def test_a_map_is_continued_by_its_next_line(scene, graph):
    task = ContinueMap()
    lines = map_lines(write(graph))
    made = task.make(scene, np.random.default_rng(0), 1000)
    assert len(made) == len(lines) and sum(q.answer == CLOSE for q in made) == 1
    kept = total = 0
    for question in made:
        before = question.context.splitlines()[1:]
        assert question.answer == (lines[len(before)] if len(before) < len(lines) else CLOSE)
        assert parse_map(question.context).n_bad == 0  # spoiled lines are wrong, not unreadable
        assert CELL.sub("", "\n".join(before)) == CELL.sub("", "\n".join(lines[: len(before)]))
        kept += sum(a == b for a, b in zip(before, lines, strict=False))
        total += len(before)
    assert 0.85 < kept / total < 0.95  # a tenth is spoiled


def test_corrupting_moves_one_object_of_a_line():
    lines = ["bed(2,7) desk(9,5) chair(6,3) r=3.4"] * 400
    spoiled = [line for line in corrupt(lines, np.random.default_rng(0)) if line != lines[0]]
    assert 20 <= len(spoiled) <= 60
    for line in spoiled:
        assert sum(a != b for a, b in zip(CELL.findall(line), CELL.findall(lines[0]), strict=True)) == 1
    assert corrupt(["r=3.4"], np.random.default_rng(0), 1.0) == ["r=3.4"]


def test_lines_are_scored_by_their_cells():
    true = "bed(2,7) desk(9,5) chair.2(6,3) r=3.4"
    assert line_score(true, true) == 1
    assert line_score("bed(2,7) desk(9,5) chair.2(6,6) r=1.0", true) == pytest.approx(0.9)
    assert line_score("bed(2,7) desk(9,5) chair(6,3)", true) == 0 and line_score("", true) == 0
    assert line_score("r=3.0", "r=4.0") == pytest.approx(0.75) and line_score("bed(1,1)", "r=4.0") == 0


def test_a_missing_cell_is_asked_for(scene, graph):
    for form in ("triplets", "grid"):
        for question in CompleteMap(form).make(scene, np.random.default_rng(0), 5):
            assert question.context.count(GAP) == 1
            (triplet,) = parse_map(question.context.replace(GAP, question.answer)).triplets
            assert set(triplet.nodes) <= set(nodes_of(graph))
    x, y = map(int, CELL.search(question.answer).groups())
    off = f"({x - 2 if x >= 2 else x + 2},{y - 1 if y else y + 1})"
    assert CompleteMap().score(question, off) == pytest.approx(0.7)


@pytest.mark.parametrize("form", ["triplets", "grid"])
def test_a_map_in_the_prompt_holds_the_answer(shards, form):
    """Most questions can be answered from the map alone: directions are those of the exact scene up to its grid."""
    right = total = 0
    for i in range(3):
        for question in AnswerWithMap("in", form).make(shards[i].scene, np.random.default_rng(i), 40):
            assert question.task.startswith("map_in/") and question.context in AnswerWithMap("in", form).prompt(question)
            if "direction" in question.task:
                found = ask_graph(read(question.context, form).graph(), question.text, question.options).text
                right, total = right + (found[:1] == question.answer), total + 1
    assert total >= 6 and right / total > 0.6


def test_a_map_before_the_answer_is_about_the_question(scene, graph):
    task = AnswerWithMap("out")
    plain = {q.text: q for name in MAP_QUESTIONS for q in task.tasks[name].make(scene, np.random.default_rng(0), 50)}
    made = task.make(scene, np.random.default_rng(0), 30)
    for question in made:
        written = {label for label, _ in read(question.answer).layout.nodes}
        asked = next((q for q in plain.values() if q.text == question.text), None)
        assert behind_map(question.answer) == question.answer.splitlines()[-1]
        if asked is not None:
            assert set(asked.objects) <= written
            named = sum(o.label in asked.objects for o in graph.objects)
            assert len(read(question.answer).layout.nodes) <= max(3, named), "others make three where the question has fewer"
    assert {q.task.split("/")[0] for q in made} == {"map_out"}
    first = made[0]
    assert task.score(first, f"{OPEN}\n{CLOSE}\n{behind_map(first.answer)}") == 1, "only the answer counts"
    assert task.score(first, f"{OPEN}\nbed(1,2)") == 0, "a map that never ends leaves no answer"


@pytest.mark.parametrize("place", ["in", "out"])
def test_an_answer_with_a_map_stands_behind_the_notes_of_its_question(scene, graph, place):
    """What follows from the places is worked out as for the question without a map; the answer scores as without notes."""
    task = AnswerWithMap(place, redundancy=2, think=True)
    plain = [q for name in MAP_QUESTIONS for q in task.tasks[name].make(scene, np.random.default_rng(0), 3)]
    made = [(q, task.with_map(q, scene, graph, np.random.default_rng(0))) for q in plain]
    made = [(q, asked) for q, asked in made if asked is not None]
    assert len(made) > 5
    for question, asked in made:
        written = notes(scene, question)
        found, answer = split_notes(asked.answer)
        assert found.partition("; ")[2] == workings(scene, question, written)
        assert behind_map(answer) == question.answer and task.score(asked, asked.answer) == 1
        if place == "in":
            assert found.partition("; ")[0] == written and task.parse(asked.answer) == question.answer
        else:
            named = read(answer).layout.nodes
            shown = noted_places(found)
            assert Counter(label for label, _ in shown) == Counter(label for label, _ in named)
            assert {label for label, _ in noted_places(written)} <= {label for label, _ in shown}
            for label, spot in shown:
                true = [o.xy for o in graph.objects if o.label == label]
                assert np.abs(np.array(true) - spot).max(1).min() < 0.051, "what is noted is where it is"
            assert len(map_lines(answer.rpartition("\n")[0])) == len(named) - 2, "no more lines than place them"


def test_scenes_without_a_first_camera_have_no_tasks(scene):
    blind = replace(scene, camera_to_world=None)
    assert all(task.make(blind, np.random.default_rng(0), 3) == [] for task in map_tasks().values())
    few = replace(scene, objects=scene.objects[:2], visibility=scene.visibility[:, :2])
    assert map_graph(few) is None


def test_unknown_forms_are_refused(graph):
    with pytest.raises(ValueError, match="form of maps: found 'list'"):
        write(graph, "list")
    with pytest.raises(ValueError, match='expected "in" or "out"'):
        AnswerWithMap("beside")


def test_redundancy_makes_longer_maps(graph):
    lines = [len(map_lines(write(graph, redundancy=k))) for k in (1, 2, 3)]
    assert lines[0] == len(graph.objects) - 2 and lines[0] < lines[1] < lines[2]
    assert re.search(r" r=\d+\.\d$", map_lines(write(graph))[0])
    question = Question("scene_map", "", "", (), write(graph))
    assert 0.8 < WriteMap().score(question, write(graph, redundancy=1)) < 1
