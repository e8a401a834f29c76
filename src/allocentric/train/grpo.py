"""Learning by reward: group relative policy optimisation (GRPO, arXiv 2402.03300) on questions about scenes.

    scene ──► encoded once ──► prefix of keys and values ──► forked: G completions of each question        sample
    completions ──► reward functions ──► advantage = (reward - mean of the group) / its deviation           judge
    scene | question 1 | its completions | question 2 | its completions | ... as one packed sequence        score
    the smaller of ratio x advantage and clipped ratio x advantage, less beta x KL to the reference         learn

Sampling and scoring read the same dictionary of model inputs, whatever it holds, so nothing that was seen when a completion was
written can be missing when it is scored. Rewards have TRL's signature: `reward(completions, prompts, **columns) -> list[float]`.
"""

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from jaxtyping import Bool, Float, Int
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from allocentric.files import write_whole
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene
from allocentric.models.spatial_mllm import SpatialMLLMModel
from allocentric.train.optimizer import GroupedTrainer
from allocentric.train.recipe import GRPOSettings
from allocentric.train.sft import IGNORE, collate, freeze_except, mask_for, packed_positions, parameter_groups

Reward = Callable[..., Sequence[float | None]]
STD_FLOOR = 1e-4  # added to a group's deviation, as in TRL and the R1-V family
SAMPLES = "samples.jsonl"
BRANCHES = 1 << 16  # more than a group will ever have
PLACEHOLDERS = {f"{name}_token_id" for name in ("image", "video", "vision_start", "vision_end", "geometry_start", "geometry_end")}


@dataclass(frozen=True)
class Asked:
    """One scene and the questions put to it; what a dataset for `GRPOTrainer` holds.

    seen      the model's inputs of the prompt up to the questions: `input_ids` (length,) and everything else it takes.
    prompts   the user's texts.
    columns   what the rewards need to know, one entry per prompt under each name.
    """

    seen: dict[str, Tensor]
    prompts: list[str]
    columns: dict[str, list[Any]]


class Completion(NamedTuple):
    """What was sampled: token ids (the end token included), whether it ended by itself, and the log-probabilities if known."""

    ids: list[int]
    finished: bool
    log_probs: list[float] | None = None


# Writes `settings.group` completions of each prompt, prompt by prompt, with the weights of `network` as they are now. The last
# argument seeds it. `GRPOTrainer(sampler=...)` takes one that has another engine do it.
Completer = Callable[[nn.Module, Asked, GRPOSettings, Sequence[int]], list[Completion]]


# ---- sample ----


def without_wrapper(network: nn.Module) -> PreTrainedModel:
    """The transformers model; where PEFT has put adapters into it, they are in it still."""
    return network.get_base_model() if isinstance(network, PeftModel) else network


def backbone_of(network: nn.Module) -> nn.Module:
    """The model below the language-model head."""
    return without_wrapper(network).model


