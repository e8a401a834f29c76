"""Recipes: mistakes are named, the published settings are what the files say, and every stage runs, resumes and stops when done."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import allocentric
from allocentric.files import whole_folder
from allocentric.models import spa3_vlm
from allocentric.models.loading import make_config
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, load_spatial_mllm
from allocentric.train import finetune, run
from allocentric.train.geometry import GeometryLoss
from allocentric.train.recipe import (
    FineTune,
    GroundingTraining,
    Optimisation,
    Pretrain,
    Recipe,
    Reinforce,
    Spa3VLMTraining,
    SSRTraining,
    keep_recipe,
    read_recipe,
    resume_point,
)
from allocentric.train.sft import freeze_except, parameter_groups
from test_model import write_video
from test_spatial_mllm import frames


@pytest.fixture
def recipes(request):
    return request.config.rootpath / "recipes"


def write(path, keys: dict):
    path.write_text(yaml.safe_dump(keys))
    return path


# ---- reading ----


def test_every_recipe_of_the_repository_can_be_read(recipes):
    kinds = {path.stem: type(read_recipe(path)) for path in recipes.glob("*.yaml")}
    assert kinds == {
        "nano": Recipe, "spatial_mllm_v1_1": FineTune, "spatial_mllm_v1_1_lora": FineTune, "cold_start": FineTune,
        "spatial_mllm_paper": FineTune, "spa3_vlm": FineTune,
        "grpo": Reinforce, "grpo_nano": Reinforce, "spa3r": Pretrain, "spa3r_nano": Pretrain,
        "spa3_vlm_nano": Spa3VLMTraining, "s2_mllm": GroundingTraining, "s2_nano": GroundingTraining, "ssr_nano": SSRTraining,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        ("colour", "red", r"a\.yaml: found unknown \['colour'\], expected keys among"),
        ("sft.question", 3, r"a\.yaml: sft: found unknown \['question'\]"),
        ("geometry.optimisation.step", 3, r"a\.yaml: geometry: optimisation: found unknown \['step'\]"),
        ("semantics.optimisation.batch_size", "many", r"a\.yaml: semantics: optimisation: batch_size: found 'many', expected int"),
        ("semantics.optimisation.bf16", 1, r"bf16: found 1, expected bool"),
        ("rooms.count", 2.5, r"rooms: count: found 2\.5, expected int"),
        ("geometry.frames", [1, 2, 3], r"geometry: frames: found \[1, 2, 3\], expected tuple\[int, int\]"),
        ("sft.tasks", {"object_counting": "often"}, r"sft: tasks: object_counting: found 'often', expected float"),
        ("semantics.optimisation.epochs", 2, r"semantics: optimisation: .*found steps \d+ and epochs 2.0, expected one of the two"),
        ("sft", 3, r"a\.yaml: sft: found 3, expected keys \['questions'"),
        ("kind", "dance", r"a\.yaml: kind: found 'dance', expected one of \['rooms', 'finetune', 'grpo', .*'ssr'\]"),
        ("kind", ["rooms"], r"a\.yaml: kind: found \['rooms'\], expected one of"),
        ("sft.learning_rates", {1: 0.1}, r"a\.yaml: sft: learning_rates: found 1, expected str"),
        ("sft.tasks", {"object_cuonting": 1}, r"a\.yaml: sft: tasks: found unknown \['object_cuonting'\], expected some of \['inv"),
        ("reckoning.tasks", {"map_line": 1}, r"a\.yaml: reckoning: tasks: found unknown \['map_line'\]"),  # SSR's
        ("semantics.optimisation.batch_size", 0, r"a\.yaml: semantics: optimisation: batch_size: found 0, expected at least 1"),
        ("semantics.optimisation.steps", 0, r"optimisation: steps: found 0, expected at least 1"),
        ("semantics.optimisation.schedule", "cosin", r"optimisation: schedule: found 'cosin', expected one of linear, cosine,"),
        ("semantics.optimisation.workers", -1, r"optimisation: workers: found -1, expected at least 0"),
        ("semantics.optimisation", {"batch_size": 1, "learning_rate": 1, "epochs": 0}, r"epochs: found 0\.0, expected more than 0"),
        ("model.colour", "red", r"a\.yaml: model: found unknown \['colour'\], expected keys among \['connector_config'"),
        ("model.text_config.layers", 3, r"a\.yaml: model: text_config: found unknown \['layers'\], expected keys among"),
        ("model.spatial_config.depht", 3, r"a\.yaml: model: spatial_config: found unknown \['depht'\], expected keys"),
        ("model.spatial_config.depth", "3", r"a\.yaml: model: .*'depth' expected int, got str"),
        ("model.spatial_config", 3, r"a\.yaml: model: spatial_config: found 3, expected keys among"),
        ("model.vision_config", None, r"a\.yaml: model: found no \['vision_config'\], expected every one of them"),
    ],
)
def test_a_wrong_key_or_value_is_named(recipes, tmp_path, where, value, complaint):
    keys = yaml.safe_load((recipes / "nano.yaml").read_text())
    *path, last = where.split(".")
    inner = keys
    for name in path:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(ValueError, match=complaint):
        read_recipe(write(tmp_path / "a.yaml", keys))


@pytest.mark.parametrize(
    ("name", "section", "changes", "complaint"),
    [
        ("grpo_nano", "rooms", {"tasks": {"object_cuonting": 1}}, r"rooms: tasks: found unknown \['object_cuonting'\]"),
        ("s2_nano", "data", {"tasks": {"object_cuonting": 1}}, r"data: tasks: found unknown \['object_cuonting'\]"),
        ("ssr_nano", "reasoning", {"tasks": {"map_lime": 1}}, r"reasoning: tasks: found unknown .*expected .*'map_line'"),
        ("s2_nano", "learning_rates", {"guidance(": 1}, r"learning_rates: found 'guidance\(', expected a regular expression \("),
        ("s2_mllm", "lora", {"targets": "q_proj["}, r"lora: targets: found 'q_proj\[', expected a regular expression"),
        ("s2_nano", "structure", {"object_shar": 0.1}, r"structure: found unknown \['object_shar'\], expected keys"),
        ("s2_nano", "guidance", {"kind": "vggt", "settings": {}}, r"guidance: settings: found no \['weights'\]"),
        ("s2_nano", "guidance", {"kind": "decoder", "settings": {"factory": "a:b"}}, r"settings: found no \['checkpoint'\]"),
        ("s2_nano", "guidance", {"settings": {"widht": 96}}, r"guidance: settings: found unknown \['widht'\], expected keys among"),
        ("s2_nano", "guidance", {"settings": {"dim": 96}}, r"guidance: settings: found unknown \['dim'\]"),  # the model's own
        ("spa3r_nano", "model", {"embed_dmi": 8}, r"model: found unknown \['embed_dmi'\]"),
    ],
)
def test_what_other_recipes_say_is_checked_when_they_are_read(recipes, tmp_path, name, section, changes, complaint):
    keys = yaml.safe_load((recipes / f"{name}.yaml").read_text())
    keys[section] |= changes
    with pytest.raises(ValueError, match=complaint):
        read_recipe(write(tmp_path / "a.yaml", keys))


def test_unknown_keys_of_several_types_are_named(recipes, tmp_path):
    keys = yaml.safe_load((recipes / "nano.yaml").read_text()) | {3: 1, "colour": "red", True: 1}
    with pytest.raises(ValueError, match=r"a\.yaml: found unknown \[3, True, 'colour'\], expected keys among"):
        read_recipe(write(tmp_path / "a.yaml", keys))


def test_reading_a_model_leaves_it_as_it_is_written(recipes, tmp_path):
    keys = yaml.safe_load((recipes / "nano.yaml").read_text())
    del keys["model"]["text_config"]["rope_parameters"]["rope_theta"]  # transformers would fill it in
    assert read_recipe(write(tmp_path / "a.yaml", keys)).model == keys["model"]


def test_a_decoders_further_settings_are_the_users(recipes, tmp_path):
    keys = yaml.safe_load((recipes / "s2_nano.yaml").read_text())
    keys["guidance"] = {"kind": "decoder", "settings": {"factory": "mine:decoder", "checkpoint": "weights", "blocks": 3}}
    assert read_recipe(write(tmp_path / "a.yaml", keys)).guidance.settings["blocks"] == 3


def test_a_checkpoints_config_may_hold_further_keys():
    config = make_config(SpatialMLLMConfig, "config.json", SpatialMLLMConfig.tiny().to_dict() | {"further": 1})
    assert config.further == 1


@pytest.mark.parametrize("missing", ["rooms", "sft.questions", "geometry.optimisation.batch_size"])
def test_a_missing_key_is_named(recipes, tmp_path, missing):
    keys = yaml.safe_load((recipes / "nano.yaml").read_text())
    *path, last = missing.split(".")
    inner = keys
    for name in path:
        inner = inner[name]
    del inner[last]
    with pytest.raises(ValueError, match=rf"found no \['{last}'\]"):
        read_recipe(write(tmp_path / "a.yaml", keys))


def test_a_number_without_a_point_is_a_number(recipes, tmp_path):
    text = (recipes / "nano.yaml").read_text()
    keys = yaml.safe_load(text)
    keys["sft"]["learning_rates"] = {"model.connector": "1e-3"}  # how YAML 1.1 reads 1e-3
    assert read_recipe(write(tmp_path / "a.yaml", keys)).sft.learning_rates == {"model.connector": 0.001}


def test_a_start_is_a_checkpoint_or_two_parts(recipes, tmp_path):
    keys = yaml.safe_load((recipes / "spatial_mllm_v1_1.yaml").read_text())
    for start in ({"qwen": "q"}, {"checkpoint": "c", "qwen": "q", "vggt": "v"}, {}):
        with pytest.raises(ValueError, match=r"start: start: found .*expected checkpoint alone, qwen and vggt, or qwen and spa3r"):
            read_recipe(write(tmp_path / "a.yaml", keys | {"start": start}))


def test_optimisation_becomes_the_trainers_arguments(tmp_path):
    steps = Optimisation(batch_size=3, learning_rate=1e-3, steps=7, accumulate=2, warmup=0.25, clip=0.5).arguments(tmp_path)
    assert (steps.max_steps, steps.per_device_train_batch_size, steps.gradient_accumulation_steps) == (7, 3, 2)
    assert (steps.max_grad_norm, steps.get_warmup_steps(8)) == (0.5, 2)
    epochs = Optimisation(batch_size=1, learning_rate=1e-3, epochs=2.0).arguments(tmp_path)
    assert (epochs.max_steps, epochs.num_train_epochs) == (-1, 2)


# ---- the published recipe ----


def test_recipes_that_a_recipe_names_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # wherever it is read from
    recipe = read_recipe(Path(__file__).parents[1] / "recipes" / "spa3_vlm_nano.yaml")
    assert read_recipe(Path(recipe.nano)) and read_recipe(Path(recipe.pretraining))


def test_the_published_settings(recipes, tmp_path, monkeypatch):
    recipe = read_recipe(recipes / "spatial_mllm_v1_1.yaml")
    arguments = recipe.optimisation.arguments(tmp_path)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.num_train_epochs) == (0.1, 1.0, 1)
    assert (arguments.get_warmup_steps(2800), str(arguments.lr_scheduler_type.value)) == (84, "cosine")
    assert recipe.optimisation.bf16
    assert (recipe.data.frames, recipe.data.questions, recipe.pixel_clamp, recipe.mrope_time_step) == (16, 1, "training", 1)
    for processes in (1, 2, 6, 8):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert finetune.accumulation(recipe) * processes * recipe.optimisation.batch_size == 48
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ValueError, match="batch: found 48, expected a multiple of 5"):
        finetune.accumulation(recipe)


def test_which_parts_the_published_recipe_trains(recipes):
    recipe = read_recipe(recipes / "spatial_mllm_v1_1.yaml")
    model = SpatialMLLMForConditionalGeneration(SpatialMLLMConfig.tiny())
    freeze_except(model, recipe.learning_rates)
    rates = {}
    for group in parameter_groups(model, recipe.learning_rates, recipe.optimisation.weight_decay):
        for parameter in group["params"]:
            rates[id(parameter)] = group["lr"], group["weight_decay"]
    for name, parameter in model.named_parameters():
        expected = None
        if name.startswith(("model.connector.", "model.visual.merger.")):
            expected = 2e-5
        elif name.startswith(("model.language_model.", "lm_head.")):
            expected = 7e-6
        rate, decay = rates.get(id(parameter), (None, None))
        assert rate == expected and parameter.requires_grad == (expected is not None), name
        assert decay in (None, 0.1 if parameter.ndim >= 2 and "embed_tokens" not in name else 0.0), name


# ---- running ----


def state(folder) -> dict:
    """Every file and when it was written last."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def show_nothing(name: str, steps) -> None:
    for _ in steps:
        pass


