"""Projection finds what can be found, penalties are what they say, and the command writes what it should."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import FAST, GENERATOR, Averages, generated, invoke, projected
from torch.nn import functional as F

from stylegen.checkpoint import load_network
from stylegen.config import GeneratorConfig
from stylegen.latents import latents, one_hot
from stylegen.metrics.similarity import psnr, ssim
from stylegen.networks import build_generator
from stylegen.perceptual import load_perceptual
from stylegen.projection import Settings, noise_penalty, own_noise, plateau, project, ramp, renormalise, tune


@pytest.fixture
def G():
    torch.manual_seed(0)
    return build_generator(GeneratorConfig(**GENERATOR, noise=False)).eval().requires_grad_(False)


def made(G, seeds, labels=None):
    with torch.no_grad():
        return G(latents(seeds, 8), labels)


def test_generated_pictures_are_found_again(G):
    targets = made(G, [1, 2, 3])
    steps = []
    found = project(G, targets, Averages(), Settings(**FAST), each=lambda *a: steps.append(a))
    assert found.w.shape == (3, 6, 8)
    assert (found.w == found.w[:, :1]).all()
    assert len(steps) == len(found.losses)
    assert found.losses.shape[1] == 3
    assert (psnr(G.synthesis(found.w), targets) > 30).all()


def test_w_plus_finds_what_w_cannot(G):
    with torch.no_grad():
        w = G.mapping(latents([1, 2, 3, 4], 8)).clone()
        w[:, 3:] = w.flip(0)[:, 3:]
        targets = G.synthesis(w)
    w, plus = (project(G, targets, Averages(), Settings(space=space, **FAST)) for space in ("w", "w+"))
    assert not (plus.w == plus.w[:, :1]).all()
    assert plus.losses[-1].median() < w.losses[-1].median() / 3
    tied = project(G, targets, Averages(), Settings(space="w+", deviation=1e3, **FAST))
    assert tied.w.std(1).mean() < plus.w.std(1).mean() / 10


def test_a_picture_is_found_whatever_its_company(G):
    targets = made(G, [1, 2])
    settings = Settings(steps=30, starts=64, w_noise=0, patience=0)
    together = project(G, targets, Averages(), settings).w
    alone = torch.cat([project(G, target[None], Averages(), settings).w for target in targets])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-2)
    again = project(G, targets, Averages(), settings).w
    assert torch.equal(together, again)


def test_classes_start_from_their_own():
    torch.manual_seed(1)
    G = build_generator(GeneratorConfig(**GENERATOR, label_size=3, noise=False)).eval().requires_grad_(False)
    torch.nn.init.normal_(G.map.embedding, std=5)
    labels = one_hot([2, 0], 3)
    targets = made(G, [5, 6], labels)
    right, wrong = (
        project(G, targets, Averages(), Settings(steps=1, starts=200), given).losses[0]
        for given in (labels, one_hot([0, 2], 3))
    )
    assert (right < wrong).all()


def test_starts_and_patience(G):
    targets = made(G, [1, 2])
    best, average = (project(G, targets, Averages(), Settings(steps=1, starts=n)).losses[0] for n in (500, 0))
    assert (best < average).all()
    stopped = project(G, targets, Averages(), Settings(steps=1000, starts=64, lr=1e-9, w_noise=0))
    assert len(stopped.losses) == 2 * 150 + 250  # a plateau from the start, then the end of the learning rate's ramp
    history = [torch.tensor([value]) for value in (1.0, 0.9, 0.8, 0.7, 0.5, *[0.51] * 5)]
    settings = Settings(steps=10, patience=0.5)
    assert plateau(history, settings)
    assert not plateau(history[:9], settings)
    assert not plateau([*history, torch.tensor([0.3])], settings)
    assert not plateau(history, Settings(steps=10, patience=0))


def test_learning_rate_ramps():
    settings = Settings()
    assert ramp(0, settings) == 0
    assert ramp(0.025, settings) == pytest.approx(0.5)
    assert ramp(0.05, settings) == ramp(0.75, settings) == 1
    assert ramp(0.875, settings) == pytest.approx(0.5)
    assert ramp(1, settings) == pytest.approx(0)


def test_noise_maps_are_searched_and_given_back():
    torch.manual_seed(0)
    G = build_generator(GeneratorConfig(**GENERATOR)).eval().requires_grad_(False)
    for layer in G.synthesis.layers:
        layer.noise_strength.fill_(0.3)
    before = [layer.noise.clone() for layer in G.synthesis.layers]
    found = project(G, made(G, [1, 2]), Averages(), Settings(**FAST))
    assert all(torch.equal(layer.noise, noise) for layer, noise in zip(G.synthesis.layers, before, strict=True))
    assert len(found.noise) == 6
    for maps in found.noise.values():
        assert maps.shape[:2] == (2, 1)
        torch.testing.assert_close(maps.square().mean((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    with own_noise(G, 3, torch.Generator().manual_seed(0)) as noise:
        G.synthesis(torch.zeros(3, 6, 8)).square().sum().backward()
        assert all(maps.grad is not None and maps.grad.abs().sum() > 0 for maps in noise.values())


def test_noise_gradient():
    from stylegen.ops import adain_epilogue

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    strength, bias, style = torch.randn(3).double(), torch.randn(3).double(), torch.randn(2, 6).double()
    for shape in ((2, 1, 4, 4), (1, 1, 4, 4)):
        noise = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        torch.autograd.gradcheck(lambda n: adain_epilogue(x, n, strength, bias, style), noise)


def test_noise_penalty():
    white = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = F.avg_pool2d(white, 3, 1, 1)
    maps = {"a": white.clone(), "b": smooth.clone()}
    renormalise(maps)
    assert abs(float(maps["b"].mean())) < 1e-6
    white_penalty, smooth_penalty = (noise_penalty({"x": x}, 2) for x in maps.values())
    assert white_penalty.shape == (2,)
    assert (smooth_penalty > 20 * white_penalty).all()
    assert noise_penalty({}, 2).tolist() == [0, 0]


def test_tuning_reaches_what_w_cannot(G):
    targets = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    w = project(G, targets, Averages(), Settings(**FAST)).w
    weights = {name: value.clone() for name, value in G.state_dict().items()}
    tuned = tune(G, w, targets, Averages(), steps=200, lr=3e-3)
    before, after = (psnr(network.synthesis(w), targets) for network in (G, tuned))
    assert (after > before + 1).all()
    assert all(torch.equal(value, weights[name]) for name, value in G.state_dict().items())


def test_similarity():
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    a = torch.rand(3, 3, 24, 17, generator=torch.Generator().manual_seed(0)) * 2 - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    x, y = (a + 1) / 2, (b + 1) / 2
    expected = [peak_signal_noise_ratio(y[k], x[k], data_range=1.0) for k in range(3)]
    torch.testing.assert_close(psnr(a, b), torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert ssim(a, a).tolist() == [1, 1, 1]
    expected = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(a, b), expected, rtol=0.02, atol=0.01)  # theirs pads the border


# ---- the command ----


@pytest.fixture
def pictures(networks, tmp_path):
    invoke(
        ["generate", "--network", str(networks["rgb"]), "--seeds", "7-8", "--trunc", "1", "--out", str(tmp_path / "x")]
    )
    return [str(path) for path in sorted((tmp_path / "x").iterdir())]


def test_command(networks, pictures, tmp_path):
    out = tmp_path / "out"
    result = projected(networks["rgb"], pictures, out, "--batch", "1")
    assert "seed0007: perceptual distance " in result.stdout
    assert "PSNR" in result.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "latents.npz",
        "loss.png",
        "seed0007-target.png",
        "seed0007.png",
        "seed0008-target.png",
        "seed0008.png",
        "sheet.png",
    ]
    assert Image.open(out / "sheet.png").size == (32, 32)
    assert (np.asarray(Image.open(out / "seed0007-target.png")) == np.asarray(Image.open(pictures[0]))).all()
    saved = np.load(out / "latents.npz")
    assert saved["w"].shape == (2, 6, 8)
    generated(networks["rgb"], tmp_path / "y", seeds=str(out / "latents.npz"))
    shown, found = (np.asarray(Image.open(path)) for path in (tmp_path / "y" / "latent0001.png", out / "seed0008.png"))
    assert abs(shown.astype(int) - found).max() <= 1


def test_tuned_network_takes_its_parents_latents(networks, pictures, tmp_path):
    out = tmp_path / "out"
    projected(networks["rgb"], pictures, out, "--tune", "--tune-steps", "2", "--video", str(out / "film"))
    assert len(list((out / "film").iterdir())) == 6
    tuned, provenance = load_network(out / "tuned.safetensors")
    assert not torch.equal(tuned.synthesis.const, load_network(networks["rgb"])[0].synthesis.const)
    assert len(provenance["parents"]) == 1
    file = generated(networks["rgb"], tmp_path / "a", "--npz", seeds="1") / "latents.npz"
    generated(out / "tuned.safetensors", tmp_path / "b", seeds=str(file))
    back = [
        "generate",
        "--network",
        str(networks["rgb"]),
        "--seeds",
        str(out / "latents.npz"),
        "--out",
        str(tmp_path / "c"),
    ]
    assert "latents of another network" in invoke(back, 1).stderr


def test_other_pictures_are_fitted(networks, tmp_path):
    Image.new("LA", (40, 20), (9, 128)).save(tmp_path / "wide.png")
    for kind in ("rgba", "gray", "classes"):
        klass = ["--class", "dog"] if kind == "classes" else []
        projected(networks[kind], [str(tmp_path / "wide.png")], tmp_path / kind, "--fit", "pad", *klass)
        assert Image.open(tmp_path / kind / "wide.png").size == (16, 32 if kind == "rgba" else 16)
    assert np.load(tmp_path / "classes" / "latents.npz")["classes"].tolist() == [2]


def test_what_cannot_be_projected(networks, pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for kind, images, options, code, message in [
        ("rgb", ["missing.png"], [], 2, "there is no picture missing.png"),
        ("rgb", [str(tmp_path / "text.png")], [], 1, "text.png is not a picture that can be read"),
        ("progan", pictures, [], 1, "a progan network has no styles to search"),
        ("rgb", pictures, ["--features", "vgg.pt"], 1, "no features 'vgg.pt'"),
        ("rgb", pictures, ["--class", "1"], 2, "this network has no classes"),
        ("rgb", pictures, ["--video", "a.mov"], 2, "a video is .mp4"),
        ("rgb", [str(tmp_path)], [], 2, "is a folder; give the pictures in it"),
        ("rgb", pictures, ["--tune-steps", "3"], 2, "--tune-steps means nothing without --tune"),
        ("classes", pictures, [], 2, "tell which one the pictures show: --class"),
        ("rgb", pictures, ["--video", "film", "--batch", "1"], 2, "--video shows one batch; give at most 1 pictures"),
    ]:
        assert message in projected(networks[kind], images, tmp_path / "out", *options, code=code).stderr
        assert not (tmp_path / "out").exists()


def test_torchscript_features(networks, pictures, tmp_path):
    class Means(torch.nn.Module):
        def forward(self, images, return_features: bool = False):
            return F.adaptive_avg_pool2d(images.float(), 4).flatten(1) / 255

    torch.jit.script(Means()).save(str(tmp_path / "means.pt"))
    perceptual = load_perceptual(str(tmp_path / "means.pt"))
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    perceptual.embed(images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert perceptual.embed(torch.rand(2, 3, 512, 300)).shape == (2, 48)
    projected(networks["rgb"], pictures, tmp_path / "out", "--features", str(tmp_path / "means.pt"))
    message = projected(networks["rgb"], pictures, tmp_path / "x", "--features", "pixels", code=1).stderr
    assert "pixels features have no gradient; give lite0 or a TorchScript file" in message
