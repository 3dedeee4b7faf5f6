"""The level cache: small versions of every picture, ready to be memory-mapped, built once per data set.

A cache is a folder NAME.levels-DIGEST with one uint8 array [N, C, h, w] a level (WIDTHxHEIGHT.npy). It is written to
a temporary folder and renamed when complete, so that it is whole or not there, whoever else builds it at the same time.
"""

import hashlib
import os
import shutil
import time
import typing
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from stylegen.assets import data_path
from stylegen.config import size_text

from .threads import in_order, progress

if typing.TYPE_CHECKING:
    from .dataset import Dataset

MAX_SIDE = 128  # larger levels are decoded when they are needed
Levels = dict[int, np.ndarray]  # reduction k -> uint8 [N, C, H >> k, W >> k]
_VERSION = "1"
_ABANDONED_SEC = 24 * 3600


def box_reduce(pixels: np.ndarray, k: int) -> np.ndarray:
    """Means of 2^k x 2^k boxes, rounded half to even: uint8 [..., H, W] -> uint8 [..., H >> k, W >> k]."""
    sums = pixels
    for i in range(k):
        sums = _pair(sums, i + 1)
    return _mean(sums, k) if k else pixels


def box_pyramid(pixels: np.ndarray, reductions: list[int]) -> Iterator[np.ndarray]:
    """`box_reduce` for every k of the ascending `reductions`, sharing the sums."""
    sums, done = pixels, 0
    for k in reductions:
        for i in range(done, k):
            sums = _pair(sums, i + 1)
        done = k
        yield _mean(sums, k) if k else pixels


def open_levels(dataset: "Dataset", reductions: list[int], workers: int) -> Levels:
    """The cached levels: found, or built beside the data set, else in the user cache, else in memory with a warning."""
    if not reductions:
        return {}
    folders = [user_cache()]
    if data_path(dataset.path.stem) != dataset.path:  # nothing is written into the installed package
        folders.insert(0, dataset.path.parent)
    places = [folder / _name(dataset, reductions) for folder in folders]
    for place in places:
        if (levels := _load(place, dataset, reductions)) is not None:
            return levels
    needed = sum(len(dataset) * dataset.channels * h * w for h, w in _sizes(dataset, reductions).values())
    reasons = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(place.parent).free) < needed + 2**20:
                reasons.append(f"{place.parent} has {free / 1e6:.0f} MB free of the {needed / 1e6:.0f} MB needed")
                continue
            _build(place, dataset, reductions, workers)
        except OSError as error:
            reasons.append(f"{place.parent}: {error.strerror or error}")
            continue
        if (levels := _load(place, dataset, reductions)) is not None:
            return levels
        reasons.append(f"{place} cannot be replaced")
    warnings.warn(f"level cache kept in memory ({needed / 1e6:.0f} MB): {'; '.join(reasons)}", stacklevel=2)
    chunks = zip(*_chunks(dataset, reductions, workers), strict=True)
    return {k: np.concatenate(parts) for k, parts in zip(reductions, chunks, strict=True)}


def _build(place: Path, dataset: "Dataset", reductions: list[int], workers: int) -> None:
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex[:12]}.tmp")
    _remove_abandoned(place)
    temporary.mkdir()
    try:
        _write(temporary, dataset, reductions, workers)
        if place.exists() and _load(place, dataset, reductions) is None:
            shutil.rmtree(place, ignore_errors=True)
        try:
            temporary.rename(place)
        except OSError:
            if not place.exists():  # else another process was faster: its cache equals ours
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, dataset: "Dataset", reductions: list[int], workers: int) -> None:
    with ExitStack() as stack:
        files = []
        for size in _sizes(dataset, reductions).values():
            files.append(stack.enter_context(open(folder / f"{size_text(size)}.npy", "wb")))
            shape = (len(dataset), dataset.channels, *size)
            np.lib.format.write_array_header_1_0(files[-1], {"descr": "|u1", "fortran_order": False, "shape": shape})
        # Plain writes: a full disk raises OSError, where writing through a memory map would kill the process.
        for parts in _chunks(dataset, reductions, workers):
            for file, part in zip(files, parts, strict=True):
                file.write(part.tobytes())
        for file in files:
            file.flush()
            os.fsync(file.fileno())


def _chunks(dataset: "Dataset", reductions: list[int], workers: int) -> Iterator[list[np.ndarray]]:
    count = max(1, 2**18 // (dataset.full_size[0] * dataset.full_size[1]))
    starts = range(0, len(dataset), count)

    def levels_of(start: int) -> list[np.ndarray]:
        pictures = [dataset.read_full(i) for i in range(start, min(start + count, len(dataset)))]
        return list(box_pyramid(np.stack(pictures), [k + dataset.reduction for k in reductions]))

    with progress(len(dataset), "level cache") as bar:
        for parts in in_order(levels_of, starts, workers):
            yield parts
            bar.update(len(parts[0]))


def _load(place: Path, dataset: "Dataset", reductions: list[int]) -> Levels | None:
    levels = {}
    for k, size in _sizes(dataset, reductions).items():
        try:
            levels[k] = np.load(place / f"{size_text(size)}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        if levels[k].shape != (len(dataset), dataset.channels, *size) or levels[k].dtype != np.uint8:
            return None
    return levels


def _remove_abandoned(place: Path) -> None:
    for leftover in place.parent.glob(f".{place.name}.*.tmp"):
        try:
            newest = max(file.stat().st_mtime for file in (leftover, *leftover.iterdir()))
        except OSError:  # its owner has just renamed it
            continue
        if time.time() - newest > _ABANDONED_SEC:
            shutil.rmtree(leftover, ignore_errors=True)


def _name(dataset: "Dataset", reductions: list[int]) -> str:
    sizes = [size_text(size) for size in _sizes(dataset, reductions).values()]
    text = repr((_VERSION, dataset.digest, dataset.channels, sizes))
    digest = hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return f"{dataset.path.stem if dataset.path.is_file() else dataset.path.name}.levels-{digest}"


def _sizes(dataset: "Dataset", reductions: list[int]) -> dict[int, tuple[int, int]]:
    return {k: (dataset.size[0] >> k, dataset.size[1] >> k) for k in reductions}


def user_cache() -> Path:
    """The folder for what can be computed again, below XDG_CACHE_HOME; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stylegen"


def _pair(sums: np.ndarray, k: int) -> np.ndarray:
    """Sums of 2^k x 2^k boxes from those of half the side; 255 * 4^k fits."""
    rows = np.add(sums[..., 0::2, :], sums[..., 1::2, :], dtype=np.uint16 if k <= 4 else np.uint32)
    return rows[..., 0::2] + rows[..., 1::2]


def _mean(sums: np.ndarray, k: int) -> np.ndarray:
    """sums / 4^k rounded half to even, in whole numbers: several times faster than np.rint of a quotient."""
    odd = (sums >> (2 * k)) & 1
    return ((sums + (odd + (2 ** (2 * k - 1) - 1))) >> (2 * k)).astype(np.uint8)
