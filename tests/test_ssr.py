"""SSR: geometry tokens stand where they should, change nothing at first, depend on the other frames, and train."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLVideoProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from allocentric.fusion.interleave import MODES
from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration
from allocentric.models.ssr import SSRConfig, SSRForConditionalGeneration, SSRProcessor, ssr_from_parts
from allocentric.train.finetune import tiny_start
from allocentric.train.grpo import Asked, complete, pack_completions, placeholders, score
from allocentric.train.recipe import Annotations, GRPOSettings
from allocentric.train.sft import collate, freeze_except
from test_spatial_mllm import SPECIAL, frames, tiny_config

QUESTION = "how many chairs?"
DELIMITERS = ["<|geometry_start|>", "<|geometry_end|>"]


def ssr_processor(mode: str = "A", camera: bool = False, delimiters: bool = True) -> SSRProcessor:
    vocab = {character: i for i, character in enumerate(bytes_to_unicode().values())}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=SPECIAL + DELIMITERS, padding_side="left")
    size = {"size": {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 1280}}
    return SSRProcessor(
        Qwen2VLImageProcessor(**size),
        tokenizer,
        Qwen2VLVideoProcessor(**size),
        fusion_mode=mode,
        camera_token=camera,
        delimiters=delimiters,
    )


def ssr_model(mode: str = "A", started: bool = True, **changes) -> SSRForConditionalGeneration:
    """`started`: with a connector that adds something, as after training."""
    tokens = ssr_processor().tokenizer.convert_tokens_to_ids
    ids = {f"{name}_token_id": tokens(f"<|{token}|>") for name, token in (("image", "image_pad"), ("video", "video_pad"))}
    ids |= {f"{name}_token_id": tokens(f"<|{name}|>") for name in ("geometry_start", "geometry_end")}
    config = SSRConfig.tiny(**{**ids, "fusion_mode": mode, **changes})
    config.text_config.eos_token_id = tokens("<|im_end|>")
    torch.manual_seed(0)
    model = SSRForConditionalGeneration(config).eval()
    with torch.no_grad():  # larger than the usual 0.02, so that every input matters in the output
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "spatial_encoder" not in name and (started or "connector" not in name):
                parameter.normal_(std=0.15)
        if started:
            model.model.connector.offset.normal_(std=0.5)
    return model


def pictures(count: int = 3, seed: int = 0) -> list[torch.Tensor]:
    return list(frames(count, seed=seed))


def prompt(processor, shown, question: str = QUESTION):
    return processor(text=[processor.prompt(question, images=len(shown))], images=shown)


def blocks(model, inputs) -> tuple[torch.Tensor, ...]:
    names = ("pixel_values", "image_grid_thw", "mm_token_type_ids")
    with torch.no_grad():
        return model.model.get_image_features(*(inputs[name] for name in names)).pooler_output


def logits(model, inputs, **more) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, **more).logits


# ---- what the paper's reading must satisfy ----


def test_1_an_untrained_connector_leaves_the_base_model_as_it_is():
    model, processor = ssr_model("B", started=False), ssr_processor("B")
    tokens = processor.tokenizer.convert_tokens_to_ids
    base_config = tiny_config(use_spatial=False, spatial_config=None, connector_config=None)
    base_config.image_token_id, base_config.video_token_id = tokens("<|image_pad|>"), tokens("<|video_pad|>")
    base = SpatialMLLMForConditionalGeneration(base_config).eval()
    found = base.load_state_dict(model.state_dict(), strict=False)
    assert found.missing_keys == [] and {key.split(".")[1] for key in found.unexpected_keys} == {"spatial_encoder", "connector"}
    inputs = prompt(processor, pictures())
    assert torch.equal(logits(model, inputs), logits(base, inputs))
    assert not torch.equal(logits(ssr_model("B"), inputs), logits(base, inputs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("delimiters", [True, False])
def test_2_as_many_tokens_as_placeholders_for_frames_of_any_size(mode, delimiters):
    processor = ssr_processor(mode, delimiters=delimiters)
    model = ssr_model(mode)
    shown = [frames(1)[0], frames(1, 84, 84, seed=1)[0], frames(1, 56, 28, seed=2)[0], frames(1, seed=3)[0]]
    inputs = prompt(processor, shown)
    features = blocks(model, inputs)
    doubled, per_frame = mode in "ACDF", {"E": 1}.get(mode, 0)
    expected = sum((6, 9, 2, 6)) * (1 + doubled) + 4 * per_frame
    assert sum(map(len, features)) == expected == int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert logits(model, inputs).isfinite().all()
    short = {**inputs, "image_grid_thw": inputs["image_grid_thw"][:3], "pixel_values": inputs["pixel_values"][:-24]}
    with pytest.raises(ValueError, match=r"prompt 0: found \d+ image tokens, expected \d+ by the grids and fusion mode"):
        logits(model, short)


@pytest.mark.parametrize("mode", MODES)
def test_3_permuting_frames_permutes_blocks(mode):
    """All but the first, which is VGGT's reference view."""
    model, processor, shown = ssr_model(mode), ssr_processor(mode), pictures(4)
    order = [0, 3, 1, 2]
    found = blocks(model, prompt(processor, [shown[i] for i in order]))
    straight = blocks(model, prompt(processor, shown))
    per_frame = len(straight) // 4
    at = lambda i, k: k * 4 + i if mode == "F" else i * per_frame + k  # noqa: E731
    for new, old in enumerate(order):
        for k in range(per_frame):
            assert torch.allclose(found[at(new, k)], straight[at(old, k)], atol=1e-5)
    assert not torch.allclose(found[at(1, per_frame - 1)], straight[at(1, per_frame - 1)], atol=1e-2)


