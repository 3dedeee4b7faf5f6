"""Perceptual distances with gradients, for projection: the squared distance of vectors made of feature maps."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .metrics.features import Lite0Features, ScriptFeatures, load

REDUCED_PX = 256  # of a shorter side (Karras et al. 2020, appendix D)
TAPS = 4  # of lite0, from the finest: 1/2 to 1/16 of the picture's size


class Perceptual(Protocol):
    """What the distance |embed(a) - embed(b)|^2 of two pictures is measured with."""

    name: str

    def embed(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] in [-1, 1], C as `metrics.features.to_rgb` takes them -> [N, D], with gradient."""
        ...


def load_perceptual(spec: str, device: torch.device | str = "cpu") -> Perceptual:
    """That of "lite0", or of a TorchScript file such as VGG16's LPIPS. Raises UserError."""
    features = load(spec, device)
    if isinstance(features, Lite0Features):
        return _Lite0(features)
    if isinstance(features, ScriptFeatures):
        return _Script(features)
    raise UserError(f"{spec} features have no gradient; give lite0 or a TorchScript file")


class _Lite0:
    """Zhang et al. 2018 (LPIPS), equation 1, of EfficientNet-Lite0's first four taps, with all weights 1."""

    name = "lite0"

    def __init__(self, features: Lite0Features):
        self.features = features

    def embed(self, images: Tensor) -> Tensor:
        maps = self.features.network.taps(self.features.prepare(127.5 * (images + 1)))[:TAPS]
        return torch.cat([(F.normalize(x) / (x.shape[2] * x.shape[3]) ** 0.5).flatten(1) for x in maps], 1)


class _Script:
    """A TorchScript module. Pictures above 256 pixels are reduced to that, as by StyleGAN2's projector."""

    def __init__(self, features: ScriptFeatures):
        self.features, self.name = features, features.name

    def embed(self, images: Tensor) -> Tensor:
        x = 127.5 * (images + 1)
        if (scale := REDUCED_PX / min(x.shape[2:])) < 1:
            x = F.interpolate(x, [round(side * scale) for side in x.shape[2:]], mode="area")
        return self.features.perceptual(x)
