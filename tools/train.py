"""`stylegen train`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.config import AUGMENTATIONS, METRICS, ON_COLLAPSE
from stylegen.errors import UserError
from stylegen.presets import AUTO_GAMMA, LOSSES, PRESETS

from .options import DEVICES, PRECISIONS, SizeType, pick_device, pick_precision

if TYPE_CHECKING:
    from stylegen.config import Config
    from stylegen.training.dataset import Dataset

POSITIVE = click.FloatRange(min=0, min_open=True)

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
    "seed": ("training.seed", None),
    "precision": ("training.precision", None),
    "snapshot_kimg": ("output.snapshot_kimg", None),
    "preview_kimg": ("output.preview_kimg", None),
    "keep_networks": ("output.keep_networks", None),
    "metrics": ("output.metrics", None),
    "metrics_kimg": ("output.metrics_kimg", None),
    "on_collapse": ("output.on_collapse", None),
}


class GammaType(click.FloatRange):
    """A weight of at least 0, or `auto`."""

    def __init__(self) -> None:
        super().__init__(min=0)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "FLOAT|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return AUTO_GAMMA if value == "auto" else super().convert(value, param, ctx)


class ListType(click.Choice):
    """Several of the choices, between commas: a tuple."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return tuple(super(ListType, self).convert(part, param, ctx) for part in value.split(","))


@click.command()
@click.argument("data", type=click.Path())
@click.option("--out", "run_dir", required=True, type=click.Path(file_okay=False, path_type=Path), help="Run folder.")
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), help="Networks and schedule to start from.  [default: small-64]"
)
@click.option("--resume", is_flag=True, help="Go on with the run in --out; start it where there is none yet.")
@click.option("--resolution", type=SizeType(), help="Final size: the data's, or halved.  [default: as the preset]")
@click.option("--kimg", type=POSITIVE, help="Length of the run, in thousands of real pictures.")
@click.option("--hold-kimg", type=click.FloatRange(min=0), help="How long a level is held before the next fades in.")
@click.option("--fade-kimg", type=click.FloatRange(min=0), help="How long a level fades in.")
@click.option("--batch", type=click.IntRange(min=1), help="Pictures a step, at every level.")
@click.option("--lr", type=POSITIVE, help="Learning rate of both networks, at every level.")
@click.option(
    "--gamma", type=GammaType(), help="R1 weight; auto: 0.0002 * pixels / batch.  [default: the preset's, or auto]"
)
@click.option(
    "--loss", type=click.Choice(list(LOSSES)), help="Objective with its usual regularisers.  [default: the preset's]"
)
@click.option("--mirror/--no-mirror", default=None, help="Flip half of the pictures.  [default: no]")
@click.option(
    "--augment",
    type=ListType(AUGMENTATIONS),
    metavar="LIST",
    help=f"Alter all that D sees, for few pictures: {','.join(AUGMENTATIONS)}.  [default: no]",
)
@click.option("--cond/--no-cond", default=None, help="Train on the data's labels.  [default: no]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: 0]")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic; auto: bf16 if fast.  [default: auto]")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Threads that read pictures.")
@click.option("--snapshot-kimg", type=POSITIVE, help="How often a network and the state are saved.")
@click.option("--preview-kimg", type=POSITIVE, help="How often a preview is made.")
@click.option("--keep-networks", type=click.IntRange(min=0), help="Newest networks kept; 0 keeps all.  [default: 0]")
@click.option(
    "--metrics", type=ListType(METRICS), metavar="LIST", help="Measure as it trains, as fid,kid; keeps the best."
)
@click.option("--metrics-kimg", type=POSITIVE, help="How often.  [default: 100]")
@click.option(
    "--on-collapse", type=click.Choice(ON_COLLAPSE), help="When a run goes wrong: tell, or end it too.  [default: warn]"
)
@click.option("--set", "assignments", multiple=True, metavar="SECTION.FIELD=VALUE", help="Any field of config.json.")
@click.option("--dry-run", is_flag=True, help="Show the configuration and schedule; train and write nothing.")
def train(
    data: str, run_dir: Path, preset: str | None, resume: bool, device: str, workers: int, dry_run: bool, **options: Any
) -> None:
    """Train a generator on DATA: a zip of `stylegen dataset build`, a folder of equal pictures, or an embedded name.

    RUN (--out) receives previews from the first minute on, networks, statistics and the state. Ctrl-C saves and ends;
    --resume goes on bit for bit. Options that would change a run in the making are refused.

    \b
    Examples:
      stylegen train emoji-people-64 --out runs/people --preset small-32
      stylegen train photos.zip --out runs/photos --preset small-64 --mirror --kimg 800
      stylegen train photos.zip --out runs/photos --resume
      stylegen train few.zip --out runs/few --mirror --augment color,translation,cutout
      stylegen train fashion.zip --out runs/fashion --preset small-32 --cond
      stylegen train faces.zip --out runs/faces --preset stylegan-1024 --resolution 256 --dry-run
      stylegen train faces.zip --out runs/wgan --loss wgan-gp --set loss.n_critic=2
    """
    from stylegen.training import loop, state

    state_path = run_dir / state.STATE_NAME
    if not resume and not dry_run and (state_path.exists() or any(run_dir.glob("network-*.safetensors"))):
        raise click.UsageError(f"{run_dir} already holds a run; add --resume to go on, or give another --out")
    torch_device = pick_device(device)
    saved = state.saved_config(state_path)[0] if state_path.exists() and resume else None
    dataset = _open(data, options.pop("resolution"), preset, saved)
    cond = options.pop("cond")
    wanted = options["precision"] or "auto"
    if saved and wanted == "auto":
        options["precision"] = None  # as in the run so far
    else:
        options["precision"] = pick_precision(wanted, torch_device)
    try:
        if saved:
            config = _continued(saved, preset, cond, dataset, options)
        else:
            config = _started(preset or "small-64", cond, dataset, options)
    except UserError as error:
        raise click.UsageError(str(error)) from error
    if dry_run:
        _show(config, dataset, str(torch_device))
        return
    loop.train(config, run_dir, dataset, device=torch_device, workers=workers)


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


