"""Questions made from scenes: right answers, unambiguous, balanced, and not to be guessed from their text."""

import math
import re
from collections import Counter, defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allocentric.geometry.boxes import Box3D, box_distance, boxes_to_array, footprint_corners
from allocentric.geometry.floor import alpha_shape_area, inside_polygon, legs_on_floor, polygon_area
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import TRAINING_TASKS, VSI_TASKS, make_questions
from allocentric.tasks.appearance_order import first_frames
from allocentric.tasks.object_position import position
from allocentric.tasks.relative_direction import direction_angle
from allocentric.tasks.relative_distance import category_distances
from allocentric.tasks.room_size import floor_area
from allocentric.tasks.vsibench import NUMERIC, PROFILES

LABELS = "bed chair table sofa lamp tv stove shelf plant stool desk mirror fridge sink door window".split()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scene_of(*things: tuple, **known) -> AnnotatedScene:
    """A scene of (label, x, y) or (label, x, y, size) boxes standing on the ground; half a metre wide unless said."""
    objects = []
    for label, x, y, *size in things:
        sides = tuple(float(side) for side in size[0]) if size else (0.5, 0.5, 0.5)
        objects.append(SceneObject(len(objects) + 1, label, Box3D((float(x), float(y), sides[2] / 2), sides, 0.0, label)))
    return AnnotatedScene("hand-made", tuple(objects), **known)


def random_scene(seed: int, frames: int = 16) -> AnnotatedScene:
    """Twelve boxes of ten categories in a rectangular room, each seen from a random frame on."""
    r = rng(seed)
    width, depth = r.uniform(4, 8, 2).tolist()
    labels = r.choice(LABELS, 9, replace=False).tolist()
    labels += [labels[0], labels[0], labels[1]]
    objects, placed = [], []
    for i, label in enumerate(labels):
        for _ in range(50):
            size, spot = r.uniform(0.3, 1.2, 3), r.uniform(0.6, 1) * np.array([width, depth]) * r.uniform(0.1, 0.9, 2)
            if all(np.linalg.norm(spot - other) > (size[:2].max() + side) / 2 + 0.2 for other, side in placed):
                break
        placed.append((spot, size[:2].max()))
        box = Box3D((*spot.tolist(), float(size[2] / 2)), tuple(size.tolist()), float(r.uniform(-math.pi, math.pi)), label)
        objects.append(SceneObject(i + 1, label, box))
    visible = np.arange(frames)[:, None] >= r.integers(0, frames - 2, len(objects))
    floor = (np.array([[0, 0], [width, 0], [width, depth], [0, depth]]),)
    poses = np.tile(level_camera(width / 2, depth / 2, float(r.uniform(0, math.tau))), (frames, 1, 1))
    return AnnotatedScene(f"random {seed}", tuple(objects), 0.02 * visible, poses, floor)


def level_camera(x: float, y: float, heading: float, height: float = 1.5) -> np.ndarray:
    """Pose of an upright camera that looks along `heading`, (4, 4)."""
    pose = np.eye(4)
    pose[:3, 2] = math.cos(heading), math.sin(heading), 0.0
    pose[:3, 1] = 0.0, 0.0, -1.0
    pose[:3, 0] = np.cross(pose[:3, 1], pose[:3, 2])
    pose[:3, 3] = x, y, height
    return pose


def chosen(question) -> str:
    """The text of the right option."""
    return question.options["ABCD".index(question.answer)][3:]


# --- Boxes and floors ---

BOX = st.tuples(
    *[st.floats(-3, 3)] * 3, *[st.floats(0.05, 2.5)] * 3, st.floats(-math.pi, math.pi)
).map(lambda numbers: np.array([numbers]))  # fmt: skip


def closest_by_projection(a: np.ndarray, b: np.ndarray, steps: int = 200) -> float:
    """Distance of two boxes by projecting a point from one to the other in turn, which converges for convex sets."""

    def project(point, box):
        x, y, z, *size, yaw = box
        turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        half = np.array(size) / 2
        return turn @ np.clip(turn.T @ (point - [x, y, z]), -half, half) + [x, y, z]

    p = a[:3]
    for _ in range(steps):
        q = project(p, b)
        p = project(q, a)
    return float(np.linalg.norm(p - q))