def test_4_geometry_sees_the_other_frames_and_2d_tokens_do_not():
    model, processor, shown = ssr_model("A"), ssr_processor("A"), pictures()
    changed = [*shown[:2], frames(1, seed=9)[0]]
    before, after = blocks(model, prompt(processor, shown)), blocks(model, prompt(processor, changed))
    for frame in range(2):
        assert torch.equal(before[2 * frame], after[2 * frame])
        assert (before[2 * frame + 1] - after[2 * frame + 1]).abs().max() > 1e-3
    assert not torch.equal(before[4], after[4])


@pytest.mark.parametrize("mode", MODES)
def test_5_gradient_reaches_the_connector_and_not_the_frozen_encoders(mode):
    model, processor = ssr_model(mode, started=False), ssr_processor(mode)
    freeze_except(model, {"model.connector": 1e-3, "model.language_model": 1e-3})
    inputs = prompt(processor, pictures())
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert not any(name.startswith(("model.visual", "model.spatial_encoder")) for name in reached)
    assert "model.connector.mlp.2.weight" in reached and any("language_model" in name for name in reached)
    with torch.no_grad():  # behind a last layer of zeros nothing learns yet; after a step everything does
        for parameter in model.model.connector.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
        if model.model.connector.camera is not None:
            model.model.connector.camera[-1].weight.normal_()
    model.zero_grad()
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    unused = {"model.connector.offset"} if mode == "B" else set()
    connector = model.model.connector.named_parameters(prefix="model.connector")
    assert {name for name, p in connector if p.grad is None or not p.grad.any()} == unused


@pytest.mark.parametrize("mode", ["A", "C", "F"])
def test_6_both_position_modes_agree_when_geometry_is_masked(mode):
    """Geometry ablated and its blocks masked, delimiters included: what remains is the base model on its own prompt."""
    processor, plain = ssr_processor(mode), ssr_processor("B")
    shown, found = pictures(), []
    for positions in ("own", "shared"):
        model = ssr_model(mode, started=False, positions=positions)
        inputs = prompt(processor, shown)
        ids = inputs["input_ids"][0]
        start, end = (ids == processor.tokenizer.convert_tokens_to_ids(token) for token in DELIMITERS)
        inside = (start.cumsum(0) - end.cumsum(0) + end.long()).bool()
        assert int(inside.sum()) == 3 * (6 + 2)
        inputs["attention_mask"] = (~inside).long()[None]
        found.append(logits(model, inputs)[0, ~inside])
    assert torch.equal(found[0], found[1])
    base = ssr_model("B", started=False)
    assert torch.allclose(found[0], logits(base, prompt(plain, shown))[0], atol=1e-5)
    full = [logits(ssr_model(mode, started=False, positions=p), prompt(processor, shown)) for p in ("own", "shared")]
    assert not torch.allclose(*full, atol=1e-3)  # the modes do differ


# ---- positions and prompts ----


