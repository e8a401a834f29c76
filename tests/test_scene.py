"""`Scene`: asked from a shared prefix, a model answers as it does when asked the plain way."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from allocentric.model import Model
from allocentric.models.scene import Scene, SceneCache, SharedPrefixLayer, scene_key, weights_id
from allocentric.views import Views
from test_graph_lift import write_rgbd
from test_spatial_mllm import frames, tiny_model, tiny_processor

QUESTIONS = ["how many chairs are in this room?", "left?", "what is the size of the room in square metres?", "why?"]


def views(seed: int = 0, count: int = 4) -> Views:
    return Views(frames(count, seed=seed), indices=torch.arange(count) * 10)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def scene(model, processor):
    return Scene.encode(model, processor, views())


def plain(model, processor, question, seen=None, **options):
    """The path without a scene: encode, prefill and generate for one question."""
    seen = views() if seen is None else seen
    inputs = processor(text=[processor.prompt(question, videos=1)], videos=[seen.frames])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -1]
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    return logits, written[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("newline", [False, True])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("time_step", [None, 1])
def test_first_logits_equal_the_plain_path(newline, step, time_step):
    model = tiny_model(step, mrope_time_step=time_step)
    processor = tiny_processor(step, newline_after_vision=newline)
    found = Scene.encode(model, processor, views(count=5)).first_logits(QUESTIONS)
    for logits, question in zip(found, QUESTIONS, strict=True):
        expected, _ = plain(model, processor, question, views(count=5))
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def test_answers_equal_the_plain_path_in_any_company(scene, model, processor):
    answers = scene.ask(QUESTIONS, max_new_tokens=8)
    for answer, question in zip(answers, QUESTIONS, strict=True):
        _, expected = plain(model, processor, question)
        assert answer.text == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert answer.question == question and answer.frames == (0, 10, 20, 30)
    alone = scene.ask(QUESTIONS[1], max_new_tokens=8)
    assert (alone.text, alone.confidence) == (answers[1].text, pytest.approx(answers[1].confidence, abs=1e-6))
    assert [a.text for a in scene.ask(QUESTIONS, max_new_tokens=8, batch_size=3)] == [a.text for a in answers]
    assert len({tuple(row.tolist()) for row in scene.first_logits(QUESTIONS)}) == len(QUESTIONS)


def test_answers_end_at_the_end_token_and_confidence_is_their_probability(model, processor, scene):
    logits, written = plain(model, processor, QUESTIONS[0], min_new_tokens=8)
    assert scene.ask(QUESTIONS[0], max_new_tokens=1).confidence == pytest.approx(logits.softmax(-1).max().item(), abs=1e-6)
    before = model.generation_config.eos_token_id
    try:  # let the third token that differs from those before be the end
        end = next(i for i, token in enumerate(written) if i and token not in written[:i])
        model.generation_config.eos_token_id = [int(written[end])]
        answer = scene.ask(QUESTIONS[0], max_new_tokens=8)
        assert answer.text == processor.tokenizer.decode(written[:end], skip_special_tokens=True).strip()
        model.generation_config.eos_token_id = int(written[0])
        nothing = scene.ask(QUESTIONS[0], max_new_tokens=8)
        assert (nothing.text, nothing.confidence) == ("", 0.0)
    finally:
        model.generation_config.eos_token_id = before


def test_a_repetition_penalty_of_the_weights_counts(model, processor, scene, tmp_path):
    """Qwen's generation config has one (1.05), and `generate` goes by it."""
    scene.save(tmp_path / "room.safetensors")
    before = scene.ask(QUESTIONS, max_new_tokens=8)
    try:
        model.generation_config.repetition_penalty = 1.5
        answers = scene.ask(QUESTIONS, max_new_tokens=8)
        assert Scene.load(tmp_path / "room.safetensors", model, processor).ask(QUESTIONS, max_new_tokens=8) == answers
        for answer, question in zip(answers, QUESTIONS, strict=True):
            _, expected = plain(model, processor, question)
            assert answer.text == processor.tokenizer.decode(expected, skip_special_tokens=True).strip()
    finally:
        model.generation_config.repetition_penalty = None
    assert [a.text for a in answers] != [a.text for a in before]


