"""Reading released weights: only the tensors that are wanted, from one file, from shards, or from the Hugging Face hub."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_tensors(
    path: str | Path, rename: Callable[[str], str | None] = lambda name: name, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Tensors of a checkpoint under the names `rename` gives them; those it answers None for are not read.

    path     a .safetensors file, a folder with `model.safetensors` or shards and their index, or a hub id ("owner/name").
    rename   from the checkpoint's names to ours.
    dtype    default: as stored.
    """
    tensors: dict[str, Tensor] = {}
    for file, names in _files(path).items():
        try:
            with safe_open(file, framework="pt") as stored:
                names = stored.keys() if names is None else names
                if absent := sorted(set(names) - set(stored.keys())):
                    raise ValueError(f"{file}: found no {absent[:3]}, expected them by the index ({len(absent)} in all)")
                for name in names:
                    if (ours := rename(name)) is None:
                        continue
                    if ours in tensors:
                        raise ValueError(f"{file}: found a second tensor for {ours!r} in {name!r}, expected one")
                    tensor = stored.get_tensor(name)
                    tensors[ours] = tensor if dtype is None else tensor.to(dtype)
        except (SafetensorError, FileNotFoundError) as error:
            raise ValueError(f"{file}: expected a readable safetensors file ({error})") from error
    return tensors


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Put `tensors` in place of the module's; missing, unexpected or misshapen ones are an error that names them."""
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(own.keys() & tensors.keys())
            if own[name].shape != tensors[name].shape
        ],
    }
    if any(problems.values()):
        said = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
        raise ValueError(f"{source}: weights do not fit the model; {'; '.join(said)}")
    module.load_state_dict(tensors, assign=True)


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _files(path: str | Path) -> dict[Path, Iterable[str] | None]:
    """Which tensors to look for in which file; None for all."""
    local = Path(path)
    if local.is_file() and local.suffix == ".json":
        return _shards(local, local.parent.joinpath)
    if local.is_file():
        return {local: None}
    if local.is_dir():
        if (local / INDEX).is_file():
            return _shards(local / INDEX, local.joinpath)
        if (local / FILE).is_file():
            return {local / FILE: None}
        raise ValueError(f"{local}: found neither {FILE} nor {INDEX}, expected one of them in the folder")
    if isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~")) and local.suffix != ".safetensors":
        return _hub_files(path)
    raise ValueError(f"{path}: found no such file or folder, expected a .safetensors file, a folder with weights, or a hub id")


def _shards(index: Path, locate: Callable[[str], str | Path]) -> dict[Path, Iterable[str] | None]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{index}: expected a JSON index with a weight_map ({error!r})") from error
    files: dict[str, list[str]] = {}
    for name, file in weight_map.items():
        files.setdefault(file, []).append(name)
    return {Path(locate(file)): names for file, names in files.items()}


def _hub_files(repository: str) -> dict[Path, Iterable[str] | None]:
    from huggingface_hub import file_exists, hf_hub_download

    if file_exists(repository, INDEX):
        return _shards(Path(hf_hub_download(repository, INDEX)), lambda file: hf_hub_download(repository, file))
    return {Path(hf_hub_download(repository, FILE)): None}
