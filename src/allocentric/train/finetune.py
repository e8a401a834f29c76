"""Fine-tune a Spatial-MLLM on conversations about videos and images: the published supervised stage, wholly or with adapters."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Trainer,
    TrainingArguments,
    set_seed,
)

from allocentric.encoders.spa3r import Spa3R, Spa3RConfig, save_spa3r
from allocentric.encoders.vggt import VGGT, VGGTConfig
from allocentric.files import part_of, put
from allocentric.models import spa3_vlm
from allocentric.models.loading import read_config
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.models.spatial_mllm import (
    SpatialMLLMConfig,
    SpatialMLLMForConditionalGeneration,
    SpatialMLLMModel,
    from_parts,
    load_spatial_mllm,
)
from allocentric.readers import open_views
from allocentric.rooms import load_scene, write_video
from allocentric.tasks import VSI_TASKS
from allocentric.train.jsonl import Conversations
from allocentric.train.recipe import Annotations, FineTune, LoRA, Start, keep_recipe, resume_point
from allocentric.train.sft import SFTTrainer, check_frozen, collate
from allocentric.train.tokenizer import train_tokenizer
from allocentric.train.video_features import VideoFeatures, encoders

TINY = "tiny"  # a start that is made on the spot


def smoke(recipe: FineTune) -> FineTune:
    """The same recipe with a tiny random model on a few rooms: about a minute, and teaches nothing."""
    short = replace(recipe.optimisation, steps=3, epochs=None, batch_size=1, workers=0, log_every=1, save_every=2)
    data = replace(recipe.data, frames=4)
    start = Start(qwen=TINY, spa3r=TINY) if recipe.start is not None and recipe.start.spa3r else None
    return replace(recipe, start=start, data=data, batch=4, pixel_clamp=None, optimisation=short)


def finetune(recipe: FineTune, out: Path) -> None:
    """Train and save model and processor in `out/model`; adapters also in `out/adapters`. Run again to resume."""
    out = Path(out)
    keep_recipe(recipe, out)
    if (out / "model" / "config.json").exists():
        return
    recipe, arguments = prepare(recipe, out, tiny_start)
    model, processor = load_to_train(recipe)
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=conversations(recipe, model, processor, arguments, out),
        data_collator=collate_with(processor),
        learning_rates=recipe.learning_rates,
        muon=recipe.optimisation.muon,
    )
    train_and_save(trainer, recipe, out, processor)


def prepare(
    recipe: FineTune, out: Path, make_start: Callable[[Path, Annotations], tuple[Start, Annotations]]
) -> tuple[FineTune, TrainingArguments]:
    """The recipe, with a start and data made on the spot where it has none, and the Trainer's arguments."""
    arguments = replace(recipe.optimisation, accumulate=accumulation(recipe)).arguments(out / "checkpoints")
    if recipe.start is None or recipe.start.qwen == TINY:
        with arguments.main_process_first(local=False):
            start, data = make_start(out / "tiny", recipe.data)
            if recipe.start is not None:
                start = Start(qwen=start.qwen, spa3r=tiny_spa3r(out / "tiny" / "spa3r"))
        recipe = replace(recipe, start=start, data=data)
    return recipe, arguments


def load_to_train(recipe: FineTune) -> tuple[PreTrainedModel | PeftModel, SpatialMLLMProcessor]:
    """What the recipe starts from, with adapters where it asks for them, and its processor."""
    set_seed(recipe.optimisation.seed)
    model, processor = load_start(recipe.start, recipe)
    if not torch.cuda.is_available():
        model.model.language_model.set_attn_implementation("eager")  # on a CPU the fused kernel's backward pass takes far longer
    return with_adapters(model, recipe.lora) if recipe.lora else model, processor


