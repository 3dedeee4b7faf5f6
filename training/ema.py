"""The running average of G's weights, with which pictures are made (Karras et al. 2018, "Progressive Growing")."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stylegen.config import TrainingConfig


def beta(cfg: TrainingConfig, batch: int, images_seen: int) -> float:
    """What is kept of the average at a step of `batch` images: 0.5^(batch / half-life), or `ema_beta` without one.

    With a ramp-up the half-life is at most `ema_rampup` * images_seen, so that a young average follows quickly
    (Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", whose code ramps up by 0.05).
    """
    if not cfg.ema_half_life_kimg:
        return cfg.ema_beta
    half_life = 1000 * cfg.ema_half_life_kimg
    if cfg.ema_rampup:
        half_life = min(half_life, images_seen * cfg.ema_rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update(average: nn.Module, network: nn.Module, beta: float) -> None:
    """average = beta * average + (1 - beta) * network for parameters; buffers (noise maps, w average) are copied."""
    parameters = list(average.parameters())
    if parameters:
        get_ema_multi_avg_fn(beta)(parameters, list(network.parameters()), 0)
    for kept, new in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(new)
