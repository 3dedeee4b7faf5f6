"""What the first worker of a run writes, and when."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegen import __version__, config as configs
from stylegen.checkpoint import save_network
from stylegen.errors import UserError
from stylegen.files import write_atomic

from .alarms import Alarm
from .dataset import Dataset, Loader
from .health import Watch
from .measure import Meter, best_path, best_so_far, better, numbers, told
from .pictures import describe
from .report import Reporter, preview, save_reals, stage_text
from .saver import HEALTHY, Saver
from .schedule import Stage, due, ends_early, stage_at, total_images
from .sheet import data_sheet
from .state import STATE_NAME, TrainState
from .step import Stats

FIRST_PREVIEW_SEC = 30.0
MOST_ROLLBACKS = 3


class Outputs:
    """All that a run writes, and when."""

    def __init__(self, state: TrainState, run_dir: Path, loader: Loader, notes: list[str], workers: int = 1):
        """Tells of the run's start, and `notes`."""
        self.state, self.run_dir, self.dataset = state, run_dir, loader.dataset
        self.fatal: Alarm | None = None  # that the run must end or go back for
        self.total, output = total_images(state.config), state.config.output
        self.reporter = Reporter(state.config, run_dir, state.images_seen)
        self.meter = Meter(state.config, loader.dataset) if output.metrics else None
        self.watch = Watch(state, loader.dataset, run_dir)
        self.saver = Saver(run_dir, output.keep_states)
        self.started = self.last_save = time.monotonic()
        self.shown_early = False
        for note in notes:
            self.reporter.log(note)
        _begin(state, run_dir, loader, self.reporter, workers)

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
            self.fatal = self.watch.report(state, stage, self.reporter) or self.fatal
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
            self.saver.save(state, well=self.watch.judge.well)
            self.last_save = time.monotonic()

    @property
    def can_go_back(self) -> bool:
        """Whether the run goes on from a healthy state after an alarm."""
        config = self.state.config
        wanted = config.output.on_collapse == "rollback" and config.training.rollbacks < MOST_ROLLBACKS
        return wanted and (self.run_dir / HEALTHY).exists()

    def no_way_back(self) -> str:
        """Why the run does not go back, where it was asked to: a sentence, or ""."""
        if self.state.config.output.on_collapse != "rollback":
            return ""
        if not (self.run_dir / HEALTHY).exists():
            return "There is no healthy state to go back to: none had been followed by another yet. "
        times = self.state.config.training.rollbacks
        return f"It went back {times} times already. " if times == MOST_ROLLBACKS else "It is at its end. "

    def finish(self, *, goes_back: bool = False) -> None:
        """Says how the run ended, if it did, once all is on disk. Raises OSError."""
        self.saver.wait()
        if goes_back:
            return
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


def _begin(state: TrainState, run_dir: Path, loader: Loader, reporter: Reporter, workers: int) -> None:
    config, seen = state.config, state.images_seen
    stage = stage_at(config, seen)
    if seen >= total_images(config):
        reporter.log(f"The run is at {seen / 1000:g} kimg already; a larger --kimg lets it go on.")
        return
    verb = f"Resuming at {seen / 1000:g}" if seen else "Training from 0"
    dataset = loader.dataset
    halved = "" if dataset.size == dataset.full_size else f" (from {configs.size_text(dataset.full_size)})"
    where = f"{workers} workers on {state.device.type}" if workers > 1 else str(state.device)
    reporter.log(
        f"{verb} of {config.schedule.total_kimg:g} kimg: {config.preset}, {loader.told}, "
        f"{describe(dataset.size, dataset.channels)}{halved}, {where} in {config.training.precision}, "
        f"now {stage_text(config, stage)}. Previews: {run_dir / 'previews'}"
    )
    if early := ends_early(config):
        reporter.log(f"Note: {early}.")
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
