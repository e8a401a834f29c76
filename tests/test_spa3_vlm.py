"""Spa3-VLM: the published numbers, nothing added at first, no leakage between samples, what trains, and loading."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from allocentric.encoders.spa3r import Spa3R, Spa3RConfig, load_spa3r, save_spa3r
from allocentric.fusion.cross_attention import CrossAttentionConnector
from allocentric.models.patches import patchify
from allocentric.models.spa3_vlm import (
    Spa3VLMConfig,
    Spa3VLMForConditionalGeneration,
    Spa3VLMProcessor,
    from_parts,
    geometry_view,
    load_spa3_vlm,
    spa3_vlm_config,
)
from allocentric.models.spatial_mllm import SpatialMLLMConfig, unpatchify
from parity import weights as parity
from parity.spa3r_case import spa3r_config
from test_spatial_mllm import tiny_config, tiny_processor

TOLERANCE = 1e-4
CASES = sorted(p.parent.name for p in Path(parity.HERE).glob("spa3_vlm*/case.json"))


# ---- the published numbers ----


@pytest.fixture(scope="module", params=CASES)
def published(request, tmp_path_factory):
    """Case, expected numbers, and the model read from the case written as the released folder."""
    case, expected = parity.case(request.param)
    folder = tmp_path_factory.mktemp("released")
    save_file(parity.seeded_weights(case), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        **case["hyper"]["qwen"],
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "use_geometry_encoder": True,
        "geometry_encoder_type": "spa3r",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return case, expected, load_spa3_vlm(folder, spa3r_config(case["hyper"])), folder


@pytest.fixture(scope="module")
def fused(published):
    case, expected, model, _ = published
    spec = case["hyper"]["geometry_images"]
    types = model.model.token_types(expected["input_ids"])
    with torch.no_grad():
        latents = model.model.encode_views([parity.seeded_floats(spec["seed"], spec["shape"])])
        return model.model.get_image_features(expected["pixel_values"], expected["image_grid_thw"], types, latents=latents)


def test_fused_tokens(published, fused):
    assert parity.relative_error(fused.last_hidden_state, published[1]["fused_embeds"]) < TOLERANCE
    assert parity.relative_error(fused.last_hidden_state, published[1]["image_embeds"]) > 100 * TOLERANCE


@torch.no_grad()
def test_2d_tokens(published):
    _, expected, model, _ = published
    groups = model.model.encode_2d(expected["pixel_values"], expected["image_grid_thw"])
    merged = model.model.visual.merger(groups.view(-1, model.config.vision_config.hidden_size))
    assert parity.relative_error(merged, expected["image_embeds"]) < TOLERANCE


@torch.no_grad()
def test_logits(published, fused):
    _, expected, model, _ = published
    grid, ids = expected["image_grid_thw"], expected["input_ids"]
    found = model(input_ids=ids, image_grid_thw=grid, mm_encoder_outputs={"image": fused}).logits
    assert parity.relative_error(found, expected["logits"]) < TOLERANCE


@torch.no_grad()
def test_images_of_another_size_reach_the_encoder(published):
    """As the released weights see a place: the same numbers with Spa3R's images given beside Qwen's pixels, and in `generate`."""
    case, expected, model, _ = published
    spec = case["hyper"]["geometry_images"]
    assert model.config.frames_as == "images"
    given = {
        "input_ids": expected["input_ids"],
        "pixel_values": expected["pixel_values"],
        "image_grid_thw": expected["image_grid_thw"],
        "geometry_images": parity.seeded_floats(spec["seed"], spec["shape"]),
    }
    assert parity.relative_error(model(**given).logits, expected["logits"]) < TOLERANCE
    written = model.generate(**given, max_new_tokens=1, do_sample=False)
    assert written[0, -1] == expected["logits"][0, -1].argmax()
    with pytest.raises(ValueError, match=f"geometry_images: found 1, expected {spec['shape'][0]} by image_grid_thw"):
        model(**given | {"geometry_images": given["geometry_images"][:1]})
    as_video = {"pixel_values_videos": given["pixel_values"], "video_grid_thw": given["image_grid_thw"]}
    with pytest.raises(ValueError, match="geometry_images: found videos alone, expected images"):
        model(input_ids=given["input_ids"], geometry_images=given["geometry_images"], **as_video)


def test_the_released_config_by_from_pretrained(published):
    config = Spa3VLMConfig.from_pretrained(published[3])
    assert config.model_type == "spa3-vlm" and config.frames_as == "images"
    assert config.spa3r_config.to_dict() == Spa3RConfig.compat().to_dict()
    assert config.to_dict() == spa3_vlm_config(published[3]).to_dict() | {"architectures": config.architectures}


def test_a_missing_tensor_is_named(published, tmp_path):
    case, _, _, folder = published
    weights = parity.seeded_weights(case)
    del weights["geom_cross_attention.q_norm.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"does not fit the model: missing \['model.connector.attention.q_norm.bias'\]"):
        load_spa3_vlm(tmp_path, spa3r_config(case["hyper"]))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(ValueError, match="found model_type 'qwen2_5_vl', expected 'spa3-vlm'"):
        load_spa3_vlm(tmp_path)


# ---- our own ----


@pytest.fixture(scope="module")
def model():
    """Tiny, with a connector that has learned something."""
    torch.manual_seed(0)
    model = Spa3VLMForConditionalGeneration(Spa3VLMConfig.tiny()).eval()
    torch.nn.init.normal_(model.model.connector.adaptor[-1].weight)
    return model


def video(frames: int, seed: int, model, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(frames, 3, 56, width, generator=torch.Generator().manual_seed(seed))
    pixels, grid = patchify(images, model.config)
    return pixels, grid[None]


@torch.no_grad()
def test_videos_of_a_batch_do_not_leak(model):
    clips = [video(4, 0, model), video(2, 1, model, 84), video(4, 2, model)]
    pixels, grids = (torch.cat(parts) for parts in zip(*clips, strict=True))
    together = model.model.get_video_features(pixels, grids).pooler_output
    for found, (p, g) in zip(together, clips, strict=True):
        assert torch.allclose(found, model.model.get_video_features(p, g).pooler_output[0], atol=1e-5)
    changed = torch.cat([clips[0][0], clips[1][0], clips[2][0].flip(0)])
    others = model.model.get_video_features(changed, grids).pooler_output
    assert torch.equal(others[0], together[0]) and not torch.allclose(others[2], together[2], atol=1e-3)


@torch.no_grad()
def test_images_of_two_prompts_do_not_leak(model):
    """Two prompts of different length in one batch; the second shows images of two sizes, interleaved."""
    config = model.config
    shots = [video(2, i, model, width) for i, width in enumerate((56, 56, 56, 84, 56))]
    pixels, grids = (torch.cat(parts) for parts in zip(*shots, strict=True))
    counts = (grids.prod(-1) // 4).tolist()

    def prompt(rows: list[int], length: int) -> list[int]:
        tokens = [config.image_token_id] * sum(counts[r] for r in rows)
        return [7] * (length - len(tokens)) + tokens

    ids = torch.tensor([prompt([0, 1], 24), prompt([2, 3, 4], 24)])
    found = model.model.get_image_features(pixels, grids, model.model.token_types(ids)).pooler_output
    split = [len(p) for p, _ in shots]
    one = torch.cat([s[0] for s in shots[:2]])
    first = model.model.get_image_features(one, grids[:2], model.model.token_types(ids[:1])).pooler_output
    rest = model.model.get_image_features(pixels[sum(split[:2]) :], grids[2:], model.model.token_types(ids[1:])).pooler_output
    for a, b in zip(found, [*first, *rest], strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    # the 84 wide image is a scene of its own: the other two are as if it were not there
    without = torch.cat([pixels[sum(split[:2]) : sum(split[:3])], pixels[sum(split[:4]) :]])
    alone = model.model.get_image_features(without, grids[[2, 4]]).pooler_output
    assert torch.allclose(found[2], alone[0], atol=1e-5) and torch.allclose(found[4], alone[1], atol=1e-5)


@torch.no_grad()
def test_features_kept_from_earlier_stand_for_pixels(model):
    pixels, grids = (torch.cat(parts) for parts in zip(video(4, 0, model), video(4, 1, model), strict=True))
    ids = torch.tensor([[303, *[306] * 8, 304, 5, 6], [303, *[306] * 8, 304, 9, 6]])
    expected = model(input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grids)
    kept = {f"video_features_{part}": getattr(model.model, f"encode_{part}")(pixels, grids) for part in ("2d", "3d")}
    found = model(input_ids=ids, video_grid_thw=grids, **kept)
    assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch.equal(
        model.generate(input_ids=ids, video_grid_thw=grids, **kept, max_new_tokens=3, do_sample=False),
        model.generate(input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grids, max_new_tokens=3, do_sample=False),
    )
    with pytest.raises(ValueError, match=r"latents: found shape \(11, 32\), expected 2 scenes of 6 rows of 32"):
        model(input_ids=ids, video_grid_thw=grids, **{**kept, "video_features_3d": kept["video_features_3d"][1:]})


@torch.no_grad()
def test_the_latent_is_what_spa3r_makes_of_the_frames(model):
    frames = torch.randint(0, 256, (4, 3, 56, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels, grid = patchify(frames / 255, model.config)
    found = model.model.encode_3d(pixels, grid[None])
    assert torch.allclose(found, model.model.spatial_encoder((frames / 255)[None])[0], atol=1e-5)


@torch.no_grad()
def test_the_ablation_reads_vggt_as_it_is(model):
    torch.manual_seed(0)
    raw = Spa3VLMForConditionalGeneration(Spa3VLMConfig.tiny(raw_vggt=True)).eval()
    torch.nn.init.normal_(raw.model.connector.adaptor[-1].weight)
    pixels, grids = (torch.cat(parts) for parts in zip(video(4, 0, raw), video(4, 1, raw), strict=True))
    read = raw.model.encode_3d(pixels, grids)
    images = torch.rand(4, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    (tokens,) = raw.model.spatial_encoder.aggregator(images[None])
    assert torch.allclose(read[64:], tokens[0, :, 5:].flatten(0, 1), atol=1e-4)
    together = raw.model.get_video_features(pixels, grids).pooler_output
    alone = raw.model.get_video_features(*video(4, 1, raw)).pooler_output
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    mixed = [torch.cat(parts) for parts in zip(video(4, 0, raw), video(2, 1, raw), strict=True)]
    with pytest.raises(ValueError, match=r"raw_vggt: found scenes of \[32, 64\] tokens in one batch"):
        raw.model.get_video_features(*mixed)


def test_only_the_connector_hears_geometry_and_it_trains(model):
    pixels, grids = video(4, 0, model)
    ids = torch.tensor([[303, *[306] * 8, 304, 5, 6]])
    loss = model(input_ids=ids, pixel_values_videos=pixels, video_grid_thw=grids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.model.connector.parameters() if p.ndim == 2)
    assert not any(p.requires_grad or p.grad is not None for p in model.model.spatial_encoder.parameters())
    model.zero_grad()


# ---- frames as images ----


def image_processor(**switches) -> Spa3VLMProcessor:
    plain = tiny_processor()
    parts = (plain.image_processor, plain.tokenizer, plain.video_processor)
    return Spa3VLMProcessor(*parts, **{"frames_as": "images", **switches})


def test_frames_are_shown_as_the_released_weights_saw_them():
    processor = image_processor()
    frames = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = processor.look(frames)
    assert seen["geometry_images"].shape == (2, 3, 392, 518) and seen["image_grid_thw"].tolist() == [[1, 28, 36]] * 2
    assert int((seen["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum()) == 2 * 252
    # published: PIL's bicubic, and for Qwen the upper left part of the same picture
    picture = Image.fromarray(frames[1].permute(1, 2, 0).numpy()).resize((518, 392), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    assert (seen["geometry_images"][1] - expected).abs().max() < 2.1 / 255
    shown = unpatchify(seen["pixel_values"], seen["image_grid_thw"], SpatialMLLMConfig.tiny(use_spatial=False))
    assert torch.allclose(shown[1][0], seen["geometry_images"][1, :, :392, :504], atol=1e-5)
    tall = processor.look(torch.zeros(1, 3, 96, 64, dtype=torch.uint8))
    assert tall["geometry_images"].shape == (1, 3, 518, 518) and tall["image_grid_thw"].tolist() == [[1, 36, 36]]
    with pytest.raises(ValueError, match="images: found the sizes \\[\\(392, 518\\), \\(518, 518\\)\\], resized, expected one"):
        processor(text=["<|image_pad|>" * 2], images=[frames[0], torch.zeros(3, 64, 64, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="frames_as: found 'film', expected 'video' or 'images'"):
        image_processor(frames_as="film")


def test_scenes_of_two_shapes_share_a_batch_of_images():
    """A list for each text, of Pillow's pictures or of tensors; each text gets what it gets alone."""
    processor, ids = image_processor(geometry_width=70), tiny_config()
    torch.manual_seed(0)
    config = Spa3VLMConfig.tiny(image_token_id=ids.image_token_id, video_token_id=ids.video_token_id)
    model = Spa3VLMForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.connector.adaptor[-1].weight)
    rng = torch.Generator().manual_seed(2)
    flat, tall = (torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=rng) for size in ((48, 64), (64, 64)))
    pictures = [[Image.fromarray(f.permute(1, 2, 0).numpy()) for f in flat], list(tall)]
    text = [processor.prompt("how many chairs?", images=2)] * 2
    both = processor(text=text, images=pictures).to("cpu")
    assert [tuple(view.shape) for view in both["geometry_images"]] == [(3, 56, 70)] * 2 + [(3, 70, 70)] * 2
    with torch.no_grad():
        together = model(**both).logits[:, -1]
        alone = [model(**processor(text=text[:1], images=list(shown))).logits[0, -1] for shown in (flat, tall)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-4)
    one = processor(text=[processor.prompt("how many?", images=1)], images=flat[0])
    assert one["geometry_images"].shape == (1, 3, 56, 70)
    with pytest.raises(ValueError, match="images: found 10 x 800, expected at least 28 pixels of height at a width of 70"):
        processor(text=["<|image_pad|>"], images=[torch.zeros(3, 10, 800, dtype=torch.uint8)])


