"""The order of pictures: every one once an epoch, few shards at a time, well mixed."""

import tracemalloc

import numpy as np
import pytest

from stylegen.training.order import order

LENGTHS = [7, 0, 30, 1, 12, 25, 18, 9, 40, 3]
STARTS = np.cumsum([0, *LENGTHS])
COUNT = sum(LENGTHS)


def epoch(number: int, window: int, seed: int = 5, starts: np.ndarray = STARTS) -> list[int]:
    at, count = order(seed, starts, window), int(starts[-1])
    return [at(number * count + position) for position in range(count)]


def test_a_set_without_shards_keeps_the_order_that_it_always_had() -> None:
    found = order(3, np.array([0, 11]), 16)
    assert [found(i) for i in range(22)] == [
        *(0, 5, 10, 7, 8, 3, 6, 1, 2, 9, 4),
        *(4, 8, 5, 2, 10, 3, 6, 9, 1, 0, 7),
    ]


@pytest.mark.parametrize("window", [0, 1, 2, 3, 4, 9, 10, 100])
def test_every_picture_once_an_epoch(window: int) -> None:
    epochs = [epoch(number, window) for number in range(3)]
    assert all(sorted(found) == list(range(COUNT)) for found in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epoch(0, window, seed=6) != epochs[0]


@pytest.mark.parametrize("window", [0, 3])
def test_an_item_depends_on_nothing_but_its_number(window: int) -> None:
    expected = epoch(1, window)
    at = order(5, STARTS, window)
    for position in np.random.default_rng(0).permutation(COUNT).tolist():
        assert at(COUNT + position) == expected[position]


def test_no_window_where_there_are_no_more_shards_than_it_has() -> None:
    assert epoch(2, len(LENGTHS)) == epoch(2, 0) == epoch(2, 1000)
    assert epoch(2, len(LENGTHS) - 1) != epoch(2, 0)


def test_a_window_reads_few_shards_and_mixes_them() -> None:
    """64 shards of 50 in windows of 8: each shard is opened once, and any 32 neighbours come from 6 shards and more."""
    starts, window, size = np.arange(65) * 50, 8, 50
    shards = np.array(epoch(0, window, starts=starts)) // size
    assert len(np.unique(shards[: window * size])) == window
    groups = shards.reshape(-1, window * size)
    assert len({frozenset(group.tolist()) for group in groups}) == 8
    assert all(len(set(group.tolist())) == window for group in groups)  # no shard lies in two groups
    inside = [len(set(group[k : k + 32].tolist())) for group in groups for k in range(0, window * size - 31, 16)]
    assert np.mean(inside) > 7.5  # 7.9 expected of draws without a pattern
    assert min(inside) >= 6
    same = np.mean(np.diff(groups, axis=1) == 0)
    assert same == pytest.approx(1 / window, abs=0.03)  # the next picture is of the same shard as often as by chance
    full = np.array(epoch(0, 0, starts=starts)) // size
    assert len(set(full[: window * size].tolist())) > 60  # what the window avoids


def test_groups_are_equally_large_though_shards_are_left_over() -> None:
    """17 shards in windows of 16: 9 and 8, not 16 and a last one that is hardly mixed."""
    shards = np.array(epoch(0, 16, starts=np.arange(18) * 10)) // 10
    assert len(set(shards[:90].tolist())) == 9
    assert not set(shards[:90].tolist()) & set(shards[90:].tolist())


def test_memory_is_that_of_a_window() -> None:
    """Ten million pictures: a permutation of all of them would take 80 MB."""
    starts = np.arange(1001) * 10_000
    tracemalloc.start()
    at = order(0, starts, 8)
    found = {at(position) for position in (0, 5_000_000, 9_999_999, 17_000_000)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 4
    assert peak < 8e6
