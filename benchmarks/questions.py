"""Questions per second about one video: encoded once and asked together, against encoded again for every question.

    python benchmarks/questions.py [--frames 16] [--new-tokens 4] [--rounds 5]

The baseline does what the published evaluations do: for each question, process the frames, run both encoders, run the whole prompt
through the language model with logits for every position, and generate at batch size 1. Both write the same number of tokens.
Decoding the video is in neither. Logits and answers must agree before anything is timed. Process time on one thread, interleaved
runs, medians.
"""

import statistics
import sys
import time

import torch
import tyro
from torch import Tensor

from _nano import clip, nano, prompts
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene
from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration
from allocentric.views import Views

TOLERANCE = 1e-5  # of first-step logits in float32, relative to the largest


@torch.inference_mode()
def ask_one_by_one(
    model: SpatialMLLMForConditionalGeneration, processor: SpatialMLLMProcessor, views: Views, questions: list[str], new_tokens: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The published pattern. Returns tokens (new,) and logits (new, vocabulary) of each answer."""
    tokens, logits = [], []
    for question in questions:
        inputs = processor(text=[processor.prompt(question, videos=1)], videos=[views.frames])
        written = model.generate(
            **inputs,
            logits_to_keep=0,  # of every position
            max_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens.append(written.sequences[0, inputs["input_ids"].shape[1] :])
        logits.append(torch.cat(written.logits).float())
    return tokens, logits


def never_end(model: SpatialMLLMForConditionalGeneration) -> None:
    """Answers have exactly as many tokens as allowed, whatever random weights write."""
    model.generation_config.eos_token_id = None


def check(
    model: SpatialMLLMForConditionalGeneration, processor: SpatialMLLMProcessor, views: Views, questions: list[str], new_tokens: int
) -> tuple[float, int]:
    """Largest relative difference of first logits, and how many answers were clear of ties and equal; asserts both parities."""
    tokens, logits = ask_one_by_one(model, processor, views, questions, new_tokens)
    scene = Scene.encode(model, processor, views)
    first = torch.stack([steps[0] for steps in logits])
    scale = first.abs().max()
    difference = float((scene.first_logits(questions) - first).abs().max() / scale)
    assert difference <= TOLERANCE, f"first logits differ by {difference:.1e} of the largest, expected at most {TOLERANCE:.0e}"

    # Agreement says something only if the logits depend on what is asked and on what is seen.
    other = Views(views.frames.flip(0))
    seen = (Scene.encode(model, processor, other).first_logits(questions) - first).abs().amax(1) / scale
    asked = torch.pdist(first).min() / scale
    assert min(seen.min(), asked) > 10 * TOLERANCE, (
        f"logits hardly depend on the video ({seen.min():.1e}) or question ({asked:.1e})"
    )

    clear = 0
    for answer, written, steps in zip(scene.ask(questions, new_tokens), tokens, logits, strict=True):
        best = steps.topk(2).values
        if (best[:, 0] - best[:, 1]).min() <= 10 * TOLERANCE * scale:
            continue
        clear += 1
        expected = processor.tokenizer.decode(written, skip_special_tokens=True).strip()
        assert answer.text == expected, f"{answer.question!r}: answered {answer.text!r}, expected {expected!r}"
    return difference, clear


def main(frames: int = 16, new_tokens: int = 4, rounds: int = 5) -> None:
    """Questions per second, 18 questions on one video.

    Args:
        frames: frames the model sees.
        new_tokens: tokens of each answer.
        rounds: interleaved pairs of runs.
    """
    torch.set_num_threads(1)
    (model, processor), views, questions = nano(), clip(frames), prompts()
    never_end(model)
    try:
        difference, clear = check(model, processor, views, questions, new_tokens)
    except AssertionError as error:
        sys.exit(f"parity: {error}")

    seconds: dict[str, list[float]] = {"published": [], "encode": [], "ask": []}
    for _ in range(rounds):
        start = time.process_time()
        ask_one_by_one(model, processor, views, questions, new_tokens)
        published = time.process_time()
        scene = Scene.encode(model, processor, views)
        encoded = time.process_time()
        scene.ask(questions, new_tokens)
        asked = time.process_time()
        for name, spent in (("published", published - start), ("encode", encoded - published), ("ask", asked - encoded)):
            seconds[name].append(spent)

    ratios = [p / (e + a) for p, e, a in zip(*seconds.values(), strict=True)]
    published, encode, ask = (statistics.median(values) for values in seconds.values())
    n = len(questions)
    print(f"{n} questions, {frames} frames, {new_tokens} tokens each")
    print(f"first logits within {difference:.0e}; {clear} of {n} answers clear of ties, and equal")
    print(f"{'path':<38}{'seconds':>9}{'questions/s':>13}")
    print(f"{'encode for every question (published)':<38}{published:>9.2f}{n / published:>13.1f}")
    print(f"{'encode once (Scene)':<38}{encode + ask:>9.2f}{n / (encode + ask):>13.1f}")
    print(f"    of which encode {encode:.2f}, ask {ask:.2f}")
    print(f"ratio {statistics.median(ratios):.1f}x (pairs: {min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    tyro.cli(main)
