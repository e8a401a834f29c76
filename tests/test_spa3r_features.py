"""Looking at a latent: cameras that a user names, and the pictures."""

import math

import pytest
import torch
from PIL import Image

from allocentric.encoders.spa3r import Spa3R, Spa3RConfig, save_spa3r
from allocentric.geometry.cameras import invert_rigid
from allocentric.view.features import Camera, Colours, draw_imagined, fit, imagine, picture_of
from allocentric.views import Views


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Spa3R(Spa3RConfig.tiny()).eval()


def views(count: int = 3) -> Views:
    return Views(torch.randint(0, 256, (count, 3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))


def test_a_camera_moves_in_its_own_axes_and_then_turns():
    start = torch.eye(4)[None, :3].repeat(2, 1, 1)
    quarter = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # camera 1 looks along world +x
    start[1, :, :3] = quarter.T
    found = invert_rigid(Camera(1, (0, 0, 2), (0, 0)).extrinsics(start))
    assert torch.allclose(found[:3, 3], torch.tensor([2.0, 0, 0]), atol=1e-6)  # forward for it is world +x
    right = invert_rigid(Camera(0, (0.5, 0, 0), (90, 0)).extrinsics(start))
    assert torch.allclose(right[:3, 2], torch.tensor([1.0, 0, 0]), atol=1e-6)  # it now looks to its right
    assert torch.allclose(right[:3, 3], torch.tensor([0.5, 0, 0]), atol=1e-6)
    down = invert_rigid(Camera(0, turn=(0, 30)).extrinsics(start))
    assert torch.allclose(down[:3, 2], torch.tensor([0, math.sin(math.pi / 6), math.cos(math.pi / 6)]), atol=1e-6)
    with pytest.raises(ValueError, match="camera: found view 2, expected 0 to 1"):
        Camera(2).extrinsics(start)


@torch.no_grad()
def test_imagined_is_what_the_decoder_says_there(model):
    seen = fit(views(), 14, 84)
    assert seen.frames.shape == (3, 3, 56, 84)
    images = (seen.frames.float() / 255)[None]
    (tokens,) = model.aggregator(images)
    extrinsics, intrinsics = model.cameras(tokens, (56, 84))
    expected = model.decode(model(images), extrinsics[:, 1:2], intrinsics[:, 1:2], (56, 84))
    found = imagine(model, seen, Camera(like=1))
    assert torch.allclose(found.field.geometry, expected.geometry, atol=1e-5)
    kept = imagine(model, seen, Camera(like=1), model(images)[0])
    assert torch.allclose(kept.field.depth, expected.depth, atol=1e-5)
    away = imagine(model, seen, Camera(like=1, move=(5.0, 0.0, 0.0), turn=(120.0, 0.0)))
    assert not torch.allclose(away.field.geometry, expected.geometry, atol=1e-4)
    width = draw_imagined(found).width
    assert width >= 3 * 200


def test_colours_tell_features_apart_and_stay_put():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator) * torch.tensor([9.0, 3, 1, 0.1, 0.1, 0.1])
    colours = Colours(features)
    picture = colours.picture(features, (5, 8))
    order = features[:, 0].argsort()
    red = picture[0].flatten()[order].float()
    dark, light = sorted([float(red[:5].mean()), float(red[-5:].mean())])
    assert dark < 60 and light > 195
    assert torch.equal(Colours(features.flip(0)).picture(features, (5, 8)), picture)


def test_a_picture_from_files(model, tmp_path):
    save_spa3r(model, tmp_path / "model")
    (tmp_path / "room").mkdir()
    for i, frame in enumerate(views(4).frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / "room" / f"{i}.png")
    report = picture_of(tmp_path / "room", tmp_path / "model", Camera(1, (0, 0, 1), (10, 0)), 3, tmp_path / "x.png")
    assert report["frames"] == [0, 1, 3] and report["depth_min"] <= report["depth_max"]
    assert Image.open(tmp_path / "x.png").size[0] > 600
    with pytest.raises(ValueError, match="camera: found view 3, expected 0 to 2"):
        picture_of(tmp_path / "room", tmp_path / "model", Camera(3), 3, tmp_path / "y.png")
    assert not (tmp_path / "y.png").exists()
