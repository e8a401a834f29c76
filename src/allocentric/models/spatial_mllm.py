"""Spatial-MLLM (arXiv 2505.23747): Qwen2.5-VL whose visual tokens carry VGGT geometry.

    pixels ─► Qwen ViT ─► merger ────────┐
       └────► VGGT ─► group ─► connector ┴─ add ─► language model

Both encoders see the same pixels, so the model needs no input beyond Qwen's own: the frames are recovered from
`pixel_values(_videos)`, which is a permutation of the resized, normalised frames.
"""

from itertools import groupby
from pathlib import Path
from typing import ClassVar, Literal, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    Cache,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_window_index

from allocentric.encoders.vggt import VGGT, VGGTAggregator, VGGTConfig, load_vggt
from allocentric.fusion.addition import AdditionConnector, group_tokens
from allocentric.models.loading import load_weights, make_config, read_config


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class ConnectorConfig(PreTrainedConfig):
    """How geometry joins the 2D tokens.

    connector_type            "mlp_add", the only published one.
    spatial_embeds_layer_idx  which VGGT block's output is used; -1 is the last.
    hidden_size               width inside the MLP; None: the same as its input (published).
    layout                    token order and depth of the MLP: "v1.1" or "v1.0" (`fusion.addition`). "v1.0" also shows
                              VGGT an image once and repeats its tokens; "v1.1" shows it as a clip of equal frames.
    """

    model_type = "spatial-mllm-connector"
    base_config_key = "connector_config"

    connector_type: str = "mlp_add"
    spatial_embeds_layer_idx: int = -1
    hidden_size: int | None = None
    layout: Literal["v1.1", "v1.0"] = "v1.1"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.connector_type != "mlp_add":
            raise ValueError(f"connector_type: found {self.connector_type!r}, expected 'mlp_add'")


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class SpatialMLLMConfig(Qwen2_5_VLConfig):
    """Qwen2.5-VL's config, a VGGT and a connector. Reads the released `config.json` of v1.1 as it is.

    use_spatial      False builds neither VGGT nor connector: the same model with 2D tokens only.
    mrope_time_step  distance of consecutive temporal patches on the rotary time axis. None: tokens_per_second x
                     second_per_grid_ts, as Hugging Face does; published evaluations ran this way and got 2. Published
                     v1.1 training used 1.
    image_mean, image_std   normalisation of `pixel_values`, undone to recover the frames; default: CLIP's, as Qwen's.
    """

    model_type = "spatial-mllm"
    sub_configs_defaults = {  # noqa: RUF012
        **Qwen2_5_VLConfig.sub_configs_defaults,
        "spatial_config": SubConfigSpec(VGGTConfig, optional=True),
        "connector_config": SubConfigSpec(ConnectorConfig, optional=True),
    }

    spatial_config: dict | PreTrainedConfig | None = None
    connector_config: dict | PreTrainedConfig | None = None
    use_spatial: bool = True
    mrope_time_step: float | int | None = None
    image_mean: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(OPENAI_CLIP_STD)

    def __post_init__(self, **kwargs):
        # Released configs name other model types here (or none): both parts are what this class says they are.
        self.spatial_config = _sub_config(VGGTConfig, self.spatial_config) if self.use_spatial else None
        self.connector_config = _sub_config(ConnectorConfig, self.connector_config) if self.use_spatial else None
        super().__post_init__(**kwargs)
        if self.use_spatial and self.spatial_config.patch_size != self.vision_config.patch_size:
            raise ValueError(
                f"spatial_config.patch_size: found {self.spatial_config.patch_size}, expected vision_config's "
                f"{self.vision_config.patch_size}: both encoders see one patch grid"
            )

    @classmethod
    def get_config_dict(cls, path, **kwargs) -> tuple[dict, dict]:
        """Hugging Face's `get_config_dict`; a v1.0 config is told by its architecture and becomes one of ours."""
        config, kwargs = super().get_config_dict(path, **kwargs)
        return _with_layout(config), kwargs

    @classmethod
    def tiny(cls, **changes) -> "SpatialMLLMConfig":
        """A two-layer model for tests: the same code, a few hundred thousand parameters."""
        return cls(
            **{
                "text_config": {
                    "vocab_size": 320,
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": 4096,
                    "rms_norm_eps": 1e-6,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
                    "bos_token_id": None,
                    "eos_token_id": 301,
                    "pad_token_id": 302,
                },
                "vision_config": {
                    "depth": 2,
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_heads": 4,
                    "out_hidden_size": 64,
                    "window_size": 56,
                    "fullatt_block_indexes": [1],
                    "tokens_per_second": 2,
                },
                "spatial_config": VGGTConfig.tiny(),
                "connector_config": {"hidden_size": 64},
                "vision_start_token_id": 303,
                "vision_end_token_id": 304,
                "image_token_id": 305,
                "video_token_id": 306,
                "tie_word_embeddings": True,
                **changes,
            }
        )


