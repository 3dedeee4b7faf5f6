"""What a run tells: progress bar, log.txt, stats.jsonl, TensorBoard, pictures."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stylegen import images as pictures
from stylegen.config import Config, resolution_of, size_text
from stylegen.files import write_atomic
from stylegen.latents import latents, one_hot
from stylegen.networks.layers import upscale

from .dataset import Loader
from .schedule import Stage, stage_at, total_images
from .state import TrainState

MAX_SHEET_PX = 1024


class Reporter:
    """Keeps the means of the statistics since the last report and writes them where people and programs look."""

    def __init__(self, config: Config, run_dir: Path, images_seen: int):
        self.run_dir, self.started, self.first_image = run_dir, time.monotonic(), images_seen
        self.elapsed_before = _cut_stats(run_dir / "stats.jsonl", images_seen)
        self.stats_file = open(run_dir / "stats.jsonl", "a", encoding="utf-8")
        self.log_file = open(run_dir / "log.txt", "a", encoding="utf-8")
        self.bar = tqdm(
            total=total_images(config),
            initial=images_seen,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )
        self.tensorboard = _tensorboard(run_dir, images_seen)
        self._restart(images_seen)

    def log(self, line: str) -> None:
        """A line to the terminal and to log.txt, there with the time."""
        self.bar.write(line, file=sys.stderr)
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=self.log_file, flush=True)

    def add(self, config: Config, stage: Stage, stats: dict[str, Tensor], images_seen: int) -> None:
        """Counts an iteration in."""
        for name, value in stats.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value.detach().double(), count + 1)
        self.bar.set_description_str(stage_text(config, stage), refresh=False)
        self.bar.update(images_seen - self.bar.n)

    def report(self, stage: Stage, images_seen: int) -> None:
        """Writes the means since the last report; the memory is this process's peak."""
        now = time.monotonic()
        rate = (images_seen - self.last_image) / max(now - self.last_time, 1e-9)
        row: dict[str, Any] = {
            "kimg": images_seen / 1000,
            "images_seen": images_seen,
            "level": stage.level,
            "resolution": size_text(stage.resolution),
            "alpha": stage.alpha,
            "batch": stage.batch,
            "lr": stage.lr,
            "images_per_sec": round(rate, 3),
            "elapsed_sec": round(self.elapsed_before + now - self.started, 1),
        }
        means = {name: float(total) / count for name, (total, count) in self.sums.items()}
        row |= {name: float(f"{mean:.6g}") for name, mean in means.items()}
        print(json.dumps(row), file=self.stats_file, flush=True)
        if self.tensorboard:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "images_seen":
                    self.tensorboard.add_scalar(name, value, images_seen)
        shown = {name: means[name] for name in ("loss/d", "loss/g") if name in means}
        self.bar.set_postfix({name: f"{mean:.3f}" for name, mean in shown.items()}, refresh=False)
        self._restart(images_seen)

    def close(self) -> None:
        self.bar.close()
        self.stats_file.close()
        self.log_file.close()
        if self.tensorboard:
            self.tensorboard.close()

    def _restart(self, images_seen: int) -> None:
        self.sums: dict[str, tuple[Any, int]] = {}
        self.last_time, self.last_image = time.monotonic(), images_seen


def stage_text(config: Config, stage: Stage) -> str:
    """The stage in words: "16x16", or "16x16 fading in 40%"."""
    text = size_text(stage.resolution)
    return text if stage.alpha == 1 else f"{text} fading in {stage.alpha:.0%}"


def sheet_shape(config: Config) -> tuple[int, int]:
    """(columns, rows) of the preview and of reals.png."""
    height, width = resolution_of(config.generator, config.generator.levels - 1)
    columns, rows = (min(max(MAX_SHEET_PX // side, 3), most) for side, most in ((width, 16), (height, 8)))
    return columns, min(config.generator.label_size, 10) or rows


@torch.no_grad()
def preview(state: TrainState, path: Path) -> None:
    """A sheet of G_ema's pictures of fixed latents (seeds 0, 1, ...), enlarged to the final resolution.

    Conditional networks show a class a row. Same latents as `stylegen generate`, untruncated.
    """
    config, stage = state.config, stage_at(state.config, state.images_seen)
    columns, rows = sheet_shape(config)
    seeds = list(range(columns * rows))
    z = latents(seeds, config.generator.latent_size).to(state.device)
    size = config.generator.label_size
    labels = one_hot([seed // columns % size for seed in seeds], size).to(state.device) if size else None
    made = []
    for start in range(0, len(seeds), 16):
        part = slice(start, start + 16)
        images = state.G_ema(z[part], labels[part] if labels is not None else None,
                             resolution=stage.resolution, alpha=stage.alpha)  # fmt: skip
        made.append(pictures.to_uint8(images).cpu())
    whole = torch.cat(made)
    while whole.shape[2] < resolution_of(config.generator, config.generator.levels - 1)[0]:
        whole = upscale(whole)
    pictures.save_image(pictures.grid(whole, columns, rows), path)


def save_reals(config: Config, loader: Loader, path: Path) -> None:
    """A sheet of real pictures at the final resolution, in the order of the data."""
    columns, rows = sheet_shape(config)
    count = min(columns * rows, len(loader.dataset))
    reals = torch.from_numpy(np.stack([loader.dataset.read(i) for i in range(count)]))
    pictures.save_image(pictures.grid(reals, columns, rows), path)


def _cut_stats(path: Path, images_seen: int) -> float:
    """Drops the rows after `images_seen`, which the resumed run writes again; returns the seconds trained before."""
    if not path.exists():
        return 0.0
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # half a line, from a run that was killed
            continue
        if row["images_seen"] <= images_seen:
            rows.append(row)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return rows[-1]["elapsed_sec"] if rows else 0.0


def _tensorboard(run_dir: Path, images_seen: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # an optional extra
        return None
    return SummaryWriter(str(run_dir), purge_step=images_seen)
