"""Spatial-MLLM: what goes in, how it is fused, that it trains, generates, saves, and reads the released checkpoints."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from allocentric.encoders.vggt import VGGTConfig
from allocentric.fusion.addition import AdditionConnector, group_tokens
from allocentric.models import (
    SpatialMLLMConfig,
    SpatialMLLMForConditionalGeneration,
    SpatialMLLMModel,
    SpatialMLLMProcessor,
    load_spatial_mllm,
)
from allocentric.models.spatial_mllm import unpatchify

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def tiny_processor(temporal_patch_size: int = 2, **switches) -> SpatialMLLMProcessor:
    """Bytes as tokens 0..255, then the special tokens; frames keep their size."""
    vocab = {character: i for i, character in enumerate(bytes_to_unicode().values())}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=SPECIAL, padding_side="left")
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}, "temporal_patch_size": temporal_patch_size}
    return SpatialMLLMProcessor(Qwen2VLImageProcessor(**size), tokenizer, Qwen2VLVideoProcessor(**size), **switches)


def tiny_config(temporal_patch_size: int = 2, **changes) -> SpatialMLLMConfig:
    ids = {name: tiny_processor().tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "im_end")}
    config = SpatialMLLMConfig.tiny(image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], **changes)
    config.text_config.eos_token_id = ids["im_end"]
    config.vision_config.temporal_patch_size = temporal_patch_size
    return config


def tiny_model(temporal_patch_size: int = 2, **changes) -> SpatialMLLMForConditionalGeneration:
    torch.manual_seed(0)
    model = SpatialMLLMForConditionalGeneration(tiny_config(temporal_patch_size, **changes)).eval()
    with torch.no_grad():  # larger than the usual 0.02, so that every input matters in the output
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "spatial_encoder" not in name:
                parameter.normal_(std=0.15)
    return model


def frames(count: int, height: int = 56, width: int = 84, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


# ---- inputs ----


@pytest.mark.parametrize("step", [1, 2])
def test_frames_are_recovered_from_pixel_values(step):
    clips = [frames(4), frames(5, 84, 56, seed=1)]
    inputs = tiny_processor(step)(text=["<|video_pad|><|video_pad|>"], videos=clips)
    found = unpatchify(inputs["pixel_values_videos"], inputs["video_grid_thw"], tiny_config(step))
    padded = torch.cat([clips[1], clips[1][-1:]]) if step == 2 else clips[1]  # an odd clip repeats its last frame
    for recovered, clip in zip(found, [clips[0], padded], strict=True):
        assert recovered.shape == clip.shape
        assert (recovered - clip / 255).abs().max() < 1e-6


def test_an_image_is_recovered_as_a_clip_of_equal_frames(processor):
    picture = frames(1)[0]
    inputs = processor(text=["<|image_pad|>"], images=[picture])
    (found,) = unpatchify(inputs["pixel_values"], inputs["image_grid_thw"], tiny_config())
    assert found.shape == (2, 3, 56, 84)
    assert (found - picture / 255).abs().max() < 1e-6


def test_pixel_values_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"found shape \(24, 588\), expected \(24, 1176\)"):
        unpatchify(torch.zeros(24, 588), torch.tensor([[1, 4, 6]]), tiny_config())


@pytest.mark.parametrize(
    ("clamp", "source", "expected"),
    [  # height x width; the published preprocessing gives these
        ("training", (480, 640), (476, 644)),
        ("training", (640, 480), (644, 476)),
        ("training", (1080, 1920), (420, 756)),
        ("training", (968, 1296), (476, 644)),
        ("qwen", (480, 640), (476, 644)),
        ("qwen", (1080, 1920), (560, 1008)),
    ],
)
def test_pixel_clamps(clamp, source, expected):
    clip = torch.zeros(2, 3, *source, dtype=torch.uint8)
    grid = tiny_processor(pixel_clamp=clamp)(text=["<|video_pad|>"], videos=[clip])["video_grid_thw"]
    assert grid.tolist() == [[1, expected[0] // 14, expected[1] // 14]]


def test_newline_switch_and_prompt():
    question, seen = "how many chairs?", "<|vision_start|><|video_pad|><|vision_end|>"
    plain, newline = tiny_processor(), tiny_processor(newline_after_vision=True)
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    tail = f"{question}<|im_end|>\n<|im_start|>assistant\n"
    assert plain.prompt(question, videos=1) == head + seen + tail
    assert newline.prompt(question, videos=1) == head + seen + "\n" + tail
    assert newline.prompt(question) == head + tail
    # a chat from elsewhere gets the newline too, once
    for text in (head + seen + tail, head + seen + "\n" + tail):
        ids = newline(text=[text], videos=[frames(2)])["input_ids"][0]
        shown = newline.tokenizer.decode(ids)
        assert shown.endswith("<|video_pad|><|vision_end|>\n" + tail)


def test_time_per_grid_is_that_of_the_published_inference_unless_metadata_says_otherwise(processor):
    text = ["<|video_pad|>"]
    assert processor(text=text, videos=[frames(4)])["second_per_grid_ts"].tolist() == [1.0]
    metadata = [{"total_num_frames": 40, "fps": 5.0, "frames_indices": [0, 10, 20, 30]}]
    measured = processor(text=text, videos=[frames(4)], video_metadata=metadata)
    assert measured["second_per_grid_ts"].tolist() == pytest.approx([2 / 0.5])


def test_unknown_pixel_clamp_is_refused():
    with pytest.raises(ValueError, match="pixel_clamp: found 'big', expected one of"):
        tiny_processor(pixel_clamp="big")


# ---- fusion ----


def test_group_tokens_follows_the_published_index_formulas():
    t, h, w, merge, step, channels = 2, 4, 6, 2, 2, 3
    tokens = torch.arange(t * step * h * w * channels, dtype=torch.float32).view(t * step, h * w, channels)
    new = group_tokens(tokens, (t, h, w), merge, "v1.1").view(t, h // 2, w // 2, -1)
    old = group_tokens(tokens, (t, h, w), merge, "v1.0").view(t, h // 2, w // 2, -1)
    for i, y, x, sh, sw, st, d in [(0, 0, 0, 0, 0, 0, 0), (1, 1, 2, 1, 0, 1, 2), (0, 1, 1, 0, 1, 1, 1), (1, 0, 2, 1, 1, 0, 2)]:
        value = tokens[2 * i + st, (2 * y + sh) * w + 2 * x + sw, d]
        assert new[i, y, x, ((sh * 2 + sw) * channels + d) * 2 + st] == value
        assert old[i, y, x, ((st * 2 + sh) * 2 + sw) * channels + d] == value
    order = torch.arange(8 * channels).view(2, 2, 2, channels).permute(1, 2, 3, 0).flatten()
    assert torch.equal(new, old[..., order])
    assert sorted(new.flatten().tolist()) == list(range(tokens.numel()))


def test_group_tokens_at_the_published_size():
    assert group_tokens(torch.zeros(16, 34 * 46, 2), (8, 34, 46), 2).shape == (3128, 16)


def test_group_tokens_refuses_another_grid():
    with pytest.raises(ValueError, match="found 4 frames of 24 patches"):
        group_tokens(torch.zeros(4, 24, 3), (2, 4, 4), 2)


def test_fusion_is_the_sum_of_the_two_projections(model, processor):
    backbone = model.model
    inputs = processor(text=["<|video_pad|>"], videos=[frames(4)])
    pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    with torch.no_grad():
        merged = backbone.visual(pixels, grid_thw=grid).pooler_output  # Qwen alone, in its own order
        geometry = backbone.spatial_encoder(frames(4)[None] / 255, layers=(-1,))[-1][0, :, 5:]
        expected = merged + backbone.connector(group_tokens(geometry, (2, 4, 6), 2))
        (found,) = backbone.get_video_features(pixels, grid).pooler_output
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - merged).abs().max() > 0.1 * merged.abs().max()


def test_geometry_tokens_see_frame_order_and_other_frames(model, processor):
    """The first frame is VGGT's reference, and frames attend to each other."""

    def geometry(clip):
        inputs = processor(text=["<|video_pad|>"], videos=[clip])
        with torch.no_grad():
            return model.model.encode_3d(inputs["pixel_values_videos"], inputs["video_grid_thw"])

    clip, last = frames(4), frames(4)
    last[-1] = 0
    first_half = slice(0, 6)  # tokens of the first two frames
    assert (geometry(clip)[first_half] - geometry(last)[first_half]).abs().max() > 1e-4


