"""`dataset build`: pictures from any source -> a zip or tars of equal PNGs with labels, the same bytes every time."""

import json
import typing
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stylegen.config import size_text
from stylegen.errors import UserError
from stylegen.files import write_atomic

from . import pictures, png
from .archives import Archive, Shards, check_dest, open_archive
from .pictures import Color, Size
from .sources import Skip, Source, open_source, with_labels
from .threads import in_order, progress

T = typing.TypeVar("T")

MAX_ENLARGEMENT = 4.0
TRANSPARENT = (255, 255, 255, 0)
_TOGETHER = 16  # so many small pictures are one task: handing each over would take as long as the work


@dataclass(frozen=True)
class Built:
    """Pictures written, (name, reason) of each skipped one, number of classes or None, the report's path if any."""

    written: int
    skipped: list[tuple[str, str]]
    size: Size
    channels: int
    classes: int | None
    report: Path | None


def build_dataset(
    source_path: str | Path,
    dest: str | Path,
    *,
    size: Size | None = None,
    how: str = "crop",
    channels: int | None = None,
    background: Color | None = None,
    labels: str | None = None,
    class_names: list[str] | None = None,
    limit: int | None = None,
    shards: int | None = None,
    shard_bytes: int | None = None,
    workers: int = 1,
) -> Built:
    """Writes the zip `dest` from a source of any kind (see `open_source`); bad pictures are skipped and reported.

    With `shards` or `shard_bytes` a folder of tars, so many of them (fewer where pictures are few or all of one are
    skipped), or each of so many bytes at most.

    size (height, width), None: the pictures' own, which must agree. how: "crop", "pad", "stretch". channels 1, 3, 4;
    None: 1 where every picture is gray, else 3 (4 for arrays of 4). background: under transparency and around padding.
    labels: "folders", "none", a file, or None for those that the source brings. class_names: of the class indices
    0, 1, ... where the source has none or others. limit: the first so many good pictures.
    Raises UserError, and OSError where `dest` cannot be written.
    """
    dest = Path(dest)
    sharded = bool(shards or shard_bytes)
    check_dest(dest, sharded)
    report = dest.with_name(f"{dest.name}.report.txt") if sharded else dest.with_suffix(".report.txt")
    if Path(source_path).resolve() == dest.resolve():
        raise UserError(f"{dest} is the source itself; give the data set another name")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of pictures that are odd but good
        source = with_labels(open_source(source_path, leave_out=(dest, report)), labels)
        source = _named(source, class_names) if class_names else source
        size = size or _common_size(source, workers)
        channels = channels or _common_channels(source, workers)
        if background is None:
            background = TRANSPARENT if channels == 4 else source.background
        convert = _converter(source, size, how, channels, background)
        together = max(1, min(_TOGETHER, 2**16 // (size[0] * size[1])))
        results = _each(convert, len(source.names), together, workers)
        with open_archive(dest, sharded, shard_bytes) as archive:
            written, skipped = _write(archive, source, results, limit, shards)
    if skipped:
        write_atomic(report, "".join(f"{_printable(name)}: {reason}\n" for name, reason in skipped))
    else:
        report.unlink(missing_ok=True)
    kept = {json.dumps(label) for label in written}
    classes = len(kept) if source.labels is not None and not isinstance(written[0], list) else None
    return Built(len(written), skipped, size, channels, classes, report if skipped else None)


def _named(source: Source, names: list[str]) -> Source:
    indices = [label for label in source.labels or () if label is not None]
    if not indices or isinstance(indices[0], list):
        raise UserError(f"class names for {source.path}, which has no classes; --labels tells where they come from")
    if len(names) != max(indices) + 1 or len(set(names)) < len(names):
        raise UserError(f"{len(set(names))} class names for the classes 0 to {max(indices)}; give a name for each")
    return replace(source, class_names=names)


def _converter(
    source: Source, size: Size, how: str, channels: int, background: Color
) -> typing.Callable[[int], bytes | Skip]:
    def convert(i: int) -> bytes | Skip:
        try:
            if source.labels is not None and source.labels[i] is None:
                raise Skip("no label")
            image = source.load(i, size, channels)
            if isinstance(image, bytes):
                return image
            factor = pictures.enlargement((image.height, image.width), size, how)
            if factor > MAX_ENLARGEMENT:
                own = size_text((image.height, image.width))
                raise Skip(f"too small: {own} would be enlarged {factor:.3g} times, above {MAX_ENLARGEMENT:g}")
            image = pictures.to_channels(pictures.fit(image, size, how), channels, background)
        except Skip as skip:
            return skip
        return png.encode(np.asarray(pictures.center(image, size, background)))

    return convert


def _write(
    archive: Archive | Shards, source: Source, results: Iterator[bytes | Skip], limit: int | None, shards: int | None
) -> tuple[list[typing.Any], list[tuple[str, str]]]:
    """(labels of the pictures written, the skipped ones)."""
    skipped: list[tuple[str, str]] = []
    total, shard = min(len(source.names), limit or len(source.names)), 0
    with progress(total, "build") as bar:
        for i, result in enumerate(results):
            if isinstance(result, Skip):
                skipped.append((source.names[i], str(result)))
            else:
                position = len(archive.kept) if limit else i
                if shards and isinstance(archive, Shards) and position * shards // total != shard:
                    shard = position * shards // total
                    archive.cut()
                archive.add(result, source.labels[i] if source.labels is not None else None)
            bar.update()
            if len(archive.kept) == limit:
                break
        if not archive.kept:
            name, reason = skipped[0]
            raise UserError(
                f"nothing usable in {source.path}: all {len(skipped)} files skipped, first {_printable(name)}: {reason}"
            )
        archive.finish(source.labels is not None, source.class_names)
    return [label for _, label in archive.kept], skipped


def _headers(source: Source, workers: int) -> Iterator[tuple[Size, str]]:
    """Of every readable picture."""

    def look(i: int) -> tuple[Size, str] | None:
        try:
            return source.header(i)
        except Skip:
            return None

    count = 1 if source.alike else len(source.names)
    yield from (found for found in _each(look, count, _TOGETHER, workers) if found)


def _each(look: typing.Callable[[int], T], count: int, together: int, workers: int) -> Iterator[T]:
    """`look` at every number below `count`, in order, `together` of them a task."""

    def some(start: int) -> list[T]:
        return [look(i) for i in range(start, min(start + together, count))]

    for found in in_order(some, range(0, count, together), workers):
        yield from found


def _common_size(source: Source, workers: int) -> Size:
    sizes = Counter(size for size, _ in _headers(source, workers))
    if not sizes:
        raise UserError(f"nothing usable in {source.path}: none of its {len(source.names)} files is a picture")
    if len(sizes) > 1:
        found = ", ".join(f"{size_text(size)} ({count})" for size, count in sizes.most_common(5))
        more = f" and {len(sizes) - 5} more sizes" if len(sizes) > 5 else ""
        raise UserError(f"the pictures of {source.path} are of {found}{more}; choose one with --size, e.g. --size 64")
    return next(iter(sizes))


def _common_channels(source: Source, workers: int) -> int:
    modes = (mode for _, mode in _headers(source, workers))
    if source.alike:
        return pictures.CHANNELS[next(modes)]
    return 3 if any(mode in ("RGB", "RGBA") for mode in modes) else 1


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\n", "?")
