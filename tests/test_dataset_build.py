"""`dataset build`: every kind of source, every mode of picture, bad files, the same bytes every time."""

import gzip
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylegen.errors import UserError
from stylegen.training import pictures
from stylegen.training.build import build_dataset
from stylegen.training.dataset import Dataset, open_dataset

RNG = np.random.RandomState(0)


def noise(*shape: int) -> np.ndarray:
    return RNG.randint(0, 256, shape, dtype=np.uint8)


def built(source: Path, **options: Any) -> Dataset:
    dest = source.parent / "built.zip"
    build_dataset(source, dest, **options)
    return open_dataset(dest)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr", "LAB"])
def test_every_mode(tmp_path: Path, mode: str) -> None:
    """A picture that is bright at the left and dark at the right stays so in every mode."""
    gray = np.full((32, 32), 250, np.uint8)
    gray[:, 16:] = 5
    if mode == "1":
        image = Image.fromarray(gray).convert("1", dither=Image.Dither.NONE)
    elif mode in ("I;16", "I"):
        kind = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(gray.astype(kind) * kind(257))
    elif mode == "F":
        image = Image.fromarray(gray.astype(np.float32) / 255)
    elif mode == "LAB":
        image = Image.merge("LAB", [Image.fromarray(gray), *[Image.new("L", (32, 32), 128)] * 2])
    elif mode in ("P", "PA"):
        image = Image.fromarray(gray).quantize(2).convert(mode)
    else:
        image = Image.fromarray(gray).convert("RGB").convert(mode)
    if mode == "PA":  # no format of these stores it
        pixels = pictures.to_pixels(pictures.to_channels(pictures.normalize(image), 3, (0, 0, 0, 0)))
    else:
        (tmp_path / "in").mkdir()
        image.save(tmp_path / "in" / ("x.tif" if mode in ("CMYK", "F", "I", "YCbCr", "LAB") else "x.png"))
        pixels = built(tmp_path / "in").read(0)
    gray_modes = ("1", "L", "LA", "I;16", "I", "F")
    assert len(pixels) == (1 if mode in gray_modes else 3)
    assert pixels[:, :, :16].min() > 240
    assert pixels[:, :, 16:].max() < 15


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
def test_every_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "in").mkdir()
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    more = {"save_all": True, "append_images": [second]} if suffix in ("gif", "webp", "tiff") else {}
    first.save(tmp_path / "in" / f"x.{suffix}", **more)  # type: ignore[arg-type]
    assert abs(built(tmp_path / "in").read(0).mean((1, 2)) - [255, 0, 0]).max() < 3


def test_zip_and_folder_give_the_same_bytes_for_any_workers(tmp_path: Path) -> None:
    folder, archive = tmp_path / "in", tmp_path / "in.zip"
    folder.mkdir()
    (folder / "15x.png").write_text("no picture")
    for i in range(30):
        Image.fromarray(noise(70 + i, 90, 3)).save(folder / f"{i}.png")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir(), reverse=True):
            file.write(path, path.name)
    results = []
    for name, source, workers in (("a", folder, 1), ("b", folder, 4), ("c", archive, 2)):
        build_dataset(source, tmp_path / f"{name}.zip", size=(64, 64), workers=workers)
        results.append((tmp_path / f"{name}.zip").read_bytes())
    assert results[0] == results[1] == results[2]
    with zipfile.ZipFile(tmp_path / "a.zip") as file:
        assert file.namelist()[0] == "00000/img00000000.png"
        assert file.namelist()[-1] == "dataset.json"
        assert json.loads(file.read("dataset.json")) == {"labels": None}
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}