def small(recipes) -> Recipe:
    """nano's recipe on three rooms of four small frames."""
    recipe = run.smoke(read_recipe(recipes / "nano.yaml"))
    return replace(
        recipe,
        rooms=replace(recipe.rooms, count=3, frames=4, height=56, width=84),
        tokenizer=replace(recipe.tokenizer, rooms=3),
        geometry=replace(recipe.geometry, frames=(2, 4), dense_frames=2),
    )


@pytest.mark.slow
def test_every_stage_runs_once(recipes, tmp_path):
    recipe = small(recipes)
    run.run(recipe, tmp_path, show_nothing, workers=1)
    for variant, see in run.VARIANTS.items():
        model = load_spatial_mllm(tmp_path / variant)
        assert (model.model.spatial_encoder is not None) == ("3d" in see)
        visual = load_file(tmp_path / "semantics" / "visual.safetensors")
        frozen = {name: value for name, value in model.model.visual.state_dict().items() if "merger" not in name}
        assert all(torch.equal(value, visual[name]) for name, value in frozen.items())
    packaged = allocentric.load(tmp_path / "package", device="cpu")
    assert packaged.geometry is not None
    video = write_video(tmp_path / "video.mp4", frames(6))
    assert packaged.watch(video, 4, "space_aware", candidates=6).ask("How many chairs are in this room?", max_new_tokens=4).question
    card = (tmp_path / "card.md").read_text()
    assert "| macro |" in card and "nano minus blind" in card

    (tmp_path / "card.md").unlink()  # the card is written every time
    before = state(tmp_path)
    run.run(recipe, tmp_path, show_nothing, [stage for stage in run.STAGES if stage not in ("card", "package")], workers=1)
    assert state(tmp_path) == before