def positions(model, inputs, **more) -> torch.Tensor:
    found, delta = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"], **more)
    assert int(found[:, 0, -1].max()) + 1 == inputs["input_ids"].shape[1] + int(delta[0])
    return found[:, 0]


@pytest.mark.parametrize("camera", [False, True])
def test_positions_by_hand(camera):
    processor = ssr_processor("A", camera)
    inputs = processor(text=["a" + processor.prefix(images=1)[-47:] + "b"], images=pictures(1))
    ids = inputs["input_ids"][0]
    first = int((ids == processor.tokenizer.convert_tokens_to_ids("<|vision_start|>")).nonzero()[0])
    rows, columns = [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]  # 2 x 3 tokens
    p = first + 1
    visual = [[p] * 6, [p + r for r in rows], [p + c for c in columns]]
    for mode in ("own", "shared"):
        found = positions(ssr_model("A", camera_token=camera, positions=mode), inputs)
        assert found[:, p : p + 6].tolist() == visual
        after = p + 3  # the largest position of the image is that of its last column
        assert found[0, p + 6].item() == after and found[0, p + 7].item() == after + 1  # vision end, geometry start
        at = slice(p + 8, p + 8 + 6 + camera)
        if mode == "shared":
            expected = [[axis[0]] * camera + axis for axis in visual]
            end = after + 2
        else:
            q = after + 2 + camera
            expected = [[q - 1] * camera + axis for axis in ([q] * 6, [q + r for r in rows], [q + c for c in columns])]
            end = q + 3
        assert found[:, at].tolist() == expected
        assert found[:, p + 8 + 6 + camera].tolist() == [end] * 3  # geometry end


def test_padding_on_the_left_shifts_nothing():
    model, processor = ssr_model("A"), ssr_processor("A")
    shown = pictures()
    inputs = prompt(processor, shown)
    both = processor(
        text=[processor.prompt(QUESTION, images=3), processor.prompt(QUESTION * 4, images=1)], images=[*shown, *pictures(1, 5)]
    )
    found, _ = model.model.get_rope_index(
        both["input_ids"], both["mm_token_type_ids"], both["image_grid_thw"], attention_mask=both["attention_mask"]
    )
    kept = both["attention_mask"][0].bool()
    assert torch.equal(found[:, 0, kept], positions(model, inputs))


def test_a_video_is_its_frames():
    processor, shown = ssr_processor("A"), frames(3)
    video = processor(text=[processor.prompt(QUESTION, videos=1)], videos=[shown])
    images = prompt(processor, list(shown))
    assert video.keys() == images.keys()
    assert all(torch.equal(torch.as_tensor(video[name]), torch.as_tensor(images[name])) for name in video)
    text = processor.tokenizer.decode(images["input_ids"][0]).replace("<|image_pad|>", "I")
    one = "<|vision_start|>IIIIII<|vision_end|><|geometry_start|>IIIIII<|geometry_end|>"
    assert one * 3 + QUESTION in text
    for count, given in ((1, list(shown)), (4, list(shown)), (1, None)):
        with pytest.raises(ValueError, match=rf"found {count} tags <\|image_pad\|>, expected {len(given or [])}, one per image"):
            processor(text=[processor.prompt(QUESTION, images=count)], images=given)


def test_unknown_switches_are_refused():
    for changes, complaint in (
        ({"fusion_mode": "Z"}, "fusion_mode: found 'Z'"),
        ({"positions": "none"}, "positions: found 'none'"),
        ({"fusion_mode": "B", "camera_token": True}, "camera_token: found it with mode 'B'"),
    ):
        with pytest.raises(ValueError, match=complaint):
            SSRConfig.tiny(**changes)


def test_delimiters_start_as_what_the_model_knows():
    model = ssr_model("A")
    model.config.vision_start_token_id, model.config.vision_end_token_id = 259, 260
    model.start_delimiters()
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[model.config.geometry_start_token_id], weight[259])
    assert torch.equal(weight[model.config.geometry_end_token_id], weight[260])