def test_metadata_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "x.png", icc_profile=b"profile" * 50, dpi=(72, 72))
    build_dataset(tmp_path / "in", tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive, archive.open("00000/img00000000.png") as file:
        assert set(Image.open(file).info) == set()


def test_crop_pad_stretch(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = noise(40, 20, 3)
    Image.fromarray(picture).save(tmp_path / "in" / "x.png")
    pixels = picture.transpose(2, 0, 1)
    crop = built(tmp_path / "in", size=(20, 20)).read(0)
    assert np.array_equal(crop, pixels[:, 10:30])
    pad = built(tmp_path / "in", size=(44, 24), how="pad", background=(255, 0, 0, 255)).read(0)
    assert np.array_equal(pad[:, 2:42, 2:22], pixels)  # more than half as large: its own pixels
    assert (pad[:, :2].min((1, 2)) == [255, 0, 0]).all()
    small = built(tmp_path / "in", size=(20, 20), how="pad").read(0)
    assert (small[:, :, :5] == 255).all()
    assert (small[:, :, 15:] == 255).all()
    assert small[:, :, 5:15].std() > 10
    stretch = built(tmp_path / "in", size=(32, 32), how="stretch").read(0)
    assert stretch.shape == (3, 32, 32)
    assert stretch[:, :, 0].std() > 10


def test_transparency(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[:, :16] = (10, 20, 30, 255)
    Image.fromarray(picture).save(tmp_path / "in" / "x.png")
    assert built(tmp_path / "in").read(0)[:, 0, [0, 31]].T.tolist() == [[10, 20, 30], [255, 255, 255]]
    green = built(tmp_path / "in", background=(0, 255, 0, 255), size=(16, 16)).read(0)
    assert green[:, 0, 15].tolist() == [0, 255, 0]
    kept = built(tmp_path / "in", channels=4).read(0)
    assert np.array_equal(kept, picture.transpose(2, 0, 1))
    padded = built(tmp_path / "in", channels=4, size=(34, 34), how="pad").read(0)
    assert (padded[3, 0] == 0).all()
    assert built(tmp_path / "in", channels=1).read(0)[:, 0, 31].tolist() == [255]


@pytest.mark.parametrize("background", [0, 97, 255])
def test_compositing_rounds_exactly(background: int) -> None:
    """Every value with every alpha."""
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    expected = np.rint((value * alpha + background * (255 - alpha)) / 255)
    image = Image.fromarray(np.stack([value, value, value, alpha], -1).astype(np.uint8))
    for source, channels in ((image, 3), (image.convert("LA"), 3), (image, 1)):
        result = np.asarray(pictures.to_channels(source, channels, (background,) * 3 + (255,)))
        assert (result.reshape(256, 256, -1) == expected[..., None]).all()


def test_palette_transparency_shows_the_background(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = Image.new("P", (32, 32), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 16, 32))
    image.save(tmp_path / "in" / "x.png", transparency=0)
    assert built(tmp_path / "in").read(0)[:, 0, [0, 31]].T.tolist() == [[0, 0, 255], [255, 255, 255]]


def write_idx(path: Path, array: np.ndarray) -> None:
    data = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx(tmp_path: Path, suffix: str) -> None:
    images, labels = noise(7, 28, 28), np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", images)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", labels)
    dataset = built(tmp_path / f"train-images-idx3-ubyte{suffix}", size=(32, 32), how="pad")
    assert (dataset.channels, dataset.label_size) == (1, 10)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == labels.tolist()
    for i in range(7):  # a border of exactly two black pixels, nothing resampled
        assert np.array_equal(dataset.read(i)[0], np.pad(images[i], 2))
    (tmp_path / f"train-labels-idx1-ubyte{suffix}").unlink()
    assert built(tmp_path / f"train-images-idx3-ubyte{suffix}").labels is None


def write_cifar(folder: Path, protocol: int, keys: type = bytes) -> tuple[np.ndarray, list[int]]:
    folder.mkdir()
    pixels, labels = noise(8, 3072), list(range(8))

    def key(text: str) -> Any:
        return text.encode() if keys is bytes else text

    for i in range(2):
        part = slice(4 * i, 4 * i + 4)
        batch = {key("data"): pixels[part], key("labels"): labels[part], key("filenames"): [key("x.png")] * 4}
        (folder / f"data_batch_{i + 1}").write_bytes(pickle.dumps(batch, protocol))
    (folder / "test_batch").write_bytes(b"not looked at")
    meta = {key("label_names"): [key(f"class {i}") for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return pixels.reshape(-1, 3, 32, 32), labels


@pytest.mark.parametrize(("protocol", "keys"), [(2, bytes), (4, str), (5, bytes)])
def test_cifar(tmp_path: Path, protocol: int, keys: type) -> None:
    pixels, labels = write_cifar(tmp_path / "cifar", protocol, keys)
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "cifar", "cifar-10-batches-py")
    for source, part in (("cifar", slice(8)), ("cifar.tar.gz", slice(8)), ("cifar/data_batch_2", slice(4, 8))):
        build_dataset(tmp_path / source, tmp_path / "built.zip")
        dataset = open_dataset(tmp_path / "built.zip")
        assert np.array_equal([dataset.read(i) for i in range(len(dataset))], pixels[part])
        assert dataset.labels is not None
        assert dataset.labels.tolist() == labels[part]
        assert dataset.class_names == [f"class {i}" for i in range(10)]
        assert dataset.label_size == 10


def test_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Hostile()}))
    with pytest.raises(UserError, match=r"is not a CIFAR batch.*posix\.mkdir"):
        built(tmp_path / "data_batch_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nchw", "rgba", "float", "uint16", "npz"])
