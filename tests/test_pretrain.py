"""Pretraining: batches under a budget, splits, teachers, cache, frozen parts, resume, two processes, and measuring."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, TrainerCallback, TrainingArguments

from allocentric.encoders.spa3r import Field, Spa3R, Spa3RConfig, load_spa3r
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.evaluate.spa3r import measure, nearest_views, write_report
from allocentric.models.patches import patchify
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMModel
from allocentric.train.pretrain import (
    DinoBackbone,
    Draw,
    FieldLoss,
    FolderScenes,
    PretrainTrainer,
    QwenTeacher,
    RoomScenes,
    SceneClips,
    SemanticTeacher,
    TargetCache,
    Targets,
    ViewBatches,
    build,
    collate_clips,
    draw_frames,
    look,
    smoke,
    split,
)
from allocentric.train.recipe import Objective, SceneFolder, keep_recipe, read_recipe

RECIPES = Path(__file__).parent.parent / "recipes"


def tiny_loss(objective: Objective = Objective(), cache: TargetCache | None = None) -> FieldLoss:  # noqa: B008  (frozen)
    torch.manual_seed(0)
    vggt = VGGT(VGGTConfig.tiny(), heads=("camera", "depth"))
    model = Spa3R(Spa3RConfig.tiny(vggt_config=vggt.config))
    toy = nn.Conv2d(3, 12, 16, 16)
    return FieldLoss(model, vggt.depth_head, SemanticTeacher(toy, 16), objective, cache)


@pytest.fixture(scope="module")
def clips(shards):
    return SceneClips(RoomScenes(shards), 84, 14, mask_ratio=0.5)


def batch(clips: SceneClips, draws: list[Draw]) -> dict:
    return collate_clips([clips[draw] for draw in draws], 14)


# ---- scenes and batches ----


def test_batches_fill_the_budget_and_share_views_between_processes():
    one, two = (list(ViewBatches(10, (4, 12), 24, 40, 3, rank, 2)) for rank in (0, 1))
    sizes = {len({d.views for d in rows}) == 1 and (rows[0].views, len(rows)) for rows in one}
    assert sizes <= {(v, 24 // v) for v in range(4, 13)} and len(sizes) > 5
    for a, b in zip(one, two, strict=True):
        assert [d.views for d in a] == [d.views for d in b] and not set(a) & set(b)
    whole = [d for rows in zip(one, two, strict=True) for rank in zip(*rows, strict=True) for d in rank]
    assert [sorted(d.scene for d in whole[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3  # every scene once a turn
    assert [d.number for d in whole[:25]] == [0] * 10 + [1] * 10 + [2] * 5
    assert list(ViewBatches(10, (4, 12), 24, 40, 3, 0, 2)) == one
    assert list(ViewBatches(10, (4, 12), 24, 40, 4, 0, 2)) != one
    with pytest.raises(ValueError, match=r"views: found \(4, 12\) with 8 images a batch"):
        ViewBatches(10, (4, 12), 8, 1)


def test_frames_are_ascending_and_gaps_do_not_ratchet():
    rng = np.random.default_rng(0)
    short = draw_frames(9, 8, (2, 6), rng)
    assert short == sorted(set(short)) and len(short) == 8
    widest = 0
    for _ in range(200):
        steps = np.diff(draw_frames(1000, 4, (20, 60), rng))
        assert (steps >= 20).all() and (steps <= 60).all()
        draw_frames(70, 4, (20, 60), rng)  # a short scene in between changes nothing for the next
        widest = max(widest, steps.max())
    assert widest > 55
    assert max(draw_frames(70, 4, (20, 60), rng)) < 70
    with pytest.raises(ValueError, match="scene: found 3 frames, expected at least 4"):
        draw_frames(3, 4, (1, 2), rng)


def test_split_keeps_the_first_view_and_half_of_the_rest():
    drawn = torch.stack([split(9, 0.5, np.random.default_rng(seed)) for seed in range(300)])
    assert not drawn[:, 0].any() and ((~drawn).sum(1) == 4).all()
    share = (~drawn[:, 1:]).float().mean(0)  # the other three context views fall anywhere alike
    assert ((share - 3 / 8).abs() < 0.12).all()


def test_a_draw_is_repeatable_and_clips_repeat_as_asked(shards, clips):
    a, b = clips[Draw(1, 3, 0)], clips[Draw(1, 3, 0)]
    assert a["keys"] == b["keys"] and torch.equal(a["images"], b["images"])
    again = SceneClips(RoomScenes(shards), 84, 14, clips=2)
    assert again[Draw(1, 3, 3)]["keys"] == again[Draw(1, 3, 1)]["keys"]
    assert len({clips[Draw(1, 3, n)]["keys"] for n in range(8)}) == 2  # from frame 0 or from frame 1


def test_scenes_of_any_folder(tmp_path):
    for name, frames in (("scene10", 3), ("scene2", 5)):
        (tmp_path / name).mkdir()
        for i in range(frames):
            value = np.full((30, 40, 3), 10 * i, np.uint8)
            Image.fromarray(value).save(tmp_path / name / f"f{i}.png")
    scenes = FolderScenes([tmp_path])
    assert [Path(scenes.name(i)).name for i in range(2)] == ["scene2", "scene10"]  # natural order
    assert [scenes.frames(i) for i in range(2)] == [5, 3]
    assert scenes.read(0, [1, 4])[:, 0, 0, 0].tolist() == [10, 40]
    with pytest.raises(ValueError, match="scene10: found 3 frames, expected at least 4, the most views of a clip"):
        FolderScenes([tmp_path], least=4)
    with pytest.raises(ValueError, match="nowhere: found no such folder, expected one of scenes"):
        FolderScenes([tmp_path / "nowhere"])
    item = SceneClips(scenes, 42, 14)[Draw(0, 4, 0)]
    assert item["images"].shape == (4, 3, 28, 42) and item["targets"].sum() == 2


def test_scans_lend_their_pictures_and_nothing_else(tmp_path):
    """Exported ScanNet and ScanNet++ as published code reads them: no pose, depth or intrinsics need be there."""
    for pictures in ("scannet/scene0001_00/color", "scannet/scene0000_00/color", "pp/ab12/dslr/undistorted_images"):
        (tmp_path / pictures).mkdir(parents=True)
        for i in range(9):
            Image.fromarray(np.full((30, 40, 3), 20 * i, np.uint8)).save(tmp_path / pictures / f"{i}.png")
    (tmp_path / "train.txt").write_text("scene0001_00\n")
    folders = (SceneFolder(str(tmp_path / "scannet"), str(tmp_path / "train.txt")), SceneFolder(str(tmp_path / "pp"), gaps=(4, 4)))
    scenes = FolderScenes(folders, least=3)
    assert [scenes.frames(i) for i in range(len(scenes))] == [9, 9]
    assert "scene0001_00" in scenes.name(0)
    clips = SceneClips(scenes, 42, 14, gaps=(1, 1))
    steps = [clips[Draw(scene, 3, 0)]["images"][:, 0, 0, 0].diff().mul(255 / 20).round().tolist() for scene in range(2)]
    assert steps == [[1, 1], [4, 4]]
    (tmp_path / "train.txt").write_text("scene0001_00\nscene0009_00\n")
    with pytest.raises(ValueError, match=r"scannet: found no scene0009_00 \(1 missing\), expected every scene that .*train.txt"):
        FolderScenes(folders)


def test_nanos_2d_encoder_is_shown_whole_blocks(tmp_path):
    """Pictures of 3:2, of which VGGT's patches alone would be an odd number high."""
    (tmp_path / "scene").mkdir()
    for i in range(2):
        Image.fromarray(np.full((160, 240, 3), 90 * i, np.uint8)).save(tmp_path / "scene" / f"{i}.png")
    recipe = read_recipe(RECIPES / "spa3r_nano.yaml")
    loss = build(replace(recipe, model=recipe.model | {"num_encoder_layers": 1, "num_decoder_layers": 1}))
    assert loss.block == 28
    clip = SceneClips(FolderScenes([tmp_path]), 140, loss.block)[Draw(0, 2, 0)]
    assert clip["images"].shape[-2:] == (84, 140)
    assert loss(clip["images"][None], clip["targets"][None])["loss"].isfinite()


