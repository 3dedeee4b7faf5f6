"""`stylegen train --plan`: what a run is going to take, before it starts."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.config import counted

from .launch import cores
from .run_folder import duration_text

if TYPE_CHECKING:
    import torch

    from stylegen.config import Config
    from stylegen.training.dataset import Dataset
    from stylegen.training.plan import How, Plan


def show(
    config: "Config",
    dataset: "Dataset",
    run_dir: Path,
    device: "torch.device",
    gpus: int,
    how: dict[str, Any],
    resume: bool,
) -> int:
    """Measures every stage that is ahead and prints what the run, or its rest, takes. Raises UserError, OSError.

    how: the other arguments of `stylegen.training.plan.How`.
    """
    import torch
    from tqdm import tqdm

    from stylegen.training import advice, plan, saver
    from stylegen.training.schedule import total_images

    saved = saver.saved_run(run_dir) if resume else None
    first = saved[1] if saved else 0
    if first >= total_images(config):
        click.echo(f"The run is at {first / 1000:g} kimg already; a larger --kimg lets it go on.")
        return 0
    if gpus > 1 and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(cores() // gpus, 1))
    before = advice.look_around(run_dir, device)
    with tqdm(desc="measuring", unit=" stages", leave=False, disable=None, file=sys.stderr) as bar:

        def shown(spans: list["plan.Span"]) -> Iterator["plan.Span"]:
            bar.reset(len(spans))
            for span in spans:
                yield span
                bar.update()

        run = plan.How(device, gpus, **how)
        made = plan.make(config, dataset, first, run, shown)
    sums = "\n".join(_sums(made, run_dir, before.disk))
    click.echo("\n\n".join([_head(config, dataset, run, made), _table(config, made), sums, _how_known(run, made)]))
    warnings = [f"Warning: {line}." for line in advice.warnings(config, dataset, made, run, before)]
    click.echo("\n".join([*made.notes, *warnings]))
    return 0


def _head(config: "Config", dataset: "Dataset", how: "How", plan: "Plan") -> str:
    from stylegen.training.pictures import describe
    from stylegen.training.sheet import data_sheet

    start, total = plan.parts[0].first / 1000, config.schedule.total_kimg
    sheet, times = data_sheet(dataset), 1000 * (total - start) / len(dataset)
    often = f"{times:,.0f}" if times > 10 else f"{times:.2g}"
    mirrored = ", half of the time flipped" if config.training.mirror else ""
    classes = f", {len(sheet['classes'])} classes" if "classes" in sheet else ""
    return (
        f"{config.preset} on {dataset.path}: {len(dataset)} pictures of {describe(dataset.size, dataset.channels)}"
        f"{classes}; in {start:g} to {total:g} kimg each is seen {often} times{mirrored}.\n"
        f"{counted(how.gpus, 'worker')} on {how.device} in {config.training.precision}."
    )


def _table(config: "Config", plan: "Plan") -> str:
    from stylegen.training.schedule import describe

    parts, passed = plan.parts, plan.start_sec
    running = []
    for part in parts:
        passed += part.seconds
        running.append(_time(passed))
    columns = [
        ["G", *(f"{part.cost.parameters[0] / 1e6:.3g}M" for part in parts)],
        ["D", *(f"{part.cost.parameters[1] / 1e6:.3g}M" for part in parts)],
        ["s/kimg", *(f"{'' if part.cost.whole else '~'}{part.sec_per_kimg:.3g}" for part in parts)],
        ["memory", *(_bytes(part.cost.memory) for part in parts)],
        ["time", *(_time(part.seconds) for part in parts)],
        ["until then", *running],
    ]
    if any(part.share < part.stage.batch for part in parts):
        columns.insert(0, ["a worker", *(str(part.share) for part in parts)])
    if any(part.most < part.share for part in parts):
        columns.insert(-6, ["at a time", *(str(part.most) for part in parts)])
    return describe(config, parts[0].first, columns)


def _sums(plan: "Plan", run_dir: Path, free: int) -> list[str]:
    ends = time.strftime("%A %d %B, %H:%M", time.localtime(time.time() + plan.total_sec))
    (networks, network), (states, state), (previews, preview) = plan.networks, plan.states, plan.previews
    return [
        f"Time: {duration_text(plan.total_sec)} ({plan.total_sec:.0f} s), of which {duration_text(plan.start_sec)} to "
        f"start and {duration_text(plan.output_sec)} for previews and networks. Started now it ends on {ends}.",
        f"Disk: {_bytes(plan.disk)} in {run_dir}: {counted(networks, 'network')} of {_bytes(network)}, up to "
        f"{counted(states, 'state')} of {_bytes(state)}, {counted(previews, 'preview')} of about {_bytes(preview)}; "
        f"{_bytes(free)} are free.",
    ]


def _how_known(how: "How", plan: "Plan") -> str:
    import torch

    from stylegen.training.plan import BUDGET_SEC

    place, memory = str(how.device), ""
    if how.device.type == "cpu":
        threads = torch.get_num_threads()
        place = counted(threads, "thread")
        memory = "; the process takes up to twice that, beside what it has at the start"
    lines = [
        f"Measured in about {BUDGET_SEC:.0f} s on pictures of noise with {place}: medians. Memory is that of the "
        f"tensors of one worker when they are most{memory}."
    ]
    if not all(part.cost.whole for part in plan.parts):
        lines.append("Times with ~ are those of one group of pictures, multiplied.")
    if how.gpus > 1:
        lines.append("Not measured: adding up over the workers, and what they lose by sharing memory or cores.")
    return " ".join(lines)


def _time(seconds: float) -> str:
    """1:02:03"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
