"""Data sets, the level cache and the loader."""

import errno
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegen.errors import UserError
from stylegen.training import levels
from stylegen.training.dataset import Dataset, Loader, open_dataset
from stylegen.training.levels import box_pyramid, box_reduce

COUNT = 11


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stylegen"


def write_pictures(folder: Path, size: tuple[int, int] = (64, 64), channels: int = 3, count: int = COUNT) -> np.ndarray:
    """`count` PNGs of noise in two sub-folders; returns uint8 [N, C, H, W] in their sorted order."""
    pixels = np.random.RandomState(0).randint(0, 256, (count, *size, channels), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        path = folder / ("a" if i < count // 2 else "b") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0] if channels == 1 else picture).save(path)
    return pixels.transpose(0, 3, 1, 2)


def write_nvidia_zip(path: Path, labels: list | None) -> None:
    """A zip as StyleGAN's own tools write it: dataset.json in front, names in folders of a thousand."""
    with zipfile.ZipFile(path, "w") as archive:
        names = [f"00000/img{i:08d}.png" for i in range(3)]
        pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)][::-1]
        archive.writestr("dataset.json", json.dumps({"labels": pairs}))
        for i, name in enumerate(names):
            with archive.open(name, "w") as file:
                Image.new("RGB", (32, 32), (i, 0, 0)).save(file, "PNG")


def loader(dataset: Dataset, **options: object) -> Loader:
    defaults = {"base": (4, 4), "levels": 5, "seed": 3, "mirror": True, "cond": True, "workers": 2}
    return Loader(dataset, **{**defaults, **options})  # type: ignore[arg-type]


def test_box_reduce_is_the_exact_mean_rounded_half_to_even() -> None:
    pixels = np.random.RandomState(1).randint(0, 256, (3, 1, 64, 32), dtype=np.uint8)
    for k, reduced in enumerate(box_pyramid(pixels, [0, 1, 2, 5])):
        k = [0, 1, 2, 5][k]
        boxes = pixels.astype(np.float64).reshape(3, 1, 64 >> k, 1 << k, 32 >> k, 1 << k)
        expected = np.rint(boxes.mean(axis=(3, 5)))
        assert np.array_equal(reduced, expected)
        assert np.array_equal(box_reduce(pixels, k), expected)
    assert box_reduce(np.array([[0, 1], [1, 0]], np.uint8), 1) == 0  # 0.5
    assert box_reduce(np.array([[2, 1], [1, 2]], np.uint8), 1) == 2  # 1.5


def test_folder(tmp_path: Path) -> None:
    pixels = write_pictures(tmp_path / "photos")
    (tmp_path / "photos" / "README.txt").write_text("not a picture")
    dataset = open_dataset(tmp_path / "photos")
    assert (len(dataset), dataset.size, dataset.channels) == (COUNT, (64, 64), 3)
    assert all(np.array_equal(dataset.read(i), pixels[i]) for i in range(COUNT))
    assert dataset.class_names == ["a", "b"]
    assert dataset.label_size == 2
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0] * 5 + [1] * 6


