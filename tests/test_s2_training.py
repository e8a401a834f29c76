"""Guidance, batches of descriptions, and a few steps of training: what is saved has no teacher in it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.models.grounding import grounding_prompt
from allocentric.models.s2_mllm import load_s2
from allocentric.tasks.base import Question
from allocentric.tasks.grounding import ReferringExpression
from allocentric.train.grounding import (
    NANO,
    BenchmarkScenes,
    GroundingDataset,
    GroundingTrainer,
    Guided,
    Rooms,
    answer,
    collate_groundings,
    jittered,
    load_start,
    positives,
    room_views,
    smoke,
    train_grounding,
)
from allocentric.train.guidance import FrozenDecoder, PointMap, PointMaps, VGGTFeatures, load_decoder, point_map_loss, point_maps
from allocentric.train.recipe import Guide, LoRA, read_recipe
from allocentric.train.sft import IGNORE
from test_grounding import box, question


def world(b=2, v=3, h=28, w=42, seed=0):
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(b, v, h, w, 3, generator=g) + 3
    points[:, :, :4] = torch.nan
    poses = torch.eye(4).repeat(b, v, 1, 1)
    poses[:, 1, :3, :3] = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    poses[:, 1:, :3, 3] = torch.randn(b, v - 1, 3, generator=g)
    return points, poses


# ---- point maps ----


def test_point_maps_are_in_the_cameras_that_they_say():
    points, poses = world()
    maps = point_maps(points, poses)
    for name, reference in (("local", poses), ("first", poses[:, :1].expand_as(poses))):
        back = torch.einsum("bvij,bvhwj->bvhwi", reference[..., :3, :3], maps[name].points) + reference[..., None, None, :3, 3]
        assert torch.allclose(back[maps[name].valid], points[maps[name].valid], atol=1e-5)
    assert not maps["local"].valid[:, :, :4].any() and not maps["local"].points[:, :, :4].any()


def test_point_map_loss_is_scale_free_exact_and_masked():
    points, poses = world()
    target = point_maps(points, poses)["first"]
    guess = torch.randn_like(target.points).requires_grad_()
    confidence = 1 + torch.rand(target.valid.shape)
    loss = point_map_loss(guess, confidence, target)
    assert point_map_loss(3 * guess, confidence, target).item() == pytest.approx(loss.item(), rel=1e-5)
    assert point_map_loss(guess, confidence, PointMap(7 * target.points, target.valid)).item() == pytest.approx(
        loss.item(), rel=1e-5
    )
    perfect = point_map_loss(5 * target.points, confidence, target)
    assert perfect.item() == pytest.approx(-0.2 * confidence[target.valid].log().mean().item(), abs=1e-5)
    loss.backward()
    assert not guess.grad[~target.valid].any() and guess.grad[target.valid].abs().sum() > 0
    # by hand, one scale for all views of a sample
    b = 0
    z, zz = (m[b][target.valid[b]].norm(dim=-1).mean() for m in (guess.detach(), target.points))
    error = (guess.detach()[b] / z - target.points[b] / zz).norm(dim=-1)[target.valid[b]]
    one = PointMap(target.points[:1], target.valid[:1])
    c = confidence[0][target.valid[0]]
    by_hand = (c * error - 0.2 * c.log()).mean().item()
    assert point_map_loss(guess.detach()[:1], confidence[:1], one).item() == pytest.approx(by_hand, rel=1e-4)


class Decoder(nn.Module):
    """Stands in for a user's own: a point per pixel out of the token of its cell."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.decoder = nn.Linear(width, 4)

    def forward(self, tokens, grid):
        out = self.decoder(tokens).unflatten(2, grid).repeat_interleave(14, 2).repeat_interleave(14, 3)
        return out[..., :3], 1 + out[..., 3].exp()


