"""Whether a configuration makes sense, before anything is built from it."""

import dataclasses
import math

from .config import (
    ACTIVATIONS,
    ADA_KINDS,
    AUGMENTATIONS,
    FAMILIES,
    FUSED_SCALES,
    GROWING,
    LOGISTIC,
    METRICS,
    NORMS,
    OBJECTIVES,
    ON_COLLAPSE,
    OPTIMIZERS,
    PRECISIONS,
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    ScheduleConfig,
    TrainingConfig,
    to_dict,
)
from .errors import UserError

_SIZE_MAX = 65536
_SIZES = (
    "channels",
    "latent_size",
    "fmap_base",
    "fmap_max",
    "style_size",
    "mapping_layers",
    "mapping_width",
    "hidden_layers",
    "hidden_width",
    "maxout_pieces",
    "mbdisc_size",
)
_G_TERMS = ("adversarial_weight", "feature_matching")
_FIELDS_OF = {  # fields of one family, or of some, which would do nothing in the others
    **dict.fromkeys(("norm",), ("dcgan",)),
    **dict.fromkeys(("hidden_layers", "hidden_width", "maxout_pieces"), ("mlp",)),
    **dict.fromkeys(("fmap_base", "fmap_max", "fmap_decay"), (*GROWING, "dcgan")),
    **dict.fromkeys(("style_size", "mapping_layers", "mapping_width", "mapping_lrmul", "w_avg_beta"), GROWING),
    **dict.fromkeys(("noise", "styles", "instance_norm", "pixel_norm", "blur_filter", "fused_scale"), GROWING),
    **dict.fromkeys(("normalize_latents", "tanh_output", "mbstd_group", "mbstd_features"), GROWING),
}


def validate(config: Config) -> Config:
    """`config` itself, once every value makes sense. Raises UserError."""
    for name, section in to_dict(config).items():
        for key, value in section.items() if isinstance(section, dict) else ():
            numbers = value.values() if isinstance(value, dict) else [value]
            finite = all(math.isfinite(number) for number in numbers if isinstance(number, float))
            _check(finite, f"{name}.{key} is {value}; give a finite number")
    _check_networks(config.generator, config.discriminator)
    _check_schedule(config.schedule, config.generator)
    _check_loss(config.loss, config.generator.family)
    optimizer, output = config.optimizer, config.output
    _check_choice("training.precision", config.training.precision, PRECISIONS)
    _check_choice("optimizer.name", optimizer.name, OPTIMIZERS)
    _check(optimizer.eps > 0, "optimizer.eps must be above 0")
    _check(0 <= optimizer.beta1 < 1 and 0 <= optimizer.beta2 < 1, "optimizer betas must lie in 0 to 1")
    kimg = (output.snapshot_kimg, output.preview_kimg, output.metrics_kimg)
    _check(min(kimg) > 0, "output: kimg figures must be above 0")
    _check_choice("output.on_collapse", output.on_collapse, ON_COLLAPSE)
    _check(output.metrics_num >= 50, f"output.metrics_num is {output.metrics_num}; give at least 50 pictures")
    shards = config.training.shuffle_shards
    _check(shards >= 0, f"training.shuffle_shards is {shards}; accepted: 0 (all) and more")
    _check_training(config.training, config.loss, config.discriminator)
    for name in output.metrics:
        _check(name in METRICS, f"there is no metric {name!r}; accepted: {', '.join(METRICS)}")
    return config


def _check_training(training: TrainingConfig, loss: LossConfig, d: DiscriminatorConfig) -> None:
    names = ", ".join(AUGMENTATIONS)
    if "ada" in training.augment:
        _check(len(training.augment) == 1, f"augmentation is ada or a list of {names}, not both")
        signed = loss.objective in LOGISTIC
        _check(signed, f"augmentation by ada goes by the signs of D's scores, which {loss.objective} has not: {names}")
    else:
        unknown = [name for name in training.augment if name not in AUGMENTATIONS]
        _check(not unknown, f"there is no augmentation {', '.join(unknown)}; accepted: ada, or a list of {names}")
    unknown = [name for name in training.ada_kinds if name not in ADA_KINDS]
    _check(not unknown, f"training.ada_kinds: there is no {', '.join(unknown)}; accepted: {', '.join(ADA_KINDS)}")
    _check(len(training.ada_kinds) > 0, f"training.ada_kinds is empty; accepted: {', '.join(ADA_KINDS)}")
    _check(-1 < training.ada_target < 1, f"training.ada_target is {training.ada_target}; accepted: -1 to 1")
    _check(training.ada_speed_kimg > 0, f"training.ada_speed_kimg is {training.ada_speed_kimg}; it must be above 0")
    _check(0 < training.ada_ceiling <= 1, f"training.ada_ceiling is {training.ada_ceiling}; accepted: above 0, up to 1")
    most = d.hidden_layers if d.family == "mlp" else d.levels - 1
    _check(0 <= training.freeze_d <= most, f"training.freeze_d is {training.freeze_d}; accepted: 0 to {most} layers")


