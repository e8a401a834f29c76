"""SSR's stages: kept features stand for frames, packed sequences for separate ones; a smoke run leaves models and a report."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from allocentric import cli, load
from allocentric.answer import Answer, split_notes
from allocentric.evaluate import ssr as evaluation
from allocentric.evaluate.rooms import numbered, room_questions, room_views, row_of
from allocentric.graph.map_tasks import (
    LINE,
    MapLine,
    lines_to_ask,
    map_graph,
    map_lines_of,
    names_in_map,
    noted_graph,
    where_are,
    write,
)
from allocentric.graph.text_boxes import boxes_from_first_camera, parse_boxes, write_box
from allocentric.ground import GlobalSearch, search_globally
from allocentric.models.scene import Scene
from allocentric.models.spatial_mllm import load_spatial_mllm
from allocentric.rooms import LABELS
from allocentric.tasks.facts import seen
from allocentric.tasks.notes import noted_places
from allocentric.train import ssr as ssr_training
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.recipe import RoomsSpec, SSRVariant, read_recipe
from allocentric.train.sft import IGNORE, SFTTrainer, collate
from allocentric.train.shards import RoomShards
from allocentric.train.ssr import (
    CELLS,
    NANO,
    SSRRooms,
    smoke,
    stages_of,
    start_model,
    start_tokens,
    tasks_of,
    train_ssr,
    training_rooms,
)
from allocentric.views import Views


@pytest.fixture(scope="module")
def recipe(request):
    return read_recipe(request.config.rootpath / "recipes" / "ssr_nano.yaml")


@pytest.fixture(scope="module")
def features(tmp_path_factory, shards):
    folder = tmp_path_factory.mktemp("features")
    list(write_features(folder, load_spatial_mllm(NANO, dtype=torch.float32).model, shards, mirrored=False))
    return RoomFeatures(folder, shards)


def small_pictures(model, processor):
    """nano's processor enlarges pictures to the size it was trained at; the tests' stay as they are."""
    processor.image_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 140}
    return model, processor


@pytest.fixture(scope="module")
def started():
    """Fusion A from nano, with a connector that adds something, as after training."""
    model, processor = small_pictures(*start_model("nano", "A"))
    torch.manual_seed(0)
    with torch.no_grad():
        model.model.connector.mlp[-1].weight.normal_(std=0.1)
        model.model.connector.offset.normal_(std=0.1)
    return model, processor


def dataset(features, processor, recipe, questions=3) -> SSRRooms:
    stage = replace(recipe.structure, questions=questions)
    return SSRRooms(features, processor, tasks_of(recipe, "A", stage), stage, 4, (4, 6), 2)


# ---- the start ----


def test_it_starts_as_the_nano_it_comes_from(started):
    model, processor = started
    nano = load_spatial_mllm(NANO, dtype=torch.float32)
    assert torch.equal(model.model.visual.merger.mlp[0].weight, nano.model.visual.merger.mlp[0].weight)
    weight, old = model.get_input_embeddings().weight, nano.get_input_embeddings().weight
    known = processor.tokenizer.convert_tokens_to_ids("<|geometry_start|>")
    assert torch.equal(weight[:known], old[:known])
    ids = processor.tokenizer.convert_tokens_to_ids
    assert torch.equal(weight[ids("<|geometry_start|>")], weight[model.config.vision_start_token_id])
    near, far = (torch.cosine_similarity(weight[ids("(4,4)")], weight[ids(cell)], 0) for cell in ("(4,5)", "(9,0)"))
    assert near > far + 0.1 and ids("(0,0)") + 99 == ids("(9,9)")
    assert model.lm_head.weight is weight
    with pytest.raises(ValueError, match="expected 'nano' or the folder of a finished run"):
        start_model("nowhere", "A")


def test_geometry_added_to_2d_tokens_starts_as_what_nano_reads(features):
    model, _ = start_model("nano", "B")
    nano, kept = load_spatial_mllm(NANO, dtype=torch.float32).model, features[0][1]
    with torch.no_grad():
        expected = nano.fuse(kept["2d"], kept["3d"])
        found = model.model.fuse_kept(kept["2d"], kept["3d"], torch.tensor([[1, 4, 6]] * 4)).last_hidden_state
        plain = nano.visual.merger(kept["2d"].float().reshape(-1, nano.config.vision_config.hidden_size))
    off = lambda tokens: float((tokens - expected).norm() / expected.norm())  # noqa: E731
    assert off(found) < 0.03 and off(plain) > 0.3


def test_a_line_of_a_map_is_a_dozen_tokens(started, shards):
    _, processor = started
    graph = map_graph(shards[0].scene)
    text = write(graph, redundancy=2)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids) == text
    assert len(ids) < 13 * len(text.splitlines())
    assert processor.tokenizer.convert_ids_to_tokens(ids)[0].startswith("<map>")
    box = write_box(boxes_from_first_camera(shards[0].scene)[0], 3, 1)
    boxed = processor.tokenizer(box, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(boxed) == box and len(boxed) <= 30


def test_new_tokens_start_as_what_they_stand_for(started):
    model, processor = started
    weight = model.get_input_embeddings().weight.detach().clone()
    token, cell = (processor.tokenizer.convert_tokens_to_ids(piece) for piece in ("</map>", "(0,0)"))
    start_tokens(model, {cell: [5], token: [7, 9]})
    found = model.get_input_embeddings().weight
    assert torch.allclose(found[token], weight[[7, 9]].mean(0)) and not torch.equal(found[cell], weight[5])
    with torch.no_grad():
        found.copy_(weight)
    assert len(CELLS) == 100


# ---- kept features ----


@pytest.mark.parametrize("mode", ["A", "B", "C", "D", "F"])
def test_kept_features_stand_for_the_frames(features, started, shards, mode):
    model, processor = small_pictures(*start_model("nano", mode))
    model.load_state_dict(started[0].state_dict())
    inputs = processor(text=[processor.prefix(videos=1)], videos=[room_views(shards, 1).frames])
    kept = features[1][1]
    with torch.no_grad():
        from_frames = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], inputs["mm_token_type_ids"])
        from_kept = model.model.fuse_kept(kept["2d"], kept["3d"], inputs["image_grid_thw"], inputs["mm_token_type_ids"])
    assert len(from_frames.pooler_output) == len(from_kept.pooler_output)
    for one, other in zip(from_frames.pooler_output, from_kept.pooler_output, strict=True):
        assert (one - other).abs().max() < 0.02 * one.abs().max()  # float16 on disk
    rest = {name: inputs[name] for name in ("input_ids", "attention_mask", "image_grid_thw", "mm_token_type_ids")}
    out = model.generate(**rest, video_features_2d=kept["2d"], video_features_3d=kept["3d"], max_new_tokens=1, do_sample=False)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 1
    with pytest.raises(ValueError, match="kept features: found"):
        model.model.fuse_kept(kept["2d"][:-1], kept["3d"], inputs["image_grid_thw"])


def test_camera_tokens_cannot_be_made_of_kept_features(features):
    model, _ = start_model("nano", "E")
    kept = features[0][1]
    with pytest.raises(ValueError, match="camera tokens: found none"):
        model.model.fuse_kept(kept["2d"], kept["3d"], torch.tensor([[1, 4, 6]] * 4))


# ---- packed sequences ----


def test_a_sequence_is_the_prompt_with_all_its_questions(features, started, recipe, shards):
    _, processor = started
    torch.manual_seed(3)
    example = dataset(features, processor, recipe)[2]
    segments, labels, ids = example["segments"], example["labels"], example["input_ids"]
    prefix = processor(text=[processor.prefix(videos=1)], videos=[room_views(shards, 2).frames])["input_ids"][0]
    assert torch.equal(ids[segments == 0], prefix) and (labels[segments == 0] == IGNORE).all()
    assert segments.max() == 3 and example["image_grid_thw"].tolist() == [[1, 4, 6]] * 4
    assert len(example["video_features_2d"]) == len(example["video_features_3d"]) == 4 * 6
    answered = labels != IGNORE
    assert torch.equal(labels[answered], ids[answered]) and all((answered & (segments == i)).any() for i in (1, 2, 3))


def test_the_loss_of_a_packed_sequence_is_that_of_separate_prompts(features, started, recipe, tmp_path):
    model, processor = started
    examples = []
    torch.manual_seed(1)
    data = dataset(features, processor, recipe, questions=2)
    packed = data[0]
    trainer = SFTTrainer(
        model=model, args=recipe.structure.optimisation.arguments(tmp_path), learning_rates={"model.connector": 1e-3}
    )
    loss = lambda some: trainer.compute_loss(model, collate(some, processor.tokenizer.pad_token_id)).item()  # noqa: E731
    with torch.no_grad():
        together = loss([packed])
        total = count = 0
        for i in (1, 2):
            kept = (packed["segments"] == 0) | (packed["segments"] == i)
            one = {name: packed[name][kept] for name in ("input_ids", "labels", "segments")}
            one["segments"] = one["segments"].clamp(max=1)
            examples.append({**packed, **one})
            n = int((one["labels"] != IGNORE).sum())
            total, count = total + n * loss([examples[-1]]), count + n
        assert together == pytest.approx(total / count, rel=1e-4)
        assert loss(examples) == pytest.approx(total / count, rel=1e-4), "a batch of two scenes"


def test_unknown_tasks_stages_and_variants_are_named(recipe, tmp_path):
    stage = replace(recipe.structure, tasks={"juggling": 1.0})
    with pytest.raises(ValueError, match=r"tasks: found \['juggling'\]"):
        tasks_of(recipe, "A", stage)
    with pytest.raises(ValueError, match=r"bare: found 0\.2, expected 0"):
        tasks_of(recipe, "A", replace(recipe.reasoning, bare=0.2))
    with pytest.raises(ValueError, match=r"stages: found \['dance'\]"):
        train_ssr(recipe, tmp_path, lambda name, steps: None, ["dance"])
    with pytest.raises(ValueError, match="variant: found fusion 'E'"):
        SSRVariant("E")
    with pytest.raises(ValueError, match="variant: found fusion 'A' and maps 'list'"):
        SSRVariant("A", "list")
    assert stages_of(recipe)[:4] == ("rooms", "features", "structure-A", "reasoning-A")
    assert {variant.fusion for variant in recipe.variants.values()} >= {"A", "B", "C"}
    with pytest.raises(ValueError, match="found no finished variant"):
        evaluation.report(recipe, tmp_path, evaluation.Plan(1), lambda name, steps: None)


# ---- scores ----


def perfect(shards, asked, form, plan) -> list[dict]:
    """What a model would have written that knows everything."""
    records = []
    for room in range(len(shards)):
        scene = shards[room].scene
        boxes, shown = boxes_from_first_camera(scene), seen(scene)
        answers = [question.answer for question in asked[room]]
        records.append(
            {
                "room": room,
                "map": write(map_graph(scene), form, 3),
                "tokens": 100,
                "boxes": "\n".join(write_box(box) for box, visible in zip(boxes, shown, strict=True) if visible),
                "grounding": [q.answer for q in evaluation.descriptions(scene, room, plan)],
                "model": answers,
                "exact map": [None] * len(answers),
                "map first": [f"<map>\n</map>\n{answer}" for answer in answers],
            }
        )
    return records


def test_scores_of_one_who_knows_everything_and_of_one_who_knows_nothing(shards, recipe):
    plan = evaluation.Plan(rooms=3, per_task=2, descriptions=3)
    asked = room_questions(shards, plan.per_task)
    knows = perfect(shards, asked, "triplets", plan)
    blank = [{k: ([""] * len(v) if isinstance(v, list) else "" if isinstance(v, str) else v) for k, v in r.items()} for r in knows]
    forms = {"knows": "triplets", "blank": "triplets"}
    start = [row_of(q, "") for room in numbered(asked) for q in room]
    scores = evaluation.score({"knows": knows, "blank": blank}, shards, forms, plan, 3, [q for a in asked for q in a], start)
    answers = {name: found["macro"][0] for name, found in scores["answers"].items()}
    assert answers["knows: model"] == answers["knows: map first"] == answers["knows: exact map"] == 100
    assert answers["blank: model"] == answers["blank: own map"] == 0
    assert answers["exact graph"] > 95
    assert 30 < answers["knows: own map"] < answers["knows: own boxes"] <= 100
    assert scores["answers"]["knows: own map"]["object_size_estimation"] == 0
    maps = scores["maps"]
    assert maps["knows"]["object_recall"][0] == 1 and maps["blank"]["object_recall"][0] == 0
    assert maps["knows"]["direction"] == maps["exact, as triplets"]["direction"] and np.isnan(maps["blank"]["position_rmse"][0])
    low, high = maps["knows"]["direction"][1:]
    assert low <= maps["knows"]["direction"][0] <= high
    assert scores["boxes"]["knows"]["acc_25"] == 1 and scores["boxes"]["knows"]["f1_25"][0] == pytest.approx(1)
    assert scores["boxes"]["blank"]["answered"] == 0
    gap = scores["gaps"]["knows minus blank"]
    assert gap["macro"][0] == 100 and gap["object_recall"] == [1, 1, 1]
    assert scores["gaps"]["knows minus start"] == {"macro": [100, 100, 100]} and answers["start"] == 0
    text = evaluation.render(scores, recipe, plan)
    assert "| knows |" in text and "| exact, as triplets |" in text and "knows minus blank" in text


def test_intervals_are_over_rooms():
    found = evaluation.mean_interval(np.array([0.0, 1.0] * 50 + [np.nan]))
    assert found[0] == 0.5 and 0.35 < found[1] < 0.45 < 0.55 < found[2] < 0.65
    assert np.isnan(evaluation.mean_interval(np.array([np.nan, np.nan]))).all()


# ---- a run ----

PLAN = evaluation.Plan(rooms=1, per_task=1, descriptions=1, seed=50, longest=8)


@pytest.fixture(scope="module")
def run(recipe, shards, tmp_path_factory):
    """A smoke run on the tests' rooms, with its report on one of them."""
    out = tmp_path_factory.mktemp("ssr")
    for folder in ("rooms", "held-out"):
        shutil.copytree(shards.folder, out / folder)
    small = replace(smoke(recipe), lines=0, rooms=RoomsSpec(3, first_seed=50, frames=4, height=56, width=84))
    optimise = lambda stage: replace(stage, optimisation=replace(stage.optimisation, steps=2, batch_size=1, bf16=False))  # noqa: E731
    small = replace(small, structure=optimise(small.structure), reasoning=optimise(small.reasoning))
    progress = lambda name, steps: [None for _ in steps]  # noqa: E731
    train_ssr(small, out, progress, workers=1)
    evaluation.report(small, out, PLAN, progress, workers=1)
    return small, out