def test_clips_of_two_sizes_are_cut_about_their_centres():
    tall, flat = torch.rand(2, 3, 56, 42), torch.rand(2, 3, 28, 42)
    items = [{"images": x, "targets": torch.tensor([False, True]), "keys": str(i)} for i, x in enumerate((tall, flat))]
    found = collate_clips(items, 14)
    assert torch.equal(found["images"][0], tall[:, :, 14:42]) and torch.equal(found["images"][1], flat)


# ---- teachers ----


@torch.no_grad()
def test_dino_features_lie_on_the_patch_grid():
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)
    teacher = SemanticTeacher(DinoBackbone(Dinov2Model(config).eval()), 14)
    images = torch.rand(2, 3, 42, 56)
    found = teacher(images, (3, 4))
    assert found.shape == (2, 12, 16)
    # own shape: no resampling, the tokens are the model's own without the class token
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    tokens = teacher.backbone.model(pixel_values=(images - mean) / std).last_hidden_state
    assert torch.allclose(found, tokens[:, 1:], atol=1e-5)
    squeezed = SemanticTeacher(teacher.backbone, 14, square=56)(images, (3, 4))
    assert squeezed.shape == found.shape and not torch.allclose(squeezed, found, atol=1e-2)


@torch.no_grad()
def test_nanos_2d_encoder_teaches_patch_by_patch():
    torch.manual_seed(0)
    model = SpatialMLLMModel(SpatialMLLMConfig.tiny(use_spatial=False)).eval()
    images = torch.rand(2, 3, 56, 84)
    found = QwenTeacher(model)(images, (4, 6)).view(2, 4, 6, 32)
    for i, image in enumerate(images):
        pixels, grid = patchify(image.expand(2, -1, -1, -1), model.config)
        groups = model.encode_2d(pixels, grid[None]).view(2, 3, 2, 2, 32)  # block row, block column, row, column
        assert torch.allclose(found[i, 3, 4], model.visual.merger.ln_q(groups[1, 2, 1, 0]), atol=1e-5)


