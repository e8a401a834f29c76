"""Loading of whole models: a config or weights that do not fit are an error of one line that names what does not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

M = TypeVar("M", bound=PreTrainedModel)
C = TypeVar("C", bound=PreTrainedConfig)


def read_config(path: str | Path) -> dict[str, Any]:
    """The `config.json` in a folder or hub repository, as it is written."""
    config, _ = PreTrainedConfig.get_config_dict(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: config.json: found {config!r}, expected a JSON object of the model's settings")
    return config


def make_config(kind: type[C], source: str | Path, fields: Mapping[str, Any]) -> C:
    """A config of this class; `source` is where its fields are from, for messages."""
    try:
        return kind(**fields)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from error


def check_config(kind: type[PreTrainedConfig], source: str | Path, keys: object) -> None:
    """ValueError for what a config of this class does not know or take. For recipes: a config.json may hold further keys."""
    _check_keys(kind, source, keys)
    with _quiet():  # transformers would warn of what a recipe leaves open, such as ids of tokens
        make_config(kind, source, deepcopy(keys))  # and writes into what it is given


def _check_keys(kind: type[PreTrainedConfig], source: str | Path, keys: object) -> None:
    known, common = ({field.name for field in fields(one)} for one in (kind, PreTrainedConfig))
    if not isinstance(keys, Mapping):
        raise ValueError(f"{source}: found {keys!r}, expected keys among {sorted(known - common)}")
    # transformers 5 moved `tie_word_embeddings` out of text configs, and still looks for it there
    if unknown := keys.keys() - known - {"tie_word_embeddings"}:
        raise ValueError(f"{source}: found unknown {sorted(unknown, key=str)}, expected keys among {sorted(known - common)}")
    for name, inner in kind.sub_configs.items():
        if keys.get(name) is not None:
            _check_keys(inner, f"{source}: {name}", keys[name])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of transformers."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_weights(
    kind: type[M],
    path: str | Path,
    config: PreTrainedConfig,
    new: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    **kwargs,
) -> M:
    """A model of this class with the weights at `path`, in eval mode; `kwargs` go to `from_pretrained`.

    new        beginnings of names that the checkpoint need not have: these parameters are drawn.
    left_out   beginnings of names that may be in the checkpoint and are not read.
    Other missing, unexpected or misshapen tensors are an error.
    """
    try:
        with _quiet():  # transformers would print a page of names; what is wrong is said below
            model, report = kind.from_pretrained(
                path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except SafetensorError as error:
        raise ValueError(f"{path}: expected readable safetensors files ({error})") from error
    problems = {
        "missing": sorted(name for name in report["missing_keys"] if not name.startswith(new)),
        "unexpected": sorted(name for name in report["unexpected_keys"] if not name.startswith(left_out)),
        "of another shape": [
            f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in sorted(report["mismatched_keys"])
        ],
    }
    if any(problems.values()):
        more = lambda names: f" and {len(names) - 8} more" if len(names) > 8 else ""  # noqa: E731
        said = [f"{what} {names[:8]}{more(names)}" for what, names in problems.items() if names]
        raise ValueError(f"{path}: checkpoint does not fit the model: {'; '.join(said)}")
    return model.eval()
