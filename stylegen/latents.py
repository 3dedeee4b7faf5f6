"""Seeds, latents and labels: what a number means here is what it means in the official tools. Files of latents."""

import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import GeneratorConfig
from .errors import NotFoundError, UsageError, UserError
from .files import atomic_path

MAX_SEED = 2**32 - 1
MAX_SEEDS = 1_000_000
GROUPS = ("coarse", "middle", "fine")


def parse_seeds(text: str) -> list[int]:
    """ "0-7,42" -> [0, 1, ..., 7, 42]: numbers and ranges up to 2^32 - 1, each seed once, in the order given.

    Raises UserError.
    """
    seeds: dict[int, None] = {}  # a set that keeps the order
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part, re.ASCII)
        if not match:
            raise UsageError(f"seeds {text!r}: {part.strip()!r} is not a number or a range; write them as 0-7,42")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"seeds {text!r}: the range {first}-{last} runs backwards; write {last}-{first}")
        if last > MAX_SEED:
            raise UsageError(f"seeds {text!r}: {last} is too large; seeds are 0 to {MAX_SEED}")
        if last - first + len(seeds) >= MAX_SEEDS:
            raise UsageError(f"seeds {text!r}: these are more than {MAX_SEEDS:,}; ask for fewer at a time")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def parse_layers(text: str, levels: int) -> list[int]:
    """ "0-3,6" or "coarse", "middle", "fine" -> the layers of a network of so many levels, in order.

    coarse is 4x4 and 8x8 (of a square base), middle 16x16 and 32x32, fine what is above (StyleGAN, Karras et al. 2019,
    figure 3); of a network below 64x64, thirds of its levels. Raises UserError.
    """
    shares = [2, 2, levels - 4] if levels > 4 else [len(part) for part in np.array_split(range(levels), 3)]
    ends = 2 * np.cumsum(shares)
    named = {name: range(end - 2 * n, end) for name, n, end in zip(GROUPS, shares, ends, strict=True)}
    layers: set[int] = set()
    for part in map(str.strip, text.split(",")):
        match = re.fullmatch(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?", part, re.ASCII)
        if part in named:
            layers.update(named[part])
        elif not match:
            raise UsageError(f"layers {text!r}: {part!r} is neither a range such as 0-3 nor {', '.join(GROUPS)}")
        else:
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < 2 * levels:
                raise UsageError(
                    f"layers {text!r}: {part!r} is no range of this network's layers, 0 to {2 * levels - 1}"
                )
            layers.update(range(first, last + 1))
    return sorted(layers)


def latents(seeds: Sequence[int], size: int) -> Tensor:
    """z float32 [N, size]: row i is `RandomState(seeds[i]).randn(1, size)`, as the official tools draw it."""
    rows = [np.random.RandomState(seed).randn(1, size) for seed in seeds]
    return torch.from_numpy(np.concatenate([np.empty((0, size)), *rows]).astype(np.float32))


def draw(count: int, size: int, seed: int = 0) -> Tensor:
    """z float32 [count, size], all of one seed: for statistics, where latents need no seeds of their own."""
    return torch.from_numpy(np.random.RandomState(seed).randn(count, size).astype(np.float32))


def one_hot(classes: Sequence[int], label_size: int) -> Tensor:
    """Class indices -> labels float32 [N, label_size]. Raises UserError for a class outside 0 to label_size - 1."""
    for index in classes:
        if not 0 <= index < label_size:
            raise UserError(f"no class {index}; this network's classes are 0 to {label_size - 1}")
    return torch.eye(label_size)[list(classes)]


@torch.inference_mode()
def class_averages(G: Any, labels: Tensor, count: int = 4096) -> Tensor:
    """The average w [N, style_size] of each label [N, label_size] of a conditional StyleGAN, over `count` latents.

    Truncation towards the average of all classes (`w_avg`, the official one) draws them together, towards what is none
    of them; towards a class's own it keeps the class: a centre for each mode, as in Mokady et al. 2022, Self-Distilled
    StyleGAN. The latents are always the same.
    """
    if not len(labels):
        return labels.new_empty(0, G.config.style_size)
    kinds, which = labels.unique(dim=0, return_inverse=True)
    z = draw(count, G.config.latent_size).to(labels.device)
    return torch.stack([G.mapping(z, kind.expand(count, -1))[:, 0].mean(0) for kind in kinds])[which]


@dataclass(frozen=True)
class Latents:
    """What N pictures of one network are made from; on the CPU.

    `z` float32 [N, latent_size] is what the mapping takes, `w` float32 [N, num_layers, style_size] what the synthesis
    takes as it is: truncated, mixed or projected already. At least one is there; where w is, it counts. `seeds` and
    `classes` are int64 [N]; a seed is -1 where z is of none. `network` is the `checkpoint.digest` of the network whose
    latents they are, "" where that is not known.
    """

    z: Tensor | None = None
    w: Tensor | None = None
    seeds: Tensor | None = None
    classes: Tensor | None = None
    network: str = ""

    def __post_init__(self) -> None:
        assert self.z is not None or self.w is not None

    def __len__(self) -> int:
        rows = self.z if self.w is None else self.w
        assert rows is not None
        return len(rows)

    def part(self, rows: slice | list[int]) -> "Latents":
        """Some of them."""
        tensors: dict[str, Any] = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value[rows] for name, value in tensors.items()})