@settings(max_examples=40, deadline=None)
@given(BOX, BOX)
def test_box_distance_is_the_least_distance(a, b):
    exact = float(box_distance(a, b)[0])
    assert exact == pytest.approx(closest_by_projection(a[0], b[0]), abs=0.02)
    assert exact <= closest_by_projection(a[0], b[0]) + 1e-9
    grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 6)] * 3), -1).reshape(-1, 3)
    points = []
    for box in (a[0], b[0]):
        c, s = math.cos(box[6]), math.sin(box[6])
        points.append((grid * box[3:6]) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + box[:3])
    assert exact <= np.linalg.norm(points[0][:, None] - points[1][None], axis=-1).min() + 1e-9


@settings(max_examples=40, deadline=None)
@given(BOX, BOX, st.floats(-math.pi, math.pi), st.tuples(*[st.floats(-5, 5)] * 3))
def test_box_distance_does_not_depend_on_the_frame(a, b, turn, shift):
    def moved(box):
        c, s = math.cos(turn), math.sin(turn)
        x, y, z = box[0, :3]
        center = (c * x - s * y + shift[0], s * x + c * y + shift[1], z + shift[2])
        return np.array([[*center, *box[0, 3:6], box[0, 6] + turn]])

    distance = float(box_distance(a, b)[0])
    assert float(box_distance(moved(a), moved(b))[0]) == pytest.approx(distance, abs=1e-9)
    assert float(box_distance(b, a)[0]) == pytest.approx(distance, abs=1e-12)


def test_box_distance_of_known_pairs():
    unit = np.array([[0.0, 0, 0, 1, 1, 1, 0]])
    for other, expected in [
        ((3, 0, 0, 1, 1, 1, 0), 2.0),  # face to face
        ((4, 5, 0, 1, 1, 1, 0), 5.0),  # edge to edge, 3 and 4 apart
        ((0, 0, 3, 1, 1, 1, math.pi / 4), 2.0),  # one above the other
        ((2, 0, 0, 1, 1, 1, math.pi / 4), 1.5 - math.sqrt(0.5)),  # an edge pointing at a face
        ((0, 0, 0, 0.2, 4, 0.2, 0.3), 0.0),  # crossing, no corner inside
        ((0.1, 0, 0, 0.2, 0.2, 0.2, 0.3), 0.0),  # one within the other
    ]:
        assert box_distance(unit, np.array([other], dtype=float))[0] == pytest.approx(expected, abs=1e-12)


def test_footprint_corners_turn_with_the_box():
    corners = footprint_corners(np.array([1.0, 2.0, 0.0, 4.0, 2.0, 1.0, math.pi / 2]))
    np.testing.assert_allclose(corners, [[0, 4], [0, 0], [2, 0], [2, 4]], atol=1e-12)


L_SHAPE = np.array([[0.0, 0], [4, 0], [4, 2], [2, 2], [2, 4], [0, 4]])


def test_floor_areas():
    assert polygon_area(L_SHAPE) == pytest.approx(12.0)
    assert polygon_area(L_SHAPE[::-1]) == pytest.approx(12.0)
    points = rng().uniform(0, 4, (6000, 2))
    points = points[inside_polygon(points, L_SHAPE)]
    assert alpha_shape_area(points, alpha=4.0) == pytest.approx(12.0, rel=0.03)
    assert alpha_shape_area(points, alpha=0.01) == pytest.approx(14.0, rel=0.03)  # almost the convex hull
    assert floor_area(scene_of(("bed", 1, 1), floor=(L_SHAPE, L_SHAPE + 10))) == pytest.approx(24.0)
    assert floor_area(scene_of(("bed", 1, 1), floor=(L_SHAPE,), room_area=11.0)) == 11.0
    assert floor_area(scene_of(("bed", 1, 1))) is None


def test_legs_keep_to_the_floor():
    start = np.array([[1.0, 1.0], [3.5, 1.0], [0.5, 3.5], [1.0, 1.0]])
    end = np.array([[3.5, 1.5], [0.5, 3.5], [1.5, 0.5], [5.0, 1.0]])
    assert legs_on_floor(start, end, (L_SHAPE,)).tolist() == [True, False, True, False]


# --- Answers of hand-made scenes ---


