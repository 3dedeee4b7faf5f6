"""`stylegen plot`: the curves of a run as a picture."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from stylegen.tools.cli import cli


def row(kimg, alpha=1.0, **more):
    return {"kimg": kimg, "level": 1, "resolution": "8x8", "alpha": alpha, "loss/d": kimg, "images_per_sec": 9.0} | more


def test_curves_become_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(1), row(2, 0.5, level=2, resolution="16x16"), row(3, level=2)]
    half = '{"kimg": 4, "lev'
    (tmp_path / "stats.jsonl").write_text("\n".join([*map(json.dumps, rows), half]))
    result = CliRunner().invoke(cli, ["plot", str(tmp_path)])
    assert result.exit_code == 0, result.output
    two_panels = Image.open(tmp_path / "stats.png").size
    rows = [{**r, "penalty/r1": 1.0} for r in rows]
    (tmp_path / "stats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert CliRunner().invoke(cli, ["plot", str(tmp_path), "--out", str(tmp_path / "x.png")]).exit_code == 0
    assert Image.open(tmp_path / "x.png").size[1] > two_panels[1]


def test_a_run_without_statistics_is_one_line(tmp_path):
    result = CliRunner().invoke(cli, ["plot", str(tmp_path)])
    assert result.exit_code == 1
    assert "no statistics yet" in result.output
    assert CliRunner().invoke(cli, ["plot", str(tmp_path / "nothing")]).exit_code == 2
