"""Data sets in the making: a zip, or a folder of tar shards; the same pictures give the same bytes."""

import io
import json
import os
import re
import tarfile
import typing
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from stylegen.errors import UserError
from stylegen.files import atomic_folder, atomic_path

from .listing import LABEL_FILE

_OURS = re.compile(rf"shard-\d{{6,}}\.tar|{re.escape(LABEL_FILE)}")
_OURS_IN_ZIP = re.compile(rf"\d{{5,}}/img\d{{8,}}\.png|{re.escape(LABEL_FILE)}")
_DATE = (1980, 1, 1, 0, 0, 0)


class Archive:
    """A zip: `add` pictures, then `finish`."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive, self.kept = archive, list[tuple[str, typing.Any]]()

    def add(self, picture: bytes, label: typing.Any) -> None:
        """A PNG and its class index, vector or None."""
        name = f"{len(self.kept) // 1000:05d}/img{len(self.kept):08d}.png"
        self.archive.writestr(_entry(name), picture)
        self.kept.append((name, label))

    def finish(self, labelled: bool, class_names: list[str] | None) -> None:
        content: dict[str, typing.Any] = {"labels": self.kept if labelled else None}
        if class_names:
            content["class_names"] = class_names
        self.archive.writestr(_entry(LABEL_FILE), json.dumps(content))


class Shards:
    """A folder of shard-000000.tar and so on, in the form of WebDataset: NAME.png and its NAME.cls or NAME.json."""

    def __init__(self, folder: Path, most_bytes: int | None):
        """most_bytes: of a shard, though it holds one picture at least; None: `cut` alone begins new ones."""
        self._folder, self._most, self._count = folder, most_bytes, 0
        self._tar: tarfile.TarFile | None = None
        self.kept = list[tuple[str, typing.Any]]()

    def add(self, picture: bytes, label: typing.Any) -> None:
        """A PNG and its class index, vector or None."""
        name = f"img{len(self.kept):08d}"
        files = {f"{name}.png": picture}
        if isinstance(label, int):
            files[f"{name}.cls"] = str(label).encode()
        elif label is not None:
            files[f"{name}.json"] = json.dumps({"label": label}).encode()
        if self._tar and self._most:
            blocks = 2 + sum(2 + (len(data) - 1) // tarfile.BLOCKSIZE for data in files.values())  # two end the file
            records = -(-(self._tar.offset + blocks * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE)
            if records * tarfile.RECORDSIZE > self._most:
                self.cut()
        if not self._tar:
            file = open(self._folder / f"shard-{self._count:06d}.tar", "wb")
            self._tar, self._count = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT), self._count + 1
        for inner, data in files.items():
            info = tarfile.TarInfo(inner)  # of 1970 and of nobody
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self._tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
        self.kept.append((name, label))

    def cut(self) -> None:
        """The next picture begins a new shard."""
        if self._tar:
            tar, self._tar = self._tar, None
            with typing.cast(typing.BinaryIO, tar.fileobj) as file:
                tar.close()
                file.flush()
                os.fsync(file.fileno())

    def finish(self, labelled: bool, class_names: list[str] | None) -> None:
        """Labels stand beside the pictures; the names of the classes are of the whole set."""
        self.cut()
        if labelled and class_names:
            (self._folder / LABEL_FILE).write_text(json.dumps({"labels": None, "class_names": class_names}))

    close = cut


@contextmanager
def open_archive(dest: Path, sharded: bool, most_bytes: int | None) -> Iterator[Archive | Shards]:
    """A data set that appears at `dest` when the body is through. Raises what the body raises, and OSError."""
    if sharded:
        with atomic_folder(dest) as temporary, closing(Shards(temporary, most_bytes)) as shards:
            yield shards
    else:
        with atomic_path(dest) as path, zipfile.ZipFile(path, "w") as file:
            yield Archive(file)


def check_dest(dest: Path, sharded: bool) -> None:
    """Raises UserError where no data set can, or should, be written to `dest`."""
    if sharded:
        if dest.suffix.lower() in (".zip", ".tar"):
            raise UserError(f"shards are a folder of .tar files; give --dest the name of a folder, not {dest}")
        if dest.is_file() or (dest.is_dir() and not all(_OURS.fullmatch(path.name) for path in dest.iterdir())):
            raise UserError(f"{dest} holds something else than shards; give the data set another name")
    elif dest.suffix.lower() != ".zip" or dest.is_dir():
        raise UserError(f"the data set {dest} must be the name of a .zip file (of a folder with --shards)")
    else:
        check_zip(dest)
    if not dest.absolute().parent.is_dir():
        raise UserError(f"no folder {dest.absolute().parent} to write {dest.name} to; make it first")


def check_zip(dest: Path) -> None:
    """Raises UserError where a file is at `dest` that no `Archive` wrote."""
    if dest.exists() and not (zipfile.is_zipfile(dest) and _is_ours(dest)):
        raise UserError(f"{dest} holds something else than a data set; give the data set another name")


def _is_ours(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    return all(_OURS_IN_ZIP.fullmatch(entry.filename) and entry.date_time == _DATE for entry in entries)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _DATE)  # the same pictures give the same bytes
    info.create_system, info.external_attr = 3, 0o644 << 16
    return info