def test_counting_asks_for_what_is_there_more_than_once_and_seen():
    things = [("chair", 0, 0), ("chair", 1, 0), ("chair", 2, 0), ("lamp", 3, 0), ("lamp", 4, 0), ("bed", 5, 0)]
    seen = np.full((4, 6), 0.1)
    seen[:, 4] = 0.0
    for visibility, expected in ((None, {"chair": "3", "lamp": "2"}), (seen, {"chair": "3"})):
        questions = VSI_TASKS["object_counting"].make(scene_of(*things, visibility=visibility), rng(), 10)
        assert {q.objects[0]: q.answer for q in questions} == expected
        assert questions[0].text == f"How many {questions[0].objects[0]}(s) are in this room?"


def test_every_count_of_a_scene_is_asked_for_equally_often():
    things = [("stool", i, 0) for i in range(5)] + [(label, i, j) for label in ("cup", "box", "pot") for i, j in ((0, 1), (1, 1))]
    r, task = rng(), VSI_TASKS["object_counting"]
    answers = Counter(task.make(scene_of(*things), r)[0].answer for _ in range(400))
    assert 160 < answers["5"] < 240 and 160 < answers["2"] < 240


def test_nothing_is_asked_about_walls_and_what_has_no_name():
    things = [("Wall", 0, 0), ("wall", 4, 0), ("wall", 8, 0), ("floor", 2, 2), ("object", 0, 9), ("object", 3, 9), ("remove", 6, 6)]
    named = [("bed", 2, 5), ("chair", 5, 1), ("chair", 7, 3), ("lamp", 9, 9), ("desk", 0, 6), ("pin", 3, 3, (0.01, 0.002, 0.002))]
    bare, scene = scene_of(*things, room_area=0.04), scene_of(*things, *named, room_area=0.04)
    assert make_questions(bare, rng(), per_task=9) == []
    asked = make_questions(scene, rng(), per_task=9)
    assert {"object_counting", "object_size_estimation", "object_abs_distance"} <= {q.task for q in asked}
    assert {label for q in asked for label in q.objects} == {"bed", "chair", "lamp", "desk"}


def test_distance_size_and_room():
    scene = scene_of(("bed", 0, 0, (2.04, 1, 0.5)), ("tv", 3, 0, (0.4, 1, 0.6)), ("cup", 0, 5), ("cup", 0, 8), room_area=20.44)
    (question,) = VSI_TASKS["object_abs_distance"].make(scene, rng(), 5)
    assert (set(question.objects), question.answer) == ({"bed", "tv"}, "1.8")
    sizes = {q.objects[0]: q.answer for q in VSI_TASKS["object_size_estimation"].make(scene, rng(), 5)}
    assert sizes == {"bed": "204", "tv": "100"}
    (question,) = VSI_TASKS["room_size_estimation"].make(scene, rng(), 5)
    assert question.answer == "20.4"
    assert VSI_TASKS["room_size_estimation"].make(scene_of(("bed", 0, 0)), rng()) == []


def test_relative_distance_uses_the_closest_instance_and_clear_gaps():
    things = [("tv", 0, 0), ("bed", 2, 0), ("sofa", -3, 0), ("desk", 0, 4), ("chair", 0, 9), ("chair", 0, -1.2)]
    scene = scene_of(*things)
    np.testing.assert_allclose(category_distances(scene, "tv", ["bed", "sofa", "desk", "chair"]), [1.5, 2.5, 3.5, 0.7])
    for question in VSI_TASKS["object_rel_distance"].make(scene, rng(), 20):
        *labels, anchor = question.objects
        distances = np.sort(category_distances(scene, anchor, labels))
        assert chosen(question) == labels[int(category_distances(scene, anchor, labels).argmin())]
        assert anchor != "chair" and distances[1] - distances[0] >= 0.3 and np.diff(distances).min() >= 0.15
    close = scene_of(("tv", 0, 0), ("bed", 2, 0), ("sofa", -2.1, 0), ("desk", 0, 4), ("chair", 0, 9))
    for question in VSI_TASKS["object_rel_distance"].make(close, rng(), 20):
        assert not {"bed", "sofa", "tv"} <= set(question.objects) or question.objects[-1] != "tv"


