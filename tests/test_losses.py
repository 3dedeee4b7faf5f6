import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from stylegen import legacy
from stylegen.config import OBJECTIVES, LossConfig
from stylegen.errors import UserError
from stylegen.training import losses
from stylegen.training.losses import check, clip_weights, d_loss, g_loss, squared_gradients

GOLDEN = Path(__file__).parent / "golden"
EXACT = {"rtol": 1e-4, "atol": 1e-5}
WGAN_GP = LossConfig("wasserstein", gp_weight=10.0, drift=0.001)
OFFICIAL = {
    "G_logistic_nonsaturating": LossConfig("nonsaturating"),
    "G_logistic_saturating": LossConfig("minimax"),
    "G_wgan": LossConfig("wasserstein"),
    "G_wgan_acgan": LossConfig("wasserstein", acgan_weight=1.0),
    "D_logistic": LossConfig("nonsaturating"),
    "D_logistic_simplegp_r1_10": LossConfig("nonsaturating", r1_gamma=10.0),
    "D_logistic_simplegp_r1_0_r2_10": LossConfig("minimax", r2_gamma=10.0),
    "D_wgan": LossConfig("wasserstein", drift=0.001),
    "D_wgan_gp": WGAN_GP,
    "D_wgangp_acgan": WGAN_GP,
    "D_hinge": LossConfig("hinge"),
    "D_hinge_gp": LossConfig("hinge", gp_weight=10.0),
}


class Official:
    """The networks and inputs of a loss golden, at one level of detail."""

    def __init__(self, family: str, lod: str):
        name = {"stylegan": "sg1_loss", "progan": "pg_loss"}[family]
        with np.load(GOLDEN / f"{name}.npz") as file:
            self.arrays = dict(file)
        meta = json.loads(str(self.arrays["meta"]))
        self.family = family
        self.G, self.D = (
            legacy.from_variables(f"{family}.{n}", self.under(f"var{n}/"), meta[f"{n}_kwargs"]) for n in "GD"
        )
        resolution = meta["G_kwargs"]["resolution"]
        self.side, self.alpha = legacy.stage_of_lod(float(lod), resolution)
        self.upscale = resolution // self.side
        self.z, self.labels, self.mixing = (self.tensor(name) for name in ("z", "labels", "mixing_factors"))
        self.reals = avg_pool2d(self.tensor("reals"), self.upscale)

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"in/{name}"])

    def under(self, prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def fakes(self) -> Tensor:
        return self.G(self.z, self.labels, resolution=self.side, alpha=self.alpha)

    def discriminate(self, images: Tensor, labels: Tensor, parts: int) -> tuple[Tensor, Tensor | None]:
        scores = self.D(images, labels, alpha=self.alpha, parts=parts)
        return scores if self.family == "progan" else (scores, None)

    def loss(self, name: str) -> Tensor:
        if name.startswith("G"):
            return g_loss(OFFICIAL[name], self.discriminate, self.fakes(), self.labels)[0]
        run = partial(d_loss, OFFICIAL[name], self.discriminate, self.reals, self.fakes(), self.labels)
        return run(penalise=True, mixing_factors=self.mixing, upscale=self.upscale)[0]

    def check_gradients(self, loss: Tensor, network: str, prefix: str) -> None:
        module = {"G": self.G, "D": self.D}[network]
        module.zero_grad()
        loss.backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}
        found = legacy.to_official(f"{self.family}.{network}", gradients, module.config)
        expected = self.under(prefix)
        assert expected
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, err_msg=f"{prefix}{name}", **EXACT)


LODS = [("stylegan", "0"), ("stylegan", "0.5"), ("stylegan", "1.25"), ("progan", "0"), ("progan", "0.4")]


