"""Where every picture of tars and zips lies, to be read by offset: made once and kept in the user's cache."""

import hashlib
import json
import os
import stat
import struct
import tarfile
import typing
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stylegen.errors import UserError
from stylegen.files import atomic_folder

from .levels import user_cache
from .listing import LABEL_FILE, MAX_BYTES, Labels, hidden, label_table, one_line, parse_labels, to_labels
from .pictures import SUFFIXES
from .threads import in_order, progress

# offset: of the bytes, in a zip of the entry's own header in front of them. method: a zip's, or TAR.
ENTRY = np.dtype([("offset", "<i8"), ("size", "<i8"), ("crc", "<u4"), ("method", "<u1")])
TAR, STORED, DEFLATED = 255, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
Entry = tuple[int, int, int, int]  # as ENTRY
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
_VERSION = "1"
_AT_ONCE = 4  # shards: the headers of a tar are far apart, and each may be a journey to a server
_LOCAL_HEADER = 30  # bytes, of a zip's entry


@dataclass(frozen=True)
class Index:
    """Of all shards, one after the other: N pictures in S shards, in the order in which they lie there."""

    text: np.ndarray  # uint8: the names in their shards, end to end
    ends: np.ndarray  # int64 [N], of the names in `text`
    entries: np.ndarray  # ENTRY [N]
    starts: np.ndarray  # int64 [S + 1]: the first picture of each shard, then N
    labels: Labels | None
    class_names: list[str] | None
    digest: str  # of names, sizes, labels and a zip's checksums; neither of folders nor of times


class File:
    """A file that any number of threads, and processes that fork, read by offset; closed when nobody holds it."""

    def __init__(self, path: Path):
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def part(self, offset: int, size: int) -> bytes:
        """Raises OSError, and UserError where the file ends before."""
        data = b""
        while len(data) < size:
            if not (part := self._read(offset + len(data), size - len(data))):
                raise UserError(f"{self.path} ends early: it was cut short or replaced while in use; copy it again")
            data = data + part if data else part
        return data

    def entry(self, entry: Entry) -> bytes:
        """A picture as it was packed. Raises OSError, UserError as `part` does, and ValueError or zlib.error."""
        offset, size, crc, method = entry
        if size > MAX_BYTES:
            raise ValueError("larger than 1 GiB")
        if method == TAR:
            return self.part(offset, size)
        lengths = struct.unpack("<HH", self.part(offset, _LOCAL_HEADER)[26:])
        data = self.part(offset + _LOCAL_HEADER + sum(lengths), size)
        if method == DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_BYTES)
        if zlib.crc32(data) != crc:
            raise ValueError("Bad CRC-32")
        return data

    def _read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, size, offset)
        with open(self.path, "rb") as file:  # Windows
            file.seek(offset)
            return file.read(size)


def open_index(files: list[Path], names: list[str], label_file: Path | None) -> Index:
    """The index of `files`, called `names` in the set; label_file: a dataset.json of the whole set.

    Kept under the names, sizes and times of the files, so that it is made anew when one changes. Raises UserError.
    """
    stamps = [(name, *_stamp(file)) for name, file in zip(names, files, strict=True)]
    stamps += [(LABEL_FILE, *_stamp(label_file))] if label_file else []
    key = hashlib.blake2b(repr((_VERSION, stamps)).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    place = user_cache() / f"index-{key}"
    if (index := _load(place)) is not None:
        return index
    index = _make(files, names, label_file, [size for _, size, _ in stamps[: len(files)]])
    try:
        with atomic_folder(place) as temporary:
            _save(temporary, index)
    except OSError as error:
        if _load(place) is None:  # else another process was faster
            reason = error.strerror or str(error)
            warnings.warn(f"the index of {len(files)} shards is made anew each time ({place}: {reason})", stacklevel=2)
    return index


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"the shard {path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"the shard {path} is no file")
    return found.st_size, found.st_mtime_ns


class _Found(typing.NamedTuple):
    text: np.ndarray  # as those of Index, of one shard
    lengths: np.ndarray
    entries: np.ndarray
    labels: Labels | None
    class_names: list[str] | None


def _make(files: list[Path], names: list[str], label_file: Path | None, sizes: list[int]) -> Index:
    found: list[_Found] = []
    table, class_names = label_table(label_file.read_bytes(), str(label_file)) if label_file else (None, None)
    with progress(None, "index") as bar:
        for one in in_order(lambda shard: _look(shard, table), zip(files, names, strict=True), _AT_ONCE):
            found.append(one)
            bar.update(len(one.entries))
    counts = [len(one.entries) for one in found]
    labels = _joined(files, found)
    class_names = class_names or _class_names(files, found)
    index = Index(
        text=np.concatenate([one.text for one in found]),
        ends=np.cumsum(np.concatenate([one.lengths for one in found])),
        entries=np.concatenate([one.entries for one in found]),
        starts=np.cumsum([0, *counts], dtype=np.int64),
        labels=labels,
        class_names=class_names if labels is not None and labels.ndim == 1 else None,
        digest="",
    )
    hasher = hashlib.blake2b(repr((names, sizes, counts, index.class_names)).encode(), digest_size=16)
    for array in (index.text, index.ends, index.entries["size"], index.entries["crc"], labels):
        hasher.update(b"" if array is None else np.ascontiguousarray(array).data)
    return replace(index, digest=hasher.hexdigest())


def _class_names(files: list[Path], found: list[_Found]) -> list[str] | None:
    named = {tuple(one.class_names): file for file, one in zip(files, found, strict=True) if one.class_names}
    if len(named) > 1:
        one, other = list(named.values())[:2]
        raise UserError(f"{one} and {other} name their classes differently; build them again from one source")
    return list(next(iter(named))) if named else None


def _joined(files: list[Path], found: list[_Found]) -> Labels | None:
    kinds: dict[tuple[int, ...] | None, Path] = {}  # shape of a label -> a shard that has such
    for file, one in zip(files, found, strict=True):
        if len(one.entries):
            kinds.setdefault(None if one.labels is None else one.labels.shape[1:], file)
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise UserError(f"{first} and {second} differ in their labels: all shards need them, of one kind, or none")
    return (
        None if None in kinds or not kinds else np.concatenate([one.labels for one in found if one.labels is not None])
    )


def _look(shard: tuple[Path, str], table: dict[str, typing.Any] | None) -> _Found:
    """The pictures of one shard (file, name in the set); table: the labels of the set. Raises UserError, OSError."""
    path, shard_name = shard
    members = _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path)
    names = [name for name in members if name.lower().endswith(SUFFIXES)]
    letters = [name.encode("utf-8", "surrogateescape") for name in names]
    labels: Labels | None = None
    class_names = None
    if table is None:
        labels, class_names = _own_labels(path, names, members)
    elif names:
        values = [table.get(f"{shard_name}/{name}", table.get(name)) for name in names]
        if None in values:
            raise UserError(f"{LABEL_FILE} beside {path} has no label for {names[values.index(None)]} in it")
        labels = to_labels(values, f"{LABEL_FILE} beside {path}")
    return _Found(
        text=np.frombuffer(b"".join(letters), np.uint8),
        lengths=np.array(list(map(len, letters)), np.int64),
        entries=np.array([members[name] for name in names], ENTRY),
        labels=labels,
        class_names=class_names,
    )


