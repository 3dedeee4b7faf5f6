"""What a run is going to take: time, memory and disk, from short measurements of every stage that it has before it."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from stylegen.checkpoint import save_network
from stylegen.config import Config, size_text
from stylegen.errors import UserError

from . import micro
from .dataset import Dataset
from .distributed import share_statistics
from .levels import MAX_SIDE, is_built, to_cache
from .probe import Cost, Rehearsal, held, probe
from .report import preview, save_reals
from .schedule import Stage, spans, total_images
from .share import group_of, shares
from .state import TrainState, fresh

BUDGET_SEC = 20.0  # of timed iterations, over all stages
Span = tuple[tuple[int, int], Stage]


@dataclass(frozen=True)
class How:
    """How a run is to be trained: `loop.train`'s arguments, and the number of workers, all on this machine."""

    device: torch.device
    gpus: int = 1
    workers: int = 2
    cache: str = "auto"
    micro_batch: int | str | None = None


@dataclass(frozen=True)
class Part:
    """A level held, or a fade: images `first` to `last` - 1, and what the busiest worker spends on it."""

    first: int
    last: int
    stage: Stage
    share: int  # samples of a batch that the worker computes
    most: int  # of them at a time
    cost: Cost
    seconds: float  # of all iterations
    preview_sec: float = 0.0  # of one

    @property
    def sec_per_kimg(self) -> float:
        return 1000 * self.seconds / (self.last - self.first)


@dataclass(frozen=True)
class Plan:
    """Seconds, and files as (how many, bytes of each)."""

    parts: list[Part]
    start_sec: float
    output_sec: float  # of previews, networks and the last state
    networks: tuple[int, int]
    states: tuple[int, int]
    previews: tuple[int, int]
    notes: list[str]  # on micro-batches

    @property
    def total_sec(self) -> float:
        return self.start_sec + sum(part.seconds for part in self.parts) + self.output_sec

    @property
    def alone_sec(self) -> float:
        """`total_sec` with nothing else on the processor: of one thread, by its processor time."""
        return self.total_sec - sum(part.seconds * (1 - part.cost.processor / part.cost.seconds) for part in self.parts)

    @property
    def disk(self) -> int:
        return sum(count * size for count, size in (self.networks, self.states, self.previews))


def make(
    config: Config, dataset: Dataset, first: int, how: How, shown: Callable[[list[Span]], Iterable[Span]] = iter
) -> Plan:
    """The plan of a run from image `first` on. `shown` passes on the stages to measure, for a progress bar.

    Raises UserError where not even one group of samples fits into memory.
    """
    before, began = time.process_time(), time.monotonic()  # before: imports, the data opened
    crew = Rehearsal(how.gpus - 1, how.gpus)  # the last worker has most to do where batches do not divide
    state = fresh(config, how.device)
    for network in (state.G, state.D):
        share_statistics(network, crew)
    start_sec = before + time.monotonic() - began
    most, notes = micro.limits(how.micro_batch, config, first, how.device, crew, how.gpus)
    decode_sec, ahead = _decode_sec(dataset), list(spans(config, first))
    with tempfile.TemporaryDirectory(prefix="stylegen-") as name:
        sheet, saved, reals = (Path(name) / file for file in ("preview.png", "network.safetensors", "reals.png"))
        start_sec += _clock(lambda: save_reals(config, dataset, reals)) + _cache_sec(config, dataset, how, decode_sec)
        parts = []
        for span in shown(ahead):
            part = _part(state, span, crew, how, most.get(span[1].level), BUDGET_SEC / len(ahead), decode_sec)
            parts.append(replace(part, preview_sec=_clock(lambda: preview(state, sheet))))
        network_sec = _clock(lambda: save_network(saved, state.G_ema, {}))
        network_bytes, sheet_bytes = saved.stat().st_size, reals.stat().st_size
    output = config.output
    cadences = output.snapshot_kimg, output.preview_kimg
    networks, previews = (_count(kimg, first, total_images(config)) for kimg in cadences)
    output_sec = sum(_count(output.preview_kimg, part.first, part.last, 0) * part.preview_sec for part in parts)
    output_sec += parts[-1].preview_sec + network_sec * (networks + held(state) / network_bytes)
    return Plan(
        parts=parts,
        start_sec=start_sec + (0.0 if first else parts[0].preview_sec),
        output_sec=output_sec,
        networks=(min(networks, output.keep_networks + 1) if output.keep_networks else networks, network_bytes),
        states=(output.keep_states + 1, held(state)),  # one is being written
        previews=(previews + (not first), sheet_bytes),
        notes=notes,
    )


def _part(
    state: TrainState, span: Span, crew: Rehearsal, how: How, most: int | None, budget: float, decode: float
) -> Part:
    """The cost of a span, measured for `budget` seconds; decode: seconds a picture."""
    (start, end), stage = span
    loss, group = state.config.loss, min(group_of(state.config), stage.batch)
    count = sum(len(share.indices) for share in shares(stage.batch, group, crew.rank, crew.size))
    try:
        cost = probe(state, stage, crew, most, budget)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{size_text(stage.resolution)} (from {start / 1000:g} kimg on) does not fit into the memory of "
            f"{how.device}, not even with {group} pictures at a time; give a lower --resolution, or another --device"
        ) from error
    reading = 0.0  # by threads: beside computing on a GPU, on the same cores otherwise
    if max(stage.resolution) > MAX_SIDE or how.cache == "none":
        reading = loss.n_critic * count * decode / max(how.workers, 1)
    together = max(cost.seconds, reading) if how.device.type == "cuda" else cost.seconds + reading
    steps = (end - start) / (stage.batch * loss.n_critic)
    return Part(start, end, stage, count, min(most or count, count), cost, steps * together)


def _count(kimg: float, first: int, last: int, ends: int = 1) -> int:
    """How many multiples of `kimg` are in (first, last]; `ends`: and that many more where none is at the end."""
    return int(last // (1000 * kimg) - first // (1000 * kimg)) + (ends if last % (1000 * kimg) else 0)


def _clock(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _decode_sec(dataset: Dataset) -> float:
    """Seconds to read a picture, from a few of them."""
    which = range(0, len(dataset), max(len(dataset) // 8, 1))
    return statistics.median(_clock(partial(dataset.read, i)) for i in which)


def _cache_sec(config: Config, dataset: Dataset, how: How, decode_sec: float) -> float:
    """Seconds to build the level cache, where that is still to be done."""
    reductions = to_cache(dataset.size, config.generator.levels)
    return 0.0 if is_built(dataset, reductions, how.cache) else len(dataset) * decode_sec / max(how.workers, 1)
