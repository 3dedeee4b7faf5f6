"""Pictures and tensors: uint8 <-> [-1, 1], the crossfade of real pictures, grids, files."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .config import size_text
from .errors import UserError
from .files import atomic_path

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
_QUALITY: dict[str, dict[str, int | bool]] = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},  # exact: colours under full transparency survive too
    "JPEG": {"quality": 95, "subsampling": 0},
}
_MAX_SIDE = {"WEBP": 16383, "JPEG": 65535}


def to_float(images: Tensor) -> Tensor:
    """uint8 [...] in 0..255 -> float32 [...] in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """float [...], about [-1, 1] -> uint8 [...]: 127.5 x + 128, clamped to 0..255 and truncated."""
    return (images.float() * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def fade_reals(images: Tensor, alpha: float) -> Tensor:
    """Real pictures as D sees them while a level fades in: crossfaded with their own 2x2 averages.

    images float [N, C, H, W], even H and W where alpha < 1; alpha 1 (settled) returns them as they are
    (Karras et al. 2018, ProGAN, appendix A: "similarly to how the generator interpolates between two resolutions").
    """
    if alpha >= 1:
        return images
    coarse = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")
    return torch.lerp(coarse, images, alpha)


def grid(images: Tensor, columns: int, rows: int) -> Tensor:
    """uint8 [N, C, H, W] in rows from the top left -> one picture uint8 [C, rows * H, columns * W].

    Cells without a picture are white, or transparent where there is an alpha channel. Raises UserError when the
    pictures are more than the cells.
    """
    count, channels, height, width = images.shape
    if count > columns * rows:
        raise UserError(f"{count} pictures do not fit a grid of {columns}x{rows}; give it at least {count} cells")
    cells = blank(images[:1]).repeat(rows * columns, 1, 1, 1)
    cells[:count] = images
    cells = cells.reshape(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return cells.reshape(channels, rows * height, columns * width)


def blank(images: Tensor) -> Tensor:
    """White pictures like uint8 [N, C, H, W], or transparent ones where they have an alpha channel."""
    empty = torch.full_like(images, 255)
    if images.shape[1] in (2, 4):
        empty[:, -1] = 0
    return empty


def to_pil(image: Tensor) -> Image.Image:
    """uint8 [C, H, W] -> a PIL picture: 1 channel L, 2 LA, 3 RGB, 4 RGBA. Raises UserError for others."""
    channels = len(image)
    if channels not in MODES:
        raise UserError(f"pictures of {channels} channels have no file format; 1, 2, 3 or 4 channels have")
    pixels = image.cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def check_format(suffix: str, channels: int, size: tuple[int, int]) -> str:
    """PIL's name of the format that `suffix` means, for `channels` and (height, width). Raises UserError."""
    kind = FORMATS.get(suffix.lower())
    if kind is None:
        raise UserError(f"unknown picture format {suffix!r}; accepted: {', '.join(FORMATS)}")
    if channels not in MODES:
        raise UserError(f"pictures of {channels} channels have no file format; 1, 2, 3 or 4 channels have")
    if kind == "JPEG" and channels in (2, 4):
        raise UserError("JPEG has no transparency; write these pictures as png or webp")
    if max(size) > _MAX_SIDE.get(kind, 2**31):
        raise UserError(f"{size_text(size)} is too large for {kind}, whose sides end at {_MAX_SIDE[kind]}; write png")
    return kind


def save_image(image: Tensor, path: str | Path) -> None:
    """Writes uint8 [C, H, W] to `path`, whole or not at all; the suffix (.png, .webp, .jpg) chooses the format.

    PNG and WebP are lossless, JPEG has quality 95. Raises UserError for what the format cannot hold, OSError.
    """
    path = Path(path)
    kind = check_format(path.suffix, image.shape[0], (image.shape[1], image.shape[2]))
    with atomic_path(path) as temporary:
        to_pil(image).save(temporary, kind, **_QUALITY[kind])
