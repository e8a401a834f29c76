"""Stages of training: cached features stand for the frames, losses are what they claim, and what should learn does."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from allocentric import rooms
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.geometry.boxes import Box3D
from allocentric.geometry.cameras import encode_pose, invert_rigid, unproject_depth
from allocentric.models.patches import patchify
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, SpatialMLLMModel
from allocentric.scenes import AnnotatedScene, SceneObject
from allocentric.tasks import TRAINING_TASKS
from allocentric.tasks.inventory import Inventory
from allocentric.tasks.notes import PLACE, number_words, places
from allocentric.train import room_questions
from allocentric.train.features import RoomFeatures, write_features
from allocentric.train.geometry import (
    CONFIDENCE_WEIGHT,
    GeometricRooms,
    GeometryLoss,
    PatchGuidance,
    clip_tensors,
    collate_clips,
    confident_regression,
    gradient_loss,
    patch_matches,
    pose_error,
)
from allocentric.train.naming import NamedRooms, Naming, VisualWords, token_places
from allocentric.train.reading import ReadingTrainer, ToldRooms
from allocentric.train.room_questions import Reckoning, RoomQuestions, draw_turns, entered
from allocentric.train.run import PROJECTIONS
from allocentric.train.semantics import POINTS, PRESENT, TokenClassifier, augment_colour, point_categories, token_categories
from allocentric.train.sft import IGNORE, collate, pack
from allocentric.train.shards import RoomSample, mirror
from allocentric.train.tokenizer import train_tokenizer
from test_sft import TURNS, example, new_model, processor, trainer  # noqa: F401  (a fixture)


def tensors(sample: RoomSample) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(sample.frames)).permute(0, 3, 1, 2).float() / 255


# ---- features ----


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return SpatialMLLMModel(SpatialMLLMConfig.tiny()).eval()


@pytest.fixture(scope="module")
def features(tmp_path_factory, encoder, shards):
    folder = tmp_path_factory.mktemp("features")
    assert list(write_features(folder, encoder, shards, mirrored=True, block=4)) == [(0, 6), (4, 6), (6, 6)]
    return RoomFeatures(folder, shards)


def test_cached_features_are_those_of_the_frames(features, encoder, shards):
    assert len(features) == 6
    for row, sample in ((1, shards[1]), (5, mirror(shards[2]))):
        scene, cached = features[row]
        pixels, grid = patchify(tensors(sample), encoder.config)
        with torch.no_grad():
            expected = {"2d": encoder.encode_2d(pixels, grid[None]), "3d": encoder.encode_3d(pixels, grid[None])}
        for part in ("2d", "3d"):
            assert (cached[part] - expected[part]).abs().max() < 2e-3 * expected[part].abs().max(), part
        assert [o.box for o in scene.objects] == [o.box for o in sample.scene.objects]


def test_interrupted_writing_goes_on_where_it_stopped(tmp_path, features, encoder, shards, monkeypatch):
    assert next(write_features(tmp_path, encoder, shards, mirrored=True)) == (0, 6)
    with pytest.raises(ValueError, match="found features of 0 rooms, expected 3"):
        RoomFeatures(tmp_path, shards)
    some = write_features(tmp_path, encoder, shards, mirrored=True, block=2)
    assert [next(some) for _ in range(2)] == [(0, 6), (2, 6)]
    some.close()
    with pytest.raises(ValueError, match="found features of 2 rooms, expected 6; write them first"):
        RoomFeatures(tmp_path, shards)

    encoded, encode_2d = [], encoder.encode_2d
    monkeypatch.setattr(encoder, "encode_2d", lambda pixels, grid: encoded.append(len(grid)) or encode_2d(pixels, grid))
    assert list(write_features(tmp_path, encoder, shards, mirrored=True, block=2)) == [(2, 6), (4, 6), (6, 6)]
    assert encoded == [2, 2]
    again = RoomFeatures(tmp_path, shards)
    for row in range(6):
        for part in ("2d", "3d"):  # blocks of another size: equal up to the last bit of float16
            assert torch.allclose(again[row][1][part], features[row][1][part], rtol=2e-3, atol=2e-3)


def test_features_of_another_model_are_not_continued(features, shards):
    torch.manual_seed(1)
    other = SpatialMLLMModel(SpatialMLLMConfig.tiny())
    with pytest.raises(ValueError, match="found features of other rooms or another model"):
        next(write_features(features.folder, other, shards, mirrored=True))


def test_training_on_features_gives_the_loss_of_training_on_pixels(processor, encoder, features, shards, tmp_path):  # noqa: F811
    model = new_model(processor)
    model.model.visual, model.model.spatial_encoder = encoder.visual, encoder.spatial_encoder
    run, pad = trainer(model, tmp_path), processor.tokenizer.pad_token_id
    pixels, grid = patchify(tensors(shards[0]), model.config)
    text = pack(processor, [int(grid.prod()) // 4], TURNS)
    on_pixels = run.compute_loss(model, collate([text | {"pixel_values_videos": pixels, "video_grid_thw": grid[None]}], pad))
    cached = {f"video_features_{part}": value for part, value in features[0][1].items()}
    on_features = run.compute_loss(model, collate([text | cached | {"video_grid_thw": grid[None]}], pad))
    other = {f"video_features_{part}": value for part, value in features[1][1].items()}
    on_another_room = run.compute_loss(model, collate([text | other | {"video_grid_thw": grid[None]}], pad))
    assert on_features.item() == pytest.approx(on_pixels.item(), rel=2e-5)
    assert on_another_room.item() != pytest.approx(on_pixels.item(), rel=2e-5)


def test_room_questions_show_what_the_model_may_see(features, processor):  # noqa: F811
    tasks = {name: (task, 1.0) for name, task in TRAINING_TASKS.items()}
    pads = {}
    for see in (("2d", "3d"), ("2d",), ()):
        torch.manual_seed(3)
        made = RoomQuestions(features, processor, tasks, 3, (2, 4, 6), see)[1]
        assert {name.removeprefix("video_features_") for name in made if "features" in name} == set(see)
        assert made["segments"].max() == 3
        pads[see] = int((made["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|video_pad|>")).sum())
        answers = processor.tokenizer.decode(made["input_ids"][made["labels"] >= 0])
        assert answers.count("<|im_end|>") == 3
        pads[answers] = True
    assert (pads["2d", "3d"], pads["2d",], pads[()]) == (12, 12, 0)
    assert len(pads) == 4  # the same questions for all three


def test_questions_follow_the_weights_of_their_tasks(shards):
    tasks = {name: (TRAINING_TASKS[name], weight) for name, weight in (("object_counting", 0.0), ("object_size_estimation", 1.0))}
    turns = draw_turns(shards[0].scene, tasks, 1, np.random.default_rng(0))
    assert "longest dimension" in turns[0].prompt
    rng = np.random.default_rng(0)
    tasks = {name: (task, 1.0 + 2 * (name == "object_counting")) for name, (task, _) in tasks.items()}
    many = [draw_turns(shards[0].scene, tasks, 1, rng) for _ in range(200)]
    assert 0.65 < np.mean(["How many" in turns[0].prompt for turns in many]) < 0.85


def test_notes_are_given_and_the_rest_is_reckoned(shards, processor):  # noqa: F811
    tasks = {name: (TRAINING_TASKS[name], 1.0) for name in ("object_abs_distance", "object_counting", "obj_appearance_order")}
    torch.manual_seed(0)
    texts = []
    for _ in range(8):
        made = Reckoning(shards, processor, tasks, 3)[1]
        for turn in range(1, int(made["segments"].max()) + 1):
            labels = made["labels"][(made["segments"] == turn) & (made["labels"] != IGNORE)]
            texts.append(processor.tokenizer.decode(labels).removesuffix("<|im_end|>"))
    worked = [text for text in texts if text.startswith("; ")]
    assert all("</think>" in text for text in worked)
    assert any(re.match(r"; -?\d\.\d -?\d\.\d \d\.\d</think>", text) for text in worked)
    assert any(text.isdigit() for text in texts), "a count follows from the list alone"


def test_half_of_the_rooms_that_are_reckoned_about_are_mirrored(shards, processor, monkeypatch):  # noqa: F811
    names = []
    monkeypatch.setattr(room_questions, "entered", lambda scene, rng: names.append(scene.name) or scene)
    torch.manual_seed(0)
    dataset = Reckoning(shards, processor, {"object_counting": (TRAINING_TASKS["object_counting"], 1.0)}, 1)
    for _ in range(40):
        dataset[1]
    assert 8 < sum(name.endswith("-mirrored") for name in names) < 32


def test_a_room_is_entered_anywhere_and_stays_the_same_room(shards):
    scene, rng = shards[0].scene, np.random.default_rng(0)
    ways = np.array([places(entered(scene, rng)) for _ in range(40)])
    apart = np.linalg.norm(ways[:, :, None] - ways[:, None], axis=-1)
    assert np.allclose(apart, apart[0], atol=1e-4)  # distances between objects do not change
    assert ways[:, 0].std(0).min() > 0.5  # and where they lie does
    (ax, ay), (bx, by) = (ways[:, i].T - ways[:, 0].T for i in (1, 2))
    assert len(set(ax * by > ay * bx)) == 1  # nor does left become right


# ---- reading ----


@pytest.fixture(scope="module")
def reader():
    """A processor that makes every label and number one token."""
    said = [*number_words(), *rooms.LABELS, *(f" {label}" for label in rooms.LABELS)]
    tokenizer = train_tokenizer(["List objects with their places"] * 3, 320 + len(said), said)
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    return SpatialMLLMProcessor(Qwen2VLImageProcessor(**patches), tokenizer, Qwen2VLVideoProcessor(**patches))


PLACE_ERROR = 0.15  # metres


def told_rooms(shards, reader, noise: float = 0.0) -> ToldRooms:
    torch.manual_seed(0)
    words = VisualWords(torch.randn(len(reader.tokenizer), 256), reader.tokenizer, rooms.LABELS)
    return ToldRooms(shards, reader, {"inventory": (Inventory(), 1.0)}, 3, (4, 4, 6), words, rooms.LABELS, noise, PLACE_ERROR)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_told_rooms_say_what_is_asked_about_them(shards, reader, noise):
    dataset, errors = told_rooms(shards, reader, noise), []
    words, pad = dataset.words, reader.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    for _ in range(12):
        made = dataset[0]
        told = made["told"]
        assert int((made["input_ids"] == pad).sum()) == len(told) and float(told.std()) == pytest.approx(1, abs=0.3)
        labels = (told @ words.categories.T).argmax(-1)
        numbers = words.values[torch.einsum("nd,ade,ve->nav", told, words.turns, words.numbers).argmax(-1)]
        answer = reader.tokenizer.decode(made["labels"][(made["segments"] > 0) & (made["labels"] != IGNORE)])
        found = [item for turn in answer.split("<|im_end|>") for item in PLACE.findall(turn)]
        listed = [(label, float(x), float(y)) for label, x, y in found if label in rooms.LABELS]  # places, not sizes
        for label, x, y in listed:
            here = numbers[labels == rooms.LABELS.index(label)]
            if len(here) and [item[0] for item in listed].count(label) == 1:
                errors.append(float((here - torch.tensor([x, y])).abs().amax(-1).min()))
    assert len(errors) > 20 and np.median(errors) < 2 * PLACE_ERROR, "entered and mirrored as the questions are"


def test_told_tokens_stand_where_a_videos_would(processor, features, tmp_path):  # noqa: F811
    model, pad = new_model(processor), processor.tokenizer.pad_token_id
    cached, grid = features[0][1], torch.tensor([[2, 4, 6]])
    text = pack(processor, [len(cached["2d"])], TURNS) | {"video_grid_thw": grid}
    fused = model.model.fuse(cached["2d"], cached["3d"]).detach()
    seen = collate([text | {f"video_features_{part}": value for part, value in cached.items()}], pad)
    expected = trainer(model, tmp_path).compute_loss(model, seen)
    reading = ReadingTrainer(model=model, args=trainer(model, tmp_path).args, learning_rates={"model.language_model": 1e-3})
    loss = reading.compute_loss(model, collate([text | {"told": fused}], pad))
    assert torch.equal(loss, expected) and torch.equal(reading.compute_loss(model, seen), expected)
    with pytest.raises(ValueError, match=r"found .*video_features_2d.*, expected one kind"):
        reading.compute_loss(model, seen | {"told": fused})
    assert not torch.equal(reading.compute_loss(model, collate([text | {"told": fused.flip(0)}], pad)), expected)
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None and "language_model" not in name} == set()


# ---- naming ----


def test_tokens_are_placed_where_notes_put_what_covers_most_of_them(shards):
    cell, ids = 28, shards[0].ids.copy()
    ids[:, :, :28] *= np.random.default_rng(0).random(ids[:, :, :28].shape) < 0.02  # next to nothing is left at the left edge
    sample = replace(shards[0], ids=ids)
    found, where = token_places(sample, cell), places(sample.scene)
    row = {item.id: i for i, item in enumerate(sample.scene.objects)}
    frames, height, width = sample.ids.shape
    token = 0
    for frame in range(frames):
        for y in range(0, height, cell):
            for x in range(0, width, cell):
                ids, counts = np.unique(sample.ids[frame, y : y + cell, x : x + cell], return_counts=True)
                shown = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i}
                best = max(shown, key=shown.get, default=None)
                if best is None or shown[best] < PRESENT * cell * cell:
                    assert np.isnan(found[token]).all()
                else:
                    assert found[token] == pytest.approx(where[row[best]], abs=1e-5)
                token += 1
    assert token == len(found) and np.isfinite(found).any() and np.isnan(found).any()


@pytest.mark.parametrize("see", [("2d", "3d"), ("2d",)])
def test_projections_learn_to_say_what_tokens_show(features, processor, see):  # noqa: F811
    torch.manual_seed(0)
    parts = {} if "3d" in see else {"use_spatial": False, "spatial_config": None, "connector_config": None}
    model = SpatialMLLMForConditionalGeneration(SpatialMLLMConfig.tiny(**parts))
    model.resize_token_embeddings(len(processor.tokenizer))
    naming = Naming(model, processor.tokenizer, rooms.LABELS)
    naming.requires_grad_(False)
    trained = [p for name, p in naming.named_parameters() if name.startswith(tuple(f"backbone.{part}" for part in PROJECTIONS))]
    for parameter in trained:
        parameter.requires_grad_(True)
    room = NamedRooms(features, rooms.LABELS, 28, see)[1]
    assert {name for name in room if "features" in name} == {f"features_{part}" for part in see}
    for name in ("categories", "places"):  # the tiny model's tokens cover two frames, those of nano one
        room[name] = room[name].unflatten(0, (2, 2, -1))[:, 0].flatten(0, 1)
    optimizer, losses = torch.optim.Adam(trained, 1e-3), []
    for _ in range(150):
        output = naming(**room)
        output["loss"].backward()
        assert all(parameter.grad is not None for parameter in trained)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output["loss"].item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        tokens = naming.backbone.fuse(room["features_2d"], room.get("features_3d"))
    assert float(tokens.pow(2).mean().sqrt() / naming.words.loudness) == pytest.approx(1, abs=0.3), "as loud as words"
    shown = room["categories"].sum(-1) == 1
    said = (tokens[shown] @ naming.words.categories.T).argmax(-1)
    assert (said == room["categories"][shown].argmax(-1)).float().mean() > 0.6


# ---- geometry ----


def test_confident_regression_by_hand():
    predicted = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    confidence, valid = torch.tensor([2.0, 1.0, 5.0]), torch.tensor([True, True, False])
    expected = ((2 * 5 - CONFIDENCE_WEIGHT * math.log(2)) + 1) / 2
    assert confident_regression(predicted, torch.zeros(3, 3), confidence, valid).item() == pytest.approx(expected)
    assert confident_regression(predicted, torch.zeros(3, 3), confidence, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_gradient_loss_by_hand():
    error = torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 7.0]]).view(1, 1, 2, 3, 1)
    valid = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    down, across = (0 + 0 + 4) / 3, (1 + 2 + 1 + 6) / 4
    assert gradient_loss(error, torch.zeros_like(error), valid).item() == pytest.approx(down + across)
    valid[0, 0, 1, 2] = False  # both steps to the 7 go
    assert gradient_loss(error, torch.zeros_like(error), valid).item() == pytest.approx(0 / 2 + (1 + 2 + 1) / 3)
    assert gradient_loss(error + 5, error, torch.ones_like(valid)).item() == 0  # an offset has no gradient


class Oracle(nn.Module):
    """In VGGT's place: knows the truth, plus offsets that can be trained."""

    def __init__(self, clip: dict[str, torch.Tensor]):
        super().__init__()
        size = tuple(clip["images"].shape[-2:])
        self.pose = encode_pose(invert_rigid(clip["camera_to_first"])[..., :3, :], clip["intrinsics"], size)
        self.depth = clip["depth"][..., None]
        self.points = unproject_depth(clip["depth"], clip["intrinsics"], clip["camera_to_first"], fill=0.0)
        self.depth_offset, self.point_offset = (nn.Parameter(torch.zeros_like(t)) for t in (self.depth, self.points))
        self.confidence = torch.full(clip["depth"].shape, 3.0)

    def aggregate(self, images):
        return [torch.arange(images.shape[1])[None]] * 4  # which frame is which: the heads see a selection

    def camera_head(self, tokens):
        return [self.pose, self.pose]

    def depth_head(self, tokens, size):
        frames = tokens[0][0]
        return (self.depth + self.depth_offset)[:, frames], self.confidence[:, frames]

    def point_head(self, tokens, size):
        frames = tokens[0][0]
        return (self.points + self.point_offset)[:, frames], self.confidence[:, frames]


