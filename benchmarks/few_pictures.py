"""What `--augment ada` brings where pictures are few, by pictures that nothing was trained on.

DATA: the few. OTHERS: more of their kind. Trains on DATA without and with it, for several seeds, and measures both
against OTHERS from time to time; at the end also which share of them, and of samples, D takes for real, each picture by
itself as in `stylegen score`. Everything is kept in --work: the same command goes on where it was stopped.
"""

import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
import runs
import torch
from compare import FIGURES, measured, strip

from stylegen.checkpoint import load_network, resolve_network
from stylegen.images import to_float
from stylegen.latents import latents
from stylegen.tools.bench_measure import markdown
from stylegen.tools.rendering import open_discriminator
from stylegen.training.dataset import open_dataset
from stylegen.training.measure import BATCH, read

NETWORKS = {
    "dcgan": "--preset dcgan-64 --resolution 32 --batch 16",
    "stylegan": "--preset small-32 --resolution 32 --batch 8 --hold-kimg 4 --fade-kimg 4",
}
OFTEN = "--snapshot-kimg 20 --preview-kimg 40"
SIDES = {"none": "", "ada": "--augment ada --ada-speed-kimg 100"}
SHOWN = 16  # samples of each
JUDGED = 200  # pictures that D looks at


@click.command()
@click.argument("network", type=click.Choice(list(NETWORKS)))
@click.argument("data")
@click.argument("others")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the runs are kept.")
@click.option("--seeds", default=3, show_default=True, help="How many runs of either kind.")
@click.option("--at", multiple=True, default=[60, 100], show_default=True, help="Kimg to measure at, multiples of 20.")
@click.option("--later", multiple=True, type=int, help="More of them, for the first of either kind.")
@click.option("--num", default=2500, show_default=True, help="Fakes that are measured.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(
    network: str,
    data: str,
    others: str,
    work: Path,
    seeds: int,
    at: tuple[int, ...],
    later: tuple[int, ...],
    num: int,
    page: Path | None,
) -> None:
    torch.set_num_threads(1)
    table = [["seed", "kimg", "`--augment`", *FIGURES, "r_t", "p"]]
    judged = [["seed", "`--augment`", "kimg", "of samples", "of DATA", "of OTHERS"]]
    for seed in range(seeds):
        marks = sorted({*at, *(later if seed == 0 else ())})
        folders = {name: work / f"{network}-{name}-{seed}" for name in SIDES}
        for name, folder in folders.items():
            options = f"{NETWORKS[network]} {OFTEN} --seed {seed} {SIDES[name]}"
            runs.train(data, folder, marks[-1], options.split())
        for kimg in marks:
            for name, folder in folders.items():
                since = [row for row in runs.rows(folder) if kimg - 20 < row["kimg"] <= kimg]
                signs = statistics.mean(row["signs/real"] for row in since)
                cells = measured(snapshot(folder, kimg), others, num, 10_000)
                p = since[-1].get("augment/p", 0)
                table.append([str(seed), str(kimg), name, *cells, f"{signs:.2f}", f"{p:.2f}"])
                click.echo(" | ".join(table[-1]), err=True)
        judged += [[str(seed), name, *judge(folder, data, others)] for name, folder in folders.items()]
    image = f"images/few-pictures-{network}.png"
    ends = [snapshot(work / f"{network}-{name}-0", max(*at, *later)) for name in SIDES]
    strip(ends, (page.parent if page else work) / image, SHOWN)
    last = "What D takes for real at the end:"
    parts = [markdown(table), f"![samples without, and with]({image})", last, markdown(judged)]
    runs.publish(f"few pictures {network}", "\n\n".join(parts), page)


def snapshot(folder: Path, kimg: int) -> Path:
    return folder / f"network-{kimg:06d}.safetensors"


@torch.inference_mode()
def judge(folder: Path, *sets: str) -> list[str]:
    """Kimg of the run's end; the shares of its newest network's samples and of each data set that D takes for real."""
    D, _, stage = open_discriminator(str(folder), None, torch.device("cpu"))
    G: Any = load_network(resolve_network(str(folder)))[0]
    groups = [G(latents(list(range(JUDGED)), G.config.latent_size))]
    for name in sets:
        dataset = open_dataset(name, size=stage["resolution"])
        groups.append(to_float(torch.cat(list(read(dataset, np.arange(min(JUDGED, len(dataset))))))))
    scores = [torch.cat([D(part, None, parts=len(part), **stage)[:, 0] for part in x.split(BATCH)]) for x in groups]
    return [f"{runs.rows(folder)[-1]['kimg']:.0f}", *(f"{(found > 0).float().mean():.0%}" for found in scores)]


if __name__ == "__main__":
    main()
