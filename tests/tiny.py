"""Data and runs that are small enough for tests: pictures of noise, networks of eight channels."""

import errno
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch.nn import functional as F

from stylegen.checkpoint import save_network
from stylegen.config import GeneratorConfig, override, to_dict
from stylegen.networks import build_generator
from stylegen.presets import preset
from stylegen.tools.cli import cli

PROGRAM = [sys.executable, "-m", "stylegen.tools.cli"]
# Hold and fade for 100 images each: fades from 100 to 200 and from 300 to 400.
NETWORKS = {"fmap_max": 8, "latent_size": 16, "style_size": 16, "mapping_width": 16, "mapping_layers": 2, "noise": True}
SCHEDULE = ["--batch", "8", "--hold-kimg", ".1", "--fade-kimg", ".1"]
SETTINGS = {"schedule.initial_level": 0, "schedule.tick_kimg_default": 0.05, "discriminator.fmap_max": 8}

GENERATOR = {"levels": 3, "latent_size": 8, "style_size": 8, "mapping_width": 8, "mapping_layers": 2, "fmap_base": 64}
KINDS: dict[str, tuple[dict, dict]] = {  # untrained generators: how they differ from GENERATOR, provenance
    "rgb": ({}, {"preset": "small-32", "kimg": 12.5, "seed": 3}),
    "growing": ({"levels": 4}, {"resolution": [16, 16], "alpha": 0.25}),
    "classes": ({"label_size": 3}, {"class_names": ["cat", "2", "dog"]}),
    "rgba": ({"base": (8, 4), "channels": 4}, {}),
    "gray": ({"channels": 1}, {}),
    "progan": ({"family": "progan", "pixel_norm": True}, {}),
    "progan-classes": ({"family": "progan", "label_size": 3}, {}),
}


def save_networks(folder: Path) -> dict[str, Path]:
    """A file of each of KINDS."""
    for index, (kind, (options, provenance)) in enumerate(KINDS.items()):
        torch.manual_seed(index)
        G = build_generator(GeneratorConfig(**(GENERATOR | options)))
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                torch.nn.init.normal_(parameter)
        if hasattr(G, "w_avg"):
            torch.nn.init.normal_(G.w_avg)
        save_network(folder / f"{kind}.safetensors", G, provenance)
    return {kind: folder / f"{kind}.safetensors" for kind in KINDS}


def data_zip(
    path: Path, *, size: tuple[int, int] = (16, 16), mode: str = "RGB", count: int = 40, classes: int = 0, seed: int = 0
) -> Path:
    """A data set of noise, size (height, width); labels count up to `classes`."""
    random, names = np.random.default_rng(seed), [f"{i:03d}.png" for i in range(count)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            pixels = random.integers(0, 256, (*size, len(mode)), np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels).save(file, "png")
            archive.writestr(name, file.getvalue())
        if classes:
            labels = [[name, i % classes] for i, name in enumerate(names)]
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


def train_arguments(data: Path, out: Path, *options: object, preset: str = "small-32", kimg: float = 0.1) -> list[str]:
    """The command line of a tiny run; later options win."""
    settings = SETTINGS | {f"generator.{name}": value for name, value in NETWORKS.items()}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    fixed = ["--preset", preset, *sets, *SCHEDULE, "--kimg", str(kimg), "--device", "cpu"]
    return ["train", str(data), "--out", str(out), *fixed, *map(str, options)]


def invoke(arguments: list[str], code: int = 0) -> Result:
    """Runs a command in this process and checks its exit code; errors must be one line, alone and last."""
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, f"{result.stderr}\n{result.exc_info}"
    assert isinstance(result.exception, SystemExit | type(None)), result.exc_info
    if code:
        assert error_line(result.stderr)
    return result


def error_line(stderr: str) -> str:
    """The text of the only "Error: " line, which stands alone at the end, apart from a progress bar."""
    assert "Traceback" not in stderr, stderr
    *before, last = stderr.rstrip("\n").split("\n")
    assert last.startswith("Error: "), stderr
    assert "Error: " not in "\n".join(before), stderr
    return last.removeprefix("Error: ")


def rows(run: Path) -> list[dict]:
    """The rows of stats.jsonl so far."""
    path = run / "stats.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def generated(network: Path, out: Path, *options: str, seeds: str) -> Path:
    """The folder of `stylegen generate`."""
    invoke(["generate", "--network", str(network), "--seeds", seeds, "--out", str(out), *options])
    return out


def row(kimg: float, **more: object) -> dict:
    """A row of stats.jsonl of a run of small-32, which grows from 8x8, 8 kimg held and 8 fading a level."""
    level = 1 if kimg < 8 else 2 if kimg < 24 else 3
    size, alpha = 4 << level, (kimg % 16 - 8) / 8 if 8 < kimg < 40 and kimg % 16 > 8 else 1.0
    place = {"kimg": kimg, "images_seen": round(1000 * kimg), "level": level, "resolution": f"{size}x{size}"}
    return place | {"alpha": alpha, "lr": 0.003, "images_per_sec": 500.0, "elapsed_sec": 2 * kimg, "loss/d": 1.5} | more


def fake_run(folder: Path, stats: Sequence[dict] = (), *, kimg: float = 100, log: str = "Training from 0") -> Path:
    """A run folder as `stylegen train` leaves it, without networks; `log` is the last line of its log."""
    folder.mkdir(parents=True, exist_ok=True)
    config = to_dict(override(preset("small-32", (32, 32), 3, 0), f"schedule.total_kimg={kimg}"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "log.txt").write_text(f"2026-01-02 03:04:05 {log}\n")
    if stats:
        (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in stats))
    return folder


FAST = {"steps": 150, "starts": 500, "lr": 0.1}  # of a projection


class Averages:
    """A perceptual distance without weights: 4x4 averages."""

    name = "averages"

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 4).flatten(1)


def projected(network: Path, images: list[str], out: Path, *options: str, code: int = 0) -> Result:
    """`stylegen project`, quick."""
    quick = ["--steps", "6", "--starts", "8"]
    return invoke(["project", *images, "--network", str(network), "--out", str(out), *quick, *options], code)


def fill(disk: Path, spare_kb: int) -> Path:
    """Leaves `spare_kb` on the disk."""
    path, block = disk / "filler", bytes(4096)
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(block)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, file.tell() - spare_kb * 1024))
    return path
