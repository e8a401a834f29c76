"""Work counted instead of timed: FLOPs of both ways to ask, and host synchronisations.

    python benchmarks/counts.py [--frames 16] [--new-tokens 4]

FLOPs of 18 questions on one video by torch's counter: encoded for every question as in the published pattern (`questions.py`), and
encoded once. Host synchronisations are operations whose result the processor has to wait for: on a GPU each one drains the queue,
and none may stand in a CUDA graph. The published VGGT has two in every attention block, where RoPE reads its largest position.
"""

import sys
from contextlib import AbstractContextManager
from typing import Self

import torch
import tyro
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from _nano import clip, nano, prompts
from allocentric.encoders.vggt import VGGT
from allocentric.models.scene import Scene
from questions import ask_one_by_one, check, never_end

aten = torch.ops.aten
# Operations whose result, or its shape, only the data determines ...
WAITING = {getattr(aten, name) for name in "_local_scalar_dense equal is_nonzero masked_select nonzero repeat_interleave".split()}
WAITING |= {aten._unique2, aten.unique_dim}
# ... and methods that may read memory directly when it is the host's already.
READING = {getattr(Tensor, name) for name in "item tolist numpy cpu __bool__ __int__ __float__ __index__".split()}


class HostSyncs(AbstractContextManager):
    """Counts host synchronisations, on a CPU too."""

    def __init__(self):
        self.count = 0
        self._modes = (_Operations(self), _Methods(self))

    def __enter__(self) -> Self:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Operations(TorchDispatchMode):
    def __init__(self, syncs: HostSyncs):
        super().__init__()
        self.syncs = syncs

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        by_mask = operation.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.syncs.count += operation.overloadpacket in WAITING or by_mask
        return operation(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, syncs: HostSyncs):
        super().__init__()
        self.syncs = syncs

    def __torch_function__(self, function, types, args=(), kwargs=None):
        before = self.syncs.count
        output = function(*args, **(kwargs or {}))
        if function in READING:  # once, whether or not it also reached an operation
            self.syncs.count = before + 1
        return output


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def main(frames: int = 16, new_tokens: int = 4) -> None:
    """FLOPs and host synchronisations.

    Args:
        frames: frames the model sees.
        new_tokens: tokens of each answer.
    """
    torch.set_num_threads(1)
    (model, processor), views, questions = nano(), clip(frames), prompts()
    never_end(model)
    try:
        check(model, processor, views, questions, new_tokens)
    except AssertionError as error:
        sys.exit(f"parity: {error}")

    published = flops(lambda: ask_one_by_one(model, processor, views, questions, new_tokens))
    encode = flops(lambda: Scene.encode(model, processor, views))
    scene = Scene.encode(model, processor, views)
    ask = flops(lambda: scene.ask(questions, new_tokens))
    print(f"{len(questions)} questions, {frames} frames, {new_tokens} tokens each")
    print(f"{'GFLOP, encode for every question':<44}{published / 1e9:>10.1f}")
    print(f"{'GFLOP, encode once':<44}{(encode + ask) / 1e9:>10.1f}   (encode {encode / 1e9:.1f}, ask {ask / 1e9:.1f})")
    print(f"{'ratio':<44}{published / (encode + ask):>9.1f}x")

    vggt = VGGT(model.config.spatial_config).eval()
    images = views.frames[None].float() / 255
    with torch.no_grad(), HostSyncs() as aggregator:
        vggt.aggregator(images)
    with torch.no_grad(), HostSyncs() as heads:
        vggt(images)
    with HostSyncs() as asking:
        scene.ask(questions, new_tokens)
    blocks = 2 * model.config.spatial_config.depth
    print(f"{'host synchronisations, VGGT aggregator':<44}{aggregator.count:>10}   (published: {2 * blocks}, two per block)")
    print(f"{'host synchronisations, VGGT with its heads':<44}{heads.count:>10}")
    print(f"{'host synchronisations, asking':<44}{asking.count:>10}")
    if aggregator.count or heads.count:
        sys.exit("VGGT waits for its own results")


if __name__ == "__main__":
    tyro.cli(main)
