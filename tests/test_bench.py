"""`stylegen bench`: every benchmark runs, its rows are whole, and its arithmetic is right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import data_zip, invoke
from torch.nn import functional as F

from stylegen.checkpoint import save_network
from stylegen.config import GeneratorConfig
from stylegen.networks import build_generator
from stylegen.tools.bench_measure import REFERENCE, Floor, aligned, cells, interleave, markdown, markers, row
from stylegen.tools.bench_networks import count_flops, psnr, training_cases
from stylegen.tools.bench_run import ROWS
from stylegen.training.probe import settled
from stylegen.training.schedule import stage_at

COLUMNS = {"name", "dtype", "median_ms", "baseline_ms", "ratio", "floor_fraction"}


def run(path: Path, *arguments: object) -> dict[str, Any]:
    """What `stylegen bench ... --quick --json` wrote."""
    invoke(["bench", *map(str, arguments), "--quick", "--repeats", "1", "--json", str(path)])
    content = json.loads(path.read_text())
    assert {"processor", "threads", "torch"} <= set(content["machine"])
    assert content["floor"]["copy_gb_sec"] > 0
    for line in content["rows"]:
        assert set(line) >= COLUMNS
        assert line["median_ms"] > 0
    return content


def test_ops(tmp_path: Path) -> None:
    rows = run(tmp_path / "ops.json", "ops")["rows"]
    assert {line["order"] for line in rows} == {"channels_last", "contiguous"}
    assert {line["dtype"] for line in rows} == {"float32", "bfloat16"}
    for name in ("bias_act", "blur", "upfirdn2d", "adain_epilogue", "pixel_norm", "conv2d"):
        assert any(line["name"].startswith(name) for line in rows), name
    for line in rows:
        assert line["ratio"] == pytest.approx(line["baseline_ms"] / line["median_ms"])
        assert line["floor_fraction"] > 0


def test_ops_of_one_kind_without_baseline(tmp_path: Path) -> None:
    chosen = ["--dtype", "float32", "--order", "contiguous", "--baseline", "none"]
    content = run(tmp_path / "ops.json", "ops", *chosen)
    assert content["command"] == f"stylegen bench ops {' '.join(chosen)} --repeats 1 --quick"
    assert {(line["dtype"], line["order"], line["ratio"]) for line in content["rows"]} == {
        ("float32", "contiguous", None)
    }


def test_generate_a_network_with_classes(tmp_path: Path) -> None:
    config = GeneratorConfig(levels=3, label_size=3, fmap_max=8, latent_size=8, style_size=8, mapping_width=8)
    save_network(tmp_path / "g.safetensors", build_generator(config), {})
    options = ["--network", tmp_path / "g.safetensors", "--resolution", "8", "--batch", "2", "--precision", "fp32"]
    fp32, reference = run(tmp_path / "g.json", "generate", *options)["rows"]
    assert "8x8, batch 2" in fp32["name"]
    assert [fp32["path"], reference["path"]] == ["fp32", "reference"]
    assert fp32["pictures_sec"] == pytest.approx(2000 / fp32["median_ms"])
    assert fp32["floor_fraction"] > 0
    assert reference["ratio"] == 1
    assert 50 < fp32["peak_mb"] < 5000


def test_train_goes_through_one_penalty_interval(tmp_path: Path) -> None:
    fp32, *_, reference = run(tmp_path / "train.json", "train")["rows"]
    assert fp32["baseline_ms"] == reference["median_ms"]
    assert fp32["floor_fraction"] > 0


def test_training_cases_are_settled_at_full_size() -> None:
    for name, config in training_cases(False).items():
        stage = stage_at(config, 100_000)
        size = f"{stage.resolution[1]}x{stage.resolution[0]}"
        assert f"{size}, batch {stage.batch}" in name
        assert stage.alpha == 1
        assert stage.level == config.generator.levels - 1
        assert settled(config, 0, 3).schedule.batch_default == 3


def test_run_saves_augments_and_shares(tmp_path: Path) -> None:
    rows = {line["name"].partition(": ")[2]: line for line in run(tmp_path / "run.json", "run")["rows"]}
    assert len(rows) == ROWS
    for name, line in rows.items():
        iterates = name.startswith("--augment") or "worker" in name
        assert (line.get("pictures_sec") is not None) == iterates, name
        assert line["ratio"] == pytest.approx(line["baseline_ms"] / line["median_ms"])
    assert next(line["written_ms"] for name, line in rows.items() if name.startswith("save")) > 0


def test_data_into_a_page(tmp_path: Path) -> None:
    source = data_zip(tmp_path / "in.zip", size=(40, 30), count=6)
    begin, end = markers("data")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    content = run(tmp_path / "data.json", "data", "--source", source, "--size", "16", "--markdown", page)
    assert content["rows"][-1]["name"].startswith("build 6 pictures of in at 16x16")
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n`")
    assert text.endswith(f"\n{end}\nafter\n")
    assert "old" not in text
    assert "| build 6 pictures of in at 16x16" in text


def test_metrics_of_data_and_of_a_generator(tmp_path: Path) -> None:
    config = GeneratorConfig(levels=3, label_size=3, latent_size=8, style_size=8, mapping_width=8, fmap_base=64)
    save_network(tmp_path / "g.safetensors", build_generator(config), {})
    source = data_zip(tmp_path / "in.zip", size=(32, 32), count=6)
    network = tmp_path / "g.safetensors"
    content = run(tmp_path / "m.json", "metrics", "--source", source, "--network", network, "--num", "9")
    pictures, made = content["rows"]
    assert (pictures["name"], made["name"]) == ("9 pictures of in, 32x32", "9 fakes of g, 16x16")
    for line in content["rows"]:
        assert line["pictures_sec"] == pytest.approx(9000 / line["median_ms"])
        assert line["source_ms"] > 0


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing here\n")
    result = invoke(["bench", "ops", "--quick", "--markdown", str(tmp_path / "page.md")], code=1)
    assert f"page.md has no place for the table; give it two lines, {markers('ops')[0]}" in result.stderr


def test_the_ratio_pairs_the_rounds() -> None:
    samples = {"x": [1.0, 2.0, 10.0], REFERENCE: [3.0, 6.0, 30.0]}  # the machine got slower; the ratio did not change
    line = row("r", "float32", samples, "x", 1.0)
    assert (line.median_ms, line.baseline_ms, line.ratio, line.floor_fraction) == (2.0, 6.0, 3.0, 0.5)


def test_interleave_takes_turns() -> None:
    calls: list[str] = []
    samples = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, min_ms=0)
    assert [len(values) for values in samples.values()] == [3, 3]
    assert calls[-6:] == ["a", "b"] * 3


def test_floor() -> None:
    floor = Floor(copy_gb_sec=10.0, gflop_sec={"float32": 100.0})
    assert floor.ms("float32", size_bytes=1e9) == pytest.approx(100)
    assert floor.ms("float32", size_bytes=1e9, flops=1e12) == pytest.approx(10_000)
    assert floor.ms("float16", flops=1e12) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_count_flops(mode: Any) -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    with mode():
        assert count_flops(lambda: F.conv2d(x, weight, padding=1)) == 2 * 2 * 5 * 64 * 27
    assert count_flops(lambda: F.linear(x[..., 0, :], torch.randn(7, 8))) == 2 * 6 * 7 * 8


def test_psnr() -> None:
    exact = torch.zeros(1, 3, 4, 4)
    assert psnr(exact + 0.2, exact) == pytest.approx(20)
    assert psnr(exact + 3, exact + 1) == math.inf  # both are white


def test_tables() -> None:
    rows = [row("a", "float32", {"x": [1.25]}, "x", None, note="b", rate=1234.5), row("b", "-", {"x": [0.5]}, "x", 1.0)]
    table = cells(rows)
    assert table[0] == ["name", "note", "dtype", "median ms", "floor fraction", "rate"]
    assert table[1:] == [["a", "b", "float32", "1.25", "-", "1,234"], ["b", "-", "-", "0.500", "2.00", "-"]]
    assert aligned(table).splitlines()[1] == "a     b     float32       1.25               -  1,234"
    assert markdown(table).splitlines()[1] == "| --- | --- | --- | ---: | ---: | ---: |"
