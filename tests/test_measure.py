"""Figures measured while a run goes on."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from stylegen.checkpoint import load_network
from stylegen.errors import UserError
from stylegen.metrics import features
from stylegen.tools.cli import cli
from stylegen.training import measure

TINY = ["--preset", "small-32", "--batch", "8", "--precision", "fp32", "--set", "output.metrics_num=60"]
MEASURED = ["--metrics", "fid,coverage", "--metrics-kimg", "0.1"]


def train(run: Path, *options: str, kimg: str = "0.3") -> list[dict]:
    arguments = ["train", "emoji-people-64", "--out", str(run), "--kimg", kimg, *TINY, *options]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "load", lambda spec, device: features.load("pixels", device))


def test_figures_and_the_best_network(tmp_path: Path) -> None:
    rows = train(tmp_path / "run", *MEASURED)
    measured = [row for row in rows if "metrics/fid" in row]
    assert [row["images_seen"] for row in measured] == [104, 200, 304]
    for row in measured:
        assert 0 < row["metrics/fid_low"] < row["metrics/fid"] < row["metrics/fid_high"]
        assert 0 <= row["metrics/coverage"] <= 1 and row["metrics/seconds"] > 0
    best = min(measured, key=lambda row: row["metrics/fid"])
    provenance = load_network(tmp_path / "run" / "best.safetensors")[1]
    assert provenance["kimg"] == best["kimg"] and f"{best['metrics/fid']:.4g}" in provenance["metrics"]["fid"]
    assert (tmp_path / "run" / "log.txt").read_text().count("FID-lite0") == 3


def test_measuring_changes_nothing_and_resumes(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    whole = train(tmp_path / "whole", *MEASURED)
    train(tmp_path / "halves", *MEASURED, kimg="0.15")
    halves = train(tmp_path / "halves", *MEASURED, "--resume")
    networks = [(tmp_path / name / "network-000000.safetensors").read_bytes() for name in ("plain", "whole", "halves")]
    assert networks[0] == networks[1] == networks[2] and len(plain) <= len(whole)
    assert halves[-1]["metrics/fid"] == whole[-1]["metrics/fid"]


def test_a_failure_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(spec: str, device: object) -> None:
        raise UserError("no features today")

    monkeypatch.setattr(measure, "load", fail)
    rows = train(tmp_path / "run", *MEASURED)
    assert rows[-1]["images_seen"] == 304 and not (tmp_path / "run" / "best.safetensors").exists()
    assert (
        "Warning: metrics failed at 0.104 kimg, and training goes on: no features today"
        in (tmp_path / "run" / "log.txt").read_text()
    )


def test_best_is_of_its_resolution(tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    values = [("8x8", 3.0), ("16x16", 7.0), ("16x16", 5.0), ("16x16", 6.0)]
    rows = [{"resolution": size, "metrics/fid": v, "metrics/recall": v} for size, v in values]
    stats.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"resolution": "16x16"}]))
    assert measure.best_so_far(stats, "fid", "16x16") == 5 and measure.best_so_far(stats, "recall", "16x16") == 7
    assert measure.best_so_far(stats, "fid", "32x32") is None
    assert measure.better("fid", 4, 5) and not measure.better("recall", 4, 5) and measure.better("kid", 1, None)
