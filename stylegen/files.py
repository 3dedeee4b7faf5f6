"""Files that are either whole or not there."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

if sys.platform != "win32":
    import fcntl


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary name beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    Whatever stood at `path` stays until the new file is complete. Raises what the body raises, and OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`; on success it takes the place of `path`, on failure it is removed.

    A folder at `path` stays until then. Raises what the body raises, and OSError.
    """
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "before"))
    with naming(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                os.rename(path, before)
            os.rename(temporary, path)
            _sync_folder(path.absolute().parent)
        finally:
            for folder in (temporary, before):
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside that names no file, as that of a full disk, names `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None and not str(error.filename).endswith(".tmp"):
            raise
        remedy = "; make room and try again" if error.errno == errno.ENOSPC else ""
        raise OSError(error.errno, (error.strerror or str(error)) + remedy, str(path)) from error


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Nobody else may enter a body guarded by the same folder, on systems with flock. Raises UserError if one has."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing to {folder}; wait for it, or give another --out") from error
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` to `path`, whole or not at all. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes the temporary files that a killed process left in `folder`; call it only where nobody else writes."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder for fsync
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
