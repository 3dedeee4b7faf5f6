"""What ships inside the package: data sets (NAME.zip) and networks (networks/NAME.safetensors), found by name."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def embedded_data() -> list[str]:
    """Names of the embedded data sets, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.zip"))


def embedded_networks() -> list[str]:
    """Names of the embedded networks, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("networks/*.safetensors"))


def data_path(name: str) -> Path | None:
    """The archive of the embedded data set `name`, or None if there is none of that name."""
    return _FOLDER / f"{name}.zip" if name in embedded_data() else None


def network_path(name: str) -> Path | None:
    """The file of the embedded network `name`, or None if there is none of that name."""
    return _FOLDER / "networks" / f"{name}.safetensors" if name in embedded_networks() else None
