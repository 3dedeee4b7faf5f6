"""The embedded data set is what its notice says; the embedded networks make the pictures of docs/."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stylegen import assets
from stylegen.tools.cli import cli

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SHEETS = {"emoji64": "0-127", "fashion32": "0-159"}  # network -> seeds of docs/images/NAME.png, 16 or 20 a row


def test_emoji_people() -> None:
    path = assets.data_path("emoji-people-64")
    assert path
    with zipfile.ZipFile(path) as archive:
        pictures = [name for name in archive.namelist() if name.endswith(".png")]
        assert pictures == [f"00000/img{i:08d}.png" for i in range(997)]
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        assert archive.comment.decode() == path.with_suffix(".txt").read_text(encoding="utf-8")
        for name in pictures[::37]:
            picture = Image.open(io.BytesIO(archive.read(name)))
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
            assert picture.getpixel((0, 0)) == (255, 255, 255)


def test_names() -> None:
    assert "emoji-people-64" in assets.embedded_data()
    assert assets.data_path("../assets/emoji-people-64") is None
    assert assets.network_path("missing") is None
    assert all(assets.network_path(name) for name in assets.embedded_networks())
    assert assets.embedded_networks() == sorted(SHEETS)


@pytest.mark.parametrize("name", SHEETS)
def test_networks(name: str, tmp_path: Path) -> None:
    path = assets.network_path(name)
    assert path
    assert path.stat().st_size < 8 * 10**6
    shown = CliRunner().invoke(cli, ["info", name]).stdout
    for fact in ("data", "licence", "preset", "overrides", "kimg", "minutes", "FID-lite0", "limits"):
        assert f"\n{fact} " in shown or f" {fact} " in shown
    sheet = Image.open(IMAGES / f"{name}.png")
    side = int(name[-2:])
    shape = f"{sheet.width // side}x{sheet.height // side}"
    command = ["generate", "--network", name, "--seeds", SHEETS[name], "--grid", shape, "--out", str(tmp_path)]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    made, known = (np.asarray(image).astype(int) for image in (Image.open(tmp_path / "grid.png"), sheet))
    assert made.shape == known.shape
    assert abs(made - known).mean() < 0.1  # other processors round differently
