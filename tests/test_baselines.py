"""Families that do not grow (mlp, dcgan), minibatch discrimination and feature matching."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import data_zip, invoke
from torch import Tensor, nn
from torch.nn import functional as F

from stylegen import presets
from stylegen.checkpoint import load_network, load_tensors
from stylegen.config import FAMILIES, GROWING, DiscriminatorConfig, GeneratorConfig, LossConfig
from stylegen.errors import UserError
from stylegen.images import to_uint8
from stylegen.latents import latents
from stylegen.networks import FAMILIES as NETWORKS, build_discriminator, build_generator
from stylegen.networks.dcgan import Norm
from stylegen.networks.layers import MinibatchDiscrimination
from stylegen.precision import freeze, prepare
from stylegen.training.losses import g_loss, squared_gradients

BASELINES = ["dcgan", "mlp"]
PRESETS = {"dcgan": "dcgan-64", "mlp": "mlp-32"}
SHARED: dict[str, Any] = {"fmap_base": 32, "fmap_max": 16, "hidden_width": 24, "levels": 3}


def generator(family: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = GeneratorConfig(**({"family": family, "latent_size": 8, "activation": "relu"} | SHARED | options))
    return build_generator(config)


def discriminator(family: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return build_discriminator(DiscriminatorConfig(**({"family": family} | SHARED | options)))


def train_arguments(family: str, data: Path, out: Path, *options: object, kimg: float = 0.032) -> list[str]:
    """The command line of a tiny run; later options win."""
    widths = {"dcgan": {"fmap_base": 32, "fmap_max": 16}, "mlp": {"hidden_width": 24}}[family]
    sets = [f"{role}.{name}={value}" for role in ("generator", "discriminator") for name, value in widths.items()]
    fixed = ["--preset", PRESETS[family], "--batch", 8, "--kimg", kimg, "--device", "cpu", "--workers", 0]
    sets.append("generator.latent_size=8")
    flags = [part for assignment in sets for part in ("--set", assignment)]
    return ["train", str(data), "--out", str(out), *flags, *map(str, fixed), *map(str, options)]


def test_every_family_has_networks() -> None:
    assert set(NETWORKS) == set(FAMILIES) == {*GROWING, *BASELINES}


@pytest.mark.parametrize("family", BASELINES)
@pytest.mark.parametrize("options", [{}, {"mbdisc_features": 6, "maxout_pieces": 3}, {"norm": "layer"}])
@pytest.mark.parametrize("channels,base,label_size", [(3, (4, 4), 0), (1, (7, 7), 5), (4, (8, 4), 2)])
def test_shapes_and_gradients(
    family: str, options: dict[str, Any], channels: int, base: tuple[int, int], label_size: int
) -> None:
    """Also of the second order: the penalties go through D's gradient."""
    shared = {"channels": channels, "base": base, "label_size": label_size}
    g = generator(family, **shared, norm=options.get("norm", "batch"))
    d = discriminator(family, **shared, **options)
    labels = F.one_hot(torch.arange(4) % label_size, label_size).float() if label_size else None
    images = g(torch.randn(4, 8), labels, resolution=(base[0] * 4, base[1] * 4))
    assert images.shape == (4, channels, base[0] * 4, base[1] * 4)
    assert images.abs().max() <= 1
    scores = d(images, labels)
    assert scores.shape == (4, 1)
    assert d.features(images).shape == (4, d.score.weight.shape[1] - options.get("mbdisc_features", 0))
    (scores.square().sum() + squared_gradients(scores, images).sum()).backward()
    for network in (g, d):
        for name, parameter in network.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", BASELINES)
def test_initialisation_is_the_published_one(family: str) -> None:
    """Radford et al. 2016, section 4: weights from a normal distribution of mean 0 and deviation 0.02."""
    for network in (generator(family, fmap_base=512, fmap_max=512), discriminator(family, fmap_base=512, fmap_max=512)):
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and parameter.numel() > 2000:
                assert abs(parameter.mean()) < 0.002 and abs(parameter.std() - 0.02) < 0.002, name
            if name.endswith("bias"):
                assert not parameter.any()


