"""The benchmarks' parity, counters and bookkeeping at the smallest size. Never how long anything takes."""

import numpy as np
import pytest
import torch

import _nano
import allocentric
import counts
import encoder_memory
import grounding
import questions
import rooms
import sampler
import startup
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.models.scene import Scene
from allocentric.sampling import space_aware


@pytest.fixture(scope="module")
def nano():
    model, processor = _nano.nano()
    questions.never_end(model)
    return model, processor


def test_the_questions_are_eighteen_different_ones_of_varied_length(nano):
    prompts, tokenizer = _nano.prompts(), nano[1].tokenizer
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert len(set(prompts)) == 18
    assert max(lengths) > 2 * min(lengths)


def test_asking_a_scene_equals_encoding_for_every_question(nano):
    chosen = _nano.prompts()[7::5]
    difference, clear = questions.check(*nano, _nano.clip(2), chosen, new_tokens=2)
    assert difference <= questions.TOLERANCE
    assert clear == len(chosen)


def test_the_check_of_questions_notices_a_difference(nano, monkeypatch):
    right = Scene.first_logits
    monkeypatch.setattr(Scene, "first_logits", lambda scene, asked: right(scene, asked) * (1 + 1e-4))
    with pytest.raises(AssertionError, match="first logits differ by"):
        questions.check(*nano, _nano.clip(2), _nano.prompts()[:2], new_tokens=1)


def test_the_slim_encoder_equals_the_one_that_keeps_every_layer():
    ours, published = encoder_memory.pair(embed_dim=32, depth=4)
    images = torch.rand(1, 3, 3, 28, 42)
    encoder_memory.check(ours, published, images)
    with torch.no_grad():
        published.global_blocks[-1].mlp.fc2.bias += 1
    with pytest.raises(AssertionError, match="the last layer differs"):
        encoder_memory.check(ours, published, images)


def test_the_encoder_takes_a_fraction_of_the_memory_per_frame():
    images = torch.rand(1, 2, 3, encoder_memory.HEIGHT, encoder_memory.WIDTH)
    encoders = encoder_memory.pair(patch_embed_depth=1)
    ours, published = ([encoder_memory.peak_bytes(encoder, images[:, :n]) for n in (1, 2)] for encoder in encoders)
    assert encoder_memory.slope([1, 2], published) > 3.5 * encoder_memory.slope([1, 2], ours)


def test_live_bytes_are_those_of_tensors_still_referred_to():
    given = torch.ones(250)
    with encoder_memory.LiveBytes() as counter:
        a = given + 1
        assert counter.live == 1000
        b = a.view(10, 25)[2:]  # no memory of its own
        a.add_(1)
        assert counter.live == 1000
        del a
        c = given * 2
        assert counter.live == counter.peak == 2000  # b still holds what a had
        del b
        d = c[:100] * 2
        assert (counter.live, counter.peak, len(d)) == (1400, 2000, 100)
    assert encoder_memory.slope([1, 2, 5], [13, 16, 25]) == pytest.approx(3)


def test_host_synchronisations_are_counted():
    x = torch.arange(3.0)
    waits = [
        lambda: x[0].item(),
        lambda: int(x[0]),
        lambda: float(x[0]),
        lambda: bool(x[0] > 0),
        lambda: [7, 8][x[1].long()],
        lambda: x.tolist(),
        lambda: x.numpy(),
        lambda: x[x > 1],
        lambda: x.nonzero(),
        lambda: x.unique(),
        lambda: torch.equal(x, x),
    ]
    for wait in waits:
        for inference in (False, True):
            with torch.inference_mode(inference), counts.HostSyncs() as syncs:
                wait()
            assert syncs.count == 1
    with counts.HostSyncs() as syncs:
        (x.masked_fill(x > 1, 0) @ x).clamp(max=x.max())[None]
    assert syncs.count == 0


def test_vggt_never_waits_for_its_own_results():
    vggt = VGGT(VGGTConfig.tiny()).eval()
    with torch.no_grad(), counts.HostSyncs() as syncs:
        vggt(torch.rand(1, 2, 3, 28, 42))
    assert syncs.count == 0


def test_flops_are_counted():
    assert counts.flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 2 * 2 * 3 * 5


def test_the_random_nano_that_startup_loads_is_the_one_it_saved(nano, tmp_path):
    startup.save_random_nano(tmp_path)
    loaded = allocentric.load(tmp_path)
    expected = nano[0].state_dict()
    assert loaded.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.network.state_dict().items())


def test_the_sampler_chooses_the_frames_of_its_baseline():
    points, confidence = sampler.box_room(6, 28, 42)
    expected = sampler.baseline_greedy(sampler.baseline_voxels(points, confidence), 4)
    assert list(space_aware(points, 4, confidence, mode="reference").order) == expected


def test_preparing_a_scene_for_grounding_equals_the_published_pattern_at_a_fraction_of_the_work(monkeypatch):
    points_off, objects_off = grounding.check(8, 50, 8)
    assert points_off <= 1e-5 and objects_off <= 1e-5
    depth, k, poses = grounding.capture(8)
    points, boxes = grounding.our_points(depth, k, poses), grounding.some_boxes(50)
    tokens = torch.randn(len(points) * grounding.SIDE**2, 16)
    published = grounding.numbers(lambda: grounding.published_objects(grounding.as_pictures(points), tokens, boxes))
    assert published > 5 * grounding.numbers(lambda: grounding.our_objects(points, tokens, boxes))
    right = grounding.our_points
    monkeypatch.setattr(grounding, "our_points", lambda *given: right(*given) + 1e-4)
    with pytest.raises(AssertionError, match="points differ"):
        grounding.check(8, 50, 8)


def test_the_bare_pass_over_a_room_sees_what_its_pictures_show(monkeypatch):
    monkeypatch.setattr(rooms, "FRAMES", 3)
    _, _, expected = rooms.generate(0, 3, rooms.HEIGHT, rooms.WIDTH)
    ids, _, _ = rooms.bare_pass(0)
    rooms.check(ids, expected)
    with pytest.raises(AssertionError, match="show other objects"):
        rooms.check(np.roll(ids, 3, axis=2), expected)
