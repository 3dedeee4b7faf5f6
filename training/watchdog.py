"""A thread beside training: it ends workers whose launcher is gone, passes a stop on, and says what takes too long."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .distributed import Crew

STOP_FILE = "STYLEGEN_STOP_FILE"  # environment: a file that appears, with a signal's number, to stop
EVERY_SEC = 0.5
PATIENCE_SEC = 120.0


@contextmanager
def watching(crew: Crew) -> Iterator[None]:
    """Watches over what happens inside."""
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(crew, over, os.getppid()), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(crew: Crew, over: threading.Event, launcher: int) -> None:
    stop, told = os.environ.get(STOP_FILE), crew.now
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
            crew.report()
        except RuntimeError:  # the launcher's store is gone, and soon so is the launcher
            continue
        now = crew.now
        if now != told and time.time() - now[1] > min(PATIENCE_SEC, crew.timeout):
            told = now
            who = f"rank {crew.rank} on {crew.host}" if crew.size > 1 else "the run"
            _say(f"Warning: {who} has been {now[0]} for {time.time() - now[1]:.0f} s")


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody listens any more
        print(f"\n{line}", file=sys.stderr, flush=True)
