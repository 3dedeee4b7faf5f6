"""Figures of a run's health, and alarms: none in runs that were well, one in those that were not."""

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import data_zip, invoke, rows, train_arguments

from stylegen import presets
from stylegen.config import Config
from stylegen.presets import LOSSES
from stylegen.training.alarms import FATAL, RULES, Judge, alarms, calmer
from stylegen.training.health import diversity, relative_distance
from stylegen.training.state import saved_config

RUNS = sorted((Path(__file__).parent / "golden" / "health").glob("*.jsonl"))
PICTURES = 1000


def config_of(preset: str = "small-32", size: int = 32, channels: int = 3, **more: object) -> Config:
    config = presets.preset(preset, (size, size), channels, 0)
    if loss := more.get("loss"):
        config = presets.with_loss(config, str(loss))
    if "gamma" in more:
        config = replace(config, loss=replace(config.loss, r1_gamma=float(str(more["gamma"]))))
    return presets.resolve(config)


def course(count: int = 40, **changes: dict[int, float]) -> list[dict]:
    """Rows of a run that is well, 1 kimg each, but for `column={row: value}`; a double underscore is a slash."""
    made = []
    for i in range(count):
        row = {"kimg": i + 1.0, "images_seen": 1000 * (i + 1), "level": 3, "resolution": "32x32", "alpha": 1.0}
        row |= {"batch": 16, "lr": 0.003, "loss/d": 0.8, "loss/g": 1.5, "scores/real": 0.9, "scores/fake": -0.9}
        row |= {"signs/real": 0.7, "health/diversity": 0.9, "health/grad_norm_d": 2.0, "health/grad_norm_g": 3.0}
        made.append(row | {name.replace("__", "/"): values[i] for name, values in changes.items() if i in values})
    return made


def span(first: int, last: int, value: float) -> dict[int, float]:
    return dict.fromkeys(range(first, last), value)


def raised(made: list[dict], **config: object) -> list[tuple[str, float]]:
    return [(alarm.kind, alarm.kimg) for alarm in alarms(made, config_of(**config), PICTURES)]  # type: ignore[arg-type]


