"""How processes end: after a mistake of the user's in one line, and after a run of several without their threads."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mistakes_in_one_line(program: str) -> Iterator[None]:
    """What the user got wrong (ValueError, OSError) is said in one line on stderr, with exit code 2; an interruption with 130."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


def _one_line(error: Exception) -> str:
    """What went wrong, without the traceback that torch puts before what a process that reads data says."""
    said = str(error)
    if "Original Traceback" in said:
        said = said.rpartition(f"\n{type(error).__name__}: ")[2] or said
    return " ".join(said.split())


def end_processes() -> None:
    """Leave torch's process group, if there is one, and join its threads; for a run that has ended well.

    A thread of Gloo's that still holds a tensor when Python shuts down asks for a lock that is gone, and the process aborts.
    Threads end with the last reference to their group, and a model wrapped by a Trainer has one: let go of both before.
    """
    distributed = sys.modules.get("torch.distributed")  # who has not imported it has no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # a Trainer and its parts refer to each other
