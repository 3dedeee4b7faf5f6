"""How good a network's pictures are."""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import NotFoundError, UserError

from .options import DEVICES, pick_device

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from stylegen.metrics.evaluate import Measurement, Source
    from stylegen.metrics.features import Features
    from stylegen.training.dataset import Dataset

KINDS = ("z-full", "z-end", "w-full", "w-end")


@click.command()
@click.argument("source", metavar="NETWORK|RUN|FOLDER")
@click.option("--against", required=True, metavar="DATA", help="The real pictures: a data set's zip, folder or name.")
@click.option("--num", type=click.IntRange(min=10), default=10_000, show_default=True, help="How many fakes.")
@click.option("--reals", type=click.IntRange(min=10), help="At most so many reals, drawn by the seed.  [default: all]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--class", "klass", metavar="CLASS", help="Index or name: only this class, of fakes and reals.")
@click.option("--mirror/--no-mirror", default=None, help="Reals and their mirror images.  [default: as in training]")
@click.option("--features", "spec", metavar="F", default="lite0", show_default=True, help="Or pixels, or TorchScript.")
@click.option("--ppl", type=click.Choice([*KINDS, "all"]), multiple=True, help="Measure this path length too.")
@click.option("--pairs", type=click.IntRange(min=10), default=2_000, show_default=True, help="Paths for --ppl.")
@click.option("--crop", is_flag=True, help="--ppl looks at the middle of aligned portraits, as the paper does.")
@click.option("--level", type=click.FloatRange(0.5, 0.999), default=0.9, show_default=True, help="Of the intervals.")
@click.option("--batch", type=click.IntRange(min=1), default=32, show_default=True, help="Pictures at a time.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def metrics(source: str, against: str, as_json: bool, device: str, **options: Any) -> None:
    """Measure pictures against real ones: FID, KID, precision, recall, density, coverage, diversity, path length.

    Pictures come from a network (at the level it has reached, without truncation) or from a folder or a zip. Figures
    compare with those of the same features, data, --num, --reals and --mirror only; FID-lite0 is not published FID.
    The same command gives the same figures.

    \b
    Examples:
      stylegen metrics runs/faces --against faces.zip
      stylegen metrics runs/faces --against faces.zip --num 50000 --ppl w-end --ppl z-full --json
      stylegen metrics samples/ --against faces.zip --num 1000
      stylegen metrics runs/faces --against faces.zip --features inception-2015-12-05.pt
    """
    from stylegen.metrics.features import load

    begin = time.monotonic()
    features = load(options["spec"], pick_device(device))
    facts = measure(source, against, features, device=device, **options)
    facts["seconds"] = round(time.monotonic() - begin, 1)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def measure(
    name: str, against: str, features: "Features", *, device: str, num: int, seed: int, batch: int, **options: Any
) -> dict[str, Any]:
    """Everything that is printed, in plain types. Raises UserError, OSError, click.UsageError."""
    from dataclasses import asdict

    from stylegen.config import size_text
    from stylegen.metrics.evaluate import compare, embed, fakes
    from stylegen.training.dataset import open_dataset
    from stylegen.training.measure import read, real_features

    network = _network(name)
    if network:
        source, mirror, data, chosen = _generator(network, against, device, num, seed, options["klass"])
        batches: Iterator[Tensor] = fakes(source, num, batch)
    else:
        if options["ppl"]:
            raise click.UsageError(f"--ppl needs a network; {name} holds pictures")
        made = open_dataset(name)
        data, mirror = open_dataset(against, size=made.size), False
        chosen = _of_class(data, options["klass"])
        num = min(num, len(made))
        batches = read(made, _draw(range(len(made)), num, seed), batch)
    if options["mirror"] is not None:
        mirror = options["mirror"]
    chosen = _draw(chosen, options["reals"] or len(chosen), seed)
    real = real_features(
        data, chosen, features, mirror=mirror, batch=batch, shown=lambda reals: _shown(reals, len(chosen), "reals")
    )
    fake = embed(features, _shown(batches, num, "fakes"))
    figures = compare(real, fake, features.name, level=options["level"], seed=seed)
    if options["ppl"]:
        figures |= _path_lengths(source, features, batch, options)
    return {
        "source": str(network or name),
        "against": str(data.path),
        "features": features.name,
        "size": size_text(data.size),
        "fakes": len(fake),
        "reals": len(real),
        "mirror": mirror,
        "class": options["klass"],
        "seed": seed,
        "level": options["level"],
        "figures": {key: asdict(figure) for key, figure in figures.items()},
    }


def _network(name: str) -> Path | None:
    """The network file that `name` means, None where it means pictures. Raises NotFoundError where neither is there."""
    from stylegen.assets import embedded_data
    from stylegen.checkpoint import resolve_network

    path = Path(name)
    if path.suffix.lower() in (".zip", ".tar") or (path.is_dir() and not any(path.glob("network-*.safetensors"))):
        if (path / "state.ckpt").exists():
            raise UserError(f"{path} is a run without a network yet; it writes its first at its first snapshot")
        return None
    try:
        return resolve_network(name)
    except NotFoundError as error:
        if name in embedded_data():
            return None
        raise NotFoundError(f"{error}; pictures are measured in a folder, a zip or tars") from error


def _generator(
    network: Path, against: str, device: str, num: int, seed: int, klass: str | None
) -> tuple["Source", bool, "Dataset", "np.ndarray"]:
    """(the generator, whether it was trained on mirror images, the reals' data set, which of them count)."""
    import numpy as np

    from stylegen.checkpoint import load_network
    from stylegen.latents import one_hot
    from stylegen.metrics.evaluate import Source
    from stylegen.precision import freeze, prepare
    from stylegen.training.dataset import open_dataset
    from stylegen.training.measure import draw_labels

    from .rendering import choose_classes, choose_stage

    G: Any  # of any family
    G, provenance = load_network(network)
    size, alpha = choose_stage(G.config, provenance, None)
    mirror = bool(provenance.get("mirror"))
    data = open_dataset(against, size=size)
    chosen, labels = np.arange(len(data)), None
    if klass is not None:
        classes = choose_classes(G.config, provenance, [0], klass)
        assert classes
        labels = one_hot(classes * num, G.config.label_size)
        chosen = _of_class(data, klass if klass in (data.class_names or []) else str(classes[0]))
    elif G.config.label_size:
        if data.label_size != G.config.label_size:
            raise UserError(
                f"the network has {G.config.label_size} classes and {data.path} has {data.label_size or 'none'}: its "
                "labels say which classes to make; give the data it was trained on, or --class"
            )
        labels = draw_labels(data, num, seed)
    G = freeze(prepare(G.to(pick_device(device)), "fp32"))
    return Source(G, {"resolution": size, "alpha": alpha}, labels, seed), mirror, data, chosen


def _of_class(data: "Dataset", klass: str | None) -> "np.ndarray":
    """Indices of the pictures of a class (name or index), or of all. Raises click.BadParameter."""
    import numpy as np

    if klass is None:
        return np.arange(len(data))
    names = data.class_names or []
    index = names.index(klass) if klass in names else int(klass) if klass.isdecimal() else -1
    if data.labels is None or not 0 <= index < data.label_size:
        known = f"its classes are 0 to {data.label_size - 1}" if data.label_size else "it has no labels"
        raise click.BadParameter(f"{data.path} has no class {klass!r}; {known}", param_hint="--class")
    found = np.flatnonzero(data.label_vectors(np.arange(len(data)))[:, index] > 0)
    if not len(found):
        raise click.BadParameter(f"{data.path} has no picture of class {klass!r}", param_hint="--class")
    return found


def _draw(indices: "Sequence[int] | np.ndarray", count: int, seed: int) -> "np.ndarray":
    """All of `indices`, or `count` of them drawn by the seed, in ascending order."""
    import numpy as np

    chosen = np.asarray(indices)
    return chosen if count >= len(chosen) else np.sort(np.random.RandomState(seed).permutation(chosen)[:count])


def _shown(batches: "Iterator[Tensor]", total: int, what: str) -> "Iterator[Tensor]":
    """The same batches, with a progress bar on standard error."""
    from stylegen.training.threads import progress

    with progress(total, what) as bar:
        for images in batches:
            yield images
            bar.update(len(images))


def _path_lengths(
    source: "Source", features: "Features", batch: int, options: dict[str, Any]
) -> "dict[str, Measurement]":
    """The path lengths that --ppl asks for."""
    import torch

    from stylegen.metrics.evaluate import path_length
    from stylegen.metrics.path_length import path_lengths

    figures, pairs = {}, options["pairs"]
    for kind in KINDS:
        if {kind, "all"} & set(options["ppl"]):
            parts = path_lengths(source, features, kind, pairs, batch, crop=options["crop"])
            lengths = torch.cat(list(_shown(parts, pairs, f"ppl {kind}")))
            figures[f"PPL-{features.name} {kind}"] = path_length(lengths, level=options["level"], seed=source.seed)
    return figures


def _lines(facts: dict[str, Any]) -> list[str]:
    """The figures as text, a row each."""
    mirrored = ", half of them mirror images" if facts["mirror"] else ""
    lines = [
        f"{facts['fakes']:,} pictures of {facts['source']} against {facts['reals']:,} of {facts['against']}{mirrored}",
        f"{facts['size']}, features {facts['features']}, seed {facts['seed']}, intervals {facts['level']:.0%}",
        "",
    ]
    width = max(map(len, facts["figures"]))
    for name, figure in facts["figures"].items():
        spread = "" if figure["spread"] is None else f", spread of a subset {figure['spread']:.2g}"
        lines.append(f"{name:{width}}  {figure['value']:10.4g}  ({figure['low']:.4g} to {figure['high']:.4g}{spread})")
    return lines
