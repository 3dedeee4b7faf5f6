"""`--micro-batch`: how many samples a worker computes at a time at each level, and how many fit into its memory."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from stylegen.config import Config, size_text
from stylegen.errors import UserError
from stylegen.memory import available

from .distributed import Crew
from .probe import CPU_SLACK, RandomPictures, Rehearsal, held, settle, working
from .schedule import Stage, spans
from .share import group_of, mixes, shares
from .state import TrainState, fresh
from .step import iterate

HEADROOM = 0.1  # of the memory, left free
FAR = 0.25  # of the memory: an estimate below needs no measurement
Fits = Callable[[Stage, int], bool]  # whether a stage finds room with so many samples at a time


def limits(
    wanted: int | str | None,
    config: Config,
    first: int,
    device: torch.device,
    crew: Crew,
    neighbours: int | None = None,
) -> tuple[dict[int, int], list[str]]:
    """(the most samples at a time by level, what there is to say) from image `first` on; no entry: all of them.

    wanted: a number, "auto" or None. neighbours: workers on this machine, 0: as the launcher says. Each worker
    decides for itself: parts of any size make up the same whole. Raises UserError for a stage of which not even one
    group of samples fits.
    """
    if wanted != "auto":
        return dict.fromkeys(range(config.generator.levels) if wanted else (), int(wanted or 0)), []
    crew.begin("choosing micro-batches")
    rehearsal = Rehearsal(crew.rank, crew.size)
    neighbours = neighbours or (int(os.environ.get("LOCAL_WORLD_SIZE", crew.size)) if crew.size > 1 else 1)
    return choose(config, first, rehearsal, fitting(config, device, rehearsal, neighbours))


def choose(config: Config, first: int, crew: Crew, fits: Fits) -> tuple[dict[int, int], list[str]]:
    """What `limits` returns for "auto", by what `fits`. Raises UserError as it does."""
    chosen, lines = dict[int, int](), []
    for (start, _), stage in _levels_ahead(config, first):
        group = min(group_of(config), stage.batch)
        count = sum(len(share.indices) for share in shares(stage.batch, group, crew.rank, crew.size))
        whole = mixes(config) or (stage.batch % group and f"groups of {group} do not divide the batch of {stage.batch}")
        size = size_text(stage.resolution)
        where = f"{size} (from {start / 1000:g} kimg on)"
        found = largest(partial(fits, stage), count, count if whole else group)
        if found is None and whole:
            lines.append(
                f"Warning: {count} pictures at a time may not fit into memory at {where}, and {whole} needs the whole "
                "batch: give a smaller --batch"
            )
        elif found is None:
            raise UserError(
                f"--micro-batch auto: not even {group} pictures at a time fit into the memory of this device at {where}"
                "; give a lower --resolution, fewer channels (--set generator.fmap_max=..., discriminator.fmap_max), "
                "--precision bf16, or another --device"
            )
        elif found < count:
            chosen[stage.level] = found
            lines.append(f"Micro-batches of {found} at {size}: {count} pictures at a time do not fit into memory")
    return chosen, lines


def largest(fits: Callable[[int], bool], count: int, group: int) -> int | None:
    """The first of `count`, a half, a quarter, ... in whole groups, that fits; None if not even one group does."""
    groups = -(-count // group)
    while True:
        if fits(min(groups * group, count)):
            return min(groups * group, count)
        if groups == 1:
            return None
        groups = -(-groups // 2)


def fitting(config: Config, device: torch.device, crew: Crew, neighbours: int = 1) -> Fits:
    """How to find out on `device`, which so many other workers use too: by trying on CUDA, else by an estimate."""
    if device.type == "cuda":
        return _by_trying(fresh(config, device), crew)
    room = available() // neighbours
    return _by_estimate(fresh(config, device), room) if room else lambda stage, n: True


def tried(attempt: Callable[[Stage, int], None]) -> Fits:
    """Whether `attempt` gets through, by the errors of PyTorch's allocators."""

    def fits(stage: Stage, n: int) -> bool:
        try:
            attempt(stage, n)
        except torch.OutOfMemoryError:
            return False
        return True

    return fits


def _by_trying(state: TrainState, crew: Crew) -> Fits:
    def attempt(stage: Stage, n: int) -> None:
        settle(state, stage, stage.batch)
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(state.device)
        room = free + torch.cuda.memory_reserved(state.device)
        torch.cuda.reset_peak_memory_stats(state.device)
        loader: Any = RandomPictures(state.config)
        for _ in range(1 + state.config.loss.penalty_interval):  # one of them with penalties, moments and gradients
            iterate(state, loader, crew, most=n)
        if torch.cuda.max_memory_reserved(state.device) > (1 - HEADROOM) * room:
            raise torch.OutOfMemoryError

    return tried(attempt)


def _by_estimate(state: TrainState, room: int) -> Fits:
    """By the bytes a sample at a level, measured, or bounded by those of a lower one where that is enough.

    A level more has at most four times the values in each layer, as channels do not grow, and a few more layers.
    """
    measured: dict[int, float] = {}
    fixed = 3 * held(state)  # with gradients and moments, and the copy of which a state is saved

    def fits(stage: Stage, n: int) -> bool:
        lower = max((level for level in measured if level <= stage.level), default=None)
        bound = measured[lower] * 5 ** (stage.level - lower) if lower is not None else float("inf")
        if bound * n + fixed > FAR * room:
            measured.setdefault(stage.level, CPU_SLACK * working(state, stage))
            bound = measured[stage.level]
        return bound * n + fixed <= (1 - HEADROOM) * room

    return fits


def _levels_ahead(config: Config, first: int) -> Iterator[tuple[tuple[int, int], Stage]]:
    """The span of each level that takes most: where it fades in, if it still does."""
    seen = set()
    for span, stage in spans(config, first):
        if stage.level not in seen:
            seen.add(stage.level)
            yield span, stage
