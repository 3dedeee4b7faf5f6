"""Seeds, latents and labels: what a number means here is what it means in the official tools."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

MAX_SEED = 2**32 - 1
MAX_SEEDS = 1_000_000


def parse_seeds(text: str) -> list[int]:
    """ "0-7,42" -> [0, 1, ..., 7, 42]: numbers and ranges up to 2^32 - 1, each seed once, in the order given.

    Raises UserError.
    """
    seeds: dict[int, None] = {}  # a set that keeps the order
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part, re.ASCII)
        if not match:
            raise UserError(f"seeds {text!r}: {part.strip()!r} is not a number or a range; write them as 0-7,42")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"seeds {text!r}: the range {first}-{last} runs backwards; write {last}-{first}")
        if last > MAX_SEED:
            raise UserError(f"seeds {text!r}: {last} is too large; seeds are 0 to {MAX_SEED}")
        if last - first + len(seeds) >= MAX_SEEDS:
            raise UserError(f"seeds {text!r}: these are more than {MAX_SEEDS:,}; ask for fewer at a time")
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def latents(seeds: Sequence[int], size: int) -> Tensor:
    """z float32 [N, size]: row i is `RandomState(seeds[i]).randn(1, size)`, as the official tools draw it."""
    rows = [np.random.RandomState(seed).randn(1, size) for seed in seeds]
    return torch.from_numpy(np.concatenate([np.empty((0, size)), *rows]).astype(np.float32))


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
    z = torch.from_numpy(np.random.RandomState(0).randn(count, G.config.latent_size).astype(np.float32))
    z = z.to(labels.device)
    return torch.stack([G.mapping(z, kind.expand(count, -1))[:, 0].mean(0) for kind in kinds])[which]
