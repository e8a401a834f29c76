"""S2-MLLM on both bases: it starts as its base, trains everywhere, batches, saves, and reads LLaVA's checkpoints."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from allocentric.models.s2_mllm import (
    LLAVA_NAMES,
    S2LlavaConfig,
    S2LlavaForConditionalGeneration,
    S2QwenConfig,
    S2QwenForConditionalGeneration,
    load_s2,
)
from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration
from allocentric.train.grounding import Guided, freeze_rest, with_adapters
from allocentric.train.recipe import read_recipe

VIEWS, K = 3, 4


def tiny(base: str, trained: bool = True):
    torch.manual_seed(0)
    if base == "llava":
        model = S2LlavaForConditionalGeneration(S2LlavaConfig.tiny())
    else:
        config = S2QwenConfig.tiny()
        config.vision_config.temporal_patch_size = 1
        model = S2QwenForConditionalGeneration(config)
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.15)
    return model.eval()


def inputs(base: str, batch: int = 2, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    fine, coarse, tokens = ((5, 5), (3, 3), VIEWS * 3 * 4) if base == "llava" else ((2, 3), (2, 3), VIEWS * 6)
    ids = torch.randint(0, 200, (batch, tokens + 6), generator=g)
    ids[:, :tokens] = 306
    ids[:, -2] = 307
    made = {
        "input_ids": ids,
        "cells": 3 * torch.randn(batch, VIEWS, *fine, 3, generator=g),
        "rays": torch.randn(batch, VIEWS, *coarse, 3, generator=g),
        "boxes": torch.rand(batch, K, 7, generator=g),
        "shares": torch.rand(batch, K, VIEWS * fine[0] * fine[1], generator=g),
    }
    if base == "llava":
        return made | {"pixel_values_videos": torch.randn(batch, VIEWS, 3, 72, 72, generator=g)}
    pixels = torch.randn(batch * VIEWS * 24, 588, generator=g)
    return made | {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[VIEWS, 4, 6]] * batch)}


def test_llava_starts_as_its_base_with_a_line_end_after_every_row():
    model = tiny("llava", trained=False)
    pixels = inputs("llava")["pixel_values_videos"]
    base = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**{
        k: v for k, v in model.config.to_dict().items() if k not in ("structure_config", "model_type", "ground_token_id")
    })).eval()  # fmt: skip
    own = {name: value for name, value in model.state_dict().items() if "structure" not in name and "ground_head" not in name}
    base.load_state_dict(own)
    expected = base.model.get_video_features(pixels, vision_feature_layer=-1, vision_feature_select_strategy="full").pooler_output
    found = model.model.get_video_features(pixels).pooler_output
    grid = found.view(2, VIEWS, 3, 4, -1)
    assert torch.allclose(grid[:, :, :, :3].reshape(2, VIEWS * 9, -1), expected[:, :-1], atol=1e-6)
    assert torch.equal(grid[:, :, :, 3], model.model.image_newline.expand(2, VIEWS, 3, -1))


def test_qwen_starts_as_its_base():
    model = tiny("qwen", trained=False)
    config = model.config.to_dict() | {"model_type": "spatial-mllm"}
    config.pop("structure_config")
    config.pop("ground_token_id")
    given = inputs("qwen")
    base = SpatialMLLMForConditionalGeneration(SpatialMLLMForConditionalGeneration.config_class(**config)).eval()
    base.load_state_dict({n: v for n, v in model.state_dict().items() if "structure" not in n and "ground_head" not in n})
    vision = {name: given[name] for name in ("pixel_values_videos", "video_grid_thw", "input_ids")}
    with torch.no_grad():
        assert torch.allclose(model(**vision).logits, base(**vision).logits, atol=1e-5)
        located = model(**vision, cells=given["cells"]).logits
    assert not torch.allclose(located, base(**vision).logits, atol=1e-3)


@pytest.mark.parametrize("base", ["llava", "qwen"])
def test_every_trained_part_gets_a_gradient_and_a_batch_equals_its_samples(base):
    model, given = tiny(base), inputs(base)
    output = model(**given, labels=given["input_ids"])
    (output.loss + output.cosine.exp().sum()).backward()
    for name, parameter in model.named_parameters():
        unused = ("post_layernorm", "vision_tower.head")  # LLaVA reads SigLIP before its closing norm
        if not any(part in name for part in unused):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        for row in range(2):
            patches = VIEWS * 24
            alone = {k: v[row : row + 1] for k, v in given.items()}
            if base == "qwen":
                alone["pixel_values_videos"] = given["pixel_values_videos"][row * patches : (row + 1) * patches]
            single = model(**alone)
            assert torch.allclose(single.logits[0], output.logits[row], atol=1e-4)
            assert torch.allclose(single.cosine[0], output.cosine[row], atol=1e-5)
    assert output.rows.tolist() == [0, 1] and output.cosine.dtype == torch.float32


@pytest.mark.parametrize("base", ["llava", "qwen"])
def test_padding_of_proposals_changes_nothing(base):
    model, given = tiny(base), inputs(base)
    padded = given | {
        "boxes": torch.cat([given["boxes"], torch.full((2, 2, 7), torch.nan)], 1),
        "shares": torch.cat([given["shares"], torch.zeros(2, 2, given["shares"].shape[2])], 1),
    }
    with torch.no_grad():
        plain, more = model(**given).cosine, model(**padded).cosine
    assert torch.allclose(more[:, [0, 1, 2, 3, 6]], plain, atol=1e-6) and (more[:, 4:6] == -torch.inf).all()


@pytest.mark.parametrize("base", ["llava", "qwen"])
def test_a_saved_model_is_the_same_and_generates(base, tmp_path):
    model, given = tiny(base), inputs(base)
    model.save_pretrained(tmp_path)
    again = load_s2(tmp_path)
    with torch.no_grad():
        one, other = model(**given), again(**given)
    assert torch.equal(one.logits, other.logits) and torch.equal(one.cosine, other.cosine)
    mask = torch.ones_like(given["input_ids"])
    written = again.generate(**given, attention_mask=mask, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    start = given["input_ids"].shape[1]
    with torch.no_grad():  # what generation wrote is what a forward pass over all of it says
        full = again(**(given | {"input_ids": written[:, :-1]})).logits[:, start - 1 :].clone()
    full[..., 301] = -torch.inf  # the end, which min_new_tokens forbids
    assert torch.equal(full.argmax(-1), written[:, start:])


def test_geometry_of_another_grid_is_refused():
    given = inputs("llava")
    with pytest.raises(ValueError, match=r"cells: found \(2, 3, 4, 5\) .* expected \(2, 3\) with 25 cells"):
        tiny("llava")(**given | {"cells": given["cells"][:, :, :4]})


# ---- checkpoints of LLaVA's code ----


def in_llava_names(model) -> dict[str, torch.Tensor]:
    """The model's tensors under the names that the published code gives them."""
    back = {
        "model.language_model.": "model.",
        "model.vision_tower.": "model.vision_tower.vision_tower.vision_model.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.structure.attention.inter_norm.": "st_attention_block.temporal_norm1.",
        "model.structure.attention.inter_out.": "st_attention_block.temporal_fc.",
        "model.structure.attention.inter.": "st_attention_block.temporal_attn.",
        "model.structure.attention.intra_norm.": "st_attention_block.norm1.",
        "model.structure.attention.intra.": "st_attention_block.attn.",
        "model.structure.attention.mlp_norm.": "st_attention_block.norm2.",
        "model.structure.attention.mlp.": "st_attention_block.mlp.",
        "model.structure.rays.mlp.": "mlp_pe.",
        "ground_head.object_mlp.": "ground_head_obj.",
        "ground_head.query_mlp.": "ground_head_query.",
        "ground_head.zero_target": "ground_head_zero_target",
    }
    named = {}
    for name, value in model.state_dict().items():
        ours = next((own for own in back if name.startswith(own)), None)
        named[back[ours] + name.removeprefix(ours) if ours else name] = value.clone()
    return named