@pytest.mark.parametrize("layout", ["v1.1", "v1.0"])
def test_images_of_one_prompt_are_one_scene(layout, processor):
    model = tiny_model(connector_config={"hidden_size": 64, "layout": layout}).model
    pictures, one = list(frames(3)), "<|vision_start|><|image_pad|><|vision_end|>"
    together = processor(text=[one * 2, one], images=pictures)
    names = ("pixel_values", "image_grid_thw", "mm_token_type_ids")
    with torch.no_grad():
        found = model.get_image_features(*(together[n] for n in names)).pooler_output
        pair = processor(text=[one * 2], images=pictures[:2])
        alone = processor(text=[one], images=pictures[2:])
        expected = [*model.get_image_features(*(pair[n] for n in names)).pooler_output]
        expected += model.get_image_features(*(alone[n] for n in names)).pooler_output
        second_alone = processor(text=[one], images=pictures[1:2])
        other = model.get_image_features(*(second_alone[n] for n in names)).pooler_output[0]
        # geometry by hand: v1.1 shows every image twice, v1.0 once with its tokens repeated
        shown = torch.stack(pictures[:2]) / 255
        shown = shown.repeat_interleave(2, dim=0) if layout == "v1.1" else shown
        tokens = model.spatial_encoder(shown[None], layers=(-1,))[-1][0, :, 5:]
        tokens = tokens if layout == "v1.1" else tokens.repeat_interleave(2, dim=0)
        by_hand = group_tokens(tokens, (2, 4, 6), 2, layout)
        ours = model.encode_3d(pair["pixel_values"], pair["image_grid_thw"], [[0, 1]])
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-5
    assert (found[1] - other).abs().max() > 1e-4  # the second view is seen relative to the first
    assert (ours - by_hand).abs().max() < 1e-5


