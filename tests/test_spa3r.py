"""Spa3R: the published numbers in both masking modes, what views may know of each other, geometry of the decoder, checkpoints."""


from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from allocentric.encoders.spa3r import (
    AxialRoPE,
    PRoPE,
    Spa3R,
    Spa3RConfig,
    Spa3REncoder,
    aggregate_views,
    context_count,
    load_spa3r,
    our_name,
    projections,
    rays,
    relative_to_first,
    resize,
    save_spa3r,
)
from allocentric.encoders.vggt import VGGT, VGGTAggregator, VGGTConfig
from allocentric.geometry.cameras import decode_pose, invert_rigid
from allocentric.train.pretrain import FieldLoss, SemanticTeacher
from allocentric.train.recipe import Objective
from parity import weights as parity
from parity.spa3r_case import spa3r_config, vggt_config

TOLERANCE = 1e-4
CASES = sorted(p.parent.name for p in Path(parity.HERE).glob("spa3r*/case.json"))


@pytest.fixture(scope="module", params=CASES)
def published(request, tmp_path_factory):
    """Case, expected numbers, all weights by their published names, and the case as a released Lightning checkpoint."""
    case, expected = parity.case(request.param)
    weights = parity.seeded_weights(case)
    path = tmp_path_factory.mktemp("released") / "spa3r.ckpt"
    stored = {f"model.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": stored, "epoch": 3, "optimizer_states": [{"state": {}, "param_groups": []}]}, path)
    return case, expected, weights, path


@pytest.fixture(scope="module")
def released(published):
    case, _, _, path = published
    return load_spa3r(path, spa3r_config(case["hyper"]))


@pytest.fixture(scope="module")
def images(published):
    spec = published[0]["hyper"]["input"]
    return parity.seeded_floats(spec["seed"], spec["shape"])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Spa3R(Spa3RConfig.tiny()).eval()


def clip(views: int = 4, batch: int = 1, height: int = 42, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(seed))


# ---- the published numbers ----


@torch.no_grad()
def test_latent(published, released, images):
    assert parity.relative_error(released(images), published[1]["latents"]) < TOLERANCE


@torch.no_grad()
def test_masked_tokens(published, released, images):
    expected = published[1]
    (found,) = aggregate_views(released.aggregator, images, expected["view_mask"])
    assert parity.relative_error(found, expected["masked_tokens_last"]) < TOLERANCE


