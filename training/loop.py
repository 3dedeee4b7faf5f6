"""The training loop: from a config and data to a run folder, interrupted and resumed at will."""

import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from stylegen import __version__, config as configs
from stylegen.config import Config
from stylegen.errors import UserError
from stylegen.files import exclusive, remove_leftovers, write_atomic

from .alarms import Alarm
from .dataset import Dataset, Loader
from .distributed import ALONE, Crew, launched, share_statistics
from .health import tell
from .micro import limits
from .outputs import Outputs
from .saver import load_healthy, load_newest
from .schedule import stage_at, total_images
from .share import check as check_split
from .state import STATE_NAME, TrainState, fresh
from .step import iterate
from .transfer import transfer
from .watchdog import FINISHING, watching

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ALARM, BACK = -1, -2  # why a run stops beside signals: for good, or to go on from a healthy state
REASONS = (*SIGNALS[::-1], ALARM, BACK)  # the first one counts


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
    check_split(config, crew.size, micro_batch if isinstance(micro_batch, int) else None)
    with ExitStack() as stack:
        if crew.chief:
            (run_dir / "previews").mkdir(parents=True, exist_ok=True)
            # Workers of a launcher that was killed take a moment to go.
            stack.enter_context(exclusive(run_dir, 10.0 if crew.size > 1 else 0.0))
            for folder in (run_dir, run_dir / "previews"):
                remove_leftovers(folder)
        if crew.size == 1:  # others have been watched from the start
            stack.enter_context(watching(crew))
        crew.begin("preparing the data")
        loader = stack.enter_context(crew.one_by_one("data", lambda: _loader(config, dataset, workers, cache)))
        crew.preflight(device, {"data": dataset.digest, "configuration": _digest(config), "version": __version__})
        state, notes = _open(config, run_dir, device, crew)
        most, choices = limits(micro_batch, state.config, state.images_seen, device, crew)
        notes += choices
        stop = stack.enter_context(_stop_signals())
        while True:
            number = _outputs_and_run(state, run_dir, loader, crew, most, notes, stop)
            if number != BACK:
                return number
            notes = [_go_back(state, run_dir, crew)]
            stop[:] = [reason for reason in stop if reason in SIGNALS]


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
        notes = [again] if (again := _started_again()) else []
        notes += load_newest(state, run_dir)
        if state.images_seen == 0 and config.training.init_from:
            notes.append(transfer(state, config.training.init_from))
        write_atomic(run_dir / "config.json", json.dumps(configs.to_dict(config), indent=2) + "\n")
    crew.share_state(state)
    for network in (state.G, state.D):
        share_statistics(network, crew)
    return state, notes


def _started_again() -> str:
    """What there is to say where a launcher has started the workers again."""
    times, most = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    lost = f"Warning: a worker was lost; all have been started again (restart {times} of {most})"
    return lost if times != "0" else ""


def _digest(config: Config) -> str:
    """Of what must be alike for all workers."""
    text = json.dumps(configs.to_dict(config), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _outputs_and_run(
    state: TrainState,
    run_dir: Path,
    loader: Loader,
    crew: Crew,
    most: dict[int, int],
    notes: list[str],
    stop: list[int],
) -> int:
    if not crew.chief:
        return _run(state, loader, crew, most, None, stop)
    with closing(Outputs(state, run_dir, loader, notes, crew.size)) as outputs:
        try:
            number = _run(state, loader, crew, most, outputs, stop)
            outputs.finish(goes_back=number == BACK)
            if outputs.fatal and number in (ALARM, 0):
                raise UserError(f"{outputs.fatal.sentence}. {outputs.no_way_back()}As it is it was saved in {run_dir}")
            return number
        except (UserError, OSError) as error:
            with suppress(OSError):
                outputs.reporter.log(f"Error: {error}", show=False)
            raise


def _run(
    state: TrainState, loader: Loader, crew: Crew, most: dict[int, int], outputs: Outputs | None, stop: list[int]
) -> int:
    """Trains; returns what stopped it: a signal's number, ALARM, BACK, or 0. most: samples at a time, by level."""
    config, total = state.settings, total_images(state.config)
    number = 0
    while state.images_seen < total and not number:
        before = state.images_seen
        stage = stage_at(config, before)
        # All workers must stop at the same step, whoever has the reason: reasons add up with the statistics.
        reasons = torch.tensor([float(reason in stop) for reason in REASONS], device=state.device)
        stats = iterate(state, loader, crew, most=most.get(stage.level), also={"reasons": reasons})
        counts = stats.pop("reasons").tolist()
        number = next((reason for reason, count in zip(REASONS, counts, strict=True) if count), 0)
        if outputs:
            crew.begin("writing")
            outputs.add(stage, stats, before, ends=state.images_seen >= total or number != 0)
            if outputs.fatal and not number:
                stop.append(BACK if outputs.can_go_back else ALARM)
    return number


def _go_back(state: TrainState, run_dir: Path, crew: Crew) -> str:
    """Puts the last healthy state in the place of the newest one, to go on more calmly; says so."""
    config, seen = state.config, state.images_seen
    config = replace(config, training=replace(config.training, rollbacks=config.training.rollbacks + 1))
    if crew.chief:
        load_healthy(state, run_dir)
        state.config = config
        state.save(run_dir / STATE_NAME)
        write_atomic(run_dir / "config.json", json.dumps(configs.to_dict(config), indent=2) + "\n")
    state.config = config
    crew.share_state(state)
    now = state.settings
    note = (
        f"Back from {seen / 1000:g} to the healthy state of {state.images_seen / 1000:g} kimg, with a learning rate of "
        f"{stage_at(now, state.images_seen).lr:g} and a gamma of {now.loss.r1_gamma:g}"
    )
    if crew.chief:
        tell(run_dir, Alarm(state.images_seen / 1000, state.images_seen, "rollback", note))
    return note


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
                os.write(2, FINISHING)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