def test_images_of_several_sizes_in_one_prompt(model, processor):
    one = "<|vision_start|><|image_pad|><|vision_end|>"
    pictures = [frames(1)[0], frames(1, 84, 84, seed=1)[0], frames(1, seed=2)[0]]
    inputs = processor(text=[one * 3], images=pictures)
    assert model.model._image_scenes(inputs["image_grid_thw"], inputs["mm_token_type_ids"]) == [[0, 2], [1]]
    with torch.no_grad():
        found = model.model.get_image_features(
            inputs["pixel_values"], inputs["image_grid_thw"], inputs["mm_token_type_ids"]
        ).pooler_output
    assert [len(f) for f in found] == [6, 9, 6]


def test_connector_of_v1_0_has_a_second_mlp():
    torch.manual_seed(0)
    connector = AdditionConnector(16, 16, 8, "v1.0")
    x = torch.randn(5, 16)
    norm = lambda v: v * (v.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()  # noqa: E731
    first, _, second = connector.mlp
    _, third, _, fourth = connector.refine
    y = second(torch.nn.functional.gelu(first(norm(x))))
    y = fourth(torch.nn.functional.gelu(third(norm(y))))
    assert (connector(x) - y).abs().max() < 1e-6


@pytest.mark.parametrize(("layout", "connector"), [("v1.1", 302_024_704), ("v1.0", 310_419_456)])
def test_parameters_of_the_released_size(layout, connector):
    """Spatial-MLLM on Qwen2.5-VL-3B and VGGT-1B has the published number of parameters in every part."""
    text = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 2}
    vision = {"hidden_size": 1280, "out_hidden_size": 2048}
    with torch.device("meta"):
        model = SpatialMLLMForConditionalGeneration(
            SpatialMLLMConfig(text_config=text, vision_config=vision, connector_config={"layout": layout}, tie_word_embeddings=True)
        )

    def count(part):
        return sum(p.numel() for p in part.parameters())

    assert count(model.model.connector) == connector
    assert count(model.model.language_model) == 3_085_938_688
    assert count(model.model.visual.merger) == 36_708_608
    assert count(model.model.visual) == 631_975_680 + 36_708_608
    assert count(model.model.spatial_encoder) == 909_112_320 - 1024  # without DINOv2's mask token, which is never used


