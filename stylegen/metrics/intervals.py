"""Confidence intervals of the distances: how far each would move with other fakes.

What they cover: the value expected of the measure at the number M of fakes given and against these very reals, when
the fakes are drawn anew. The reals count as fixed, because they are the data set; they are not a sample of anything
that another measurement would draw again. So the bias of FID, about the same for two networks at equal N and M, is in
the figure and in its interval alike, and two networks whose intervals do not meet differ by more than the luck of the
fakes. Fakes must be independent draws: mirrored copies are not. The intervals are approximate, for M of some hundreds
and more.

None measures resampled pictures again: a repeated picture has a neighbour at distance 0, and in 1280 dimensions each
FID takes its time. Variances come from a measure's expansion over the fakes (Hoeffding 1948), or from halves of them.
Near 0, KID is skewed and the less certain the larger it is, and its interval is found accordingly.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from .distances import (
    BLOCK,
    Gaussian,
    Neighbours,
    both,
    check_sizes,
    covered,
    cubic,
    frechet,
    gaussian,
    kid,
    paired_distances,
    recalled,
    rows,
)

LEVEL = 0.9
SPLITS = 100  # random halvings for recall and coverage: their spread is then known to about 7%


class Interval(NamedTuple):
    """A value and the two ends of its interval, low <= value <= high."""

    value: float
    low: float
    high: float


def quantile(level: float) -> float:
    """How many standard deviations either side hold a share `level` of a normal distribution. Raises UserError."""
    if not 0 < level < 1:
        raise UserError(f"level {level}; an interval's level lies between 0 and 1, such as 0.9")
    return NormalDist().inv_cdf((1 + level) / 2)


def normal(value: float, variance: float, level: float, least: float = 0.0) -> Interval:
    """value +- quantile * deviation, no lower than `least`."""
    reach = quantile(level) * max(variance, 0.0) ** 0.5
    return Interval(value, max(value - reach, least), value + reach)


def skewed(value: float, variance: float, slope: float, third: float, level: float) -> Interval:
    """The truths for which value would be neither too high nor too low, where the measure's distribution is skewed.

    variance and third, its second and third cumulants, are those for a truth at value; the variance grows by slope with
    the truth and the third cumulant by 3/2 slope^2, as a noncentral chi-square's do. Quantiles are those of the gamma
    distribution with these cumulants, whose cube root is about normal (Wilson and Hilferty 1931). Raises UserError.
    """
    z = quantile(level)
    if min(variance, slope) <= 0:
        return normal(value, variance, level, least=-float("inf"))

    def excess(shift: float, z: float) -> float:
        """How far the quantile of normal deviate z lies above value, for a truth at value + shift."""
        spread = max(variance + slope * shift, 0.0) ** 0.5
        skew = max(third + 1.5 * slope**2 * shift, 0.0) / spread**3 if spread else 0.0
        if skew < 1e-6:
            return shift + z * spread
        return shift + 2 / skew * (max(1 + skew * z / 6 - skew**2 / 36, 0.0) ** 3 - 1) * spread

    ends = []
    for sign, below, above in ((1, -variance / slope, 0.0), (-1, 0.0, z * variance**0.5 + z * z * slope)):
        for _ in range(100):
            middle = (below + above) / 2
            below, above = (middle, above) if excess(middle, sign * z) < 0 else (below, middle)
        ends.append(value + above)
    return Interval(value, *ends)


def fid_variance(p: Gaussian, q: Gaussian, fakes: Tensor, seed: int = 0) -> float:
    """The variance over draws of M fakes [M, D], of moments q, of their FID from p.

    With A = S_p^(1/2) (S_p^(1/2) S_q S_p^(1/2))^(-1/2) S_p^(1/2), the optimal map from q to p, a fake at c from their
    mean moves FID by 1/M of 2 (m_q - m_p).c + |c|^2 - c^T A c, the first derivative. The variance of these over M is
    right to first order but counts twice the part V of second order (Efron and Stein 1981), and in good networks little
    else is left; so V = 2 E h(c, d)^2 / M^2 is taken off, h being the mixed second derivative for two fakes. In the
    eigenvectors of S_p^(1/2) S_q S_p^(1/2), of eigenvalues s^2, where the fakes are at y and z, h = sum_a y_a z_a / s_a
    + 1/2 sum_ab (y_a z_a y_b z_b - (y_a^2 + z_a^2 - s_a^2) s_a^2 [a = b]) / (s_a s_b (s_a + s_b)): derivatives of a
    trace of roots by divided differences (Bhatia 1997, section V.3).
    """
    left, s, _ = torch.linalg.svd(p.factor.T @ q.factor, full_matrices=False)
    kept = s > s[:1] * 1e-7
    s = s[kept]
    turn = p.factor @ left[:, kept]
    parts, coordinates = [], []
    for block in fakes.split(BLOCK):
        c = block.double() - q.mean
        z = c @ turn
        coordinates.append(z)
        parts.append(2 * c @ (q.mean - p.mean) + c.square().sum(1) - (z.square() / s).sum(1))
    first = float(torch.cat(parts).var()) / len(fakes)
    order = torch.randperm(len(fakes), generator=torch.Generator().manual_seed(seed)).to(fakes.device)
    z = torch.cat(coordinates)
    weights = 1 / (s[:, None] * s * (s[:, None] + s))
    squares = []
    for one, other in zip(order.split(BLOCK), order.roll(1).split(BLOCK), strict=True):
        y, x = z[one], z[other]
        product = y * x
        curved = (product @ weights * product).sum(1) - (y.square() + x.square() - s.square()) @ (0.5 / s)
        squares.append(((product / s).sum(1) + curved / 2).square())
    second = 2 * float(torch.cat(squares).mean()) / len(fakes) ** 2
    return max(first - second, first / 2)


def fid_interval(real: Any, fake: Any, *, level: float = LEVEL, seed: int = 0) -> Interval:
    """FID of [N, D] (or its Gaussian) and [M, D], and its interval. Too wide by up to a third when M < D.

    `seed` chooses the pairs of fakes that estimate the part of second order. Raises UserError.
    """
    p = real if isinstance(real, Gaussian) else gaussian(real, "real")
    fakes = rows(fake, "fake").to(p.mean.device)
    check_sizes(len(p.mean), fakes.shape[1])
    q = gaussian(fakes, "fake")
    return normal(frechet(p, q), fid_variance(p, q, fakes, seed), level)


def pairs_variance(by_member: float, by_pair: float, partners: int, count: int) -> float:
    """The variance of a mean over pairs of `count` members, each in `partners` of the pairs (Hoeffding 1948).

    by_member, by_pair: the sample variances of the members' own means and of the pairs. A pair is the sum of a part of
    each member, of variance v, and one of the two together; members' means hold v and a share of the pairs' variance.
    """
    share = by_pair / partners
    v = max((by_member - share) / (1 - 1 / partners), 0.0) if partners > 1 else 0.0
    return 4 * v / count + 2 * max(by_pair - 2 * v, 0.0) / (count * partners)


def kid_interval(
    real: Any,
    fake: Any,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
    found: tuple[float, float] | None = None,
) -> Interval:
    """The mean of distances.kid and its interval, which holds the luck of choosing subsets too.

    `found` is what distances.kid returned for the same arguments, where that is known. Raises UserError.
    """
    x, y = both(real, fake, at_least=3)
    mean, deviation = found or kid(x, y, subsets=subsets, subset_size=subset_size, seed=seed)
    variance, slope, third = mmd_moments(x, y)
    return skewed(mean, variance + deviation**2 / max(subsets - 1, 1), slope, third, level)


def mmd_moments(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Variance, its slope and third cumulant of the unbiased squared MMD of fakes y [M, D] to reals x [N, D].

    Over draws of M fakes. To fixed reals it is a mean over pairs of fakes of k(y, y') - g(y) - g(y') plus a constant,
    g(y) being y's mean kernel to the reals (Gretton et al. 2012, equation 3).
    """
    g = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for block in x.split(BLOCK):
        g += torch.cat([cubic(part.double(), block.double()).sum(1) for part in y.split(BLOCK)]) / len(x)
    others, middle, squares = torch.zeros_like(g), g.mean() / 2, 0.0
    for first in range(0, len(y), BLOCK):
        at = slice(first, first + BLOCK)
        for start in range(first, len(y), BLOCK):  # the rest is the same, mirrored
            to = slice(start, start + BLOCK)
            h = cubic(y[at].double(), y[to].double()) - (g[at, None] - middle) - (g[to] - middle)
            if first == start:
                h.fill_diagonal_(0)
            else:
                others[to] += h.sum(0)
            others[at] += h.sum(1)
            squares += float(h.square().sum()) * (1 if first == start else 2)
    pairs = len(y) * (len(y) - 1)
    by_pair = squares / pairs - (float(others.sum()) / pairs) ** 2
    own = others / (len(y) - 1)
    variance = pairs_variance(float(own.var()), by_pair, len(y) - 1, len(y))
    some = slice(None, None, -(-len(y) // BLOCK))
    part, centre = y[some].double(), (own + g - middle - own.mean() / 2)[some]
    centred = (cubic(part, part) - centre[:, None] - centre).fill_diagonal_(0)
    return variance, *mmd_skew(centred, (own - own.mean())[some], variance, len(y))


def mmd_skew(centred: Tensor, own: Tensor, variance: float, count: int) -> tuple[float, float]:
    """The slope of the variance in the truth, and the third cumulant, of the squared MMD of `count` fakes.

    centred [n, n], diagonal 0: the centred kernel of n of them; own [n]: the centred means of their pairs. The MMD is
    about |d + e|^2 - E |e|^2, d being the difference of the mean embeddings and e normal, of covariance C / M: chi-
    squares weighted by the eigenvalues of C (Gretton et al. 2012, theorem 12). Of that come the variance, 4 d'Cd / M +
    2 tr C^2 / M^2, and the third cumulant, 24 d'C^2 d / M^2 + 8 tr C^3 / M^3. The slope is the regression of the first
    on the MMD, d + e being put for d in both: the third cumulant's terms, the first of them at 2/3, over the variance.
    d'C^2 d / d'Cd, a mean of eigenvalues, is taken for at most another, tr C^3 / tr C^2, which holds for all but the
    steepest directions: in heavy tails a single fake may decide its estimate.
    """
    n = len(own)
    square = centred @ centred
    pairs = float(square.trace()) / (n * (n - 1))
    triples = max(float((square * centred).sum()) / (n * (n - 1) * (n - 2)), 0.0)
    if min(variance, pairs, triples) <= 0:
        return 0.0, 0.0
    through = float(own @ centred @ own) / (n * (n - 1)) - triples / count  # own holds e too
    most = (variance * count / 2 - pairs / count) / 2 * triples / pairs
    mixed, rest = 24 * max(min(through, most), 0.0) / count**2, 8 * triples / count**3
    return (mixed * 2 / 3 + rest) / variance, mixed + rest


def diversity_interval(features: Any, *, pairs: int = 50_000, level: float = LEVEL, seed: int = 0) -> Interval:
    """distances.diversity of [N, D], N >= 3, and its interval. Raises UserError."""
    x = rows(features, "given", 3)
    distances, sums = paired_distances(x, pairs, seed)
    partners = 2 * len(distances) // len(x)
    by_member = float((sums / partners).var())
    variance = pairs_variance(by_member, float(distances.var()), partners, len(x))
    return normal(float(distances.mean()), variance, level)


def share(hits: Tensor, level: float, variance: float | None = None) -> Interval:
    """The share of hits, bool [N], and Wilson's interval (Wilson 1927).

    Hits that depend on each other have a variance of their own, and count as so many independent ones as would have it.
    """
    n, p, z = float(len(hits)), float(hits.double().mean()), quantile(level)
    if variance is not None and 0 < p < 1:
        n = p * (1 - p) / max(variance, 1 / n**2)  # a deviation of at least one hit
    centre, reach = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((centre + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
    return Interval(p, min(max(low, 0.0), p), max(min(high, 1.0), p))


def nearest_within(distances: Tensor, at: Tensor, chosen: Tensor, k: int) -> Tensor:
    """The k-th smallest listed distance [N] to a chosen row, bool [M]; lists too short for k give their largest."""
    counts = chosen[at].cumsum(1)
    column = (counts < k).sum(1).clamp(max=distances.shape[1] - 1)
    return distances.gather(1, column[:, None])[:, 0]


def halves_variance(near: Neighbours, seed: int) -> tuple[float, float]:
    """The variances of recall and coverage over draws of M fakes, N reals given.

    Both are means of what happens around single reals, and depend on how many fakes there are to a real. So a random
    half of the reals is compared with either half of the fakes: the ratio stays, and half the squared difference
    estimates the variance for half as many of both, which is twice that for all. The mean of SPLITS such splits.
    """
    generator = torch.Generator().manual_seed(seed)
    device = near.real.device

    def half(count: int) -> Tensor:
        chosen = torch.zeros(count, dtype=torch.bool)
        chosen[torch.randperm(count, generator=generator)[: count // 2]] = True
        return chosen.to(device)

    differences = []
    for _ in range(SPLITS):
        reals, fakes = half(len(near.real)), half(len(near.fake))
        own = nearest_within(near.real[reals], near.real_at[reals], reals, near.k[1]) + near.slack
        found = []
        for side in (fakes, ~fakes):
            radius = nearest_within(near.fake, near.fake_at, side, near.k[0]) + near.slack
            at = near.likely_at[reals]
            recall = ((near.likely[reals] <= radius[at]) & side[at]).any(1).double().mean()
            hit = side[near.nearest_at[reals]] & (near.nearest[reals] <= own[:, None])
            found.append(torch.stack([recall, hit.any(1).double().mean()]))
        differences.append((found[0] - found[1]).square() / 2)
    recall, coverage = (torch.stack(differences).mean(0) / 2).tolist()
    return recall, coverage


def manifold_intervals(near: Neighbours, *, level: float = LEVEL, seed: int = 0) -> dict[str, Interval]:
    """precision, recall, density, coverage and their intervals, from distances.neighbours; `seed` chooses halves.

    Against fixed reals precision and density are means of independent terms, a fake each; recall and coverage are not.
    """
    recall, coverage = halves_variance(near, seed)
    return {
        "precision": share(near.inside, level),
        "recall": share(recalled(near), level, recall),
        "density": normal(float(near.density.mean()), float(near.density.var()) / len(near.density), level),
        "coverage": share(covered(near), level, coverage),
    }


def interval(
    statistic: Callable[[Tensor], Any], sample: Any, *, level: float = LEVEL, seed: int = 0, resamples: int = 1000
) -> tuple[float, float]:
    """The ends of the percentile bootstrap (Efron 1979) of statistic(rows), for smooth statistics of independent rows.

    sample [N, ...], N >= 2; statistic takes as many rows, drawn with replacement, and returns a number. For means,
    trimmed means and the like, such as path lengths; distances have functions of their own here. Raises UserError.
    """
    quantile(level)
    x = torch.as_tensor(sample)
    if x.ndim == 0 or len(x) < 2 or resamples < 1:
        raise UserError(f"{x.numel()} values, {resamples} resamples; a bootstrap needs at least 2 and 1")
    generator = torch.Generator().manual_seed(seed)
    values = [
        float(statistic(x[torch.randint(len(x), (len(x),), generator=generator).to(x.device)]))
        for _ in range(resamples)
    ]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.tensor(values, dtype=torch.float64).quantile(ends).tolist()
    return low, high
