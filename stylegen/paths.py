"""Paths through latents: functions of time t [n] in [0, 1] that return latents [n, ...], and how time runs on them."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Path = Callable[[Tensor], Tensor]

EASINGS: dict[str, Callable[[Tensor], Tensor]] = {  # of the way between two keys: [0, 1] -> [0, 1]
    "linear": lambda t: t,
    "in-out": lambda t: t * t * (3 - 2 * t),
    "in": lambda t: t * t,
    "out": lambda t: t * (2 - t),
}


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """a, b [..., D], t [...] -> [..., D]: along the great circle from a to b, lengths in between too.

    Shoemake 1985, "Animating rotation with quaternion curves", section 3.3: sin((1 - t) omega) / sin(omega) a + ..., of
    the directions. Where they agree, or are opposite, no great circle is defined: it goes straight.
    """
    lengths = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    a, b = a / lengths[0].clamp_min(1e-12), b / lengths[1].clamp_min(1e-12)
    t = t[..., None].to(a.dtype)
    omega = (a * b).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = omega.sin()
    flat = sine < 1e-4
    sine = sine.masked_fill(flat, 1.0)
    arc = ((1 - t) * omega).sin() / sine * a + (t * omega).sin() / sine * b
    return torch.where(flat, torch.lerp(a, b, t), arc) * torch.lerp(*lengths, t)


def keyed(keys: Tensor, curve: str, *, loop: bool = False, ease: str = "linear") -> Path:
    """The path through keys [K, ...], equal times apart; `loop`: and back to the first.

    curve: "slerp" of the last dimension; "linear"; "cubic", the Catmull-Rom spline (its tangent at a key is half of
    what lies between its neighbours), which passes through every key without a corner. `ease`: one of EASINGS. A path
    of one key stands still.
    """
    count = len(keys)
    segments = count if loop else count - 1

    def key(index: Tensor) -> Tensor:
        return keys[index % count] if loop else keys[index.clamp(0, count - 1)]

    def at(t: Tensor) -> Tensor:
        if not segments:
            return keys.repeat(len(t), *[1] * (keys.ndim - 1))
        place = t.to(torch.float64) * segments
        index = place.floor().long().clamp(max=segments - 1)
        part = EASINGS[ease]((place - index).clamp(0, 1))
        a, b = key(index), key(index + 1)
        if curve == "slerp":
            return slerp(a, b, part.reshape(-1, *[1] * (a.ndim - 2)).expand(a.shape[:-1]))
        part = part.to(keys.dtype).reshape(-1, *[1] * (a.ndim - 1))
        if curve == "linear":
            return torch.lerp(a, b, part)
        assert curve == "cubic"
        tangents = (b - key(index - 1)) / 2, (key(index + 2) - a) / 2
        square, cube = part**2, part**3
        return (
            (2 * cube - 3 * square + 1) * a
            + (cube - 2 * square + part) * tangents[0]
            + (3 * square - 2 * cube) * b
            + (cube - square) * tangents[1]
        )

    return at


def circular_walk(seed: int, size: int, turns: int = 2) -> Path:
    """A closed random walk z [n, size] that never leaves the distribution of latents: each z(t) is N(0, 1).

    The periodic Gaussian process sum_k (a_k cos(2 pi k t) + b_k sin(2 pi k t)) / sqrt(turns), k = 1 to `turns`, with
    a_k and b_k from `seed`; more turns are livelier.
    """
    a, b = torch.from_numpy(np.random.RandomState(seed).randn(2, turns, size))

    def at(t: Tensor) -> Tensor:
        angles = 2 * math.pi * t.to(torch.float64)[:, None] * torch.arange(1, turns + 1)
        return ((angles.cos() @ a + angles.sin() @ b) / math.sqrt(turns)).float()

    return at


def crossover(first: Tensor, second: Tensor) -> Path:
    """w [n, L, S] whose layers turn from `first` [L, S] to `second`, one after another from the finest to the coarsest.

    At t = 0 all are of the first, at t = k / L the finest k of the second.
    """
    layers = torch.arange(len(first), 0, -1, dtype=torch.float64) - 1

    def at(t: Tensor) -> Tensor:
        share = (t.to(torch.float64)[:, None] * len(first) - layers).clamp(0, 1).to(first.dtype)
        return torch.lerp(first[None], second[None], share[:, :, None])

    return at


def there_and_back(path: Path) -> Path:
    """To the end in the first half of the time, back in the second."""
    return lambda t: path(1 - (2 * t.to(torch.float64) - 1).abs())


def frames(count: int, *, closed: bool) -> Tensor:
    """Times t [count] of as many frames: from 0 to 1, or up to one step before 1 where the path is closed."""
    return torch.linspace(0, 1, count + closed, dtype=torch.float64)[:count]


def even(distances: Tensor, t: Tensor) -> Tensor:
    """Times [n] at which a path is travelled at constant speed, for even times t [n].

    `distances` [M] between the pictures at M + 1 even times from 0 to 1, in any measure; where the whole path does not
    change, time stays as it is. The arc length is linear between them.
    """
    if not distances.sum() > 0:
        return t
    lengths = np.concatenate([[0.0], np.cumsum(distances.double().numpy())])
    # A stretch without change has no time of its own: any slope above 0 keeps the inverse a function.
    lengths += np.linspace(0, 1e-9 * lengths[-1], len(lengths))
    return torch.from_numpy(np.interp(t.numpy() * lengths[-1], lengths, np.linspace(0, 1, len(lengths))))