def test_diversity_is_what_it_says() -> None:
    draw = np.random.default_rng(0)
    fakes, reals = draw.uniform(-1.2, 1.2, (6, 3, 32, 64)), draw.uniform(-1, 1, (6, 3, 32, 64))

    def logs(images: np.ndarray) -> list[float]:
        small = images.clip(-1, 1).reshape(6, 3, 16, 2, 32, 2).mean((3, 5))
        small = small - small.mean((2, 3), keepdims=True)
        return [math.log(np.linalg.norm(small[i] - small[j])) for i, j in combinations(range(6), 2)]

    expected = math.exp(np.mean(logs(fakes)) - np.mean(logs(reals)))
    assert diversity(torch.tensor(fakes), torch.tensor(reals)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1.05


def test_diversity_of_collapsed_pictures() -> None:
    draw = torch.Generator().manual_seed(0)
    reals = torch.rand(32, 3, 16, 16, generator=draw) * 2 - 1
    one = reals[:1].repeat(32, 1, 1, 1)
    assert diversity(reals, reals) == pytest.approx(1)
    assert diversity(one, reals) < 0.05
    assert diversity(one * 0.5 + torch.rand(32, 3, 1, 1, generator=draw) * 0.5, reals) < 0.05, "colour is no variety"
    assert diversity(reals[:3].repeat(11, 1, 1, 1)[:32], reals) < 0.4, "a mean of distances would be 0.65"
    assert 0.7 < diversity(reals[:16].repeat(2, 1, 1, 1), reals) < 0.95
    assert not math.isfinite(diversity(reals, one))
    assert diversity(reals[:, :1, :4, :7], reals[:, :1, :4, :7]) == pytest.approx(1)


def test_relative_distance() -> None:
    ours, theirs = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    for network, weight, bias in ((ours, [3.0, 4.0], 0.0), (theirs, [3.0, 5.0], 7.0)):
        network.load_state_dict({"weight": torch.tensor([weight]), "bias": torch.tensor([bias])})
    assert relative_distance(ours, theirs) == pytest.approx(1 / 5), "a bias of 0 says nothing"
    assert relative_distance(theirs, ours) == pytest.approx((1 / math.sqrt(34) + 1) / 2)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_real_runs(path: Path) -> None:
    """The first line says how the run was set up and what its alarms are; the others are its rows."""
    head, *made = map(json.loads, path.read_text().splitlines())
    pictures, expected = head.pop("pictures"), head.pop("alarms")
    found = alarms(made, config_of(**head), pictures)
    assert [[alarm.kind, alarm.kimg] for alarm in found] == expected
    assert not any("nan" in alarm.sentence for alarm in found)
    older = [{name: value for name, value in row.items() if not name.startswith("health/")} for row in made]
    assert {alarm.kind for alarm in alarms(older, config_of(**head), pictures)} <= {kind for kind, _ in expected}


def test_real_runs_are_of_both_kinds() -> None:
    heads = {path.stem: json.loads(path.read_text().partition("\n")[0]) for path in RUNS}
    broken = [f"broken-{seed}" for seed in range(3)]
    assert all(kimg <= 20 for name in broken for _, kimg in heads[name]["alarms"]) and heads["demo"]["alarms"] == []
    assert all(heads[name]["alarms"] for name in broken)
    assert {head.get("loss") for head in heads.values() if not head["alarms"]} >= {*LOSSES} - {"nonsaturating"}


TROUBLE = {
    "collapse": {"health__diversity": 0.07},
    "blow-up": {"loss__g": 400.0},
    "saturation": {"loss__d": 0.001},
    "overfitting": {"signs__real": 0.99},
}


@pytest.mark.parametrize("kind", RULES)
def test_raised_once_until_it_recovers(kind: str) -> None:
    ((name, bad),) = TROUBLE[kind].items()
    bad_rows = span(22, 50, bad) | span(75, 100, bad)
    assert [k for k, _ in raised(course(120, **{name: bad_rows}))] == [kind, kind]
    assert [k for k, _ in raised(course(120, **{name: bad_rows | span(52, 75, bad)}))] == [kind], "2 rows do not count"
    assert raised(course(120, **{name: dict.fromkeys(range(22, 120, 5), bad)})) == [], "nor do single ones"


@pytest.mark.parametrize("kind", FATAL)
def test_raised_at_the_third_row(kind: str) -> None:
    ((name, bad),) = TROUBLE[kind].items()
    made = course(**{name: span(22, 40, bad)})
    judge = Judge(config_of(), PICTURES)
    found = [(judge(row), judge.well, list(judge.active)) for row in made]
    assert [bool(new) for new, _, _ in found].index(True) == 24
    assert [well for _, well, _ in found] == [i < 22 for i in range(40)]
    assert found[-1][2] == [kind]
    (alarm,) = found[24][0]
    seen = {
        "collapse": "differ 7% as much from each other as real ones do (90% at 1 kimg)",
        "blow-up": "are at 400",
    }
    assert (alarm.kind, alarm.kimg, alarm.images_seen) == (kind, 25.0, 25000) and seen[kind] in alarm.sentence
    assert "a lower --lr (now 0.003), or a higher --gamma (now 5)" in alarm.sentence and "\n" not in alarm.sentence


def test_gradients_that_grow() -> None:
    assert raised(course(health__grad_norm_g=span(20, 40, 5e3))) == [("blow-up", 23.0)]
    assert raised(course(health__grad_norm_g=span(0, 3, 5e6))) == [], "large at first"
    assert raised(course(health__grad_norm_d=span(20, 40, 5e3)), loss="wgan") == [("blow-up", 23.0)]


def test_untrained_networks_have_no_diversity() -> None:
    slow = {i: 0.05 + 0.01 * i for i in range(31)}
    assert raised(course(60, health__diversity=slow | span(31, 60, 0.3))) == [("collapse", 34.0)], "2000 steps of 16"
    assert raised(course(60, health__diversity=slow)) == []
    late = [row | {"batch": 64} for row in course(60, health__diversity=span(0, 60, 0.2))]
    assert raised(late) == []
    assert raised(course(60, health__diversity=span(0, 60, 0.2)), loss="wgan") == [], "five D steps a G step"


def test_overfitting_takes_a_small_set() -> None:
    made = course(60, signs__real=span(0, 60, 0.99))
    assert raised(made) == [("overfitting", 22.0)], "20 epochs of 1000 pictures"
    assert alarms(made, config_of(), 60000) == []
    assert raised(made, loss="lsgan") == raised(made, loss="rpgan") == raised(made, loss="wgan-gp") == []
    (alarm,) = alarms(made, config_of(), PICTURES)
    assert "99.5% of the real pictures" in alarm.sentence and "--mirror" in alarm.sentence
    training = replace(config_of().training, mirror=True, augment=("color",))
    (alarm,) = alarms(made, replace(config_of(), training=training), PICTURES)
    assert "--" not in alarm.sentence.replace("--out", "") and "more pictures" in alarm.sentence


@pytest.mark.parametrize("loss", LOSSES)
def test_scales_of_scores(loss: str) -> None:
    """Wasserstein scores have no zero, and with clipped weights no scale; differences of relativistic ones no zero."""
    shift = {"scores__real": span(0, 40, -1e6 + 10), "scores__fake": span(0, 40, -1e6)}
    free = loss in ("wgan", "wgan-gp", "rpgan")
    assert raised(course(**shift), loss=loss) == [] or not free
    large = course(loss__d=span(0, 40, -300.0), loss__g=span(0, 40, 300.0), **shift)
    assert (raised(large, loss=loss) == []) == (loss in ("wgan", "wgan-gp"))
    huge = course(loss__d=span(0, 40, -4e6), loss__g=span(0, 40, 8e6), **shift)
    assert (raised(huge, loss=loss) == []) == (loss == "wgan")


def test_growth_and_gaps_are_no_trouble() -> None:
    """Statistics that jump for two rows where a level begins, missing or NaN columns, runs of few rows."""
    made = course(60, loss__g=span(0, 2, 900.0) | span(20, 22, 900.0), health__diversity=span(20, 22, 0.1))
    for i, row in enumerate(made):
        row["level"] = i // 20
    made[18]["loss/g"] = made[19]["loss/g"] = 900.0  # the end of a level and the beginning of the next do not add up
    assert raised(made) == []
    old = [{name: value for name, value in row.items() if not name.startswith("health/")} for row in course()]
    assert raised(old) == [] and raised(old[:1]) == [] and raised([]) == []
    blank = dict.fromkeys(("loss/d", "loss/g", "scores/real", "signs/real", "health/diversity"), math.nan)
    assert raised([row | blank for row in course()]) == []
    bare = [{k: v for k, v in row.items() if "/" not in k} for row in course()]
    assert raised(bare) == []


def test_calmer() -> None:
    config = config_of("stylegan-1024", 64)
    after = calmer(config)
    assert after.loss.r1_gamma == 20 and after.schedule.lr_default == config.schedule.lr_default / 2
    assert after.schedule.lr == {level: lr / 2 for level, lr in config.schedule.lr.items()}
    assert replace(after, loss=config.loss, schedule=config.schedule) == config
    none = calmer(config_of(gamma=0))
    assert (
        none.loss.r1_gamma == presets.default_gamma((32, 32), 16)
        and calmer(none).loss.r1_gamma == 2 * none.loss.r1_gamma
    )
    assert calmer(config_of(loss="wgan-gp")).loss == config_of(loss="wgan-gp").loss
    assert calmer(config_of(loss="rpgan")).loss.r2_gamma == 2 * config_of(loss="rpgan").loss.r2_gamma


def told(run: Path) -> list[dict]:
    path = run / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


BREAK = ["--gamma", 0, "--lr", 0.5, "--hold-kimg", 9]


def test_a_run_that_breaks(tmp_path: Path) -> None:
    """It is told and goes on; asked to, it stops, saved, and may be resumed."""
    data, warned, stopped = data_zip(tmp_path / "noise.zip"), tmp_path / "warned", tmp_path / "stopped"
    result = invoke(train_arguments(data, warned, *BREAK, kimg=0.6))
    (alarm, *_) = told(warned)
    assert alarm["kind"] == "blow-up" and alarm["images_seen"] == 1000 * alarm["kimg"] < 600
    line = f"Alarm at {alarm['kimg']:g} kimg: {alarm['sentence']}"
    assert line in result.stderr and line in (warned / "log.txt").read_text()
    result = invoke(train_arguments(data, stopped, *BREAK, "--on-collapse", "stop", kimg=0.6), code=1)
    assert f"Error: {alarm['sentence']}" in result.stderr and told(stopped) == [alarm]
    after = alarm["images_seen"] + 8  # a step later, when all workers know
    assert saved_config(stopped / "state.ckpt")[1] == after == rows(stopped)[-1]["images_seen"]
    invoke(["train", str(data), "--out", str(stopped), "--resume", "--on-collapse", "warn"])
    assert told(stopped)[0] == alarm and rows(stopped)[-1]["images_seen"] == 600
    invoke(["train", str(data), "--out", str(stopped), "--resume", "--on-collapse", "pray"], code=2)


def test_a_run_that_goes_back(tmp_path: Path) -> None:
    """To a state of before the trouble, more calmly, three times; a resumed run stays calm."""
    data, run = data_zip(tmp_path / "noise.zip"), tmp_path / "run"
    often = ["--on-collapse", "rollback", "--snapshot-kimg", 0.02, "--set", "schedule.lr=8:2", "--gamma", 0]
    arguments = train_arguments(data, run, *often, kimg=0.4)
    result = invoke(arguments, code=1)
    back = [line for line in (run / "log.txt").read_text().splitlines() if "Back from" in line]
    assert len(back) == 3 and "learning rate of 1 and a gamma of" in back[0], result.stderr
    config, _ = saved_config(run / "state.ckpt")
    assert config.training.rollbacks == 3 and config.schedule.lr == {8: 2.0}
    assert [row["lr"] for row in rows(run) if row["level"] == 1][-1] == 0.25
    assert [line["kind"] for line in told(run)].count("rollback") == 3
    invoke([*arguments, "--resume", "--on-collapse", "warn", "--kimg", 0.26])
    assert rows(run)[-1]["lr"] == 0.25


def test_a_run_that_is_well(tmp_path: Path) -> None:
    """Conditional too; its figures are in its rows, and what a resumed run writes again is not there twice."""
    data, run = data_zip(tmp_path / "noise.zip", classes=3), tmp_path / "run"
    result = invoke(train_arguments(data, run, "--cond", kimg=0.2))
    assert all(0.1 < row["health/diversity"] < 9 and 0 <= row["health/ema_distance"] < 1 for row in rows(run))
    assert "r_t=" in result.stderr and "diversity=" in result.stderr and "ALARM" not in result.stderr
    assert not (run / "alarms.jsonl").exists()
    lines = [
        {"kimg": kimg, "images_seen": round(1000 * kimg), "kind": "collapse", "sentence": "x"} for kimg in (0.1, 9)
    ]
    (run / "alarms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    invoke(["train", str(data), "--out", str(run), "--resume", "--kimg", ".3"])
    assert told(run) == lines[:1]
