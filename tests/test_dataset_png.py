"""PNGs of a data set: encoded without loss, and kept as they are only where nothing about them is doubtful."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from stylegen.training import pictures, png
from stylegen.training.build import build_dataset

SIZE = (20, 24)


def picture(*shape: int) -> np.ndarray:
    """Smooth with a little noise, so that it compresses."""
    ramp = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).reshape(*shape[:2], *[1] * (len(shape) - 2))
    return (ramp * 2 + np.random.RandomState(0).randint(0, 3, shape)).astype(np.uint8)


def file(pixels: np.ndarray, **options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def assemble(
    pixels: np.ndarray, *, depth: int = 8, interlace: int = 0, filter_type: int = 0, tail: bytes = b""
) -> bytes:
    """A PNG by hand, of plain RGB."""
    height, width = pixels.shape[:2]
    rows = b"".join(bytes([filter_type]) + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows) + tail) + chunk(b"IEND", b"")


def build(folder: Path, data: bytes, **options: Any) -> bytes:
    """The one picture of the data set made of `data`."""
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "x.png").write_bytes(data)
    build_dataset(folder / "in", folder / "out.zip", **options)
    with zipfile.ZipFile(folder / "out.zip") as archive:
        return archive.read("00000/img00000000.png")


def pixels_of(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (7, 5, 3), (3, 70_000), (700, 300, 3), (64, 48, 4)])
def test_encoding_loses_nothing(shape: tuple[int, ...]) -> None:
    noise = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)
    for pixels in (picture(*shape), noise, np.zeros(shape, np.uint8)):
        data = png.encode(pixels)
        with Image.open(io.BytesIO(data)) as image:
            image.verify()
        assert np.array_equal(pixels_of(data), pixels)
        channels = 1 if len(shape) == 2 else shape[2]
        assert png.finished(data, shape[:2], channels) in (data, None)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("level", [1, 9])
def test_a_finished_picture_is_kept(tmp_path: Path, channels: int, level: int) -> None:
    data = file(picture(*SIZE, channels).squeeze(), compress_level=level)
    assert build(tmp_path, data, channels=channels) == data
    assert build(tmp_path, data, channels=channels, size=SIZE, how="pad") == data
    assert build(tmp_path, data + b"behind the end", channels=channels) == data


def test_colour_metadata_is_dropped_without_encoding(tmp_path: Path) -> None:
    pixels, info = picture(*SIZE, 3), PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 45455))
    data = file(pixels, icc_profile=b"profile" * 9, dpi=(72, 72), pnginfo=info)
    assert b"iCCP" in data
    assert b"gAMA" in data
    assert build(tmp_path, data) == file(pixels)


@pytest.mark.parametrize("where", ["exif", "xmp"])
def test_a_rotation_is_applied(tmp_path: Path, where: str) -> None:
    pixels = picture(20, 20, 3)
    if where == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        data = file(pixels, exif=exif)
    else:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        data = file(pixels, pnginfo=info)
    assert np.array_equal(pixels_of(build(tmp_path, data)), np.rot90(pixels, -1))


@pytest.mark.parametrize("case", ["size", "channels", "palette", "transparent", "deep", "stored", "interlaced"])
def test_other_pictures_are_encoded(tmp_path: Path, case: str) -> None:
    pixels, channels, size = picture(*SIZE, 3), 3, SIZE
    data = file(pixels)
    if case == "size":
        size = (SIZE[0], SIZE[1] - 4)
    elif case == "channels":
        channels = 4
    elif case == "palette":
        indexed = io.BytesIO()
        Image.fromarray(pixels).quantize(8).save(indexed, "PNG")
        data = indexed.getvalue()
    elif case == "transparent":
        data = file(pixels, transparency=tuple(pixels[0, 0].tolist()))
    elif case == "deep":
        data, channels = file(picture(*SIZE).astype(np.uint16) * 257), 1
    elif case == "stored":  # a data set should not take many times the room
        data = file(pixels, compress_level=0)
    elif case == "interlaced":
        data = assemble(pixels[:1, :1], interlace=1)  # of one pixel, so that there is only one pass
        size = (1, 1)
    assert png.finished(data, size, channels) is None
    image = pictures.to_channels(
        pictures.fit(pictures.decode(io.BytesIO(data)), size, "crop"), channels, (255, 255, 255, 255)
    )
    result = build(tmp_path, data, size=size, channels=channels)
    assert np.array_equal(pixels_of(result), np.asarray(image))
    with Image.open(io.BytesIO(result)) as found:
        assert found.mode == pictures.MODES[channels]


@pytest.mark.parametrize("fault", ["checksum", "adler", "cut", "tail", "filter", "short", "apart", "text"])
def test_doubtful_files_are_not_kept(tmp_path: Path, fault: str) -> None:
    """They are decoded: what Pillow reads is encoded anew, what it does not read is skipped."""
    pixels = picture(*SIZE, 3)
    sound = data = assemble(pixels)
    end = chunk(b"IEND", b"")
    assert png.finished(sound, SIZE, 3) == sound
    start, idat = sound[:33], sound[41:-16]
    if fault == "checksum":
        data = sound[:-13] + bytes([sound[-13] ^ 1]) + sound[-12:]
    elif fault == "adler":
        data = start + chunk(b"IDAT", idat[:-1] + bytes([idat[-1] ^ 1])) + end
    elif fault == "cut":
        data = sound[: len(sound) // 2]
    elif fault == "tail":
        data = assemble(pixels, tail=b"more")
    elif fault == "filter":
        data = assemble(pixels, filter_type=5)
    elif fault == "short":
        data = start + assemble(pixels[:-1])[33:]
    elif fault == "apart":
        parts = chunk(b"IDAT", idat[:9]), chunk(b"IDAT", idat[9:])
        assert png.finished(start + b"".join(parts) + end, SIZE, 3)
        data = start + chunk(b"tIME", bytes(7)).join(parts) + end
    elif fault == "text":  # Pillow may take a rotation from it
        data = start + chunk(b"tEXt", b"Comment\0nothing") + sound[33:]
    assert png.finished(data, SIZE, 3) is None
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(data)
    (tmp_path / "in" / "sound.png").write_bytes(sound)
    try:
        wanted = [np.asarray(pictures.decode(io.BytesIO(data)))]
    except Exception:
        wanted = []
    assert build_dataset(tmp_path / "in", tmp_path / "out.zip").written == len(wanted) + 1
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        files = [archive.read(name) for name in archive.namelist() if name.endswith(".png")]
    assert files.pop() == sound
    for found in files:
        assert png.finished(found, SIZE, 3)
        assert np.array_equal(pixels_of(found), wanted[0])