def test_a_run_leaves_models_and_a_report(run, recipe):
    small, out = run
    assert list(small.variants) == ["A", "grid"]
    start = load_spatial_mllm(NANO, dtype=torch.float32).state_dict()
    for name in small.variants:
        before, after = (load(out / name / stage).network.state_dict() for stage in ("structure", "reasoning"))
        frozen = [key for key in after if key.startswith(("model.spatial_encoder.", "model.visual.blocks."))]
        assert len(frozen) > 20 and all(torch.equal(after[key].float(), start[key].float()) for key in frozen)
        for part in ("model.connector.mlp.2.weight", "model.language_model.layers.0.self_attn.q_proj.weight"):
            assert not torch.equal(before[part], after[part])
        assert after["model.connector.mlp.2.weight"].any()
    report = json.loads((out / "report.json").read_text())
    assert set(report["maps"]) == {"A", "grid", "exact, as triplets", "exact, as grid"} and "A minus grid" in report["gaps"]
    assert {f"{n}: {way}" for n in small.variants for way in ("model", "map first", "own map")} <= set(report["answers"])
    assert {"start", "start, worked out", "constant answer", "exact graph"} <= set(report["answers"])
    assert (out / "report.md").read_text().startswith("# SSR on held-out rooms")


def test_a_finished_stage_is_left_alone_and_answers_are_kept(run):
    small, out = run
    file = out / "A" / "reasoning" / "model.safetensors"
    stamp = file.stat().st_mtime_ns
    train_ssr(small, out, lambda name, steps: [None for _ in steps], ["reasoning-A"], workers=1)
    assert file.stat().st_mtime_ns == stamp
    (answers,) = (out / "written").glob("A-*.jsonl")
    whole = answers.read_text()
    answers.write_text(whole + '{"room": 1, "map"')  # cut off
    shards = RoomShards(out / "held-out", 1)
    assert list(evaluation.write_answers(None, None, shards, "triplets", PLAN, answers, 2)) == [(1, 1)]
    assert answers.read_text() == whole


