"""`load` a model, `watch` a place, ask: what `allocentric.load` returns and what it refuses."""

import gc
import importlib
import json
import sys

import av
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import allocentric
from allocentric.encoders.vggt import VGGT
from allocentric.model import HEADS_FILE, Model, load
from allocentric.models.scene import Scene
from allocentric.models.spatial_mllm import from_parts
from allocentric.views import Views
from test_spatial_mllm import frames, tiny_model, tiny_processor

QUESTION = "how many chairs are in this room?"


def write_video(path, clip: torch.Tensor, fps: int = 5):
    """A losslessly compressed video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=fps, options={"crf": "0"})
        stream.height, stream.width, stream.pix_fmt = *clip.shape[2:], "rgb24"
        for frame in clip:
            picture = av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy().copy(), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def save_checkpoint(folder, dtype: torch.dtype = torch.float32, heads: bool = True):
    """A tiny model as this library saves one, with the heads of its VGGT beside it."""
    network = tiny_model().to(dtype)
    network.save_pretrained(folder)
    if heads:
        torch.manual_seed(1)
        tensors = VGGT(network.config.spatial_config).to(dtype).state_dict()
        save_file({k: v for k, v in tensors.items() if not k.startswith("aggregator.")}, folder / HEADS_FILE)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Weights and heads in one folder, tokenizer and image processor in another, as with the released weights."""
    folder = tmp_path_factory.mktemp("weights")
    tiny_processor().save_pretrained(folder / "processor")
    return save_checkpoint(folder / "model"), folder / "processor"


@pytest.fixture(scope="module")
def model(checkpoint) -> Model:
    return load(checkpoint[0], processor=checkpoint[1], device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "room.mp4", frames(12, seed=3))


def test_a_local_checkpoint_is_the_network_that_was_saved(checkpoint, model):
    assert model.name == str(checkpoint[0])
    saved = tiny_model().state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.network.state_dict().items())
    assert not model.network.training
    assert model.geometry_width == model.network.config.spatial_config.img_size == 70


def test_the_public_names_are_there():
    for name in allocentric.__all__:
        assert getattr(allocentric, name).__name__ == name
    assert set(allocentric.__all__) <= set(dir(allocentric))
    with pytest.raises(AttributeError, match="no attribute 'lood'"):
        allocentric.lood  # noqa: B018


@pytest.mark.parametrize("working", [True, False])
def test_imports_leave_the_garbage_collector_as_it_was(working, monkeypatch):
    seen = []
    monkeypatch.setattr(importlib, "import_module", lambda name: seen.append(gc.isenabled()) or sys.modules[name])
    before = gc.isenabled()
    (gc.enable if working else gc.disable)()
    try:
        assert allocentric.load is allocentric.model.load
        assert seen == [False] and gc.isenabled() == working
    finally:
        (gc.enable if before else gc.disable)()


def test_views_are_used_as_they_are(model):
    seen = Views(frames(5), indices=torch.tensor([0, 3, 4, 8, 9]))
    scene = model.watch(seen, frames=2)
    assert scene.frames == (0, 3, 4, 8, 9)
    plain = Scene.encode(model.network, model.processor, seen)
    assert torch.equal(scene.first_logits([QUESTION]), plain.first_logits([QUESTION]))


def test_a_video_is_seen_in_evenly_spread_frames(model, video):
    scene = model.watch(video, frames=4)
    assert scene.frames == (0, 3, 7, 11)
    chosen = Views(frames(12, seed=3)[[0, 3, 7, 11]], indices=torch.tensor([0, 3, 7, 11]))
    expected = Scene.encode(model.network, model.processor, chosen).first_logits([QUESTION])
    assert torch.allclose(scene.first_logits([QUESTION]), expected, atol=1e-5)
    answer = scene.ask(QUESTION, max_new_tokens=3)
    assert answer.question == QUESTION and answer.frames == (0, 3, 7, 11) and 0 <= answer.confidence <= 1


