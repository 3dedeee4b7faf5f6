"""Inverse problems: what was done to a picture, what is made of it, and the command."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FAST, GENERATOR, Averages, data_zip, invoke, projected, train_arguments

from stylegen.config import GeneratorConfig
from stylegen.degradations import Downsampled, Grey, Masked, Noisy, luma, seamless
from stylegen.latents import latents
from stylegen.metrics.similarity import psnr
from stylegen.networks import build_generator
from stylegen.projection import Settings, project


@pytest.fixture
def G():
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(**GENERATOR, noise=False)).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", ["half", "quarter", "gray"])
def test_inverse_problems(G, kind):
    with torch.no_grad():
        targets = G(latents([1, 2], 8))
    known = torch.ones(2, 1, 16, 16)
    known[0, :, :, 8:] = 0
    known[1, :, :8] = 0
    degrade = {"half": Masked(known), "quarter": Downsampled(4), "gray": Grey()}[kind]
    seen = degrade(targets, torch.arange(2))
    assert not torch.equal(seen, targets)
    found = project(G, seen, Averages(), Settings(**FAST), degrade=degrade)
    assert (psnr(degrade(G.synthesis(found.w), torch.arange(2)), seen) > 20).all()


def test_degradations():
    images, rows = torch.randn(2, 4, 8, 8), torch.arange(2)
    grey = Grey()(images, rows)
    assert torch.equal(grey[:, 3], images[:, 3])
    torch.testing.assert_close(grey[:, 0], 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2])
    torch.testing.assert_close(luma(grey[:, :3]), grey[:, :1])
    assert Downsampled(2)(images, rows).shape == (2, 4, 4, 4)
    noisy = Noisy(51, images.shape[1:], 0)(torch.zeros(2, 4, 64, 64)[:, :, :8, :8], rows)
    assert torch.equal(noisy[0], noisy[1])
    assert 0.3 < float(noisy.std()) < 0.5
    known = torch.ones(2, 1, 8, 8)
    known[0, :, :, 4:] = 0
    masked = Masked(known)
    assert (masked(images, rows)[0, :, :, 4:] == 0).all()
    assert torch.equal(masked(images, rows[1:])[0] * known[1], images[0])
    weight = masked.weight
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.ones(2))
    assert (weight[0, 0, 4].diff()[:3] > 0).all()  # towards the hole
    assert (weight[0, 0, :, 4:] == 0).all()
    assert weight[1].std() < 1e-6


def test_seamless_blending():
    y, x = torch.meshgrid(torch.linspace(0, 1, 12), torch.linspace(0, 1, 15), indexing="ij")
    made = torch.stack([x.sin(), y * x])
    known = torch.ones(1, 12, 15)
    known[:, 3:9, 4:11] = 0
    target = made * known + 9 * (1 - known) + 0.5 * known  # the hole's own content must not matter
    blended = seamless(target, made, known)
    torch.testing.assert_close(blended, made + 0.5, atol=1e-3, rtol=0)
    known = torch.ones(1, 12, 15)
    known[:, :, 8:] = 0  # a hole at the border
    ramp = made + torch.where(known > 0, y, 0.0)
    blended = seamless(ramp, made, known)
    torch.testing.assert_close(blended[:, :, :8], ramp[:, :, :8], atol=1e-5, rtol=0)
    steps = (blended - made)[0, :, 7:].diff(dim=1).abs()
    assert steps.max() < 0.15  # no seam: without blending 1
    for value in (0.0, 1.0):
        assert torch.equal(seamless(ramp, made, torch.full_like(known, value)), ramp if value else made)


# ---- the command ----


@pytest.fixture
def picture(networks, tmp_path):
    invoke(
        ["generate", "--network", str(networks["rgb"]), "--seeds", "7", "--trunc", "1", "--out", str(tmp_path / "x")]
    )
    return tmp_path / "x" / "seed0007.png"


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_mask(networks, picture, tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 5:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    projected(networks["rgb"], [str(picture)], tmp_path / "out", "--mask", str(tmp_path / "mask.png"))
    given, result, whole = (
        pixels(path) for path in (tmp_path / "out/seed0007-target.png", tmp_path / "out/seed0007.png", picture)
    )
    assert (given[mask > 0] == 128).all()
    assert (given[mask == 0] == whole[mask == 0]).all()
    assert abs(result[mask == 0] - whole[mask == 0]).max() <= 1  # what is known stays
    assert (result[mask > 0] != 128).any()


def test_small_grey_and_noisy_pictures(networks, picture, tmp_path):
    small = Image.open(picture).resize((4, 4))
    small.save(tmp_path / "small.png")
    projected(networks["rgb"], [str(tmp_path / "small.png")], tmp_path / "large", "--downsample", "4")
    assert pixels(tmp_path / "large/small.png").shape == (16, 16, 3)
    assert (pixels(tmp_path / "large/small-target.png")[::4, ::4] == np.asarray(small)).all()
    Image.open(picture).convert("L").save(tmp_path / "grey.png")
    projected(
        networks["rgb"], [str(tmp_path / "grey.png")], tmp_path / "colour", "--gray", "--tune", "--tune-steps", "2"
    )
    result = pixels(tmp_path / "colour/grey.png")
    assert (result.min(2) != result.max(2)).any()
    projected(networks["rgb"], [str(picture)], tmp_path / "clean", "--denoise", "25")
    assert pixels(tmp_path / "clean/seed0007.png").shape == (16, 16, 3)


def test_prior(tmp_path):
    data, run = data_zip(tmp_path / "data.zip"), tmp_path / "run"
    invoke(train_arguments(data, run, "--resolution", "16"))
    invoke(["generate", "--network", str(run), "--seeds", "1", "--out", str(tmp_path / "x")])
    image, out = str(tmp_path / "x" / "seed0001.png"), tmp_path / "out"
    results = []
    for k, options in enumerate(([], ["--prior", str(run), "--prior-weight", "100"])):
        projected(run, [image], out / str(k), *options)
        results.append(np.load(out / str(k) / "latents.npz")["w"])
    assert not np.allclose(*results)
    assert "give the --out of `stylegen train`" in projected(run, [image], out, "--prior", "no", code=2).stderr


def test_what_is_no_problem(networks, picture, tmp_path):
    mask = tmp_path / "mask.png"
    for size, value, message in [
        ((8, 8), 255, "is 8x8; a mask must have the network's 16x16, white where to fill"),
        ((16, 16), 0, "is black: there is nothing to fill"),
        ((16, 16), 255, "is white: nothing is known"),
    ]:
        Image.new("L", size, value).save(mask)
        assert (
            message in projected(networks["rgb"], [str(picture)], tmp_path / "out", "--mask", str(mask), code=1).stderr
        )
    for kind, options, code, message in [
        ("rgb", ["--mask", "missing.png"], 2, "there is no picture missing.png"),
        ("rgb", ["--gray", "--downsample", "4"], 2, "--downsample and --gray are different problems; give one"),
        ("rgb", ["--downsample", "3"], 2, "--downsample 3 does not divide this network's 16x16"),
        ("gray", ["--gray"], 2, "this network makes grey pictures already"),
    ]:
        assert message in projected(networks[kind], [str(picture)], tmp_path / "out", *options, code=code).stderr
    assert not (tmp_path / "out").exists()
