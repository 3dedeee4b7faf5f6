"""What a stage costs is measured on the stage that is meant, and a micro-batch is chosen that fits."""

from pathlib import Path

import pytest
import torch
from tiny import data_zip, invoke, train_arguments

from stylegen.config import Config, override
from stylegen.errors import UserError
from stylegen.presets import preset, resolve
from stylegen.training import micro
from stylegen.training.distributed import ALONE, share_statistics
from stylegen.training.probe import Rehearsal, growth, held, probe, settle, settled
from stylegen.training.schedule import Stage, spans, stage_at
from stylegen.training.share import group_of
from stylegen.training.state import fresh

CPU = torch.device("cpu")


def tiny(**fields: object) -> Config:
    config = preset("small-32", (16, 16), 3, 0)
    small = {"generator.fmap_max": 8, "discriminator.fmap_max": 8, "schedule.initial_level": 0}
    small |= {"schedule.hold_kimg": 0.1, "schedule.fade_kimg": 0.1, "schedule.total_kimg": 0.6}
    for name, value in (small | fields).items():
        config = override(config, f"{name}={value}")
    return resolve(config)


def stages(config: Config) -> list[Stage]:
    return [stage for _, stage in spans(config)]


@pytest.mark.parametrize("preset_name", ["small-32", "progan-1024"])
def test_settled_stays_at_its_stage(preset_name: str) -> None:
    config = preset(preset_name, (32, 32), 3, 0)
    state = fresh(tiny(), CPU)
    for stage in stages(config):
        state.config = config
        settle(state, stage, 12)
        for later in (0, 10**6):
            there = stage_at(state.config, state.images_seen + later)
            assert (there.level, there.batch, there.alpha < 1) == (stage.level, 12, stage.alpha < 1)
    assert stage_at(settled(config, 2, 5), 10**8).alpha == 1


def test_cost_grows_with_the_stage() -> None:
    config = tiny()
    state = fresh(config, CPU)
    first, fade, hold, _, last = (probe(state, stage, ALONE, seconds=0.1) for stage in stages(config))
    assert first.parameters[0] < last.parameters[0] <= sum(p.numel() for p in state.G.parameters())
    assert fade.parameters > hold.parameters  # the level below still makes pictures of its own
    assert 4 * first.working < last.working
    assert last.seconds > 0
    assert all(cost.whole for cost in (first, fade, last))
    gradients = 4 * sum(last.parameters)
    assert last.held == held(state) + gradients


def test_micro_batches_and_workers_take_less_memory() -> None:
    config = tiny(**{"schedule.batch_default": 32})
    state, stage = fresh(config, CPU), stages(config)[-1]
    whole, parts, half = (
        probe(state, stage, crew, most, seconds=0.01).working
        for crew, most in ((ALONE, None), (ALONE, 8), (Rehearsal(1, 2), None))
    )
    assert parts < 0.5 * whole
    assert 0.4 * whole < half < 0.7 * whole


def test_what_takes_long_is_measured_on_a_group_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(**{"schedule.batch_default": 32})
    state, stage = fresh(config, CPU), stages(config)[-1]
    real = probe(state, stage, ALONE, seconds=0.01)
    monkeypatch.setattr("stylegen.training.probe.LONG_SEC", 0.0)
    multiplied = probe(state, stage, ALONE)
    assert not multiplied.whole
    assert 0.8 * real.working < multiplied.working < 3 * real.working


@pytest.mark.parametrize("fields", [{"generator.norm": "batch"}, {"discriminator.mbdisc_features": 3}])
def test_a_worker_alone_rehearses_layers_that_look_at_all(fields: dict[str, object]) -> None:
    base = preset("dcgan-64", (16, 16), 3, 0)
    for name, value in ({"generator.fmap_max": 8, "discriminator.fmap_max": 8} | fields).items():
        base = override(base, f"{name}={value}")
    state, crew = fresh(resolve(base), CPU), Rehearsal(1, 2)
    for network in (state.G, state.D):
        share_statistics(network, crew)
    assert probe(state, stages(base)[0], crew, seconds=0.01).whole


def test_growth_counts_what_is_alive_at_once() -> None:
    kept: list[torch.Tensor] = []

    def call() -> None:
        for _ in range(5):
            torch.zeros(1000).add_(1)  # gone at once
        kept.extend(torch.zeros(1000) for _ in range(3))
        kept[0].view(10, 100).mul_(2)
        x = torch.ones(1000, requires_grad=True)
        (x * 2).exp().sum().backward()  # x, x * 2, exp, then gradients

    assert 4 * 1000 * 6 <= growth(call, CPU) <= 4 * 1000 * 9
    given = torch.zeros(1000)
    assert growth(lambda: given.add_(1), CPU) == 0


