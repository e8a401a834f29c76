"""Referring expressions that mean one thing, scores, and pointing without ever seeing the answer."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch

from allocentric.geometry.boxes import Box3D, box_iou, boxes_to_array
from allocentric.models.grounding import S2_NANO, GroundingScene, S2Processor, grounding_prompt, load_grounding, with_geometry
from allocentric.models.s2_mllm import (
    GROUND,
    S2LlavaConfig,
    S2LlavaForConditionalGeneration,
    S2QwenConfig,
    S2QwenForConditionalGeneration,
)
from allocentric.rooms import make_room
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks.base import Question
from allocentric.tasks.grounding import (
    TEMPLATES,
    VIEW_WORDS,
    ReferringExpression,
    description_groups,
    grounding_report,
    outcome,
    referable,
)
from allocentric.train.grounding import room_views
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms
from test_spatial_mllm import tiny_processor

# ---- expressions ----


def sentence_patterns():
    for relation, templates in TEMPLATES.items():
        for template in templates:
            pattern = re.escape(template)
            for name in "tab":
                pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>[a-z ]+?)")
            yield relation, re.compile(pattern + "$")


def fits(scene: AnnotatedScene, relation: str, o: SceneObject, a: SceneObject | None, b: SceneObject | None) -> bool:
    """Whether a sentence holds for an object, as plainly as can be: loops, centres, surfaces sampled point by point."""
    same = [x for x in scene.objects if x.label == o.label]

    def low(x):
        return x.box.center[2] - x.box.size[2] / 2

    def high(x):
        return x.box.center[2] + x.box.size[2] / 2

    def volume(x):
        return math.prod(x.box.size)

    def place(x):
        return np.array(x.box.center[:2])

    def over(x, y, reach):  # any part of x's footprint within reach of y's
        return gap(x, y, flat=True) <= reach

    def gap(x, y, flat=False):
        p, q = shell(x), shell(y)
        if flat:
            p, q = p[:, :2], q[:, :2]
        return float(np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1)).min())

    def shell(x):
        n = 7
        grid = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, n)] * 3, indexing="ij"), -1).reshape(-1, 3) * x.box.size
        c, s = np.cos(x.box.yaw), np.sin(x.box.yaw)
        return grid @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) + np.array(x.box.center)

    if relation == "name":
        return True
    if relation in ("closest", "farthest"):
        best = (min if relation == "closest" else max)(same, key=lambda x: gap(x, a))
        return best is o
    if relation in ("largest", "smallest"):
        return (max if relation == "largest" else min)(same, key=volume) is o
    if relation == "tallest":
        return max(same, key=lambda x: x.box.size[2]) is o
    if relation == "on":
        return over(o, a, 0.01) and low(a) + 0.2 < low(o) < high(a) + 0.1
    if relation == "above":
        return over(o, a, 0.55) and low(o) >= high(a)
    if relation == "below":
        return over(o, a, 0.55) and high(o) <= low(a) + 1e-9
    if relation == "between":
        along = place(b) - place(a)
        t = float((place(o) - place(a)) @ along / (along @ along))
        aside = np.linalg.norm(place(o) - place(a) - t * along) / np.linalg.norm(along)
        return 0.1 < t < 0.9 and aside < 0.45
    ahead, there = place(b) - place(a), place(o) - place(a)
    turn = ahead[0] * there[1] - ahead[1] * there[0]  # positive to the left
    return turn > 0 if relation == "left" else turn < 0


@pytest.mark.parametrize("seed", [3, 11, 12])
def test_every_expression_fits_exactly_one_object(seed):
    scene = make_room(seed).annotate()
    questions = ReferringExpression().make(scene, np.random.default_rng(seed), 60)
    assert len(questions) >= 20
    patterns = list(sentence_patterns())
    for question in questions:
        readings = [(r, m.groupdict()) for r, p in patterns if (m := p.match(question.text)) and r in question.groups]
        assert readings, question.text
        relation, labels = readings[0]
        named = {x: [o for o in scene.objects if o.label == labels.get(x)] for x in "ab"}
        assert all(len(named[x]) == 1 for x in "ab" if x in labels), question.text
        a, b = (named[x][0] if named[x] else None for x in "ab")
        fitting = [o for o in scene.objects if o.label == labels["t"] and fits(scene, relation, o, a, b)]
        assert [o.box for o in fitting] == list(question.boxes), question.text
        assert question.answer == labels["t"]


def test_expressions_are_repeatable_varied_and_grouped():
    scene, task = make_room(11).annotate(), ReferringExpression()
    questions = task.make(scene, np.random.default_rng(0), 60)
    assert questions == task.make(scene, np.random.default_rng(0), 60)
    assert len({q.id for q in questions}) == len(questions)
    relations = {q.groups[3] for q in questions}
    assert {"name", "closest", "farthest", "between", "left", "right"} <= relations
    for q in questions:
        same = sum(o.label == q.answer for o in scene.objects)
        assert ("unique" in q.groups) == (same == 1) and ("hard" in q.groups) == (same > 2)
        assert ("view_dependent" in q.groups) == (q.groups[3] in ("left", "right"))
    assert not any(set(re.findall("[a-z]+", t)) & VIEW_WORDS for r in TEMPLATES if r not in ("left", "right") for t in TEMPLATES[r])
    assert description_groups("The chair facing the desk", 3) == ("multiple", "hard", "view_dependent")


def test_what_is_not_clear_is_not_said():
    """Two chairs nearly as far from the desk: neither is the closest; a third, farther, is the farthest."""

    def thing(i, label, x):
        return SceneObject(i, label, Box3D((float(x), 0.0, 0.4), (0.5, 0.5, 0.8), 0.0, label))

    scene = AnnotatedScene("s", (thing(1, "desk", 0), thing(2, "chair", 2), thing(3, "chair", -2.1), thing(4, "chair", 4.5)))
    said = {(f.relation, f.target) for f in referable(scene)}
    assert ("farthest", 3) in said and not any(relation == "closest" for relation, _ in said)
    assert not any(relation in ("left", "right", "largest") for relation, _ in said)


# ---- scores ----


def box(x: float, label: str = "") -> Box3D:
    return Box3D((x, 0.0, 0.0), (1.0, 1.0, 1.0), 0.0, label)


def question(x: float = 0.0, groups=("unique",), **more) -> Question:
    return Question("grounding", "s", "the chair", (), "chair", boxes=(box(x),), groups=groups, **more)


def test_report_counts_hits_and_what_the_proposals_allowed():
    near, far = box(1 / 3), box(5.0)  # overlap of 0.5 exactly, and none
    found = [
        outcome(question(), near, [near, far]),
        outcome(question(groups=("multiple",)), far, [near, far]),
        outcome(question(groups=("multiple",)), far, [far]),
    ]
    report = grounding_report(found)
    assert report["overall"] == pytest.approx(
        {"Acc@0.25": 100 / 3, "Acc@0.5": 100 / 3, "recall@0.25": 200 / 3, "recall@0.5": 200 / 3, "n": 3}
    )
    assert report["multiple"]["Acc@0.25"] == 0 and report["multiple"]["recall@0.25"] == 50 and report["unique"]["n"] == 1


def test_task_scores_written_boxes():
    task = ReferringExpression()
    assert task.score(question(), "[0, 0, 0, 1, 1, 1]") == 1 and task.score(question(), "[0.5, 0, 0, 1, 1, 1, 0.0]") == 1
    assert task.score(question(), "[0.5, 0, 0, 1, 1, 1]", "0.5") == 0
    assert task.score(question(), "over there") == 0 and task.score(question(), "[1, 2]") == 0


# ---- pointing ----

BOXES = [
    Box3D((0.123456789, 1.0, 0.5), (1.0, 2.0, 1.0)),
    Box3D((2.0, 0.0, 0.5), (1.5, 1.5, 1.1), 0.3),
    Box3D((50.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
]


@pytest.fixture(scope="module", params=["qwen", "llava"])
def pointer(request, shards):
    """A tiny model with large random weights, its processor, and a rendered scene."""
    torch.manual_seed(0)
    frames = tiny_processor(1)
    tokenizer = frames.tokenizer
    tokenizer.add_tokens([GROUND, "<image>"], special_tokens=True)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (GROUND, "<image>", "<|video_pad|>", "<|im_end|>")}
    if request.param == "qwen":
        config = S2QwenConfig.tiny(ground_token_id=ids[GROUND], video_token_id=ids["<|video_pad|>"], image_token_id=319)
        config.vision_config.temporal_patch_size = 1
        model, processor = S2QwenForConditionalGeneration(config), S2Processor(tokenizer, config, frames)
    else:
        config = S2LlavaConfig.tiny(ground_token_id=ids[GROUND], video_token_index=ids["<image>"], image_token_index=ids["<image>"])
        model, processor = S2LlavaForConditionalGeneration(config), S2Processor(tokenizer, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    return model.eval(), processor, room_views(shards[0])


def test_a_shared_scene_says_what_a_whole_forward_pass_says(pointer):
    model, processor, views = pointer
    described = ["the chair by the window", "a bed"]
    scene = GroundingScene.encode(model, processor, views, BOXES)
    found = scene.ground(described, max_new_tokens=3)
    seen = processor.see(views)
    for description, one in zip(described, found, strict=True):
        ids = processor.prefix_ids(seen.inputs)[0].tolist() + processor.encode(processor.suffix(grounding_prompt(description)))
        with torch.no_grad():
            for _ in range(3):  # written greedily, then <ground>
                output = model(input_ids=torch.tensor([ids]), **seen.inputs)
                token = int(output.logits[0, -1].argmax())
                if token in (model.config.ground_token_id, model.generation_config.eos_token_id) or _ == 2:
                    break
                ids.append(token)
            ids.append(model.config.ground_token_id)
            whole = model(input_ids=torch.tensor([ids]), **seen.inputs, **seen.proposals(BOXES))
        expected = (whole.cosine[0] / model.config.structure_config.temperature).softmax(-1)
        assert torch.allclose(torch.tensor([*one.scores, one.absent]), expected, atol=1e-4)
    assert found[0].scores != found[1].scores


def test_boxes_come_back_as_they_were_given_and_unseen_ones_are_told(pointer):
    scene = GroundingScene.encode(*pointer, BOXES)
    assert scene.seen[2] is False
    for one in scene.ground(["the chair", "the bed", "the door"], 2):
        given = BOXES[one.index]
        assert (one.box.center, one.box.size, one.box.yaw) == (given.center, given.size, given.yaw)
        assert one.box.score == max(one.scores) and sum(one.scores) + one.absent == pytest.approx(1, abs=1e-5)
    assert dataclasses.replace(one, scores=(0.5, 0.3, 0.1), absent=0.1).several(0.6) == [0, 1]
    assert dataclasses.replace(one, scores=(0.2, 0.1, 0.1), absent=0.6).several() == []


def test_no_gold_text_reaches_the_model(pointer, monkeypatch):
    """Labels of the truth and of the proposals are words that the description lacks: none may enter, under any name."""
    model, processor, views = pointer
    asked = question(groups=("unique",), id="xylograph-7", references=("xylograph",))
    asked = dataclasses.replace(
        asked, answer="xylograph", objects=("xylograph",), boxes=(dataclasses.replace(BOXES[0], label="xylograph"),)
    )
    entered: list[int] = []
    embed = model.get_input_embeddings()
    hook = embed.register_forward_pre_hook(lambda _, given: entered.extend(given[0].flatten().tolist()))
    encoded: list[str] = []
    original = type(processor.tokenizer).__call__
    monkeypatch.setattr(
        type(processor.tokenizer), "__call__", lambda s, text, *a, **k: (encoded.append(str(text)), original(s, text, *a, **k))[1]
    )
    labelled = [dataclasses.replace(b, label="xylograph") for b in BOXES]
    scene = GroundingScene.encode(model, processor, views, labelled)
    (found,) = scene.ground([asked.text], max_new_tokens=3)
    hook.remove()
    text = processor.tokenizer.decode(entered)
    assert "chair" in text.lower() and "xylograph" not in text and not any("xylograph" in one for one in encoded)
    # what was fed is prefix, question and the model's own words: greedy answers do not depend on the gold
    other = GroundingScene.encode(model, processor, views, BOXES).ground([asked.text], max_new_tokens=3)[0]
    assert other.scores == found.scores and other.text == found.text


def test_what_cannot_be_asked_is_refused(pointer):
    model, processor, views = pointer
    scene = GroundingScene.encode(model, processor, views, BOXES)
    with pytest.raises(ValueError, match="found nothing"):
        scene.ground(["  "])
    with pytest.raises(ValueError, match="words only"):
        scene.ground([f"the chair at {GROUND}"])
    with pytest.raises(ValueError, match="found no proposals"):
        GroundingScene.encode(model, processor, views, [])
    with pytest.raises(ValueError, match="found no depth and cameras"):
        processor.see(dataclasses.replace(views, depth=None))


def test_frames_without_geometry_get_it_from_vggt_upright_and_relative():
    import allocentric

    geometry = allocentric.load().geometry
    frames = torch.randint(0, 256, (2, 3, 56, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = with_geometry(allocentric.Views(frames), geometry, 84)
    assert views.scale == "relative" and views.depth.shape == (2, 56, 84) and (views.depth > 0).all()
    up = -views.camera_to_world[:, :3, 1].mean(0)
    assert torch.allclose(up / up.norm(), torch.tensor([0.0, 0.0, 1.0]), atol=1e-4)
    rotation = views.camera_to_world[:, :3, :3]
    assert (
        torch.allclose(rotation @ rotation.mT, torch.eye(3).expand(2, 3, 3), atol=1e-4) and (torch.linalg.det(rotation) > 0).all()
    )


# ---- the command ----


def test_search_writes_json_and_pictures(pointer, tmp_path):
    from allocentric import ground
    from allocentric.view.grounding import frames_showing

    model, processor, views = pointer
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "boxes.json").write_text(json.dumps([[*b.center, *b.size, b.yaw] for b in BOXES]))
    found = ground.search(views, ["the chair"], tmp_path / "model", tmp_path / "boxes.json")
    files = found.write(tmp_path / "out")
    report = json.loads(files[0].read_text())
    assert report["proposals"] == 3 and report["scale"] == "metric" and report["proposals_without_view"] >= 1
    (one,) = report["found"]
    assert one["box"]["center"] == list(BOXES[one["proposal"]].center)
    assert files[1].stat().st_size > 1000
    wide = Box3D(tuple(views.camera_to_world[0, :3, 3].tolist()), (20.0, 20.0, 20.0))
    assert len(frames_showing(views, wide)) == len(views) and len(frames_showing(views, BOXES[2])) == 0
    with pytest.raises(ValueError, match="descriptions: found none"):
        ground.search(views, [], tmp_path / "model")
    with pytest.raises(ValueError, match="found no such file or folder"):
        ground.search(views, ["the chair"], tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"does not fit the model: missing \['ground_head"):
        ground.search(views, ["the chair"], S2_NANO.parent / "nano")  # a base, which has not learned to point


def test_the_pointer_that_comes_with_the_package_finds_more_than_chance_would(tmp_path):
    list(write_rooms(tmp_path, RoomsSpec(4, first_seed=10_000_000), workers=1))
    shards, rng, task, right, guessed = RoomShards(tmp_path, 4), np.random.default_rng(0), ReferringExpression(), [], []
    model, processor = load_grounding(device="cpu")
    assert model.dtype == torch.float32
    for room in range(4):
        sample = shards[room]
        boxes = [item.box for item in sample.scene.objects]
        asked = task.make(sample.scene, rng, 12)
        scene = GroundingScene.encode(model, processor, room_views(sample), boxes)
        for question, found in zip(asked, scene.ground([question.text for question in asked]), strict=True):
            overlap = box_iou(*(boxes_to_array(part) for part in ([boxes[found.index]], question.boxes)))
            right.append(overlap.max() > 0.5)
            guessed.append(len(question.boxes) / len(boxes))
    assert len(right) > 30 and np.mean(right) > 2 * np.mean(guessed)