# ---- a transformers model like any other ----


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_its_samples(mode):
    model, processor = ssr_model(mode), ssr_processor(mode)
    samples = [(pictures(3), QUESTION), (pictures(1, 5), "left or right?"), (pictures(2, 8), "why")]
    together = processor(
        text=[processor.prompt(question, images=len(shown)) for shown, question in samples],
        images=[picture for shown, _ in samples for picture in shown],
    )
    found = logits(model, together)[:, -1]
    written = model.generate(**together, max_new_tokens=5, do_sample=False)[:, together["input_ids"].shape[1] :]
    for i, (shown, question) in enumerate(samples):
        inputs = prompt(processor, shown, question)
        assert (logits(model, inputs)[0, -1] - found[i]).abs().max() < 1e-4 * found[i].abs().max()
        alone = model.generate(**inputs, max_new_tokens=5, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert alone.tolist() == written[i][: len(alone)].tolist()


def test_generation_goes_on_as_a_whole_forward_pass_would():
    model, processor = ssr_model("A", camera_token=True), ssr_processor("A", camera=True)
    inputs = prompt(processor, pictures())
    out = model.generate(**inputs, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True)
    whole = {**inputs, "input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
    whole["mm_token_type_ids"] = model.model.token_types(out.sequences)
    expected = logits(model, whole)[0, inputs["input_ids"].shape[1] - 1 : -1]
    assert torch.allclose(torch.cat(out.logits), expected, atol=1e-4)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, processor = ssr_model("A", camera_token=True, positions="shared"), ssr_processor("A", camera=True)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = SSRForConditionalGeneration.from_pretrained(tmp_path).eval()
    reader = SSRProcessor.from_pretrained(tmp_path)
    assert (again.config.positions, again.config.camera_token, reader.camera_token) == ("shared", True, True)
    inputs = prompt(processor, pictures())
    assert torch.equal(logits(again, prompt(reader, pictures())), logits(model, inputs))


def test_weights_that_are_missing_start_at_zero(tmp_path):
    """As when SSR is built on a Qwen: the connector is new."""
    model = ssr_model("A")
    state = {name: value for name, value in model.state_dict().items() if "connector" not in name and name != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    again = SSRForConditionalGeneration.from_pretrained(tmp_path)
    connector = again.model.connector
    assert not connector.mlp[-1].weight.any() and not connector.offset.any() and (connector.gate == 1).all()
    assert connector.mlp[0].weight.any()


def test_it_can_be_trained_by_reward():
    """Scoring gives the log-probabilities of sampling, geometry tokens and all."""
    model, processor = ssr_model("A"), ssr_processor("A")
    inputs = processor(text=[processor.prefix(videos=1)], videos=[frames(3)])
    seen = {"input_ids": inputs["input_ids"][0], "pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["image_grid_thw"]}
    prompts = ["left?", QUESTION]
    noise = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)).double().numpy()
    written = complete(model, processor, Asked(seen, prompts, {}), GRPOSettings(group=3, max_new_tokens=4), noise)
    pairs = [prompt for prompt in prompts for _ in range(3)]
    batch = collate([pack_completions(processor, seen, pairs, [c.ids for c in written])], 0)
    with torch.no_grad():
        found = score(model, model.model, batch, 1.0, placeholders(model))
    assert (found - torch.tensor([p for c in written for p in c.log_probs])).abs().max() < 1e-4


def test_it_is_built_from_a_qwen_and_a_vggt(tmp_path):
    """Two new tokens, a connector that adds nothing, and the answers of the Qwen it was built from in mode B."""
    start, _ = tiny_start(tmp_path, Annotations((), "", frames=4))
    model, processor = ssr_from_parts(start.qwen, start.vggt, fusion_mode="B", connector_config={"hidden_size": 32})
    qwen = Qwen2_5_VLForConditionalGeneration.from_pretrained(start.qwen).eval()
    inputs = prompt(processor, pictures())
    positions = model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"])[0]
    known = qwen.config.text_config.vocab_size
    assert torch.equal(logits(model, inputs, position_ids=positions)[..., :known], logits(qwen, inputs, position_ids=positions))
    model, processor = ssr_from_parts(start.qwen, start.vggt, camera_token=True, connector_config={"hidden_size": 32})
    ids = prompt(processor, pictures())["input_ids"][0].tolist()
    assert ids.count(model.config.geometry_start_token_id) == ids.count(model.config.geometry_end_token_id) == 3
    assert model.config.geometry_start_token_id >= known
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[model.config.geometry_end_token_id], weight[model.config.vision_end_token_id])
    assert model.generate(**prompt(processor, pictures()), max_new_tokens=2, do_sample=False).shape[1] == len(ids) + 2