def test_teachers_stay_frozen_and_in_eval(clips):
    loss = tiny_loss().train()
    assert loss.model.encoder.training and not any(part.training for part in loss.frozen())
    items = batch(clips, [Draw(0, 4, 0), Draw(1, 4, 0)])
    loss(**items)["loss"].backward()
    for name, parameter in loss.named_parameters():
        frozen = name.startswith(("model.aggregator", "model.camera_head", "depth_head", "semantic"))
        assert (parameter.grad is None) == frozen, name
    probe = torch.autograd.grad(
        loss(**items)["loss"], [loss.model.depth_prob.fc1.weight, loss.model.encoder.register_tokens]
    )
    assert all(g.abs().sum() > 0 for g in probe)


def test_the_depth_probe_teaches_nothing(clips, monkeypatch):
    """Other depth, same gradients everywhere but in the probe."""
    items = batch(clips, [Draw(0, 4, 0)])

    def gradients(factor: float) -> dict[str, torch.Tensor]:
        loss = tiny_loss().train()
        said = loss.look(items["images"], items["targets"])
        monkeypatch.setattr(loss, "look", lambda *_: said._replace(depth=factor * said.depth))
        loss(**items)["loss"].backward()
        return {n: p.grad for n, p in loss.named_parameters() if p.grad is not None}

    one, other = gradients(1.0), gradients(5.0)
    changed = {name.split(".")[1] for name in one if not torch.allclose(one[name], other[name])}
    assert changed == {"depth_prob"}


@torch.no_grad()
def test_only_targets_count_by_default(clips):
    loss, items = tiny_loss().eval(), batch(clips, [Draw(0, 4, 0)])
    truth = loss.look(items["images"], items["targets"])
    latent = loss.model.encode(truth.context, (4, 6))
    seen = loss.model.decode(latent, truth.extrinsics, truth.intrinsics, (56, 84))
    target = items["targets"]
    expected = (seen.geometry[target] - truth.geometry[target]).abs().mean()
    assert loss(**items)["geo/l1"].item() == pytest.approx(expected.item(), rel=1e-5)
    over_all = tiny_loss(Objective(views="all")).eval()(**items)["geo/l1"].item()
    assert over_all == pytest.approx((seen.geometry - truth.geometry).abs().mean().item(), rel=1e-5)
    assert over_all != pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def test_nobody_pays_for_views_that_are_not_compared(clips, monkeypatch):
    loss, items = tiny_loss().eval(), batch(clips, [Draw(0, 4, 0), Draw(1, 4, 0)])
    frames, head = [], loss.depth_head.forward
    counted = lambda levels, *a, **k: frames.append(levels[0].shape[1]) or head(levels, *a, **k)  # noqa: E731
    monkeypatch.setattr(loss.depth_head, "forward", counted)
    every, some = (loss.look(items["images"], items["targets"], whole) for whole in (True, False))
    assert frames == [4, 2]
    for row, target in enumerate(items["targets"]):
        for name in Targets._fields[1:]:
            assert torch.allclose(getattr(some, name)[row], getattr(every, name)[row, target], atol=1e-5), name
    assert torch.equal(some.context, every.context)


