"""`load` a model, `watch` a place, `ask`."""

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig

from allocentric.encoders.checkpoints import load_exactly, located, read_tensors
from allocentric.encoders.vggt import VGGT, load_vggt
from allocentric.models.loading import read_config
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene, SceneCache
from allocentric.models.spa3_vlm import Spa3VLMConfig, Spa3VLMModel, Spa3VLMProcessor, is_spa3_vlm, load_spa3_vlm
from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration, load_spatial_mllm
from allocentric.models.ssr import SSRConfig, SSRProcessor, load_ssr
from allocentric.readers import Source
from allocentric.sampling import CANDIDATES, sample
from allocentric.views import Views, check_views

HEADS_FILE = "vggt_heads.safetensors"
NANO = Path(str(files("allocentric") / "nano"))
SCENE_MEMORY = 2 * 2**30


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
        scene_memory: int = SCENE_MEMORY,
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
        if isinstance(source, Views):
            check_views(source)
        else:
            _, source = sample(source, frames, sampling, candidates=candidates, model=self.geometry, width=self.geometry_width)
        return self._scenes.watch(self.network, self.processor, source)

    @property
    def geometry_width(self) -> int:
        """Image width, pixels, at which VGGT looks at candidate frames: the size it was trained at."""
        return self.geometry.config.img_size if self.geometry is not None else 518


def load(
    path: str | Path | None = None,
    processor: str | Path | None = None,
    geometry: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    latents: str | Path | None = None,
    scene_memory: int = SCENE_MEMORY,
    **switches,
) -> Model:
    """Load a model: nano, which comes with the package, or weights from a folder or a Hugging Face hub id.

    path        None or "nano" for nano; else a released Spatial-MLLM (v1.0, v1.1) or Spa3-VLM, or a Spatial-MLLM, Spa3-VLM or
                SSR saved by this library. "owner/name/folder" is a folder of a hub repository.
    processor   where tokenizer and image processor lie if not with the weights (released v1.1 folders lack some of them;
                Qwen/Qwen2.5-VL-3B-Instruct has them all).
    geometry    VGGT weights with heads, for space-aware sampling of plain video (facebook/VGGT-1B). nano brings its own.
    device      default: the first GPU if there is one.
    dtype       default: as stored; nano in float32.
    latents     folder in which a Spa3-VLM keeps the latents of scenes.
    scene_memory   bytes of watched scenes that are kept.
    switches    of the processor: `pixel_clamp`, `newline_after_vision` (`SpatialMLLMProcessor`). Weights that come with Qwen's own
                processor, as released, are shown what the published evaluations showed: pixel_clamp="qwen".
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if unknown := switches.keys() - {"pixel_clamp", "newline_after_vision"}:
        raise ValueError(f"switches: found {sorted(unknown)}, expected pixel_clamp or newline_after_vision")
    if path == "nano" and not Path(path).exists():
        path = None
    name = "nano" if path is None else str(path)
    if path is None:
        path, dtype = NANO, torch.float32 if dtype == "auto" else dtype
    folder = located(path)
    network, read_processor = _load_network(folder, dtype)
    network.to(device)
    if latents is not None:
        if not isinstance(network.model, Spa3VLMModel):
            raise ValueError(f"latents: found {name}, a {network.config.model_type}, expected a Spa3-VLM: others make none")
        network.model.keep_latents(latents)
    heads = Path(folder) / HEADS_FILE
    vggt = None
    if geometry is not None:
        vggt = load_vggt(geometry).to(device)
    elif heads.is_file():
        vggt = _with_heads(network, heads)
    reader = read_processor(folder if processor is None else located(processor), **switches)
    return Model(network, reader, name, vggt, scene_memory)


def _load_network(
    path: str | Path, dtype: torch.dtype | str
) -> tuple[SpatialMLLMForConditionalGeneration, Callable[..., SpatialMLLMProcessor]]:
    """The system that the config at `path` names, and what reads the processor that goes with it."""
    config = read_config(path)
    if is_spa3_vlm(config):
        network = load_spa3_vlm(path, dtype=dtype)
        width = network.config.spa3r_config.vggt_config.img_size
        return network, partial(Spa3VLMProcessor.from_pretrained, frames_as=network.config.frames_as, geometry_width=width)
    if config.get("model_type") == SSRConfig.model_type:
        return load_ssr(path, dtype=dtype), SSRProcessor.from_pretrained
    return load_spatial_mllm(path, dtype=dtype), _read_processor


def _read_processor(path: str | Path, **switches) -> SpatialMLLMProcessor:
    """A processor saved by this library as it was saved; Qwen's own with the bounds that published evaluations gave it."""
    saved, _ = SpatialMLLMProcessor.get_processor_dict(path)
    if saved.get("processor_class") != SpatialMLLMProcessor.__name__:
        switches = {"pixel_clamp": "qwen"} | switches
    return SpatialMLLMProcessor.from_pretrained(path, **switches)


def _vggt_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """Sizes of the VGGT inside a system; None when it has none."""
    return config.spa3r_config.vggt_config if isinstance(config, Spa3VLMConfig) else config.spatial_config


def _with_heads(network: SpatialMLLMForConditionalGeneration, heads: Path) -> nn.Module:
    """The model's own VGGT with the heads in the file `heads`; the aggregator is the model's, not a copy."""
    with torch.device("meta"):
        vggt = VGGT(_vggt_config(network.config))
    vggt.aggregator = nn.Module()  # nothing to load there
    load_exactly(vggt, read_tensors(heads), heads)
    vggt.to(network.device, network.dtype)
    encoder = network.model.spatial_encoder
    vggt.aggregator = encoder.aggregator if isinstance(network.config, Spa3VLMConfig) else encoder
    return vggt.eval()
