"""`Scene`: a place encoded once and asked many times.

What is seen comes before the question in the prompt, so everything up to the question (vision features, geometry, and
the keys and values of every language-model layer) is the same for all questions: it is computed once and shared.
"""

import hashlib
import json
from collections import OrderedDict
from math import gcd
from pathlib import Path
from typing import overload

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from allocentric.answer import Answer, split_notes
from allocentric.models.processor import SpatialMLLMProcessor
from allocentric.views import Views


class SharedPrefixLayer(DynamicLayer):
    """Keys and values of one layer: a prefix stored once for the whole batch, and what each row added to it."""

    def __init__(self, prefix_keys: Float[Tensor, "1 heads p d"], prefix_values: Float[Tensor, "1 heads p d"]):
        super().__init__()
        self.prefix_keys, self.prefix_values = prefix_keys, prefix_values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        rows = len(keys)
        return (
            torch.cat([self.prefix_keys.expand(rows, -1, -1, -1), keys], dim=-2),
            torch.cat([self.prefix_values.expand(rows, -1, -1, -1), values], dim=-2),
        )

    def get_seq_length(self) -> int:
        return self.prefix_keys.shape[-2] + super().get_seq_length()


class Scene:
    """One place as one model sees it, ready for questions.

    key            identity of (frames, frame numbers, preprocessing, weights); equal keys mean equal answers.
    prefix         keys and values of the shared prompt, one pair (1, heads, tokens, head size) per layer.
    next_position  rotary position of the first token of a question (m-RoPE: a video takes fewer positions than tokens).
    frames         frame numbers in the source.
    tokens         ids that occur in the shared prompt, for a repetition penalty.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,  # adapters may be wrapped around it
        processor: SpatialMLLMProcessor,
        prefix: list[tuple[Tensor, Tensor]],
        next_position: int,
        frames: tuple[int, ...],
        key: str,
        tokens: tuple[int, ...] = (),
    ):
        self.model, self.processor = model, processor
        self.prefix, self.next_position = prefix, next_position
        self.frames, self.key, self.tokens = frames, key, tokens

    @classmethod
    @torch.inference_mode()
    def encode(cls, model: PreTrainedModel, processor: SpatialMLLMProcessor, views: Views) -> "Scene":
        """Run both encoders and the shared part of the prompt, once. All views are used: choose them before."""
        if len(views) == 0:
            raise ValueError(f"{views.source or 'views'}: found no frames, expected at least one to look at")
        key = scene_key(model, processor, views)
        inputs = processor.look(views.frames).to(model.device)
        backbone = model.model
        positions, _ = backbone.get_rope_index(
            inputs["input_ids"],
            inputs["mm_token_type_ids"],
            image_grid_thw=inputs.get("image_grid_thw"),
            video_grid_thw=inputs.get("video_grid_thw"),
            second_per_grid_ts=inputs.get("second_per_grid_ts"),
        )
        cache = backbone(**inputs, position_ids=positions, use_cache=True).past_key_values
        prefix = [(layer.keys, layer.values) for layer in cache.layers]
        tokens = tuple(inputs["input_ids"].unique().tolist())
        return cls(model, processor, prefix, int(positions.max()) + 1, _frame_numbers(views), key, tokens)

    @overload
    def ask(self, questions: str, max_new_tokens: int = 128, batch_size: int = 32) -> Answer: ...
    @overload
    def ask(self, questions: list[str], max_new_tokens: int = 128, batch_size: int = 32) -> list[Answer]: ...
    @torch.inference_mode()
    def ask(self, questions, max_new_tokens=128, batch_size=32):
        """Answer one question, or several at the price of little more than one. Greedy, so repeatable.

        Of the model's generation config the end tokens and the repetition penalty count, as in `generate(do_sample=False)`.
        """
        if max_new_tokens < 1 or batch_size < 1:
            found = f"max_new_tokens {max_new_tokens} and batch_size {batch_size}"
            raise ValueError(f"ask: found {found}, expected at least 1 of each")
        if isinstance(questions, str):
            return self.ask([questions], max_new_tokens, batch_size)[0]
        for i, question in enumerate(questions):
            if not question.strip():
                raise ValueError(f"question {i}: found {question!r}, expected some text")
        answers = []
        for start in range(0, len(questions), batch_size):
            answers += self._answer(questions[start : start + batch_size], max_new_tokens)
        return answers

    @torch.inference_mode()
    def first_logits(self, questions: list[str]) -> Float[Tensor, "questions vocabulary"]:
        """Logits of the first answer token of each question."""
        return self._start(questions)[0]

    def _start(self, questions: list[str]) -> tuple[Tensor, Cache, Tensor, Tensor]:
        """Read the questions on top of the prefix. Returns logits, cache, attention mask and the next positions."""
        device, tokenizer = self.model.device, self.processor.tokenizer
        texts = [self.processor.suffix(question) for question in questions]
        # padded on the left: the last column is the last token of every question
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
        batch = batch.to(device)
        mask, seen = batch["attention_mask"], self.prefix[0][0].shape[-2]
        positions = self.next_position + (mask.cumsum(-1) - 1).clamp(min=0)
        mask = torch.cat([mask.new_ones(len(questions), seen), mask], dim=-1)
        cache = Cache(layers=[SharedPrefixLayer(keys, values) for keys, values in self.prefix])
        logits = self._step(batch["input_ids"], mask, positions, cache)
        return logits, cache, mask, positions[:, -1:] + 1

    def _step(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Float[Tensor, "rows vocabulary"]:
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions.expand(3, -1, -1),  # text: the same on the three rotary axes
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def _answer(self, questions: list[str], max_new_tokens: int) -> list[Answer]:
        ends = self.model.generation_config.eos_token_id
        ends = torch.tensor([ends] if isinstance(ends, int) else ends or [], device=self.model.device, dtype=torch.long)
        logits, cache, mask, positions = self._start(questions)
        penalty = self.model.generation_config.repetition_penalty or 1.0
        said = self._said(questions, logits) if penalty != 1 else None
        open_rows = torch.ones(len(questions), dtype=torch.bool, device=mask.device)
        steps = []
        for step in range(max_new_tokens):
            if said is not None:  # of what was said, in prompt or answer, positive logits are divided, negative ones multiplied
                logits = torch.where(said, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
            probability, chosen = logits.softmax(-1).max(-1)
            if said is not None:
                said.scatter_(1, chosen[:, None], True)
            open_rows = open_rows & ~torch.isin(chosen, ends)
            steps.append((chosen, probability, open_rows))
            if step + 1 == max_new_tokens or not open_rows.any():  # the one look at the device's results per step
                break
            mask = torch.cat([mask, mask.new_ones(len(questions), 1)], dim=-1)
            logits = self._step(chosen[:, None], mask, positions, cache)
            positions = positions + 1
        written = [torch.stack(column, dim=1).tolist() for column in zip(*steps, strict=True)]
        kept = [[(t, p) for t, p, is_open in zip(*row, strict=True) if is_open] for row in zip(*written, strict=True)]
        tokens, probabilities = [[t for t, _ in row] for row in kept], [[p for _, p in row] for row in kept]
        texts = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [
            Answer(answer, question, sum(p) / len(p) if p else 0.0, self.frames, notes)
            for (notes, answer), question, p in zip(map(split_notes, texts), questions, probabilities, strict=True)
        ]

    def _said(self, questions: list[str], logits: Float[Tensor, "rows vocabulary"]) -> Bool[Tensor, "rows vocabulary"]:
        """Which tokens the prompt of each question holds."""
        said = torch.zeros_like(logits, dtype=torch.bool)
        said[:, list(self.tokens)] = True
        for row, question in zip(said, questions, strict=True):
            row[self.processor.tokenizer(self.processor.suffix(question), add_special_tokens=False)["input_ids"]] = True
        return said

    @property
    def nbytes(self) -> int:
        """Memory of the shared prefix in bytes."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.prefix)

    def save(self, path: str | Path) -> None:
        """Write the scene to one safetensors file."""
        tensors = {}
        for i, (keys, values) in enumerate(self.prefix):
            tensors |= {f"k.{i}": keys.contiguous(), f"v.{i}": values.contiguous()}
        about = {"key": self.key, "next_position": self.next_position, "frames": list(self.frames)}
        about["tokens"] = list(self.tokens)
        partial = Path(path).with_name(Path(path).name + ".part")
        save_file(tensors, partial, metadata={"scene": json.dumps(about)})
        partial.replace(path)  # a scene file is whole or absent

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel, processor: SpatialMLLMProcessor) -> "Scene":
        """Read a scene back. The model and its preprocessing must be those it was encoded with."""
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            about = json.loads((file.metadata() or {}).get("scene", "null"))
            if about is None:
                raise ValueError(f"{path}: found no scene in this safetensors file, expected one written by Scene.save")
            expected = _maker(model, processor)
            found = about["key"].partition("-")[2]
            if found != expected:
                raise ValueError(f"{path}: found a scene of model and preprocessing {found}, expected {expected}")
            layers = len(file.keys()) // 2
            prefix = [(file.get_tensor(f"k.{i}"), file.get_tensor(f"v.{i}")) for i in range(layers)]
        return cls(model, processor, prefix, about["next_position"], tuple(about["frames"]), about["key"], tuple(about["tokens"]))


