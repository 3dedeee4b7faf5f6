"""Pictures in the eyes of a discriminator."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .options import DEVICES, needs, pick_device
from .rendering import open_discriminator, open_to_search

if TYPE_CHECKING:
    from torch import Tensor

    from stylegen.training.dataset import Dataset

SHOWN, COLUMNS = 64, 16  # pictures of the ranked sheet
BATCH = 32
PROJECTED, STARTS = 16, 200  # pictures at a time, samples that a search starts from


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("data", metavar="DATA")
@click.option("--against", metavar="DATA", help="Others, which should score lower: tells how well they are separated.")
@click.option("--residual", is_flag=True, help="Project each picture too; rank by how far off the generator stays.")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Of each projection.")
@click.option("--features-out", type=click.Path(dir_okay=False, path_type=Path), help="D's features, as an .npz.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
def score(
    run: str,
    data: str,
    against: str | None,
    residual: bool,
    steps: int,
    features_out: Path | None,
    out: Path,
    device: str,
) -> None:
    """Rank pictures by how real the discriminator of RUN finds them: a detector of what does not belong.

    DATA: a data set or a folder of equal pictures, of RUN's size and channels. Writes scores.csv (a line a picture, the
    oddest first) and ranked.png (the oddest, then the least odd). --residual looks for every picture among those that
    the run's generator makes, and ranks by the distance that is left, the largest first (pip install
    'stylegen[metrics]'). --features-out keeps what D's last layer reads, a row a picture, for classifiers of your own.

    \b
    Examples:
      stylegen score runs/faces faces.zip --out scores
      stylegen score runs/faces faces.zip --against other.zip --out scores
      stylegen score runs/faces faces.zip --against other.zip --residual --out scores
      stylegen score runs/faces faces.zip --features-out features.npz --out scores
    """
    import torch

    from stylegen.config import resolution_of, size_text
    from stylegen.images import grid, save_image

    needs("steps", residual, "without --residual")
    place, begin = pick_device(device), time.monotonic()
    D, config, stage = open_discriminator(run, None, place)
    last = resolution_of(config.discriminator, config.discriminator.levels - 1)
    if stage["resolution"] != last:
        click.echo(f"Note: D has grown to {size_text(stage['resolution'])}, and sees pictures at that size.", err=True)
    sets = [_open(name, config, stage) for name in (data, against) if name is not None]
    found = [_scores(D, dataset, stage, place, features_out is not None) for dataset in sets]
    columns = {"score": [scores for scores, _ in found]}
    if residual:
        columns["residual"] = _residuals(run, sets, steps, device)
    out.mkdir(parents=True, exist_ok=True)
    order = (-columns["residual"][0] if residual else columns["score"][0]).argsort()
    _write_table(out / "scores.csv", sets[0].names, order, {name: values[0] for name, values in columns.items()})
    ends = order if len(order) <= SHOWN else torch.cat([order[: SHOWN // 2], order[-SHOWN // 2 :]])
    shown = torch.stack([torch.from_numpy(sets[0].read(i).copy()) for i in ends.tolist()])
    save_image(grid(shown, COLUMNS, -(-len(shown) // COLUMNS)), out / "ranked.png")
    if features_out and (features := found[0][1]) is not None:
        _save_features(features_out, sets[0], columns["score"][0], features)
    if against:
        ours, others = columns["score"]
        click.echo(f"{separated(others, ours):.3f} ROC AUC of {data} above {against}")
    if against and residual:
        ours, others = columns["residual"]
        click.echo(f"{separated(ours, others):.3f} ROC AUC of {data} below {against}, by residuals")
    click.echo(f"Wrote {len(order):,} scores to {out} in {time.monotonic() - begin:.1f} s.")


def _write_table(path: Path, names: Sequence[str], order: "Tensor", columns: "dict[str, Tensor]") -> None:
    from stylegen.files import write_atomic

    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["picture", *columns])
    for i in order.tolist():
        table.writerow([names[i], *(f"{float(values[i]):.6g}" for values in columns.values())])
    write_atomic(path, text.getvalue())


def separated(low: "Tensor", high: "Tensor") -> float:
    """The area under the ROC curve: how often one of `high` is above one of `low`, ties half."""
    import torch

    values = torch.cat([low, high])
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]  # from 1 on; of equal ones the average
    above = ranks[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return float(above / (len(low) * len(high)))


def _open(name: str, config: Any, stage: dict[str, Any]) -> "Dataset":
    from stylegen.training.dataset import open_dataset

    dataset = open_dataset(name, size=stage["resolution"])
    if dataset.channels != config.discriminator.channels:
        raise UserError(f"{name} has {dataset.channels} channels, the discriminator {config.discriminator.channels}")
    if config.discriminator.label_size and dataset.label_size != config.discriminator.label_size:
        raise UserError(f"{name} has {dataset.label_size} classes, the discriminator {config.discriminator.label_size}")
    return dataset


def _scores(
    D: Any, dataset: "Dataset", stage: dict[str, Any], place: Any, wanted: bool
) -> "tuple[Tensor, Tensor | None]":
    """(scores [N], features [N, F] if they are wanted) of pictures, each in a batch of its own."""
    import numpy as np
    import torch

    from stylegen.images import to_float
    from stylegen.training.measure import read
    from stylegen.training.threads import progress

    scores, features, start = [], [], 0
    with torch.inference_mode(), progress(len(dataset), "score") as bar:
        for images in read(dataset, np.arange(len(dataset)), BATCH):
            x, rows = to_float(images).to(place), np.arange(start, start + len(images))
            labels = torch.from_numpy(dataset.label_vectors(rows)).to(place) if D.config.label_size else None
            scores.append(D(x, labels, parts=len(x), **stage)[:, 0].float().cpu())
            features += [D.features(one[None], **stage).float().cpu() for one in x] if wanted else []
            start += len(x)
            bar.update(len(x))
    return torch.cat(scores), torch.cat(features) if wanted else None


def _residuals(run: str, sets: "list[Dataset]", steps: int, device: str) -> "list[Tensor]":
    """Of each set [N]: the losses that projections into W end with (AnoGAN, Schlegl et al. 2017). Raises UserError."""
    import numpy as np
    import torch

    from stylegen.images import to_float
    from stylegen.perceptual import load_perceptual
    from stylegen.projection import Settings, project
    from stylegen.training.measure import read
    from stylegen.training.threads import progress

    opened = open_to_search(run, device, PROJECTED)
    G, place = opened.G, opened.G.w_avg.device
    perceptual = load_perceptual("lite0", place)
    settings, found = Settings(steps=steps, starts=STARTS, patience=0), []
    with progress(sum(map(len, sets)), "residuals") as bar:
        for dataset in sets:
            parts, start = [], 0
            for images in read(dataset, np.arange(len(dataset)), PROJECTED):
                rows, start = np.arange(start, start + len(images)), start + len(images)
                labels = torch.from_numpy(dataset.label_vectors(rows)).to(place) if G.config.label_size else None
                result = project(G, to_float(images).to(place), perceptual, settings, labels, **opened.stage)
                parts.append(result.losses[-1])
                bar.update(len(images))
            found.append(torch.cat(parts))
    return found


def _save_features(path: Path, dataset: "Dataset", scores: "Tensor", features: "Tensor") -> None:
    import numpy as np

    from stylegen.files import atomic_path

    arrays: dict[str, Any] = {"features": features.numpy(), "scores": scores.numpy(), "names": np.array(dataset.names)}
    if dataset.labels is not None:
        arrays["labels"] = dataset.labels
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