def test_features_of_a_finished_nano_run_are_used(run, recipe, tmp_path):
    small, out = run
    other = replace(small, start=str(out))
    assert len(training_rooms(other, tmp_path)) == 3
    with pytest.raises(ValueError, match="rooms: count: found 1, expected the 3 of"):
        training_rooms(replace(other, rooms=replace(small.rooms, count=1)), tmp_path)
    with pytest.raises(ValueError, match="found no model in"):
        start_model(str(out), "A")


def test_a_map_of_a_video_is_what_the_model_writes(run, shards, tmp_path, monkeypatch, capsys):
    """It is asked for every category, then for lines of what it noted; a model that writes none is said to."""
    _, out = run
    places = {"bed": "bed 1.0 2.0, bed 3.0 2.5; 3 0", "sofa": "sofa 0.0 -1.0; 1", "tv": "tv -2.0 1.0; 9"}
    asked, wrong_lines = [], []

    def answer(self, questions, most):
        asked.extend(questions)
        return [reply(question) for question in questions]

    def reply(question):
        if not question.startswith(LINE["triplets"]):
            label = re.search(r"How many (.+)\(s\)", question)[1]
            return replace(_said("1"), notes=places.get(label, ""))
        graph = noted_graph(places.values())
        names = [name.rsplit(" ", 2)[0] for name in question.splitlines()[1].split(", ")]
        (line,) = map_lines_of(graph, "triplets", [[names_in_map(graph).index(name) for name in names]])
        return _said("What map?" if wrong_lines else line.answer)

    monkeypatch.setattr(Scene, "_answer", answer)
    frames = tmp_path / "frames"
    frames.mkdir()
    for i, frame in enumerate(shards[0].frames):
        Image.fromarray(frame).save(frames / f"{i}.png")
    command = ["map", str(frames), "--model", str(out / "A" / "reasoning"), "--frames", "4", "--json"]
    cli.main(command)
    found = json.loads(capsys.readouterr().out)
    where = {(o["label"], o["instance"]): o["point"] for o in found["objects"]}
    assert set(where) == {("bed", 1), ("bed", 2), ("sofa", 1), ("tv", 1)} and len(asked) > len(LABELS)
    assert math.dist(where["bed", 1], where["bed", 2]) == pytest.approx(math.hypot(2, 0.5), abs=0.4)
    asked.clear()
    cli.main([*command, "--labels", "bed", "sofa"])
    assert "How many bed(s)" in asked[0] and "How many sofa(s)" in asked[1] and asked[2].startswith(LINE["triplets"])
    wrong_lines.append(True)
    for wrong, expected in ((command, "found no map in what the model wrote"), ([*command, "--detector", "x"], "found both")):
        with pytest.raises(SystemExit) as stop:
            cli.main(wrong)
        assert stop.value.code == 2 and expected in capsys.readouterr().err


