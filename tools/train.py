"""`stylegen train`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.config import ADA_KINDS, AUGMENTATIONS, METRICS, ON_COLLAPSE
from stylegen.presets import AUTO_GAMMA, LOSSES, PRESETS

from . import launch
from .options import ARGUMENTS, DEVICES, PRECISIONS, SizeType, needs, pick_device
from .plan import show as show_plan
from .run_config import prepare

if TYPE_CHECKING:
    from stylegen.config import Config
    from stylegen.training.dataset import Dataset

POSITIVE = click.FloatRange(min=0, min_open=True)


class OrAuto(click.ParamType):
    """What `kind` accepts, or `auto`, which becomes `value`."""

    def __init__(self, kind: click.ParamType, value: Any):
        self.kind, self.value, self.name = kind, value, kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self.value if value == "auto" else self.kind.convert(value, param, ctx)


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
    "--gamma",
    type=OrAuto(click.FloatRange(min=0), AUTO_GAMMA),
    metavar="FLOAT|auto",
    help="R1 weight; auto: 0.0002 * pixels / batch.  [default: the preset's, or auto]",
)
@click.option(
    "--loss", type=click.Choice(list(LOSSES)), help="Objective with its usual regularisers.  [default: the preset's]"
)
@click.option("--mirror/--no-mirror", default=None, help="Flip half of the pictures.  [default: no]")
@click.option(
    "--augment",
    type=ListType((*AUGMENTATIONS, "ada")),
    metavar="LIST",
    help=f"Alter all that D sees, for few pictures: ada, or {','.join(AUGMENTATIONS)}.  [default: no]",
)
@click.option("--ada-kinds", type=ListType(ADA_KINDS), metavar="LIST", help="Of ada.  [default: blit,geometry,color]")
@click.option("--ada-target", type=float, help="Mean sign of D's scores of real pictures to hold.  [default: 0.6]")
@click.option("--ada-speed-kimg", type=POSITIVE, help="How long ada's p takes from 0 to 1.  [default: 500]")
@click.option("--ada-ceiling", type=POSITIVE, help="What ada's p never passes.  [default: 0.8]")
@click.option("--init-from", metavar="RUN|NETWORK", help="Start with the weights of another run or network.")
@click.option("--freeze-d", type=click.IntRange(min=0), help="Layers of D, from the pictures, that keep their weights.")
@click.option("--cond/--no-cond", default=None, help="Train on the data's labels.  [default: no]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random.  [default: 0]")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Arithmetic; auto: bf16 if fast.  [default: auto]")
@click.option("--workers", type=click.IntRange(min=0), default=2, show_default=True, help="Threads that read pictures.")
@click.option(
    "--cache", default="auto", metavar="DIR|none", help="Where small levels are kept.  [default: beside DATA]"
)
@click.option("--shuffle-shards", type=click.IntRange(min=0), help="Shards shuffled at a time; 0: all.  [default: 16]")
@click.option("--snapshot-kimg", type=POSITIVE, help="How often a network and the state are saved.")
@click.option("--preview-kimg", type=POSITIVE, help="How often a preview is made.")
@click.option("--keep-networks", type=click.IntRange(min=0), help="Newest networks kept; 0 keeps all.  [default: 0]")
@click.option(
    "--metrics", type=ListType(METRICS), metavar="LIST", help="Measure as it trains, as fid,kid; keeps the best."
)
@click.option("--metrics-kimg", type=POSITIVE, help="How often.  [default: 100]")
@click.option(
    "--on-collapse", type=click.Choice(ON_COLLAPSE), help="After an alarm: tell, end, or try again.  [default: warn]"
)
@click.option("--set", "assignments", multiple=True, metavar="SECTION.FIELD=VALUE", help="Any field of config.json.")
@click.option("--gpus", type=click.IntRange(min=1), help="Workers on this machine, a GPU each.  [default: 1]")
@click.option("--restarts", type=click.IntRange(min=0), default=0, show_default=True, help="Of lost workers, at most.")
@click.option(
    "--timeout", type=POSITIVE, default=1800.0, show_default=True, help="Seconds to wait for a silent worker."
)
@click.option(
    "--micro-batch",
    type=OrAuto(click.IntRange(min=1), "auto"),
    metavar="N|auto",
    help="Most pictures a worker computes at a time; auto: as many as fit into memory.  [default: all]",
)
@click.option("--plan", "planned", is_flag=True, help="Measure what the run would take; train and write nothing.")
@click.option("--dry-run", is_flag=True, help="Show the configuration and schedule; train and write nothing.")
@click.pass_context
def train(
    ctx: click.Context,
    data: str,
    run_dir: Path,
    resume: bool,
    device: str,
    gpus: int | None,
    restarts: int,
    timeout: float,
    planned: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train a generator on DATA: a zip of `stylegen dataset build`, a folder of equal pictures, or an embedded name.

    Or shards: a .tar, a folder of .tar or .zip files, a pattern such as 'data/shard-{000..127}.tar'.
    RUN (--out) receives previews from the first minute on, networks, statistics and the state. Ctrl-C saves and ends;
    --resume goes on bit for bit. Options that would change a run in the making are refused.

    \b
    Examples:
      stylegen train emoji-people-64 --out runs/people --preset small-32
      stylegen train photos.zip --out runs/photos --preset small-64 --mirror --kimg 800
      stylegen train photos.zip --out runs/photos --resume
      stylegen train 'shards/shard-{000000..000127}.tar' --out runs/many --cache /scratch/levels
      stylegen train few.zip --out runs/few --mirror --augment ada
      stylegen train cats.zip --out runs/cats --init-from runs/dogs --freeze-d 2
      stylegen train fashion.zip --out runs/fashion --preset small-32 --cond
      stylegen train faces.zip --out runs/faces --preset stylegan-1024 --resolution 256 --plan
      stylegen train faces.zip --out runs/wgan --loss wgan-gp --set loss.n_critic=2
    """
    from stylegen.training import distributed, loop, share

    _check_options(options["augment"], resume, gpus, dry_run)
    resume = resume or launch.again()
    if not (resume or dry_run or planned) and _holds_a_run(run_dir):
        raise click.UsageError(f"{run_dir} already holds a run; add --resume to go on, or give another --out")
    how = {name: options.pop(name) for name in ("workers", "cache", "micro_batch")}
    torch_device, count = launch.own(pick_device(device)), gpus or int(os.environ.get("WORLD_SIZE", 1))

    def run(crew: distributed.Crew) -> int:
        given = data, run_dir, torch_device, count, options
        config, dataset = crew.one_by_one("data set", lambda: prepare(*given, resume=resume))
        if dry_run:
            _show(config, dataset, str(torch_device))
            return 0
        share.check(config, count, how["micro_batch"] if isinstance(how["micro_batch"], int) else None)
        if count > crew.size:
            launch.check_devices(torch_device, count)
        if planned:
            return show_plan(config, dataset, run_dir, torch_device, count, how, resume) if crew.chief else 0
        if count > crew.size:
            return launch.workers(count, restarts, ctx.meta[ARGUMENTS], run_dir)
        number = loop.train(config, run_dir, dataset, device=torch_device, crew=crew, **how)
        return number if crew.size > 1 else launch.code_of(number)

    if distributed.launched():
        launch.worker(lambda: distributed.joined(torch_device, timeout, run))
    ctx.exit(run(distributed.ALONE))


def _check_options(augment: tuple[str, ...] | None, resume: bool, gpus: int | None, dry_run: bool) -> None:
    """Raises click.UsageError for options that mean nothing here."""
    from stylegen.training.distributed import launched

    for name in ("ada_kinds", "ada_target", "ada_speed_kimg", "ada_ceiling"):
        needs(name, augment == ("ada",) or resume, "without --augment ada")
    needs("restarts", (gpus or 1) > 1, "without --gpus 2 or more")
    needs("planned", not dry_run, "with --dry-run, which measures nothing")
    if launched() and gpus and not launch.ours():
        raise click.UsageError("--gpus: another launcher has started this worker already; leave the number to it")


def _holds_a_run(run_dir: Path) -> bool:
    from stylegen.training import saver

    return bool(saver.saved_states(run_dir)) or any(run_dir.glob("network-*.safetensors"))


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
