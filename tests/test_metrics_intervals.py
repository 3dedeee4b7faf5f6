"""Intervals of the distances: they hold the truth as often as they say, and agree with formulas where there are any."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stylegen.errors import UserError
from stylegen.metrics import intervals
from stylegen.metrics.distances import diversity, fid, gaussian, kid, neighbours, precision_recall
from stylegen.metrics.intervals import Interval

Z = 1.6448536269514722


def normal(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def every(real: Tensor, fake: Tensor, seed: int) -> dict[str, Interval]:
    return {
        "fid": intervals.fid_interval(real, fake, seed=seed),
        "kid": intervals.kid_interval(real, fake, subsets=25, subset_size=50, seed=seed),
        **intervals.manifold_intervals(neighbours(real, fake), seed=seed),
        "diversity": intervals.diversity_interval(fake, pairs=3 * len(fake), seed=seed),
    }


def test_intervals_hold_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes drawn anew against fixed reals: 90% intervals hold the mean of the values 85% to 95% of the time."""
    monkeypatch.setattr(intervals, "SPLITS", 50)
    size, repeats = 8, 150
    spectrum = torch.arange(1, size + 1, dtype=torch.float64).rsqrt()
    real = normal(200, size) * spectrum
    held: dict[str, list[bool]] = {}
    for shift, scale in (
        (0.0, 1.0),
        (0.3, 0.9),
    ):  # equal distributions, where FID and KID are all of second order; unequal
        found = [every(real, (normal(200, size, 100 + i) * scale + shift) * spectrum, i) for i in range(repeats)]
        for name in found[0]:
            truth = sum(result[name].value for result in found) / repeats
            held.setdefault(name, []).extend(result[name].low <= truth <= result[name].high for result in found)
    shares = {name: sum(hits) / len(hits) for name, hits in held.items()}
    assert all(0.85 <= value <= 0.95 for value in shares.values()), shares


def test_kid_near_zero() -> None:
    """Where one dimension decides, and there the reals are off by 0 to 3 deviations of a mean of so many fakes."""
    count, size, repeats = 200, 16, 200
    spectrum = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    shares = []
    for off in range(4):
        real = normal(count, size) * spectrum
        real -= real.mean(0)
        real[:, 0] += off / count**0.5
        found = [intervals.kid_interval(real, normal(count, size, 9 + i) * spectrum, subsets=1) for i in range(repeats)]
        truth = sum(result.value for result in found) / repeats
        shares.append(sum(result.low <= truth <= result.high for result in found) / repeats)
    assert all(0.85 <= share <= 0.96 for share in shares), shares  # the lower end alone misses, with 5%, close to 0


def test_values_are_those_of_the_distances() -> None:
    real, fake = normal(200, 6, 1), normal(150, 6, 2) * 1.2
    found = every(real, fake, 3)
    assert found["fid"].value == fid(real, fake) == intervals.fid_interval(gaussian(real), fake).value
    values = kid(real, fake, subsets=25, subset_size=50, seed=3)
    assert found["kid"].value == values[0]
    assert intervals.kid_interval(real, fake, subsets=25, found=values) == found["kid"]
    assert (found["precision"].value, found["recall"].value) == precision_recall(real, fake)
    assert found["diversity"].value == diversity(fake, pairs=450, seed=3)
    assert all(result.low < result.value < result.high for result in found.values())
    assert every(real, fake, 3) == found
    wider = intervals.fid_interval(real, fake, level=0.99)
    assert wider.low < found["fid"].low and found["fid"].high < wider.high


def test_fid_of_a_line() -> None:
    """In one dimension FID is (m - n)^2 + (s - t)^2; its variance at large M (4 (m - n)^2 + 2 (s - t)^2) s^2 / M."""
    real, fake = normal(5000, 1, 1), 2 * normal(5000, 1, 2) + 3
    m, s = float(fake.mean() - real.mean()), float(fake.std())
    variance = (4 * m**2 + 2 * (s - float(real.std())) ** 2) * s**2 / 5000
    assert intervals.fid_variance(gaussian(real), gaussian(fake), fake) == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize("count", [10, 60])
def test_fid_of_few_or_flat_fakes(count: int) -> None:
    """Fewer fakes than dimensions, or dimensions in which nothing moves, still have an interval."""
    real, fake = normal(100, 40, 1), normal(count, 40, 2)
    fake[:, :15] = 0
    value, low, high = intervals.fid_interval(real, fake)
    assert low < value < high and math.isfinite(high)
    assert intervals.fid_interval(real, real[:1].repeat(9, 1))[1:] == pytest.approx(
        [fid(real, real[:1].repeat(9, 1))] * 2
    )


