"""VGGT: agreement with the published numbers, what is kept and run, training, checkpoints, and bad input."""

import json
import subprocess
import sys
import weakref
from unittest.mock import patch

import pytest
import torch
from jaxtyping import config as jaxtyping_config
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allocentric.encoders.checkpoints import read_tensors
from allocentric.encoders.vggt import VGGT, VGGTAggregator, VGGTConfig, load_vggt, our_name
from parity.weights import case, relative_error, seeded_floats, seeded_weights

PARITY = VGGTConfig(
    img_size=70,
    embed_dim=48,
    depth=4,
    num_heads=4,
    patch_embed_depth=2,
    camera_depth=2,
    dpt_features=16,
    dpt_out_channels=[8, 16, 16, 16],
    dpt_layers=[0, 1, 2, 3],
)


@pytest.fixture(scope="module")
def published():
    """Case, expected outputs, and weights by their published names, the tracker's included."""
    description, expected = case("vggt")
    weights = seeded_weights(description)
    weights["track_head.tracker.query_ref_token"] = torch.zeros(1, 2, 4)
    return description, expected, weights


@pytest.fixture(scope="module")
def released(published, tmp_path_factory):
    """The same as one file on disk."""
    path = tmp_path_factory.mktemp("vggt") / "model.safetensors"
    save_file(published[2], path)
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VGGT(VGGTConfig.tiny()).eval()


def clip(frames: int = 3, batch: int = 1, height: int = 42, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ---- the published numbers ----


def test_parity_with_the_published_implementation(published, released):
    description, expected, _ = published
    vggt = load_vggt(released, config=PARITY)
    images = seeded_floats(description["hyper"]["input"]["seed"], description["hyper"]["input"]["shape"])
    with torch.no_grad():
        first, last = vggt.aggregator(images, layers=(0, -1))
        output = vggt(images, frame_chunk=3)
    found = {"tokens_first": first, "tokens_last": last} | {
        name: getattr(output, name) for name in expected if not name.startswith("tokens")
    }
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-5, errors
    # maps that barely vary: hold them to their spread, not to their size
    for name in ("depth", "depth_conf", "world_points_conf"):
        assert (found[name] - expected[name]).abs().max() < 1e-3 * expected[name].std(), name


def test_default_is_vggt_1b():
    with torch.device("meta"):
        vggt = VGGT(VGGTConfig())
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in vggt.named_children()}
    mask_token = 1024  # of DINOv2's masked pretraining: in the released file, of no use here
    assert sizes == {
        "aggregator": 909_112_320 - mask_token,
        "camera_head": 216_174_610,
        "depth_head": 32_654_562,
        "point_head": 32_654_628,
    }
    assert vggt.config.dpt_layers == [4, 11, 17, 23]


def test_config_survives_its_json(tmp_path):
    PARITY.save_pretrained(tmp_path)
    loaded = VGGTConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == PARITY.to_diff_dict() and loaded.patch_embed_depth == 2


# ---- what is kept and what is run ----


def test_asked_layers_equal_those_of_the_full_run():
    torch.manual_seed(0)
    aggregator = VGGTAggregator(VGGTConfig.tiny(depth=4)).eval()
    with torch.no_grad():
        full = aggregator(clip(), layers=range(4))
        for layers in ((-1,), (0,), (2, 0), (1, -3, -1)):
            for asked, layer in zip(aggregator(clip(), layers), layers, strict=True):
                assert torch.equal(asked, full[layer])


def test_nothing_deeper_than_asked_is_run():
    aggregator = VGGTAggregator(VGGTConfig.tiny(depth=3)).eval()
    del aggregator.frame_blocks[2], aggregator.global_blocks[1:]  # would fail if they were reached
    tokens, _ = aggregator(clip(), layers=(0, 0))
    assert tokens.shape == (1, 3, 5 + 12, 64)


class LiveBytes(TorchDispatchMode):
    """Counts bytes of tensors made while it is on, and their highest sum at one time."""

    def __init__(self, *known: torch.Tensor):
        super().__init__()
        self.now = self.peak = 0
        self.seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.seen:
                self.seen.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        return out

    def _freed(self, key: int, size: int):
        self.seen.discard(key)
        self.now -= size


