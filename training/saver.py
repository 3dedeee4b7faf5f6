"""States on disk: written while training goes on, the newest few kept, and the newest whole one found again."""

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from stylegen.checkpoint import save_tensors
from stylegen.config import Config
from stylegen.errors import DamagedError
from stylegen.files import atomic_path, check_room

from .state import STATE_NAME, TrainState, saved_config

DAMAGED = "damaged.ckpt"
HEALTHY = "healthy.ckpt"  # of a run that goes back to it after an alarm
SPARE = 2**16  # bytes that must be left on the disk


def saved_states(run_dir: Path) -> list[Path]:
    """A run's states, the newest first: state.ckpt, and older ones by their kimg."""
    newest = run_dir / STATE_NAME
    return [newest] * newest.exists() + sorted(run_dir.glob("state-*.ckpt"), reverse=True)


def saved_run(run_dir: Path) -> tuple[Config, int] | None:
    """(config, images seen) of the newest state whose head can be read; None where there is none.

    Raises UserError where none of several can be read.
    """
    problem = None
    for path in saved_states(run_dir):
        try:
            return saved_config(path)
        except DamagedError as error:
            problem = problem or error
    if problem:
        raise problem
    return None


def load_newest(state: TrainState, run_dir: Path) -> list[str]:
    """Loads the newest whole state, if any; returns what there is to say about damaged ones, which it puts aside.

    States after it are of a future that will not be, and go. Raises UserError where all are damaged or one does not
    fit, OSError.
    """
    damaged: list[tuple[Path, DamagedError]] = []
    for path in saved_states(run_dir):
        try:
            state.load(path)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        if damaged:
            os.replace(damaged[0][0], run_dir / DAMAGED)
        for newer, _ in damaged[1:]:
            newer.unlink()
        _drop_later(state, run_dir, but=path)
        problems = [str(error).partition(";")[0] for _, error in damaged]
        return [f"Warning: {problem}; going on from {path.name} instead. It stays as {DAMAGED}" for problem in problems]
    if damaged:
        older = f", and so are all {len(damaged) - 1} older ones" if len(damaged) > 1 else ""
        problem, _, remedy = str(damaged[0][1]).partition(";")
        raise DamagedError(f"{problem}{older};{remedy}")
    return []


def load_healthy(state: TrainState, run_dir: Path) -> None:
    """Loads the last healthy state; those after it go. Raises UserError, OSError."""
    state.load(run_dir / HEALTHY)
    _drop_later(state, run_dir)


def _drop_later(state: TrainState, run_dir: Path, but: Path | None = None) -> None:
    for later in run_dir.glob("state-*.ckpt"):
        if later != but and later.name >= kept_name(state.images_seen):
            later.unlink()


def kept_name(images_seen: int) -> str:
    """state-000012.400.ckpt"""
    return f"state-{images_seen / 1000:010.3f}.ckpt"


class Saver:
    """Writes a run's states in a thread: training stands still only while they are copied."""

    def __init__(self, run_dir: Path, keep: int):
        """keep: how many states stay on disk, 1 or more."""
        self.run_dir, self.keep = run_dir, keep
        self._thread = ThreadPoolExecutor(1, "save")
        self._under_way: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}
        self._well = False  # whether the newest state on disk is

    def save(self, state: TrainState, *, well: bool = False) -> None:
        """Starts to save the state as it is now; first waits for the one before, and raises what became of it.

        Where this one is `well` and the one before it was, that one is kept as HEALTHY: trouble shows with a delay.
        """
        self.wait()
        for name, tensor in (tensors := state.tensors()).items():
            if name not in self._copies or self._copies[name].shape != tensor.shape:
                self._copies[name] = torch.empty_like(tensor, device="cpu")
            self._copies[name].copy_(tensor)
        copies = {name: self._copies[name] for name in tensors}
        healthy, self._well = well and self._well and state.config.output.on_collapse == "rollback", well
        self._under_way = self._thread.submit(self._write, copies, state.metadata(), healthy)

    def check(self) -> None:
        """Raises OSError where a state could not be written; does not wait."""
        if self._under_way and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until the state is on disk. Raises OSError where it could not be written."""
        under_way, self._under_way = self._under_way, None
        if under_way:
            under_way.result()

    def close(self) -> None:
        """Waits, and tells nothing."""
        with suppress(OSError):
            self.wait()
        self._thread.shutdown()

    def _write(self, tensors: dict[str, Tensor], metadata: dict[str, str], healthy: bool) -> None:
        path = self.run_dir / STATE_NAME
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) + SPARE
        older = saved_states(self.run_dir)[1:]
        while older:
            with suppress(OSError):
                check_room(path, needed)
                break
            older.pop().unlink()
        check_room(path, needed)
        if path.exists() and healthy:
            _also(path, self.run_dir / HEALTHY)
        if path.exists() and self.keep > 1:
            _also(path, self.run_dir / kept_name(saved_config(path)[1]))
        save_tensors(path, tensors, metadata, checksum=True)
        for old in saved_states(self.run_dir)[self.keep :]:
            old.unlink()


def _also(path: Path, other: Path) -> None:
    """Gives a state a second name, under which it stays when the next one takes its place."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        with atomic_path(other) as temporary:
            shutil.copyfile(path, temporary)
