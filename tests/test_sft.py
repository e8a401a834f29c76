"""Packed fine-tuning equals fine-tuning on separate samples; frozen is frozen; a killed run resumes to the same weights."""

import pytest
import torch
from torch import nn
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, TrainingArguments

from allocentric.models.patches import patchify
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, unpatchify
from allocentric.train.finetune import with_adapters
from allocentric.train.recipe import LoRA
from allocentric.train.sft import IGNORE, SFTTrainer, Turn, check_frozen, collate, pack, packed_mask, packed_positions
from allocentric.train.tokenizer import fixed_phrases, train_tokenizer
from allocentric.train.video_features import encoders

TURNS = [
    Turn("How many chairs?", "4"),
    Turn("How far is the sofa from the stove, from edge to edge?", "1.8"),
    Turn("Which is closer?\nA. bed\nB. desk", "B"),
]


@pytest.fixture(scope="module")
def processor() -> SpatialMLLMProcessor:
    texts = [text for turn in TURNS for text in (turn.prompt, turn.answer)] + ["You are a helpful assistant. system user assistant"]
    tokenizer = train_tokenizer(texts * 3, 318, ["How many chairs?"])
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    return SpatialMLLMProcessor(Qwen2VLImageProcessor(**patches), tokenizer, Qwen2VLVideoProcessor(**patches))


def new_model(processor: SpatialMLLMProcessor, seed: int = 0) -> SpatialMLLMForConditionalGeneration:
    torch.manual_seed(seed)
    tokens = {"vision_start": "vision_start", "vision_end": "vision_end", "image": "image_pad", "video": "video_pad"}
    ids = {f"{name}_token_id": processor.tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in tokens.items()}
    return SpatialMLLMForConditionalGeneration(SpatialMLLMConfig.tiny(**ids))


def example(processor: SpatialMLLMProcessor, model: nn.Module, turns: list[Turn], seed: int) -> dict[str, torch.Tensor]:
    frames = torch.rand(4, 3, 56, 84, generator=torch.Generator().manual_seed(seed))
    pixels, grid = patchify(frames, model.config)
    return pack(processor, [int(grid.prod()) // 4], turns) | {"pixel_values_videos": pixels, "video_grid_thw": grid[None]}


def trainer(
    model: nn.Module, tmp_path, rates: dict[str, float] | None = None, dataset=None, collator=None, **arguments
) -> SFTTrainer:
    arguments = {"remove_unused_columns": False, "report_to": [], "use_cpu": True, "disable_tqdm": True, **arguments}
    return SFTTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **arguments),
        learning_rates=rates or {"": 1e-3},
        train_dataset=dataset,
        data_collator=collator,
    )


def test_patchify_is_the_inverse_of_unpatchify(processor):
    config = SpatialMLLMConfig.tiny()
    frames = torch.rand(4, 3, 56, 84)
    pixels, grid = patchify(frames, config)
    assert torch.allclose(unpatchify(pixels, grid[None], config)[0], frames, atol=1e-6)
    expected = processor.video_processor([(frames * 255).round().byte()], return_tensors="pt", do_resize=False)
    rounded, _ = patchify((frames * 255).round() / 255, config)
    assert torch.allclose(rounded, expected["pixel_values_videos"], atol=1e-5)
    with pytest.raises(ValueError, match=r"found 4 of 60 x 84, expected .* multiples of 28"):
        patchify(torch.rand(4, 3, 60, 84), config)


def test_packed_loss_and_gradient_equal_those_of_separate_samples(processor, tmp_path):
    model = new_model(processor)
    run = trainer(model, tmp_path)
    pad = processor.tokenizer.pad_token_id

    def gradients(batches: list[dict]) -> tuple[float, list[torch.Tensor]]:
        """Of the mean over answer tokens of all batches."""
        model.zero_grad()
        answer_tokens = [int((b["labels"] != IGNORE).sum()) for b in batches]
        total = 0.0
        for batch, count in zip(batches, answer_tokens, strict=True):
            loss = run.compute_loss(model, batch) * count / sum(answer_tokens)
            loss.backward()
            total += float(loss)
        return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    packed_loss, packed = gradients([collate([example(processor, model, TURNS, 0), example(processor, model, TURNS[:1], 1)], pad)])
    single = [collate([example(processor, model, [turn], 0)], pad) for turn in TURNS]
    single += [collate([example(processor, model, TURNS[:1], 1)], pad)]
    single_loss, separate = gradients(single)
    assert packed_loss == pytest.approx(single_loss, rel=1e-5)
    for a, b in zip(packed, separate, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())))


def test_a_question_does_not_see_its_neighbours():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1]])
    expected = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 1],
        ]
    ).bool()
    assert torch.equal(packed_mask(segments)[0, 0], expected)


def test_every_question_starts_right_behind_the_prefix():
    straight = torch.arange(7).expand(3, 1, 7)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    assert packed_positions(straight, segments)[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 4]


