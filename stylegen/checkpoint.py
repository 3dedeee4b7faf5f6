"""Checkpoints: safetensors files whose metadata holds JSON. Loading one cannot run code."""

import hashlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from . import config as configs
from .assets import embedded_networks, network_path
from .errors import DamagedError, NotFoundError, UserError
from .files import atomic_path
from .networks import build_generator
from .validation import validate

FORMAT, VERSION = "stylegen-network", "1"

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
GET_AGAIN = "give one that stylegen wrote, copied whole"
_CHECKSUM = "checksum"
_HEADER_MAX = 100_000_000  # bytes, the limit of the safetensors format


def save_network(path: str | Path, G: nn.Module, provenance: dict[str, Any]) -> None:
    """Writes G with its config; `provenance` is anything that JSON holds (docs/formats.md lists the usual keys).

    Raises OSError, leaving what stood at `path` as it was.
    """
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": json.dumps(configs.to_dict(G.config)),
        "provenance": json.dumps(provenance),
    }
    save_tensors(path, G.state_dict(), metadata)


def load_network(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(G in eval mode, provenance) of a file, a run folder (its newest network) or an embedded name.

    Raises UserError, in one line, for whatever is not a whole network file; OSError.
    """
    path = resolve_network(path)
    tensors, metadata = load_tensors(path)
    config, provenance = parse_network(path, metadata)
    expected = outline(path, config).state_dict()  # a config that lies costs no memory
    for name in expected.keys() | tensors.keys():
        ours, theirs = (tuple(d[name].shape) if name in d else "nothing" for d in (expected, tensors))
        if ours != theirs:
            raise UserError(f"{path} does not fit its own config: {name} is {theirs}, expected {ours}; get it again")
    G = build_generator(config)
    G.load_state_dict(tensors)
    return G.eval(), provenance


def digest(G: nn.Module) -> str:
    """16 hex digits that tell what G computes: of its config and tensors, not of where it comes from."""
    text = json.dumps(configs.to_dict(G.config), sort_keys=True)
    hashed = hashlib.sha256(text.encode())
    for name, tensor in sorted(G.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


def outline(path: Path, config: configs.GeneratorConfig) -> nn.Module:
    """The network of a file's config on the meta device: shapes without memory. Raises UserError."""
    try:
        with torch.device("meta"):
            return build_generator(config)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is damaged: its config cannot be built ({str(error).splitlines()[0]})") from error


def parse_network(path: Path, metadata: dict[str, str]) -> tuple[configs.GeneratorConfig, dict[str, Any]]:
    """(config, provenance) from a network file's metadata; `path` is for messages. Raises UserError."""
    kind, version = metadata.get("format"), metadata.get("version")
    if kind != FORMAT:
        what = f"holds {kind!r}" if kind else "is a safetensors file of another program"
        raise UserError(f"{path} {what}, not a network; give a network-*.safetensors file or a run folder")
    if version != VERSION:
        raise UserError(f"{path} has format version {version}; this stylegen reads {VERSION}: update stylegen")
    try:
        values, provenance = json.loads(metadata["config"]), json.loads(metadata["provenance"])
        config = configs.from_dict(configs.GeneratorConfig, values)
        _check_generator(config)
        _check_provenance(config, provenance)
    except (KeyError, ValueError, RecursionError) as error:  # UserError is a ValueError
        raise UserError(f"{path}: its metadata cannot be read ({error}); get the file again") from error
    return config, provenance


def resolve_network(name: str | Path) -> Path:
    """The file that `name` means: itself, the newest network of a run folder, or an embedded one. Raises UserError."""
    path = Path(name)
    if path.is_dir():
        newest = max(path.glob("network-*.safetensors"), default=None)
        if newest is None:
            raise UserError(f"{path} holds no network-*.safetensors; a run writes its first at its first snapshot")
        return newest
    if path.exists():
        return path
    if embedded := network_path(str(name)):
        return embedded
    names = ", ".join(embedded_networks())
    also = f", nor an embedded one ({names})" if names else ""
    raise NotFoundError(f"no network {str(name)!r}: there is neither a file nor a run folder of that name{also}")


def read_metadata(path: str | Path, remedy: str = GET_AGAIN) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors.

    Raises UserError, which ends with what to do about a file that is not whole: `remedy`; OSError.
    """
    with open(path, "rb") as file:
        return _header(path, file, os.path.getsize(path), remedy).get("__metadata__", {})


def save_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, checksum: bool = False
) -> None:
    """Writes a safetensors file, whole or not at all; the same content gives the same bytes.

    `checksum`: its metadata says what `load_tensors` then checks. Raises OSError naming `path` (a full disk, say),
    leaving what stood there as it was.
    """
    # The safetensors package writes metadata in an order of chance and wraps a full disk in an error of its own.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned, as readers expect
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    pieces = [tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data for name in names]
    if checksum:
        header["__metadata__"][_CHECKSUM] = _checksum(header, pieces)
    text = _compact(header)
    text += b" " * (-len(text) % 8)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            file.write(piece)


def load_tensors(path: str | Path, remedy: str = GET_AGAIN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU in memory of their own, metadata) of a safetensors file. Raises as `read_metadata` does."""
    data = Path(path).read_bytes()  # not memory-mapped: what is written there later must not show here
    header = _header(path, io.BytesIO(data), len(data), remedy)
    expected = header.get("__metadata__", {}).pop(_CHECKSUM, None)
    if expected and expected != _checksum(header, [memoryview(data)[8 + int.from_bytes(data[:8], "little") :]]):
        raise DamagedError(f"{path} is damaged: its checksum is another one; {remedy}")
    try:
        return safetensors.torch.load(data), header.get("__metadata__", {})
    except (SafetensorError, KeyError) as error:
        raise DamagedError(f"{path} is damaged ({error}); {remedy}") from error


def _compact(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _checksum(header: dict[str, Any], data: Iterable[memoryview]) -> str:
    """Of a file's header, but for the checksum itself, and what follows."""
    hashed = hashlib.blake2b(_compact(header), digest_size=16)
    for piece in data:
        hashed.update(piece)
    return hashed.hexdigest()


def _header(path: str | Path, file: BinaryIO, size: int, remedy: str) -> dict[str, Any]:
    start = file.read(256)
    length = int.from_bytes(start[:8], "little")
    if size == 0:
        raise DamagedError(f"{path} is empty; {remedy}")
    if (start[:1] == b"\x80" and start[8:9] != b"{") or (start[:2] == b"PK" and b"data.pkl" in start):
        raise UserError(f"{path} is a pickle, which could run code; stylegen reads .safetensors files only")
    if start[8:9] != b"{" or length > _HEADER_MAX:
        raise DamagedError(f"{path} is not a safetensors file; {remedy}")
    cut = f"{path} is cut short, at {size:,} bytes; {remedy}"
    if 8 + length > size:
        raise DamagedError(cut)
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        whole = 8 + length + end
        if not all(isinstance(text, str) for text in header.get("__metadata__", {}).values()):
            raise ValueError("metadata must be text")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: its header cannot be read; {remedy}") from error
    if size < whole:
        raise DamagedError(cut)
    return header


def _check_generator(g: configs.GeneratorConfig) -> None:
    for name in ("mapping_layers", "hidden_layers"):
        if getattr(g, name) > 1000:  # building so many would hang
            raise UserError(f"{name} is {getattr(g, name)}")
    shared = {name: getattr(g, name) for name in ("family", "base", "levels", "channels", "label_size")}
    validate(
        configs.Config(
            preset="",
            generator=g,
            discriminator=configs.DiscriminatorConfig(**shared),
            schedule=configs.ScheduleConfig(initial_level=g.levels - 1, hold_kimg=0.0, fade_kimg=0.0),
            loss=configs.LossConfig(),
            optimizer=configs.OptimizerConfig(),
        )
    )


def _check_provenance(config: configs.GeneratorConfig, provenance: Any) -> None:
    """The keys that commands act on; the others are for people."""
    if not isinstance(provenance, dict):
        raise UserError("provenance is not an object")
    resolution, alpha, names = (provenance.get(key) for key in ("resolution", "alpha", "class_names"))
    if resolution is not None and resolution not in [
        list(configs.resolution_of(config, k)) for k in configs.levels_of(config)
    ]:
        raise UserError(f"resolution {resolution} is none of its levels")
    if alpha is not None and not (isinstance(alpha, (int, float)) and 0 <= alpha <= 1):
        raise UserError(f"alpha is {alpha!r}, not 0 to 1")
    if names is not None and not (
        isinstance(names, list) and len(names) == config.label_size and all(isinstance(name, str) for name in names)
    ):
        raise UserError(f"class_names are not {config.label_size} names")
