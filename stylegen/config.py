"""The configuration: frozen dataclasses, whole in every checkpoint. With the data, it reproduces the run.

Tables such as `ScheduleConfig.batch` are keyed by *nominal resolution*: 4 * 2^level, which is the picture's side for
the official 4x4 base and names the level for any other base.
"""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError

Table = dict[int, float]  # nominal resolution -> value

OBJECTIVES = ("minimax", "nonsaturating", "wasserstein", "hinge", "least_squares", "relativistic")
LOGISTIC = ("minimax", "nonsaturating", "hinge")  # objectives whose D has 0 between real and generated
OPTIMIZERS = ("adam", "rmsprop", "sgd")
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AUGMENTATIONS = ("color", "translation", "cutout")
ADA_KINDS = ("blit", "geometry", "color", "filter", "noise", "cutout")  # in the order in which they are done
ON_COLLAPSE = ("warn", "stop", "rollback")
METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "diversity")
FUSED_SCALES = ("auto", "on", "off")
ACTIVATIONS = ("lrelu", "relu")
NORMS = ("batch", "layer", "none")
GROWING = ("stylegan", "progan")  # families that start from the base; the others have the final resolution only
FAMILIES = (*GROWING, "dcgan", "mlp")


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of G. Defaults are those of the official StyleGAN 1024x1024 (26.2 M parameters)."""

    family: str = "stylegan"
    base: tuple[int, int] = (4, 4)  # height, width of the coarsest level
    levels: int = 9  # resolutions base, 2 base, ..., base * 2^(levels - 1)
    channels: int = 3
    label_size: int = 0
    latent_size: int = 512
    fmap_base: int = 8192
    fmap_max: int = 512
    fmap_decay: float = 1.0
    activation: str = "lrelu"
    pixel_norm: bool = False
    fused_scale: str = "auto"  # "auto": from a nominal resolution of 128 up
    normalize_latents: bool = True
    # stylegan
    style_size: int = 512
    mapping_layers: int = 8
    mapping_width: int = 512
    mapping_lrmul: float = 0.01
    noise: bool = True
    styles: bool = True
    instance_norm: bool = True
    blur_filter: tuple[float, ...] = (1.0, 2.0, 1.0)  # () for none
    w_avg_beta: float = 0.995
    # progan
    tanh_output: bool = False
    # dcgan
    norm: str = "batch"
    # mlp
    hidden_layers: int = 2
    hidden_width: int = 1200


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Architecture of D. Defaults are those of the official StyleGAN 1024x1024."""

    family: str = "stylegan"
    base: tuple[int, int] = (4, 4)
    levels: int = 9
    channels: int = 3
    label_size: int = 0
    fmap_base: int = 8192
    fmap_max: int = 512
    fmap_decay: float = 1.0
    activation: str = "lrelu"
    fused_scale: str = "auto"  # progan: "off" activates before the box; stylegan's D is the same either way
    blur_filter: tuple[float, ...] = (1.0, 2.0, 1.0)  # stylegan
    mbstd_group: int = 4  # 0 or 1 for none; stylegan, progan
    mbstd_features: int = 1
    mbdisc_features: int = 0  # minibatch discrimination: 0 for none
    mbdisc_size: int = 5  # numbers in which two samples are compared, for each feature
    # dcgan
    norm: str = "batch"
    # mlp
    hidden_layers: int = 2
    hidden_width: int = 1200
    maxout_pieces: int = 1  # above 1: maxout in place of the activation


@dataclass(frozen=True)
class ScheduleConfig:
    """Progressive growing, in thousands of real images shown to D (kimg)."""

    initial_level: int = 1
    hold_kimg: float = 600.0
    fade_kimg: float = 600.0
    total_kimg: float = 25000.0
    batch: Table = field(default_factory=dict)
    batch_default: int = 4
    batch_max_per_gpu: Table = field(default_factory=dict)
    gpus: int = 1
    lr: Table = field(default_factory=dict)
    lr_default: float = 0.001
    tick_kimg: Table = field(default_factory=dict)
    tick_kimg_default: float = 1.0


