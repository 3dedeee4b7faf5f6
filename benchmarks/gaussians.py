"""How many of 25 Gaussians on a grid each loss reaches, and how evenly: mode coverage where it can be counted exactly.

The data is that of Srivastava et al. 2017 (VEEGAN, section 4.1): 5x5 modes 2 apart, of standard deviation 0.05; the
figures are those of Lin et al. 2018 (PacGAN, section 4.1). A point is trained on as a picture of one pixel and two
channels by the engine's own iteration: its losses, penalties, optimizers, average of G and random numbers.

Prints a markdown table; with --page it goes between the page's marks and a picture of the samples into its images.
Finished runs are kept in --work.
"""

import math
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from modes import divergence
from runs import kept, publish
from torch import Tensor, nn

from stylegen import presets
from stylegen.config import Config, override
from stylegen.errors import UserError
from stylegen.files import atomic_path
from stylegen.networks.layers import PLAIN_STD, PlainDense
from stylegen.tools.bench_measure import markdown
from stylegen.training import rng
from stylegen.training.schedule import total_images
from stylegen.training.state import TrainState, fresh
from stylegen.training.step import iterate
from stylegen.training.threads import progress

SIDE = torch.arange(-4.0, 5.0, 2.0)
MODES = torch.cartesian_prod(SIDE, SIDE)  # [25, 2]
DEVIATION = 0.05
RANGE = 5.0  # what 1, the largest value of a picture, stands for
BATCH, LR, WIDTH, LAYERS = 128, 0.002, 128, 3
ROWS = {  # what a row is -> the name of its loss, and settings
    "nonsaturating": "nonsaturating loss.r1_gamma=0",
    "nonsaturating, R1": "nonsaturating loss.r1_gamma=0.004",
    "nonsaturating, minibatch discrimination": (
        "nonsaturating loss.r1_gamma=0 discriminator.mbdisc_features=4 discriminator.mbdisc_size=3"
    ),
    "minimax": "minimax loss.r1_gamma=0",
    "hinge": "hinge loss.r1_gamma=0",
    "least squares": "lsgan loss.r1_gamma=0",
    "relativistic, R1 and R2": "rpgan loss.r1_gamma=0.004",
    "WGAN": "wgan",
    "WGAN-GP": "wgan-gp",
    "WGAN-GP for a plane": "wgan-gp loss.gp_weight=0.1 loss.n_critic=5",
    "feature matching": "feature-matching loss.r1_gamma=0",
}


@dataclass(frozen=True)
class Figures:
    """modes: those with a sample within 3 deviations; quality: the share of samples that are; kl: of nearest modes."""

    modes: int
    quality: float
    kl: float


def figures(points: Tensor) -> Figures:
    """Of points [N, 2]. The data's own quality is 1 - exp(-9/2), 0.989."""
    distance, nearest = torch.cdist(points.double(), MODES.double()).min(1)
    near = distance < 3 * DEVIATION
    reached = torch.bincount(nearest[near], minlength=len(MODES)) > 0
    return Figures(
        int(reached.sum()), float(near.double().mean()), divergence(torch.bincount(nearest, minlength=len(MODES)))
    )


def draw_data(count: int, generator: torch.Generator) -> Tensor:
    """Points [count, 2] of the data."""
    chosen = torch.randint(len(MODES), (count,), generator=generator)
    return MODES[chosen] + DEVIATION * torch.randn(count, 2, generator=generator)


@dataclass(frozen=True)
class Grid:
    """Stands where the engine has its loader: fresh points for every batch, a pure function of the images seen."""

    seed: int

    def batch(self, images_seen: int, n: int, level: int, which: object = None) -> tuple[Tensor, Tensor]:
        points = draw_data(n, rng.generator(self.seed, "points", images_seen)) / RANGE
        return (points.reshape(n, 2, 1, 1) + 1) * 127.5, torch.zeros(n, 0)  # undone by `to_float`


