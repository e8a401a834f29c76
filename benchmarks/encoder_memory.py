"""Memory of the geometry encoder per frame: only the layer that is read, against every layer kept.

    python benchmarks/encoder_memory.py [--frames 8 16 24 32]

The baseline keeps what the published aggregator keeps: the concatenated frame and global tokens of every pair of blocks, of which
the connector then reads one. Both share the blocks themselves, so their last outputs must be equal bit by bit. Bytes are counted,
not sampled: after every operation, those of all tensors the forward made that something still refers to. Weights and images are in
neither. Per frame means the slope over the number of frames. 24 pairs of blocks as in VGGT-1B, at an eighth of its width.
"""

import sys

import torch
import tyro
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allocentric.encoders.layers import rope_2d
from allocentric.encoders.vggt import VGGTAggregator, VGGTConfig

CONFIG = {"img_size": 140, "embed_dim": 128, "depth": 24, "num_heads": 2, "patch_embed_depth": 2}
HEIGHT, WIDTH = 112, 140  # pixels: 85 tokens per frame


class KeepAllLayers(VGGTAggregator):
    """The published pattern: a list of the tokens after each pair of blocks; who reads them picks from it."""

    def forward(self, images: Tensor) -> list[Tensor]:
        config = self.config
        b, s, _, height, width = images.shape
        grid = (height // config.patch_size, width // config.patch_size)
        x = self._tokens(images)
        tokens, c = x.shape[2:]
        rotation = rope_2d(*grid, config.special_tokens, c // config.num_heads, config.rope_freq, x.device)
        outputs = []
        for frame_block, global_block in zip(self.frame_blocks, self.global_blocks, strict=True):
            within = frame_block(x.view(b * s, tokens, c), rotation)
            x = global_block(within.view(b, s * tokens, c), rotation)
            outputs.append(torch.cat([within.view(b, s, tokens, c), x.view(b, s, tokens, c)], dim=-1))
        return outputs


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations under it made and that are still alive; `peak` is the most there were."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        output = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            # what an operation passes on (a view, an update in place) it has not made
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._storages = {key: kept for key, kept in self._storages.items() if not kept[0].expired()}
        self.peak = max(self.peak, self.live)
        return output

    @property
    def live(self) -> int:
        """Bytes alive after the last operation."""
        return sum(nbytes for _, nbytes in self._storages.values())


def peak_bytes(encoder: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), LiveBytes() as counter:
        encoder(images)
    return counter.peak


def slope(frames: list[int], peaks: list[int]) -> float:
    """Bytes per frame: the least-squares line through the peaks."""
    x, y = torch.tensor(frames, dtype=torch.float64), torch.tensor(peaks, dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def pair(**changes) -> tuple[VGGTAggregator, KeepAllLayers]:
    """Ours and the baseline with the same weights."""
    torch.manual_seed(0)
    config = VGGTConfig(**CONFIG | changes)
    ours, published = VGGTAggregator(config).eval(), KeepAllLayers(config).eval()
    published.load_state_dict(ours.state_dict())
    return ours, published


@torch.no_grad()
def check(ours: VGGTAggregator, published: KeepAllLayers, images: Tensor) -> None:
    """Equal bit by bit, in the last layer and in any other."""
    everything = published(images)
    (last,) = ours(images)
    assert torch.equal(last, everything[-1]), f"the last layer differs by {float((last - everything[-1]).abs().max()):.1e}"
    first, middle = ours(images, layers=(0, len(everything) // 2))
    assert torch.equal(first, everything[0]) and torch.equal(middle, everything[len(everything) // 2]), "an inner layer differs"


def main(frames: tuple[int, ...] = (8, 16, 24, 32)) -> None:
    """Live bytes of the geometry encoder per frame.

    Args:
        frames: numbers of frames through which the slope is laid.
    """
    torch.set_num_threads(1)
    ours, published = pair()
    images = torch.rand(1, max(frames), 3, HEIGHT, WIDTH)
    try:
        check(ours, published, images[:, : min(frames)])
    except AssertionError as error:
        sys.exit(f"parity: {error}")

    depth, width = CONFIG["depth"], CONFIG["embed_dim"]
    print(f"{depth} pairs of blocks, width {width}, float32, {HEIGHT}x{WIDTH} pixels; outputs equal bit by bit")
    print(f"{'peak MB at frames':<28}" + "".join(f"{n:>8}" for n in frames) + f"{'MB/frame':>11}")
    slopes = []
    for label, encoder in (("all layers kept (published)", published), ("only the layer read", ours)):
        peaks = [peak_bytes(encoder, images[:, :n]) for n in frames]
        slopes.append(slope(list(frames), peaks))
        print(f"{label:<28}" + "".join(f"{peak / 1e6:>8.1f}" for peak in peaks) + f"{slopes[-1] / 1e6:>11.3f}")
    print(f"ratio {slopes[0] / slopes[1]:.1f}x")


if __name__ == "__main__":
    tyro.cli(main)