def test_mmd_is_the_jackknifes() -> None:
    """Where the first order dominates, leaving out one fake at a time says the same."""
    real, fake = normal(200, 3, 1), normal(150, 3, 2) * 0.7 + 2
    values = []
    for i in range(150):
        rest = torch.cat([fake[:i], fake[i + 1 :]])
        parts = [(a @ b.T / 3 + 1) ** 3 for a, b in ((rest, rest), (rest, real))]
        values.append((parts[0].sum() - parts[0].trace()) / (149 * 148) - 2 * parts[1].mean())
    jackknife = float(torch.stack(values).var(correction=0)) * 149
    assert intervals.mmd_moments(real, fake)[0] == pytest.approx(jackknife, rel=0.03)


@pytest.mark.parametrize("x", [4.0, 6.0, 20.0])
def test_skewed_is_chi_squares(x: float) -> None:
    """x^2 - 1, of x normal around m, estimates m^2; the interval of m is x +- z."""
    value = x * x - 1
    found = intervals.skewed(value, 4 * value + 2, 4, 24 * value + 8, 0.9)
    assert [end**0.5 for end in found[1:]] == pytest.approx([x - Z, x + Z], abs=0.02)
    plain = intervals.skewed(value, 2, 1e-9, 1e-9, 0.9)
    assert plain == pytest.approx(intervals.normal(value, 2, 0.9))
    assert intervals.skewed(value, 2, 0, 0, 0.9) == intervals.normal(value, 2, 0.9)


def test_moments_of_a_line() -> None:
    """Close to 0 the cubic kernel is 1 + 3xy; at a distance of m deviations the MMD is a chi-square's, times 3s^2."""
    count, s, m = 3000, 0.01, 0.1
    real, fake = normal(2000, 1, 1), normal(count, 1, 2)
    real, fake = s * (real - real.mean() + m), s * (fake - fake.mean())
    variance, slope, third = intervals.mmd_moments(real, fake)
    unit, delta = 3 * s**2 / count, m * m * count - 1
    assert variance == pytest.approx(unit**2 * (4 * delta + 2), rel=0.05)
    assert slope == pytest.approx(4 * unit, rel=0.1)
    assert third == pytest.approx(unit**3 * (24 * delta + 8), rel=0.15)


def test_pairs_of_independent_parts() -> None:
    """Sums of two members' numbers: the mean over all pairs is twice the mean of the numbers."""
    x = normal(500, 1, 1)[:, 0]
    sums = x[:, None] + x
    by_member = (sums.sum(1) - 2 * x) / 499
    by_pair = sums[~torch.eye(500, dtype=torch.bool)].var()
    found = intervals.pairs_variance(float(by_member.var()), float(by_pair), 499, 500)
    assert found == pytest.approx(4 * float(x.var()) / 500, rel=0.01)


def test_share() -> None:
    """Wilson's interval: the shares p whose z-test (p' - p)^2 = z^2 p (1 - p) / n the found share p' just passes."""
    value, low, high = intervals.share(torch.arange(50) < 20, 0.9)
    assert value == 0.4
    for end in (low, high):
        assert (value - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / 50)
    assert intervals.share(torch.ones(50, dtype=torch.bool), 0.9)[1:] == (pytest.approx(50 / (50 + Z**2)), 1)
    assert intervals.share(torch.zeros(50, dtype=torch.bool), 0.9)[:2] == (0, 0)


def test_manifolds_without_chance() -> None:
    """Fakes that are far off, or on one of two clusters: recall and coverage would be the same with any others."""
    near, far = normal(200, 3, 1), normal(200, 3, 2) + 100
    found = intervals.manifold_intervals(neighbours(near, far))
    assert found["recall"] == found["coverage"] == (0, 0, pytest.approx(Z**2 / (200 + Z**2)))
    assert found["density"] == (0, 0, 0) and found["precision"].high < 0.02
    found = intervals.manifold_intervals(neighbours(torch.cat([near, far]), normal(2000, 3, 3) + 100))
    assert found["recall"].high < 0.52 and found["coverage"].high - found["coverage"].low < 0.02


def test_bootstrap_of_a_mean() -> None:
    x = normal(400, 1, 1)[:, 0]
    low, high = intervals.interval(torch.mean, x)
    reach = Z * float(x.std()) / 20
    assert (low, high) == pytest.approx((float(x.mean()) - reach, float(x.mean()) + reach), abs=0.1 * reach)
    assert intervals.interval(torch.mean, x, seed=0) == (low, high) != intervals.interval(torch.mean, x, seed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.fid_interval(normal(9, 2), normal(9, 2), level=1.0), "level 1.0"),
        (lambda: intervals.fid_interval(gaussian(normal(9, 2)), normal(9, 3)), "2 dimensions and fake ones 3"),
        (lambda: intervals.interval(torch.mean, torch.zeros(1)), "1 values, 1000 resamples"),
    ],
)
def test_errors(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