@pytest.mark.parametrize(
    ("degrees", "easy", "medium", "hard"),
    [
        (40, "left", "left", "front-left"),
        (-40, "right", "right", "front-right"),
        (115, "left", "left", "back-left"),
        (-115, "right", "right", "back-right"),
        (155, "left", "back", "back-left"),
        (-155, "right", "back", "back-right"),
        (85, "left", "left", None),
        (4, None, None, None),
        (130, "left", None, "back-left"),
        (176, None, "back", None),
    ],
)
def test_relative_direction(degrees, easy, medium, hard):
    heading = math.radians(70)
    where = heading + math.radians(degrees)
    things = [
        ("bed", 1.0, 2.0, (0.1, 0.1, 0.5)),
        ("tv", 1.0 + 2 * math.cos(heading), 2.0 + 2 * math.sin(heading), (0.1, 0.1, 0.5)),
        ("sofa", 1.0 + 2.5 * math.cos(where), 2.0 + 2.5 * math.sin(where), (0.1, 0.1, 0.5)),
    ]
    scene = scene_of(*things)
    assert math.degrees(direction_angle(scene, "bed", "tv", "sofa")) == pytest.approx(degrees)
    questions = VSI_TASKS["object_rel_direction"].make(scene, rng(), 60)
    asked = {q.task.rsplit("_", 1)[1]: chosen(q) for q in questions if q.objects == ("bed", "tv", "sofa")}
    assert asked == {k: v for k, v in (("easy", easy), ("medium", medium), ("hard", hard)) if v}


def test_relative_direction_wants_its_objects_apart_and_not_too_large():
    far = scene_of(("bed", 0, 0), ("tv", 2, 0), ("sofa", 2, 7))
    touching = scene_of(("bed", 0, 0), ("tv", 2, 0), ("sofa", 0.2, 0.7))
    wide = scene_of(("bed", 0, 0), ("tv", 4, 0), ("sofa", 0.5, 2, (4, 0.4, 1)))  # reaches into the quadrant behind
    assert VSI_TASKS["object_rel_direction"].make(far, rng(), 20) == []
    assert VSI_TASKS["object_rel_direction"].make(touching, rng(), 20) == []
    hard = [q for q in VSI_TASKS["object_rel_direction"].make(wide, rng(), 60) if q.task.endswith("hard")]
    assert hard and all(q.objects != ("bed", "tv", "sofa") for q in hard)


def test_appearance_order():
    first = {"bed": 0, "tv": 3, "sofa": 5, "desk": 9, "cup": 9, "rug": 7}
    things = [(label, i, 0) for i, label in enumerate(first)] + [("tv", 9, 9)]
    visibility = 0.02 * (np.arange(12)[:, None] >= np.array([*first.values(), 11]))
    visibility[2:7, 5] = 0.001  # the rug can be noticed before it is well seen: earlier than the tv and the sofa, or later?
    scene = scene_of(*things, visibility=visibility)
    assert first_frames(scene, ["bed", "tv", "sofa"]).tolist() == [0, 3, 5]
    questions = VSI_TASKS["obj_appearance_order"].make(scene, rng(), 30)
    assert {frozenset(q.objects) for q in questions} == {
        frozenset(four) for four in (("bed", "tv", "sofa", "desk"), ("bed", "tv", "sofa", "cup"))
    }
    for question in questions:
        assert chosen(question) == ", ".join(sorted(question.objects, key=first.get))
        assert len({frozenset(o[3:].split(", ")) for o in question.options}) == 1 and len(set(question.options)) == 4
    with pytest.raises(ValueError, match="visibility"):
        first_frames(scene_of(("bed", 0, 0)), ["bed"])


def routes(*things: tuple, **known) -> list:
    """Nearly all route questions that a scene allows."""
    return VSI_TASKS["route_planning"].make(scene_of(*things, **known), rng(), 200)


