"""VSI-Bench: its prompts, its scorers as four harnesses implement them, and its averages."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from allocentric.tasks.base import Benchmark, Question, Record, Task, percent
from allocentric.tasks.files import check_ids, field, load_json, official_files, read_rows

PROFILES = ("official", "lmms_eval_0_7_3", "spatial_mllm", "spatial_mllm_v1", "vlmevalkit")
SPATIAL_MLLM = ("spatial_mllm", "spatial_mllm_v1")  # they differ in the prompt alone
SUBSETS = ("full", "debiased", "pruned", "tiny")

NUMERIC = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICE = ("object_rel_distance", "object_rel_direction", "route_planning", "obj_appearance_order")
DIRECTION_LEVELS = ("easy", "medium", "hard")
IN_TAGS = "within the <answer> </answer> tags."


class VSITask(Task):
    """A question type of VSI-Bench. What remains to each is which questions a scene allows."""

    def prompt(self, question: Question, style: str = "official") -> str:
        return vsi_prompt(question, style)

    def parse(self, text: str, profile: str = "official") -> str | float | None:
        """The letter in lower case, or the number, that a profile reads."""
        return read_number(text, profile) if self.name in NUMERIC else read_letter(text, profile)

    def score(self, question: Question, prediction: str, profile: str = "official") -> float:
        return vsi_score(question.task, question.answer, prediction, profile)


def question_from_row(row: Mapping[str, Any]) -> Question:
    """A row of the benchmark (hub id nyu-visionx/VSI-Bench) as a question; its scene is named "dataset/scene"."""
    try:
        return Question(
            task=row["question_type"],
            scene=f"{row['dataset']}/{row['scene_name']}",
            text=row["question"],
            options=tuple(row["options"] or ()),
            answer=row["ground_truth"],
            id=str(row.get("id", "")),
        )
    except KeyError as error:
        raise ValueError(f"VSI-Bench row: expected a field {error}, found {sorted(row)}") from error


def vsi_prompt(question: Question, style: str = "official") -> str:
    """The user's text beside the video.

    official          VSI-Bench and lmms-eval ("lmms_eval_0_7_3").
    spatial_mllm      Spatial-MLLM v1.1: the same without the first line.
    vlmevalkit        no line "Options:", and a number is asked for as a float.
    spatial_mllm_v1   Spatial-MLLM v1.0: the answer inside <answer> tags; as published, no line break before "Options:".
    """
    if style not in PROFILES:
        raise ValueError(f"prompt style: expected one of {PROFILES}, found {style!r}")
    if style == "spatial_mllm_v1":
        if not question.options:
            return f"{question.text} Please answer with the only numerical value (e.g., 42, 3.14, etc.) {IN_TAGS}"
        options = "".join(option + "\n" for option in question.options)
        choose = "Please answer with the option's letter from the given choices (e.g., A, B, etc.)"
        return f"{question.text}Options:\n{options} {choose} {IN_TAGS}"

    lines = [] if style == "spatial_mllm" else ["These are frames of a video."]
    lines.append(question.text)
    if question.options:
        lines += [] if style == "vlmevalkit" else ["Options:"]
        lines += [*question.options, "Answer with the option's letter from the given choices directly."]
    elif style == "vlmevalkit":
        lines.append("Answer briefly and directly in one float number.")
    else:
        lines.append("Please answer the question using a single word or phrase.")
    return "\n".join(lines)


# --- One answer ---


def vsi_score(task: str, truth: str, prediction: str, profile: str = "official") -> float:
    """Score of one written answer: accuracy for options, mean relative accuracy for numbers.

    official          thinking-in-space: the first word, a number as Python's `float` reads it.
    lmms_eval_0_7_3   reasoning removed, then the first number anywhere in the text, in digits or words; letters as official.
    spatial_mllm      what stands in answer tags, or else the whole text, must be the answer; strict inequality, in float32.
    vlmevalkit        searches the text for a letter, or the last number (rule-based, no judge model).
    """
    if task in NUMERIC:
        number = read_number(prediction, profile)
        target = to_float(_clean_spatial_mllm(truth) if profile in SPATIAL_MLLM else truth)
        if number is None or target is None or np.isnan(target):
            return 0.0
        return mean_relative_accuracy(number, target, profile)
    if task.removesuffix("_easy").removesuffix("_medium").removesuffix("_hard") not in CHOICE:
        raise ValueError(f"question type: expected one of {(*NUMERIC, *CHOICE)}, found {task!r}")
    right = read_letter(truth, profile) if profile in (*SPATIAL_MLLM, "vlmevalkit") else truth.lower()
    return float(right is not None and read_letter(prediction, profile) == right)


def mean_relative_accuracy(number: float, truth: float, profile: str = "official") -> float:
    """Share of ten tolerances, 50 % down to 5 %, that the relative error keeps (VSI-Bench).

    Which errors lie exactly on a tolerance is decided by float64 rounding, as in the published scorers. The official one
    divides by the signed truth, and fails when that is zero.
    """
    if profile in SPATIAL_MLLM:
        with np.errstate(over="ignore", invalid="ignore"):  # "1e99" is infinite in float32, and simply wrong
            error = np.abs(np.float32(number) - np.float32(truth)) / (np.abs(np.float32(truth)) + np.float32(1e-8))
        kept = error < 1 - np.arange(0.5, 0.975, 0.05).astype(np.float32)
        return float(kept.mean(dtype=np.float32))
    if profile == "vlmevalkit":
        error = abs(number - truth) / (abs(truth) or 1.0)
    else:
        error = abs(number - truth) / truth
    return float((error <= 1 - np.linspace(0.5, 0.95, 10)).mean())


def read_letter(text: str, profile: str = "official") -> str | None:
    """What a profile compares with the right letter, in lower case; None when it finds nothing."""
    if profile in SPATIAL_MLLM:
        return _clean_spatial_mllm(text)
    if profile == "vlmevalkit":
        letter = _vlmevalkit_letter(text)
        return letter.lower() if letter else None
    return _first_word(_stripped(profile, text)).lower()


def read_number(text: str, profile: str = "official") -> float | None:
    """The number a profile reads; None when it finds none."""
    if profile in SPATIAL_MLLM:
        return to_float(_clean_spatial_mllm(text).replace(",", ""))
    if profile == "vlmevalkit":
        return _vlmevalkit_number(text)
    text = _stripped(profile, text)
    return to_float(_first_word(text)) if profile == "official" else _first_number(text)


def _stripped(profile: str, text: str) -> str:
    """The text as the frameworks hand it to the scorer: stripped, and for lmms-eval's command line without its reasoning."""
    if profile == "lmms_eval_0_7_3":
        return _without_reasoning(text)
    if profile not in PROFILES:
        raise ValueError(f"scorer profile: expected one of {PROFILES}, found {profile!r}")
    return text.strip()