def _sub_config(cls: type[PreTrainedConfig], given: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(given, PreTrainedConfig):
        return given
    return cls(**{k: v for k, v in (given or {}).items() if k != "model_type"})


def unpatchify(
    pixel_values: Float[Tensor, "patches features"],
    grid_thw: Int[Tensor, "rows 3"],
    config: SpatialMLLMConfig,
) -> list[Float[Tensor, "frames 3 height width"]]:
    """Frames in [0, 1], float32, one tensor per row of `grid_thw`, out of Qwen's flattened patches; not clamped."""
    vision = config.vision_config
    p, m, step = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    expected = (int(grid_thw.prod(-1).sum()), 3 * step * p**2)
    if tuple(pixel_values.shape) != expected:
        raise ValueError(f"pixel values: found shape {tuple(pixel_values.shape)}, expected {expected} for grid {grid_thw.tolist()}")
    mean = torch.tensor(config.image_mean, device=pixel_values.device).view(3, 1, 1)
    std = torch.tensor(config.image_std, device=pixel_values.device).view(3, 1, 1)
    rows = []
    per_row = pixel_values.float().split(grid_thw.prod(-1).tolist())
    for (t, h, w), patches in zip(grid_thw.tolist(), per_row, strict=True):
        # axes: t, block row, block column, row in block, column in block, rgb, frame, y, x
        blocks = patches.view(t, h // m, w // m, m, m, 3, step, p, p)
        frames = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * step, 3, h * p, w * p)
        rows.append(frames * std + mean)
    return rows


# Tensor names of the released checkpoints (transformers 4.51) -> ours. Our own names match none of the patterns.
RELEASED_NAMES = {
    r"^visual\.": "model.visual.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^(spatial_encoder\.vggt_model|vggt)\.aggregator\.": "model.spatial_encoder.",
    r"^connector\.": "model.connector.",
    r"^vggt_embedding_merger\.token_merge_ln_q\.": "model.connector.ln_q.",
    r"^vggt_embedding_merger\.token_merge_mlp\.": "model.connector.mlp.",
    r"^vggt_embedding_merger\.vgg_to_language_ln_q\.": "model.connector.refine.0.",
    r"^vggt_embedding_merger\.vgg_to_language_mlp\.0\.": "model.connector.refine.1.",
    r"^vggt_embedding_merger\.vgg_to_language_mlp\.2\.": "model.connector.refine.3.",
}
# What rides along in the released files and the language model never reads: VGGT's task heads, DINOv2's training mask.
UNUSED = [r"^(spatial_encoder\.vggt_model|vggt)\.(camera|point|depth|track)_head\.", r"\.patch_embed\.mask_token$"]


class ReleasedNames:
    """Loading and saving of a model whose released checkpoints call its tensors otherwise (`released_names`: pattern to name)."""

    released_names: ClassVar[dict[str, str]]

    @classmethod
    def from_pretrained(cls, path, *args, **kwargs):
        """Hugging Face's `from_pretrained`, which here also understands the released checkpoints' tensor names."""
        kwargs.setdefault("key_mapping", cls.released_names)
        return super().from_pretrained(path, *args, **kwargs)

    def save_pretrained(self, *args, **kwargs):
        """Hugging Face's `save_pretrained`, always in our own names: it would write the names it read."""
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(*args, **kwargs)


class SpatialMLLMModel(ReleasedNames, Qwen2_5_VLModel):
    """Qwen2.5-VL's backbone; what differs is in the hook, `get_video_features` and `get_image_features`."""

    config: SpatialMLLMConfig
    released_names = RELEASED_NAMES
    _keys_to_ignore_on_load_unexpected = UNUSED

    def __init__(self, config: SpatialMLLMConfig):
        super().__init__(config)
        self.spatial_encoder = self.connector = None
        if config.use_spatial:
            vision, connector = config.vision_config, config.connector_config
            patches = vision.temporal_patch_size * vision.spatial_merge_size**2  # of one language-model token
            in_size = patches * 2 * config.spatial_config.embed_dim
            self.spatial_encoder = VGGTAggregator(config.spatial_config)
            self.connector = AdditionConnector(
                in_size, connector.hidden_size or in_size, config.text_config.hidden_size, connector.layout
            )
        self.post_init()

    # ---- the figure ----

    def encode_2d(
        self, pixel_values: Float[Tensor, "patches features"], grid_thw: Int[Tensor, "rows 3"]
    ) -> Float[Tensor, "tokens grouped_2d"]:
        """Qwen's ViT up to its merger: the patches of each language-model token side by side, in raster order."""
        vision = self.config.vision_config
        patches = self.visual(pixel_values.type(self.visual.dtype), grid_thw=grid_thw).last_hidden_state
        groups = patches.view(-1, vision.spatial_merge_size**2 * vision.hidden_size)
        # the ViT leaves its output in window order
        windows, _ = get_vision_window_index(grid_thw, vision.spatial_merge_size, vision.window_size, vision.patch_size)
        return groups[windows.argsort().to(groups.device)]

    def encode_3d(
        self,
        pixel_values: Float[Tensor, "patches features"],
        grid_thw: Int[Tensor, "rows 3"],
        scenes: list[list[int]] | None = None,
    ) -> Float[Tensor, "tokens grouped_3d"] | None:
        """VGGT tokens grouped like the 2D tokens; None when the model has no spatial branch.

        `scenes` lists the rows of `grid_thw` that are images of one place and form one multi-view input, in order: the
        first is VGGT's reference view. Without it each row is a video, a scene of its own. Scenes of equal shape run as
        one batch.
        """
        if self.spatial_encoder is None:
            return None
        connector, vision = self.config.connector_config, self.config.vision_config
        step = vision.temporal_patch_size
        rows = unpatchify(pixel_values, grid_thw, self.config)
        repeats = 1
        if scenes is None:
            scenes = [[row] for row in range(len(rows))]
        elif connector.layout == "v1.0":
            # every frame of an image is the same: v1.0 encodes one and repeats its tokens
            rows, repeats = [frames[::step] for frames in rows], step

        views = [torch.cat([rows[row] for row in scene]) for scene in scenes]
        tokens: list[Tensor | None] = [None] * len(scenes)
        for _, same in groupby(sorted(range(len(views)), key=lambda i: views[i].shape), key=lambda i: views[i].shape):
            same = list(same)
            batch = torch.stack([views[i] for i in same])
            (layer,) = self.spatial_encoder(batch, layers=(connector.spatial_embeds_layer_idx,))
            patches = layer[:, :, self.config.spatial_config.special_tokens :]  # camera and register tokens stay out
            for i, scene_tokens in zip(same, patches, strict=True):
                tokens[i] = scene_tokens.repeat_interleave(repeats, dim=0)

        grouped: list[Tensor | None] = [None] * len(rows)
        for scene, scene_tokens in zip(scenes, tokens, strict=True):
            counts = [int(grid_thw[row, 0]) * step for row in scene]
            for row, row_tokens in zip(scene, scene_tokens.split(counts), strict=True):
                grid = tuple(grid_thw[row].tolist())
                grouped[row] = group_tokens(row_tokens, grid, vision.spatial_merge_size, connector.layout)
        return torch.cat(grouped)

    def fuse(
        self, features_2d: Float[Tensor, "tokens grouped_2d"], features_3d: Float[Tensor, "tokens grouped_3d"] | None
    ) -> Float[Tensor, "tokens hidden"]:
        """Project both with a two-layer MLP each and add."""
        merged = self.visual.merger(features_2d.to(self.dtype).reshape(-1, self.config.vision_config.hidden_size))
        if self.connector is None:
            return merged
        if features_3d is None or len(features_3d) != len(features_2d):
            found = "none" if features_3d is None else len(features_3d)
            raise ValueError(f"features_3d: found {found} tokens, expected {len(features_2d)} as in features_2d")
        return merged + self.connector(features_3d.to(self.dtype))

    # ---- the hook ----

    def get_video_features(
        self, pixel_values_videos: Tensor, video_grid_thw: Int[Tensor, "videos 3"], **kwargs
    ) -> BaseModelOutputWithPooling:
        """Fused tokens of each video (`pooler_output`: one tensor per row of the grid)."""
        fused = self.fuse(self.encode_2d(pixel_values_videos, video_grid_thw), self.encode_3d(pixel_values_videos, video_grid_thw))
        return self.per_row(fused, video_grid_thw)

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_grid_thw: Int[Tensor, "images 3"],
        mm_token_type_ids: Int[Tensor, "batch length"] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Fused tokens of each image. `mm_token_type_ids` tells which images share a prompt, so a scene."""
        scenes = self._image_scenes(image_grid_thw, mm_token_type_ids)
        fused = self.fuse(self.encode_2d(pixel_values, image_grid_thw), self.encode_3d(pixel_values, image_grid_thw, scenes))
        return self.per_row(fused, image_grid_thw)

    def per_row(self, fused: Float[Tensor, "tokens hidden"], grid_thw: Int[Tensor, "rows 3"]) -> BaseModelOutputWithPooling:
        """Fused tokens as Qwen takes them (`mm_encoder_outputs`): `pooler_output` has one tensor per row of the grid."""
        counts = grid_thw.prod(-1) // self.config.vision_config.spatial_merge_size**2
        return BaseModelOutputWithPooling(last_hidden_state=fused, pooler_output=fused.split(counts.tolist()))

    def _image_scenes(self, image_grid_thw: Tensor, mm_token_type_ids: Tensor | None) -> list[list[int]]:
        """Rows of images that make one scene: same sample and same size (VGGT takes views of one size)."""
        tokens = (image_grid_thw.prod(-1) // self.config.vision_config.spatial_merge_size**2).tolist()
        per_sample = [sum(tokens)] if mm_token_type_ids is None else (mm_token_type_ids == 1).sum(-1).tolist()
        if sum(per_sample) != sum(tokens):
            raise ValueError(f"image tokens: found {sum(per_sample)} in the prompts, expected {sum(tokens)} by the grids")
        scenes: dict[tuple, list[int]] = {}
        sample = room = 0
        for row, (count, size) in enumerate(zip(tokens, image_grid_thw.tolist(), strict=True)):
            while room == 0:
                room = per_sample[sample]
                sample += 1
            if count > room:
                raise ValueError(f"image {row}: found room for {room} tokens in prompt {sample - 1}, expected {count}")
            room -= count
            scenes.setdefault((sample, *size), []).append(row)
        return list(scenes.values())

    # ---- around the hook ----

    def token_types(self, input_ids: Int[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
        """0 text, 1 image, 2 video: the processor's `mm_token_type_ids`. Without them Qwen falls back to 1D positions."""
        return (input_ids == self.config.image_token_id).int() + 2 * (input_ids == self.config.video_token_id).int()

    def get_rope_index(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | list[float] | None = None,
        attention_mask: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Rotary positions (time, row, column) of every token, and per prompt what to add to an index to continue them.

        Text counts up one by one, vision tokens sit at (time, row, column) from where the text before them ended, and
        text goes on behind the largest position used, as in Qwen's own code. transformers 5 skips rows and columns only:
        text behind a long video would share positions with its frames, and generation would disagree with prefill.
        """
        vision = self.config.vision_config
        images = () if image_grid_thw is None else image_grid_thw
        videos = () if video_grid_thw is None else video_grid_thw
        if self.config.mrope_time_step is not None:
            intervals = [self.config.mrope_time_step] * len(videos)
        elif second_per_grid_ts is not None:
            intervals = [vision.tokens_per_second * float(seconds) for seconds in second_per_grid_ts]
        else:
            intervals = [vision.tokens_per_second] * len(videos)
        seen = {1: zip(images, [1] * len(images), strict=True), 2: zip(videos, intervals, strict=True)}

        positions = torch.zeros(3, *input_ids.shape, dtype=torch.long, device=input_ids.device)
        deltas = torch.zeros(len(input_ids), 1, dtype=torch.long, device=input_ids.device)
        for row, types in enumerate(mm_token_type_ids):
            kept = torch.ones_like(types, dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
            parts, start = [], 0
            for kind, run in groupby(types[kept].tolist()):
                left = len(list(run))
                while left:  # a run of vision tokens may hold several images
                    if kind == 0:
                        part = torch.arange(left, device=input_ids.device).expand(3, -1)
                    else:
                        grid, interval = next(seen[kind], (None, None))
                        count = 0 if grid is None else int(grid.prod()) // vision.spatial_merge_size**2
                        if not 0 < count <= left:
                            name = "image" if kind == 1 else "video"
                            raise ValueError(
                                f"prompt {row}: found {left} {name} tokens in a row, expected {count} by {name}_grid_thw"
                            )
                        part = self.get_vision_position_ids(
                            0, grid, 1, vision.spatial_merge_size, interval, device=input_ids.device
                        )
                    parts.append(part + start)
                    start += int(part.max()) + 1
                    left -= part.shape[1]
            positions[:, row, kept] = torch.cat(parts, dim=1)
            deltas[row] = start - int(kept.sum())
        return positions, deltas

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        video_features_2d: Tensor | None = None,
        video_features_3d: Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ):
        """Qwen's forward; `video_features_2d` and `_3d` are outputs of `encode_2d` and `encode_3d` kept from earlier."""
        if mm_token_type_ids is None and input_ids is not None:
            mm_token_type_ids = self.token_types(input_ids)
        if mm_encoder_outputs is None:
            mm_encoder_outputs = {}
            if pixel_values is not None:
                mm_encoder_outputs["image"] = self.get_image_features(pixel_values, image_grid_thw, mm_token_type_ids)
            if video_features_2d is not None:
                mm_encoder_outputs["video"] = self.fuse_videos(video_features_2d, video_features_3d, video_grid_thw)
            elif pixel_values_videos is not None:
                mm_encoder_outputs["video"] = self.get_video_features(pixel_values_videos, video_grid_thw)
        return super().forward(
            input_ids=input_ids,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def fuse_videos(
        self, video_features_2d: Tensor, video_features_3d: Tensor | None, video_grid_thw: Tensor
    ) -> BaseModelOutputWithPooling:
        """What `get_video_features` returns, from features kept from earlier."""
        expected = int(video_grid_thw.prod(-1).sum()) // self.config.vision_config.spatial_merge_size**2
        if len(video_features_2d) != expected:
            raise ValueError(f"video_features_2d: found {len(video_features_2d)} tokens, expected {expected} by the grids")
        return self.per_row(self.fuse(video_features_2d, video_features_3d), video_grid_thw)


class SpatialMLLMForConditionalGeneration(ReleasedNames, Qwen2_5_VLForConditionalGeneration):
    """Spatial-MLLM with its language-model head: loss, `generate`, `save_pretrained`, PEFT as for Qwen2.5-VL."""

    config: SpatialMLLMConfig
    model_class = SpatialMLLMModel
    released_names = RELEASED_NAMES
    _keys_to_ignore_on_load_unexpected = UNUSED

    def __init__(self, config: SpatialMLLMConfig):
        super(Qwen2_5_VLForConditionalGeneration, self).__init__(config)  # Qwen's own would build a second backbone
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        video_features_2d: Tensor | None = None,
        video_features_3d: Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ):
        """Qwen's forward and inputs (all spelled out: `generate` accepts no other), plus features kept from earlier.

        video_features_2d  (tokens, merge^2 x ViT width), `model.encode_2d`; replaces `pixel_values_videos`.
        video_features_3d  (tokens, frames x merge^2 x 2C), `model.encode_3d`; goes with it unless the model is 2D only.
        """
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            pixel_values=pixel_values,
            pixel_values_videos=pixel_values_videos,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            second_per_grid_ts=second_per_grid_ts,
            video_features_2d=video_features_2d,
            video_features_3d=video_features_3d,
            mm_encoder_outputs=mm_encoder_outputs,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def generate(self, inputs: Tensor | None = None, **kwargs):
        """Hugging Face's `generate`; token types are filled in, and kept features fused once, before the first step."""
        input_ids = inputs if inputs is not None else kwargs.get("input_ids")
        if input_ids is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = self.model.token_types(input_ids)
        features_2d, features_3d = kwargs.pop("video_features_2d", None), kwargs.pop("video_features_3d", None)
        if features_2d is not None:
            fused = self.model.fuse_videos(features_2d, features_3d, kwargs["video_grid_thw"])
            kwargs["mm_encoder_outputs"] = {**kwargs.get("mm_encoder_outputs", {}), "video": fused}
        return super().generate(inputs, **kwargs)


def load_spatial_mllm(
    path: str | Path, spatial_config: VGGTConfig | dict | None = None, **kwargs
) -> SpatialMLLMForConditionalGeneration:
    """Load a released checkpoint (v1.0 or v1.1) or one saved by this library, from a folder or hub id.

    Missing and unexpected names are errors. `spatial_config` overrides the VGGT that the config implies (VGGT-1B where it
    says nothing); `kwargs` go to `from_pretrained` (dtype, device_map, ...).
    """
    return load_weights(SpatialMLLMForConditionalGeneration, path, spatial_mllm_config(path, spatial_config), **kwargs)


def spatial_mllm_config(path: str | Path, spatial_config: VGGTConfig | dict | None = None) -> SpatialMLLMConfig:
    """The config of a released checkpoint or of one saved by this library."""
    config = _with_layout(read_config(path))
    model_type, architectures = config.pop("model_type", None), config.pop("architectures", None) or []
    if model_type != SpatialMLLMConfig.model_type:
        raise ValueError(
            f"{path}: found model_type {model_type!r} with architectures {architectures}, expected 'spatial-mllm' "
            "(v1.1 and ours) or 'qwen2_5_vl' with 'Qwen2_5_VL_VGGTForConditionalGeneration' (v1.0)"
        )
    if spatial_config is not None:
        config["spatial_config"] = spatial_config
    return make_config(SpatialMLLMConfig, f"{path}: config.json", config)


def _with_layout(config: dict) -> dict:
    """A config as it is written, or, where it is that of v1.0, as one of ours: the published code hard-wires VGGT and connector."""
    of_v1_0 = config.get("model_type") == "qwen2_5_vl" and any("VGGT" in name for name in config.get("architectures") or [])
    ours = {"model_type": SpatialMLLMConfig.model_type, "connector_config": {"layout": "v1.0"}}
    return {**config, **ours} if of_v1_0 else config


def from_parts(
    qwen: str | Path, vggt: str | Path, connector_config: ConnectorConfig | dict | None = None, **kwargs
) -> SpatialMLLMForConditionalGeneration:
    """A Spatial-MLLM to be trained: the weights of a Qwen2.5-VL and of a VGGT, from folders or hub ids, and a random connector.

    `kwargs` go to `from_pretrained` (dtype, device_map, ...).
    """
    encoder = load_vggt(vggt, heads=())
    config = SpatialMLLMConfig(**qwen_config(qwen), spatial_config=encoder.config, connector_config=connector_config)
    return load_parts(SpatialMLLMForConditionalGeneration, qwen, encoder, config, **kwargs)


def qwen_config(qwen: str | Path) -> dict:
    """The config of a plain Qwen2.5-VL, in a folder or on the hub, as keyword arguments of ours."""
    config = read_config(qwen)
    if (model_type := config.pop("model_type", None)) != "qwen2_5_vl":
        raise ValueError(f"{qwen}: found model_type {model_type!r}, expected 'qwen2_5_vl'")
    config.pop("architectures", None)
    return config


def load_parts(
    model_class: type[SpatialMLLMForConditionalGeneration], qwen: str | Path, encoder: VGGT, config: SpatialMLLMConfig, **kwargs
) -> SpatialMLLMForConditionalGeneration:
    """A model of this class with the weights of a plain Qwen2.5-VL and of a VGGT; its connector is new. In eval mode."""
    model = load_weights(model_class, qwen, config, new=("model.spatial_encoder.", "model.connector."), **kwargs)
    model.model.spatial_encoder.load_state_dict(encoder.aggregator.state_dict())
    return model
