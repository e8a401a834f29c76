"""S2-MLLM (arXiv 2512.01223): points at things. Visual tokens with structure and position, and a head that picks a proposal.

    frames ─► ViT ─► structure ─► projector ─► + coordinates ─┬► pooling ─► + rays ─► language model ─► ... <ground>
                                                  proposals ─► objects ──────────────────────► cosine ◄─────┘

Two bases share everything but their encoders: LLaVA-OneVision's classes with the layout of LLaVA-Video-7B (SigLIP, Qwen2), on which
S2-MLLM was published, and Qwen2.5-VL. Beside frames the model takes geometry, made once per scene (`models.grounding`):

    cells    (batch, views, rows, columns, 3)   mean world point of each cell of the fine grid, metres; NaN without depth
    rays     (batch, views, rows, columns, 3)   viewing direction of each cell the language model sees; NaN without depth
    boxes    (batch, k, 7)                      proposals; a row of NaN is padding
    shares   (batch, k, views x rows x columns) share of each fine cell that lies in each box

Guidance by point maps is for training alone and lives in `train.guidance`: no part of it is in these models.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    Cache,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionModel,
    PreTrainedConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from allocentric.encoders.layers import ZeroLinear
from allocentric.fusion.structure import GroundingHead, RayEncoding, StructureAttention, pool_objects, sinusoidal_3d
from allocentric.models.loading import load_weights, make_config, read_config
from allocentric.models.spatial_mllm import ReleasedNames, SpatialMLLMConfig, SpatialMLLMForConditionalGeneration, SpatialMLLMModel

GROUND = "<ground>"  # the token whose state is compared with the proposals


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class StructureConfig(PreTrainedConfig):
    """What S2-MLLM adds to its base.

    num_heads, mlp_ratio   of the structure attention.
    ray_size               hidden width of the ray MLP.
    temperature            of the softmax over proposals.
    object_share           least share of a cell inside a box for the cell to belong to it.
    use_structure, use_position   False leaves that part out.

    Quirks of the published code, for weights that were trained with them (`fusion.structure`):

    scrambled_groups       attention groups that are neither views nor places.
    ray_gain               5 there, of which the paper says nothing.
    bfloat16_coordinates   coordinates rounded to bfloat16 before they are counted in voxels.
    """

    model_type = "s2-mllm-structure"
    base_config_key = "structure_config"

    num_heads: int = 12
    mlp_ratio: float = 4.0
    ray_size: int = 512
    temperature: float = 0.07
    object_share: float = 0.5
    use_structure: bool = True
    use_position: bool = True
    scrambled_groups: bool = False
    ray_gain: float = 1.0
    bfloat16_coordinates: bool = False


COMPAT = {"scrambled_groups": True, "ray_gain": 5.0, "bfloat16_coordinates": True}


class Structure(nn.Module):
    """The parts that S2-MLLM adds to the path from pixels to tokens."""

    def __init__(self, config: StructureConfig, vision_size: int, hidden_size: int):
        super().__init__()
        self.config = config
        self.attention = self.rays = None
        if config.use_structure:
            self.attention = StructureAttention(vision_size, config.num_heads, config.mlp_ratio, config.scrambled_groups)
        if config.use_position:
            self.rays = RayEncoding(hidden_size, config.ray_size, config.ray_gain)

    def attend(self, tokens: Float[Tensor, "b v s d"]) -> Float[Tensor, "b v s d"]:
        """Exchange between views, then within them."""
        return tokens if self.attention is None else self.attention(tokens)

    def locate(self, tokens: Float[Tensor, "b v s d"], cells: Float[Tensor, "b v h w 3"] | None) -> Float[Tensor, "b v s d"]:
        """Add where each cell is in the world (equation 4, inside the pooling)."""
        if self.rays is None or cells is None:
            return tokens
        _same_grid("cells", cells, tokens)
        return tokens + self.coordinates(cells.flatten(2, 3), tokens)

    def look(self, tokens: Float[Tensor, "b v s d"], rays: Float[Tensor, "b v h w 3"] | None) -> Float[Tensor, "b v s d"]:
        """Add from where each cell is seen (equation 4, behind the pooling)."""
        if self.rays is None or rays is None:
            return tokens
        _same_grid("rays", rays, tokens)
        return tokens + self.rays(rays.flatten(2, 3)).to(tokens.dtype)

    def objects(
        self, tokens: Float[Tensor, "b v s d"], boxes: Float[Tensor, "b k 7"], shares: Float[Tensor, "b k cells"]
    ) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b k"]]:
        """A feature for each proposal, and which of them any cell shows. The others only have the place of their centre."""
        pooled, seen = pool_objects(tokens.flatten(1, 2), shares, self.config.object_share)
        return (pooled if self.rays is None else pooled + self.coordinates(boxes[..., :3], tokens)), seen

    def coordinates(self, points: Float[Tensor, "*shape 3"], like: Tensor) -> Float[Tensor, "*shape d"]:
        code = sinusoidal_3d(points, like.shape[-1], bfloat16=self.config.bfloat16_coordinates)
        return code.to(like.dtype)


def _same_grid(name: str, geometry: Tensor, tokens: Tensor) -> None:
    if geometry.shape[:2] != tokens.shape[:2] or geometry.shape[2] * geometry.shape[3] != tokens.shape[2]:
        raise ValueError(
            f"{name}: found {tuple(geometry.shape[:4])} (batch, views, rows, columns), expected {tuple(tokens.shape[:2])} with "
            f"{tokens.shape[2]} cells a view, as the frames give"
        )


@no_type_check  # under autocast it is rebuilt from a dictionary, which transformers takes in place of the first field
@dataclass
class GroundingOutput(CausalLMOutputWithPast):
    """A language model's output and what grounding needs.

    cosine      (n, k + 1) float32, one row per `<ground>` in the input, in order; the last column is "none of them".
    rows        (n,) the sample of each.
    seen        (b, k) which proposals any cell shows.
    features    (b, views, cells, hidden) visual tokens before any position: what guidance supervises.
    """

    cosine: Tensor | None = None
    rows: Tensor | None = None
    seen: Tensor | None = None
    features: Tensor | None = None


class _Grounding:
    """What both systems do around their backbone; mixed into transformers' classes."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        video_features_2d: Tensor | None = None,
        cells: Tensor | None = None,
        rays: Tensor | None = None,
        boxes: Tensor | None = None,
        shares: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> GroundingOutput:
        """The base's forward and inputs (spelled out: `generate` accepts no other), with geometry and proposals.

        video_features_2d   outputs of `model.encode_2d` kept from earlier, in place of `pixel_values_videos`.
        """
        if mm_encoder_outputs is None and (pixel_values_videos is not None or video_features_2d is not None):
            seen = self.model.get_video_features(
                pixel_values_videos, video_grid_thw, cells=cells, rays=rays, video_features_2d=video_features_2d
            )
            mm_encoder_outputs = {"video": seen}
        if video_grid_thw is not None:
            kwargs |= {"video_grid_thw": video_grid_thw, "mm_token_type_ids": mm_token_type_ids}
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        hidden = output.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, kept])
        result = GroundingOutput(logits=logits, past_key_values=output.past_key_values, hidden_states=output.hidden_states)
        if labels is not None:
            result.loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size)
        video = (mm_encoder_outputs or {}).get("video")
        if video is not None:
            result.features = video.hidden_states[0]
        if boxes is not None and video is not None:
            objects, result.seen = self.model.structure.objects(video.last_hidden_state, boxes, shares)
            result.rows, places = (input_ids == self.config.ground_token_id).nonzero(as_tuple=True)
            result.cosine = self.ground_head(hidden[result.rows, places], objects, result.rows, is_proposal(boxes))
        return result

    def _init_weights(self, module: nn.Module) -> None:
        _init_weights(super()._init_weights, module)


