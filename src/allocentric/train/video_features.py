"""What frozen encoders say of the videos that are trained on, kept on disk: a file for each video."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import weights_id
from allocentric.models.spatial_mllm import SpatialMLLMModel

MADE_FROM = ("vision_config", "spatial_config", "connector_config", "spa3r_config", "raw_vggt", "image_mean", "image_std")


def encoders(model: SpatialMLLMModel) -> nn.ModuleList:
    """What makes features: Qwen's ViT without its merger, and VGGT."""
    vision = [part for name, part in model.visual.named_children() if name != "merger"]
    return nn.ModuleList([*vision, *filter(None, [model.spatial_encoder])])


class VideoFeatures:
    """A folder of the model's inputs for videos: `video_features_2d` and `_3d` in place of pixels, and what goes with them.

    A file's name stands for its videos (path, size, time of change), the number of frames, preprocessing, encoders and precision:
    what another run made with other ones lies beside it, what it made with the same is used.
    """

    def __init__(self, folder: Path, model: SpatialMLLMModel, processor: SpatialMLLMProcessor, frames: int, dtype: torch.dtype):
        self.folder, self.dtype = Path(folder), dtype
        preprocessing = {k: v for k, v in processor.to_dict().items() if k not in ("tokenizer", "chat_template")}
        config = {k: v for k, v in model.config.to_dict().items() if k in MADE_FROM}
        made_by = json.dumps([preprocessing, config, frames, str(dtype)], sort_keys=True, default=str)
        self.made_by = made_by + weights_id(encoders(model))

    def path(self, videos: Sequence[Path]) -> Path:
        """Where the features of these videos, shown together, lie."""
        found = [(str(video.resolve()), (about := video.stat()).st_size, about.st_mtime_ns) for video in videos]
        return self.folder / f"{sha256((repr(found) + self.made_by).encode()).hexdigest()[:32]}.safetensors"

    def read(self, videos: Sequence[Path]) -> dict[str, Tensor]:
        return load_file(self.path(videos))

    def write(self, videos: Sequence[Path], inputs: Mapping[str, Tensor]) -> None:
        """Keep these inputs; features in the precision that the run computes in."""
        kept = {k: v.to(self.dtype) if k.startswith("video_features") else torch.as_tensor(v) for k, v in inputs.items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{uuid4().hex}.part"  # of this process alone
        save_file({name: value.cpu().contiguous() for name, value in kept.items()}, partial)
        partial.replace(self.path(videos))  # a file is whole or absent
