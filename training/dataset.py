"""A data set of equal pictures, and the loader that turns it into stage-sized batches."""

import io
import re
import typing
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from stylegen.assets import data_path, embedded_data
from stylegen.config import base_of, counted, size_text
from stylegen.errors import NotFoundError, UserError

from . import pictures
from .levels import box_reduce, open_levels, to_cache
from .listing import LABEL_FILE, Collection, collect, one_line, open_listing
from .order import order
from .pictures import Pixels, Size
from .rng import key
from .shards import find_shards, shards_among
from .threads import in_order

if typing.TYPE_CHECKING:
    import torch

    Batch = tuple[torch.Tensor, torch.Tensor]

_LOOKED_AT = 64  # headers of a sharded set, before anything else is known of it
_NEAR, _TRIED = 2**16, 100  # how far, and how often, a stand-in for a bad picture is looked for
_BAD, _BAD_SHARE, _WARNED = 10, 0.01, 20  # bad pictures, or the share of all, that are borne; that are warned of


class Dataset:
    """Pictures of one size and number of channels, with or without labels; made by `open_dataset`.

    size (height, width), channels 1, 3 or 4, labels int64 [N] or float32 [N, L] or None, label_size (0 without labels),
    class_names or None, digest: hex digits that change with the content, starts int64 [S + 1]: the first picture of
    each shard, then their number.
    """

    def __init__(self, collection: Collection, full_size: Size, channels: int, size: Size):
        self.path = Path(collection.path).absolute()
        self.names = collection.names
        self.full_size, self.size, self.channels = full_size, size, channels
        self.reduction = (full_size[0] // size[0]).bit_length() - 1
        self.labels, self.class_names = collection.labels, collection.class_names
        self.digest = collection.digest
        self.sharded = collection.starts is not None
        self.starts = np.array([0, len(self.names)]) if collection.starts is None else collection.starts
        self._collection = collection
        self._replaced: set[int] = set()

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def label_size(self) -> int:
        """Length of a label vector; the number of classes where labels are indices; 0 without labels."""
        if self.labels is None:
            return 0
        if self.labels.ndim == 2:
            return self.labels.shape[1]
        return max(int(self.labels.max(initial=-1)) + 1, len(self.class_names or ()))

    def read(self, i: int, reduction: int = 0) -> Pixels:
        """Picture i, uint8 [C, H, W] of `size` or box-reduced by a further 2^reduction. Raises UserError."""
        return box_reduce(self.read_full(i), self.reduction + reduction)

    def read_full(self, i: int) -> Pixels:
        """Picture i as stored, uint8 [C, H, W] of `full_size`. Raises UserError where `fault` finds one.

        In shards, which nobody looks through beforehand, the next good picture of the same label stands in for a bad
        one, with a warning. Raises UserError where there are many of those, or none good is near.
        """
        image = self._open(i)
        if isinstance(image, str) and self.sharded:
            image = self._stand_in(i, image)
        if isinstance(image, str):
            raise UserError(f"{self.names[i]} in {self.path} {image}; see `stylegen dataset check {self.path}`")
        return pictures.to_pixels(image)

    def fault(self, i: int) -> str | None:
        """What is wrong with picture i ("is broken (...)", "is 32x32 gray, ..."), or None."""
        image = self._open(i)
        return image if isinstance(image, str) else None

    def _stand_in(self, i: int, fault: str) -> Image.Image | str:
        near = (i + np.arange(1, min(len(self), _NEAR))) % len(self)
        if self.labels is not None:
            near = near[(self.labels[near] == self.labels[i]).reshape(len(near), -1).all(1)]
        for j in near[:_TRIED].tolist():
            image = self._open(j)
            if isinstance(image, str):
                continue
            if i not in self._replaced:
                self._replaced.add(i)
                if len(self._replaced) > max(_BAD, _BAD_SHARE * len(self)):
                    return f"{fault}, as {len(self._replaced) - 1} others are"
                if len(self._replaced) <= _WARNED:
                    last = "; no more of these warnings" if len(self._replaced) == _WARNED else ""
                    text = f"{self.names[i]} in {self.path} {fault}: {self.names[j]} stands in for it{last}"
                    warnings.warn(text, stacklevel=2)
            return image
        return fault

    def _open(self, i: int) -> Image.Image | str:
        try:
            image = pictures.decode(io.BytesIO(self._collection.read(i)))
        except UserError:  # the shard, not the picture
            raise
        except Exception as error:  # Pillow's decoders and zipfile raise nearly anything on damaged data
            return f"is broken ({one_line(error)})"
        size, channels = (image.height, image.width), pictures.CHANNELS[image.mode]
        if (size, channels) != (self.full_size, self.channels):
            found, first = pictures.describe(size, channels), pictures.describe(self.full_size, self.channels)
            return f"is {found}, the data set's first picture {first}"
        return image.convert(pictures.MODES[channels])

    def label_vectors(self, indices: np.ndarray) -> np.ndarray:
        """Labels of some pictures as float32 [n, label_size]: one-hot, or the vectors themselves."""
        if self.labels is None:
            return np.zeros((len(indices), 0), np.float32)
        labels = self.labels[indices]
        return labels if labels.ndim == 2 else np.eye(self.label_size, dtype=np.float32)[labels]


def open_dataset(path: str | Path, *, size: Size | None = None) -> Dataset:
    """A zip of `stylegen dataset build` or of StyleGAN's tools, a plain folder of equal pictures, or an embedded name.

    Or shards: a .tar, a pattern of them such as `shard-{000..127}.tar`, a folder of .tar or .zip files. size: (height,
    width) to train at, the pictures' own divided by a power of two; None: their own. Raises UserError.
    """
    path = Path(path)
    if not path.exists():
        path = data_path(str(path)) or path
    stem = re.split(r"[.{]", path.name)[0].rstrip("-_") or "data"
    build = f"`stylegen dataset build {path} --dest {stem}-64.zip --size 64`"
    collection, checked = _collect(path)
    (full_size, channels) = _agree(collection, checked, build)
    sizes = [(full_size[0] >> k, full_size[1] >> k) for k in range(_halvings(full_size) + 1)]
    if size and size not in sizes:
        accepted = ", ".join(size_text(s) for s in sizes if _grows(s)) or "no size: rebuild them with --size"
        raise UserError(
            f"{path} holds {size_text(full_size)} pictures, which can train at {accepted}, not at {size_text(size)}; "
            f"for another size build a data set from the original pictures with `stylegen dataset build --size`"
        )
    return Dataset(collection, full_size, channels, size or full_size)


def _collect(path: Path) -> tuple[Collection, list[int]]:
    """The pictures of a data set, and those whose headers tell whether they agree: all where that is not known."""
    if (collection := find_shards(path, None)) is None:
        if not path.exists():
            raise NotFoundError(
                f"no data at {path}; accepted: a zip made by `stylegen dataset build`, a folder of equal pictures, "
                "shards (a .tar, a folder of .tar or .zip files, a pattern such as shard-{000..127}.tar), "
                f"or the name of an embedded data set ({', '.join(embedded_data())})"
            )
        if path.is_file() and path.suffix.lower() != ".zip":
            raise UserError(
                f"{path} is neither a folder nor a zip nor a tar; give one, or see `stylegen dataset build --help`"
            )
        listing = open_listing(path)
        if names := [name for name in listing.names if name.lower().endswith(pictures.SUFFIXES)]:
            if tars := [name for name in shards_among(listing) if name.endswith(".tar")]:
                text = (
                    f"{path} holds pictures beside {len(tars)} .tar files, which are left out; name those to use them"
                )
                warnings.warn(text, stacklevel=3)
            built = listing.archive is not None and LABEL_FILE in listing.stamps
            return collect(listing, names), [0] if built else list(range(len(names)))
        collection = find_shards(path, listing)
    if collection is None or not len(collection.names):
        raise UserError(f"no pictures in {path}; give a folder, a zip or a tar that holds some")
    count = len(collection.names)
    return collection, sorted({k * count // _LOOKED_AT for k in range(_LOOKED_AT)})


def _agree(collection: Collection, which: list[int], build: str) -> tuple[Size, int]:
    def look(i: int) -> tuple[Size, int] | None:
        try:
            with collection.open(i) as file:
                size, mode = pictures.header(file)
        except UserError:  # the shard, not the picture
            raise
        except Exception as error:  # Pillow's parsers raise many kinds on damaged data
            if collection.starts is not None and i != which[-1]:  # another one will stand in for it
                return None
            name, path = collection.names[i], collection.path
            raise UserError(
                f"{name} in {path} is not a picture ({one_line(error)}); remove it, or leave that to {build}"
            ) from error
        return size, pictures.CHANNELS[mode]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of pictures that are odd but good
        found = Counter(kind for kind in in_order(look, which, 4) if kind)
    if len(found) > 1:
        kinds = ", ".join(f"{pictures.describe(*kind)} ({count})" for kind, count in found.most_common(5))
        more = f" and {len(found) - 5} more kinds" if len(found) > 5 else ""
        raise UserError(f"{collection.path} mixes pictures of {kinds}{more}; make them equal with {build}")
    return next(iter(found))


def _grows(size: Size) -> bool:
    try:
        base_of(size)
    except UserError:
        return False
    return True


def _halvings(size: Size) -> int:
    return min((side & -side).bit_length() - 1 for side in size)


class Loader:
    """Batches at any level, as a pure function of (seed, images_seen, n, level).

    Item i of a batch is picture order(images_seen + i), see `order`, with its window of `shuffle_shards`.
    Levels up to 128 px come from the level cache (`cache`: see `open_levels`), the others are decoded by `workers`
    threads, which also prepare the likely next batch; 0 workers: none, the same batches later. mirror: flips half of
    the samples. cond: with labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        base: Size,
        levels: int,
        seed: int,
        mirror: bool,
        cond: bool,
        workers: int = 2,
        shuffle_shards: int = 0,
        cache: str = "auto",
    ):
        if dataset.size != (base[0] << (levels - 1), base[1] << (levels - 1)):
            top = size_text((base[0] << (levels - 1), base[1] << (levels - 1)))
            raise UserError(f"{dataset.path} holds pictures of {size_text(dataset.size)}, the network makes {top}")
        if cond and dataset.labels is None:
            raise UserError(
                f"{dataset.path} has no labels: train without --cond, or rebuild it with `stylegen dataset build "
                "... --labels folders` (a class a sub-folder) or --labels FILE"
            )
        self.dataset, self.levels, self.seed, self.mirror, self.cond = dataset, levels, seed, mirror, cond
        self._cache = open_levels(dataset, to_cache(dataset.size, levels), max(1, workers), cache)
        self._window = shuffle_shards
        self._order = order(seed, dataset.starts, shuffle_shards)
        self._decoders = ThreadPoolExecutor(workers, "decode") if workers else None
        self._ahead = ThreadPoolExecutor(1, "prefetch") if workers else None
        self._next: tuple[tuple[int, int, tuple[int, ...]], Future[Batch]] | None = None

    @property
    def told(self) -> str:
        """What is read, in which order: "1000 pictures in 40 shards (16 shuffled at a time)"."""
        shards, text = len(self.dataset.starts) - 1, f"{len(self.dataset)} pictures"
        if not self.dataset.sharded:
            return text
        windowed = f" ({self._window} shuffled at a time)" if 0 < self._window < shards else ""
        return f"{text} in {counted(shards, 'shard')}{windowed}"

    def batch(self, images_seen: int, n: int, level: int, which: Sequence[int] | None = None) -> "Batch":
        """(uint8 [n, C, h, w], labels float32 [n, label_size or 0]); with `which`, only those items of the batch."""
        items = tuple(range(n) if which is None else which)
        wanted = (images_seen, level, items)
        future = self._next[1] if self._next and self._next[0] == wanted else None
        result = future.result() if future else self._load(*wanted)
        if self._ahead:
            following = (images_seen + n, level, items)
            self._next = (following, self._ahead.submit(self._load, *following))
        return result

    def close(self) -> None:
        """Stops the threads."""
        for pool in (self._ahead, self._decoders):
            if pool:
                pool.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self, images_seen: int, level: int, items: tuple[int, ...]) -> "Batch":
        import torch

        seen = [images_seen + i for i in items]
        picked = np.array([self._order(index) for index in seen], np.int64)
        reduction = self.levels - 1 - level
        if reduction in self._cache:
            pixels = np.asarray(self._cache[reduction][picked])
        else:
            run = self._decoders.map if self._decoders else map
            height, width = (side >> reduction for side in self.dataset.size)
            pixels = np.empty((len(picked), self.dataset.channels, height, width), np.uint8)
            for i, picture in enumerate(run(lambda index: self.dataset.read(index, reduction), picked)):
                pixels[i] = picture
        if self.mirror:
            flips = np.array([key(self.seed, "mirror", index) & 1 for index in seen], bool)
            pixels[flips] = pixels[flips][..., ::-1]
        labels = self.dataset.label_vectors(picked) if self.cond else np.zeros((len(picked), 0), np.float32)
        return torch.from_numpy(pixels), torch.from_numpy(labels)
