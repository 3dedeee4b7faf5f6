"""What a stage of training costs, measured on a state that is thrown away: time, memory, parameters in use."""

import statistics
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stylegen import presets
from stylegen.config import Config

from . import optim
from .distributed import Crew
from .schedule import Stage
from .share import group_of, shares
from .state import TrainState
from .step import iterate

LONG_SEC = 4.0  # of a penalty interval; what takes longer is measured on one group of samples
CPU_SLACK = 2.0  # the process grew by 1.4 to 1.9 times what its tensors took (small-128): scratch, and pieces too small
_MIDDLE = 5 * 10**8  # of a fade of a million kimg


class RandomPictures:
    """Stands for the loader: pictures of noise, drawn once."""

    def __init__(self, config: Config):
        self.config = config
        self.drawn: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def batch(self, images_seen: int, n: int, level: int, which: list[int] | None = None) -> tuple[Tensor, Tensor]:
        g = self.config.generator
        shape = (n if which is None else len(which), g.channels, g.base[0] << level, g.base[1] << level)
        if shape not in self.drawn:
            self.drawn[shape] = torch.randint(0, 256, shape, dtype=torch.uint8), torch.zeros(shape[0], g.label_size)
        return self.drawn[shape]


class Rehearsal(Crew):
    """One worker of many who is alone: the others are taken to have what it has, and nothing travels."""

    def add(self, tensors: list[Tensor]) -> Callable[[], None]:
        return lambda: None

    def all_sum(self, x: Tensor) -> Tensor:
        return x * self.size

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.size)


@dataclass(frozen=True)
class Cost:
    """What one worker spends on a stage. held: bytes of the state and gradients; working: what an iteration adds."""

    seconds: float  # an iteration, averaged over a penalty interval
    held: int
    working: int
    parameters: tuple[int, int]  # of G and D, those in use
    whole: bool  # False: measured on one group of samples and multiplied
    processor: float = 0.0  # seconds of processor time an iteration, all threads together

    @property
    def memory(self) -> int:
        return self.held + self.working


def settled(config: Config, level: int, batch: int, *, fading: bool = False) -> Config:
    """`config` at `level` from its first image on, in batches of `batch`; with `fading`, fading in without end."""
    place: dict[str, Any] = {"initial_level": level - fading, "batch": {}, "batch_default": batch, "gpus": 1}
    place |= {"hold_kimg": 0.0, "fade_kimg": 1e6} if fading else {"hold_kimg": 1e6}
    schedule = replace(config.schedule, batch_max_per_gpu={}, **place)
    return presets.resolve(replace(config, schedule=schedule))


def settle(state: TrainState, stage: Stage, batch: int) -> None:
    """Puts a state that is to be thrown away into a stage that does not end, without gradients or moments."""
    fading = stage.alpha < 1
    state.config = settled(state.config, stage.level, batch, fading=fading)
    state.images_seen = _MIDDLE // batch * batch if fading else 0
    for optimizer in (state.opt_g, state.opt_d):
        optim.reset(optimizer)
        optimizer.zero_grad()
    state.D.requires_grad_(True)  # an iteration that memory ended may have left it otherwise


def interval(state: TrainState, crew: Crew, most: int | None = None) -> Callable[[], None]:
    """A function that trains for one penalty interval on noise, through the very code that a run goes through."""
    loader: Any = RandomPictures(state.config)

    def run() -> None:
        for _ in range(state.config.loss.penalty_interval):
            iterate(state, loader, crew, most=most)

    return run


def probe(state: TrainState, stage: Stage, crew: Crew, most: int | None = None, seconds: float = 4.0) -> Cost:
    """The cost of `stage` for a worker of `crew`, in micro-batches of at most `most`, in `seconds` or little more.

    Where that is long, and on CUDA where it does not fit, one group of samples is measured and the rest multiplied.
    Raises torch.OutOfMemoryError where not even one group fits.
    """
    group = min(group_of(state.config), stage.batch)
    count = sum(len(part.indices) for part in shares(stage.batch, group, crew.rank, crew.size, most))
    at_once = min(most or count, count)
    first = _measured(state, stage, group, Rehearsal(), None, 0.0)
    if group == stage.batch or first.seconds * state.config.loss.penalty_interval * count / group < LONG_SEC:
        try:
            return _measured(state, stage, stage.batch, crew, most, seconds)
        except torch.OutOfMemoryError:
            pass
    working = first.working * at_once // group
    took, processor = (seconds * count / group for seconds in (first.seconds, first.processor))
    return replace(first, seconds=took, working=working, whole=False, processor=processor)


def working(state: TrainState, stage: Stage) -> float:
    """Bytes a sample that an iteration takes beside the state and gradients, measured on one group of samples."""
    group = min(group_of(state.config), stage.batch)
    return _measured(state, stage, group, Rehearsal(), None, 0.0).working / group


def held(state: TrainState) -> int:
    """Bytes of a state as it is."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.tensors().values())


def _measured(state: TrainState, stage: Stage, batch: int, crew: Crew, most: int | None, seconds: float) -> Cost:
    """`seconds` 0: one penalty interval, timed roughly while its memory is watched."""
    settle(state, stage, batch)
    run = interval(state, crew, most)
    loader: Any = RandomPictures(state.config)
    iterate(state, loader, crew, most=most)  # moments come to be
    in_use = [optim.gradients(optimizer) for optimizer in (state.opt_g, state.opt_d)]
    counts = [sum(gradient.numel() for gradient in found) for found in in_use]
    gradients = sum(gradient.numel() * gradient.element_size() for found in in_use for gradient in found)
    del in_use
    for optimizer in (state.opt_g, state.opt_d):
        optimizer.zero_grad()
    times, found = [], []

    def watched() -> None:
        found.append(growth(run, state.device))

    times.append(_clock(watched, state.device))
    if seconds:
        times, end = [], time.perf_counter() + seconds
        while len(times) < 2 or (time.perf_counter() < end and len(times) < 200):
            times.append(_clock(run, state.device))
    took, processor = (statistics.median(of) / state.config.loss.penalty_interval for of in zip(*times, strict=True))
    sizes = held(state) + gradients, max(found[0] - gradients, 0)
    return Cost(took, *sizes, (counts[0], counts[1]), True, processor)


def growth(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that the tensors which `call` makes take at once at most, by CUDA's allocator or by their storages.

    Storages are those that operators return: what an operator takes and gives back inside is not seen.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _Storages() as found:
        call()
    return found.peak


class _Storages(TorchDispatchMode):
    """Counts the bytes of storages from the operator that returns them to their end."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            self._meet(leaf, count=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            self._meet(leaf, count=True)
        return result

    def _meet(self, leaf: object, *, count: bool) -> None:
        if not isinstance(leaf, Tensor) or id(storage := leaf.untyped_storage()) in self.known:
            return
        size = storage.nbytes() if count else 0
        self.known[id(storage)] = weakref.finalize(storage, self._end, id(storage), size)
        self.known[id(storage)].atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _end(self, key: int, size: int) -> None:
        self.now -= size
        self.known.pop(key, None)


def _clock(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(seconds, seconds of processor time) of a call."""
    begin, processor = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - begin, time.process_time() - processor