def test_every_teacher_teaches_the_tokens_and_stays_as_it_is(tmp_path):
    points, poses = world()
    images = torch.rand(2, 3, 3, 28, 42)
    save_file(
        {f"net.{n}": t for n, t in Decoder().state_dict().items()} | {"net.encoder.x": torch.ones(1)}, tmp_path / "w.safetensors"
    )
    teachers = {
        "points": PointMaps(16, 24, 2, 4, 16, (16, 16, 16, 16)),
        "vggt": VGGTFeatures(16, VGGT(VGGTConfig.tiny(), heads=()).aggregator),
        "decoder": FrozenDecoder(16, load_decoder("test_s2_training:Decoder", tmp_path / "w.safetensors"), 8),
    }
    for name, teacher in teachers.items():
        teacher.train()
        features = torch.randn(2, 3, 6, 16, requires_grad=True)
        loss = teacher(features, points, poses, images)
        loss.backward()
        assert loss.ndim == 0 and loss.isfinite() and features.grad.abs().sum() > 0, name
        fixed = {"vggt": "teacher", "decoder": "decoder"}.get(name)
        if fixed:
            part = getattr(teacher, fixed)
            assert not part.training and all(p.grad is None and not p.requires_grad for p in part.parameters())
    with pytest.raises(ValueError, match="cannot be imported"):
        load_decoder("test_s2_training:Missing", tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="weights do not fit"):
        load_decoder("test_s2_training:Decoder", tmp_path / "w.safetensors", width=9)


def test_point_maps_decode_a_few_views_in_training_and_all_of_them_otherwise():
    points, poses = world()
    torch.manual_seed(0)
    teacher, features = PointMaps(16, 24, 0, 4, 16, (16, 16, 16, 16), views=1), torch.randn(2, 3, 6, 16)
    for mode, views in ((True, 1), (False, 3)):
        teacher.train(mode)
        seen = features.clone().requires_grad_()
        teacher(seen, points, poses).backward()
        assert (seen.grad.abs().sum((0, 2, 3)) > 0).sum() == views  # without blocks no view knows of another


# ---- data ----


@pytest.fixture(scope="module")
def recipe(request):
    return smoke(read_recipe(request.config.rootpath / "recipes" / "s2_nano.yaml"))


@pytest.fixture(scope="module")
def start(recipe):
    return load_start(recipe)


def test_batches_hold_answers_objects_and_which_is_meant(recipe, start, shards):
    data = replace(recipe.data, descriptions=3, questions=2, tasks={"object_counting": 1.0}, mirrored=True)
    model, processor = start
    torch.manual_seed(0)
    dataset = GroundingDataset(Rooms(shards, data), processor, data)
    assert len(dataset) == 6
    examples = [dataset[0], dataset[4]]
    batch = collate_groundings(examples, processor.tokenizer.pad_token_id)
    grounds = (batch["input_ids"] == model.config.ground_token_id).sum()
    assert grounds == len(batch["positive"]) == 6
    assert batch["positive"].sum(1).tolist() == [1] * 6 and not batch["positive"][:, -1].any()
    assert batch["segments"].max() == 5  # three descriptions and two questions
    said = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORE])
    assert said.count("is located at") == 3
    for example, row in zip(examples, (0, 4), strict=True):
        scene = shards[row % 3].scene
        assert len(example["boxes"]) == len(scene.objects)