def test_a_tall_picture_is_cut_about_its_centre():
    image = torch.arange(12, dtype=torch.uint8).repeat_interleave(14).mul(20)[None, :, None].expand(3, -1, 56)
    found = geometry_view(image, 56, 14)
    assert torch.equal(found, image[:, 56:112])


# ---- starting at zero ----


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny Qwen2.5-VL on disk."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("qwen")
    config = Spa3VLMConfig.tiny()
    text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: getattr(config, name) for name in names}
    Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spa3r(tmp_path_factory):
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("spa3r")
    save_spa3r(Spa3R(Spa3RConfig.tiny()), folder)
    return folder


def test_a_new_model_answers_as_its_base(qwen, spa3r):
    model = from_parts(qwen, spa3r)
    connector = model.model.connector
    assert connector.adds_nothing() and connector.projector[0].weight.std() > 0.01
    base = Qwen2_5_VLForConditionalGeneration.from_pretrained(qwen).eval()
    pixels, grids = video(4, 0, model)
    with torch.no_grad():
        ours = model.model.get_video_features(pixels, grids).pooler_output[0]
        assert torch.allclose(ours, base.model.get_video_features(pixels, grids).pooler_output[0], atol=1e-6)
    stored = load_spa3r(spa3r, decoder=False)
    assert all(torch.equal(model.model.spatial_encoder.state_dict()[n], t) for n, t in stored.state_dict().items())
    assert not any(p.requires_grad for p in model.model.spatial_encoder.parameters())


