"""Trains generators that differ in one thing each, and compares them at equal images and at equal time.

Prints two markdown tables; with --page they go between the page's marks, and a strip of samples a row into its images.
Everything is kept in --work: the same command goes on where it was stopped, and what is finished is not done again.
As long as the first row takes for its pictures, of one core's work, so long does every row train for the second table.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import runs
import torch

from stylegen import presets
from stylegen.checkpoint import load_network, save_network
from stylegen.config import Config, from_dict
from stylegen.images import grid, save_image, to_uint8
from stylegen.latents import latents
from stylegen.metrics.evaluate import Measurement
from stylegen.metrics.features import load
from stylegen.tools.bench_measure import markdown
from stylegen.tools.metrics import measure
from stylegen.training.state import STATE_NAME, fresh

FIGURES = ("FID-lite0", "KID-lite0", "precision", "recall")
EVERY_KIMG = 2  # snapshots, among which the one at equal time is found


@dataclass(frozen=True)
class Task:
    preset: str
    common: str  # what every row is trained with
    batch: int  # of the rows of that preset
    kimg: int
    pictures: int  # in a strip

    def options(self, row: str) -> str:
        """Of a row: its side, last level, a fifth of R1 and half the batch put in."""
        side = int(self.preset.rpartition("-")[2])
        base = presets.preset(self.preset, (side, side), 3, 0)
        words = {"side": side, "last": base.generator.levels - 1, "low": f"{base.loss.r1_gamma / 5:g}"}
        return ROWS[row].format(**words, half=self.batch // 2)


TASKS = {"fashion": Task("small-32", "", 16, 80, 10), "emoji": Task("small-64", "--mirror", 8, 24, 6)}
GROWTH = "--hold-kimg 2 --fade-kimg 2"
PROGAN = (
    "--set generator.family=progan --set generator.pixel_norm=true --set discriminator.family=progan"
    " --set loss.mixing_probability=0"
)
ROWS = {  # what a row is -> its options; those of the first are the ones that the others change
    "StyleGAN": "",
    "the same, seed 1": "--seed 1",
    "the same, seed 2": "--seed 2",
    "fixed resolution": "--set schedule.initial_level={last}",
    "ProGAN": PROGAN,
    "ProGAN, WGAN-GP": f"{PROGAN} --loss wgan-gp",
    "DCGAN": "--preset dcgan-64",
    "MLP": "--preset mlp-32 --resolution {side}",
    "minimax": "--loss minimax",
    "hinge": "--loss hinge",
    "least squares": "--loss lsgan",
    "relativistic": "--loss rpgan",
    "WGAN": "--loss wgan",
    "WGAN-GP": "--loss wgan-gp",
    "feature matching": "--loss feature-matching",
    "no mixing": "--set loss.mixing_probability=0",
    "a fifth of R1": "--gamma {low}",
    "no R1": "--gamma 0",
    "no minibatch stddev": "--set discriminator.mbstd_group=0",
    "minibatch discrimination": "--set discriminator.mbstd_group=0 --set discriminator.mbdisc_features=16",
    "half the batch": "--batch {half}",
}
RAW = "no EMA"  # the first row's G itself


@click.command()
@click.argument("task", type=click.Choice(list(TASKS)))
@click.argument("data")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the runs are kept.")
@click.option("--row", "rows", multiple=True, help="Only this, and others that are given; the first row always.")
@click.option("--num", default=2500, show_default=True, help="Fakes that are measured.")
@click.option("--reals", default=10_000, show_default=True, help="Reals at most.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the tables between this page's marks.")
def main(task: str, data: str, work: Path, rows: tuple[str, ...], num: int, reals: int, page: Path | None) -> None:
    torch.set_num_threads(1)
    first, *others = ROWS
    if unknown := set(rows) - set(ROWS):
        raise click.UsageError(f"--row: no {'; '.join(unknown)}; there are {'; '.join(ROWS)}")
    kimg, images = TASKS[task].kimg, (page.parent if page else work) / f"images/compare-{task}"
    header = ["network", "options", "kimg", "minutes", *FIGURES, "samples"]
    equal, timed, minutes = [header], [header], 0.0

    def add(table: list[list[str]], name: str, run: Run, network: Path) -> None:
        cells = measured(network, data, num, reals)
        image = images / f"{slug(name)}{'-early' if table is equal else ''}.png"
        strip([network], image, TASKS[task].pictures)
        spent = load_network(network)[1]["kimg"]
        shown = f"![]({image.relative_to(images.parents[1])})"
        table.append(
            [
                name,
                f"`{run.options}`" if run.options else "-",
                f"{spent:.0f}",
                f"{run.minutes(spent):.1f}",
                *cells,
                shown,
            ]
        )
        click.echo(" | ".join(table[-1]), err=True)

    for name in [first, *(name for name in others if not rows or name in rows)]:
        run = Run(TASKS[task], data, work / task / slug(name), TASKS[task].options(name))
        run.train(kimg)
        minutes = minutes or run.minutes(kimg)
        add(equal, name, run, run.network(kimg))
        if name == first:
            add(equal, RAW, run, run.keep_raw(kimg))
        add(timed, name, run, run.train_for(minutes))
    tables = f"At equal images:\n\n{markdown(equal)}\n\nAt equal time:\n\n{markdown(timed)}"
    runs.publish(f"compare {task}", tables, page)


@dataclass
class Run:
    """One row's training."""

    task: Task
    data: str
    folder: Path
    options: str

    def train(self, kimg: int) -> None:
        base = "" if "--preset" in self.options else f"--preset {self.task.preset} {GROWTH} --batch {self.task.batch}"
        options = f"{base} {self.task.common} {self.options}".split()
        often = ["--snapshot-kimg", str(EVERY_KIMG), "--preview-kimg", "1000"]
        runs.train(self.data, self.folder, kimg, [*options, *often])

    def minutes(self, kimg: float) -> float:
        return runs.minutes(self.folder, kimg)

    def train_for(self, minutes: float) -> Path:
        """The network after so many minutes, trained on to there where the run is shorter."""
        last = runs.rows(self.folder)[-1]["kimg"]
        if (spent := self.minutes(last)) < minutes * 0.97:
            rate = last / 2 / (spent - self.minutes(last / 2))  # of the last half, which is at full size
            self.train(round(last + (minutes - spent) * rate))
        known = [int(path.stem[-6:]) for path in self.folder.glob("network-*.safetensors")]
        return self.network(min(known, key=lambda kimg: abs(self.minutes(kimg) - minutes)))

    def network(self, kimg: int) -> Path:
        return self.folder / f"network-{kimg:06d}.safetensors"

    def keep_raw(self, kimg: int) -> Path:
        """G itself at `kimg`, taken from the state while that is there."""
        path = self.folder / f"raw-{kimg:06d}.safetensors"
        if not path.exists():
            state = fresh(from_dict(Config, json.loads((self.folder / "config.json").read_text())), torch.device("cpu"))
            state.load(self.folder / STATE_NAME)
            provenance = load_network(self.network(kimg))[1]
            assert state.images_seen == provenance["images_seen"]
            save_network(path, state.G, provenance)
        return path


def slug(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")


def measured(network: Path, data: str, num: int, reals: int) -> list[str]:
    """FIGURES of a network as cells, from beside it where they were measured before."""
    usual: dict[str, Any] = {"klass": None, "mirror": None, "ppl": (), "level": 0.9}
    usual |= {"device": "cpu", "num": num, "reals": reals, "seed": 0, "batch": 32}

    def figures() -> dict[str, Any]:
        return measure(str(network), data, load("lite0"), **usual)["figures"]

    settings = {"network": hashlib.sha256(network.read_bytes()).hexdigest(), "num": num, "reals": reals}
    found = runs.kept(network.parent / "figures", settings, figures)
    return [Measurement(**found[name]).text(3) for name in FIGURES]


@torch.inference_mode()
def strip(networks: list[Path], path: Path, count: int) -> None:
    """The first seeds' pictures side by side, untruncated, a row a network."""
    rows = []
    for network in networks:
        G, _ = load_network(network)
        rows.append(to_uint8(G(latents(list(range(count)), G.config.latent_size))))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(grid(torch.cat(rows), count, len(rows)), path)


if __name__ == "__main__":
    main()