def is_proposal(boxes: Float[Tensor, "b k 7"]) -> Bool[Tensor, "b k"]:
    """Which rows are boxes and not padding."""
    return ~boxes.isnan().any(-1)


def _init_weights(base, module: nn.Module) -> None:
    """The base's initialisation, after which what starts at zero goes back to zero."""
    base(module)
    if isinstance(module, ZeroLinear):
        module.reset_parameters()
    elif isinstance(module, GroundingHead):
        nn.init.normal_(module.zero_target)


# ------------------------------------------------------------------------------------------------------------- LLaVA-OneVision


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class S2LlavaConfig(LlavaOnevisionConfig):
    """LLaVA-OneVision's config with S2-MLLM's parts. The defaults are those of LLaVA-Video-7B and the published tokens:
    `<image>` 151646 (here: what is seen), `<ground>` 151647, `<coord>` 151648."""

    model_type = "s2-mllm-llava"
    sub_configs_defaults = {  # noqa: RUF012
        **LlavaOnevisionConfig.sub_configs_defaults,
        "structure_config": SubConfigSpec(StructureConfig),
    }

    structure_config: dict | PreTrainedConfig | None = None
    image_token_index: int = 151646
    video_token_index: int = 151646
    ground_token_id: int = 151647

    @classmethod
    def full(cls) -> "S2LlavaConfig":
        """The published sizes: SigLIP so400m without its last layer, Qwen2-7B."""
        text = {
            "model_type": "qwen2",
            "vocab_size": 151649,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": False,
        }
        return cls(text_config=text)

    @classmethod
    def tiny(cls, **changes) -> "S2LlavaConfig":
        """A two-layer model for tests: the same code, a grid of 5 x 5 that becomes 3 x 3."""
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 72,
            "patch_size": 14,
            "vision_use_head": False,
        }
        text = {
            "model_type": "qwen2",
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "bos_token_id": None,
            "eos_token_id": 301,
            "pad_token_id": 302,
        }
        tokens = {"image_token_index": 306, "video_token_index": 306, "ground_token_id": 307}
        structure = {"num_heads": 4, "ray_size": 16}
        return cls(**{"vision_config": vision, "text_config": text, "structure_config": structure, **tokens, **changes})


