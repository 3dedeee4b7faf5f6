"""Perceptual distances with gradients, for projection: the squared distance of vectors made of feature maps."""

import os
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UserError
from .metrics.features import Lite0Features, to_rgb

TAPS = 4  # of lite0, from the finest: 1/2 to 1/16 of the picture's size


class Perceptual(Protocol):
    """What the distance |embed(a) - embed(b)|^2 of two pictures is measured with."""

    name: str

    def embed(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] in [-1, 1], C as `metrics.features.to_rgb` takes them -> [N, D], with gradient."""
        ...


def load_perceptual(spec: str, device: torch.device | str = "cpu") -> Perceptual:
    """That of "lite0", or of a TorchScript file such as VGG16's LPIPS. Raises UserError."""
    if spec == "lite0":
        return _Lite0(torch.device(device))
    if not Path(spec).is_file():
        raise UserError(f"no features {spec!r}: give lite0 or a TorchScript file (docs/latents.md)")
    return _Script(Path(spec), torch.device(device))


class _Lite0:
    """Zhang et al. 2018 (LPIPS), equation 1, of EfficientNet-Lite0's first four taps, with all weights 1."""

    name = "lite0"

    def __init__(self, device: torch.device):
        self.features = Lite0Features(device)

    def embed(self, images: Tensor) -> Tensor:
        maps = self.features.network.taps(self.features.prepare(127.5 * (images + 1)))[:TAPS]
        return torch.cat([(F.normalize(x) / (x.shape[2] * x.shape[3]) ** 0.5).flatten(1) for x in maps], 1)


class _Script:
    """A TorchScript module of RGB pictures [N, 3, H, W] in 0..255, as StyleGAN2's projector takes them.

    Where its `forward` has them, `return_lpips` is true and `resize_images` false. Pictures above 256 pixels are
    reduced to 256 on their shorter side (Karras et al. 2020, appendix D).
    """

    def __init__(self, path: Path, device: torch.device):
        self.name = path.stem
        try:
            self.module = torch.jit.load(os.fspath(path), map_location=device).eval()
            accepted = {argument.name for argument in self.module.forward.schema.arguments}
            self.options = {k: v for k, v in {"return_lpips": True, "resize_images": False}.items() if k in accepted}
            vectors = self.embed(torch.zeros(2, 3, 64, 64, device=device))
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{path} is no TorchScript module of pictures [N, 3, H, W] ({reason})") from error
        if vectors.ndim != 2 or len(vectors) != 2:
            raise UserError(f"{path} makes {tuple(vectors.shape)} of 2 pictures, not vectors [2, D]")

    def embed(self, images: Tensor) -> Tensor:
        x = to_rgb(127.5 * (images + 1))
        if (scale := 256 / min(x.shape[2:])) < 1:
            x = F.interpolate(x, [round(side * scale) for side in x.shape[2:]], mode="area")
        return self.module(x, **self.options).float()
