"""States on disk: the newest whole one is found, whatever became of others; training goes on while they are written."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import data_zip, error_line, fill, invoke, rows, train_arguments

from stylegen.checkpoint import load_tensors, save_tensors
from stylegen.files import write_atomic
from stylegen.training import loop, saver
from stylegen.training.saver import DAMAGED, saved_states
from stylegen.training.state import saved_config

EVERY = ["--snapshot-kimg", ".048", "--resume", "--preview-kimg", "9", "--workers", "0"]
FIRST = "state-000000.048.ckpt"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip")


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """Undisturbed runs by their length in kimg, with a state every 0.048."""
    folder = tmp_path_factory.mktemp("runs")
    for kimg in (0.048, 0.096, 0.144):
        invoke(train_arguments(data, folder / f"{kimg}", *EVERY, kimg=kimg))
    return {kimg: folder / f"{kimg}" for kimg in (0.048, 0.096, 0.144)}


@pytest.fixture
def run(runs: dict[float, Path], tmp_path: Path) -> Path:
    """One of 0.096 kimg, to be damaged and gone on with."""
    return Path(shutil.copytree(runs[0.096], tmp_path / "run"))


def goes_on(data: Path, run: Path, whole: Path) -> str:
    """What is said on the way to the end of `whole`, which it reaches to the bit."""
    said = invoke(train_arguments(data, run, *EVERY, kimg=0.144)).stderr
    for name in ("state.ckpt", "network-000000.safetensors"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    seen = [row["images_seen"] for row in rows(run)]
    assert seen == sorted(set(seen)) and seen[-1] == 144
    assert not list(run.glob(".*.tmp"))
    return said


def header_end(path: Path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is cut short"),
    "a bit of a weight": (lambda path: flip(path, header_end(path) + 5000), "its checksum is another one"),
    "the last bit": (lambda path: flip(path, -1), "its checksum is another one"),
    "a digit of the header": (lambda path: flip(path, path.read_bytes().index(b'"images_seen":"96') + 15), "checksum"),
    "the head": (lambda path: flip(path, 8), "is not a safetensors file"),
    "emptied": (lambda path: path.write_bytes(b""), "is empty"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_gives_way_to_the_one_before(
    damage: str, data: Path, run: Path, runs: dict[float, Path]
) -> None:
    act, why = DAMAGES[damage]
    act(run / "state.ckpt")
    damaged = (run / "state.ckpt").read_bytes()
    said = goes_on(data, run, runs[0.144])
    warning = next(line for line in said.splitlines() if line.startswith("Warning: "))
    assert str(run / "state.ckpt") in warning and why in warning
    assert warning.endswith(f"going on from {FIRST} instead. It stays as {DAMAGED}")
    assert warning in (run / "log.txt").read_text() and "Resuming at 0.048" in said
    assert (run / DAMAGED).read_bytes() == damaged


@pytest.mark.parametrize("damage", ["cut short", "a bit of a weight", "emptied"])
def test_all_damaged(damage: str, data: Path, run: Path) -> None:
    for path in (run / "state.ckpt", run / FIRST):
        DAMAGES[damage][0](path)
    before = {path: path.read_bytes() for path in run.glob("*.ckpt")}
    result = invoke(train_arguments(data, run, *EVERY, kimg=0.144), 1)
    message = error_line(result.stderr)
    assert str(run / "state.ckpt") in message and DAMAGES[damage][1] in message and "give another --out" in message
    assert {path: path.read_bytes() for path in run.glob("*.ckpt")} == before


def test_a_state_of_an_older_version_has_no_checksum(data: Path, run: Path, runs: dict[float, Path]) -> None:
    tensors, metadata = load_tensors(run / "state.ckpt")
    save_tensors(run / "state.ckpt", tensors, metadata)
    assert b"checksum" not in (run / "state.ckpt").read_bytes() and b"checksum" in (run / FIRST).read_bytes()
    assert "Resuming at 0.096" in goes_on(data, run, runs[0.144])


@pytest.mark.parametrize(("keep", "kept"), [(1, []), (2, [0.04]), (3, [0.04, 0.032])])
def test_so_many_are_kept(keep: int, kept: list[float], data: Path, tmp_path: Path) -> None:
    often = ["--snapshot-kimg", ".008", "--set", f"output.keep_states={keep}", "--preview-kimg", "9"]
    invoke(train_arguments(data, tmp_path / "run", *often, kimg=0.048))
    names = ["state.ckpt", *(f"state-{kimg:010.3f}.ckpt" for kimg in kept)]
    assert [path.name for path in saved_states(tmp_path / "run")] == names
    assert [saved_config(tmp_path / "run" / name)[1] for name in names[1:]] == [1000 * kimg for kimg in kept]


def test_without_hard_links(data: Path, tmp_path: Path, runs: dict[float, Path], monkeypatch: Any) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    run = tmp_path / "run"
    invoke(train_arguments(data, run, *EVERY, kimg=0.096))
    assert (run / FIRST).read_bytes() == (runs[0.096] / FIRST).read_bytes()
    (run / "state.ckpt").write_bytes(b"")
    assert "Resuming at 0.048" in goes_on(data, run, runs[0.144])


def test_ended_between_the_two_names(data: Path, run: Path, runs: dict[float, Path], monkeypatch: Any) -> None:
    """The newest state has its second name already, and the next one is not there yet."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("the end")

    monkeypatch.setattr(saver, "save_tensors", fail)
    invoke(train_arguments(data, run, *EVERY, kimg=0.144), 1)
    monkeypatch.undo()
    assert (run / "state-000000.096.ckpt").samefile(run / "state.ckpt")
    assert "Resuming at 0.096" in goes_on(data, run, runs[0.144])