def test_a_batch_loss_is_that_of_its_samples_and_guidance_is_weighed(recipe, start, shards, tmp_path):
    model, processor = start
    guided = Guided(model, PointMaps(256, 24, 1, 4, 16, (16, 16, 16, 16))).eval()
    trainer = GroundingTrainer(
        model=guided, args=recipe.optimisation.arguments(tmp_path), learning_rates={"structure": 1e-3}, guidance_weight=0.3
    )
    data = replace(recipe.data, descriptions=2)
    torch.manual_seed(0)
    dataset = GroundingDataset(Rooms(shards, data), processor, data)
    examples = [dataset[0], dataset[1]]
    pad = processor.tokenizer.pad_token_id

    def parts(chosen):
        trainer.parts = {}
        with torch.no_grad():
            total = trainer.compute_loss(guided, collate_groundings(chosen, pad))
        return total.item(), {name: values[0] for name, values in trainer.parts.items()}

    total, together = parts(examples)
    singles = [parts([example])[1] for example in examples]
    assert together["ground"] == pytest.approx(np.mean([one["ground"] for one in singles]), rel=1e-4)
    assert total == pytest.approx(together["ground"] + together["language"] + 0.3 * together["guidance"], rel=1e-5)
    model.set_attn_implementation("eager")  # as on a CPU: it must leave out what the fused kernel leaves out
    written_out, _ = parts(examples)
    model.set_attn_implementation("sdpa")
    assert written_out == pytest.approx(total, rel=1e-4)


def test_answers_positives_and_jitter():
    asked = replace(question(), answer="17", objects=("office_chair", "desk"))  # benchmarks keep an object's number as the answer
    assert answer(asked) == "The office chair is located at <ground> in global coordinates." and answer(asked, False) == "<ground>"
    assert answer(replace(asked, objects=("",))).startswith("The object is located")
    assert positives(question(), [box(5.0), box(0.1), box(0.2)]).tolist() == [False, True, False]
    assert not positives(question(), [box(5.0)]).any()
    two = replace(question(), boxes=(box(0.0), box(5.0)))
    assert positives(two, [box(5.0), box(0.1), box(0.2)]).tolist() == [True, True, False]
    rng = np.random.default_rng(0)
    moved = jittered([box(1.0)] * 50, 0.1, rng)
    assert all(abs(b.center[0] - 1) <= 0.1 and 0.9 <= b.size[0] <= 1.1 for b in moved) and len({b.center for b in moved}) == 50


def test_descriptions_of_a_benchmark_are_grouped_by_scene(shards):
    scene = shards[0].scene
    made = ReferringExpression().make(scene, np.random.default_rng(0), 5)
    scenes = BenchmarkScenes(made, {scene.name: scene}, lambda name: room_views(shards[0]), 2)
    assert [len(scenes[i].descriptions) for i in range(len(scenes))] == [2, 2, 1]
    assert scenes[0].boxes == [o.box for o in scene.objects]
    with pytest.raises(ValueError, match="expected annotations of them"):
        BenchmarkScenes(made, {}, room_views, 2)


def test_a_description_of_nothing_is_answered_by_none_of_them(recipe, start, shards):
    """As Multi3DRefer has them: no object, one, and several."""
    _, processor = start
    scene = shards[0].scene
    boxes = [o.box for o in scene.objects]
    made = [
        Question("zt_w_d", scene.name, "the violin", (), "", ("violin",), "a"),
        Question("st_w_d", scene.name, "the bed", (), "4", ("bed",), "b", boxes=(boxes[2],)),
        Question("mt", scene.name, "the chairs", (), "1, 7", ("chair",), "c", boxes=(boxes[0], boxes[1])),
    ]
    scenes = BenchmarkScenes(made, {scene.name: scene}, lambda name: room_views(shards[0]), 3)
    torch.manual_seed(0)
    batch = collate_groundings([GroundingDataset(scenes, processor, recipe.data)[0]], processor.tokenizer.pad_token_id)
    expected = torch.zeros(3, len(boxes) + 1, dtype=torch.bool)
    expected[0, -1] = expected[1, 2] = expected[2, 0] = expected[2, 1] = True
    assert torch.equal(batch["positive"], expected)
    said = processor.tokenizer.decode(batch["labels"][0][batch["labels"][0] != IGNORE])
    assert [word in said for word in ("The violin", "The bed", "The chair", "7")] == [True, True, True, False]
    assert batch["boxes"].dtype == torch.float32


