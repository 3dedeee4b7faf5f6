"""How far `stylegen train --plan` is from the run that follows it, by the clock, in pairs, where nothing else runs.

DATA: what to train on. Prints a table; with --page it goes between the page's marks.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from runs import publish

from stylegen.tools.bench_measure import markdown

SECONDS = re.compile(r"^Time: .*\((\d+) s\)", re.MULTILINE)


@click.command()
@click.argument("data")
@click.option("--preset", default="small-32", show_default=True)
@click.option("--kimg", default=40, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--pairs", default=3, show_default=True, help="How often both are done.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(data: str, preset: str, kimg: int, threads: int, pairs: int, page: Path | None) -> None:
    table = [["pair", "planned, s", "run, s", "planned / run"]]
    for pair in range(1, pairs + 1):
        with tempfile.TemporaryDirectory(prefix="stylegen-bench-") as folder:
            options = ["train", data, "--out", f"{folder}/run", "--preset", preset, "--kimg", str(kimg)]
            found = SECONDS.search(stylegen([*options, "--plan"], threads))
            assert found, "a plan ends with its time"
            begin = time.monotonic()
            stylegen(options, threads)
        planned, took = int(found[1]), time.monotonic() - begin
        table.append([str(pair), f"{planned}", f"{took:.0f}", f"{planned / took:.2f}"])
        click.echo(" | ".join(table[-1]), err=True)
    publish("planned", markdown(table), page)


def stylegen(arguments: list[str], threads: int) -> str:
    """What the command prints. Raises click.ClickException where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "stylegen.tools.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().rpartition("\n")[2])
    return done.stdout


if __name__ == "__main__":
    main()