def test_boxes_are_found_without_proposals(run, shards, tmp_path, monkeypatch):
    """The model writes them; in posed captures they come out in the world. One that writes nothing is said to."""
    _, out = run
    sample = shards[0]
    box = boxes_from_first_camera(sample.scene)[0]
    texts = [write_box(box, 2, decimals=4), "I see no such thing"]
    monkeypatch.setattr(Scene, "_answer", lambda self, questions, most: [_said(text) for text in texts])
    views = Views(
        torch.from_numpy(np.array(sample.frames)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.array(sample.depth, dtype=np.float32)),
        torch.from_numpy(np.array(sample.intrinsics)),
        torch.from_numpy(np.array(sample.camera_to_world)),
        indices=torch.tensor([0, 5, 10, 15]),
        scale="metric",
        source="room",
    )
    found = search_globally(views, ["the thing", "another"], out / "A" / "reasoning")
    assert isinstance(found, GlobalSearch) and found.world
    true = sample.scene.objects[0].box
    assert found.found[0].box.center == pytest.approx(true.center, abs=1e-3) and found.found[0].frame == 10
    assert found.found[1].box is None and "no box: the model wrote 'I see no such thing'" in found.lines()[-1]
    files = found.write(tmp_path)
    assert [file.name for file in files] == ["grounding.json", "grounding-0.png"]
    saved = json.loads(files[0].read_text())
    assert saved["frame"] == "world" and saved["found"][1]["box"] is None
    plain = search_globally(Views(views.frames), ["the thing", "another"], out / "A" / "reasoning")
    assert plain.as_dict()["frame"] == "first camera" and plain.found[0].box.center == pytest.approx(box.center, abs=1e-3)
    with pytest.raises(ValueError, match="descriptions: found none"):
        search_globally(views, [], out / "A" / "reasoning")


