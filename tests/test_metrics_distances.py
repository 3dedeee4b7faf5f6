"""Distances between sets of features, against closed forms, sets whose relation is known, and torchmetrics."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stylegen.errors import UserError
from stylegen.metrics import distances
from stylegen.metrics.distances import density_coverage, diversity, fid, gaussian, kid, neighbours, precision_recall


def normal(count: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(count: int, mean: Tensor, root: Tensor, seed: int = 0) -> Tensor:
    """Samples whose mean and unbiased covariance are `mean` and `root @ root.T` to the last digits."""
    x = normal(count, len(root), seed)
    x = torch.linalg.qr(x - x.mean(0)).Q * (count - 1) ** 0.5
    return x @ root.T + mean


class Identity(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_fid_of_diagonal_covariances() -> None:
    a, b = torch.linspace(0.1, 3, 20).double(), torch.linspace(2, 0.5, 20).double()
    shift = torch.linspace(-1, 1, 20).double()
    found = fid(exact(500, shift, a.diag(), 1), exact(300, 0 * shift, b.diag(), 2))
    assert found == pytest.approx(float(((a - b) ** 2 + shift**2).sum()), rel=1e-10)


def test_fid_of_covariances_that_do_not_commute() -> None:
    a, b = torch.tensor([[2.0, 0.3], [0, 1]]).double(), torch.tensor([[0.5, 0], [-1, 3]]).double()
    p, q = a @ a.T, b @ b.T
    root = ((p @ q).trace() + 2 * (p @ q).det().sqrt()).sqrt()  # the trace of a 2 x 2 matrix's root
    zero = torch.zeros(2).double()
    assert fid(exact(100, zero, a), exact(90, zero, b)) == pytest.approx(float((p + q).trace() - 2 * root), rel=1e-10)


def test_fid_of_singular_covariances() -> None:
    """Normal distributions on two lines of a large space, at an angle: s^2 + t^2 - 2 s t |cos|."""
    u, v = torch.zeros(50, 1).double(), torch.zeros(50, 1).double()
    u[3], v[3], v[7] = 1, 0.6, 0.8
    x, y = (exact(200, torch.zeros(1).double(), torch.tensor([[s]]).double()) for s in (2.0, 3.0))
    assert fid(x @ u.T, y @ v.T) == pytest.approx(4 + 9 - 2 * 2 * 3 * 0.6, rel=1e-10)
    assert fid(x @ u.T + 1000, x @ u.T + 1000) == pytest.approx(0, abs=1e-8)
    assert fid(torch.ones(5, 4), torch.zeros(80, 4)) == pytest.approx(4)


def test_fid_of_few_samples() -> None:
    """Below D samples the factor is the samples themselves; the covariance they stand for is the same."""
    x, y = normal(30, 40, 1), normal(200, 40, 2) * 2
    assert torch.allclose(gaussian(x).factor @ gaussian(x).factor.T, x.T.cov(), atol=1e-12)
    assert torch.allclose(gaussian(y).factor @ gaussian(y).factor.T, y.T.cov(), atol=1e-12)
    p, q = x.T.cov(), y.T.cov()
    root = torch.linalg.eigvals(p @ q).real.clamp(min=0).sqrt().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + p.trace() + q.trace() - 2 * root
    assert fid(x, y) == pytest.approx(float(expected), rel=1e-5)
    assert fid(x, x) == pytest.approx(0, abs=1e-10)


def test_fid_of_measured_gaussians() -> None:
    x, y = normal(100, 8, 1), normal(120, 8, 2)
    assert fid(gaussian(x), y) == fid(x, gaussian(y)) == fid(x, y)
    assert fid(x.numpy(), y.float().numpy()) == pytest.approx(fid(x, y), abs=1e-5)


def test_fid_is_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(Identity(64)).set_dtype(torch.float64)
    real, fake = normal(600, 64, 1) @ normal(64, 64, 3), normal(500, 64, 2) @ normal(64, 64, 4) + 0.1
    metric.update(real, real=True)
    metric.update(fake, real=False)
    assert fid(real, fake) == pytest.approx(float(metric.compute()), rel=1e-6)
    assert fid(real.float(), fake.float()) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_kid_of_points() -> None:
    """All reals in one point and all fakes in another: k(a, a) + k(b, b) - 2 k(a, b)."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5])
    expected = (5 / 2 + 1) ** 3 + (1.25 / 2 + 1) ** 3 - 2
    mean, std = kid(a.repeat(20, 1), b.repeat(30, 1), subsets=3, subset_size=10)
    assert mean == pytest.approx(expected) and std == pytest.approx(0, abs=1e-12)


def test_kid_expects_what_the_moments_say() -> None:
    """E (x y + 1)^3 from the moments of N(m, s^2) in one dimension; equal distributions expect 0."""

    def moments(m: float, s: float) -> Tensor:
        return torch.tensor([1, m, m * m + s * s, m**3 + 3 * m * s * s])

    weights = torch.tensor([1.0, 3, 3, 1])
    expected = float((weights * (moments(0.0, 1.0) - moments(0.5, 1.2)) ** 2).sum())
    x, y = normal(20_000, 1, 1), normal(20_000, 1, 2) * 1.2 + 0.5
    mean, std = kid(x, y, subsets=40, subset_size=500)
    assert mean == pytest.approx(expected, abs=4 * std / 40**0.5)
    mean, std = kid(x, normal(20_000, 1, 3), subsets=40, subset_size=500)
    assert mean == pytest.approx(0, abs=4 * std / 40**0.5)