@pytest.mark.parametrize(("family", "lod"), LODS)
def test_official_losses_and_gradients(family: str, lod: str) -> None:
    official = Official(family, lod)
    names = official.under(f"loss/lod{lod}/")
    assert len(names) == (10 if family == "stylegan" else 2)
    for name, per_sample in names.items():
        loss = official.loss(name)
        np.testing.assert_allclose(loss.item(), per_sample.mean(), err_msg=name, **EXACT)
        prefix = f"grad/lod{lod}/{name[0] if family == 'progan' else name}/"
        if official.under(prefix):
            official.check_gradients(loss, name[0], prefix)


@pytest.mark.parametrize("lod", ["0", "0.5", "1.25"])
def test_official_r1_penalty(lod: str) -> None:
    official = Official("stylegan", lod)
    reals = official.reals.requires_grad_()
    squared = squared_gradients(official.discriminate(reals, official.labels, 1)[0], reals, official.upscale)
    np.testing.assert_allclose(squared.detach(), official.arrays[f"r1_penalty/lod{lod}"], **EXACT)
    official.check_gradients(5 * squared.mean(), "D", f"grad/lod{lod}/D_R1term_only/")


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def scored(cfg: LossConfig, real: Tensor, fake: Tensor, flips: Tensor | None = None) -> float:
    """D's loss when pictures are their own scores."""
    images = real[:, :, None, None], fake[:, :, None, None]
    return d_loss(cfg, lambda x, *_: (x[:, :, 0, 0], None), *images, real[:, :0], penalise=False, flips=flips)[0].item()


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