# ---- batches ----


def samples(processor):
    """Text only, one image, several images, an even, an odd and a differently sized video: (prompt, images, videos)."""
    ask = processor.prompt
    return [
        (ask("hello there"), [], []),
        (ask("what is it?", images=1), list(frames(1, seed=1)), []),
        (ask("how far apart?", images=2), list(frames(2, 84, 56, seed=2)), []),
        (ask("how many chairs are in the room?", videos=1), [], [frames(4, seed=3)]),
        (ask("left?", videos=1), [], [frames(5, seed=4)]),
        (ask("how large is the room?", videos=1), [], [frames(4, 84, 84, seed=5)]),
    ]


@pytest.mark.parametrize("step", [1, 2])
def test_a_batch_equals_single_runs(step):
    model, processor = tiny_model(step), tiny_processor(step)
    cases = samples(processor)
    text, images, videos = zip(*cases, strict=True)
    batch = processor(text=list(text), images=list(chain(*images)), videos=list(chain(*videos)))
    assert (batch["attention_mask"][:, 0] == 0).any() and (batch["attention_mask"][:, -1] == 1).all()
    with torch.no_grad():
        together = model(**batch).logits
        written = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, -4:]
        for i, (prompt, pictures, clips) in enumerate(cases):
            single = processor(text=[prompt], images=pictures or None, videos=clips or None)
            alone = model(**single).logits[0]
            found = together[i, -len(alone) :]
            assert (found - alone).abs().max() < 1e-4 * alone.abs().max(), prompt
            new = model.generate(**single, max_new_tokens=4, do_sample=False)[0, single["input_ids"].shape[1] :]
            expected = written[i, : len(new)]
            assert torch.equal(new, expected), prompt


def test_token_types_are_found_without_the_processor(model, processor):
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    bare = {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model(**bare).logits)
        options = {"max_new_tokens": 3, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
        a, b = model.generate(**inputs, **options), model.generate(**bare, **options)
    assert torch.equal(torch.stack(a.scores), torch.stack(b.scores))


def test_generate_equals_forward_step_by_step(model, processor):
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    ids = inputs["input_ids"]
    with torch.no_grad():
        written = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
        for _ in range(4):
            again = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            again.pop("mm_token_type_ids")
            logits = model(**again).logits[:, -1]
            logits[:, model.generation_config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(written, ids)


def test_beams_keep_their_video(model, processor):
    inputs = processor(text=[processor.prompt("how many?", videos=1)] * 2, videos=[frames(4), frames(4, seed=1)])
    with torch.no_grad():
        both = model.generate(**inputs, max_new_tokens=3, num_beams=2, do_sample=False)
        one = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4, seed=1)])
        alone = model.generate(**one, max_new_tokens=3, num_beams=2, do_sample=False)
    assert torch.equal(both[1, : alone.shape[1]], alone[0])


