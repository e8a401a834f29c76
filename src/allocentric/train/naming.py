"""Visual tokens learn to say what they show, and where it is, in words of the language model, before it reads them.

A language model from nothing takes very long to learn to read tokens that mean nothing yet, while these learn what to mean. Here
the projections learn alone: a token should resemble the embeddings of the categories it shows, and of the two numbers that notes
write for its object's place (`tasks.notes`), each turned by a fixed rotation of its own so that "right" and "ahead" do not mix.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from allocentric.models.spatial_mllm import SpatialMLLMForConditionalGeneration
from allocentric.tasks.notes import number_words, places
from allocentric.train.features import RoomFeatures
from allocentric.train.semantics import PRESENT, token_categories
from allocentric.train.shards import RoomSample, mirror

BLUR = 0.15  # metres: numbers as near as this are nearly as good


def token_places(sample: RoomSample, cell: int) -> Float[np.ndarray, "tokens 2"]:
    """Where notes put the object that covers most of each token, if it covers `PRESENT` of it; else NaN."""
    t, h, w = sample.ids.shape
    cells = sample.ids.reshape(t, h // cell, cell, w // cell, cell).transpose(0, 1, 3, 2, 4).reshape(-1, cell * cell)
    token = np.arange(len(cells))[:, None]
    counts = np.bincount((token * 256 + cells).ravel(), minlength=len(cells) * 256).reshape(-1, 256)
    counts[:, 0] = 0
    table, where = np.full((256, 2), np.nan, np.float32), places(sample.scene)
    if where is not None:
        table[[item.id for item in sample.scene.objects]] = where
    return np.where(counts.max(-1, keepdims=True) >= PRESENT * cell * cell, table[counts.argmax(-1)], np.float32(np.nan))


class NamedRooms(Dataset):
    """Cached features of rooms, and what their tokens show. `see` as in `RoomQuestions`."""

    def __init__(self, features: RoomFeatures, labels: Sequence[str], cell: int, see: Sequence[str]):
        self.features, self.labels, self.cell, self.see = features, labels, cell, see

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        shards, parts = self.features.shards, self.features[index][1]
        sample = shards[index] if index < len(shards) else mirror(shards[index - len(shards)])
        return {f"features_{part}": parts[part] for part in self.see} | {
            "categories": torch.from_numpy(token_categories(sample, self.labels, self.cell)),
            "places": torch.from_numpy(token_places(sample, self.cell)),
        }


class VisualWords(nn.Module):
    """The words that visual tokens can say, as directions of the language model's embeddings: categories, and two numbers."""

    def __init__(self, embedding: Float[Tensor, "vocabulary width"], tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]):
        super().__init__()
        embedding, width = embedding.detach(), embedding.shape[1]
        numbers: Mapping[str, float] = {word: value for word, value in number_words().items() if word.startswith(" ")}
        said = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in (*(f" {label}" for label in labels), *numbers)]
        rows = _unit(torch.stack([embedding[ids].sum(0) for ids in said]))
        generator = torch.Generator().manual_seed(0)
        turns = [torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(2)]
        self.register_buffer("categories", rows[: len(labels)])
        self.register_buffer("numbers", rows[len(labels) :])
        self.register_buffer("values", torch.tensor(list(numbers.values())))
        self.register_buffer("turns", torch.stack(turns))
        self.register_buffer("loudness", embedding.pow(2).mean().sqrt())

    def say(
        self, categories: Float[Tensor, "tokens labels"], places: Float[Tensor, "tokens 2"], noise: float = 0.0
    ) -> Float[Tensor, "tokens width"]:
        """Tokens that say this and nothing else, as loud as words, but for `noise` of so many times a word's length."""
        nearest = (self.values - places.nan_to_num()[..., None]).abs().argmin(-1)
        numbers = torch.einsum("nae,ade->nd", self.numbers[nearest], self.turns) * places.isfinite().all(-1, keepdim=True)
        tokens = categories @ self.categories + numbers
        tokens = tokens + noise * self.categories.pow(2).mean().sqrt() * torch.randn_like(tokens)
        return self.loudness * tokens / tokens.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6)


class Naming(nn.Module):
    """Merger and connector with the loss on what their tokens say. Its own are two gains and a bias per category."""

    def __init__(self, model: SpatialMLLMForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]):
        super().__init__()
        self.backbone = model.model
        self.words = VisualWords(model.get_input_embeddings().weight, tokenizer, labels)
        self.gain = nn.Parameter(torch.full((2,), 4.0))
        self.bias = nn.Parameter(torch.full((len(labels),), -4.0))

    def forward(
        self,
        features_2d: Float[Tensor, "tokens grouped_2d"],
        categories: Float[Tensor, "tokens labels"],
        places: Float[Tensor, "tokens 2"],
        features_3d: Float[Tensor, "kept grouped_3d"] | None = None,
    ) -> dict[str, Tensor]:
        """The loss, and the median error of places in metres (the likeliest number, each way)."""
        words = self.words
        tokens = self.backbone.fuse(features_2d, features_3d).float()
        said = _unit(tokens)
        scores = self.gain[0] * said @ words.categories.T + self.bias
        shown = nn.functional.binary_cross_entropy_with_logits(scores, categories, reduction="none").sum(-1).mean()
        # only directions count above; as loud as words they should stay
        loss, error = shown + (tokens.pow(2).mean().sqrt() / words.loudness).log() ** 2, places.new_zeros(())
        placed = places.isfinite().all(-1)
        if placed.any():
            near = -((words.values - places[placed][..., None]) ** 2) / (2 * BLUR**2)
            scores = self.gain[1] * torch.einsum("nd,ade,ve->nav", said[placed], words.turns, words.numbers)
            loss = loss - 0.5 * (near.softmax(-1) * scores.log_softmax(-1)).sum(-1).sum(-1).mean()
            error = (words.values[scores.argmax(-1)] - places[placed]).abs().median()
        return {"loss": loss, "place_error": error.detach()}


def _unit(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length sqrt(d)^(1/2), so that two of them that point one way have an inner product of sqrt(d)."""
    return nn.functional.normalize(rows, dim=-1) * rows.shape[-1] ** 0.25
