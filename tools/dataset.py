"""`stylegen dataset`: build, show and check data sets."""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import SizeType

if TYPE_CHECKING:
    import numpy as np

    from stylegen.training.dataset import Dataset

_CHANNELS = {"gray": 1, "rgb": 3, "rgba": 4}
_LISTED = 10
_COLUMNS, _MAX_ROWS, _TILE_PX = 8, 16, 128


class ColorType(click.ParamType):
    """`white`, `#rrggbb`, `#rrggbbaa`, `rgb(1,2,3)` -> RGBA of 0..255."""

    name = "color"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from PIL import ImageColor

        try:
            return ImageColor.getcolor(value, "RGBA")
        except ValueError:
            self.fail(f"{value!r} is not a colour, such as white, '#ff8000' or 'rgb(255,128,0)'", param, ctx)


class BytesType(click.ParamType):
    """`500MB`, `1GB`, `2GiB` -> a number of bytes."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT])(i?)B?", str(value), re.IGNORECASE | re.ASCII)
        if not match or not (size := float(match[1])):
            self.fail(f"{value!r} is no size, such as 500MB, 1GB or 2GiB", param, ctx)
        return int(size * (1024 if match[3] else 1000) ** ("KMGT".index(match[2].upper()) + 1))


_workers = click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    metavar="N",
    help="Threads.  [default: one a processor]",
)


@click.group()
def dataset() -> None:
    """Build, show and check data sets.

    A data set is a zip of equal PNGs with their labels in dataset.json, the format of StyleGAN's own tools; or tar
    shards, as WebDataset has them.

    \b
    Examples:
      stylegen dataset build photos/ --dest faces.zip --size 256
      stylegen dataset show faces.zip
      stylegen dataset check faces.zip
    """


@dataset.command(short_help="Turn pictures of any kind into a data set.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--dest",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT.zip",
    help="What to write; with shards a folder.",
)
@click.option("--size", type=SizeType(), help="Size of the pictures; without it they must be of one size already.")
@click.option(
    "--fit",
    type=click.Choice(["crop", "pad", "stretch"]),
    default="crop",
    show_default=True,
    help="Cut out the middle, put a border around, or distort.",
)
@click.option(
    "--channels",
    type=click.Choice(list(_CHANNELS)),
    help="Default: gray where every picture is, else rgb (rgba for arrays of four channels).",
)
@click.option(
    "--background",
    type=ColorType(),
    metavar="COLOR",
    help="Under transparency and around padded pictures. Default: white, black for IDX, CIFAR and NumPy arrays, "
    "transparent with --channels rgba.",
)
@click.option(
    "--labels",
    metavar="folders|none|FILE",
    help="A class a sub-folder; none; or a file: dataset.json, `name,label` lines (.csv), .npy, IDX. "
    "Default: those that the source brings.",
)
@click.option("--class-names", metavar="A,B,...", help="What the classes 0, 1, ... are called, between commas.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N good pictures.")
@click.option("--shards", type=click.IntRange(min=1), metavar="N", help="Write a folder of N tars, not a zip.")
@click.option("--shard-size", "shard_bytes", type=BytesType(), metavar="SIZE", help="Tars of at most 1GB, say.")
@_workers
def build(source: Path, dest: Path, fit: str, channels: str | None, class_names: str | None, **options: Any) -> None:
    """Turn pictures of any kind into a data set.

    SOURCE is a folder or a zip of pictures (PNG, JPEG, WebP, GIF, TIFF, BMP), tar shards, an IDX file (MNIST,
    Fashion-MNIST; .gz too), CIFAR python batches (folder, file or .tar.gz), or a .npy or .npz array. Pictures that are
    broken, or that would have to be enlarged more than four times, are skipped and listed in OUT.report.txt.

    \b
    Examples:
      stylegen dataset build photos/ --dest faces.zip --size 256
      stylegen dataset build photos/ --dest wide.zip --size 512x256 --fit pad --background black
      stylegen dataset build animals/ --dest animals.zip --size 128 --labels folders
      stylegen dataset build icons/ --dest icons.zip --size 64 --channels rgba
      stylegen dataset build train-images-idx3-ubyte.gz --dest mnist.zip --size 32 --fit pad
      stylegen dataset build cifar-10-python.tar.gz --dest cifar.zip
      stylegen dataset build photos/ --dest faces --size 256 --shard-size 1GB
    """
    from stylegen.config import base_of
    from stylegen.errors import UserError
    from stylegen.training.build import build_dataset
    from stylegen.training.pictures import describe

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the unfinished file is removed
    if options["shards"] and options["shard_bytes"]:
        raise click.UsageError("give --shards or --shard-size, not both")
    options["channels"] = _CHANNELS[channels] if channels else None
    options["class_names"] = [name.strip() for name in class_names.split(",")] if class_names else None
    built = build_dataset(source, dest, how=fit, **options)
    classes = "" if built.classes is None else f", {built.classes} classes"
    click.echo(f"{dest}: {built.written} pictures, {describe(built.size, built.channels)}{classes}")
    if built.skipped:
        click.echo(f"skipped {len(built.skipped)} (listed in {built.report}):")
        _list([f"{name}: {reason}" for name, reason in built.skipped])
    try:
        base_of(built.size)
    except UserError as error:
        click.echo(f"Warning: {error}", err=True)


@dataset.command(short_help="Describe a data set, and write a contact sheet.")
@click.argument("data")
@click.option("--out", type=click.Path(path_type=Path), metavar="SHEET.png", help="Default: NAME.sheet.png, here.")
def show(data: str, out: Path | None) -> None:
    """Describe a data set and write a contact sheet of it, a row a class where there are classes.

    \b
    Examples:
      stylegen dataset show faces.zip
      stylegen dataset show emoji-people-64 --out emoji.png
    """
    import torch

    from stylegen.images import grid, save_image
    from stylegen.training.dataset import open_dataset

    opened = open_dataset(data)
    _describe(opened)
    rows = _rows(opened)
    tiles = torch.stack([torch.from_numpy(_tile(opened, i)) for row in rows for i in row])
    out = out or Path(f"{Path(data).name.removesuffix('.zip').removesuffix('.tar') or 'data'}.sheet.png")
    save_image(grid(tiles, max(map(len, rows)), len(rows)), out)
    click.echo(f"contact sheet of {len(tiles)}: {out}")


@dataset.command(short_help="Decode every picture of a data set.")
@click.argument("data")
@_workers
def check(data: str, workers: int) -> None:
    """Decode every picture of a data set; exit code 1 where one is broken or unlike the others.

    \b
    Examples:
      stylegen dataset check faces.zip
      stylegen dataset check photos/ && stylegen train photos/ --out runs/photos
    """
    from stylegen.training.dataset import open_dataset
    from stylegen.training.threads import in_order, progress

    opened = open_dataset(data)
    faults = []
    with progress(len(opened), "check") as bar:
        for name, fault in zip(opened.names, in_order(opened.fault, range(len(opened)), workers), strict=True):
            if fault:
                faults.append(f"{name} {fault}")
            bar.update()
    _describe(opened)
    if faults:
        _list(faults)
        raise click.ClickException(f"{len(faults)} of {len(opened)} pictures in {data} cannot be used")
    click.echo("every picture is whole")


def _describe(opened: "Dataset") -> None:
    from stylegen.config import base_of, counted, size_text
    from stylegen.errors import UserError
    from stylegen.training.pictures import describe

    shards = f" in {counted(len(opened.starts) - 1, 'shard')}" if opened.sharded else ""
    click.echo(f"{opened.path}: {len(opened)} pictures{shards}, {describe(opened.size, opened.channels)}")
    if opened.labels is not None and opened.labels.ndim == 1:
        names = opened.class_names or []
        counts = sorted(Counter(opened.labels.tolist()).items())
        texts = [f"{names[label] if label < len(names) else label} {count}" for label, count in counts[:20]]
        more = f" and {len(counts) - 20} more" if len(counts) > 20 else ""
        click.echo(f"{opened.label_size} classes: {', '.join(texts)}{more}")
    elif opened.labels is not None:
        click.echo(f"labels: vectors of {opened.label_size} numbers")
    try:
        base, levels = base_of(opened.size)
        click.echo(f"grows from {size_text(base)} in {levels} levels")
    except UserError as error:
        click.echo(f"Warning: {error}", err=True)


def _rows(opened: "Dataset") -> list[list[int | None]]:
    """Numbers of the pictures to show, evenly spaced: a row a class, or up to 8x8 of all; None for an empty cell."""
    import numpy as np

    if opened.labels is None or opened.labels.ndim == 2:
        everything = np.arange(len(opened))
        picked = _spaced(everything, _COLUMNS * _COLUMNS)
        groups = [picked[start : start + _COLUMNS] for start in range(0, len(picked), _COLUMNS)]
    else:
        classes = [label for label in range(opened.label_size) if (opened.labels == label).any()][:_MAX_ROWS]
        groups = [_spaced(np.flatnonzero(opened.labels == label), _COLUMNS) for label in classes]
    columns = max(map(len, groups))
    return [[*group, *[None] * (columns - len(group))] for group in groups]


def _spaced(numbers: "np.ndarray", most: int) -> list[int]:
    count = min(len(numbers), most)
    return [int(numbers[i * len(numbers) // count]) for i in range(count)]


def _tile(opened: "Dataset", i: int | None) -> "np.ndarray":
    """uint8 [C, h, w], picture i of at most 128 pixels a side, or an empty cell."""
    import numpy as np

    from stylegen.training import pictures

    scale = min(1.0, _TILE_PX / max(opened.size))
    height, width = (max(1, round(side * scale)) for side in opened.size)
    if i is not None:
        image = pictures.from_pixels(opened.read(i))
        return pictures.to_pixels(pictures.fit(image, (height, width), "stretch")).copy()
    empty = np.full((opened.channels, height, width), 255, np.uint8)
    empty[3:] = 0
    return empty


def _list(lines: list[str]) -> None:
    for line in lines[:_LISTED]:
        click.echo(f"  {line}")
    if len(lines) > _LISTED:
        click.echo(f"  ... and {len(lines) - _LISTED} more")
