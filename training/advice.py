"""What may go wrong in a planned run, in sentences."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from stylegen.config import Config, size_text
from stylegen.precision import choose

from .dataset import Dataset
from .plan import How, Plan
from .share import group_of, mixes
from .sheet import data_sheet

FEW, VERY_FEW = 2000, 500  # pictures
UNBALANCED = 10.0  # times as many pictures in the largest class as in the smallest


def room(folder: Path) -> int:
    """Bytes free on the disk where `folder` is, or will be."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def warnings(config: Config, dataset: Dataset, plan: Plan, how: How, free_disk: int, free_memory: int) -> list[str]:
    """What may go wrong, in sentences. free_memory: bytes on `how.device`, 0 where that is not known."""
    return [*_on_data(config, dataset), *_on_machine(config, plan, how, free_disk, free_memory), *plan.notes]


def _on_data(config: Config, dataset: Dataset) -> Iterator[str]:
    training, count, sheet = config.training, len(dataset), data_sheet(dataset)
    help_for = {"--mirror": training.mirror, "--augment color,translation,cutout": training.augment}
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
    if dataset.label_size and not config.generator.label_size:
        yield "the data has labels, which are not used; --cond trains on them"


def _on_machine(config: Config, plan: Plan, how: How, free_disk: int, free_memory: int) -> Iterator[str]:
    best = choose("auto", how.device)
    if config.training.precision == "bf16" != best:
        yield f"bf16 is slower than fp32 on this {how.device.type}; leave --precision out"
    if config.training.precision == "fp32" == best and how.device.type != "mps":
        yield f"computing in fp32, as this {how.device.type} does not multiply bf16 by itself"
    if config.training.precision == "fp32" and best == "bf16":
        yield "--precision bf16 would be faster here"
    for part in plan.parts:
        groups = part.stage.batch // min(group_of(config), part.stage.batch)
        where = f"{size_text(part.stage.resolution)} (from {part.first / 1000:g} kimg on)"
        if groups % how.gpus:
            yield (f"at {where} {how.gpus} workers share the {groups} groups of a batch unevenly: some wait for others")
        needed = part.cost.memory * (how.gpus if how.device.type == "cpu" else 1)
        if 0 < free_memory < needed:
            less = "" if how.micro_batch == "auto" or mixes(config) else "--micro-batch auto, "
            yield (
                f"{where} takes {needed / 1e9:.1f} GB of memory, and {free_memory / 1e9:.1f} GB are free; give {less}"
                "a smaller --batch or a lower --resolution"
            )
    if free_disk < plan.disk:
        yield (
            f"the disk has {free_disk / 1e9:.1f} GB free, and the run takes {plan.disk / 1e9:.1f} GB; "
            "--keep-networks N bounds that"
        )
