"""Presets: functions that return a Config for given pictures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .config import (
    GROWING,
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TrainingConfig,
    base_of,
    resolution_of,
)
from .errors import UserError

Size = tuple[int, int]

BY_GPUS = ("stylegan-1024", "progan-1024")  # their batches and learning rates depend on the number of GPUs
AUTO_GAMMA = -1.0  # stands for `default_gamma` until `resolve` knows the final resolution and batch

_BATCH: dict[int, dict[int, float]] = {  # official, by number of GPUs; both repositories
    1: {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4},
    2: {4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8},
    4: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16},
    8: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
}
_BATCH_DEFAULT = {1: 4, 2: 8, 4: 16, 8: 32}
_STYLEGAN_LR: dict[int, float] = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
_PROGAN_LR: dict[int, dict[int, float]] = {
    1: {1024: 0.0015},
    2: {512: 0.0015, 1024: 0.002},
    4: {256: 0.0015, 512: 0.002, 1024: 0.003},
    8: _STYLEGAN_LR,
}
_TICK: dict[int, float] = {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 30, 1024: 20}


def stylegan_1024(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """StyleGAN as published (Karras et al. 2019): configuration F for FFHQ and CelebA-HQ at 1024x1024."""
    base, levels = base_of(size)
    table = _table(gpus)
    return Config(
        preset="stylegan-1024",
        generator=GeneratorConfig(base=base, levels=levels, channels=channels, label_size=label_size),
        discriminator=DiscriminatorConfig(base=base, levels=levels, channels=channels, label_size=label_size),
        schedule=ScheduleConfig(
            batch=_BATCH[table],
            batch_default=_BATCH_DEFAULT[table],
            gpus=gpus,
            lr=_STYLEGAN_LR,
            tick_kimg=_TICK,
        ),
        loss=LossConfig(r1_gamma=10.0, mixing_probability=0.9),
        optimizer=OptimizerConfig(),
        output=OutputConfig(),
    )


def progan_1024(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """ProGAN as published (Karras et al. 2018), with the schedule of its second release, for 1024x1024."""
    base, levels = base_of(size)
    table = _table(gpus)
    family: dict[str, Any] = {
        "family": "progan",
        "base": base,
        "levels": levels,
        "channels": channels,
        "label_size": label_size,
        "fused_scale": "on",
        "blur_filter": (),
    }
    return Config(
        preset="progan-1024",
        generator=GeneratorConfig(pixel_norm=True, **family),
        discriminator=DiscriminatorConfig(**family),
        schedule=ScheduleConfig(
            initial_level=0,
            total_kimg=12000.0,
            batch=_BATCH[table],
            batch_default=_BATCH_DEFAULT[table],
            batch_max_per_gpu={256: 16, 512: 8, 1024: 4},
            gpus=gpus,
            lr=_PROGAN_LR[table],
            tick_kimg=_TICK | {512: 20, 1024: 10},
        ),
        loss=LossConfig(objective="wasserstein", gp_weight=10.0, gp_target=1.0, drift=0.001, acgan_weight=1.0),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(ema_half_life_kimg=0.0, ema_beta=0.999),
        output=OutputConfig(),
    )


def small_32(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """A reduced StyleGAN for 32x32 pictures on a CPU: full size at 32 kimg."""
    return _small("small-32", size, channels, label_size, gpus, fmap_base=512, fmap_max=64, total_kimg=600.0)


def small_64(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """A reduced StyleGAN for 64x64 pictures on a CPU: full size at 48 kimg."""
    return _small("small-64", size, channels, label_size, gpus, fmap_base=1024, fmap_max=96, total_kimg=400.0)


def small_128(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """A reduced StyleGAN for 128x128 pictures on a CPU or one small GPU: full size at 64 kimg."""
    return _small("small-128", size, channels, label_size, gpus, fmap_base=1024, fmap_max=96, total_kimg=400.0)


def dcgan_64(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """DCGAN for 64x64 (Radford et al. 2016): its initialisation, Adam and architecture, half its widths.

    The last hidden layer has 64 channels, each one before it twice as many, up to 512.
    """
    levels = base_of(size)[1]
    config = _baseline("dcgan-64", "dcgan", size, channels, label_size, gpus, total_kimg=400.0)
    widths: dict[str, Any] = {"fmap_base": 64 << (levels - 1), "fmap_max": 512}
    return replace(
        config,
        generator=replace(config.generator, **widths),
        discriminator=replace(config.discriminator, **widths),
    )


def mlp_32(size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """The GAN of 2014 (Goodfellow et al.): fully connected, rectifiers in G, maxout in D; trained as DCGAN is."""
    config = _baseline("mlp-32", "mlp", size, channels, label_size, gpus, total_kimg=600.0)
    return replace(config, discriminator=replace(config.discriminator, hidden_width=240, maxout_pieces=5))


PRESETS: dict[str, Callable[[Size, int, int, int], Config]] = {
    "stylegan-1024": stylegan_1024,
    "progan-1024": progan_1024,
    "small-32": small_32,
    "small-64": small_64,
    "small-128": small_128,
    "dcgan-64": dcgan_64,
    "mlp-32": mlp_32,
}


# What `--loss NAME` sets: the objective with the regularisers that belong to it. R1 stays as the preset has it where
# nothing is said. Weights with an equalised learning rate are stored at unit variance, so WGAN's clip of 0.01 for
# weights of standard deviation 0.02 becomes 0.5 for them.
_PLAIN: dict[str, Any] = {"gp_weight": 0.0, "drift": 0.0, "weight_clip": 0.0, "n_critic": 1}
_PLAIN |= {"adversarial_weight": 1.0, "feature_matching": 0.0}
_WASSERSTEIN: dict[str, Any] = _PLAIN | {"objective": "wasserstein", "r1_gamma": 0.0, "r2_gamma": 0.0}
LOSSES: dict[str, dict[str, Any]] = {
    "nonsaturating": _PLAIN | {"objective": "nonsaturating"},
    "minimax": _PLAIN | {"objective": "minimax"},
    "hinge": _PLAIN | {"objective": "hinge"},
    "lsgan": _PLAIN | {"objective": "least_squares"},
    "rpgan": _PLAIN | {"objective": "relativistic", "r2_gamma": AUTO_GAMMA},
    "feature-matching": _PLAIN | {"objective": "nonsaturating", "adversarial_weight": 0.0, "feature_matching": 1.0},
    "wgan": _WASSERSTEIN | {"weight_clip": 0.5, "n_critic": 5},
    "wgan-gp": _WASSERSTEIN | {"gp_weight": 10.0, "gp_target": 1.0, "drift": 0.001, "penalty_interval": 1},
}


def with_loss(config: Config, name: str) -> Config:
    """`config` with the recipe of `--loss NAME`; R1 gets its default weight where neither gives one.

    WGAN-GP takes batch norm out of D, for layer norm (Gulrajani et al. 2017, section 4).
    """
    recipe, D = LOSSES[name], config.discriminator
    if D.family not in GROWING and recipe["weight_clip"]:
        recipe = recipe | {"weight_clip": 0.01}
    if D.family == "dcgan" and recipe["gp_weight"]:
        config = replace(config, discriminator=replace(D, norm="layer"))
    if "r1_gamma" not in recipe and config.loss.r1_gamma == 0:
        recipe = recipe | {"r1_gamma": AUTO_GAMMA}
    return replace(config, loss=replace(config.loss, **recipe))


def resolve(config: Config) -> Config:
    """`config` with AUTO_GAMMA replaced: R1's by `default_gamma` of the final resolution and batch, R2's by R1's."""
    levels, schedule, loss = config.generator.levels, config.schedule, config.loss
    batch = int(schedule.batch.get(2 << levels, schedule.batch_default))
    r1, r2 = loss.r1_gamma, loss.r2_gamma
    r1 = default_gamma(resolution_of(config.generator, levels - 1), batch) if r1 == AUTO_GAMMA else r1
    return replace(config, loss=replace(loss, r1_gamma=r1, r2_gamma=r1 if r2 == AUTO_GAMMA else r2))


