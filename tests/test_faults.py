"""Workers that die, crash, hang, disagree or are told to stop: a line that says so, soon, and nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import alive, children, kill, needs_proc, started, until, workers
from tiny import data_zip, error_line, rows, train_arguments

from stylegen.training.state import saved_config

pytestmark = needs_proc
KIMG = 0.2  # 25 steps, a fade from 0.1 on
OFTEN = ["--set", "schedule.tick_kimg_default=.008", "--set", "output.save_minutes=0", "--gpus", "2", "--resume"]
SLOW = """
from stylegen.training import loop
iterate = loop.iterate
def slow(*arguments, **options):
    import time
    time.sleep(0.1)
    return iterate(*arguments, **options)
loop.iterate = slow
"""
STUCK = """
from stylegen.training import dataset
batch = dataset.Loader.batch
def stuck(loader, images_seen, *rest):
    import time
    if images_seen == 40:
        time.sleep({seconds})
    return batch(loader, images_seen, *rest)
dataset.Loader.batch = stuck
"""
OTHER = """
from stylegen.training.distributed import Crew
preflight = Crew.preflight
Crew.preflight = lambda crew, device, facts: preflight(crew, device, facts | {{"{what}": "other"}})
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two workers that nobody disturbs."""
    folder = tmp_path_factory.mktemp("runs")
    with started(train_arguments(data, folder / "whole", *OFTEN, kimg=KIMG), folder / "said") as process:
        assert process.wait(60) == 0, (folder / "said").read_text()
    return folder / "whole"


class Case:
    """A run to be disturbed. fault: Python that runs first in the processes whose RANK is `rank`, "" for the others."""

    def __init__(self, data: Path, folder: Path):
        self.run, self.said_in, self.faults = folder / "run", folder / "said", folder / "faults"
        self.data = data
        self.faults.mkdir()
        self.faults.joinpath("sitecustomize.py").write_text(
            "import os\nif os.environ.get('RANK', '') == os.environ.get('FAULTY'):\n    exec(os.environ['FAULT'])\n"
        )

    def start(self, *options: object, fault: str = "", rank: object = "", program: str = "") -> Any:
        path = os.pathsep.join(filter(None, [str(self.faults), os.environ.get("PYTHONPATH")]))
        more = {"PYTHONPATH": path, "FAULT": fault, "FAULTY": str(rank) if fault else "none"}
        arguments = train_arguments(self.data, self.run, *OFTEN, *options, kimg=KIMG)
        return started(arguments, self.said_in, program, **more)

    @property
    def said(self) -> str:
        return self.said_in.read_text()

    @property
    def error(self) -> str:
        return error_line(self.said)

    def trains(self, steps: int = 3) -> bool:
        return len(rows(self.run)) >= steps


@pytest.fixture
def case(data: Path, tmp_path: Path) -> Case:
    return Case(data, tmp_path)


def assert_same_run(run: Path, whole: Path) -> None:
    for name in ("state.ckpt", "network-000000.safetensors", "config.json", "previews/kimg-000000.200.png"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    timeless = [
        [{k: v for k, v in row.items() if k not in ("images_per_sec", "elapsed_sec")} for row in rows(folder)]
        for folder in (run, whole)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 25


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_ends_the_run(rank: int, case: Case) -> None:
    with case.start(fault=SLOW, rank=1) as process:
        until(case.trains, of=process)
        kill(workers(process.pid)[rank])
        assert process.wait(15) == 1
    assert case.error.startswith(f"the worker of rank {rank} was killed by SIGKILL (out of memory?); --resume goes on")


def test_a_killed_worker_is_started_again(case: Case, whole: Path) -> None:
    with case.start("--restarts", 1, fault=SLOW, rank=1) as process:
        until(case.trains, of=process)
        kill(workers(process.pid)[1])
        assert process.wait(60) == 0, case.said
    assert "Resuming at" in case.said
    assert_same_run(case.run, whole)


def test_a_worker_that_crashes(case: Case) -> None:
    """Its traceback is there to be reported; the last line says who it was, and that of the others is left out."""
    crash = "from stylegen.training import loop\ndef crash(*_, **__): raise ZeroDivisionError('by design')\n"
    with case.start(fault=f"{crash}loop.iterate = crash", rank=1) as process:
        assert process.wait(30) == 1
    *before, last = case.said.strip().splitlines()
    why = "crashed (its traceback is above): ZeroDivisionError: by design"
    assert last == f"Error: the worker of rank 1 {why}; no state had been saved yet"
    assert "Traceback (most recent call last):" in before and sum("Error" in line for line in before) == 1


def test_a_worker_that_never_comes(case: Case) -> None:
    with case.start("--timeout", 4, fault="import time; time.sleep(1000)", rank=1) as process:
        assert process.wait(30) == 1
    assert f"rank 1 on {os.uname().nodename} did not answer within 4 s (at the start; 1 of 2 workers" in case.error


def test_a_worker_that_hangs_before_the_first_sum(case: Case) -> None:
    hang = "from stylegen.training.distributed import Crew; import time; Crew.preflight = lambda *_: time.sleep(1000)"
    with case.start("--timeout", 6, fault=hang, rank=1) as process:
        assert process.wait(40) == 1
    assert f"rank 1 on {os.uname().nodename} did not answer within 6 s (at the first sum; 1 of 2" in case.error


@pytest.mark.parametrize("what", ["data", "configuration"])
def test_workers_that_disagree(what: str, case: Case) -> None:
    with case.start(fault=OTHER.format(what=what), rank=1) as process:
        assert process.wait(30) == 1
    assert f"has another {what} than rank" in case.error and "all workers need the same data" in case.error


def test_a_worker_that_is_stuck(case: Case) -> None:
    fault = "from stylegen.training import watchdog; watchdog.GRACE_SEC = 3\n" + STUCK.format(seconds=1000)
    with case.start("--timeout", 4, fault=fault, rank=1) as process:
        until(lambda: case.trains(4), of=process)
        begun = time.monotonic()
        code = process.wait(60)
        assert code == 1 and time.monotonic() - begun < 20
    assert "rank 0 on" in case.error and f"rank 1 on {os.uname().nodename} was reading pictures for" in case.error
    assert "has been reading pictures for" in case.said, "its own warning"
    assert "ends, stuck in reading pictures: another worker has given up" in case.said


def test_a_process_alone_that_is_stuck_says_so(case: Case) -> None:
    """Once, and then only: a run that goes on for longer than the watchdog's patience is fine."""
    fault = "from stylegen.training import watchdog; watchdog.PATIENCE_SEC = 3\n" + STUCK.format(seconds=5) + SLOW
    with case.start("--gpus", 1, "--kimg", 0.4, fault=fault) as process:
        assert process.wait(60) == 0, case.said
    assert case.said.count("Warning: the run has been reading pictures for 3 s") == case.said.count("Warning") == 1