def test_a_folder_of_images_is_a_place_too(model, tmp_path):
    for i, frame in enumerate(frames(3)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    scene = model.watch(tmp_path, frames=8)
    expected = model.watch(Views(frames(3), indices=torch.arange(3)))
    assert scene.frames == (0, 1, 2)
    assert torch.equal(scene.first_logits([QUESTION]), expected.first_logits([QUESTION]))


def test_watching_the_same_again_encodes_nothing(checkpoint, video, monkeypatch):
    model = load(checkpoint[0], processor=checkpoint[1], device="cpu")
    encoded, encode = [], Scene.encode
    monkeypatch.setattr(Scene, "encode", lambda *args: encoded.append(1) or encode(*args))
    first = model.watch(video, frames=4)
    assert model.watch(video, frames=4) is first and len(encoded) == 1
    assert model.watch(video, frames=3) is not first and len(encoded) == 2
    forgetful = load(checkpoint[0], processor=checkpoint[1], device="cpu", scene_memory=0)
    forgetful.watch(video, frames=4)
    forgetful.watch(video, frames=4)
    assert len(encoded) == 4


def test_space_aware_sampling_with_the_models_own_vggt(model, video):
    scene = model.watch(video, frames=3, sampling="space_aware", candidates=6)
    assert len(scene.frames) == 3 and set(scene.frames) <= {0, 2, 4, 6, 8, 11} and list(scene.frames) == sorted(scene.frames)
    selection, views = allocentric.sample(video, 3, "space_aware", candidates=6, model=model.geometry, width=70)
    assert scene.frames == tuple(views.indices.tolist())
    assert len(selection.coverage) == 3


def test_the_heads_share_the_aggregator_and_leave_it_as_it_is(checkpoint, model):
    assert model.geometry.aggregator is model.network.model.spatial_encoder
    heads = load_file(checkpoint[0] / HEADS_FILE)
    found = {k: v for k, v in model.geometry.state_dict().items() if not k.startswith("aggregator.")}
    assert found.keys() == heads.keys() and all(torch.equal(found[name], heads[name]) for name in heads)


def test_a_model_in_bfloat16_stays_so(tmp_path, checkpoint):
    half = load(save_checkpoint(tmp_path / "half", torch.bfloat16), processor=checkpoint[1], device="cpu")
    assert {p.dtype for p in (*half.network.parameters(), *half.geometry.parameters())} == {torch.bfloat16}
    with torch.no_grad():
        output = half.geometry(torch.rand(1, 2, 3, 42, 70))
    assert output.depth.isfinite().all() and output.depth.dtype == torch.float32
    assert half.watch(Views(frames(4))).first_logits([QUESTION]).isfinite().all()


def test_geometry_weights_of_ones_own(checkpoint, tmp_path):
    from allocentric.encoders.vggt import VGGTConfig

    vggt = VGGT(VGGTConfig.tiny())
    vggt.config.save_pretrained(tmp_path)
    save_file(vggt.state_dict(), tmp_path / "model.safetensors")
    model = load(checkpoint[0], processor=checkpoint[1], geometry=tmp_path, device="cpu")
    assert model.geometry.aggregator is not model.network.model.spatial_encoder
    assert all(torch.equal(value, vggt.state_dict()[name]) for name, value in model.geometry.state_dict().items())


def test_without_heads_space_aware_sampling_of_a_video_is_refused(checkpoint, video, tmp_path):
    model = load(save_checkpoint(tmp_path / "bare", heads=False), processor=checkpoint[1], device="cpu")
    assert model.geometry is None
    with pytest.raises(ValueError, match="VGGT"):
        model.watch(video, frames=3, sampling="space_aware")


def test_what_is_not_a_model_is_refused(tmp_path, checkpoint):
    with pytest.raises(ValueError, match=r"nowhere: found no such file or folder, expected one with weights, or a hub id"):
        load("nowhere", device="cpu")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["Llama"]}')
    with pytest.raises(ValueError, match=r"found model_type 'llama'.* expected 'spatial-mllm'"):
        load(tmp_path, device="cpu")
    heads = save_checkpoint(tmp_path / "bad") / HEADS_FILE
    save_file({k: v for k, v in load_file(heads).items() if k != "camera_head.empty_pose"}, heads)
    with pytest.raises(ValueError, match=rf"{HEADS_FILE}: weights do not fit the model; missing: camera_head.empty_pose"):
        load(tmp_path / "bad", processor=checkpoint[1], device="cpu")


def test_a_new_model_from_its_parts(tmp_path):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    whole = tiny_model(tie_word_embeddings=False)
    config = {k: v for k, v in whole.config.to_dict().items() if k in Qwen2_5_VLConfig().to_dict() and k != "model_type"}
    qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
    qwen.save_pretrained(tmp_path / "qwen")
    vggt = VGGT(whole.config.spatial_config)
    vggt.config.save_pretrained(tmp_path / "vggt")
    save_file(vggt.state_dict(), tmp_path / "vggt" / "model.safetensors")

    built = from_parts(tmp_path / "qwen", tmp_path / "vggt", {"hidden_size": 48})
    theirs = qwen.state_dict() | {f"model.spatial_encoder.{k}": v for k, v in vggt.aggregator.state_dict().items()}
    ours = built.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    new = ours.keys() - theirs.keys()
    assert new and all(name.startswith("model.connector.") for name in new)
    weight = ours["model.connector.mlp.0.weight"]
    assert weight.shape == (48, 8 * 2 * 32) and weight.std().item() == pytest.approx(0.02, rel=0.05)
    with pytest.raises(ValueError, match="found model_type 'vggt', expected 'qwen2_5_vl'"):
        from_parts(tmp_path / "vggt", tmp_path / "vggt")


