"""What pictures look like to a network: feature vectors for FID and its kin, perceptual distances for path lengths."""

import hashlib
import os
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stylegen.errors import UserError

from .lite0 import WIDTH, Lite0, load_lite0

NAMES = ("lite0", "pixels")
# The longer side that lite0 sees: its native one, and one that is three times as fast for pictures of few pixels.
SIDE, SMALL_SIDE, SMALL_PX = 224, 128, 64
_PIXELS = 8  # the side of what "pixels" compares


class Features(Protocol):
    """name: as printed. dim: length of a vector. identity: changes whenever the same picture gets another vector."""

    name: str
    dim: int
    identity: str

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W], C as `to_rgb` takes them -> float32 [N, dim] on the CPU, without gradient.

        Raises UserError.
        """
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Two batches, float [N, C, H, W] in 0..255 -> their perceptual distances, picture by picture, float32 [N]."""
        ...


def load(spec: str, device: torch.device | str = "cpu") -> Features:
    """The features "lite0", "pixels", or those of a TorchScript file. Raises UserError."""
    if spec == "lite0":
        return Lite0Features(torch.device(device))
    if spec == "pixels":
        return _Pixels(torch.device(device))
    if not Path(spec).is_file():
        raise UserError(f"no features {spec!r}: give {', '.join(NAMES)} or a TorchScript file (docs/metrics.md)")
    return ScriptFeatures(Path(spec), torch.device(device))


def to_rgb(images: Tensor) -> Tensor:
    """uint8 or float [N, C, H, W] in 0..255 -> [N, 3, H, W] of the same type.

    Grey becomes three equal channels; transparency (2 or 4 channels) shows white. Raises UserError for other channels.
    """
    channels = images.shape[1]
    if not 1 <= channels <= 4:
        raise UserError(f"metrics compare grey, RGB and RGBA pictures; these have {channels} channels")
    if channels in (2, 4):
        alpha = images[:, -1:].float() / 255
        mixed = images[:, :-1] * alpha + 255 * (1 - alpha)
        images = mixed if images.is_floating_point() else (mixed + 0.5).to(images.dtype)
    return images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1)


class Lite0Features:
    name, dim, identity = "lite0", WIDTH, "lite0-1"

    def __init__(self, device: torch.device):
        self.device = device
        self.network: Lite0 = load_lite0().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, images: Tensor) -> Tensor:
        """RGB float [N, 3, h, w], the longer side SIDE or SMALL_SIDE, by an antialiased triangle filter.

        Larger uint8 pictures are reduced as uint8 (as by Pillow; on the CPU), which is several times as fast.
        """
        longer = max(images.shape[2:])
        scale = (SIDE if longer > SMALL_PX else SMALL_SIDE) / longer
        size = [max(1, round(side * scale)) for side in images.shape[2:]]
        x = to_rgb(images)
        x = x.cpu() if x.dtype == torch.uint8 and scale < 1 else x.to(self.device).float()
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return x.to(self.device).float().contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self.network(self.prepare(images)).cpu()

    @torch.inference_mode()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Zhang et al. 2018 (LPIPS), equation 1, with all weights 1: unit vectors of channels, averaged over places."""
        pairs = zip(self.network.taps(self.prepare(a)), self.network.taps(self.prepare(b)), strict=True)
        parts = [(F.normalize(x) - F.normalize(y)).square().sum(1).mean((1, 2)) for x, y in pairs]
        return torch.stack(parts).sum(0).cpu()


class _Pixels:
    """Averages of an 8x8 grid of boxes, in 0..1. For tests: no weights, and quick."""

    name, dim, identity = "pixels", 3 * _PIXELS**2, "pixels-1"

    def __init__(self, device: torch.device):
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        x = to_rgb(images.to(self.device)).float() / 255
        return F.adaptive_avg_pool2d(x, _PIXELS).flatten(1).cpu()

    @torch.inference_mode()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return ((to_rgb(a).float() - to_rgb(b).float()) / 255).square().mean((1, 2, 3)).cpu()


class ScriptFeatures:
    """A TorchScript module that takes uint8 RGB pictures [N, 3, H, W], as large as they are, and returns [N, D].

    Where its `forward` has them, `return_features` is true; for distances `return_lpips` is true and `resize_images`
    false: the conventions of the files that StyleGAN2-ADA's metrics use (docs/metrics.md).
    """

    def __init__(self, path: Path, device: torch.device):
        self.device = device
        self.name = path.stem
        try:
            self.identity = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
            self.module = torch.jit.load(os.fspath(path), map_location=device).eval()
            self.accepted = {argument.name for argument in self.module.forward.schema.arguments}
            vectors = self(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
        except (RuntimeError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{path} is no TorchScript module of uint8 pictures [N, 3, H, W] ({reason}); see docs/metrics.md"
            ) from error
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != 2:
            shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise UserError(f"{path} makes {shape} of 2 pictures, not vectors [2, D]; see docs/metrics.md")
        self.dim = vectors.shape[1]

    def _run(self, images: Tensor, **options: bool) -> Tensor:
        chosen = {name: value for name, value in options.items() if name in self.accepted}
        return self.module(to_rgb(images.to(self.device)), **chosen)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        return self._run(images, return_features=True).float().cpu()

    def perceptual(self, images: Tensor) -> Tensor:
        """float [N, C, H, W] in 0..255 -> [N, D], whose squared distances are perceptual ones; with gradient."""
        options = {"return_lpips": True, "resize_images": False}
        if "return_lpips" not in self.accepted:
            options = {"return_features": True}
        return self._run(images, **options).float()

    @torch.inference_mode()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Squared Euclidean distances of what the module makes of float pictures."""
        return (self.perceptual(a) - self.perceptual(b)).square().sum(1).cpu()
