"""Pointing: a scene and its proposals encoded once, and any number of descriptions looked up in it.

Nothing but the description enters the model: it writes its answer up to `<ground>` itself, and the state at that token is compared
with the proposals. (The published evaluation feeds the gold answer, which names the category.)
"""

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, Cache

from allocentric.encoders.checkpoints import located
from allocentric.encoders.vggt import VGGT
from allocentric.geometry.boxes import Box3D, boxes_to_array
from allocentric.geometry.cameras import invert_rigid
from allocentric.geometry.cells import (
    CellBounds,
    Window,
    as_pictures,
    box_shares,
    cell_bounds,
    cell_means,
    grid_rays,
    sample_points,
)
from allocentric.models.processor import SYSTEM, SpatialMLLMProcessor
from allocentric.models.s2_mllm import GROUND, S2LlavaConfig, S2LlavaForConditionalGeneration, S2Model, S2QwenConfig, load_s2
from allocentric.models.scene import SharedPrefixLayer
from allocentric.sampling import preprocess_for_vggt
from allocentric.views import Views

PER_CELL = 14  # depth is read at 14 x 14 places of each cell, as published
IMAGE = "<image>"


@dataclass(frozen=True)
class Seen:
    """What a model is given of a scene, whatever is asked about it.

    inputs     pixel values (and grid), `cells` and `rays`, with a batch axis.
    points     (cells, places, 3) world points of every fine cell, and `bounds` of each: what boxes are compared with.
    """

    inputs: dict[str, Tensor]
    points: Float[Tensor, "cells places 3"]
    bounds: CellBounds

    def proposals(self, boxes: list[Box3D]) -> dict[str, Tensor]:
        """`boxes` (1, k, 7) and `shares` (1, k, cells), float32."""
        array = torch.from_numpy(boxes_to_array(boxes)).float()
        return {"boxes": array[None], "shares": box_shares(self.points, array, self.bounds)[None]}


