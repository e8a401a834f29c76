"""Spatial-MLLM against numbers computed with the published implementation (v1.1), its weights read through the loader."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2VLVideoProcessor

from allocentric.encoders.vggt import VGGTConfig
from allocentric.models import load_spatial_mllm
from allocentric.models.spatial_mllm import unpatchify
from parity import weights as parity

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def case():
    return parity.case("spatial_mllm")[0]


@pytest.fixture(scope="module")
def io():
    return parity.case("spatial_mllm")[1]


@pytest.fixture(scope="module")
def model(case, tmp_path_factory):
    """Write the case as a released v1.1 checkpoint and load that."""
    folder = tmp_path_factory.mktemp("released")
    save_file(parity.seeded_weights(case), folder / "model.safetensors", metadata={"format": "pt"})
    hyper = case["hyper"]
    config = {
        **hyper["qwen"],
        "model_type": "spatial-mllm",
        "architectures": ["SpatialMLLMForConditionalGeneration"],
        "spatial_config": {**hyper["spatial_config"], "model_type": "vggt_spatial_encoder"},
        "connector_config": hyper["connector_config"],
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    vggt = hyper["vggt"]
    spatial = VGGTConfig(
        **{k: vggt[k] for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
        patch_embed_depth=vggt["patch_embed"]["depth"],
    )
    return load_spatial_mllm(folder, spatial_config=spatial)


def test_pixels(case, io, model):
    """Our preprocessing gives the published pixel values, and the frames come back out of them."""
    spec = case["hyper"]["frames"]
    frames = parity.seeded_images(spec["seed"], spec["shape"])
    processor = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=False)
    found = processor(videos=[frames], return_tensors="pt")
    assert torch.equal(found["video_grid_thw"], io["video_grid_thw"])
    assert parity.relative_error(found["pixel_values_videos"], io["pixel_values_videos"]) < TOLERANCE
    (recovered,) = unpatchify(io["pixel_values_videos"], io["video_grid_thw"], model.config)
    assert (recovered - frames / 255).abs().max() < 1e-6


def test_logits_and_loss(io, model):
    names = ("input_ids", "labels", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    with torch.no_grad():
        found = model(**{name: io[name] for name in names})
    assert parity.relative_error(found.logits, io["logits"]) < TOLERANCE
    assert abs(found.loss / io["loss"] - 1) < TOLERANCE


def test_greedy_tokens(io, model):
    names = ("input_ids", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    with torch.no_grad():
        found = model.generate(**{n: io[n] for n in names}, max_new_tokens=io["generated"].shape[1], do_sample=False)
    assert torch.equal(found[:, io["input_ids"].shape[1] :], io["generated"])