def conversations(
    recipe: FineTune, model: PreTrainedModel | PeftModel, processor: SpatialMLLMProcessor, arguments: TrainingArguments, out: Path
) -> Conversations:
    """What is trained on; where the recipe has a cache, with features of all its videos, which are made now if need be."""
    if recipe.data.cache is None:
        return Conversations(recipe.data, processor)
    backbone = (model.get_base_model() if isinstance(model, PeftModel) else model).model
    check_frozen(model, encoders(backbone), recipe.learning_rates, f"data: cache: {recipe.data.cache}")
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    features = VideoFeatures(out / recipe.data.cache, backbone, processor, recipe.data.frames, dtype)
    data = Conversations(recipe.data, processor, features)
    write_features(data, backbone, arguments)
    return data


@torch.no_grad()
def write_features(data: Conversations, model: SpatialMLLMModel, arguments: TrainingArguments) -> None:
    """Encode every video of `data` whose features are not there.

    Each process goes round all videos from a place of its own and passes over those that another has done by then: so they share
    the work, and where one ends, all is done.
    """
    first, home = arguments.process_index * len(data.videos) // arguments.world_size, model.device
    videos = [*data.videos[first:], *data.videos[:first]]
    loader = DataLoader(videos, batch_size=None, collate_fn=data.without_features, num_workers=arguments.dataloader_num_workers)
    hidden = arguments.disable_tqdm or arguments.process_index > 0
    parts = nn.ModuleList(filter(None, [model.visual, model.spatial_encoder])).to(arguments.device)
    for video, seen in zip(videos, tqdm(loader, "features", disable=hidden), strict=True):
        if seen is None:
            continue
        pixels, grid = seen.pop("pixel_values_videos").to(arguments.device), seen["video_grid_thw"].to(arguments.device)
        with torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16):
            encoded = {"2d": model.encode_2d(pixels, grid), "3d": model.encode_3d(pixels, grid)}
        made = {f"video_features_{part}": value for part, value in encoded.items() if value is not None}
        data.features.write(data.paths(video), seen | made)
    parts.to(home)


def collate_with(processor: SpatialMLLMProcessor) -> Callable[[Sequence[dict]], dict[str, torch.Tensor]]:
    """`sft.collate` with the processor's padding."""
    return partial(collate, pad_token_id=processor.tokenizer.pad_token_id)


def train_and_save(trainer: Trainer, recipe: FineTune, out: Path, processor: SpatialMLLMProcessor) -> None:
    """Train from the newest checkpoint; save the model, with the adapters merged into it, and what was logged."""
    trainer.train(resume_from_checkpoint=resume_point(out / "checkpoints"))
    unfinished = part_of(out / "model")
    trainer.save_model(out / "adapters" if recipe.lora else unfinished)  # by all processes: each may hold a part
    if trainer.is_world_process_zero():
        (out / "log.json").write_text(json.dumps(trainer.state.log_history))
        processor.save_pretrained(unfinished)
        if recipe.lora:
            merge_adapters(out / "adapters", recipe.start, recipe).save_pretrained(unfinished)
        put(unfinished, out / "model")


def with_adapters(model: PreTrainedModel, lora: LoRA) -> PeftModel:
    """The model with untrained adapters on the layers that `lora` names."""
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets,
        lora_dropout=lora.dropout,
        modules_to_save=list(lora.whole) or None,
    )
    return get_peft_model(model, config)


def merge_adapters(adapters: Path, start: Start, recipe: FineTune) -> PreTrainedModel:
    """What was started from, with the trained adapters added into its weights."""
    set_seed(recipe.optimisation.seed)  # a connector that began at random begins the same
    model, _ = load_start(start, recipe)
    return PeftModel.from_pretrained(model, adapters).merge_and_unload()


