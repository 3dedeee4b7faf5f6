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
from stylegen.memory import available

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


def open_levels(dataset: "Dataset", reductions: list[int], workers: int, cache: str = "auto") -> Levels:
    """The cached levels of the ascending `reductions`; with a warning, only the smallest of them that find room.

    cache "auto": found, or built, beside the data set or in the user cache, else in memory if they take a quarter of
    what is free there at most. Another text: the folder to use in the place of those two; "none": nothing is cached.
    """
    if not reductions or cache == "none":
        return {}
    folders, why = _folders(dataset, cache), ""
    for start in range(len(reductions)):  # all of them, then without the largest, and so on
        some, reasons = reductions[start:], list[str]()
        needed, free = _bytes(dataset, some), available() // 4
        for make in (_found, _kept):
            for folder in folders:
                if (levels := make(folder, dataset, some, workers, reasons)) is not None:
                    return _told(levels, dataset, reductions, why)
        if needed <= free:
            text = f"level cache kept in memory ({needed / 1e6:.0f} MB): {'; '.join(reasons)}"
            warnings.warn(text, stacklevel=2)
            return _told(_in_memory(dataset, some, workers), dataset, reductions, why)
        reasons.append(f"memory has {free / 1e6:.0f} MB to spare")
        why = why or f" ({'; '.join(reasons)})"
    return _told({}, dataset, reductions, why)


def to_cache(size: tuple[int, int], levels: int) -> list[int]:
    """The reductions of a run of `levels` to pictures of `size` that belong into the cache."""
    return [k for k in range(levels) if max(size) >> k <= MAX_SIDE]


def is_built(dataset: "Dataset", reductions: list[int], cache: str) -> bool:
    """Whether `open_levels` would find all that it needs."""
    return cache == "none" or any(_found(folder, dataset, reductions) for folder in _folders(dataset, cache))


def _folders(dataset: "Dataset", cache: str) -> list[Path]:
    if cache != "auto":
        return [Path(cache)]
    ours = data_path(dataset.path.stem) == dataset.path  # the installed package is left alone
    return [user_cache()] if ours else [dataset.path.parent, user_cache()]


def _told(levels: Levels, dataset: "Dataset", reductions: list[int], why: str) -> Levels:
    if left := [size for k, size in _sizes(dataset, reductions).items() if k not in levels]:
        room = _bytes(dataset, reductions) / 1e9
        warnings.warn(
            f"{', '.join(map(size_text, left))} are not in the level cache{why}: every batch of them decodes pictures "
            f"of {size_text(dataset.full_size)}, which may be slow; --cache DIR names a folder with {room:.3g} GB free",
            stacklevel=3,
        )
    return levels


def _found(folder: Path, dataset: "Dataset", reductions: list[int], *_: object) -> Levels | None:
    return _load(folder / _name(dataset, reductions), dataset, reductions)


def _kept(folder: Path, dataset: "Dataset", reductions: list[int], workers: int, reasons: list[str]) -> Levels | None:
    """A new cache in `folder`; None where that is impossible, and why is added to `reasons`."""
    place, needed = folder / _name(dataset, reductions), _bytes(dataset, reductions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < needed + 2**20:
            reasons.append(f"{folder} has {free / 1e6:.0f} MB free of the {needed / 1e6:.0f} MB needed")
            return None
        _build(place, dataset, reductions, workers)
    except OSError as error:
        reasons.append(f"{folder}: {error.strerror or error}")
        return None
    if (levels := _load(place, dataset, reductions)) is None:
        reasons.append(f"{place} cannot be replaced")
    return levels


def _in_memory(dataset: "Dataset", reductions: list[int], workers: int) -> Levels:
    sizes = _sizes(dataset, reductions)
    levels = {k: np.empty((len(dataset), dataset.channels, *size), np.uint8) for k, size in sizes.items()}
    start = 0
    for parts in _chunks(dataset, reductions, workers):
        for level, part in zip(levels.values(), parts, strict=True):
            level[start : start + len(part)] = part
        start += len(parts[0])
    return levels


def _bytes(dataset: "Dataset", reductions: list[int]) -> int:
    return sum(len(dataset) * dataset.channels * h * w for h, w in _sizes(dataset, reductions).values())


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
