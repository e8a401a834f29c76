"""`load` opens every system that answers questions, and its scenes answer as the plain path does."""

import pytest
import torch

import allocentric
from allocentric.models.grounding import S2_NANO
from allocentric.models.spa3_vlm import Spa3VLMConfig, Spa3VLMForConditionalGeneration
from allocentric.models.ssr import SSRForConditionalGeneration
from allocentric.views import Views
from test_spatial_mllm import frames, tiny_config, tiny_processor
from test_ssr import ssr_model, ssr_processor


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny checkpoint of each system with its processor, as `save_pretrained` leaves them."""
    out = tmp_path_factory.mktemp("systems")
    given = tiny_config()
    torch.manual_seed(0)
    config = Spa3VLMConfig.tiny(image_token_id=given.image_token_id, video_token_id=given.video_token_id)
    config.text_config.eos_token_id = given.text_config.eos_token_id
    network = Spa3VLMForConditionalGeneration(config).eval()
    torch.nn.init.normal_(network.model.connector.adaptor[-1].weight)
    network.save_pretrained(out / "spa3-vlm")
    tiny_processor().save_pretrained(out / "spa3-vlm")
    network.config.frames_as = "images"  # as the released weights
    network.save_pretrained(out / "spa3-vlm-images")
    tiny_processor().save_pretrained(out / "spa3-vlm-images")
    ssr_model("A").save_pretrained(out / "ssr")
    ssr_processor("A").save_pretrained(out / "ssr")
    return out


@pytest.mark.parametrize(("name", "kind"), [("spa3-vlm", Spa3VLMForConditionalGeneration), ("ssr", SSRForConditionalGeneration)])
def test_a_system_is_loaded_and_asked(folders, name, kind):
    model = allocentric.load(folders / name, device="cpu")
    assert type(model.network) is kind
    views, question = Views(frames=frames(4, seed=3)), "how many chairs?"
    scene = model.watch(views)
    inputs = model.processor(text=[model.processor.prompt(question, videos=1)], videos=[views.frames])
    with torch.no_grad():
        plain = model.network(**inputs).logits[:, -1].float()
    assert torch.allclose(scene.first_logits([question]), plain, atol=1e-4 * float(plain.abs().max()))
    assert scene.ask(question, max_new_tokens=3).question == question
    assert model.watch(views) is scene


def test_a_spa3_vlm_is_shown_frames_as_it_was_trained(folders):
    """Weights made with frames as images are asked with images, of which Spa3R sees more than Qwen."""
    model = allocentric.load(folders / "spa3-vlm-images", device="cpu")
    assert model.processor.frames_as == "images" and model.processor.geometry_width == 70
    views, question = Views(frames=frames(4, seed=3)), "how many chairs?"
    inputs = model.processor(text=[model.processor.prompt(question, images=4)], images=list(views.frames))
    assert inputs["geometry_images"].shape == (4, 3, 42, 70) and inputs["image_grid_thw"].tolist() == [[1, 2, 4]] * 4
    with torch.no_grad():
        plain = model.network(**inputs).logits[:, -1].float()
        del inputs["geometry_images"]
        cropped = model.network(**inputs).logits[:, -1].float()
    found = model.watch(views).first_logits([question])
    assert torch.allclose(found, plain, atol=1e-4 * float(plain.abs().max()))
    assert not torch.allclose(found, cropped, atol=1e-4 * float(plain.abs().max()))


def test_latents_are_kept_where_one_says(folders, tmp_path):
    views = Views(frames=frames(4, seed=3))
    model = allocentric.load(folders / "spa3-vlm", device="cpu", latents=tmp_path / "latents")
    first = model.watch(views).first_logits(["how many chairs?"])
    assert len(list((tmp_path / "latents").iterdir())) == 1
    again = allocentric.load(folders / "spa3-vlm", device="cpu", latents=tmp_path / "latents")
    again.network.model.spatial_encoder.forward = None  # nothing is encoded again
    assert torch.equal(again.watch(views).first_logits(["how many chairs?"]), first)
    with pytest.raises(ValueError, match="latents: found nano, a spatial-mllm, expected a Spa3-VLM"):
        allocentric.load(device="cpu", latents=tmp_path)


def test_every_system_describes_itself(folders, tmp_path):
    from allocentric.encoders.spa3r import Spa3R, Spa3RConfig, save_spa3r
    from allocentric.info import describe

    for name, kind in (("spa3-vlm", "spa3-vlm"), ("ssr", "allocentric-ssr")):
        facts = describe(str(folders / name))
        network = allocentric.load(folders / name, device="cpu").network
        assert facts["type"] == kind and facts["parameters"] == sum(p.numel() for p in network.parameters())
        assert facts["3D encoder"] == sum(p.numel() for p in network.model.spatial_encoder.parameters())
    save_spa3r(spa3r := Spa3R(Spa3RConfig.tiny()), tmp_path)
    assert describe(str(tmp_path))["parameters"] == sum(p.numel() for p in spa3r.parameters())
    assert describe(str(S2_NANO))["type"] == "s2-mllm-qwen" and describe("nano")["dtype"] == "bfloat16"
