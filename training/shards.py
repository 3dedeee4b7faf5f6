"""Data sets in many files: tar shards (WebDataset) and folders of zips, read by offset."""

import io
import itertools
import re
import time
import typing
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from stylegen.errors import UserError

from .listing import LABEL_FILE, Collection, Listing
from .shard_index import COMPRESSED, File, Index, open_index, refuse_compressed

_MAX_OPEN = 128  # files; systems allow 256 or more
_RETRIES_SEC = (0.5, 5.0)  # servers of files have their moments
_MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class Names(Sequence[str]):
    """SHARD/NAME of every picture, put together when one is asked for: there may be millions."""

    def __init__(self, index: Index, shards: list[str]):
        self._index, self._shards = index, shards

    def __len__(self) -> int:
        return len(self._index.ends)

    def __getitem__(self, i: typing.Any) -> typing.Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        text = self._index.text[self._index.ends[i - 1] if i else 0 : self._index.ends[i]]
        return f"{self._shards[shard_of(self._index, i)]}/{text.tobytes().decode('utf-8', 'surrogateescape')}"


def shard_of(index: Index, i: int) -> int:
    """The number of the shard that holds picture i."""
    return int(np.searchsorted(index.starts, i, "right")) - 1


def named_shards(path: Path) -> list[Path] | None:
    """The files of `photos.tar` or of a pattern like `shard-{000..127}.tar`; None for other names. Raises UserError."""
    name = path.name.lower()
    if path.is_file() and name.endswith((".tar", *COMPRESSED)):
        files = [path]
    elif not path.exists() and name.endswith((".tar", ".zip", *COMPRESSED)) and _BRACES.search(str(path)):
        files = [Path(text) for text in itertools.islice(_expand(str(path)), _MAX_SHARDS)]
        if missing := [file for file in files if not file.exists()]:
            raise UserError(f"{len(missing)} of the {len(files)} shards of {path} are not there, e.g. {missing[0]}")
    else:
        return None
    if name.endswith(COMPRESSED):
        refuse_compressed(files[0])
    return files


def shards_among(listing: Listing) -> list[str]:
    """Names of the tars and zips in a folder. Raises UserError where there are compressed tars only."""
    if listing.archive is not None:
        return []
    names = [name for name in listing.names if name.lower().endswith((".tar", ".zip"))]
    if not names and (packed := [name for name in listing.names if name.lower().endswith(COMPRESSED)]):
        refuse_compressed(listing.path / packed[0])
    return names


def open_shards(path: Path, files: list[Path], names: list[str], folder: Path) -> Collection:
    """All pictures of `files`, called `names` in the set `path`, in the order in which they lie there.

    Labels are those of the dataset.json in `folder`; where that has none, each shard brings its own, in a dataset.json
    or as WebDataset has them: NAME.cls (a class index) or NAME.json ({"label": ...}) beside NAME.png. Raises UserError.
    """
    label_file = folder / LABEL_FILE
    index = open_index(files, names, label_file if label_file.is_file() else None)
    open_file = lru_cache(maxsize=_MAX_OPEN)(lambda shard: File(files[shard]))

    def read(i: int) -> bytes:
        shard, entry = shard_of(index, i), index.entries[i].item()
        for pause in (*_RETRIES_SEC, None):
            try:
                return open_file(shard).entry(entry)
            except OSError as error:
                if pause is None:
                    reason = error.strerror or str(error)
                    raise UserError(f"the shard {files[shard]} cannot be read any more: {reason}") from error
                time.sleep(pause)
                open_file.cache_clear()  # a handle may be stale where the name is good
        raise AssertionError

    return Collection(
        path=path,
        names=Names(index, names),
        open=lambda i: io.BytesIO(read(i)),
        read=read,
        labels=index.labels,
        class_names=index.class_names,
        digest=index.digest,
        starts=index.starts,
    )


def find_shards(path: Path, listing: Listing | None) -> Collection | None:
    """The set of shards that `path` names, or that lies in a folder without pictures; None: there is none."""
    if listing is None:
        files = named_shards(path)
        return None if files is None else open_shards(path, files, [file.name for file in files], files[0].parent)
    names = shards_among(listing)
    return open_shards(path, [path / name for name in names], names, path) if names else None


def _expand(text: str) -> Iterator[str]:
    """`a{08..10}{x,y}` -> a08x, a08y, a09x, ... as shells do it."""
    match = _BRACES.search(text)
    if not match:
        yield text
        return
    first, last, listed = match.groups()
    if listed is not None:
        parts: typing.Iterable[str] = listed.split(",")
    else:
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        parts = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    for part in parts:
        for rest in _expand(text[match.end() :]):
            yield text[: match.start()] + part + rest
