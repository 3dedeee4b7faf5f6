"""The training loop: from a config and data to a run folder, interrupted and resumed at will."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
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
from .distributed import ALONE, Crew, launched, share_statistics
from .measure import Meter, best_path, best_so_far, better, numbers, told
from .micro import limits
from .pictures import describe
from .report import Reporter, preview, save_reals, stage_text
from .saver import Saver, load_newest
from .schedule import Stage, due, stage_at, total_images
from .share import check as check_split
from .sheet import data_sheet
from .state import STATE_NAME, TrainState, fresh
from .step import Stats, iterate
from .watchdog import watching

FIRST_PREVIEW_SEC = 30.0
STOPPING = (signal.SIGINT, signal.SIGTERM)


def train(
    config: Config,
    run_dir: Path,
    dataset: Dataset,
    *,
    device: torch.device,
    workers: int = 2,
    cache: str = "auto",
    crew: Crew = ALONE,
    micro_batch: int | str | None = None,
) -> int:
    """Trains until `config.schedule.total_kimg`, going on with the state in `run_dir` if there is one.

    Writes config.json, log.txt, stats.jsonl, reals.png, previews, networks and states into `run_dir`. SIGINT and
    SIGTERM finish the iteration and save; returns the number of the signal, 0 for none. Every worker of the `crew`
    calls this, the first one writes; `micro_batch`: the most samples that one computes at a time, "auto": as many as
    fit its memory. Raises UserError for a state that does not fit and for a non-finite loss, OSError where a file
    cannot be written, LostWorker; the last saved state stays in every case.
    """
    check_split(config, crew.size, isinstance(micro_batch, int))
    with ExitStack() as stack:
        if crew.chief:
            (run_dir / "previews").mkdir(parents=True, exist_ok=True)
            # Workers of a launcher that was killed take a moment to go.
            stack.enter_context(exclusive(run_dir, 10.0 if crew.size > 1 else 0.0))
            for folder in (run_dir, run_dir / "previews"):
                remove_leftovers(folder)
        stack.enter_context(watching(crew))
        crew.begin("preparing the data")
        loader = stack.enter_context(crew.one_by_one("data", lambda: _loader(config, dataset, workers, cache)))
        crew.preflight(device, {"data": dataset.digest, "configuration": _digest(config), "version": __version__})
        state, notes = _open(config, run_dir, device, crew)
        most, choices = limits(micro_batch, state.config, state.images_seen, device, crew)
        outputs = None
        try:
            stop = stack.enter_context(_stop_signals())
            if crew.chief:
                outputs = stack.enter_context(closing(Outputs(state, run_dir, loader, notes + choices)))
            return _run(state, loader, crew, most, outputs, stop)
        except (UserError, OSError) as error:
            if outputs:
                with suppress(OSError):
                    outputs.reporter.log(f"Error: {error}", show=False)
            raise


def _loader(config: Config, dataset: Dataset, workers: int, cache: str) -> Loader:
    g, training = config.generator, config.training
    return Loader(
        dataset,
        base=g.base,
        levels=g.levels,
        seed=training.seed,
        mirror=training.mirror,
        cond=g.label_size > 0,
        workers=workers,
        shuffle_shards=training.shuffle_shards,
        cache=cache,
    )


def _open(config: Config, run_dir: Path, device: torch.device, crew: Crew) -> tuple[TrainState, list[str]]:
    """(the state to go on with, the same for all workers; what there is to say about it)."""
    config = configs.from_dict(Config, configs.to_dict(config))  # as it is read back: 8 in a table becomes 8.0
    state, notes = fresh(config, device), []
    if crew.chief:
        notes = load_newest(state, run_dir)
        write_atomic(run_dir / "config.json", json.dumps(configs.to_dict(config), indent=2) + "\n")
    crew.share_state(state)
    for network in (state.G, state.D):
        share_statistics(network, crew)
    return state, notes


def _digest(config: Config) -> str:
    """Of what must be alike for all workers."""
    text = json.dumps(configs.to_dict(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _run(
    state: TrainState, loader: Loader, crew: Crew, most: dict[int, int], outputs: "Outputs | None", stop: list[int]
) -> int:
    """Trains; returns the number of the signal that stopped it, 0 for none. most: samples at a time, by level."""
    config, total = state.config, total_images(state.config)
    number = 0
    while state.images_seen < total and not number:
        before = state.images_seen
        stage = stage_at(config, before)
        # All workers must stop at the same step, whoever got the signal: signals add up with the statistics.
        wanted = {str(n): torch.tensor(float(n in stop), device=state.device) for n in STOPPING}
        stats = iterate(state, loader, crew, most=most.get(stage.level), also=wanted)
        number = max((n for n in STOPPING if stats.pop(str(n)) > 0), default=0)
        if outputs:
            outputs.add(stage, stats, before, ends=state.images_seen >= total or number > 0)
    if outputs:
        outputs.finish()
    return number


class Outputs:
    """All that a run writes, and when."""

    def __init__(self, state: TrainState, run_dir: Path, loader: Loader, notes: list[str]):
        """Tells of the run's start, and `notes`."""
        self.state, self.run_dir, self.dataset = state, run_dir, loader.dataset
        self.total, output = total_images(state.config), state.config.output
        self.reporter = Reporter(state.config, run_dir, state.images_seen)
        self.meter = Meter(state.config, loader.dataset) if output.metrics else None
        self.saver = Saver(run_dir, output.keep_states)
        self.started = self.last_save = time.monotonic()
        self.shown_early = False
        for note in notes:
            self.reporter.log(note)
        _begin(state, run_dir, loader, self.reporter)

    def add(self, stage: Stage, stats: Stats, before: int, *, ends: bool) -> None:
        """After an iteration: counts it in, writes what is due. Raises UserError for non-finite figures, OSError."""
        state, run_dir, output = self.state, self.run_dir, self.state.config.output
        seen, now = state.images_seen, time.monotonic()
        _check_finite(state, stats, run_dir, before)
        self.saver.check()
        self.reporter.add(state.config, stage, stats, seen)
        measured = self.meter is not None and (due(1000 * output.metrics_kimg, before, seen) or seen >= self.total)
        if self.meter and measured:
            _measure(self.meter, state, run_dir, self.dataset, self.reporter)
        if due(max(stage.tick, 1), before, seen) or measured or ends:
            self.reporter.report(stage, seen)
        early = not self.shown_early and now - self.started > FIRST_PREVIEW_SEC
        if due(1000 * output.preview_kimg, before, seen) or early or ends:
            preview(state, preview_path(run_dir, seen))
            self.shown_early = True
        # A stop leaves the network of its kimg in place if there is one: resumed, the run has the same files.
        stopped = ends and seen < self.total and network_path(run_dir, seen).exists()
        snapshot = due(1000 * output.snapshot_kimg, before, seen) or (ends and not stopped)
        if snapshot or ends or now - self.last_save > 60 * output.save_minutes:
            _check_finite(state, state.tensors(), run_dir, seen)
            if snapshot:
                save_snapshot(state, run_dir, self.dataset)
            self.saver.save(state)
            self.last_save = time.monotonic()

    def finish(self) -> None:
        """Says how the run ended, once all is on disk. Raises OSError."""
        self.saver.wait()
        seen = self.state.images_seen
        verb, more = ("Finished", "") if seen >= self.total else ("Stopped", "; --resume goes on")
        self.reporter.log(f"{verb} at {seen / 1000:g} kimg{more}. State: {self.run_dir / STATE_NAME}")

    def close(self) -> None:
        """Ends the progress bar, and waits for a state that is being written."""
        self.saver.close()
        self.reporter.close()


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
        f"{verb} of {config.schedule.total_kimg:g} kimg: {config.preset}, {loader.told}, "
        f"{describe(dataset.size, dataset.channels)}{halved}, {state.device} in {config.training.precision}, "
        f"now {stage_text(config, stage)}. Previews: {run_dir / 'previews'}"
    )
    write_atomic(run_dir / "data.json", json.dumps(data_sheet(dataset), indent=2) + "\n")
    if seen == 0 or not (run_dir / "reals.png").exists():
        save_reals(config, dataset, run_dir / "reals.png")
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
def _stop_signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are added; a second SIGINT ends a process that works alone."""
    stop: list[int] = []

    def handle(number: int, frame: object) -> None:
        if stop and number == signal.SIGINT and not launched():
            os._exit(128 + number)
        stop.append(number)
        with suppress(OSError):  # the terminal may be gone
            if not launched():
                os.write(2, b"\nFinishing this step and saving; once more to quit at once.\n")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in STOPPING}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