class Toy(nn.Module):
    """The semantic teacher of the parity cases: one convolution and a tanh."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).tanh()


@pytest.mark.parametrize(("asymmetric", "name"), [(True, "asymmetric"), (False, "two_pass")])
def test_loss_terms(published, released, images, asymmetric, name):
    case, expected, weights, _ = published
    hyper, semantic = case["hyper"], case["hyper"]["semantic"]
    vggt = VGGT(vggt_config(hyper), heads=("depth",))
    vggt.depth_head.load_state_dict(
        {our_name_of_depth(n): t for n, t in weights.items() if n.startswith("depth_head.")}
    )
    toy = Toy(semantic["embed_dim"], semantic["patch_size"])
    toy.load_state_dict({n.removeprefix("dino."): t for n, t in weights.items() if n.startswith("dino.")})
    teacher = SemanticTeacher(toy, semantic["patch_size"], square=224)
    loss = FieldLoss(released, vggt.depth_head, teacher, Objective("all", "smooth_l1", asymmetric)).eval()
    with torch.no_grad():
        found = loss(images, expected["view_mask"])
    terms = {key.partition(".")[2]: float(value) for key, value in expected.items() if key.startswith(f"loss_{name}.")}
    assert set(terms) == set(found) - {"loss"}
    for term, value in terms.items():
        assert float(found[term]) == pytest.approx(value, rel=TOLERANCE), term
    assert float(found["loss"]) == pytest.approx(sum(terms.values()), rel=TOLERANCE)


def our_name_of_depth(published: str) -> str:
    from allocentric.encoders.vggt import our_name as vggt_name

    return vggt_name(published).removeprefix("depth_head.")


def test_default_has_the_published_sizes():
    with torch.device("meta"):
        spa3r = Spa3R(Spa3RConfig.compat())
    sizes = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in spa3r.named_children()}
    assert {name: round(size, 3) for name, size in sizes.items() if name != "aggregator"} == {
        "projection": 1.574,
        "query_embed": 0.197,
        "encoder": 42.533,
        "pose_tokenizer": 0.003,
        "decoder": 42.533,
        "camera_head": 216.175,
        "heads": 14.165,
        "depth_prob": 2.365,
    }
    norms = [name for name in spa3r.state_dict() if "global_blocks" in name and name.endswith("_norm.bias")]
    assert norms == []
    with torch.device("meta"):
        fixed = VGGTAggregator(VGGTConfig())
    lost = fixed.state_dict().keys() - spa3r.aggregator.state_dict().keys()
    assert len(lost) == 48 and all(name.endswith(("q_norm.bias", "k_norm.bias")) for name in lost)


# ---- views ----


@torch.no_grad()
def test_context_views_never_see_targets(model):
    images, targets = clip(5, 2), torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 1, 1]]).bool()
    (found,) = aggregate_views(model.aggregator, images, targets)
    for row, mask in enumerate(targets):
        (alone,) = model.aggregator(images[row : row + 1, ~mask])
        assert torch.allclose(found[row, ~mask], alone[0], atol=1e-5)
    changed = images.clone()
    changed[targets] = 1 - changed[targets]
    (other,) = aggregate_views(model.aggregator, changed, targets)
    assert torch.equal(other[~targets], found[~targets]) and not torch.allclose(other[targets], found[targets], atol=1e-3)


@torch.no_grad()
def test_target_views_see_all(model):
    """Against the mask written out: M_ij = 0 where i is a target or j is context."""
    images, targets = clip(4, 1), torch.tensor([[False, True, False, True]])
    (found,) = aggregate_views(model.aggregator, images, targets)
    tokens = 5 + 12
    flags = targets[0].repeat_interleave(tokens)
    mask = flags[:, None] | ~flags[None, :]
    plain = F.scaled_dot_product_attention

    def masked(q, k, v):
        return plain(q, k, v, attn_mask=mask if q.shape[2] == len(mask) else None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", masked)
        (expected,) = model.aggregator(images)
    assert torch.allclose(found, expected, atol=1e-5)


def test_bad_splits_are_named(model):
    for targets in ([[True, False, False, False]], [[False, True, True, False], [False, True, False, False]]):
        targets = torch.tensor(targets)
        with pytest.raises(ValueError, match="expected a context view first, and equally many targets"):
            aggregate_views(model.aggregator, clip(4, len(targets)), targets)


def test_context_counts_are_the_published_ones():
    assert [context_count(v, 0.5) for v in (4, 5, 6, 7, 8, 9, 10, 11, 12)] == [2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert [context_count(v, 0.75) for v in (2, 4, 8)] == [1, 1, 2] and context_count(10, 0.7) == 3
    with pytest.raises(ValueError, match=r"mask_ratio: found 1\.0, expected at least 0 and less than 1"):
        context_count(4, 1.0)


# ---- encoder ----


@torch.no_grad()
def test_only_query_rows_are_computed_and_they_are_exact(model):
    """The same blocks run on every row give the same latent."""
    tokens = torch.randn(2, 3, 12, 64, generator=torch.Generator().manual_seed(0))
    found = model.encode(tokens, (3, 4))
    encoder, config = model.encoder, model.config
    x = torch.cat([model.query_embed.weight.expand(2, -1, -1), model.projection(tokens).flatten(1, 2)], dim=1)
    x = torch.cat([encoder.register_tokens.expand(2, -1, -1), x], dim=1)
    place = AxialRoPE((3, 4), 3, 4 + config.num_queries, 16, 100.0, x.device)
    for block in encoder.blocks:
        x = block(x, place)
    assert torch.allclose(found, encoder.norm(x)[:, 4 : 4 + config.num_queries], atol=1e-6)

    rows = []
    with pytest.MonkeyPatch.context() as patch:
        last = encoder.blocks[-1].mlp
        patch.setattr(last, "forward", lambda y: rows.append(y.shape[1]) or y)
        model.encode(tokens, (3, 4))
    assert rows == [config.num_queries]


@torch.no_grad()
def test_a_batch_equals_its_samples(model):
    images = clip(3, 2)
    together = model(images)
    for row in range(2):
        assert torch.allclose(together[row], model(images[row : row + 1])[0], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


# ---- decoder ----


def cameras(count: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pose = torch.randn(1, count, 9, generator=torch.Generator().manual_seed(seed))
    pose[..., 7:] = 1.0
    return decode_pose(pose, (42, 56))


def test_rays_pass_through_patch_centres():
    _, intrinsics = cameras()
    directions = rays(intrinsics[0], (3, 4), 14)[0].view(3, 4, 3)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(3, 4))
    pixel = intrinsics[0, 0] @ (directions[1, 3] / directions[1, 3, 2])
    assert torch.allclose(pixel, torch.tensor([3.5 * 14, 1.5 * 14, 1.0]), atol=1e-4)
    assert torch.allclose(directions[0, 0], directions[2, 3] * torch.tensor([-1.0, -1.0, 1.0]), atol=1e-6)


def test_projection_and_its_inverse():
    extrinsics, intrinsics = cameras(3)
    p, inverse = projections(extrinsics, intrinsics, (42, 56))
    assert torch.allclose(p @ inverse, torch.eye(4).expand(1, 3, 4, 4), atol=1e-5)
    point = torch.tensor([0.3, -0.2, 1.5, 1.0])
    camera = extrinsics[0, 1] @ point
    plane = intrinsics[0, 1] @ camera / camera[2]
    found = p[0, 1] @ point
    assert torch.allclose(found[:2] / found[2], plane[:2] / torch.tensor([56.0, 42.0]) - 0.5, atol=1e-5)


def test_prope_leaves_the_latent_alone_and_undoes_itself():
    extrinsics, intrinsics = cameras()
    place = PRoPE((3, 4), extrinsics[0], intrinsics[0], (42, 56), 16, 100.0)
    x = torch.randn(1, 7 + 12, 2, 16, generator=torch.Generator().manual_seed(0))
    for move in (place.value, place.key, lambda y: place.query(y, slice(None)), place.output):
        assert torch.equal(move(x)[:, :7], x[:, :7]) and not torch.allclose(move(x)[:, 7:], x[:, 7:], atol=1e-2)
    assert torch.allclose(place.output(place.value(x)), x, atol=1e-4)
    # two patches of one camera: the camera cancels in their scores, their distance in the image does not
    scores = torch.einsum("bqhd,bkhd->bhqk", place.query(x, slice(None)), place.key(x))[..., 7:, 7:]
    still = PRoPE((3, 4), torch.eye(4)[None, :3], torch.eye(3)[None] * 50 + 0, (42, 56), 16, 100.0)
    other = torch.einsum("bqhd,bkhd->bhqk", still.query(x, slice(None)), still.key(x))[..., 7:, 7:]
    assert torch.allclose(scores, other, atol=1e-3)


@torch.no_grad()
def test_each_view_is_decoded_alone_and_depends_on_its_camera(model):
    latent = model(clip(3))
    extrinsics, intrinsics = cameras(3)
    field = model.decode(latent, extrinsics, intrinsics, (42, 56))
    assert field.geometry.shape == (1, 3, 12, 64) and field.semantic.shape == (1, 3, 12, 12) and field.depth.shape == (1, 3, 12)
    alone = model.decode(latent, extrinsics[:, 1:2], intrinsics[:, 1:2], (42, 56))
    for name in ("geometry", "semantic", "depth"):
        assert torch.allclose(getattr(alone, name)[:, 0], getattr(field, name)[:, 1], atol=1e-5)
    assert not torch.allclose(field.geometry[:, 0], field.geometry[:, 1], atol=1e-3)
    other = model.decode(torch.randn_like(latent), extrinsics, intrinsics, (42, 56))
    assert not torch.allclose(field.geometry, other.geometry, atol=1e-4)


def test_cameras_are_those_of_the_first_view(model):
    (tokens,) = model.aggregator(clip(4, 2))
    extrinsics, _ = model.cameras(tokens, (42, 56))
    assert torch.allclose(extrinsics[:, 0], torch.eye(4)[:3].expand(2, 3, 4), atol=1e-5)
    raw, _ = decode_pose(model.camera_head(tokens)[-1], (42, 56))
    motion = invert_rigid(raw[:, 1]) @ torch.tensor([0.1, 0.2, 0.3, 1.0])
    assert torch.allclose(
        invert_rigid(raw[:, 0])[:, :3, :3] @ (invert_rigid(extrinsics[:, 1]) @ torch.tensor([0.1, 0.2, 0.3, 1.0]))[:, :3, None]
        + invert_rigid(raw[:, 0])[:, :3, 3:],
        motion[:, :3, None],
        atol=1e-5,
    )
    assert torch.allclose(relative_to_first(raw), extrinsics, atol=1e-6)


def test_resize_keeps_shape_in_whole_patches():
    frames = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    assert resize(frames, 518, 14).shape == (2, 3, 392, 518)  # 388.5 rounds to 392; the published first stage cut to 378
    same = torch.randint(0, 256, (1, 3, 28, 42), dtype=torch.uint8)
    assert torch.equal(resize(same, 42, 14), same / 255)


# ---- checkpoints ----


@torch.no_grad()
def test_encoder_alone_reads_the_same_file(published, released, images):
    case, _, _, path = published
    encoder = load_spa3r(path, spa3r_config(case["hyper"]), decoder=False)
    assert type(encoder) is Spa3REncoder
    assert torch.equal(encoder(images), released(images))


@pytest.mark.parametrize("wrapped", [lambda t: {"model_state_dict": t}, lambda t: t], ids=["model_state_dict", "flat"])
def test_other_wrappings(published, tmp_path, wrapped):
    case, _, weights, path = published
    torch.save(wrapped({f"model.{name}": value for name, value in weights.items()}), tmp_path / "x.ckpt")
    config = spa3r_config(case["hyper"])
    ours, expected = load_spa3r(tmp_path / "x.ckpt", config).state_dict(), load_spa3r(path, config).state_dict()
    assert ours.keys() == expected.keys() and all(torch.equal(ours[n], expected[n]) for n in ours)


def test_released_weights_do_not_fit_layer_norms(published):
    case, _, _, path = published
    config = spa3r_config(case["hyper"])
    config.vggt_config.global_qk_norm = "layernorm"
    with pytest.raises(ValueError, match="weights do not fit the model; missing: ") as error:
        load_spa3r(path, config)
    named = str(error.value).partition("missing: ")[2].split(" and ")[0].split(", ")
    assert named and all(name.startswith("aggregator.global_blocks.") and name.endswith("_norm.bias") for name in named)
    assert "unexpected" not in str(error.value)


def test_wrong_files_are_named(published, tmp_path):
    case, _, weights, _ = published
    with pytest.raises(ValueError, match=r"found no Spa3R, expected spa3r.ckpt or a folder with config.json"):
        load_spa3r(tmp_path)
    torch.save({"state_dict": {"model.query_embed.weight": weights["query_embed.weight"]}}, tmp_path / "part.ckpt")
    with pytest.raises(ValueError, match="weights do not fit the model; missing: aggregator"):
        load_spa3r(tmp_path / "part.ckpt", spa3r_config(case["hyper"]))
    (tmp_path / "config.json").write_text('{"model_type": "vggt"}')
    with pytest.raises(ValueError, match="found model_type 'vggt', expected 'spa3r'"):
        load_spa3r(tmp_path)


class Unknown:
    """Something a checkpoint may hold that is not a tensor."""


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ([torch.zeros(1)], "found list, expected tensors by name"),
        (torch.zeros(1), "found Tensor, expected tensors by name"),
        ({"state_dict": None}, "found NoneType, expected tensors by name"),
        ({"state_dict": {1: torch.zeros(1)}}, "found dict, expected tensors by name"),
        ({"a": 1.0}, "found dict, expected tensors by name"),
        (b"", "found no checkpoint, expected one that torch.save wrote"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found no checkpoint, expected one that torch.save wrote"),
        (b"PK\x03\x04 and no more", "expected a checkpoint of tensors alone"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, stored, said):
    file = tmp_path / "spa3r.ckpt"
    if isinstance(stored, bytes):
        file.write_bytes(stored)
    else:
        torch.save(stored, file)
    with pytest.raises(ValueError, match=f"spa3r.ckpt: {said}"):
        load_spa3r(file)


def test_pickled_code_is_not_run(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Unknown()}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="expected a checkpoint of tensors alone"):
        load_spa3r(tmp_path / "code.ckpt")


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    save_spa3r(model, tmp_path)
    again = load_spa3r(tmp_path)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    encoder = load_spa3r(tmp_path, decoder=False)
    assert torch.equal(encoder(clip()), model(clip()))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unexpected: x"):
        load_spa3r(tmp_path)


def test_names_that_are_not_read():
    assert our_name("dino.blocks.0.norm1.weight") is None and our_name("point_head.norm.weight") is None
    assert our_name("aggregator.patch_embed.mask_token") is None
    assert our_name("decoder.norm.weight") == "decoder.norm.weight" and our_name("decoder.norm.weight", decoder=False) is None
    assert our_name("camera_head.empty_pose_tokens") == "camera_head.empty_pose"


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="num_heads: found 3 on embed_dim 32, expected heads whose width is a multiple of 8"):
        Spa3RConfig.tiny(num_heads=3)


def test_a_released_file_of_the_hub(tmp_path, monkeypatch):
    spa3r = Spa3R(Spa3RConfig.tiny())
    torch.save({"state_dict": {f"model.{name}": tensor for name, tensor in spa3r.state_dict().items()}}, tmp_path / "spa3r.ckpt")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file: str(tmp_path / file))
    monkeypatch.chdir(tmp_path)
    found = load_spa3r("owner/name/spa3r.ckpt", spa3r.config).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in spa3r.state_dict().items())
    with pytest.raises(ValueError, match="nowhere: found no such file or folder, expected one with weights"):
        load_spa3r(tmp_path / "nowhere")
