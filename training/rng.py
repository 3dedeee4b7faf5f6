"""Every random number has a name: it is drawn from (seed, stream, counters) and from nothing else."""

import hashlib
import typing
from collections.abc import Callable, Sequence

if typing.TYPE_CHECKING:
    import torch


def key(seed: int, stream: str, *counters: int) -> int:
    """A 63-bit integer that names one random stream; equal on every machine. `counters` may be any integers."""
    name = repr((int(seed), stream, *map(int, counters))).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, *counters: int, device: str = "cpu") -> "torch.Generator":
    """A torch.Generator on `device`, seeded with `key`."""
    import torch

    return torch.Generator(device).manual_seed(key(seed, stream, *counters))


class Numbers:
    """Random numbers for some samples of a batch: a row a sample, the same whichever samples are asked for."""

    def __init__(self, draw: "torch.Generator", total: int, which: Sequence[int] | None = None):
        """draw: of the CPU; it advances. total: samples in the whole batch; which: their positions, None for all."""
        self._draw, self._total, self._which = draw, total, which

    def uniform(self, count: int) -> "torch.Tensor":
        """[samples, count] in [0, 1)."""
        import torch

        return self._rows(torch.rand, count)

    def normal(self, count: int) -> "torch.Tensor":
        """[samples, count] with mean 0 and deviation 1."""
        import torch

        return self._rows(torch.randn, count)

    def _rows(self, function: "Callable[..., torch.Tensor]", count: int) -> "torch.Tensor":
        rows = function(self._total, count, generator=self._draw)
        return rows if self._which is None else rows[list(self._which)]