def test_what_is_to_be_frozen_may_have_no_adapters_that_learn(processor):
    for part, learns in (("visual.blocks", True), ("language_model.layers", False)):
        targets = rf"model\.{part}\.\d+\.(attn\.qkv|self_attn\.q_proj)"
        model = with_adapters(new_model(processor), LoRA(rank=2, alpha=4.0, targets=targets))
        made_by = encoders(model.get_base_model().model)
        if learns:
            with pytest.raises(ValueError, match=r"cache: found a learning rate for model\.visual\.blocks.*lora_A"):
                check_frozen(model, made_by, {"": 1e-3}, "cache")
        else:
            check_frozen(model, made_by, {"": 1e-3}, "cache")


def test_what_has_no_learning_rate_is_frozen_and_the_rest_learns(processor, tmp_path):
    model = new_model(processor)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rates = {"model.connector": 1e-2, "model.visual.merger": 1e-3, "model.language_model": 1e-3, "model.language_model.norm": 0.0}
    data = [example(processor, model, TURNS, i) for i in range(2)]
    collator = lambda e: collate(e, processor.tokenizer.pad_token_id)  # noqa: E731
    run = trainer(model, tmp_path, rates, data, collator, max_steps=2, save_strategy="no")
    run.train()
    trained = ("model.connector", "model.visual.merger", "model.language_model")
    for name, parameter in model.named_parameters():
        moves = name.startswith(trained) and not name.startswith("model.language_model.norm")
        assert torch.equal(parameter, before[name]) != moves, name
    by_rate = {group["initial_lr"] for group in run.optimizer.param_groups}
    assert by_rate == {1e-2, 1e-3}


def test_an_unknown_part_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match=r"learning_rates: found 'model.conector', expected .*model.connector"):
        trainer(new_model(processor), tmp_path, {"model.conector": 1e-3})


def test_a_killed_run_resumes_to_the_same_weights(processor, tmp_path):
    data = [example(processor, new_model(processor), TURNS, i) for i in range(6)]
    settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "seed": 1}
    collator = lambda e: collate(e, processor.tokenizer.pad_token_id)  # noqa: E731

    whole = new_model(processor)
    trainer(whole, tmp_path / "whole", None, data, collator, **settings).train()
    resumed = new_model(processor, seed=5)  # its weights must come from the checkpoint
    trainer(resumed, tmp_path / "again", None, data, collator, **settings).train(
        resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2")
    )
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_an_answer_may_be_learned_behind_something_else(processor):
    turn = Turn("How many chairs?", "1.8", shown="9.8")
    whole, seen = pack(processor, [], [Turn(turn.prompt, turn.answer)]), pack(processor, [], [turn])
    assert torch.equal(whole["labels"], seen["labels"])
    (where,) = (whole["input_ids"] != seen["input_ids"]).nonzero()
    assert processor.tokenizer.decode(seen["input_ids"][where]) == "9"
    with pytest.raises(ValueError, match=r"'12.8': found 5 tokens, expected the 4 of '1.8'"):
        pack(processor, [], [Turn("How many chairs?", "1.8", shown="12.8")])


def test_what_is_given_is_read_and_not_learned(processor):
    turn = Turn("How many chairs?", "<think>chair 1</think>2", given="<think>chair 1")
    whole, given = pack(processor, [], [turn._replace(given="")]), pack(processor, [], [turn])
    assert torch.equal(whole["input_ids"], given["input_ids"])
    known = len(processor.tokenizer(turn.given, add_special_tokens=False)["input_ids"])
    first = int((whole["labels"] != IGNORE).nonzero()[0])
    assert (given["labels"][: first + known] == IGNORE).all()
    assert torch.equal(given["labels"][first + known :], whole["labels"][first + known :])
    with pytest.raises(ValueError, match="expected the beginning of"):
        pack(processor, [], [turn._replace(given="<think>table")])


def test_every_way_to_attend_gives_the_packed_loss(processor, tmp_path):
    model = new_model(processor)
    run, batch = trainer(model, tmp_path), collate([example(processor, model, TURNS, 0)], processor.tokenizer.pad_token_id)
    fused = run.compute_loss(model, batch)
    model.model.language_model.set_attn_implementation("eager")
    torch.testing.assert_close(run.compute_loss(model, batch), fused)


def test_phrases_hold_words_and_leave_numbers_their_signs():
    texts = [f"Where is the {thing}, in meters?\nx -1.0 y {x}.0" for thing in ("bed", "sofa") for x in range(20)]
    assert fixed_phrases(texts, ["bed", "sofa"]) == [", in meters?", "Where is the"]


def test_tokenizer_keeps_any_text_and_fixed_sentences_are_one_token(processor):
    tokenizer = processor.tokenizer
    for text in ("How many chairs?", "Ünïcode → 漢字 \n\n  two  spaces 12.5", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer("How many chairs?")["input_ids"]) == 1
    assert len(tokenizer("1.8")["input_ids"]) == 3  # digits stand alone
