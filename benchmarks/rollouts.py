"""Completions of one question and a step of GRPO on them: a scene encoded once and forked, against plain `generate`. Needs a GPU.

    python benchmarks/rollouts.py [--group 8] [--tokens 256] [--frames 16] [--rounds 3]

Random weights of the released size (Qwen2.5-VL-3B, VGGT-1B) in bfloat16. Published pattern: `generate` gets the video G times, and
so encodes and keeps it G times; every completion is then scored in a forward pass of its own, which encodes the video again. Parity
first, with nano's sizes in float32 on the CPU: the same greedy tokens, and the same log-probabilities.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

import _nano
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration
from allocentric.train.grpo import Asked, Completion, complete, pack_completions, placeholders, score
from allocentric.train.memory import RELEASED
from allocentric.train.questions import SEEN
from allocentric.train.recipe import GRPOSettings
from allocentric.train.sft import collate, freeze_except

HEIGHT, WIDTH = 476, 644  # what "training" pixel bounds make of 4:3
TRAINED = {"model.language_model": 1e-6, "model.connector": 1e-6}


def whole(network, processor, frames: Tensor, prompt: str, rows: int) -> dict[str, Tensor]:
    """The model's inputs, everything repeated for every row."""
    text = processor.prompt(prompt, videos=1)
    return processor(text=[text] * rows, videos=[frames] * rows).to(network.device)


def shared(network, processor, frames: Tensor, prompt: str) -> Asked:
    inputs = processor.look(frames)
    seen = {name: torch.as_tensor(inputs[name]).to(network.device) for name in SEEN if name in inputs}
    return Asked(seen | {"input_ids": seen["input_ids"][0]}, [prompt], {})


def published_rollout(network, processor, frames: Tensor, prompt: str, settings: GRPOSettings, greedy: bool = False) -> Tensor:
    """(rows, tokens) of completions, all of full length."""
    rows, length = (1 if greedy else settings.group), settings.max_new_tokens
    inputs = whole(network, processor, frames, prompt, rows)
    how = {"do_sample": not greedy, "max_new_tokens": length, "min_new_tokens": length, "top_k": 0, "top_p": 1.0}
    how |= {"temperature": settings.temperature, "suppress_tokens": placeholders(network)}
    with torch.no_grad():
        return network.generate(**inputs, **how)[:, inputs["input_ids"].shape[1] :]


def our_rollout(network, processor, frames: Tensor, prompt: str, settings: GRPOSettings, greedy: bool = False) -> list[Completion]:
    asked = shared(network, processor, frames, prompt)
    noise = None if greedy else torch.rand(settings.group, settings.max_new_tokens, dtype=torch.float64).numpy()
    return complete(network, processor, asked, settings, noise)


def published_score(network, processor, frames: Tensor, prompt: str, completion: list[int]) -> Tensor:
    """Log-probabilities of one completion, by a forward pass over everything."""
    inputs = whole(network, processor, frames, prompt, 1)
    written = torch.tensor([completion], device=network.device)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], written], dim=1)
    for name in ("attention_mask", "mm_token_type_ids"):
        inputs.pop(name, None)
    logits = network(**inputs, logits_to_keep=len(completion) + 1, use_cache=False).logits[0, :-1].float()
    logits = logits.index_fill(-1, torch.tensor(placeholders(network), device=logits.device), -torch.inf)
    return logits.log_softmax(-1).gather(-1, written[0][:, None]).squeeze(-1)


def our_score(network, processor, frames: Tensor, prompt: str, completions: list[list[int]]) -> Tensor:
    """Log-probabilities of all completions, one packed sequence."""
    asked = shared(network, processor, frames, prompt)
    batch = collate([pack_completions(processor, asked.seen, asked.prompts, completions)], 0)
    return score(network, network.model, batch, 1.0, placeholders(network))


def never_end(network) -> None:
    """Let completions run to their full length on both sides."""
    network.generation_config.eos_token_id = None


