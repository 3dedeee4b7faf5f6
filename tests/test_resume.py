"""A run that was killed, interrupted or stopped, and goes on, ends as if nothing had happened, to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import PROGRAM, data_zip, invoke, rows, train_arguments

from stylegen.checkpoint import load_tensors
from stylegen.training import loop, outputs
from stylegen.training.state import saved_config

SEED = int(os.environ.get("STYLEGEN_TEST_SEED", time.time_ns() % 2**32))
KIMG = 0.6
EVERYTHING = ["--resume", "--mirror", "--snapshot-kimg", ".07", "--preview-kimg", ".2"]
EVERYTHING += ["--gamma", "1", "--set", "loss.penalty_interval=4", "--set", "loss.mixing_probability=0.9"]

# `stylegen` that comes to grief by itself: argv[1] says how, argv[2] where.
CHILD = """
import os, signal, sys, time
from stylegen import checkpoint
from stylegen.tools.cli import main
from stylegen.training import loop, step

event, where = sys.argv.pop(1), int(sys.argv.pop(1))
iterate, g_gradients, replace = loop.iterate, step.g_gradients, os.replace
die = lambda: os.kill(os.getpid(), signal.SIGKILL)

def slow(*arguments, **options):
    time.sleep(where / 1000)
    return iterate(*arguments, **options)

def killed_between_d_and_g(state, *rest):
    if state.images_seen >= where:
        die()
    return g_gradients(state, *rest)

def killed_when_replacing(old, new):
    if event == "replaced":
        replace(old, new)
    if str(new).endswith("state.ckpt"):
        die()
    replace(old, new) if event == "replacing" else None

class Killing:
    def __init__(self, path, mode):
        self.file, self.state = open(path, mode), ".state.ckpt." in str(path)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def write(self, data):
        if self.state and self.file.tell() + len(data) > where:
            self.file.write(bytes(data)[: where - self.file.tell()])
            self.file.flush()
            die()
        self.file.write(data)

if event == "slow":
    loop.iterate = slow
elif event == "step":
    step.g_gradients = killed_between_d_and_g
elif event == "writing":
    checkpoint.open = lambda path, mode="r": Killing(path, mode) if "w" in mode else open(path, mode)
else:
    os.replace = killed_when_replacing
main()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def start(event: str, where: int, arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, event, str(where), *arguments]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)


def until(process: subprocess.Popen, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob(".*.tmp")]


