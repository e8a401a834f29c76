"""SSR (arXiv 2603.00409): Qwen2.5-VL that reads geometry tokens between the 2D tokens of its frames.

    frames ─► Qwen ViT ─► merger ─► V1 V2 ...                    ⟨vs⟩ V1 ⟨ve⟩ ⟨gs⟩ S1 ⟨ge⟩ ⟨vs⟩ V2 ⟨ve⟩ ⟨gs⟩ S2 ⟨ge⟩ ...
       └────► VGGT ─► project, add to V ─► S1 S2 ...        ─►   language model

Frames are images to Qwen, so that 2D and 3D tokens pair one to one. A reading of the paper's abstract: no code or weights are
public, and its numbers are not reproduced here. The readings are modes A to F of `fusion.interleave`.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BatchFeature
from transformers.modeling_outputs import BaseModelOutputWithPooling

from allocentric.encoders.vggt import VGGTAggregator, load_vggt
from allocentric.fusion.interleave import MODES, WITH_GEOMETRY_BLOCK, Block, InterleaveConnector, block_length, layout
from allocentric.models.loading import load_weights, make_config, read_config
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import (
    SpatialMLLMConfig,
    SpatialMLLMForConditionalGeneration,
    SpatialMLLMModel,
    load_parts,
    qwen_config,
    unpatchify,
)

POSITIONS = ("own", "shared")
GEOMETRY_START, GEOMETRY_END = "<|geometry_start|>", "<|geometry_end|>"
PAD = "<|image_pad|>"


@no_type_check  # @strict checks the fields; the test hook cannot bind the further keywords Hugging Face passes
@strict
class SSRConfig(SpatialMLLMConfig):
    """Qwen2.5-VL's config, a VGGT and how its tokens join; `connector_config` gives VGGT's layer and the width of the MLP.

    fusion_mode    A to F (`fusion.interleave`).
    positions      of geometry tokens on the rotary axes. "own": a second image behind the first. "shared": those of the frame's
                   2D tokens, so that a pair is told apart by delimiters and offset only.
    camera_token   VGGT's camera token leads the geometry tokens of every frame (modes A, C and F; E always has it).
    geometry_start_token_id, geometry_end_token_id   tokens around geometry; both None: no delimiters.
    """

    model_type = "allocentric-ssr"

    fusion_mode: str = "A"
    positions: str = "own"
    camera_token: bool = False
    geometry_start_token_id: int | None = None
    geometry_end_token_id: int | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.fusion_mode not in MODES:
            raise ValueError(f"fusion_mode: found {self.fusion_mode!r}, expected one of {MODES}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions: found {self.positions!r}, expected one of {POSITIONS}")
        if self.camera_token and self.fusion_mode not in WITH_GEOMETRY_BLOCK:
            raise ValueError(f"camera_token: found it with mode {self.fusion_mode!r}, expected one of {WITH_GEOMETRY_BLOCK}")

    @classmethod
    def tiny(cls, **changes) -> "SSRConfig":
        """A two-layer model for tests: the same code, a few hundred thousand parameters."""
        return super().tiny(**{"geometry_start_token_id": 307, "geometry_end_token_id": 308, **changes})


class SSRProcessor(SpatialMLLMProcessor):
    """The processor of SSR: every image, and every frame of a video, becomes its blocks of placeholders.

    All that one prompt shows is one scene. Give it the `fusion_mode`, `camera_token` and delimiters of the model.
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
        fusion_mode: str = "A",
        camera_token: bool = False,
        delimiters: bool = True,
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
        self.fusion_mode, self.camera_token, self.delimiters = fusion_mode, camera_token, delimiters

    def __call__(
        self, images=None, text=None, videos=None, padding=True, padding_side="left", return_tensors="pt"
    ) -> BatchFeature:
        """Model inputs for prompts with one tag <|image_pad|> or <|video_pad|> for each image (3, H, W) or video (T, 3, H, W)."""
        texts = [self.after_vision(t) for t in ([text] if isinstance(text, str) else text or [])]
        tags = [re.findall(r"<\|(image|video)_pad\|>", t) for t in texts]
        given = {"image": [[image] for image in images or []], "video": [list(video) for video in videos or []]}
        for kind, some in given.items():
            if (found := sum(sample.count(kind) for sample in tags)) != len(some):
                raise ValueError(f"prompts: found {found} tags <|{kind}_pad|>, expected {len(some)}, one per {kind}")
        left = {kind: iter(some) for kind, some in given.items()}
        shown = [[next(left[kind]) for kind in sample] for sample in tags]
        data: dict[str, Tensor] = {}
        counts: Iterator[int] = iter([])
        if frames := [frame for sample in shown for some in sample for frame in some]:
            data = dict(self.image_processor(images=frames, return_tensors="pt"))
            counts = iter((data["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2).tolist())
        texts = [self._expanded(t, [len(some) for some in sample], counts) for t, sample in zip(texts, shown, strict=True)]
        tokens = self.tokenizer(texts, return_tensors=return_tensors, padding=padding, padding_side=padding_side)
        types = (tokens["input_ids"] == self.tokenizer.convert_tokens_to_ids(PAD)).int()
        return BatchFeature({**tokens, "mm_token_type_ids": types, **data})

    def blocks(self, tokens: Sequence[int]) -> str:
        """The placeholders of one video whose frames have so many 2D tokens: what `prefix(videos=1)` shows between its tags."""
        return "".join(self._written(block, tokens[block.frame]) for block in layout(len(tokens), self.fusion_mode))

    def _expanded(self, text: str, frames: list[int], counts: Iterator[int]) -> str:
        """The prompt with every tag replaced by the blocks of its frames; in mode F the last tag takes all geometry."""
        tags = re.split(r"<\|vision_start\|><\|(?:image|video)_pad\|><\|vision_end\|>", text)
        if len(tags) != len(frames) + 1:
            raise ValueError(f"prompt: found {len(frames)} tags, expected each between <|vision_start|> and <|vision_end|>")
        sizes = [next(counts) for _ in range(sum(frames))]
        tag_of = [i for i, count in enumerate(frames) for _ in range(count)]
        written = [""] * len(frames)
        for block in layout(len(sizes), self.fusion_mode):
            at_the_end = self.fusion_mode == "F" and block.kind == "geometry"
            written[-1 if at_the_end else tag_of[block.frame]] += self._written(block, sizes[block.frame])
        return tags[0] + "".join(blocks + rest for blocks, rest in zip(written, tags[1:], strict=True))

    def _written(self, block: Block, tokens: int) -> str:
        pads = PAD * block_length(block.kind, tokens, self.camera_token)
        if block.kind not in ("geometry", "camera"):
            return f"<|vision_start|>{pads}<|vision_end|>"
        return f"{GEOMETRY_START}{pads}{GEOMETRY_END}" if self.delimiters else pads


class SSRModel(SpatialMLLMModel):
    """Qwen2.5-VL's backbone; what differs is in the hook, `get_image_features`, and in the positions of geometry tokens."""

    config: SSRConfig

    def __init__(self, config: SSRConfig):
        super(SpatialMLLMModel, self).__init__(config)  # without Spatial-MLLM's connector
        vision, connector, width = config.vision_config, config.connector_config, 2 * config.spatial_config.embed_dim
        hidden = connector.hidden_size or width * vision.spatial_merge_size**2 // 2
        self.spatial_encoder = VGGTAggregator(config.spatial_config)
        self.connector = InterleaveConnector(
            width, vision.spatial_merge_size, hidden, config.text_config.hidden_size, config.fusion_mode, config.camera_token
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InterleaveConnector):  # behind its layers
            module.start_at_zero()

    # ---- the hook ----

    def get_image_features(
        self,
        pixel_values: Tensor,
        image_grid_thw: Int[Tensor, "images 3"],
        mm_token_type_ids: Int[Tensor, "batch length"] | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Every block of every prompt, in reading order (`pooler_output`); `mm_token_type_ids` tells which images share one."""
        visual = self._visual(self.encode_2d(pixel_values, image_grid_thw), image_grid_thw)
        blocks: list[Tensor] = []
        for rows in self._samples(image_grid_thw, mm_token_type_ids):
            patches, cameras = self.encode_geometry(pixel_values, image_grid_thw, rows)
            grids = [tuple(image_grid_thw[row, 1:].tolist()) for row in rows]
            blocks += self.connector([visual[row] for row in rows], patches, cameras, grids)
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(blocks), pooler_output=tuple(blocks))

    def fuse_kept(
        self,
        features_2d: Float[Tensor, "tokens grouped_2d"],
        features_3d: Float[Tensor, "kept grouped_3d"],
        image_grid_thw: Int[Tensor, "images 3"],
        mm_token_type_ids: Int[Tensor, "batch length"] | None = None,
    ) -> BaseModelOutputWithPooling:
        """What `get_image_features` returns, from features kept from earlier: Spatial-MLLM's `encode_2d` and `encode_3d` of the
        frames as one video. Takes a temporal patch of one frame; camera tokens are not among these features.
        """
        config = self.config
        width = config.vision_config.spatial_merge_size**2 * 2 * config.spatial_config.embed_dim
        expected = int(image_grid_thw.prod(-1).sum()) // config.vision_config.spatial_merge_size**2
        if features_3d.shape[-1] != width or {len(features_2d), len(features_3d)} != {expected}:
            raise ValueError(
                f"kept features: found {len(features_2d)} tokens in 2D and {tuple(features_3d.shape)} in 3D, expected {expected} "
                f"by the grids, {width} wide in 3D: those of videos with one frame per temporal patch"
            )
        visual = self._visual(features_2d, image_grid_thw)
        projected = self.connector.project_groups(features_3d.to(self.dtype)).split([len(tokens) for tokens in visual])
        blocks = [
            block
            for rows in self._samples(image_grid_thw, mm_token_type_ids)
            for block in self.connector.blocks([visual[row] for row in rows], [projected[row] for row in rows])
        ]
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(blocks), pooler_output=tuple(blocks))

    def _visual(self, groups: Tensor, image_grid_thw: Tensor) -> tuple[Tensor, ...]:
        """2D tokens of each image in the language model's space."""
        vision = self.config.vision_config
        merged = self.visual.merger(groups.to(self.dtype).reshape(-1, vision.hidden_size))
        return merged.split((image_grid_thw.prod(-1) // vision.spatial_merge_size**2).tolist())

    def _samples(self, image_grid_thw: Tensor, mm_token_type_ids: Tensor | None) -> list[list[int]]:
        """Which images make a scene: those of a prompt; all of them where no prompts are given."""
        if mm_token_type_ids is None:
            return [list(range(len(image_grid_thw)))]
        return self.scenes_of(image_grid_thw, mm_token_type_ids)

    def get_video_features(self, *args, **kwargs):
        raise ValueError("SSR: found a video, expected its frames as images; SSRProcessor makes them so")

    def encode_geometry(
        self, pixel_values: Tensor, image_grid_thw: Int[Tensor, "images 3"], rows: list[int]
    ) -> tuple[list[Float[Tensor, "_ channels"]], list[Float[Tensor, " channels"]]]:
        """VGGT's patch tokens and camera token of each frame of one scene; frames of one size see each other."""
        per_row = image_grid_thw.prod(-1).tolist()
        pixels = pixel_values.split(per_row)
        config, index = self.config, self.config.connector_config.spatial_embeds_layer_idx
        patches: dict[int, Tensor] = {}
        cameras: dict[int, Tensor] = {}
        for size in dict.fromkeys(tuple(image_grid_thw[row].tolist()) for row in rows):
            same = [row for row in rows if tuple(image_grid_thw[row].tolist()) == size]
            # an image is a clip of equal frames to Qwen; VGGT is shown one of them
            frames = [unpatchify(pixels[row], image_grid_thw[row][None], config)[0][:1] for row in same]
            (tokens,) = self.spatial_encoder(torch.cat(frames)[None], layers=(index,))
            for row, of_frame in zip(same, tokens[0].to(self.dtype), strict=True):
                cameras[row], patches[row] = of_frame[0], of_frame[config.spatial_config.special_tokens :]
        return [patches[row] for row in rows], [cameras[row] for row in rows]

    # ---- around the hook ----

    def forward(
        self,
        input_ids: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        video_features_2d: Tensor | None = None,
        video_features_3d: Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ):
        """Spatial-MLLM's forward. `video_features_2d` and `_3d`, kept from earlier, are of the frames in `image_grid_thw`."""
        if video_features_2d is not None and mm_encoder_outputs is None:
            types = self.token_types(input_ids) if mm_token_type_ids is None else mm_token_type_ids
            mm_encoder_outputs = {"image": self.fuse_kept(video_features_2d, video_features_3d, image_grid_thw, types)}
        return super().forward(
            input_ids=input_ids,
            image_grid_thw=image_grid_thw,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )

    def block_lengths(self, grids: Int[Tensor, "images 3"]) -> list[tuple[Block, int]]:
        """The blocks of a scene and their numbers of tokens, in reading order."""
        merge, camera = self.config.vision_config.spatial_merge_size, self.config.camera_token
        tokens = (grids.prod(-1) // merge**2).tolist()
        blocks = layout(len(tokens), self.config.fusion_mode)
        return [(block, block_length(block.kind, tokens[block.frame], camera)) for block in blocks]

    def scenes_of(self, image_grid_thw: Int[Tensor, "images 3"], mm_token_type_ids: Int[Tensor, "batch length"]) -> list[list[int]]:
        """The images of each prompt that shows any, by the number of its placeholders."""
        scenes, start = [], 0
        for sample, room in enumerate((mm_token_type_ids == 1).sum(-1).tolist()):
            end = start
            while room and end < len(image_grid_thw):
                end += 1
                length = sum(count for _, count in self.block_lengths(image_grid_thw[start:end]))
                if length >= room:
                    break
            length = sum(count for _, count in self.block_lengths(image_grid_thw[start:end]))
            if length != room:
                raise ValueError(f"prompt {sample}: found {room} image tokens, expected {length} by the grids and fusion mode")
            if room:
                scenes.append(list(range(start, end)))
            start = end
        if start != len(image_grid_thw):
            raise ValueError(f"images: found {len(image_grid_thw)}, expected {start} by the image tokens of the prompts")
        return scenes

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

        Text counts up; a block of 2D tokens is an image that starts where the text before it ended; what follows a block goes on
        behind the largest position so far. Geometry tokens: `SSRConfig.positions`. Masked tokens take no positions.
        """
        merge, device = self.config.vision_config.spatial_merge_size, input_ids.device
        grids = image_grid_thw if image_grid_thw is not None else torch.zeros(0, 3, dtype=torch.long, device=device)
        shown = iter(self.scenes_of(grids, mm_token_type_ids))
        positions = torch.zeros(3, *input_ids.shape, dtype=torch.long, device=device)
        deltas = torch.zeros(len(input_ids), 1, dtype=torch.long, device=device)
        for row, types in enumerate(mm_token_type_ids):
            kept = torch.ones_like(types, dtype=torch.bool) if attention_mask is None else attention_mask[row].bool()
            rows = next(shown) if (types == 1).any() else []
            blocks = iter(self.block_lengths(grids[rows]))
            place: dict[int, Tensor] = {}  # of the 2D tokens of each frame
            at, start = 0, 0
            for kind, run in groupby(types.tolist()):
                end = at + len(list(run))
                while at < end:
                    block, length = (Block("text", 0), end - at) if kind == 0 else next(blocks)
                    here = kept[at : at + length]
                    if kind == 0:
                        part = (here.long().cumsum(0) - 1).clamp(min=0).expand(3, -1) + start
                    else:
                        image = self.get_vision_position_ids(0, grids[rows[block.frame]], 1, merge, 1, device=device) + start
                        part = self._block_positions(block, image, place)
                    if here.any():
                        positions[:, row, at : at + length] = part
                        start = max(start, int(part[:, here].max()) + 1)
                    at += length
            deltas[row] = start - int(kept.sum())
        return positions, deltas

    def _block_positions(self, block: Block, image: Int[Tensor, "3 n"], place: dict[int, Tensor]) -> Int[Tensor, "3 m"]:
        """Positions of a block, given those of an image here; keeps those of the 2D tokens in `place`."""
        if block.kind == "camera":
            return image[:, :1]
        if block.kind != "geometry":
            place[block.frame] = image
            return image.repeat_interleave(2, dim=1) if block.kind == "pairs" else image
        if self.config.positions == "shared":
            image = place[block.frame]
            return torch.cat([image[:, :1], image], dim=1) if self.config.camera_token else image
        if not self.config.camera_token:
            return image
        return torch.cat([image[:, :1], image + 1], dim=1)  # the camera token comes first, like a word


class SSRForConditionalGeneration(SpatialMLLMForConditionalGeneration):
    """SSR with its language-model head: loss, `generate`, `save_pretrained`, PEFT as for Qwen2.5-VL."""

    config: SSRConfig
    model_class = SSRModel

    def generate(self, inputs: Tensor | None = None, **kwargs):
        """Hugging Face's `generate`; kept features are fused once, before the first step."""
        features_2d, features_3d = kwargs.pop("video_features_2d", None), kwargs.pop("video_features_3d", None)
        if features_2d is not None:
            types = self.model.token_types(kwargs["input_ids"] if inputs is None else inputs)
            fused = self.model.fuse_kept(features_2d, features_3d, kwargs["image_grid_thw"], types)
            kwargs["mm_encoder_outputs"] = {"image": fused}
        return super().generate(inputs, **kwargs)

    @torch.no_grad()
    def start_delimiters(self) -> None:
        """Give the two new tokens the embeddings of <|vision_start|> and <|vision_end|>, which the language model knows."""
        weight = self.get_input_embeddings().weight
        for new, old in (("geometry_start", "vision_start"), ("geometry_end", "vision_end")):
            if (token := getattr(self.config, f"{new}_token_id")) is not None:
                weight[token] = weight[getattr(self.config, f"{old}_token_id")]


def load_ssr(path: str | Path, **kwargs) -> SSRForConditionalGeneration:
    """An SSR that was saved, from a folder or hub id; missing, unexpected and misshapen tensors are errors."""
    config = read_config(path)
    if (model_type := config.pop("model_type", None)) != SSRConfig.model_type:
        raise ValueError(f"{path}: found model_type {model_type!r}, expected {SSRConfig.model_type!r}")
    return load_weights(SSRForConditionalGeneration, path, make_config(SSRConfig, f"{path}: config.json", config), **kwargs)


def ssr_from_parts(
    qwen: str | Path, vggt: str | Path, pixel_clamp: str | None = None, **changes
) -> tuple[SSRForConditionalGeneration, SSRProcessor]:
    """An SSR to be trained, and its processor: the weights of a Qwen2.5-VL and of a VGGT, from folders or hub ids, and a connector
    that adds nothing yet. `changes` go to `SSRConfig`; the delimiters become new tokens.
    """
    given = qwen_config(qwen)
    plain = SpatialMLLMProcessor.from_pretrained(qwen)
    plain.tokenizer.add_tokens([GEOMETRY_START, GEOMETRY_END], special_tokens=True)
    start, end = plain.tokenizer.convert_tokens_to_ids([GEOMETRY_START, GEOMETRY_END])
    encoder = load_vggt(vggt, heads=())
    tokens = {"geometry_start_token_id": start, "geometry_end_token_id": end}
    config = SSRConfig(**{**given, **tokens, "spatial_config": encoder.config, **changes})
    model = load_parts(SSRForConditionalGeneration, qwen, encoder, config)
    if model.get_input_embeddings().num_embeddings <= end:  # Qwen's own has rows to spare
        model.resize_token_embeddings(end + 1)
    model.start_delimiters()
    processor = SSRProcessor(
        plain.image_processor,
        plain.tokenizer,
        plain.video_processor,
        chat_template=plain.chat_template,
        pixel_clamp=pixel_clamp,
        fusion_mode=config.fusion_mode,
        camera_token=config.camera_token,
    )
    return model.eval(), processor
