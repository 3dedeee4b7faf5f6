"""PNG files as a data set holds them: 8 bits, no metadata. Encodes fast; keeps those that are so already."""

import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPES = {1: 0, 3: 2, 4: 6}
_LEFT, _ABOVE, _LAST_FILTER = 1, 2, 4
_BLOCK_BYTES = 2**16  # so much is filtered at once: it stays in the cache
_MAX_COPY_BYTES = 2**27  # of pixels
# What `pictures.decode` does not look at. Not so text: Pillow takes a rotation from it.
_DROPPED = rb"gAMA|cHRM|sRGB|iCCP|sBIT|pHYs|bKGD|tIME"
_KINDS = re.compile(rb"IHDR(?:%b)*(?:IDAT)+(?:tIME)?IEND" % _DROPPED)


def encode(pixels: np.ndarray) -> bytes:
    """uint8 [H, W] or [H, W, C] of 1, 3 or 4 channels -> a PNG.

    Each row as differences to its left or to the row above, then runs and Huffman codes, nothing that searches.
    """
    height, width = pixels.shape[:2]
    channels = pixels.size // (height * width)
    rows = np.zeros((height + 1, width * channels), np.uint8)
    rows[1:] = pixels.reshape(height, -1)
    deflate = zlib.compressobj(1, strategy=zlib.Z_RLE)
    count = max(1, _BLOCK_BYTES // rows.shape[1])
    blocks = (rows[start : start + count + 1] for start in range(0, height, count))
    data = b"".join(deflate.compress(_filtered(block[1:], block[:-1], channels).data) for block in blocks)
    return _start(height, width, channels) + _chunk(b"IDAT", data + deflate.flush()) + _chunk(b"IEND", b"")


def finished(data: bytes, size: tuple[int, int], channels: int) -> bytes | None:
    """`data` without its metadata, if it is a sound PNG of 8 bits, (height, width) and channels that needs no decoding.

    Every checksum is verified and the pixels are inflated. None for anything doubtful, and where it is not compressed.
    """
    start, stride = _start(*size, channels), 1 + size[1] * channels
    length = size[0] * stride
    if not data.startswith(start) or not len(data) < length <= _MAX_COPY_BYTES:
        return None
    chunks = list(_chunks(data))
    if not _KINDS.fullmatch(b"".join(chunk[4:8] for chunk in chunks)):
        return None
    kept = [chunk for chunk in chunks if chunk[4:8] == b"IDAT"]
    inflate = zlib.decompressobj()
    try:
        rows = inflate.decompress(b"".join(chunk[8:-4] for chunk in kept), length + 1)
    except zlib.error:
        return None
    whole = inflate.eof and not inflate.unused_data and len(rows) == length
    return b"".join([start, *kept, chunks[-1]]) if whole and max(rows[::stride]) <= _LAST_FILTER else None


def _start(height: int, width: int, channels: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOR_TYPES[channels], 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _chunks(data: bytes) -> Iterator[bytes]:
    """Whole chunks up to IEND, or to the first that is cut off or fails its checksum."""
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND" and at + 12 <= len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        chunk, kind = data[at:end], data[at + 4 : at + 8]
        if end > len(data) or zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
            return
        yield chunk
        at = end


def _filtered(rows: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, 1 + w]: each row as the number of its filter and the differences, from whichever gives longer runs."""
    both = np.empty((2, len(rows), 1 + rows.shape[1]), np.uint8)
    both[0, :, 0], both[1, :, 0] = _LEFT, _ABOVE
    both[0, :, 1 : 1 + channels] = rows[:, :channels]
    np.subtract(rows[:, channels:], rows[:, :-channels], out=both[0, :, 1 + channels :])
    np.subtract(rows, above, out=both[1, :, 1:])
    changes = (both[..., 1:] != both[..., :-1]).view(np.uint8).sum(2, dtype=np.uint32)
    return both[changes.argmin(0), np.arange(len(rows))]