def configure(row: str, seed: int, kimg: float) -> Config:
    """mlp-32's settings with small networks for one pixel, and a row's loss. Raises UserError."""
    loss, *settings = row.split()
    config = presets.preset("mlp-32", (8, 8), 2, 0)
    shape: dict[str, Any] = {"base": (1, 1), "levels": 1, "hidden_layers": LAYERS, "hidden_width": WIDTH}
    config = replace(
        config,
        generator=replace(config.generator, latent_size=2, **shape),
        discriminator=replace(config.discriminator, maxout_pieces=1, **shape),
        schedule=replace(config.schedule, initial_level=0, total_kimg=kimg, batch_default=BATCH, lr_default=LR),
        training=replace(config.training, seed=seed),
    )
    config = presets.with_loss(config, loss)
    for setting in settings:
        config = override(config, setting)
    return presets.resolve(config)


def train(config: Config, bar: Any) -> TrainState:
    """The engine's iterations until the end of the schedule."""
    state = fresh(config, torch.device("cpu"))
    widen(state.G), widen(state.D)
    state.G_ema.load_state_dict(state.G.state_dict())
    while (before := state.images_seen) < total_images(config):
        iterate(state, Grid(config.training.seed))
        bar.update(state.images_seen - before)
    return state


@torch.no_grad()
def widen(network: nn.Module) -> None:
    """Weights of deviation sqrt(2 / fan_in) (He et al. 2015, eq. 10): with 0.02, layers this narrow pass nothing on."""
    for dense in network.modules():
        if isinstance(dense, PlainDense):
            dense.weight *= math.sqrt(2 / dense.weight.shape[1]) / PLAIN_STD


def measure(config: Config, num: int, bar: Any) -> dict[str, Any]:
    """A run's figures, seconds of the processor and points."""
    begin = time.process_time()
    G = train(config, bar).G_ema
    seconds = time.process_time() - begin
    z = torch.randn(num, config.generator.latent_size, generator=rng.generator(config.training.seed, "samples"))
    with torch.inference_mode():
        points = RANGE * G(z).flatten(1)
    return asdict(figures(points)) | {"seconds": seconds, "points": points.mul(1000).round().int().tolist()}


def cells(results: list[dict[str, Any]]) -> list[str]:
    """Median and range over seeds, of each figure."""
    return [
        f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
        for key, digits in (("modes", 0), ("quality", 2), ("kl", 3))
        for values in [[result[key] for result in results]]
    ]


def draw(path: Path, points: dict[str, Tensor]) -> None:
    """A panel of points [N, 2] for each name, six in a row. Raises UserError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs matplotlib; install it with `pip install matplotlib`") from error
    rows = -(-len(points) // 6)
    figure = Figure(figsize=(12, 2.3 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 6, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, (name, xy) in zip(panels, points.items(), strict=False):
        panel.scatter(*xy.T, s=1, linewidths=0, color="tab:blue")
        panel.set(xlim=(-RANGE, RANGE), ylim=(-RANGE, RANGE), aspect="equal")
        panel.set_title(name.replace(", minibatch", ",\nminibatch"), fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where finished runs are kept.")
@click.option("--kimg", default=700.0, show_default=True, help="Thousands of points that D sees.")
@click.option("--seeds", default=3, show_default=True, help="Runs a row.")
@click.option("--num", default=2500, show_default=True, help="Samples measured.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(work: Path, kimg: float, seeds: int, num: int, page: Path | None) -> None:
    torch.set_num_threads(1)
    data = [draw_data(num, rng.generator(seed, "samples")) for seed in range(seeds)]
    points = {"the data": data[0]}
    table = [["loss", "settings", "updates of G", "seconds", "modes of 25", "within 3 sd", "KL"]]
    table.append(["the data", "-", "-", "-", *cells([asdict(figures(some)) for some in data])])
    with progress(len(ROWS) * seeds * round(1000 * kimg), "gaussians") as bar:
        for name, row in ROWS.items():
            configs = [configure(row, seed, kimg) for seed in range(seeds)]
            results = [kept(work, {"config": asdict(c), "num": num}, lambda c=c: measure(c, num, bar)) for c in configs]
            points[name] = torch.tensor(results[0]["points"]) / 1000
            updates = total_images(configs[0]) // BATCH // configs[0].loss.n_critic
            spent = statistics.median(result["seconds"] for result in results)
            table.append([name, f"`{row}`", f"{updates:,}", f"{spent:.0f}", *cells(results)])
            click.echo(" | ".join(table[-1]), err=True)
    draw((page.parent / "images" if page else work) / "gaussians25.png", points)
    publish("gaussians", markdown(table), page)


if __name__ == "__main__":
    main()
