"""Tables of scores: per task, macro and micro, with intervals, and beside them what knowing nothing would score."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from allocentric.evaluate.answers import Row, by_id
from allocentric.evaluate.responders import letters, most_frequent
from allocentric.evaluate.statistics import (
    DRAWS,
    Averages,
    McNemar,
    averages,
    base_task,
    bootstrap,
    interval,
    mcnemar,
    sign_probability,
)
from allocentric.tasks.base import Benchmark, Question
from allocentric.tasks.choices import ChoiceBenchmark
from allocentric.tasks.overlap import GroundingBenchmark
from allocentric.tasks.referit3d import ReferIt3D
from allocentric.tasks.scanrefer import ScanRefer
from allocentric.tasks.vsibench import VSIBench

HEADLINE = "overall"


@dataclass(frozen=True)
class Line:
    """One number, in percent; None where there is none.

    n               how many answers it is the mean of.
    low, high       95 % interval, scenes resampled.
    chance          expected score of a random option (0 where there are none).
    frequency       score of the most frequent answer of each task, counted on these very questions.
    """

    name: str
    score: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    frequency: float | None = None


@dataclass(frozen=True)
class Report:
    """The scores of one run. `facts` say what was run and how; `notes` what to keep in mind."""

    title: str
    facts: Mapping[str, object]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        scores = {line.name: {k: v for k, v in asdict(line).items() if k != "name" and v is not None} for line in self.lines}
        return {"title": self.title, **self.facts, "scores": scores, "notes": list(self.notes)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names, and a row of cells for each line."""
        shown = [name for name in ("n", "chance", "frequency") if any(getattr(line, name) is not None for line in self.lines)]
        rows = [
            [line.name, f"{line.score:.1f}", "" if line.low is None else f"{line.low:.1f} to {line.high:.1f}"]
            + [_cell(getattr(line, name)) for name in shown]
            for line in self.lines
        ]
        return ["task", "score", "95 %", *shown], rows


def make_report(benchmark: Benchmark, rows: Sequence[Row], profile: str, facts: Mapping[str, object]) -> Report:
    """Everything the benchmark reports, scored by `profile` (rows hold that profile's scores)."""
    numbers = benchmark.aggregate([row.record() for row in rows], profile)
    plain, drawn = averages(rows), bootstrap({"run": rows})["run"]
    baselines = {}
    if not isinstance(benchmark, GroundingBenchmark):  # whose candidates are not in the rows, and no place is most frequent
        baselines["chance"] = averages(chance(benchmark, rows, profile))
        baselines["frequency"] = averages(frequency(benchmark, rows, profile))
    counts = _counts(rows, plain)
    lines = []
    for i, name in enumerate(plain.names):
        known = {baseline: float(found.tasks[0, i]) for baseline, found in baselines.items()}
        lines.append(_line(name, plain.tasks[0, i], drawn.tasks[:, i], counts[name], known))
    for name in ("macro", "micro"):
        known = {baseline: float(getattr(found, name)[0]) for baseline, found in baselines.items()}
        lines.append(_line(name, getattr(plain, name)[0], getattr(drawn, name), len(rows), known))
    for name, value in numbers.items():
        if name not in ("n", "partial", "macro", "micro", HEADLINE) and not name.startswith(("task/", "n/")):
            lines.append(Line(name.removeprefix("group/"), value))
    headline = Line(HEADLINE, numbers[HEADLINE])
    kind = benchmark.headline
    if abs(numbers[HEADLINE] - getattr(plain, kind)[0]) < 1e-4:  # else it is another kind of number, which has no interval
        headline = replace(next(line for line in lines if line.name == kind), name=f"{HEADLINE} (= {kind})")
    lines.append(headline)
    notes = _notes(benchmark, rows, profile, numbers, facts)
    return Report(benchmark.name, {"profile": profile, **facts}, tuple(lines), tuple(notes))


def chance(benchmark: Benchmark, rows: Sequence[Row], profile: str) -> list[Row]:
    """The rows with the expected score of a random option."""
    expected = []
    for row in rows:
        options = letters(row.question)
        score = float(np.mean([benchmark.score(row.question, letter, profile) for letter in options])) if options else 0.0
        expected.append(replace(row, prediction="", score=score))
    return expected


def frequency(benchmark: Benchmark, rows: Sequence[Row], profile: str) -> list[Row]:
    """The rows, answered with the most frequent answer of each task."""
    answers = most_frequent([row.question for row in rows])
    return [
        replace(row, prediction=answers[row.task], score=benchmark.score(row.question, answers[row.task], profile)) for row in rows
    ]


def is_unread(benchmark: Benchmark, question: Question, prediction: str, profile: str) -> bool:
    """Whether the profile finds no answer in a text at all, which published scorers do not tell apart from a wrong one."""
    if isinstance(benchmark, VSIBench):
        found = benchmark.parse(prediction, profile, question.task)
    elif isinstance(benchmark, ChoiceBenchmark):
        found = benchmark.parse(prediction, profile, len(question.options) or 4)
    elif isinstance(benchmark, ReferIt3D):
        return benchmark.parse(prediction, profile) is None
    elif isinstance(benchmark, ScanRefer):
        return benchmark.parse(prediction) is None
    else:
        return not prediction.strip()
    return found is None or (bool(question.options) and str(found).upper() not in letters(question))


def _line(name: str, score: float, drawn: np.ndarray, n: int, known: dict[str, float]) -> Line:
    return Line(name, float(score), n, *interval(drawn), **known)


