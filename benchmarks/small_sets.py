"""Whether generated pictures help a classifier that has few real ones to learn from.

DATA: labelled real pictures, of which so many a class are given. SAMPLES: labelled generated ones, of `stylegen sample
--per-class`. TEST: real pictures that neither the generator nor the classifier has seen. Every classifier sees PICTURES
pictures, the same ones again where there are fewer; with both kinds, half are real. Prints the mean accuracy on TEST
and its standard deviation over draws of the real pictures.
"""

from pathlib import Path

import click
import numpy as np
import torch
from classes import classifier, fit, guesses
from runs import publish
from torch import Tensor

from stylegen.tools.bench_measure import markdown
from stylegen.training.dataset import Dataset, open_dataset
from stylegen.training.measure import read

PICTURES = 38_400
Labelled = tuple[Tensor, Tensor]


def labelled(data: Dataset, indices: np.ndarray) -> Labelled:
    """uint8 [N, C, H, W] and classes [N]."""
    return torch.cat(list(read(data, indices))), torch.from_numpy(data.label_vectors(indices).argmax(1))


def some(data: Dataset, classes: np.ndarray, each: int, seed: int) -> Labelled:
    """So many pictures of each class, drawn by the seed."""
    order = np.random.RandomState(seed).permutation(len(data))
    chosen = [order[classes[order] == k][:each] for k in range(data.label_size)]
    return labelled(data, np.concatenate(chosen))


def accuracy(kinds: list[Labelled], test: Labelled, data: Dataset, seed: int) -> float:
    """On `test`, of a classifier that saw as much of each of `kinds`."""
    torch.manual_seed(seed)
    at = [torch.arange(PICTURES // len(kinds)) % len(images) for images, _ in kinds]
    images, labels = (torch.cat([kind[k][i] for kind, i in zip(kinds, at, strict=True)]) for k in range(2))
    net = classifier(data.channels, data.size, data.label_size)
    fit(net, images, labels, 1)
    return float((guesses(net, test[0]) == test[1]).float().mean())


@click.command()
@click.argument("data")
@click.argument("samples")
@click.argument("test")
@click.option("--each", multiple=True, type=int, default=(5, 20, 100, 500), show_default=True, help="Real, per class.")
@click.option("--draws", type=click.IntRange(2), default=5, show_default=True, help="Of the real pictures.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(data: str, samples: str, test: str, each: tuple[int, ...], draws: int, page: Path | None) -> None:
    real, fake, held = (open_dataset(name) for name in (data, samples, test))
    everything = labelled(held, np.arange(len(held)))
    made = labelled(fake, np.random.RandomState(0).permutation(len(fake)))
    classes = real.label_vectors(np.arange(len(real))).argmax(1)
    table = [["real pictures a class", "they alone", "they and samples", "gain"]]
    for count in each:
        alone, both = [], []
        for draw in range(draws):
            few = some(real, classes, count, draw)
            alone.append(100 * accuracy([few], everything, real, draw))
            both.append(100 * accuracy([few, made], everything, real, draw))
        gain = np.subtract(both, alone)
        cells = [f"{np.mean(x):.1f}% ± {np.std(x, ddof=1):.1f}" for x in (alone, both)]
        table.append([str(count), *cells, f"{gain.mean():+.1f} ± {gain.std(ddof=1):.1f} points"])
    only = [100 * accuracy([made], everything, real, draw) for draw in range(draws)]
    table.append(["none", "-", f"{np.mean(only):.1f}% ± {np.std(only, ddof=1):.1f}", "-"])
    publish("small sets", markdown(table), page)


if __name__ == "__main__":
    main()
