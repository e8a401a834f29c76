"""What a source or a model is, as plain facts."""

import json
from pathlib import Path

from allocentric.readers import VideoFile, count_frames, layout_of, open_views

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
    """Kind, parts and parameter counts of the model in a folder, or of nano."""
    from transformers.utils import logging

    from allocentric.model import NANO
    from allocentric.models.spatial_mllm import load_spatial_mllm

    logging.disable_progress_bar()
    folder = path or NANO
    network = load_spatial_mllm(folder)
    model = network.model
    parts = {
        "2D encoder": model.visual,
        "3D encoder": model.spatial_encoder,
        "connector": model.connector,
        "language model": model.language_model,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}
    card = folder / "card.json"
    return {
        "model": "nano" if path is None else str(path),
        "type": network.config.model_type,
        "parameters": sum(p.numel() for p in network.parameters()),
        **counts,
        "dtype": str(network.dtype).removeprefix("torch."),
        "attention": network.config._attn_implementation,
        **(json.loads(card.read_text()) if card.is_file() else {}),
    }
