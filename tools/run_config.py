"""The configuration that a command line of `stylegen train` asks for, of a run that starts or goes on."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import pick_precision

if TYPE_CHECKING:
    import torch

    from stylegen.config import Config
    from stylegen.training.dataset import Dataset

# Option -> the config fields that it sets, and a table that it empties so that the value holds at every stage.
FIELDS: dict[str, tuple[str, str | None]] = {
    "kimg": ("schedule.total_kimg", None),
    "hold_kimg": ("schedule.hold_kimg", None),
    "fade_kimg": ("schedule.fade_kimg", None),
    "batch": ("schedule.batch_default", "schedule.batch"),
    "lr": ("schedule.lr_default", "schedule.lr"),
    "gamma": ("loss.r1_gamma", None),
    "mirror": ("training.mirror", None),
    "augment": ("training.augment", None),
    "ada_kinds": ("training.ada_kinds", None),
    "ada_target": ("training.ada_target", None),
    "ada_speed_kimg": ("training.ada_speed_kimg", None),
    "ada_ceiling": ("training.ada_ceiling", None),
    "init_from": ("training.init_from", None),
    "freeze_d": ("training.freeze_d", None),
    "seed": ("training.seed", None),
    "precision": ("training.precision", None),
    "shuffle_shards": ("training.shuffle_shards", None),
    "snapshot_kimg": ("output.snapshot_kimg", None),
    "preview_kimg": ("output.preview_kimg", None),
    "keep_networks": ("output.keep_networks", None),
    "metrics": ("output.metrics", None),
    "metrics_kimg": ("output.metrics_kimg", None),
    "on_collapse": ("output.on_collapse", None),
}


def prepare(
    data: str, run_dir: Path, device: "torch.device", gpus: int, options: dict[str, Any], *, resume: bool
) -> tuple["Config", "Dataset"]:
    """(configuration, data set at the size to train at). `options` by parameter name; `gpus`: workers at the start.

    Raises click.UsageError, UserError.
    """
    from stylegen.training import saver

    options = dict(options)
    preset, cond, wanted = options.pop("preset"), options.pop("cond"), options["precision"] or "auto"
    saved_run = saver.saved_run(run_dir) if resume else None
    saved = saved_run[0] if saved_run else None
    dataset = _open(data, options.pop("resolution"), preset, saved)
    if saved and wanted == "auto":
        options["precision"] = None  # as in the run so far
    else:
        options["precision"] = pick_precision(wanted, device)
    try:
        if saved:
            return _continued(saved, preset, cond, dataset, options), dataset
        return _started(preset or "small-64", cond, dataset, gpus, options), dataset
    except UserError as error:
        raise click.UsageError(str(error)) from error


def _open(data: str, resolution: tuple[int, int] | None, preset: str | None, saved: "Config | None") -> "Dataset":
    """The data set at the size to train at."""
    from stylegen.config import resolution_of
    from stylegen.training.dataset import open_dataset

    dataset = open_dataset(data)
    size = resolution
    if size is None and saved:
        size = resolution_of(saved.generator, saved.generator.levels - 1)
        if dataset.size not in [(size[0] << k, size[1] << k) for k in range(16)]:
            return dataset  # other data: `_continued` says so
    if size is None:
        size, limit = dataset.size, int((preset or "small-64").rpartition("-")[2])
        while max(size) > limit and size[0] % 2 == 0 and size[1] % 2 == 0:
            size = (size[0] // 2, size[1] // 2)
    if size == dataset.size:
        return dataset
    try:
        return open_dataset(data, size=size)
    except UserError as error:
        raise click.BadParameter(str(error), param_hint="--resolution") from error


def _started(preset: str, cond: bool | None, dataset: "Dataset", gpus: int, options: dict[str, Any]) -> "Config":
    from stylegen import presets
    from stylegen.training import saver

    gpus = gpus if preset in presets.BY_GPUS else 1
    config = presets.preset(preset, dataset.size, dataset.channels, _label_size(cond, dataset), gpus)
    if options["init_from"]:
        config = _transferred(config, options["init_from"])
    if options["freeze_d"] and not (options["init_from"] and saver.saved_states(Path(options["init_from"]))):
        raise UserError("--freeze-d keeps what D has learnt elsewhere: give --init-from a run folder, which holds a D")
    config = _apply(config, options)
    training = dataclasses.replace(config.training, data_digest=dataset.digest)
    return _checked(presets.resolve(dataclasses.replace(config, training=training)))


def _transferred(config: "Config", source: str) -> "Config":
    """A run that starts from another network: at its level, and with `ada` five times as fast (as in its paper)."""
    from stylegen.checkpoint import parse_network, read_metadata, resolve_network
    from stylegen.config import GROWING, levels_of, resolution_of

    path = resolve_network(source)
    theirs, provenance = parse_network(path, read_metadata(path))
    ours = config.generator
    if (theirs.family, theirs.base) != (ours.family, ours.base):
        given = f"a {theirs.family} that grows from {theirs.base[1]}x{theirs.base[0]}"
        raise UserError(
            f"--init-from {source} is {given}, this run's a {ours.family} from {ours.base[1]}x{ours.base[0]}; "
            "choose another --preset, or data of another shape"
        )
    config = _replace(config, "training.ada_speed_kimg", 100.0)
    if ours.family not in GROWING:
        return config
    reached = list(provenance.get("resolution") or resolution_of(theirs, theirs.levels - 1))
    level = max((k for k in levels_of(ours) if list(resolution_of(ours, k)) <= reached), default=0)
    return _replace(config, "schedule.initial_level", level)


def _continued(
    saved: "Config", preset: str | None, cond: bool | None, dataset: "Dataset", options: dict[str, Any]
) -> "Config":
    """The saved config with what may change changed. Raises UserError that shows what may not."""
    from stylegen import config as configs, presets

    config = _checked(presets.resolve(_apply(saved, options)))
    lines = configs.difference(config, saved)
    if preset not in (None, saved.preset):
        lines.append(f"preset: {preset} here, {saved.preset} in the saved run")
    before = configs.resolution_of(saved.generator, saved.generator.levels - 1)
    facts: dict[str, tuple[object, object]] = {
        "resolution": (configs.size_text(dataset.size), configs.size_text(before)),
        "channels": (dataset.channels, saved.generator.channels),
    }
    if dataset.digest != saved.training.data_digest:
        lines.append(f"data: {dataset.path} is not, or no longer, what the run was trained on")
    if cond is not None:
        facts["labels"] = (_label_size(cond, dataset), saved.generator.label_size)
    lines += [
        f"{name}: {ours} here, {theirs} in the saved run" for name, (ours, theirs) in facts.items() if ours != theirs
    ]
    if lines:
        raise UserError(f"--resume would change the run: {'; '.join(lines)}; leave that out, or give another --out")
    return config


def _label_size(cond: bool | None, dataset: "Dataset") -> int:
    if cond and not dataset.label_size:
        raise UserError(
            f"--cond: {dataset.path} has no labels; rebuild it with `stylegen dataset build ... --labels folders`"
        )
    return dataset.label_size if cond else 0


def _apply(config: "Config", options: dict[str, Any]) -> "Config":
    """`config` with the command line's options; None means not given."""
    from stylegen import presets
    from stylegen.config import override

    if options["loss"]:
        config = presets.with_loss(config, options["loss"])
    for name, (path, table) in FIELDS.items():
        if options[name] is not None:
            config = _replace(config, path, options[name])
            config = _replace(config, table, {}) if table else config
    for assignment in options["assignments"]:
        config = override(config, assignment)
    return config


def _replace(config: "Config", path: str, value: Any) -> "Config":
    section, name = path.split(".")
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{name: value})})


def _checked(config: "Config") -> "Config":
    from stylegen.training import losses, schedule
    from stylegen.validation import validate

    validate(config)
    losses.check(config.loss)
    if schedule.total_images(config) < 1:
        raise UserError(f"schedule.total_kimg is {config.schedule.total_kimg:g}, less than one picture; 0.001 is one")
    return config
