"""`stylegen report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stylegen.errors import NotFoundError

MOST_PREVIEWS = 32
PICTURES_BYTES = 3_600_000  # of all sheets together, before base64 makes them a third larger
MOST_SHEET_PX = 1024


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Page.  [default: RUN/report.html]")
@click.option("--open", "show", is_flag=True, help="Open it in a browser.")
def report(run: Path, out: Path | None, show: bool) -> None:
    """Make one HTML page of a run: curves, pictures through time, alarms, data, settings, networks, log.

    The page is one file that needs no network and no server: it can be sent by mail. Made while the run trains, it
    shows what there is so far.

    \b
    Examples:
      stylegen report runs/faces
      stylegen report runs/faces --open
      stylegen report runs/faces --out faces.html
    """
    from stylegen.files import write_atomic

    from .page import page
    from .run_folder import CONFIG

    if not (run / CONFIG).is_file():
        raise NotFoundError(f"no run at {run}, which has no {CONFIG}; give the --out of `stylegen train`")
    out = out or run / "report.html"
    write_atomic(out, page(gather(run)))
    click.echo(out)
    if show:
        import webbrowser

        if not webbrowser.open(out.absolute().as_uri()):
            click.echo("No browser was found to open it with.", err=True)


def gather(run: Path) -> dict[str, Any]:
    """All that `page` shows of a run. Raises UserError, OSError."""
    from .run_folder import LOG, STATS, outline, read_config, read_lines, read_log, read_sheet

    sheets = sorted((run / "previews").glob("kimg-*.png"))
    picked = evenly(sheets, MOST_PREVIEWS)
    reals = run / "reals.png"
    room = PICTURES_BYTES // max(len(picked) + reals.exists(), 1)
    previews = [(float(path.stem.removeprefix("kimg-")), picture(path, room)) for path in picked]
    return {
        "name": run.absolute().name,
        "outline": outline(run),
        "config": read_config(run),
        "rows": read_lines(run / STATS),
        "alarms": read_lines(run / "alarms.jsonl"),
        "sheet": read_sheet(run),
        "log": read_log(run),
        "log_name": LOG,
        "previews": [(kimg, data) for kimg, data in previews if data],
        "previews_made": len(sheets),
        "reals": picture(reals, room) if reals.exists() else None,
        "networks": networks(run),
    }


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def picture(path: Path, room: int) -> tuple[str, int, int] | None:
    """(data URI of at most `room` bytes before base64, width, height) of a PNG; None if it cannot be read.

    As it is if it fits, otherwise as JPEG, as small as it has to be; transparent parts then become white.
    """
    import base64
    import io

    from PIL import Image

    try:
        data = path.read_bytes()
        image: Image.Image = Image.open(io.BytesIO(data))
        image.load()
    except OSError:  # half a file, or one that has gone
        return None
    scale, kind, size = min(1.0, MOST_SHEET_PX / max(image.size)), "png", image.size
    if "A" in image.getbands():
        image = Image.alpha_composite(Image.new("RGBA", size, "white"), image.convert("RGBA"))
    image = image.convert("L" if image.mode == "L" else "RGB")
    while len(data) > room or max(size) > MOST_SHEET_PX:
        kind, size = "jpeg", (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(buffer, kind, quality=85, subsampling=0)
        data, scale = buffer.getvalue(), scale * 0.85
        if max(size) < 16:
            break
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", *size


def networks(run: Path) -> list[dict[str, Any]]:
    """The networks of a run, the best first, then by age: file, bytes, and kimg, resolution, metrics as they say."""
    from .run_folder import provenance

    found = []
    for path in [*run.glob("best.safetensors"), *sorted(run.glob("network-*.safetensors"))]:
        try:
            facts = provenance(path) | {"file": path.name, "bytes": path.stat().st_size}
        except FileNotFoundError:  # dropped by the run's --keep-networks
            continue
        found.append(facts)
    return found
