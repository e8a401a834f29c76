"""Loading of whole models: a config or weights that do not fit are an error of one line that names what does not."""

from collections.abc import Mapping
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
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would print a page of names; what is wrong is said below
    try:
        model, report = kind.from_pretrained(path, config=config, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected readable safetensors files ({error})") from error
    finally:
        logging.set_verbosity(level)
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
