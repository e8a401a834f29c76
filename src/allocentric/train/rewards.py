"""Rewards for GRPO and for choosing reasoning traces, all with TRL's signature:

    reward(completions, **columns) -> one number per completion (None: does not apply)

`columns` holds `question` (`tasks.Question`), `completion_ids`, `group`, `prompts` and what else the data brings, one entry per
completion. The task that made a question scores its answer, so training is rewarded by what evaluation measures.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from allocentric.answer import ANSWER, END_ANSWER, END_THINK, THINK, split_notes
from allocentric.graph.grammar import OPEN, parse_map
from allocentric.graph.metrics import map_quality
from allocentric.graph.scene_graph import SceneGraph
from allocentric.graph.solve import solve_layout
from allocentric.scenes import AnnotatedScene
from allocentric.tasks import BENCHMARKS, TRAINING_TASKS
from allocentric.tasks.base import Question, Task
from allocentric.tasks.ngrams import longest_common_subsequence
from allocentric.tasks.vsibench import IN_TAGS, NUMERIC, mean_relative_accuracy, read_number, vsi_prompt

FORMS = ("answer_tags", "notes")
MRA_FORMS = ("released", "printed")

# The length bonus of the Video-R1 family; whether Spatial-MLLM used the same numbers is not known.
BONUS, SHORTEST, LONGEST, GOOD = 0.2, 320, 512, 0.1


# ---- the form ----


def answer_in(text: str, form: str = "answer_tags") -> str:
    """The answer in what was written; empty when there is none.

    answer_tags   <think>...</think><answer>...</answer>, the published form; the last answer block counts.
    notes         <think>...</think>answer, or the answer alone, as nano writes (`tasks.notes`).
    """
    if form == "notes":
        return split_notes(text)[1]
    blocks = re.findall(f"{ANSWER}(.*?){END_ANSWER}", text, flags=re.DOTALL)
    return blocks[-1].strip() if blocks else ""


def well_formed(text: str, form: str = "answer_tags") -> bool:
    """Whether the text is one block of reasoning and one answer, each tag exactly once, and nothing else.

    In the form of notes an answer may also stand alone: nano takes none where there is nothing to note.
    """
    tags = (THINK, END_THINK, ANSWER, END_ANSWER)
    if form == "notes" and THINK not in text and END_THINK not in text:
        return bool(text.strip())
    if form == "notes":
        tags, whole = tags[:2], f"{THINK}.+{END_THINK}.+"
    else:
        whole = rf"{THINK}.+{END_THINK}\s*{ANSWER}.+{END_ANSWER}"
    return all(text.count(tag) == 1 for tag in tags) and bool(re.fullmatch(whole, text.strip(), re.DOTALL))


def with_form(reasoning: str, answer: str, form: str = "answer_tags") -> str:
    """Reasoning and answer as one text."""
    if form == "notes":
        return f"{THINK}{reasoning}{END_THINK}{answer}" if reasoning else answer
    return f"{THINK}{reasoning}{END_THINK}{ANSWER}{answer}{END_ANSWER}"


def reasoning_prompt(question: Question, form: str = "answer_tags") -> str:
    """What the user says: question, request to reason first, form of the answer; after arXiv 2505.23747, figure 6, in our words.

    nano is asked as ever: it was taught to take notes.
    """
    if form == "notes":
        return task_of(question).prompt(question)
    asked = f"{question.context} {question.text}".strip() + f" Please answer the question simply {IN_TAGS}"
    if question.options or question.task in NUMERIC:
        asked = vsi_prompt(question, "spatial_mllm_v1")
    return (
        f"{asked}\n"
        "Think the question through first, the way people talk to themselves: look at what the frames show, work it out step by "
        f"step, check it, and correct yourself where needed. Write these thoughts between {THINK} and {END_THINK}, then the answer "
        f"alone between {ANSWER} and {END_ANSWER}."
    )


def format_reward(completions: Sequence[str], form: str = "answer_tags", **columns) -> list[float]:
    """1 for a completion of the right form."""
    return [float(well_formed(text, form)) for text in completions]


# ---- the answer ----


def task_of(question: Question) -> Task:
    """The task or benchmark a question belongs to; the three levels of relative direction are one."""
    name = "object_rel_direction" if question.task.startswith("object_rel_direction") else question.task
    if name in TRAINING_TASKS:
        return TRAINING_TASKS[name]
    if name in BENCHMARKS:
        return BENCHMARKS[name]()
    raise ValueError(f"question type: found {question.task!r}, expected one of {sorted({*TRAINING_TASKS, *BENCHMARKS})}")


def accuracy_reward(completions: Sequence[str], question: Sequence[Question], form: str = "answer_tags", **columns) -> list[float]:
    """The task's own score of the answer: exact match for options, mean relative accuracy for numbers."""
    return [task_of(q).score(q, answer_in(text, form)) for text, q in zip(completions, question, strict=True)]