def rotary_positions(
    backbone: nn.Module, input_ids: Int[Tensor, "batch length"], seen: Mapping[str, Tensor], mask: Tensor | None = None
) -> Int[Tensor, "3 batch length"]:
    """Positions of the sequence read straight through."""
    grids = {name: seen.get(name) for name in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")}
    return backbone.get_rope_index(input_ids, backbone.token_types(input_ids), attention_mask=mask, **grids)[0]


def encode_prefix(network: nn.Module, processor: SpatialMLLMProcessor, seen: Mapping[str, Tensor]) -> Scene:
    """Read what all questions share, once.

    Through the outermost module: that is the one that gathers what belongs to no layer, where weights are sharded.
    """
    ids, inputs = seen["input_ids"][None], {name: value for name, value in seen.items() if name != "input_ids"}
    positions = rotary_positions(backbone_of(network), ids, inputs)
    output = network(input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=1, **inputs)
    prefix = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
    return Scene(network, processor, prefix, int(positions.max()) + 1, (), "")


def tempered(logits: Float[Tensor, "*rows vocabulary"], temperature: float, banned: Sequence[int]) -> Tensor:
    """The logits of the distribution that is sampled from and scored: at a temperature, without tokens that stand for pixels."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return logits.index_fill(-1, torch.tensor(banned, dtype=torch.long, device=logits.device), -torch.inf)


def placeholders(network: nn.Module) -> list[int]:
    """Tokens that stand for what was seen, or enclose it: written by a model, they would ask for pixels that do not exist."""
    config = backbone_of(network).config.to_dict()
    return sorted({token for name, token in config.items() if name in PLACEHOLDERS and token is not None})


def end_tokens(network: nn.Module, processor: SpatialMLLMProcessor) -> list[int]:
    """Tokens that end an answer."""
    ends = network.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    return sorted({*ends, processor.tokenizer.convert_tokens_to_ids("<|im_end|>")})


@torch.no_grad()
def complete(
    network: nn.Module,
    processor: SpatialMLLMProcessor,
    asked: Asked,
    settings: GRPOSettings,
    noise: Float[np.ndarray, "rows tokens"] | None,
    alive: Callable[[bool], bool] = bool,
) -> list[Completion]:
    """Sample `settings.group` completions of every prompt on one encoded prefix; greedily, one of each, without `noise`.

    Row i draws its token t by where noise[i, t], uniform in [0, 1), falls in the cumulative distribution: what a row becomes
    depends on neither its company nor the process that samples it. `alive` says whether to go on, given whether a row here is
    unfinished; processes that share a sharded model must agree.
    """
    tokenizer, greedy = processor.tokenizer, noise is None
    banned, ends = placeholders(network), end_tokens(network, processor)
    scene, group = encode_prefix(network, processor, asked.seen), 1 if greedy else settings.group
    logits, cache, mask, positions = scene._start(asked.prompts)
    cache.batch_repeat_interleave(group)  # the fork: the prefix itself stays one
    logits, mask, positions = (x.repeat_interleave(group, dim=0) for x in (logits, mask, positions))
    rows = len(logits)
    uniform = None if greedy else torch.from_numpy(noise).to(logits.device)
    ids, log_probs, finished = [[] for _ in range(rows)], [[] for _ in range(rows)], [False] * rows
    batch = list(range(rows))  # which rows are still computed
    for step in range(settings.max_new_tokens):
        logits = tempered(logits, 1.0 if greedy else settings.temperature, banned)
        if greedy:
            chosen = logits.argmax(-1)
        else:
            cumulative = logits.double().softmax(-1).cumsum(-1)
            chosen = torch.searchsorted(cumulative, uniform[:, step, None] * cumulative[:, -1:], right=True).squeeze(-1)
        log_prob = logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(-1)
        for row, token, value in zip(batch, chosen.tolist(), log_prob.tolist(), strict=True):
            if not finished[row]:
                ids[row].append(token)
                log_probs[row].append(value)
                tail = tokenizer.decode(ids[row][-16:]) if settings.stop else ""
                finished[row] = token in ends or tail.endswith(settings.stop)
        unfinished = [i for i, row in enumerate(batch) if not finished[row]]
        if step + 1 == settings.max_new_tokens or not alive(bool(unfinished)):
            break
        if 0 < len(unfinished) <= len(batch) // 2:  # go on without those that have finished
            left = torch.tensor(unfinished, device=logits.device)
            cache.batch_select_indices(left)
            chosen, mask, positions = chosen[left], mask[left], positions[left]
            uniform = None if greedy else uniform[left]
            batch = [batch[i] for i in unfinished]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        logits = scene._step(chosen[:, None], mask, positions, cache)
        positions = positions + 1
    return [Completion(*parts) for parts in zip(ids, finished, log_probs, strict=True)]


# ---- score ----


def pack_completions(
    processor: SpatialMLLMProcessor, seen: Mapping[str, Tensor], prompts: Sequence[str], completions: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """One packed sequence of a scene: what is seen | question 1 | its completions | question 2 | its completions | ...

    `completions` holds equally many of every prompt, prompt by prompt. Segments are 0 for what is seen, q * BRANCHES for question
    q = 1, 2, ... and q * BRANCHES + b for its completion b = 1, 2, ...; labels are the completions.
    """
    encode = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids, group = seen["input_ids"].tolist(), len(completions) // len(prompts)
    labels, segments = [IGNORE] * len(ids), [0] * len(ids)
    for q, prompt in enumerate(prompts, start=1):
        question = encode(processor.suffix(prompt))
        ids += question
        labels += [IGNORE] * len(question)
        segments += [q * BRANCHES] * len(question)
        for b, completion in enumerate(completions[(q - 1) * group : q * group], start=1):
            ids += completion
            labels += completion
            segments += [q * BRANCHES + b] * len(completion)
    packed = {"input_ids": ids, "labels": labels, "segments": segments}
    device = seen["input_ids"].device
    return {**seen, **{name: torch.tensor(values, device=device) for name, values in packed.items()}}


def branched_mask(segments: Int[Tensor, "batch length"]) -> Bool[Tensor, "batch 1 length length"]:
    """Who sees whom: causal, and only what is seen, one's own question and one's own segment. Padding (-1) sees itself."""
    query, key = segments[:, :, None], segments[:, None, :]
    question = query - query % BRANCHES
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    return (((key == 0) & (query >= 0) | (key == question) | (key == query)) & causal)[:, None]


def branched_positions(
    positions: Int[Tensor, "3 batch length"], segments: Int[Tensor, "batch length"]
) -> tuple[Int[Tensor, "3 batch length"], Int[Tensor, "batch length"]]:
    """Rotary positions of the sequence read straight through -> every question right behind what is seen, every completion right
    behind its question; and the index of the token that each token follows.
    """
    index, branch = torch.arange(segments.shape[1], device=segments.device).expand_as(segments), segments % BRANCHES
    new = torch.cat([torch.zeros_like(segments[:, :1]), segments[:, 1:] != segments[:, :-1]], dim=1).bool()
    start = torch.where(new, index, 0).cummax(dim=1).values  # where the segment of each token began
    end = torch.where((segments > 0) & (branch == 0), index, 0).cummax(dim=1).values  # where its question ends
    answers = (segments > 0) & (branch > 0)
    moved = packed_positions(positions, segments - branch) - torch.where(answers, start - end - 1, 0)
    return moved, torch.where(new & answers, end, index - 1)


def score(
    model: nn.Module, backbone: nn.Module, batch: Mapping[str, Tensor], temperature: float, banned: Sequence[int]
) -> Float[Tensor, " tokens"]:
    """Log-probability of every completion token of packed sequences, completion after completion."""
    inputs = {name: value for name, value in batch.items() if name not in ("input_ids", "labels", "segments")}
    ids, segments, labels = batch["input_ids"], batch["segments"], batch["labels"]
    straight = rotary_positions(backbone, ids, inputs, (segments >= 0).long())
    positions, before = branched_positions(straight, segments)
    row, column = (labels != IGNORE).nonzero(as_tuple=True)
    keep, kept = before[row, column].unique(return_inverse=True)  # logits only where some row has a token to predict
    mask = mask_for(backbone.language_model, branched_mask(segments))
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep, use_cache=False, **inputs)
    logits = tempered(output.logits[row, kept], temperature, banned)
    return logits.gather(-1, labels[row, column][:, None]).squeeze(-1) - logits.logsumexp(-1)


# ---- judge and learn ----


def advantages(rewards: Float[Tensor, " rows"], group: int, divide_by_std: bool = True) -> Float[Tensor, " rows"]:
    """(reward - mean of its group) / (deviation of its group + 1e-4); rows of a group lie side by side."""
    groups = rewards.view(-1, group)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + STD_FLOOR) if divide_by_std else centred).flatten()


def kl_estimate(log_probs: Float[Tensor, " tokens"], reference: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """KL(policy, reference) per token from samples of the policy: unbiased and never negative (GRPO, equation 4)."""
    return (reference - log_probs).exp() - (reference - log_probs) - 1


@dataclass
class Rollouts:
    """The completions of one forward pass with all that later updates on them need.

    batch       packed sequences.
    row         which completion each token belongs to.
    advantages  per completion.
    weights     of each token in the loss.
    old         log-probabilities when the completions were sampled; set by the first update, whose weights are those.
    reference   log-probabilities under the reference.
    """

    batch: dict[str, Tensor]
    row: Int[Tensor, " tokens"]
    advantages: Float[Tensor, " rows"]
    weights: Float[Tensor, " tokens"]
    old: Float[Tensor, " tokens"] | None = None
    reference: Float[Tensor, " tokens"] | None = None


class GRPOTrainer(GroupedTrainer):
    """Hugging Face's Trainer for GRPO. Accumulation, processes, precision, checkpoints and resuming are the Trainer's.

    rewards         name -> reward function; `weights` names those that count, and by how much.
    settings        group size, temperature, KL and clipping (`recipe.GRPOSettings`).
    learning_rates  by beginning of parameter name; what matches none is frozen (`sft.SFTTrainer`).
    sampler         another engine for the completions; default: the model that is trained, here.

    Datasets hold `Asked`; a batch of the Trainer is `per_device_train_batch_size` scenes. The reference is the model as given: with
    adapters the model without them, else a frozen copy; none is kept when beta is 0. Samples go to `samples.jsonl` in the output
    folder.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: SpatialMLLMProcessor,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float],
        settings: GRPOSettings,
        train_dataset: Dataset | Sequence[Asked],
        learning_rates: dict[str, float],
        eval_dataset: Dataset | Sequence[Asked] | None = None,
        sampler: Completer | None = None,
        **kwargs,
    ):
        if unknown := weights.keys() - rewards.keys():
            raise ValueError(f"rewards: found {sorted(unknown)}, expected some of {sorted(rewards)}")
        super().__init__(
            model=model,
            data_collator=_as_they_are,
            train_dataset=_Numbered(train_dataset),
            eval_dataset=None if eval_dataset is None else _Numbered(eval_dataset),
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the Trainer divides by the number of accumulated passes
        self.processor, self.settings, self.learning_rates, self.sampler = processor, settings, learning_rates, sampler
        self.rewards, self.weights = {name: rewards[name] for name in weights}, dict(weights)
        freeze_except(self.model, learning_rates)
        if self.args.save_strategy == "steps" and self.args.save_steps % settings.updates:
            raise ValueError(
                f"save_every: found {self.args.save_steps}, expected a multiple of {settings.updates} updates per batch: "
                "a run resumes where completions are sampled anew"
            )
        self.reference = None
        if settings.beta and not isinstance(self.model, PeftModel):
            self.reference = copy.deepcopy(self.model).eval().requires_grad_(False)
            if self.is_fsdp_enabled:
                self.reference = fsdp2_prepare_model(self.accelerator, self.reference)
        self.banned = placeholders(self.model)
        self._rollouts: dict[int, Rollouts] = {}  # by forward pass within a step
        self._pass = 0
        self._metrics: dict[str, list[float]] = defaultdict(list)
        self.add_callback(_CutSamples(Path(self.args.output_dir) / SAMPLES))

    def parameter_groups(self, model: nn.Module) -> list[dict]:
        return parameter_groups(model, self.learning_rates, self.args.weight_decay)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> "RepeatedChunks":
        chunk = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        data = self.train_dataset if train_dataset is None else train_dataset
        return RepeatedChunks(len(data), chunk, self.settings.updates, self.args.seed, lambda: self.state.global_step)

    # ---- one forward pass ----

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of GRPO (equation 3) over the batch's scenes, which are sampled from at the first of every `updates` steps."""
        settings = self.settings
        fresh = self.state.global_step % settings.updates == 0
        if fresh:
            self._rollouts[self._pass] = self._roll_out(inputs["asked"])
        rollouts = self._rollouts[self._pass]
        self._pass = (self._pass + 1) % self.args.gradient_accumulation_steps

        network = self.accelerator.unwrap_model(model)
        log_probs = score(model, backbone_of(network), rollouts.batch, settings.temperature, self.banned)
        if fresh:
            rollouts.old = log_probs.detach()
        ratio = (log_probs - rollouts.old).exp()
        advantage = rollouts.advantages[rollouts.row].to(ratio.dtype)
        clipped = ratio.clamp(1 - settings.clip, 1 + (settings.clip_high or settings.clip))
        loss = -torch.minimum(ratio * advantage, clipped * advantage)
        share = rollouts.weights / rollouts.weights.sum()
        self._note("clipped", ((ratio.detach() * advantage > clipped.detach() * advantage) * share).sum())
        if settings.beta:
            distance = kl_estimate(log_probs, rollouts.reference)
            loss = loss + settings.beta * distance
            self._note("kl", (distance.detach() * share).sum())
        loss = (loss * rollouts.weights).sum()
        return (loss, {}) if return_outputs else loss

    def _roll_out(self, numbered: Sequence[tuple[int, Asked]]) -> Rollouts:
        """Sample, judge, and pack for scoring."""
        settings, network = self.settings, self.accelerator.unwrap_model(self.model)
        device = self.accelerator.device
        with _evaluating(network), self.accelerator.autocast():
            asked = [replace(one, seen=self._keep_features(network, self._prepare_inputs(one.seen))) for _, one in numbered]
            written = [self._sample(network, one, number) for (number, _), one in zip(numbered, asked, strict=True)]
        completions = [completion for some in written for completion in some]
        rewards, parts, texts = self._judge(asked, completions, settings.group)
        advantage = advantages(rewards, settings.group, settings.divide_by_std)

        packs = []
        for one, some in zip(asked, written, strict=True):
            packs.append(pack_completions(self.processor, one.seen, one.prompts, [completion.ids for completion in some]))
        batch = collate(packs, self.processor.tokenizer.pad_token_id or 0)
        lengths = torch.tensor([len(completion.ids) for completion in completions], device=device)
        row = torch.repeat_interleave(torch.arange(len(completions), device=device), lengths)
        # every scene counts the same, however many questions it has: passes and processes can then be averaged
        share = torch.tensor([1 / len(written) / len(some) for some in written for _ in some], device=device)
        per_row = lengths if settings.average == "sequence" else torch.full_like(lengths, settings.max_new_tokens)
        rollouts = Rollouts(batch, row, advantage.to(device), (share / per_row)[row])
        if settings.beta:
            with _evaluating(network), torch.no_grad(), self.accelerator.autocast(), self._as_reference(network) as reference:
                rollouts.reference = score(reference, backbone_of(reference), batch, settings.temperature, self.banned)
        self._report(asked, completions, rewards, parts, advantage, texts, share.double().cpu())
        return rollouts

    def _sample(self, network: nn.Module, asked: Asked, number: int) -> list[Completion]:
        # of this example in this step: the same whichever process has it, and after resuming
        seed = (self.args.seed, self.state.global_step, number)
        rows = len(asked.prompts) * self.settings.group
        if self.sampler is not None:
            completions = self.sampler(network, asked, self.settings, seed)
            if len(completions) != rows or not all(completion.ids for completion in completions):
                raise ValueError(f"sampler: found {len(completions)} completions, expected {rows}, none of them empty")
            return completions
        noise = np.random.default_rng(seed).random((rows, self.settings.max_new_tokens))
        return complete(network, self.processor, asked, self.settings, noise, self._alive)

    def _alive(self, here: bool) -> bool:
        """Sharded weights are gathered by all processes at every forward pass, so all go on until the last has finished."""
        if not self.is_fsdp_enabled:
            return here
        return bool(self.accelerator.reduce(torch.tensor(float(here), device=self.accelerator.device), "sum"))

    def _keep_features(self, network: nn.Module, seen: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encode the videos now if no later update can change what the encoders say: sampling and all scoring share it."""
        backbone = backbone_of(network)
        if "pixel_values_videos" not in seen or not isinstance(backbone, SpatialMLLMModel) or self.is_fsdp_enabled:
            return seen
        encoders = [backbone.visual, *filter(None, [backbone.spatial_encoder])]
        training = [name for part in encoders for name, p in part.named_parameters() if p.requires_grad]
        if any(not name.startswith("merger.") for name in training):
            return seen
        pixels, grid = seen["pixel_values_videos"], seen["video_grid_thw"]
        with torch.no_grad():
            features = {"2d": backbone.encode_2d(pixels, grid), "3d": backbone.encode_3d(pixels, grid)}
        kept = {name: value for name, value in seen.items() if name != "pixel_values_videos"}
        return kept | {f"video_features_{part}": value for part, value in features.items() if value is not None}

    @contextmanager
    def _as_reference(self, network: nn.Module) -> Iterator[nn.Module]:
        """What the policy is held to."""
        if self.reference is not None:
            yield self.reference
        else:
            with network.disable_adapter():
                yield network

    def _judge(
        self, asked: Sequence[Asked], completions: Sequence[Completion], group: int
    ) -> tuple[Float[Tensor, " rows"], dict[str, list[float | None]], list[str]]:
        """Weighted sum of the rewards of each completion, every part of it, and the completions as text."""
        repeat = lambda values: [value for value in values for _ in range(group)]  # noqa: E731
        columns: dict[str, list] = defaultdict(list)
        for one in asked:
            columns["prompts"] += repeat(one.prompts)
            for name, values in one.columns.items():
                columns[name] += repeat(values)
        ids = [completion.ids for completion in completions]
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        parts = {}
        for name, reward in self.rewards.items():
            given = list(reward(completions=texts, completion_ids=ids, group=group, trainer_state=self.state, **columns))
            if len(given) != len(texts):
                raise ValueError(f"reward {name!r}: found {len(given)} values, expected {len(texts)}, one per completion")
            parts[name] = given
        total = [sum(self.weights[name] * (given[i] or 0.0) for name, given in parts.items()) for i in range(len(texts))]
        return torch.tensor(total, dtype=torch.float64), parts, texts

    # ---- what is reported ----

    def _note(self, name: str, value: Tensor | float) -> None:
        """Keep the mean over processes for the next log."""
        value = torch.as_tensor(value, dtype=torch.float32, device=self.accelerator.device)
        self._metrics[name].append(float(self.accelerator.reduce(value, "mean")))

    def _report(self, asked, completions, rewards, parts, advantage, texts, share) -> None:
        """Metrics, where row i counts by share[i], and the samples."""
        mean = lambda values: float((torch.tensor(values, dtype=torch.float64) * share).sum())  # noqa: E731
        groups, of_group = rewards.view(-1, self.settings.group), share.view(-1, self.settings.group).sum(dim=1)
        self._note("reward", mean(rewards.tolist()))
        self._note("reward_std", (groups.std(dim=1) * of_group).sum())
        self._note("groups_without_contrast", ((groups.max(dim=1).values == groups.min(dim=1).values) * of_group).sum())
        for name, given in parts.items():
            applied = mean([float(value is not None) for value in given])
            self._note(f"rewards/{name}", mean([value or 0.0 for value in given]) / (applied or 1.0))
        self._note("length", mean([len(completion.ids) for completion in completions]))
        self._note("unfinished", mean([not completion.finished for completion in completions]))
        if all(completion.log_probs is not None for completion in completions):
            # mean surprise of what was sampled: an estimate of the policy's entropy per token
            self._note("entropy", mean([-sum(completion.log_probs) / len(completion.ids) for completion in completions]))
        prompts = [prompt for one in asked for prompt in one.prompts for _ in range(self.settings.group)]
        rows = [
            {
                "step": self.state.global_step,
                "prompt": prompts[i],
                "completion": texts[i],
                "reward": float(rewards[i]),
                "parts": {name: given[i] for name, given in parts.items()},
                "advantage": float(advantage[i]),
                "length": len(completions[i].ids),
            }
            for i in range(min(len(texts), self.settings.log_samples))
        ]
        if rows and self.is_world_process_zero():
            with (Path(self.args.output_dir) / SAMPLES).open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if not any(name.startswith("eval") for name in logs):
            logs = logs | {name: sum(values) / len(values) for name, values in self._metrics.items()}
            self._metrics.clear()
        super().log(logs, start_time)

    # ---- evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Mean reward, its parts and length of greedy answers."""
        network = self.accelerator.unwrap_model(self.model)
        names, collected = ("reward", *(f"rewards/{name}" for name in self.rewards), "length", "unfinished"), []
        for batch in dataloader:
            with _evaluating(network), self.accelerator.autocast():
                for number, one in batch["asked"]:
                    seen = self._prepare_inputs(one.seen)
                    completions = complete(network, self.processor, replace(one, seen=seen), self.settings, None, self._alive)
                    rewards, parts, _ = self._judge([one], completions, 1)
                    values = [float(number), float(rewards.mean())]
                    values += [float(np.mean([value or 0.0 for value in given])) for given in parts.values()]
                    values += [float(np.mean([len(completion.ids) for completion in completions]))]
                    values += [float(np.mean([not completion.finished for completion in completions]))]
                    collected.append(values)
        table = torch.tensor(collected, dtype=torch.float32, device=self.accelerator.device)
        # processes that ran out of scenes repeated the first ones: each scene counts once
        by_scene = {int(number): values for number, *values in self.accelerator.gather(table).tolist()}
        means = np.mean(list(by_scene.values()), axis=0).tolist()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in zip(names, means, strict=True)}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(by_scene))