def _first_word(text: str) -> str:
    return text.split(" ")[0].rstrip(".").strip()


def to_float(text: str) -> float | None:
    """The number that a text is as a whole; None when it is none."""
    try:
        return float(text)
    except ValueError:
        return None


# --- lmms-eval 0.7.3 ---

UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
).split()
WORD_VALUES = {word: value for value, word in enumerate(UNITS)}
WORD_VALUES |= {word: 30 + 10 * i for i, word in enumerate("thirty forty fifty sixty seventy eighty ninety".split())}
SCALES = {"hundred": 100, "thousand": 1000}


def _without_reasoning(text: str) -> str:
    """Blocks between think (or analysis) tags cut out; with a closing tag alone, only what follows the last one is kept."""
    for name in ("think", "analysis"):
        opening, closing = f"<{name}>", f"</{name}>"
        text = re.sub(f"{opening}.*?{closing}", "", text, flags=re.DOTALL)
        if opening not in text:
            text = text.rpartition(closing)[2]
    return text.strip()


def _first_number(text: str) -> float | None:
    """The first number in digits or in English words, whichever starts earlier."""
    text = text.lower()
    digits = re.search(r"-?\d+(?:\.\d+)?", text)
    words = list(re.finditer("[a-z]+", text))
    first = next((i for i, word in enumerate(words) if word[0] in WORD_VALUES or word[0] in SCALES), None)
    if digits and (first is None or digits.start() < words[first].start()):
        return float(digits[0])
    if first is None:
        return None

    thousands, rest = 0, 0
    for word in (w[0] for w in words[first:]):
        if word == "hundred":
            rest = max(rest, 1) * 100
        elif word == "thousand":
            thousands, rest = thousands + max(rest, 1) * 1000, 0
        elif word in WORD_VALUES:
            rest += WORD_VALUES[word]
        elif word != "and":
            break
    return float(thousands + rest)


