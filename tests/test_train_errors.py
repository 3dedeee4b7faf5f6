"""What stylegen train refuses, and how a run ends when something goes wrong: one line, the right exit code, no loss."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import data_zip, error_line, fill, invoke, rows, train_arguments

from stylegen.checkpoint import load_tensors, save_tensors
from stylegen.files import exclusive
from stylegen.training import loop
from stylegen.training.state import saved_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    invoke(train_arguments(data, run, kimg=0.16))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be resumed or damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_two_processes_cannot_share_a_run(data: Path, run: Path) -> None:
    pytest.importorskip("fcntl")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with exclusive(run):
        fails([*train_arguments(data, run, kimg=0.32), "--resume"], 1, "another process", str(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def fails(arguments: list[str], code: int, *parts: str) -> None:
    message = error_line(invoke(arguments, code).stderr)
    assert not [part for part in parts if part not in message], message


# What it refuses


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--resolution", "100"], ["16x16", "100x100", "dataset build"]),
        (["--resolution", "4"], ["cannot grow", "4x4"]),
        (["--resolution", "big"], ["'big'", "512x256"]),
        (["--preset", "tiny"], ["'tiny'", "small-64"]),
        (["--loss", "l1"], ["'l1'", "hinge"]),
        (["--cond"], ["--cond", "no labels", "--labels"]),
        (["--set", "nonsense"], ["'nonsense'", "section.field=value"]),
        (["--set", "losses.r1_gamma=1"], ["'losses'", "loss"]),
        (["--set", "loss.gamma=1"], ["'gamma'", "r1_gamma"]),
        (["--set", "loss.r1_gamma=much"], ["loss.r1_gamma", "'much'", "a number"]),
        (["--set", "schedule.batch=33:8"], ["level 33", "4, 8, 16"]),
        (["--set", "loss.acgan_weight=1"], ["acgan_weight", "class head"]),
        (["--preset", "progan-1024", "--set", "loss.mixing_probability=1"], ["mixing_probability", "styles"]),
        (["--set", "optimizer.name=lion"], ["'lion'", "adam"]),
        (["--set", "generator.channels=1"], ["generator.channels", "discriminator.channels"]),
        (["--gamma", "nan"], ["r1_gamma"]),
        (["--kimg", "inf"], ["total_kimg", "finite"]),
        (["--set", "discriminator.mbstd_features=3"], ["mbstd_features is 3", "divide"]),
        (["--set", "generator.latent_size=1000000000000"], ["latent_size", "65,536"]),
        (["--hold-kimg", "inf"], ["hold_kimg", "finite"]),
        (["--kimg", "0.0001"], ["total_kimg", "one picture"]),
        (["--lr", "-1"], ["--lr"]),
        (["--batch", "0"], ["--batch"]),
        (["--hold-kimg", "0", "--fade-kimg", "0"], ["hold_kimg"]),
        (["--kimgs", "3"], ["--kimgs"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_bad_options(data: Path, options: list[str], parts: list[str], tmp_path: Path) -> None:
    fails(train_arguments(data, tmp_path / "run", *options), 2, *parts)
    assert not list(tmp_path.iterdir())


def test_bad_data(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fails(train_arguments(tmp_path / "nothing", out), 2, "nothing", "emoji-people-64", "dataset build")
    (tmp_path / "empty").mkdir()
    fails(train_arguments(tmp_path / "empty", out), 1, "no pictures")
    (tmp_path / "text.zip").write_text("text")
    fails(train_arguments(tmp_path / "text.zip", out), 1, "text.zip is not a whole zip")
    fails(train_arguments(data_zip(tmp_path / "odd.zip", size=(15, 15)), out), 2, "15x15", "cannot grow")
    (tmp_path / "mixed").mkdir()
    for side in (16, 32):
        Image.new("RGB", (side, side)).save(tmp_path / "mixed" / f"{side}.png")
    fails(train_arguments(tmp_path / "mixed", out), 1, "16x16", "32x32", "dataset build")
    assert not out.exists()
    (tmp_path / "file").write_text("")
    fails(train_arguments(data_zip(tmp_path / "good.zip"), tmp_path / "file"), 2, "file")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--lr", "0.5"], ["lr_default: 0.5 here, 0."]),
        (["--batch", "16"], ["batch_default: 16 here, 8 in the saved run"]),
        (["--gamma", "77"], ["r1_gamma: 77.0 here"]),
        (["--loss", "hinge"], ["objective: hinge here"]),
        (["--preset", "small-64"], ["preset: small-64 here, small-32"]),
        (["--resolution", "8"], ["resolution: 8x8 here, 16x16"]),
        (["--mirror", "--seed", "3"], ["mirror: True here", "seed: 3 here, 0 in"]),
        (["--augment", "color,cutout"], ["augment: color,cutout here, none in"]),
        (["--set", "optimizer.beta1=0.5"], ["beta1: 0.5 here"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_resume_refuses_what_would_change_the_run(data: Path, run: Path, options: list[str], parts: list[str]) -> None:
    before = (run / "state.ckpt").read_bytes()
    fails(["train", str(data), "--out", str(run), "--resume", *options], 2, "--resume", *parts)
    assert (run / "state.ckpt").read_bytes() == before


def test_resume_needs_the_same_data(run: Path, tmp_path: Path) -> None:
    resume = ["--out", str(run), "--resume"]
    fails(["train", str(data_zip(tmp_path / "other.zip", seed=1)), *resume], 2, "not, or no longer, what the run was")
    fails(["train", str(data_zip(tmp_path / "wide.zip", size=(16, 32))), *resume], 2, "not, or no longer")
    fails(["train", str(data_zip(tmp_path / "gray.zip", mode="L")), *resume], 2, "channels: 1 here, 3")
    fails(["train", str(data_zip(tmp_path / "labels.zip", classes=3)), *resume, "--cond"], 2, "labels: 3 here, 0")


def test_damaged_files(data: Path, run: Path) -> None:
    """A state that is cut, foreign, or does not fit; a network cut short."""
    state, network = run / "state.ckpt", run / "network-000000.safetensors"
    resume = ["train", str(data), "--out", str(run), "--resume", "--kimg", "9"]
    whole = state.read_bytes()
    tensors, metadata = load_tensors(state)
    name = next(name for name in tensors if name.startswith("D/"))

    state.write_bytes(whole[:-100])
    fails(resume, 1, str(state), "cut short")
    state.write_bytes(whole[:100])
    fails(resume, 1, str(state), "cut short")
    state.write_bytes(b"")
    fails(resume, 1, str(state), "empty")
    state.write_text("my notes about the run")
    fails(resume, 1, str(state), "not a safetensors file", "its networks still work")
    assert "Warning: " in (told := invoke(["info", str(run)])).stderr and "stylegan" in told.stdout
    state.write_bytes(network.read_bytes())
    fails(resume, 1, str(state), "stylegen-network", "expected stylegen-state")
    save_tensors(state, {key: tensor for key, tensor in tensors.items() if key != name}, metadata)
    fails(resume, 1, str(state), "does not fit")
    save_tensors(state, tensors | {name: torch.zeros(3, 3)}, metadata)
    fails(resume, 1, str(state), "does not fit")
    save_tensors(state, tensors, metadata | {"config": "{}"})
    fails(resume, 1, str(state), "config cannot be read")
    assert rows(run)[-1]["images_seen"] == 160, "nothing else was touched"

    network.write_bytes(network.read_bytes()[:-100])
    fails(["generate", "--network", str(run), "--seeds", "0", "--out", str(run / "samples")], 1, "cut short")


# How it ends when something goes wrong


@pytest.mark.parametrize(("lr", "snapshot"), [("1e30", ".1"), ("1e39", ".008")])  # 1e39 is infinite in float32
def test_non_finite_losses_and_weights(data: Path, lr: str, snapshot: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    explosion = ["--set", f"schedule.lr=8:{lr}", "--snapshot-kimg", snapshot]  # when 8x8 fades in
    arguments = train_arguments(data, run, *explosion, kimg=0.3)
    fails(arguments, 1, "non-finite at 0.1", "8x8", f"last good state is kept in {run / 'state.ckpt'}", "--lr")
    assert "non-finite" in (run / "log.txt").read_text().splitlines()[-1]
    tensors, _ = load_tensors(run / "state.ckpt")
    assert saved_config(run / "state.ckpt")[1] == 104
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    fails([*arguments, "--resume"], 1, "non-finite at 0.1")
    fails(train_arguments(data, tmp_path / "b", "--lr", lr), 1, "no state had been saved yet")


def test_non_finite_weights_are_not_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G's last update shows in no loss of its own step."""
    iterate, run = loop.iterate, tmp_path / "run"

    def explode(state: loop.TrainState, *rest: Any, **options: Any) -> object:
        stats = iterate(state, *rest, **options)
        if state.images_seen == 24:
            next(state.G.parameters()).data[0] = float("inf")
        return stats

    monkeypatch.setattr(loop, "iterate", explode)
    fails(
        train_arguments(data, run, "--snapshot-kimg", ".008"), 1, "G/", "non-finite at 0.024", str(run / "state.ckpt")
    )
    assert saved_config(run / "state.ckpt")[1] == 16