class RepeatedChunks(Sampler):
    """Shuffled examples in chunks of one optimiser step, each `repeats` times over; what fills no chunk waits for another epoch.

    `steps_done` says where training stands, which tells the epoch: after resuming in its middle, the order is the same.
    """

    def __init__(self, length: int, chunk: int, repeats: int, seed: int, steps_done: Callable[[], int]):
        if length < chunk:
            raise ValueError(f"training data: found {length} scenes, expected at least {chunk}, those of one optimiser step")
        self.length, self.chunk, self.repeats, self.seed, self.steps_done = length, chunk, repeats, seed, steps_done

    def __len__(self) -> int:
        return self.length // self.chunk * self.chunk * self.repeats

    def __iter__(self) -> Iterator[int]:
        epoch = self.steps_done() * self.chunk // len(self)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
        for start in range(0, self.length - self.chunk + 1, self.chunk):
            for _ in range(self.repeats):
                yield from order[start : start + self.chunk].tolist()


class _Numbered(Dataset):
    """Examples with their number, which seeds their sampling."""

    def __init__(self, dataset: Dataset | Sequence[Asked]):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[int, Asked]:
        return index, self.dataset[index]


def _as_they_are(examples: list[tuple[int, Asked]]) -> dict[str, list[tuple[int, Asked]]]:
    return {"asked": examples}


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Dropout off, and activations not recomputed, for the time being."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class _CutSamples(TrainerCallback):
    """Samples that a killed run wrote behind its last checkpoint are sampled, and written, again."""

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.file.exists():
            *whole, _ = self.file.read_text(encoding="utf-8").split("\n")  # not splitlines: completions hold any character
            write_whole(self.file, "".join(line + "\n" for line in whole if json.loads(line)["step"] < state.global_step))
