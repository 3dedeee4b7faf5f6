"""Which picture comes when: an order of its own for each epoch, a pure function of the seed."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .rng import key


def order(seed: int, starts: np.ndarray, window: int = 0) -> Callable[[int], int]:
    """A function from the number of an item, counted from the start of the run, to the number of a picture.

    starts: int64 [S + 1], the first picture of each shard, then the number N of pictures. Each epoch, of N items,
    shows every picture once. It is a permutation of all pictures where `window` is 0 or there are no more shards than
    that. Else the shards are shuffled and parted into groups of at most `window`, equally many to within one, and the
    pictures of a group are shuffled: so long no other shard is read, and memory is taken for a group only.
    """
    count, shards = int(starts[-1]), len(starts) - 1
    if not 0 < window < shards:
        permutation = lru_cache(maxsize=2)(lambda epoch: _draw(seed, "order", epoch).permutation(count))
        return lambda item: int(permutation(item // count)[item % count])

    @lru_cache(maxsize=2)
    def groups(epoch: int) -> tuple[list[np.ndarray], np.ndarray]:
        """(the shards of each group, the position at which it ends)."""
        parts = np.array_split(_draw(seed, "shards", epoch).permutation(shards), -(-shards // window))
        return parts, np.cumsum([(starts[part + 1] - starts[part]).sum() for part in parts])

    @lru_cache(maxsize=2)
    def pictures(epoch: int, group: int) -> np.ndarray:
        ranges = [np.arange(starts[shard], starts[shard + 1]) for shard in groups(epoch)[0][group]]
        return _draw(seed, "window", epoch, group).permutation(np.concatenate(ranges))

    def at(item: int) -> int:
        epoch, position = divmod(item, count)
        ends = groups(epoch)[1]
        group = int(np.searchsorted(ends, position, "right"))
        return int(pictures(epoch, group)[position - (ends[group - 1] if group else 0)])

    return at


def _draw(seed: int, stream: str, *counters: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(key(seed, stream, *counters)))