@pytest.mark.parametrize(("step", "expected"), [(None, [0, 2, 4]), (1, [0, 1, 2]), (2, [0, 2, 4]), (0.5, [0, 0, 1])])
def test_time_step_of_rotary_positions(processor, step, expected):
    model = tiny_model(mrope_time_step=step).model
    inputs = processor(text=["ab<|video_pad|>cd"], videos=[frames(6)])
    positions, _ = model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        second_per_grid_ts=inputs["second_per_grid_ts"],
    )
    time = positions[0, 0, 2:-2].view(3, -1)  # 3 temporal patches of 6 tokens
    assert (time - 2).tolist() == [[t] * 6 for t in expected]


def test_text_goes_on_behind_the_last_time_step_and_generation_agrees_with_prefill(processor):
    """A clip that is longer than it is wide in tokens, beside a shorter one and an image, with padding."""
    model = tiny_model()
    text = ["ab<|video_pad|>cd", "a<|video_pad|>b", "<|image_pad|>abc"]
    inputs = processor(text=text, videos=[frames(12), frames(2)], images=[frames(1)[0]])
    positions, deltas = model.model.get_rope_index(
        **{k: inputs[k] for k in ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")},
        second_per_grid_ts=inputs["second_per_grid_ts"],
    )
    # 6 temporal patches, 2 apart: 2 + 0, 2, .. 10, so text goes on at 13; one patch of 2 x 3 tokens: text goes on at 1 + 3
    assert positions[:, 0, -2:].tolist() == [[13, 14]] * 3 and positions[:, 1, -1].tolist() == [4] * 3
    assert positions[:, 2, -3:].tolist() == [[3, 4, 5]] * 3
    lengths = inputs["attention_mask"].sum(-1)
    assert (deltas[:, 0] + lengths).tolist() == [15, 5, 6]

    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(12)])
    with torch.no_grad():
        options = {"max_new_tokens": 3, "min_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True}
        steps = model.generate(**inputs, do_sample=False, **options)
        again = {**inputs, "input_ids": steps.sequences, "attention_mask": torch.ones_like(steps.sequences)}
        again.pop("mm_token_type_ids")
        whole = model(**again).logits[0, -4:-1]
    assert (torch.cat(steps.logits) - whole).abs().max() < 1e-5 * whole.abs().max()


def test_vision_tokens_that_do_not_fit_their_grids_are_refused(model, processor):
    inputs = processor(text=["ab<|video_pad|>cd"], videos=[frames(4)])  # 12 tokens
    with pytest.raises(ValueError, match="prompt 0: found 12 video tokens in a row, expected 18 by video_grid_thw"):
        model(**{**inputs, "video_grid_thw": torch.tensor([[3, 4, 6]]), "pixel_values_videos": None})
    with pytest.raises(ValueError, match="prompt 0: found 6 video tokens in a row, expected 0 by video_grid_thw"):
        model(**{**inputs, "video_grid_thw": torch.tensor([[1, 4, 6]]), "pixel_values_videos": None})
    two = processor(text=["<|image_pad|><|image_pad|>"], images=list(frames(2)))
    with pytest.raises(ValueError, match="image tokens: found 12 in the prompts, expected 6 by the grids"):
        model(**{**two, "image_grid_thw": two["image_grid_thw"][:1], "pixel_values": two["pixel_values"][:24]})


# ---- features kept from earlier ----


@pytest.mark.parametrize("use_spatial", [True, False])
def test_kept_features_replace_pixels(processor, use_spatial):
    model = tiny_model(use_spatial=use_spatial)
    text = [processor.prompt("how many?", videos=1), processor.prompt("where?", videos=1)]
    inputs = processor(text=text, videos=[frames(4), frames(5, 84, 84)])
    labels = inputs["input_ids"]
    pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    with torch.no_grad():
        kept = {
            "video_features_2d": model.model.encode_2d(pixels, grid),
            "video_features_3d": model.model.encode_3d(pixels, grid),
        }
        assert kept["video_features_2d"].shape == (12 + 27, 4 * 32)
        without_pixels = {k: v for k, v in inputs.items() if k != "pixel_values_videos"} | kept
        a, b = model(**inputs, labels=labels), model(**without_pixels, labels=labels)
        assert torch.equal(a.logits, b.logits) and torch.equal(a.loss, b.loss)
        options = {"max_new_tokens": 3, "do_sample": False}
        assert torch.equal(model.generate(**inputs, **options), model.generate(**without_pixels, **options))


def test_wrong_kept_features_are_refused(model):
    grid, ids = torch.tensor([[2, 4, 6]]), torch.full((1, 12), model.config.video_token_id)
    with pytest.raises(ValueError, match="video_features_2d: found 11 tokens, expected 12"):
        model(input_ids=ids, video_grid_thw=grid, video_features_2d=torch.zeros(11, 128), video_features_3d=torch.zeros(11, 256))
    with pytest.raises(ValueError, match="features_3d: found none tokens, expected 12"):
        model(input_ids=ids, video_grid_thw=grid, video_features_2d=torch.zeros(12, 128))


def test_two_d_only_is_plain_qwen(processor):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    model = tiny_model(use_spatial=False)
    assert not any("spatial" in n or "connector" in n for n, _ in model.named_parameters())
    plain = {k: v for k, v in model.config.to_dict().items() if k in ("text_config", "vision_config") or k.endswith("_token_id")}
    qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**plain, tie_word_embeddings=True)).eval()
    qwen.load_state_dict(model.state_dict())
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    with torch.no_grad():
        assert (model(**inputs).logits - qwen(**inputs).logits).abs().max() < 1e-5