class SceneCache:
    """The scenes used last, within `max_bytes` of memory."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self._scenes: OrderedDict[str, Scene] = OrderedDict()

    def __len__(self) -> int:
        return len(self._scenes)

    def __contains__(self, key: str) -> bool:
        return key in self._scenes

    @property
    def nbytes(self) -> int:
        return sum(scene.nbytes for scene in self._scenes.values())

    def watch(self, model: PreTrainedModel, processor: SpatialMLLMProcessor, views: Views) -> Scene:
        """`Scene.encode`, or the scene encoded earlier from the same frames by the same model."""
        key = scene_key(model, processor, views)
        scene = self._scenes.pop(key, None) or Scene.encode(model, processor, views)
        self._scenes[key] = scene
        while self.nbytes > self.max_bytes:  # a scene larger than the bound is handed out but not kept
            self._scenes.popitem(last=False)
        return scene


def scene_key(model: PreTrainedModel, processor: SpatialMLLMProcessor, views: Views) -> str:
    """`<what was seen>-<what encoded it>`: hashes of frames and frame numbers, and of preprocessing and weights."""
    seen = hashlib.sha256(repr((_frame_numbers(views), tuple(views.frames.shape))).encode())
    seen.update(views.frames.cpu().contiguous().numpy())
    return f"{seen.hexdigest()[:32]}-{_maker(model, processor)}"


def _frame_numbers(views: Views) -> tuple[int, ...]:
    return tuple(range(len(views)) if views.indices is None else views.indices.tolist())


def _maker(model: PreTrainedModel, processor: SpatialMLLMProcessor) -> str:
    preprocessing = {k: v for k, v in processor.to_dict().items() if k != "tokenizer"}
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("architectures", "transformers_version")}
    about = [preprocessing, processor.prefix(videos=1), config, str(model.dtype)]
    text = json.dumps(about, sort_keys=True, default=str)
    return hashlib.sha256((text + weights_id(model)).encode()).hexdigest()[:32]


def weights_id(model: nn.Module, samples: int = 256) -> str:
    """Hash of every parameter: name, shape, the sum of all its bits, and about `samples` of its values, spread evenly.

    A change of any one value changes it; values that change places between two looks may not.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        bits = values.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])
        stride = max(1, len(values) // samples)
        while gcd(stride, len(values)) > 1:  # so as not to look at the same column of every row
            stride -= 1
        looked = values[::stride].float().cpu().numpy()
        digest.update(repr((name, tuple(parameter.shape), int(bits.sum(dtype=torch.int64)))).encode() + looked.tobytes())
    return digest.hexdigest()