@dataclass(frozen=True)
class LossConfig:
    """Objective and regularisers. A weight of 0 switches a term off."""

    objective: str = "nonsaturating"
    r1_gamma: float = 0.0
    r2_gamma: float = 0.0
    gp_weight: float = 0.0  # penalty on the gradient at interpolates: WGAN-GP's, or zero-centred with gp_target 0
    gp_target: float = 1.0
    drift: float = 0.0
    penalty_interval: int = 1  # penalties every so many D steps, their weights multiplied by it
    weight_clip: float = 0.0
    label_smoothing: float = 0.0  # one-sided: the real target is 1 - label_smoothing
    label_flip: float = 0.0  # probability that a sample's real / fake target is swapped in D's step
    acgan_weight: float = 0.0
    adversarial_weight: float = 1.0  # of the objective in G's loss; 0 leaves the other terms alone
    feature_matching: float = 0.0  # weight in G's loss
    n_critic: int = 1
    mixing_probability: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """`beta1` is SGD's momentum; `beta2` is RMSprop's smoothing constant. `eps` is placed as TensorFlow's Adam does."""

    name: str = "adam"
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8


@dataclass(frozen=True)
class TrainingConfig:
    seed: int = 0
    mirror: bool = False
    augment: tuple[str, ...] = ()  # of AUGMENTATIONS, or "ada" alone: how everything that D sees is altered
    init_from: str = ""  # the network or run folder whose weights it starts with
    freeze_d: int = 0  # layers of D next to the pictures that keep their weights
    ada_kinds: tuple[str, ...] = ADA_KINDS[:3]
    ada_target: float = 0.6  # mean sign of D's scores of real pictures that "ada" holds
    ada_speed_kimg: float = 500.0  # in which its probability could go from 0 to 1
    ada_ceiling: float = 0.8  # which it never passes
    data_digest: str = ""
    rollbacks: int = 0  # how often the run went back to a healthy state: each halves learning rates, doubles R1 and R2
    shuffle_shards: int = 16  # shards among which pictures are shuffled, where data has more; 0: among all pictures
    ema_half_life_kimg: float = 10.0  # 0: use ema_beta
    ema_rampup: float = 0.0  # the half-life is at most this share of the images seen; 0: no ramp-up
    ema_beta: float = 0.999  # a step
    precision: str = "fp32"  # or tf32, bf16, fp16: see stylegen/precision.py


@dataclass(frozen=True)
class OutputConfig:
    """What is written and when; may change on resume."""

    snapshot_kimg: float = 100.0
    preview_kimg: float = 10.0
    keep_networks: int = 0  # newest networks kept; 0 keeps all
    keep_states: int = 2  # newest states kept
    save_minutes: float = 5.0  # how long a run goes on without saving its state
    metrics: tuple[str, ...] = ()  # of METRICS, measured as the run goes on; the best network by the first is kept
    metrics_kimg: float = 100.0
    metrics_num: int = 2000  # fakes
    on_collapse: str = "warn"  # of ON_COLLAPSE: what follows an alarm that a run does not recover from by itself


@dataclass(frozen=True)
class Config:
    preset: str
    generator: GeneratorConfig
    discriminator: DiscriminatorConfig
    schedule: ScheduleConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    training: TrainingConfig = TrainingConfig()
    output: OutputConfig = OutputConfig()