def said(*arguments, **keywords) -> str:
    """What `load` says of weights that it refuses: one line."""
    with pytest.raises(ValueError) as error:
        load(*arguments, device="cpu", **keywords)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, checkpoint, capsys):
    folder = save_checkpoint(tmp_path / "bad")
    weights, heads = folder / "model.safetensors", folder / HEADS_FILE
    whole, whole_heads = weights.read_bytes(), heads.read_bytes()
    heads.write_bytes(whole_heads[:5000])
    assert f"{heads}: expected a readable safetensors file" in said(folder, processor=checkpoint[1])
    weights.write_bytes(whole[:5000])  # as an interrupted download leaves it
    assert f"{folder}: expected readable safetensors files" in said(folder, processor=checkpoint[1])
    tensors = load_file(save_checkpoint(tmp_path / "again") / "model.safetensors")
    tensors["model.connector.mlp.0.bias"] = torch.zeros(3)
    save_file(tensors, weights, metadata={"format": "pt"})
    capsys.readouterr()
    assert "of another shape ['model.connector.mlp.0.bias (3,) instead of" in said(folder, processor=checkpoint[1])
    assert "MISMATCH" not in capsys.readouterr().err  # and no page of names
    (folder / "config.json").write_text("[1, 2]")
    assert "config.json: found [1, 2], expected a JSON object" in said(folder)
    (folder / "config.json").write_text('{"model_type": "spatial-mllm", "use_spatial": "often"}')
    assert "config.json: " in said(folder) and "use_spatial" in said(folder)


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    for path in ("out/nowhere", "./nowhere", "/no/where", "~/nowhere", "nowhere"):
        assert f"{path}: found no such file or folder, expected one with weights, or a hub id" in said(path)


def test_a_folder_inside_a_hub_repository(tmp_path, checkpoint, monkeypatch):
    asked = []

    def snapshot(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(checkpoint[0].parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    model = load("owner/name/model", processor=checkpoint[1], device="cpu")
    assert asked == [("owner/name", "model/*")] and model.name == "owner/name/model" and model.geometry is not None
    assert "found no folder elsewhere in owner/name" in said("owner/name/elsewhere")


def test_nano_takes_another_vggt_and_processor(tmp_path, checkpoint):
    torch.manual_seed(5)
    vggt = VGGT(tiny_model().config.spatial_config)
    vggt.config.save_pretrained(tmp_path)
    save_file(vggt.state_dict(), tmp_path / "model.safetensors")
    model = load(geometry=tmp_path, device="cpu")
    assert torch.equal(model.geometry.state_dict()["camera_head.empty_pose"], vggt.state_dict()["camera_head.empty_pose"])
    assert model.geometry_width == vggt.config.img_size == 70 != load(device="cpu").geometry_width
    assert "./where: found no such file or folder" in said(geometry="./where")
    assert "./where: found no such file or folder" in said(processor="./where")


def test_released_weights_are_shown_what_the_published_evaluation_showed(tmp_path, checkpoint):
    """Their folder holds Qwen's processor, with bounds that nothing was trained or evaluated with."""
    folder = save_checkpoint(tmp_path / "released", heads=False)
    tiny_processor().tokenizer.save_pretrained(folder)
    released = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    released |= {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(released))
    clip = torch.zeros(2, 3, 1080, 1920, dtype=torch.uint8)
    grid = lambda model: model.processor.look(clip)["video_grid_thw"].tolist()  # noqa: E731
    assert grid(load(folder, device="cpu")) == [[1, 40, 72]]
    assert grid(load(folder, device="cpu", pixel_clamp="training")) == [[1, 30, 54]]
    ours = load(checkpoint[0], processor=checkpoint[1], device="cpu")
    assert ours.processor.pixel_clamp is None  # as it was saved
    assert load(checkpoint[0], processor=checkpoint[1], device="cpu", newline_after_vision=True).processor.newline_after_vision
    assert "switches: found ['clamp'], expected pixel_clamp or newline_after_vision" in said(checkpoint[0], clamp="qwen")