# the textbook form of each objective: D's of (real score a, fake score b), G's of the same
BY_HAND: dict[str, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "minimax": (lambda a, b: -log_sigmoid(a) - log_sigmoid(-b), lambda a, b: log_sigmoid(-b)),
    "nonsaturating": (lambda a, b: -log_sigmoid(a) - log_sigmoid(-b), lambda a, b: -log_sigmoid(b)),
    "wasserstein": (lambda a, b: b - a, lambda a, b: -b),
    "hinge": (lambda a, b: max(0, 1 - a) + max(0, 1 + b), lambda a, b: -b),
    "least_squares": (lambda a, b: 0.5 * (a - 1) ** 2 + 0.5 * b**2, lambda a, b: 0.5 * (b - 1) ** 2),
    "relativistic": (lambda a, b: -log_sigmoid(a - b), lambda a, b: -log_sigmoid(b - a)),
}
REAL, FAKE = (0.7, -1.6, 2.5), (0.3, -2.0, 1.1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_by_hand(objective: str) -> None:
    by_hand_d, by_hand_g = BY_HAND[objective]
    pairs = list(zip(REAL, FAKE, strict=True))
    real, fake = numbers(*REAL), numbers(*FAKE)
    assert scored(LossConfig(objective), real, fake) == pytest.approx(np.mean([by_hand_d(*pair) for pair in pairs]))
    discriminate = lambda x, *_: (x, None)  # noqa: E731
    loss, _ = g_loss(LossConfig(objective), discriminate, fake, real[:, :0], real)
    assert loss.item() == pytest.approx(np.mean([by_hand_g(*pair) for pair in pairs]))
    flips = torch.tensor([[True], [False], [True]])
    flipped = [(b, a) if flip else (a, b) for (a, b), flip in zip(pairs, flips, strict=True)]
    expected = np.mean([by_hand_d(*pair) for pair in flipped])
    assert scored(LossConfig(objective), real, fake, flips) == pytest.approx(expected)


def test_one_sided_label_smoothing_by_hand() -> None:
    for objective in ("minimax", "nonsaturating"):
        loss = scored(LossConfig(objective, label_smoothing=0.1), numbers(0.7), numbers(0.3))
        assert loss == pytest.approx(-0.9 * log_sigmoid(0.7) - 0.1 * log_sigmoid(-0.7) - log_sigmoid(-0.3))
    loss = scored(LossConfig("least_squares", label_smoothing=0.1), numbers(0.7), numbers(0.3))
    assert loss == pytest.approx(0.5 * (0.7 - 0.9) ** 2 + 0.5 * 0.3**2)


@pytest.mark.parametrize("objective", ["wasserstein", "hinge", "relativistic"])
def test_smoothing_without_a_target_is_refused(objective: str) -> None:
    check(LossConfig(objective, label_flip=0.1))
    with pytest.raises(UserError, match=f"label_smoothing is 0.1, but {objective} has no target"):
        check(LossConfig(objective, label_smoothing=0.1))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.objective is 'gan'; accepted: minimax, nonsaturating"):
        check(LossConfig("gan"))
    with pytest.raises(UserError, match="gp_target is -1"):
        check(LossConfig(gp_target=-1.0))
    assert set(losses.OBJECTIVES) == set(OBJECTIVES)


def test_penalties_and_terms_by_hand() -> None:
    """D(x) = sum(c x^2) / 2 has the gradient c x; logits are fixed."""
    c = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)[:, None, None]
    reals = torch.linspace(-1, 2, 12, dtype=torch.float64).view(2, 3, 1, 2)
    fakes = torch.linspace(1, -3, 12, dtype=torch.float64).view(2, 3, 1, 2)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    logits = torch.tensor([[2.0, 1.0], [0.5, -0.5]], dtype=torch.float64)
    class_loss = (-log_sigmoid(1.0) - log_sigmoid(-1.0)) / 2

    def score(x: Tensor) -> Tensor:
        return (c * x.square()).sum(dim=(1, 2, 3), keepdim=True)[:, :, 0, 0] / 2

    def squared(x: Tensor) -> Tensor:
        return (c * x).square().sum(dim=(1, 2, 3))

    def loss(penalise: bool = True, **terms: Any) -> float:
        cfg = LossConfig("wasserstein", **terms)
        factors = torch.tensor([0.25, 0.75], dtype=torch.float64).view(2, 1, 1, 1)
        run = partial(d_loss, cfg, lambda x, _, parts: (score(x), logits.repeat(parts, 1)), reals, fakes, labels)
        plain = (score(fakes) - score(reals)).mean()
        return (run(penalise=penalise, mixing_factors=factors, upscale=2)[0] - plain).item()

    mixed = torch.stack([0.75 * reals[0] + 0.25 * fakes[0], 0.25 * reals[1] + 0.75 * fakes[1]])
    assert loss() == 0
    assert loss(r1_gamma=3.0) == pytest.approx(3 / 2 * squared(reals).mean().item() / 4)
    assert loss(r2_gamma=3.0) == pytest.approx(3 / 2 * squared(fakes).mean().item() / 4)
    assert loss(r1_gamma=3.0, penalty_interval=5) == pytest.approx(5 * loss(r1_gamma=3.0))
    assert loss(r1_gamma=3.0, r2_gamma=1.0, gp_weight=2.0, penalise=False) == 0
    assert loss(gp_weight=3.0, gp_target=0.0) == pytest.approx(3 * squared(mixed).mean().item() / 4)
    norms = squared(mixed).sqrt() / 2
    assert loss(gp_weight=3.0, gp_target=5.0) == pytest.approx(3 * ((norms - 5) ** 2 / 25).mean().item())
    assert loss(drift=0.5, penalise=False) == pytest.approx(0.5 * score(reals).square().mean().item())
    assert loss(acgan_weight=0.5) == pytest.approx(0.5 * 2 * class_loss)
    g, stats = g_loss(LossConfig("wasserstein", acgan_weight=0.5), lambda x, *_: (score(x), logits), fakes, labels)
    assert g.item() == pytest.approx(-score(fakes).mean().item() + 0.5 * class_loss)
    assert stats["loss/g_class"].item() == pytest.approx(class_loss)


