"""Videos of paths through latents."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import PairType, SeedsType, SweepType
from .rendering import Opened, check_grid, open_network, rendering_options, video_options, write_video

if TYPE_CHECKING:
    from torch import Tensor

    from stylegen.latents import Latents

CURVES = {"z": ("slerp",), "w": ("cubic", "linear")}  # of each space, the default first
EASINGS = ("linear", "in-out", "in", "out")  # of stylegen.paths
PROBES = 240  # pictures of a path that tell how fast it changes

Route = Callable[["Tensor"], "Latents"]  # times [n] -> n latents


@click.command()
@rendering_options
@click.option("--seeds", required=True, type=SeedsType(), help="Key pictures: seeds or latents.npz.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="FILE.mp4, .gif, .webp, or a folder for PNGs."
)
@click.option("--class", "klass", metavar="CLASS", help="Of all keys.  [default: seed mod classes]")
@click.option("--space", type=click.Choice(list(CURVES)), help="Where the path lies.  [default: w if there is one]")
@click.option(
    "--curve", type=click.Choice(["slerp", "cubic", "linear"]), help="z has slerp, w has cubic (default) or linear."
)
@click.option("--loop", is_flag=True, help="End where it began.")
@click.option("--ease", type=click.Choice(EASINGS), default="linear", show_default=True, help="Between two keys.")
@click.option("--styles", metavar="LAYERS", help="Only these layers move, as 0-3 or coarse.  [default: all]")
@click.option("--walk", type=click.IntRange(1, 100), metavar="TURNS", help="Instead: a closed random walk from a seed.")
@click.option("--sweep-trunc", type=SweepType(steps=False), help="Instead: a seed's picture, truncation from A to B.")
@click.option("--sweep-classes", metavar="A,B,...", help="Instead: a seed's picture, from class to class.")
@click.option("--sweep-layers", is_flag=True, help="Instead: from key to key, layer after layer.")
@click.option(
    "--grid", type=PairType("COLUMNSxROWS", "4x2"), default="1x1", help="So many paths at once; keys are dealt out."
)
@click.option(
    "--constant-speed", type=click.Choice(["pixels", "lite0"]), help="The same change every frame, in this measure."
)
@click.option("--scale", type=click.IntRange(1, 64), default=1, show_default=True, help="Pixels enlarged so often.")
@video_options
def interpolate(
    network: str,
    seeds: list[int] | Path,
    out: Path,
    klass: str | None,
    grid: tuple[int, int],
    scale: int,
    fps: float,
    seconds: float,
    constant_speed: str | None,
    **options: Any,
) -> None:
    """Go from picture to picture.

    The path runs through the key pictures, or is one of those with "Instead". Video needs PyAV: pip install
    'stylegen[video]'. The same command makes the same frames.

    \b
    Examples:
      stylegen interpolate --network runs/faces --seeds 0-5 --loop --seconds 10 --fps 60 --out loop.mp4
      stylegen interpolate --network runs/faces --seeds 0-31 --grid 4x2 --loop --space z --out grid.mp4
      stylegen interpolate --network runs/faces --seeds 0-7 --grid 4x2 --walk 2 --out walk.webp
      stylegen interpolate --network runs/faces --seeds 3 --sweep-trunc -1:1 --loop --out opposite.gif
      stylegen interpolate --network runs/faces --seeds 3,8 --sweep-layers --out crossover.mp4
      stylegen interpolate --network runs/fashion --seeds 0-7 --grid 4x2 --sweep-classes 0,3,4 --loop --out morph.mp4
      stylegen interpolate --network runs/faces --seeds 0-5 --constant-speed lite0 --out frames
    """
    from stylegen.config import size_text
    from stylegen.paths import frames
    from stylegen.video import check_video

    way = {name: options.pop(name) for name in WAY}
    check_video(out, fps)
    opened = open_network(network, **options)
    check_grid(grid[0] * scale, grid[1] * scale, opened.size)
    routes = _routes(opened, seeds, klass, grid[0] * grid[1], way)
    times = frames(round(fps * seconds), closed=way["loop"] or bool(way["walk"]))
    begin = time.monotonic()
    clocks = _clocks(opened, routes, constant_speed) if constant_speed else [lambda t: t] * len(routes)

    def frame(t: "Tensor") -> "Tensor":
        return _pictures(opened, [route(clock(t)) for route, clock in zip(routes, clocks, strict=True)], grid, scale)

    write_video(out, fps, times, frame)
    size = size_text((opened.size[0] * grid[1] * scale, opened.size[1] * grid[0] * scale))
    click.echo(f"Wrote {len(times)} frames of {size} to {out} in {time.monotonic() - begin:.1f} s.")


UNUSED = {  # by the paths that are not through keys: those lie where they lie
    "walk": ("space", "curve", "ease", "styles"),
    "sweep_trunc": ("space", "curve"),
    "sweep_classes": ("space",),
    "sweep_layers": ("space", "curve", "ease", "styles"),
}
WAY = ("space", "curve", "loop", "ease", "styles", "walk", "sweep_trunc", "sweep_classes", "sweep_layers")


def _routes(opened: Opened, seeds: list[int] | Path, klass: str | None, cells: int, way: dict[str, Any]) -> list[Route]:
    """A route a cell. Raises UserError, click.UsageError for what does not go together."""
    special = [name for name in WAY[5:] if way[name]]
    if len(special) > 1:
        raise click.UsageError(f"{' and '.join(map(_option, special))} are different paths; give one")
    for name in special:
        if wrong := [other for other in UNUSED[name] if way[other] and (other, way[other]) != ("ease", "linear")]:
            raise click.UsageError(f"{_option(wrong[0])} means nothing to {_option(name)}; leave it out")
    if not opened.styled and (wrong := [name for name in ("styles", *WAY[6:]) if way[name]]):
        raise UserError(f"{_option(wrong[0])} needs styles; a {opened.G.config.family} network has none")
    if way["sweep_classes"]:
        return _sweep_classes(opened, seeds, cells, way)
    given = opened.latents(seeds, klass)
    if len(given) % cells or (special and not way["sweep_layers"] and len(given) != cells):
        what = f"{_option(special[0])} takes one seed a cell" if special else "every cell takes as many seeds"
        raise click.UsageError(f"{what}; --grid makes {cells}, and there are {len(given)} seeds")
    if not special and len(given) == cells:
        raise click.UsageError("a path goes from key to key; give two seeds or more, or --walk, --sweep-trunc")
    dealt = [given.part(list(range(k * len(given) // cells, (k + 1) * len(given) // cells))) for k in range(cells)]
    return [_route(opened, keys, way) for keys in dealt]


def _route(opened: Opened, keys: "Latents", way: dict[str, Any]) -> Route:
    """One cell's."""
    import torch

    from stylegen.latents import Latents
    from stylegen.paths import circular_walk, crossover, keyed

    if way["walk"]:
        if keys.seeds is None or keys.seeds[0] < 0:
            raise UserError("--walk starts from seeds; these latents have none")
        path = circular_walk(int(keys.seeds[0]), opened.G.config.latent_size, way["walk"])
        return lambda t: _moving(keys, path(t))
    if way["sweep_trunc"]:
        ends = torch.cat([opened.styles(keys, psi) for psi in way["sweep_trunc"]])
        return _styled(keyed(ends, "linear", loop=way["loop"], ease=way["ease"]), ends, way, opened)
    space = way["space"] or ("w" if opened.styled else "z")
    curve = way["curve"] or CURVES[space][0]
    if curve not in CURVES[space]:
        raise click.UsageError(f"--curve {curve} is not one of {space}'s; it has {', '.join(CURVES[space])}")
    if space == "w" and not opened.styled:
        raise UserError(f"a {opened.G.config.family} network has no w; its paths lie in --space z")
    if space == "z":
        if keys.z is None:
            raise UserError("these latents have no z; their paths lie in --space w")
        if way["styles"]:
            raise click.UsageError("--styles picks layers of w; give --space w")
        path = keyed(keys.z, curve, loop=way["loop"], ease=way["ease"])
        return lambda t: _moving(keys, path(t))
    w = opened.styles(keys)
    if way["sweep_layers"]:
        ends = torch.cat([w, w[:1]]) if way["loop"] else w
        if len(ends) < 2:
            raise click.UsageError("--sweep-layers goes from key to key; give two seeds or more")
        legs = [crossover(a, b) for a, b in zip(ends, ends[1:], strict=False)]

        def legwise(t: "Tensor") -> "Tensor":
            place = t * len(legs)
            index = place.floor().long().clamp(max=len(legs) - 1)
            return torch.cat([legs[k](place[i : i + 1] - k) for i, k in enumerate(index.tolist())])

        return lambda t: Latents(w=legwise(t))
    return _styled(keyed(w, curve, loop=way["loop"], ease=way["ease"]), w, way, opened)