def test_full_disk_while_the_state_is_saved(data: Path, disk: Path, tmp_path: Path) -> None:
    """One line names the file, the state of before still loads, and with room again the run goes on from it."""
    options = ["--snapshot-kimg", ".1", "--preview-kimg", "9", "--resume"]
    runs = tmp_path / "whole", disk / "run"
    for run in runs:
        invoke(train_arguments(data, run, *options, kimg=0.1))
    invoke(train_arguments(data, runs[0], *options, kimg=0.3))
    state = runs[1] / "state.ckpt"
    before, networks = state.read_bytes(), (runs[1] / "network-000000.safetensors").stat().st_size
    assert networks // 1024 + 40 < len(before) // 1024
    filler = fill(disk, networks // 1024 + 40)
    arguments = train_arguments(data, runs[1], *options, kimg=0.3)
    fails(arguments, 1, str(state), "No space left on device")
    assert state.read_bytes() == before
    assert not list(disk.rglob(".*.tmp"))
    filler.unlink()
    invoke(arguments)
    for name in ("state.ckpt", "network-000000.safetensors", "previews/kimg-000000.304.png"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name


@pytest.mark.parametrize(("preview_kimg", "spare_kb"), [(0.05, 0), (0.05, 4), (0.05, 60), (9, 8), (9, 12), (9, 48)])
def test_full_disk_anywhere(data: Path, disk: Path, preview_kimg: float, spare_kb: int) -> None:
    """config.json, stats.jsonl, log.txt, TensorBoard's events, previews, networks: whichever is the first to fail."""
    run = disk / "run"
    often = ["--resume", "--preview-kimg", preview_kimg, "--set", "schedule.tick_kimg_default=.008"]
    invoke(train_arguments(data, run, *often, kimg=0.1))
    before = (run / "state.ckpt").read_bytes()
    filler = fill(disk, spare_kb)
    arguments = train_arguments(data, run, *often, kimg=0.3)
    message = error_line(invoke(arguments, 1).stderr)
    assert message.startswith(str(run)) and "No space left on device" in message
    assert (run / "state.ckpt").read_bytes() == before
    assert not list(disk.rglob(".*.tmp"))
    filler.unlink()
    invoke(arguments)
    seen = [row["images_seen"] for row in rows(run)]
    assert seen == sorted(set(seen)) and seen[-1] == 304
    print(message)
