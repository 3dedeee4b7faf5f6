"""stylegen train --plan: the table, the sums, the warnings; nothing is written."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import data_zip, invoke, train_arguments

from stylegen.config import Config, override
from stylegen.presets import preset, resolve
from stylegen.training import advice, plan
from stylegen.training.dataset import Dataset, open_dataset
from stylegen.training.plan import How, Part, Plan
from stylegen.training.probe import Cost
from stylegen.training.schedule import spans

CPU = How(torch.device("cpu"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BUDGET_SEC", 0.2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip")


def table(text: str) -> Iterator[dict[str, str]]:
    """The rows of the table, by head."""
    lines = text.split("\n\n")[1].splitlines()
    heads, *rows = (re.split(r"  +", line.strip()) for line in lines)
    for row in rows:
        yield dict(zip(heads, row, strict=True))


def seconds(text: str) -> int:
    hours, minutes, rest = map(int, text.split(":"))
    return 3600 * hours + 60 * minutes + rest


def test_table_and_sums(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    before = {path: path.stat().st_mtime_ns for path in data.parent.iterdir()}
    text = invoke(train_arguments(data, out, "--plan", kimg=40)).stdout
    assert {path: path.stat().st_mtime_ns for path in data.parent.iterdir()} == before
    assert not (tmp_path / "runs").exists()
    assert "40 pictures of 16x16 rgb; in 0 to 40 kimg each is seen 1,000 times" in text
    rows = list(table(text))
    sizes = [(row["resolution"], row["growth"], row["from kimg"], row["to kimg"]) for row in rows]
    assert sizes[:2] == [("4x4", "hold", "0", "0.1"), ("8x8", "fade", "0.1", "0.2")]
    assert sizes[-1] == ("16x16", "hold", "0.4", "40")
    last = rows[-1]
    assert seconds(last["time"]) == pytest.approx(39.6 * float(last["s/kimg"]), abs=1, rel=0.01)
    total = int(re.search(r"Time: .* \((\d+) s\)", text)[1])
    assert seconds(last["until then"]) <= total
    assert re.search(r"2 networks of \d\S* MB, up to 3 states of \S+ MB, 21 previews", text)
    assert "Warning: 40 pictures are very few: D will know them by heart; --mirror and --augment" in text


def test_workers_and_micro_batches(data: Path, tmp_path: Path) -> None:
    options = ["--plan", "--gpus", 2, "--batch", 24, "--micro-batch", 4]
    text = invoke(train_arguments(data, tmp_path / "a", *options)).stdout
    (row,) = table(text)
    assert (row["batch"], row["a worker"], row["at a time"]) == ("24", "12", "4")
    assert "Not measured: adding up over the workers" in text
    assert "unevenly" not in text
    text = invoke(train_arguments(data, tmp_path / "a", "--plan", "--gpus", 2, "--batch", 12)).stdout
    assert next(table(text))["a worker"] == "8"
    assert "a batch at 4x4 is groups of 4, which 2 workers share unevenly" in text
    assert "at a time" not in text.split("\n\n")[1]


def test_the_rest_of_a_run(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invoke(train_arguments(data, out, kimg=0.152))
    command = ["train", str(data), "--out", str(out), "--resume", "--plan", "--device", "cpu"]
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    text = invoke([*command, "--kimg", "0.5"]).stdout
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == files
    rows = list(table(text))
    assert [(row["resolution"], row["from kimg"]) for row in rows][:2] == [("8x8", "0.152"), ("8x8", "0.2")]
    text = invoke(command).stdout
    assert text.startswith("The run is at 0.152 kimg already")


def test_plan_with_dry_run_is_refused(data: Path, tmp_path: Path) -> None:
    result = invoke(train_arguments(data, tmp_path / "a", "--plan", "--dry-run"), 2)
    assert "--plan means nothing with --dry-run" in result.stderr


def test_auto_that_does_not_fit_is_told_before(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stylegen.training.micro.available", lambda: 2**18)
    result = invoke(train_arguments(data, tmp_path / "a", "--plan", "--micro-batch", "auto", kimg=9), 1)
    assert "not even 4 pictures at a time fit into the memory of this device at 4x4" in result.stderr


def config_of(dataset: Dataset, **fields: object) -> Config:
    config = preset("small-32", dataset.size, dataset.channels, 0)
    for name, value in fields.items():
        config = override(config, f"{name}={value}")
    return resolve(config)


def some_plan(config: Config, memory: int = 10**6) -> Plan:
    cost = Cost(0.1, memory, 0, (10, 10), True, 0.05)
    parts = [Part(first, last, stage, 16, 16, cost, 60.0, 1.0) for (first, last), stage in spans(config)]
    return Plan(parts, 5.0, 2.0, (3, 10**6), (3, 10**7), (21, 10**5), [])


def told(
    dataset: Dataset,
    config: Config,
    how: How = CPU,
    *,
    disk: int = 10**12,
    memory: int = 0,
    size: int = 1,
    load: float = 0.0,
) -> str:
    machine = advice.Machine(disk, memory, load)
    return "\n".join(advice.warnings(config, dataset, some_plan(config, size), how, machine))


def test_warnings_on_data(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(data)
    altered = config_of(dataset, **{"training.mirror": "true", "training.augment": "color"})
    assert "40 pictures are very few: D will know them by heart\n" in told(dataset, altered) + "\n"
    halved = open_dataset(data_zip(tmp_path / "wide.zip", size=(32, 64), count=600), size=(16, 32))
    text = told(halved, config_of(halved))
    assert "600 pictures are few: D may learn them" in text
    assert "the pictures are 64x32, and are trained at 32x16" in text
    assert "not square: they grow from 8x4" in text
    many = data_zip(tmp_path / "many.zip", size=(8, 8), count=2000, classes=3)
    assert "few" not in told(open_dataset(many), config_of(open_dataset(many)))
    assert "the data has labels, which are not used; --cond" in told(open_dataset(many), config_of(open_dataset(many)))


def test_warning_of_unbalanced_classes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(data)
    for ratio, expected in ((9.0, False), (11.0, True)):
        monkeypatch.setattr(advice, "data_sheet", lambda _, ratio=ratio: {"unbalanced": ratio})
        text = told(dataset, config_of(dataset))
        assert ("the largest class has 11 times as many pictures as the smallest" in text) == expected


def test_warnings_on_the_machine(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(data)
    config = config_of(dataset)
    assert "disk" not in told(dataset, config)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # 7 s, and half of three times 60
    assert "busy (load 1.5 a core): alone, the run takes about 97 s" in told(dataset, config, load=1.5)
    assert "busy" not in told(dataset, config, load=0.3)
    assert "the disk has 0.0 GB free, and the run takes 0.0 GB" in told(dataset, config, disk=10**7)
    text = told(dataset, config, memory=5 * 10**9, size=3 * 10**9)
    assert "takes 6.0 GB of memory, and 5.0 GB are free; give --micro-batch auto, a smaller" in text
    assert "GB are free" not in told(dataset, config, memory=7 * 10**9, size=3 * 10**9)
    assert "takes 12.0 GB" in told(dataset, config, replace(CPU, gpus=2), memory=7 * 10**9, size=3 * 10**9)
    for best, precision, words in (
        ("fp32", "bf16", "bf16 is slower than fp32"),
        ("fp32", "fp32", "does not multiply bf16 by itself"),
        ("bf16", "fp32", "--precision bf16 would be faster"),
        ("bf16", "bf16", ""),
    ):
        monkeypatch.setattr(advice, "choose", lambda *_, best=best: best)
        text = told(dataset, config_of(dataset, **{"training.precision": precision}))
        assert words in text
        assert bool(words) == ("bf16" in text)


def test_sums_of_a_plan(data: Path) -> None:
    made = some_plan(config_of(open_dataset(data)))
    assert made.total_sec == 5 + 60 * len(made.parts) + 2
    assert made.disk == 3 * 10**6 + 3 * 10**7 + 21 * 10**5
    assert plan._count(20, 0, 40_000) == 2
    assert plan._count(20, 0, 45_000) == 3
    assert plan._count(20, 45_000, 59_000, 0) == 0