# ---- training ----


def test_gradient_reaches_what_is_free_and_nothing_else(processor):
    model = tiny_model().train()
    model.requires_grad_(True)
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    model.model.spatial_encoder.requires_grad_(False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert not moved & frozen
    for part in ("model.connector.mlp.0.weight", "model.connector.ln_q.weight", "model.visual.merger.mlp.0.weight"):
        assert part in moved
    assert any(n.startswith("model.language_model.layers.0") for n in moved)


def test_lora_trains_connector_and_adapters_and_round_trips(tmp_path, processor):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", modules_to_save=["connector"])
    model = get_peft_model(tiny_model(), lora)
    free = {n for n, p in model.named_parameters() if p.requires_grad}
    assert free and all("lora_" in n or ".connector.modules_to_save." in n for n in free)
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # LoRA's B is zero at first, so A moves in the second step
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if n in free)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)
        written = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert torch.equal(written, again.generate(**inputs, max_new_tokens=2, do_sample=False))


def test_loss_is_cross_entropy_of_shifted_labels(model, processor):
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    labels = inputs["input_ids"].masked_fill(inputs["mm_token_type_ids"] > 0, -100)
    with torch.no_grad():
        out = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], labels[0, 1:], ignore_index=-100)
    assert abs(out.loss - expected) < 1e-6


# ---- on disk ----


def test_save_and_load_through_auto_classes(tmp_path, model, processor):
    model.save_pretrained(tmp_path)
    tiny_processor(newline_after_vision=True, video_fps=4.0).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SpatialMLLMConfig and config.connector_config.hidden_size == 64
    assert config.spatial_config.to_dict() == model.config.spatial_config.to_dict()
    read = AutoProcessor.from_pretrained(tmp_path)
    assert type(read) is SpatialMLLMProcessor and read.newline_after_vision and read.video_fps == 4.0
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    with torch.no_grad():
        expected = model(**inputs).logits
        for loaded in (AutoModelForImageTextToText.from_pretrained(tmp_path), load_spatial_mllm(tmp_path)):
            assert type(loaded) is SpatialMLLMForConditionalGeneration
            assert torch.equal(loaded.eval()(**inputs).logits, expected)
        backbone = AutoModel.from_pretrained(tmp_path).eval()
        assert type(backbone) is SpatialMLLMModel
        assert torch.equal(model.lm_head(backbone(**inputs).last_hidden_state), expected)


