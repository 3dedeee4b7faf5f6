"""Pictures moved along directions, and arithmetic of latents."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import SeedsType, SweepType, needs
from .rendering import Opened, check_grid, moved_sheet, open_network, rendering_options

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@rendering_options
@click.option("--seeds", type=SeedsType(), help="Pictures to edit: seeds or latents.npz.")
@click.option("--class", "klass", metavar="CLASS", help="Their class.  [default: seed mod classes]")
@click.option(
    "--direction", metavar="FILE[:K]", help="directions.npz of `stylegen directions`; its K-th; 0 by default."
)
@click.option(
    "--strength", type=SweepType(), default="-2:2:7", show_default=True, help="From A to B, in deviations of w."
)
@click.option("--layers", metavar="LAYERS", help="That move, as 0-7 or coarse.  [default: the direction's]")
@click.option("--expr", "expression", help="Instead: arithmetic of seeds and 'files'.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
def edit(
    seeds: list[int] | Path | None,
    klass: str | None,
    direction: str | None,
    strength: list[float],
    layers: str | None,
    expression: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Move pictures along a direction, or calculate with latents.

    With --direction: a sheet, a row a seed and a column a strength, and latents.npz with all of them. With --expr: the
    picture of the result (result.png), its terms beside it (sheet.png), and latents.npz.

    \b
    Examples:
      stylegen edit --network runs/faces --seeds 0-3 --direction hats/directions.npz --strength -3:3:7 --out edited
      stylegen edit --network runs/faces --seeds 0-3 --direction directions/directions.npz:2 --layers 0-3 --out edited
      stylegen edit --network runs/faces --expr "mean(1,2,3) - mean(4,5,6) + mean(7,8,9)" --out sum
    """
    import torch

    from stylegen.editing import load_directions
    from stylegen.images import grid, save_image
    from stylegen.latents import Latents, parse_layers, save_latents

    if (direction is None) == (expression is None):
        raise click.UsageError("give either --direction, with --seeds, or --expr")
    if direction is not None and seeds is None:
        raise click.UsageError("--direction moves pictures; give their --seeds")
    for option in ("seeds", "strength", "layers"):
        needs(option, direction, "without --direction")
    opened = open_network(**options)
    if not opened.styled:
        raise UserError(f"a {opened.G.config.family} network has no styles to edit; StyleGANs have")
    begin, network = time.monotonic(), opened.networks[0]
    if direction is not None and seeds is not None:
        name, k = _indexed(direction)
        found = load_directions(name, opened.G, opened.networks)
        if k >= len(found.unit):
            raise click.UsageError(f"--direction {direction}: {name} has directions 0 to {len(found.unit) - 1}")
        chosen = parse_layers(layers, opened.G.config.levels) if layers else found.layers
        w = opened.styles(opened.latents(seeds, klass))
        check_grid(len(strength), len(w), opened.size)
        out.mkdir(parents=True, exist_ok=True)
        names = "sheet.png and latents.npz"
        save_image(moved_sheet(opened, w, found, k, strength, chosen), out / "sheet.png")
        result = torch.stack([found.move(w, k, value, chosen) for value in strength], 1).flatten(0, 1)
    else:
        assert expression is not None
        result, images = _calculated(opened, expression, klass)
        out.mkdir(parents=True, exist_ok=True)
        names = "result.png, sheet.png and latents.npz"
        save_image(images[-1], out / "result.png")
        save_image(grid(images, len(images), 1), out / "sheet.png")
    save_latents(out / "latents.npz", Latents(w=result, network=network))
    click.echo(f"Wrote {names} to {out} in {time.monotonic() - begin:.1f} s.")


def _calculated(opened: Opened, expression: str, klass: str | None) -> "tuple[Tensor, Tensor]":
    """(w [1, L, S] of an expression, pictures of its terms and of itself)."""
    import torch

    from stylegen.editing import evaluate
    from stylegen.latents import Latents

    terms: dict[int | str, Any] = {}

    def latent(term: int | str) -> Any:
        given = opened.latents([term] if isinstance(term, int) else Path(term), klass)
        terms[term] = opened.styles(given)
        return terms[term]

    result = evaluate(expression, latent)[None]
    shown = torch.cat([*(w[:1] for w in terms.values()), result])
    return result, opened.pictures(Latents(w=shown))[1]


def _indexed(text: str) -> tuple[str, int]:
    """ "a.npz:2" -> ("a.npz", 2); without a number, the first."""
    name, colon, index = text.rpartition(":")
    return (name, int(index)) if colon and index.isdecimal() else (text, 0)
