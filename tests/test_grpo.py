"""GRPO: what is sampled is what is scored, the gradient is that of REINFORCE, and what is rewarded is learned."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

from allocentric.models.scene import Scene
from allocentric.train.grpo import (
    STD_FLOOR,
    Asked,
    Completion,
    GRPOTrainer,
    RepeatedChunks,
    advantages,
    complete,
    kl_estimate,
    pack_completions,
    placeholders,
    score,
)
from allocentric.train.recipe import GRPOSettings
from allocentric.train.sft import IGNORE, collate
from test_spatial_mllm import frames, tiny_model, tiny_processor

PROMPTS = ["how many chairs are in this room?", "left?"]
SETTINGS = GRPOSettings(group=4, max_new_tokens=6, beta=0.0)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def seen(processor, kind: str = "video", seed: int = 0, count: int = 4) -> dict[str, torch.Tensor]:
    """The model's inputs of a prompt up to the question."""
    if kind == "blind":
        inputs = processor(text=[processor.prefix()])
    elif kind == "video":
        inputs = processor(text=[processor.prefix(videos=1)], videos=[frames(count, seed=seed)])
    else:
        inputs = processor(text=[processor.prefix(images=2)], images=list(frames(2, seed=seed)))
    dropped = ("attention_mask", "mm_token_type_ids")
    return {k: torch.as_tensor(v) for k, v in inputs.items() if k not in dropped} | {"input_ids": inputs["input_ids"][0]}


def asked(processor, kind: str = "video", seed: int = 0, prompts=PROMPTS, **columns) -> Asked:
    return Asked(seen(processor, kind, seed), list(prompts), columns)


def with_adapters(model, seed: int = 0):
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=r"model\.language_model\..*(q_proj|up_proj)", modules_to_save=["connector"])
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted.eval()


def low(completion_ids, **columns) -> list[float]:
    """How many of a completion's tokens are in the first half of the alphabet of bytes."""
    return [float(np.mean([token < 128 for token in ids])) for ids in completion_ids]


def trainer(model, processor, data, tmp_path, settings=SETTINGS, rates=None, rewards=None, **arguments) -> GRPOTrainer:
    extra = {k: arguments.pop(k) for k in ("eval_dataset", "sampler", "optimizers") if k in arguments}
    defaults = {"per_device_train_batch_size": 2, "max_steps": 2, "save_strategy": "no", "report_to": [], "use_cpu": True}
    defaults |= {"disable_tqdm": True, "lr_scheduler_type": "constant", "logging_steps": 1}
    rewards = rewards or {"low": low}
    return GRPOTrainer(
        model=model,
        processor=processor,
        rewards=rewards,
        weights={name: 1.0 for name in rewards},
        settings=settings,
        train_dataset=data,
        learning_rates=rates or {"model.language_model": 1e-3},
        args=TrainingArguments(output_dir=str(tmp_path), **defaults | arguments),
        **extra,
    )


def noise(rows: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, tokens))


# ---- sampling and scoring ----


@pytest.mark.parametrize("kind", ["video", "image", "blind"])
@pytest.mark.parametrize("adapters", [False, True])
def test_scoring_gives_the_log_probabilities_of_sampling(processor, kind, adapters):
    """Prompts of unequal length, so that sampling pads on the left."""
    model = tiny_model()
    network = with_adapters(model) if adapters else model
    one, settings = asked(processor, kind), replace(SETTINGS, temperature=0.7)
    written = complete(network, processor, one, settings, noise(8, 6))
    batch = collate([pack_completions(processor, one.seen, PROMPTS, [c.ids for c in written])], 0)
    with torch.no_grad():
        found = score(network, model.model, batch, 0.7, placeholders(model))
    expected = torch.tensor([p for completion in written for p in completion.log_probs])
    assert (found - expected).abs().max() < 1e-4
    assert len({tuple(c.ids) for c in written[:4]}) > 1
    if kind != "blind":  # what was seen matters that much
        other = collate([pack_completions(processor, seen(processor, kind, 7), PROMPTS, [c.ids for c in written])], 0)
        with torch.no_grad():
            assert (score(network, model.model, other, 0.7, placeholders(model)) - expected).abs().max() > 1e-2