# --- Spatial-MLLM ---


def _clean_spatial_mllm(text: str) -> str:
    """The last <answer> block, or the whole text, on one line, without final dots, in lower case."""
    blocks = re.findall(r"<answer>(.*?)</answer>", text, flags=re.DOTALL)
    return " ".join((blocks[-1] if blocks else text).split()).rstrip(".").lower()


# --- VLMEvalKit ---

ZERO_WIDTH = re.compile("[\u200b\u200c\u200d\ufeff]")
ANSWER_OPEN, ANSWER_CLOSE = r"<\s*answer\b[^>]*>\s*", r"<\s*/\s*answer\s*>"
OPEN_BRACKET, CLOSE_BRACKET = r"[(\[{（【]?\s*", r"\s*[)\]}）】]?"
NUMBER = re.compile(r"[-+]?(?:\d*\.\d+|\d+)(?:[eE][-+]?\d+)?")
UNIT_WORD = re.compile(rf"\b({'|'.join(UNITS)})\b", re.IGNORECASE)

# Ways in which one line can state a letter, the surest first.
ENUMERATION = re.compile(r"[*_>\-\s]*(?:option|选项)\s+[A-J]\s*[:：]", re.IGNORECASE)
LETTER_ALONE = re.compile(r"[*_`>（）\[\]【】()]*\s*([A-Fa-f])\s*[*_`（）\[\]【】()]*")
LETTER_LEADS = re.compile(r"([A-Fa-f])\s*[.．:：)\]】、-]\s+")
LETTER_WITHIN = re.compile(r"(?<![A-Za-z])[*_`（\[{(]*\s*([A-F])\s*[*_`）\]})]*(?=$|[\s.,:;!?)\]】》」』，。；、：）])")
CONCLUSION = re.compile(
    rf"(?:final\s*answer|the\s*answer\s*is|answer(?:\s*is)?|correct\s*answer|答案|最终答案|结论|所以|因此|我选(?:择)?|选择|选)"
    rf"\s*[:：>＝=]?\s*{OPEN_BRACKET}([A-F]){CLOSE_BRACKET}(?:\b|[.)、。])",
    re.IGNORECASE,
)
LETTER_ANYWHERE = re.compile(rf"(?<![A-Za-z]){OPEN_BRACKET}([A-F]){CLOSE_BRACKET}(?![A-Za-z])")


def _vlmevalkit_letter(text: str) -> str | None:
    """A letter from free text: answer tags, then the last lines, then a concluding phrase, then the only capital there is."""
    text = ZERO_WIDTH.sub("", text.strip())
    if block := re.search(rf"{ANSWER_OPEN}([A-J]).*?{ANSWER_CLOSE}", text, re.IGNORECASE | re.DOTALL):
        return block[1].upper()
    tail = text[-800:]
    for tag in ("answer", "think"):
        closed = rf"(?<![A-Za-z]){OPEN_BRACKET}([A-F])\s*[)\]}}）】]?\s*</\s*{tag}\s*>"
        if found := re.search(closed, tail, re.IGNORECASE):
            return found[1].upper()
    for part in (_after_thinking(text), tail):
        if letter := _letter_of_last_lines(part):
            return letter
    if found := CONCLUSION.search(text):
        return found[1].upper()
    rest = "\n".join(line for line in text.splitlines() if not ENUMERATION.match(line))
    letters = set(LETTER_ANYWHERE.findall(rest))
    return letters.pop() if len(letters) == 1 else None


