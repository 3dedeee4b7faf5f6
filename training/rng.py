"""Every random number has a name: it is drawn from (seed, stream, counters) and from nothing else."""

import hashlib
import typing

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
