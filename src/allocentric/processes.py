"""The end of a run in several processes."""

import gc
import sys


def end_processes() -> None:
    """Leave torch's process group, if there is one, and join its threads; for a run that has ended well.

    A thread of Gloo's that still holds a tensor when Python shuts down asks for a lock that is gone, and the process aborts.
    Threads end with the last reference to their group, and a model wrapped by a Trainer has one: let go of both before.
    """
    distributed = sys.modules.get("torch.distributed")  # who has not imported it has no group
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()  # a Trainer and its parts refer to each other
