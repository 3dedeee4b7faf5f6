"""Style mixing: every row's styles with some of every column's."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import SeedsType, needs
from .rendering import Opened, check_grid, open_network, rendering_options, video_options, write_video

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@rendering_options
@click.option("--rows", required=True, type=SeedsType(), help="Whose pictures are changed: seeds or latents.npz.")
@click.option("--cols", required=True, type=SeedsType(), help="Whose styles they are given.")
@click.option(
    "--styles", multiple=True, metavar="LAYERS", help="Given layers, as 0-3 or coarse; several: a sheet each."
)
@click.option("--row-class", metavar="CLASS", help="Index or name of the rows' class.  [default: seed mod classes]")
@click.option("--col-class", metavar="CLASS", help="Of the columns' class.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--video", type=click.Path(dir_okay=True, path_type=Path), help="Let more and more layers cross over.")
@video_options
def mix(
    rows: list[int] | Path,
    cols: list[int] | Path,
    styles: tuple[str, ...],
    row_class: str | None,
    col_class: str | None,
    out: Path,
    video: Path | None,
    fps: float,
    seconds: float,
    **options: Any,
) -> None:
    """Give pictures some styles of others: coarse ones carry pose and shape, fine ones colour and detail.

    Each sheet has the rows' own pictures in its left column and the columns' on top; single pictures are beside it.
    --styles are coarse (4x4 and 8x8), middle (16x16 and 32x32) and fine (the rest) by default.

    \b
    Examples:
      stylegen mix --network runs/faces --rows 0-4 --cols 100-106 --out mixed
      stylegen mix --network runs/faces --rows 0-4 --cols 100-106 --styles 0-3 --styles fine --out mixed
      stylegen mix --network runs/faces --rows 0-2 --cols 7 --out mixed --video mixed/crossover.mp4
    """
    from stylegen.config import size_text
    from stylegen.latents import GROUPS, mix as mixed, parse_layers
    from stylegen.video import check_video

    for option in ("fps", "seconds"):
        needs(option, video, "without --video")
    opened = open_network(**options)
    if not opened.styled:
        raise UserError(f"a {opened.G.config.family} network has no styles to mix; StyleGANs have")
    levels = opened.G.config.levels
    ranges = {text: parse_layers(text, levels) for text in styles or GROUPS}
    ranges = {text: layers for text, layers in ranges.items() if layers}
    if video:
        check_video(video, fps)
    begin = time.monotonic()
    sides = [opened.latents(rows, row_class), opened.latents(cols, col_class)]
    check_grid(len(sides[1]) + 1, len(sides[0]) + 1, opened.size)
    (row, row_images), (column, column_images) = (opened.pictures(side) for side in sides)
    row_w, col_w = row.w, column.w
    assert row_w is not None and col_w is not None
    out.mkdir(parents=True, exist_ok=True)
    for text, layers in ranges.items():
        _write(opened, out, text, row_images, column_images, mixed(row_w, col_w, layers))
    if video:
        _crossover(opened, video, fps, seconds, (row_w, col_w), (row_images, column_images))
    count, kinds = len(row_w) * len(col_w), ", ".join(f"{t} ({_spans(layers)})" for t, layers in ranges.items())
    what = f"{count} mixtures of {size_text(opened.size)} each for layers {kinds}"
    click.echo(f"Wrote {what} to {out} in {time.monotonic() - begin:.1f} s.")


def _write(opened: Opened, out: Path, text: str, rows: "Tensor", columns: "Tensor", mixed: "Tensor") -> None:
    """The sheet mix-TEXT.png and, in mix-TEXT, its pictures ROW-COLUMN.png and latents; mixed w [R, C, L, S]."""
    from stylegen.images import save_image
    from stylegen.latents import Latents, save_latents

    _, images = opened.pictures(Latents(w=mixed.flatten(0, 1)))
    images = images.unflatten(0, mixed.shape[:2])
    folder = out / f"mix-{text.replace(',', '+')}"
    folder.mkdir(exist_ok=True)
    save_latents(folder / "latents.npz", Latents(w=mixed.flatten(0, 1), network=opened.networks[0]))
    for r, row in enumerate(images):
        for c, image in enumerate(row):
            save_image(image, folder / f"{r}-{c}.png")
    save_image(sheet(rows, columns, images), folder.with_suffix(".png"))


def sheet(rows: "Tensor", columns: "Tensor", cells: "Tensor") -> "Tensor":
    """uint8 [R, C, H, W] on the left, [C, C, H, W] on top, [R, C, C, H, W] between -> one picture."""
    import torch

    from stylegen.images import blank, grid

    top = torch.cat([blank(columns[:1]), columns])
    body = torch.cat([rows[:, None], cells], 1)
    return grid(torch.cat([top, body.flatten(0, 1)]), len(columns) + 1, len(rows) + 1)


def _crossover(
    opened: Opened, video: Path, fps: float, seconds: float, w: "tuple[Tensor, Tensor]", images: "tuple[Tensor, Tensor]"
) -> None:
    """Every row turns into every column and back, the finest layers first."""
    import torch

    from stylegen.latents import Latents
    from stylegen.paths import crossover, frames, there_and_back

    rows, columns = w
    paths = [there_and_back(crossover(row, column)) for row in rows for column in columns]

    def frame(t: "Tensor") -> "Tensor":
        styles = torch.stack([path(t) for path in paths], 1)  # [n, R * C, L, S]
        _, cells = opened.pictures(Latents(w=styles.flatten(0, 1)), show=False)
        cells = cells.unflatten(0, (len(t), len(rows), len(columns)))
        return torch.stack([sheet(*images, part) for part in cells])

    write_video(video, fps, frames(round(fps * seconds), closed=True), frame)


def _spans(layers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    starts = [layer for layer in layers if layer - 1 not in layers]
    ends = [layer for layer in layers if layer + 1 not in layers]
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in zip(starts, ends, strict=True))
