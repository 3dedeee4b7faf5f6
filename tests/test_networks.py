"""Families that grow: finite, every used parameter has a gradient, fades are continuous, any base, any channels."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stylegen.config import GROWING, DiscriminatorConfig, GeneratorConfig
from stylegen.errors import UserError
from stylegen.networks import build_discriminator, build_generator
from stylegen.networks.layers import Conv, downscale, minibatch_stddev, upscale
from stylegen.precision import freeze, prepare

SMALL = {"fmap_base": 64, "fmap_max": 8}


def generator(family, **options):
    sizes = {"latent_size": 8, "style_size": 12, "mapping_layers": 2, "mapping_width": 10}
    torch.manual_seed(0)
    network = build_generator(GeneratorConfig(family=family, **SMALL, **sizes, **({"levels": 3} | options)))
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "noise_strength", "const")):
            torch.nn.init.normal_(parameter)
    return network


def discriminator(family, **options):
    torch.manual_seed(1)
    return build_discriminator(DiscriminatorConfig(family=family, **SMALL, **({"levels": 3} | options)))


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("family", GROWING)
@pytest.mark.parametrize("channels,base,label_size", [(3, (4, 4), 0), (1, (7, 7), 5), (4, (8, 4), 2)])
def test_shapes_and_gradients(family, channels, base, label_size):
    options = {"channels": channels, "base": base, "label_size": label_size}
    g, d = generator(family, **options), discriminator(family, **options)
    labels = F.one_hot(torch.arange(4) % label_size, label_size).float() if label_size else None
    for level in range(3):
        size = (base[0] << level, base[1] << level)
        for alpha in (1.0, 0.3):
            g.zero_grad(), d.zero_grad()
            images = g(torch.randn(4, 8), labels, resolution=size, alpha=alpha)
            assert images.shape == (4, channels, *size)
            result = d(images, labels, alpha=alpha)
            assert first(result).shape == (4, 1)
            loss = sum(part.square().sum() for part in (result if isinstance(result, tuple) else (result,)))
            loss.backward()
            assert loss.isfinite()
    for network in (g, d):
        for name, parameter in network.named_parameters():
            below = name.startswith(("synthesis.to_rgb", "to_rgb", "from_rgb")) and ".0." in name
            assert below or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", GROWING)
def test_only_the_layers_of_the_resolution_are_computed(family):
    g, d = generator(family), discriminator(family)
    first(d(g(torch.randn(2, 8), resolution=8))).sum().backward()
    unused = {n for net in (g, d) for n, p in net.named_parameters() if p.grad is None}
    fine = ("layers.4", "layers.5", "to_rgb.2", "to_rgb.0", "blocks.2", "from_rgb.2", "from_rgb.0", "blocks.1.")
    assert unused and all(any(part in name for part in fine) for name in unused), unused


@pytest.mark.parametrize("family", GROWING)
def test_a_fade_starts_at_the_level_below_and_ends_at_the_level(family):
    g, d = generator(family), discriminator(family)
    z = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(g(z, resolution=16, alpha=0.0), upscale(g(z, resolution=8)))
        torch.testing.assert_close(g(z, resolution=16, alpha=1 - 1e-6), g(z, resolution=16), atol=1e-4, rtol=1e-4)
        images = g(z, resolution=16)
        torch.testing.assert_close(first(d(images, alpha=0.0)), first(d(downscale(images))))
        torch.testing.assert_close(first(d(images, resolution=8)), first(d(downscale(images))))


def test_scaled_convolutions_equal_their_plain_form():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for scale in ("up", "fused_up", "down"):
        conv = Conv(3, 4, scale=scale).double()
        weight = conv.weight * conv.coef
        if scale == "down":
            torch.testing.assert_close(conv(x), F.avg_pool2d(F.conv2d(x, weight, padding=1), 2))
        else:
            weight = weight if scale == "up" else weight.flip([2, 3])
            torch.testing.assert_close(conv(x), F.conv2d(upscale(x), weight, padding=1))


def test_minibatch_stddev_groups_are_strided():
    x = torch.randn(8, 3, 2, 2, dtype=torch.float64)
    y = minibatch_stddev(x, 4)
    for i in range(8):
        group = x[i % 2 :: 2].numpy()
        expected = np.sqrt(group.var(0) + 1e-8).mean()
        np.testing.assert_allclose(y[i, 3].numpy(), expected)
    assert minibatch_stddev(x[:5], 4).shape == (5, 4, 2, 2)  # 5 is prime: groups of one
    assert minibatch_stddev(x[:6], 4, 3).shape == (6, 6, 2, 2)


def test_official_size():
    g = build_generator(GeneratorConfig())
    assert sum(p.numel() for p in g.parameters()) == 26_219_627


def test_truncation_and_noise():
    g = generator("stylegan")
    z = torch.randn(2, 8)
    w = g.mapping(z)
    g.w_avg.normal_()
    assert g.truncate(w, 0.5, None) is w
    halfway = g.truncate(w, 0.5, 2)
    torch.testing.assert_close(halfway[:, :2], (w[:, :2] + g.w_avg) / 2)
    torch.testing.assert_close(halfway[:, 2:], w[:, 2:])
    with torch.no_grad():
        assert torch.equal(g(z), g(z))
        draws = [g(z, noise="random", generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_running_average_of_w():
    g = generator("stylegan")
    w = g.mapping(torch.randn(6, 8))
    g.update_w_avg(w)
    torch.testing.assert_close(g.w_avg, w[:, 0].mean(0) * 0.005)


def test_mistakes_are_named():
    g = generator("stylegan", label_size=3)
    with pytest.raises(UserError, match="conditional: labels must have shape"):
        g(torch.randn(2, 8))
    with pytest.raises(UserError, match="resolution 12x12 is not a level of this network; it has 4x4, 8x8, 16x16"):
        generator("progan")(torch.randn(2, 8), resolution=12)
    with pytest.raises(UserError, match="is not a level"):
        discriminator("stylegan")(torch.zeros(1, 3, 12, 12))


def test_options_change_what_is_computed():
    z = torch.randn(2, 8)
    plain = generator("stylegan")
    reference = plain(z)
    changes = ({"noise": False}, {"styles": False}, {"instance_norm": False}, {"blur_filter": ()})
    changes += ({"activation": "relu"}, {"pixel_norm": True}, {"fused_scale": "on"}, {"normalize_latents": False})
    for options in changes:
        other = generator("stylegan", **options)
        other.load_state_dict(plain.state_dict(), strict=False)
        assert not torch.allclose(other(z), reference, atol=1e-3), options
    progan = generator("progan")
    for options in ({"tanh_output": True}, {"pixel_norm": True}, {"fused_scale": "off"}):
        other = generator("progan", **options)
        other.load_state_dict(progan.state_dict())
        assert not torch.allclose(other(z), progan(z), atol=1e-3), options
    images = torch.randn(4, 3, 16, 16)
    for options in ({"mbstd_group": 1}, {"mbstd_group": 2}, {"blur_filter": ()}):
        base = DiscriminatorConfig(**SMALL, levels=3)
        torch.manual_seed(0)
        scores = build_discriminator(base)(images)
        torch.manual_seed(0)
        assert not torch.allclose(build_discriminator(dataclasses.replace(base, **options))(images), scores), options


@pytest.mark.parametrize("family", GROWING)
def test_batches_side_by_side_do_not_mix(family):
    """D scores two batches in one call as it does one after the other."""
    d, images = discriminator(family), torch.randn(8, 3, 16, 16)
    both = first(d(images, parts=2))
    torch.testing.assert_close(both, torch.cat([first(d(part)) for part in images.chunk(2)]))
    assert not torch.allclose(both, first(d(images)))


@pytest.mark.parametrize("family", GROWING)
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_precision(family, precision, tolerance):
    """Pictures and scores in 16 bits are near float32's, gradients as near as the kinks let; the rest is float32."""
    results = []
    for name in ("fp32", precision):
        g, d = (prepare(network, name) for network in (generator(family), discriminator(family)))
        images = g(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        score = first(d(images))
        gradient = torch.autograd.grad(score.sum(), images, create_graph=True)[0]
        gradient.square().sum().backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in [*g.parameters(), *d.parameters()])
        assert images.dtype == score.dtype == gradient.dtype == torch.float32
        results.append((images, score, gradient, d.blocks[0].conv0.weight.grad))
    for ours, expected, bound in zip(*results, [tolerance, tolerance, 0.3, 0.3], strict=True):
        assert 0 < (ours - expected).norm() < bound * expected.norm()


@pytest.mark.parametrize("family", GROWING)
def test_frozen_networks_make_the_same_pictures(family):
    g, z = prepare(generator(family), "fp32"), torch.randn(2, 8)
    expected = g(z)
    assert torch.equal(freeze(g)(z), expected)
