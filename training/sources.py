"""Where pictures come from: a folder, a zip, shards, IDX, CIFAR or NumPy arrays, each as pictures to load by number."""

import csv
import io
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from stylegen.assets import data_path
from stylegen.errors import NotFoundError, UserError

from . import pictures, png
from .arrays import Arrays, read_arrays, read_idx, to_uint8
from .listing import LABEL_FILE, Collection, Listing, folder_labels, one_line, open_listing, parse_labels, read_labels
from .pictures import Color, Size
from .shards import find_shards

T = typing.TypeVar("T")

WHITE, BLACK = (255, 255, 255, 255), (0, 0, 0, 255)
KINDS = (
    "a folder or a zip of pictures (PNG, JPEG, WebP, GIF, TIFF, BMP), tar shards or a folder of them, "
    "an IDX file (MNIST, also .gz), CIFAR python batches (folder, file or .tar.gz), a .npy or .npz array"
)


class Skip(Exception):
    """Why a file cannot be used, for the report."""


@dataclass(frozen=True)
class Source:
    """Pictures by number, in a fixed order; labels: a class index, a vector or None each."""

    path: Path
    names: list[str]
    # (number, size, channels) -> L, LA, RGB or RGBA, or a PNG that is of this size and channels already; raises Skip
    load: Callable[[int, Size, int], Image.Image | bytes]
    header: Callable[[int], tuple[Size, str]]  # ((height, width), mode) without decoding; raises Skip
    labels: Sequence[typing.Any] | None
    class_names: list[str] | None
    background: Color  # by default, under transparency and around padded pictures
    alike: bool  # all of one size and mode


def open_source(path: str | Path, leave_out: Sequence[Path] = ()) -> Source:
    """Recognises what `path` holds. Files in `leave_out` are not listed. Raises UserError, OSError."""
    path = Path(path)
    if not path.exists():
        path = data_path(str(path)) or path
    if path.exists() and (arrays := read_arrays(path)) is not None:
        return _array_source(path, arrays)
    if (collection := find_shards(path, None)) is not None:
        return _shard_source(collection)
    if not path.exists():
        raise NotFoundError(f"no source at {path}; accepted: {KINDS}")
    with open(path, "rb") if path.is_file() else io.BytesIO(b"PK") as file:
        if file.read(2) != b"PK":
            raise UserError(f"{path} is of no known kind; accepted: {KINDS}")
    listing = open_listing(path)
    bare = not any(name.lower().endswith(pictures.SUFFIXES) for name in listing.names)
    if bare and (collection := find_shards(path, listing)) is not None:
        return _shard_source(collection)
    return _file_source(listing, {item.resolve() for item in leave_out})


def with_labels(source: Source, labels: str | None) -> Source:
    """`source` with the labels of the --labels option: "folders", "none", a file, or None for those it brings."""
    if labels is None:
        return source
    if labels == "none":
        return replace(source, labels=None, class_names=None)
    if labels == "folders":
        likely = _likely_pictures(source.names)
        if (found := folder_labels(likely)) is None:
            raise UserError(
                f"--labels folders: the pictures of {source.path} do not all lie in two or more sub-folders"
            )
        table = dict(zip(likely, found[0].tolist(), strict=True))
        return replace(source, labels=[table.get(name) for name in source.names], class_names=found[1])
    path = Path(labels)
    if not path.is_file():
        raise UserError(f"--labels {labels}: no such file; accepted: folders, none, or a .json, .csv, .npy or IDX file")
    if path.suffix.lower() in (".json", ".csv", ".tsv", ".txt"):
        return _named_labels(source, path)
    values = _numpy_labels(path) if path.suffix.lower() == ".npy" else read_idx(path)
    if values.ndim not in (1, 2) or len(values) != len(source.names):
        raise UserError(f"{path} holds labels of shape {list(values.shape)}, the source {len(source.names)} pictures")
    return replace(source, labels=values.tolist(), class_names=None)


