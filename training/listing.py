"""The files of a folder or of a zip, and the labels that lie among them (`dataset.json`, a folder a class)."""

import hashlib
import json
import os
import typing
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stylegen.errors import UserError

Labels = np.ndarray  # int64 [N] class indices or float32 [N, L] vectors
LABEL_FILE = "dataset.json"
MAX_BYTES = 2**30


@dataclass(frozen=True)
class Listing:
    """Sorted "/"-separated names (hidden ones left out), with a stamp each that changes when the file does."""

    path: Path
    stamps: dict[str, tuple[int, ...]]
    archive: zipfile.ZipFile | None

    @property
    def names(self) -> list[str]:
        return list(self.stamps)

    def open(self, name: str) -> typing.BinaryIO:
        """A seekable binary file. Raises OSError, and what `zipfile` raises for a damaged entry."""
        if self.archive is None:
            return open(self.path / name, "rb")
        return typing.cast(typing.BinaryIO, self.archive.open(name))

    def read(self, name: str) -> bytes:
        """The whole file; checks a zip entry's CRC. Raises as `open` does, and ValueError above 1 GiB."""
        if (self.stamps[name][-1]) > MAX_BYTES:
            raise ValueError("larger than 1 GiB")
        with self.open(name) as file:
            return file.read()

    def digest(self, names: list[str]) -> str:
        """32 hex digits that change when one of `names`, their number or their content changes."""
        hasher = hashlib.blake2b(digest_size=16)
        for name in names:
            hasher.update(f"{name}\0{self.stamps[name]}\n".encode("utf-8", "surrogateescape"))
        return hasher.hexdigest()


@dataclass(frozen=True)
class Collection:
    """Pictures by number, packed as PNG, JPEG and so on: what a data set is made of."""

    path: Path
    names: Sequence[str]
    open: Callable[[int], typing.BinaryIO]  # raises as `Listing.open` does
    read: Callable[[int], bytes]  # raises as `Listing.read` does; UserError where a shard cannot be read
    labels: Labels | None
    class_names: list[str] | None
    digest: str
    starts: np.ndarray | None = None  # int64 [S + 1]: the first picture of each shard, then their number


def collect(listing: Listing, names: list[str]) -> Collection:
    """The pictures `names` of a folder or a zip. Raises UserError."""
    labels, class_names = read_labels(listing, names)
    if labels is None and listing.archive is None and (found := folder_labels(names)):
        labels, class_names = found
    extra = [LABEL_FILE] if LABEL_FILE in listing.stamps else []
    return Collection(
        path=listing.path,
        names=names,
        open=lambda i: listing.open(names[i]),
        read=lambda i: listing.read(names[i]),
        labels=labels,
        class_names=class_names,
        digest=listing.digest(names + extra),
    )


def open_listing(path: Path) -> Listing:
    """Lists a folder (links followed) or a zip. Raises UserError."""
    if path.is_dir():
        return Listing(path, _walk(path), None)
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a whole zip file ({error}): build or copy it again") from error
    infos = {i.filename.replace("\\", "/"): (i.CRC, i.file_size) for i in archive.infolist() if not i.is_dir()}
    return Listing(path, {name: infos[name] for name in sorted(infos) if not hidden(name)}, archive)


def read_labels(listing: Listing, names: list[str]) -> tuple[Labels | None, list[str] | None]:
    """(labels, class names) of `names` from the listing's `dataset.json`; (None, None) without. Raises UserError."""
    if LABEL_FILE not in listing.stamps:
        return None, None
    return parse_labels(listing.read(LABEL_FILE), names, f"{LABEL_FILE} of {listing.path}")


def parse_labels(text: bytes, names: list[str], where: str) -> tuple[Labels | None, list[str] | None]:
    """`{"labels": [[name, label], ...] or null}` with class indices or vectors, the format of StyleGAN's tools."""
    table, class_names = label_table(text, where)
    if table is None:
        return None, None
    if missing := [name for name in names if name not in table]:
        raise UserError(f"{where} has no label for {len(missing)} of {len(names)} pictures, e.g. {missing[0]}")
    labels = to_labels([table[name] for name in names], where)
    return labels, class_names if labels.ndim == 1 else None


def label_table(text: bytes, where: str) -> tuple[dict[str, typing.Any] | None, list[str] | None]:
    """(name -> label, class names) of a `dataset.json`, None where it has none. Raises UserError."""
    try:
        content = json.loads(text)
        pairs = content.get("labels")
        table = None if pairs is None else {str(name).replace("\\", "/"): label for name, label in pairs}
        class_names = content.get("class_names")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{where} is not of the form {{"labels": [["name.png", 0], ...]}}: {error}') from error
    good_names = isinstance(class_names, list) and all(isinstance(name, str) for name in class_names)
    return table, class_names if good_names else None


def to_labels(values: typing.Sequence[typing.Any], where: str) -> Labels:
    """Class indices -> int64 [N], equally long vectors of numbers -> float32 [N, L]. Raises UserError."""
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        array = np.asarray(None)
    if array.ndim == 1 and array.dtype.kind in "iu" and array.min(initial=0) >= 0:
        return array.astype(np.int64)
    if array.ndim == 2 and array.dtype.kind in "iuf" and array.shape[1] > 0 and np.isfinite(array).all():
        return array.astype(np.float32)
    raise UserError(f"{where}: labels must all be class indices 0, 1, ... or all vectors of the same length")


def folder_labels(names: list[str]) -> tuple[Labels, list[str]] | None:
    """A class a top folder, classes in sorted order; None where a picture lies in none or all lie in the same one."""
    folders = [name.split("/")[:-1] for name in names]
    columns = enumerate(zip(*folders, strict=False))
    shared = next((depth for depth, column in columns if len(set(column)) > 1), min(map(len, folders)))
    tops = [parts[shared] if len(parts) > shared else "" for parts in folders]
    classes = sorted(set(tops))
    if len(classes) < 2 or "" in classes:
        return None
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[top] for top in tops], np.int64), classes


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks and without the names of in-memory buffers."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "not a picture of a known format" if text.startswith("cannot identify image file") else text[:200]


def _walk(root: Path) -> dict[str, tuple[int, ...]]:
    found = {}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        subfolders[:] = [name for name in subfolders if not _leads_up(os.path.join(folder, name), real)]
        for name in files:
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root).replace(os.sep, "/")
            if hidden(relative):
                continue
            try:
                stat = os.stat(path)
                found[relative] = (stat.st_mtime_ns, stat.st_size)
            except OSError:  # a dangling link: reading it will say so
                found[relative] = (0, 0)
    return dict(sorted(found.items()))


def _leads_up(path: str, folder: str) -> bool:
    """Whether `path` is a link to `folder` or above it: following it would never end."""
    return os.path.islink(path) and (folder + os.sep).startswith(os.path.realpath(path) + os.sep)


def hidden(name: str) -> bool:
    """Whether the system, not the user, has put a file there."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))
