"""How often a conditional generator makes the class that it was asked for, in the eyes of a small classifier.

The classifier is trained on the real data, all but a tenth of it, which tells how far it can be trusted. Prints a
markdown table; with --page it goes between the page's marks.
"""

from pathlib import Path

import click
import numpy as np
import torch
from runs import publish
from torch import Tensor, nn
from torch.nn import functional as F

from stylegen.checkpoint import load_network
from stylegen.images import to_float
from stylegen.latents import from_seeds
from stylegen.tools.bench_measure import markdown
from stylegen.tools.rendering import render
from stylegen.training.dataset import open_dataset
from stylegen.training.measure import read
from stylegen.training.threads import progress

BATCH = 128


def classifier(channels: int, size: tuple[int, int], classes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in ((channels, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, 2, 1), nn.BatchNorm2d(fan_out), nn.ReLU()]
    width = 128 * -(-size[0] // 8) * -(-size[1] // 8)
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(width, classes))


def fit(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    steps = len(images) // BATCH
    adam = torch.optim.Adam(net.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=epochs * steps)
    with progress(epochs * steps * BATCH, "classifier") as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
                adam.zero_grad()
                F.cross_entropy(net(to_float(images[chosen])), labels[chosen]).backward()
                adam.step(), rate.step()
                bar.update(BATCH)


@torch.inference_mode()
def guesses(net: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net.eval()(to_float(part)).argmax(1) for part in images.split(500)])


@click.command()
@click.argument("network")
@click.argument("data")
@click.option("--num", default=5000, show_default=True, help="Fakes.")
@click.option("--epochs", default=6, show_default=True)
@click.option("--trunc", "psi", default=0.7, show_default=True)
@click.option("--trunc-to", "towards", type=click.Choice(["class", "all"]), default="class", show_default=True)
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(network: str, data: str, num: int, epochs: int, psi: float, towards: str, page: Path | None) -> None:
    torch.manual_seed(0)
    dataset = open_dataset(data)
    order = np.random.RandomState(0).permutation(len(dataset))
    images = torch.cat(list(read(dataset, order)))
    labels = torch.from_numpy(dataset.label_vectors(order).argmax(1))
    kept = len(images) // 10
    net = classifier(dataset.channels, dataset.size, dataset.label_size)
    fit(net, images[kept:], labels[kept:], epochs)

    G, provenance = load_network(network)
    asked = torch.arange(num) % dataset.label_size
    given = from_seeds(range(num), G.config.latent_size, asked.tolist())
    made = [images for _, images in render(G, given, 100, psi, towards=towards)]
    sides = [(labels[:kept], guesses(net, images[:kept])), (asked, guesses(net, torch.cat(made)))]
    table = [["class", f"of {kept:,} held-out pictures", f"of {num:,} samples"]]
    names = provenance.get("class_names") or dataset.class_names or [str(k) for k in range(dataset.label_size)]
    for k, name in enumerate(names):
        table.append([name, *(f"{(told == true)[true == k].float().mean():.0%}" for true, told in sides)])
    table.append(["all", *(f"{(told == true).float().mean():.1%}" for true, told in sides)])
    publish("classes", markdown(table), page)


if __name__ == "__main__":
    main()