def preset(name: str, size: Size, channels: int, label_size: int, gpus: int = 1) -> Config:
    """The named preset for pictures of `size` (height, width) in pixels.

    Raises UserError for an unknown name, no GPU (on a CPU `gpus` is 1), or a size that cannot grow.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; accepted: {', '.join(PRESETS)}")
    if gpus < 1:
        raise UserError(f"gpus is {gpus}; accepted: 1 and more (1 on a CPU)")
    return PRESETS[name](size, channels, label_size, gpus)


def default_gamma(size: Size, batch: int) -> float:
    """R1 gamma for final pictures of `size` trained in batches of `batch`: 0.0002 * pixels / batch.

    The heuristic of StyleGAN2-ADA (Karras et al. 2020, appendix C: gamma proportional to pixels and 1 / batch).
    """
    return 0.0002 * size[0] * size[1] / batch


def _small(
    name: str,
    size: Size,
    channels: int,
    label_size: int,
    gpus: int,
    *,
    fmap_base: int,
    fmap_max: int,
    total_kimg: float,
) -> Config:
    """What the small presets share: few channels, small batches, fast growth, and an R1 that keeps short runs calm.

    R1 is 5 at 32x32 and grows with the number of pixels: seen from a coarse level it is the same for every final size
    (`losses.d_loss`, upscale).

    They have no noise inputs: a short run leaves their grain on flat surfaces.
    """
    base, levels = base_of(size)
    shared: dict[str, Any] = {
        "base": base,
        "levels": levels,
        "channels": channels,
        "label_size": label_size,
        "fmap_base": fmap_base,
        "fmap_max": fmap_max,
    }
    schedule = ScheduleConfig(
        hold_kimg=8.0, fade_kimg=8.0, total_kimg=total_kimg, batch_default=16, gpus=gpus, lr_default=0.003
    )
    return Config(
        preset=name,
        generator=GeneratorConfig(
            latent_size=128, style_size=128, mapping_layers=4, mapping_width=128, noise=False, **shared
        ),
        discriminator=DiscriminatorConfig(**shared),
        schedule=schedule,
        loss=LossConfig(r1_gamma=5.0 * size[0] * size[1] / 32**2, penalty_interval=4, mixing_probability=0.5),
        optimizer=OptimizerConfig(),
        training=TrainingConfig(ema_half_life_kimg=5.0, ema_rampup=0.1),
        output=OutputConfig(snapshot_kimg=20.0, preview_kimg=2.0),
    )


def _baseline(
    name: str, family: str, size: Size, channels: int, label_size: int, gpus: int, *, total_kimg: float
) -> Config:
    """What the families that do not grow share: Radford et al. 2016, section 4, but for batches of 64 (there 128).

    The average of G is young: the paper has none.
    """
    base, levels = base_of(size)
    shared: dict[str, Any] = {
        "family": family,
        "base": base,
        "levels": levels,
        "channels": channels,
        "label_size": label_size,
    }
    return Config(
        preset=name,
        generator=GeneratorConfig(latent_size=100, activation="relu", **shared),
        discriminator=DiscriminatorConfig(**shared),
        schedule=ScheduleConfig(
            initial_level=levels - 1,
            hold_kimg=0.0,
            fade_kimg=0.0,
            total_kimg=total_kimg,
            batch_default=64,
            gpus=gpus,
            lr_default=0.0002,
        ),
        loss=LossConfig(),
        optimizer=OptimizerConfig(beta1=0.5, beta2=0.999),
        training=TrainingConfig(ema_half_life_kimg=2.0, ema_rampup=0.1),
        output=OutputConfig(snapshot_kimg=20.0, preview_kimg=2.0),
    )


def _table(gpus: int) -> int:
    return max(count for count in _BATCH if count <= gpus)
