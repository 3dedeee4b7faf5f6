"""Pictures that come as arrays: IDX (MNIST, Fashion-MNIST), CIFAR's python batches, .npy and .npz."""

import gzip
import io
import math
import pickle
import re
import tarfile
import typing
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stylegen.errors import UserError

_IMAGE_KEYS = ("images", "x_train", "x", "data", "arr_0")
_LABEL_KEYS = ("labels", "y_train", "y", "targets", "arr_1")
_CIFAR_MEMBER = re.compile(r"(?:.*/)?(data_batch_\d+|train)")
_CIFAR_META = re.compile(r"(?:.*/)?(batches\.meta|meta)")


@dataclass(frozen=True)
class Arrays:
    """pixels [N, H, W] or [N, H, W, C] of uint8, uint16 or floats in 0..1; labels one a picture, or None."""

    pixels: np.ndarray
    labels: typing.Sequence[typing.Any] | None
    class_names: list[str] | None = None


def read_arrays(path: Path) -> Arrays | None:
    """The arrays in a file, or in a folder that holds an unpacked CIFAR or MNIST; None for anything else.

    A folder that holds a training and a test set gives the training set. Raises UserError for a damaged file, OSError.
    """
    if path.is_dir():
        names = sorted(item.name for item in path.iterdir())
        batches = [path / name for name in names if _CIFAR_MEMBER.fullmatch(name) and (path / name).is_file()]
        if batches and any(_CIFAR_META.fullmatch(name) for name in names):
            meta_file = next(path / name for name in names if _CIFAR_META.fullmatch(name))
            return _cifar([batch.read_bytes() for batch in batches], meta_file.read_bytes(), path)
        idx = next((path / name for name in names if re.fullmatch(r"train-images[-.]idx3-ubyte(\.gz)?", name)), None)
        return _read_idx_pair(idx) if idx else None
    name = path.name.lower()
    if name.endswith((".npy", ".npz")):
        return _read_numpy(path)
    if name.endswith((".tar.gz", ".tgz", ".tar")):
        return _read_cifar_tar(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if name.endswith(".gz") or start[:3] == b"\0\0\x08":
        return _read_idx_pair(path)
    if start[:1] == b"\x80":  # pickle, protocol 2 and later
        beside = [path.with_name(name) for name in ("batches.meta", "meta")]
        meta = next((item.read_bytes() for item in beside if item.is_file()), None)
        return _cifar([path.read_bytes()], meta, path)
    return None


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not, of any number of dimensions. Raises UserError, OSError."""
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    if data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise UserError(f"{path} is not an IDX file of unsigned bytes")
    shape = tuple(int(side) for side in np.frombuffer(data, ">u4", data[3], 4))
    values = np.frombuffer(data, np.uint8, -1, 4 + 4 * data[3])
    if len(values) != math.prod(shape):
        raise UserError(f"{path} holds {len(values)} bytes where its header says {math.prod(shape)}; fetch it again")
    return values.reshape(shape)


def _read_idx_pair(path: Path) -> Arrays:
    images = read_idx(path)
    if images.ndim < 3:
        raise UserError(f"{path} holds labels or other numbers, no pictures; give the images file")
    names = [re.sub(r"images([-.])idx\d", r"labels\1idx1", path.name)]
    names.append(names[0].removesuffix(".gz") if names[0].endswith(".gz") else f"{names[0]}.gz")
    found = next((path.with_name(name) for name in names if name != path.name and path.with_name(name).exists()), None)
    labels = None if found is None else read_idx(found)
    if labels is not None and labels.shape != (len(images),):
        raise UserError(f"{found} holds {len(labels)} labels, {path.name} {len(images)} pictures")
    return Arrays(_channels_last(images, path), None if labels is None else labels.tolist())


def _read_numpy(path: Path) -> Arrays:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Arrays(_channels_last(loaded, path), None)
        with loaded:
            keys = [key for key in _IMAGE_KEYS if key in loaded.files] or loaded.files[: len(loaded.files) == 1]
            if not keys:
                held = ", ".join(loaded.files) or "nothing"
                raise UserError(f"{path} holds {held}; the pictures must be called {', '.join(_IMAGE_KEYS)}")
            pixels = loaded[keys[0]]
            label_key = next((key for key in _LABEL_KEYS if key in loaded.files and key != keys[0]), None)
            labels = None if label_key is None else loaded[label_key]
    except UserError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not a whole NumPy file of plain numbers ({error})") from error
    if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels is not None and (labels.ndim not in (1, 2) or len(labels) != len(pixels)):
        raise UserError(f"{path}: labels of shape {list(labels.shape)} do not fit {len(pixels)} pictures")
    return Arrays(_channels_last(pixels, path), None if labels is None else labels.tolist())


def _channels_last(pixels: np.ndarray, path: Path) -> np.ndarray:
    shape = list(pixels.shape)
    if pixels.ndim == 4 and shape[3] in (1, 3, 4):
        pass
    elif pixels.ndim == 4 and shape[1] in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)
    elif pixels.ndim != 3:
        raise UserError(f"{path} has shape {shape}; pictures are [N, H, W], [N, H, W, C] or [N, C, H, W], C 1, 3 or 4")
    if 0 in shape:
        raise UserError(f"{path} has shape {shape}: no pictures")
    if pixels.dtype.kind not in "fb" and pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"{path} holds {pixels.dtype}; accepted: uint8, uint16, or floats in 0..1")
    return pixels


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """One picture of `Arrays`, as uint8. Raises ValueError for floats outside 0..1."""
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind == "f" and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"floats must lie in 0..1, these reach from {pixels.min():.4g} to {pixels.max():.4g}")
    top = 65535 if pixels.dtype == np.uint16 else 1
    return np.rint(pixels.astype(np.float64) * (255 / top)).astype(np.uint8)


def _read_cifar_tar(path: Path) -> Arrays | None:
    batches, meta = {}, None
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file and _CIFAR_MEMBER.fullmatch(member.name):
                    batches[member.name] = file.read()
                elif file and _CIFAR_META.fullmatch(member.name):
                    meta = file.read()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged tar file ({error}); fetch it again") from error
    if not batches and path.suffix.lower() == ".tar":  # a shard of pictures
        return None
    if not batches:
        raise UserError(f"{path} holds no CIFAR batches (data_batch_1 ... or train); unpack other archives first")
    return _cifar([batches[name] for name in sorted(batches)], meta, path)


def _cifar(batches: list[bytes], meta: bytes | None, path: Path) -> Arrays:
    contents = [_unpickle(data, path) for data in batches]
    try:
        pixels = np.concatenate([_array(content["data"]).reshape(-1, 3, 32, 32) for content in contents])
        key = "fine_labels" if "fine_labels" in contents[0] else "labels"
        labels = [int(label) for content in contents for label in content[key]]
        names_key = {"fine_labels": "fine_label_names", "labels": "label_names"}[key]
        names = None if meta is None else [_text(name) for name in _unpickle(meta, path).get(names_key, [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a CIFAR batch: no `data` of 3072 bytes a picture with `labels`") from error
    if len(labels) != len(pixels):
        raise UserError(f"{path} holds {len(pixels)} pictures and {len(labels)} labels")
    return Arrays(pixels.transpose(0, 2, 3, 1), labels, names or None)


class _Stub:
    """Stands for a NumPy object in a pickle: it only remembers what it was made of."""

    def __init__(self, *made_of: object):
        self.made_of: tuple = made_of

    def __setstate__(self, state: tuple) -> None:
        self.made_of = (*self.made_of, state)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


def _reconstruct(*_: object) -> _Stub:
    return _Stub()


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists, dicts and NumPy arrays as stubs; a pickle that names anything else cannot run it."""

    def find_class(self, module: str, name: str) -> typing.Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        if module in ("numpy.core.numeric", "numpy._core.numeric") and name == "_frombuffer":
            return _Stub
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return _Stub
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 of Python 3 writes bytes
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which pictures do not need")


def _unpickle(data: bytes, path: Path) -> dict[str, typing.Any]:
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{path} is not a CIFAR batch ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a CIFAR batch (it holds a {type(content).__name__})")
    return {_text(key): value for key, value in content.items()}


def _array(stub: _Stub) -> np.ndarray:
    """From a stub made of (version, shape, dtype, fortran order, bytes) or, protocol 5, buffer, dtype, shape, order."""
    if len(stub.made_of) == 4:
        buffer, dtype, shape, order = stub.made_of
    else:
        _, shape, dtype, fortran, buffer = stub.made_of[-1]
        order = b"F" if fortran else b"C"
    if dtype.made_of[0] not in ("u1", b"u1") or _text(order) != "C":
        raise ValueError("not a plain array of bytes")
    return np.frombuffer(buffer, np.uint8).reshape(shape)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