def _styled(path: Callable[["Tensor"], "Tensor"], keys: "Tensor", way: dict[str, Any], opened: Opened) -> Route:
    """The route of a path through w, of which only the layers --styles may move away from the first of the keys."""
    from stylegen.latents import Latents, parse_layers

    still = set(range(keys.shape[1]))
    still -= set(parse_layers(way["styles"], opened.G.config.levels)) if way["styles"] else still
    fixed = sorted(still)

    def route(t: "Tensor") -> "Latents":
        w = path(t)
        w[:, fixed] = keys[0, fixed]
        return Latents(w=w)

    return route


def _moving(keys: "Latents", z: "Tensor") -> "Latents":
    """Latents z of the class of the first key."""
    from stylegen.latents import Latents

    return Latents(z=z, classes=None if keys.classes is None else keys.classes[:1].expand(len(z)))


def _sweep_classes(opened: Opened, seeds: list[int] | Path, cells: int, way: dict[str, Any]) -> list[Route]:
    import torch

    from stylegen.paths import keyed

    names = [name.strip() for name in way["sweep_classes"].split(",")]
    w = torch.stack([opened.styles(opened.latents(seeds, name)) for name in names])  # [classes, seeds, L, S]
    if w.shape[1] != cells:
        raise click.UsageError(
            f"--sweep-classes takes one seed a cell; --grid makes {cells}, and there are {w.shape[1]} seeds"
        )
    curve = way["curve"] or "linear"
    if curve not in CURVES["w"]:
        raise click.UsageError(f"--curve {curve} is not one of w's; it has {', '.join(CURVES['w'])}")
    return [_styled(keyed(keys, curve, loop=way["loop"], ease=way["ease"]), keys, way, opened) for keys in w.unbind(1)]