@torch.no_grad()
def test_context_features_are_the_same_in_both_modes(clips):
    loss, items = tiny_loss().eval(), batch(clips, [Draw(0, 4, 0), Draw(2, 4, 1)])
    one, two = (
        look(loss.model, loss.depth_head, loss.semantic, items["images"], items["targets"], mode) for mode in (True, False)
    )
    assert torch.allclose(one.context, two.context, atol=1e-5)
    assert not torch.allclose(one.geometry, two.geometry, atol=1e-3)


@torch.no_grad()
def test_cache_stands_for_the_teachers(clips, tmp_path, monkeypatch):
    loss = tiny_loss(cache=TargetCache(tmp_path, "a")).eval()
    first, both = batch(clips, [Draw(0, 4, 0)]), batch(clips, [Draw(0, 4, 0), Draw(1, 4, 0)])
    plain = tiny_loss().eval()(**both)["loss"].item()
    loss(**first)
    asked = []
    aggregator = loss.model.aggregator.forward
    counted = lambda images, *a, **k: asked.append(len(images)) or aggregator(images, *a, **k)  # noqa: E731
    monkeypatch.setattr(loss.model.aggregator, "forward", counted)
    assert loss(**both)["loss"].item() == pytest.approx(plain, rel=2e-3)  # float16
    assert asked == [1]  # of the two clips, one was kept
    loss(**both)
    assert asked == [1]
    loss.cache = TargetCache(tmp_path, "b")  # other teachers
    loss(**both)
    assert asked == [1, 2]


# ---- training ----


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def train(folder: Path, shards, steps: int, resume: bool = False, clips: int | None = None) -> PretrainTrainer:
    dataset = SceneClips(RoomScenes(shards), 84, 14, clips=clips)
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, learning_rate=3e-3, save_steps=2, logging_steps=1, report_to=[], use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, dataloader_num_workers=0, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = PretrainTrainer(
        model=tiny_loss(), args=arguments, train_dataset=dataset, data_collator=lambda items: collate_clips(items, 14),
        views=(2, 4), images=8,
    )  # fmt: skip
    if steps < 4:
        trainer.add_callback(StopAt(steps))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, shards):
    whole = train(tmp_path / "whole", shards, 4)
    train(tmp_path / "parts", shards, 2)
    parts = train(tmp_path / "parts", shards, 4, resume=True)
    logs = [[row["geo/l1"] for row in t.state.log_history if "geo/l1" in row] for t in (whole, parts)]
    assert len(logs[0]) == 4 and logs[1] == pytest.approx(logs[0], rel=1e-5)
    start, end, other = (dict(m.named_parameters()) for m in (tiny_loss(), whole.model, parts.model))
    for name, value in end.items():
        assert torch.allclose(other[name], value, atol=1e-6), name
        moved = not torch.equal(start[name], value)
        assert moved == value.requires_grad, name


def test_it_learns_to_predict_what_it_was_not_shown(shards):
    """A few steps on one clip: targets are predicted better than by the model that has not trained."""
    torch.manual_seed(0)
    loss = tiny_loss().train()
    items = collate_clips([SceneClips(RoomScenes(shards), 84, 14)[Draw(0, 4, 0)]], 14)
    optimiser = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], 1e-3)
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        found = loss(**items)
        found["loss"].backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimiser.step()
        values.append({name: value.item() for name, value in found.items()})
    # directions come quickly, lengths slowly: absolute errors of normalised features fall last
    least = {"geo/cos": 0.5, "sem/cos": 0.5, "depth_prob": 0.3, "sem/l1": 0.9, "geo/l1": 0.95}
    for term, share in least.items():
        assert values[-1][term] < share * values[0][term], (term, values[0][term], values[-1][term])