def _letter_of_last_lines(text: str) -> str | None:
    for line in reversed([line.strip() for line in text.splitlines()[-6:]]):
        if not line or ENUMERATION.match(line):
            continue
        if found := LETTER_ALONE.fullmatch(line) or LETTER_LEADS.match(line):
            return found[1].upper()
        letters = set(LETTER_WITHIN.findall(line))
        if len(letters) == 1:
            return letters.pop()
    return None


def _vlmevalkit_number(text: str) -> float | None:
    """The number that leads the <answer> block; else the last one after the thinking; else the last one."""
    if text.strip().startswith("[") and text.strip().endswith("]"):
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # whatever a model may put into brackets
            return None
        if isinstance(items, list) and items:
            text = str(items[0])
    text = UNIT_WORD.sub(lambda word: str(WORD_VALUES[word[0].lower()]), ZERO_WIDTH.sub("", text.strip()))
    block = rf"{ANSWER_OPEN}({NUMBER.pattern})(?:[^\d<][^<]*)?{ANSWER_CLOSE}"
    if found := re.search(block, text, re.IGNORECASE):
        return float(found[1])
    numbers = NUMBER.findall(_after_thinking(text)) or NUMBER.findall(text)
    return float(numbers[-1]) if numbers else None


def _after_thinking(text: str) -> str:
    """What follows the last </think>, or the last <think> where none is closed; otherwise everything."""
    for tag in (r"</\s*think\s*>", r"<\s*think\s*>"):
        if marks := list(re.finditer(tag, text, re.IGNORECASE)):
            return text[marks[-1].end() :].strip()
    return text


# --- Many answers ---


@dataclass(frozen=True)
class Summary:
    """Averages in percent.

    tasks     mean of each question type, the three levels of relative direction merged into one by an unweighted mean.
    macro     mean of `tasks`: what VSI-Bench calls overall.
    micro     mean of all answers.
    partial   whether not all eight types with all three direction levels are present, so that `macro` is no official number.
    counts    number of answers of each question type, direction levels apart.
    """

    tasks: dict[str, float]
    macro: float
    micro: float
    partial: bool
    counts: dict[str, int]


def aggregate(rows: Iterable[tuple[str, float]], strict: bool = False) -> Summary:
    """Averages of (question type, score) rows.

    When some direction levels are missing, those present are averaged; with `strict`, that is a KeyError as in the official code.
    """
    by_type: dict[str, list[float]] = defaultdict(list)
    for task, score in rows:
        by_type[task].append(score)
    if not by_type:
        raise ValueError("aggregate: expected at least one answer, found none")

    means = {task: 100 * float(np.mean(scores)) for task, scores in by_type.items()}
    levels = [f"object_rel_direction_{level}" for level in DIRECTION_LEVELS]
    present = [level for level in levels if level in means]
    if strict and 0 < len(present) < 3:
        raise KeyError(next(level for level in levels if level not in means))
    if present:
        means["object_rel_direction"] = sum(means.pop(level) for level in present) / len(present)

    order = (*NUMERIC, *CHOICE)
    if unknown := set(means) - set(order):
        raise ValueError(f"question type: expected one of {order}, found {sorted(unknown)}")
    tasks = {task: means[task] for task in order if task in means}
    return Summary(
        tasks=tasks,
        macro=sum(tasks.values()) / len(tasks),
        micro=100 * float(np.mean([score for scores in by_type.values() for score in scores])),
        partial=len(tasks) < len(order) or len(present) < 3,
        counts={task: len(scores) for task, scores in by_type.items()},
    )


# --- The benchmark ---

# Where the rows of a subset stand in the release, the most specific first; rows of other subsets are left out.
FILES = {
    "full": ("test.jsonl", "test.parquet", "test-*.parquet", "*questions*.jsonl"),
    "debiased": ("test_debiased*.parquet", "test.jsonl"),
    "pruned": ("test_pruned*.parquet", "test.jsonl"),
    "tiny": ("test.jsonl", "test.parquet", "test-*.parquet", "*questions*.jsonl"),
}