def _clocks(opened: Opened, routes: list[Route], measure: str) -> list[Callable[["Tensor"], "Tensor"]]:
    """For each route, even times -> the times at which its pictures change evenly."""
    import torch
    from tqdm import tqdm

    from stylegen.metrics.features import load
    from stylegen.paths import even

    embed = load("lite0") if measure == "lite0" else lambda images: images.flatten(1).float()
    t = torch.linspace(0, 1, PROBES + 1, dtype=torch.float64)
    clocks: list[Callable[[Tensor], Tensor]] = []
    for route in tqdm(routes, "measuring the speed", unit=" paths", delay=1, leave=False, disable=None):
        _, images = opened.pictures(route(t), show=False)
        vectors = torch.cat([embed(part) for part in images.split(32)])
        distances = (vectors[1:] - vectors[:-1]).norm(dim=1)
        clocks.append(partial(even, distances))
    return clocks


def _pictures(opened: Opened, cells: list["Latents"], grid: tuple[int, int], scale: int) -> "Tensor":
    """Each cell's n latents -> n frames uint8 [n, C, H, W]."""
    import torch

    from stylegen.images import grid as arrange
    from stylegen.latents import concatenate

    _, images = opened.pictures(concatenate(cells), show=False)
    together = [arrange(part, *grid) for part in images.unflatten(0, (len(cells), -1)).unbind(1)]
    return torch.stack(together).repeat_interleave(scale, 2).repeat_interleave(scale, 3)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