def test_the_encoders_run_once(model, processor, monkeypatch):
    calls = {"2d": 0, "3d": 0, "tokens": 0}

    def count(kind):
        def hook(module, args, kwargs, output):
            calls[kind] += kwargs["inputs_embeds"].shape[1] if kind == "tokens" else 1

        return hook

    parts = {"2d": model.model.visual, "3d": model.model.spatial_encoder, "tokens": model.model.language_model}
    hooks = [part.register_forward_hook(count(kind), with_kwargs=True) for kind, part in parts.items()]
    try:
        scene = Scene.encode(model, processor, views())
        prefix = calls["tokens"]
        scene.ask(QUESTIONS, max_new_tokens=1)
        scene.ask(QUESTIONS[0], max_new_tokens=1)
    finally:
        for hook in hooks:
            hook.remove()
    longest = max(len(processor.tokenizer(processor.suffix(q))["input_ids"]) for q in QUESTIONS)
    alone = len(processor.tokenizer(processor.suffix(QUESTIONS[0]))["input_ids"])
    assert calls == {"2d": 1, "3d": 1, "tokens": prefix + longest + alone}  # no prefix token is ever read again


def test_asking_leaves_the_scene_as_it_was(scene):
    before = [(keys.clone(), values.clone()) for keys, values in scene.prefix]
    first = scene.ask(QUESTIONS, max_new_tokens=4)
    assert scene.ask(QUESTIONS, max_new_tokens=4) == first
    for (keys, values), (old_keys, old_values) in zip(scene.prefix, before, strict=True):
        assert torch.equal(keys, old_keys) and torch.equal(values, old_values)


def test_two_scenes_of_one_model_do_not_mix(model, processor):
    """Rotary offsets belong to the scene, not to the model that encoded something else since."""
    long, short = views(count=8), views(seed=1, count=2)
    scenes = Scene.encode(model, processor, long), Scene.encode(model, processor, short)
    for scene, seen in zip(scenes, (long, short), strict=True):
        expected, _ = plain(model, processor, QUESTIONS[0], seen)
        assert (scene.first_logits(QUESTIONS[:1])[0] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_shared_prefix_is_stored_once():
    prefix = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    layer = SharedPrefixLayer(*prefix)
    new = torch.randn(3, 2, 2, 4)
    keys, values = layer.update(new, new + 1)
    assert torch.equal(keys, torch.cat([prefix[0].repeat(3, 1, 1, 1), new], dim=2))
    assert torch.equal(values, torch.cat([prefix[1].repeat(3, 1, 1, 1), new + 1], dim=2))
    assert layer.get_seq_length() == 7 and layer.get_mask_sizes(1) == (8, 0)
    assert layer.keys.shape == (3, 2, 2, 4)  # what a batch adds to memory


def test_an_empty_question_is_refused(scene):
    with pytest.raises(ValueError, match=r"question 1: found '  ', expected some text"):
        scene.ask(["how many?", "  "])


@pytest.mark.parametrize("nothing", [{"max_new_tokens": 0}, {"batch_size": 0}, {"batch_size": -1}])
def test_answers_of_no_tokens_and_batches_of_no_questions_are_refused(scene, nothing):
    with pytest.raises(ValueError, match=rf"ask: found .*{' '.join(map(str, *nothing.items()))}.*, expected at least 1 of each"):
        scene.ask(QUESTIONS, **nothing)


def test_a_place_of_no_frames_is_refused(model, processor):
    with pytest.raises(ValueError, match=r"views: found no frames, expected at least one"):
        Scene.encode(model, processor, views().select([]))


def test_save_and_load(tmp_path, scene, model, processor):
    scene.save(tmp_path / "room.safetensors")
    loaded = Scene.load(tmp_path / "room.safetensors", model, processor)
    assert (loaded.key, loaded.frames, loaded.next_position) == (scene.key, scene.frames, scene.next_position)
    assert torch.equal(loaded.first_logits(QUESTIONS), scene.first_logits(QUESTIONS))
    assert [p.name for p in tmp_path.iterdir()] == ["room.safetensors"]


def test_a_scene_of_another_model_or_preprocessing_is_refused(tmp_path, scene, model, processor):
    scene.save(tmp_path / "room.safetensors")
    other = tiny_model()
    with torch.no_grad():
        other.model.connector.mlp[0].bias.add_(1e-3)
    for loader in ((other, processor), (model, tiny_processor(newline_after_vision=True))):
        with pytest.raises(ValueError, match="found a scene of model and preprocessing"):
            Scene.load(tmp_path / "room.safetensors", *loader)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="found no scene"):
        Scene.load(tmp_path / "other.safetensors", model, processor)


