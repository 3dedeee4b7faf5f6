"""Runs of `stylegen train --gpus` as processes of their own, to be watched and killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tiny import PROGRAM

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks up processes in /proc")


@contextmanager
def started(arguments: list[str], said: Path, program: str = "", **more: str) -> Iterator[subprocess.Popen]:
    """`stylegen arguments`, or the Python `program` with them, one thread a process, `more` in its environment.

    What it says is added to the file `said`. Nothing of it outlives the body.
    """
    command = [sys.executable, "-c", program, *arguments] if program else [*PROGRAM, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    with open(said, "ab") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        yield process
    finally:
        for number in [process.pid, *children(process.pid)]:
            kill(number)
        process.wait()


def children(pid: int) -> list[int]:
    """The processes that `pid` has started and that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def rank_of(pid: int) -> int:
    """Of a worker."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((int(text[5:]) for text in variables if text.startswith(b"RANK=")), -1)


def workers(launcher: int, count: int = 2) -> list[int]:
    """The pids of a launcher's workers by rank, once all are there."""
    until(lambda: len(children(launcher)) >= count, 30)
    return sorted((pid for pid in children(launcher) if rank_of(pid) >= 0), key=rank_of)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def until(condition: Callable[[], object], seconds: float = 60, of: subprocess.Popen | None = None) -> float:
    """Waits; returns how long. `of`: a process that must not end meanwhile."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"nothing in {seconds:g} s"
        assert of is None or of.poll() is None, f"ended with {of and of.returncode}"
        time.sleep(0.005)
    return time.monotonic() - begun
