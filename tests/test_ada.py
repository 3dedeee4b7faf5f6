"""Adaptive augmentation: each operation against plain arithmetic, how often it happens, gradients, the controller."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stylegen.ops import reference
from stylegen.training import ada as module
from stylegen.training.ada import KINDS, SETS, ada, adapt, bands
from stylegen.training.rng import Numbers

ALL = SETS["bgcfnc"]


def numbers(count: int, seed: int = 0, which: list[int] | None = None) -> Numbers:
    return Numbers(torch.Generator().manual_seed(seed), count, which)


def altered(images: Tensor, p: float, *kinds: str, seed: int = 0) -> Tensor:
    return ada(images, p, numbers(len(images), seed), kinds)


def matrix(*rows: float) -> Tensor:
    return torch.tensor([[*rows, 0, 0, 1]], dtype=torch.float64).reshape(1, 3, 3)


def turned(angle: float, scale: float = 1.0) -> Tensor:
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    return matrix(cos, -sin, 0, sin, cos, 0)


def share(found: Tensor, expected: float, count: int) -> None:
    """Of `count` draws: within four deviations."""
    assert abs(found.double().mean().item() - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_sets() -> None:
    assert SETS["bgc"] == ("blit", "geometry", "color")
    assert list(SETS) == ["b", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]
    assert SETS["bgcfnc"] == KINDS


@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
def test_p_of_zero_gives_the_same_tensor_and_takes_the_same_numbers(size: tuple[int, int]) -> None:
    images, following = torch.randn(5, 4, *size), []
    for p in (0.0, 0.4, 1.0):
        draw = numbers(5)
        assert (ada(images, p, draw, ALL) is images) == (p == 0)
        following.append(draw.uniform(3))
    assert following[0].equal(following[1]) and following[0].equal(following[2])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_every_picture_in_its_own_way_whichever_are_asked_for(kind: str, channels: int) -> None:
    image = torch.rand(1, channels, 16, 16) * 2 - 1
    images = image.expand(9, -1, -1, -1).contiguous()
    kinds = ALL if kind == "all" else (kind,)
    whole = ada(images, 0.6, numbers(9), kinds)
    assert whole.shape == images.shape and whole.isfinite().all()
    assert len(whole.unique(dim=0)) > 3
    assert not whole.equal(ada(images, 0.6, numbers(9, seed=1), kinds))
    tolerance = {"atol": 1e-5, "rtol": 0}  # the kernel of upfirdn2d rounds by the size of the batch
    with reference():
        plain = ada(images, 0.6, numbers(9), kinds)
    torch.testing.assert_close(plain, whole, **tolerance)
    for which in ([0], [8, 3], [1, 2, 4, 5, 6]):
        torch.testing.assert_close(ada(images[which], 0.6, numbers(9, which=which), kinds), whole[which], **tolerance)
        with reference():
            assert ada(images[which], 0.6, numbers(9, which=which), kinds).equal(plain[which])
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ada(last, 0.6, numbers(9), kinds), whole, **tolerance)


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_blits_are_those_of_numpy(size: tuple[int, int]) -> None:
    """Mirrored, then turned, then shifted over the mirrored border, and every such picture is seen."""
    image = torch.randn(1, 2, *size)
    possible = set()
    for flip, turns in itertools.product((False, True), range(4) if size[0] == size[1] else (0, 2)):
        plain = image[0].numpy()
        plain = np.rot90(plain[:, :, ::-1] if flip else plain, turns, (1, 2))
        padded = np.pad(plain, ((0, 0), (2, 2), (2, 2)), "reflect")
        for y, x in itertools.product(*(range(-(side // 8), side // 8 + 1) for side in size)):
            possible.add(padded[:, 2 + y : 2 + y + size[0], 2 + x : 2 + x + size[1]].tobytes())
    found = altered(image.expand(2500, -1, -1, -1), 1.0, "blit")
    assert {picture.tobytes() for picture in found.numpy()} == possible


def test_without_a_change_the_geometry_path_is_the_identity() -> None:
    """The orthonormal filters undo each other, border included; whole shifts are whole away from the border."""
    images = torch.randn(2, 3, 12, 16, dtype=torch.float64)
    eye, shift = matrix(1, 0, 0, 0, 1, 0), matrix(1, 0, 2, 0, 1, -1)
    tolerance = {"atol": 2e-6, "rtol": 0}  # of taps in float32
    torch.testing.assert_close(module._resampled(images, eye.expand(2, 3, 3)), images, **tolerance)
    found, expected = (f(images, shift.expand(2, 3, 3))[:, :, 4:-4, 4:-4] for f in (module._resampled, module._copied))
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(expected, images[:, :, 3:-5, 6:-2], **tolerance)


def test_wavelets() -> None:
    """Orthonormal shifts and as many vanishing moments as half the taps: that makes them Daubechies'."""
    for taps in (np.array(module.SYM2), np.array(module.SYM6)):
        correlation = np.correlate(taps, taps, "full")[len(taps) - 1 :: 2]
        np.testing.assert_allclose(correlation, np.eye(len(taps) // 2)[0], atol=1e-11)
        k = np.arange(len(taps))
        moments = [((-1.0) ** k * (k / len(taps)) ** power * taps).sum() for power in range(len(taps) // 2)]
        np.testing.assert_allclose(moments, 0, atol=1e-10)
        assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-10)


def test_pictures_by_the_few_are_pictures_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, back = torch.randn(5, 3, 8, 8), turned(0.3).float().expand(5, 3, 3)
    whole = module._resampled_at_once(images, back)
    for size in (1, 130, 1 << 15):
        monkeypatch.setattr(module, "_CACHED_PX", size)
        torch.testing.assert_close(module._resampled(images, back), whole, atol=1e-5, rtol=0)


def waves(x: Tensor, y: Tensor) -> Tensor:
    return torch.cos(0.35 * x + 0.2 * y) + 0.5 * torch.sin(0.15 * x - 0.4 * y + 1) + 0.3


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize(
    "back",
    [turned(math.pi / 2), turned(0.4), turned(-2.0, 1.3), turned(0.0, 0.7), matrix(1.2, 0, 0.3, 0, 1 / 1.2, -2.6)],
    ids=["90", "23", "shrunk", "grown", "stretched"],
)
def test_smooth_pictures_move_as_their_formula_does(back: Tensor, size: tuple[int, int]) -> None:
    """Where what is seen lies within the picture; the direction is that of the matrix."""
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    found = module._resampled(waves(x, y)[None, None], back)[0, 0]
    from_x, from_y = (row[0] * x + row[1] * y + row[2] for row in back[0, :2])
    inside = (from_x.abs() < size[1] / 2 - 4) & (from_y.abs() < size[0] / 2 - 4)
    assert inside.float().mean() > 0.15
    error = (found - waves(from_x, from_y))[inside]
    assert error.abs().max() < 0.02 and error.mean().abs() < 0.002


@pytest.mark.parametrize("kinds", ["b", "bg"])
def test_nothing_comes_in_at_the_border(kinds: str) -> None:
    """One color stays it, whatever is done: what is outside is a mirror image."""
    found = ada(torch.full((64, 2, 12, 8), -0.7), 1.0, numbers(64), SETS[kinds])
    torch.testing.assert_close(found, torch.full((64, 2, 12, 8), -0.7), atol=1e-5, rtol=0)


def test_what_shrinks_does_not_fold() -> None:
    """0.42 periods a pixel, 1.6 times as many, are more than pixels can show; 0.1 periods stay."""
    x = torch.arange(64, dtype=torch.float64) - 31.5
    back = turned(0, 1.6)
    energy = {}
    for frequency in (0.1, 0.42):
        picture = torch.cos(2 * math.pi * frequency * x).expand(1, 1, 64, 64)
        grid = F.affine_grid(back[:, :2], [1, 1, 64, 64], align_corners=True)
        plain = F.grid_sample(picture, grid, padding_mode="reflection", align_corners=True)
        for name, found in (("ours", module._resampled(picture, back)), ("plain", plain)):
            energy[name, frequency] = 2 * found[..., 16:-16, 16:-16].square().mean().item()
    assert energy["ours", 0.1] == pytest.approx(1, abs=0.05)
    assert energy["ours", 0.42] < 0.03 < 0.3 < energy["plain", 0.42], energy


def test_how_often_pixels_move() -> None:
    count, p = 6000, 0.3
    back = module._blit(p, numbers(count), 64, 64)
    share(back[:, :2, :2].det() < 0, p / 2, count)
    quarter = back[:, 0, 0] == 0
    share(quarter, p / 2, count)
    share(~quarter & (back[:, 1, 1] < 0), p / 4, count)
    shifts = back[:, :2, 2].abs()
    share(shifts[:, 0] > 0, p * 15.5 / 16, count)  # zero is as likely as others, the last is half as likely
    assert shifts.max() == 8


def test_how_often_and_how_far_the_geometry_changes() -> None:
    """Recovered from the matrices: the determinant, the ratio of singular values, the angle, the shift."""
    count, p = 6000, 0.3
    back = module._geometry(p, numbers(count), 10, 20)
    linear = back[:, :2, :2]
    scale = linear.det().log2() / 2
    share(scale.abs() > 1e-9, p, count)
    assert scale[scale.abs() > 1e-9].std() == pytest.approx(0.2, rel=0.08)
    values = torch.linalg.svdvals(linear)
    stretch = (values[:, 0] / values[:, 1]).log2() / 2
    stretched = stretch > 1e-9
    share(stretched, p, count)
    assert stretch[stretched].square().mean().sqrt() == pytest.approx(0.2, rel=0.08)
    share((linear[~stretched][:, 0, 1].abs() > 1e-9), p, int((~stretched).sum()))  # of either rotation
    angles = torch.atan2(linear[~stretched][:, 1, 0], linear[~stretched][:, 0, 0])
    assert angles[angles.abs() > 1e-9].std() == pytest.approx(2 * math.pi / math.sqrt(12), rel=0.05)
    place = torch.linalg.solve(linear, back[:, :2, 2:])[:, :, 0]  # the shift is the last to be done
    moved = place.abs().sum(1) > 1e-9
    share(moved, p, count)
    assert (place[moved].std(0) / torch.tensor([20.0, 10.0]) - 0.125).abs().max() < 0.01


def test_colors() -> None:
    """Recovered from what becomes of black and three primaries."""
    count, p = 6000, 0.3
    probe = torch.cat([torch.zeros(3, 1), torch.eye(3)], 1)[:, None].double()
    found = altered(probe.expand(count, -1, -1, -1), p, "color")[:, :, 0]
    offset = found[:, :, 0]
    linear = found[:, :, 1:] - offset[:, :, None]
    torch.testing.assert_close(offset, offset[:, :1].expand(-1, 3))
    gray = linear.sum((1, 2)) / 3
    torch.testing.assert_close(linear.sum(2), gray[:, None].expand(-1, 3))  # grays stay gray
    share(gray < 0, p / 2, count)
    contrast = gray.abs().log2()
    share(contrast.abs() > 1e-9, p, count)
    assert contrast[contrast.abs() > 1e-9].std() == pytest.approx(0.5, rel=0.08)
    brightness = offset[:, 0] / gray
    share(brightness.abs() > 1e-9, p, count)
    assert brightness[brightness.abs() > 1e-9].std() == pytest.approx(0.2, rel=0.08)
    across = torch.tensor([[1.0, -1, 0], [1, 1, -2]]).double()
    across = across / across.norm(dim=1, keepdim=True)
    chroma = linear @ across[0]
    saturation = (chroma.norm(dim=1) / gray.abs()).log2()
    share(saturation.abs() > 1e-9, p, count)
    assert saturation[saturation.abs() > 1e-9].std() == pytest.approx(1, rel=0.08)
    hue = torch.atan2(chroma @ across[1], chroma @ across[0])
    share(hue.abs() > 1e-9, p, count)
    assert hue[hue.abs() > 1e-9].std() == pytest.approx(2 * math.pi / math.sqrt(12), rel=0.05)


def test_colors_are_a_product_of_matrices() -> None:
    """One after the other, in homogeneous coordinates, from the same numbers."""
    images, draw = torch.randn(40, 3, 2, 2, dtype=torch.float64), numbers(40)
    on, uniform, normal = draw.uniform(5) < 0.6, draw.uniform(2).double(), draw.normal(3).double()
    found = altered(images, 0.6, "color")
    eye, v = torch.eye(4, dtype=torch.float64), torch.tensor([1, 1, 1, 0]).double() / math.sqrt(3)
    along, around = torch.outer(v, v), torch.zeros(4, 4, dtype=torch.float64)
    around[:3, :3] = torch.linalg.cross(torch.eye(3).double(), v[:3].expand(3, 3), dim=1)
    for image, gates, (flip, hue), z, result in zip(images, on, uniform, normal, found, strict=True):
        steps = [eye.clone() for _ in range(5)]
        steps[0][:3, 3] = 0.2 * z[0]
        steps[1][:3, :3] *= 2 ** (0.5 * z[1])
        steps[2] -= 2 * along * (flip < 0.5)
        steps[3] = torch.linalg.matrix_exp((2 * hue - 1) * math.pi * around)
        steps[4] = along + (eye - along) * 2 ** z[2]
        steps[4][3] = eye[3]
        x = torch.cat([image, torch.ones(1, 2, 2, dtype=torch.float64)]).flatten(1)
        for gate, step in zip(gates, steps, strict=True):
            x = step @ x if gate else x
        torch.testing.assert_close(result, x[:3].reshape(3, 2, 2))


@pytest.mark.parametrize("channels", [1, 2])
def test_gray_pictures_get_what_gray_colors_get(channels: int) -> None:
    gray = torch.randn(50, 1, 4, 4)
    images = torch.cat([gray, torch.randn(50, channels - 1, 4, 4)], 1)
    found, colors = altered(images, 0.7, "color"), altered(gray.expand(-1, 3, -1, -1), 0.7, "color")
    torch.testing.assert_close(found[:, :1], colors[:, 1:2])
    assert not found[:, 0].equal(gray[:, 0])


@pytest.mark.parametrize("kind", ["color", "filter", "noise"])
@pytest.mark.parametrize("channels", [2, 4, 5])
def test_alpha_keeps_its_values(kind: str, channels: int) -> None:
    colors = 1 if channels == 2 else 3
    images = torch.randn(20, channels, 9, 6)
    found = altered(images, 1.0, kind)
    assert found[:, colors:].equal(images[:, colors:])
    assert (found[:, :colors] != images[:, :colors]).flatten(1).any(1).all()


def test_bands() -> None:
    """They sum to the identity, have no phase, and each is the strongest in its own octave."""
    found = bands()
    torch.testing.assert_close(found.sum(0), torch.eye(43, dtype=torch.float64)[21])
    torch.testing.assert_close(found, found.flip(1))
    middles = math.pi * torch.tensor([1 / 32, 3 / 16, 3 / 8, 3 / 4], dtype=torch.float64)
    response = torch.cos(middles * (torch.arange(43)[:, None] - 21)).T @ found.T
    assert response.argmax(1).tolist() == [0, 1, 2, 3] and response.diag().min() > 0.7


def test_filter_against_its_matrix() -> None:
    taps, x = torch.rand(1, 21, dtype=torch.float64), torch.randn(1, 1, 9, 6, dtype=torch.float64)
    taps = taps + taps.flip(1)
    padded = np.pad(x[0, 0].numpy(), 10, "reflect")
    expected = F.conv2d(torch.from_numpy(padded)[None, None], torch.outer(taps[0], taps[0])[None, None])
    torch.testing.assert_close(module._convolved(x, taps), expected)


def test_filter_keeps_the_power_of_natural_pictures() -> None:
    """Alone, band i becomes 2^z stronger than the others; weighted 10 : 1 : 1 : 1, the power of all is as before."""
    count, p = 1000, 0.3
    impulse = torch.zeros(1, 1, 45, 45, dtype=torch.float64)
    impulse[..., 22, 22] = 1
    found = altered(impulse.expand(count, -1, -1, -1), p, "filter")
    share((found != impulse).flatten(1).any(1), 1 - (1 - p) ** 4, count)
    # A row's sum over y is the filter along x times its gain at frequency 0, which is that of the lowest band.
    rows = found[:, 0, :, 1:-1].sum(1)
    gains = torch.linalg.lstsq(bands().T, rows.T).solution.T
    gains = gains / gains[:, :1].sqrt()
    one = ((gains / gains[:, :1] - 1).abs() > 1e-6).sum(1) == 1  # band 2, 3 or 4 alone
    power = gains[one].square() @ torch.tensor([10.0, 1, 1, 1]).double() / 13
    assert one.sum() > 0.25 * count
    torch.testing.assert_close(power, torch.ones_like(power), atol=1e-9, rtol=0)


def test_noise() -> None:
    images = torch.randn(3000, 3, 8, 8)
    deviations = (altered(images, 0.3, "noise") - images).flatten(1).std(1)
    share(deviations > 0, 0.3, 3000)
    assert deviations[deviations > 0].square().mean().sqrt() == pytest.approx(0.1, rel=0.1)


def test_cutout() -> None:
    """Boxes of half the sides, all channels, their middles anywhere."""
    gone = altered(torch.ones(3000, 4, 12, 8), 0.3, "cutout") == 0
    assert gone.eq(gone[:, :1]).all()
    gone = gone[:, 0]
    cut = gone.flatten(1).any(1)
    share(cut, 0.3, 3000)
    for picture in gone[cut][:100].numpy():
        rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        assert picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 3 <= len(rows) <= 6 and 2 <= len(columns) <= 4
    assert gone.any(0).all() and (gone.sum((1, 2)) == 24).any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind: str) -> None:
    images = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    assert not altered(images, 0.7, kind).equal(images)
    assert torch.autograd.gradcheck(lambda x: altered(x, 0.7, kind), images)
    assert torch.autograd.gradgradcheck(lambda x: altered(x, 0.7, kind).sin(), images)


def test_p_follows_the_signs() -> None:
    assert adapt(0.2, 0.9, 128) == pytest.approx(0.2 + 128 / 500_000)
    assert adapt(0.2, 0.5, 128) == pytest.approx(0.2 - 128 / 500_000)
    assert adapt(0.2, 0.6, 128) == 0.2
    assert adapt(0.2, 0.9, 128, speed_kimg=100) == pytest.approx(0.2 + 128 / 100_000)
    assert adapt(0.2, 0.5, 128, target=0.4) > 0.2
    assert adapt(0.2, float("nan"), 128) == 0.2
    assert adapt(0.0001, -1.0, 128) == 0
    assert adapt(0.7999, 1.0, 128) == 0.8
    assert adapt(0.7999, 1.0, 128, ceiling=1.0) == pytest.approx(0.7999 + 128 / 500_000)
    p = 0.0
    for _ in range(400):
        p = adapt(p, 1.0, 500)
    assert p == pytest.approx(0.4)  # 200 of 500 kimg
