"""What a reader stumbles over, said in one line that names the file."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from zipfile import BadZipFile

# What parsers of other people's formats raise over odd values; the cause stays chained, so a mistake of ours can still be seen.
STUMBLES = (TypeError, AttributeError, LookupError, ArithmeticError, NotImplementedError, SyntaxError, BadZipFile)


@contextmanager
def named(path: str | PathLike) -> Iterator[None]:
    """Errors from reading what is at `path` become a ValueError that names it; those that do so already pass.

    Readers say by themselves what they expected wherever a file commonly goes wrong. This is for the rest: a word where a number
    should be, a list in place of an object, a size of zero.
    """
    try:
        yield
    except (*STUMBLES, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # no such file, or no right to read it: that says so by itself; without a number it is a picture cut off
        raise ValueError(f"{path}: found something malformed, expected what this format holds ({error!r})") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def check_options(read: Callable, options: Mapping[str, object], path: object) -> None:
    """ValueError for options that the reader of this layout does not take."""
    taken = inspect.signature(read).parameters
    unknown = options.keys() - taken.keys()
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        raise ValueError(f"{path}: found the option {min(unknown)}, which {read.__name__} does not take")