def _said(text):
    return Answer(text, "", 1.0, (0, 5, 10, 15))


def test_global_grounding_by_command(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ground", str(tmp_path), "the bed", "--global"])
    assert stop.value.code == 2 and "--global: found no --model" in capsys.readouterr().err


class Oracle(Scene):
    """Answers what it was taught to, to the letter, and keeps what it was asked."""

    def __init__(self, taught: dict[str, str]):
        self.taught, self.asked = taught, []

    def ask(self, questions, max_new_tokens=128):
        self.asked += questions
        return [replace(_said(answer), notes=notes) for notes, answer in map(split_notes, map(self.reply, questions))]

    def reply(self, question: str) -> str:
        return self.taught.get(question, "")


def test_the_report_asks_what_training_taught(recipe, shards, started, monkeypatch):
    """What is asked at the end must have been learned: the very same words. Of one who knows, maps and boxes are whole."""
    tasks, scene = tasks_of(recipe, "A", recipe.reasoning), shards[0].scene
    taught = {}
    for name in ("whereabouts", "global_detection"):
        task, _ = tasks[name]
        taught |= {task.prompt(q): q.answer for q in task.make(scene, np.random.default_rng(0), 1000)}
    oracle, graph = Oracle(taught), map_graph(scene)
    monkeypatch.setattr(Scene, "encode", lambda *given: oracle)
    plan = evaluation.Plan(rooms=1, per_task=1, descriptions=1)
    record = evaluation.ask_room(*started, shards, 0, room_questions(shards, 1)[0], "triplets", plan, 2)
    assert sorted(label for notes in record["found"] for label, _ in noted_places(notes)) == sorted(o.label for o in graph.objects)
    boxes = parse_boxes(record["boxes"]).boxes
    assert sorted(box.label for box in boxes) == sorted(o.label for o in graph.objects)
    assert all(prompt in taught for prompt in oracle.asked if prompt.startswith("Write the 3D boxes"))
    counts = {where_are(label) for label in LABELS}
    assert counts <= taught.keys() and counts <= set(oracle.asked)
    found = noted_graph(record["found"])
    lines = [prompt for prompt in oracle.asked if prompt.startswith(LINE["triplets"])]
    assert lines == lines_to_ask(found, "triplets", 2) and len(lines) > len(graph.objects)
    (learned,) = MapLine(think=True).make(scene, np.random.default_rng(0))
    assert [len(noted_places(prompt.splitlines()[1])) for prompt in (lines[0], learned.text)] == [3, 3]


def test_half_of_the_steps_of_structure_work_out_lines_without_a_video(run, recipe, monkeypatch):
    """Packed lines beside rooms that are seen, as many of the one as of the other; structure trains on both, reasoning on rooms."""
    small, out = run
    seen = {}
    monkeypatch.setattr(ssr_training.run, "train_on_questions", lambda model, processor, plan, data, *rest: seen.update(d=data))
    monkeypatch.setattr(ssr_training.SSRForConditionalGeneration, "save_pretrained", lambda *given: None)
    both = replace(small, lines=5, variants=small.variants | {"new": small.variants["A"]})
    ssr_training.train_stage(both, out, "structure", "new")
    rows = [seen["d"][i] for i in range(len(seen["d"]))]
    shown = ["image_grid_thw" in row for row in rows]
    assert sum(shown) == len(rows) / 2 and recipe.lines > 0
    texts = [row for row, is_seen in zip(rows, shown, strict=True) if not is_seen]
    assert all(int(row["segments"].max()) == 5 for row in texts)
    monkeypatch.setattr(ssr_training, "load_stage", lambda folder: ssr_training.start_model("nano", "A"))
    ssr_training.train_stage(both, out, "reasoning", "new")
    assert len(seen["d"]) == len(rows) / 2 and all("image_grid_thw" in seen["d"][i] for i in range(len(seen["d"])))
