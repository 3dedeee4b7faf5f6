"""An embedded network beside real pictures: figures next to those of a held-out half of its data, and its nearest ones.

One half of the data are the reals, the other half and as many fakes are measured against them: what the half gets is as
good as it gets at that number of pictures. The picture shows samples over the training pictures that are nearest to
them, by features, mirrored ones too where the network was trained on those.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from runs import publish
from torch import Tensor

from stylegen.checkpoint import load_network
from stylegen.images import grid, save_image
from stylegen.latents import from_seeds
from stylegen.metrics.evaluate import compare, embed
from stylegen.metrics.features import Features, load
from stylegen.tools.bench_measure import markdown
from stylegen.tools.rendering import render
from stylegen.training.dataset import Dataset, open_dataset
from stylegen.training.measure import BATCH, read, real_features
from stylegen.training.threads import progress

FIGURES = ("FID-lite0", "KID-lite0", "precision", "recall", "density", "coverage")
SHOWN = 12  # samples in the picture
NEAREST = 2  # training pictures under each


def pictures(G: Any, count: int, psi: float) -> Iterator[Tensor]:
    """Those of `stylegen generate --seeds 0-(count - 1) --trunc psi`, uint8 [n, C, H, W] at a time."""
    seeds, classes = list(range(count)), G.config.label_size
    given = from_seeds(seeds, G.config.latent_size, [seed % classes for seed in seeds] if classes else None)
    for _, images in render(G, given, BATCH, psi):
        yield images


def show_nearest(G: Any, data: Dataset, real: Tensor, features: Features, path: Path) -> None:
    """Samples (psi 0.7) in the top row, below each the nearest of the `data`, of features `real`.

    `real` may hold each picture twice, plain and mirrored, in batches as `embed` leaves them.
    """
    images = torch.cat(list(pictures(G, SHOWN, 0.7)))
    at = torch.cdist(features(images), real).topk(NEAREST, largest=False).indices
    which = torch.arange(len(data))
    if len(real) == 2 * len(data):  # a batch, then its mirror images
        which = torch.cat([torch.cat([part, -1 - part]) for part in which.split(BATCH)])
    rows = [images]
    for k in range(NEAREST):
        found = [int(which[i]) for i in at[:, k]]
        shown = torch.cat(list(read(data, np.array([i if i >= 0 else -1 - i for i in found]))))
        rows.append(torch.stack([p.flip(2) if i < 0 else p for p, i in zip(shown, found, strict=True)]))
    save_image(grid(torch.cat(rows), SHOWN, 1 + NEAREST), path)


@click.command()
@click.argument("network")
@click.argument("data")
@click.option("--num", default=5000, show_default=True, help="Pictures on either side; half of the data at most.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(network: str, data: str, num: int, page: Path | None) -> None:
    dataset, features = open_dataset(data), load("lite0")
    G, provenance = load_network(network)
    name, mirror = Path(network).stem, bool(provenance.get("mirror"))
    order = np.random.RandomState(0).permutation(len(dataset))
    num = min(num, len(order) // 2)
    halves = order[:num], order[num : 2 * num]
    real = real_features(dataset, halves[0], features, mirror=mirror)
    sides = {"a held-out half of the data": real_features(dataset, halves[1], features, mirror=False)}
    with progress(2 * num, "fakes") as bar:

        def counted(batches: Iterator[Tensor]) -> Iterator[Tensor]:
            for images in batches:
                yield images
                bar.update(len(images))

        for psi in (1.0, 0.7):
            sides[f"`{name}`, psi {psi:g}"] = embed(features, counted(pictures(G, num, psi)))
    table = [["pictures", *FIGURES, "nearest real"]]
    for side, vectors in sides.items():
        figures = compare(real, vectors, "lite0", level=0.9, seed=0, wanted=FIGURES)
        nearest = float(torch.cdist(vectors, real).min(1).values.median())
        table.append([side, *(figures[key].text(3) for key in FIGURES), f"{nearest:.3g}"])
    text = markdown(table)
    if page:
        everything = np.arange(len(dataset))  # as `stylegen metrics` has it, whose features are remembered
        whole = real_features(dataset, everything, features, mirror=mirror)
        image = f"images/{name}-nearest.png"
        show_nearest(G, dataset, whole, features, page.parent / image)
        text += f"\n\n![samples over their nearest]({image})"
    publish(f"embedded {name}", text, page)


if __name__ == "__main__":
    main()
