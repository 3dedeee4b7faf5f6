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


def test_growth_shows_the_first_row_of_previews(tmp_path):
    (tmp_path / "previews").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"generator": {"base": [4, 4], "levels": 3}}))
    for i in range(30):
        Image.new("RGB", (48, 32), (8 * i, 0, 0)).save(tmp_path / "previews" / f"kimg-{i:06d}.000.png")
    result = CliRunner().invoke(cli, ["plot", str(tmp_path), "--growth"])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "growth.png") as picture:
        column = [picture.getpixel((60, y))[0] for y in range(8, picture.height, 20)]
    assert column[0] == 0
    assert column[-1] == 8 * 29
    assert column == sorted(column)
    assert 5 <= len(column) <= 10


def test_a_run_without_statistics_is_one_line(tmp_path):
    result = CliRunner().invoke(cli, ["plot", str(tmp_path)])
    assert result.exit_code == 1
    assert "no statistics yet" in result.output
    assert CliRunner().invoke(cli, ["plot", str(tmp_path / "nothing")]).exit_code == 2