class S2LlavaModel(LlavaOnevisionModel):
    """LLaVA-OneVision's backbone; what differs is in the hook, `get_video_features`."""

    config: S2LlavaConfig

    def __init__(self, config: S2LlavaConfig):
        super().__init__(config)
        self.structure = Structure(config.structure_config, config.vision_config.hidden_size, config.text_config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        _init_weights(super()._init_weights, module)

    @property
    def fine_grid(self) -> tuple[int, int]:
        """Rows and columns of SigLIP's patches: the cells that objects are pooled from."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return side, side

    @property
    def seen_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of a frame in the language model, line ends left out."""
        rows, columns = self.fine_grid
        return (rows + 1) // 2, (columns + 1) // 2

    def encode_2d(self, pixel_values_videos: Float[Tensor, "b v 3 h w"]) -> Float[Tensor, "b v s d"]:
        """SigLIP's patches as its last layer leaves them, before its closing norm."""
        output = self.vision_tower(pixel_values_videos.flatten(0, 1), output_hidden_states=True)
        return output.hidden_states[self.config.vision_feature_layer].unflatten(0, pixel_values_videos.shape[:2])

    def get_video_features(
        self,
        pixel_values_videos: Float[Tensor, "b v 3 h w"] | None,
        video_grid_thw: Tensor | None = None,
        cells: Float[Tensor, "b v r c 3"] | None = None,
        rays: Float[Tensor, "b v r2 c2 3"] | None = None,
        video_features_2d: Float[Tensor, "b v s d"] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """`pooler_output`: tokens, one line end after every row; `last_hidden_state`: fine tokens with coordinates;
        `hidden_states`: the same before any position. `video_grid_thw` is Qwen's and unused."""
        tokens = self.encode_2d(pixel_values_videos) if video_features_2d is None else video_features_2d
        plain = self.multi_modal_projector(self.structure.attend(tokens))
        fine = self.structure.locate(plain, cells)
        pooled = self.apply_pooling(fine.flatten(0, 1)).unflatten(0, fine.shape[:2])
        seen = self.structure.look(pooled, rays).unflatten(2, self.seen_grid)
        line_end = self.image_newline.to(seen.dtype).expand(*seen.shape[:3], 1, -1)
        tokens = torch.cat([seen, line_end], dim=3).flatten(1, 3)
        return BaseModelOutputWithPooling(last_hidden_state=fine, pooler_output=tokens, hidden_states=(plain,))

    def prompt_positions(
        self, input_ids: Int[Tensor, "b n"], mask: Int[Tensor, "b n"], video_grid_thw: Tensor | None = None
    ) -> Int[Tensor, "1 b n"]:
        """Rotary positions: tokens counted from the first that is not padding."""
        return (mask.cumsum(-1) - 1).clamp(min=0)[None]


# Tensor names of LLaVA's own code (LLaVA-Video, Video-3D-LLM, S2-MLLM) -> ours. Our own names match none of the patterns.
LLAVA_NAMES = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^st_attention_block\.temporal_norm1\.": "model.structure.attention.inter_norm.",
    r"^st_attention_block\.temporal_attn\.": "model.structure.attention.inter.",
    r"^st_attention_block\.temporal_fc\.": "model.structure.attention.inter_out.",
    r"^st_attention_block\.norm1\.": "model.structure.attention.intra_norm.",
    r"^st_attention_block\.attn\.": "model.structure.attention.intra.",
    r"^st_attention_block\.norm2\.": "model.structure.attention.mlp_norm.",
    r"^st_attention_block\.mlp\.": "model.structure.attention.mlp.",
    r"^mlp_pe\.": "model.structure.rays.mlp.",
    r"^ground_head_obj\.": "ground_head.object_mlp.",
    r"^ground_head_query\.": "ground_head.query_mlp.",
    r"^ground_head_zero_target$": "ground_head.zero_target",
}
# What rides along in such files and is never read here: the teacher of training, SigLIP's last layer and what follows it.
UNUSED = [r"^fast3r\.", r"^encoder_to_decoder_proj\.", r"^model\.vision_tower\.(encoder\.layers\.26|head)\."]
NEW = ("model.structure.", "ground_head.")  # what a base without S2-MLLM's training lacks


class S2LlavaForConditionalGeneration(_Grounding, ReleasedNames, LlavaOnevisionForConditionalGeneration):
    """S2-MLLM on LLaVA-OneVision: loss, `generate`, `save_pretrained`, PEFT as for the base."""

    config: S2LlavaConfig
    released_names = LLAVA_NAMES
    _keys_to_ignore_on_load_unexpected = UNUSED

    def __init__(self, config: S2LlavaConfig):
        super(LlavaOnevisionForConditionalGeneration, self).__init__(config)  # its own would build a second backbone
        self.model = S2LlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.ground_head = GroundingHead(config.text_config.hidden_size)
        self.post_init()


# ------------------------------------------------------------------------------------------------------------------ Qwen2.5-VL


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class S2QwenConfig(SpatialMLLMConfig):
    """Qwen2.5-VL's config with S2-MLLM's parts, and without Spatial-MLLM's. Every view is a temporal patch of its own."""

    model_type = "s2-mllm-qwen"
    sub_configs_defaults = {  # noqa: RUF012
        **SpatialMLLMConfig.sub_configs_defaults,
        "structure_config": SubConfigSpec(StructureConfig),
    }

    use_spatial: bool = False
    structure_config: dict | PreTrainedConfig | None = None
    ground_token_id: int = 151665

    @classmethod
    def tiny(cls, **changes) -> "S2QwenConfig":
        """A two-layer model for tests: the same code, a few hundred thousand parameters."""
        own = {"use_spatial": False, "ground_token_id": 307, "structure_config": {"num_heads": 4, "ray_size": 16}}
        return super().tiny(**{**own, "spatial_config": None, "connector_config": None, **changes})


class S2QwenModel(SpatialMLLMModel):
    """Qwen2.5-VL's backbone; what differs is in the hook, `get_video_features`.

    Its cells are those of Qwen's merger, which shrinks the grid before the projector: nothing is pooled behind it.
    """

    config: S2QwenConfig

    def __init__(self, config: S2QwenConfig):
        super().__init__(config)
        self.structure = Structure(config.structure_config, config.vision_config.hidden_size, config.text_config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        _init_weights(super()._init_weights, module)

    def get_video_features(
        self,
        pixel_values_videos: Tensor | None,
        video_grid_thw: Int[Tensor, "b 3"],
        cells: Float[Tensor, "b v r c 3"] | None = None,
        rays: Float[Tensor, "b v r c 3"] | None = None,
        video_features_2d: Float[Tensor, "tokens grouped"] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """`pooler_output`: the tokens of each video; `last_hidden_state`: the same with coordinates but without rays;
        `hidden_states`: before any position."""
        if bool((video_grid_thw != video_grid_thw[0]).any()):
            raise ValueError(f"video_grid_thw: found {video_grid_thw.tolist()}, expected videos of one size and length in a batch")
        vision, (views, _, _) = self.config.vision_config, video_grid_thw[0].tolist()
        b, merge = len(video_grid_thw), vision.spatial_merge_size**2
        grouped = self.encode_2d(pixel_values_videos, video_grid_thw) if video_features_2d is None else video_features_2d
        patches = grouped.to(self.dtype).reshape(b, views, -1, vision.hidden_size)
        attended = self.structure.attend(patches)
        plain = self.visual.merger(attended.reshape(-1, vision.hidden_size)).view(b, views, patches.shape[2] // merge, -1)
        fine = self.structure.locate(plain, cells)
        tokens = self.structure.look(fine, rays).flatten(1, 2)
        return BaseModelOutputWithPooling(last_hidden_state=fine, pooler_output=tuple(tokens), hidden_states=(plain,))

    def prompt_positions(
        self, input_ids: Int[Tensor, "b n"], mask: Int[Tensor, "b n"], video_grid_thw: Tensor | None = None
    ) -> Int[Tensor, "3 b n"]:
        """Rotary positions (time, row, column)."""
        return self.get_rope_index(input_ids, self.token_types(input_ids), video_grid_thw=video_grid_thw, attention_mask=mask)[0]


class S2QwenForConditionalGeneration(_Grounding, SpatialMLLMForConditionalGeneration):
    """S2-MLLM on Qwen2.5-VL: loss, `generate`, `save_pretrained`, PEFT as for the base."""

    config: S2QwenConfig

    def __init__(self, config: S2QwenConfig):
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)  # the others would build backbones of their own
        self.model = S2QwenModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.ground_head = GroundingHead(config.text_config.hidden_size)
        self.post_init()


# -------------------------------------------------------------------------------------------------------------------- loading

S2Model = S2LlavaForConditionalGeneration | S2QwenForConditionalGeneration


# Here and not with the others in `models`: LLaVA-OneVision's classes take long to import, and only who points needs them.
for _config, _backbone, _model in (
    (S2LlavaConfig, S2LlavaModel, S2LlavaForConditionalGeneration),
    (S2QwenConfig, S2QwenModel, S2QwenForConditionalGeneration),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _backbone, exist_ok=True)
    AutoModelForImageTextToText.register(_config, _model, exist_ok=True)


def load_s2(path: str | Path, compat: bool = False, structure: dict | None = None, trained: bool = False, **kwargs) -> S2Model:
    """An S2-MLLM from a folder or hub id: one of ours, or one on a base it is to be trained from.

    Read are our own two kinds; checkpoints of LLaVA's code (model type "llava_qwen": LLaVA-Video, Video-3D-LLM, S2-MLLM) and
    LLaVA-OneVision; Qwen2.5-VL and Spatial-MLLM, whose geometry branch is left out. What such a base lacks (structure, rays,
    grounding head) starts so that the base's own answers stay as they are. Other missing or unexpected names are errors.

    compat      for weights trained by the published S2-MLLM code: its quirks (`StructureConfig`).
    structure   changes to the rest of `StructureConfig`. `kwargs` go to `from_pretrained` (dtype, device_map, ...).
    trained     a base that lacks something is an error: the model is not to be trained, but to point.
    """
    config = read_config(path)
    model_type = config.pop("model_type", None)
    config.pop("architectures", None)
    kinds = {
        "s2-mllm-llava": (S2LlavaForConditionalGeneration, S2LlavaConfig),
        "s2-mllm-qwen": (S2QwenForConditionalGeneration, S2QwenConfig),
        "llava_qwen": (S2LlavaForConditionalGeneration, S2LlavaConfig),
        "llava_onevision": (S2LlavaForConditionalGeneration, S2LlavaConfig),
        "qwen2_5_vl": (S2QwenForConditionalGeneration, S2QwenConfig),
        "spatial-mllm": (S2QwenForConditionalGeneration, S2QwenConfig),
    }
    if model_type not in kinds:
        raise ValueError(f"{path}: found model_type {model_type!r}, expected one of {list(kinds)}")
    kind, config_kind = kinds[model_type]
    if model_type == "llava_qwen":
        config = _from_llava(config)
    elif model_type in ("qwen2_5_vl", "spatial-mllm"):
        config |= {"use_spatial": False, "spatial_config": None, "connector_config": None}
    given = dict(config.get("structure_config") or {"num_heads": _head_count(config.get("vision_config"))})
    config["structure_config"] = given | (COMPAT if compat else {}) | (structure or {})
    ours = model_type.startswith("s2-mllm")
    new = () if ours or trained else NEW
    left_out = () if ours else ("model.spatial_encoder.", "model.connector.")
    return load_weights(kind, path, make_config(config_kind, f"{path}: config.json", config), new, left_out, **kwargs)


def _head_count(vision: dict | None) -> int:
    """Twelve heads where they divide the vision encoder's width, as published (SigLIP's 1152); else the encoder's own number."""
    vision = vision or {"hidden_size": 1152}
    return 12 if vision["hidden_size"] % 12 == 0 else vision.get("num_heads") or vision["num_attention_heads"]


def _from_llava(config: dict) -> dict:
    """Our config of a checkpoint of LLaVA's own code, which keeps the language model's settings at the top."""
    known = Qwen2Config().to_dict().keys() - {"dtype", "transformers_version", "rope_parameters"}
    text = {name: value for name, value in config.items() if name in known}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": config.get("rope_theta", 1e6)}
    ours = {"text_config": {"model_type": "qwen2", **text}, "tie_word_embeddings": config.get("tie_word_embeddings", False)}
    if config.get("ground_token_ids"):
        ours["ground_token_id"] = config["ground_token_ids"][0]
    return ours | {name: config[name] for name in ("structure_config", "vision_config") if name in config}