VGGT_HEADS = {
    "camera_head.token_norm.weight": (4,),
    "point_head.norm.bias": (4,),
    "track_head.x": (2, 2),
    "depth_head.norm.bias": (4,),
}


def released(model: SpatialMLLMForConditionalGeneration, folder: Path, version: str, shards: int = 1, **changes) -> Path:
    """Write the model as the published code saved it: transformers 4.51 names, flat config, unused heads."""
    vggt = {"v1.1": "spatial_encoder.vggt_model.", "v1.0": "vggt."}[version]
    parts = {
        "model.visual.": "visual.",
        "model.language_model.": "model.",
        "model.spatial_encoder.": f"{vggt}aggregator.",
        "model.connector.": "connector.",
    }
    if version == "v1.0":
        merger = "vggt_embedding_merger."
        parts |= {
            "model.connector.ln_q.": f"{merger}token_merge_ln_q.",
            "model.connector.mlp.": f"{merger}token_merge_mlp.",
            "model.connector.refine.0.": f"{merger}vgg_to_language_ln_q.",
            "model.connector.refine.1.": f"{merger}vgg_to_language_mlp.0.",
            "model.connector.refine.3.": f"{merger}vgg_to_language_mlp.2.",
        }
    tensors = {f"{vggt}{name}": torch.ones(shape) for name, shape in VGGT_HEADS.items()}
    for name, value in model.state_dict().items():
        old = max((p for p in parts if name.startswith(p)), key=len, default="")
        tensors[parts.get(old, "") + name.removeprefix(old)] = value.clone()
    del tensors["lm_head.weight"]  # tied
    tensors |= {name: value for name, value in changes.items() if value is not None}
    tensors = {name: value for name, value in tensors.items() if changes.get(name, value) is not None}

    folder.mkdir()
    names = sorted(tensors)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    if shards == 1:
        files = {"model.safetensors": names}
    else:
        weight_map = {name: file for file, own in files.items() for name in own}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file, own in files.items():
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})

    config = model.config
    text = {
        k: v for k, v in config.text_config.to_dict().items() if k not in ("rope_parameters", "model_type", "layer_types", "dtype")
    }
    vision = {k: v for k, v in config.vision_config.to_dict().items() if k not in ("model_type", "rope_parameters")}
    rope = config.text_config.rope_parameters
    flat = {
        **text,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": rope["mrope_section"]},
        "vision_config": {**vision, "model_type": "qwen2_5_vl", "in_chans": 3, "spatial_patch_size": 14},
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.51.3",
    }
    if version == "v1.1":
        flat |= {
            "model_type": "spatial-mllm",
            "architectures": ["SpatialMLLMForConditionalGeneration"],
            "spatial_config": {"img_size": 518, "patch_size": 14, "embed_dim": 1024, "model_type": "vggt_spatial_encoder"},
            "connector_config": {"connector_type": "mlp_add", "spatial_embeds_layer_idx": -1},
        }
    else:
        flat |= {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VL_VGGTForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps(flat))
    return folder


