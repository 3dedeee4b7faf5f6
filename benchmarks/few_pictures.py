"""What `--augment ada` brings where pictures are few, by pictures that nothing was trained on.

DATA: the few. OTHERS: more of their kind. Trains small-32 at 32x32 on DATA with and without, for each weight of R1, and
measures them against OTHERS from time to time. Everything is kept in --work: the same command goes on where it was
stopped.
"""

import statistics
from pathlib import Path

import click
import runs
import torch
from compare import FIGURES, measured

from stylegen.checkpoint import load_network
from stylegen.images import grid, save_image, to_uint8
from stylegen.latents import latents
from stylegen.tools.bench_measure import markdown

COMMON = "--preset small-32 --resolution 32 --hold-kimg 4 --fade-kimg 4 --batch 8 --snapshot-kimg 20 --preview-kimg 40"
SIDES = {"none": "", "ada": "--augment ada --ada-speed-kimg {}"}
SHOWN = 16  # samples of each


@click.command()
@click.argument("data")
@click.argument("others")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where the runs are kept.")
@click.option("--kimg", default=400, show_default=True, help="To train for.")
@click.option("--every", default=100, show_default=True, help="Kimg between two measurements; a multiple of 20.")
@click.option("--gamma", "gammas", default=["auto", "0.5"], show_default=True, multiple=True, help="Weights of R1.")
@click.option("--speed", default=100.0, show_default=True, help="Of ada, in kimg.")
@click.option("--num", default=5000, show_default=True, help="Fakes that are measured.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(
    data: str,
    others: str,
    work: Path,
    kimg: int,
    every: int,
    gammas: tuple[str, ...],
    speed: float,
    num: int,
    page: Path | None,
) -> None:
    torch.set_num_threads(1)
    folders = {(gamma, name): work / f"{name}-{gamma}" for gamma in gammas for name in SIDES}
    for (gamma, name), folder in folders.items():
        options = f"{COMMON} --gamma {gamma} {SIDES[name].format(speed)}"
        runs.train(data, folder, kimg, options.split())
    table = [["R1", "kimg", "`--augment`", *FIGURES, "r_t", "p"]]
    for gamma in gammas:
        for at in range(every, kimg + 1, every):
            for name in SIDES:
                table.append([gamma, str(at), name, *row(folders[gamma, name], others, at, every, num)])
                click.echo(" | ".join(table[-1]), err=True)
    image = (page.parent if page else work) / "images/few-pictures.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    show([network(folder, kimg) for folder in folders.values()], image)
    shown = f"![samples, a row a training](images/{image.name})"
    runs.publish("few pictures", f"{markdown(table)}\n\n{shown}", page)


def row(folder: Path, others: str, kimg: int, every: int, num: int) -> list[str]:
    """FIGURES at `kimg`, r_t since the row before, p."""
    since = [row for row in runs.rows(folder) if kimg - every < row["kimg"] <= kimg]
    signs = statistics.mean(row["signs/real"] for row in since)
    cells = measured(network(folder, kimg), others, num, 10_000)
    return [*cells, f"{signs:.2f}", f"{since[-1].get('augment/p', 0):.2f}"]


def network(folder: Path, kimg: int) -> Path:
    return folder / f"network-{kimg:06d}.safetensors"


@torch.inference_mode()
def show(networks: list[Path], path: Path) -> None:
    """The first seeds' pictures, a row a network."""
    rows = []
    for found in networks:
        G, _ = load_network(found)
        rows.append(to_uint8(G(latents(list(range(SHOWN)), G.config.latent_size))))
    save_image(grid(torch.cat(rows), SHOWN, len(rows)), path)


if __name__ == "__main__":
    main()