def live_bytes(depth: int, layers: tuple[int, ...]) -> int:
    aggregator = VGGTAggregator(VGGTConfig.tiny(embed_dim=128, depth=depth)).eval()
    images = clip(8)
    with torch.no_grad(), LiveBytes(images, *aggregator.parameters()) as live:
        aggregator(images, layers)
    return live.peak


def test_memory_does_not_grow_with_depth():
    assert live_bytes(2, (-1,)) == live_bytes(12, (-1,))
    unit = 8 * (5 + 12) * 128 * 4  # one activation of width C
    assert live_bytes(12, (-1,)) < 12 * unit
    assert live_bytes(12, tuple(range(12))) > live_bytes(12, (-1,)) + 11 * 2 * unit


def test_heads_exist_only_when_asked_for():
    vggt = VGGT(VGGTConfig.tiny(), heads=("depth",))
    assert vggt.camera_head is None and vggt.point_head is None
    assert not any(name.startswith(("camera_head", "point_head")) for name, _ in vggt.named_parameters())
    output = vggt(clip())
    assert output.depth.shape == (1, 3, 42, 56, 1) and output.pose_enc is None and output.world_points is None
    assert (output.depth > 0).all() and (output.depth_conf > 1).all()
    only_tokens = VGGT(VGGTConfig.tiny(depth=4), heads=())
    assert len(only_tokens.aggregate(clip())) == 1
    with pytest.raises(ValueError, match=r"found \['normals'\], expected some of"):
        VGGT(VGGTConfig.tiny(), heads=("normals",))


def test_decoding_frames_in_chunks_changes_nothing(model):
    with torch.no_grad():
        whole, parts = model(clip(5, batch=2), frame_chunk=None), model(clip(5, batch=2), frame_chunk=2)
    assert torch.allclose(whole.depth, parts.depth, rtol=1e-5) and torch.allclose(whole.world_points, parts.world_points, atol=1e-6)


def test_forward_never_waits_for_the_device(model):
    def refuse(*_, **__):
        raise AssertionError("a tensor was read on the host")

    names = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
    with torch.no_grad():
        with patch.multiple(torch.Tensor, **dict.fromkeys(names, refuse)), patch.object(torch, "tensor", refuse):
            output = model(clip())
    assert output.world_points.isfinite().all()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_aggregator_compiles_as_one_graph(backend):
    aggregator = VGGTAggregator(VGGTConfig.tiny()).eval()
    checked = jaxtyping_config.jaxtyping_disable
    jaxtyping_config.update("jaxtyping_disable", True)  # the checks of the test hook cannot be traced
    try:
        with torch.no_grad():
            compiled = torch.compile(aggregator, fullgraph=True, backend=backend)(clip(), (0, -1))
            for found, expected in zip(compiled, aggregator(clip(), (0, -1)), strict=True):
                assert torch.allclose(found, expected, atol=1e-5)
    finally:
        jaxtyping_config.update("jaxtyping_disable", checked)


WHOLE = """
import torch
from allocentric.encoders.vggt import VGGT, VGGTConfig
model, images = VGGT(VGGTConfig.tiny()).eval(), torch.rand(1, 3, 3, 42, 56)
with torch.no_grad():
    found, expected = torch.compile(model, fullgraph=True, backend="eager")(images), model(images)
for name in ("pose_enc", "extrinsics", "intrinsics", "depth", "world_points"):
    torch.testing.assert_close(getattr(found, name), getattr(expected, name))
"""


def test_vggt_with_its_heads_compiles_as_one_graph():
    subprocess.run([sys.executable, "-c", WHOLE], check=True)  # where the test hook does not check types: that cannot be traced


def test_only_the_heads_that_are_asked_for_run(model):
    with torch.no_grad():
        every, dense, camera = model(clip()), model(clip(), heads=("point",)), model(clip(), heads=("camera",))
    assert torch.equal(dense.world_points, every.world_points) and dense.depth is None and dense.pose_enc is None
    assert torch.allclose(camera.pose_enc, every.pose_enc, atol=1e-6) and camera.world_points is None
    with pytest.raises(ValueError, match=r"heads: found \['point'\], expected some of \('camera',\)"):
        VGGT(VGGTConfig.tiny(), heads=("camera",))(clip(), heads=("point",))