def test_published_shape_of_dcgan() -> None:
    """Radford et al. 2016, figure 1, with 4x4 kernels: 100 numbers, 4x4x1024, then half of it a doubling."""
    g = generator("dcgan", levels=5, latent_size=100, fmap_base=2048, fmap_max=1024)
    assert g.dense.shape == (1024 * 16, 100)
    shapes = [tuple(layer.weight.shape) for layer in [*g.layers, g.to_rgb]]
    assert shapes == [(1024, 512, 4, 4), (512, 256, 4, 4), (256, 128, 4, 4), (128, 3, 4, 4)]


@pytest.mark.parametrize("family", BASELINES)
def test_labels_change_pictures_and_scores(family: str) -> None:
    g, d = generator(family, label_size=3).eval(), discriminator(family, label_size=3)
    z, (one, two) = torch.randn(4, 8), torch.eye(3)[:2, None].expand(-1, 4, -1)
    images = g(z, one)
    assert not torch.equal(images, g(z, two))
    assert not torch.equal(d(images, one), d(images, two))
    with pytest.raises(UserError, match="conditional: labels must have shape"):
        g(z)
    with pytest.raises(UserError, match="conditional: labels must have shape"):
        d(images)


@pytest.mark.parametrize("family", BASELINES)
def test_one_resolution(family: str) -> None:
    with pytest.raises(UserError, match="8x8 is not a level of this network; it has 16x16"):
        generator(family)(torch.randn(2, 8), resolution=8)
    with pytest.raises(UserError, match="8x8 is not a level"):
        discriminator(family)(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_side_by_side_do_not_mix(family: str) -> None:
    d, images = discriminator(family, mbdisc_features=6), torch.randn(8, 3, 16, 16)

    def score(pictures: Tensor, parts: int = 1) -> Tensor:
        result = d(pictures, parts=parts)
        return result[0] if isinstance(result, tuple) else result

    both = score(images, parts=2)
    torch.testing.assert_close(both, torch.cat([score(part) for part in images.chunk(2)]))
    assert not torch.allclose(both, score(images))


@pytest.mark.parametrize("family", BASELINES)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_precision(family: str, precision: str, tolerance: float) -> None:
    """Pictures, scores and gradients in 16 bits are near float32's; what is kept is float32."""
    results = []
    for name in ("fp32", precision):
        g, d = (prepare(network, name) for network in (generator(family), discriminator(family)))
        images = g(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        score = d(images)
        gradient = torch.autograd.grad(score.sum(), images, create_graph=True)[0]
        gradient.square().sum().backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in [*g.parameters(), *d.parameters()])
        assert all(buffer.dtype == torch.float32 for buffer in g.buffers())
        assert images.dtype == score.dtype == gradient.dtype == torch.float32
        results.append((images, score, gradient))
    for ours, expected, bound in zip(*results, [tolerance, tolerance, 0.3], strict=True):
        assert 0 < (ours - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("family", BASELINES)
def test_frozen_networks_make_the_same_pictures(family: str) -> None:
    g, z = prepare(generator(family), "fp32").eval(), torch.randn(2, 8)
    expected = g(z)
    assert torch.equal(freeze(g)(z), expected)


def test_batch_norm() -> None:
    """Against torch's own module, in training and then with the running statistics."""
    norm, torchs = Norm("batch", 3, True), nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    torchs.load_state_dict(norm.state_dict(), strict=False)
    for _ in range(3):
        x = 2 + 3 * torch.randn(5, 3, 4, 4)
        torch.testing.assert_close(norm(x), torchs(x))
    torch.testing.assert_close(norm.eval()(x), torchs.eval()(x))
    assert not torch.allclose(norm.running_mean, torch.zeros(3), atol=0.1)
    layer = Norm("layer", 3, False)
    nn.init.ones_(layer.weight)
    torch.testing.assert_close(layer(x), F.layer_norm(x, x.shape[1:]))


@pytest.mark.parametrize("equalized", [False, True])
def test_minibatch_discrimination_by_hand(equalized: bool) -> None:
    """Salimans et al. 2016, section 3.2, one number at a time, but for the sum: here it is the mean."""
    layer = MinibatchDiscrimination(7, 3, 2, equalized=equalized).double()
    x = torch.randn(6, 7, dtype=torch.float64)
    found = layer(x, parts=2).detach().numpy()
    matrices, T = x.numpy(), layer.weight.detach().numpy() * (7**-0.5 if equalized else 1)
    np.testing.assert_array_equal(found[:, :7], matrices)
    for i in range(6):
        batch = range(3) if i < 3 else range(3, 6)
        for b in range(3):
            m = matrices @ T[:, b]
            expected = np.mean([np.exp(-np.abs(m[i] - m[j]).sum()) for j in batch])
            np.testing.assert_allclose(found[i, 7 + b], expected)


def test_feature_matching_by_hand() -> None:
    """Salimans et al. 2016, section 3.1; the objective beside it, or not."""
    reals, fakes = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3, requires_grad=True)
    inner: Any = lambda images: images.flatten(1).sin().mean(0)  # noqa: E731
    discriminate: Any = lambda images, *_: (images.sum((1, 2, 3))[:, None], None)  # noqa: E731

    def loss(**settings: float) -> Tensor:
        return g_loss(LossConfig(**settings), discriminate, fakes, reals[:, :0, 0, 0], reals, inner)[0]

    real, fake = reals.flatten(1).numpy(), fakes.detach().flatten(1).numpy()
    matching = ((np.sin(real).mean(0) - np.sin(fake).mean(0)) ** 2).sum()
    objective = np.log1p(np.exp(-fake.sum(1))).mean()
    alone = loss(adversarial_weight=0.0, feature_matching=3.0)
    np.testing.assert_allclose(alone.item(), 3 * matching, rtol=1e-5)
    np.testing.assert_allclose(loss(feature_matching=3.0).item(), objective + 3 * matching, rtol=1e-5)
    np.testing.assert_allclose(loss(adversarial_weight=0.5).item(), objective / 2, rtol=1e-5)
    alone.backward()
    assert fakes.grad is not None and fakes.grad.abs().sum() > 0


@pytest.mark.parametrize("family", BASELINES)
def test_every_loss_and_resume(family: str, tmp_path: Path) -> None:
    """One run a loss, of labelled rectangles with alpha; half and half is the whole, running statistics included."""
    data = data_zip(tmp_path / "noise.zip", size=(16, 8), mode="RGBA", classes=3)
    for name in presets.LOSSES:
        options = ["--loss", name, "--cond", "--mirror", "--set", "discriminator.mbdisc_features=4"]
        whole, halves = tmp_path / f"{name}-whole", tmp_path / f"{name}-halves"
        kimg = 0.08 if name == "wgan" else 0.032  # five steps of D an iteration
        invoke(train_arguments(family, data, whole, *options, kimg=2 * kimg))
        invoke(train_arguments(family, data, halves, *options, "--preview-kimg", kimg / 4, kimg=kimg))
        invoke(train_arguments(family, data, halves, *options, "--preview-kimg", 1, "--resume", kimg=2 * kimg))
        ours, theirs = (load_tensors(run / "state.ckpt")[0] for run in (whole, halves))
        assert ours.keys() == theirs.keys()
        assert not [key for key in ours if not ours[key].equal(theirs[key])], name
        running = [key for key in ours if "running" in key]
        assert bool(running) == (family == "dcgan")
        assert all(ours[key].std() > 0 for key in running)
        assert (whole / "network-000000.safetensors").read_bytes() == (
            halves / "network-000000.safetensors"
        ).read_bytes()


@pytest.mark.parametrize("family", BASELINES)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_generated_pictures_are_those_of_the_average(family: str, precision: str, tmp_path: Path) -> None:
    """`generate` shows G_ema with its own statistics: the same whatever else is in the batch."""
    run = tmp_path / "run"
    invoke(train_arguments(family, data_zip(tmp_path / "noise.zip"), run, "--precision", precision))
    tensors = load_tensors(run / "state.ckpt")[0]
    G, _ = load_network(run)
    for name, tensor in G.state_dict().items():
        assert torch.equal(tensor, tensors[f"G_ema/{name}"]), name
    with torch.no_grad():
        expected = to_uint8(prepare(G, "fp32")(latents(range(5), 8))).permute(0, 2, 3, 1).numpy()
    for batch in (1, 5):
        out = tmp_path / f"batch-{batch}"
        invoke(["generate", "--network", str(run), "--seeds", "0-4", "--out", str(out), "--batch", str(batch)])
        for seed in range(5):
            pixels = np.asarray(Image.open(out / f"seed{seed:04d}.png")).astype(int)
            assert np.abs(pixels - expected[seed]).max() <= 1
    shown = invoke(["info", str(run)]).stdout
    assert re.search(f"^family +{family}$", shown, re.M) and ("layer 1: 24" if family == "mlp" else "4x4: 16") in shown


REFUSED = {
    ("--hold-kimg", "1"): "schedule.hold_kimg is 1, but the family {} does not grow: give 0",
    ("--fade-kimg", "1"): "schedule.fade_kimg is 1, but the family {} does not grow: give 0",
    ("--set", "schedule.initial_level=0"): "schedule.initial_level is 0, but the family {} does not grow: give 2",
    ("--set", "generator.style_size=64"): "generator.style_size means nothing to the family {}; leave it at 512",
    ("--set", "discriminator.mbstd_group=2"): "discriminator.mbstd_group means nothing to the family {}; leave it at 4",
    ("--set", "loss.mixing_probability=0.5"): "loss.mixing_probability needs styles, which {} has not",
    ("--set", "loss.acgan_weight=1"): "loss.acgan_weight needs a class head in D, which {} has not",
    ("--set", "loss.adversarial_weight=0"): "loss.adversarial_weight is 0; give G something else to learn from",
    ("--set", "discriminator.mbdisc_features=-1"): "discriminator.mbdisc_features is -1; accepted: 0 and more",
}


@pytest.mark.parametrize("family", BASELINES)
def test_what_makes_no_sense_is_refused(family: str, tmp_path: Path) -> None:
    data, run = data_zip(tmp_path / "noise.zip"), tmp_path / "run"
    other = {"dcgan": "generator.hidden_width=5", "mlp": "generator.norm=layer"}[family]
    message = f"{other.partition('=')[0]} means nothing to the family {family}"
    for options, expected in {**REFUSED, ("--set", other): message}.items():
        error = invoke(train_arguments(family, data, run, "--dry-run", *options), code=2).stderr
        assert expected.format(family) in error, options
    growing = ["train", str(data), "--out", str(run), "--preset", "small-32", "--dry-run", "--set"]
    assert "means nothing to the family stylegan" in invoke([*growing, "generator.norm=none"], code=2).stderr
    invoke(train_arguments(family, data, run))
    error = invoke(
        ["generate", "--network", str(run), "--seeds", "0", "--out", str(run), "--resolution", "8"], 2
    ).stderr
    assert "8x8 is not a level of this network; it has 16x16" in error


@pytest.mark.parametrize("preset", ["small-32", "progan-1024"])
def test_families_that_grow_have_the_options_too(preset: str, tmp_path: Path) -> None:
    """Minibatch discrimination in D's last level, feature matching on its dense layer."""
    data = data_zip(tmp_path / "noise.zip", classes=3)
    sets = ["loss.feature_matching=0.5", "discriminator.mbdisc_features=4", "generator.fmap_max=8"]
    flags = [part for assignment in [*sets, "discriminator.fmap_max=8"] for part in ("--set", assignment)]
    run = ["train", str(data), "--out", str(tmp_path / "run"), "--preset", preset, "--cond", "--batch", "8", *flags]
    invoke([*run, "--kimg", "0.016", "--device", "cpu", "--set", "schedule.tick_kimg_default=0.01"])
    tensors = load_tensors(tmp_path / "run" / "state.ckpt")[0]
    assert tensors["opt_d/tail.mbdisc.weight.exp_avg"].abs().sum() > 0
    assert "loss/g_features" in (tmp_path / "run" / "stats.jsonl").read_text()


def test_recipes_follow_the_family() -> None:
    dcgan, mlp = (presets.preset(name, (32, 64), 3, 0) for name in ("dcgan-64", "mlp-32"))
    assert dcgan.generator.base == (4, 8) and dcgan.schedule.initial_level == dcgan.generator.levels - 1 == 3
    assert dcgan.generator.fmap_base >> 3 == 64
    assert presets.with_loss(dcgan, "wgan-gp").discriminator.norm == "layer"
    assert presets.with_loss(dcgan, "hinge").discriminator.norm == "batch"
    assert presets.with_loss(mlp, "wgan").loss.weight_clip == 0.01
    assert presets.with_loss(presets.preset("small-32", (32, 32), 3, 0), "wgan").loss.weight_clip == 0.5
    matching = presets.with_loss(mlp, "feature-matching")
    assert (matching.loss.adversarial_weight, matching.loss.feature_matching) == (0, 1)
    assert presets.with_loss(matching, "hinge").loss.adversarial_weight == 1
