"""SQA3D: questions asked from where somebody stands in a ScanNet scene (Ma et al. 2023)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from allocentric.tasks.answers import clean_answer, match_leo
from allocentric.tasks.base import Benchmark, Question, Record, averages, percent
from allocentric.tasks.files import check_ids, field, load_json, official_files

TYPES = ("what", "is", "how", "can", "which")


class SQA3D(Benchmark):
    """One right answer to each question.

    video_3d_llm   cleaned texts must be equal: what papers on language models call EM@1.
    leo            the same, and EM-R, which is content when one is part of the other.
    official_llm   the authors' script for language models: right when the prediction is part of the answer or shares any word with
                   it; nothing at all is right, too. Do not read it as exact match.
    """

    name = "sqa3d"
    profiles = ("video_3d_llm", "leo", "official_llm")

    def read(self, path: str | Path, split: str = "test") -> list[Question]:
        """The folder that holds v1_balanced_questions_*.json and v1_balanced_sqa_annotations_*.json; the two are joined by id."""
        if not Path(path).is_dir():
            raise ValueError(f"{path}: expected the folder with the questions and the annotations of SQA3D")
        [asked] = official_files(path, f"v1_balanced_questions_{split}_scannetv2.json", f"**/v1_balanced_questions_{split}_*.json")
        [told] = official_files(
            path, f"v1_balanced_sqa_annotations_{split}_scannetv2.json", f"**/v1_balanced_sqa_annotations_{split}_*.json"
        )
        rows = {str(field(row, "question_id", asked)): row for row in _listed(asked, "questions")}
        questions = []
        for row in _listed(told, "annotations"):
            identity = str(field(row, "question_id", told))
            if identity not in rows:
                raise ValueError(f"{told}: found an answer to question {identity}, expected it in {asked.name}")
            asking, answers = rows[identity], field(row, "answers", told)
            if not answers:
                raise ValueError(f"{told}: found no answer to question {identity}, expected one")
            questions.append(
                Question(
                    task=question_type(field(asking, "question", asked)),
                    scene=field(row, "scene_id", told),
                    text=asking["question"],
                    options=(),
                    answer=answers[0]["answer"],
                    id=identity,
                    references=tuple(answer["answer"] for answer in answers),
                    context=field(asking, "situation", asked),
                )
            )
        check_ids((q.id for q in questions), told)
        if unanswered := set(rows) - {q.id for q in questions}:
            raise ValueError(
                f"{asked}: found {len(unanswered)} questions without an answer in {told.name}, first {min(unanswered)}"
            )
        return questions

    def prompt(self, question: Question, profile: str = "") -> str:
        """Video-3D-LLM's wording: the situation, the question, and how to answer."""
        self.check(profile)
        return f"{question.context} {question.text} Answer the question using a single word or phrase."

    def parse(self, text: str) -> str:
        return clean_answer(text)

    def score(self, question: Question, prediction: str, profile: str = "") -> float:
        said = clean_answer(prediction)
        if self.check(profile) == "official_llm":
            return float(shares_a_word(said, question.answer))
        return float(said == clean_answer(question.answer))

    def aggregate(self, records: Sequence[Record], profile: str = "") -> dict[str, float]:
        """`overall` is the mean of all answers."""
        numbers = averages(records)
        if self.check(profile) == "leo":
            matches = (match_leo(clean_answer(r.prediction), [clean_answer(r.question.answer)]) for r in records)
            numbers["EM-R"] = percent([float(refined) for _, refined in matches])
        return {"overall": numbers["micro"], **numbers}


def question_type(question: str) -> str:
    """what, is, how, can, which or others, by the letters with which the question begins."""
    return next((kind for kind in TYPES if question.lstrip().lower().startswith(kind)), "others")


def shares_a_word(said: str, answer: str) -> bool:
    """The authors' test: the prediction is part of the answer, white space aside or not, or has a word in common with it."""
    return "".join(said.split()) in "".join(answer.split()) or said in answer or bool(set(said.split()) & set(answer.split()))


def localisation(
    positions: Float[np.ndarray, "n k 2"],
    headings: Float[np.ndarray, "n k"],
    true_positions: Float[np.ndarray, "n 2"],
    true_headings: Float[np.ndarray, " n"],
) -> dict[str, float]:
    """Where somebody stands, guessed up to k times: percent within 0.5 and 1 m in the floor plane, and 15 and 30 degrees about z.

    Metres and radians. Distances must be smaller than the limit, and the best guess counts (SQA3D).
    """
    metres = np.linalg.norm(positions - true_positions[:, None], axis=-1).min(1)
    turn = (headings - true_headings[:, None] + np.pi) % (2 * np.pi) - np.pi
    degrees = np.degrees(np.abs(turn)).min(1)
    return {f"Acc@{limit}m": 100 * float((metres < limit).mean()) for limit in (0.5, 1.0)} | {
        f"Acc@{limit}deg": 100 * float((degrees < limit).mean()) for limit in (15, 30)
    }


def _listed(file: Path, key: str) -> list[dict[str, Any]]:
    rows = load_json(file)
    if not isinstance(rows, dict) or not isinstance(rows.get(key), list):
        raise ValueError(f"{file}: expected an object with a list {key!r}")
    return rows[key]
