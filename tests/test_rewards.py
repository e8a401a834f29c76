"""Rewards: the published formulas by hand, and what must not be rewarded."""

import numpy as np
import pytest

from allocentric.graph.grammar import write_map
from allocentric.graph.scene_graph import SceneGraph
from allocentric.tasks import TRAINING_TASKS, Question
from allocentric.train.rewards import (
    answer_in,
    levenshtein_ratio,
    reasoning_prompt,
    relative_accuracy,
    rewards_of,
    well_formed,
    with_form,
)

CHOICE = Question("object_rel_distance", "s", "Which is closest?", ("A. bed", "B. desk"), "B", ("bed", "desk"))
NUMBER = Question("object_counting", "s", "How many chairs?", (), "4", ("chair",))
SIZE = Question("object_size_estimation", "s", "How long?", (), "100", ("bed",))
DIRECTION = Question("object_rel_direction_hard", "s", "Where?", ("A. left", "B. right"), "A")


def said(answer: str, thought: str = "it stands there") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>b</answer>", True),
        ("<think>a\nb</think>\n<answer>4</answer>\n", True),
        ("<think></think><answer>b</answer>", False),
        ("<answer>b</answer>", False),
        ("<think>a</think>b", False),
        ("so <think>a</think><answer>b</answer>", False),
        ("<think>a</think><answer>b</answer> then", False),
        ("<think>a</think> hm <answer>b</answer>", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<think>a<think></think><answer>b</answer>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("", False),
    ],
)
def test_the_published_form(text, expected):
    assert well_formed(text) is expected
    assert rewards_of()["format"](completions=[text]) == [float(expected)]


def test_the_form_of_notes():
    assert well_formed("<think>sofa 1.0 2.0</think>1.6", "notes") and well_formed("1.6", "notes")
    for text in ("", "<think>a</think>", "<think>a</think><think>b</think>1", "x<think>a</think>1", "<think>a 1.6", "a</think>1.6"):
        assert not well_formed(text, "notes")
    assert with_form("", "1.6", "notes") == "1.6" and not well_formed(with_form("", "1.6"))
    assert answer_in("<think>a</think>1.6", "notes") == "1.6" and answer_in("<think>a 1.6", "notes") == ""


def test_writing_and_reading_are_inverse():
    for form in ("answer_tags", "notes"):
        text = with_form("bed 1 2", "B", form)
        assert well_formed(text, form) and answer_in(text, form) == "B"
    asked = reasoning_prompt(CHOICE)
    assert asked.startswith("Which is closest?Options:\nA. bed\nB. desk\n") and asked.count("<answer>") == 2
    assert reasoning_prompt(NUMBER).startswith("How many chairs? Please answer with the only numerical value")
    words = Question("scanqa", "s", "What is behind me?", (), "", context="I am at the door.", references=("a bed",))
    start = "I am at the door. What is behind me? Please answer the question simply within the <answer>"
    assert reasoning_prompt(words).startswith(start)
    assert reasoning_prompt(CHOICE, "notes") == TRAINING_TASKS["object_rel_distance"].prompt(CHOICE)
    with pytest.raises(ValueError, match="rewards: found form 'poem' and mra 'released', expected one of"):
        rewards_of("poem")


def test_accuracy_is_the_score_of_the_task():
    questions = [CHOICE, CHOICE, NUMBER, NUMBER, NUMBER, DIRECTION, CHOICE]
    texts = [said("B"), said("A"), said("4"), said("5"), said("many"), said("a."), "B"]
    # 5 for 4 is 25 % off: kept by the tolerances 50, 45, 40, 35, 30 and 25 %
    assert rewards_of()["accuracy"](completions=texts, question=questions) == pytest.approx([1, 0, 1, 0.6, 0, 1, 0])
    with pytest.raises(ValueError, match="question type: found 'poetry'"):
        rewards_of()["accuracy"](completions=["x"], question=[Question("poetry", "s", "?", (), "x")])


