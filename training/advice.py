"""What may go wrong in a planned run, in sentences."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stylegen.config import Config, size_text
from stylegen.memory import available
from stylegen.precision import choose

from .dataset import Dataset
from .plan import How, Plan
from .probe import CPU_SLACK
from .schedule import ends_early
from .share import group_of, mixes
from .sheet import data_sheet

FEW, VERY_FEW = 2000, 500  # pictures
BUSY = 0.5  # load a core
UNBALANCED = 10.0  # times as many pictures in the largest class as in the smallest


@dataclass(frozen=True)
class Machine:
    """What is left of it: bytes free on the disk and on the device (0: not known), and the load of its cores."""

    disk: int
    memory: int
    load: float = 0.0  # processes that run or wait, a core


def look_around(run_dir: Path, device: torch.device) -> Machine:
    """The machine as it is now; its disk is the one where `run_dir` is, or will be."""
    folder = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    load = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    return Machine(shutil.disk_usage(folder).free, memory, load)


def warnings(config: Config, dataset: Dataset, plan: Plan, how: How, before: Machine) -> list[str]:
    """What may go wrong, in sentences. before: the machine as it was before the plan was made."""
    return [*_on_data(config, dataset), *_on_machine(config, plan, how, before)]


def _on_data(config: Config, dataset: Dataset) -> Iterator[str]:
    training, count, sheet = config.training, len(dataset), data_sheet(dataset)
    help_for = {"--mirror": training.mirror, "--augment ada": training.augment}
    missing = " and ".join(option for option, given in help_for.items() if not given)
    if count < FEW:
        much = "very few: D will know them by heart" if count < VERY_FEW else "few: D may learn them by heart"
        yield f"{count} pictures are {much}" + (f"; {missing} may help" if missing else "")
    if dataset.size != dataset.full_size:
        yield f"the pictures are {size_text(dataset.full_size)}, and are trained at {size_text(dataset.size)}"
    if dataset.size[0] != dataset.size[1]:
        yield f"the pictures are not square: they grow from {size_text(config.generator.base)}"
    if sheet.get("unbalanced", 0) > UNBALANCED:
        yield f"the largest class has {sheet['unbalanced']:.0f} times as many pictures as the smallest"
    if early := ends_early(config):
        yield early
    if dataset.label_size and not config.generator.label_size:
        yield "the data has labels, which are not used; --cond trains on them"


def _on_machine(config: Config, plan: Plan, how: How, before: Machine) -> Iterator[str]:
    if how.device.type == "cpu" and before.load > BUSY:
        known = torch.get_num_threads() == 1 and plan.alone_sec < 0.95 * plan.total_sec
        alone = f"takes about {plan.alone_sec:.0f} s" if known else "is faster"
        yield f"other work keeps the processor busy (load {before.load:.1f} a core): alone, the run {alone}"
    best = choose("auto", how.device)
    if config.training.precision == "bf16" != best:
        yield f"bf16 is slower than fp32 on this {how.device.type}; leave --precision out"
    if config.training.precision == "fp32" == best and how.device.type != "mps":
        yield f"computing in fp32, as this {how.device.type} does not multiply bf16 by itself"
    if config.training.precision == "fp32" and best == "bf16":
        yield "--precision bf16 would be faster here"
    group, sizes = group_of(config), {size_text(part.stage.resolution): part.stage.batch for part in plan.parts}
    if uneven := [size for size, batch in sizes.items() if batch // min(group, batch) % how.gpus]:
        yield (
            f"a batch at {', '.join(uneven)} is groups of {group}, which {how.gpus} workers share unevenly: some wait "
            "for others"
        )
    most = max(plan.parts, key=lambda part: part.cost.memory)
    needed = most.cost.memory * (how.gpus * CPU_SLACK if how.device.type == "cpu" else 1)
    if 0 < before.memory < needed:
        less = "" if how.micro_batch == "auto" or mixes(config) else "--micro-batch auto, "
        yield (
            f"{size_text(most.stage.resolution)} (from {most.first / 1000:g} kimg on) takes {needed / 1e9:.1f} GB of "
            f"memory, and {before.memory / 1e9:.1f} GB are free; give {less}a smaller --batch or a lower --resolution"
        )
    if before.disk < plan.disk:
        yield (
            f"the disk has {before.disk / 1e9:.1f} GB free, and the run takes {plan.disk / 1e9:.1f} GB; "
            "--keep-networks N bounds that"
        )
