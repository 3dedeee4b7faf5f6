"""How a batch is shared out: among workers, and into the micro-batches of each, so that the parts make up the whole."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from stylegen.config import GROWING, Config
from stylegen.errors import UsageError

from .schedule import spans


@dataclass(frozen=True)
class Share:
    """The samples at `indices` of a batch of `total`."""

    total: int
    indices: tuple[int, ...]

    @property
    def weight(self) -> float:
        """What a mean over these samples counts in the mean over all."""
        return len(self.indices) / self.total

    def of(self, rows: Tensor) -> Tensor:
        """The rows of these samples, from [total, ...]."""
        return rows if len(self.indices) == self.total else rows[list(self.indices)]


def shares(total: int, group: int, worker: int = 0, workers: int = 1, most: int | None = None) -> list[Share]:
    """The micro-batches of one worker, of at most `most` samples but whole groups: minibatch stddev stays the same.

    Sample i belongs to group i mod (total / group), and keeps its place within it.
    """
    size = min(group, total)
    groups = total // size
    first, last = (groups * count // workers for count in (worker, worker + 1))
    pieces = -(-(last - first) // max((most or total) // size, 1))
    if total % size:  # one share of everything: `check` refuses to split it
        return [Share(total, tuple(range(total)))]
    return [Share(total, tuple(_samples(groups, size, *ends))) for ends in _even(first, last, pieces)]


def group_of(config: Config) -> int:
    """How many samples D looks at together."""
    d = config.discriminator
    return max(d.mbstd_group, 1) if d.family in GROWING and d.mbstd_features else 1


def mixes(config: Config) -> str:
    """What lets every sample of a batch act on all others ("batch norm"), or ""."""
    g, d = config.generator, config.discriminator
    found = {
        "batch norm": g.family == "dcgan" and "batch" in (g.norm, d.norm),
        "minibatch discrimination": d.mbdisc_features > 0,
        "feature matching": config.loss.feature_matching > 0,
    }
    return ", ".join(name for name, there in found.items() if there)


def check(config: Config, workers: int, micro: int | None) -> None:
    """micro: samples at a time, None for all. Raises UsageError where a batch of the run cannot be split that way."""
    if micro and (how := mixes(config)):
        raise UsageError(
            f"--micro-batch: {how} looks at the whole batch at once, which parts of it would change; leave the option "
            "out, or use a network or loss without it"
        )
    if workers == 1 and not micro:
        return
    for _, stage in spans(config):
        size = min(group_of(config), stage.batch)
        if stage.batch % size:
            raise UsageError(
                f"a batch of {stage.batch} cannot be split: minibatch stddev looks at groups of {size}; give a --batch "
                f"that {size} divides, or --set discriminator.mbstd_group"
            )
        if stage.batch // size < workers:
            raise UsageError(
                f"{workers} workers are too many for a batch of {stage.batch}: it has {stage.batch // size} groups of "
                f"{size} (minibatch stddev); use at most {stage.batch // size} workers, or a larger --batch"
            )
        if micro and micro < size:
            raise UsageError(
                f"--micro-batch {micro} is less than a group of minibatch stddev, {size}; give at least {size}"
            )


def _samples(groups: int, size: int, first: int, last: int) -> Iterator[int]:
    """Those of the groups first to last - 1, ordered so that they are strided groups of a smaller batch too."""
    for place in range(size):
        yield from range(place * groups + first, place * groups + last)


def _even(first: int, last: int, pieces: int) -> Iterator[tuple[int, int]]:
    for i in range(pieces):
        yield first + (last - first) * i // pieces, first + (last - first) * (i + 1) // pieces
