"""`load` opens every system that answers questions, and its scenes answer as the plain path does."""

import pytest
import torch

import allocentric
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