def test_numpy(tmp_path: Path, layout: str) -> None:
    pixels = noise(5, 16, 24, 4 if layout == "rgba" else 3)
    if layout == "nhw":
        pixels = pixels[..., :1]
    stored: Any = {
        "nhw": pixels[..., 0],
        "nchw": pixels.transpose(0, 3, 1, 2),
        "float": (pixels / 255).astype(np.float32),
        "uint16": pixels.astype(np.uint16) * 257,
    }.get(layout, pixels)
    if layout == "npz":
        np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(5)[:, None])
    else:
        np.save(tmp_path / "a.npy", stored)
    dataset = built(tmp_path / ("a.npz" if layout == "npz" else "a.npy"))
    assert np.array_equal([dataset.read(i) for i in range(5)], pixels.transpose(0, 3, 1, 2))
    assert (dataset.labels is not None) == (layout == "npz")
    assert dataset.label_size == (5 if layout == "npz" else 0)


def write_classes(folder: Path) -> None:
    for name in ("cat/1.png", "cat/deep/2.png", "ant/3.png", "bee/4.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (ord(name[0]), 0, 0)).save(folder / name)
    (folder / "notes.txt").write_text("skipped")


def test_labels_of_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "in" / "wrapped")
    dataset = built(tmp_path / "in", labels="folders")
    assert dataset.class_names == ["ant", "bee", "cat"]
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 2, 2]
    assert [chr(dataset.read(i)[0, 0, 0]) for i in range(4)] == ["a", "b", "c", "c"]
    assert built(tmp_path / "in").labels is None
    with pytest.raises(UserError, match="do not all lie in two or more sub-folders"):
        built(tmp_path / "in" / "wrapped" / "cat", labels="folders")


def test_class_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=noise(3, 8, 8), labels=np.array([1, 0, 1]))
    dataset = built(tmp_path / "a.npz", class_names=["ant", "bee"])
    assert (dataset.class_names, dataset.label_size) == (["ant", "bee"], 2)
    for names in (["ant"], ["ant", "ant"], ["ant", "bee", "cat"]):
        with pytest.raises(UserError, match="class names for the classes 0 to 1; give a name for each"):
            built(tmp_path / "a.npz", class_names=names)
    np.save(tmp_path / "b.npy", noise(3, 8, 8))
    with pytest.raises(UserError, match="which has no classes; --labels tells"):
        built(tmp_path / "b.npy", class_names=["ant"])


@pytest.mark.parametrize("kind", ["json", "csv", "names.csv", "tsv", "npy", "vectors"])
def test_labels_of_a_file(tmp_path: Path, kind: str) -> None:
    write_classes(tmp_path / "in")
    (tmp_path / "in" / "notes.txt").unlink()
    names, labels = ["ant/3.png", "bee/4.png", "cat/1.png", "cat/deep/2.png"], [2, 0, 1, 2]
    path = tmp_path / f"labels.{kind}"
    if kind == "json":
        path.write_text(json.dumps({"labels": list(zip(names, labels, strict=True))}))
    elif kind == "vectors":
        path = path.with_suffix(".json")
        path.write_text(
            json.dumps({"labels": [[name, [label, 0.5]] for name, label in zip(names, labels, strict=True)]})
        )
    elif kind == "npy":
        np.save(path, labels)
    else:
        words = ["zero", "one", "two"] if kind == "names.csv" else ["0", "1", "2"]
        rows = ["file,label"] + [f"{name.split('/')[-1]},{words[i]}" for name, i in zip(names, labels, strict=True)]
        path.write_text("\n".join(rows).replace(",", "\t" if kind == "tsv" else ","))
    dataset = built(tmp_path / "in", labels=str(path))
    assert dataset.labels is not None
    if kind == "vectors":
        assert dataset.labels.tolist() == [[label, 0.5] for label in labels]
    elif kind == "names.csv":
        assert dataset.class_names == ["one", "two", "zero"]
        assert dataset.labels.tolist() == [1, 2, 0, 1]
    else:
        assert dataset.labels.tolist() == labels
    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "built.zip").rename(again / "first.zip")
    rebuilt = built(again / "first.zip", size=(16, 16))  # a data set is a source, its labels come along
    assert rebuilt.labels is not None
    assert rebuilt.labels.tolist() == dataset.labels.tolist()
    assert built(again / "first.zip", labels="none").labels is None


def test_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (200, 200)).save(tmp_path / "in" / "bomb.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "in" / "large.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)  # refused above twice as many, else only a warning
    result = build_dataset(tmp_path / "in", tmp_path / "out.zip", size=(64, 64))
    assert result.written == 2
    assert [(name, reason.partition(":")[0]) for name, reason in result.skipped] == [("bomb.png", "too large")]


def test_the_result_among_the_pictures_is_none_of_them(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    dest = tmp_path / "all.zip"
    (tmp_path / "link.png").symlink_to(dest)
    for _ in range(2):
        assert not build_dataset(tmp_path, dest).skipped


def test_a_zip_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "00000/img00000000.png")  # StyleGAN's tools name them so, but date them
    (tmp_path / "text.zip").write_text("no zip")
    for name in ("photos.zip", "text.zip"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(UserError, match=f"{name} holds something else than a data set; give the data set another"):
            build_dataset(tmp_path / "a.png", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