def _check_networks(g: GeneratorConfig, d: DiscriminatorConfig) -> None:
    for name in ("family", "base", "levels", "channels", "label_size"):
        _check(getattr(g, name) == getattr(d, name), f"generator.{name} and discriminator.{name} must be equal")
    _check_choice("generator.family", g.family, FAMILIES)
    _check(1 <= min(g.base) and 2 <= g.levels <= 12, f"base {g.base} with {g.levels} levels cannot grow")
    _check(g.label_size >= 0, f"generator.label_size is {g.label_size}; accepted: 0 and more")
    for role, network in (("generator", g), ("discriminator", d)):
        _check_choice(f"{role}.fused_scale", network.fused_scale, FUSED_SCALES)
        _check_choice(f"{role}.activation", network.activation, ACTIVATIONS)
        sizes = {k: v for k, v in to_dict(network).items() if k in _SIZES}
        within = 1 <= min(sizes.values()) and max(sizes.values()) <= _SIZE_MAX
        _check(within, f"{type(network).__name__}: {', '.join(sizes)} must be 1 to {_SIZE_MAX:,}")
        _check_choice(f"{role}.norm", network.norm, NORMS)
        _check_used(role, network)
    _check(d.mbdisc_features >= 0, f"discriminator.mbdisc_features is {d.mbdisc_features}; accepted: 0 and more")
    if d.family not in GROWING:
        return
    width = max(1, min(int(d.fmap_base / 2.0**d.fmap_decay), d.fmap_max))  # of the coarsest level
    _check(
        d.mbstd_features >= 1 and width % d.mbstd_features == 0,
        f"discriminator.mbstd_features is {d.mbstd_features}; it must divide the coarsest level's {width} channels",
    )


def _check_used(role: str, network: GeneratorConfig | DiscriminatorConfig) -> None:
    """Raises UserError for a field that another family has, changed from its default."""
    for f in dataclasses.fields(network):
        theirs = network.family not in _FIELDS_OF.get(f.name, FAMILIES)
        _check(
            not theirs or getattr(network, f.name) == f.default,
            f"{role}.{f.name} means nothing to the family {network.family}; leave it at {f.default}",
        )


def _check_schedule(s: ScheduleConfig, g: GeneratorConfig) -> None:
    last = g.levels - 1
    if g.family not in GROWING:
        for name, only in (("initial_level", last), ("hold_kimg", 0), ("fade_kimg", 0)):
            value = getattr(s, name)
            _check(value == only, f"schedule.{name} is {value:g}, but the family {g.family} does not grow: give {only}")
    _check(0 <= s.initial_level <= last, f"schedule.initial_level is {s.initial_level}; accepted: 0 to {last}")
    _check(s.hold_kimg >= 0 and s.fade_kimg >= 0 and s.total_kimg > 0, "schedule: kimg figures must be positive")
    _check(s.hold_kimg + s.fade_kimg > 0 or s.initial_level == last, "hold_kimg + fade_kimg must be above 0")
    _check(s.gpus >= 1, f"schedule.gpus is {s.gpus}; accepted: 1 and more")
    batches = [s.batch_default, *s.batch.values(), *s.batch_max_per_gpu.values()]
    _check(min(batches) >= 1, "schedule: batch must be 1 or more")
    for key in {*s.batch, *s.batch_max_per_gpu, *s.lr, *s.tick_kimg}:
        known = key >= 4 and key & (key - 1) == 0
        _check(known, f"schedule: a table names level {key}; levels are named 4, 8, 16, 32, ... whatever the base")
    _check(min([s.lr_default, *s.lr.values()]) > 0, "schedule: lr must be above 0")
    _check(min([s.tick_kimg_default, *s.tick_kimg.values()]) > 0, "schedule: tick_kimg must be above 0")


def _check_loss(loss: LossConfig, family: str) -> None:
    _check_choice("loss.objective", loss.objective, OBJECTIVES)
    for name in ("penalty_interval", "n_critic"):
        _check(getattr(loss, name) >= 1, f"loss.{name} must be 1 or more")
    for name in ("r1_gamma", "r2_gamma", "gp_weight", "drift", "weight_clip", "acgan_weight", *_G_TERMS):
        _check(getattr(loss, name) >= 0, f"loss.{name} must be 0 or more")
    for name in ("label_smoothing", "label_flip", "mixing_probability"):
        _check(0 <= getattr(loss, name) <= 1, f"loss.{name} must lie in 0 to 1")
    terms = sum(getattr(loss, name) for name in ("acgan_weight", *_G_TERMS))
    _check(terms > 0, "loss.adversarial_weight is 0; give G something else to learn from, loss.feature_matching=1, say")
    styled, classes = family == "stylegan", family == "progan"
    _check(classes or not loss.acgan_weight, f"loss.acgan_weight needs a class head in D, which {family} has not")
    _check(styled or not loss.mixing_probability, f"loss.mixing_probability needs styles, which {family} has not")


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    _check(value in accepted, f"{name} is {value!r}; accepted: {', '.join(accepted)}")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
