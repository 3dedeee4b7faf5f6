"""Pictures from seeds."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import DEVICES, PRECISIONS, FiniteType, PairType, SeedsType, SizeType, pick_device, pick_precision

if TYPE_CHECKING:
    from torch import Tensor

    from stylegen.config import GeneratorConfig

Size = tuple[int, int]

NOISE_MODES = ("const", "random", "none")
ALL_LAYERS = 1000  # more than any network has
MAX_GRID_PX = 2**28


class LayersType(click.ParamType):
    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return ALL_LAYERS
        if not str(value).isdecimal():
            self.fail(f'{value!r} is neither a number of layers nor "all"', param, ctx)
        return int(value)


@click.command()
@click.option("--network", required=True, metavar="N", help="A network file, a run folder or an embedded name.")
@click.option("--seeds", required=True, type=SeedsType(), help="Numbers and ranges, such as 0-7,42.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option(
    "--trunc", "psi", type=FiniteType(), default=0.7, show_default=True, help="Truncation psi: 1 none, 0 the mean."
)
@click.option("--trunc-cutoff", "cutoff", type=LayersType(), default=8, show_default=True, help='Or "all".')
@click.option(
    "--trunc-to", "towards", type=click.Choice(["class", "all"]), default="class", show_default=True, help="Whose mean."
)
@click.option("--class", "klass", metavar="CLASS", help="Index or name of the class.  [default: seed mod classes]")
@click.option("--noise-mode", "noise", type=click.Choice(NOISE_MODES), default="const", show_default=True)
@click.option("--resolution", type=SizeType(), help="A level of the network.  [default: the one it is trained to]")
@click.option("--grid", type=PairType("COLUMNSxROWS", "4x2"), help="One picture, grid.png, instead of one a seed.")
@click.option("--format", "suffix", type=click.Choice(["png", "webp", "jpg"]), default="png", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures at a time.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Arithmetic.")
@click.option("--npz", is_flag=True, help="Write latents.npz too: seeds, z, truncated w, classes.")
def generate(
    network: str,
    seeds: list[int],
    out: Path,
    klass: str | None,
    resolution: Size | None,
    grid: tuple[int, int] | None,
    suffix: str,
    batch: int,
    device: str,
    precision: str,
    npz: bool,
    **style: Any,
) -> None:
    """Make pictures from seeds.

    A seed means what it means in the official tools, numpy.random.RandomState(seed).randn, and the same command
    makes the same pictures.

    \b
    Examples:
      stylegen generate --network runs/faces --seeds 0-7,42 --out samples
      stylegen generate --network runs/faces --seeds 0-31 --grid 8x4 --out samples
      stylegen generate --network runs/faces --seeds 7 --trunc 1 --noise-mode random --out samples
      stylegen generate --network runs/fashion --seeds 0-9 --class Sneaker --resolution 16 --out samples
    """
    from stylegen.checkpoint import load_network
    from stylegen.config import resolution_of, size_text
    from stylegen.precision import freeze, prepare

    place = pick_device(device)
    G: Any  # of any family
    G, provenance = load_network(network)
    size, alpha = choose_stage(G.config, provenance, resolution)
    classes = choose_classes(G.config, provenance, seeds, klass)
    _check_output(suffix, G.config.channels, size, grid, len(seeds))
    if G.config.family != "stylegan":
        style = _unused(style, G.config.family)
    G = freeze(prepare(G.to(place), pick_precision(precision, place)))
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    rendered = render(G, seeds, classes, batch, resolution=size, alpha=alpha, **style)
    kept = _write(rendered, out, grid, suffix)
    if npz:
        _save_latents(out / "latents.npz", seeds, classes, kept)
    full = resolution_of(G.config, G.config.levels - 1)
    if size != full and not resolution:
        click.echo(f"Note: the network has grown to {size_text(size)} of {size_text(full)} so far.", err=True)
    what = f"{len(seeds)} picture{'s' * (len(seeds) > 1)} of {size_text(size)}"
    click.echo(f"Wrote {what} to {out} in {time.monotonic() - begin:.1f} s.")


def _write(
    rendered: Iterator[tuple[list[int], "Tensor", "Tensor", "Tensor | None"]],
    out: Path,
    grid: tuple[int, int] | None,
    suffix: str,
) -> list[tuple["Tensor", "Tensor | None"]]:
    """Writes what `render` yields, in the background, or all in one grid; returns (z, w) of every batch."""
    import torch

    from stylegen.images import grid as arrange, save_image

    cells, kept = [], []
    with _background() as submit:
        for part, images, z, w in rendered:
            if grid:
                cells.append(images)
            else:
                for seed, image in zip(part, images, strict=True):
                    submit(save_image, image, out / f"seed{seed:04d}.{suffix}")
            kept.append((z, w))
    if grid:
        save_image(arrange(torch.cat(cells), *grid), out / f"grid.{suffix}")
    return kept


def choose_stage(config: "GeneratorConfig", provenance: dict[str, Any], wanted: Size | None) -> tuple[Size, float]:
    """(resolution, alpha) to make pictures at: `wanted`, or what the network is trained to.

    Raises click.BadParameter for what is not a level of the network.
    """
    from stylegen.config import levels_of, resolution_of, size_text

    levels = [resolution_of(config, level) for level in levels_of(config)]
    trained, alpha = tuple(provenance.get("resolution") or levels[-1]), provenance.get("alpha")
    if wanted and wanted not in levels:
        known = ", ".join(map(size_text, levels))
        raise click.BadParameter(
            f"{size_text(wanted)} is not a level of this network; it has {known}", param_hint="--resolution"
        )
    size = wanted or trained
    if size > trained:
        click.echo(
            f"Note: the network is trained up to {size_text(trained)} so far; above that, expect noise.", err=True
        )
    return size, 1.0 if alpha is None or size != trained else alpha


def choose_classes(
    config: "GeneratorConfig", provenance: dict[str, Any], seeds: list[int], klass: str | None
) -> list[int] | None:
    """A class a seed, None for a network without: `klass` (a name, else an index), or the seed modulo the classes.

    Raises click.BadParameter for a class that the network does not know.
    """
    count, names = config.label_size, provenance.get("class_names") or []
    if klass is None:
        if count:
            click.echo(f"Note: no --class given; seed s makes class s mod {count}.", err=True)
        return [seed % count for seed in seeds] if count else None
    if not count:
        raise click.BadParameter("this network has no classes", param_hint="--class")
    if klass in names:
        return [names.index(klass)] * len(seeds)
    if klass.isdecimal() and int(klass) < count:
        return [int(klass)] * len(seeds)
    known = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
    raise click.BadParameter(f"{klass!r} is not a class of this network; it has {known}", param_hint="--class")


def render(
    G: Any, seeds: list[int], classes: list[int] | None, batch: int, **settings: Any
) -> Iterator[tuple[list[int], "Tensor", "Tensor", "Tensor | None"]]:
    """Batch by batch (seeds, pictures uint8 [n, C, H, W], z [n, latent_size], w [n, L, style_size] or None) on the CPU.

    `settings` are those of G, and `towards`: "class" truncates towards each class's own average. Random noise is drawn
    from the seed, so those pictures are made one at a time.
    """
    import torch
    from tqdm import tqdm

    from stylegen.images import to_uint8
    from stylegen.latents import class_averages, latents, one_hot

    config, device = G.config, next(G.parameters()).device
    psi, cutoff, towards, noise = (settings.pop(name, None) for name in ("psi", "cutoff", "towards", "noise"))
    batch = 1 if noise == "random" else batch
    kinds = sorted(set(classes or ())) if towards == "class" and config.family == "stylegan" and psi != 1 else []
    means = dict(zip(kinds, class_averages(G, one_hot(kinds, config.label_size).to(device)), strict=True))
    with tqdm(total=len(seeds), unit=" pictures", delay=1, leave=False, disable=None) as bar:
        for start in range(0, len(seeds), batch):
            part, w = seeds[start : start + batch], None
            z = latents(part, config.latent_size)
            with torch.inference_mode():
                chosen = (classes or [])[start : start + batch]
                labels = one_hot(chosen, config.label_size).to(device) if classes else None
                if config.family == "stylegan":
                    centre = torch.stack([means[k] for k in chosen]) if means else None
                    w = G.truncate(G.mapping(z.to(device), labels), psi, cutoff, centre)
                    generator = torch.Generator(device).manual_seed(part[0]) if noise == "random" else None
                    images = G.synthesis(w, noise=noise, generator=generator, **settings)
                else:
                    images = G(z.to(device), labels, **settings)
                images, w = to_uint8(images).cpu(), w if w is None else w.cpu()
            yield part, images, z, w
            bar.update(len(part))


def _unused(style: dict[str, Any], family: str) -> dict[str, Any]:
    ctx = click.get_current_context()
    options = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    given = [options[k] for k in style if ctx.get_parameter_source(k) == click.core.ParameterSource.COMMANDLINE]
    if given:
        click.echo(f"Note: {', '.join(given)} means nothing to a {family} network.", err=True)
    return {}


def _check_output(suffix: str, channels: int, size: Size, grid: tuple[int, int] | None, count: int) -> None:
    from stylegen.images import check_format

    if grid and count > grid[0] * grid[1]:
        raise click.UsageError(f"--grid {grid[0]}x{grid[1]} has no room for {count} seeds")
    if grid and grid[0] * grid[1] * size[0] * size[1] > MAX_GRID_PX:
        raise click.UsageError(f"--grid {grid[0]}x{grid[1]} is above {MAX_GRID_PX:,} pixels; take fewer cells")
    try:
        check_format(f".{suffix}", channels, (size[0] * grid[1], size[1] * grid[0]) if grid else size)
    except UserError as error:
        raise click.BadParameter(str(error), param_hint="--format") from error


@contextmanager
def _background() -> Iterator[Callable[..., None]]:
    """Yields submit(function, *arguments), which runs calls in threads, few of them waiting; raises what they raise."""
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(2) as pool:

        def submit(*call: Any) -> None:
            pending.append(pool.submit(*call))
            if len(pending) > 16:
                pending.popleft().result()

        yield submit
        for future in pending:
            future.result()


def _save_latents(
    path: Path, seeds: list[int], classes: list[int] | None, kept: list[tuple["Tensor", "Tensor | None"]]
) -> None:
    import numpy as np

    from stylegen.files import atomic_path

    arrays: dict[str, Any] = {"seeds": np.array(seeds), "z": np.concatenate([z.numpy() for z, _ in kept])}
    if kept[0][1] is not None:
        arrays["w"] = np.concatenate([w.numpy() for _, w in kept if w is not None])
    if classes is not None:
        arrays["classes"] = np.array(classes)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
