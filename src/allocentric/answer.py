"""`Answer`: what a model said about a scene."""

from dataclasses import dataclass

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"


@dataclass(frozen=True)
class Answer:
    """A question and its answer.

    text        what the model wrote, without special tokens and notes.
    question    what was asked.
    confidence  mean probability the model gave to the tokens it wrote, 0 to 1. A rough guide, not calibrated.
    frames      frame numbers, in the source, of what the model saw.
    notes       what the model wrote between <think> and </think> before the answer, if it did.
    """

    text: str
    question: str
    confidence: float
    frames: tuple[int, ...] = ()
    notes: str = ""

    def __str__(self) -> str:
        return self.text


def without_tags(text: str) -> str:
    """What stands in the last <answer> block; the whole text where there is none. Models with reasoning write such blocks."""
    _, tag, answer = text.rpartition(ANSWER)
    return answer.partition(END_ANSWER)[0].strip() if tag else text


def split_notes(text: str) -> tuple[str, str]:
    """(notes, answer) of what a model wrote. Notes that never end leave no answer."""
    before, end, after = text.partition(END_THINK)
    if end:
        return before.replace(THINK, "").strip(), after.strip()
    return (text.replace(THINK, "").strip(), "") if THINK in text else ("", text.strip())
