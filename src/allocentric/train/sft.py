"""Supervised fine-tuning: many questions about one video in one sequence, loss on the answers.

A sequence is  prefix (system, video) | question 1 + answer 1 | question 2 + answer 2 | ...
Every question sees the prefix and itself, and takes rotary positions as if it stood alone behind the prefix, so the loss and its
gradient are those of the separate samples while the video is read once.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.train.optimizer import GroupedTrainer, groups_by_rate

IGNORE = -100


class Turn(NamedTuple):
    """One question put to the model, as prompted, and the answer it should give.

    shown   what stands in the sequence in the answer's place, as many tokens long; None: the answer itself.
    given   how the answer begins where that is not to be learned.
    """

    prompt: str
    answer: str
    shown: str | None = None
    given: str = ""


def pack(
    processor: SpatialMLLMProcessor, videos: Sequence[int], turns: Sequence[Turn], images: Sequence[int] = ()
) -> dict[str, Int[Tensor, " length"]]:
    """Token ids, labels and segments (0: prefix, i: turn i) of one packed sequence.

    `videos` and `images` hold the number of tokens of each; both are empty for a model that is asked blind.
    """
    encode = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    counts = iter([*images, *videos])  # the order in which the prefix shows them
    prefix = processor.prefix(len(images), len(videos))
    ids = encode(re.sub(r"<\|(image|video)_pad\|>", lambda pad: pad.group() * next(counts), prefix))
    labels, segments = [IGNORE] * len(ids), [0] * len(ids)
    for i, turn in enumerate(turns, start=1):
        question, answer = encode(processor.suffix(turn.prompt)), encode(turn.answer + "<|im_end|>")
        shown = answer if turn.shown is None else encode(turn.shown + "<|im_end|>")
        if len(shown) != len(answer):
            raise ValueError(f"{turn.shown!r}: found {len(shown)} tokens, expected the {len(answer)} of {turn.answer!r}")
        given = encode(turn.given)
        if shown[: len(given)] != given:
            raise ValueError(f"{turn.given!r}: expected the beginning of {turn.shown or turn.answer!r}, token by token")
        ids += question + shown
        labels += [IGNORE] * (len(question) + len(given)) + answer[len(given) :]
        segments += [i] * (len(question) + len(answer))
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "segments": torch.tensor(segments)}


def collate(examples: Sequence[dict], pad_token_id: int) -> dict[str, Tensor]:
    """Pad packed sequences on the right and stack; vision tensors are concatenated along their first axis.

    An example holds `input_ids`, `labels`, `segments` and whatever vision inputs the model takes for it; one may show a video and
    the next images.
    """
    fill = {"input_ids": pad_token_id, "labels": IGNORE, "segments": -1}
    batch = {
        key: pad_sequence([example[key] for example in examples], batch_first=True, padding_value=value)
        for key, value in fill.items()
    }
    for key in {key for example in examples for key in example} - fill.keys():
        batch[key] = torch.cat([example[key] for example in examples if key in example])
    return batch


def packed_mask(segments: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch 1 length length"]:
    """Who sees whom: causal, and only the prefix or one's own segment. Padding (-1) sees itself, so that no row is empty."""
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    return (((key == 0) & (query >= 0) | (key == query)) & causal)[:, None]


