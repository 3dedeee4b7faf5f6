"""A network made of two related ones."""

from pathlib import Path

import click


@click.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--swap-at", "side", type=click.IntRange(1), required=True, help="From this resolution on, B's layers.")
@click.option(
    "--smooth", type=click.FloatRange(0), default=0.0, show_default=True, help="Levels of a gradual crossover."
)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Network file to write.")
def blend(first: str, second: str, side: int, smooth: float, out: Path) -> None:
    """Make a network of A's coarse layers and B's fine ones.

    A and B must be related, such as a network and one that was trained on from it: layers of strangers do not fit each
    other. Latents of both fit the result.

    \b
    Examples:
      stylegen blend runs/faces runs/cartoons --swap-at 32 --out blended.safetensors
      stylegen blend runs/faces runs/cartoons --swap-at 32 --smooth 1 --out blended.safetensors
    """
    from stylegen.checkpoint import digest, load_network, save_network
    from stylegen.editing import blend as blended

    if out.suffix != ".safetensors":
        raise click.BadParameter(f"{out} must end in .safetensors", param_hint="--out")
    (A, provenance), (B, theirs) = load_network(first), load_network(second)
    result = blended(A, B, side, smooth)
    parents = [digest(A), digest(B), *provenance.get("parents", ()), *theirs.get("parents", ())]
    facts = {"parents": list(dict.fromkeys(parents)), "blend": f"{first} below {side}, {second} from there on"}
    out.parent.mkdir(parents=True, exist_ok=True)
    save_network(out, result, provenance | facts)
    click.echo(f"Wrote {out}.")
