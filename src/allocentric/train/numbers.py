"""A start for the embeddings of numbers: near numbers begin alike.

A language model from scratch sees two hundred number tokens as two hundred unrelated words and has to learn their order from
examples. Random Fourier features (Rahimi and Recht, 2007) of their values give it from the start; with tied embeddings what it
writes begins smooth as well.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def number_features(values: Sequence[float], width: int, std: float, seed: int = 0) -> Float[Tensor, "n width"]:
    """One row per value, of standard deviation `std`; the inner product of two rows falls with the distance of their values.

    Half of the channels look at the value itself, on scales from 0.3 to 3, half at its logarithm (of 1 + |value|, with the sign),
    on scales from 0.05 to 0.5, so that 150 and 160 are as near as 1.5 and 1.6.
    """
    generator = torch.Generator().manual_seed(seed)
    half = width // 2
    value = torch.tensor(values, dtype=torch.float32)[:, None]
    logarithm = value.abs().log1p() * value.sign()
    octave = torch.rand(width, generator=generator)
    scale = torch.cat([0.3 * 10 ** octave[:half], 0.05 * 10 ** octave[half:]])
    frequency = torch.randn(width, generator=generator) / scale
    phase = 2 * math.pi * torch.rand(width, generator=generator)
    place = torch.cat([value.expand(-1, half), logarithm.expand(-1, width - half)], dim=1)
    return std * math.sqrt(2) * (place * frequency + phase).cos()