def test_reading_waits_for_no_encoder(recipes, tmp_path):
    """`make nano` trains it beside them."""
    run.run(small(recipes), tmp_path, show_nothing, ["rooms", "tokenizer", "reckoning", "reading"], workers=1)
    assert load_file(tmp_path / "reading" / "language_model.safetensors") and not (tmp_path / "semantics").exists()


def test_a_killed_stage_goes_on_from_its_checkpoint(recipes, tmp_path, monkeypatch):
    recipe = small(recipes)
    tiny = recipe.model["spatial_config"] | {"embed_dim": 32, "num_heads": 2, "dpt_out_channels": [8] * 4, "dpt_features": 8}
    short = replace(recipe.matching.optimisation, steps=5, save_every=2, batch_size=1)
    recipe = replace(recipe, model=recipe.model | {"spatial_config": tiny}, matching=replace(recipe.matching, optimisation=short))
    run.run(recipe, tmp_path, show_nothing, ["rooms"], workers=1)
    calls, forward = [], GeometryLoss.forward

    def die(self, **clip):
        calls.append(parameter(self))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, **clip)

    def parameter(loss: GeometryLoss) -> torch.Tensor:
        return loss.vggt.camera_head.embed_pose.weight.detach().clone()

    monkeypatch.setattr(GeometryLoss, "forward", die)
    with pytest.raises(KeyboardInterrupt):
        run.run(recipe, tmp_path, show_nothing, ["matching"])
    assert not (tmp_path / "matching" / "vggt.safetensors").exists()
    run.run(recipe, tmp_path, show_nothing, ["matching"])
    assert len(calls) == 4 + 3  # steps 3, 4 and 5 again, from the weights behind step 2
    assert torch.equal(calls[4], calls[2]) and not torch.equal(calls[4], calls[3])
    before = state(tmp_path)
    run.run(recipe, tmp_path, show_nothing, ["rooms", "matching"])
    assert state(tmp_path) == before and len(calls) == 7


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    assert resume_point(tmp_path / "none") is None and resume_point(tmp_path) is None
    for step, whole in ((5, True), (90, True), (100, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert resume_point(tmp_path) == str(tmp_path / "checkpoint-90")


def test_fine_tuning_runs_resumes_and_stops(recipes, tmp_path):
    recipe = finetune.smoke(read_recipe(recipes / "spatial_mllm_v1_1.yaml"))
    finetune.finetune(recipe, tmp_path)
    start, data = finetune.tiny_start(tmp_path / "tiny", recipe.data)
    first, _ = finetune.load_start(start, recipe)
    trained = load_file(tmp_path / "model" / "model.safetensors")
    for name, value in first.state_dict().items():
        if name in trained:
            moves = name.startswith(("model.language_model", "model.connector", "model.visual.merger"))
            if not torch.equal(value, trained[name]) and name.startswith("model.connector"):
                moves = True  # its start is random
            assert moves or torch.equal(value, trained[name]), name
    language = first.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(language, trained["model.language_model.layers.0.mlp.up_proj.weight"])

    model = allocentric.load(tmp_path / "model", device="cpu")
    assert model.network.config.mrope_time_step == 1 and model.processor.newline_after_vision
    scene = model.watch(f"{data.root}/room-0/video.mp4", frames=4)
    assert scene.ask("How many chairs are in this room?", max_new_tokens=2).frames == (0, 5, 10, 15)
    before = state(tmp_path)
    finetune.finetune(recipe, tmp_path)
    with pytest.raises(ValueError, match=r"recipe.json: found a run with mrope_time_step 1, expected 2: take another folder"):
        finetune.finetune(replace(recipe, mrope_time_step=2), tmp_path)
    assert state(tmp_path) == before

    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-3")
    finetune.finetune(recipe, tmp_path)  # from checkpoint 2
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in again.items())


@pytest.mark.parametrize("cache", [None, "features"])
def test_a_spa3_vlm_is_fine_tuned(recipes, tmp_path, cache):
    recipe = finetune.smoke(read_recipe(recipes / "spa3_vlm.yaml"))
    recipe = replace(recipe, data=replace(recipe.data, cache=cache))
    finetune.finetune(recipe, tmp_path)
    first = spa3_vlm.from_parts(tmp_path / "tiny" / "qwen", tmp_path / "tiny" / "spa3r").state_dict()
    trained = load_file(tmp_path / "model" / "model.safetensors")
    moved = {name for name, value in trained.items() if not torch.equal(value, first[name])}
    assert not any(name.startswith(("model.visual", "model.spatial_encoder")) for name in moved)
    assert any(name.startswith("model.language_model") for name in moved)
    assert "model.connector.adaptor.2.weight" in moved  # it began at zero

    model = allocentric.load(tmp_path / "model", device="cpu")
    assert type(model.network) is spa3_vlm.Spa3VLMForConditionalGeneration and model.processor.frames_as == "video"
    scene = model.watch(tmp_path / "tiny" / "room-0" / "video.mp4", frames=4)
    assert scene.ask("How many chairs are in this room?", max_new_tokens=2).text is not None
    further = finetune.smoke(recipe)  # and a checkpoint is a start, too
    start = replace(recipe.start, qwen=None, spa3r=None, checkpoint=str(tmp_path / "model"))
    assert type(finetune.load_start(start, further)[0]) is spa3_vlm.Spa3VLMForConditionalGeneration


def test_fine_tuning_on_kept_features_is_the_same(recipes, tmp_path, monkeypatch):
    recipe = finetune.smoke(read_recipe(recipes / "spatial_mllm_v1_1.yaml"))
    start, data = finetune.tiny_start(tmp_path / "tiny", recipe.data)
    recipe = replace(recipe, start=start, data=data, optimisation=replace(recipe.optimisation, bf16=False))
    kept = replace(recipe, data=replace(data, cache="features"))
    for name, one in (("plain", recipe), ("kept", kept)):
        finetune.finetune(one, tmp_path / name)
    logs = [json.loads((tmp_path / name / "log.json").read_text()) for name in ("plain", "kept")]
    losses = [[line["loss"] for line in log if "loss" in line] for log in logs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == 3
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "kept")]
    assert all(torch.allclose(weights[0][name], value, atol=1e-6) for name, value in weights[1].items())

    assert len(list((tmp_path / "kept" / "features").iterdir())) == 3
    shutil.rmtree(tmp_path / "kept" / "model")
    shutil.rmtree(tmp_path / "kept" / "checkpoints" / "checkpoint-3")
    monkeypatch.setattr(finetune.VideoFeatures, "write", None)  # resumed, it finds them
    finetune.finetune(kept, tmp_path / "kept")
    again = load_file(tmp_path / "kept" / "model" / "model.safetensors")
    assert all(torch.equal(value, weights[1][name]) for name, value in again.items())

    for rates in ({"model.visual": 1e-5}, {"model.spatial_encoder.camera_token": 1e-5}):
        training = replace(kept, learning_rates=recipe.learning_rates | rates)
        with pytest.raises(ValueError, match=rf"data: cache: features: found a learning rate for {min(rates)}.*to be frozen"):
            finetune.finetune(training, tmp_path / "refused")
    with pytest.raises(ValueError, match=r"data: cache: found 'features', expected none"):
        replace(read_recipe(recipes / "grpo.yaml"), data=kept.data)


