"""What a network or a run is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

from .run_folder import stage_text

if TYPE_CHECKING:
    from stylegen.config import GeneratorConfig


@click.command()
@click.argument("network", metavar="N")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(network: str, as_json: bool) -> None:
    """Tell what a network is: configuration, sizes, provenance. N: a file, a run folder or an embedded name.

    For a run folder it also tells how far the run is.

    \b
    Examples:
      stylegen info runs/faces
      stylegen info network-005000.safetensors --json
    """
    facts: dict[str, Any] = {}
    state = Path(network) / "state.ckpt"
    try:
        facts |= describe(network)
    except UserError:
        if not state.is_file():
            raise
    if state.is_file():
        try:
            facts["run"] = _state(state)
        except UserError as error:
            if not facts:
                raise
            click.echo(f"Warning: {error}", err=True)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def describe(network: str) -> dict[str, Any]:
    """The facts of a network, in plain types. Raises UserError, OSError."""
    from stylegen.checkpoint import outline, parse_network, read_metadata, resolve_network
    from stylegen.config import resolution_of, size_text, to_dict

    path = resolve_network(network)
    config, provenance = parse_network(path, read_metadata(path))
    parameters = sum(parameter.numel() for parameter in outline(path, config).parameters())
    full = size_text(resolution_of(config, config.levels - 1))
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "family": config.family,
        "resolution": full,
        "channels": config.channels,
        "label_size": config.label_size,
        "parameters": parameters,
        "widths": _widths(config),
        "trained_to": size_text(tuple(provenance["resolution"])) if provenance.get("resolution") else full,
        "provenance": provenance,
        "config": to_dict(config),
    }


def _widths(config: "GeneratorConfig") -> dict[str, int]:
    """Layer or resolution -> its feature maps or units."""
    from stylegen.config import GROWING, resolution_of, size_text
    from stylegen.networks.layers import fmaps

    if config.family == "mlp":
        return {f"layer {k + 1}": config.hidden_width for k in range(config.hidden_layers)}
    levels = config.levels if config.family in GROWING else config.levels - 1
    return {size_text(resolution_of(config, k)): fmaps(config, k + 1) for k in range(levels)}


def _state(path: Path) -> dict[str, Any]:
    from stylegen.config import size_text
    from stylegen.training.schedule import stage_at
    from stylegen.training.state import saved_config

    config, images_seen = saved_config(path)
    stage = stage_at(config, images_seen)
    return {
        "state": str(path),
        "bytes": path.stat().st_size,
        "kimg": images_seen / 1000,
        "total_kimg": config.schedule.total_kimg,
        "precision": config.training.precision,
        "resolution": size_text(stage.resolution),
        "alpha": stage.alpha,
    }


def _lines(facts: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, str]] = []
    if "family" in facts:
        provenance = facts["provenance"]
        colours = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}.get(
            facts["channels"], f"{facts['channels']} channels"
        )
        rows = [
            ("network", f"{facts['file']} ({_megabytes(facts)})"),
            ("family", facts["family"]),
            ("pictures", f"{facts['resolution']}, {colours}"),
            ("classes", ", ".join(provenance.get("class_names") or []) or str(facts["label_size"] or "none")),
            ("trained to", stage_text(facts["trained_to"], provenance.get("alpha"))),
            ("parameters", f"{facts['parameters']:,}"),
            ("widths", "  ".join(f"{size}: {width}" for size, width in facts["widths"].items())),
        ]
        for key, value in provenance.items():
            if key not in ("class_names", "resolution", "alpha"):
                texts = _texts(value)
                rows += zip([key.replace("_", " "), *[""] * (len(texts) - 1)], texts, strict=True)
    if "run" in facts:
        run = facts["run"]
        rows += [
            ("state", f"{run['state']} ({_megabytes(run)})"),
            (
                "run",
                f"{run['kimg']:g} of {run['total_kimg']:g} kimg in {run['precision']}, "
                f"at {stage_text(run['resolution'], run['alpha'])}",
            ),
        ]
    width = max(len(key) for key, _ in rows)
    return [f"{key:{width}}  {value}" for key, value in rows]


def _texts(value: Any) -> list[str]:
    """A line a part."""
    if isinstance(value, dict):
        return [f"{key} {text}" for key, text in value.items()] or ["none"]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value or ["none"]
    return [value if isinstance(value, str) else json.dumps(value)]


def _megabytes(facts: dict[str, Any]) -> str:
    return f"{facts['bytes'] / 1e6:.1f} MB"
