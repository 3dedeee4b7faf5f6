"""One picture: bytes of any common format and mode -> 8-bit L, LA, RGB or RGBA, of the asked size and channels.

Sizes are (height, width). Colours are RGBA tuples of 0..255.
"""

import threading
import typing
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from stylegen.config import size_text

Size = tuple[int, int]
Color = tuple[int, int, int, int]
Pixels = np.ndarray  # uint8 [C, H, W]

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
NAMES = {1: "gray", 3: "rgb", 4: "rgba"}
CHANNELS = {"L": 1, "RGB": 3, "LA": 4, "RGBA": 4}

_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LARGE_PX = 2**25  # larger pictures are decoded one at a time: each may take 2 GB on its way
_large = threading.Lock()


def decode(file: Path | typing.BinaryIO) -> Image.Image:
    """The first frame of a picture, upright, as L, LA, RGB or RGBA of 8 bits. Raises whatever Pillow raises."""
    with Image.open(file, formats=_formats()) as image, _turnstile(image):
        image.load()
        turn = _ORIENTATIONS.get(_orientation(image))
        return normalize(image.transpose(turn) if turn is not None else image)


def header(file: Path | typing.BinaryIO) -> tuple[Size, str]:
    """((height, width), mode as `decode` gives it), without decoding the pixels. Raises whatever Pillow raises."""
    with Image.open(file, formats=_formats()) as image:
        # Pillow turns TIFF itself. A PNG's EXIF may lie behind its pixels: only that in front of them is looked at.
        turned = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info) and _orientation(image) >= 5
        return ((image.width, image.height) if turned else (image.height, image.width)), _mode(image)


def normalize(image: Image.Image) -> Image.Image:
    """Any mode to L, LA, RGB or RGBA of 8 bits; 16-bit and float greys are scaled, not clipped."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_uint8(np.asarray(image)))
    mode = _mode(image)
    return image if image.mode == mode else image.convert(mode)


def to_channels(image: Image.Image, channels: int, background: Color) -> Image.Image:
    """L, RGB or RGBA; without an alpha channel in the result, transparency shows `background`."""
    if image.mode in ("LA", "RGBA") and channels != 4:
        canvas = Image.new("RGB", image.size, background[:3])
        canvas.paste(image, mask=image)  # rounds as alpha_composite does, which takes three times as long
        image = canvas
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def enlargement(source: Size, target: Size, how: str) -> float:
    """The factor by which `fit` would scale `source`: above 1 it invents pixels."""
    factors = (target[0] / source[0], target[1] / source[1])
    if how != "pad":
        return max(factors)
    scale = min(factors)
    return 1.0 if 1 <= scale < 2 else scale


def fit(image: Image.Image, size: Size, how: str) -> Image.Image:
    """`image` scaled by Lanczos to (height, width): its middle ("crop"), distorted ("stretch"), or inside it ("pad").

    "pad" leaves the border to `center`, and a picture that fits inside and is more than half as large as it is.
    """
    target = (size[1], size[0])
    if how == "pad":
        scale = enlargement((image.height, image.width), size, how)
        target = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    elif how == "crop":
        scale = min(image.width / target[0], image.height / target[1])
        width, height = max(1, round(target[0] * scale)), max(1, round(target[1] * scale))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        if (width, height) != image.size:
            image = image.crop((left, top, left + width, top + height))
    return image if image.size == target else image.resize(target, Image.Resampling.LANCZOS)


def center(image: Image.Image, size: Size, background: Color) -> Image.Image:
    """`image` in the middle of (height, width) pixels of `background`; the odd pixel goes to the right and below."""
    if image.size == (size[1], size[0]):
        return image
    canvas = Image.new("RGBA", (size[1], size[0]), background).convert(image.mode)
    canvas.paste(image, ((canvas.width - image.width) // 2, (canvas.height - image.height) // 2))
    return canvas


def describe(size: Size, channels: int) -> str:
    """((256, 512), 3) -> "512x256 rgb"."""
    return f"{size_text(size)} {NAMES[channels]}"


def to_pixels(image: Image.Image) -> Pixels:
    """L, LA, RGB or RGBA -> uint8 [C, H, W]."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def from_pixels(pixels: Pixels) -> Image.Image:
    """uint8 [C, H, W] with 1, 3 or 4 channels -> L, RGB or RGBA."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


@cache
def _formats() -> list[str]:
    Image.init()  # a format that Pillow has not loaded yet would be a KeyError in Image.open
    return [name for name in FORMATS if name in Image.OPEN]


def _turnstile(image: Image.Image) -> typing.ContextManager[object]:
    return _large if image.width * image.height > _LARGE_PX else nullcontext()


def _mode(image: Image.Image) -> str:
    gray = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or ("transparency" in image.info and not deep)
    return ("LA" if alpha else "L") if gray else ("RGBA" if alpha else "RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a picture is good even where its EXIF is garbage, and Pillow raises many kinds on garbage
        return 1


def _to_uint8(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError("pixels are not finite")
    highest = float(values.max(initial=0))
    tops = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0, 2.0**31 - 1)
    top = next((top for top in tops if highest <= top), highest)
    return np.rint(np.clip(values, 0, top) * (255.0 / top)).astype(np.uint8)
