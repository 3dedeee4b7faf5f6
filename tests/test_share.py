"""A batch shared out among workers and micro-batches: every sample once, in the groups of the whole batch."""

import itertools
from dataclasses import replace

import pytest
import torch

from stylegen import presets
from stylegen.config import Config, override
from stylegen.errors import UsageError
from stylegen.networks.layers import minibatch_stddev
from stylegen.training.share import Share, check, group_of, shares

SIZES = [  # total, group, workers
    (total, group, workers)
    for total, group, workers in itertools.product((1, 2, 4, 6, 8, 12, 16, 30, 64), (1, 2, 3, 4, 8), (1, 2, 3, 5, 8))
    if total % min(group, total) == 0 and total // min(group, total) >= workers
]
MOST = (None, 1, 2, 3, 5, 8, 1000)


def split(total: int, group: int, workers: int, most: int | None) -> list[list[Share]]:
    return [shares(total, group, worker, workers, most) for worker in range(workers)]


@pytest.mark.parametrize("most", MOST)
def test_every_sample_once(most: int | None) -> None:
    """Each worker has some; all have as many groups but for one; micro-batches are whole groups, and so even, too."""
    for total, group, workers in SIZES:
        each = split(total, group, workers, most)
        parts = list(itertools.chain(*each))
        assert sorted(itertools.chain(*(part.indices for part in parts))) == list(range(total))
        assert sum(part.weight for part in parts) == pytest.approx(1)
        size = min(group, total)
        held = [sum(len(part.indices) for part in own) for own in each]
        assert max(held) - min(held) <= size
        for own in each:
            lengths = [len(part.indices) for part in own]
            assert max(lengths) <= max(most or total, size) and max(lengths) - min(lengths) <= size
            assert all(length % size == 0 for length in lengths)


@pytest.mark.parametrize("most", MOST)
def test_minibatch_stddev_is_that_of_the_whole_batch(most: int | None) -> None:
    for total, group, workers in SIZES:
        x = torch.randn(total, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(total))
        whole = minibatch_stddev(x, group, 2)
        for part in itertools.chain(*split(total, group, workers, most)):
            torch.testing.assert_close(minibatch_stddev(part.of(x), group, 2), part.of(whole), rtol=1e-13, atol=0)


def test_groups_matter() -> None:
    """What the test above would find: a split into runs of samples changes what they are compared with."""
    x = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    assert not minibatch_stddev(x[:4], 4)[:, -1].allclose(minibatch_stddev(x, 4)[:4, -1])


def test_a_batch_that_its_groups_do_not_divide_stays_whole() -> None:
    assert shares(10, 4) == [Share(10, tuple(range(10)))]


def test_a_share_of_rows() -> None:
    rows = torch.arange(12).reshape(6, 2)
    assert Share(6, (1, 4)).of(rows).tolist() == [[2, 3], [8, 9]]
    assert Share(6, (1, 4)).weight == pytest.approx(1 / 3)
    assert Share(6, tuple(range(6))).of(rows) is rows


def configured(*settings: str, preset: str = "small-32") -> Config:
    config = presets.preset(preset, (16, 16), 3, 0)
    for setting in settings:
        config = override(config, setting)
    return presets.resolve(config)


@pytest.mark.parametrize(
    ("settings", "preset", "group"),
    [
        ([], "small-32", 4),
        (["discriminator.mbstd_group=2"], "small-32", 2),
        (["discriminator.mbstd_group=0"], "small-32", 1),
        (["discriminator.mbstd_features=0"], "small-32", 1),
        ([], "dcgan-64", 1),
    ],
)
def test_the_group(settings: list[str], preset: str, group: int) -> None:
    assert group_of(configured(*settings, preset=preset)) == group


@pytest.mark.parametrize(
    ("settings", "workers", "parts"),
    [
        (["schedule.batch_default=10"], 2, ["a batch of 10 cannot be split", "groups of 4", "--batch"]),
        (["schedule.batch_default=8"], 3, ["3 workers are too many for a batch of 8: it has 2 groups of 4"]),
        (["schedule.batch=8:4"], 2, ["2 workers are too many for a batch of 4: it has 1 groups of 4"]),
        (["schedule.batch_default=6", "discriminator.mbstd_group=0"], 7, ["7 workers are too many", "6 groups of 1"]),
    ],
)
def test_too_many_workers_are_refused(settings: list[str], workers: int, parts: list[str]) -> None:
    """At every level of the run, before it starts; alone, any batch is fine."""
    config = configured(*settings)
    with pytest.raises(UsageError) as error:
        check(config, workers, micro=None)
    assert not [part for part in parts if part not in str(error.value)], error.value
    check(config, 1, micro=None)


@pytest.mark.parametrize(
    ("settings", "preset", "what"),
    [
        ([], "dcgan-64", "batch norm"),
        (["discriminator.mbdisc_features=4"], "small-32", "minibatch discrimination"),
        (["loss.feature_matching=1"], "small-32", "feature matching"),
    ],
)
def test_micro_batches_are_refused_where_the_whole_batch_matters(settings: list[str], preset: str, what: str) -> None:
    config = configured(*settings, preset=preset)
    with pytest.raises(
        UsageError, match=rf"^--micro-batch: {what} looks at the whole batch at once.*leave the option out"
    ):
        check(config, 1, micro=4)
    check(config, 2, micro=None)


def test_what_fits_is_accepted() -> None:
    check(configured(), 4, micro=4)
    layer_norm = configured(preset="dcgan-64")
    g, d = (replace(part, norm="layer") for part in (layer_norm.generator, layer_norm.discriminator))
    check(replace(layer_norm, generator=g, discriminator=d), 2, micro=4)


def test_less_than_a_group_at_a_time_is_refused() -> None:
    with pytest.raises(UsageError, match="--micro-batch 3 is less than a group of minibatch stddev, 4"):
        check(configured(), 1, micro=3)