@pytest.mark.parametrize(
    ("room", "count", "group", "expected"),
    [(99, 32, 4, 32), (31, 32, 4, 16), (16, 32, 4, 16), (15, 32, 4, 8), (4, 32, 4, 4), (3, 32, 4, None)]
    + [(20, 24, 4, 12), (10, 12, 4, 8), (11, 20, 4, 8), (5, 5, 5, 5), (4, 5, 5, None), (1, 7, 1, 1)],
)
def test_largest_that_fits(room: int, count: int, group: int, expected: int | None) -> None:
    def attempt(stage: Stage, n: int) -> None:
        asked.append(n)
        if n > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    asked: list[int] = []
    stage = stages(tiny())[0]
    assert micro.largest(lambda n: micro.tried(attempt)(stage, n), count, group) == expected
    assert all(n % group == 0 or n == count for n in asked)


def test_choice_by_level() -> None:
    config = tiny(**{"schedule.batch_default": 16})
    assert group_of(config) == 4
    chosen, lines = micro.choose(config, 0, ALONE, lambda stage, n: n << (2 * stage.level) <= 64)
    assert chosen == {2: 4}
    assert lines == ["Micro-batches of 4 at 16x16: 16 pictures at a time do not fit into memory"]
    of_two, _ = micro.choose(config, 0, Rehearsal(1, 2), lambda stage, n: n << (2 * stage.level) <= 127)
    assert of_two == {2: 4}
    asked: list[tuple[int, bool]] = []
    micro.choose(config, 250, ALONE, lambda stage, n: asked.append((stage.level, stage.alpha < 1)) or True)
    assert asked == [(1, False), (2, True)]  # what is over is not asked for; a fade takes most


def test_not_even_a_group_fits() -> None:
    with pytest.raises(UserError, match=r"not even 4 pictures at a time .* at 16x16 \(from 0.3 kimg on\); give"):
        micro.choose(tiny(), 0, ALONE, lambda stage, n: stage.level < 2)


def test_where_samples_mix_the_batch_stays_whole() -> None:
    config = resolve(preset("dcgan-64", (16, 16), 3, 0))
    assert micro.choose(config, 0, ALONE, lambda stage, n: True) == ({}, [])
    chosen, (line,) = micro.choose(config, 0, ALONE, lambda stage, n: False)
    assert chosen == {}
    assert "64 pictures at a time may not fit" in line
    assert "batch norm needs the whole batch" in line


def test_estimates_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config, measured = tiny(), list[int]()
    sizes = {0: 1e6, 1: 3e6, 2: 9e6}  # bytes a sample

    def fake(state: object, stage: Stage) -> float:
        measured.append(stage.level)
        return sizes[stage.level] / micro.CPU_SLACK

    def chosen(room: float) -> dict[int, int]:
        measured.clear()
        monkeypatch.setattr(micro, "available", lambda: int(room))
        return micro.choose(config, 0, ALONE, micro.fitting(config, CPU, ALONE))[0]

    monkeypatch.setattr(micro, "working", fake)
    assert (chosen(1e10), measured) == ({}, [0])  # by far: levels above are not measured
    assert (chosen(1e9), measured) == ({}, [0, 2])  # 16 samples of level 1 take 80 MB at most
    assert chosen(120e6) == {2: 8}
    assert chosen(50e6) == {1: 8, 2: 4}
    with pytest.raises(UserError, match="not even 4 pictures"):
        chosen(30e6)
    assert micro.fitting(config, CPU, ALONE, neighbours=100)(stages(config)[2], 4) is False


def test_auto_trains_as_a_number_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_zip(tmp_path / "noise.zip")
    runs = [tmp_path / name for name in ("auto", "four")]
    monkeypatch.setattr(micro, "fitting", lambda *_: lambda stage, n: n <= 4)
    invoke(train_arguments(data, runs[0], "--micro-batch", "auto", kimg=0.12))
    invoke(train_arguments(data, runs[1], "--micro-batch", 4, kimg=0.12))
    states = [(run / "state.ckpt").read_bytes() for run in runs]
    assert states[0] == states[1]
    log = (runs[0] / "log.txt").read_text()
    assert "Micro-batches of 4 at 4x4: 8 pictures at a time do not fit" in log
    monkeypatch.setattr(micro, "fitting", lambda *_: lambda stage, n: stage.level < 1)
    result = invoke(train_arguments(data, tmp_path / "none", "--micro-batch", "auto", kimg=0.12), 1)
    assert "not even 4 pictures" in result.stderr
    assert not list((tmp_path / "none").glob("*.ckpt"))