@pytest.mark.parametrize("version", ["v1.1", "v1.0"])
@pytest.mark.parametrize("shards", [1, 3])
def test_released_checkpoints_load_and_save_in_our_names(tmp_path, processor, version, shards):
    model = tiny_model(connector_config={"layout": version})
    folder = released(model, tmp_path / "released", version, shards)
    loaded = load_spatial_mllm(folder, spatial_config=VGGTConfig.tiny())
    assert loaded.config.connector_config.layout == version
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight

    loaded.save_pretrained(tmp_path / "ours")
    names = set(load_file(tmp_path / "ours" / "model.safetensors"))
    assert names == set(model.state_dict()) - {"lm_head.weight"}
    with torch.no_grad():
        assert torch.equal(load_spatial_mllm(tmp_path / "ours")(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("version", ["v1.1", "v1.0"])
def test_released_checkpoints_load_by_from_pretrained_and_auto_classes(tmp_path, version):
    model = tiny_model(connector_config={"layout": version})
    folder = released(model, tmp_path / "released", version)
    config = json.loads((folder / "config.json").read_text()) | {"spatial_config": VGGTConfig.tiny().to_dict()}
    (folder / "config.json").write_text(json.dumps(config))
    expected = model.state_dict()
    kinds = [SpatialMLLMForConditionalGeneration, SpatialMLLMModel]
    if version == "v1.1":  # that of v1.0 says of itself that it is a Qwen2.5-VL
        kinds += [AutoModel, AutoModelForImageTextToText]
    for kind in kinds:
        loaded, report = kind.from_pretrained(folder, output_loading_info=True)
        assert loaded.config.connector_config.layout == version and loaded.config.model_type == "spatial-mllm"
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        outer = "model." if isinstance(loaded, SpatialMLLMModel) else ""
        assert all(torch.equal(tensor, expected[outer + name]) for name, tensor in loaded.state_dict().items())


def test_released_v1_1_config_is_read_as_it_is(tmp_path):
    folder = released(tiny_model(), tmp_path / "released", "v1.1")
    config = AutoConfig.from_pretrained(folder)
    assert (config.spatial_config.img_size, config.spatial_config.embed_dim) == (518, 1024)
    assert config.text_config.hidden_size == 64 and config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
    assert config.connector_config.layout == "v1.1" and config.connector_config.hidden_size is None


def test_a_released_checkpoint_that_does_not_fit_is_an_error(tmp_path):
    model = tiny_model(connector_config={})
    changes = {"connector.mlp.2.bias": None, "connector.extra": torch.zeros(1)}
    folder = released(model, tmp_path / "released", "v1.1", **changes)
    with pytest.raises(ValueError) as error:
        load_spatial_mllm(folder, spatial_config=VGGTConfig.tiny())
    assert "missing ['model.connector.mlp.2.bias']" in str(error.value)
    assert "unexpected ['connector.extra']" in str(error.value) or "unexpected ['model.connector.extra']" in str(error.value)


def test_processor_of_a_released_folder(tmp_path):
    """The released folders carry one preprocessor config for images and videos, with bounds no video was trained at."""
    tiny_processor().tokenizer.save_pretrained(tmp_path)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    released = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    released |= {"image_mean": mean, "image_std": std, "image_processor_type": "Qwen2VLImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(released | {"processor_class": "Qwen2_5_VLProcessor"}))
    clip = torch.zeros(2, 3, 1080, 1920, dtype=torch.uint8)
    for clamp, grid in (("qwen", [1, 40, 72]), ("training", [1, 30, 54]), (None, [1, 78, 138])):
        processor = SpatialMLLMProcessor.from_pretrained(tmp_path, pixel_clamp=clamp)
        assert processor(text=["<|video_pad|>"], videos=[clip])["video_grid_thw"].tolist() == [grid]


def test_plain_qwen_is_not_taken_for_spatial_mllm(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLModel"]}))
    with pytest.raises(ValueError, match="found model_type 'qwen2_5_vl'"):
        load_spatial_mllm(tmp_path)


def test_unknown_connector_is_refused():
    with pytest.raises(ValueError, match="connector_type: found 'mlp_cat', expected 'mlp_add'"):
        SpatialMLLMConfig.tiny(connector_config={"connector_type": "mlp_cat"})


def test_bf16_runs(processor):
    model = tiny_model().to(torch.bfloat16)
    inputs = processor(text=[processor.prompt("how many?", videos=1)], videos=[frames(4)])
    with torch.no_grad():
        a, b = model(**inputs).logits.float(), tiny_model()(**inputs).logits
    assert a.dtype == torch.float32 and (a - b).abs().mean() < 0.05 * b.abs().max()