def test_log_probabilities_are_those_of_the_plain_model(processor):
    """One completion at a time, through the model's own forward, without prefix or packing."""
    model, one = tiny_model(), asked(processor)
    written = complete(model, processor, one, SETTINGS, noise(8, 6))
    for i, completion in enumerate(written):
        inputs = processor(text=[processor.prompt(PROMPTS[i // 4], videos=1)], videos=[frames(4)])
        ids = torch.cat([inputs.pop("input_ids"), torch.tensor([completion.ids])], dim=1)
        inputs.pop("mm_token_type_ids"), inputs.pop("attention_mask")
        with torch.no_grad():
            logits = model(input_ids=ids, **inputs).logits[0, -len(completion.ids) - 1 : -1]
        logits[:, placeholders(model)] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        assert (torch.tensor(completion.log_probs) - expected).abs().max() < 1e-4


def test_tokens_fall_as_often_as_they_are_probable(processor):
    model = tiny_model()
    one = asked(processor, prompts=["left?"])
    settings = replace(SETTINGS, group=4000, max_new_tokens=1, temperature=1.5)
    written = complete(model, processor, one, settings, noise(4000, 1))
    logits = Scene.encode(model, processor, views()).first_logits(["left?"])[0]
    logits = logits.index_fill(0, torch.tensor(placeholders(model)), -torch.inf)
    expected = (logits / 1.5).softmax(-1)
    found = torch.bincount(torch.tensor([c.ids[0] for c in written]), minlength=len(expected)) / 4000
    assert (found - expected).abs().max() < 4 * (expected.max() / 4000) ** 0.5
    assert expected.max() < 0.5  # a distribution that could be missed


def views():
    from allocentric.views import Views

    return Views(frames(4))


def test_placeholders_are_never_written(processor):
    model = tiny_model()
    with torch.no_grad():  # what an untrained model likes to say
        model.lm_head.weight[placeholders(model)] *= 0
        model.lm_head.weight[:] *= 0
    settings = replace(SETTINGS, group=64, max_new_tokens=12)
    written = complete(model, processor, asked(processor), settings, noise(128, 12))
    said = {token for completion in written for token in completion.ids}
    assert not said & set(placeholders(model)) and len(said) > 200
    assert len(placeholders(model)) == 4


def test_the_video_is_encoded_once_for_everything(processor, tmp_path, monkeypatch):
    """Two questions, four completions each, two updates and a reference: one pass of each encoder."""
    model = tiny_model()
    calls = {"visual": 0, "spatial_encoder": 0}
    for name in calls:
        part = getattr(model.model, name)
        part.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    settings = replace(SETTINGS, updates=2, beta=0.1)
    run = trainer(model, processor, [asked(processor)], tmp_path, settings, per_device_train_batch_size=1)
    run.train()
    assert calls == {"visual": 1, "spatial_encoder": 1}


def test_sampling_and_scoring_get_the_same_inputs(processor, tmp_path):
    """All of them, whatever they are; here with encoders that train, so that pixels go in each time."""
    model, got = tiny_model(), []

    def keep(module, args, kwargs):
        got.append({k: v for k, v in kwargs.items() if k in vision})

    data = [asked(processor), asked(processor, seed=1)]
    vision = [name for name in data[0].seen if name != "input_ids"]
    model.register_forward_pre_hook(keep, with_kwargs=True)
    rates = {"model.language_model": 1e-3, "model.visual": 1e-3}
    run = trainer(model, processor, data, tmp_path, replace(SETTINGS, beta=0.1), rates, max_steps=1, per_device_train_batch_size=1)
    run.train()
    full = [inputs for inputs in got if inputs]
    assert {"pixel_values_videos", "video_grid_thw", "second_per_grid_ts"} == set(vision)
    assert len(full) == 3  # sampling, scoring under the reference (the hook is copied with the model), scoring
    for name in vision:
        assert all(torch.equal(full[0][name], other[name]) for other in full[1:]), name


def test_completions_end_at_the_end_token_a_stop_text_or_the_limit(processor):
    model = tiny_model()
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    settings = replace(SETTINGS, group=256, max_new_tokens=40, stop=("5", "bc"), temperature=5.0)
    written = complete(model, processor, asked(processor, prompts=["left?"]), settings, noise(256, 40))
    reasons = set()
    for completion in written:
        *before, last = completion.ids
        text = processor.tokenizer.decode(completion.ids)
        assert end not in before and "5" not in processor.tokenizer.decode(before)
        assert completion.finished == (last == end or text.endswith(("5", "bc")))
        assert completion.finished or len(completion.ids) == 40
        assert len(completion.ids) == len(completion.log_probs)
        reasons.add("end" if last == end else "stop" if completion.finished else "limit")
    assert reasons == {"end", "stop", "limit"}


def test_a_row_does_not_depend_on_its_company(processor):
    model, draws = tiny_model(), noise(8, 6)
    together = complete(model, processor, asked(processor), SETTINGS, draws)
    for i, prompt in enumerate(PROMPTS):
        alone = complete(model, processor, asked(processor, prompts=[prompt]), SETTINGS, draws[4 * i : 4 * i + 4])
        assert [c.ids for c in alone] == [c.ids for c in together[4 * i : 4 * i + 4]]


def test_without_noise_the_likeliest_answer(processor):
    model = tiny_model()
    found = complete(model, processor, asked(processor), SETTINGS, None)
    expected = Scene.encode(model, processor, views()).ask(PROMPTS, max_new_tokens=6)
    texts = [processor.tokenizer.decode(c.ids, skip_special_tokens=True).strip() for c in found]
    assert texts == [answer.text for answer in expected]


# ---- the loss ----


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 2.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    found = advantages(rewards, 3)
    assert found.tolist() == pytest.approx([0, -1 / (1 + STD_FLOOR), 1 / (1 + STD_FLOOR), 0, 0, 0])
    assert advantages(rewards, 3, divide_by_std=False).tolist() == [0, -1, 1, 0, 0, 0]


def test_kl_estimate_is_the_kl_divergence_on_average():
    torch.manual_seed(0)
    p, q = torch.randn(2, 50).double().log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    each = kl_estimate(p, q)
    assert (p.exp() * each).sum() == pytest.approx(float(exact)) and each.min() >= 0


def reinforce(model, processor, one, prompts, completions, advantage, settings) -> torch.Tensor:
    """The policy gradient from the definition: plain forward passes, one completion each, no packing, clipping or ratio."""
    total = 0.0
    for prompt, completion, a in zip(prompts, completions, advantage, strict=True):
        question = processor.tokenizer(processor.suffix(prompt), add_special_tokens=False)["input_ids"]
        ids = torch.cat([one.seen["input_ids"], torch.tensor(question + completion)])[None]
        vision = {name: value for name, value in one.seen.items() if name != "input_ids"}
        logits = model(input_ids=ids, **vision).logits[0, -len(completion) - 1 : -1] / settings.temperature
        logits = logits.index_fill(-1, torch.tensor(placeholders(model)), -torch.inf)
        log_probs = logits.log_softmax(-1)[range(len(completion)), completion]
        total = total - a * log_probs.mean() / len(completions)
    return total


@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_gradient_is_that_of_reinforce(processor, tmp_path, kind):
    """In float64, against separate samples, through language model, connector, merger and ViT."""
    model = tiny_model().double()
    one = asked(processor, kind)
    one = replace(one, seen={k: v.double() if v.is_floating_point() else v for k, v in one.seen.items()})
    rates = {"model.language_model": 1e-3, "model.connector": 1e-3, "model.visual": 1e-3}
    run = trainer(model, processor, [one], tmp_path, replace(SETTINGS, temperature=0.8), rates, per_device_train_batch_size=1)
    loss = run.compute_loss(model, {"asked": [(0, one)]})
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    rollouts = run._rollouts[0]
    rows = rollouts.row
    tokens = rollouts.batch["labels"][rollouts.batch["labels"] != IGNORE]
    completions = [tokens[rows == i].tolist() for i in range(8)]
    advantage = [sample["advantage"] for sample in samples]
    assert max(map(abs, advantage)) > 0.5
    model.zero_grad()
    prompts = [prompt for prompt in PROMPTS for _ in range(4)]
    reinforce(model, processor, one, prompts, completions, advantage, run.settings).backward()
    assert {"model.connector", "model.visual", "model.language_model"} == {".".join(n.split(".")[:2]) for n in found}
    difference = norm = 0.0
    for name, parameter in model.named_parameters():
        if name in found:
            difference += float((found[name] - parameter.grad).pow(2).sum())
            norm += float(parameter.grad.pow(2).sum())
    assert norm > 0 and (difference / norm) ** 0.5 < 1e-6


def test_later_updates_are_clipped_and_held_to_the_reference(processor, tmp_path):
    """The second update on a batch, term by term from the definition."""
    model, settings = tiny_model(), replace(SETTINGS, updates=2, beta=0.3, clip=0.1, clip_high=0.15)
    data = [asked(processor)]
    run = trainer(model, processor, data, tmp_path, settings, {"model.language_model": 3e-3}, per_device_train_batch_size=1)
    run.compute_loss(model, {"asked": [(0, data[0])]}).backward()
    rollouts = run._rollouts[0]
    batch, old = rollouts.batch, rollouts.old
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.05 * parameter.grad / (parameter.grad.abs().max() + 1e-12)
        new = score(model, model.model, batch, 1.0, run.banned)
        first = score(tiny_model(), tiny_model().model, batch, 1.0, run.banned)
    assert torch.allclose(first, rollouts.reference, atol=1e-5) and torch.allclose(first, old, atol=1e-5)
    expected, clipped = 0.0, 0
    for row in range(8):
        mine = rollouts.row == row
        a, total = float(rollouts.advantages[row]), 0.0
        for now, before in zip(new[mine].tolist(), old[mine].tolist(), strict=True):
            ratio = np.exp(now - before)
            kept = min(max(ratio, 0.9), 1.15)
            clipped += ratio * a > kept * a
            total += -min(ratio * a, kept * a) + 0.3 * (np.exp(before - now) - (before - now) - 1)
        expected += total / int(mine.sum()) / 8
    assert clipped > 0
    run.state.global_step = 1
    assert run.compute_loss(model, {"asked": [(0, data[0])]}).item() == pytest.approx(expected, rel=1e-4)


def test_constant_average_divides_by_the_longest_possible(processor, tmp_path):
    model, one = tiny_model(), asked(processor)
    settings = replace(SETTINGS, average="constant", divide_by_std=False, temperature=3.0, max_new_tokens=9, stop=("e", "o", "5"))
    run = trainer(model, processor, [one], tmp_path, settings, per_device_train_batch_size=1)
    rollouts = run._roll_out([(0, one)])
    lengths = torch.bincount(rollouts.row)
    assert len(set(lengths.tolist())) > 1
    assert torch.allclose(rollouts.weights, torch.full_like(rollouts.weights, 1 / (8 * 9)))
    by_sequence = trainer(model, processor, [one], tmp_path, replace(settings, average="sequence"), per_device_train_batch_size=1)
    weights = by_sequence._roll_out([(0, one)]).weights
    assert torch.allclose(weights, (1 / lengths / 8)[rollouts.row])


def test_the_reference_is_the_model_without_its_adapters(processor, tmp_path):
    model = with_adapters(tiny_model())
    one = asked(processor)
    settings = replace(SETTINGS, beta=0.1)
    run = trainer(model, processor, [one], tmp_path, settings, {"model.language_model": 1e-3}, per_device_train_batch_size=1)
    assert run.reference is None
    rollouts = run._roll_out([(0, one)])
    plain = tiny_model()
    with torch.no_grad():
        expected = score(plain, plain.model, rollouts.batch, 1.0, run.banned)
        adapted = score(model, model.get_base_model().model, rollouts.batch, 1.0, run.banned)
    assert torch.allclose(rollouts.reference, expected, atol=1e-5)
    assert (adapted - expected).abs().max() > 1e-2


# ---- training ----


def test_learning_rate_zero_changes_nothing(processor, tmp_path):
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    data = [asked(processor, seed=i) for i in range(2)]
    run = trainer(model, processor, data, tmp_path, replace(SETTINGS, updates=2, beta=0.1), optimizers=(optimizer, None))
    run.train()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    logs = [entry for entry in run.state.log_history if "kl" in entry]
    assert len(logs) == 2 and all(entry["kl"] < 1e-9 and entry["clipped"] == 0 for entry in logs)
    moved = trainer(model, processor, data, tmp_path, replace(SETTINGS, updates=2, beta=0.1))
    moved.train()
    assert not all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def one_letter(completions, **columns) -> list[float]:
    """1 for a completion that begins with one of the 26 small letters."""
    return [float(text[:1].isalpha() and text[:1].islower() and text[:1].isascii()) for text in completions]


def learn(processor, tmp_path, scenes: int, steps: int, letters: int) -> list[float]:
    data = [asked(processor, seed=i) for i in range(scenes)]
    settings = replace(SETTINGS, group=24, max_new_tokens=letters)
    rates = {"model.language_model": 5e-3, "model.connector": 5e-3}
    run = trainer(
        tiny_model(), processor, data, tmp_path, settings, rates, {"letter": one_letter},
        max_steps=steps, per_device_train_batch_size=scenes,
    )  # fmt: skip
    run.train()
    return [entry["reward"] for entry in run.state.log_history if "reward" in entry]


def test_a_reward_is_learned_from_chance(processor, tmp_path):
    rewards = learn(processor, tmp_path, scenes=1, steps=15, letters=1)
    assert np.mean(rewards[:2]) < 0.4
    assert np.mean(rewards[-3:]) > 0.9


@pytest.mark.slow
def test_a_reward_is_learned_over_several_scenes_and_tokens(processor, tmp_path):
    rewards = learn(processor, tmp_path, scenes=4, steps=40, letters=3)
    assert np.mean(rewards[:2]) < 0.4
    assert np.mean(rewards[-3:]) > 0.9


def test_what_is_logged(processor, tmp_path):
    def length(completion_ids, **columns):
        return [len(ids) / 6 for ids in completion_ids]

    def never(completions, marks, prompts, group, trainer_state, **columns):
        assert len(marks) == len(prompts) == len(completions) and group in (1, 4)
        return [None] * len(completions)

    data = [asked(processor, seed=i, marks=[f"{i}a", f"{i}b"]) for i in range(2)]
    rewards = {"low": low, "length": length, "never": never}
    run = trainer(
        tiny_model(), processor, data, tmp_path, replace(SETTINGS, beta=0.1, log_samples=3), None, rewards,
        eval_dataset=data, eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    run.train()
    entries = [entry for entry in run.state.log_history if "reward" in entry]
    names = {"loss", "grad_norm", "reward", "reward_std", "rewards/low", "rewards/length", "rewards/never", "length", "kl"}
    assert names | {"clipped", "unfinished", "entropy", "groups_without_contrast"} <= entries[0].keys()
    for entry in entries:
        assert entry["reward"] == pytest.approx(entry["rewards/low"] + entry["rewards/length"])
        assert entry["length"] == pytest.approx(6 * entry["rewards/length"])
        assert 0 < entry["entropy"] < np.log(320)
    evaluations = [entry for entry in run.state.log_history if "eval_reward" in entry]
    assert len(evaluations) == 2 and evaluations[0]["eval_reward"] > 0
    first = evaluations[0]
    assert first["eval_reward"] == pytest.approx(first["eval_rewards/low"] + first["eval_rewards/length"])
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0] * 3 + [1] * 3
    assert set(samples[0]) == {"step", "prompt", "completion", "reward", "parts", "advantage", "length"}


@pytest.mark.parametrize("updates", [1, 2])
def test_a_killed_run_resumes_to_the_same_weights(processor, tmp_path, updates):
    data = [asked(processor, seed=i, prompts=PROMPTS[:1]) for i in range(5)]
    settings = replace(SETTINGS, updates=updates, beta=0.1, group=2)
    arguments = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2, "seed": 3}
    arguments |= {"per_device_train_batch_size": 1}
    whole = tiny_model()
    trainer(whole, processor, data, tmp_path / "run", settings, **arguments).train()
    expected = (tmp_path / "run" / "samples.jsonl").read_text()
    resumed = tiny_model()
    again = trainer(resumed, processor, data, tmp_path / "run", settings, **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not torch.equal(whole.lm_head.weight, tiny_model().lm_head.weight)
    assert (tmp_path / "run" / "samples.jsonl").read_text() == expected


def test_a_checkpoint_between_updates_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="save_every: found 3, expected a multiple of 2"):
        trainer(tiny_model(), processor, [], tmp_path, replace(SETTINGS, updates=2), save_strategy="steps", save_steps=3)


def test_accumulated_passes_give_the_gradient_of_one(processor, tmp_path):
    data = [asked(processor, seed=i, prompts=PROMPTS[: 1 + i % 2]) for i in range(4)]  # of unequal numbers of questions
    weights = []
    for batch, passes in ((4, 1), (1, 4), (2, 2)):
        model = tiny_model()
        arguments = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": passes, "max_grad_norm": 0.0}
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        trainer(model, processor, data, tmp_path, replace(SETTINGS, beta=0.1), optimizers=(optimizer, None), **arguments).train()
        weights.append(model.lm_head.weight.detach())
    assert not torch.equal(weights[0], tiny_model().lm_head.weight)
    for other in weights[1:]:
        assert torch.allclose(weights[0], other, atol=1e-6)


def test_chunks_repeat_and_epochs_differ():
    steps = 0
    sampler = RepeatedChunks(7, 3, 2, 0, lambda: steps)
    first = list(sampler)
    assert len(first) == len(sampler) == 12
    assert first[:3] == first[3:6] and first[6:9] == first[9:] and len(set(first)) == 6
    steps = 3
    assert list(sampler) == first  # still the first epoch: two chunks of two steps
    steps = 4
    assert list(sampler) != first
    with pytest.raises(ValueError, match="training data: found 2 scenes, expected at least 3"):
        RepeatedChunks(2, 3, 1, 0, lambda: 0)


def test_another_engine_may_sample(processor, tmp_path):
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    calls = []

    def engine(network, one, settings, seed):
        calls.append(seed)
        letters = [ord("a") + i % settings.group for i in range(len(one.prompts) * settings.group)]
        return [Completion([processor.tokenizer.encode(chr(letter))[0], end], True) for letter in letters]

    data = [asked(processor, seed=i) for i in range(2)]
    run = trainer(tiny_model(), processor, data, tmp_path, sampler=engine)
    run.train()
    assert len(calls) == 4 and len(set(calls)) == 4
    assert all(entry["reward"] == 0.5 for entry in run.state.log_history if "reward" in entry)
    with pytest.raises(ValueError, match="sampler: found 1 completions, expected 8"):
        trainer(tiny_model(), processor, data, tmp_path, sampler=lambda *_: [Completion([end], True)]).train()


def test_unknown_and_unequal_rewards_are_refused(processor, tmp_path):
    with pytest.raises(ValueError, match=r"rewards: found \['style'\], expected some of \['low'\]"):
        GRPOTrainer(tiny_model(), processor, {"low": low}, {"style": 1.0}, SETTINGS, [], {"": 1e-3})
    run = trainer(tiny_model(), processor, [asked(processor)] * 2, tmp_path, rewards={"short": lambda completions, **_: [1.0]})
    with pytest.raises(ValueError, match="reward 'short': found 1 values, expected 16"):
        run.train()


def test_bf16(processor, tmp_path):
    model = tiny_model()
    data = [asked(processor, seed=i) for i in range(2)]
    run = trainer(model, processor, data, tmp_path, replace(SETTINGS, beta=0.1), bf16=True)
    run.train()
    entries = [entry for entry in run.state.log_history if "kl" in entry]
    assert all(np.isfinite(entry["loss"]) and np.isfinite(entry["kl"]) for entry in entries)
    assert entries[0]["kl"] == 0 < entries[1]["kl"]  # the reference computes in bfloat16 too
    assert all(p.dtype == torch.float32 for p in model.parameters())
    rollouts, plain = run._rollouts[0], tiny_model()
    with torch.no_grad():
        exact = score(plain, plain.model, rollouts.batch, 1.0, run.banned)
    assert 0 < (rollouts.reference - exact).abs().max() < 0.5  # it was bfloat16