def threads(single: bool) -> list[str]:
    return ["--workers", "0" if single else "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run([*PROGRAM, *train_arguments(data, run, *EVERYTHING, kimg=KIMG)], check=True, env=environment())
    return run


def assert_same_run(run: Path, whole: Path, tmp_path: Path) -> None:
    ours, theirs = (load_tensors(folder / "state.ckpt")[0] for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not ours[name].equal(theirs[name])]
    files = ["state.ckpt", "config.json", "data.json", "reals.png"]
    files += [str(path.relative_to(whole)) for path in whole.glob("*/*.png")]
    files += [path.name for path in whole.glob("network-*")]
    assert len(files) >= 7
    for name in files:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    seen = [row["images_seen"] for row in rows(run)]
    assert seen == sorted(set(seen)) and seen[-1] == KIMG * 1000
    assert not leftovers(run)
    samples = []
    for folder in (run, whole):
        out = tmp_path / f"samples-{len(samples)}"
        invoke(["generate", "--network", str(folder), "--seeds", "0-3", "--trunc", "0.8", "--out", str(out)])
        samples.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert samples[0] == samples[1] and len(set(samples[0])) == 4


def test_killed_at_any_moment(data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL: in a fade between the steps of D and G, while the state is written, around its renaming, anywhere."""
    random_ = random.Random(SEED)
    run = tmp_path / "run"
    state, size = run / "state.ckpt", (whole / "state.ckpt").stat().st_size
    arguments = train_arguments(data, run, *EVERYTHING, kimg=KIMG)
    kills = [
        ("step", random_.randrange(152, 200), 144),  # the state in the run folder afterwards, in images
        ("writing", random_.randrange(size // 4), 144),
        ("replacing", 0, 144),
        ("replaced", 0, 216),
    ]
    print(f"STYLEGEN_TEST_SEED={SEED}: {kills}")
    for event, where, images in kills:
        with start(event, where, [*arguments, *threads(random_.random() < 0.5)]) as process:
            assert process.wait(60) == -signal.SIGKILL, process.stderr and process.stderr.read()
        assert saved_config(state)[1] == images, event
        assert bool(leftovers(run)) == (event in ("writing", "replacing")), "earlier ones are removed on resume"
    begun = len(rows(run))
    with start("slow", 30, arguments) as process:
        until(process, lambda: len(rows(run)) > begun)
        time.sleep(random_.random())
        process.kill()
    print(f"then at {rows(run)[-1]['images_seen']} images, state of {saved_config(state)[1]}")
    subprocess.run([*PROGRAM, *arguments], check=True, env=environment())
    assert_same_run(run, whole, tmp_path)


def test_interrupted_and_terminated(data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGINT and SIGTERM finish the step, save, exit 0 or 75, even if nobody reads the terminal; workers may change."""
    run = tmp_path / "run"
    arguments = train_arguments(data, run, *EVERYTHING, kimg=KIMG)
    images = 0
    for number, workers in ((signal.SIGINT, 0), (signal.SIGTERM, 1)):
        with start("slow", 10, [*arguments, "--workers", str(workers)]) as process:
            until(process, lambda begun=images: any(row["images_seen"] > begun for row in rows(run)))
            assert process.stderr
            if number == signal.SIGTERM:
                process.stderr.close()
            process.send_signal(number)
            text = "" if process.stderr.closed else process.stderr.read()
            assert process.wait(60) == (0 if number == signal.SIGINT else 75), text
        assert "Traceback" not in text
        log = (run / "log.txt").read_text().splitlines()
        assert f"Stopped at {rows(run)[-1]['kimg']:g} kimg; --resume goes on." in log[-1]
        assert images < saved_config(run / "state.ckpt")[1] == rows(run)[-1]["images_seen"] < KIMG * 1000
        images = saved_config(run / "state.ckpt")[1]
    subprocess.run([*PROGRAM, *arguments, "--workers", "3"], check=True, env=environment())
    (run / "previews" / f"kimg-{images / 1000:010.3f}.png").unlink(missing_ok=True)  # one more, of the interruption
    assert_same_run(run, whole, tmp_path)


def test_second_interrupt_ends_at_once(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start("slow", 100_000, train_arguments(data, run)) as process:
        until(process, (run / "previews" / "kimg-000000.000.png").exists)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        while "Finishing this step" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert not (run / "state.ckpt").exists()


def test_interrupted_before_the_first_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preview = outputs.preview

    def interrupted(*arguments: object) -> None:
        monkeypatch.setattr(outputs, "preview", preview)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(outputs, "preview", interrupted)
    invoke(train_arguments(data, tmp_path / "run"))
    assert saved_config(tmp_path / "run" / "state.ckpt")[1] == 8


def test_a_stop_leaves_the_network_of_its_kimg(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, preview, before = tmp_path / "run", outputs.preview, b"the snapshot of 0 kimg"

    def interrupted(*arguments: object) -> None:
        monkeypatch.setattr(outputs, "preview", preview)
        outputs.network_path(run, 0).write_bytes(before)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(outputs, "preview", interrupted)
    invoke(train_arguments(data, run))
    assert outputs.network_path(run, 0).read_bytes() == before and (run / "state.ckpt").exists()


VARIANTS = {
    "stylegan": ["--mirror", "--set", "loss.penalty_interval=4", "--set", "loss.mixing_probability=0.9"],
    "stylegan-cond": ["--cond", "--loss", "rpgan", "--seed", "7"],
    "progan": ["--preset", "progan-1024"],
    "progan-cond": ["--preset", "progan-1024", "--cond"],
    "n-critic": ["--loss", "wgan", "--set", "loss.n_critic=2", "--set", "optimizer.name=rmsprop"],
    "sgd": [
        "--loss",
        "hinge",
        "--set",
        "optimizer.name=sgd",
        "--set",
        "optimizer.beta1=0.5",
        "--set",
        "loss.label_flip=0.1",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("half", [0.048, 0.136])  # while 4x4 is held, while 8x8 fades in
def test_two_halves_are_a_whole(variant: str, half: float, tmp_path: Path) -> None:
    data = data_zip(tmp_path / "noise.zip", classes=3)
    a, b = tmp_path / "a", tmp_path / "b"
    options = ["--set", "training.ema_half_life_kimg=0.1", "--workers", 0, *VARIANTS[variant]]
    invoke(train_arguments(data, a, *options, kimg=2 * half))
    invoke(train_arguments(data, b, *options, kimg=half))
    assert (a / "state.ckpt").read_bytes() != (b / "state.ckpt").read_bytes()
    result = invoke(train_arguments(data, b, *options, "--resume", kimg=2 * half))
    assert "Resuming at" in result.stderr
    for name in ("state.ckpt", "network-000000.safetensors", f"previews/kimg-{2 * half:010.3f}.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def crash_at(images: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    iterate = loop.iterate

    def crash(state: loop.TrainState, *rest: Any, **options: Any) -> object:
        if state.images_seen == images:
            raise OSError("the machine is gone")
        return iterate(state, *rest, **options)

    monkeypatch.setattr(loop, "iterate", crash)
    invoke(arguments, code=1)
    monkeypatch.undo()


def test_a_state_every_few_minutes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    often = ["--snapshot-kimg", 100, "--set", "output.save_minutes=0"]
    crash_at(80, train_arguments(data, run, *often), monkeypatch)
    assert saved_config(run / "state.ckpt")[1] == 80
    assert not list(run.glob("network-*"))


def test_reports_and_leftovers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was reported after the state was saved is reported again, and stands there once."""
    run = tmp_path / "run"
    often = ["--snapshot-kimg", ".05", "--set", "schedule.tick_kimg_default=.008", "--resume"]
    arguments = train_arguments(data, run, *often)
    crash_at(80, arguments, monkeypatch)
    assert (saved_config(run / "state.ckpt")[1], rows(run)[-1]["images_seen"]) == (56, 80)
    with open(run / "stats.jsonl", "a") as file:
        file.write('{"images_se')
    for folder in (run, run / "previews"):
        (folder / ".state.ckpt.1.tmp").write_text("half")
    invoke(arguments)
    steps = list(range(8, 105, 8))
    assert [row["images_seen"] for row in rows(run)] == steps
    assert not leftovers(run)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert [point.step for point in events.EventAccumulator(str(run)).Reload().Scalars("loss/d")] == steps


def test_resume_starts_where_nothing_is(data: Path, tmp_path: Path) -> None:
    """A run that exists is not started over; without a state there is nothing to lose."""
    run, arguments = tmp_path / "run", train_arguments(data, tmp_path / "run", kimg=0.016)
    assert "Training from 0" in invoke([*arguments, "--resume"]).stderr
    before = (run / "state.ckpt").read_bytes()
    assert "add --resume" in invoke(arguments, code=2).stderr
    assert (run / "state.ckpt").read_bytes() == before
    assert "Finished at 0.016 kimg" in invoke([*arguments, "--resume"]).stderr
    (run / "state.ckpt").unlink()
    assert "already holds a run" in invoke(arguments, code=2).stderr, "its networks would be lost"
    for network in run.glob("network-*"):
        network.unlink()
    invoke(arguments)
    assert (run / "state.ckpt").read_bytes() == before
