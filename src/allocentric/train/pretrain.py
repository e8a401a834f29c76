"""Pretrain a Spa3R (arXiv 2602.21186): predict the features of views that were not shown, from those that were.

    scenes ─► clips of V frames ─► teachers: VGGT (features, cameras, depth) and a 2D encoder (features), both frozen
                                      │ features of context views ─► latent ─► decoder at each target's camera ─► loss
                                      └─────────────────────────────────────── features of target views ────────┘

Any folder of videos, image folders or posed captures will do: no poses, depth or labels are read.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, PreTrainedConfig, set_seed

from allocentric.encoders.heads import DPTHead
from allocentric.encoders.spa3r import Spa3R, Spa3RConfig, aggregate_views, context_count, resize, save_spa3r
from allocentric.encoders.vggt import IMAGE_MEAN, IMAGE_STD, VGGT, load_vggt
from allocentric.model import load
from allocentric.models.patches import patchify
from allocentric.models.scene import weights_id
from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMModel
from allocentric.readers import count_frames, open_views
from allocentric.readers.images import natural_key
from allocentric.train.optimizer import GroupedTrainer
from allocentric.train.recipe import Objective, Pretrain, SceneFolder, keep_recipe, resume_point
from allocentric.train.shards import RoomShards, RoomsSpec, write_rooms

FROZEN = ("aggregator", "camera_head")  # parts of Spa3R that are VGGT's
HELDOUT_SEED = 10_000_000  # of the first room to measure on; training uses seeds below a million

# --------------------------------------------------------------------------------------------------------------- scenes


# Where scans keep their pictures: what else they hold (poses, depth) is not looked at.
PICTURES = ("color", "dslr/undistorted_images", "dslr/resized_undistorted_images", "rgb", "images")


class FolderScenes:
    """Whatever lies in some folders and `readers.open_views` can read: a scene each, in natural order.

    least   frames a scene must have; one with fewer is an error that names it.
    """

    def __init__(self, folders: Sequence[SceneFolder | str | Path], least: int = 1):
        self.paths, self.counts, self._gaps = [], [], []
        for folder in (f if isinstance(f, SceneFolder) else SceneFolder(str(f)) for f in folders):
            for scene in _scenes_in(folder):
                self.paths.append(next((scene / name for name in PICTURES if (scene / name).is_dir()), scene))
                self._gaps.append(folder.gaps)
        for path in self.paths:
            self.counts.append(count_frames(path))
            if self.counts[-1] < least:
                raise ValueError(f"{path}: found {self.counts[-1]} frames, expected at least {least}, the most views of a clip")

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, scene: int) -> str:
        return str(self.paths[scene])

    def gaps(self, scene: int) -> tuple[int, int] | None:
        """Steps between frames of this scene, if its folder has its own."""
        return self._gaps[scene]

    def frames(self, scene: int) -> int:
        return self.counts[scene]

    def read(self, scene: int, indices: Sequence[int]) -> UInt8[Tensor, "v 3 h w"]:
        return open_views(self.paths[scene], list(indices)).frames


def _scenes_in(folder: SceneFolder) -> list[Path]:
    """The scenes of a folder, or those of them that its list names."""
    path = Path(folder.path)
    if not path.is_dir():
        raise ValueError(f"{path}: found no such folder, expected one of scenes")
    if folder.scenes is None:
        scenes = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))
    else:
        if not (listed := Path(folder.scenes)).is_file():
            raise ValueError(f"{listed}: found no such file, expected names of scenes, one a line")
        scenes = [path / name for name in listed.read_text().split()]
        if missing := [scene.name for scene in scenes if not scene.exists()]:
            raise ValueError(f"{path}: found no {missing[0]} ({len(missing)} missing), expected every scene that {listed} names")
    if not scenes:
        raise ValueError(f"{path}: found no scenes, expected videos or folders of frames")
    return scenes


class RoomScenes:
    """Rooms rendered by `train.shards.write_rooms`."""

    def __init__(self, shards: RoomShards):
        self.shards = shards

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, scene: int) -> str:
        return self.shards[scene].scene.name

    def gaps(self, scene: int) -> None:
        return None

    def frames(self, scene: int) -> int:
        return len(self.shards[scene].frames)

    def read(self, scene: int, indices: Sequence[int]) -> UInt8[Tensor, "v 3 h w"]:
        chosen = np.ascontiguousarray(self.shards[scene].frames[list(indices)])
        return torch.from_numpy(chosen).permute(0, 3, 1, 2)


Scenes = FolderScenes | RoomScenes  # how many; of each its name, number of frames, steps between them, and some of them


def draw_frames(count: int, views: int, gaps: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """`views` frame numbers in ascending order: a random start, then steps drawn from `gaps` (least, most).

    Steps shrink to what the scene has room for, this time: the published code shrank them for the rest of the epoch.
    """
    if count < views:
        raise ValueError(f"scene: found {count} frames, expected at least {views}")
    most = min(gaps[1], (count - 1) // max(views - 1, 1))
    if most < gaps[0]:
        return sorted(rng.choice(count, views, replace=False).tolist())
    steps = rng.integers(gaps[0], most + 1, views - 1)
    places = np.concatenate([[0], steps.cumsum()])
    return (places + rng.integers(count - places[-1])).tolist()


@dataclass(frozen=True)
class Draw:
    """One clip to be drawn: `views` frames of scene number `scene`; the same `number` gives the same clip."""

    scene: int
    views: int
    number: int


class SceneClips(Dataset):
    """Clips of scenes with their split into context and target views. All that is random follows from the `Draw`.

    clips   a scene's draws repeat after this many: what teachers say of them can then be kept. None: every draw is new.
    """

    def __init__(
        self,
        scenes: Scenes,
        width: int,
        patch: int,
        gaps: tuple[int, int] = (1, 1),
        mask_ratio: float = 0.5,
        clips: int | None = None,
        seed: int = 0,
    ):
        if width % patch:
            raise ValueError(f"width: found {width}, expected a multiple of the patch size {patch}")
        self.scenes, self.width, self.patch, self.gaps = scenes, width, patch, gaps
        self.mask_ratio, self.clips, self.seed = mask_ratio, clips, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, draw: Draw) -> dict:
        """images (V, 3, H, W) in [0, 1], targets (V,), and a key that names frames and split."""
        number = draw.number if self.clips is None else draw.number % self.clips
        rng = np.random.default_rng((self.seed, draw.scene, draw.views, number))
        indices = draw_frames(self.scenes.frames(draw.scene), draw.views, self.scenes.gaps(draw.scene) or self.gaps, rng)
        targets = split(draw.views, self.mask_ratio, rng)
        images = resize(self.scenes.read(draw.scene, indices), self.width, self.patch)
        key = f"{self.scenes.name(draw.scene)} {indices} {targets.int().tolist()}"
        return {"images": images, "targets": targets, "keys": key}


def split(views: int, mask_ratio: float, rng: np.random.Generator) -> Bool[Tensor, " views"]:
    """True for target views. The first view is context, and a random choice of the others (section 3.2 of the paper)."""
    others = rng.choice(views - 1, context_count(views, mask_ratio) - 1, replace=False) + 1
    targets = torch.ones(views, dtype=torch.bool)
    targets[[0, *others.tolist()]] = False
    return targets


def collate_clips(clips: Sequence[dict], patch: int) -> dict:
    """Stack clips; those of different sizes are cut to the smallest about their centres, in whole patches."""
    height, width = (min(clip["images"].shape[axis] for clip in clips) for axis in (2, 3))

    def centre(images: Tensor) -> Tensor:
        top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    assert height % patch == 0 and width % patch == 0
    return {
        "images": torch.stack([centre(clip["images"]) for clip in clips]),
        "targets": torch.stack([clip["targets"] for clip in clips]),
        "keys": [clip["keys"] for clip in clips],
    }


class ViewBatches:
    """Batches of `Draw`s for one process: each step a number of views, and as many scenes as a budget of images allows.

    All processes get the same number of views and different scenes at a step, so that none waits for another. A batch depends on
    its position alone: a resumed run sees what an uninterrupted one would have seen.
    """

    def __init__(
        self, scenes: int, views: tuple[int, int], images: int, batches: int, seed: int = 0, rank: int = 0, world: int = 1
    ):
        if not 2 <= views[0] <= views[1] <= images:
            raise ValueError(f"views: found {views} with {images} images a batch, expected 2 <= least <= most <= images")
        self.scenes, self.views, self.images, self.batches = scenes, views, images, batches
        self.seed, self.rank, self.world = seed, rank, world

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng(self.seed)
        order, turn, at = rng.permutation(self.scenes), 0, 0
        for _ in range(self.batches):
            views = int(rng.integers(self.views[0], self.views[1] + 1))
            rows = []
            for _ in range(self.images // views * self.world):
                if at == self.scenes:
                    order, turn, at = rng.permutation(self.scenes), turn + 1, 0
                rows.append(Draw(int(order[at]), views, turn))
                at += 1
            yield rows[self.rank :: self.world]


# ------------------------------------------------------------------------------------------------------------- teachers


class SemanticTeacher(nn.Module):
    """Features of a frozen 2D encoder on the patch grid of the geometry encoder.

    backbone     normalised images (N, 3, H, W) -> feature maps (N, C, h, w).
    patch_size   of the backbone.
    square       None: images are resized so that the two grids are one. 224: published, whatever their shape; the maps are then
                 stretched to the grid.
    """

    def __init__(self, backbone: nn.Module, patch_size: int, square: int | None = None):
        super().__init__()
        self.backbone, self.patch_size, self.square = backbone, patch_size, square
        self.multiple = 1  # of patches that the sides of its images must be: it takes any

    def forward(self, images: Float[Tensor, "n 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "n p c"]:
        size = (self.square, self.square) if self.square else (grid[0] * self.patch_size, grid[1] * self.patch_size)
        images = F.interpolate(images, size, mode="bilinear", antialias=self.square is None)
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
        maps = self.backbone((images - mean) / std)
        if maps.shape[-2:] != grid:
            maps = F.interpolate(maps, grid, mode="bilinear")
        return maps.flatten(2).transpose(1, 2)


class DinoBackbone(nn.Module):
    """A DINOv2 or DINOv3 of transformers as a map of features: class and register tokens are dropped, the final norm is kept."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.patch_size = model.config.patch_size

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        height, width = images.shape[2] // self.patch_size, images.shape[3] // self.patch_size
        tokens = self.model(pixel_values=images).last_hidden_state
        return tokens[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


class QwenTeacher(nn.Module):
    """Patch features of a Qwen2.5-VL vision encoder as its merger reads them, normalised: nano's 2D encoder as a teacher."""

    def __init__(self, model: SpatialMLLMModel):
        super().__init__()
        self.visual, self.config = model.visual, model.config
        self.encode = SpatialMLLMModel.encode_2d
        self.multiple = model.config.vision_config.spatial_merge_size

    def forward(self, images: Float[Tensor, "n 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "n p c"]:
        vision = self.config.vision_config
        merge, steps = vision.spatial_merge_size, vision.temporal_patch_size
        pixels, grids = zip(*(patchify(image.expand(steps, -1, -1, -1), self.config) for image in images), strict=True)
        groups = self.encode(self, torch.cat(pixels), torch.stack(grids)).unflatten(-1, (-1, vision.hidden_size))
        groups = self.visual.merger.ln_q(groups)
        # a group holds the merge x merge patches of one language-model token
        blocks = groups.view(len(images), grid[0] // merge, grid[1] // merge, merge, merge, vision.hidden_size)
        return blocks.transpose(2, 3).reshape(len(images), grid[0] * grid[1], vision.hidden_size)


class Targets(NamedTuple):
    """What the teachers say of a batch of clips. V is all views, or the targets alone.

    context      (B, K, n, 2C) VGGT's patch tokens of the context views.
    geometry     (B, V, n, 2C); semantic (B, V, n, D).
    extrinsics, intrinsics   (B, V, 3, 4), (B, V, 3, 3).
    depth        (B, V, n) at patch centres.
    """

    context: Tensor
    geometry: Tensor
    semantic: Tensor
    extrinsics: Tensor
    intrinsics: Tensor
    depth: Tensor


@torch.no_grad()
def look(
    model: Spa3R,
    depth_head: DPTHead,
    semantic: nn.Module,
    images: Tensor,
    targets: Tensor,
    asymmetric: bool = True,
    every: bool = True,
) -> Targets:
    """Ask the teachers. The model's own frozen aggregator and camera head are one of them.

    asymmetric   True: one pass in which context views see context only and target views see all (the paper). False: context views
                 alone, and a second pass over all views for targets, cameras and depth (published configuration). The context
                 features are the same in both.
    every        False: of the target views only, in their order; a loss over targets then pays for no other depth and features.
    """
    config, size = model.config, tuple(images.shape[-2:])
    vggt, grid = config.vggt_config, model.grid(size)
    order, count = targets.int().argsort(dim=1, stable=True), int((~targets[0]).sum())
    context = order[:, :count]
    levels = aggregate_views(model.aggregator, images, targets if asymmetric else None, vggt.dpt_layers)
    tokens = levels[-1]
    if asymmetric:
        seen = _views(tokens, context)
    else:
        (seen,) = model.aggregator(_views(images, context))
    extrinsics, intrinsics = model.cameras(tokens, size)
    if not every:
        images, extrinsics, intrinsics, *levels = (
            _views(part, order[:, count:]) for part in (images, extrinsics, intrinsics, *levels)
        )
    with torch.autocast(images.device.type, enabled=False):
        dtype = depth_head.norm.weight.dtype
        depth, _ = depth_head([level.to(dtype) for level in levels], size, frame_chunk=8)
    depth = F.interpolate(depth[..., 0], grid, mode="nearest").flatten(2)
    features = semantic(images.flatten(0, 1), grid).unflatten(0, images.shape[:2])
    patches = slice(vggt.special_tokens, None)
    return Targets(seen[:, :, patches], levels[-1][:, :, patches], features, extrinsics, intrinsics, depth)


def _views(x: Tensor, chosen: Int[Tensor, "b k"]) -> Tensor:
    """The chosen views of each sample."""
    return x.take_along_dim(chosen.view(*chosen.shape, *[1] * (x.ndim - 2)), dim=1)


class TargetCache:
    """What teachers said of each clip, in float16, one safetensors file a clip.

    teachers   identity of the teachers' weights: what others said is not read.
    """

    def __init__(self, folder: str | Path, teachers: str):
        self.folder, self.teachers = Path(folder), teachers
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: str, size: Sequence[int]) -> Path:
        digest = hashlib.sha256(repr((self.teachers, key, tuple(size))).encode()).hexdigest()[:40]
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def read(self, path: Path, device: torch.device) -> Targets:
        return Targets(**{name: tensor.to(device).float() for name, tensor in load_file(path).items()})

    def write(self, path: Path, targets: Targets) -> None:
        path.parent.mkdir(exist_ok=True)
        small = {"extrinsics", "intrinsics"}  # lengths and pixels stay float32
        tensors = {n: (t.float() if n in small else t.half()).cpu().contiguous() for n, t in targets._asdict().items()}
        partial = path.with_suffix(f".{os.getpid()}.part")  # processes may meet at one clip
        save_file(tensors, partial)
        partial.replace(path)


# ------------------------------------------------------------------------------------------------------------- objective


def regression(
    predicted: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], kind: Literal["l1", "smooth_l1"]
) -> Float[Tensor, ""]:
    """Mean absolute error, or its smooth form with beta 1, in float32."""
    return {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}[kind](predicted.float(), target.float())


def angular(predicted: Float[Tensor, "*shape c"], target: Float[Tensor, "*shape c"]) -> Float[Tensor, ""]:
    """Mean of 1 - cosine over the last axis, in float32."""
    return 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()


class FieldLoss(nn.Module):
    """A Spa3R with its teachers and the loss of predictive spatial field modelling; teachers are frozen and in eval mode."""

    def __init__(
        self, model: Spa3R, depth_head: DPTHead, semantic: nn.Module, objective: Objective, cache: TargetCache | None = None
    ):
        super().__init__()
        self.model, self.depth_head, self.semantic = model, depth_head, semantic
        self.objective, self.cache = objective, cache
        for part in self.frozen():
            part.requires_grad_(False)

    @property
    def block(self) -> int:
        """Pixels that sides of images must be a multiple of, for both teachers."""
        return self.model.config.vggt_config.patch_size * self.semantic.multiple

    def frozen(self) -> list[nn.Module]:
        return [*(getattr(self.model, name) for name in FROZEN), self.depth_head, self.semantic]

    def train(self, mode: bool = True) -> "FieldLoss":
        """As every module's, but teachers stay in eval mode: a DINOv3 that trains draws its coordinates at random."""
        super().train(mode)
        for part in self.frozen():
            part.eval()
        return self

    def forward(
        self, images: Float[Tensor, "b v 3 h w"], targets: Bool[Tensor, "b v"], keys: list[str] | None = None
    ) -> dict[str, Tensor]:
        """`loss`, and its terms: geo/l1, geo/cos, sem/l1, sem/cos, depth_prob (a probe: it teaches the rest nothing)."""
        size, every = images.shape[-2:], self.objective.views == "all"
        if not every and not targets.any():
            raise ValueError("mask_ratio: found a clip without target views, expected some to predict")
        remembered = self.cache is not None and keys is not None
        truth = self.recall(images, targets, keys) if remembered else self.look(images, targets, every)
        latent = self.model.encode(truth.context, self.model.grid(size))
        seen = self.model.decode(latent, truth.extrinsics, truth.intrinsics, size)
        kind = self.objective.regression
        terms = {
            "geo/l1": regression(seen.geometry, truth.geometry, kind),
            "geo/cos": angular(seen.geometry, truth.geometry),
            "sem/l1": regression(seen.semantic, truth.semantic, kind),
            "sem/cos": angular(seen.semantic, truth.semantic),
            "depth_prob": regression(seen.depth, truth.depth, "smooth_l1"),
        }
        return {"loss": sum(terms.values()), **{name: term.detach() for name, term in terms.items()}}

    def look(self, images: Tensor, targets: Tensor, every: bool = True) -> Targets:
        """What the teachers say of all views, or of the target views."""
        return look(self.model, self.depth_head, self.semantic, images, targets, self.objective.asymmetric, every)

    def recall(self, images: Tensor, targets: Tensor, keys: list[str]) -> Targets:
        """What the teachers say of the views that are compared, from the cache where it has the clip."""
        files = [self.cache.path(key, images.shape[-2:]) for key in keys]
        if missing := [row for row, file in enumerate(files) if not file.is_file()]:
            said = self.look(images[missing], targets[missing], self.objective.views == "all")
            for i, row in enumerate(missing):
                self.cache.write(files[row], Targets(*(part[i] for part in said)))
        kept = [self.cache.read(file, images.device) for file in files]
        return Targets(*(torch.stack(parts) for parts in zip(*kept, strict=True)))


class PretrainTrainer(GroupedTrainer):
    """The Trainer on batches of `ViewBatches`; logs each term of the loss."""

    def __init__(self, *args, views: tuple[int, int], images: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.views, self.images = views, images
        self.terms: list[dict[str, Tensor]] = []

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        batches = ViewBatches(
            len(self.train_dataset),
            self.views,
            self.images,
            args.max_steps * args.gradient_accumulation_steps,
            args.seed,
            args.process_index,
            args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and not args.use_cpu,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        loss = outputs.pop("loss")
        self.terms.append(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self.terms and "loss" in logs:
            logs |= {name: float(torch.stack([terms[name] for terms in self.terms]).mean()) for name in self.terms[0]}
            self.terms = []
        super().log(logs, *args, **kwargs)


# ------------------------------------------------------------------------------------------------------------------- run


def smoke(recipe: Pretrain) -> Pretrain:
    """The same recipe on a handful of rooms with a tiny model and nano's teachers: about a minute, and teaches nothing."""
    short = replace(recipe.optimisation, steps=3, accumulate=1, batch_size=1, workers=0, log_every=1, save_every=2, bf16=False)
    small = {"embed_dim": 64, "num_heads": 2, "num_queries": 16, "num_encoder_layers": 2, "num_decoder_layers": 2}
    views = tuple(min(count, 8) for count in recipe.views)
    room = {"rooms": 4, "heldout": 2, "run": None, "folders": (), "heldout_folders": (), "width": 140, "gaps": (1, 2)}
    return replace(
        recipe,
        data=replace(recipe.data, **room),
        model=small,
        geometry="nano",
        semantic="nano",
        semantic_square=None,
        clips=2,
        views=views,
        images=2 * views[1],
        optimisation=short,
    )


def pretrain(recipe: Pretrain, out: Path, progress=None, workers: int = 2) -> None:
    """Train and write the model to `out/model`; run again to resume. Under torchrun, as many processes as it starts.

    progress   shows work that counts its own steps: a function of a name and (done, total) pairs.
    """
    out = Path(out)
    target = out / "model"
    teachers = {"geometry": recipe.geometry, "semantic": recipe.semantic}  # one folder has many names
    whole = {name: str(Path(p).resolve()) if Path(p).exists() else p for name, p in teachers.items()}
    keep_recipe(replace(recipe, **whole), out, free=("data.run",))
    if (target / "config.json").is_file():
        return
    if recipe.data.heldout_folders:  # what is measured on in the end is looked for now
        heldout_scenes(recipe, out)
    arguments = recipe.optimisation.arguments(out / "checkpoints")
    with arguments.main_process_first(local=False):
        scenes = training_scenes(recipe, out, progress, workers)
    set_seed(recipe.optimisation.seed)
    loss = build(recipe, out / "targets" if recipe.clips else None)
    block, data = loss.block, recipe.data
    clips = SceneClips(scenes, data.width, block, data.gaps, recipe.mask_ratio, recipe.clips, recipe.optimisation.seed)
    trainer = PretrainTrainer(
        model=loss,
        args=arguments,
        train_dataset=clips,
        data_collator=lambda items: collate_clips(items, block),
        views=recipe.views,
        images=recipe.images,
        muon=recipe.optimisation.muon,
    )
    trainer.train(resume_from_checkpoint=resume_point(out / "checkpoints"))
    if trainer.is_world_process_zero():
        (out / "log.json").write_text(json.dumps(trainer.state.log_history))
        save_spa3r(loss.model, target)


def training_scenes(recipe: Pretrain, out: Path, progress=None, workers: int = 2) -> Scenes:
    """The recipe's scenes; rooms are rendered first if they are not there."""
    data = recipe.data
    if data.folders:
        return FolderScenes(data.folders, recipe.views[1])
    folder = Path(data.run) / "rooms" if data.run else out / "rooms"
    return RoomScenes(room_shards(folder, data.rooms, recipe, progress, workers))


def heldout_scenes(recipe: Pretrain, out: Path, progress=None, workers: int = 2) -> Scenes | None:
    """Scenes to measure on that no training sees: other folders, or rooms with seeds of their own. None: the recipe names none."""
    data = recipe.data
    if data.heldout_folders:
        return FolderScenes(data.heldout_folders, recipe.views[1])
    if not data.heldout:
        return None
    folder = Path(data.run) / "held-out" / "parts" if data.run else out / "heldout"
    return RoomScenes(room_shards(folder, data.heldout, recipe, progress, workers, HELDOUT_SEED))


def room_shards(folder: Path, count: int, recipe: Pretrain, progress=None, workers: int = 2, first_seed: int = 0) -> RoomShards:
    spec = RoomsSpec(count, first_seed, frames=recipe.data.frames)
    steps = write_rooms(folder, spec, workers)
    if progress is None:
        for _ in steps:
            pass
    else:
        progress(folder.name, steps)
    return RoomShards(folder, count)


def build(recipe: Pretrain, cache: Path | None = None, model: Spa3R | None = None) -> FieldLoss:
    """Model and teachers; the aggregator and camera head of a new model are the geometric teacher's."""
    vggt = geometric_teacher(recipe.geometry)
    semantic, width = semantic_teacher(recipe.semantic, recipe.semantic_square)
    if model is None:
        model = Spa3R(Spa3RConfig(**recipe.model, vggt_config=vggt.config, semantic_dim=width))
        for name in FROZEN:
            getattr(model, name).load_state_dict(getattr(vggt, name).state_dict())
    targets = None
    if cache is not None:
        how = (recipe.objective.asymmetric, recipe.objective.views, recipe.semantic_square, model.config.world)
        targets = TargetCache(cache, repr((weights_id(vggt), weights_id(semantic), how)))
    return FieldLoss(model, vggt.depth_head, semantic, recipe.objective, targets)


def geometric_teacher(name: str) -> VGGT:
    """A VGGT with camera and depth heads: "nano", a folder with a model like nano, or VGGT's own weights."""
    vggt = load(None if name == "nano" else name, device="cpu").geometry if _is_mllm(name) else load_vggt(name)
    if vggt is None or vggt.camera_head is None or vggt.depth_head is None:
        raise ValueError(f"{name}: found no VGGT with camera and depth heads, expected one as geometric teacher")
    return vggt.float()


def semantic_teacher(name: str, square: int | None = None) -> tuple[nn.Module, int]:
    """A 2D encoder and the width of its features: nano's, that of a model like it, or a DINOv2 or DINOv3."""
    if _is_mllm(name):
        model = load(None if name == "nano" else name, device="cpu").network.model
        return QwenTeacher(model).float(), model.config.vision_config.hidden_size
    backbone = DinoBackbone(AutoModel.from_pretrained(name, dtype=torch.float32))
    return SemanticTeacher(backbone, backbone.patch_size, square), backbone.model.config.hidden_size


def _is_mllm(name: str) -> bool:
    """Whether a teacher is a Spatial-MLLM, of which the encoders are used."""
    return name == "nano" or PreTrainedConfig.get_config_dict(name)[0].get("model_type") == SpatialMLLMConfig.model_type
