"""How pointing is measured: proposals as detectors give them, guesses to compare with, tables, and the whole run in small."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from allocentric.evaluate.answers import Row
from allocentric.geometry.boxes import Box3D
from allocentric.models.grounding import GroundingScene
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks.base import Question
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.grounding import GroundingDataset, Rooms, encoder_2d, load_start, room_views, smoke
from allocentric.train.grounding_card import (
    PointingRooms,
    guesses,
    model_hits,
    named,
    noisy,
    pair_iou,
    proposals,
    table,
    train_and_report,
    variants,
)
from allocentric.train.recipe import read_recipe
from allocentric.train.shards import RoomShards, write_rooms


def box(x: float, label: str = "") -> Box3D:
    return Box3D((x, 0.0, 0.5), (1.0, 1.0, 1.0), 0.0, label)


def question(scene: int, x: float, label: str, groups=("unique",), i: int = 0) -> Question:
    return Question("grounding", str(scene), f"the {label}", (), label, (label,), f"{scene}.{i}", boxes=(box(x),), groups=groups)


@pytest.fixture(scope="module")
def recipe(request):
    plan = smoke(read_recipe(request.config.rootpath / "recipes" / "s2_nano.yaml"))
    rooms = replace(plan.data.rooms, count=2, frames=2)
    plan = replace(plan, optimisation=replace(plan.optimisation, muon=0.0))  # no matrix of a transformer block is trained here
    return replace(plan, data=replace(plan.data, rooms=rooms), guidance=None, learning_rates={"structure|ground_head": 1e-3})


# ---- proposals ----


def test_noisy_proposals_miss_move_and_invent_and_are_repeatable():
    things = tuple(SceneObject(i + 1, f"thing {i}", box(3.0 * i)) for i in range(200))
    scene = AnnotatedScene("s", things)
    found = noisy(scene, np.random.default_rng(0))
    assert found == noisy(scene, np.random.default_rng(0)) != noisy(scene, np.random.default_rng(1))
    true, false = [b for b in found if b.label], [b for b in found if not b.label]
    assert len(false) == 60 and 165 <= len(true) <= 195
    truth = {o.label: o.box for o in things}
    overlap = np.array([pair_iou([b], [truth[b.label]])[0, 0] for b in true])
    assert 0.3 < overlap.min() < 0.5 < np.median(overlap) < 0.6 < overlap.max() < 1
    assert [b.label for b in found] != sorted((b.label for b in found), key=lambda label: (label == "", label))
    assert noisy(scene, np.random.default_rng(0), missed=0.0, moved=0.0, false=0.0)[0].size == (1.0, 1.0, 1.0)


def test_boxes_found_by_shape_are_named_by_what_they_overlap():
    truth = [box(0.0, "bed"), box(5.0, "chair")]
    assert [b.label for b in named([box(5.2), box(0.7), box(0.3)], truth)] == ["chair", "", "bed"]


# ---- numbers ----


def test_guesses_hits_and_tables_are_counted_by_hand():
    given = [
        {"noisy": [box(0.0, "chair"), box(0.4, "chair"), box(9.0, "chair"), box(20.0, "bed")]},
        {"noisy": [box(5.0, "bed"), box(6.0, "")]},
    ]
    asked = [
        question(0, 0.0, "chair", ("multiple", "hard")),  # overlaps: 1, 0.43, 0, 0
        question(0, 30.0, "bed", ("unique", "easy"), 1),  # the only bed stands elsewhere
        question(1, 5.0, "desk", ("unique", "easy")),  # none of the category: any will do
    ]
    found = guesses(asked, given, "noisy")
    assert found["category"].right[0.25].tolist() == pytest.approx([2 / 3, 0, 1 / 2])
    assert found["random"].right[0.5].tolist() == pytest.approx([1 / 4, 0, 1 / 2])
    assert found["recall"].right[0.5].tolist() == [1, 0, 1]
    said = [box(0.4), box(20.0), None]
    rows = [
        Row(q, "", json.dumps({"noisy": [*b.center, *b.size, 0.0]} if b else {}), "", (), 0.0)
        for q, b in zip(asked, said, strict=True)
    ]
    hits = model_hits(rows, "noisy")
    assert hits.right[0.25].tolist() == [1, 0, 0] and hits.right[0.5].tolist() == [0, 0, 0]
    by_group = {row["group"]: row for row in table(asked, {"model": hits, **found}, 2)}
    assert by_group["overall"]["n"] == 3 and by_group["unique"]["n"] == 2 and "view_dependent" not in by_group
    value, low, high = by_group["overall"]["model"]["0.25"]
    assert value == pytest.approx(100 / 3) and (low, high) == (0, 50)  # room 1 alone, room 0 alone
    assert by_group["multiple"]["model"]["0.25"] == [100, 100, 100]  # draws without room 0 say nothing about it
    assert by_group["easy"]["recall"]["0.5"][0] == 50


def test_every_ablation_leaves_out_what_it_says(request):
    recipe = read_recipe(request.config.rootpath / "recipes" / "s2_nano.yaml")
    without = variants(recipe)
    assert without["full"] == recipe and len(without) == 6
    assert without["without guidance"].guidance is None and not any("guid" in n for n in without["without guidance"].learning_rates)
    changed = {name: variant.structure.items() - recipe.structure.items() for name, variant in without.items()}
    assert changed["without position encoding"] == {("use_position", False)}
    assert changed["without structure module"] == {("use_structure", False)}
    assert changed["scrambled groups"] == {("scrambled_groups", True)}
    assert not without["without language guidance"].data.language
    assert all(variant.optimisation == recipe.optimisation for variant in without.values())


# ---- the run ----


def test_kept_features_are_what_the_encoder_says(recipe, shards, tmp_path):
    list(write_rooms(tmp_path / "rooms", replace(recipe.data.rooms, count=1), workers=1))
    small, shards = shards, RoomShards(tmp_path / "rooms")
    model, processor = load_start(recipe)
    with pytest.raises(ValueError, match="found that the 2D encoder is trained"):
        encoder_2d(model)
    model.requires_grad_(False)
    list(write_features(tmp_path / "features", encoder_2d(model), shards, True))
    rooms = Rooms(shards, recipe.data, RoomFeatures(tmp_path / "features", shards))
    for index in (0, 1):  # a room, and it again in the mirror
        asked = rooms[index]
        seen = processor.see(asked.views).inputs
        fresh = model.model.encode_2d(seen["pixel_values_videos"], seen["video_grid_thw"])
        assert torch.allclose(asked.features, fresh, rtol=2e-3, atol=2e-3 * float(fresh.abs().max()))
    assert not torch.allclose(rooms[0].features, rooms[1].features, atol=0.5)
    other = Rooms(small, recipe.data, RoomFeatures(tmp_path / "features", shards))  # frames that the processor makes larger
    with pytest.raises(ValueError, match="features: found 40 tokens, expected"):
        GroundingDataset(other, processor, recipe.data)[0]


def test_gold_words_reach_the_model_only_where_they_are_put(recipe, shards):
    """The same probe as for a scene, on the way that rooms are asked; told the gold category, it does find it."""
    model, processor = load_start(recipe)
    room = shards[0].scene.objects
    given = [{"perfect": [replace(o.box, label="piano") for o in room]}]
    asked = [replace(question(0, 0.0, "piano"), text="the thing by the wall", references=("piano",))]
    gold = processor.encode(" piano")
    entered: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: entered.extend(ids[0].flatten().tolist()))
    with torch.no_grad():  # it never writes the word of its own accord
        model.get_input_embeddings().weight[gold] = 0.0
    for leak in (False, True):
        entered.clear()
        PointingRooms(model.eval(), processor, shards, given, leak).reply(None, asked, [""])
        assert (set(gold) <= set(entered)) == leak
    hook.remove()


def test_the_run_trains_asks_and_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch):
    (report,) = train_and_report(recipe, tmp_path)
    assert (tmp_path / "features" / "2d.npy").exists()
    text, numbers = report.read_text(), json.loads((tmp_path / "card.json").read_text())
    assert all(f"## {kind}" in text for kind in ("Perfect", "Noisy", "Shape")) and numbers["rooms"] == 2
    overall = numbers["kinds"]["perfect"]["groups"][0]
    assert overall["group"] == "overall" and overall["recall"]["0.5"][0] == 100 and 0 < overall["random"]["0.25"][0] < 60
    (file,) = tmp_path.glob("answers-*.jsonl")
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"scene": "0"' in line))
    looked = []
    encode = GroundingScene.encode.__func__
    monkeypatch.setattr(GroundingScene, "encode", classmethod(lambda cls, *a: (looked.append(a[2].source), encode(cls, *a))[1]))
    train_and_report(recipe, tmp_path)
    assert file.read_text() == whole and len(looked) == 1, "the room that was answered is not looked at again"
    with pytest.raises(ValueError, match="stages: found"):
        train_and_report(recipe, tmp_path, stages=("geometry",))


@pytest.mark.slow
def test_ablations_train_every_variant_and_compare_them(recipe, tmp_path):
    (report,) = train_and_report(recipe, tmp_path, stages=("ablations",))
    numbers = json.loads(report.with_suffix(".json").read_text())
    assert list(numbers["variants"]) == ["full", "full, told the gold category", *list(variants(recipe))[1:]]
    assert numbers["variants"]["full"]["noisy@0.5"]["change"] == [0, 0, 0]
    assert all(len(line.split("|")) == 9 for line in report.read_text().splitlines() if line.startswith("|"))
    folders = [path for path in (tmp_path / "ablations").iterdir()]
    assert len(folders) == 6 and all((folder / "answers.jsonl").exists() for folder in folders)


def test_proposals_of_a_room_are_the_same_every_time(shards):
    made = proposals(shards[0], 3)
    assert made == proposals(shards[0], 3) and made["noisy"] != proposals(shards[0], 4)["noisy"]
    assert [b.label for b in made["perfect"]] == [o.label for o in shards[0].scene.objects]
    assert room_views(shards[0]).scale == "metric"
