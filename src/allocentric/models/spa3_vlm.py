"""Spa3-VLM (arXiv 2602.21186): Qwen2.5-VL whose visual tokens ask a scene latent made by Spa3R.

    pixels ─► Qwen ViT ─► merger ─► x ──────────────┐
       └────► Spa3R encoder ─► z ─► cross-attention ┴─ add ─► language model

Frames are recovered from `pixel_values(_videos)` as in Spatial-MLLM, so the model needs no input beyond Qwen's own; a latent made
earlier, or frames of another size for the Spa3R branch, can be given in their place. The released weights were trained so: with
frames as images, of which Qwen sees a part (`Spa3VLMProcessor`).
"""

import hashlib
import os
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, no_type_check

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int, UInt8
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import BaseModelOutputWithPooling

from allocentric.encoders.layers import ZeroLinear
from allocentric.encoders.spa3r import Spa3RConfig, Spa3REncoder, load_spa3r, resize
from allocentric.fusion.cross_attention import CrossAttentionConnector
from allocentric.models.loading import load_weights, make_config, read_config
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.scene import weights_id
from allocentric.models.spatial_mllm import (
    SpatialMLLMConfig,
    SpatialMLLMForConditionalGeneration,
    SpatialMLLMModel,
    qwen_config,
    unpatchify,
)

