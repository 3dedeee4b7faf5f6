"""One training iteration: D steps, the average of G, a G step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stylegen.config import Config
from stylegen.images import fade_reals, to_float
from stylegen.networks.layers import shared_kernels
from stylegen.networks.stylegan import Generator as StyleGAN

from . import ema, losses, optim, rng
from .augment import augment
from .dataset import Loader
from .schedule import Stage, due, phase_of, stage_at
from .state import TrainState

Stats = dict[str, Tensor]


def iterate(state: TrainState, loader: Loader) -> Stats:
    """`n_critic` D steps, each followed by the average of G, then one G step. Advances `state.images_seen`.

    Everything random is drawn from (seed, images_seen), so the state after it depends on the state before it only.
    """
    config, start = state.config, state.images_seen
    stage = stage_at(config, start)
    for optimizer in (state.opt_g, state.opt_d):
        optim.set_lr(optimizer, stage.lr)
    stats: Stats = {}
    for _ in range(config.loss.n_critic):
        images, labels = loader.batch(state.images_seen, stage.batch, stage.level)
        reals = fade_reals(to_float(images.to(state.device)), stage.alpha)
        labels = labels.to(state.device)
        stats |= d_step(state, stage, reals, labels)
        state.images_seen += stage.batch
        ema.update(state.G_ema, state.G, ema.beta(config.training, stage.batch, state.images_seen))
    stats |= g_step(state, stage, reals, labels)
    if phase_of(config, start) != phase_of(config, state.images_seen):
        optim.reset(state.opt_g)
        optim.reset(state.opt_d)
    return stats


def d_step(state: TrainState, stage: Stage, reals: Tensor, labels: Tensor) -> Stats:
    """One update of D. reals [N, C, H, W] in [-1, 1], labels [N, label_size]."""
    config, seen = state.config, state.images_seen
    loss_config = config.loss
    with torch.no_grad():
        fakes = fake_images(state, stage, labels, "d")
    draw = rng.generator(config.training.seed, "d/loss", seen)
    mixing_factors = torch.rand(len(reals), 1, 1, 1, generator=draw).to(reals.device)
    flips = torch.rand(len(reals), 1, generator=draw).to(reals.device) < loss_config.label_flip
    every = loss_config.penalty_interval * stage.batch
    with shared_kernels(state.D):
        loss, stats = losses.d_loss(
            loss_config,
            _discriminate(state, stage, _eyes(state, "d")),
            reals,
            fakes,
            labels,
            penalise=loss_config.penalty_interval == 1 or due(every, seen, seen + stage.batch),
            mixing_factors=mixing_factors,
            flips=flips if loss_config.label_flip else None,
            upscale=float(1 << (config.generator.levels - 1 - stage.level)),
        )
        optim.backward(loss, state.opt_d)
    stats["skipped/d"] = torch.tensor(float(not optim.step(state.opt_d)))
    if loss_config.weight_clip > 0:
        losses.clip_weights(state.D, loss_config.weight_clip)
    return stats


def g_step(state: TrainState, stage: Stage, reals: Tensor, labels: Tensor) -> Stats:
    """One update of G. `reals` matter to relativistic objectives and feature matching only."""
    state.D.requires_grad_(False)
    fakes = fake_images(state, stage, labels, "g")
    eyes = _eyes(state, "g")
    discriminate, features = _discriminate(state, stage, eyes), _features(state, stage, eyes)
    loss, stats = losses.g_loss(state.config.loss, discriminate, fakes, labels, reals=reals, features=features)
    optim.backward(loss, state.opt_g)
    state.D.requires_grad_(True)
    stats["skipped/g"] = torch.tensor(float(not optim.step(state.opt_g)))
    return stats


def fake_images(state: TrainState, stage: Stage, labels: Tensor, role: str) -> Tensor:
    """Pictures [N, C, H, W] of G in training mode: random noise, style mixing, the average of w updated."""
    config, G, seen = state.config, state.G, state.images_seen
    seed, n = config.training.seed, len(labels)
    draw = rng.generator(seed, f"{role}/latents", seen)
    z1, z2 = torch.randn(2, n, config.generator.latent_size, generator=draw).to(state.device)
    where = {"resolution": stage.resolution, "alpha": stage.alpha}
    if not isinstance(G, StyleGAN):
        return G(z1, labels, **where)
    w = G.mapping(z1, labels)
    G.update_w_avg(w)
    cut = mixing_cut(config, stage, torch.rand(2, generator=draw).tolist())
    if cut < G.num_layers:
        w = torch.cat([w[:, :cut], G.mapping(z2, labels)[:, cut:]], 1)
    noise = rng.generator(seed, f"{role}/noise", seen, device=state.device.type)
    return G.synthesis(w, **where, noise="random", generator=noise)


def mixing_cut(config: Config, stage: Stage, uniform: list[float]) -> int:
    """The layer where the second style takes over; the number of layers where no mixing happens.

    Drawn once a batch, uniformly from 1 to the last layer of the current level (Karras et al. 2019, section 3.1).
    """
    if uniform[0] >= config.loss.mixing_probability:
        return 2 * config.generator.levels
    return 1 + int(uniform[1] * (2 * (stage.level + 1) - 1))


def _eyes(state: TrainState, role: str) -> Callable[[Tensor], Tensor]:
    """What D is shown in place of pictures: the same, or augmented; random numbers are new at every call."""
    training = state.config.training
    draw = rng.generator(training.seed, f"{role}/augment", state.images_seen)
    return lambda images: augment(images, training.augment, rng.Numbers(draw, len(images)))


def _discriminate(state: TrainState, stage: Stage, eyes: Callable[[Tensor], Tensor]) -> losses.Discriminate:
    def discriminate(images: Tensor, labels: Tensor, parts: int) -> tuple[Tensor, Tensor | None]:
        result = state.D(eyes(images), labels, resolution=stage.resolution, alpha=stage.alpha, parts=parts)
        return result if isinstance(result, tuple) else (result, None)

    return discriminate


def _features(state: TrainState, stage: Stage, eyes: Callable[[Tensor], Tensor]) -> losses.Features:
    D: Any = state.D  # of any family
    return lambda images: D.features(eyes(images), resolution=stage.resolution, alpha=stage.alpha)
