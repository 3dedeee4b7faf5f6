"""`bench run`: what a run adds to its iterations: augmentation, saving, the figures of health, several workers."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from stylegen import presets
from stylegen.config import Config, counted
from stylegen.training.dataset import Dataset, open_dataset
from stylegen.training.distributed import ALONE, Crew
from stylegen.training.health import Watch
from stylegen.training.probe import held, interval, settled
from stylegen.training.saver import Saver
from stylegen.training.schedule import stage_at
from stylegen.training.state import fresh

from .bench_data import EMBEDDED
from .bench_measure import REFERENCE, Row, Samples, interleave, row
from .bench_networks import DTYPE_OF, builder, call_built

P = 0.5  # of `--augment ada`
CPU = torch.device("cpu")
AUGMENTATIONS = {f"--augment ada, p {P}": ("ada",), "--augment color,...": ("color", "translation", "cutout")}
WORKERS = 2
ROWS = len(AUGMENTATIONS) + 2 + WORKERS


def sizes(quick: bool) -> dict[str, int]:
    """The presets that are measured, each at its own resolution."""
    return {"small-32": 8} if quick else {"small-32": 32, "small-64": 64}


def measure(precision: str, repeats: int, quick: bool) -> Iterator[Row]:
    """`ROWS` for each of `sizes`; the baseline of all is an iteration of one worker without what the row adds."""
    for preset, side in sizes(quick).items():
        data = open_dataset(EMBEDDED, size=(side, side))
        config = presets.preset(preset, data.size, data.channels, 0)
        config = replace(config, training=replace(config.training, precision=precision))
        config = settled(config, config.generator.levels - 1, int(config.schedule.batch_default))
        yield from _augmented(config, repeats)
        yield from _kept(config, data, repeats)
        yield from _shared(config, repeats)


def _augmented(config: Config, repeats: int) -> Iterator[Row]:
    """Iterations with augmentation."""
    variants = {REFERENCE: interval(fresh(config, CPU), ALONE)}
    for title, augment in AUGMENTATIONS.items():
        training = replace(config.training, augment=augment, ada_speed_kimg=1e9)  # p stays where it is
        state = fresh(replace(config, training=training), CPU)
        state.ada[0] = P
        variants[title] = interval(state, ALONE)
    samples = interleave(variants, repeats, min_ms=0)
    return (_row(config, samples, title, iterates=True) for title in AUGMENTATIONS)


def _kept(config: Config, data: Dataset, repeats: int) -> Iterator[Row]:
    """What training stands still for while a state is saved, and while the figures of health are taken."""
    state = fresh(config, CPU)
    with tempfile.TemporaryDirectory(prefix="stylegen-bench-") as folder, closing(Saver(Path(folder), 1)) as saver:
        watch, stage = Watch(state, data, Path(folder)), stage_at(config, 0)
        variants: dict[str, Callable[[], object]] = {REFERENCE: interval(state, ALONE)}
        variants[REFERENCE]()  # moments come to be
        save, health = f"save {held(state) / 1e6:.0f} MB", "figures of health"
        variants |= {save: lambda: saver.save(state), "written": saver.wait}
        variants[health] = lambda: watch.figures(state, stage)
        samples = interleave(variants, repeats, min_ms=0)
    yield _row(config, samples, save, written_ms=statistics.median(samples["written"]))
    yield _row(config, samples, health)


def _shared(config: Config, repeats: int) -> Iterator[Row]:
    """The same iterations by workers that have one thread each."""
    with ExitStack() as stack:
        crews = {_workers(size): stack.enter_context(_crew(size, config)) for size in range(1, WORKERS + 1)}
        samples = interleave({REFERENCE: interval(fresh(config, CPU), ALONE)} | crews, repeats, min_ms=0)
    return (_row(config, samples, title, iterates=True) for title in crews)


def _workers(size: int) -> str:
    return f"{counted(size, 'worker')} of one thread"


@contextmanager
def _crew(size: int, config: Config) -> Iterator[Callable[[], None]]:
    """A penalty interval by `size` workers, processes of their own with a thread each."""
    with tempfile.TemporaryDirectory(prefix="stylegen-bench-") as folder, ExitStack() as stack:
        place = Path(folder, "rendezvous").as_uri()
        pools = [stack.enter_context(builder(1, _member, rank, size, place, config)) for rank in range(size)]

        def run() -> None:
            for running in [pool.submit(call_built) for pool in pools]:
                running.result()

        yield run


def _member(rank: int, size: int, place: str, config: Config) -> Callable[[], None]:
    if size > 1:
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    return interval(fresh(config, CPU), Crew(rank, size))


def _row(config: Config, samples: Samples, variant: str, *, iterates: bool = False, **more: Any) -> Row:
    """Against an iteration. iterates: the variant was timed for a penalty interval, as the baseline is."""
    preset, (height, width) = config.preset, stage_at(config, 0).resolution
    batch, every = int(config.schedule.batch_default), config.loss.penalty_interval
    scaled = {REFERENCE: [ms / every for ms in samples[REFERENCE]]}
    scaled[variant] = [ms / every if iterates else ms for ms in samples[variant]]
    if iterates:
        more["pictures_sec"] = 1000 * batch / statistics.median(scaled[variant])
    name = f"{preset} at {width}x{height}, batch {batch}: {variant}"
    return row(name, DTYPE_OF[config.training.precision], scaled, variant, None, **more)