def exact_match_reward(
    completions: Sequence[str], question: Sequence[Question], form: str = "answer_tags", **columns
) -> list[float | None]:
    """1 for the very answer, white space aside; for questions with options (arXiv 2505.23747, B.5)."""
    bare = lambda text: "".join(text.split())  # noqa: E731
    return [
        float(bare(answer_in(text, form)) == bare(q.answer)) if q.options else None
        for text, q in zip(completions, question, strict=True)
    ]


def relative_accuracy(number: float, truth: float, mra: str = "released") -> float:
    """Mean relative accuracy of a number, over ten tolerances.

    released   relative error < 1 - t for t = .50, .55, ..., .95, in float32, as the released metric computes it.
    printed    relative error < t for the same t (arXiv 2505.23747, equation 15): tolerances from 50 % up. A much laxer measure,
               in all likelihood a slip of the pen.
    """
    if mra == "released":
        return mean_relative_accuracy(number, truth, "spatial_mllm")
    error = abs(number - truth) / (abs(truth) + 1e-8)
    return float((error < np.linspace(0.5, 0.95, 10)).mean())


def mra_reward(
    completions: Sequence[str],
    question: Sequence[Question],
    form: str = "answer_tags",
    mra: str = "released",
    **columns,
) -> list[float | None]:
    """`relative_accuracy` for questions about numbers."""
    rewards: list[float | None] = []
    for text, q in zip(completions, question, strict=True):
        if q.task not in NUMERIC:
            rewards.append(None)
            continue
        number = read_number(answer_in(text, form), "spatial_mllm")
        rewards.append(0.0 if number is None or not np.isfinite(number) else relative_accuracy(number, float(q.answer), mra))
    return rewards


def levenshtein_ratio(a: str, b: str) -> float:
    """1 - d / (len(a) + len(b)), where d counts the insertions and deletions that make one text the other; 1 for two empty ones."""
    if not a and not b:
        return 1.0
    return 2 * longest_common_subsequence(a, b) / (len(a) + len(b))  # d = len(a) + len(b) - 2 x its length


def levenshtein_reward(
    completions: Sequence[str], question: Sequence[Question], form: str = "answer_tags", **columns
) -> list[float | None]:
    """`levenshtein_ratio` for questions that are answered in words; of several right answers the closest counts."""
    return [
        None
        if q.options or q.task in NUMERIC
        else max(levenshtein_ratio(answer_in(text, form), truth) for truth in (q.references or (q.answer,)))
        for text, q in zip(completions, question, strict=True)
    ]


def length_reward(
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    question: Sequence[Question],
    group: int,
    form: str = "answer_tags",
    shortest: int = SHORTEST,
    longest: int = LONGEST,
    **columns,
) -> list[float]:
    """0.2 for a good answer of 320 to 512 tokens, where more than one of its group is good (task score above 0.1)."""
    good = np.array(accuracy_reward(completions, question, form)) > GOOD
    several = good.reshape(-1, group).sum(axis=1).repeat(group) > 1
    lengths = np.array([len(ids) for ids in completion_ids])
    return (BONUS * (good & several & (shortest <= lengths) & (lengths <= longest))).tolist()


def map_score(text: str, scene: AnnotatedScene) -> float | None:
    """How well the map in a text (`graph.grammar`) agrees with the exact one, 0 to 1; None where no map was begun.

    Mean of the F1 of named objects and SpaceR's score of their places, times the share of lines that can be read.
    """
    if OPEN not in text:
        return None
    graph, written = SceneGraph.from_scene(scene), parse_map(text)
    quality = map_quality(written.triplets, solve_layout(written.triplets), list(graph.nodes), graph.points, [], written.n_lines)
    return quality["validity"] * (quality["object_f1"] + quality["spacer"]) / 2


def map_reward(
    completions: Sequence[str],
    scene: Sequence[AnnotatedScene | None] | None = None,
    score: Callable[[str, AnnotatedScene], float | None] = map_score,
    **columns,
) -> list[float | None]:
    """How well the map in a completion agrees with the scene, by `score(completion, scene)`; None where no scene is known."""
    if scene is None:
        return [None] * len(completions)
    return [None if one is None else score(text, one) for text, one in zip(completions, scene, strict=True)]


def rewards_of(form: str = "answer_tags", mra: str = "released") -> Mapping[str, Callable[..., list]]:
    """Every reward under the name that recipes weight it by."""
    if form not in FORMS or mra not in MRA_FORMS:
        raise ValueError(f"rewards: found form {form!r} and mra {mra!r}, expected one of {FORMS} and one of {MRA_FORMS}")
    return {
        "format": partial(format_reward, form=form),
        "accuracy": partial(accuracy_reward, form=form),
        "exact_match": partial(exact_match_reward, form=form),
        "mra": partial(mra_reward, form=form, mra=mra),
        "levenshtein": partial(levenshtein_reward, form=form),
        "length": partial(length_reward, form=form),
        "map": map_reward,
    }
