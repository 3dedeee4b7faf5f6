"""Perceptual path length: how far a picture moves for a small step of its latent (Karras et al. 2019, section 4.1)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylegen.errors import UserError
from stylegen.latents import latents

from .evaluate import Source, seeds_of
from .features import Features

EPSILON = 1e-4
LARGEST = 256  # pictures are reduced to this height before they are compared
KINDS = ("z-full", "z-end", "w-full", "w-end")


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of the directions of float64 [N, D], t [N, 1], at the radius sqrt(D).

    A latent of D normal numbers lies about that far from 0.
    """
    a, b = F.normalize(a), F.normalize(b)
    cosine = (a * b).sum(1, keepdim=True)
    angle = t * torch.acos(cosine.clamp(-1, 1))
    across = F.normalize(b - cosine * a)
    return (a * angle.cos() + across * angle.sin()) * a.shape[1] ** 0.5


def center(images: Tensor) -> Tensor:
    """The part of an aligned portrait [N, C, H, W] that holds the face: the paper's crop, in eighths of the height."""
    eighth = images.shape[2] // 8
    return images[:, :, 3 * eighth : 7 * eighth, 2 * eighth : 6 * eighth]


def reduce(images: Tensor) -> Tensor:
    """Pictures above LARGEST, by a whole factor, as averages of boxes."""
    factor = images.shape[2] // LARGEST
    return F.avg_pool2d(images, factor) if factor > 1 else images


def path_lengths(
    source: Source, features: Features, kind: str, pairs: int, batch: int, *, crop: bool = False
) -> Iterator[Tensor]:
    """d(G(t), G(t + epsilon)) / epsilon^2 of `pairs` random paths, `batch` at a time, float64 [n].

    kind: "z-" along great circles between latents, "w-" along straight lines between styles; "full": t uniform in 0..1,
    "end": t = 0. Labels and noise are the same at both places. Raises UserError.
    """
    space, _, where = kind.partition("-")
    assert kind in KINDS
    if space == "w" and source.G.config.family != "stylegan":
        raise UserError(f"{kind} needs styles, which a {source.G.config.family} network has not; ask for z-{where}")
    seeds = seeds_of(source.seed, 2 * pairs)
    places = np.random.RandomState(source.seed).rand(pairs) * (where == "full")
    for start in range(0, pairs, batch):
        chosen = seeds[2 * start : 2 * min(start + batch, pairs)]
        ends = latents(chosen, source.G.config.latent_size).double()
        t = torch.from_numpy(places[start : start + batch])[:, None]
        labels = source.labels_of(start, len(t))
        with torch.inference_mode():
            steps = _points(source, space, ends[0::2], ends[1::2], t, labels)
            a, b = (_picture(source, space, x, labels, start, crop) for x in steps)
            yield features.distance(a, b).double() / EPSILON**2


def _points(
    source: Source, space: str, a: Tensor, b: Tensor, t: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The latents (z [n, latent_size] or w [n, layers, style_size]) at t and t + epsilon."""
    if space == "z":
        return slerp(a, b, t), slerp(a, b, t + EPSILON)
    start, end = (source.G.mapping(z.float().to(source.device), labels).cpu().double() for z in (a, b))
    t = t[:, :, None]
    return torch.lerp(start, end, t), torch.lerp(start, end, t + EPSILON)


def _picture(source: Source, space: str, x: Tensor, labels: Tensor | None, start: int, crop: bool) -> Tensor:
    """Pictures of latents, float [n, C, H, W] in about 0..255, neither rounded nor clamped."""
    settings: dict[str, Any] = source.stage | source.noise(start)
    x = x.float().to(source.device)
    images = source.G(x, labels, **settings) if space == "z" else source.G.synthesis(x, **settings)
    images = (images.float() + 1) * 127.5
    return reduce(center(images) if crop else images)