# ---- what it means ----


def test_the_first_frame_is_the_reference(model):
    images = clip(4)
    with torch.no_grad():
        (tokens,) = model.aggregator(images)
        (swapped,) = model.aggregator(images[:, [0, 2, 1, 3]])
        (moved,) = model.aggregator(images[:, [1, 0, 2, 3]])
    # other frames are a set: exchanging two exchanges their tokens; the first is not one of them
    assert torch.allclose(swapped[:, [0, 2, 1, 3]], tokens, atol=1e-5)
    assert not torch.allclose(moved[:, [1, 0, 2, 3]], tokens, atol=1e-2)


def test_a_batch_equals_its_clips_and_frames_see_each_other(model):
    images = clip(3, batch=2)
    with torch.no_grad():
        (batch,) = model.aggregator(images)
        (single,) = model.aggregator(images[1:])
        changed = images.clone()
        changed[1, 2] = 0.5
        (other,) = model.aggregator(changed)
    assert torch.allclose(batch[1:], single, atol=1e-5)
    assert torch.equal(other[0], batch[0])
    assert not torch.allclose(other[1, 0], batch[1, 0], atol=1e-4)


def test_patches_know_where_they_are():
    """With the learned positions removed, moving the picture within a frame still matters: the rotation is there."""
    torch.manual_seed(0)
    aggregator = VGGTAggregator(VGGTConfig.tiny(patch_embed_depth=0)).eval()
    aggregator.patch_embed.pos_embed.data.zero_()
    images = clip(1)
    turned = images.flip(-1).unflatten(-1, (4, 14)).flip(-1).flatten(-2)  # patches in reverse column order, each as it was
    with torch.no_grad():
        tokens, mirrored = (aggregator(x)[0][0, 0, 5:].view(3, 4, -1) for x in (images, turned))
    assert not torch.allclose(mirrored.flip(1), tokens, atol=1e-3)


# ---- training ----


def test_backward_reaches_every_parameter():
    torch.manual_seed(0)
    vggt = VGGT(VGGTConfig.tiny(depth=4))
    output = vggt(clip(3, batch=2))
    loss = sum((pose - 1).square().sum() for pose in output.pose_rounds) + (output.depth - 2).square().sum()
    loss = loss + output.world_points.sub(1).square().sum() + output.depth_conf.sum() + output.world_points_conf.sum()
    loss.backward()
    silent = [name for name, p in vggt.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert silent == []


def test_a_fresh_camera_head_starts_at_the_identity_with_an_open_field_of_view():
    torch.manual_seed(0)
    pose = VGGT(VGGTConfig.tiny(), heads=("camera",))(clip()).pose_enc
    assert torch.allclose(pose, torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]).expand_as(pose), atol=0.5)


def test_rounds_of_the_camera_head_are_trained_apart():
    vggt = VGGT(VGGTConfig.tiny(camera_iterations=3), heads=("camera",))
    rounds = vggt(clip()).pose_rounds
    assert len(rounds) == 3
    (towards_pose,) = torch.autograd.grad(rounds[-1].sum(), vggt.camera_head.empty_pose, allow_unused=True)
    assert towards_pose is None  # later rounds take the earlier pose as given


def test_autocast_and_bfloat16_stay_close(model):
    with torch.no_grad():
        exact, output = model.aggregator(clip())[0], model(clip())
        with torch.autocast("cpu", torch.bfloat16):
            mixed, mixed_output = model.aggregator(clip())[0], model(clip())
        (half,) = VGGTAggregator(VGGTConfig.tiny()).bfloat16()(clip())
    assert relative_error(mixed.float(), exact) < 0.03
    assert half.dtype == torch.bfloat16
    assert mixed_output.depth.dtype == mixed_output.pose_enc.dtype == torch.float32
    assert relative_error(mixed_output.depth, output.depth) < 0.03


# ---- checkpoints ----


