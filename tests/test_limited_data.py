"""What helps with few pictures: augmentation by `ada` in a run, weights of another network, frozen layers of D."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import data_zip, error_line, invoke, rows, train_arguments

from stylegen.checkpoint import load_tensors
from stylegen.training.state import saved_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip", classes=2)


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has grown to 16x16."""
    run = tmp_path_factory.mktemp("runs") / "source"
    invoke(train_arguments(data, run, "--snapshot-kimg", 9, kimg=0.5))
    return run


def growing(*arguments: object, kimg: float) -> list[str]:
    """A tiny run whose first level is left to the program."""
    found = train_arguments(*arguments, kimg=kimg)  # type: ignore[arg-type]
    at = found.index("schedule.initial_level=0")
    return found[: at - 1] + found[at + 1 :]


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "state.ckpt")[0]


# Augmentation by `ada`


@pytest.mark.parametrize("kinds", ["blit,geometry,color", "filter,noise,cutout"])
def test_p_moves_and_resumes(data: Path, kinds: str, tmp_path: Path) -> None:
    """By images / speed every four batches, up to the ceiling; half and half is the whole, between two moves too."""
    runs, ada = [tmp_path / "whole", tmp_path / "halves"], ["--augment", "ada", "--ada-kinds", kinds, "--resume"]
    ada += ["--ada-target", 0, "--ada-speed-kimg", 1, "--ada-ceiling", 0.03]
    often = ["--set", "schedule.tick_kimg_default=.008"]
    for run, parts in zip(runs, ([0.208], [0.04, 0.208]), strict=True):
        for kimg in parts:
            invoke(train_arguments(data, run, *ada, *often, kimg=kimg))
    whole, halves = map(tensors, runs)
    assert whole.keys() == halves.keys() and all(whole[name].equal(halves[name]) for name in whole)
    found = rows(runs[0])
    p, signs = ([row[name] for row in found] for name in ("augment/p", "signs/real"))
    expected = [0.0]
    for i in range(len(found)):
        moved = 0.032 * np.sign(np.mean(signs[i - 3 : i + 1])) if i % 4 == 3 else 0
        expected.append(min(max(expected[-1] + moved, 0), 0.03))
    assert p == pytest.approx(expected[1:]) and set(p) == {0, 0.03} and whole["ada"][0] == p[-1]
    invoke(train_arguments(data, tmp_path / "plain", *often, kimg=0.208))
    assert not all(value.equal(tensors(tmp_path / "plain")[name]) for name, value in whole.items() if name != "ada")


def test_p_falls_to_zero(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    invoke(train_arguments(data, run, "--augment", "ada", "--ada-target", 0.99, "--ada-speed-kimg", 1))
    assert {row["augment/p"] for row in rows(run)} == {0}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--augment", "ada,color"], ["ada or a list of color", "not both"]),
        (["--augment", "ada", "--loss", "wgan-gp"], ["signs of D's scores", "wasserstein"]),
        (["--augment", "ada", "--ada-ceiling", "1.5"], ["ada_ceiling is 1.5", "up to 1"]),
        (["--augment", "ada", "--ada-target", "1"], ["ada_target is 1"]),
        (["--augment", "ada", "--ada-kinds", "blur"], ["'blur' is not one of 'blit'"]),
        (["--ada-target", "0.5"], ["--ada-target means nothing without --augment ada"]),
        (["--set", "training.freeze_d=3"], ["freeze_d is 3", "0 to 2 layers"]),
        (["--freeze-d", "1"], ["--freeze-d keeps what D has learnt elsewhere", "--init-from a run folder"]),
        (["--freeze-d", "1", "--init-from", "emoji64"], ["--init-from a run folder"]),
        (["--init-from", "nowhere"], ["nowhere"]),
        (["--init-from", "SOURCE", "--preset", "progan-1024"], ["SOURCE is a stylegan", "progan"]),
    ],
)
def test_refused(data: Path, source: Path, options: list[str], parts: list[str], tmp_path: Path) -> None:
    given = [option.replace("SOURCE", str(source)) for option in options]
    message = error_line(invoke(train_arguments(data, tmp_path / "run", *given), 2).stderr)
    assert not [part for part in parts if part.replace("SOURCE", str(source)) not in message], message
    assert not (tmp_path / "run").exists()


