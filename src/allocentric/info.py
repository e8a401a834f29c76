"""What a source or a model is, as plain facts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from allocentric.readers import VideoFile, count_frames, layout_of, open_views

if TYPE_CHECKING:
    from torch import nn

Facts = dict[str, str | int | float]


def describe(what: str) -> Facts:
    """Facts about a video, images, an RGB-D folder, a folder of weights, or "nano"."""
    path = Path(what)
    if what == "nano" or (path / "config.json").is_file():
        return describe_model(None if what == "nano" else path)
    if not path.exists():
        expected = "a video, images, an RGB-D folder, a folder of weights, or nano"
        raise ValueError(f"{what}: found no such file or folder, expected {expected}")
    return describe_source(path)


def describe_source(path: Path) -> Facts:
    """Layout, size and length of what the readers find at `path`, from headers and one frame in the middle."""
    layout = layout_of(path)
    if layout == "video":
        video = VideoFile(path)
        return {
            "source": str(path),
            "layout": layout,
            "frames": video.num_frames,
            "seconds": round(float(video.times[-1]), 3),
            "height": video.height,
            "width": video.width,
        }
    frames = count_frames(path)
    if frames == 0:  # says why
        open_views(path)
    views = open_views(path, [frames // 2])
    height, width = views.frames.shape[2:]
    facts: Facts = {"source": str(path), "layout": layout, "frames": frames, "height": height, "width": width}
    for name in ("depth", "intrinsics", "camera_to_world", "times"):
        facts[name] = "given" if getattr(views, name) is not None else "not given"
    return facts | {"scale": views.scale}


def describe_model(path: Path | None) -> Facts:
    """Kind, parts and parameter counts of the model in a folder, or of nano. No weights are read."""
    import torch

    from allocentric.model import NANO
    from allocentric.models.loading import read_config

    folder = path or NANO
    config = read_config(folder)
    with torch.device("meta"):
        network = _network(folder, config)
    model = getattr(network, "model", network)
    names = {
        "2D encoder": ("visual", "vision_tower"),
        "3D encoder": ("spatial_encoder",),
        "structure": ("structure",),
        "connector": ("connector", "multi_modal_projector"),
        "language model": ("language_model",),
    }
    parts = {part: next(filter(None, (getattr(model, name, None) for name in found)), None) for part, found in names.items()}
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items() if module is not None}
    stored = config.get("dtype") or config.get("torch_dtype")
    card = folder / "card.json"
    return {
        "model": "nano" if path is None else str(path),
        "type": network.config.model_type,
        "parameters": sum(p.numel() for p in network.parameters()),
        **counts,
        **({"dtype": stored} if stored else {}),
        "attention": network.config._attn_implementation,
        **(json.loads(card.read_text()) if card.is_file() else {}),
    }


def _network(folder: Path, config: dict) -> "nn.Module":
    """The network that a config describes."""
    from allocentric.encoders.spa3r import Spa3R, Spa3RConfig
    from allocentric.encoders.vggt import VGGT, VGGTConfig
    from allocentric.models.loading import make_config
    from allocentric.models.s2_mllm import (
        S2LlavaConfig,
        S2LlavaForConditionalGeneration,
        S2QwenConfig,
        S2QwenForConditionalGeneration,
    )
    from allocentric.models.spa3_vlm import Spa3VLMForConditionalGeneration, is_spa3_vlm, spa3_vlm_config
    from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration, spatial_mllm_config
    from allocentric.models.ssr import SSRConfig, SSRForConditionalGeneration

    kinds = (
        (SSRConfig, SSRForConditionalGeneration),
        (S2LlavaConfig, S2LlavaForConditionalGeneration),
        (S2QwenConfig, S2QwenForConditionalGeneration),
        (Spa3RConfig, Spa3R),
        (VGGTConfig, VGGT),
    )
    if is_spa3_vlm(config):
        return Spa3VLMForConditionalGeneration(spa3_vlm_config(folder))
    for settings, network in kinds:
        if config.get("model_type") == settings.model_type:
            return network(make_config(settings, f"{folder}: config.json", {k: v for k, v in config.items() if k != "model_type"}))
    return SpatialMLLMForConditionalGeneration(spatial_mllm_config(folder))
