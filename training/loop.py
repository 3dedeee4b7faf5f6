"""The training loop: from a config and data to a run folder, interrupted and resumed at will."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegen import __version__, config as configs
from stylegen.checkpoint import save_network
from stylegen.config import Config
from stylegen.errors import UserError
from stylegen.files import exclusive, remove_leftovers, write_atomic

from .dataset import Dataset, Loader
from .health import Watch
from .measure import Meter, best_path, best_so_far, better, numbers, told
from .pictures import describe
from .report import Reporter, preview, save_reals, stage_text
from .schedule import due, stage_at, total_images
from .state import STATE_NAME, TrainState, fresh
from .step import iterate

SAVE_EVERY_SEC = 300.0
FIRST_PREVIEW_SEC = 30.0


def train(config: Config, run_dir: Path, dataset: Dataset, *, device: torch.device, workers: int = 2) -> TrainState:
    """Trains until `config.schedule.total_kimg`, going on with the state in `run_dir` if there is one.

    Writes config.json, log.txt, stats.jsonl, reals.png, previews, networks and state.ckpt into `run_dir`. SIGINT and
    SIGTERM finish the iteration and save. Raises UserError for a state that does not fit and for a non-finite loss,
    OSError where a file cannot be written; the last saved state stays in every case.
    """
    previews = run_dir / "previews"
    previews.mkdir(parents=True, exist_ok=True)
    with exclusive(run_dir):
        for folder in (run_dir, previews):
            remove_leftovers(folder)
        state = _open(config, run_dir, device)
        config, g = state.config, state.config.generator
        loader = Loader(
            dataset,
            base=g.base,
            levels=g.levels,
            seed=config.training.seed,
            mirror=config.training.mirror,
            cond=g.label_size > 0,
            workers=workers,
        )
        reporter = Reporter(config, run_dir, state.images_seen)
        try:
            with loader, _stop_signals() as stop:
                _begin(state, run_dir, loader, reporter)
                _run(state, run_dir, loader, reporter, stop)
        except (UserError, OSError) as error:
            with suppress(OSError):
                reporter.log(f"Error: {error}", show=False)
            raise
        finally:
            reporter.close()
    return state


def _open(config: Config, run_dir: Path, device: torch.device) -> TrainState:
    config = configs.from_dict(Config, configs.to_dict(config))  # as it is read back: 8 in a table becomes 8.0
    state = fresh(config, device)
    if (run_dir / STATE_NAME).exists():
        state.load(run_dir / STATE_NAME)
        state.config = config
    write_atomic(run_dir / "config.json", json.dumps(configs.to_dict(config), indent=2) + "\n")
    return state


def _run(state: TrainState, run_dir: Path, loader: Loader, reporter: Reporter, stop: threading.Event) -> None:
    config, total = state.config, total_images(state.config)
    meter = Meter(config, loader.dataset) if config.output.metrics else None
    watch, fatal = Watch(state, loader.dataset, run_dir), None
    started = last_save = time.monotonic()
    shown_early = False
    ends = state.images_seen >= total
    while not ends:
        before = state.images_seen
        stage = stage_at(config, before)
        stats = iterate(state, loader)
        _check_finite(state, stats, run_dir, before)
        seen, now = state.images_seen, time.monotonic()
        reporter.add(config, stage, stats, seen)
        ends = seen >= total or stop.is_set()
        measured = meter is not None and (due(1000 * config.output.metrics_kimg, before, seen) or seen >= total)
        if meter and measured:
            _measure(meter, state, run_dir, loader.dataset, reporter)
        if due(max(stage.tick, 1), before, seen) or measured or ends:
            fatal = watch.report(state, stage, reporter)
            ends = ends or fatal is not None
        early = not shown_early and now - started > FIRST_PREVIEW_SEC
        if due(1000 * config.output.preview_kimg, before, seen) or early or ends:
            preview(state, preview_path(run_dir, seen))
            shown_early = True
        # A stop leaves the network of its kimg in place if there is one: resumed, the run has the same files.
        stopped = ends and seen < total and network_path(run_dir, seen).exists()
        snapshot = due(1000 * config.output.snapshot_kimg, before, seen) or (ends and not stopped)
        if snapshot or ends or now - last_save > SAVE_EVERY_SEC:
            _check_finite(state, state.tensors(), run_dir, seen)
            if snapshot:
                save_snapshot(state, run_dir, loader.dataset)
            state.save(run_dir / STATE_NAME)
            last_save = time.monotonic()
    if fatal:
        raise UserError(f"{fatal.sentence}. Saved at {fatal.kimg:g} kimg in {run_dir / STATE_NAME}; --resume goes on")
    verb, more = ("Finished", "") if state.images_seen >= total else ("Stopped", "; --resume goes on")
    reporter.log(f"{verb} at {state.images_seen / 1000:g} kimg{more}. State: {run_dir / STATE_NAME}")


def _measure(meter: Meter, state: TrainState, run_dir: Path, dataset: Dataset, reporter: Reporter) -> None:
    """Measures, and keeps the network if it is the best by the first figure. Whatever goes wrong is a warning."""
    kimg, first = state.images_seen / 1000, state.config.output.metrics[0]
    try:
        figures, seconds = meter(state)
        size = configs.size_text(stage_at(state.config, state.images_seen).resolution)
        before = best_so_far(run_dir / "stats.jsonl", first, size)
        if is_best := better(first, figures[first].value, before):
            save_network(best_path(run_dir), state.G_ema, provenance(state, dataset) | {"metrics": told(figures)})
    except Exception as error:
        reporter.log(f"Warning: metrics failed at {kimg:g} kimg, and training goes on: {error or type(error).__name__}")
        return
    share = seconds / max(reporter.seconds, 1e-9)
    best = ", the best so far" if is_best else ""
    reporter.log(
        f"At {kimg:g} kimg: {'; '.join(told(figures).values())}{best} ({seconds:.0f} s, {share:.0%} of the time)"
    )
    reporter.note(numbers(figures, seconds), seconds)


def _begin(state: TrainState, run_dir: Path, loader: Loader, reporter: Reporter) -> None:
    config, seen = state.config, state.images_seen
    stage = stage_at(config, seen)
    if seen >= total_images(config):
        reporter.log(f"The run is at {seen / 1000:g} kimg already; a larger --kimg lets it go on.")
        return
    verb = f"Resuming at {seen / 1000:g}" if seen else "Training from 0"
    dataset = loader.dataset
    halved = "" if dataset.size == dataset.full_size else f" (from {configs.size_text(dataset.full_size)})"
    reporter.log(
        f"{verb} of {config.schedule.total_kimg:g} kimg: {config.preset}, {len(dataset)} pictures, "
        f"{describe(dataset.size, dataset.channels)}{halved}, {state.device} in {config.training.precision}, "
        f"now {stage_text(config, stage)}. Previews: {run_dir / 'previews'}"
    )
    if seen == 0 or not (run_dir / "reals.png").exists():
        save_reals(config, loader, run_dir / "reals.png")
    if seen == 0:
        preview(state, preview_path(run_dir, 0))


def preview_path(run_dir: Path, images_seen: int) -> Path:
    """previews/kimg-000012.400.png"""
    return run_dir / "previews" / f"kimg-{images_seen / 1000:010.3f}.png"


def network_path(run_dir: Path, images_seen: int) -> Path:
    """network-000012.safetensors"""
    return run_dir / f"network-{images_seen // 1000:06d}.safetensors"


def save_snapshot(state: TrainState, run_dir: Path, dataset: Dataset) -> Path:
    """Writes network-KIMG.safetensors (G_ema, its provenance), drops those past the retention. Raises OSError."""
    path, keep = network_path(run_dir, state.images_seen), state.config.output.keep_networks
    save_network(path, state.G_ema, provenance(state, dataset))
    if keep:
        for old in sorted(run_dir.glob("network-*.safetensors"))[:-keep]:
            old.unlink()
    return path


def provenance(state: TrainState, dataset: Dataset) -> dict[str, Any]:
    """What a network file says about where it comes from."""
    config, stage = state.config, stage_at(state.config, state.images_seen)
    facts: dict[str, Any] = {
        "preset": config.preset,
        "images_seen": state.images_seen,
        "kimg": state.images_seen / 1000,
        "level": stage.level,
        "resolution": list(stage.resolution),
        "alpha": stage.alpha,
        "seed": config.training.seed,
        "mirror": config.training.mirror,
        "data": dataset.path.name,
        "data_digest": config.training.data_digest,
        "stylegen": __version__,
        "torch": torch.__version__.split("+")[0],
    }
    if dataset.class_names and len(dataset.class_names) == config.generator.label_size:
        facts["class_names"] = dataset.class_names
    return facts


def _check_finite(state: TrainState, tensors: dict[str, Tensor], run_dir: Path, images_seen: int) -> None:
    """Raises UserError for statistics, or weights about to be saved, that are not finite."""
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        names = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        stage, kept = stage_at(state.config, images_seen), run_dir / STATE_NAME
        good = f"the last good state is kept in {kept}" if kept.exists() else "no state had been saved yet"
        raise UserError(
            f"{names} became non-finite at {images_seen / 1000:g} kimg ({stage_text(state.config, stage)}); {good};"
            " try a lower --lr or a higher --gamma in a new --out"
        )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second signal ends the process at once."""
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()
        with suppress(OSError):  # the terminal may be gone
            os.write(2, b"\nFinishing this step and saving; once more to quit at once.\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
