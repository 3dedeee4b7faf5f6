"""`stylegen plot`."""

import json
from pathlib import Path
from typing import Any

import click

from stylegen.errors import UserError

from .run_folder import PANELS, STATS, bands, read_stats


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Picture.  [default: RUN/stats.png]")
@click.option("--growth", is_flag=True, help="Instead: the same latents through the run.  [default: RUN/growth.png]")
def plot(run: Path, out: Path | None, growth: bool) -> None:
    """Draw a run's losses, scores, metrics, speed and more against kimg: its stats.jsonl as a picture.

    Curves need matplotlib (`pip install matplotlib`). With --growth, rows of the run's previews instead, more of
    them early on.

    \b
    Examples:
      stylegen plot runs/faces
      stylegen plot runs/faces --out losses.png
      stylegen plot runs/faces --growth
    """
    from stylegen.files import write_atomic

    if not run.is_dir():
        raise click.BadParameter(f"no run folder at {str(run)!r}; give the --out of `stylegen train`", param_hint="RUN")
    out = out or run / ("growth.png" if growth else "stats.png")
    if growth:
        write_atomic(out, draw_growth(sorted((run / "previews").glob("kimg-*.png"))))
    else:
        write_atomic(out, draw(read_stats(run / STATS), run.name))
    click.echo(out)


def draw_growth(previews: list[Path], rows: int = 10) -> bytes:
    """A PNG of the first row of up to `rows` previews, their kimg beside them. Raises UserError without previews."""
    import io

    from PIL import Image, ImageDraw

    if not previews:
        raise UserError("no previews yet; a run makes its first at its start")
    last = len(previews) - 1
    picked = [previews[i] for i in sorted({round((last + 1) ** (k / (rows - 1))) - 1 for k in range(rows)} | {0, last})]
    strips = []
    height = _final_height(previews[0].parent.parent / "config.json")
    for path in picked:
        with Image.open(path) as sheet:
            strips.append(sheet.convert("RGBA").crop((0, 0, sheet.width, height)))
    margin, gap = 56, 4
    canvas = Image.new("RGBA", (margin + strips[0].width, len(strips) * (height + gap)), "white")
    for k, (path, strip) in enumerate(zip(picked, strips, strict=True)):
        canvas.paste(strip, (margin, k * (height + gap)))
        kimg = float(path.stem.removeprefix("kimg-"))
        ImageDraw.Draw(canvas).text((4, k * (height + gap) + height // 2 - 6), f"{kimg:.4g} k", fill="black")
    buffer = io.BytesIO()
    canvas.save(buffer, "png")
    return buffer.getvalue()


def _final_height(config: Path) -> int:
    """Height in pixels of a run's final pictures."""
    generator = json.loads(config.read_text(encoding="utf-8"))["generator"]
    return generator["base"][0] << (generator["levels"] - 1)


def draw(rows: list[dict[str, Any]], title: str) -> bytes:
    """A PNG with a panel for each of PANELS that the rows have; grey bands are fades. Raises UserError."""
    import io

    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs matplotlib; install it with `pip install matplotlib`") from error

    panels = {name: [key for key in keys if any(key in row for row in rows)] for name, keys in PANELS.items()}
    panels = {name: keys for name, keys in panels.items() if keys}
    figure = Figure(figsize=(8, 2.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (name, keys) in zip(axes, panels.items(), strict=True):
        for key in keys:
            points = [(row["kimg"], row[key]) for row in rows if key in row]
            axis.plot(*zip(*points, strict=True), label=key, linewidth=1)
        for start, end, _, fading in bands(rows):
            if fading:
                axis.axvspan(start, end, color="0.92", linewidth=0)
        axis.set_title(name, fontsize=9, loc="right")
        axis.legend(fontsize=8, frameon=False)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("thousands of real images (kimg)")
    for resolution, start in {resolution: start for start, _, resolution, _ in reversed(bands(rows))}.items():
        axes[0].annotate(resolution, (start, 1.03), xycoords=("data", "axes fraction"), fontsize=8)
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
