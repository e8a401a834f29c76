"""`load` a model, `watch` a place, `ask`."""

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig

from allocentric.encoders.checkpoints import load_exactly
from allocentric.encoders.vggt import VGGT, load_vggt
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene, SceneCache
from allocentric.models.spa3_vlm import Spa3VLMConfig, Spa3VLMProcessor, is_spa3_vlm, load_spa3_vlm
from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration, load_spatial_mllm
from allocentric.models.ssr import SSRConfig, SSRForConditionalGeneration, SSRProcessor
from allocentric.readers import Source
from allocentric.sampling import CANDIDATES, sample
from allocentric.views import Views

HEADS_FILE = "vggt_heads.safetensors"
NANO = Path(str(files("allocentric") / "nano"))


class Model:
    """A system ready for use: the network, its processor, and the scenes it has watched last.

    network        the transformers model; everything transformers can do with one can be done with it.
    name           what was loaded, for messages.
    geometry       VGGT with its heads, for space-aware sampling of what has no measured depth and poses; None: it cannot.
    scene_memory   bytes of scenes that are kept; those watched longest ago go first.
    """

    def __init__(
        self,
        network: SpatialMLLMForConditionalGeneration,
        processor: SpatialMLLMProcessor,
        name: str = "",
        geometry: nn.Module | None = None,
        scene_memory: int = 2 * 2**30,
    ):
        self.network, self.processor, self.name, self.geometry = network.eval(), processor, name, geometry
        self._scenes = SceneCache(scene_memory)

    def watch(
        self,
        source: Source | Views,
        frames: int = 16,
        sampling: Literal["uniform", "space_aware"] = "uniform",
        candidates: int = CANDIDATES,
    ) -> Scene:
        """Encode a place once; the result answers any number of questions.

        source       a video file, a folder or list of images, a posed RGB-D folder; or `Views`, all of which are used: what is
                     below is for sources that frames are chosen from.
        frames       how many frames the model gets.
        sampling     "uniform", or "space_aware": those that together show the most of the place.
        candidates   how many evenly spread frames "space_aware" chooses from.
        """
        if not isinstance(source, Views):
            _, source = sample(source, frames, sampling, candidates=candidates, model=self.geometry, width=self.geometry_width)
        return self._scenes.watch(self.network, self.processor, source)

    @property
    def geometry_width(self) -> int:
        """Image width, pixels, at which VGGT looks at candidate frames: the size it was trained at."""
        config = _vggt_config(self.network.config)
        return config.img_size if config is not None else 518


def load(
    path: str | Path | None = None,
    processor: str | Path | None = None,
    geometry: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
) -> Model:
    """Load a model: nano, which comes with the package, or weights from a folder or a Hugging Face hub id.

    path        None for nano; else a released Spatial-MLLM (v1.0, v1.1) or Spa3-VLM, or a Spatial-MLLM, Spa3-VLM or SSR saved by
                this library.
    processor   where tokenizer and image processor lie if not with the weights (released v1.1 folders lack some of them;
                Qwen/Qwen2.5-VL-3B-Instruct has them all).
    geometry    VGGT weights with heads, for space-aware sampling of plain video (facebook/VGGT-1B). nano brings its own.
    device      default: the first GPU if there is one.
    dtype       default: as stored; nano runs in float32 on a CPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if path is None:
        return _load_nano(device, dtype)
    if not Path(path).is_dir() and str(path).count("/") != 1:
        raise ValueError(f"{path}: found no such folder, expected one with weights, or a hub id (owner/name)")
    network, read_processor = _load_network(path, dtype)
    network.to(device)
    heads = Path(path) / HEADS_FILE
    vggt = None
    if geometry is not None:
        vggt = load_vggt(geometry).to(device)
    elif heads.is_file():
        vggt = _with_heads(network, heads)
    return Model(network, read_processor(processor or path), str(path), vggt)


def _load_network(
    path: str | Path, dtype: torch.dtype | str
) -> tuple[SpatialMLLMForConditionalGeneration, Callable[..., SpatialMLLMProcessor]]:
    """The system that the config at `path` names, and what reads the processor that goes with it."""
    config, _ = PreTrainedConfig.get_config_dict(path)
    if is_spa3_vlm(config):
        network = load_spa3_vlm(path, dtype=dtype)
        width = network.config.spa3r_config.vggt_config.img_size
        return network, partial(Spa3VLMProcessor.from_pretrained, frames_as=network.config.frames_as, geometry_width=width)
    if config.get("model_type") == SSRConfig.model_type:
        return SSRForConditionalGeneration.from_pretrained(path, dtype=dtype).eval(), SSRProcessor.from_pretrained
    return load_spatial_mllm(path, dtype=dtype), SpatialMLLMProcessor.from_pretrained


def _vggt_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """Sizes of the VGGT inside a system; None when it has none."""
    return config.spa3r_config.vggt_config if isinstance(config, Spa3VLMConfig) else config.spatial_config


def _load_nano(device: torch.device, dtype: torch.dtype | str) -> Model:
    if not (NANO / "config.json").is_file():
        raise ValueError(f"{NANO}: found no weights of nano, expected them inside the package; reinstall allocentric")
    network = load_spatial_mllm(NANO, dtype=torch.float32 if dtype == "auto" else dtype).to(device)
    return Model(network, SpatialMLLMProcessor.from_pretrained(NANO), "nano", _with_heads(network, NANO / HEADS_FILE))


def _with_heads(network: SpatialMLLMForConditionalGeneration, heads: Path) -> nn.Module:
    """The model's own VGGT with the heads in the file `heads`; the aggregator is the model's, not a copy."""
    with torch.device("meta"):
        vggt = VGGT(_vggt_config(network.config))
    vggt.aggregator = nn.Module()  # nothing to load there
    load_exactly(vggt, load_file(heads), heads)
    vggt.to(network.device, network.dtype)
    encoder = network.model.spatial_encoder
    vggt.aggregator = encoder.aggregator if isinstance(network.config, Spa3VLMConfig) else encoder
    return vggt.eval()