def test_fine_tuning_with_adapters(recipes, tmp_path):
    recipe = finetune.smoke(read_recipe(recipes / "spatial_mllm_v1_1_lora.yaml"))
    finetune.finetune(recipe, tmp_path)
    adapters = load_file(tmp_path / "adapters" / "adapter_model.safetensors")
    parts = {"lora": sum("lora_" in name for name in adapters), "whole": sum("lora_" not in name for name in adapters)}
    assert parts["lora"] == 2 * 7 * 2  # two matrices for each of seven linear layers in two blocks
    assert parts["whole"] == 5 + 5  # connector and merger
    model = allocentric.load(tmp_path / "model", device="cpu").network
    up, down = (adapters[f"base_model.model.model.language_model.layers.1.mlp.up_proj.lora_{x}.weight"] for x in "AB")
    first = load_file(tmp_path / "tiny" / "qwen" / "model.safetensors")
    (base,) = (value for name, value in first.items() if name.endswith("layers.1.mlp.up_proj.weight"))
    merged = model.model.language_model.layers[1].mlp.up_proj.weight
    assert down.abs().max() > 0
    assert torch.allclose(merged, base + recipe.lora.alpha / recipe.lora.rank * down @ up, atol=1e-6)
    before = state(tmp_path)
    finetune.finetune(recipe, tmp_path)
    assert state(tmp_path) == before


