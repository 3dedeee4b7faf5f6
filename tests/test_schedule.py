import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stylegen.config import Config, ScheduleConfig, from_dict, override, to_dict
from stylegen.errors import UserError
from stylegen.presets import PRESETS, default_gamma, preset, resolve, with_loss
from stylegen.training import losses
from stylegen.training.schedule import describe, due, ends_early, phase_of, stage_at, total_images
from stylegen.validation import validate

GOLDEN = Path(__file__).parent / "golden"
SMALL = {"initial_level": 0, "hold_kimg": 8.0, "fade_kimg": 8.0, "batch_default": 32, "lr_default": 0.002}


def small(**changes: object) -> Config:
    config = preset("small-32", (32, 32), 3, 0)
    schedule = ScheduleConfig(**(SMALL | changes))
    return dataclasses.replace(config, schedule=schedule)


def growth(config: Config, images_seen: int) -> tuple[int, float]:
    stage = stage_at(config, images_seen)
    return stage.level, stage.alpha


def official(run: str, resolution: int) -> Config:
    size = (resolution, resolution)
    if run.startswith("v1"):
        config = preset("progan-1024", size, 3, 0)
        return dataclasses.replace(
            config,
            schedule=dataclasses.replace(
                config.schedule,
                hold_kimg=800.0,
                fade_kimg=800.0,
                batch={256: 14, 512: 6, 1024: 3},
                batch_default=16,
                lr={},
            ),
        )
    name = "progan-1024" if run.startswith("v2") else "stylegan-1024"
    return preset(name, size, 3, 0, gpus=int(run.removeprefix("v2-")[0]))


RUNS = ["1gpu", "2gpu", "4gpu", "8gpu", "v1-1gpu", "v2-1gpu", "v2-2gpus", "v2-4gpus", "v2-8gpus"]


@pytest.mark.parametrize("resolution", [128, 256, 1024])
@pytest.mark.parametrize("run", RUNS)
def test_official_schedules(run: str, resolution: int) -> None:
    golden = np.load(GOLDEN / ("sched_progan.npz" if run.startswith("v") else "sched_sg1.npz"))
    config = official(run, resolution)
    stages = [stage_at(config, int(seen)) for seen in golden["cur_nimg"]]
    columns = "lod", "resolution", "minibatch", "G_lrate", "D_lrate", "tick_kimg"
    expected = {name: golden[f"{run}/res{resolution}/{name}"] for name in columns}
    lod = [config.generator.levels - 1 - stage.level + (1 - stage.alpha) for stage in stages]
    np.testing.assert_allclose(lod, expected["lod"], rtol=0, atol=1e-9)
    for side in (0, 1):
        np.testing.assert_array_equal([stage.resolution[side] for stage in stages], expected["resolution"])
    np.testing.assert_array_equal([stage.batch for stage in stages], expected["minibatch"])
    np.testing.assert_array_equal([stage.lr for stage in stages], expected["G_lrate"])
    np.testing.assert_array_equal([stage.lr for stage in stages], expected["D_lrate"])
    np.testing.assert_array_equal([stage.tick for stage in stages], expected["tick_kimg"] * 1000)
    # the official code resets its optimizers where floor or ceil of lod changes
    edges = np.stack([np.floor(expected["lod"]), np.ceil(expected["lod"])])
    grid = slice(0, 2501)  # in order; random points follow
    phases = [phase_of(config, int(seen)) for seen in golden["cur_nimg"][grid]]
    np.testing.assert_array_equal(np.diff(phases) != 0, (np.diff(edges[:, grid]) != 0).any(axis=0))


def test_a_level_switches_with_the_first_image_of_its_fade() -> None:
    config = small(hold_kimg=1.0, fade_kimg=2.0)
    assert [stage_at(config, seen).level for seen in (0, 1000, 1001, 2999, 3000, 4000, 4001)] == [0, 0, 1, 1, 1, 1, 2]
    assert [stage_at(config, seen).alpha for seen in (1000, 1001, 2000, 2999, 3000)] == [1, 0.0005, 0.5, 0.9995, 1]
    assert [phase_of(config, seen) for seen in (1000, 1001, 2999, 3000, 4000, 4001)] == [0, 1, 1, 2, 2, 3]
    assert stage_at(config, 10**9).resolution == (32, 32)