class S2Processor:
    """Frames, geometry and prompts for either base.

    `frames` is the processor of a Qwen2.5-VL base; None for LLaVA's, whose frames are resized to its square and cropped.
    """

    def __init__(self, tokenizer, config: S2LlavaConfig | S2QwenConfig, frames: SpatialMLLMProcessor | None = None):
        self.tokenizer, self.config, self.frames = tokenizer, config, frames
        if isinstance(config, S2QwenConfig) != (frames is not None):
            raise ValueError("processor: expected `frames`, a SpatialMLLMProcessor, for a Qwen2.5-VL base and for no other")
        if tokenizer.convert_tokens_to_ids(GROUND) != config.ground_token_id:
            found = tokenizer.convert_tokens_to_ids(GROUND)
            raise ValueError(f"tokenizer: found {GROUND} as token {found}, expected {config.ground_token_id} as in the model")

    @classmethod
    def from_pretrained(cls, path: str | Path, config: S2LlavaConfig | S2QwenConfig) -> "S2Processor":
        if isinstance(config, S2LlavaConfig):
            return cls(AutoTokenizer.from_pretrained(path), config)
        frames = SpatialMLLMProcessor.from_pretrained(path)
        return cls(frames.tokenizer, config, frames)

    def save_pretrained(self, path: str | Path) -> None:
        (self.frames or self.tokenizer).save_pretrained(path)

    def see(self, views: Views) -> Seen:
        """Frames as the base takes them, and the geometry of its cells."""
        k, poses = views.intrinsics, views.camera_to_world
        if views.depth is None or k is None or poses is None:
            raise ValueError(f"{views.source or 'views'}: found no depth and cameras, expected posed RGB-D (or `with_geometry`)")
        inputs, fine, coarse, window = self._frames(views) if self.frames is None else self._qwen_frames(views)
        points = sample_points(views.depth, k, poses, fine, PER_CELL, window)
        inputs["cells"] = cell_means(points)[None]
        rays = grid_rays(k, poses, coarse, window)
        measured = as_pictures(~points[..., 0].isnan()).float()  # a ray whose cell has no depth is masked, like its coordinates
        rays[F.adaptive_max_pool2d(measured[:, None], coarse)[:, 0] == 0] = torch.nan
        inputs["rays"] = rays[None]
        points = points.flatten(0, 2)
        return Seen(inputs, points, cell_bounds(points))

    def _qwen_frames(self, views: Views) -> tuple[dict[str, Tensor], tuple[int, int], tuple[int, int], Window]:
        vision = self.config.vision_config
        frames = views.frames.repeat_interleave(vision.temporal_patch_size, dim=0)  # a temporal patch shows one view
        made = self.frames.video_processor(videos=[frames], return_tensors="pt")
        grid = made["video_grid_thw"]
        cells = tuple((grid[0, 1:] // vision.spatial_merge_size).tolist())
        window = Window(0.0, 0.0, *map(float, views.frames.shape[-2:]))
        return {"pixel_values_videos": made["pixel_values_videos"], "video_grid_thw": grid}, cells, cells, window

    def _frames(self, views: Views) -> tuple[dict[str, Tensor], tuple[int, int], tuple[int, int], Window]:
        vision = self.config.vision_config
        side, patch = vision.image_size, vision.patch_size
        grid = side // patch
        h, w = views.frames.shape[-2:]
        scale = side / min(h, w)
        size = (round(h * scale), round(w * scale))
        top, left = (size[0] - side) // 2, (size[1] - side) // 2
        resized = TF.resize(views.frames, list(size), TF.InterpolationMode.BICUBIC, antialias=True)
        pixels = resized[..., top : top + side, left : left + side].float() / 127.5 - 1
        # SigLIP's patches leave out the last pixels of a square that they do not divide
        window = Window(top * h / size[0], left * w / size[1], grid * patch * h / size[0], grid * patch * w / size[1])
        coarse = (grid + 1) // 2
        return {"pixel_values_videos": pixels[None]}, (grid, grid), (coarse, coarse), window

    def prefix_ids(self, inputs: dict[str, Tensor]) -> Tensor:
        """Token ids (1, n) of the chat up to and including what is seen."""
        if self.frames is None:
            count = self._llava_tokens(inputs["cells"].shape[1])
            text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{IMAGE * count}\n"
        else:
            merge = self.config.vision_config.spatial_merge_size**2
            pad = "<|video_pad|>"
            text = self.frames.prefix(videos=1).replace(pad, pad * (int(inputs["video_grid_thw"][0].prod()) // merge))
        return torch.tensor([self.encode(text)])

    def _llava_tokens(self, views: int) -> int:
        side = (self.config.vision_config.image_size // self.config.vision_config.patch_size + 1) // 2
        return views * side * (side + 1)

    def suffix(self, prompt: str) -> str:
        """The chat from a question to where the answer starts."""
        return f"{prompt}<|im_end|>\n<|im_start|>assistant\n"

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


INSTRUCTION = "Identify the object according to the following description."


def grounding_prompt(description: str) -> str:
    """What the model is asked, as published: the instruction, a line break, the description."""
    description = description.strip()
    if not description:
        raise ValueError("description: found nothing, expected some text")
    if GROUND in description:
        raise ValueError(f"description: found {GROUND} in it, expected words only")
    return f"{INSTRUCTION}\n{description[0].upper()}{description[1:]}"


@dataclass(frozen=True)
class Grounding:
    """Where a described thing stands.

    box       the best proposal, as it was given, with its probability as `score`.
    index     its place among the proposals.
    scores    probability of every proposal; together with `absent`, that of none of them, they make 1.
    text      what the model wrote up to `<ground>`.
    complete  False when it did not come to `<ground>` by itself within its tokens and was made to.
    """

    description: str
    box: Box3D
    index: int
    scores: tuple[float, ...]
    absent: float
    text: str
    complete: bool

    def several(self, threshold: float = 0.25) -> list[int]:
        """Proposals for a description that may fit none or many (Video-3D-LLM): best first until their probabilities
        reach `threshold` together; none when "none of them" is the likeliest."""
        if self.absent > max(self.scores):
            return []
        chosen, total = [], 0.0
        for i in sorted(range(len(self.scores)), key=lambda i: -self.scores[i]):
            if total >= threshold:
                break
            chosen.append(i)
            total += self.scores[i]
        return chosen


class GroundingScene:
    """One place and its proposals as one model sees them, ready for descriptions.

    boxes    the proposals, untouched.
    seen     which of them any cell shows; the model knows of the others only where they are.
    """

    def __init__(
        self, model: S2Model, processor: S2Processor, boxes: list[Box3D], prefix: list[tuple[Tensor, Tensor]], next_position: int,
        objects: Tensor, seen: tuple[bool, ...],
    ):  # fmt: skip
        self.model, self.processor, self.boxes = model, processor, boxes
        self.prefix, self.next_position, self.objects, self.seen = prefix, next_position, objects, seen

    @classmethod
    @torch.inference_mode()
    def encode(cls, model: S2Model, processor: S2Processor, views: Views, boxes: list[Box3D]) -> "GroundingScene":
        """Run the vision encoder, the shared part of the prompt and the pooling of objects, once. All views are used."""
        if not boxes:
            raise ValueError(f"{views.source or 'views'}: found no proposals, expected at least one box")
        seen = processor.see(views)
        inputs = {name: value.to(model.device) for name, value in seen.inputs.items()}
        given = {name: value.to(model.device) for name, value in seen.proposals(boxes).items()}
        grid, cells, rays = inputs.get("video_grid_thw"), inputs["cells"], inputs["rays"]
        features = model.model.get_video_features(inputs["pixel_values_videos"].to(model.dtype), grid, cells=cells, rays=rays)
        ids = processor.prefix_ids(inputs).to(model.device)
        positions = model.model.prompt_positions(ids, torch.ones_like(ids), grid)
        output = model(
            input_ids=ids, position_ids=_places(positions), mm_encoder_outputs={"video": features}, video_grid_thw=grid,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        objects, visible = model.model.structure.objects(features.last_hidden_state, given["boxes"], given["shares"])
        prefix = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        return cls(model, processor, list(boxes), prefix, int(positions.max()) + 1, objects, tuple(visible[0].tolist()))

    def ground(
        self, descriptions: list[str], max_new_tokens: int = 24, batch_size: int = 32, begun: list[str] | None = None
    ) -> list[Grounding]:
        """The proposal that each description means. Greedy, so repeatable.

        begun   for experiments alone: how each answer begins, which the model then goes on with. To begin it with the gold
                category is what the published evaluation does.
        """
        prompts = [self.processor.suffix(grounding_prompt(description)) for description in descriptions]
        if begun is not None:
            prompts = [prompt + start for prompt, start in zip(prompts, begun, strict=True)]
        found: list[Grounding] = []
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            states, texts, complete = self._write(prompts[rows], max_new_tokens)
            found += self._choose(descriptions[rows], states, texts, complete)
        return found

    @torch.inference_mode()
    def _write(self, prompts: list[str], max_new_tokens: int) -> tuple[Float[Tensor, "n d"], list[str], list[bool]]:
        """Let the model answer up to `<ground>`; the state there, what it wrote, and whether it got there by itself."""
        model, tokenizer, ground = self.model, self.processor.tokenizer, self.model.config.ground_token_id
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        batch = batch.to(model.device)
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        positions = self.next_position + (mask.cumsum(-1) - 1).clamp(min=0)
        mask = torch.cat([mask.new_ones(len(mask), self.prefix[0][0].shape[-2]), mask], dim=-1)
        cache = Cache(layers=[SharedPrefixLayer(keys, values) for keys, values in self.prefix])
        ends = model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        states: list[Tensor | None] = [None] * len(prompts)
        written, complete = [[] for _ in prompts], [True] * len(prompts)
        chosen: list[int] = []
        for step in range(max_new_tokens + 1):
            hidden = self._read(tokens, mask, positions, cache)
            for row in range(len(prompts)):
                if step and states[row] is None and chosen[row] == ground:
                    states[row] = hidden[row]
            if all(state is not None for state in states):
                break
            chosen = model.lm_head(hidden).float().argmax(-1).tolist()  # the one look at the device of each step
            for row, token in enumerate(chosen):
                if states[row] is not None or token == ground:
                    continue
                if step + 1 >= max_new_tokens or token in ends:
                    chosen[row], complete[row] = ground, False
                else:
                    written[row].append(token)
            tokens, positions = torch.tensor(chosen, device=hidden.device)[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        return torch.stack(states), tokenizer.batch_decode(written, skip_special_tokens=True), complete

    def _read(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Float[Tensor, "n d"]:
        axes = 1 if isinstance(self.model, S2LlavaForConditionalGeneration) else 3  # text: the same on Qwen's three rotary axes
        output = self.model.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=_places(positions.expand(axes, -1, -1)),
            past_key_values=cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]

    @torch.inference_mode()
    def _choose(self, descriptions: list[str], states: Tensor, texts: list[str], complete: list[bool]) -> list[Grounding]:
        rows = torch.zeros(len(states), dtype=torch.long, device=states.device)
        cosine = self.model.ground_head(states, self.objects, rows)
        scores = (cosine / self.model.config.structure_config.temperature).softmax(-1).tolist()
        found = []
        for i, row in enumerate(scores):
            best = max(range(len(self.boxes)), key=row.__getitem__)
            box = replace(self.boxes[best], score=row[best])
            found.append(Grounding(descriptions[i], box, best, tuple(row[:-1]), row[-1], texts[i].strip(), complete[i]))
        return found


@torch.inference_mode()
def with_geometry(views: Views, vggt: VGGT, width: int | None = None) -> Views:
    """RGB views with the depth and cameras that a VGGT sees in them, turned so that the cameras stand upright on average.

    Their scale is relative: VGGT's own. Frames are resized to `width` (default: what it was trained at) and whole patches.
    """
    images = preprocess_for_vggt(views.frames, width or vggt.config.img_size, vggt.config.patch_size)
    weight = next(vggt.parameters())
    output = vggt(images[None].to(weight.device, weight.dtype))
    poses = invert_rigid(output.extrinsics[0].float())
    turned = views.frames.shape[2] > views.frames.shape[3]  # portrait frames were laid on their side, top to the right
    up = F.normalize((poses[:, :3, 0] if turned else -poses[:, :3, 1]).mean(0), dim=0)
    ahead = F.normalize(poses[0, :3, 2] - (poses[0, :3, 2] @ up) * up, dim=0)
    turn = torch.eye(4, device=poses.device)
    turn[:3, :3] = torch.stack([torch.linalg.cross(ahead, up), ahead, up])
    return replace(
        views,
        frames=(images * 255).round().clamp(0, 255).to(torch.uint8).cpu(),
        depth=output.depth[0, ..., 0].float().cpu(),
        intrinsics=output.intrinsics[0].float().cpu(),
        camera_to_world=(turn @ poses).cpu(),
        scale="relative",
    )


def _places(positions: Tensor) -> Tensor:
    """Positions as the language model takes them: without an axis in front when it has one kind only."""
    return positions[0] if len(positions) == 1 else positions


S2_NANO = Path(str(files("allocentric") / "s2_nano"))


def load_grounding(
    path: str | Path | None = None, device: str | torch.device | None = None, **kwargs
) -> tuple[S2Model, S2Processor]:
    """Model and processor from a folder or hub id (`load_s2`); `device` defaults to the first GPU if there is one.

    None is the small one that comes with the package, in float32. Weights that have not learned to point, such as those of a
    base, are refused.
    """
    if path is None:
        path, kwargs = S2_NANO, {"dtype": torch.float32} | kwargs
    path = located(path)
    model = load_s2(path, trained=True, **kwargs)
    model = model.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return model, S2Processor.from_pretrained(path, model.config)