def test_a_network_drive_that_lost_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The renaming is done, asked for again, and there is nothing left to rename."""
    replace = os.replace

    def twice(old: Path, new: Path) -> None:
        for _ in range(2):
            replace(old, new)

    monkeypatch.setattr(os, "replace", twice)
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    monkeypatch.setattr(os, "replace", lambda old, new: replace(tmp_path / "nothing", new))
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "file", "newer")
    assert (tmp_path / "file").read_text() == "new"


# A full disk


def test_no_room_for_a_state(data: Path, disk: Path) -> None:
    """It is found before anything is written, and the last state stays."""
    run, alone = disk / "run", [*EVERY, "--set", "output.keep_states=1"]
    invoke(train_arguments(data, run, *alone, kimg=0.096))
    before, size = (run / "state.ckpt").read_bytes(), (run / "state.ckpt").stat().st_size
    fill(disk, (run / "network-000000.safetensors").stat().st_size // 1024 + 40)
    message = error_line(invoke(train_arguments(data, run, *alone, kimg=0.144), 1).stderr)
    assert message.startswith(f"{run / 'state.ckpt'}: No space left on device: ") and "make room" in message
    needed, free = (float(part.split()[-1]) for part in message.split(" MB are")[:2])
    assert abs(needed - size / 1e6) < 0.15 and 0 <= free < needed
    assert (run / "state.ckpt").read_bytes() == before


def test_older_states_make_room(data: Path, disk: Path) -> None:
    run = disk / "run"
    more = [*EVERY, "--set", "output.keep_states=3", "--snapshot-kimg", ".024"]
    invoke(train_arguments(data, run, *more, kimg=0.072))
    assert len(saved_states(run)) == 3
    fill(disk, (run / "network-000000.safetensors").stat().st_size // 1024 + 24)
    invoke(train_arguments(data, run, *more, kimg=0.096))
    assert [saved_config(path)[1] for path in saved_states(run)] == [96, 72]


# While training goes on


def slowed(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[tuple[float, float]]:
    """Has the writing of a state take so long before it begins; returns when each began and ended."""
    times: list[tuple[float, float]] = []

    def slow(*arguments: Any, **options: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        begun = time.monotonic()
        time.sleep(seconds)
        save_tensors(*arguments, **options)
        times.append((begun, time.monotonic()))

    monkeypatch.setattr(saver, "save_tensors", slow)
    return times


def test_training_goes_on_meanwhile(data: Path, tmp_path: Path, runs: dict[float, Path], monkeypatch: Any) -> None:
    """And leaves what is being written alone."""
    iterate, at = loop.iterate, []

    def counted(*arguments: Any, **options: Any) -> Any:
        at.append(time.monotonic())
        return iterate(*arguments, **options)

    monkeypatch.setattr(loop, "iterate", counted)
    times, run = slowed(monkeypatch, 1.0), tmp_path / "run"
    invoke(train_arguments(data, run, *EVERY, kimg=0.096))
    begun, ended = times[0]
    assert sum(begun < moment < ended for moment in at) >= 4, "of the 6 until the next state"
    assert (run / FIRST).read_bytes() == (runs[0.096] / FIRST).read_bytes()
    ours, theirs = (load_tensors(path)[0] for path in (run / FIRST, runs[0.048] / "state.ckpt"))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)
    assert (run / "state.ckpt").read_bytes() == (runs[0.096] / "state.ckpt").read_bytes()


def test_what_goes_wrong_meanwhile_ends_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the next iteration, and not when the next state is due."""

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(saver, "save_tensors", fail)
    run = tmp_path / "run"
    often = ["--set", "schedule.tick_kimg_default=.008"]
    result = invoke(train_arguments(data, run, *EVERY, *often, kimg=9), 1)
    assert error_line(result.stderr) == f"{run / 'state.ckpt'}: Input/output error"
    assert rows(run)[-1]["images_seen"] <= 88
    assert "Error: " in (run / "log.txt").read_text()
