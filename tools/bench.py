"""`stylegen bench`: how fast this machine runs the operators, networks, training and data path, and against what."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import DEVICES, SizeType, pick_device

if TYPE_CHECKING:
    from .bench_measure import Floor, Row

DTYPES = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def _writable(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    """Refuses a file in a folder that is not there, before anything is measured."""
    if value and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.absolute().parent}; make it first", ctx, param)
    return value


_AGAINST = (
    click.option(
        "--baseline",
        type=click.Choice(["reference", "none"]),
        default="reference",
        show_default=True,
        help="The plain-PyTorch path in float32, or nothing.",
    ),
    click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True),
)
_precision = click.option(
    "--precision",
    "precisions",
    type=click.Choice(list(DTYPES)),
    multiple=True,
    help="May be repeated.  [default: fp32, and bf16 where it is faster]",
)
_COMMON = (
    click.option("--repeats", type=click.IntRange(min=1), metavar="N", help="Rounds of measurements."),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: PyTorch's own choice]"
    ),
    click.option("--quick", is_flag=True, help="Tiny sizes: shows that everything runs, not how fast."),
    click.option(
        "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), callback=_writable, metavar="FILE"
    ),
    click.option(
        "--markdown",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="PAGE.md",
        help="Put the table between the page's `<!-- bench NAME -->` and `<!-- end of bench NAME -->`.",
    ),
)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group()
def bench() -> None:
    """Measure this machine: operators, pictures, training, data, metrics.

    Each figure is the median of repeated runs that take turns with runs of a baseline, so that a slow spell of the
    machine hits both. `ratio` says how many times faster than the baseline; `floor fraction` compares with the least
    time in which the machine, as measured first, could move the data or do the arithmetic of the plain path. 1 is
    perfect; what fits in the caches, or needs fewer products than the plain path, can exceed it.

    \b
    Examples:
      stylegen bench ops
      stylegen bench generate --batch 4
      stylegen bench train --json train.json
      stylegen bench data --source photos/
    """


@bench.command(short_help="Operators and convolutions.")
@click.option(
    "--dtype",
    "dtypes",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    multiple=True,
    help="May be repeated.  [default: float32 and bfloat16]",
)
@click.option(
    "--order",
    "orders",
    type=click.Choice(["channels_last", "contiguous"]),
    multiple=True,
    help="Memory order; may be repeated.  [default: both]",
)
@_options(*_AGAINST, *_COMMON)
def ops(dtypes: tuple[str, ...], orders: tuple[str, ...], device: str, baseline: str, **common: Any) -> None:
    """Time every operator and convolution by shape, dtype and memory order.

    The baseline is the operator's reference in plain PyTorch: float32, contiguous.

    \b
    Examples:
      stylegen bench ops
      stylegen bench ops --dtype bfloat16 --order channels_last --json ops.json
    """
    from .bench_ops import listed, measure

    chosen, memory = list(dtypes or ("float32", "bfloat16")), list(orders or ("channels_last", "contiguous"))
    quick = common["quick"]
    repeats = common["repeats"] or (2 if quick else 7)
    floor = _begin(device, chosen, common)
    found = measure(floor, pick_device(device), chosen, memory, repeats, quick, baseline == "reference")
    _finish("ops", device, floor, found, len(listed(quick)) * len(chosen) * len(memory), common)


@bench.command(short_help="Pictures from a generator.")
@click.option("--network", metavar="N", help="A network file, a run folder.  [default: official 1024, random weights]")
@click.option(
    "--resolution",
    "resolutions",
    type=SizeType(),
    multiple=True,
    help="A level of the network; may be repeated.  [default: its full size]",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Pictures at a time; may be repeated.  [default: 1]",
)
@_options(_precision, *_AGAINST, *_COMMON)
def generate(
    network: str | None,
    resolutions: tuple[tuple[int, int], ...],
    batches: tuple[int, ...],
    precisions: tuple[str, ...],
    device: str,
    baseline: str,
    **common: Any,
) -> None:
    """Time a generator: pictures a second, peak memory, and how far lower precision is from float32 (PSNR).

    Peak memory is that of a new process which imports stylegen, builds the network and makes one batch. PSNR means
    something with a trained --network only. Gflop counts the plain path's convolutions and products.

    \b
    Examples:
      stylegen bench generate
      stylegen bench generate --network runs/faces --batch 16
      stylegen bench generate --resolution 256 --resolution 512 --batch 1 --batch 4 --precision fp32
    """
    from stylegen.checkpoint import resolve_network

    from .bench_networks import Generation, generate as measure, usual_precisions

    if network:
        resolve_network(network)  # refuses what is not there
    place = pick_device(device)
    chosen = list(precisions or usual_precisions(place))
    tasks = [
        Generation(network, resolution, batch, str(place), common["quick"])
        for resolution in resolutions or [None]
        for batch in batches or [1]
    ]
    floor = _begin(device, ["float32", *(DTYPES[name] for name in chosen)], common)
    repeats = common["repeats"] or (1 if common["quick"] else 5)
    found = (row for task in tasks for row in measure(floor, task, chosen, repeats, baseline == "reference"))
    _finish("generate", device, floor, found, len(tasks) * (len(chosen) + (baseline == "reference")), common)


@bench.command(short_help="A training iteration.")
@_options(_precision, *_AGAINST, *_COMMON)
def train(precisions: tuple[str, ...], device: str, baseline: str, **common: Any) -> None:
    """Time a training iteration, D's step with its penalty and G's, on pictures of noise.

    Official widths have R1 in every step, as published. In small-64 it is due every fourth: the figures are the mean
    of four iterations.

    \b
    Examples:
      stylegen bench train
      stylegen bench train --precision bf16 --threads 1
    """
    from .bench_networks import train as measure, training_cases, usual_precisions

    place, quick = pick_device(device), common["quick"]
    chosen = list(precisions or usual_precisions(place))
    floor = _begin(device, ["float32", *(DTYPES[name] for name in chosen)], common)
    repeats = common["repeats"] or (1 if quick else 5)
    found = measure(floor, place, chosen, repeats, quick, baseline == "reference")
    total = len(training_cases(quick)) * (len(chosen) + (baseline == "reference"))
    _finish("train", device, floor, found, total, common)


@bench.command(short_help="What a run adds: augmentation, saving, workers.")
@click.option("--precision", type=click.Choice(list(DTYPES)), help="Of the training.  [default: fastest]")
@_options(*_COMMON)
def run(precision: str | None, **common: Any) -> None:
    """Time what a run adds to its iterations, on the CPU: augmentation, saving, the figures of health, more workers.

    The baseline of each row is an iteration of `bench train` without what the row adds: the ratio of a save says how
    many saves take as long as an iteration. Training stands still for `median ms` of a save; `written ms` is what
    its thread takes from there on.

    \b
    Examples:
      stylegen bench run
      stylegen bench run --precision fp32 --threads 1
    """
    import torch

    from .bench_networks import usual_precisions
    from .bench_run import ROWS, measure, sizes

    quick = common["quick"]
    repeats = common["repeats"] or (1 if quick else 5)
    floor = _begin("cpu", [], common)
    found = measure(precision or usual_precisions(torch.device("cpu"))[-1], repeats, quick)
    _finish("run", "cpu", floor, found, ROWS * len(sizes(quick)), common)


@bench.command(short_help="Batches for training, and `dataset build`.")
@click.option("--source", "sources", multiple=True, metavar="PICTURES", help="What to build from; may be repeated.")
@click.option("--size", type=click.IntRange(min=1), default=64, show_default=True, help="Of the pictures to build.")
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, help="Threads that build.")
@click.option("--precision", type=click.Choice(list(DTYPES)), help="Of the training that consumes.  [default: fastest]")
@_options(*_COMMON)
def data(sources: tuple[str, ...], size: int, workers: int, precision: str | None, **common: Any) -> None:
    """Time the data path: batches from the level cache at every stage of small-64, and `dataset build`.

    The baseline of a batch is one training iteration at that stage: the ratio says how many times faster batches come
    than training takes them. The baseline of building is Pillow alone, which decodes and resizes the same pictures on
    as many threads; building also fits, encodes and writes them.

    \b
    Examples:
      stylegen bench data
      stylegen bench data --source photos/ --source scans.zip --size 256 --json data.json
    """
    import torch

    from .bench_data import EMBEDDED, build, level_cache
    from .bench_networks import usual_precisions

    quick = common["quick"]
    repeats = common["repeats"] or (1 if quick else 5)
    floor = _begin("cpu", [], common)

    def found() -> "Iterator[Row]":
        yield from level_cache(floor, EMBEDDED, precision or usual_precisions(torch.device("cpu"))[-1], repeats, quick)
        yield from build(list(sources or [EMBEDDED]), size, workers, repeats)

    _finish("data", "cpu", floor, found(), (2 if quick else 5) + len(sources or [EMBEDDED]), common)


@bench.command(short_help="Features of pictures for `stylegen metrics`.")
@click.option("--source", "sources", multiple=True, metavar="DATA", help="A data set; may be repeated.")
@click.option("--network", "networks", multiple=True, metavar="N", help="A generator; may be repeated.")
@click.option("--num", type=click.IntRange(min=1), default=512, show_default=True, help="Pictures of each.")
@_options(*_COMMON)
def metrics(sources: tuple[str, ...], networks: tuple[str, ...], num: int, **common: Any) -> None:
    """Time what `stylegen metrics` does with a picture: read or make it, scale it, run the feature network.

    The baseline is that network alone; `source ms` is what reading or making the pictures takes, as part of the rest.
    Without --source and --network all that is embedded is measured.

    \b
    Examples:
      stylegen bench metrics
      stylegen bench metrics --source faces.zip --network runs/faces
    """
    from stylegen.assets import embedded_networks
    from stylegen.checkpoint import resolve_network
    from stylegen.training.dataset import open_dataset

    from .bench_data import EMBEDDED
    from .bench_metrics import measure

    if not sources and not networks:
        sources, networks = (EMBEDDED,), tuple(embedded_networks())
    for check, names in ((open_dataset, sources), (resolve_network, networks)):
        for name in names:
            check(name)  # refuses what is not there
    quick = common["quick"]
    repeats = common["repeats"] or (1 if quick else 5)
    floor = _begin("cpu", [], common)
    found = measure(list(sources), list(networks), min(num, 64) if quick else num, repeats)
    _finish("metrics", "cpu", floor, found, len(sources) + len(networks), common)


def _begin(device: str, dtypes: list[str], common: dict[str, Any]) -> "Floor":
    """Sets the threads, then measures the machine."""
    import torch

    from .bench_measure import around_section, measure_floor

    if common["markdown"]:
        around_section(common["markdown"], click.get_current_context().info_name or "")  # refuses a page without place
    if common["threads"]:
        torch.set_num_threads(common["threads"])
    click.echo("Measuring the machine ...", err=True)
    return measure_floor(pick_device(device), dtypes, quick=common["quick"])


def _finish(name: str, device: str, floor: "Floor", found: "Iterator[Row]", total: int, common: dict[str, Any]) -> None:
    """Runs the measurements and shows them."""
    from tqdm import tqdm

    from . import bench_measure as tables

    facts = tables.machine(pick_device(device))
    lines = list(tables.machine_lines(facts, floor))
    click.echo("\n".join(lines))
    interval = 0.2 if sys.stderr.isatty() else 10.0
    rows = list(tqdm(found, total=total, desc=f"bench {name}", unit=" rows", mininterval=interval, file=sys.stderr))
    table, command = tables.cells(rows), _command_line()
    click.echo(tables.aligned(table))
    if common["json_path"]:
        tables.write_json(common["json_path"], command, facts, floor, rows)
    if common["markdown"]:
        text = "\n\n".join([f"`{command}`", "  \n".join(lines), tables.markdown(table)])
        tables.replace_section(common["markdown"], name, text)


def _command_line() -> str:
    """The command with the options given, but for where its output goes."""
    ctx = click.get_current_context()
    parts = ["stylegen", *ctx.command_path.split()[1:]]
    for parameter in ctx.command.params:
        assert parameter.name
        if ctx.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE:
            value = ctx.params[parameter.name]
            if parameter.name in ("json_path", "markdown"):
                continue
            if value is True:
                parts.append(parameter.opts[0])
            for each in value if parameter.multiple else [] if value is True else [value]:
                text = f"{each[1]}x{each[0]}" if isinstance(each, tuple) else str(each)
                parts += [parameter.opts[0], text]
    return " ".join(parts)