# Weights of another network


def test_starting_from_a_run(data: Path, source: Path, tmp_path: Path) -> None:
    """All of it, at its level; the optimizers, the schedule and the pictures are new."""
    run = tmp_path / "run"
    result = invoke(growing(data, run, "--init-from", source, "--lr", 1e-9, kimg=0.016))
    assert f"Starting from the run {source}" in result.stderr and "now 16x16" in result.stderr
    ours, theirs = tensors(run), tensors(source)
    for name in theirs:
        if name[:2] in ("G/", "D/") and "w_avg" not in name:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    assert saved_config(run / "state.ckpt")[0].training.ada_speed_kimg == 100
    invoke(growing(data, run, "--init-from", source, "--lr", 1e-9, "--resume", kimg=0.032))


def test_starting_from_a_network_and_what_does_not_fit(data: Path, source: Path, tmp_path: Path) -> None:
    """Of another size and with labels: what fits is taken, and the message says how much; D is new."""
    larger = data_zip(tmp_path / "larger.zip", size=(32, 32), classes=2)
    network = next(source.glob("network-*"))
    arguments = growing(larger, tmp_path / "run", "--init-from", network, "--cond", "--lr", 1e-9, kimg=0.016)
    result = invoke(arguments)
    assert "Starting from the network" in result.stderr and "D starts from nothing" in result.stderr
    assert re.search(r"tensors of G \(\d+ have other shapes there: \S+ is [\dx]+, and [\dx]+ there\)", result.stderr)
    assert "now 16x16" in result.stderr, "the level that the source has reached"
    ours, theirs = tensors(tmp_path / "run"), tensors(source)
    for name in ("G/synthesis.layers.3.conv.weight", "G_ema/synthesis.layers.3.conv.weight"):
        torch.testing.assert_close(ours[name], theirs["G_ema" + name[name.index("/") :]], rtol=1e-5, atol=1e-6)
    assert "G/synthesis.layers.7.conv.weight" in ours and "G/synthesis.layers.7.conv.weight" not in theirs
    name = "D/blocks.0.conv0.weight"
    assert not torch.allclose(ours[name], theirs[name], atol=0.1)


@pytest.mark.parametrize("preset", ["small-32", "dcgan-64", "mlp-32"])
def test_frozen_layers(data: Path, preset: str, tmp_path: Path) -> None:
    """They stay as they are drawn, and the others do not; G learns as ever."""
    small = ["--set", "schedule.initial_level=2"] if preset == "small-32" else ["--batch", 8]
    arguments = ["train", str(data), "--preset", preset, *small, "--seed", "3", "--device", "cpu"]
    for name, kimg in (("a", "0.008"), ("b", "0.04")):
        invoke([*arguments, "--out", str(tmp_path / name), "--set", "training.freeze_d=1", "--kimg", kimg])
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    prefixes = {"small-32": ("D/from_rgb.2.", "D/blocks.1."), "dcgan-64": ("D/layers.0.",), "mlp-32": ("D/hidden.0.",)}
    used = {
        name for name in a if name[:2] in ("D/", "G/") and not name.startswith(("D/from_rgb.", "G/to_rgb.", "G/syn"))
    }
    frozen = {name for name in used if name.startswith(prefixes[preset])}
    assert frozen and all(a[name].equal(b[name]) for name in frozen)
    assert not [name for name in used - frozen if a[name].equal(b[name])]
    assert not [name for name in b if name.startswith(tuple(f"opt_d/{p[2:]}" for p in prefixes[preset]))]