def test_exact_match_is_for_options():
    found = rewards_of()["exact_match"](completions=[said(" B "), said("b"), said("4")], question=[CHOICE, CHOICE, NUMBER])
    assert found == [1.0, 0.0, None]


def test_both_published_forms_of_mean_relative_accuracy():
    for error, released, printed in ((0.0, 1, 1), (0.12, 0.8, 1), (0.47, 0.1, 1), (0.52, 0, 0.9), (0.72, 0, 0.5), (0.97, 0, 0)):
        assert relative_accuracy(100 * (1 + error), 100.0) == pytest.approx(released), error
        assert relative_accuracy(100 * (1 - error), 100.0, "printed") == pytest.approx(printed), error
    texts = [said("112"), said("148"), said("no"), said("nan"), said("B")]
    questions = [SIZE, SIZE, SIZE, SIZE, CHOICE]
    assert rewards_of()["mra"](completions=texts, question=questions) == pytest.approx([0.8, 0.1, 0, 0, None])
    assert rewards_of(mra="printed")["mra"](completions=texts, question=questions) == pytest.approx([1, 1, 0, 0, None])


def indel_by_definition(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return indel_by_definition(a[1:], b[1:])
    return 1 + min(indel_by_definition(a[1:], b), indel_by_definition(a, b[1:]))


def test_levenshtein_ratio():
    assert levenshtein_ratio("lewenstein", "levenshtein") == pytest.approx(1 - 3 / 21)  # known from the library's manual
    assert (levenshtein_ratio("", ""), levenshtein_ratio("a", ""), levenshtein_ratio("ab", "ab")) == (1, 0, 1)
    rng = np.random.default_rng(0)
    for _ in range(30):
        a, b = ("".join(rng.choice(list("abc"), rng.integers(1, 7))) for _ in range(2))
        assert levenshtein_ratio(a, b) == pytest.approx(1 - indel_by_definition(a, b) / (len(a) + len(b)))
    words = Question("sqa3d", "s", "What is behind me?", (), "a bed", references=("a bed", "bed"))
    found = rewards_of()["levenshtein"](completions=[said("bed"), said("bad"), said("4")], question=[words, words, NUMBER])
    assert found == pytest.approx([1, 2 / 3, None])


def test_length_bonus_needs_good_company():
    long, short = [0] * 400, [0] * 100
    texts = [said("B"), said("B"), said("A"), said("B"), said("A"), said("A")]
    ids = [long, short, long, long, long, long]
    found = rewards_of()["length"](completions=texts, completion_ids=ids, question=[CHOICE] * 6, group=3)
    assert found == pytest.approx([0.2, 0, 0, 0, 0, 0])  # the fourth is the only good one of its group
    edges = [[0] * n for n in (319, 320, 512, 513)]
    found = rewards_of()["length"](completions=[said("B")] * 4, completion_ids=edges, question=[CHOICE] * 4, group=4)
    assert found == pytest.approx([0, 0.2, 0.2, 0])


def test_map_reward_scores_what_was_written_against_the_scene(shards):
    """The exact map is worth most, a map of half the objects less, one of another room little, nonsense nothing."""
    scene, other = shards[0].scene, shards[1].scene
    graph = SceneGraph.from_scene(scene)
    triplets = graph.triplets()
    exact, half = write_map(triplets), write_map(triplets[: len(triplets) // 4])
    elsewhere = write_map(SceneGraph.from_scene(other).triplets())
    reward = rewards_of()["map"]
    completions = [exact, half, elsewhere, "<map>\nno map\n</map>", "no map", f"<think>{exact}</think><answer>4</answer>"]
    best, less, wrong, nonsense, unwritten, within = reward(completions=completions, scene=[scene] * 6)
    assert 1 >= best > 0.9 and within == best
    assert best > less > nonsense == 0 and best > wrong and unwritten is None
    assert reward(completions=[exact]) == [None] and reward(completions=[exact], scene=[None]) == [None]
