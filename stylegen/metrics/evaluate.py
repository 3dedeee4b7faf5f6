"""Real pictures against fakes: features of both, remembered where they are real, and every figure made of them."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegen.files import atomic_path
from stylegen.images import to_uint8
from stylegen.latents import latents

from . import distances, intervals
from .features import Features

MANIFOLD = ("precision", "recall", "density", "coverage")
_VERSION = 1  # of the remembered features


@dataclass(frozen=True)
class Measurement:
    """A figure, its confidence interval, and for KID the standard deviation over subsets."""

    value: float
    low: float
    high: float
    spread: float | None = None

    def text(self, digits: int = 4) -> str:
        """ "12.34 (12 to 12.68)": the value and its interval."""
        return f"{self.value:.{digits}g} ({self.low:.{digits}g} to {self.high:.{digits}g})"


@dataclass(frozen=True)
class Source:
    """A generator as it is measured: at its stage, without truncation, with fresh noise.

    labels float32 [N, label_size], one a picture, or None.
    """

    G: Any  # of any family
    stage: dict[str, Any]  # resolution, alpha
    labels: Tensor | None
    seed: int

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    def labels_of(self, start: int, count: int) -> Tensor | None:
        return None if self.labels is None else self.labels[start : start + count].to(self.device)

    def noise(self, *name: int) -> dict[str, Any]:
        """Settings of a styled network's synthesis: noise drawn from the seed and `name`. Others have none."""
        if self.G.config.family != "stylegan":
            return {}
        number = int(np.random.SeedSequence([self.seed, *name]).generate_state(1, np.uint64)[0] >> 1)
        return {"noise": "random", "generator": torch.Generator(self.device).manual_seed(number)}


def seeds_of(seed: int, count: int) -> list[int]:
    """The seeds of `count` fakes, 0 to 2^32 - 1: `stylegen generate --seeds` makes the same z of each."""
    return np.random.RandomState(seed).randint(0, 2**32, count, np.uint32).tolist()


def fakes(source: Source, count: int, batch: int) -> Iterator[Tensor]:
    """`count` pictures, uint8 [<= batch, C, H, W] at a time, on the network's device."""
    seeds = seeds_of(source.seed, count)
    for start in range(0, count, batch):
        z = latents(seeds[start : start + batch], source.G.config.latent_size).to(source.device)
        with torch.inference_mode():
            images = source.G(z, source.labels_of(start, len(z)), **source.stage, **source.noise(start))
            yield to_uint8(images)


def embed(features: Features, batches: Iterable[Tensor], *, mirror: bool = False) -> Tensor:
    """Features [N, D] of uint8 batches [n, C, H, W]; with `mirror`, of each picture and its mirror image [2 N, D]."""
    vectors = []
    for images in batches:
        vectors.append(features(images))
        if mirror:
            vectors.append(features(images.flip(3)))
    return torch.cat(vectors)


def remembered(folder: Path, name: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
    """What `make` returns, float32 [N, D], from a file in `folder` if it was made under the same `name` before.

    A folder that cannot be written to is no error: then nothing is remembered.
    """
    digest = hashlib.blake2b(repr((_VERSION, *name)).encode(), digest_size=12).hexdigest()
    path = folder / f"features-{digest}.npy"
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # not there, or damaged
        pass
    vectors = make()
    try:
        os.makedirs(folder, exist_ok=True)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.save(file, vectors.numpy())
    except OSError:
        pass
    return vectors


def compare(
    real: Tensor, fake: Tensor, name: str, *, level: float, seed: int, wanted: Collection[str] | None = None
) -> dict[str, Measurement]:
    """Figures of the features of reals [N, D] and fakes [M, D], which the network `name` made: the `wanted`, or all.

    FID and KID take all reals; what counts neighbours or pairs takes M of them, at random, where N is larger. Raises
    UserError.
    """
    some = real
    if len(real) > len(fake):
        some = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))[: len(fake)]]
    how: dict[str, Any] = {"level": level, "seed": seed}

    def kid() -> Measurement:
        found = distances.kid(real, fake, seed=seed)
        return Measurement(*intervals.kid_interval(real, fake, found=found, **how), spread=found[1])

    def manifold() -> dict[str, Measurement]:
        found = intervals.manifold_intervals(distances.neighbours(some, fake), **how)
        return {key: Measurement(*interval) for key, interval in found.items()}

    makers: dict[tuple[str, ...], Callable[[], dict[str, Measurement]]] = {
        (f"FID-{name}",): lambda: {f"FID-{name}": Measurement(*intervals.fid_interval(real, fake, **how))},
        (f"KID-{name}",): lambda: {f"KID-{name}": kid()},
        MANIFOLD: manifold,
        ("diversity",): lambda: {"diversity": Measurement(*intervals.diversity_interval(fake, **how))},
        ("diversity of reals",): lambda: {
            "diversity of reals": Measurement(*intervals.diversity_interval(some, **how))
        },
    }
    wanted_ones = [make for names, make in makers.items() if wanted is None or set(names) & set(wanted)]
    return {key: figure for make in wanted_ones for key, figure in make().items()}


def path_length(lengths: Tensor, *, level: float, seed: int) -> Measurement:
    """The mean of a path length's samples [N] within percentiles 1 to 99, with its bootstrap interval."""
    low, high = intervals.interval(lambda drawn: kept(drawn).mean(), lengths, level=level, seed=seed)
    return Measurement(float(kept(lengths).mean()), low, high)


def kept(lengths: Tensor) -> Tensor:
    """float64 [N] without what lies outside percentiles 1 to 99, as the figures of the StyleGAN paper are made."""
    low = np.percentile(lengths, 1, method="lower")
    high = np.percentile(lengths, 99, method="higher")
    return lengths[(low <= lengths) & (lengths <= high)]