@pytest.fixture
def clip(shards):
    clip = {name: value[None].clone() for name, value in clip_tensors(shards[0]).items()}
    clip["depth"][:, :, 10:30, 20:50] = 0  # a hole in the measurement
    return clip


def oracle_loss(clip: dict[str, torch.Tensor], dense_frames: int = 4) -> GeometryLoss:
    loss = GeometryLoss(VGGT(VGGTConfig.tiny(), heads=()), dense_frames)
    loss.vggt = Oracle(clip)
    return loss


def test_a_perfect_prediction_costs_nothing_but_confidence(clip):
    output = oracle_loss(clip)(**clip)
    assert output["loss"].item() == pytest.approx(-2 * CONFIDENCE_WEIGHT * math.log(3), abs=1e-5)
    assert output["camera_loss"] == output["depth_error"] == output["point_error"] == 0


def test_what_was_not_measured_is_not_learned(clip):
    loss = oracle_loss(clip)
    torch.nn.init.normal_(loss.vggt.depth_offset)
    torch.nn.init.normal_(loss.vggt.point_offset)
    loss(**clip)["loss"].backward()
    measured = clip["depth"] > 0
    for offset in (loss.vggt.depth_offset, loss.vggt.point_offset):
        assert torch.equal(offset.grad.abs().sum(-1) > 0, measured)


