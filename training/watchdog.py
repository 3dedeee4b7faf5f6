"""A thread beside training: it ends workers whose launcher or others are gone, passes a stop on, says what is stuck."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .distributed import Crew

STOP_FILE = "STYLEGEN_STOP_FILE"  # environment: a file that appears, with a signal's number, to stop
LAUNCHER = "STYLEGEN_LAUNCHER"  # environment: its process, where known
FINISHING = b"\nFinishing this step and saving; Ctrl-C quits at once.\n"  # after a signal
EVERY_SEC = 0.5
PATIENCE_SEC = 120.0
GRACE_SEC = 10.0  # in which workers notice by themselves that another has given up, and save what they are saving
FOLLOWED = 128 + signal.SIGTERM  # exit code of a worker that was stuck when another gave up


@contextmanager
def watching(crew: "Crew") -> Iterator[None]:
    """Watches over what happens inside."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(crew, over), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(2 * EVERY_SEC)  # it may be waiting for an answer from a host that is gone


def _watch(crew: "Crew", over: threading.Event) -> None:
    stop, told, given_up = os.environ.get(STOP_FILE), crew.now, float("inf")
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    while not over.wait(EVERY_SEC):
        if crew.size > 1 and os.getppid() != launcher:
            _say(f"rank {crew.rank} on {crew.host} ends: its launcher is gone")
            os._exit(1)
        if stop and os.path.exists(stop):
            with open(stop) as file:
                number = int(file.read() or signal.SIGTERM)
            stop = None
            os.kill(os.getpid(), number)
        try:
            if crew.report():
                given_up = min(given_up, time.monotonic())
        except RuntimeError:  # the launcher's store is gone, and soon so is the launcher
            continue
        if time.monotonic() - given_up > GRACE_SEC:
            _say(f"rank {crew.rank} on {crew.host} ends, stuck in {crew.now[0]}: another worker has given up")
            os._exit(FOLLOWED)
        now = crew.now
        if now != told and time.time() - now[1] > min(PATIENCE_SEC, crew.timeout):
            told = now
            who = f"rank {crew.rank} on {crew.host}" if crew.size > 1 else "the run"
            _say(f"Warning: {who} has been {now[0]} for {time.time() - now[1]:.0f} s")


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        print(f"\n{line}", file=sys.stderr, flush=True)