def test_from_pretrained_alone_keeps_zero_and_what_was_learned(qwen, model, tmp_path):
    config = Spa3VLMConfig.tiny()
    fresh = Spa3VLMForConditionalGeneration.from_pretrained(qwen, config=config)
    assert fresh.model.connector.adds_nothing()
    model.save_pretrained(tmp_path)
    again = load_spa3_vlm(tmp_path)
    assert not again.model.connector.adds_nothing()
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_adds_nothing_at_first_and_something_later():
    torch.manual_seed(0)
    connector = CrossAttentionConnector(32, 64, 4, 16)
    x, z = torch.randn(2, 5, 64), torch.randn(2, 6, 32)
    assert not connector(x, z).any()
    connector(x, z).sum().backward()
    assert connector.adaptor[-1].weight.grad.abs().sum() > 0
    torch.nn.init.normal_(connector.adaptor[-1].weight)
    assert connector(x, z).abs().mean() > 0.1
    assert torch.allclose(connector(x, z)[:, :3], connector(x[:, :3], z), atol=1e-5)  # rows are independent


# ---- latents kept on disk ----


@torch.no_grad()
def test_latents_are_kept_by_scene_and_weights(tmp_path):
    model = Spa3VLMForConditionalGeneration(Spa3VLMConfig.tiny()).eval().model
    scenes = [torch.rand(views, 3, 56, 56, generator=torch.Generator().manual_seed(i)) for i, views in enumerate((3, 2, 3))]
    plain = model.encode_views(scenes)
    model.keep_latents(tmp_path)
    assert torch.equal(model.encode_views(scenes), plain)
    file = model.latent_folder.path(scenes[0])
    save_file({"latent": plain[0] + 1}, file)  # what is read next is the file, not the encoder's word
    assert torch.equal(model.encode_views(scenes), torch.stack([plain[0] + 1, plain[1], plain[2]]))
    model.spatial_encoder.projection.weight += 1
    model.keep_latents(tmp_path)  # another encoder: nothing of the old one is read
    assert not torch.equal(model.encode_views(scenes[:1]), plain[:1] + 1)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".safetensors"] * 4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_latent_may_be_given_in_place_of_the_pixels(model, kind):
    config = model.config
    frames = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(3))
    pixels, grids = zip(*(patchify(f.expand(2, -1, -1, -1), config) for f in frames), strict=True)
    pixels, grid = torch.cat(pixels), torch.stack(grids)
    token = getattr(config, f"{kind}_token_id")
    tokens = [row for count in (grid.prod(-1) // 4).tolist() for row in (config.vision_start_token_id, *[token] * count, 9)]
    ids = torch.tensor([[1, 2, *tokens, 5, 6]])
    inputs = {"input_ids": ids, f"{kind}_grid_thw": grid, "pixel_values" if kind == "image" else "pixel_values_videos": pixels}
    scenes = 1 if kind == "image" else 2  # images of a prompt are views of one place
    latents = torch.randn(scenes, 6, 32, generator=torch.Generator().manual_seed(4))
    seen, told = model(**inputs).logits, model(**inputs, latents=latents).logits
    assert not torch.allclose(seen, told, atol=1e-4)
    own = model.model.encode_3d(pixels, grid, [[0, 1]] if kind == "image" else None).unflatten(0, (scenes, -1))
    assert torch.allclose(model(**inputs, latents=own).logits, seen, atol=1e-5)
    step = model.generate(**inputs, latents=latents, max_new_tokens=1, do_sample=False)
    assert step[0, -1] == told[0, -1].argmax()