def test_route_planning():
    things = [("bed", 0, 0), ("tv", 4, 0), ("sofa", 4, 4)]
    assert routes(*things) == []  # no place here has all three turns, so that the options would tell
    things += [("door", 4, -4), ("plant", -4, 0.3)]
    asked = {(q.text, chosen(q)) for q in routes(*things)}
    opening = "You are a robot beginning at the bed and facing the tv. You want to navigate to the {}. You will perform the "
    note = "following actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn right.'): "
    steps = "1. Go forward until the tv 2. [please fill in] 3. Go forward until the {}. You have reached the final destination."
    for goal, answer in (("sofa", "Turn Left"), ("door", "Turn Right"), ("plant", "Turn Back")):
        assert ((opening + note + steps).format(goal, goal), answer) in asked

    def goes(*things: tuple, **known) -> bool:
        """Whether any walk leads straight from the bed to the tv."""
        return any(("bed", "tv") in pairwise(walk(q)) for q in routes(*things, **known))

    room = (np.array([[-5.0, -5], [5, -5], [5, 5], [-5, 5]]),)
    two_rooms = (np.array([[-5.0, -5], [2, -5], [2, 5], [-5, 5]]), np.array([[2.0, -5], [5, -5], [5, 5], [2, 5]]))
    assert goes(*things) and goes(*things, floor=room)
    assert not goes(*things, floor=two_rooms)  # a wall
    assert not goes(*things, ("box", 2, 0.3), ("box", 9, 9))  # an obstacle
    assert goes(*things, ("rug", 2, 0.3, (1, 1, 0.01)), ("rug", 9, 9))  # none


def walk(question) -> list[str]:
    """The objects at which the robot of a route question stands, in order."""
    start = re.search("beginning at the (.*?) and", question.text)[1]
    return [start, *re.findall(r"until the (.*?)(?: \d|\. You)", question.text)]


def test_routes_are_right_when_walked_again():
    number = 0
    for seed in range(40):
        scene = random_scene(seed)
        center = {o.label: np.array(o.box.center[:2]) for o in scene.objects}
        for question in VSI_TASKS["route_planning"].make(scene, rng(seed), 4):
            stops = walk(question)
            faced = re.search("facing the (.*?)\\. You", question.text)[1]
            heading = center[faced] - center[stops[0]]
            turns = []
            for here, there in pairwise(stops):
                leg = center[there] - center[here]
                angle = math.degrees(math.atan2(heading[0] * leg[1] - heading[1] * leg[0], heading @ leg))
                if there != faced:
                    turns.append("Turn Back" if abs(angle) > 140 else "Turn Left" if angle > 0 else "Turn Right")
                heading = leg
            assert chosen(question) == ", ".join(turns), question
            assert question.text.count("[please fill in] ") == len(turns) and len(set(stops)) == len(stops)
            assert len(question.options) == (3 if len(turns) == 1 else 4)
            number += 1
    assert number > 80


@pytest.mark.parametrize(("heading", "expected"), [(0, (0, 2, -1)), (90, (2, 0, -1)), (180, (0, -2, -1)), (-90, (-2, 0, -1))])
def test_object_position(heading, expected):
    pose = level_camera(1.0, 1.0, math.radians(heading))
    pitch = math.radians(-20)
    tilt = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    pose[:3, :3] = pose[:3, :3] @ tilt  # pitch does not matter
    scene = scene_of(("bed", 3, 1, (1, 1, 1)), camera_to_world=pose[None])
    np.testing.assert_allclose(position(scene, "bed"), expected, atol=1e-9)
    task = TRAINING_TASKS["object_position"]
    (question,) = task.make(scene, rng())
    assert question.answer == "x {:.1f} y {:.1f} z {:.1f}".format(*expected)
    assert task.score(question, question.answer) == 1.0
    assert task.score(question, "x {:.1f} y {:.1f} z {:.1f}".format(*np.add(expected, [0, 0, 1]))) == pytest.approx(math.exp(-1))
    assert task.score(question, "over there") == 0.0
    assert task.make(scene_of(("bed", 3, 1)), rng()) == []


# --- All tasks ---


@pytest.fixture(scope="module")
def questions():
    r = rng(1)
    return [q for seed in range(140) for q in make_questions(random_scene(seed), r, 4)]


def test_the_right_answer_scores_one_and_a_wrong_one_does_not(questions):
    for question in questions[:400]:
        task = next(task for name, task in VSI_TASKS.items() if question.task.startswith(name))
        for profile in PROFILES:
            assert task.score(question, question.answer, profile) == 1.0
            wrong = "0" if task.name in NUMERIC else "B" if question.answer != "B" else "C"
            assert task.score(question, wrong, profile) == 0.0
        assert task.parse(question.answer) == (float(question.answer) if task.name in NUMERIC else question.answer.lower())
        assert task.prompt(question).startswith("These are frames of a video.\n" + question.text)


