"""How often a conditional generator makes the class that it was asked for, in the eyes of a small classifier.

The classifier is trained on the real data, all but a tenth of it, which tells how far it can be trusted.
"""

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylegen.checkpoint import load_network
from stylegen.images import to_float
from stylegen.tools.generate import render
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
def main(network: str, data: str, num: int, epochs: int, psi: float, towards: str) -> None:
    torch.manual_seed(0)
    dataset = open_dataset(data)
    order = np.random.RandomState(0).permutation(len(dataset))
    images = torch.cat(list(read(dataset, order)))
    labels = torch.from_numpy(dataset.label_vectors(order).argmax(1))
    kept = len(images) // 10
    net = classifier(dataset.channels, dataset.size, dataset.label_size)
    fit(net, images[kept:], labels[kept:], epochs)
    sure = (guesses(net, images[:kept]) == labels[:kept]).float().mean()
    click.echo(f"classifier on {kept:,} real pictures that it has not seen: {sure:.1%}")

    G, provenance = load_network(network)
    asked = torch.arange(num) % dataset.label_size
    settings = {"psi": psi, "cutoff": 8, "towards": towards, "noise": "const"}
    made = [images for _, images, _, _ in render(G, list(range(num)), asked.tolist(), 100, **settings)]
    right = guesses(net, torch.cat(made)) == asked
    click.echo(f"agrees with the class asked for in {right.float().mean():.1%} of {num:,} fakes, psi {psi:g}")
    for k in range(dataset.label_size):
        name = (provenance.get("class_names") or dataset.class_names or range(dataset.label_size))[k]
        click.echo(f"  {name}: {right[asked == k].float().mean():.0%}")


if __name__ == "__main__":
    main()
