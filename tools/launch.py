"""`stylegen train --gpus N`: the same command in N workers on this machine, by torch's elastic launcher."""

import dataclasses
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from stylegen.errors import UsageError, UserError
from stylegen.files import write_atomic

if TYPE_CHECKING:
    import torch

REQUEUE = 75  # EX_TEMPFAIL: stopped by SIGTERM with all saved; the same command goes on
LOST = 69  # EX_UNAVAILABLE: of a worker that lost others, who are the reason
CRASHED = 70  # EX_SOFTWARE
ENDED_SEC = 20  # after the first failure, what still runs is being ended: torch gives it 30 s
_LAUNCHERS = ("--gpus", "--restarts")  # options


def workers(count: int, restarts: int, arguments: list[str], run_dir: Path) -> int:
    """Runs `stylegen arguments` in `count` workers until all have ended; returns the exit code.

    They are started again up to `restarts` times, and go on from the last state. SIGINT and SIGTERM are passed on once;
    a second SIGINT ends them at once. Raises UserError for a worker that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from stylegen.training.watchdog import FINISHING, LAUNCHER, STOP_FILE

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # what it says is said below
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of workers that end because others have
    os.environ.setdefault("OMP_NUM_THREADS", str(max(cores() // count, 1)))
    with tempfile.TemporaryDirectory(prefix="stylegen-") as folder:
        stop_file = Path(folder) / "stop"
        os.environ |= {STOP_FILE: str(stop_file), LAUNCHER: str(os.getpid())}
        os.environ |= {"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGHUP,SIGQUIT"}
        stopped: list[int] = []

        def stop(number: int, frame: object) -> None:
            if stopped and number == signal.SIGINT:
                raise SignalException("a second Ctrl-C", signal.SIGKILL)
            if not stopped:
                write_atomic(stop_file, str(number))
                os.write(2, FINISHING)
            stopped.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        settings: dict[str, Any] = {
            "min_nodes": 1,
            "max_nodes": 1,
            "nproc_per_node": count,
            "run_id": uuid.uuid4().hex,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "localhost:0",
            "max_restarts": restarts,
            "local_addr": "localhost",
            "signals_to_handle": os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"],
        }
        known = {field.name for field in dataclasses.fields(LaunchConfig)}
        config = LaunchConfig(**{name: value for name, value in settings.items() if name in known})
        command = ["-m", "stylegen.tools.cli", *without(arguments)]
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException as error:
            return 128 + (stopped[-1] if stopped else error.sigval)
        except ChildFailedError as error:
            if not stopped:
                why = _why(error.failures) + _how_to_go_on(run_dir)
                _log(run_dir, why)
                raise UserError(why) from error
        return code_of(int(stop_file.read_text()) if stop_file.exists() else 0)


def worker(call: Callable[[], int]) -> NoReturn:
    """Ends this process with what `call` returns or raises, which the launcher is told.

    Without the usual taking apart: gloo's threads would end the process in their own way.
    """
    from stylegen.training.watchdog import STOP_FILE

    code, message = 0, ""
    try:
        number = call()
        code = 0 if ours() else code_of(number)
        if number and ours():  # whoever was told to stop, all have
            write_atomic(os.environ[STOP_FILE], str(number))
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except (UserError, OSError) as error:
        from stylegen.training.distributed import LostWorker

        message = " ".join(str(error).split())
        code = LOST if isinstance(error, LostWorker) else 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        traceback.print_exc()
        message, code = f"{type(error).__name__}: {' '.join(str(error).split())}", CRASHED
    if message and code != CRASHED and not ours():
        click.echo(f"Error: {message}", err=True)
    if message and (path := os.environ.get("TORCHELASTIC_ERROR_FILE")):
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def without(arguments: list[str]) -> list[str]:
    """The command line of a worker: without the options that are the launcher's."""
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.partition("=")[0] in _LAUNCHERS:
            skip = not skip and "=" not in argument
        else:
            kept.append(argument)
    return kept


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ours() -> bool:
    """Whether `workers` started this process."""
    from stylegen.training.watchdog import STOP_FILE

    return STOP_FILE in os.environ


def again() -> bool:
    """Whether a launcher has started this worker again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def code_of(number: int) -> int:
    """The exit code of a run that signal `number` stopped, 0 for none."""
    return REQUEUE if number == signal.SIGTERM else 0


def check_devices(device: "torch.device", count: int) -> None:
    """Raises click.UsageError where this machine has fewer than `count` of the devices."""
    import torch

    if device.type == "mps" or (device.type == "cuda" and torch.cuda.device_count() < count):
        there = torch.cuda.device_count() if device.type == "cuda" else 1
        raise click.UsageError(f"--gpus {count}: this machine has {there}; give fewer, or --device cpu")


def own(device: "torch.device") -> "torch.device":
    """This worker's device among those of its machine."""
    import torch

    if device.type == "cuda" and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return device


def _why(failures: dict[int, Any]) -> str:
    """One line on the failure that the others follow from."""
    from stylegen.training.watchdog import FOLLOWED

    first = min(failure.timestamp for failure in failures.values())

    def follows(item: tuple[int, Any]) -> tuple[int, int]:
        code, at = item[1].exitcode, item[1].timestamp
        ended = code in (FOLLOWED, -signal.SIGTERM) or at > first + ENDED_SEC
        return 2 if ended else 1 if code == LOST else 0, at

    rank, failure = min(failures.items(), key=follows)
    message = " ".join(str(failure.message).split())
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        why = f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    elif failure.exitcode == CRASHED:
        why = f"crashed (its traceback is above): {message}"
    elif failure.exitcode in (1, 2, LOST):
        return message
    else:
        why = f"ended with exit code {failure.exitcode}: {message}"
    return f"the worker of rank {rank} {why}"


def _how_to_go_on(run_dir: Path) -> str:
    from stylegen.training.saver import saved_states

    return "; --resume goes on from the last saved state" if saved_states(run_dir) else "; no state had been saved yet"


def _log(run_dir: Path, why: str) -> None:
    """The end of the run's log says why, whatever its workers saw of it."""
    with suppress(OSError), open(run_dir / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} Error: {why}\n")
