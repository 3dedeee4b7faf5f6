"""Pictures from seeds."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import PairType, SeedsType
from .rendering import Size, background, check_grid, open_network, render, rendering_options

if TYPE_CHECKING:
    from torch import Tensor

    from stylegen.latents import Latents


@click.command()
@rendering_options
@click.option("--seeds", required=True, type=SeedsType(), help="Numbers and ranges, such as 0-7,42, or latents.npz.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--class", "klass", metavar="CLASS", help="Index or name of the class.  [default: seed mod classes]")
@click.option("--grid", type=PairType("COLUMNSxROWS", "4x2"), help="One picture, grid.png, instead of one a seed.")
@click.option("--format", "suffix", type=click.Choice(["png", "webp", "jpg"]), default="png", show_default=True)
@click.option("--npz", is_flag=True, help="Write latents.npz too: seeds, z, truncated w, classes.")
def generate(
    seeds: list[int] | Path,
    out: Path,
    klass: str | None,
    grid: tuple[int, int] | None,
    suffix: str,
    npz: bool,
    **options: Any,
) -> None:
    """Make pictures from seeds.

    A seed means what it means in the official tools, numpy.random.RandomState(seed).randn, and the same command
    makes the same pictures. An .npz file of latents is made as it is: its w is truncated already.

    \b
    Examples:
      stylegen generate --network runs/faces --seeds 0-7,42 --out samples
      stylegen generate --network runs/faces --seeds 0-31 --grid 8x4 --out samples
      stylegen generate --network runs/faces --seeds 7 --trunc 1 --noise-mode random --out samples
      stylegen generate --network runs/fashion --seeds 0-9 --class Sneaker --resolution 16 --out samples
      stylegen generate --network runs/faces --seeds samples/latents.npz --out again
    """
    from stylegen.config import counted, resolution_of, size_text
    from stylegen.latents import concatenate, save_latents

    opened = open_network(**options)
    given, config = opened.latents(seeds, klass), opened.G.config
    _check_output(suffix, config.channels, opened.size, grid, len(given))
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    kept = _write(render(opened.G, given, **opened.looks), out, grid, suffix)
    if npz:
        save_latents(out / "latents.npz", concatenate(kept))
    if opened.size != resolution_of(config, config.levels - 1) and not options["resolution"]:
        full = size_text(resolution_of(config, config.levels - 1))
        click.echo(f"Note: the network has grown to {size_text(opened.size)} of {full} so far.", err=True)
    what = f"{counted(len(given), 'picture')} of {size_text(opened.size)}"
    click.echo(f"Wrote {what} to {out} in {time.monotonic() - begin:.1f} s.")


def _write(
    rendered: Iterator[tuple["Latents", "Tensor"]], out: Path, grid: tuple[int, int] | None, suffix: str
) -> list["Latents"]:
    """Writes what `render` yields, in the background, or all in one grid; returns the latents."""
    import torch

    from stylegen.images import grid as arrange, save_image

    cells, kept, index = [], [], 0
    with background() as submit:
        for part, images in rendered:
            kept.append(part)
            if grid:
                cells.append(images)
                continue
            seeds = [-1] * len(part) if part.seeds is None else part.seeds.tolist()
            for seed, image in zip(seeds, images, strict=True):
                name = f"latent{index:04d}" if seed < 0 else f"seed{seed:04d}"
                submit(save_image, image, out / f"{name}.{suffix}")
                index += 1
    if grid:
        save_image(arrange(torch.cat(cells), *grid), out / f"grid.{suffix}")
    return kept


def _check_output(suffix: str, channels: int, size: Size, grid: tuple[int, int] | None, count: int) -> None:
    from stylegen.images import check_format

    if grid and count > grid[0] * grid[1]:
        raise click.UsageError(f"--grid {grid[0]}x{grid[1]} has no room for {count} seeds")
    if grid:
        check_grid(*grid, size)
    try:
        check_format(f".{suffix}", channels, (size[0] * grid[1], size[1] * grid[0]) if grid else size)
    except UserError as error:
        raise click.BadParameter(str(error), param_hint="--format") from error