def accumulation(recipe: FineTune) -> int:
    """How many forward passes of each process make one step of `recipe.batch` sequences."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    together = processes * recipe.optimisation.batch_size
    if recipe.batch % together:
        raise ValueError(
            f"batch: found {recipe.batch}, expected a multiple of {together} "
            f"({processes} processes of batch_size {recipe.optimisation.batch_size})"
        )
    return recipe.batch // together


def load_start(start: Start, recipe: FineTune) -> tuple[SpatialMLLMForConditionalGeneration, SpatialMLLMProcessor]:
    """Model in float32 and processor with the recipe's switches. A connector that is new starts at random."""
    for folder in filter(None, vars(start).values()):
        if not Path(folder).exists():
            raise ValueError(f"{folder}: found no such folder, expected weights to start from")
    if start.spa3r:
        model = spa3_vlm.from_parts(start.qwen, start.spa3r, dtype=torch.float32)
    elif start.vggt:
        model = from_parts(start.qwen, start.vggt, dtype=torch.float32)
    else:
        load = spa3_vlm.load_spa3_vlm if spa3_vlm.is_spa3_vlm(read_config(start.checkpoint)) else load_spatial_mllm
        model = load(start.checkpoint, dtype=torch.float32)
    kind = SpatialMLLMProcessor
    if isinstance(model, spa3_vlm.Spa3VLMForConditionalGeneration):
        kind, model.config.frames_as = spa3_vlm.Spa3VLMProcessor, "video"  # as the videos of conversations are shown
    if recipe.mrope_time_step is not None:
        model.config.mrope_time_step = recipe.mrope_time_step
    plain = SpatialMLLMProcessor.from_pretrained(start.checkpoint or start.qwen)
    processor = kind(
        plain.image_processor,
        plain.tokenizer,
        plain.video_processor,
        chat_template=plain.chat_template,
        pixel_clamp=recipe.pixel_clamp,
        newline_after_vision=recipe.newline_after_vision,
    )
    return model, processor


def tiny_spa3r(folder: Path) -> str:
    """A random Spa3R of two layers."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        save_spa3r(Spa3R(Spa3RConfig.tiny()), folder)
    return str(folder)


def tiny_start(folder: Path, data: Annotations) -> tuple[Start, Annotations]:
    """A random Qwen2.5-VL and VGGT of two layers, and videos and images of three rooms with conversations about them."""
    annotations = folder / "conversations.jsonl"
    start = Start(qwen=str(folder / "qwen"), vggt=str(folder / "vggt"))
    made = replace(data, files=(str(annotations),), root=str(folder))
    if annotations.exists():
        return start, made

    lines = []
    for seed in range(3):
        room = f"room-{seed}"
        write_video(seed, folder / room, seconds=2, fps=8, height=56, width=84, workers=1, annotated_frames=8)
        frames = [f"{room}/{i}.png" for i in range(2)]
        for name, frame in zip(frames, open_views(folder / room / "video.mp4", 2).frames, strict=True):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / name)
        scene, rng = load_scene(folder / room), np.random.default_rng(seed)
        for task in VSI_TASKS.values():
            for question in task.make(scene, rng, 2):
                said = [{"from": "human", "value": task.prompt(question)}, {"from": "gpt", "value": question.answer}]
                lines.append(({"video": f"{room}/video.mp4"}, "<video>\n", said))
        lines.append(({"image": frames}, "<image>\n<image>\n", said))

    torch.manual_seed(0)
    texts = [message["value"] for _, _, said in lines for message in said] * 3
    tokenizer = train_tokenizer([*texts, "You are a helpful assistant. system user assistant"], 500)
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 28**2, "longest_edge": 84**2}}
    processor = SpatialMLLMProcessor(
        Qwen2VLImageProcessor(**patches), tokenizer, Qwen2VLVideoProcessor(**patches), chat_template=tokenizer.chat_template
    )
    processor.save_pretrained(folder / "qwen")
    tiny = SpatialMLLMConfig.tiny(use_spatial=False, connector_config=None, spatial_config=None)
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (("vision_start",) * 2, ("vision_end",) * 2, ("image", "image_pad"), ("video", "video_pad"))
    }
    text = tiny.text_config.to_dict() | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tiny.vision_config.to_dict(), tie_word_embeddings=True, **ids)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "qwen")

    vggt = VGGT(VGGTConfig.tiny(), heads=())
    vggt.config.save_pretrained(folder / "vggt")
    save_file(vggt.state_dict(), folder / "vggt" / "model.safetensors")
    written = ""
    for shown, tags, (asked, answered) in lines:
        asked = asked | {"value": tags + asked["value"]}
        written += json.dumps(shown | {"conversations": [asked, answered]}) + "\n"
    annotations.write_text(written)
    return start, made