def test_one_file_and_shards_load_the_same(published, released, tmp_path):
    *_, weights = published
    names = sorted(weights)
    index = {}
    for i in range(3):
        file = f"model-{i + 1:05}-of-00003.safetensors"
        save_file({name: weights[name] for name in names[i::3]}, tmp_path / file)
        index |= dict.fromkeys(names[i::3], file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole = load_vggt(released.parent, config=PARITY).state_dict()
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        sharded = load_vggt(path, config=PARITY).state_dict()
        assert sharded.keys() == whole.keys() and all(torch.equal(sharded[name], whole[name]) for name in whole)


def test_only_needed_tensors_are_read(released):
    read = read_tensors(released, lambda name: our_name(name) if name.startswith("aggregator.") else None, torch.bfloat16)
    assert read.keys() == VGGTAggregator(PARITY).state_dict(prefix="aggregator.").keys()
    assert {t.dtype for t in read.values()} == {torch.bfloat16}
    vggt = load_vggt(released, heads=("camera",), config=PARITY)
    assert vggt.depth_head is None and vggt.camera_head is not None


def test_our_own_weights_and_config_load_back(model, tmp_path):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model.config.save_pretrained(tmp_path)
    loaded = load_vggt(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(clip()).world_points, model(clip()).world_points)
    assert all(p.requires_grad for p in loaded.parameters())


def test_names_that_do_not_fit_are_named(published, tmp_path):
    *_, weights = published
    path = tmp_path / "model.safetensors"
    changed = {name: value for name, value in weights.items() if name != "aggregator.frame_blocks.2.attn.qkv.bias"}
    changed["aggregator.frame_blocks.9.norm1.weight"] = torch.zeros(48)
    changed["point_head.norm.bias"] = torch.zeros(5)
    save_file(changed, path)
    with pytest.raises(ValueError) as error:
        load_vggt(path, config=PARITY)
    for part in (
        str(path),
        "missing: aggregator.frame_blocks.2.attn.qkv.bias",
        "unexpected: aggregator.frame_blocks.9.norm1.weight",
        "point_head.norm.bias (5,) instead of (96,)",
    ):
        assert part in str(error.value)


def test_files_that_are_not_there_or_not_readable(tmp_path):
    with pytest.raises(ValueError, match="found no such file or folder"):
        load_vggt(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"found neither model\.safetensors nor"):
        load_vggt(tmp_path, config=PARITY)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="expected a readable safetensors file"):
        load_vggt(tmp_path, config=PARITY)
    index = tmp_path / "model.safetensors.index.json"
    save_file({"a": torch.zeros(1)}, tmp_path / "shard.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}))
    with pytest.raises(ValueError, match=r"found no \['b'\], expected them by the index"):
        read_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(ValueError, match="expected a readable safetensors file"):
        read_tensors(tmp_path)
    index.write_text("{")
    with pytest.raises(ValueError, match="expected a JSON index"):
        read_tensors(tmp_path)


# ---- bad input ----


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 3, 42, 56), r"found torch.float32 of shape \(3, 3, 42, 56\), expected floats in \[0, 1\] of shape"),
        (torch.rand(1, 3, 42, 56, 3), r"found torch.float32 of shape \(1, 3, 42, 56, 3\)"),
        (torch.zeros(1, 1, 3, 42, 56, dtype=torch.uint8), "found torch.uint8 of shape"),
        (torch.rand(1, 2, 3, 40, 56), "found 40 x 56 pixels, expected multiples of the patch size 14"),
        (torch.rand(1, 0, 3, 42, 56), "expected at least one frame"),
    ],
)
def test_bad_images(model, images, message):
    with pytest.raises(ValueError, match=message):
        model(images)


@pytest.mark.parametrize("layers", [(2,), (-3,), ()])
def test_bad_layers(model, layers):
    with pytest.raises(ValueError, match="expected one or more of -2 to 1"):
        model.aggregator(clip(), layers)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_heads", 3), ("num_heads", 16), ("img_size", 71), ("dpt_layers", [0, 0, 1, 0]), ("dpt_layers", [0, 1])],
)
def test_bad_config(field, value):
    with pytest.raises(ValueError, match=f"{field}: found .*expected"):
        VGGTConfig.tiny(**{field: value})
