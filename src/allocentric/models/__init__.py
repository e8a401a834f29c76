"""The systems, one file each. Importing this package registers those that answer questions with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene, SceneCache
from allocentric.models.spa3_vlm import (
    Spa3VLMConfig,
    Spa3VLMForConditionalGeneration,
    Spa3VLMModel,
    Spa3VLMProcessor,
    load_spa3_vlm,
)
from allocentric.models.spatial_mllm import (
    SpatialMLLMConfig,
    SpatialMLLMForConditionalGeneration,
    SpatialMLLMModel,
    load_spatial_mllm,
)
from allocentric.models.ssr import SSRConfig, SSRForConditionalGeneration, SSRModel, SSRProcessor, ssr_from_parts

for config, backbone, model in (
    (SpatialMLLMConfig, SpatialMLLMModel, SpatialMLLMForConditionalGeneration),
    (Spa3VLMConfig, Spa3VLMModel, Spa3VLMForConditionalGeneration),
    (SSRConfig, SSRModel, SSRForConditionalGeneration),
):
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, backbone, exist_ok=True)
    AutoModelForImageTextToText.register(config, model, exist_ok=True)
    AutoModelForMultimodalLM.register(config, model, exist_ok=True)
AutoProcessor.register(SpatialMLLMConfig, SpatialMLLMProcessor, exist_ok=True)
AutoProcessor.register(Spa3VLMConfig, Spa3VLMProcessor, exist_ok=True)
AutoProcessor.register(SSRConfig, SSRProcessor, exist_ok=True)

__all__ = [
    "SSRConfig",
    "SSRForConditionalGeneration",
    "SSRProcessor",
    "Scene",
    "SceneCache",
    "Spa3VLMConfig",
    "Spa3VLMForConditionalGeneration",
    "Spa3VLMProcessor",
    "SpatialMLLMConfig",
    "SpatialMLLMForConditionalGeneration",
    "SpatialMLLMModel",
    "SpatialMLLMProcessor",
    "load_spa3_vlm",
    "load_spatial_mllm",
    "ssr_from_parts",
]
