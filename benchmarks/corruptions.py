"""Whether the metrics notice what they should: Fashion-MNIST against itself, whole and spoilt.

Prints a markdown table; with --page it goes between the page's marks. Needs the IDX files of Debian's package
dataset-fashion-mnist, or any grey data set with labels.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch
from runs import publish
from torch import Tensor

from stylegen.metrics.evaluate import compare, embed
from stylegen.metrics.features import load
from stylegen.tools.bench_measure import markdown
from stylegen.training.dataset import open_dataset
from stylegen.training.measure import read
from stylegen.training.threads import progress

Spoil = Callable[[Tensor, np.ndarray], Tensor]  # uint8 [N, 1, H, W], labels [N] -> pictures
COLUMNS = ("FID-lite0", "KID-lite0", "precision", "recall", "density", "coverage", "diversity")
BATCH = 64


def noise(amount: float) -> Spoil:
    """Gaussian, of a standard deviation of `amount` of the range."""

    def spoil(images: Tensor, labels: np.ndarray) -> Tensor:
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)) * amount * 255
        return (images + drawn).round().clamp(0, 255).to(torch.uint8)

    return spoil


def blur(images: Tensor, labels: np.ndarray) -> Tensor:
    """Means of 5x5 pixels."""
    means = torch.nn.functional.avg_pool2d(images.float(), 5, stride=1, padding=2, count_include_pad=False)
    return means.round().to(torch.uint8)


def five_classes(images: Tensor, labels: np.ndarray) -> Tensor:
    """As many pictures, of the first five classes alone."""
    found = np.flatnonzero(labels < 5)
    return images[np.resize(found, len(images))]


def twenty(images: Tensor, labels: np.ndarray) -> Tensor:
    """Twenty pictures, again and again."""
    return images[np.resize(np.arange(20), len(images))]


KINDS: dict[str, Spoil] = {
    "another half": lambda images, labels: images,
    "noise 0.05": noise(0.05),
    "noise 0.2": noise(0.2),
    "blur": blur,
    "5 of 10 classes": five_classes,
    "20 pictures repeated": twenty,
}


@click.command()
@click.argument("data")
@click.option("--num", default=2500, show_default=True, help="Pictures on either side.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(data: str, num: int, page: Path | None) -> None:
    dataset, features = open_dataset(data), load("lite0")
    order = np.random.RandomState(0).permutation(len(dataset))[: 2 * num]
    images = torch.cat(list(read(dataset, order)))
    labels = dataset.label_vectors(order).argmax(1)
    with progress((1 + len(KINDS)) * num, "features") as bar:

        def batches(pictures: Tensor) -> Iterator[Tensor]:
            for part in pictures.split(BATCH):
                yield part
                bar.update(len(part))

        def vectors(pictures: Tensor) -> Tensor:
            return embed(features, batches(pictures))

        real = vectors(images[:num])
        rows = {
            name: compare(real, vectors(spoil(images[num:], labels[num:])), "lite0", level=0.9, seed=0)
            for name, spoil in KINDS.items()
        }
    table = markdown([["fakes", *COLUMNS], *([name, *(row[c].text(3) for c in COLUMNS)] for name, row in rows.items())])
    publish("corruptions", table, page)


if __name__ == "__main__":
    main()
