"""What the benchmarks share: `stylegen train` in a process of one thread and its time, results kept and published.

Time is that of one core's work, so that whatever else the machine does counts little: the run's seconds by the clock
times the share of them that the processor gave it.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from stylegen.files import write_atomic
from stylegen.tools.bench_measure import replace_section


def train(data: str | Path, folder: Path, kimg: float, options: list[str]) -> None:
    """Trains to `kimg` in `folder`, or leaves it where it is further. Raises click.ClickException."""
    found = rows(folder)
    if found and found[-1]["kimg"] >= kimg:
        return
    command = ["train", str(data), "--out", str(folder), "--kimg", str(kimg), "--resume", *options]
    click.echo(f"stylegen {' '.join(command)}", err=True)
    begin, environment = time.monotonic(), os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "stylegen.tools.cli", *command], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise click.ClickException(f"training {folder} failed; what it said is above")
    share = min((usage.ru_utime + usage.ru_stime) / (time.monotonic() - begin), 1.0)
    write_atomic(folder / "shares.json", json.dumps([*shares(folder), [rows(folder)[-1]["elapsed_sec"], share]]))


def rows(folder: Path) -> list[dict[str, Any]]:
    """Of stats.jsonl; none where there is no run yet."""
    stats = folder / "stats.jsonl"
    return [json.loads(line) for line in stats.read_text().splitlines()] if stats.exists() else []


def shares(folder: Path) -> list[list[float]]:
    """Of each process that finished: the seconds of the run at its end, and its share of a core."""
    path = folder / "shares.json"
    return json.loads(path.read_text()) if path.exists() else []


def minutes(folder: Path, kimg: float) -> float:
    """Of one core, from the run's start until `kimg`; a process that was stopped counts with its neighbour's share."""
    until = next(row["elapsed_sec"] for row in rows(folder) if row["kimg"] >= kimg - 0.1)
    begin = seconds = 0.0
    parts = shares(folder)
    for end, share in [*parts, [until, parts[-1][1]]]:
        seconds += max(min(end, until) - begin, 0) * share
        begin = max(begin, end)
    return seconds / 60


def kept(folder: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from a file in `folder` where it was made with the same settings before. Raises OSError."""
    path = folder / f"{name_of(settings)}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    result = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"settings": settings, "result": result}))
    return result


def name_of(settings: dict[str, Any]) -> str:
    """Hex digits that change with the settings."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()


def publish(name: str, text: str, page: Path | None) -> None:
    """Prints `text`, and puts it into a page between the marks of `name`, below the command that made it."""
    click.echo(text)
    if page:
        replace_section(page, name, f"`{command()}`\n\n{text}")


def command() -> str:
    """The running script with what it was given: files without their folders, --work below runs/."""
    ctx, parts = click.get_current_context(), [f"python benchmarks/{Path(sys.argv[0]).name}"]
    for parameter in ctx.command.params:
        assert parameter.name
        given = ctx.get_parameter_source(parameter.name) == click.core.ParameterSource.COMMANDLINE
        if not given or parameter.name == "page":
            continue
        value = ctx.params[parameter.name]
        if isinstance(parameter, click.Argument):
            parts.append(Path(value).name)
            continue
        for part in value if isinstance(value, tuple) else [value]:
            text = f"runs/{Path(part).name}" if parameter.name == "work" else str(part)
            parts.append(f"{parameter.opts[0]} {shlex.quote(text)}")
    return " ".join(parts)