def test_growth_without_hold_or_without_fade() -> None:
    sudden = small(hold_kimg=1.0, fade_kimg=0.0)
    assert [growth(sudden, seen) for seen in (999, 1000, 2000)] == [(0, 1), (1, 1), (2, 1)]
    assert phase_of(sudden, 999) != phase_of(sudden, 1000)
    steady = small(hold_kimg=0.0, fade_kimg=1.0)
    assert [growth(steady, seen) for seen in (0, 500, 1500)] == [(0, 1), (1, 0.5), (2, 0.5)]
    full = small(hold_kimg=0.0, fade_kimg=0.0, initial_level=3)
    assert stage_at(full, 0) == stage_at(full, 5000)
    assert stage_at(full, 0).resolution == (32, 32)


def test_a_run_that_ends_before_it_has_grown() -> None:
    config = small(hold_kimg=1.0, fade_kimg=2.0, total_kimg=9.0)
    assert ends_early(config) == ""
    shorter = override(config, "schedule.total_kimg=7")
    assert ends_early(shorter).startswith("the run ends at 7 kimg, with 16x16 settled; 32x32 settles at 9 (")
    assert ends_early(override(shorter, "schedule.initial_level=3")) == ""


def test_due() -> None:
    assert [n for n in range(0, 100, 8) if due(20, n, n + 8)] == [16, 32, 56, 72, 96]
    assert due(20, 19, 20)
    assert not due(20, 20, 27)
    assert not due(20, 20, 39)
    assert due(2.5, 7, 8)


def test_batch_is_a_multiple_of_any_number_of_gpus() -> None:
    config = preset("stylegan-1024", (1024, 1024), 3, 0, gpus=3)  # the table of 2
    assert [stage_at(config, n).batch for n in (0, 25_000_000)] == [255, 6]
    assert stage_at(preset("stylegan-1024", (1024, 1024), 3, 0, gpus=100), 25_000_000).batch == 100
    capped = small(batch_default=32, batch_max_per_gpu={16: 6, 32: 3}, gpus=2)
    assert [stage_at(capped, n).batch for n in (0, 32_000, 400_000)] == [32, 12, 6]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (256, 512), (2048, 2048)])
@pytest.mark.parametrize(("channels", "label_size"), [(3, 0), (1, 10)])
def test_presets_are_valid_and_survive_json(name: str, size: tuple[int, int], channels: int, label_size: int) -> None:
    config = validate(resolve(preset(name, size, channels, label_size)))
    losses.check(config.loss)
    assert from_dict(Config, to_dict(config)) == config
    last = stage_at(config, total_images(config))
    assert last.resolution == size
    assert config.generator.channels == channels


def test_gamma_is_the_rule_where_preset_and_loss_give_none() -> None:
    rule = 0.0002 * 32 * 32 / 64
    progan = preset("progan-1024", (32, 32), 3, 0)
    assert resolve(progan).loss.r1_gamma == 0  # it has a penalty of its own
    assert resolve(with_loss(progan, "hinge")).loss.r1_gamma == pytest.approx(rule)
    assert resolve(with_loss(progan, "wgan")).loss.r1_gamma == 0
    both = resolve(with_loss(progan, "rpgan")).loss
    assert both.r1_gamma == both.r2_gamma == pytest.approx(rule)
    small_32 = preset("small-32", (32, 32), 3, 0)
    assert resolve(with_loss(small_32, "rpgan")).loss.r2_gamma == small_32.loss.r1_gamma > 0


def test_bad_presets() -> None:
    with pytest.raises(UserError, match="unknown preset 'small'; accepted: stylegan-1024, progan-1024, small-32"):
        preset("small", (32, 32), 3, 0)
    with pytest.raises(UserError, match="gpus is 0"):
        preset("small-32", (32, 32), 3, 0, gpus=0)
    with pytest.raises(UserError, match="cannot grow"):
        preset("small-32", (33, 32), 3, 0)


def test_default_gamma_of_stylegan2_ada() -> None:
    assert default_gamma((1024, 1024), 32) == pytest.approx(6.5536)
    assert default_gamma((32, 64), 16) == pytest.approx(0.0256)


def test_describe_has_a_row_for_every_phase() -> None:
    table = [line.split() for line in describe(small(hold_kimg=1.5, fade_kimg=2.0, total_kimg=100.0)).splitlines()]
    assert table[0] == ["level", "resolution", "growth", "from", "kimg", "to", "kimg", "batch", "lr"]
    assert [row[2] for row in table[1:]] == ["hold", "fade", "hold", "fade", "hold", "fade", "hold"]
    assert table[2] == ["1", "8x8", "fade", "1.5", "3.5", "32", "0.002"]
    assert table[-1] == ["3", "32x32", "hold", "10.5", "100", "32", "0.002"]
    short = [line.split() for line in describe(small(hold_kimg=8.0, total_kimg=9.0)).splitlines()]
    assert [row[3:5] for row in short[1:]] == [["0", "8"], ["8", "9"]]
