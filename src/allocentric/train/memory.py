"""How much memory of each GPU a recipe takes, computed on the meta device: nothing is loaded, nothing is allocated.

    python -m allocentric.train.memory recipes/grpo.yaml --gpus 1 2 4 8

Weights, gradients, moments and the rollouts' keys and values are exact; activations and logits are estimates by formula.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn

from allocentric.models.spatial_mllm import SpatialMLLMConfig, SpatialMLLMForConditionalGeneration
from allocentric.processes import mistakes_in_one_line
from allocentric.train.recipe import FineTune, Reinforce, read_recipe
from allocentric.train.sft import freeze_except

GIB = 2**30
# Spatial-MLLM as released: Qwen2.5-VL-3B; VGGT-1B is the default of the config.
RELEASED = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 2048},
    "tie_word_embeddings": True,
}
QUESTION_TOKENS = 160  # a question with options and the request to reason


@dataclass(frozen=True)
class Load:
    """What one process computes at a time.

    seen, rows, question, written   tokens of what is seen; answers on it; tokens of each question and each answer.
    checkpointing                   activations are recomputed.
    group                           answers that share a question where they are scored.
    """

    seen: int
    rows: int
    question: int
    written: int
    checkpointing: bool
    group: int = 1

    @property
    def packed(self) -> int:
        """Tokens of the sequence that is scored, or trained on."""
        return self.seen + self.rows // self.group * self.question + self.rows * self.written


def visual_tokens(frames: int, height: int = 476, width: int = 644, merge: int = 2, patch: int = 14, step: int = 2) -> int:
    """Language-model tokens of a video; the default frame is what "training" pixel bounds make of 4:3."""
    return -(-frames // step) * (height // (patch * merge)) * (width // (patch * merge))


def on_meta(config: SpatialMLLMConfig, recipe: FineTune) -> nn.Module:
    """The model as the recipe trains it, without memory."""
    with torch.device("meta"):
        model: nn.Module = SpatialMLLMForConditionalGeneration(config)
        if recipe.lora:
            lora = LoraConfig(
                r=recipe.lora.rank, target_modules=recipe.lora.targets, modules_to_save=list(recipe.lora.whole) or None
            )
            model = get_peft_model(model, lora)
    freeze_except(model, recipe.learning_rates)
    return model


def estimate(
    model: nn.Module, config: SpatialMLLMConfig, load: Load, gpus: int, reference: bool, rollouts: bool
) -> dict[str, float]:
    """Bytes on each GPU, by what they hold. Trained with AdamW and float32 weights under bfloat16 autocast, sharded by FSDP2.

    reference   a frozen copy is kept for the KL divergence.
    rollouts    completions are sampled here.
    """
    text, element = config.text_config, 2  # bfloat16
    size = lambda parameters: sum(p.numel() for p in parameters) * 4  # noqa: E731
    weights, trained = size(model.parameters()), size(p for p in model.parameters() if p.requires_grad)
    layer = sum(p.numel() for name, p in model.named_parameters() if ".language_model.layers.0." in name)
    held = {
        "weights": weights / gpus,
        "gradients": trained / gpus,
        "moments": 2 * trained / gpus,
        "reference": weights / gpus if reference else 0,
        # FSDP gathers the unit that runs and the next one; embeddings are a unit of their own
        "gathered": 0 if gpus == 1 else element * (2 * layer + text.vocab_size * text.hidden_size),
    }
    heads = text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_key_value_heads * heads * element  # keys and values of one layer
    if rollouts:
        own = load.rows * (load.question + load.written)
        held["keys and values"] = per_token * text.num_hidden_layers * (load.seen + own)
        held["keys and values"] += per_token * load.rows * (load.seen + load.question + load.written)  # one layer, joined
    hidden, inner = text.hidden_size * element, text.intermediate_size * element
    inside = 12 * hidden + 3 * inner  # kept for the backward pass of one layer: norms, projections, attention, MLP
    layers = text.num_hidden_layers
    held["activations"] = load.packed * ((hidden * layers + inside) if load.checkpointing else (hidden + inside) * layers)
    # bfloat16 logits, their float32 copy and its gradient, where there is something to predict
    held["logits"] = load.rows * load.written * text.vocab_size * (element + 4 + 4)
    return held


def load_of(recipe: FineTune, tokens: int) -> Load:
    """What one forward pass of the recipe holds."""
    scenes, questions = recipe.optimisation.batch_size, recipe.data.questions if recipe.data else recipe.rooms.questions
    group, written = (recipe.grpo.group, recipe.grpo.max_new_tokens) if isinstance(recipe, Reinforce) else (1, 16)
    return Load(scenes * tokens, scenes * questions * group, QUESTION_TOKENS, written, recipe.optimisation.checkpointing, group)


def config_of(recipe: FineTune) -> SpatialMLLMConfig:
    """The config of the weights the recipe starts from if they are here, or the released model's."""
    file = Path(recipe.start.checkpoint) / "config.json" if recipe.start and recipe.start.checkpoint else None
    if file is None or not file.is_file():
        return SpatialMLLMConfig(**RELEASED)
    keys = json.loads(file.read_text())
    return SpatialMLLMConfig(**{name: value for name, value in keys.items() if name not in ("model_type", "architectures")})


def memory(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="a recipe of kind finetune or grpo")],
    gpus: Annotated[tuple[int, ...], tyro.conf.arg(help="numbers of GPUs")] = (1, 2, 4, 8),
) -> None:
    """Memory of each GPU in GiB, by what holds it. Computed, not measured."""
    plan = read_recipe(recipe)
    if not isinstance(plan, FineTune):
        raise ValueError(f"{recipe}: expected a recipe of kind finetune or grpo")
    config = config_of(plan)
    model, load = on_meta(config, plan), load_of(plan, visual_tokens(plan.data.frames if plan.data else 16))
    rewarded = isinstance(plan, Reinforce)
    reference = rewarded and plan.grpo.beta > 0 and plan.lora is None
    Console().print(table(model, config, load, gpus, reference, rewarded))


def table(model: nn.Module, config: SpatialMLLMConfig, load: Load, gpus: Sequence[int], reference: bool, rollouts: bool) -> Table:
    """One column per number of GPUs."""
    columns = [estimate(model, config, load, count, reference, rollouts) for count in gpus]
    out = Table("GiB on each GPU", *(f"{count} GPU{'s' if count > 1 else ''}" for count in gpus))
    for name in columns[0]:
        out.add_row(name, *(f"{column[name] / GIB:.1f}" for column in columns))
    out.add_row("total", *(f"{sum(column.values()) / GIB:.1f}" for column in columns))
    return out


if __name__ == "__main__":
    with mistakes_in_one_line("memory"):
        tyro.cli(memory)
