"""How good the pictures are, while a run goes on: figures beside the losses, and the best network kept."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stylegen.config import Config
from stylegen.metrics.evaluate import Measurement, Source, compare, embed, fakes, remembered
from stylegen.metrics.features import Features, load

from .dataset import Dataset, open_dataset
from .levels import user_cache
from .schedule import stage_at
from .state import TrainState
from .threads import in_order

BATCH = 32
Batches = Iterator[Tensor]


def real_features(
    data: Dataset,
    indices: np.ndarray,
    features: Features,
    *,
    mirror: bool,
    batch: int = BATCH,
    shown: Callable[[Batches], Batches] = iter,
) -> Tensor:
    """Features [N, D] of real pictures, from the user's cache folder where they were made before.

    `shown` passes the batches on that have to be read, for a progress bar.
    """
    which = hashlib.blake2b(indices.astype("<i8").tobytes(), digest_size=12).hexdigest()
    name = (data.digest, data.size, which, mirror, features.identity)
    return remembered(user_cache(), name, lambda: embed(features, shown(read(data, indices, batch)), mirror=mirror))


def read(data: Dataset, indices: np.ndarray, batch: int = BATCH) -> Batches:
    """Pictures of a data set, uint8 [<= batch, C, H, W] at a time, decoded ahead."""
    waiting = []
    for pixels in in_order(data.read, indices.tolist(), 2):
        waiting.append(pixels)
        if len(waiting) == batch:
            yield torch.from_numpy(np.stack(waiting))
            waiting = []
    if waiting:
        yield torch.from_numpy(np.stack(waiting))


def draw_labels(data: Dataset, count: int, seed: int) -> Tensor:
    """Labels float32 [count, label_size] as often as the data has them."""
    return torch.from_numpy(data.label_vectors(np.random.RandomState(seed).randint(0, len(data), count)))


class Meter:
    """Measures G_ema against the data at the stage that a run has reached."""

    def __init__(self, config: Config, dataset: Dataset):
        self.config, self.dataset = config, dataset
        self.features: Features | None = None

    def __call__(self, state: TrainState) -> tuple[dict[str, Measurement], float]:
        """(the wanted figures by name, seconds it took). Raises whatever goes wrong."""
        begin, config, output = time.monotonic(), self.config, self.config.output
        stage, seed = stage_at(config, state.images_seen), config.training.seed
        self.features = self.features or load("lite0", state.device)
        data = open_dataset(self.dataset.path, size=stage.resolution)
        real = real_features(data, np.arange(len(data)), self.features, mirror=config.training.mirror)
        labels = draw_labels(data, output.metrics_num, seed) if config.generator.label_size else None
        source = Source(state.G_ema, {"resolution": stage.resolution, "alpha": stage.alpha}, labels, seed)
        fake = embed(self.features, fakes(source, output.metrics_num, BATCH))
        found = compare(real, fake, "lite0", level=0.9, seed=seed, wanted=[label(name) for name in output.metrics])
        return {name: found[label(name)] for name in output.metrics}, time.monotonic() - begin


def label(name: str) -> str:
    """The full name of a figure: "FID-lite0" of "fid"."""
    return f"{name.upper()}-lite0" if name in ("fid", "kid") else name


def better(name: str, value: float, best: float | None) -> bool:
    """Whether a figure is the best so far: distances should be small, everything else large."""
    if best is None or not math.isfinite(best):
        return math.isfinite(value)
    return value < best if name in ("fid", "kid") else value > best


def best_so_far(stats: Path, name: str, resolution: str) -> float | None:
    """The best value of a figure in a stats.jsonl at a resolution ("64x64"), as figures of others do not compare.

    None where there is none. Raises OSError, ValueError.
    """
    best: float | None = None
    lines = stats.read_text(encoding="utf-8").splitlines() if stats.exists() else []
    for row in map(json.loads, lines):
        value = row.get(f"metrics/{name}")
        if value is not None and row["resolution"] == resolution and better(name, value, best):
            best = value
    return best


def told(figures: dict[str, Measurement]) -> dict[str, str]:
    """Name -> "FID-lite0 12.3 (11.9 to 12.7)"."""
    return {name: f"{label(name)} {figure.text()}" for name, figure in figures.items()}


def numbers(figures: dict[str, Measurement], seconds: float) -> dict[str, float]:
    """As they stand in stats.jsonl and TensorBoard."""
    found = {"metrics/seconds": seconds}
    for name, figure in figures.items():
        found |= {
            f"metrics/{name}": figure.value,
            f"metrics/{name}_low": figure.low,
            f"metrics/{name}_high": figure.high,
        }
    return found


def best_path(run_dir: Path) -> Path:
    """best.safetensors"""
    return run_dir / "best.safetensors"
