"""Commands of the latent space that cannot write where they are told to: a line, and nothing left behind."""

import pytest
from PIL import Image
from tiny import invoke

CASES = {
    "mix": ["--rows", "0", "--cols", "1", "--out", "OUT"],
    "interpolate": ["--seeds", "0-1", "--seconds", "0.1", "--out", "OUT.mp4"],
    "project": ["PICTURE", "--steps", "1", "--starts", "0", "--out", "OUT"],
    "directions": ["--count", "1", "--seeds", "0", "--out", "OUT"],
    "edit": ["--expr", "1 + 2", "--out", "OUT"],
    "sample": ["--count", "2", "--dest", "OUT.zip"],
}


@pytest.mark.parametrize("command", CASES)
def test_a_file_where_a_folder_must_be(networks, tmp_path, command):
    blocker, picture = tmp_path / "file", tmp_path / "picture.png"
    blocker.write_text("mine")
    Image.new("RGB", (16, 16), "red").save(picture)
    words = {"OUT": str(blocker / "x" / "out"), "PICTURE": str(picture)}
    given = [word.replace("OUT", words["OUT"]).replace("PICTURE", words["PICTURE"]) for word in CASES[command]]
    message = invoke([command, "--network", str(networks["rgb"]), *given], 1).stderr
    assert f"{blocker}" in message
    assert "a folder must go there" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "picture.png"]
    assert blocker.read_text() == "mine"


def test_blend(networks, tmp_path):
    (tmp_path / "file").write_text("mine")
    rgb = str(networks["rgb"])
    message = invoke(["blend", rgb, rgb, "--swap-at", "8", "--out", str(tmp_path / "file" / "b.safetensors")], 1).stderr
    assert "a folder must go there" in message
