"""Puts a trained network into the package, with a card that says what it is (`stylegen info NAME` shows it)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stylegen import assets
from stylegen.errors import UserError

if TYPE_CHECKING:
    from stylegen.config import Config

LARGEST = 8 * 10**6


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("name")
@click.option("--network", default="", help="File in RUN.  [default: the newest]")
@click.option("--against", required=True, help="The data that it was trained on.")
@click.option("--licence", required=True, help="Of the data, and where they come from.")
@click.option("--limits", required=True, help="What it cannot do.")
@click.option("--num", default=10_000, show_default=True, help="Fakes that are measured.")
def embed_network(run: Path, name: str, network: str, against: str, licence: str, limits: str, num: int) -> None:
    """Measure RUN's network and keep it in the package as NAME.

    \b
    Examples:
      python -m stylegen.tools.embed_network runs/people emoji64 --against emoji-people-64 \\
          --licence "MIT: Fluent Emoji, npm @lobehub/fluent-emoji-3d@1.1.0" --limits "..."
    """
    from stylegen.checkpoint import load_network, resolve_network, save_network
    from stylegen.config import Config, from_dict
    from stylegen.metrics.evaluate import Measurement
    from stylegen.metrics.features import load
    from stylegen.training.dataset import open_dataset

    from .metrics import measure

    source = resolve_network(run / network if network else run)
    if source.stat().st_size > LARGEST:
        raise UserError(f"{source} has {source.stat().st_size:,} bytes; the package takes networks of {LARGEST:,}")
    G, provenance = load_network(source)
    config = from_dict(Config, json.loads((run / "config.json").read_text(encoding="utf-8")))
    usual = {"reals": None, "klass": None, "mirror": config.training.mirror, "ppl": (), "level": 0.9}
    facts = measure(str(source), against, load("lite0"), device="cpu", num=num, seed=0, batch=32, **usual)
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = next(row["elapsed_sec"] for row in rows if row["kimg"] >= provenance["kimg"])
    card = {
        "mirror": config.training.mirror,
        "licence": licence,
        "minutes": round(seconds / 60),
        "overrides": overrides(config),
        "figures": {key: Measurement(**figure).text() for key, figure in facts["figures"].items()},
        "figures of": f"{facts['fakes']:,} fakes, {facts['reals']:,} reals" + (", mirrored" if facts["mirror"] else ""),
        "limits": limits,
    }
    names = open_dataset(against).class_names
    if names and len(names) == config.generator.label_size:  # the run may be older than they are
        card["class_names"] = names
    path = Path(assets.__file__).parent / "networks" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_network(path, G, provenance | card)
    click.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def overrides(config: "Config") -> list[str]:
    """How a run's configuration differs from its preset's, as --set takes it."""
    from stylegen.config import resolution_of, to_dict
    from stylegen.presets import preset, resolve

    g = config.generator
    usual = resolve(preset(config.preset, resolution_of(g, g.levels - 1), g.channels, g.label_size))
    ours, theirs = to_dict(config), to_dict(usual)
    differ = []
    for section in ("generator", "discriminator", "schedule", "loss", "optimizer", "training"):
        for key, value in ours[section].items():
            if value != theirs[section].get(key) and key not in ("data_digest", "total_kimg"):
                text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value
                differ.append(f"{section}.{key}={text}")
    return differ


if __name__ == "__main__":
    embed_network()