def test_penalty_of_a_flat_discriminator_has_finite_gradients() -> None:
    weight = torch.zeros(1, requires_grad=True)
    images = torch.ones(2, 1, 4, 4)
    discriminate = lambda x, *_: ((x * weight).sum(dim=(2, 3)), None)  # noqa: E731
    run = partial(d_loss, WGAN_GP, discriminate, images, images, images[:, :0, 0, 0])
    loss, _ = run(penalise=True, mixing_factors=torch.full((2, 1, 1, 1), 0.5))
    loss.backward()
    assert loss.item() == pytest.approx(10)
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_statistics_are_detached() -> None:
    D = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
    reals, fakes = torch.randn(8, 1, 1, 2), torch.randn(8, 1, 1, 2)
    cfg = LossConfig(r1_gamma=1.0, r2_gamma=1.0, gp_weight=1.0, drift=1.0)
    run = partial(d_loss, cfg, lambda x, *_: (D(x), None), reals, fakes, reals[:, :0, 0, 0])
    loss, stats = run(penalise=True, mixing_factors=torch.rand(8, 1, 1, 1))
    assert loss.requires_grad
    assert set(stats) == {
        "loss/d",
        "scores/real",
        "scores/fake",
        "signs/real",
        "penalty/r1",
        "penalty/r2",
        "penalty/gp",
        "penalty/drift",
    }
    assert not any(value.requires_grad or value.ndim for value in stats.values())
    assert stats["signs/real"].item() == pytest.approx(D(reals).sign().mean().item())


def test_lazy_penalties_have_the_same_mean_gradient() -> None:
    """The average over an interval of k steps, one of them penalised, is the gradient of every step penalised."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 1)).double()
    reals, fakes = torch.randn(2, 16, 1, 1, 2, dtype=torch.float64)

    def gradient(interval: int, penalise: bool) -> Tensor:
        cfg = LossConfig(r1_gamma=2.0, penalty_interval=interval)
        loss, _ = d_loss(cfg, lambda x, *_: (D(x), None), reals, fakes, reals[:, :0, 0, 0], penalise=penalise)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(D.parameters()))])

    lazy = torch.stack([gradient(4, step % 4 == 0) for step in range(4)]).mean(dim=0)
    torch.testing.assert_close(lazy, gradient(1, True))
    assert not torch.allclose(gradient(1, False), gradient(1, True))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_d_learns_to_separate_and_g_to_follow(objective: str) -> None:
    torch.manual_seed(0)
    cfg = LossConfig(objective, r1_gamma=0.1)
    D = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    discriminate = lambda x, *_: (D(x), None)  # noqa: E731
    centre = torch.tensor([2.0, -1.0])
    shift = torch.zeros(2, requires_grad=True)

    def samples(mean: Tensor) -> Tensor:
        return (0.5 * torch.randn(64, 2) + mean).view(64, 1, 1, 2)

    optimizer = torch.optim.Adam(D.parameters(), lr=0.02, betas=(0.0, 0.99))
    labels = torch.zeros(64, 0)
    for _ in range(40):
        loss, _ = d_loss(cfg, discriminate, samples(centre), samples(torch.zeros(2)), labels, penalise=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        boundary = (D(samples(centre)).mean() + D(samples(torch.zeros(2))).mean()) / 2
        assert (D(samples(centre)) > boundary).float().mean() > 0.95
        assert (D(samples(torch.zeros(2))) < boundary).float().mean() > 0.95
    g_loss(cfg, discriminate, samples(shift), labels, samples(centre))[0].backward()
    assert shift.grad is not None
    assert torch.cosine_similarity(-shift.grad, centre, dim=0) > 0.8


def test_g_gets_no_gradient_through_the_reals() -> None:
    reals, fakes = torch.ones(2, 1, requires_grad=True), torch.zeros(2, 1, requires_grad=True)
    loss, _ = g_loss(LossConfig("relativistic"), lambda x, *_: (2 * x, None), fakes, fakes[:, :0], reals)
    loss.backward()
    assert reals.grad is None
    assert fakes.grad is not None


def test_clip_weights() -> None:
    module = nn.Linear(100, 10)
    nn.init.normal_(module.weight)
    inside = module.weight.detach().clone()
    clip_weights(module, 0.5)
    assert module.weight.abs().max() == 0.5
    torch.testing.assert_close(module.weight.detach(), inside.clamp(-0.5, 0.5), rtol=0, atol=0)
    module(torch.ones(1, 100)).sum().backward()  # still a leaf that learns
    assert module.weight.grad is not None