_TENSORS = {"z": torch.float32, "w": torch.float32, "seeds": torch.int64, "classes": torch.int64}


def from_seeds(seeds: Sequence[int], size: int, classes: Sequence[int] | None = None, network: str = "") -> Latents:
    """The latents of `size` numbers that seeds stand for, and their classes."""
    kinds = None if classes is None else torch.tensor(classes, dtype=torch.int64)
    return Latents(latents(seeds, size), None, torch.tensor(seeds, dtype=torch.int64), kinds, network)


def styles(
    G: Any, given: Latents, psi: float = 1.0, cutoff: int | None = 8, averages: dict[int, Tensor] | None = None
) -> Tensor:
    """w [N, num_layers, style_size] on G's device, of a StyleGAN: `given.w`, or that of z, truncated.

    `averages`: class -> w [style_size], such as `class_averages`, towards which is truncated instead of w_avg.
    """
    device = G.w_avg.device
    if given.w is not None:
        return given.w.to(device)
    assert given.z is not None
    kinds = [] if given.classes is None else given.classes.tolist()
    labels = None if given.classes is None else one_hot(kinds, G.config.label_size).to(device)
    towards = torch.stack([averages[kind] for kind in kinds]) if averages else None
    return G.truncate(G.mapping(given.z.to(device), labels), psi, cutoff, towards)


def concatenate(parts: Sequence[Latents]) -> Latents:
    """One of several that have the same fields."""
    present = [name for name in _TENSORS if getattr(parts[0], name) is not None]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in present}
    return replace(parts[0], **joined)


def mix(rows: Tensor, columns: Tensor, layers: Sequence[int]) -> Tensor:
    """w [R, L, S] and [C, L, S] -> [R, C, L, S]: each row's styles, with `layers` of each column's."""
    mixed = rows[:, None].repeat(1, len(columns), 1, 1)
    mixed[:, :, list(layers)] = columns[None][:, :, list(layers)]
    return mixed


def save_latents(path: str | Path, given: Latents) -> None:
    """Writes an .npz of the fields that are there, whole or not at all; the same latents give the same bytes."""
    arrays = {name: value.numpy() for name in _TENSORS if (value := getattr(given, name)) is not None}
    if given.network:
        arrays["network"] = np.array(given.network)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_latents(path: str | Path, config: GeneratorConfig, networks: Sequence[str]) -> Latents:
    """The latents of an .npz file, for the network of `config`.

    `networks`: the digests that it may name, this network's first. A w [N, style_size] stands for all layers. Raises
    UserError for what is not such a file or does not fit, OSError.
    """
    if not Path(path).is_file():
        raise NotFoundError(f"there is no file {path}; `stylegen generate --npz` writes latents.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in (*_TENSORS, "network")}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not an .npz of latents, as `stylegen generate --npz` writes it") from error
    network = str(arrays.pop("network", ""))
    found = {name: torch.from_numpy(_checked(path, name, array)) for name, array in arrays.items()}
    if not found.keys() & {"z", "w"}:
        raise UserError(f"{path} holds neither z nor w; give an .npz that `stylegen generate --npz` wrote")
    if network and network not in networks:
        raise UserError(
            f"{path} holds latents of another network, {network}; this one is {networks[0]}: make them with this one"
        )
    layers = 2 * config.levels
    if "w" in found and found["w"].ndim == 2:
        found["w"] = found["w"][:, None].repeat(1, layers, 1)
    count = len(found.get("w", found.get("z", ())))
    if not count:
        raise UserError(f"{path} holds no latents")
    shapes = {"z": (count, config.latent_size), "w": (count, layers, config.style_size)}
    for name, values in found.items():
        wanted = shapes.get(name, (count,))
        if tuple(values.shape) != wanted:
            given, wants = ("x".join(map(str, shape)) for shape in (values.shape, wanted))
            raise UserError(f"{path}: its {name} is {given}; this network takes {wants}")
    if "w" in found and config.family != "stylegan":
        del found["w"]
    if (kinds := found.get("classes")) is not None:
        one_hot(kinds.tolist(), config.label_size)
    return Latents(**found, network=network)


def _checked(path: str | Path, name: str, array: np.ndarray) -> np.ndarray:
    kind = np.float32 if _TENSORS[name].is_floating_point else np.int64
    if not np.can_cast(array.dtype, kind, "same_kind"):
        raise UserError(f"{path}: its {name} must be {np.dtype(kind)}, not {array.dtype}")
    if not np.isfinite(array).all():
        raise UserError(f"{path}: its {name} has values that are not finite; make it again")
    return np.ascontiguousarray(array, kind)
