"""`bench data`: batches from the level cache against what training consumes, `dataset build` against Pillow alone."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image

from stylegen import presets
from stylegen.config import resolution_of, size_text
from stylegen.training import pictures
from stylegen.training.build import build_dataset
from stylegen.training.dataset import Loader, open_dataset
from stylegen.training.listing import open_listing
from stylegen.training.probe import settled

from .bench_measure import REFERENCE, Floor, Row, interleave, row
from .bench_networks import iteration

EMBEDDED = "emoji-people-64"


def level_cache(floor: Floor, data: str, precision: str, repeats: int, quick: bool) -> Iterator[Row]:
    """A row a stage of small-64: one batch (random order, flips, no threads) against one training iteration."""
    opened = open_dataset(data)
    config = presets.small_64(opened.size, opened.channels, 0)
    g, device = config.generator, torch.device("cpu")
    loader = Loader(opened, base=g.base, levels=g.levels, seed=0, mirror=True, cond=False, workers=0)
    with loader:
        for level in range(g.levels)[: 2 if quick else None]:
            here = settled(config, level, int(config.schedule.batch_default))
            batch, interval = int(here.schedule.batch_default), here.loss.penalty_interval
            train = iteration(here, device, precision)
            samples = interleave({"batch": _deliver(loader, batch, level), REFERENCE: train}, repeats)
            samples[REFERENCE] = [ms / interval for ms in samples[REFERENCE]]
            size = batch * g.channels * torch.Size(resolution_of(g, level)).numel()
            name = f"batch of {batch} at {size_text(resolution_of(g, level))}"
            rate = 1000 * batch / sorted(samples["batch"])[repeats // 2]
            yield row(name, "uint8", samples, "batch", floor.ms("uint8", 2 * size), pictures_sec=rate)


def _deliver(loader: Loader, n: int, level: int) -> Callable[[], object]:
    seen = 0

    def deliver() -> object:
        nonlocal seen
        seen += n
        return loader.batch(seen, n, level)

    return deliver


def build(sources: list[str], size: int, workers: int, repeats: int) -> Iterator[Row]:
    """A row a source: `dataset build` against Pillow that decodes and resizes the same pictures on as many threads."""
    folder = Path(tempfile.mkdtemp(prefix="stylegen-bench-"))
    try:
        for source in sources:
            dest = folder / "built.zip"
            written = 0
            bad = {name for name, _ in build_dataset(source, dest, size=(size, size), workers=workers).skipped}

            def ours(source: str = source, dest: Path = dest) -> None:
                nonlocal written
                written = build_dataset(source, dest, size=(size, size), workers=workers).written

            samples = interleave({"build": ours, REFERENCE: _pillow(source, size, workers, bad)}, repeats, min_ms=0)
            rate = 1000 * written / sorted(samples["build"])[repeats // 2]
            name = f"build {written} pictures of {Path(source).stem} at {size}x{size}, {workers} threads"
            yield row(name, "uint8", samples, "build", None, pictures_sec=rate)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _pillow(source: str, size: int, workers: int, bad: set[str]) -> Callable[[], object]:
    """Decodes every picture but the bad and resizes it by Lanczos (palettes as colours, else it does not filter)."""
    from stylegen.training.sources import open_source

    opened = open_source(source)
    listing = open_listing(opened.path)

    def one(name: str) -> None:
        if name.lower().endswith(pictures.SUFFIXES):
            with listing.open(name) as file, Image.open(file) as image:
                colors = pictures.normalize(image) if image.mode == "P" else image
                colors.resize((size, size), Image.Resampling.LANCZOS)

    def all_of_them() -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, [name for name in opened.names if name not in bad]))

    return all_of_them
