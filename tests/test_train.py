"""stylegen train: what a run writes, and that every kind of network, data and loss trains."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import data_zip, invoke, rows, train_arguments

from stylegen import config as configs
from stylegen.checkpoint import load_network, load_tensors
from stylegen.config import Config
from stylegen.precision import choose
from stylegen.presets import LOSSES
from stylegen.training import loop
from stylegen.training.dataset import open_dataset
from stylegen.training.state import saved_config

Size = tuple[int, int]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes, black cats and white dogs."""
    folder = tmp_path_factory.mktemp("pets")
    for name, value in (("cat", 0), ("dog", 255)):
        (folder / name).mkdir()
        for i in range(8):
            Image.new("RGB", (16, 16), (value, value, value)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    penalty = ["--gamma", 1, "--set", "loss.penalty_interval=2"]
    invoke(train_arguments(data, run, "--snapshot-kimg", ".05", "--preview-kimg", ".08", *penalty, kimg=0.16))
    return run


def test_run_folder(data: Path, finished: Path) -> None:
    previews = [f"kimg-{kimg}.png" for kimg in ("000000.000", "000000.080", "000000.160")]
    assert sorted(path.name for path in (finished / "previews").iterdir()) == previews
    names = "config.json data.json log.txt network-000000.safetensors previews reals.png stats.jsonl"
    names += " state.ckpt state-000000.152.ckpt"
    assert {name for name in os.listdir(finished) if not name.startswith("events.")} == set(names.split())
    real = np.asarray(Image.open(finished / "reals.png"))[:16, 16:32]
    assert (real == open_dataset(data).read(1).transpose(1, 2, 0)).all()
    log = (finished / "log.txt").read_text()
    precision = choose("auto", torch.device("cpu"))
    assert f"Training from 0 of 0.16 kimg: small-32, 40 pictures, 16x16 rgb, cpu in {precision}, now 4x4" in log
    assert log.endswith(f"Finished at 0.16 kimg. State: {finished / 'state.ckpt'}\n")


def test_config_and_provenance(data: Path, finished: Path) -> None:
    values = json.loads((finished / "config.json").read_text())
    config = configs.from_dict(Config, values)
    assert (config, 160) == saved_config(finished / "state.ckpt")
    assert configs.to_dict(config) == configs.to_dict(configs.from_dict(Config, json.loads(json.dumps(values))))
    assert (config.training.data_digest, config.schedule.total_kimg) == (open_dataset(data).digest, 0.16)
    G, provenance = load_network(finished)
    assert G.config == config.generator
    facts = {"images_seen": 160, "kimg": 0.16, "level": 1, "resolution": [8, 8], "alpha": 0.6, "preset": "small-32"}
    assert provenance | facts == provenance
    tensors = load_tensors(finished / "state.ckpt")[0]
    assert all(tensors[f"G_ema/{name}"].equal(tensor) for name, tensor in G.state_dict().items())


def test_statistics(finished: Path) -> None:
    written = rows(finished)
    assert [row["images_seen"] for row in written] == [56, 104, 152, 160]
    assert [row["resolution"] for row in written] == ["4x4", "4x4", "8x8", "8x8"]
    assert written[-1]["alpha"] == 0.52 and written[-1]["batch"] == 8
    assert {"loss/d", "loss/g", "penalty/r1", "scores/real", "scores/fake", "lr"} <= written[1].keys()
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (path,) = finished.glob("events.*")
    curves = events.EventAccumulator(str(path)).Reload()
    points = [(event.step, event.value) for event in curves.Scalars("loss/d")]
    assert points == [(row["images_seen"], pytest.approx(row["loss/d"])) for row in written]


def test_every_preview_shows_its_own_stage(finished: Path) -> None:
    """Fixed latents, so an early sheet is a coarse one: made of blocks of 4 pixels at 4x4."""
    sheets = [np.asarray(Image.open(path)).astype(int) for path in sorted((finished / "previews").iterdir())]
    assert len({sheet.shape for sheet in sheets}) == 1
    blocks = [sheet.reshape(sheet.shape[0] // 4, 4, -1, 4, 3) for sheet in sheets]
    flat = [bool((block == block[:, :1, :, :1]).all()) for block in blocks]
    assert flat == [True, True, False]
    assert not (sheets[0] == sheets[1]).all()


def test_dry_run_writes_nothing(data: Path, tmp_path: Path) -> None:
    before = sorted(data.parent.iterdir())
    result = invoke(train_arguments(data, tmp_path / "run", "--dry-run", kimg=0.6))
    assert not list(tmp_path.iterdir()) and sorted(data.parent.iterdir()) == before
    table = [line.split() for line in result.stdout.splitlines() if "hold" in line or "fade" in line]
    growth = [row[1:5] for row in table if len(row) == 7][-5:]
    assert growth == [
        ["4x4", "hold", "0", "0.1"],
        ["8x8", "fade", "0.1", "0.2"],
        ["8x8", "hold", "0.2", "0.3"],
        ["16x16", "fade", "0.3", "0.4"],
        ["16x16", "hold", "0.4", "0.6"],
    ]
    assert "r1_gamma=" in result.stdout


def test_retention(data: Path, tmp_path: Path) -> None:
    options = ["--batch", 100, "--hold-kimg", 9, "--snapshot-kimg", 1, "--keep-networks", 2]
    invoke(train_arguments(data, tmp_path / "run", *options, kimg=3))
    assert sorted(path.name[:14] for path in (tmp_path / "run").glob("network-*")) == [
        "network-000002",
        "network-000003",
    ]


@pytest.mark.parametrize(("mode", "size"), [("RGBA", (16, 32)), ("L", (16, 16)), ("RGB", (28, 28))])
@pytest.mark.parametrize("preset", ["small-64", "progan-1024"])
def test_shapes_and_channels(mode: str, size: Size, preset: str, tmp_path: Path) -> None:
    """Trained through every level, generated at the size of the data."""
    data, run = data_zip(tmp_path / "data.zip", mode=mode, size=size, count=8), tmp_path / "run"
    growth = ["--hold-kimg", ".016", "--fade-kimg", ".016"]
    invoke(train_arguments(data, run, *growth, preset=preset, kimg=0.1))
    assert rows(run)[-1]["resolution"] == f"{size[1]}x{size[0]}"
    invoke(["generate", "--network", str(run), "--seeds", "0-1", "--out", str(tmp_path / "samples")])
    pictures = [Image.open(tmp_path / "samples" / f"seed000{seed}.png") for seed in (0, 1)]
    assert {(p.mode, p.size) for p in pictures} == {(mode, size[::-1])}
    assert Image.open(run / "previews" / "kimg-000000.000.png").mode == mode


@pytest.mark.parametrize(("preset", "kimg"), [("small-32", 1.2), ("progan-1024", 2.4)])
def test_classes(labelled: Path, preset: str, kimg: float, tmp_path: Path) -> None:
    """Asked by name or number, a class looks as its pictures do: cats are darker than dogs."""
    run, means = tmp_path / "run", {}
    growth = ["--hold-kimg", 9, "--lr", ".01", "--set", "training.ema_half_life_kimg=.1"]
    invoke(
        train_arguments(labelled, run, "--cond", *growth, "--set", "loss.penalty_interval=1", preset=preset, kimg=kimg)
    )
    assert load_network(run)[1]["class_names"] == ["cat", "dog"]
    for name in ("cat", "dog", "0", "1"):
        out = tmp_path / name
        invoke(
            ["generate", "--network", str(run), "--seeds", "0-7", "--class", name, "--grid", "8x1", "--out", str(out)]
        )
        means[name] = float(np.asarray(Image.open(out / "grid.png")).mean())
    assert (means["cat"], means["dog"]) == (means["0"], means["1"])
    assert means["cat"] + 30 < means["dog"], means
    sheet = np.asarray(Image.open(sorted((run / "previews").iterdir())[-1])).astype(float)
    assert sheet[:16].mean() + 30 < sheet[16:32].mean(), "a class a row"


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(data: Path, loss: str, tmp_path: Path) -> None:
    """Every recipe trains, into a fade too, and goes on with the same command."""
    arguments = train_arguments(data, tmp_path / "run", "--loss", loss, kimg=0.16)
    invoke(arguments)
    (config, images), last = saved_config(tmp_path / "run" / "state.ckpt"), rows(tmp_path / "run")[-1]
    assert config.loss.objective == LOSSES[loss]["objective"] and images >= 160
    assert all(abs(last[name]) < 1e3 for name in ("loss/d", "loss/g")) and last["skipped/d"] == last["skipped/g"] == 0
    tensors = load_tensors(tmp_path / "run" / "state.ckpt")[0]
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    invoke([*arguments, "--resume", "--dry-run"])


def test_penalties_are_lazy(data: Path, tmp_path: Path) -> None:
    options = ["--gamma", 1, "--set", "loss.penalty_interval=4", "--set", "schedule.tick_kimg_default=.008"]
    invoke(train_arguments(data, tmp_path / "run", *options, kimg=0.08))
    assert [row["images_seen"] for row in rows(tmp_path / "run") if "penalty/r1" in row] == [32, 64]


def test_resume_takes_what_changes_nothing(data: Path, finished: Path, tmp_path: Path) -> None:
    """The length, the output section and the workers."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    options = ["--kimg", ".2", "--snapshot-kimg", "1", "--preview-kimg", "1", "--keep-networks", "1", "--workers", "1"]
    result = invoke(["train", str(data), "--out", str(run), "--resume", *options])
    assert "Resuming at 0.16 of 0.2 kimg" in result.stderr and "8x8 fading in 60%" in result.stderr
    config, images = saved_config(run / "state.ckpt")
    assert (images, config.schedule.total_kimg, config.output.keep_networks) == (200, 0.2, 1)
    assert configs.from_dict(Config, json.loads((run / "config.json").read_text())) == config


def test_every_random_number_is_new(data: Path, tmp_path: Path) -> None:
    """No two steps share latents, noise or a batch, and neither do D's and G's."""
    from stylegen.training import step
    from stylegen.training.share import Share

    run = tmp_path / "run"
    invoke(train_arguments(data, run, kimg=0.016))
    config, _ = saved_config(run / "state.ckpt")
    state = loop.fresh(config, torch.device("cpu"))
    made = []
    for state.images_seen in (0, 8):
        stage = loop.stage_at(config, state.images_seen)
        part = step.Part(torch.zeros(8, 3, 4, 4), torch.zeros(8, 0), Share(8, tuple(range(8))))
        made += [step.fake_images(state, stage, part, role)[0] for role in ("d", "g")]
    assert len({tensor.detach().numpy().tobytes() for tensor in made}) == 4
