"""ScanQA: free questions about ScanNet scenes (Azuma et al. 2022), scored as four groups of papers score it."""

from collections.abc import Sequence
from pathlib import Path

from allocentric.tasks.answers import clean_answer, match_any, match_leo
from allocentric.tasks.base import Benchmark, Question, Record, averages, percent
from allocentric.tasks.files import check_ids, field, official_files, read_rows
from allocentric.tasks.ngrams import caption_metrics
from allocentric.tasks.ptb import ptb_tokenize

# The question classes of the paper, by the words that they contain; the first that fits.
CLASSES = (
    ("Place", ("Where",)),
    ("Number", ("How many",)),
    ("Color", ("What color", "What is the color")),
    ("Object nature", ("What shape", "What type", "What kind")),
    ("Object", ("What is",)),
)


class ScanQA(Benchmark):
    """Exact match and n-gram metrics. The four protocols are not comparable with each other.

    official       the answer as written must be one of the references; n-grams over Penn Treebank tokens.
    leo            answers cleaned; the first reference that equals or overlaps the answer decides; n-grams over words.
    vlm_3r         answers cleaned; any reference may be equal; n-grams over Penn Treebank tokens. Also LLaVA-3D.
    video_3d_llm   as written; n-grams over words, only final dots removed. Also Spatial-MLLM.
    """

    name = "scanqa"
    profiles = ("official", "leo", "vlm_3r", "video_3d_llm")

    def read(self, path: str | Path) -> list[Question]:
        """ScanQA_v1.0_val.json, or the folder that holds it. The answers of the test files are not public."""
        questions = []
        for file in official_files(path, "ScanQA_v1.0_val.json"):
            for row in read_rows(file):
                text = field(row, "question", file)
                if "answers" not in row:
                    raise ValueError(f"{file}: found questions without answers, expected ScanQA_v1.0_val.json or _train.json")
                answers = tuple(row["answers"])
                if not answers:
                    raise ValueError(f"{file}: found no answer to {row.get('question_id')!r}, expected at least one")
                questions.append(
                    Question(
                        task=question_class(text),
                        scene=field(row, "scene_id", file),
                        text=text,
                        options=(),
                        answer=answers[0],
                        objects=tuple(row.get("object_names") or ()),
                        id=field(row, "question_id", file),
                        references=answers,
                    )
                )
        check_ids((q.id for q in questions), path)
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        """Video-3D-LLM's wording, which Spatial-MLLM and others took over; the authors' own model was a classifier."""
        self.check(profile)
        return f"{question.text} Answer the question simply."

    def parse(self, text: str, profile: str = "") -> str:
        """What a profile compares with the references."""
        return clean_answer(text) if self.check(profile) in ("leo", "vlm_3r") else text

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        """Exact match."""
        return float(self.match(question, prediction, profile)[0])

    def match(self, question: Question, prediction: str, profile: str = "") -> tuple[bool, bool]:
        """(exact, refined) match; for protocols without a refined one, both are the exact one."""
        profile = self.check(profile)
        if profile in ("official", "video_3d_llm"):
            exact = prediction in question.references
            return exact, exact
        references = [clean_answer(reference) for reference in question.references]
        return (match_leo if profile == "leo" else match_any)(clean_answer(prediction), references)

    def sentences(self, question: Question, prediction: str, profile: str = "") -> tuple[str, list[str]]:
        """The answer and its references as a profile's n-gram metrics see them."""
        profile = self.check(profile)
        if profile == "official":
            return ptb_tokenize(prediction), [ptb_tokenize(r) for r in question.references]
        if profile == "leo":
            return clean_answer(prediction), [clean_answer(r) for r in question.references]
        if profile == "vlm_3r":
            return ptb_tokenize(clean_answer(prediction)), [ptb_tokenize(clean_answer(r)) for r in question.references]
        return prediction.rstrip("."), list(question.references)

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """Exact match overall and per question class, and the n-gram metrics; CIDEr is that of just these questions.

        METEOR is left out, with a warning, where Java or its program is missing.
        """
        numbers = averages(records)
        numbers = {"overall": numbers["micro"], "EM": numbers["micro"], **numbers}
        if self.check(profile) in ("leo", "vlm_3r"):
            numbers["EM-R"] = percent([float(self.match(r.question, r.prediction, profile)[1]) for r in records])
        said, references = zip(*(self.sentences(r.question, r.prediction, profile) for r in records), strict=True)
        return numbers | caption_metrics(said, references)


def question_class(question: str) -> str:
    """The class that the ScanQA paper counts a question to; it is case-sensitive."""
    return next((name for name, words in CLASSES if any(word in question for word in words)), "Other")
