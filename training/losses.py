"""Objectives and regularisers. They take callables and tensors: no network, and no growth but one scale factor.

`discriminate(images [N, C, H, W], labels [N, L], parts) -> (scores [N, 1], class logits [N, L] or None)`, where `parts`
says how many batches these are, one after another: batch statistics must not mix reals and fakes. Every term is
averaged over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, softplus

from stylegen.config import LossConfig
from stylegen.errors import UserError
from stylegen.ops import input_gradients_only

Discriminate = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]
Features = Callable[[Tensor], Tensor]  # pictures [N, C, H, W] -> mean of what an inner layer of D makes of them [F]
Stats = dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """Per-sample losses: `d(real scores, fake scores, target of reals)`, `g(fake scores, real scores)`."""

    d: Callable[[Tensor, Tensor, float], Tensor]
    g: Callable[[Tensor, Tensor], Tensor]
    smooths: bool = False  # whether `d` uses the target
    pairs: bool = False  # whether `g` uses the reals


def _cross_entropy_d(real: Tensor, fake: Tensor, target: float) -> Tensor:
    loss = softplus(fake) + target * softplus(-real)
    return loss + (1 - target) * softplus(real) if target != 1 else loss


OBJECTIVES = {
    # Goodfellow et al. 2014, "Generative Adversarial Nets", eq. 1: D maximises log D(x) + log(1 - D(G(z)))
    # where D is the sigmoid of the score, G minimises the same.
    "minimax": Objective(_cross_entropy_d, lambda fake, real: -softplus(fake), smooths=True),
    # The same paper, section 3: G maximises log D(G(z)).
    "nonsaturating": Objective(_cross_entropy_d, lambda fake, real: softplus(-fake), smooths=True),
    # Arjovsky et al. 2017, "Wasserstein GAN", eq. 2 and 3.
    "wasserstein": Objective(lambda real, fake, target: fake - real, lambda fake, real: -fake),
    # Lim and Ye 2017, "Geometric GAN"; Miyato et al. 2018, "Spectral Normalization for GANs", eq. 16 and 17.
    "hinge": Objective(lambda real, fake, target: relu(1 - real) + relu(1 + fake), lambda fake, real: -fake),
    # Mao et al. 2017, "Least Squares GANs", eq. 2 with a = 0, b = c = 1.
    "least_squares": Objective(
        lambda real, fake, target: ((real - target).square() + fake.square()) / 2,
        lambda fake, real: (fake - 1).square() / 2,
        smooths=True,
    ),
    # Jolicoeur-Martineau 2019, "The relativistic discriminator"; Huang et al. 2024, "The GAN is dead; long live the
    # GAN!" (R3GAN), eq. 2, with f(t) = -log(1 + e^-t).
    "relativistic": Objective(
        lambda real, fake, target: softplus(fake - real), lambda fake, real: softplus(real - fake), pairs=True
    ),
}


def check(cfg: LossConfig) -> None:
    """Raises UserError for settings that contradict the objective."""
    if cfg.objective not in OBJECTIVES:
        raise UserError(f"loss.objective is {cfg.objective!r}; accepted: {', '.join(OBJECTIVES)}")
    smooth = [name for name, objective in OBJECTIVES.items() if objective.smooths]
    if cfg.label_smoothing and cfg.objective not in smooth:
        raise UserError(
            f"loss.label_smoothing is {cfg.label_smoothing}, but {cfg.objective} has no target to smooth; "
            f"set it to 0 or loss.objective to one of: {', '.join(smooth)}"
        )
    if cfg.gp_target < 0:
        raise UserError(f"loss.gp_target is {cfg.gp_target}; accepted: 0 (zero-centred) and more")


def d_loss(
    cfg: LossConfig,
    discriminate: Discriminate,
    reals: Tensor,
    fakes: Tensor,
    labels: Tensor,
    *,
    penalise: bool,
    mixing_factors: Tensor | None = None,
    flips: Tensor | None = None,
    upscale: float = 1.0,
) -> tuple[Tensor, Stats]:
    """D's loss, a scalar, and detached scalar statistics; gradients stop at `reals` and `fakes` [N, C, H, W].

    penalise: add the gradient penalties, their weights multiplied by `penalty_interval`: the caller says when.
    mixing_factors: [N, 1, 1, 1] in [0, 1], where between real (0) and fake (1) `gp_weight`'s penalty is taken.
    flips: bool [N, 1], pairs whose real and fake scores trade places in the objective (label flipping).
    upscale: final resolution / resolution of these images. The published penalties are measured on images enlarged by
        repeating pixels, where gradient norms are smaller by this factor.

    Formulas: `OBJECTIVES`; one-sided label smoothing of Salimans et al. 2016, "Improved Techniques for Training GANs",
    section 3.4; R1 and R2 of Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", eq. 9
    and 10; the gradient penalty of Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", eq. 3, divided by
    target^2 as in ProGAN, or zero-centred (Thanh-Tung et al. 2019, "Improving Generalization and
    Stability of GANs"); drift of Karras et al. 2018, "Progressive Growing of GANs", appendix A; lazy regularisation of
    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", section 3.1; class terms of Odena et
    al. 2017, "Conditional Image Synthesis with Auxiliary Classifier GANs", eq. 3.
    """
    reals = reals.detach().requires_grad_(penalise and cfg.r1_gamma > 0)
    fakes = fakes.detach().requires_grad_(penalise and cfg.r2_gamma > 0)
    real, real_logits, fake, fake_logits = _both(discriminate, reals, fakes, labels)
    as_real, as_fake = (real, fake) if flips is None else (fake.where(flips, real), real.where(flips, fake))
    loss = OBJECTIVES[cfg.objective].d(as_real, as_fake, 1 - cfg.label_smoothing).mean()
    stats = {"loss/d": loss, "scores/real": real.mean(), "scores/fake": fake.mean(), "signs/real": real.sign().mean()}
    if cfg.drift:
        stats["penalty/drift"] = real.square().mean()
        loss = loss + cfg.drift * stats["penalty/drift"]
    if cfg.acgan_weight and real_logits is not None and fake_logits is not None and labels.shape[1]:
        stats["loss/d_class"] = cross_entropy(real_logits, labels) + cross_entropy(fake_logits, labels)
        loss = loss + cfg.acgan_weight * stats["loss/d_class"]
    if penalise:
        penalties = {}  # name: (mean penalty, weight)
        if cfg.r1_gamma:
            penalties["r1"] = squared_gradients(real, reals, upscale).mean(), cfg.r1_gamma / 2
        if cfg.r2_gamma:
            penalties["r2"] = squared_gradients(fake, fakes, upscale).mean(), cfg.r2_gamma / 2
        if cfg.gp_weight:
            assert mixing_factors is not None, "gp_weight needs mixing_factors"
            mixed = reals.detach().lerp(fakes.detach(), mixing_factors).requires_grad_()
            squared = squared_gradients(discriminate(mixed, labels, 1)[0], mixed, upscale)
            penalties["gp"] = _interpolated(squared, cfg.gp_target).mean(), cfg.gp_weight
        for name, (penalty, weight) in penalties.items():
            stats[f"penalty/{name}"] = penalty
            loss = loss + cfg.penalty_interval * weight * penalty
    return loss, {name: value.detach() for name, value in stats.items()}


def g_loss(
    cfg: LossConfig,
    discriminate: Discriminate,
    fakes: Tensor,
    labels: Tensor,
    reals: Tensor | None = None,
    features: Features | None = None,
) -> tuple[Tensor, Stats]:
    """G's loss, a scalar, and detached scalar statistics.

    `reals` are needed where the objective pairs them, and with `features` for feature matching. D's parameters get
    gradients too unless the caller has switched theirs off. Formulas: `OBJECTIVES`; the class term as in `d_loss`;
    feature matching, |E f(reals) - E f(fakes)|^2, of Salimans et al. 2016, section 3.1.
    """
    objective = OBJECTIVES[cfg.objective]
    fake, logits = discriminate(fakes, labels, 1)
    real = fake
    if objective.pairs:
        assert reals is not None, f"{cfg.objective} needs reals"
        with torch.no_grad():
            real = discriminate(reals, labels, 1)[0]
    loss = objective.g(fake, real).mean()
    stats = {"loss/g": loss}
    if cfg.adversarial_weight != 1:
        loss = cfg.adversarial_weight * loss if cfg.adversarial_weight else torch.zeros_like(loss)
    if cfg.feature_matching:
        assert reals is not None and features is not None, "feature matching needs reals and features"
        with torch.no_grad():
            target = features(reals)
        stats["loss/g_features"] = (target - features(fakes)).square().sum()
        loss = loss + cfg.feature_matching * stats["loss/g_features"]
    if cfg.acgan_weight and logits is not None and labels.shape[1]:
        stats["loss/g_class"] = cross_entropy(logits, labels)
        loss = loss + cfg.acgan_weight * stats["loss/g_class"]
    return loss, {name: value.detach() for name, value in stats.items()}


def squared_gradients(scores: Tensor, images: Tensor, upscale: float = 1.0) -> Tensor:
    """Squared norm of each score's gradient by its image, [N], differentiable; `upscale` as in `d_loss`."""
    with input_gradients_only():
        (gradients,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradients.square().sum(dim=(1, 2, 3)) / upscale**2


@torch.no_grad()
def clip_weights(module: nn.Module, limit: float) -> None:
    """Clamps every parameter to [-limit, limit] (Arjovsky et al. 2017, algorithm 1).

    Parameters with an equalised learning rate are stored before it: they start with a deviation of 1, not 0.02.
    """
    for parameter in module.parameters():
        parameter.clamp_(-limit, limit)


def _both(
    discriminate: Discriminate, reals: Tensor, fakes: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Scores and logits of reals, and of fakes; in one call, unless one of them has a penalty of its own to come."""
    if reals.requires_grad or fakes.requires_grad:
        return *discriminate(reals, labels, 1), *discriminate(fakes, labels, 1)
    scores, logits = discriminate(torch.cat([reals, fakes]), torch.cat([labels, labels]), 2)
    real, fake = scores.chunk(2)
    real_logits, fake_logits = (None, None) if logits is None else logits.chunk(2)
    return real, real_logits, fake, fake_logits


def _interpolated(squared: Tensor, target: float) -> Tensor:
    if target == 0:
        return squared
    return ((squared + 1e-30).sqrt() / target - 1).square()  # the square root of 0 has no derivative