def _counts(rows: Sequence[Row], plain: Averages) -> dict[str, int]:
    tasks = [base_task(row.task) for row in rows]
    return {name: tasks.count(name) for name in plain.names}


def _notes(
    benchmark: Benchmark, rows: Sequence[Row], profile: str, numbers: Mapping[str, float], facts: Mapping[str, object]
) -> list[str]:
    unread = sum(is_unread(benchmark, row.question, row.prediction, profile) for row in rows)
    scenes = len({row.scene for row in rows})
    notes = [
        f"{len(rows)} answers about {scenes} scenes; in {unread} of them the scorer found no answer, and they count as wrong.",
        f"Intervals: {DRAWS} bootstrap draws of scenes. Macro: mean of the tasks. Micro: mean of the answers.",
    ]
    if isinstance(benchmark, GroundingBenchmark):
        notes.append("What a random candidate scores, a run with --baseline chance tells.")
    else:
        notes.append(
            "Chance: expected score of a random option, 0 where there are none. "
            "Frequency: always the most frequent answer of a task."
        )
    if facts.get("only", "*") != "*" or facts.get("limit", "none") != "none":
        part = "Only a part of the benchmark was asked: these are no numbers of the whole."
        notes.append(f"{part} CIDEr, which weighs words by the questions at hand, least of all." if "CIDEr" in numbers else part)
    if numbers.get("partial"):
        notes.append("Not all question types are there: the overall score is none of the benchmark's.")
    return notes


# ---- two runs ----


@dataclass(frozen=True)
class Difference:
    """How much higher `b` scores than `a`, in points, with the paired 95 % interval and bootstrap probability."""

    name: str
    a: float
    b: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same questions."""

    a: str
    b: str
    lines: tuple[Difference, ...]
    mcnemar: McNemar

    def to_dict(self) -> dict:
        return {
            "a": self.a,
            "b": self.b,
            "scores": {line.name: {k: v for k, v in asdict(line).items() if k != "name"} for line in self.lines},
            "mcnemar": asdict(self.mcnemar),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [d.name, f"{d.a:.1f}", f"{d.b:.1f}", f"{d.b - d.a:+.1f}", f"{d.low:+.1f} to {d.high:+.1f}", f"{d.p:.3f}"]
            for d in self.lines
        ]
        return ["task", "a", "b", "b - a", "95 %", "p"], rows

    @property
    def title(self) -> str:
        return f"a = {self.a}, b = {self.b}"

    @property
    def notes(self) -> tuple[str, ...]:
        m = self.mcnemar
        return (
            f"Paired: {DRAWS} bootstrap draws, the same scenes for both; p is the two-sided probability of the other sign.",
            f"McNemar, exact, on the {m.n} questions that are either right or wrong: right in a alone {m.only_a}, "
            f"in b alone {m.only_b}, p = {m.p:.3g}.",
        )


def compare(a: Sequence[Row], b: Sequence[Row], names: tuple[str, str] = ("a", "b")) -> Comparison:
    """Differences between two runs. They must have answered the same questions; the order does not matter."""
    asked = by_id(row.question for row in a)
    given = {row.question.id: row for row in b}
    if asked.keys() != given.keys() or len(given) != len(b):
        only = sorted(asked.keys() ^ given.keys())
        raise ValueError(
            f"compare: found {len(a)} and {len(b)} answers, expected the same questions; "
            f"{len(only)} were asked in one run alone, such as {only[:1]}"
        )
    if other := next((row for row in b if _wording(row.question) != _wording(asked[row.question.id])), None):
        raise ValueError(f"compare: found different questions with the id {other.question.id!r}, expected the same")
    b = [given[row.question.id] for row in a]
    plain, drawn = [averages(a), averages(b)], bootstrap({"a": a, "b": b})
    parts = [(name, [p.tasks[:, i] for p in (*plain, *drawn.values())]) for i, name in enumerate(plain[0].names)]
    parts += [(name, [getattr(p, name) for p in (*plain, *drawn.values())]) for name in ("macro", "micro")]
    lines = []
    for name, (score_a, score_b, draws_a, draws_b) in parts:
        gap = draws_b - draws_a
        gap = gap[np.isfinite(gap)]
        lines.append(Difference(name, float(score_a[0]), float(score_b[0]), *interval(gap), sign_probability(gap)))
    return Comparison(*names, tuple(lines), mcnemar(a, b))


def _wording(question: Question) -> tuple:
    """What must be the same in two runs; where images lie, and what was known of boxes, may differ."""
    return question.task, question.scene, question.text, question.answer, question.references, question.context


# ---- text ----


def to_markdown(report: Report | Comparison) -> str:
    """A Markdown page."""
    columns, rows = report.table()
    lines = [f"# {report.title}", ""]
    lines += [f"- {name}: {_text(value)}" for name, value in _facts(report).items()]
    lines += ["", f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, "", *(f"{note}\n" for note in report.notes)])


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse}th,td{padding:.25em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}dt{float:left;clear:left;width:11em;color:#666}dd{margin:0 0 0 11em}"
    "p{color:#555}"
)


def to_html(report: Report | Comparison) -> str:
    """The same as one HTML file that needs nothing else."""
    columns, rows = report.table()
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(_text(value))}</dd>" for name, value in _facts(report).items())
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>\n" for cells in rows)
    notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in report.notes)
    title = html.escape(report.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>\n<body>'
        f"<h1>{title}</h1>\n<dl>{facts}</dl>\n<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>\n{notes}</body></html>\n"
    )


def _facts(report: Report | Comparison) -> Mapping[str, object]:
    return report.facts if isinstance(report, Report) else {}


def _text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)