def test_a_change_of_one_weight_anywhere_is_another_model():
    model = tiny_model()
    kept = weights_id(model)
    for parameter in (model.model.language_model.layers[1].mlp.up_proj.weight, model.model.language_model.embed_tokens.weight):
        for row, column in ((0, 1), (7, 13), (-1, -1)):
            with torch.no_grad():
                value = parameter[row, column].clone()
                parameter[row, column] += 1e-4
                assert weights_id(model) != kept
                parameter[row, column] = value
    assert weights_id(model) == kept


def test_key_is_that_of_content_frame_numbers_preprocessing_and_weights(model, processor):
    key = scene_key(model, processor, views())
    assert key == scene_key(tiny_model(), tiny_processor(), views())
    changed = views()
    changed.frames[0, 0, 0, 0] ^= 1
    others = [
        scene_key(model, processor, changed),
        scene_key(model, processor, Views(views().frames)),
        scene_key(model, processor, Views(views().frames.view(4, 3, 84, 56), indices=views().indices)),
        scene_key(model, tiny_processor(video_fps=4.0), views()),
        scene_key(tiny_model(mrope_time_step=1), processor, views()),
    ]
    assert len({key, *others}) == 6


def test_watching_a_capture_chooses_frames_that_show_most_of_it(model, processor, tmp_path):
    # cameras 0 and 1 look at one wall, 2 and 3 at the opposite one: two frames that see most are one of each
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[2:, 0, 0] = poses[2:, 2, 2] = -1
    intrinsics = torch.tensor([[60.0, 0, 42], [0, 60, 28], [0, 0, 1]]).repeat(4, 1, 1)
    write_rgbd(replace(views(), depth=torch.full((4, 56, 84), 2.0), camera_to_world=poses, intrinsics=intrinsics), tmp_path / "c")
    watcher = Model(model, processor)
    first, second = watcher.watch(tmp_path / "c", frames=2, sampling="space_aware").frames
    assert first in (0, 1) and second in (2, 3)
    assert watcher.watch(tmp_path / "c", frames=2).frames == (0, 3)


def test_cache_keeps_the_scenes_used_last_within_its_bound(model, processor):
    size = Scene.encode(model, processor, views()).nbytes
    cache = SceneCache(max_bytes=2 * size)
    a, b, c = (views(seed) for seed in range(3))
    first = cache.watch(model, processor, a)
    cache.watch(model, processor, b)
    assert cache.watch(model, processor, a) is first  # and a is now the one used last
    cache.watch(model, processor, c)
    assert len(cache) == 2 and cache.nbytes == 2 * size
    assert scene_key(model, processor, a) in cache and scene_key(model, processor, b) not in cache
    small = SceneCache(max_bytes=size - 1)
    assert small.watch(model, processor, a).ask("why?", max_new_tokens=1) and len(small) == 0