@pytest.mark.parametrize(
    ("number", "whom", "code"),
    [
        (signal.SIGTERM, "launcher", 75),
        (signal.SIGTERM, "rank 0", 75),
        (signal.SIGTERM, "rank 1", 75),
        (signal.SIGINT, "launcher", 0),
        (signal.SIGINT, "all", 0),  # as Ctrl-C in a terminal
    ],
)
def test_told_to_stop(number: int, whom: str, code: int, case: Case, whole: Path) -> None:
    """All is saved within seconds; the same command goes on."""
    with case.start(fault=SLOW, rank=1) as process:
        until(case.trains, of=process)
        pids = {"launcher": [process.pid], "all": [process.pid, *children(process.pid)]}
        for pid in pids.get(whom) or [workers(process.pid)[int(whom[-1])]]:
            kill(pid, number)
        assert process.wait(10) == code, case.said
    assert "Error" not in case.said and "Traceback" not in case.said and "; --resume goes on." in case.said
    seen = saved_config(case.run / "state.ckpt")[1]
    assert seen == rows(case.run)[-1]["images_seen"] < 1000 * KIMG
    if whom == "rank 1":
        with case.start() as process:
            assert process.wait(60) == 0, case.said
        (case.run / "previews" / f"kimg-{seen / 1000:010.3f}.png").unlink()
        assert_same_run(case.run, whole)


@pytest.mark.parametrize("when", ["starting", "training"])
def test_a_killed_launcher_takes_its_workers_along(when: str, case: Case) -> None:
    with case.start(fault=SLOW, rank=1) as process:
        pids = workers(process.pid)
        if when == "training":
            until(case.trains, of=process)
        kill(process.pid)
        process.wait()
        waited = until(lambda: not any(map(alive, pids)), 5 if when == "training" else 10)
    print(f"workers gone after {waited:.1f} s")


def test_a_new_launcher_waits_for_the_workers_of_the_last(case: Case, whole: Path) -> None:
    with case.start(fault=SLOW, rank=1) as process:
        until(case.trains, of=process)
        kill(process.pid)
    with case.start() as process:
        assert process.wait(60) == 0, case.said
    assert_same_run(case.run, whole)


def test_torchrun(data: Path, case: Case, whole: Path) -> None:
    """It may start the workers as well: the same bits; their number is its business."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = train_arguments(data, case.run, *OFTEN, kimg=KIMG)
    command = [*torchrun, "-m", "stylegen.tools.cli", *arguments]
    how: dict[str, Any] = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "capture_output": True, "text": True}
    refused = subprocess.run(command, **how, timeout=60)
    assert refused.returncode == 1
    assert "--gpus: another launcher has started this worker already; leave the number to it" in refused.stderr
    at = command.index("--gpus")
    done = subprocess.run(command[:at] + command[at + 2 :], **how, timeout=60)
    assert done.returncode == 0, done.stderr
    assert_same_run(case.run, whole)


def test_a_host_without_a_name_that_resolves(case: Case) -> None:
    unshare = ["unshare", "--uts", "sh", "-c", 'hostname no.such.host.invalid && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("cannot give this machine another name")
    program = (
        f"import os, sys; os.execvp('unshare', {unshare + [sys.executable, '-m', 'stylegen.tools.cli']} + sys.argv[1:])"
    )
    with case.start("--kimg", 0.016, program=program) as process:
        assert process.wait(60) == 0, case.said