class VSIBench(Benchmark):
    """VSI-Bench (hub id nyu-visionx/VSI-Bench): eight question types, scored as four harnesses do, see `vsi_score`."""

    name = "vsibench"
    profiles = PROFILES
    headline = "macro"

    def read(self, path: str | Path, subset: str = "full") -> list[Question]:
        """Questions of a JSONL or parquet file, or of the release's folder.

        full       every row of the file.
        debiased   what remains when questions that a blind model can answer are pruned; `pruned` are those.
        tiny       the 400 questions that people answered, as far as the file has them.
        """
        if subset not in SUBSETS:
            raise ValueError(f"subset of VSI-Bench: expected one of {SUBSETS}, found {subset!r}")
        rows = [(file, row) for file in official_files(path, *FILES[subset]) for row in read_rows(file)]
        if subset in ("debiased", "pruned"):
            listed = _pruned_ids(rows[0][0].parent) if rows else None
            wanted = subset == "pruned"
            rows = [(file, row) for file, row in rows if subset in file.name or _is_pruned(row, listed, file) == wanted]
        if subset == "tiny":
            tiny = set(load_json(Path(__file__).with_name("vsibench_tiny_ids.json")))
            rows = [(file, row) for file, row in rows if int(field(row, "id", file)) in tiny]
        questions = [question_from_row(row) for _, row in rows]
        if not all(q.id for q in questions):
            raise ValueError(f"{path}: found rows without an id, expected every row to have one")
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        return vsi_prompt(question, self.check(profile))

    def parse(self, text: str, profile: str = "", task: str = "object_rel_distance") -> str | float | None:
        """The letter in lower case, or the number, that a profile reads in an answer to a question of this type."""
        return (read_number if task in NUMERIC else read_letter)(text, self.check(profile))

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        return vsi_score(question.task, question.answer, prediction, self.check(profile))

    def aggregate(self, records: Sequence[Record], profile: str = "", strict: bool = False) -> dict[str, float]:
        """`overall` is the macro average; when types or direction levels are missing, it is no official one and `partial` is 1.

        `accuracy` and `mra` average the types with options and with numbers, as Spatial-MLLM reports them. With `strict`, a
        missing direction level is a KeyError, as in the official code.
        """
        profile = self.check(profile)
        rows = [(record.question.task, record.score) for record in records]
        summary = aggregate(rows, strict)
        numbers = {"overall": summary.macro, "macro": summary.macro, "micro": summary.micro}
        if profile == "lmms_eval_0_7_3":
            numbers["overall"] = 100 * round(summary.macro / 100, 6)
        for name, types in (("mra", NUMERIC), ("accuracy", CHOICE)):
            if present := [summary.tasks[task] for task in types if task in summary.tasks]:
                numbers[f"macro/{name}"] = sum(present) / len(present)
                numbers[f"micro/{name}"] = percent([s for task, s in rows if (task in NUMERIC) == (name == "mra")])
        tasks = {f"task/{task}": value for task, value in summary.tasks.items()}
        counts = {f"n/{task}": float(count) for task, count in summary.counts.items()}
        return {**numbers, **tasks, "n": float(len(rows)), **counts, "partial": float(summary.partial)}


def _pruned_ids(folder: Path) -> set[int] | None:
    """The ids that the debiased subset leaves out, where the release lists them."""
    file = folder / "pruned_ids.txt"
    return {int(number) for number in re.findall(r"\d+", file.read_text())} if file.is_file() else None


def _is_pruned(row: Mapping[str, Any], listed: set[int] | None, file: Path) -> bool:
    """Whether the debiased subset leaves a row out."""
    if isinstance(row.get("pruned"), bool):
        return row["pruned"]
    if listed is None:
        raise ValueError(f"{file}: found rows without `pruned` and no pruned_ids.txt beside it, expected one of them")
    return int(field(row, "id", file)) in listed