def test_kid_is_torchmetrics() -> None:
    """A subset as large as both sets has one value, in whatever order; smaller ones agree in distribution."""
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = normal(300, 32, 1), normal(300, 32, 2) * 1.3 + 0.2
    for subsets, size, error in (1, 300, 1e-4), (60, 100, 0.1):
        metric = KernelInceptionDistance(Identity(32), subsets=subsets, subset_size=size)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        torch.manual_seed(0)
        theirs = [float(value) for value in metric.compute()]
        ours = kid(real, fake, subsets=subsets, subset_size=size)
        assert ours[0] == pytest.approx(theirs[0], rel=error)
        assert ours[1] == pytest.approx(theirs[1], rel=0.3, abs=1e-5)


def test_manifolds_of_equal_sets() -> None:
    """Each fake is its own real: in its own ball and in those of which it is among the k nearest, k on average."""
    x = normal(400, 6).float()
    assert precision_recall(x, x.clone()) == (1, 1)
    assert density_coverage(x, x.double()) == pytest.approx((6 / 5, 1))


def test_manifolds_of_equal_distributions() -> None:
    x, y = normal(2000, 4, 1), normal(2000, 4, 2)
    density, coverage = density_coverage(x, y)
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.015)
    precision, recall = precision_recall(x, y)
    assert precision == pytest.approx(recall, abs=0.04) and precision > 0.8


def test_manifolds_of_disjoint_sets() -> None:
    x, y = normal(100, 4, 1), normal(150, 4, 2) + 100
    assert precision_recall(x, y) == density_coverage(x, y) == (0, 0)


def test_manifolds_that_overlap_by_half() -> None:
    """Reals in clusters A and B, fakes in B and C of the same points: half of each lies in the other's manifold."""
    a, b, c = normal(200, 3, 1), normal(200, 3, 2) + 100, normal(200, 3, 3) - 100
    assert precision_recall(torch.cat([a, b]), torch.cat([b, c])) == (0.5, 0.5)
    density, coverage = density_coverage(torch.cat([a, b]), torch.cat([b, c]))
    assert (density, coverage) == (pytest.approx(0.6), 0.5)
    collapsed = b[:1].repeat(50, 1)  # all fakes one real: precise, and nothing else
    assert precision_recall(torch.cat([a, b]), collapsed) == (1, 1 / 400)


def test_manifolds_on_a_line() -> None:
    """Reals 0, 1, ... 9, whose balls of k = 1 have radius 1; surfaces belong to them."""
    x, y = torch.arange(10.0)[:, None], torch.tensor([[-1.5], [-1.0], [0.5], [20.0]])
    near = neighbours(x, y, (1, 1))
    assert near.inside.tolist() == [False, True, True, False]
    assert near.density.tolist() == [0, 1, 2, 0]
    assert distances.covered(near).tolist() == [True, True] + [False] * 8
    # The fakes' radii are 0.5, 0.5, 1.5 and 19.5.
    assert distances.recalled(near).tolist() == [True] * 10
    assert distances.recalled(neighbours(x, y[:3], (1, 1))).tolist() == [True] * 3 + [False] * 7


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(150, 5, 1), normal(130, 5, 2) * 1.2

    def measure() -> list[float]:
        return [fid(x, y), *kid(x, y), *precision_recall(x, y), *density_coverage(x, y), diversity(x, pairs=500)]

    once = measure()
    assert measure() == once
    monkeypatch.setattr(distances, "BLOCK", 16)
    assert measure() == pytest.approx(once, rel=1e-12)


def test_diversity() -> None:
    x = normal(101, 7)
    every = torch.pdist(x)
    assert diversity(x, pairs=10**6) == pytest.approx(float(every.mean()), rel=1e-12)
    assert diversity(torch.tensor([[0.0], [0.0], [1.0]])) == pytest.approx(2 / 3)
    large = normal(5000, 16)
    assert diversity(large, seed=1) == diversity(large, seed=1) != diversity(large, seed=2)
    assert diversity(large, seed=1) == pytest.approx(diversity(large, pairs=500_000), rel=0.01)
    distances_, sums = distances.paired_distances(x, 10**6, 0)
    assert len(distances_) == len(every) and float(sums.sum()) == pytest.approx(2 * float(every.sum()))


def test_seeds_decide() -> None:
    x, y = normal(400, 8, 1), normal(400, 8, 2)
    assert kid(x, y, subset_size=50, seed=3) == kid(x, y, subset_size=50, seed=3) != kid(x, y, subset_size=50, seed=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fid(np.zeros(4), np.zeros((4, 1))), r"real features of shape \(4,\)"),
        (lambda: fid(np.zeros((4, 2)), np.zeros((4, 1))), "real features have 2 dimensions and fake ones 1"),
        (lambda: kid(np.zeros((4, 2)), np.zeros((4, 1))), "real features have 2 dimensions and fake ones 1"),
        (lambda: fid(np.zeros((1, 2)), np.zeros((4, 2))), "1 real features; this measure needs at least 2"),
        (lambda: fid(np.zeros((4, 2)), np.full((4, 2), np.nan)), "fake features with values that are not finite"),
        (lambda: kid(np.zeros((4, 2)), np.zeros((4, 2)), subsets=0), "0 subsets of 1000"),
        (lambda: precision_recall(np.zeros((3, 2)), np.zeros((4, 2))), "3 real features; .* at least 4"),
        (lambda: precision_recall(np.zeros((3, 2)), np.zeros((4, 2)), k=0), "k = 0"),
        (lambda: diversity(np.zeros((3, 2)), pairs=0), "0 pairs"),
    ],
)
def test_errors(call: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()  # type: ignore[operator]