def _numpy_labels(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a whole NumPy file of plain numbers ({error})") from error


def _named_labels(source: Source, path: Path) -> Source:
    likely = _likely_pictures(source.names)
    if path.suffix.lower() == ".json":
        values, class_names = parse_labels(path.read_bytes(), likely, str(path))
        table = {} if values is None else dict(zip(likely, values.tolist(), strict=True))
        return replace(source, labels=[table.get(name) for name in source.names], class_names=class_names)
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file in UTF-8") from error
    delimiter = "\t" if "\t" in text else ","
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    table = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2}
    found = {name: table.get(name, table.get(name.rpartition("/")[2])) for name in source.names}
    if missing := [name for name in likely if found[name] is None]:
        raise UserError(f"{path} has no `name,label` line for {len(missing)} of {len(likely)} files, e.g. {missing[0]}")
    texts = sorted({label for label in found.values() if label is not None})
    if all(label.isascii() and label.isdigit() for label in texts):
        return replace(source, labels=[None if x is None else int(x) for x in found.values()], class_names=None)
    index = {label: i for i, label in enumerate(texts)}
    labels = [None if x is None else index[x] for x in found.values()]
    return replace(source, labels=labels, class_names=texts)


def _array_source(path: Path, arrays: Arrays) -> Source:
    height, width = arrays.pixels.shape[1:3]
    channels = 1 if arrays.pixels.ndim == 3 else arrays.pixels.shape[3]

    def load(i: int, *_: object) -> Image.Image:
        try:
            pixels = to_uint8(arrays.pixels[i])
        except ValueError as error:
            raise Skip(str(error)) from error
        return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and channels == 1 else pixels)

    digits = len(str(len(arrays.pixels) - 1))
    return Source(
        path=path,
        names=[f"{path.name}[{i:0{digits}d}]" for i in range(len(arrays.pixels))],
        load=load,
        header=lambda i: ((height, width), pictures.MODES[channels]),
        labels=arrays.labels,
        class_names=arrays.class_names,
        background=BLACK,
        alike=True,
    )


def _file_source(listing: Listing, leave_out: set[Path]) -> Source:
    left = {item.name for item in leave_out}

    def is_left_out(name: str) -> bool:
        path = listing.path / name
        # Resolving each of many files would take as long as reading its header.
        return (path.name in left or path.is_symlink()) and path.resolve() in leave_out

    names = [name for name in listing.names if name != LABEL_FILE and (listing.archive or not is_left_out(name))]
    if not names:
        raise UserError(f"{listing.path} holds no files; accepted: {KINDS}")
    likely = _likely_pictures(names)
    labels, class_names = read_labels(listing, likely)
    table = {} if labels is None else dict(zip(likely, labels.tolist(), strict=True))
    return Source(
        path=listing.path,
        names=names,
        load=lambda i, size, channels: _or_skip(lambda: _decode(listing.read(names[i]), size, channels)),
        header=lambda i: _or_skip(lambda: _header(listing, names[i])),
        labels=None if labels is None else [table.get(name) for name in names],
        class_names=class_names,
        background=WHITE,
        alike=False,
    )


def _shard_source(collection: Collection) -> Source:
    if not len(collection.names):
        raise UserError(f"{collection.path} holds no pictures; accepted: {KINDS}")
    return Source(
        path=collection.path,
        names=list(collection.names),
        load=lambda i, size, channels: _or_skip(lambda: _decode(collection.read(i), size, channels)),
        header=lambda i: _or_skip(lambda: pictures.header(collection.open(i))),
        labels=None if collection.labels is None else collection.labels.tolist(),
        class_names=collection.class_names,
        background=WHITE,
        alike=False,
    )


def _likely_pictures(names: list[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(pictures.SUFFIXES)] or names


def _decode(data: bytes, size: Size, channels: int) -> Image.Image | bytes:
    if not data:
        raise Skip("empty file")
    return png.finished(data, size, channels) or pictures.decode(io.BytesIO(data))


def _header(listing: Listing, name: str) -> tuple[Size, str]:
    with listing.open(name) as file:
        return pictures.header(file)


def _or_skip(look: Callable[[], T]) -> T:
    try:
        return look()
    except (Skip, UserError):  # the latter is of a shard, not of a picture
        raise
    except UnidentifiedImageError as error:
        raise Skip("not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # from once to twice the limit Pillow only warns
        raise Skip(f"too large: more than {most / 1e6:.0f} million pixels") from error
    except Exception as error:  # Pillow's decoders and zipfile raise nearly anything on damaged data
        raise Skip(f"broken: {one_line(error)}") from error
