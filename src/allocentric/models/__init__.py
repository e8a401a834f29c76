"""The systems, one file each. Importing this package registers them with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor

from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import Scene, SceneCache, watch
from allocentric.models.spatial_mllm import (
    SpatialMLLMConfig,
    SpatialMLLMForConditionalGeneration,
    SpatialMLLMModel,
    load_spatial_mllm,
)

AutoConfig.register(SpatialMLLMConfig.model_type, SpatialMLLMConfig, exist_ok=True)
AutoModel.register(SpatialMLLMConfig, SpatialMLLMModel, exist_ok=True)
AutoModelForImageTextToText.register(SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, exist_ok=True)
AutoProcessor.register(SpatialMLLMConfig, SpatialMLLMProcessor, exist_ok=True)

__all__ = [
    "Scene",
    "SceneCache",
    "SpatialMLLMConfig",
    "SpatialMLLMForConditionalGeneration",
    "SpatialMLLMModel",
    "SpatialMLLMProcessor",
    "load_spatial_mllm",
    "watch",
]
