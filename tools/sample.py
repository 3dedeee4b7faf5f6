"""Data sets of generated pictures."""

import time
import zipfile
from pathlib import Path
from typing import Any

import click

from stylegen.errors import UserError

from .rendering import open_network, render, rendering_options


@click.command()
@rendering_options
@click.option("--count", type=click.IntRange(1), required=True, help="Pictures.")
@click.option("--per-class", is_flag=True, help="So many of each class.")
@click.option("--class", "klass", metavar="CLASS", help="Only of this class.  [default: classes in turn]")
@click.option("--first-seed", type=click.IntRange(0), default=0, show_default=True, help="Seeds count up from here.")
@click.option("--dest", required=True, type=click.Path(path_type=Path), help="Zip to write.")
def sample(count: int, per_class: bool, klass: str | None, first_seed: int, dest: Path, **options: Any) -> None:
    """Make a data set of generated pictures, with their classes, such as for adding to a small one.

    DEST is a zip like those of `stylegen dataset build`: it can be trained on, shown and measured. Full variety is
    --trunc 1; less is safer.

    \b
    Examples:
      stylegen sample --network runs/fashion --count 100 --per-class --trunc 1 --dest more.zip
      stylegen sample --network runs/faces --count 10000 --dest fakes.zip
    """
    from stylegen.files import atomic_path
    from stylegen.latents import MAX_SEED, from_seeds
    from stylegen.training import pictures, png
    from stylegen.training.archives import Archive, check_zip

    if dest.suffix.lower() != ".zip":
        raise click.BadParameter(f"{dest} must be the name of a .zip file", param_hint="--dest")
    check_zip(dest)
    opened = open_network(**options)
    config, names = opened.G.config, opened.provenance.get("class_names")
    if config.channels not in pictures.MODES:
        raise UserError(f"data sets hold pictures of 1, 3 or 4 channels; this network makes {config.channels}")
    if per_class and (klass is not None or not config.label_size):
        raise click.UsageError("--per-class is for networks with classes, and all of them")
    total = count * config.label_size if per_class else count
    if first_seed + total - 1 > MAX_SEED:
        raise click.UsageError(f"seeds end at {MAX_SEED}; ask for fewer pictures or a smaller --first-seed")
    begin, seeds = time.monotonic(), list(range(first_seed, first_seed + total))
    if config.label_size and klass is None:
        given = from_seeds(seeds, config.latent_size, [k % config.label_size for k in range(total)])
    else:
        given = opened.latents(seeds, klass)
    dest.absolute().parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(dest) as temporary, zipfile.ZipFile(temporary, "w") as file:
        archive = Archive(file)
        for part, images in render(opened.G, given, **opened.looks):
            labels = [None] * len(part) if part.classes is None else part.classes.tolist()
            for image, label in zip(images, labels, strict=True):
                archive.add(png.encode(image.permute(1, 2, 0).contiguous().numpy()), label)
        archive.finish(given.classes is not None, names)
    click.echo(f"Wrote {total:,} pictures to {dest} in {time.monotonic() - begin:.1f} s.")
