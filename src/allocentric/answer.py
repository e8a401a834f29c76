"""`Answer`: what a model said about a scene."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """A question and its answer.

    text        what the model wrote, without special tokens.
    question    what was asked.
    confidence  mean probability the model gave to the tokens it wrote, 0 to 1. A rough guide, not calibrated.
    frames      frame numbers, in the source, of what the model saw.
    """

    text: str
    question: str
    confidence: float
    frames: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text