def test_weights_that_are_not_there_are_named(recipes, tmp_path):
    recipe = read_recipe(recipes / "spatial_mllm_v1_1.yaml")
    with pytest.raises(ValueError, match=r"Qwen2\.5-VL-3B-Instruct: found no such folder, expected weights to start from"):
        finetune.finetune(recipe, tmp_path / "out")
    assert not (tmp_path / "out" / "model").exists()


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    """What says that a stage is done is written by transformers before the weights: the folder has its name only with both."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("old")
    with pytest.raises(RuntimeError, match="killed"), whole_folder(tmp_path / "model") as unfinished:
        (unfinished / "config.json").write_text("new")
        raise RuntimeError("killed")
    assert (tmp_path / "model" / "config.json").read_text() == "old"
    with whole_folder(tmp_path / "model") as unfinished:
        assert not any(unfinished.iterdir())
        (unfinished / "weights").write_text("new")
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["weights"] and len(list(tmp_path.iterdir())) == 1


def test_a_stage_goes_on_by_its_own_recipe_alone(recipes, tmp_path):
    recipe = run.smoke(read_recipe(recipes / "nano.yaml"))
    (tmp_path / "matching").mkdir()
    keep_recipe(recipe.matching, tmp_path / "matching")
    (tmp_path / "matching" / "vggt.safetensors").touch()
    run.run(recipe, tmp_path, lambda name, steps: None, ["matching"])  # done
    other = replace(recipe, matching=replace(recipe.matching, frames=(2, 3)))
    with pytest.raises(ValueError, match=r"matching/recipe.json: found a run with frames \[2, 12\], expected \[2, 3\]"):
        run.run(other, tmp_path, lambda name, steps: None, ["matching"])