@pytest.mark.parametrize(("channels", "size"), [(1, (32, 32)), (4, (64, 32))])
def test_channels_and_sizes(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    pixels = write_pictures(tmp_path / "photos", size, channels)
    dataset = open_dataset(tmp_path / "photos")
    assert (dataset.size, dataset.channels) == (size, channels)
    base = (size[0] >> 3, size[1] >> 3)
    with loader(dataset, base=base, levels=4, mirror=False, seed=0) as batches:
        images, _ = batches.batch(0, COUNT, 1)
    assert images.shape == (COUNT, channels, base[0] * 2, base[1] * 2)
    assert sorted(images.flatten(1).tolist()) == sorted(box_reduce(pixels, 2).reshape(COUNT, -1).tolist())


@pytest.mark.parametrize("labels", [None, [2, 0, 1], [[0.5, 1, 0], [0, 0, 0], [-1, 2, 3]]])
def test_nvidia_zip(tmp_path: Path, labels: list | None) -> None:
    write_nvidia_zip(tmp_path / "theirs.zip", labels)
    dataset = open_dataset(tmp_path / "theirs.zip")
    assert (len(dataset), dataset.size, dataset.channels) == (3, (32, 32), 3)
    assert dataset.read(2)[0].max() == 2
    if labels is None:
        assert dataset.labels is None
        assert dataset.label_size == 0
        return
    assert dataset.label_size == 3
    expected = np.eye(3)[labels] if isinstance(labels[0], int) else np.array(labels, np.float32)
    assert np.array_equal(dataset.label_vectors(np.arange(3)), expected)


def test_digest_follows_the_content(tmp_path: Path) -> None:
    for name, labels in (("one", [0, 1, 2]), ("same", [0, 1, 2]), ("other", [0, 1, 1])):
        write_nvidia_zip(tmp_path / f"{name}.zip", labels)
    one, same, other = (open_dataset(tmp_path / f"{name}.zip").digest for name in ("one", "same", "other"))
    assert one == same
    assert one != other
    write_pictures(tmp_path / "photos")
    before = open_dataset(tmp_path / "photos").digest
    (tmp_path / "photos" / "a" / "000.png").unlink()
    assert open_dataset(tmp_path / "photos").digest != before


def test_reduced_size(tmp_path: Path) -> None:
    pixels = write_pictures(tmp_path / "photos")
    dataset = open_dataset(tmp_path / "photos", size=(16, 16))
    assert dataset.size == (16, 16)
    assert np.array_equal(dataset.read(4), box_reduce(pixels[4], 2))
    with loader(dataset, levels=3, mirror=False) as batches:
        found = batches.batch(0, COUNT, 1)[0].numpy()
    expected = box_reduce(pixels, 3)  # from full resolution at once, never rounded twice
    assert sorted(found.reshape(COUNT, -1).tolist()) == sorted(expected.reshape(COUNT, -1).tolist())
    with pytest.raises(UserError, match=r"can train at 64x64, 32x32, 16x16, 8x8, not at 48x48; .*--size"):
        open_dataset(tmp_path / "photos", size=(48, 48))


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    dataset = open_dataset(tmp_path / "photos")
    with loader(dataset, mirror=False) as batches:
        epochs = [batches.batch(epoch * COUNT, COUNT, 0)[0].flatten(1).tolist() for epoch in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_are_pure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same batch with and without workers, after other calls, in parts, from the cache and decoded."""
    pixels = write_pictures(tmp_path / "photos", (32, 32))
    dataset = open_dataset(tmp_path / "photos")
    asked = [(0, 6, 3), (6, 6, 3), (12, 25, 2), (100, 4, 0), (12, 25, 2), (18, 6, 3), (9, 4, 1)]  # across epochs too
    results = []
    for workers, cached, order in ((2, True, 1), (0, True, -1), (2, False, -1), (0, False, 1)):
        monkeypatch.setattr("stylegen.training.levels.MAX_SIDE", 128 if cached else 0)
        with loader(dataset, levels=4, workers=workers) as batches:
            found = {call: batches.batch(*call) for call in asked[::order]}
            parts = [batches.batch(12, 25, 2, which) for which in (range(0, 25, 2), range(1, 25, 2))]
            whole = tuple(torch.empty_like(tensor) for tensor in found[12, 25, 2])
            for start, part in enumerate(parts):
                for tensor, some in zip(whole, part, strict=True):
                    tensor[start::2] = some
            found[12, 25, 2, "parts"] = whole
        results.append(found)
    for found in results:
        assert all(torch.equal(a, b) for call in asked for a, b in zip(found[call], results[0][call], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(found[12, 25, 2], found[12, 25, 2, "parts"], strict=True))
    images, labels = results[0][0, 6, 3]
    for image, label in zip(images.numpy(), labels, strict=True):
        matches = [i for i in range(COUNT) if any(np.array_equal(image, p) for p in (pixels[i], pixels[i, ..., ::-1]))]
        assert len(matches) == 1
        assert label.tolist() == ([1, 0] if matches[0] < 5 else [0, 1])


def test_mirror_flips_about_half(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", (8, 8))
    dataset = open_dataset(tmp_path / "photos")
    with loader(dataset, levels=2) as flipped, loader(dataset, levels=2, mirror=False) as plain:
        a, b = flipped.batch(0, 400, 1)[0], plain.batch(0, 400, 1)[0]
    same = (a == b).flatten(1).all(1)
    assert torch.equal(a[~same], b[~same].flip(-1))
    assert 150 < same.sum() < 250


def test_labels_only_when_conditional(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    with loader(open_dataset(tmp_path / "photos"), cond=False) as batches:
        assert batches.batch(0, 5, 0)[1].shape == (5, 0)
    write_nvidia_zip(tmp_path / "bare.zip", None)
    with pytest.raises(UserError, match="has no labels"):
        loader(open_dataset(tmp_path / "bare.zip"), levels=4)


def test_network_of_another_size(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    with pytest.raises(UserError, match="holds pictures of 64x64, the network makes 32x32"):
        loader(open_dataset(tmp_path / "photos"), levels=4)


def test_cache_is_built_once_and_holds_no_large_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write_pictures(tmp_path / "photos", (256, 256), 1, count=3)
    dataset = open_dataset(tmp_path / "photos")
    with loader(dataset, levels=7, mirror=False) as batches:
        large = batches.batch(0, 3, 6)[0].numpy()
    assert sorted(large.reshape(3, -1).tolist()) == sorted(pixels.reshape(3, -1).tolist())
    (folder,) = tmp_path.glob("photos.levels-*")
    sides = sorted(int(file.stem.split("x")[0]) for file in folder.iterdir())
    assert sides == [4, 8, 16, 32, 64, 128]
    monkeypatch.setattr(Dataset, "read_full", lambda *_: pytest.fail("decoded again"))
    with loader(open_dataset(tmp_path / "photos"), levels=7, workers=0) as batches:
        batches.batch(0, 3, 5)


def test_broken_cache_is_rebuilt(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    dataset = open_dataset(tmp_path / "photos")
    with loader(dataset) as batches:
        expected = batches.batch(0, 5, 4)[0]
    (folder,) = tmp_path.glob("photos.levels-*")
    os.truncate(folder / "64x64.npy", 1000)
    with loader(dataset) as batches:
        assert torch.equal(batches.batch(0, 5, 4)[0], expected)
    assert (folder / "64x64.npy").stat().st_size > 1000


def test_cache_falls_back_to_the_user_cache_then_to_memory(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "here" / "photos")
    dataset = open_dataset(tmp_path / "here" / "photos")
    with loader(dataset) as batches:
        expected = batches.batch(0, 5, 4)[0]
    (cache,) = (tmp_path / "here").glob("*.levels-*")
    for file in cache.iterdir():
        file.unlink()
    cache.rmdir()
    full = [tmp_path / "here"]
    write = levels._write

    def failing(folder: Path, *rest: object) -> None:
        (folder / "64x64.npy").write_bytes(b"half of it")
        if folder.parent in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(levels, "_write", failing)
    with loader(dataset) as batches:
        assert torch.equal(batches.batch(0, 5, 4)[0], expected)
    assert [path.name for path in user_cache.iterdir()] == [cache.name]
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["photos"]
    full.append(user_cache)
    for file in (user_cache / cache.name).iterdir():
        file.unlink()
    (user_cache / cache.name).rmdir()
    with pytest.warns(UserWarning, match=r"level cache kept in memory.*No space left"), loader(dataset) as batches:
        assert torch.equal(batches.batch(0, 5, 4)[0], expected)
    assert not list(user_cache.iterdir())


def test_embedded_data_caches_in_the_user_folder(user_cache: Path) -> None:
    dataset = open_dataset("emoji-people-64")
    with loader(dataset, cond=False) as batches:
        assert batches.batch(0, 2, 4)[0].shape == (2, 3, 64, 64)
    assert len(list(user_cache.iterdir())) == 1
    assert not list(dataset.path.parent.glob("*.levels-*"))


def test_concurrent_builders(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", count=200)
    code = (
        "import sys; from stylegen.training.dataset import Loader, open_dataset\n"
        "d = open_dataset(sys.argv[1])\n"
        "l = Loader(d, base=(4, 4), levels=5, seed=0, mirror=True, cond=False)\n"
        "print(int(l.batch(0, 200, 4)[0].long().sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "photos")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(3)]
    sums = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(set(sums)) == 1
    assert len(list(tmp_path.glob("*.levels-*"))) == 1
    assert not list(tmp_path.glob(".*.tmp"))


def test_mixed_folder_says_so(tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos")
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "odd.jpg")
    Image.new("L", (64, 64)).save(tmp_path / "photos" / "gray.png")
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path / "photos")
    assert "64x64 rgb (11), " in str(caught.value)
    assert "30x20 rgb (1)" in str(caught.value)
    assert "64x64 gray (1)" in str(caught.value)
    assert f"stylegen dataset build {tmp_path / 'photos'}" in str(caught.value)


def test_mixed_zip_says_so(tmp_path: Path) -> None:
    write_nvidia_zip(tmp_path / "theirs.zip", None)
    with zipfile.ZipFile(tmp_path / "theirs.zip", "a") as archive, archive.open("00000/img00000003.png", "w") as file:
        Image.new("L", (16, 16)).save(file, "PNG")
    with pytest.raises(UserError, match=r"img00000003.png .* is 16x16 gray, the data set's first picture 32x32 rgb"):
        loader(open_dataset(tmp_path / "theirs.zip"), levels=4, cond=False)


def bad_inputs() -> list[tuple[str, str]]:
    return [
        ("missing", "no data at"),
        ("missing.zip", "no data at"),
        ("empty", "no pictures in"),
        ("text.txt", "neither a folder nor a zip"),
        ("cut.zip", "not a whole zip file"),
        ("fake", "fake.png in .* is not a picture"),
        ("unlabelled.zip", "no label for 1 of 3"),
        ("badjson.zip", "is not of the form"),
        ("ragged.zip", "all be class indices"),
    ]


@pytest.mark.parametrize(("name", "message"), bad_inputs())
def test_bad_data_is_one_line(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / name
    if name in ("empty", "fake"):
        path.mkdir()
    if name == "fake":
        (path / "fake.png").write_text("no picture")
    elif name == "text.txt":
        path.write_text("hello")
    elif name == "cut.zip":
        write_nvidia_zip(path, None)
        os.truncate(path, path.stat().st_size - 50)
    elif name == "ragged.zip":
        write_nvidia_zip(path, [[1.0], [1.0, 2.0], 3])
    elif name in ("unlabelled.zip", "badjson.zip"):
        write_nvidia_zip(tmp_path / "good.zip", [0, 1, 2])
        with zipfile.ZipFile(tmp_path / "good.zip") as good, zipfile.ZipFile(path, "w") as bad:
            for entry in good.namelist()[1:]:
                bad.writestr(entry, good.read(entry))
            pairs = [["00000/img00000000.png", 0], ["00000\\img00000001.png", 1]]
            bad.writestr("dataset.json", json.dumps({"labels": pairs} if name == "unlabelled.zip" else [1]))
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value)


def test_damaged_entry_names_itself(tmp_path: Path) -> None:
    write_nvidia_zip(tmp_path / "theirs.zip", None)
    data = bytearray((tmp_path / "theirs.zip").read_bytes())
    data[data.rindex(b"IDAT") + 8] ^= 255
    (tmp_path / "theirs.zip").write_bytes(data)
    with pytest.raises(UserError, match=r"img00000002.png in .* is broken \(Bad CRC"):
        open_dataset(tmp_path / "theirs.zip").read(2)