GeometryImages = Float[Tensor, "views 3 h w"] | list[Float[Tensor, "3 _ _"]]  # one image each, in the order of the grid


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class Spa3VLMConfig(SpatialMLLMConfig):
    """Qwen2.5-VL's config and that of a Spa3R encoder. Reads the released `spa3_vlm/config.json` as it is.

    spa3r_config   the encoder; default: the released one (`Spa3RConfig.compat`) where the config says nothing.
    adaptor_size   bottleneck of the connector's adaptor; None: a quarter of the language model's width, as published.
    raw_vggt       the paper's ablation: in place of the latent, the connector reads VGGT's patch tokens of all views as they are.
    frames_as      how the weights were shown a place: as one "video", or as "images" (released; `Spa3VLMProcessor`).
    The fields of Spatial-MLLM's own encoder and connector are unused here.
    """

    model_type = "spa3-vlm"
    sub_configs_defaults = {  # noqa: RUF012
        **SpatialMLLMConfig.sub_configs_defaults,
        "spa3r_config": SubConfigSpec(Spa3RConfig),
    }

    spa3r_config: dict | PreTrainedConfig | None = None
    adaptor_size: int | None = None
    raw_vggt: bool = False
    frames_as: Literal["video", "images"] = "video"

    def __post_init__(self, **kwargs):
        self.use_spatial = False  # no VGGT of Spatial-MLLM's kind beside the one inside Spa3R
        given = self.spa3r_config
        if given is None:
            self.spa3r_config = Spa3RConfig.compat()
        elif not isinstance(given, PreTrainedConfig):
            self.spa3r_config = Spa3RConfig(**{k: v for k, v in given.items() if k != "model_type"})
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, path, **kwargs) -> tuple[dict, dict]:
        """Hugging Face's `get_config_dict`; the released config becomes one of ours."""
        config, kwargs = super().get_config_dict(path, **kwargs)
        return _as_ours(config), kwargs

    @classmethod
    def tiny(cls, **changes) -> "Spa3VLMConfig":
        """A two-layer model for tests: the same code, a few hundred thousand parameters."""
        base = SpatialMLLMConfig.tiny(use_spatial=False).to_dict()
        kept = {k: base[k] for k in ("text_config", "vision_config", "tie_word_embeddings") if k in base}
        ids = {k: base[k] for k in ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")}
        return cls(**{**kept, **ids, "spa3r_config": Spa3RConfig.tiny(), **changes})


# Tensor names of the released folder (transformers 4.50) -> ours. Our own names match none of the patterns.
RELEASED_NAMES = {
    r"^visual\.": "model.visual.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^geometry_encoder\.spa3r\.": "model.spatial_encoder.",
    r"^geometry_projector\.": "model.connector.projector.",
    r"^geom_cross_attention\.": "model.connector.attention.",
    r"^ln\.": "model.connector.norm.",
    r"^geometry_adaptor\.": "model.connector.adaptor.",
    r"^geometry_gate\.0\.": "model.connector.gate.",
}
# What rides along in the released folder and answers no question: decoder, VGGT's heads, teachers.
UNUSED = [
    r"spa3r\.(camera_head|point_head|depth_head|track_head|dino|decoder|heads|depth_prob|pose_tokenizer)\.",
    r"spatial_encoder\.(camera_head|point_head|depth_head|track_head|dino|decoder|heads|depth_prob|pose_tokenizer)\.",
    r"\.patch_embed\.mask_token$",
]


class Spa3VLMModel(SpatialMLLMModel):
    """Qwen2.5-VL's backbone with the latent read in the hook. `spatial_encoder` is Spa3R's, frozen; `connector` is trained.

    `encode_2d` and `encode_3d` are what can be kept of a scene, as in Spatial-MLLM; here the second is the latent.
    """

    config: Spa3VLMConfig
    released_names = RELEASED_NAMES
    _keys_to_ignore_on_load_unexpected = UNUSED

    def __init__(self, config: Spa3VLMConfig):
        super(SpatialMLLMModel, self).__init__(config)
        text, spa3r = config.text_config, config.spa3r_config
        self.spatial_encoder = Spa3REncoder(spa3r).requires_grad_(False)
        width = 2 * spa3r.vggt_config.embed_dim if config.raw_vggt else spa3r.embed_dim
        self.connector = CrossAttentionConnector(
            width, text.hidden_size, text.num_attention_heads, config.adaptor_size or text.hidden_size // 4
        )
        self.latent_folder: LatentFolder | None = None  # where latents are kept (`keep_latents`)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As Hugging Face draws what a checkpoint lacks, but what starts at zero stays there."""
        if isinstance(module, ZeroLinear):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    # ---- the figure ----

    def encode_3d(
        self,
        pixel_values: Float[Tensor, "patches features"],
        grid_thw: Int[Tensor, "rows 3"],
        scenes: list[list[int]] | None = None,
    ) -> Float[Tensor, "latents width"]:
        """The latents of all scenes, one after the other (`num_queries` rows each).

        `scenes` lists the rows of `grid_thw` that are images of one place, in order; without it each row is a video, a scene of
        its own. Scenes of equal shape run as one batch.
        """
        rows = unpatchify(pixel_values, grid_thw, self.config)
        if scenes is None:
            views = rows
        else:  # every frame of an image is the same
            step = self.config.vision_config.temporal_patch_size
            views = [torch.cat([rows[row][::step] for row in scene]) for scene in scenes]
        return self.encode_views(views).flatten(0, 1)

    def encode_views(self, views: list[Float[Tensor, "_ 3 _ _"]]) -> Float[Tensor, "scenes q width"]:
        """The latent of each list of frames in [0, 1]; sides are multiples of VGGT's patch size, whatever the 2D branch sees."""
        kept = self.latent_folder
        latents: list[Tensor | None] = [None if kept is None else kept.read(scene) for scene in views]
        shape = lambda i: tuple(views[i].shape)  # noqa: E731
        missing = [i for i, latent in enumerate(latents) if latent is None]
        with torch.no_grad():
            for _, same in groupby(sorted(missing, key=shape), key=shape):
                same = list(same)
                for i, latent in zip(same, self._encode(torch.stack([views[i] for i in same])), strict=True):
                    latents[i] = latent
                    if kept is not None:
                        kept.write(views[i], latent)
        if len(sizes := {len(latent) for latent in latents}) > 1:
            raise ValueError(f"raw_vggt: found scenes of {sorted(sizes)} tokens in one batch, expected equal numbers")
        return torch.stack(latents)

    def keep_latents(self, folder: str | Path) -> None:
        """From now on keep the latent of each scene in `folder`, and read those that are there. The encoder must stay as it is."""
        self.latent_folder = LatentFolder(folder, f"{weights_id(self.spatial_encoder)} {self.config.raw_vggt} {self.dtype}")

    def _encode(self, images: Float[Tensor, "b s 3 h w"]) -> Float[Tensor, "b q width"]:
        if not self.config.raw_vggt:
            return self.spatial_encoder(images)
        (tokens,) = self.spatial_encoder.aggregator(images)
        return tokens[:, :, self.config.spa3r_config.vggt_config.special_tokens :].flatten(1, 2)

    def fuse(
        self,
        features_2d: Float[Tensor, "tokens grouped_2d"],
        latents: Float[Tensor, "latents width"],
        counts: list[int] | None = None,
    ) -> Float[Tensor, "tokens hidden"]:
        """Merge the 2D features; each scene's tokens then ask that scene's latent, and no other.

        counts   visual tokens of each scene, in the order of the tokens; None: all are of one scene.
        """
        counts = [len(features_2d)] if counts is None else counts
        merged = self.visual.merger(features_2d.to(self.dtype).reshape(-1, self.config.vision_config.hidden_size))
        width = self.connector.projector[0].in_features
        rows = len(latents) // len(counts) if self.config.raw_vggt else self.config.spa3r_config.num_queries
        if latents.shape != (len(counts) * rows, width):
            expected = f"{len(counts)} scenes of {rows} rows of {width}"
            raise ValueError(f"latents: found shape {tuple(latents.shape)}, expected {expected}")
        tokens = pad_sequence(merged.split(counts), batch_first=True)  # only queries are padded: no key is made up
        added = self.connector(tokens, latents.to(self.dtype).unflatten(0, (len(counts), -1)))
        return merged + torch.cat([row[:count] for row, count in zip(added, counts, strict=True)])

    # ---- the hook ----

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        video_grid_thw: Int[Tensor, "videos 3"],
        latents: Float[Tensor, "scenes q width"] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Fused tokens of each video (`pooler_output`: one tensor per row of the grid).

        latents   of each video, made earlier by `encode_views`; default: made from these pixels.
        """
        kept = self.encode_3d(pixel_values_videos, video_grid_thw) if latents is None else latents.to(self.device).flatten(0, 1)
        return self.fuse_videos(self.encode_2d(pixel_values_videos, video_grid_thw), kept, video_grid_thw)

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_grid_thw: Int[Tensor, "images 3"],
        mm_token_type_ids: Int[Tensor, "batch length"] | None = None,
        latents: Float[Tensor, "scenes q width"] | None = None,
        geometry_images: GeometryImages | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Fused tokens of each image. Images of one prompt and size are one scene (`mm_token_type_ids` tells prompts apart).

        latents           of each scene, made earlier by `encode_views`; default: made from these pixels.
        geometry_images   the same images in [0, 1] as Spa3R shall see them, those of a scene of one size; default: as in these
                          pixels.
        """
        scenes = self._image_scenes(image_grid_thw, mm_token_type_ids)
        tokens = self._token_counts(image_grid_thw)
        rows = self.encode_2d(pixel_values, image_grid_thw).split(tokens)
        if latents is not None:
            kept = latents.to(self.device).flatten(0, 1)
        elif geometry_images is None:
            kept = self.encode_3d(pixel_values, image_grid_thw, scenes)
        elif len(geometry_images) != len(image_grid_thw):
            raise ValueError(f"geometry_images: found {len(geometry_images)}, expected {len(image_grid_thw)} by image_grid_thw")
        else:
            kept = self.encode_views([torch.stack([geometry_images[i] for i in scene]) for scene in scenes]).flatten(0, 1)
        # images of two sizes in one prompt may be interleaved: bring each scene's together, and back
        order = [row for scene in scenes for row in scene]
        counts = [sum(tokens[row] for row in scene) for scene in scenes]
        fused = self.fuse(torch.cat([rows[row] for row in order]), kept, counts).split([tokens[row] for row in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return self.per_row(torch.cat([fused[i] for i in back]), image_grid_thw)

    def fuse_videos(
        self, video_features_2d: Tensor, video_features_3d: Tensor, video_grid_thw: Tensor
    ) -> BaseModelOutputWithPooling:
        """What `get_video_features` returns, from features kept from earlier."""
        counts = self._token_counts(video_grid_thw)
        if len(video_features_2d) != sum(counts):
            raise ValueError(f"video_features_2d: found {len(video_features_2d)} tokens, expected {sum(counts)} by the grids")
        return self.per_row(self.fuse(video_features_2d, video_features_3d, counts), video_grid_thw)

    def forward(self, input_ids: Tensor | None = None, **kwargs):
        """Spatial-MLLM's forward, and `latents` and `geometry_images` for the hooks (`seen`)."""
        return super().forward(input_ids=input_ids, **self.seen(input_ids, kwargs))

    def seen(self, input_ids: Tensor | None, inputs: dict) -> dict:
        """`inputs` with what the hooks make of `latents` or `geometry_images`, where given, in place of these and of the pixels.

        latents   of each scene: of images, or of videos.
        """
        inputs = dict(inputs)
        given = {name: inputs.pop(name, None) for name in ("latents", "geometry_images")}
        given = {name: value for name, value in given.items() if value is not None}
        images, videos = inputs.get("pixel_values") is not None, inputs.get("pixel_values_videos") is not None
        if not given or not (images or videos):  # later steps of `generate` see nothing new
            return inputs
        if images and videos and "latents" in given:
            raise ValueError("latents: found images and videos in one call, expected one of them")
        if not images and "geometry_images" in given:
            raise ValueError("geometry_images: found videos alone, expected images; of a video Spa3R sees what Qwen sees")
        made = dict(inputs.get("mm_encoder_outputs") or {})
        if images:
            types = inputs.get("mm_token_type_ids")
            types = self.token_types(input_ids) if types is None else types
            made["image"] = self.get_image_features(inputs.pop("pixel_values"), inputs["image_grid_thw"], types, **given)
            given = {}
        if videos:
            made["video"] = self.get_video_features(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"], **given)
        inputs["mm_encoder_outputs"] = made
        return inputs

    def _token_counts(self, grid_thw: Tensor) -> list[int]:
        return (grid_thw.prod(-1) // self.config.vision_config.spatial_merge_size**2).tolist()


class Spa3VLMForConditionalGeneration(SpatialMLLMForConditionalGeneration):
    """Spa3-VLM with its language-model head: loss, `generate`, `save_pretrained`, PEFT as for Qwen2.5-VL."""

    config: Spa3VLMConfig
    model_class = Spa3VLMModel
    released_names = RELEASED_NAMES
    _keys_to_ignore_on_load_unexpected = UNUSED

    def generate(self, inputs: Tensor | None = None, **kwargs):
        """Hugging Face's `generate`; with `latents` or `geometry_images` what is seen is encoded once, before the first step."""
        with torch.no_grad():
            kwargs = self.model.seen(inputs if inputs is not None else kwargs.get("input_ids"), kwargs)
        return super().generate(inputs, **kwargs)


class Spa3VLMProcessor(SpatialMLLMProcessor):
    """The processor of Spa3-VLM.

    frames_as   "video": the frames of a place are one video, and Spa3R sees what Qwen sees. "images": as the released weights were
                trained, every frame is an image of its own. It is made `geometry_width` wide, as high as keeps its shape in whole
                patches of 14 and at most as high as wide; Spa3R sees that (`geometry_images`), Qwen its upper left part in whole
                blocks of 28: a 4:3 frame is 392 x 518 for the one and 392 x 504, 252 tokens, for the other.
    """

    @no_type_check  # from_pretrained reads the argument names off this very function, not off a checking wrapper
    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        chat_template=None,
        pixel_clamp: str | None = None,
        newline_after_vision: bool = False,
        video_fps: float = 2.0,
        frames_as: str = "video",
        geometry_width: int = 518,
        **kwargs,
    ):
        super().__init__(
            image_processor,
            tokenizer,
            video_processor,
            chat_template=chat_template,
            pixel_clamp=pixel_clamp,
            newline_after_vision=newline_after_vision,
            video_fps=video_fps,
            **kwargs,
        )
        if frames_as not in ("video", "images"):
            raise ValueError(f"frames_as: found {frames_as!r}, expected 'video' or 'images'")
        self.frames_as, self.geometry_width = frames_as, geometry_width

    def look(self, frames: UInt8[Tensor, "t 3 h w"]) -> BatchFeature:
        if self.frames_as == "video":
            return super().look(frames)
        return self(text=[self.prefix(images=len(frames))], images=list(frames))

    def __call__(self, images=None, text=None, videos=None, **kwargs):
        """Qwen's inputs; where frames are images, also `geometry_images`, (images, 3, H, W) in [0, 1].

        Images are tensors (3, H, W) or pictures of Pillow, in one list or a list for each text. Those of a text are views of one
        place and must be of one shape; where texts differ in it, `geometry_images` is a list.
        """
        pictures = [] if self.frames_as == "video" else list(_pictures(images))
        if not pictures:
            return super().__call__(images=images, text=text, videos=videos, **kwargs)
        patch = self.image_processor.patch_size
        block = patch * self.image_processor.merge_size
        shown = [geometry_view(picture, self.geometry_width, patch) for picture in pictures]
        for picture, view in zip(pictures, shown, strict=True):
            if view.shape[1] < block:
                found = f"{picture.shape[1]} x {picture.shape[2]}"
                raise ValueError(f"images: found {found}, expected at least {block} pixels of height at a width of {view.shape[2]}")
        rest = iter(shown)
        for said in [text] if isinstance(text, str) else text or ():
            sizes = {tuple(view.shape[1:]) for view in islice(rest, said.count("<|image_pad|>"))}
            if len(sizes) > 1:
                raise ValueError(f"images: found the sizes {sorted(sizes)}, resized, expected one: they are views of one place")
        seen = [view[:, : view.shape[1] // block * block, : view.shape[2] // block * block] for view in shown]
        inputs = super().__call__(images=seen, text=text, videos=videos, **kwargs)
        views = [view.float() / 255 for view in shown]
        inputs["geometry_images"] = torch.stack(views) if len({view.shape for view in views}) == 1 else views
        return inputs


def _pictures(images) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """The images of a list, of lists, or of one, as tensors."""
    if images is None:
        return
    if isinstance(images, Image.Image):
        yield torch.from_numpy(np.array(images.convert("RGB"))).permute(2, 0, 1)
    elif isinstance(images, Tensor) and images.ndim == 3:
        yield images
    else:
        for image in images:
            yield from _pictures(image)


def geometry_view(image: UInt8[Tensor, "3 h w"], width: int, patch: int) -> UInt8[Tensor, "3 h2 w2"]:
    """An image as released Spa3-VLM shows it to Spa3R: `width` wide, in whole patches, cut about its centre to a square at most."""
    image = (255 * resize(image[None], width, patch)[0]).round().to(torch.uint8)
    top = max(0, (image.shape[1] - width) // 2)
    return image[:, top : top + width]


def load_spa3_vlm(path: str | Path, spa3r_config: Spa3RConfig | dict | None = None, **kwargs) -> Spa3VLMForConditionalGeneration:
    """Load the released `spa3_vlm` folder or one saved by this library, from a folder or hub id.

    Missing and unexpected names are errors. `spa3r_config` overrides the encoder that the config implies (the released one where it
    says nothing); `kwargs` go to `from_pretrained` (dtype, device_map, ...).
    """
    model = load_weights(Spa3VLMForConditionalGeneration, path, spa3_vlm_config(path, spa3r_config), **kwargs)
    model.model.spatial_encoder.requires_grad_(False)  # loading makes every parameter a trainable one
    return model


def spa3_vlm_config(path: str | Path, spa3r_config: Spa3RConfig | dict | None = None) -> Spa3VLMConfig:
    """The config of the released `spa3_vlm` folder or of a model saved by this library."""
    config = read_config(path)
    if not is_spa3_vlm(config):
        raise ValueError(
            f"{path}: found model_type {config.get('model_type')!r}, expected 'spa3-vlm' (ours) or 'qwen2_5_vl' with "
            "geometry_encoder_type 'spa3r' (released)"
        )
    config = {name: value for name, value in _as_ours(config).items() if name not in ("model_type", "architectures")}
    if spa3r_config is not None:
        config["spa3r_config"] = spa3r_config
    return make_config(Spa3VLMConfig, f"{path}: config.json", config)


def _as_ours(config: dict) -> dict:
    """A config as it is written, or, where it is the released one, as one of ours."""
    if config.get("model_type") == Spa3VLMConfig.model_type or not is_spa3_vlm(config):
        return config
    ours = {k: v for k, v in config.items() if not k.startswith(("geometry_encoder", "use_geometry", "spa3r_"))}
    sizes = {"embed_dim": config.get("spa3r_embed_dim", 768), "num_queries": config.get("spa3r_num_queries", 256)}
    return {
        **ours,
        "model_type": Spa3VLMConfig.model_type,
        "spa3r_config": Spa3RConfig.compat(**sizes).to_dict(),
        "frames_as": "images",
    }


def is_spa3_vlm(config: dict) -> bool:
    """Whether a config.json, as a dict, is that of a Spa3-VLM: ours, or the released one."""
    return config.get("model_type") == Spa3VLMConfig.model_type or config.get("geometry_encoder_type") == "spa3r"


def from_parts(qwen: str | Path, spa3r: str | Path | Spa3REncoder, **kwargs) -> Spa3VLMForConditionalGeneration:
    """A Spa3-VLM to be trained: the weights of a Qwen2.5-VL and of a Spa3R, and a connector that adds nothing yet.

    spa3r    a folder, a `spa3r.ckpt` (`encoders.spa3r.load_spa3r`), or the encoder itself.
    kwargs   go to `from_pretrained` (dtype, device_map, ...).
    """
    base = qwen_config(qwen)
    encoder = spa3r if isinstance(spa3r, Spa3REncoder) else load_spa3r(spa3r, decoder=False)
    config = Spa3VLMConfig(**base, spa3r_config=encoder.config)
    new = ("model.spatial_encoder.", "model.connector.")
    model = load_weights(Spa3VLMForConditionalGeneration, qwen, config, new, **kwargs)
    own = model.model.spatial_encoder.state_dict()
    model.model.spatial_encoder.load_state_dict({name: encoder.state_dict()[name] for name in own})
    assert model.model.connector.adds_nothing(), "a new connector must leave the tokens as they are"
    model.model.spatial_encoder.requires_grad_(False)  # loading makes every parameter a trainable one
    return model


class LatentFolder:
    """Latents on disk, one safetensors file a scene (0.4 MB at full size), named by what was seen and by what saw it.

    made_by   identity of the encoder: latents of another are not read.
    """

    def __init__(self, folder: str | Path, made_by: str):
        self.folder, self.made_by = Path(folder), made_by

    def path(self, images: Float[Tensor, "v 3 h w"]) -> Path:
        seen = hashlib.sha256(repr((self.made_by, tuple(images.shape))).encode())
        seen.update(images.detach().float().cpu().contiguous().numpy())
        return self.folder / f"{seen.hexdigest()[:40]}.safetensors"

    def read(self, images: Float[Tensor, "v 3 h w"]) -> Float[Tensor, "q width"] | None:
        path = self.path(images)
        return load_file(path)["latent"].to(images.device) if path.is_file() else None

    def write(self, images: Float[Tensor, "v 3 h w"], latent: Float[Tensor, "q width"]) -> None:
        path = self.path(images)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")  # a file is whole or absent, whoever else writes it
        save_file({"latent": latent.detach().cpu().contiguous()}, partial)
        partial.replace(path)
