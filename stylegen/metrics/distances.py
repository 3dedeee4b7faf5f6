"""Distances between two sets of features: FID, KID, precision and recall, density and coverage, diversity.

Features are tensors or arrays [N, D], a row a picture, computed with in float64 on the device they are on (a device
without float64 hands them to the CPU). Everything goes by blocks, so that memory grows with N * D, never with N * N,
and everything random is drawn from a seed: the same call returns the same number. Sets that do not fit together raise
UserError.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

BLOCK = 1024  # rows at a time
LISTED = 32  # neighbours that Neighbours keeps: a random half of them still holds the k nearest of a half
MAX_K = 10  # ... as long as k is well below LISTED / 2


def rows(features: Any, what: str, at_least: int = 2) -> Tensor:
    """[N, D] as a tensor of its own type on a device that has float64. Raises UserError."""
    x = torch.as_tensor(features).detach()
    if x.ndim != 2 or x.shape[1] == 0:
        raise UserError(f"{what} features of shape {tuple(x.shape)}; give [N, D], a row a picture")
    if len(x) < at_least:
        raise UserError(f"{len(x)} {what} features; this measure needs at least {at_least} pictures")
    if x.is_complex() or not all(bool(block.isfinite().all()) for block in x.split(BLOCK)):
        raise UserError(f"{what} features with values that are not finite numbers; look at the pictures or the network")
    return x.cpu() if x.device.type == "mps" else x


def check_sizes(real: int, fake: int) -> None:
    """Raises UserError for features of different lengths."""
    if real != fake:
        raise UserError(f"real features have {real} dimensions and fake ones {fake}; use one feature network")


def both(real: Any, fake: Any, at_least: int = 2) -> tuple[Tensor, Tensor]:
    """Two sets of one dimension on the device of the first. Raises UserError."""
    x, y = rows(real, "real", at_least), rows(fake, "fake", at_least)
    check_sizes(x.shape[1], y.shape[1])
    return x, y.to(x.device)


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution fitted to features: mean [D], factor [D, R] with factor @ factor.T the covariance, count.

    R <= D, and R <= count below D samples, so that neither singular covariances nor many dimensions are a special case.
    """

    mean: Tensor
    factor: Tensor
    count: int


def gaussian(features: Any, what: str = "given") -> Gaussian:
    """The mean and the unbiased covariance (divided by N - 1) of features [N, D], N >= 2. Raises UserError."""
    x = rows(features, what)
    mean = torch.stack([block.double().sum(0) for block in x.split(BLOCK)]).sum(0) / len(x)
    if len(x) <= x.shape[1]:
        return Gaussian(mean, (x.double() - mean).T / (len(x) - 1) ** 0.5, len(x))
    covariance = mean.new_zeros(len(mean), len(mean))
    for block in x.split(4 * BLOCK):
        centred = block.double() - mean
        covariance.addmm_(centred.T, centred)
    values, vectors = torch.linalg.eigh(covariance / (len(x) - 1))
    # What rounding alone leaves of a zero; its root would be no longer small.
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return Gaussian(mean, vectors[:, kept] * values[kept].sqrt(), len(x))


def frechet(p: Gaussian, q: Gaussian) -> float:
    """The squared Frechet distance of two normal distributions (Dowson and Landau 1982), >= 0.

    |m_p - m_q|^2 + tr(S_p + S_q - 2 (S_p S_q)^(1/2)). With S = L L^T the last trace is the nuclear norm of L_p^T L_q,
    which needs no root of a matrix and loses no digits where a covariance is singular.
    """
    roots = torch.linalg.svdvals(p.factor.T @ q.factor).sum()
    distance = (p.mean - q.mean).square().sum() + p.factor.square().sum() + q.factor.square().sum() - 2 * roots
    return max(float(distance), 0.0)