def test_words_of_rooms_become_tokens_that_start_where_their_pieces_were(start, recipe):
    model, processor = start
    plain = AutoTokenizer.from_pretrained(NANO)
    asked = replace(question(), text="the trash bin closest to the refrigerator", objects=("trash bin",))
    sentence = grounding_prompt(asked.text) + answer(asked).replace("<ground>", "")
    ids, pieces = processor.encode(sentence), plain(sentence)["input_ids"]
    assert processor.tokenizer.decode(ids) == sentence and len(ids) < len(pieces) / 3
    base = load_s2(NANO, structure=recipe.structure).get_input_embeddings().weight.float()
    token = processor.tokenizer.convert_tokens_to_ids(" trash bin")
    expected = base[plain(" trash bin")["input_ids"]].mean(0)
    assert torch.allclose(model.get_input_embeddings().weight[token], expected, atol=1e-6)
    assert model.lm_head.weight is model.get_input_embeddings().weight


# ---- training ----


def test_training_saves_the_model_alone_and_it_points_the_same(recipe, shards, tmp_path):
    data = replace(recipe.data, descriptions=2)
    lora = LoRA(rank=2, alpha=4.0, targets=r".*language_model.*q_proj")
    plan = replace(recipe, data=data, lora=lora, learning_rates={**recipe.learning_rates, "lora_": 1e-3})
    assert plan.guidance.kind == "points"
    plan = replace(plan, optimisation=replace(plan.optimisation, batch_size=1))
    train_grounding(plan, tmp_path, Rooms(shards, data))
    saved = load_s2(tmp_path / "model")  # exactly the model's names: a teacher or an adapter in the file would be an error
    assert not any("guidance" in name or "lora" in name for name in saved.state_dict())
    base = load_start(plan)[0].state_dict()
    now = saved.state_dict()
    assert not torch.equal(now["model.structure.attention.inter_out.weight"], base["model.structure.attention.inter_out.weight"])
    q = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(now[q], base[q]), "adapters are merged"
    assert torch.equal(now["model.visual.blocks.0.attn.qkv.weight"], base["model.visual.blocks.0.attn.qkv.weight"]), "frozen"
    log = (tmp_path / "log.json").read_text()
    assert all(f'"{name}"' in log for name in ("ground", "language", "guidance", "accuracy"))


def test_a_stopped_training_goes_on_from_its_checkpoint(recipe, shards, tmp_path, monkeypatch):
    data = replace(recipe.data, descriptions=2)
    plan = replace(recipe, data=data, optimisation=replace(recipe.optimisation, steps=1, warmup=0.0, batch_size=1, save_every=1))
    begun, step = [], GroundingTrainer.training_step

    def looked_at(trainer, model, *rest):
        begun.append({name: value.clone() for name, value in model.model.state_dict().items()})
        return step(trainer, model, *rest)

    monkeypatch.setattr(GroundingTrainer, "training_step", looked_at)
    train_grounding(plan, tmp_path, Rooms(shards, data))
    first = load_file(tmp_path / "model/model.safetensors")
    shutil.rmtree(tmp_path / "model")  # a run that has one is done
    longer = replace(plan, optimisation=replace(plan.optimisation, steps=2))
    with pytest.raises(ValueError, match=r"recipe\.json: found a run with optimisation.steps 1, expected 2"):
        train_grounding(longer, tmp_path, Rooms(shards, data))
    (tmp_path / "recipe.json").unlink()
    train_grounding(longer, tmp_path, Rooms(shards, data))
    assert len(begun) == 2 and any(not torch.equal(begun[0][name], value) for name, value in first.items())
    assert all(torch.equal(begun[1][name], value) for name, value in first.items())
    assert torch.equal(begun[1]["lm_head.weight"], first["model.language_model.embed_tokens.weight"]), "written once, tied again"


def test_recipes_are_checked():
    with pytest.raises(ValueError, match="found kind 'magic'"):
        Guide("magic")
