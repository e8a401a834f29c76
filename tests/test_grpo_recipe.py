"""Recipes that learn by reward: the published settings, running and resuming, and what memory they ask for."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file

import allocentric
import rollouts
from allocentric.models.patches import patchify
from allocentric.models.scene import Scene
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration
from allocentric.tasks import TRAINING_TASKS
from allocentric.train import finetune, reinforce
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.finetune import load_start
from allocentric.train.grpo import complete
from allocentric.train.memory import Load, config_of, estimate, load_of, on_meta, visual_tokens
from allocentric.train.questions import AskedRooms, AskedScenes
from allocentric.train.recipe import FineTune, GRPOSettings, LoRA, Reinforce, read_recipe
from allocentric.train.sft import freeze_except
from allocentric.views import Views
from test_sft import new_model, processor  # noqa: F401  (a fixture)
from test_spatial_mllm import frames, tiny_model, tiny_processor
from test_train_stages import tensors


@pytest.fixture
def recipes(request):
    return request.config.rootpath / "recipes"


# ---- reading ----


def test_the_published_settings(recipes):
    recipe = read_recipe(recipes / "grpo.yaml")
    assert isinstance(recipe, Reinforce)
    grpo = recipe.grpo
    assert (grpo.group, grpo.temperature, grpo.beta, recipe.optimisation.steps) == (8, 1.0, 0.04, 1000)
    assert set(recipe.learning_rates.values()) == {1e-6} and recipe.optimisation.learning_rate == 1e-6
    assert recipe.rewards["format"] == recipe.rewards["accuracy"] == 1.0 and recipe.mra == "released"
    assert recipe.form == "answer_tags" and recipe.data.frames == 16 and recipe.optimisation.bf16
    cold = read_recipe(recipes / "cold_start.yaml")
    assert type(cold) is FineTune
    how = cold.optimisation
    assert (how.steps, cold.batch, how.schedule, how.learning_rate) == (200, 16, "linear", 1e-5)
    sft = read_recipe(recipes / "spatial_mllm_paper.yaml")
    how = sft.optimisation
    assert (how.epochs, sft.batch, how.schedule, how.learning_rate, sft.data.frames) == (1, 16, "linear", 1e-5, 16)
    assert set(sft.learning_rates) == {"model.language_model", "model.connector"} and set(sft.learning_rates.values()) == {1e-5}
    assert cold.start.checkpoint == "out/sft/model"  # each stage starts from the one before
    nano = read_recipe(recipes / "grpo_nano.yaml")
    assert nano.rooms.run == "out/nano" and nano.form == "notes" and nano.data is None


def test_what_grpo_trains(recipes):
    model = SpatialMLLMForConditionalGeneration(SpatialMLLMConfig.tiny())
    freeze_except(model, read_recipe(recipes / "grpo.yaml").learning_rates)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(("model.language_model", "model.connector", "lm_head")), name


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        ("grpo.group", 1, "grpo: group: found 1, expected at least 2"),
        ("grpo.temperature", 0.0, "grpo: temperature: found 0.0, expected more than 0"),
        ("grpo.average", "median", "grpo: average: found 'median', expected 'sequence' or 'constant'"),
        ("grpo.betta", 1, r"grpo: found unknown \['betta'\]"),
        ("data", None, "data: expected either `data` or `rooms`"),
    ],
)
def test_a_wrong_value_is_named(recipes, tmp_path, where, value, complaint):
    keys = yaml.safe_load((recipes / "grpo.yaml").read_text())
    *path, last = where.split(".")
    inner = keys
    for name in path:
        inner = inner[name]
    inner[last] = value
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(keys))
    with pytest.raises(ValueError, match=complaint):
        read_recipe(tmp_path / "a.yaml")


def test_the_configuration_of_accelerate_shards_by_layers(recipes):
    config = yaml.safe_load((recipes / "accelerate" / "fsdp2.yaml").read_text())
    assert config["distributed_type"] == "FSDP" and config["fsdp_config"]["fsdp_version"] == 2
    names = set(config["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(","))
    with torch.device("meta"):
        model = SpatialMLLMForConditionalGeneration(SpatialMLLMConfig.tiny())
    assert names <= {type(module).__name__ for module in model.modules()}


# ---- running ----


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_it_runs_resumes_and_stops(recipes, tmp_path, adapters):
    recipe = reinforce.smoke(read_recipe(recipes / "grpo.yaml"))
    if adapters:
        targets = r"model\.language_model\.layers\.\d+\.(self_attn\.[qv]_proj|mlp\.up_proj)"
        rates = {"model.language_model": 1e-3, "model.connector": 1e-3}
        recipe = replace(recipe, lora=LoRA(4, 8.0, targets, ("connector",)), learning_rates=rates)
    reinforce.reinforce(recipe, tmp_path)
    log = json.loads((tmp_path / "log.json").read_text())
    assert sum("reward" in entry for entry in log) == 3 and all("kl" in entry for entry in log if "reward" in entry)
    model = allocentric.load(tmp_path / "model", device="cpu")
    assert model.watch(tmp_path / "tiny" / "room-0" / "video.mp4", frames=4).ask("why?", max_new_tokens=2).question == "why?"
    trained = load_file(tmp_path / "model" / "model.safetensors")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    reinforce.reinforce(recipe, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files
    if adapters:
        assert (tmp_path / "adapters" / "adapter_model.safetensors").exists()
        return
    for path in sorted((tmp_path / "model").iterdir()):
        path.unlink()
    for path in sorted((tmp_path / "checkpoints" / "checkpoint-3").iterdir()):
        path.unlink()
    (tmp_path / "checkpoints" / "checkpoint-3").rmdir()
    reinforce.reinforce(recipe, tmp_path)  # from checkpoint 2
    again = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in again.items())


def test_questions_of_a_file_become_prompts(recipes, tmp_path):
    recipe = reinforce.smoke(read_recipe(recipes / "grpo.yaml"))
    start, data = reinforce.tiny_questions(tmp_path, recipe.data)
    model, reader = load_start(start, recipe)
    scenes = AskedScenes(data, reader, "answer_tags")
    one = scenes[0]
    assert len(one.prompts) == len(one.columns["question"]) == 2
    # the annotation beside the video, for a map's reward
    assert [scene.name for scene in one.columns["scene"]] == ["room-parts-0"] * 2
    for question, prompt in zip(one.columns["question"], one.prompts, strict=True):
        assert question.text in prompt and "<think>" in prompt
    written = complete(model.eval(), reader, one, GRPOSettings(group=2, max_new_tokens=2), None)
    views = allocentric.open_views(tmp_path / "room-0" / "video.mp4", 4)
    expected = Scene.encode(model, reader, views).ask(one.prompts, max_new_tokens=2)
    texts = [reader.tokenizer.decode(c.ids, skip_special_tokens=True).strip() for c in written]
    assert texts == [answer.text for answer in expected]


@pytest.mark.parametrize("rows", [[0, 1, 2]])
def test_rooms_with_cached_features_become_prompts(tmp_path, shards, processor, rows):  # noqa: F811
    model = new_model(processor).eval()
    list(write_features(tmp_path, model.model, shards, mirrored=False))
    features = RoomFeatures(tmp_path, shards)
    tasks = {name: (TRAINING_TASKS[name], 1.0) for name in ("object_counting", "object_size_estimation", "room_size_estimation")}
    grid = (2, 4, 6)
    rooms = AskedRooms(features, processor, tasks, 2, grid, rows, rounds=2)
    assert len(rooms) == 6
    texts = [[question.text for question in rooms[i].columns["question"]] for i in range(6)]
    assert texts == [[question.text for question in rooms[i].columns["question"]] for i in range(6)]
    assert texts[:3] != texts[3:]
    one = rooms[1]
    written = complete(model, processor, one, GRPOSettings(group=2, max_new_tokens=3), None)
    assert len(written) == 2
    # what the features stand for
    pixels, grid_thw = patchify(tensors(shards[1]), model.config)
    seen = {"input_ids": one.seen["input_ids"], "pixel_values_videos": pixels, "video_grid_thw": grid_thw[None]}
    on_pixels = complete(model, processor, replace(one, seen=seen), GRPOSettings(group=2, max_new_tokens=3), None)
    for a, b in zip(written, on_pixels, strict=True):
        assert a.ids == b.ids and a.log_probs == pytest.approx(b.log_probs, abs=2e-3)


def test_smoke_runs_of_fine_tuning_still_take_their_own_recipe(recipes):
    assert type(finetune.smoke(read_recipe(recipes / "cold_start.yaml"))) is FineTune


# ---- memory ----


def test_memory_of_what_can_be_counted(recipes):
    """Weights, gradients and moments of a model that is there, and keys and values of its rollouts."""
    recipe = reinforce.smoke(read_recipe(recipes / "grpo.yaml"))
    model = tiny_model()
    freeze_except(model, recipe.learning_rates)
    shadow = on_meta(model.config, recipe)
    load = Load(seen=100, rows=8, question=10, written=6, checkpointing=True)
    one, four = (estimate(shadow, model.config, load, gpus, True, True) for gpus in (1, 4))
    weights = sum(p.nbytes for p in model.parameters())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert (one["weights"], one["reference"], one["gradients"], one["moments"]) == (weights, weights, trained, 2 * trained)
    assert 0 < trained < weights
    assert four["weights"] == weights / 4 and four["gathered"] > 0 == one["gathered"]
    assert estimate(shadow, model.config, load, 1, False, False).keys() == one.keys() - {"keys and values"}

    seen = Scene.encode(model, tiny_processor(), Views(frames(4)))
    tokens = seen.prefix[0][0].shape[-2]
    kept = estimate(shadow, model.config, Load(tokens, 1, 0, 0, True), 1, False, True)["keys and values"]
    layers = model.config.text_config.num_hidden_layers
    assert kept == seen.nbytes / 2 * (1 + 1 / layers)  # bfloat16; and one layer of one row joined


def test_memory_of_the_published_recipe(recipes):
    recipe = read_recipe(recipes / "grpo.yaml")
    config = config_of(recipe)
    model, load = on_meta(config, recipe), load_of(recipe, visual_tokens(16))
    assert visual_tokens(16) == 3128 and (load.rows, load.written) == (8, 768)
    weights = estimate(model, config, load, 1, True, True)["weights"]
    assert 4.9e9 < weights / 4 < 5.1e9  # parameters, VGGT's heads apart
    lora = LoRA(16, 32.0, r"model\.language_model\..*q_proj")
    adapted = on_meta(config, replace(recipe, lora=lora, learning_rates={"model.language_model": 1e-4}))
    assert isinstance(adapted, PeftModel)
    small = estimate(adapted, config, load, 1, False, True)
    assert small["gradients"] < 0.01 * weights


# ---- speed ----


def test_the_benchmark_of_rollouts_compares_equals():
    """Its published side is plain `generate`, with everything repeated; a difference is noticed."""
    model, reader = tiny_model(), tiny_processor()
    rollouts.never_end(model)
    assert rollouts.check(model, reader, frames(4), "left?", tokens=3) < 1e-4
    right = rollouts.our_score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollouts, "our_score", lambda *args: right(*args) + 1e-3)
        with pytest.raises(AssertionError, match="log-probabilities differ by"):
            rollouts.check(model, reader, frames(4), "left?", tokens=3)
