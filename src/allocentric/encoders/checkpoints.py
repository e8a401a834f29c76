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
    return _hub_files(str(located(path)))


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
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        index = Path(hf_hub_download(repository, INDEX))
    except EntryNotFoundError:  # neither there nor, without a network, among what was fetched before
        return {Path(hf_hub_download(repository, FILE)): None}
    return _shards(index, lambda file: hf_hub_download(repository, file))


def located(path: str | Path) -> str | Path:
    """`path`, if it is on this machine or a repository of the Hugging Face hub; "owner/name/inside" is fetched, and is then local.

    What is neither is an error: a path that starts with a folder of this machine is not taken for a repository.
    """
    owner, *names = str(path).split("/")
    if Path(path).exists():
        return path
    if not names or "" in names or owner in ("", ".", "..", "~") or Path(owner).exists() or Path(path).suffix == ".safetensors":
        raise ValueError(f"{path}: found no such file or folder, expected one with weights, or a hub id (owner/name)")
    if len(names) == 1:
        return str(path)
    from huggingface_hub import hf_hub_download, snapshot_download

    repository, inside = f"{owner}/{names[0]}", "/".join(names[1:])
    if Path(inside).suffix:
        return Path(hf_hub_download(repository, inside))
    folder = Path(snapshot_download(repository, allow_patterns=f"{inside}/*")) / inside
    if not folder.is_dir():
        raise ValueError(f"{path}: found no folder {inside} in {repository}, expected one with weights")
    return folder