SCRIPT = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from allocentric.processes import end_processes
from allocentric.train.pretrain import PretrainTrainer, RoomScenes, SceneClips, collate_clips
from allocentric.train.shards import RoomShards
from test_pretrain import tiny_loss

out, images = Path(sys.argv[1]), int(sys.argv[2])
arguments = TrainingArguments(
    output_dir=str(out), max_steps=3, report_to=[], use_cpu=True, remove_unused_columns=False, save_strategy="no",
    disable_tqdm=True, lr_scheduler_type="constant", ddp_find_unused_parameters=False, max_grad_norm=0,
)
trainer = PretrainTrainer(
    model=tiny_loss(), args=arguments, train_dataset=SceneClips(RoomScenes(RoomShards(Path(sys.argv[3]))), 84, 14),
    data_collator=lambda items: collate_clips(items, 14), views=(4, 4), images=images,
)
trainer.optimizer = torch.optim.SGD([p for p in trainer.model.parameters() if p.requires_grad], 0.05)  # Adam hides the scale
trainer.train()
if trainer.is_world_process_zero():
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    save_file({name: value.detach().contiguous() for name, value in named}, out / f"{trainer.args.world_size}.safetensors")
del trainer
end_processes()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, shards):
    (tmp_path / "train.py").write_text(SCRIPT)
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "train.py")]
    one = [sys.executable, str(tmp_path / "train.py")]
    for command in ([*two, str(tmp_path), "4"], [*one, str(tmp_path), "8"]):  # one clip on each of two, or two on one
        done = subprocess.run([*command, str(shards.folder)], env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    found, expected = load_file(tmp_path / "2.safetensors"), load_file(tmp_path / "1.safetensors")
    start = dict(tiny_loss().named_parameters())
    assert max(float((expected[name] - start[name]).abs().max()) for name in expected) > 1e-3
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


# ---- measuring ----


def test_nearest_view_by_camera():
    extrinsics = torch.eye(4)[None, :3].repeat(4, 1, 1)
    extrinsics[:, 0, 3] = -torch.tensor([0.0, 1.0, 2.0, 0.9])  # cameras at x = 0, 1, 2, 0.9
    assert nearest_views(extrinsics, [0, 1, 2], [3], 2.0) == [1]
    turned = torch.tensor([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # at the same place, but a quarter turned away
    extrinsics[1, :, :3], extrinsics[1, :, 3] = turned, -(turned @ torch.tensor([1.0, 0, 0]))
    assert nearest_views(extrinsics, [0, 1, 2], [3], 2.0) == [0]


def test_measures_know_a_perfect_prediction_and_the_mean(clips, tmp_path, monkeypatch):
    loss = tiny_loss()
    numbers = measure(loss, clips, 4, resamples=50)
    assert {name.split()[1] for name in numbers} == {"predicted", "nearest", "mean"}
    for kind in ("geometry", "semantic"):
        assert numbers[f"{kind} mean"]["r2"] == pytest.approx(0, abs=0.1)  # mean of context views against targets' own
        assert numbers[f"{kind} predicted"]["r2"] < numbers[f"{kind} mean"]["r2"]  # nothing was learned
        row = numbers[f"{kind} nearest"]
        assert row["r2_low"] <= row["r2"] <= row["r2_high"]

    def perfect(latent, extrinsics, intrinsics, size):
        item = said[-1]
        chosen = [i for i in range(4) if any(torch.equal(item.extrinsics[0, i], e) for e in extrinsics[0])]
        return Field(item.geometry[:, chosen], item.semantic[:, chosen], item.depth[:, chosen])

    said, plain = [], loss.look
    monkeypatch.setattr(loss, "look", lambda *a: said.append(plain(*a)) or said[-1])
    monkeypatch.setattr(loss.model, "decode", perfect)
    numbers = write_report(loss, clips, 4, tmp_path, pictures=1)["numbers"]
    for kind in ("geometry", "semantic"):
        assert numbers[f"{kind} predicted"]["r2"] == pytest.approx(1) and numbers[f"{kind} predicted"]["cosine"] == pytest.approx(1)
    assert numbers["depth predicted"]["abs_rel"] == 0 < numbers["depth nearest"]["abs_rel"]
    assert json.loads((tmp_path / "report.json").read_text())["about"]["scenes"] == 3
    assert "| geometry | predicted | 1.000 (1.000, 1.000) |" in (tmp_path / "report.md").read_text()
    assert Image.open(tmp_path / "features-0.png").width > 900


# ---- recipes ----


def test_recipes_are_the_papers_and_nanos():
    paper, nano = (read_recipe(RECIPES / f"{name}.yaml") for name in ("spa3r", "spa3r_nano"))
    assert (paper.views, paper.images, paper.mask_ratio, paper.optimisation.steps) == ((4, 12), 24, 0.5, 80_000)
    assert paper.objective == Objective("targets", "l1", True) and "dinov3-vitl16" in paper.semantic
    assert (nano.geometry, nano.semantic) == ("nano", "nano") and nano.data.heldout >= 50
    with pytest.raises(ValueError, match="data: found folders \\[\\] and 0 rooms, expected one of the two"):
        replace(nano.data, rooms=0)
    with pytest.raises(ValueError, match="objective: found views 'some'"):
        Objective(views="some")
    scannet, scannetpp = paper.data.folders
    assert paper.data.gaps == (2, 6) and scannet.gaps is None and scannetpp.gaps == (20, 60)
    assert all(folder.scenes for folder in paper.data.folders)  # VSI-Bench asks about scenes of the validation splits


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mask_ratio": 1.5}, "mask_ratio: found 1.5, expected more than 0 and less than 1"),
        ({"mask_ratio": 0.0}, "mask_ratio: found 0.0"),
        ({"views": (8, 4)}, "views: found 8 to 4 with 16 images a batch, expected 2 <= least <= most <= images"),
        ({"images": 4}, "views: found 4 to 8 with 4 images a batch"),
        ({"views": (4, 16)}, None),
        ({"views": (4, 17), "images": 20}, "views: found up to 17 of rooms of 16 frames, expected no more than these"),
        ({"clips": 0}, "clips: found 0, expected at least 1, or none at all"),
        ({"model": {"embed_dims": 192}}, r"model: found unknown \['embed_dims'\], expected keys among"),
        ({"model": {"embed_dim": "192"}}, "model: .*embed_dim"),
        ({"model": {"num_queries": 0}}, "model: num_queries: found 0, expected at least 1"),
        ({"model": {"vggt_config": {}}}, r"model: found unknown \['vggt_config'\]"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(changes, said):
    recipe = read_recipe(RECIPES / "spa3r_nano.yaml")
    if said is None:
        assert replace(recipe, **changes)
        return
    with pytest.raises(ValueError, match=said):
        replace(recipe, **changes)


def test_steps_and_numbers_of_scenes_are_checked():
    data = read_recipe(RECIPES / "spa3r_nano.yaml").data
    for gaps in ((6, 2), (-6, 2), (0, 1)):
        with pytest.raises(ValueError, match=r"data: gaps: found .*, expected 1 <= least <= most"):
            replace(data, gaps=gaps)
    with pytest.raises(ValueError, match="data: heldout: found 1, expected none, or at least 2"):
        replace(data, heldout=1)


def test_a_folder_holds_one_run(tmp_path, shards):
    """What a smoke run left is not taken for the result of the run that was meant."""
    recipe = smoke(read_recipe(RECIPES / "spa3r_nano.yaml"))
    tmp_path /= "new"
    keep_recipe(replace(recipe, mask_ratio=0.75), tmp_path)  # nothing came of it
    keep_recipe(recipe, tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "checkpoints" / "checkpoint-2" / "trainer_state.json").touch()
    keep_recipe(replace(recipe, optimisation=replace(recipe.optimisation, workers=2, log_every=7)), tmp_path)  # changes nothing
    with pytest.raises(ValueError, match=r"recipe.json: found a run with mask_ratio 0.5, expected 0.25: take another folder"):
        keep_recipe(replace(recipe, mask_ratio=0.25), tmp_path)


@pytest.mark.slow
def test_smoke_run_from_the_command_line(tmp_path):
    from allocentric.cli import main

    main(["train", str(RECIPES / "spa3r_nano.yaml"), "--out", str(tmp_path), "--smoke"])
    model = load_spa3r(tmp_path / "model")
    assert model.config.semantic_dim == 192 and (tmp_path / "report" / "report.md").is_file()
