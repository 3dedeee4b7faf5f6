"""`dataset build --shards`, and training on what it writes."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import data_zip, invoke, train_arguments

from stylegen.errors import UserError
from stylegen.training.build import build_dataset
from stylegen.training.dataset import Loader, open_dataset

COUNT = 23


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of three classes, one of them broken."""
    random = np.random.default_rng(0)
    for i in range(COUNT + 1):
        path = tmp_path / "photos" / "cat dog emu".split()[i // 9] / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    (tmp_path / "photos" / "dog" / "010.jpg").write_bytes(b"broken")
    return tmp_path / "photos"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("labels", ["folders", "none", "vectors"])
def test_zip_and_shards_are_the_same_data(photos: Path, tmp_path: Path, labels: str) -> None:
    given = labels
    if labels == "vectors":
        given = str(tmp_path / "labels.npy")
        np.save(given, np.random.default_rng(1).normal(size=(COUNT + 1, 2)).astype(np.float32))
    dests = {"a.zip": {}, "few": {"shards": 4}, "many": {"shard_bytes": 12_000}, "one": {"shards": 1}}
    opened = {}
    for name, options in dests.items():
        built = build_dataset(photos, tmp_path / name, size=(16, 16), labels=given, **options)  # type: ignore[arg-type]
        assert (built.written, len(built.skipped)) == (COUNT, 1)
        opened[name] = open_dataset(tmp_path / name)
    assert len(list((tmp_path / "few").glob("*.tar"))) == 4
    assert np.diff(opened["few"].starts).tolist() == [6, 5, 6, 6]
    assert len(opened["many"].starts) > 4
    assert all(path.stat().st_size <= 12_000 for path in (tmp_path / "many").glob("*.tar"))
    plain = opened.pop("a.zip")
    options = {"base": (4, 4), "levels": 3, "seed": 0, "mirror": True, "cond": labels != "none"}
    with Loader(plain, **options) as loader:  # type: ignore[arg-type]
        expected = loader.batch(5, 2 * COUNT, 2)
    for name, dataset in opened.items():
        assert [name for name in contents(tmp_path / name) if not name.startswith("shard-0000")] == (
            ["dataset.json"] if labels == "folders" else []
        )
        assert all(np.array_equal(dataset.read(i), plain.read(i)) for i in range(COUNT))
        assert np.array_equal(dataset.label_vectors(np.arange(COUNT)), plain.label_vectors(np.arange(COUNT)))
        assert dataset.class_names == plain.class_names
        with Loader(dataset, **options, shuffle_shards=0) as loader:  # type: ignore[arg-type]
            assert all(torch.equal(a, b) for a, b in zip(loader.batch(5, 2 * COUNT, 2), expected, strict=True))
        back = tmp_path / f"{name}-back.zip"
        build_dataset(tmp_path / name, back)
        assert back.read_bytes() == (tmp_path / "a.zip").read_bytes()


def test_same_pictures_same_bytes_and_as_webdataset_has_them(photos: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 3), ("two", 1)):  # the last one takes the place of its like
        build_dataset(photos, tmp_path / name, size=(16, 16), labels="folders", shards=3, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with tarfile.open(tmp_path / "one" / "shard-000001.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:2]] == ["img00000008.png", "img00000008.cls"]
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}
        assert archive.extractfile("img00000008.cls").read() == b"0"  # type: ignore[union-attr]
    assert json.loads((tmp_path / "one" / "dataset.json").read_text())["class_names"] == ["cat", "dog", "emu"]
    assert (tmp_path / "one.report.txt").read_text().startswith("dog/010.jpg: ")


def test_shards_follow_the_limit_too(photos: Path, tmp_path: Path) -> None:
    build_dataset(photos, tmp_path / "some", size=(16, 16), limit=10, shards=4)
    assert np.diff(open_dataset(tmp_path / "some").starts).tolist() == [3, 2, 3, 2]
    build_dataset(photos, tmp_path / "tiny", size=(16, 16), limit=2, shards=5)
    assert np.diff(open_dataset(tmp_path / "tiny").starts).tolist() == [1, 1]


def test_nothing_else_is_overwritten_and_nothing_half_is_left(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="photos holds something else than shards"):
        build_dataset(data_zip(tmp_path / "a.zip"), photos, shards=2)
    with pytest.raises(UserError, match=r"give --dest the name of a folder, not .*b\.zip"):
        build_dataset(photos, tmp_path / "b.zip", size=(16, 16), shards=2)
    build_dataset(photos, tmp_path / "out", size=(16, 16), shards=2)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(tarfile.TarFile, "addfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        build_dataset(photos, tmp_path / "out", size=(8, 8), shards=2)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "out", "out.report.txt", "photos"]


def test_commands_take_shards(tmp_path: Path) -> None:
    zipped = data_zip(tmp_path / "a.zip", classes=3)
    build = ["dataset", "build", str(zipped), "--dest", str(tmp_path / "a")]
    assert "40 pictures" in invoke([*build, "--shard-size", "0.04MB"]).stdout
    shown = invoke(["dataset", "show", str(tmp_path / "a"), "--out", str(tmp_path / "s.png")]).stdout
    assert "40 pictures in 4 shards, 16x16 rgb" in shown
    assert "3 classes: 0 14, 1 13, 2 13" in shown
    pattern = str(tmp_path / "a" / "shard-{000000..000003}.tar")
    assert "every picture is whole" in invoke(["dataset", "check", pattern]).stdout
    assert "give --shards or --shard-size" in invoke([*build, "--shards", "2", "--shard-size", "1GB"], 2).stderr
    assert "'big' is no size, such as 500MB" in invoke([*build, "--shard-size", "big"], 2).stderr
    assert "no.tar" in invoke(["dataset", "check", str(tmp_path / "no.tar")], 2).stderr
    (tmp_path / "a" / "shard-000002.tar").write_bytes(b"x")
    train = ["train", str(tmp_path / "a"), "--out", str(tmp_path / "r")]
    assert "shard-000002.tar is damaged" in invoke(train, 1).stderr


def test_check_tells_of_every_bad_picture(tmp_path: Path) -> None:
    build_dataset(data_zip(tmp_path / "a.zip"), tmp_path / "a", shards=2)
    path = tmp_path / "a" / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 255
    path.write_bytes(data)
    result = invoke(["dataset", "check", str(tmp_path / "a")], 1)
    assert "shard-000001.tar/img00000020.png is broken" in result.stdout
    assert "1 of 40 pictures" in result.stderr


def test_training_on_shards_is_training_on_the_zip(tmp_path: Path) -> None:
    """Bit for bit with a full permutation; with a window it is another run, which resumes exactly."""
    zipped = data_zip(tmp_path / "a.zip", classes=2)
    build_dataset(zipped, tmp_path / "a", shards=5)

    def run(data: Path, name: str, *options: object) -> dict[str, torch.Tensor]:
        arguments = train_arguments(data, tmp_path / name, "--cond", "--mirror", *options, kimg=0.2)
        invoke(arguments)
        return load_file(tmp_path / name / "state.ckpt")

    expected = run(zipped, "zip")
    full = run(tmp_path / "a", "full", "--workers", 0, "--cache", "none")
    assert expected.keys() == full.keys()
    assert all(torch.equal(full[name], tensor) for name, tensor in expected.items())
    window = ["--shuffle-shards", 2]
    mixed = run(tmp_path / "a", "mixed", *window)
    assert not all(torch.equal(mixed[name], tensor) for name, tensor in expected.items())
    assert "40 pictures in 5 shards (2 shuffled at a time)" in (tmp_path / "mixed" / "log.txt").read_text()
    run(tmp_path / "a", "parts", *window, "--kimg", 0.1)
    parts = run(tmp_path / "a", "parts", *window, "--resume", "--workers", 1, "--cache", str(tmp_path / "levels"))
    assert all(torch.equal(parts[name], tensor) for name, tensor in mixed.items())
    assert len(list((tmp_path / "levels").iterdir())) == 1
    refused = invoke(train_arguments(tmp_path / "a", tmp_path / "parts", "--resume", "--shuffle-shards", 3), 2).stderr
    assert "training.shuffle_shards: 3 here, 2 in the saved run" in refused
