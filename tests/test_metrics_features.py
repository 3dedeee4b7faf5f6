"""Features: lite0 against its golden, channels, sizes, TorchScript files, distances."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegen.errors import UserError
from stylegen.metrics import lite0
from stylegen.metrics.features import Features, load, to_rgb

GOLDEN = np.load(Path(__file__).parent / "golden" / "lite0.npz")


@pytest.fixture(scope="module")
def network() -> lite0.Lite0:
    return lite0.load_lite0()


@pytest.fixture(scope="module")
def features() -> Features:
    return load("lite0")


def pictures(count: int = 3, channels: int = 3, size: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    random = np.random.RandomState(seed)
    return torch.from_numpy(random.randint(0, 256, (count, channels, *size)).astype(np.uint8))


@pytest.mark.parametrize("size", ["64x64", "37x50"])
def test_lite0_agrees_with_its_golden(network: lite0.Lite0, size: str) -> None:
    images = torch.from_numpy(GOLDEN[f"in/{size}"]).float()
    torch.testing.assert_close(network(images), torch.from_numpy(GOLDEN[f"out/features_{size}"]), rtol=1e-4, atol=1e-4)
    logits = torch.from_numpy(GOLDEN[f"out/logits_{size}"])
    torch.testing.assert_close(network.logits(images), logits, rtol=1e-4, atol=1e-4)


def test_taps_halve_the_size_and_carry_gradients(network: lite0.Lite0) -> None:
    images = pictures(1, size=(64, 32)).float().requires_grad_()
    taps = network.taps(images)
    assert [tuple(tap.shape[1:]) for tap in taps] == [
        (16, 32, 16),
        (24, 16, 8),
        (40, 8, 4),
        (112, 4, 2),
        (320, 2, 1),
    ]
    sum(tap.square().mean() for tap in taps).backward()  # type: ignore[union-attr]
    assert images.grad is not None
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_weights_of_something_else_are_refused(network: lite0.Lite0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: {"_conv_stem.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="is not EfficientNet-Lite0"):
        lite0.load_lite0()
    monkeypatch.setattr(lite0, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="stylegen\\[metrics\\]"):
        lite0.load_lite0()


def test_every_weight_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: real(*a, **k) | {"_extra.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"1 weights too many, such as _extra.weight"):
        lite0.load_lite0()


@pytest.mark.parametrize(("spec", "dim"), [("lite0", 1280), ("pixels", 192)])
def test_features_are_float_vectors_that_repeat(spec: str, dim: int) -> None:
    features, images = load(spec), pictures(5)
    vectors = features(images)
    assert (features.name, features.dim, vectors.shape, vectors.dtype) == (spec, dim, (5, dim), torch.float32)
    assert torch.equal(vectors, load(spec)(images))
    assert not vectors.requires_grad
    assert vectors.std(0).max() > 0


def test_lite0_sees_small_pictures_at_128_and_others_at_224(features: Features, network: lite0.Lite0) -> None:
    for size, side in ((16, 128), (64, 128), (65, 224), (300, 224)):
        images = pictures(2, size=(size, size))
        scaled = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
        reference = network(scaled)
        rounding = 0.02 if size > side else 1e-5
        assert (features(images) - reference).norm() < rounding * reference.norm()
    assert features(pictures(1, size=(32, 16))).shape == (1, 1280)


def test_grey_is_three_equal_channels_and_transparency_is_white() -> None:
    grey = pictures(2, 1)
    assert torch.equal(to_rgb(grey), grey.repeat(1, 3, 1, 1))
    rgba = pictures(2, 4)
    opaque, clear = rgba.clone(), rgba.clone()
    opaque[:, 3], clear[:, 3] = 255, 0
    assert torch.equal(to_rgb(opaque), rgba[:, :3])
    assert (to_rgb(clear) == 255).all()
    exact = rgba[:, :3].double() * (rgba[:, 3:].double() / 255) + 255 - rgba[:, 3:].double()
    assert (to_rgb(rgba).double() - exact).abs().max() <= 0.5001
    torch.testing.assert_close(to_rgb(rgba.float()).double(), exact, rtol=1e-5, atol=1e-3)
    assert torch.equal(to_rgb(rgba[:, [0, 3]]), to_rgb(rgba[:, [0, 0, 0, 3]]))
    with pytest.raises(UserError, match="these have 5 channels"):
        to_rgb(pictures(1, 5))


@pytest.mark.parametrize("spec", ["lite0", "pixels"])
def test_distance_grows_with_the_difference(spec: str) -> None:
    features, a = load(spec), pictures(3).float()
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    near, far = features.distance(a, a + noise), features.distance(a, a + 10 * noise)
    assert features.distance(a, a).abs().max() < 1e-9
    assert near.shape == (3,)
    assert (0 < near).all()
    assert (near < far).all()


class Plain(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


class Options(nn.Module):
    def forward(
        self,
        images: Tensor,
        return_features: bool = False,
        return_lpips: bool = False,
        resize_images: bool = True,
    ) -> Tensor:
        x = images.float().mean((2, 3))
        return x * (1 + 1 * int(return_features) + 2 * int(return_lpips) + 4 * int(resize_images))


@pytest.mark.parametrize(("module", "features_gain", "distance_gain"), [(Plain(), 1, 1), (Options(), 6, 3)])
def test_torchscript_files(tmp_path: Path, module: nn.Module, features_gain: int, distance_gain: int) -> None:
    path = tmp_path / "detector.pt"
    torch.jit.script(module).save(path)
    features, images = load(str(path)), pictures(4)
    means = images.float().mean((2, 3))
    assert (features.name, features.dim) == ("detector", 3)
    torch.testing.assert_close(features(images), features_gain * means)
    distance = features.distance(images.float(), images.float() + 1)
    torch.testing.assert_close(distance, torch.full((4,), 3.0 * distance_gain**2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        features(pictures(4, 1)), features_gain * pictures(4, 1).float().mean((2, 3)).repeat(1, 3)
    )
    assert features.identity == load(str(path)).identity != load("pixels").identity


class Flat(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean()


def test_bad_features_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no features 'inception': give lite0, pixels or a TorchScript file"):
        load("inception")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match=r"text.pt is no TorchScript module") as error:
        load(str(tmp_path / "text.pt"))
    assert "\n" not in str(error.value)
    torch.jit.script(Flat()).save(tmp_path / "flat.pt")
    with pytest.raises(UserError, match=r"flat.pt makes \(\) of 2 pictures"):
        load(str(tmp_path / "flat.pt"))
