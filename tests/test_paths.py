"""Paths pass through their keys, close where they should, and run at the speed that is asked for."""

import math

import numpy as np
import pytest
import torch

from stylegen import paths


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def keys():
    return torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))


def test_slerp_is_the_great_circle():
    a, b = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 2.0, 0]])
    for t in (0.0, 0.25, 1.0):
        angle, length = t * math.pi / 2, 1 + t
        expected = [length * math.cos(angle), length * math.sin(angle), 0]
        torch.testing.assert_close(paths.slerp(a, b, torch.tensor([t]))[0], torch.tensor(expected))
    for opposite in (a, -a):  # no great circle: straight, and finite
        torch.testing.assert_close(paths.slerp(a, opposite, torch.tensor([0.5])), (a + opposite) / 2)
    z = torch.randn(2, 100, 512, generator=torch.Generator().manual_seed(1))
    middle = paths.slerp(z[0], z[1], torch.full((100,), 0.5))
    assert abs(float(middle.norm(dim=1).mean()) - 512**0.5) < 1  # a straight line's would be 16, not 22.6


@pytest.mark.parametrize("curve", ["slerp", "linear", "cubic"])
@pytest.mark.parametrize("ease", paths.EASINGS)
def test_paths_pass_through_their_keys(keys, curve, ease):
    path = paths.keyed(keys, curve, ease=ease)
    torch.testing.assert_close(path(times(0, 1 / 3, 2 / 3, 1)), keys, atol=1e-5, rtol=1e-5)
    loop = paths.keyed(keys, curve, loop=True, ease=ease)
    torch.testing.assert_close(loop(times(0, 0.25, 0.5, 0.75)), keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loop(times(1)), keys[:1], atol=1e-5, rtol=1e-5)
    halfway = path(times(1 / 6))
    assert not torch.allclose(halfway, keys[:1])
    assert torch.equal(paths.keyed(keys[:1], curve)(times(0, 0.7)), keys[:1].repeat(2, 1, 1))


def test_linear_and_cubic(keys):
    torch.testing.assert_close(paths.keyed(keys, "linear")(times(0.5))[0], (keys[1] + keys[2]) / 2)
    # Catmull-Rom halfway between keys 1 and 2: (-k0 + 9 k1 + 9 k2 - k3) / 16
    expected = (-keys[0] + 9 * keys[1] + 9 * keys[2] - keys[3]) / 16
    torch.testing.assert_close(paths.keyed(keys, "cubic")(times(0.5))[0], expected)
    path, h = paths.keyed(keys.double(), "cubic", loop=True), 1e-6
    for key in (0.25, 0.5, 1.0):  # no corner there
        before, at, after = path(times(key - h, key, (key + h) % 1))
        torch.testing.assert_close((at - before) / h, (after - at) / h, atol=1e-3, rtol=1e-3)


def test_easings_are_monotonic():
    t = torch.linspace(0, 1, 101)
    for name, ease in paths.EASINGS.items():
        assert (ease(t).diff() > 0).all(), name
        assert float(ease(t[:1])) == 0
        assert float(ease(t[-1:])) == 1


def test_walks_are_closed_and_normal():
    walk = paths.circular_walk(3, 4000, turns=3)
    z = walk(torch.linspace(0, 1, 9, dtype=torch.float64))
    torch.testing.assert_close(z[0], z[-1], atol=1e-5, rtol=0)
    assert z.dtype == torch.float32
    assert ((z.var(dim=1) - 1).abs() < 0.1).all()
    assert not torch.allclose(z[0], z[4], atol=0.1)
    assert not torch.equal(paths.circular_walk(4, 4000)(times(0)), paths.circular_walk(3, 4000)(times(0)))


def test_crossover_goes_from_the_finest_layer():
    a, b = torch.zeros(4, 2), torch.ones(4, 2)
    w = paths.crossover(a, b)(times(0, 0.25, 0.375, 1))[:, :, 0]
    assert w.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0.5, 1], [1, 1, 1, 1]]
    back = paths.there_and_back(paths.crossover(a, b))(times(0, 0.125, 0.5, 1))[:, :, 0]
    assert back.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]


def test_frames():
    assert paths.frames(5, closed=False).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert paths.frames(4, closed=True).tolist() == [0, 0.25, 0.5, 0.75]
    assert paths.frames(1, closed=False).tolist() == [0]


def test_even_speed():
    probes = np.linspace(0, 1, 1001)
    distances = torch.from_numpy(np.diff(probes**2))  # t -> t^2: slow, then fast
    t = times(0, 0.25, 0.5, 1)
    torch.testing.assert_close(paths.even(distances, t), t.sqrt(), atol=1e-3, rtol=0)
    assert torch.equal(paths.even(torch.zeros(10), t), t)
    halting = paths.even(torch.tensor([1.0, 0, 0, 1.0]), t)
    assert (halting.diff() > 0).all()