def to_dict(config: Any) -> dict[str, Any]:
    """Any of the dataclasses as a dict that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(cls: type, values: dict[str, Any]) -> Any:
    """The inverse of `to_dict`, every field checked. Raises UserError for an unknown field or a wrong type."""
    if not isinstance(values, dict):
        raise UserError(f"config: {cls.__name__} must be an object, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"config: {cls.__name__} has no field {', '.join(unknown)}; it has: {', '.join(hints)}")
    try:
        return cls(**{name: _coerce(f"{cls.__name__}.{name}", hints[name], value) for name, value in values.items()})
    except TypeError as error:  # a field without default is missing
        raise UserError(f"config: {error}") from error


def override(config: Config, assignment: str) -> Config:
    """`config` with one field changed by a "section.field=value" text, checked against the field's type.

    Tables take "32:64,64:32"; pairs and filters take "4,4". Raises UserError.
    """
    path, equals, text = assignment.partition("=")
    section_name, dot, name = path.strip().partition(".")
    sections = {f.name for f in dataclasses.fields(config) if dataclasses.is_dataclass(getattr(config, f.name))}
    if not equals or not dot:
        raise UserError(f"--set {assignment!r}: expected section.field=value, e.g. loss.r1_gamma=1.5")
    if section_name not in sections:
        raise UserError(f"--set {assignment!r}: no section {section_name!r}; sections: {', '.join(sorted(sections))}")
    section = getattr(config, section_name)
    hints = typing.get_type_hints(type(section))
    if name not in hints:
        raise UserError(f"--set {assignment!r}: {section_name} has no field {name!r}; it has: {', '.join(hints)}")
    value = _parse(f"--set {path.strip()}", hints[name], text.strip())
    return dataclasses.replace(config, **{section_name: dataclasses.replace(section, **{name: value})})


_FREE = (("schedule", "total_kimg"), ("training", "rollbacks"))


def difference(ours: Config, theirs: Config) -> list[str]:
    """One line a field that differs and would change a run; the total length, rollbacks and outputs may differ."""
    lines = []
    a, b = to_dict(ours), to_dict(theirs)
    for name, section in a.items():
        if name == "output":
            continue
        if not isinstance(section, dict):
            section, other, prefix = {name: section}, {name: b[name]}, ""
        else:
            other, prefix = b[name], f"{name}."
        for key, value in section.items():
            if value != other[key] and (name, key) not in _FREE:
                lines.append(f"{prefix}{key}: {_text(value)} here, {_text(other[key])} in the saved run")
    return lines


def _text(value: Any) -> str:
    """A field's value; lists as the command line takes them."""
    return (",".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def counted(count: int, what: str) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{count} {what}{'s' * (count != 1)}"


def size_text(size: tuple[int, int]) -> str:
    """(height, width) as the WIDTHxHEIGHT that the command line speaks."""
    return f"{size[1]}x{size[0]}"


def resolution_of(config: GeneratorConfig | DiscriminatorConfig, level: int) -> tuple[int, int]:
    """(height, width) in pixels of a level."""
    return config.base[0] << level, config.base[1] << level


def levels_of(config: GeneratorConfig | DiscriminatorConfig) -> range:
    """The levels at which a network works: all of them, or the last one where its family does not grow."""
    return range(0 if config.family in GROWING else config.levels - 1, config.levels)


def base_of(size: tuple[int, int]) -> tuple[tuple[int, int], int]:
    """(base, levels) of a final (height, width): halved while both sides stay even and the shorter stays at least 4.

    256x256 grows from 4x4 in 7 levels, 512x256 from 8x4 in 7, 28x28 from 7x7 in 3. Raises UserError where growth
    would start from a side above 16 or never double.
    """
    height, width = size
    levels = 1
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, levels = height // 2, width // 2, levels + 1
    if levels < 2 or min(height, width) > 16 or min(size) < 8:
        raise UserError(
            f"cannot grow pictures of {size_text(size)}: both sides must be one small base (shorter side 4 to 16) "
            "doubled the same number of times, at least once; try 32, 64, 128, 256, 512, 1024, 48, 96, 512x256"
        )
    return (height, width), levels


def _coerce(where: str, hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(hint)
        if inner[-1] is Ellipsis or len(inner) == len(value):
            return tuple(_coerce(where, inner[0], item) for item in value)
    elif typing.get_origin(hint) is dict and isinstance(value, dict):
        try:
            return {int(key): _coerce(where, float, item) for key, item in value.items()}
        except ValueError:
            pass
    elif hint in (int, float, bool, str) and type(value) is hint:
        return value
    raise UserError(f"config: {where} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def _parse(where: str, hint: Any, text: str) -> Any:
    parts = [part for part in text.split(",") if part]
    try:
        if hint is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if hint is str:
            return text
        if typing.get_origin(hint) is dict:
            return {int(k): float(v) for k, v in (part.split(":") for part in parts)}
        if typing.get_origin(hint) is tuple:
            return _coerce(where, hint, [typing.get_args(hint)[0](part) for part in parts])
        return hint(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(hint)
        kind = kind or ("a table such as 32:64,64:32" if typing.get_origin(hint) is dict else "values such as 1,2,1")
        raise UserError(f"{where}: {text!r} is not {kind}") from error
