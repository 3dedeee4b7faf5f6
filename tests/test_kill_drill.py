"""A run of two workers, killed again and again wherever it is, ends as one that nobody disturbs, to the bit."""

import itertools
import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from processes import children, kill, needs_proc, started, until
from tiny import data_zip, rows, train_arguments

from stylegen.checkpoint import load_tensors

pytestmark = needs_proc
SEED = int(os.environ.get("STYLEGEN_TEST_SEED", time.time_ns() % 2**32))
KILLS = int(os.environ.get("STYLEGEN_TEST_KILLS", 30))
KIMG, BATCH = 2.4, 8  # fades from 0.6 to 0.8 and from 1.4 to 1.6
LONGEST_SEC = 60.0
OPTIONS = ["--gpus", "2", "--restarts", "99", "--timeout", "30", "--resume", "--workers", "1", "--mirror"]
OPTIONS += ["--hold-kimg", ".6", "--fade-kimg", ".2", "--set", "output.save_minutes=0", "--preview-kimg", ".5"]
OPTIONS += ["--snapshot-kimg", ".5", "--gamma", "1", "--set", "loss.penalty_interval=4"]
OPTIONS += ["--set", "loss.mixing_probability=0.9", "--set", f"schedule.tick_kimg_default={BATCH / 1000}"]


def test_thirty_kills(tmp_path: Path) -> None:
    """Of a worker, the launcher or all at once, at any time or while a state is written; every step is a row."""
    draw = random.Random(SEED)
    print(f"STYLEGEN_TEST_SEED={SEED}")
    data, run, whole = data_zip(tmp_path / "noise.zip"), tmp_path / "run", tmp_path / "whole"
    command, said = train_arguments(data, run, *OPTIONS, kimg=KIMG), tmp_path / "said.txt"
    kills, waits = 0, []
    found: Counter[str] = Counter()
    with ExitStack() as stack:
        calm = stack.enter_context(started(train_arguments(data, whole, *OPTIONS, kimg=KIMG), tmp_path / "whole.txt"))
        process = stack.enter_context(started(command, said))
        while kills < KILLS:
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, said.read_text()[-3000:]
                process = stack.enter_context(started(command, said))
            moment = draw.choices(("start", "training", "saving"), (2, 3, 2))[0]
            victim = draw.choices(("worker", "launcher", "all"), (2, 1, 1))[0]
            before, stale, begun = steps(run), being_written(run), time.monotonic()
            if moment == "start":
                pause = draw.uniform(0, 4)
                until(lambda: steps(run) > before or time.monotonic() - begun > pause)  # noqa: B023
            else:
                ahead = (KIMG * 1000 / BATCH - before) / (KILLS - kills + 1)
                wanted = before + draw.randint(1, max(1, int(1.5 * ahead)))
                waits.append(until(lambda: steps(run) >= wanted, LONGEST_SEC, process))  # noqa: B023
            if moment == "training":
                time.sleep(draw.uniform(0, 0.03))
            elif moment == "saving":
                until(lambda: being_written(run) - stale, of=process)  # noqa: B023
            if victim == "worker":
                until(lambda: children(process.pid), of=process)  # noqa: B023
            workers = children(process.pid)
            hit = "saving" if being_written(run) - stale else "training" if steps(run) > before else "starting"
            some = [draw.choice(workers)] if victim == "worker" else workers if victim == "all" else []
            for pid in some if victim == "worker" else [process.pid, *some]:
                kill(pid)
            if victim != "worker":
                process.wait()
            kills += 1
            found[f"{victim} while {hit}"] += 1
            print(f"{kills:2} {victim} while {hit}, step {steps(run)}, after {time.monotonic() - begun:.1f} s")
        if process.poll() is not None:
            process = stack.enter_context(started(command, said))
        reached = steps(run)
        waits.append(until(lambda: steps(run) > reached or process.poll() is not None, LONGEST_SEC))
        assert process.wait(120) == 0, said.read_text()[-3000:]
        assert calm.wait(120) == 0, (tmp_path / "whole.txt").read_text()
    print(f"longest wait {max(waits):.1f} s; {dict(sorted(found.items()))}")
    assert_same(run, whole)


def steps(run: Path) -> int:
    """How many have been reported."""
    path = run / "stats.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def being_written(run: Path) -> set[Path]:
    """States that are, or were when their process ended."""
    return set(run.glob(".state.ckpt.*.tmp"))


def assert_same(run: Path, whole: Path) -> None:
    ours, theirs = (load_tensors(folder / "state.ckpt")[0] for folder in (run, whole))
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not ours[name].equal(theirs[name])]
    files = [path.name for path in whole.glob("*.safetensors")] + ["state.ckpt", "config.json"]
    assert len(files) == 5
    for name in files:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    for a, b in itertools.zip_longest(map(untimed, rows(run)), map(untimed, rows(whole))):
        assert a == b
    assert len(rows(run)) == KIMG * 1000 / BATCH


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("images_per_sec", "elapsed_sec")}