def save_llava(model, folder, drop=()):
    text = model.config.text_config.to_dict()
    config = text | {
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "ground_token_ids": [307],
        "rope_theta": 10000.0,
        "vision_config": model.config.vision_config.to_dict(),
        "structure_config": {"num_heads": 4, "ray_size": 16},
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {n: v for n, v in in_llava_names(model).items() if not n.startswith(tuple(drop) or " ")}
    extra = {"fast3r.decoder.weight": torch.ones(2), "encoder_to_decoder_proj.weight": torch.ones(2)}
    extra["model.vision_tower.vision_tower.vision_model.encoder.layers.26.mlp.fc1.weight"] = torch.ones(2)
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})


def test_checkpoints_of_llavas_code_are_read(tmp_path):
    model, given = tiny("llava"), inputs("llava")
    model.config.video_token_index = model.config.image_token_index = 151646
    save_llava(model, tmp_path)
    loaded = load_s2(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.structure_config.ray_gain == 1 and not loaded.config.structure_config.scrambled_groups
    published = load_s2(tmp_path, compat=True)
    assert published.model.structure.attention.scrambled and published.model.structure.rays.gain == 5
    vision = {name: given[name] for name in ("pixel_values_videos", "cells", "rays")}
    with torch.no_grad():
        ours, theirs = (m.model.get_video_features(**vision).pooler_output for m in (loaded, published))
    assert not torch.allclose(ours, theirs, atol=1e-3)
    assert all(pattern.startswith("^") for pattern in LLAVA_NAMES)


def test_a_base_without_grounding_is_completed_and_a_broken_one_refused(tmp_path):
    model = tiny("llava")
    save_llava(model, tmp_path, drop=("st_attention_block", "mlp_pe", "ground_head"))
    loaded = load_s2(tmp_path)
    assert not loaded.model.structure.attention.inter_out.weight.any() and not loaded.model.structure.rays.mlp[3].weight.any()
    assert loaded.ground_head.zero_target.abs().sum() > 0
    save_llava(model, tmp_path, drop=("model.mm_projector.0",))
    with pytest.raises(ValueError, match=r"missing .*linear_1"):
        load_s2(tmp_path)


def test_an_unknown_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="found model_type 'bert'"):
        load_s2(tmp_path)


# ---- the published recipe ----


def test_the_published_recipe_trains_as_many_parameters_as_the_paper_says(request):
    recipe = read_recipe(request.config.rootpath / "recipes" / "s2_mllm.yaml")
    with torch.device("meta"):
        model = S2LlavaForConditionalGeneration(S2LlavaConfig.full())
        guidance = torch.nn.Module()
        guidance.project = torch.nn.Linear(3584, 1024)  # into Fast3R's decoder, which itself is frozen
        guided = Guided(model, guidance)
        with_adapters(guided, recipe.lora)
    freeze_rest(guided, recipe.learning_rates)
    assert sum(p.numel() for p in guided.parameters() if p.requires_grad) == 1_767_499_776
    frozen = {n for n, p in guided.named_parameters() if not p.requires_grad}
    assert "model.lm_head.weight" in frozen
    assert "model.model.language_model.layers.23.mlp.up_proj.base_layer.weight" in frozen
