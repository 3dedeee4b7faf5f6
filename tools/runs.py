"""`stylegen runs`."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import click

from stylegen.errors import UserError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(folder: Path, as_json: bool) -> None:
    """List the runs below DIR, at any depth, the last changed first: how far they are, and whether they are well.

    \b
    Examples:
      stylegen runs runs
      stylegen runs . --json
    """
    if not folder.is_dir():
        raise click.BadParameter(f"no folder at {str(folder)!r}; give one that holds runs", param_hint="DIR")
    now = time.time()
    found = sorted((_row(folder, run, now) for run in find(folder)), key=lambda row: row["age_sec"])
    if not found:
        raise UserError(f"no run below {folder}; a run is a folder that `stylegen train --out` has made")
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(table(found)))


def find(folder: Path) -> Iterator[Path]:
    """The run folders at `folder` and below, each once, whatever links lead to it."""
    from .run_folder import CONFIG, LOG, STATE, STATS

    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        there = os.stat(path)
        if (there.st_dev, there.st_ino) in seen:
            folders.clear()
            continue
        seen.add((there.st_dev, there.st_ino))
        # A run's own place comes before links to it.
        folders.sort(key=lambda name: (os.path.islink(os.path.join(path, name)), name))
        if CONFIG in files and {STATS, STATE, LOG} & set(files):
            yield Path(path)


def _row(folder: Path, run: Path, now: float) -> dict[str, Any]:
    """What `outline` tells of a run, or why it cannot."""
    from .run_folder import changed, outline

    row: dict[str, Any] = {"name": run.relative_to(folder).as_posix(), "path": str(run)}
    if run == folder:
        row["name"] = run.absolute().name
    try:
        row |= outline(run)
    except (UserError, OSError) as error:
        row |= {"state": "broken", "error": str(error), "changed": changed(run)}
    return row | {"age_sec": round(now - row["changed"], 1)}


def table(found: list[dict[str, Any]]) -> list[str]:
    """The rows of `runs`, aligned."""
    heads = ("name", "state", "kimg", "stage", "images/s", "ETA", "changed", "preset", "data", "health")
    lines = [heads, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    from .run_folder import duration_text, stage_text

    age = f"{duration_text(row['age_sec'])} ago"
    if row["state"] == "broken":
        return row["name"], "broken", "", "", "", "", age, "", "", row["error"]
    rate, running = row["images_per_sec"], row["state"] == "running"
    return (
        row["name"],
        row["state"],
        f"{row['kimg']:g} of {row['total_kimg']:g}",
        stage_text(row["resolution"], row["alpha"]),
        f"{rate:.4g}" if rate else "",
        duration_text(row["eta_sec"]) if running and rate else "",
        age,
        row["preset"],
        row["data"] or "",
        shorten(row["error"] or row["health"], 60, placeholder=" ..."),
    )
