"""Where the level cache is kept, how much room it takes, and what happens where there is none."""

import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import data_zip

from stylegen import memory
from stylegen.training import levels
from stylegen.training.build import build_dataset
from stylegen.training.dataset import Loader, open_dataset

SIZES = {"16x16": 40 * 3 * 256, "8x8": 40 * 3 * 64, "4x4": 40 * 3 * 16}


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "stylegen"


def batches(data: Path, cache: str = "auto") -> list[torch.Tensor]:
    """A batch of every level."""
    options = {"base": (4, 4), "levels": 3, "seed": 0, "mirror": False, "cond": False, "workers": 0}
    with Loader(open_dataset(data), **options, cache=cache) as loader:  # type: ignore[arg-type]
        return [loader.batch(0, 16, level)[0] for level in range(3)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def kept(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.levels-*/*"))


def test_none_and_a_folder_of_ones_own(tmp_path: Path, user_cache: Path) -> None:
    (tmp_path / "here").mkdir()
    data = data_zip(tmp_path / "here" / "a.zip")
    expected = batches(data, "none")
    assert not kept(tmp_path / "here") and not user_cache.exists()
    assert same(batches(data, str(tmp_path / "there" / "deep")), expected)
    assert kept(tmp_path / "there" / "deep") == sorted(SIZES)
    assert not kept(tmp_path / "here") and not user_cache.exists()
    assert same(batches(data), expected)
    assert kept(tmp_path / "here") == sorted(SIZES)


@pytest.mark.parametrize("left", [["16x16"], ["16x16", "8x8"], list(SIZES)])
def test_without_room_the_largest_levels_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[str]
) -> None:
    """On a disk that has room for some of them, and with no memory to speak of."""
    data = data_zip(tmp_path / "a.zip")
    expected = batches(data, "none")
    room = 2**20 + sum(size for name, size in SIZES.items() if name not in left)
    if left == list(SIZES):
        room = 0
    monkeypatch.setattr(levels.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=room))
    monkeypatch.setattr(levels, "available", lambda: 0)
    message = rf"{', '.join(left)} are not in the level cache \(.* MB free of .*decodes pictures of 16x16.*--cache DIR"
    with pytest.warns(UserWarning, match=message):
        assert same(batches(data), expected)
    assert kept(tmp_path) == sorted(set(SIZES) - set(left))
    monkeypatch.setattr(levels, "_build", lambda *_: pytest.fail("built again"))
    with pytest.warns(UserWarning, match=", ".join(left)):
        assert same(batches(data), expected)


def test_the_cache_of_a_smaller_run_is_not_taken_for_all_there_can_be(tmp_path: Path) -> None:
    data = data_zip(tmp_path / "a.zip")
    options = {"base": (4, 4), "levels": 2, "seed": 0, "mirror": False, "cond": False, "workers": 0}
    Loader(open_dataset(data, size=(8, 8)), **options).close()  # type: ignore[arg-type]
    assert kept(tmp_path) == ["4x4", "8x8"]
    batches(data)
    assert kept(tmp_path) == ["16x16", "4x4", "4x4", "8x8", "8x8"]


def test_memory_takes_what_fits_into_a_quarter_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_zip(tmp_path / "a.zip")
    expected = batches(data, "none")
    monkeypatch.setattr(levels.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=0))
    for free, said in ((4 * sum(SIZES.values()), "kept in memory"), (4 * sum(SIZES.values()) - 1, "16x16 are not in")):
        monkeypatch.setattr(levels, "available", lambda free=free: free)
        with pytest.warns(UserWarning, match=said):
            assert same(batches(data), expected)


def test_building_takes_no_more_memory_for_more_pictures(tmp_path: Path) -> None:
    """The level cache and a pass over the data: 10 MB of pictures in 5 MB of memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (800, 64, 64, 3), np.uint8)
    np.save(tmp_path / "many.npy", pixels)
    build_dataset(tmp_path / "many.npy", tmp_path / "many", shards=10)
    del pixels
    dataset = open_dataset(tmp_path / "many")
    options = {"base": (4, 4), "levels": 5, "seed": 0, "mirror": False, "cond": False, "workers": 0}
    peaks = {}
    for cache in ("none", "auto"):
        tracemalloc.start()
        with Loader(dataset, **options, shuffle_shards=2, cache=cache) as loader:  # type: ignore[arg-type]
            for step in range(20 if cache == "none" else 2):
                loader.batch(16 * step, 16, 4)
        peaks[cache] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(peaks.values()) < 5e6, peaks


def test_available_memory_is_below_what_is_built_in() -> None:
    free = memory.available()
    assert isinstance(free, int)
    assert free >= 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        total = 1024 * int(meminfo.read_text().split()[1])
        assert 0 < free < total