def _started(preset: str, cond: bool | None, dataset: "Dataset", options: dict[str, Any]) -> "Config":
    from stylegen import presets

    config = presets.preset(preset, dataset.size, dataset.channels, _label_size(cond, dataset))
    config = _apply(config, options)
    training = dataclasses.replace(config.training, data_digest=dataset.digest)
    return _checked(presets.resolve(dataclasses.replace(config, training=training)))


def _continued(
    saved: "Config", preset: str | None, cond: bool | None, dataset: "Dataset", options: dict[str, Any]
) -> "Config":
    """The saved config with what may change changed. Raises UserError that shows what may not."""
    from stylegen import config as configs, presets

    config = _checked(presets.resolve(_apply(saved, options)))
    lines = configs.difference(config, saved)
    if preset not in (None, saved.preset):
        lines.append(f"preset: {preset} here, {saved.preset} in the saved run")
    facts = {
        "resolution": (dataset.size, configs.resolution_of(saved.generator, saved.generator.levels - 1)),
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


def _show(config: "Config", dataset: "Dataset", device: str) -> None:
    from stylegen import config as configs
    from stylegen.networks import build_discriminator, build_generator
    from stylegen.training.schedule import describe

    networks = build_generator(config.generator), build_discriminator(config.discriminator)
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    click.echo(
        f"{config.preset} on {dataset.path}: {len(dataset)} pictures at {configs.size_text(dataset.size)}, "
        f"{device} in {config.training.precision}"
    )
    click.echo(f"G {counts[0]:,} parameters, D {counts[1]:,}\n")
    click.echo(describe(config) + "\n")
    for name, section in configs.to_dict(config).items():
        if isinstance(section, dict):
            click.echo(f"{name}: " + ", ".join(f"{key}={value}" for key, value in section.items()))