def fid(real: Any, fake: Any) -> float:
    """The Frechet inception distance (Heusel et al. 2017, equation 6) of [N, D] and [M, D], 0 for equal moments.

    Either may be a Gaussian, of features measured before. It is biased upwards by about 1/N + 1/M times a constant of
    the two distributions (Binkowski et al. 2018, section 4): compare only at equal N and M. Raises UserError.
    """
    p = real if isinstance(real, Gaussian) else gaussian(real, "real")
    q = fake if isinstance(fake, Gaussian) else gaussian(fake, "fake")
    check_sizes(len(p.mean), len(q.mean))
    return frechet(p, Gaussian(q.mean.to(p.mean), q.factor.to(p.mean), q.count))


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """The kernel of KID (Binkowski et al. 2018, section 4): (x.y / D + 1)^3 of float64 [N, D] and [M, D] -> [N, M]."""
    return (x @ y.T / x.shape[1] + 1).pow(3)


def kid(real: Any, fake: Any, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The kernel inception distance of [N, D] and [M, D]: mean and standard deviation over random subsets of both.

    Each is the unbiased squared MMD (Gretton et al. 2012, equation 3) under the cubic kernel, so the mean is about 0,
    possibly below, for equal distributions. Subsets are no larger than the smaller set. The deviation is that of a
    single subset, not the error of the mean: for that see intervals. Raises UserError.
    """
    x, y = both(real, fake)
    size = min(subset_size, len(x), len(y))
    if subsets < 1 or size < 2:
        raise UserError(f"{subsets} subsets of {subset_size}; KID needs at least 1 subset of 2 pictures")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        a, b = (z[torch.randperm(len(z), generator=generator)[:size].to(z.device)].double() for z in (x, y))
        within = [kernel.sum() - kernel.trace() for kernel in (cubic(a, a), cubic(b, b))]
        values.append(sum(within) / (size * (size - 1)) - 2 * cubic(a, b).mean())
    found = torch.stack([torch.as_tensor(value) for value in values])
    return float(found.mean()), float(found.std(correction=0))


@dataclass(frozen=True)
class Neighbours:
    """Who is near whom among N reals and M fakes. Distances are squared, ascending; `at` names the neighbour's row.

    - real, real_at [N, L]: the nearest other reals; fake, fake_at [M, L]: the nearest other fakes.
    - nearest, nearest_at [N, L]: the fakes nearest to each real.
    - likely, likely_at [N, L]: the fakes whose balls are the likeliest to hold it (smallest distance / radius, k[0]).
    - inside bool [M]: the fake lies in some real's ball (k[0]); density [M]: how many it lies in (k[1]), over k[1].
    - slack: what rounding may add to a squared distance. A ball holds its surface: distance <= radius + slack.
    """

    real: Tensor
    real_at: Tensor
    fake: Tensor
    fake_at: Tensor
    nearest: Tensor
    nearest_at: Tensor
    likely: Tensor
    likely_at: Tensor
    inside: Tensor
    density: Tensor
    slack: float
    k: tuple[int, int]


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, squared distances [<= BLOCK, M]) of float64 [N, D] and [M, D], by blocks of x."""
    lengths = y.square().sum(1)
    for i, block in enumerate(x.split(BLOCK)):
        distances = torch.addmm(lengths, block, y.T, alpha=-2)
        yield i * BLOCK, distances.add_(block.square().sum(1, keepdim=True)).clamp_(min=0)


def nearest_others(x: Tensor, listed: int) -> tuple[Tensor, Tensor]:
    """Squared distances and rows [N, listed] of each row's nearest other rows, ascending."""
    found = []
    for first, distances in squared_distances(x, x):
        distances.diagonal(first).fill_(torch.inf)
        found.append(distances.topk(listed, largest=False))
    return torch.cat([values for values, _ in found]), torch.cat([at for _, at in found])


def neighbours(real: Any, fake: Any, k: tuple[int, int] = (3, 5)) -> Neighbours:
    """What precision_recall (k[0]) and density_coverage (k[1]) both need, and their intervals: three passes, once.

    real [N, D], fake [M, D] with more rows than k. Raises UserError.
    """
    if not all(1 <= value <= MAX_K for value in k):
        raise UserError(f"k = {min(k) if min(k) < 1 else max(k)}; the nearest neighbours that count are 1 to {MAX_K}")
    x, y = both(real, fake, at_least=max(k) + 1)
    x, y = x.double(), y.double()
    centre = x.mean(0)
    x, y = x - centre, y - centre
    slack = 1e-12 * float(torch.maximum(x.square().sum(1).max(), y.square().sum(1).max()))
    reals, reals_at = nearest_others(x, min(LISTED, len(x) - 1))
    fakes, fakes_at = nearest_others(y, min(LISTED, len(y) - 1))
    small, large = (reals[:, value - 1 : value] + slack for value in k)
    radius = fakes[:, k[0] - 1] + slack
    inside, density = torch.zeros(len(y), dtype=torch.bool, device=y.device), y.new_zeros(len(y))
    lists = []
    for first, distances in squared_distances(x, y):
        block = slice(first, first + len(distances))
        inside |= (distances <= small[block]).any(0)
        density += (distances <= large[block]).sum(0)
        nearest = distances.topk(min(LISTED, len(y)), largest=False)
        likely = (distances / radius.clamp(min=1e-300)).topk(min(LISTED, len(y)), largest=False).indices
        lists.append((*nearest, distances.gather(1, likely), likely))
    near, near_at, likely, likely_at = (torch.cat(parts) for parts in zip(*lists, strict=True))
    return Neighbours(
        reals, reals_at, fakes, fakes_at, near, near_at, likely, likely_at, inside, density / k[1], slack, k
    )


def recalled(near: Neighbours) -> Tensor:
    """bool [N]: the real lies in some fake's ball."""
    return (near.likely <= near.fake[:, near.k[0] - 1][near.likely_at] + near.slack).any(1)


def covered(near: Neighbours) -> Tensor:
    """bool [N]: some fake lies in the real's ball."""
    return near.nearest[:, 0] <= near.real[:, near.k[1] - 1] + near.slack


def precision_recall(real: Any, fake: Any, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, equations 1 and 2) of [N, D] and [M, D], each 0 to 1.

    The share of fakes within the reals' manifold and of reals within the fakes': the union of the balls around a set's
    members that reach to their k-th nearest others. Raises UserError.
    """
    near = neighbours(real, fake, (k, k))
    return float(near.inside.double().mean()), float(recalled(near).double().mean())


def density_coverage(real: Any, fake: Any, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, section 3) of [N, D] and [M, D].

    Density, >= 0 and about 1 for equal distributions: the reals' balls a fake lies in, over k. Coverage, 0 to 1: the
    share of reals whose ball holds a fake; about 1 - 2^-k for equal distributions and N = M. Raises UserError.
    """
    near = neighbours(real, fake, (k, k))
    return float(near.density.mean()), float(covered(near).double().mean())


def paired_distances(x: Tensor, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Distances of a balanced choice of pairs, and their sum by member: [rounds * N] and [N].

    Members stand in a circle in random order; round s = 1, 2, ... pairs each with the one s further on, never twice.
    """
    rounds = max(1, min(-(-pairs // len(x)), (len(x) - 1) // 2))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    found, sums = [], x.new_zeros(len(x), dtype=torch.float64)
    for shift in range(1, rounds + 1):
        pair = zip(order.split(BLOCK), order.roll(-shift).split(BLOCK), strict=True)
        distances = torch.cat([(x[a].double() - x[b].double()).norm(dim=1) for a, b in pair])
        sums = sums + distances + distances.roll(shift)
        found.append(distances)
    return torch.cat(found), sums


def diversity(features: Any, *, pairs: int = 50_000, seed: int = 0) -> float:
    """The mean Euclidean distance of two different rows of features [N, D], N >= 3.

    It is over `pairs` random pairs, rounded up to a multiple of N so that each row has its share, no pair twice.
    Raises UserError.
    """
    if pairs < 1:
        raise UserError(f"{pairs} pairs; diversity needs at least 1")
    return float(paired_distances(rows(features, "given", 3), pairs, seed)[0].mean())