def mask_for(
    language_model: PreTrainedModel, seen: Bool[Tensor, "batch 1 length length"]
) -> Bool[Tensor, "batch 1 length length"] | Float[Tensor, "batch 1 length length"]:
    """The mask as the model's attention takes it: written out ("eager"), it adds its mask to the scores, even a boolean one."""
    if language_model.config._attn_implementation != "eager":
        return seen
    return torch.zeros((), device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


def packed_positions(
    positions: Int[Tensor, "3 batch length"], segments: Int[Tensor, "batch length"]
) -> Int[Tensor, "3 batch length"]:
    """Rotary positions of the sequence read straight through -> every turn starting right behind the prefix."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    new = torch.cat([torch.zeros_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], dim=1).bool()
    start = torch.where(new, index, 0).cummax(dim=1).values  # where the segment of each token began
    first = (segments == 0).sum(dim=1, keepdim=True)
    return positions - torch.where(segments > 0, start - first, 0)


class SFTTrainer(GroupedTrainer):
    """Hugging Face's Trainer on packed sequences.

    `learning_rates` maps a parameter-name prefix to its learning rate; the longest matching prefix holds, and what matches none is
    frozen. Norms, biases and embeddings are not decayed. A model that PEFT has wrapped keeps the names it had before, and of it
    only what PEFT lets train does: adapters, and the parts in `modules_to_save`.
    """

    def __init__(self, *args, learning_rates: dict[str, float], **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # asks the Trainer to count the answer tokens of the whole step
        self.learning_rates = learning_rates
        freeze_except(self.model, learning_rates)

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        return parameter_groups(model, self.learning_rates, self.args.weight_decay)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean over answer tokens: all of the step's, however it is split into forward passes and processes."""
        inputs = dict(inputs)
        labels, segments = inputs.pop("labels"), inputs.pop("segments")
        network = self.accelerator.unwrap_model(model)
        backbone = (network.get_base_model() if isinstance(network, PeftModel) else network).model
        positions, _ = backbone.get_rope_index(
            inputs["input_ids"],
            backbone.token_types(inputs["input_ids"]),
            video_grid_thw=inputs.get("video_grid_thw"),
            image_grid_thw=inputs.get("image_grid_thw"),
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
            attention_mask=(segments >= 0).long(),
        )
        # logits only where some row has an answer token to predict
        targets = labels[:, 1:]
        keep = (targets != IGNORE).any(dim=0).nonzero().squeeze(1)
        outputs = model(
            **inputs,
            attention_mask=mask_for(backbone.language_model, packed_mask(segments)),
            position_ids=packed_positions(positions, segments),
            logits_to_keep=keep,
            use_cache=False,
        )
        loss = nn.functional.cross_entropy(
            outputs.logits.float().flatten(0, 1), targets[:, keep].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        if num_items_in_batch is None:
            loss = loss / (targets != IGNORE).sum()
        else:  # processes average their gradients; the count is that of all of them
            loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, outputs) if return_outputs else loss


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under the names they had before PEFT wrapped them."""
    for name, parameter in model.named_parameters():
        yield name.removeprefix("base_model.model.").replace("modules_to_save.default.", ""), parameter


def _rate(name: str, learning_rates: dict[str, float]) -> float | None:
    prefixes = [prefix for prefix in learning_rates if name.startswith(prefix)]
    return learning_rates[max(prefixes, key=len)] if prefixes else None


def trained_names(model: nn.Module, learning_rates: dict[str, float]) -> set[str]:
    """Parameters that have a learning rate and may train. A prefix that names no parameter is an error."""
    adapted = isinstance(model, PeftModel)
    candidates = {name for name, parameter in _named(model) if parameter.requires_grad or not adapted}
    for prefix in learning_rates:
        if not any(name.startswith(prefix) for name in candidates):
            parts = sorted({".".join(name.split(".")[:2]) for name in candidates})
            raise ValueError(f"learning_rates: found {prefix!r}, expected the beginning of a parameter name such as {parts}")
    return {name for name in candidates if _rate(name, learning_rates)}


def freeze_except(model: nn.Module, learning_rates: dict[str, float]) -> None:
    """Let only parameters with a learning rate train."""
    trained = trained_names(model, learning_rates)
    for name, parameter in _named(model):
        parameter.requires_grad_(name in trained)


def check_frozen(model: nn.Module, part: nn.Module, learning_rates: dict[str, float], why: str) -> None:
    """ValueError where something in this part of the model would train."""
    trained, within = trained_names(model, learning_rates), {id(parameter) for parameter in part.parameters()}
    learning = sorted(name for name, parameter in _named(model) if id(parameter) in within and name in trained)
    if learning:
        raise ValueError(f"{why}: found a learning rate for {learning[0]}, expected what it is made by to be frozen")


def parameter_groups(model: nn.Module, learning_rates: dict[str, float], weight_decay: float) -> list[dict]:
    """Optimizer groups of what trains, by the longest prefix that matches."""
    return groups_by_rate(_named(model), lambda name: _rate(name, learning_rates), weight_decay)