def _own_labels(path: Path, names: list[str], members: dict[str, Entry]) -> tuple[Labels | None, list[str] | None]:
    """(labels, class names) from a shard's dataset.json, or from NAME.cls or NAME.json beside each picture."""
    file = File(path)

    def read(name: str) -> bytes | None:
        try:
            return file.entry(members[name]) if name in members else None
        except (ValueError, zlib.error) as error:
            raise UserError(f"{name} in {path} cannot be read: {one_line(error)}") from error

    if text := read(LABEL_FILE):
        labels, class_names = parse_labels(text, names, f"{LABEL_FILE} of {path}")
        if labels is not None:
            return labels, class_names
    values = [_label(name, read, path) for name in names]
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if len(missing) == len(names):
        return None, None
    if missing:
        raise UserError(f"{path} has no label for {len(missing)} of {len(names)} pictures, e.g. {missing[0]}")
    return to_labels(values, str(path)), None


def _label(name: str, read: Callable[[str], bytes | None], path: Path) -> typing.Any:
    stem = name.rpartition(".")[0]
    text, what = read(f"{stem}.cls"), f"{stem}.cls in {path}"
    try:
        if text is not None:
            return int(text)
        text, what = read(f"{stem}.json"), f"{stem}.json in {path}"
        content = None if text is None else json.loads(text)
    except ValueError as error:
        raise UserError(f"{what} is {text!r:.40}; expected a class index in .cls, an object in .json") from error
    return content.get("label") if isinstance(content, dict) else None


def _tar_members(path: Path) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                    name = member.name.removeprefix("./")
                    if member.islnk() and (target := member.linkname.removeprefix("./")) in found:
                        found[name] = found[target]
                    elif member.isreg() and not hidden(name):
                        found[name] = (member.offset_data, member.size, 0, TAR)
                end = archive.offset
            file.seek(end)
            whole = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
            reason = f"no end after byte {end}"
        except (tarfile.TarError, ValueError, EOFError) as error:
            whole, reason = False, one_line(error)
        if not whole:
            file.seek(0)
            if file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
                refuse_compressed(path)
            raise UserError(f"the shard {path} is damaged or cut short ({reason}): build or copy it again")
    return found


def _zip_members(path: Path) -> dict[str, Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"the shard {path} is not a whole zip file ({error}): build or copy it again") from error
    if odd := [info for info in infos if info.compress_type not in (STORED, DEFLATED) or info.flag_bits & 1]:
        raise UserError(f"{odd[0].filename} in {path} is encrypted or compressed unusually; pack the pictures again")
    members = {
        info.filename.replace("\\", "/"): (info.header_offset, info.compress_size, info.CRC, info.compress_type)
        for info in infos
    }
    return {name: members[name] for name in sorted(members) if not hidden(name)}


def refuse_compressed(path: Path) -> typing.NoReturn:
    """Raises UserError."""
    raise UserError(
        f"{path} is a compressed tar, in which no picture can be found without reading all before it; unpack it to a"
        " plain .tar (gunzip, bunzip2, unxz or unzstd), which is hardly larger"
    )


def _save(folder: Path, index: Index) -> None:
    for name, value in index.__dict__.items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.npy", value, allow_pickle=False)
    meta = {"digest": index.digest, "class_names": index.class_names, "labelled": index.labels is not None}
    (folder / "index.json").write_text(json.dumps(meta))


def _load(place: Path) -> Index | None:
    def array(name: str) -> np.ndarray:
        return np.asarray(np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    try:
        meta = json.loads((place / "index.json").read_text())
        text, ends, entries, starts = map(array, ("text", "ends", "entries", "starts"))
        labels = array("labels") if meta["labelled"] else None
        index = Index(text, ends, entries, starts, labels, meta["class_names"], meta["digest"])
        whole = len(ends) == len(entries) == starts[-1] and ends[-1] == len(text) and entries.dtype == ENTRY
    except (OSError, ValueError, EOFError, KeyError, IndexError, TypeError):
        return None
    return index if whole else None
