"""Spa3-VLM beside nano: latents kept per room, the table of answers, the recipe, and a run in miniature."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allocentric.evaluate.rooms import numbered, room_questions, row_of
from allocentric.model import NANO
from allocentric.models.patches import patchify
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spa3_vlm import Spa3VLMConfig, Spa3VLMForConditionalGeneration, load_spa3_vlm
from allocentric.models.spatial_mllm import load_spatial_mllm
from allocentric.train import run
from allocentric.train.card import export, unpack
from allocentric.train.features import write_features
from allocentric.train.recipe import Spa3Variant, Spa3VLMTraining, read_recipe
from allocentric.train.spa3_vlm import LatentFeatures, SceneBranch, like, nano_of, table, train_spa3_vlm

RECIPES = Path(__file__).parent.parent / "recipes"
WHOLE = {"rooms": None, "naming_steps": None, "sft_steps": None}  # nano's recipe as it is


@pytest.mark.parametrize("raw", [False, True])
def test_latents_are_kept_beside_2d_features(shards, tmp_path, raw):
    torch.manual_seed(0)
    model = Spa3VLMForConditionalGeneration(Spa3VLMConfig.tiny(raw_vggt=raw)).eval().model
    for _ in write_features(tmp_path / "run", model, shards, mirrored=False):
        pass
    (tmp_path / "run" / "3d.npy").unlink()  # a run has other features there, of a VGGT of its own
    for _ in write_features(tmp_path / "latents", SceneBranch(model), shards, mirrored=False):
        pass
    assert not (tmp_path / "latents" / "2d.npy").exists()
    scene, kept = LatentFeatures(tmp_path / "run", tmp_path / "latents", shards)[1]
    assert scene.name == shards[1].scene.name
    frames = torch.from_numpy(np.array(shards[1].frames)).permute(0, 3, 1, 2) / 255
    pixels, grid = patchify(frames, model.config)
    with torch.no_grad():
        for part, expected in (("2d", model.encode_2d(pixels, grid[None])), ("3d", model.encode_3d(pixels, grid[None]))):
            assert torch.allclose(kept[part], expected, atol=2e-2), part  # float16
    assert len(kept["3d"]) == (4 * 24 if raw else model.config.spa3r_config.num_queries)
    with pytest.raises(ValueError, match="found features of 0 rooms, expected 3; write them first"):
        (tmp_path / "latents" / "progress.json").write_text('{"done": 0, "total": 3}')
        LatentFeatures(tmp_path / "run", tmp_path / "latents", shards)


def test_the_table_pairs_rooms(shards):
    asked = [q for questions in numbered(room_questions(shards, 2)) for q in questions]
    right = [row_of(q, q.answer) for q in asked]
    none = [row_of(q, "") for q in asked]
    lines = table({"a": right, "b": none, "c": right}, len(shards)).splitlines()
    assert lines[0] == "| task | a | b | c |"
    assert "| macro | **100.0** [100.0, 100.0] | **0.0** [0.0, 0.0] | **100.0** [100.0, 100.0] |" in lines
    assert lines[-2:] == ["| b | +100.0 [+100.0, +100.0] |", "| c | +0.0 [+0.0, +0.0] |"]


def test_the_recipe_repeats_nano():
    recipe = read_recipe(RECIPES / "spa3_vlm_nano.yaml")
    assert list(recipe.variants) == ["spa3-vlm", "raw-vggt", "mask-25", "mask-75"]
    assert [v.mask_ratio for v in recipe.variants.values() if not v.raw_vggt] == [0.5, 0.25, 0.75]
    nano = read_recipe(RECIPES / "nano.yaml")
    made = like(read_recipe(RECIPES / "spa3r_nano.yaml"), Path("out/nano"), nano)
    assert (made.geometry, made.semantic, made.data.run) == ("out/nano/package", "out/nano/package", "out/nano")
    assert made.data.rooms == nano.rooms.count
    short = nano_of(recipe)
    assert (short.rooms.count, short.naming.optimisation.steps, short.sft.optimisation.steps) == (1200, 4000, 1500)
    assert replace(short, rooms=nano.rooms, naming=nano.naming, sft=nano.sft) == nano == nano_of(replace(recipe, **WHOLE))
    with pytest.raises(ValueError, match="variants: found \\['blind'\\], expected some, none of them named one of \\['nano'"):
        Spa3VLMTraining("a", "b", "c", {"blind": Spa3Variant()})


def test_the_package_is_unpacked_as_the_run_it_came_from(tmp_path):
    nano = nano_of(read_recipe(RECIPES / "spa3_vlm_nano.yaml"))
    unpack(NANO, tmp_path / "run")
    shipped = load_spatial_mllm(NANO, dtype=torch.float32)
    model = run.assemble(nano, tmp_path / "run")
    for part in ("language_model", "visual", "spatial_encoder"):
        for (name, mine), (_, theirs) in zip(
            getattr(model.model, part).state_dict().items(), getattr(shipped.model, part).state_dict().items(), strict=True
        ):
            assert torch.equal(mine, theirs), name
    new, learned = (net.model.connector.state_dict().values() for net in (model, shipped))
    assert any(not torch.equal(mine, theirs) for mine, theirs in zip(new, learned, strict=True))
    mine, theirs = run.load_processor(tmp_path / "run"), SpatialMLLMProcessor.from_pretrained(NANO)
    assert mine.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
    model.save_pretrained(tmp_path / "run" / "nano")
    run.load_processor(tmp_path / "run").save_pretrained(tmp_path / "run" / "nano")
    export(tmp_path / "run", tmp_path / "again")  # and back
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in NANO.iterdir()}
    heads, again = (load_file(folder / "vggt_heads.safetensors") for folder in (NANO, tmp_path / "again"))
    assert heads.keys() == again.keys() and all(torch.equal(heads[name], again[name]) for name in heads)


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    recipe = replace(read_recipe(RECIPES / "spa3_vlm_nano.yaml"), run=str(tmp_path))
    with pytest.raises(ValueError, match=r"stages: found \['mask-30'\], expected some of \['spa3-vlm'"):
        train_spa3_vlm(recipe, tmp_path / "out", print, ["mask-30"])
    with pytest.raises(ValueError, match=r"found no folder `package` in it, expected what a run of .*recipes/nano.yaml leaves"):
        train_spa3_vlm(recipe, tmp_path / "out", print)
    with pytest.raises(ValueError, match=r"recipes/spa3r_nano.yaml: expected a recipe of kind rooms"):
        train_spa3_vlm(replace(recipe, nano=recipe.pretraining), tmp_path / "out", print)
    with pytest.raises(ValueError, match=r"recipes/nano.yaml: expected a recipe of kind spa3r"):
        train_spa3_vlm(replace(recipe, pretraining=recipe.nano), tmp_path / "out", print)
    with pytest.raises(ValueError, match=r"stages: found \['blind'\], expected some of"):  # a run has its own
        train_spa3_vlm(recipe, tmp_path / "out", print, ["blind"])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_smoke_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    from allocentric.cli import main

    monkeypatch.chdir(RECIPES.parent)
    stages = ["--stages", "spa3-vlm", "raw-vggt", "2d-only", "blind"]
    command = ["train", "recipes/spa3_vlm_nano.yaml", "--out", str(tmp_path), "--smoke", *stages]
    main(command)
    report = (tmp_path / "report.md").read_text()
    assert "| task | spa3-vlm | raw-vggt | 2d-only | blind | constant answer | chance |" in report and "| raw-vggt | " in report
    assert "Not in the table: mask-25, which was not asked" in report
    model, raw = (load_spa3_vlm(tmp_path / name) for name in ("spa3-vlm", "raw-vggt"))
    assert not model.model.connector.adds_nothing()  # it started so, and has learned
    named = load_file(tmp_path / "naming-spa3-vlm" / "projections.safetensors")
    assert {name.split(".")[0] for name in named} == {"connector", "visual"} and named["connector.adaptor.2.weight"].any()
    assert raw.config.raw_vggt and torch.equal(
        raw.model.spatial_encoder.aggregator.patch_embed.pos_embed, model.model.spatial_encoder.aggregator.patch_embed.pos_embed
    )
    before = (tmp_path / "spa3-vlm" / "model.safetensors").stat().st_mtime_ns
    main(command)  # nothing is left to do
    assert (tmp_path / "report.md").read_text() == report
    assert (tmp_path / "spa3-vlm" / "model.safetensors").stat().st_mtime_ns == before