def test_errors_are_metres(clip):
    loss = oracle_loss(clip)
    torch.nn.init.constant_(loss.vggt.depth_offset, 0.25)
    torch.nn.init.constant_(loss.vggt.point_offset, -0.3)
    output = loss(**clip)
    assert output["depth_error"].item() == pytest.approx(0.25, rel=1e-4)
    assert output["point_error"].item() == pytest.approx(0.3 * math.sqrt(3), rel=1e-4)
    assert pose_error(loss.vggt.pose + 0.1, loss.vggt.pose).item() == pytest.approx(0.25, rel=1e-4)


def test_a_clip_without_any_depth_does_no_harm(clip):
    torch.manual_seed(0)
    loss = GeometryLoss(VGGT(VGGTConfig.tiny()), dense_frames=2)
    output = loss(**clip | {"depth": torch.zeros_like(clip["depth"])})
    output["loss"].backward()
    assert all(value.isfinite() for value in output.values())
    assert output["depth_error"] == 0
    assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


def test_the_loss_reaches_every_part_of_vggt(clip):
    torch.manual_seed(0)
    loss = GeometryLoss(VGGT(VGGTConfig.tiny()), dense_frames=2)
    loss(**clip)["loss"].backward()
    without = [name for name, p in loss.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_patches_match_where_they_show_the_same_place(clip):
    """Against a count by hand: unproject each patch's centre, move it into the other frame, look which patch it falls into."""
    depth, poses, k = clip["depth"][0], clip["camera_to_first"][0], clip["intrinsics"][0]
    middle = slice(7, None, 14)
    points = unproject_depth(clip["depth"], clip["intrinsics"], clip["camera_to_first"], fill=0.0)[:, :, middle, middle]
    valid = clip["depth"][:, :, middle, middle].flatten(2) > 0
    matches = patch_matches(points.flatten(2, 3), valid, clip["depth"], clip["camera_to_first"], clip["intrinsics"], 14)[0]
    rows, columns = points.shape[2:4]
    frames, found = len(depth), 0
    for i in range(frames):
        for patch in range(rows * columns):
            v, u = 7 + 14 * (patch // columns), 7 + 14 * (patch % columns)
            z = depth[i, v, u]
            ray = torch.stack([(u + 0.5 - k[i, 0, 2]) / k[i, 0, 0], (v + 0.5 - k[i, 1, 2]) / k[i, 1, 1], torch.tensor(1.0)])
            for j in range(frames):
                place = torch.linalg.inv(poses[j]) @ poses[i] @ torch.cat([ray * z, torch.ones(1)])
                expected = -1
                if z > 0 and place[2] > 0:
                    x, y = (float(k[j, a, a] * place[a] / place[2] + k[j, a, 2]) for a in (0, 1))
                    if 0 <= x < depth.shape[2] and 0 <= y < depth.shape[1]:
                        if abs(depth[j, int(y), int(x)] - place[2]) < 0.05 * place[2]:
                            expected = int(y) // 14 * columns + int(x) // 14
                assert matches[i, patch, j] == expected
                found += expected >= 0 and i != j
    assert found > 20
    own = matches[torch.arange(frames), :, torch.arange(frames)]
    assert torch.equal(own[valid[0]], torch.arange(rows * columns).expand_as(own)[valid[0]])


def test_guidance_is_least_for_the_truth_and_reaches_the_first_and_the_last_tokens(clip):
    torch.manual_seed(0)
    vggt = VGGT(VGGTConfig.tiny())
    guidance = PatchGuidance(vggt)
    loss = GeometryLoss(vggt, dense_frames=2, guidance=guidance)
    output = loss(**clip)
    output["loss"].backward()
    assert output["matching_loss"] > 0 and output["lookup_loss"] > 0 and output["place_error"] > 0
    assert [name for name, p in loss.named_parameters() if p.grad is None or not p.grad.any()] == []

    # the place of each patch's centre, written by hand into the bias of one patch at a time, costs nothing there
    truth = {name: value[:, :1] for name, value in clip.items()}
    middle = slice(7, None, 14)
    points = unproject_depth(truth["depth"], truth["intrinsics"], truth["camera_to_first"], fill=0.0)[0, 0, middle, middle]
    z = truth["depth"][0, 0, middle, middle]
    place = next((r, c) for r in range(z.shape[0]) for c in range(z.shape[1]) if z[r, c] > 0)
    only = torch.zeros_like(truth["depth"])
    only[0, 0, 7 + 14 * place[0], 7 + 14 * place[1]] = z[place]
    torch.nn.init.zeros_(guidance.place.weight)
    guidance.place.bias.data = torch.cat([points[place], z[place][None], torch.zeros(6)])
    tokens = vggt.aggregate(truth["images"])
    losses = guidance(vggt, tokens, only, truth["camera_to_first"], truth["intrinsics"])
    assert losses["place_error"].item() == pytest.approx(
        1, abs=1e-6
    )  # what is left: no direction, where one of length 1 was wanted
    assert losses["matching_loss"] == losses["lookup_loss"] == 0  # a single frame has nothing to match


def test_rays_come_from_the_camera_and_point_where_it_looks(clip):
    """Of the middle patch: along the third column of the camera's rotation, but for the offset of its centre from the image's."""
    torch.manual_seed(0)
    vggt = VGGT(VGGTConfig.tiny())
    guidance = PatchGuidance(vggt)
    torch.nn.init.zeros_(guidance.place.weight)
    nowhere = {**clip, "depth": torch.zeros_like(clip["depth"])}
    tokens = vggt.aggregate(clip["images"])
    columns = clip["depth"].shape[3] // 14
    rays = []
    for pose, k in zip(clip["camera_to_first"][0], clip["intrinsics"][0], strict=True):
        for patch in range(clip["depth"].shape[2] // 14 * columns):
            v, u = 7.5 + 14 * (patch // columns), 7.5 + 14 * (patch % columns)
            ray = pose[:3, :3] @ torch.stack([(u - k[0, 2]) / k[0, 0], (v - k[1, 2]) / k[1, 1], torch.tensor(1.0)])
            rays.append(torch.cat([pose[:3, 3], ray / ray.norm()]))
    rays = torch.stack(rays)
    for guess in (torch.zeros(6), torch.tensor([0.3, -0.2, 0.5, 0.0, 0.6, 0.8])):
        guidance.place.bias.data = torch.cat([torch.zeros(4), guess])
        found = guidance(vggt, tokens, nowhere["depth"], clip["camera_to_first"], clip["intrinsics"])["place_error"]
        expected = (rays[:, :3] - guess[:3]).norm(dim=-1).mean() + (rays[:, 3:] - guess[3:]).norm(dim=-1).mean()
        assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_who_looks_everywhere_pays_for_looking_where_nothing_matches(clip):
    """With all attention equal, a patch with m matches among n tokens costs log(n / m)."""
    torch.manual_seed(0)
    vggt = VGGT(VGGTConfig.tiny())
    for block in vggt.aggregator.global_blocks:
        torch.nn.init.zeros_(block.attn.q_norm.weight)
    tokens = vggt.aggregate(clip["images"])
    lookup = PatchGuidance(vggt)(vggt, tokens, clip["depth"], clip["camera_to_first"], clip["intrinsics"])["lookup_loss"]
    middle = slice(7, None, 14)
    points = unproject_depth(clip["depth"], clip["intrinsics"], clip["camera_to_first"], fill=0.0)[:, :, middle, middle].flatten(
        2, 3
    )
    valid = clip["depth"][:, :, middle, middle].flatten(2) > 0
    matches = patch_matches(points, valid, clip["depth"], clip["camera_to_first"], clip["intrinsics"], 14)[0]
    frames = len(matches)
    count = ((matches >= 0) & ~torch.eye(frames, dtype=torch.bool)[:, None]).sum(-1)
    everything = frames * tokens[0].shape[2]
    assert lookup.item() == pytest.approx((everything / count[count > 0]).log().mean().item(), rel=1e-5)


def test_heads_that_wait_cost_nothing_and_learn_nothing(clip):
    torch.manual_seed(0)
    vggt = VGGT(VGGTConfig.tiny())
    loss = GeometryLoss(vggt, dense_frames=0, guidance=PatchGuidance(vggt))
    output = loss(**clip)
    output["loss"].backward()
    assert "depth_error" not in output
    assert all(p.grad is None for head in (vggt.depth_head, vggt.point_head) for p in head.parameters())
    rest = [p for name, p in loss.named_parameters() if "depth_head" not in name and "point_head" not in name]
    assert all(p.grad is not None and p.grad.any() for p in rest)


def test_only_the_decoded_frames_cost(clip, monkeypatch):
    decoded = []
    loss = oracle_loss(clip, dense_frames=2)
    head = loss.vggt.depth_head
    loss.vggt.depth_head = lambda tokens, size: decoded.append(tokens[0][0].tolist()) or head(tokens, size)
    for _ in range(20):
        loss(**clip)
    assert all(len(frames) == 2 and frames[0] == 0 for frames in decoded)  # the first is always among them
    assert {frames[1] for frames in decoded} == {1, 2, 3}


def test_cameras_are_relative_to_the_first_frame(shards):
    sample = shards[1].select(np.array([2, 0, 3]))
    clip = clip_tensors(sample)
    assert torch.allclose(clip["camera_to_first"][0], torch.eye(4), atol=1e-5)
    pose = encode_pose(invert_rigid(clip["camera_to_first"])[:, :3], clip["intrinsics"], (56, 84))
    assert torch.allclose(pose[0, :7], torch.tensor([0, 0, 0, 0, 0, 0, 1.0]), atol=1e-5)
    world = torch.from_numpy(sample.camera_to_world)
    for i in range(3):
        assert torch.allclose(world[0] @ clip["camera_to_first"][i], world[i], atol=1e-5)


def test_clips_vary_and_stay_true(shards):
    rooms = GeometricRooms(shards, (2, 3))
    torch.manual_seed(0)
    lengths, first, rigid = set(), set(), []
    for _ in range(16):
        clip = rooms[0]
        lengths.add(len(clip["images"]))
        first.add(round(float(clip["depth"][0].sum()), 1))
        rotation = clip["camera_to_first"][:, :3, :3]
        rigid.append(float((rotation @ rotation.mT - torch.eye(3)).abs().max()))
        assert clip["images"].min() >= 0 and clip["images"].max() <= 1
    assert lengths == {2, 3} and len(first) > 2 and max(rigid) < 1e-5
    torch.manual_seed(4)
    one = rooms[1]
    torch.manual_seed(4)
    assert all(torch.equal(value, one[name]) for name, value in rooms[1].items())


def test_clips_are_cut_to_the_shortest():
    long, short = ({"images": torch.arange(n) + start, "depth": torch.arange(n)} for n, start in ((5, 0), (3, 10)))
    batch = collate_clips([long, short])
    assert batch["images"].tolist() == [[0, 1, 2], [10, 11, 12]]
    assert batch["depth"].tolist() == [[0, 1, 2], [0, 1, 2]]


# ---- semantics ----


def a_sample(ids: np.ndarray) -> RoomSample:
    items = [(1, "chair"), (2, "table"), (3, "chair")]
    scene = AnnotatedScene("hand-made", tuple(SceneObject(i, label, Box3D((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))) for i, label in items))
    none = np.zeros(0)
    return RoomSample(np.zeros((*ids.shape, 3), np.uint8), none, ids, none, none, scene)


def test_token_categories_of_a_hand_made_image():
    ids = np.array(
        [
            [
                [0, 0, 1, 0, 2, 2],
                [0, 0, 0, 0, 2, 3],
                [1, 3, 0, 9, 0, 0],
                [1, 1, 9, 9, 0, 2],
            ]
        ],
        dtype=np.uint8,
    )  # 9 belongs to nothing annotated
    expected = [  # chair, table
        [0, 0], [1, 0], [1, 1],
        [1, 0], [0, 0], [0, 1],
    ]  # fmt: skip
    assert token_categories(a_sample(ids), ["chair", "table"], 2).tolist() == expected
    two = np.concatenate([np.zeros_like(ids), ids])
    assert token_categories(a_sample(two), ["chair", "table"], 2).tolist() == [[0, 0]] * 6 + expected


def test_point_categories_are_those_at_an_even_grid():
    ids = np.zeros((2, 16, 8), dtype=np.uint8)
    ids[1, 8:, 4:] = 1  # of the second frame's lower cell, the right half
    ids[1, 15, 0] = 2  # between the points
    expected = [[2] * 16] * 3 + [[2, 2, 0, 0] * 4]
    assert point_categories(a_sample(ids), ["chair", "table"], 8).tolist() == expected


def test_a_category_counts_from_three_percent_of_a_token():
    ids = np.zeros((1, 28, 28), dtype=np.uint8)
    ids.reshape(-1)[:23] = 1  # 2.9 %
    assert token_categories(a_sample(ids), ["chair", "table"], 28).tolist() == [[0, 0]]
    ids.reshape(-1)[400] = 3  # another chair
    assert token_categories(a_sample(ids), ["chair", "table"], 28).tolist() == [[1, 0]]


def test_tokens_and_categories_are_in_the_same_order(encoder):
    """Paint one cell at a time: the pixels of exactly that token change, and its output changes most, windows or not."""
    plain = torch.zeros(2, 3, 84, 112)
    patches, grid = patchify(plain, encoder.config)
    base = encoder.visual(patches, grid_thw=grid[None]).pooler_output
    for token, (row, column) in enumerate((r, c) for r in range(3) for c in range(4)):
        ids = np.zeros((1, 84, 112), dtype=np.uint8)
        ids[0, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = 1
        assert token_categories(a_sample(ids), ["chair", "table"], 28)[:, 0].nonzero()[0].tolist() == [token]
        painted = plain + 0.8 * torch.from_numpy(ids)[:, None].float()
        changed, _ = patchify(painted, encoder.config)
        assert (changed != patches).any(-1).view(-1, 4).any(-1).nonzero().flatten().tolist() == [token]
        seen = encoder.visual(changed, grid_thw=grid[None]).pooler_output
        assert int((seen - base).norm(dim=-1).argmax()) == token


def test_the_classifier_learns_colours():
    torch.manual_seed(0)
    model = SpatialMLLMModel(SpatialMLLMConfig.tiny(use_spatial=False))
    classifier = TokenClassifier(model, 3)
    optimizer = torch.optim.AdamW(classifier.parameters(), 3e-3)

    def batch():
        colour = torch.randint(3, (2, 3))  # of each cell
        frame = nn.functional.one_hot(colour, 3).permute(2, 0, 1).float().repeat_interleave(28, 1).repeat_interleave(28, 2)
        pixels, grid = patchify(frame.expand(2, -1, -1, -1), model.config)
        shown = nn.functional.one_hot(colour.flatten(), 3).float()
        points = colour.flatten()[:, None].expand(-1, POINTS * POINTS)
        return {"pixel_values": pixels, "grid_thw": grid[None], "categories": shown, "points": points}

    first = None
    for _ in range(60):
        output = classifier(**batch())
        first = first or output["loss"].item()
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
    unseen = batch()
    output = classifier(**unseen)
    assert output["loss"].item() < 0.2 * first
    assert torch.equal(output["logits"].argmax(-1), unseen["categories"].argmax(-1))


def test_colours_change_together_and_stay_in_range():
    frames = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    changed = augment_colour(frames, np.random.default_rng(0))
    assert not torch.allclose(changed, frames, atol=0.02)
    assert 0 <= changed.min() and changed.max() <= 1
    for channel in range(3):  # one straight line per channel, the same in both frames
        x, y = frames[:, channel].flatten(), changed[:, channel].flatten()
        assert torch.corrcoef(torch.stack([x, y]))[0, 1] > 0.9999


# ---- adapters, precision ----

TARGETS = r"model\.language_model\..*(q_proj|v_proj|down_proj)"


def test_adapters_train_alone_with_the_parts_named_and_survive_saving(processor, tmp_path):  # noqa: F811
    data = [example(processor, new_model(processor), TURNS, i) for i in range(2)]
    collator = lambda e: collate(e, processor.tokenizer.pad_token_id)  # noqa: E731
    plain = new_model(processor)
    expected = trainer(plain, tmp_path).compute_loss(plain, collator(data)).item()

    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=["connector"])
    model = get_peft_model(new_model(processor), lora)
    rates = {"model.language_model": 1e-2, "model.connector": 1e-3}
    run = trainer(model, tmp_path, rates, data, collator, max_steps=3, save_strategy="no", per_device_train_batch_size=2)
    assert run.compute_loss(model, collator(data)).item() == pytest.approx(expected, rel=1e-6)  # adapters start at nothing
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run.train()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_" in name or ".connector.modules_to_save." in name}
    assert {group["initial_lr"] for group in run.optimizer.param_groups} == {1e-2, 1e-3}

    trained = run.compute_loss(model, collator(data)).item()
    assert trained < expected - 0.1
    model.save_pretrained(tmp_path / "adapters")
    again = PeftModel.from_pretrained(new_model(processor), tmp_path / "adapters")
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
    merged = again.merge_and_unload()
    check = trainer(merged, tmp_path)
    assert check.compute_loss(merged, collator(data)).item() == pytest.approx(trained, rel=1e-4)


def test_a_part_that_adapters_left_frozen_is_refused_a_learning_rate(processor, tmp_path):  # noqa: F811
    model = get_peft_model(new_model(processor), LoraConfig(target_modules=TARGETS))
    with pytest.raises(ValueError, match=r"found 'model.connector', expected .*\['model.language_model'\]"):
        trainer(model, tmp_path, {"model.connector": 1e-3})


def test_a_step_in_bfloat16(processor, tmp_path):  # noqa: F811
    data = [example(processor, new_model(processor), TURNS, i) for i in range(2)]
    losses = {}
    for bf16 in (False, True):
        model = new_model(processor)
        run = trainer(
            model, tmp_path, None, data, lambda e: collate(e, processor.tokenizer.pad_token_id),
            max_steps=2, save_strategy="no", per_device_train_batch_size=2, logging_steps=1, bf16=bf16,
        )  # fmt: skip
        run.train()
        losses[bf16] = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())
    assert losses[True] != losses[False]  # it did run in bfloat16
    assert losses[True] == pytest.approx(losses[False], rel=0.01)


def test_geometry_in_bfloat16(clip):
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        loss = GeometryLoss(VGGT(VGGTConfig.tiny()), dense_frames=4)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = loss(**clip)
        output["loss"].backward()
        assert all(p.grad.isfinite().all() for p in loss.parameters())
        results.append(output["loss"].item())
    assert results[1] == pytest.approx(results[0], rel=0.03)


def test_the_loss_of_a_step_does_not_depend_on_how_it_is_split(processor, tmp_path):  # noqa: F811
    """Sequences with one and three answers: accumulated one by one they give the weights of one batch."""
    data = [example(processor, new_model(processor), TURNS[: 1 + 2 * (i % 2)], i) for i in range(4)]
    weights = []
    for split in (1, 4):
        model = new_model(processor)
        run = trainer(
            model, tmp_path, {"": 1e-3}, data, lambda e: collate(e, processor.tokenizer.pad_token_id), max_steps=1,
            save_strategy="no", per_device_train_batch_size=4 // split, gradient_accumulation_steps=split, optim="sgd",
        )  # fmt: skip
        run.optimizer = torch.optim.SGD(model.parameters(), 0.1)  # Adam would hide the scale of the gradient
        run.train()
        weights.append([p.detach().clone() for p in model.parameters()])
    moved = max(float((a - b).abs().max()) for a, b in zip(weights[0], new_model(processor).parameters(), strict=True))
    assert moved > 1e-3
    for a, b in zip(*weights, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * moved / 1e-2)