def check(network, processor, frames: Tensor, prompt: str, tokens: int = 6) -> float:
    """Largest difference of log-probabilities; raises when it, or a greedy token, is more than rounding."""
    settings = GRPOSettings(group=3, max_new_tokens=tokens)
    published = published_rollout(network, processor, frames, prompt, settings, greedy=True)[0].tolist()
    ours = our_rollout(network, processor, frames, prompt, settings, greedy=True)[0].ids
    assert ours == published, f"greedy tokens differ: {ours} and {published}"
    completions = [completion.ids for completion in our_rollout(network, processor, frames, prompt, settings)]
    with torch.no_grad():
        each = torch.cat([published_score(network, processor, frames, prompt, one) for one in completions])
        off = (our_score(network, processor, frames, prompt, completions) - each).abs().max().item()
    assert off <= 1e-4, f"log-probabilities differ by {off}"
    return off


def released(device: str) -> tuple[SpatialMLLMForConditionalGeneration, SpatialMLLMProcessor]:
    """A model of the released size with random weights, and a processor around nano's tokenizer."""
    _, nano = _nano.nano()
    patches = {"size": {"shortest_edge": HEIGHT * WIDTH, "longest_edge": HEIGHT * WIDTH}}
    processor = SpatialMLLMProcessor(
        Qwen2VLImageProcessor(**patches), nano.tokenizer, Qwen2VLVideoProcessor(**patches), chat_template=nano.chat_template
    )
    names = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    ids = {f"{ours}_token_id": nano.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for ours, name in names.items()}
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            network = SpatialMLLMForConditionalGeneration(SpatialMLLMConfig(**RELEASED, **ids))
    finally:
        torch.set_default_dtype(torch.float32)
    freeze_except(network, TRAINED)
    return network.eval(), processor


def timed(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def step(network, score_all: Callable[[], list[Callable[[], Tensor]]]) -> None:
    """Gradients of the completions' log-probabilities, pass after pass."""
    network.train()
    network.gradient_checkpointing_enable()
    for log_probs in score_all():
        (-log_probs().mean()).backward()
    network.zero_grad()
    network.gradient_checkpointing_disable()
    network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    small, processor = _nano.nano()
    never_end(small)
    try:
        off = check(small, processor, _nano.clip(2).frames, _nano.prompts()[0])
    except AssertionError as error:
        sys.exit(f"parity: {error}")
    print(f"parity: the same greedy tokens, log-probabilities within {off:.1e}")
    if not torch.cuda.is_available():
        print("rollouts: found no GPU, expected one of 40 GB or more; nothing is measured")
        return
    network, processor = released("cuda")
    never_end(network)
    frames, prompt = _nano.clip(args.frames, HEIGHT, WIDTH).frames, _nano.prompts()[9]
    settings = GRPOSettings(group=args.group, max_new_tokens=args.tokens)
    place = (network, processor, frames, prompt)
    completions = torch.randint(1000, 2000, (args.group, args.tokens)).tolist()

    def published_step() -> None:
        published_rollout(*place, settings)
        step(network, lambda: [lambda one=one: published_score(*place, one) for one in completions])

    def our_step() -> None:
        our_rollout(*place, settings)
        step(network, lambda: [lambda: our_score(*place, completions)])

    pairs = {
        "rollout": (lambda: published_rollout(*place, settings), lambda: our_rollout(*place, settings)),
        "step": (published_step, our_step),
    }
    size = f"{args.group} completions of {args.tokens} tokens, {args.frames} frames"
    print(f"{torch.cuda.get_device_name()}: {size}; medians of {args.rounds}")
    for name, (published, ours) in pairs.items():
        published(), ours()  # warm up
        runs = [(timed(published), timed(ours)) for _ in range(args.rounds)]
        one, other = (statistics.median(times) for times in zip(*runs, strict=True))
        ratios = sorted(a / b for a, b in runs)
        print(f"{name:<10}{one:>8.2f} s{other:>8.2f} s{one / other:>8.2f}x  (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})")
        if name == "rollout":
            rates = (args.group * args.tokens / seconds for seconds in (one, other))
            print("tokens a second: published {:.0f}, ours {:.0f}".format(*rates))


if __name__ == "__main__":
    main()
