"""Rebuild the weights and inputs of a parity case, which are seeded by name instead of stored."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent


def case(name: str) -> tuple[dict, dict[str, Tensor]]:
    """`case.json` and the stored inputs and expected outputs of a case."""
    folder = HERE / name
    return json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")


def seeded_weights(case: dict) -> dict[str, Tensor]:
    """Every parameter of the published module, float32, by its published name."""
    salt, override = case.get("salt", ""), case.get("override", {})
    weights = {}
    for name, shape in case["parameters"].items():
        values = np.random.default_rng(zlib.crc32((name + salt).encode())).standard_normal(shape, dtype=np.float32)
        if name in override:
            values = np.asarray(override[name], dtype=np.float32).reshape(shape)
        elif len(shape) >= 2:
            values = np.float32(0.06) * values
        elif "gamma" in name:
            values = np.float32(0.5) + np.float32(0.2) * values
        elif name.endswith("weight"):
            values = 1 + np.float32(0.1) * values
        else:
            values = np.float32(0.05) * values
        weights[name] = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return weights


def seeded_floats(seed: int, shape: list[int]) -> Tensor:
    """Uniform in [0, 1)."""
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def seeded_images(seed: int, shape: list[int]) -> Tensor:
    """uint8, 0 to 255."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the expected tensor's largest absolute value."""
    assert found.shape == expected.shape, f"found shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    return float((found - expected).abs().max() / expected.abs().max())