def test_questions_are_repeatable_different_and_no_more_than_asked_for():
    scene = random_scene(3)
    for name, task in TRAINING_TASKS.items():
        assert task.make(scene, rng(5), 4) == task.make(scene, rng(5), 4)
        for limit in (0, 1, 4, 30):
            made = task.make(scene, rng(limit), limit)
            assert len(made) <= limit and len({(q.text, frozenset(q.options)) for q in made}) == len(made), name
    empty = AnnotatedScene("empty", ())
    assert all(task.make(empty, rng(), 3) == [] for task in TRAINING_TASKS.values())


def test_numbers_are_written_as_in_the_benchmark(questions):
    decimals = {"object_counting": 0, "object_size_estimation": 0, "object_abs_distance": 1, "room_size_estimation": 1}
    for question in questions:
        if question.task in decimals:
            assert re.fullmatch(r"\d+" + (r"\.\d" if decimals[question.task] else ""), question.answer)


def by_chance(n: int, p: float) -> float:
    """What a count of n events of probability p hardly ever exceeds (three standard deviations)."""
    return n * p + 3 * math.sqrt(n * p * (1 - p))


def test_answers_are_balanced(questions):
    letters, words = defaultdict(list), defaultdict(list)
    for question in questions:
        if question.options:
            letters[question.task, len(question.options)].append(question.answer)
            words[question.task].append(chosen(question))
    assert {task for task, number in letters if number == 4} == {
        "object_rel_distance", "object_rel_direction_hard", "route_planning", "obj_appearance_order",
    }  # fmt: skip
    for (task, number), answers in letters.items():
        assert max(Counter(answers).values()) < by_chance(len(answers), 1 / number), task
    for task, number in (("easy", 2), ("medium", 3), ("hard", 4)):
        answers = words[f"object_rel_direction_{task}"]
        assert max(Counter(answers).values()) < by_chance(len(answers), 1 / number), task


def test_nothing_is_learnt_from_the_options_alone(questions):
    """Which option text tends to be right is learnt from half of the questions and tried on the other half."""
    for task in ("object_rel_distance", "route_planning", "object_rel_direction_medium", "object_rel_direction_hard"):
        asked = [q for q in questions if q.task == task]
        half = len(asked) // 2
        offered, right = Counter(), Counter()
        for question in asked[:half]:
            offered.update((len(question.options), option[3:]) for option in question.options)
            right[len(question.options), chosen(question)] += 1
        guessed = 0
        for question in asked[half:]:
            keys = [(len(question.options), option[3:]) for option in question.options]
            best = max(range(len(keys)), key=[(right[key] + 1) / (offered[key] + 4) for key in keys].__getitem__)
            guessed += "ABCD"[best] == question.answer
        chance = float(np.mean([1 / len(q.options) for q in asked[half:]]))
        assert guessed < by_chance(len(asked) - half, chance), task


def test_the_order_most_like_the_others_is_not_the_answer(questions):
    def agreement(one, other):
        return sum((one.index(a) < one.index(b)) == (other.index(a) < other.index(b)) for a, b in combinations(one, 2))

    asked = [q for q in questions if q.task == "obj_appearance_order"]
    central = like_text = 0
    for question in asked:
        orders = [option[3:].split(", ") for option in question.options]
        central += "ABCD"[int(np.argmax([sum(agreement(o, p) for p in orders) for o in orders]))] == question.answer
        like_text += "ABCD"[int(np.argmax([agreement(o, list(question.objects)) for o in orders]))] == question.answer
    assert len(asked) > 500 and central / len(asked) < 0.30 and like_text / len(asked) < 0.30


def test_labels_that_do_not_name_one_object_are_errors():
    scene = scene_of(("cup", 0, 0), ("cup", 1, 0), ("bed", 3, 0))
    with pytest.raises(ValueError, match=r"'sofa'.*\['bed', 'cup'\]"):
        category_distances(scene, "bed", ["sofa"])
    with pytest.raises(ValueError, match="one object labelled 'cup', found 2"):
        direction_angle(scene, "cup", "bed", "bed")


def test_boxes_become_rows():
    boxes = [Box3D((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 0.7)]
    np.testing.assert_array_equal(boxes_to_array(boxes), [[1, 2, 3, 4, 5, 6, 0.7]])
    assert boxes_to_array([]).shape == (0, 7)
