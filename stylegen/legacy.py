"""Networks from the variables of the official StyleGAN1 and ProGAN code: names, layouts and construction arguments."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import DiscriminatorConfig, GeneratorConfig
from .errors import UserError
from .networks import build_discriminator, build_generator

Names = dict[
    str, tuple[str, tuple[int, ...] | None]
]  # official name -> (our name, axes that transpose official to ours)

KINDS = ("stylegan.G", "stylegan.D", "progan.G", "progan.D")
_CONV, _DENSE, _FUSED_UP = (3, 2, 0, 1), (1, 0), (2, 3, 0, 1)  # from HWIO; from [in, out]; from HWOI
_FUSED = {"auto": "auto", True: "on", False: "off"}

# official argument -> our field; arguments that are absent take the official default, which is ours.
_COMMON = {"num_channels": "channels", "label_size": "label_size", "fmap_base": "fmap_base", "fmap_max": "fmap_max"}
_COMMON |= {"fmap_decay": "fmap_decay"}
_ARGUMENTS: dict[str, dict[str, str]] = {
    "stylegan.G": {
        "latent_size": "latent_size",
        "dlatent_size": "style_size",
        "mapping_layers": "mapping_layers",
        "mapping_fmaps": "mapping_width",
        "mapping_lrmul": "mapping_lrmul",
        "normalize_latents": "normalize_latents",
        "nonlinearity": "activation",
        "use_styles": "styles",
        "use_noise": "noise",
        "use_pixel_norm": "pixel_norm",
        "use_instance_norm": "instance_norm",
        "dlatent_avg_beta": "w_avg_beta",
    },
    "stylegan.D": {
        "nonlinearity": "activation",
        "mbstd_group_size": "mbstd_group",
        "mbstd_num_features": "mbstd_features",
    },
    "progan.G": {
        "latent_size": "latent_size",
        "normalize_latents": "normalize_latents",
        "use_pixelnorm": "pixel_norm",
        "tanh_at_end": "tanh_output",
    },
    "progan.D": {"mbstd_group_size": "mbstd_group"},
}
# What does not change the function that the weights stand for, or may only have the value that we compute.
_WITHOUT_EFFECT = {"structure", "dtype", "randomize_noise", "is_training", "is_validation", "is_template_graph"}
_WITHOUT_EFFECT |= {"truncation_psi", "truncation_cutoff", "truncation_psi_val", "truncation_cutoff_val"}
_WITHOUT_EFFECT |= {"style_mixing_prob", "return_dlatents"}
_FIXED = {"use_wscale": True, "pixelnorm_epsilon": 1e-8, "mapping_nonlinearity": "lrelu"}
_FIXED["const_input_latent"] = True


def from_variables(kind: str, variables: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    """Our network, in eval mode, that computes what the official one with these variables computes.

    `kind` is one of KINDS. `variables` maps official names ("G_synthesis/4x4/Conv/weight", ...) to arrays in their
    original layout (convolutions HWIO, dense [in, out]); `kwargs` are the official construction arguments
    (`resolution`, `fmap_base`, ...; those left out have their official defaults). The network is called with latents
    or images, labels, `resolution` and `alpha` (see `stage_of_lod`), StyleGAN's G with `psi` and `cutoff` too. Raises
    UserError for an unknown kind or argument, and for missing or misshapen variables.
    """
    config = config_of(kind, kwargs)
    network = build_generator(config) if isinstance(config, GeneratorConfig) else build_discriminator(config)
    state = network.state_dict()
    for official, (ours, axes) in variable_map(kind, config).items():
        if official not in variables:
            raise UserError(f"{kind}: variable {official!r} is missing; these kwargs ask for it: {kwargs}")
        value = torch.as_tensor(np.asarray(variables[official]), dtype=torch.float32)
        value = value.permute(axes) if axes else value
        if value.shape != state[ours].shape:
            shapes = f"{list(np.shape(variables[official]))}; these kwargs ask for {list(state[ours].shape)} as {ours}"
            raise UserError(f"{kind}: variable {official!r} has shape {shapes}")
        state[ours].copy_(value)
    return network.eval()


def stage_of_lod(lod: float, resolution: int) -> tuple[int, float]:
    """(resolution, alpha) of an official level of detail: 0 is the full resolution, 1.5 half-way into its half."""
    whole = math.floor(lod)
    return resolution >> whole, 1.0 - (lod - whole)


def config_of(kind: str, kwargs: dict[str, Any]) -> GeneratorConfig | DiscriminatorConfig:
    """Our config for official construction arguments. Raises UserError for what we do not know."""
    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}; accepted: {', '.join(KINDS)}")
    family, role = kind.split(".")
    fields: dict[str, Any] = {"family": family}
    if family == "progan":
        fields |= {"fused_scale": "on"} | ({"pixel_norm": True} if role == "G" else {"blur_filter": ()})
    names = _COMMON | _ARGUMENTS[kind]
    resolution = kwargs.get("resolution", 32 if family == "progan" else 1024)
    for key, value in kwargs.items():
        if key in names:
            if value is not None:
                fields[names[key]] = value
        elif key == "fused_scale" and value in _FUSED:
            fields[key] = _FUSED[value]
        elif key == "blur_filter" and family == "stylegan":
            fields[key] = tuple(float(tap) for tap in value or ())
        elif key == "use_leakyrelu" and family == "progan":
            fields["activation"] = "lrelu" if value else "relu"
        elif key not in _WITHOUT_EFFECT and key != "resolution" and (key not in _FIXED or _FIXED[key] != value):
            raise UserError(f"{kind}: argument {key}={value!r} is not supported; known: {', '.join(sorted(names))}")
    if resolution < 4 or resolution & (resolution - 1):
        raise UserError(f"{kind}: resolution {resolution} is not a power of two of at least 4")
    fields["levels"] = int(math.log2(resolution)) - 1
    if kind == "progan.G" and "latent_size" not in fields:
        fields["latent_size"] = min(fields.get("fmap_base", 8192), fields.get("fmap_max", 512))
    return (GeneratorConfig if role == "G" else DiscriminatorConfig)(**fields)


def variable_map(kind: str, config: GeneratorConfig | DiscriminatorConfig) -> Names:
    """Official name -> (our name, the axes that transpose the official layout to ours, None for none)."""
    if isinstance(config, DiscriminatorConfig):
        return _discriminator(config)
    return _stylegan_g(config) if kind == "stylegan.G" else _progan_g(config)


def to_official(
    kind: str, tensors: dict[str, Tensor], config: GeneratorConfig | DiscriminatorConfig
) -> dict[str, np.ndarray]:
    """Tensors under our names (weights, or their gradients) -> arrays under official names, in the official layout."""
    arrays = {}
    for official, (ours, axes) in variable_map(kind, config).items():
        if ours in tensors:
            array = tensors[ours].detach().cpu().numpy()
            arrays[official] = array.transpose(np.argsort(axes)) if axes else array
    return arrays


def _pair(names: Names, official: str, ours: str, axes: tuple[int, ...]) -> None:
    names[f"{official}/weight"] = (f"{ours}.weight", axes)
    names[f"{official}/bias"] = (f"{ours}.bias", None)


def _stylegan_g(config: GeneratorConfig) -> Names:
    names: Names = {"dlatent_avg": ("w_avg", None)}
    if config.label_size:
        names["G_mapping/LabelConcat/weight"] = ("map.embedding", None)
    for i in range(config.mapping_layers):
        _pair(names, f"G_mapping/Dense{i}", f"map.dense.{i}", _DENSE)
    names["G_synthesis/4x4/Const/const"] = ("synthesis.const", None)
    for i in range(2 * config.levels):
        side, ours = 4 << i // 2, f"synthesis.layers.{i}"
        last = ("Const", "Conv")[i] if i < 2 else ("Conv0_up", "Conv1")[i % 2]
        official = f"G_synthesis/{side}x{side}/{last}"
        if i > 0:
            names[f"{official}/weight"] = (f"{ours}.conv.weight", _CONV)
        names[f"{official}/bias"] = (f"{ours}.bias", None)
        if config.noise:
            names[f"G_synthesis/noise{i}"] = (f"{ours}.noise", None)
            names[f"{official}/Noise/weight"] = (f"{ours}.noise_strength", None)
        if config.styles:
            _pair(names, f"{official}/StyleMod", f"{ours}.style", _DENSE)
    for k in range(config.levels):
        _pair(names, f"G_synthesis/ToRGB_lod{config.levels - 1 - k}", f"synthesis.to_rgb.{k}", _CONV)
    return names


def _progan_g(config: GeneratorConfig) -> Names:
    names: Names = {}
    _pair(names, "4x4/Dense", "dense", _DENSE)
    _pair(names, "4x4/Conv", "blocks.0.conv1", _CONV)
    for k in range(1, config.levels):
        side, fused = 4 << k, config.fused_scale != "off"
        up = "Conv0_up" if fused else "Conv0"
        _pair(names, f"{side}x{side}/{up}", f"blocks.{k}.conv0", _FUSED_UP if fused else _CONV)
        _pair(names, f"{side}x{side}/Conv1", f"blocks.{k}.conv1", _CONV)
    for k in range(config.levels):
        _pair(names, f"ToRGB_lod{config.levels - 1 - k}", f"to_rgb.{k}", _CONV)
    return names


def _discriminator(config: DiscriminatorConfig) -> Names:
    names: Names = {}
    for k in range(config.levels):
        _pair(names, f"FromRGB_lod{config.levels - 1 - k}", f"from_rgb.{k}", _CONV)
    down = "Conv1" if config.family == "progan" and config.fused_scale == "off" else "Conv1_down"
    for k in range(1, config.levels):
        side = 4 << k
        _pair(names, f"{side}x{side}/Conv0", f"blocks.{k - 1}.conv0", _CONV)
        _pair(names, f"{side}x{side}/{down}", f"blocks.{k - 1}.conv1", _CONV)
    _pair(names, "4x4/Conv", "tail.conv", _CONV)
    _pair(names, "4x4/Dense0", "tail.dense0", _DENSE)
    _pair(names, "4x4/Dense1", "tail.dense1", _DENSE)
    return names
