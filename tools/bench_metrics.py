"""`bench metrics`: features of pictures from a data set and from generators against the feature network alone."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylegen.checkpoint import load_network
from stylegen.config import resolution_of, size_text
from stylegen.latents import one_hot
from stylegen.metrics.evaluate import Source, embed, fakes
from stylegen.metrics.features import Lite0Features
from stylegen.precision import freeze, prepare
from stylegen.training.dataset import open_dataset
from stylegen.training.measure import BATCH, read

from .bench_measure import REFERENCE, Row, interleave, row


def measure(sources: list[str], networks: list[str], count: int, repeats: int) -> Iterator[Row]:
    """A row a data set and a generator: `count` pictures made or read, prepared and embedded."""
    features = Lite0Features(torch.device("cpu"))
    for name in sources:
        data = open_dataset(name)
        pictures = partial(read, data, np.arange(count) % len(data))
        yield _row(f"{count} pictures of {Path(name).stem}", pictures, data.size, features, count, repeats)
    for name in networks:
        G: Any = load_network(name)[0]  # of any family
        classes = G.config.label_size
        labels = one_hot([k % classes for k in range(count)], classes) if classes else None
        pictures = partial(fakes, Source(freeze(prepare(G, "fp32")), {}, labels, 0), count, BATCH)
        size = resolution_of(G.config, G.config.levels - 1)
        yield _row(f"{count} fakes of {Path(name).stem}", pictures, size, features, count, repeats)


def _row(
    name: str,
    pictures: Callable[[], Iterator[Tensor]],
    size: tuple[int, int],
    features: Lite0Features,
    count: int,
    repeats: int,
) -> Row:
    """Against the network alone, on pictures that are as it takes them."""
    ready = features.prepare(torch.zeros(BATCH, 3, *size, dtype=torch.uint8))

    @torch.inference_mode()
    def alone() -> None:
        for start in range(0, count, BATCH):
            features.network(ready[: count - start])

    def ours() -> object:
        return embed(features, pictures())

    variants = {"metrics": ours, REFERENCE: alone, "source": lambda: list(pictures())}
    samples = interleave(variants, repeats, min_ms=0)
    own, source = (sorted(samples[key])[repeats // 2] for key in ("metrics", "source"))
    more = {"pictures_sec": 1000 * count / own, "source_ms": source}
    return row(f"{name}, {size_text(size)}", "fp32", samples, "metrics", None, **more)
