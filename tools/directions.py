"""Directions in w that change pictures in one way."""

import time
from pathlib import Path
from typing import Any

import click

from stylegen.config import counted
from stylegen.errors import UserError

from .options import SeedsType, SweepType, needs
from .rendering import check_grid, moved_sheet, open_network, rendering_options


@click.command()
@rendering_options
@click.option("--method", type=click.Choice(["sefa", "pca"]), default="sefa", show_default=True)
@click.option("--with", "positive", type=SeedsType(), help="Instead of --method: latents that have something, ...")
@click.option("--without", "negative", type=SeedsType(), help="... and latents that have it not.")
@click.option("--count", type=click.IntRange(1, 512), default=6, show_default=True, help="Directions.")
@click.option("--layers", metavar="LAYERS", help="That are looked at and moved, as 0-3 or coarse.  [default: all]")
@click.option("--seeds", type=SeedsType(), default="0-3", show_default=True, help="Pictures on the sheets.")
@click.option("--class", "klass", metavar="CLASS", help="Their class.  [default: seed mod classes]")
@click.option(
    "--strength", type=SweepType(), default="-2:2:7", show_default=True, help="From A to B, in deviations of w."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
def directions(
    method: str,
    positive: list[int] | Path | None,
    negative: list[int] | Path | None,
    count: int,
    layers: str | None,
    seeds: list[int] | Path,
    klass: str | None,
    strength: list[float],
    out: Path,
    **options: Any,
) -> None:
    """Find directions in w that change pictures in one way, and show them.

    Writes directions.npz, for `stylegen edit`, and a sheet a direction: a row a seed, its own picture in the middle.
    sefa looks at the weights of the style layers alone, pca at where w lies; --with and --without learn a direction
    from examples.

    \b
    Examples:
      stylegen directions --network runs/faces --out directions
      stylegen directions --network runs/faces --method pca --layers coarse --count 4 --out directions
      stylegen directions --network runs/faces --with 3,8,12 --without 0,1,5 --out hats
    """
    from stylegen.editing import attribute, pca, save_directions, sefa
    from stylegen.images import save_image
    from stylegen.latents import parse_layers

    if (positive is None) != (negative is None):
        raise click.UsageError("--with and --without belong together; give examples of both")
    for option in ("method", "count"):
        needs(option, positive is None, "to examples")
    opened = open_network(**options)
    if not opened.styled:
        raise UserError(f"a {opened.G.config.family} network has no styles; StyleGANs have")
    config, begin = opened.G.config, time.monotonic()
    chosen = parse_layers(layers, config.levels) if layers else list(range(2 * config.levels))
    if positive is not None and negative is not None:
        has, lacks = (opened.styles(opened.latents(side, klass), 1.0)[:, 0] for side in (positive, negative))
        place = opened.G.w_avg.device
        found = attribute(opened.G, has.to(place), lacks.to(place), chosen, opened.networks[0])
    else:
        if count > config.style_size:
            raise click.UsageError(f"--count {count}: styles of {config.style_size} have no more directions")
        found = {"sefa": sefa, "pca": pca}[method](opened.G, count, chosen, opened.networks[0])
    given = opened.latents(seeds, klass)
    check_grid(len(strength), len(given), opened.size)
    out.mkdir(parents=True, exist_ok=True)
    w = opened.styles(given)
    for k in range(len(found.unit)):
        save_image(moved_sheet(opened, w, found, k, strength, found.layers), out / f"direction-{k}.png")
    save_directions(out / "directions.npz", found)
    what = counted(len(found.unit), "direction")
    click.echo(f"Wrote {what} to {out} in {time.monotonic() - begin:.1f} s.")
