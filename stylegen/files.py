"""Files that are either whole or not there."""

import errno
import os
import shutil
import sys
import time
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
            _replace(temporary, path)
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
def exclusive(folder: Path, patience_sec: float = 0.0) -> Iterator[None]:
    """Nobody else may enter a body guarded by the same folder, on systems with flock.

    Raises UserError if one has, and does not leave it within `patience_sec`.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + patience_sec
        while not _locked(descriptor):
            if time.monotonic() >= deadline:
                raise UserError(f"another process is writing to {folder}; wait for it, or give another --out")
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` to `path`, whole or not at all. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes the temporary files that a killed process left in `folder`; call it only where nobody else writes."""
    for leftover in Path(folder).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    """os.replace; where a network drive has lost the answer and asks again for what is done, it is no failure."""
    number = os.stat(temporary).st_ino
    try:
        os.replace(temporary, path)
    except FileNotFoundError:
        if not path.exists() or os.stat(path).st_ino != number:
            raise


def check_room(path: Path, needed: int) -> None:
    """Raises OSError where there is no room for a file `path` of `needed` bytes."""
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        reason = f"{os.strerror(errno.ENOSPC)}: {needed / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free"
        raise OSError(errno.ENOSPC, f"{reason}; make room and try again", str(path))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder for fsync
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
