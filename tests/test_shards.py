"""Data sets in tar shards and in folders of zips, as they are opened and read."""

import errno
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegen.errors import UserError
from stylegen.training import shard_index, shards
from stylegen.training.dataset import Dataset, Loader, open_dataset

SIZE, COUNT = 16, 24
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), np.uint8)
Members = Iterable[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "_RETRIES_SEC", (0.0, 0.0))
    return tmp_path / "cache" / "stylegen"


def packed(i: int, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[i].transpose(1, 2, 0)).save(file, kind, **({"lossless": True} if kind == "webp" else {}))
    return file.getvalue()


def write_tar(path: Path, members: Members, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:  # type: ignore[arg-type]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, members: Members, method: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def labelled(numbers: Iterable[int]) -> Members:
    for i in numbers:
        yield from ((f"{i:04d}.png", packed(i)), (f"{i:04d}.cls", b"%d\n" % (i % 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tars of 8 labelled pictures."""
    for number in range(3):
        write_tar(tmp_path / "set" / f"s-{number}.tar", labelled(range(8 * number, 8 * number + 8)))
    return tmp_path / "set"


def loader(dataset: Dataset, **options: object) -> Loader:
    defaults = {"base": (4, 4), "levels": 3, "seed": 3, "mirror": True, "cond": True, "workers": 2}
    return Loader(dataset, **{**defaults, **options})  # type: ignore[arg-type]


def is_whole(dataset: Dataset) -> bool:
    same = [np.array_equal(dataset.read(i), PIXELS[i]) for i in range(COUNT)]
    assert dataset.labels is not None
    return len(dataset) == COUNT and all(same) and dataset.labels.tolist() == [i % 3 for i in range(COUNT)]


def test_a_folder_and_a_pattern(folder: Path) -> None:
    for path in (folder, folder / "s-{0..2}.tar", folder / "s-{0,1,2}.tar"):
        dataset = open_dataset(path)
        assert is_whole(dataset)
        assert dataset.starts.tolist() == [0, 8, 16, 24]
        assert dataset.names[9] == "s-1.tar/0009.png"
        assert dataset.names[-1] == "s-2.tar/0023.png"
        assert dataset.path == path
        assert open_dataset(dataset.path, size=(8, 8)).size == (8, 8)  # it can be opened again by its path
    single = open_dataset(folder / "s-1.tar")
    assert (len(single), single.starts.tolist()) == (8, [0, 8])


def test_patterns_are_those_of_shells() -> None:
    assert list(shards._expand("a{08..11}")) == ["a08", "a09", "a10", "a11"]
    assert list(shards._expand("{9..11}{x,y}")) == ["9x", "9y", "10x", "10y", "11x", "11y"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_folder_of_zips(tmp_path: Path, method: int) -> None:
    for number in range(3):
        names = {i: f"00000/{i:04d}.png" for i in range(8 * number, 8 * number + 8)}
        content = {"labels": [[name, i % 3] for i, name in names.items()], "class_names": ["a", "b", "c"]}
        pictures = [(name, packed(i)) for i, name in names.items()]
        extra = [("dataset.json", json.dumps(content).encode()), (".hidden.png", b"")]
        write_zip(tmp_path / "set" / f"{number}.zip", [*pictures, *extra], method)
    dataset = open_dataset(tmp_path / "set")
    assert is_whole(dataset)
    assert dataset.class_names == ["a", "b", "c"]
    other = json.dumps({"labels": [["x.png", 0]], "class_names": ["z"]}).encode()
    write_zip(tmp_path / "set" / "9.zip", [("x.png", packed(0)), ("dataset.json", other)])
    with pytest.raises(UserError, match=r"2.zip and .*9.zip name their classes differently"):
        open_dataset(tmp_path / "set")


def test_many_kinds_of_tar_and_picture(tmp_path: Path) -> None:
    """Long names, pax headers, folders, links, names twice, ./ in front: as tar and WebDataset write them."""
    long = "d" * 90 + "/" + "e" * 90 + "/"
    for kind, style in (("png", tarfile.GNU_FORMAT), ("webp", tarfile.PAX_FORMAT)):
        path = tmp_path / f"{kind}.tar"
        with tarfile.open(path, "w", format=style) as archive:
            for name, i in ((f"./{long}a.b.{kind}", 0), (f"é.{kind}", 5), (f"._c.{kind}", 3), (f"é.{kind}", 1)):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = len(packed(i, kind)), 1.5  # type: ignore[assignment]
                archive.addfile(info, io.BytesIO(packed(i, kind)))
            for name, how, target in ((f"z.{kind}", tarfile.LNKTYPE, f"é.{kind}"), ("dir.png", tarfile.DIRTYPE, "")):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = how, target
                archive.addfile(info)
        dataset = open_dataset(path)
        assert list(dataset.names) == [f"{kind}.tar/{name}.{kind}" for name in (f"{long}a.b", "é", "z")]
        assert all(np.array_equal(dataset.read(place), PIXELS[i]) for place, i in enumerate((0, 1, 1)))
        assert dataset.labels is None


@pytest.mark.parametrize("where", ["folder", "folder-inner", "shard", "json", "vectors"])
def test_labels_in_other_places(tmp_path: Path, where: str) -> None:
    path = tmp_path / "set" / "s.tar"
    labels: list = [[0.5, i] for i in range(4)] if where == "vectors" else [2, 0, 1, 0]
    prefix = "s.tar/" if where == "folder" else ""
    pairs = [[f"{prefix}{i}.png", labels[i]] for i in range(4)]
    content = json.dumps({"labels": pairs, "class_names": ["a", "b", "c"]})
    members = [(f"{i}.png", packed(i)) for i in range(4)]
    if where == "shard":
        members.append(("dataset.json", content.encode()))
    elif where in ("json", "vectors"):
        members += [(f"{i}.json", json.dumps({"label": labels[i], "text": "x"}).encode()) for i in range(4)]
    write_tar(path, members)
    if where.startswith("folder"):
        (path.parent / "dataset.json").write_text(content)
    for source in (path.parent, path):
        dataset = open_dataset(source)
        assert dataset.labels is not None
        assert dataset.labels.tolist() == labels
        assert dataset.class_names == (["a", "b", "c"] if "s" not in where[1:] or where == "shard" else None)


def test_the_index_is_kept(folder: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, look = open_dataset(folder), shard_index._look
    assert [path.name[:6] for path in user_cache.iterdir()] == ["index-"]
    monkeypatch.setattr(shard_index, "_look", lambda *_: pytest.fail("indexed again"))
    again = open_dataset(folder)
    assert is_whole(again)
    assert (again.digest, list(again.names)) == (first.digest, list(first.names))
    monkeypatch.setattr(shard_index, "_look", look)
    write_tar(folder / "s-1.tar", labelled([3, 4]))
    assert open_dataset(folder).starts.tolist() == [0, 8, 10, 18]
    (damaged, *_) = user_cache.iterdir()
    (damaged / "ends.npy").write_bytes(b"")
    assert len(open_dataset(folder)) == 18
    blocked = folder.parent / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(UserWarning, match="the index of 3 shards is made anew each time"):
        assert len(open_dataset(folder)) == 18


def test_the_digest_is_of_the_content_not_of_the_place(folder: Path) -> None:
    copy = folder.parent / "elsewhere" / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copy)
    os.utime(copy / "s-0.tar", (1, 1))
    before = open_dataset(folder).digest
    assert open_dataset(copy).digest == before
    assert open_dataset(copy / "s-{0..2}.tar").digest == before
    members = [(name, b"0" if name == "0008.cls" else data) for name, data in labelled(range(8, 16))]
    write_tar(copy / "s-1.tar", members)
    assert open_dataset(copy).digest != before
    (copy / "s-1.tar").unlink()
    assert open_dataset(copy).digest != before


def bad_shards() -> dict[str, tuple[bytes, str]]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in labelled(range(4)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    whole = file.getvalue()
    garbage = bytearray(whole)
    garbage[512 * 3 : 512 * 4] = b"x" * 512
    return {
        "cut in a picture": (whole[: end // 2], "s-1.tar is damaged or cut short"),
        "cut behind one": (whole[:end], f"s-1.tar is damaged or cut short .no end after byte {end}"),
        "garbage": (bytes(garbage), "s-1.tar is damaged or cut short"),
        "empty": (b"", "s-1.tar is damaged or cut short"),
        "no tar": (packed(0), "s-1.tar is damaged or cut short"),
        "compressed": (b"\x1f\x8b\x08\x00" + bytes(600), r"s-1.tar is a compressed tar.*unpack it"),
    }


@pytest.mark.parametrize("kind", bad_shards())
def test_a_bad_shard_is_named_in_one_line(folder: Path, kind: str) -> None:
    content, message = bad_shards()[kind]
    (folder / "s-1.tar").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({"s.tar.gz": []}, "", r"s.tar.gz is a compressed tar"),
        ({"s.tar.gz": []}, "s.tar.gz", r"s.tar.gz is a compressed tar"),
        ({"s-0.tar": [("a.png", packed(0))]}, "s-{0..2}.tar", r"2 of the 3 shards of .* e.g. .*s-1.tar"),
        ({}, "s-{0..2}.zip", r"3 of the 3 shards"),
        ({}, "s.tar", r"no data at .*s.tar; accepted: .* shards"),
        ({"s.tar": [("a.txt", b"")]}, "", r"no pictures in"),
        ({"s.tar": [("a.png", packed(0)), ("a.cls", b"dog")]}, "", r"a.cls in .*s.tar is b'dog'; expected a class"),
        ({"s.tar": [("a.png", packed(0)), ("a.json", b"{")]}, "", r"a.json in .*s.tar is b'{'"),
        ({"s.tar": [("a.png", packed(0)), ("a.cls", b"1"), ("b.png", packed(0))]}, "", r"no label for 1 of 2 .* b.png"),
        (
            {"s.tar": [("a.png", packed(0)), ("a.cls", b"1")], "t.tar": [("b.png", packed(0))]},
            "",
            r"s.tar and .*t.tar differ in their labels",
        ),
        (
            {"s.tar": [("a.png", packed(0))], "dataset.json": b'{"labels": [["b.png", 1]]}'},
            "",
            r"dataset.json beside .*s.tar has no label for a.png",
        ),
        ({"s.tar": [("a.png", b"nothing")]}, "", r"s.tar/a.png in .* is not a picture"),
    ],
)
def test_bad_sets_are_one_line(tmp_path: Path, files: dict, path: str, message: str) -> None:
    (tmp_path / "set").mkdir()
    for name, members in files.items():
        if isinstance(members, bytes):
            (tmp_path / "set" / name).write_bytes(members)
        else:
            write_tar(tmp_path / "set" / name, members)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(tmp_path / "set" / path if path else tmp_path / "set")
    assert "\n" not in str(caught.value)


def test_pictures_win_over_tars_beside_them(folder: Path) -> None:
    (folder / "one.png").write_bytes(packed(5))
    with pytest.warns(UserWarning, match="holds pictures beside 3 .tar files, which are left out"):
        assert list(open_dataset(folder).names) == ["one.png"]


@pytest.mark.parametrize("window", [0, 2])
def test_batches_are_pure(folder: Path, window: int) -> None:
    """With and without workers, in parts, from the cache and decoded, in any order of the calls."""
    asked = [(0, 6, 2), (6, 6, 2), (12, 40, 1), (100, 4, 0), (3, 5, 2)]
    results = []
    for workers, cache, step in ((2, "auto", 1), (0, "auto", -1), (3, "none", -1), (0, "none", 1)):
        with loader(open_dataset(folder), workers=workers, cache=cache, shuffle_shards=window) as batches:
            found = {call: batches.batch(*call) for call in asked[::step]}
            odd, even = (batches.batch(12, 40, 1, range(start, 40, 2)) for start in (1, 0))
            found[0, 0, 0] = (torch.stack([even[0], odd[0]], 1).flatten(0, 1), torch.stack([even[1], odd[1]], 1))
        results.append(found)
    for found in results:
        assert all(torch.equal(found[call][0], results[0][call][0]) for call in asked)
        assert all(torch.equal(found[call][1], results[0][call][1]) for call in asked)
        assert torch.equal(found[0, 0, 0][0], found[12, 40, 1][0])


def test_a_bad_picture_has_a_stand_in_of_its_label(folder: Path) -> None:
    """The same from the level cache and decoded, and `fault` still tells of it."""
    broken = [(name, data[:30] if name == "0009.png" else data) for name, data in labelled(range(8, 16))]
    write_tar(folder / "s-1.tar", broken)
    dataset = open_dataset(folder)
    with pytest.warns(
        UserWarning, match=r"s-1.tar/0009.png in .* is broken .*: s-1.tar/0012.png stands in for it"
    ) as w:
        assert np.array_equal(dataset.read(9), PIXELS[12])
        assert np.array_equal(dataset.read(9), PIXELS[12])
    assert len(w) == 1
    assert str(dataset.fault(9)).startswith("is broken")
    assert [i for i in range(COUNT) if dataset.fault(i)] == [9]
    with pytest.warns(UserWarning, match="stands in"), loader(open_dataset(folder), cache="none") as decoded:
        expected = decoded.batch(0, COUNT, 2)
    with pytest.warns(UserWarning, match="stands in"), loader(open_dataset(folder)) as cached:
        assert all(torch.equal(a, b) for a, b in zip(cached.batch(0, COUNT, 2), expected, strict=True))


def test_many_bad_pictures_end_it(tmp_path: Path) -> None:
    members = [(f"{i:03d}.png", packed(i % COUNT) if i % 2 else b"bad") for i in range(60)]
    write_tar(tmp_path / "s.tar", members)
    dataset = open_dataset(tmp_path / "s.tar")
    with pytest.warns(UserWarning) as shown, pytest.raises(UserError, match=r"020.png in .*, as 10 others are; see"):
        for i in range(60):
            dataset.read(i)
    assert len(shown) == 10


def test_a_picture_unlike_the_others_and_none_to_stand_in(tmp_path: Path) -> None:
    members = [("0.png", packed(0)), ("0.cls", b"0"), ("1.png", packed(1)), ("1.cls", b"1"), ("2.png", packed(2))]
    write_tar(tmp_path / "s.tar", [*members[:2], ("1.png", b"bad"), *members[3:], ("2.cls", b"0")])
    with pytest.raises(UserError, match=r"1.png in .* is broken"):
        open_dataset(tmp_path / "s.tar").read(1)


def test_a_server_that_hiccups_and_one_that_is_gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, pread, failures = open_dataset(folder), shard_index.File._read, 2

    def flaky(self: shard_index.File, offset: int, size: int) -> bytes:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(self, offset, size)

    monkeypatch.setattr(shard_index.File, "_read", flaky)
    assert np.array_equal(dataset.read(11), PIXELS[11])
    failures = 3
    with pytest.raises(UserError, match=r"s-1.tar cannot be read any more: Stale file handle"):
        dataset.read(11)
    os.truncate(folder / "s-2.tar", 2000)
    with pytest.raises(UserError, match=r"s-2.tar ends early: it was cut short or replaced while in use"):
        dataset.read(23)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux's list of open files")
def test_few_files_are_open_and_a_forked_process_reads_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.readlink(link).startswith(str(folder)) for link in links if os.path.islink(link))

    monkeypatch.setattr(shards, "_MAX_OPEN", 2)
    dataset = open_dataset(folder)
    assert is_whole(dataset)
    assert opened() == 2
    child = os.fork()
    if not child:
        os._exit(0 if is_whole(dataset) else 1)
    assert is_whole(dataset)
    assert os.waitpid(child, 0)[1] == 0
