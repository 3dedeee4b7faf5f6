"""`stylegen mix`: whose styles are where, sheets, the video."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import invoke

from stylegen.checkpoint import load_network
from stylegen.errors import UserError
from stylegen.images import to_uint8
from stylegen.latents import latents, mix, parse_layers
from stylegen.tools import rendering


def mixed(network, out, *options, rows="0-1", cols="5-7", code=0):
    return invoke(["mix", "--network", str(network), "--rows", rows, "--cols", cols, "--out", str(out), *options], code)


def picture(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.parametrize(
    ("text", "levels", "layers"),
    [
        ("0-3,6", 5, [0, 1, 2, 3, 6]),
        ("6,0-3,2", 5, [0, 1, 2, 3, 6]),
        ("coarse", 9, [0, 1, 2, 3]),
        ("middle", 9, [4, 5, 6, 7]),
        ("fine", 9, list(range(8, 18))),
        ("fine", 5, [8, 9]),
        ("coarse", 4, [0, 1, 2, 3]),
        ("middle,7", 4, [4, 5, 7]),
        ("fine", 3, [4, 5]),
        ("fine", 2, []),
    ],
)
def test_layers(text, levels, layers):
    assert parse_layers(text, levels) == layers


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-10", "-1", "1,,2", "10"])
def test_bad_layers(text):
    with pytest.raises(UserError, match=r"layers .*(coarse, middle, fine|0 to 9)"):
        parse_layers(text, 5)


def test_mixture():
    rows, columns = torch.zeros(2, 4, 3), torch.arange(1.0, 4).reshape(3, 1, 1).expand(3, 4, 3)
    w = mix(rows, columns, [0, 2])
    assert w.shape == (2, 3, 4, 3)
    assert w[1, :, :, 0].tolist() == [[1, 0, 1, 0], [2, 0, 2, 0], [3, 0, 3, 0]]


@pytest.mark.parametrize("kind", ["rgb", "rgba", "classes", "gray"])
def test_sheets_and_single_pictures(networks, tmp_path, kind):
    classes = ["--row-class", "cat", "--col-class", "1"] if kind == "classes" else []
    mixed(networks[kind], tmp_path, "--styles", "0-1,4", "--styles", "fine", *classes)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mix-0-1+4",
        "mix-0-1+4.png",
        "mix-fine",
        "mix-fine.png",
    ]
    sheet = picture(tmp_path / "mix-0-1+4.png")
    single = [[picture(tmp_path / "mix-0-1+4" / f"{r}-{c}.png") for c in range(3)] for r in range(2)]
    height, width = single[0][0].shape[:2]
    assert sheet.shape[:2] == (3 * height, 4 * width)
    assert (sheet[2 * height :, 3 * width :] == single[1][2]).all()
    corner = sheet[:height, :width]
    assert (corner[..., :3] == 255).all()
    assert kind != "rgba" or (corner[..., 3] == 0).all()
    if kind == "rgb":
        G, _ = load_network(networks[kind])
        with torch.inference_mode():
            row, column = (G.truncate(G.mapping(latents([seed], 8)), 0.7) for seed in (1, 7))
            expected = row.clone()
            expected[:, [0, 1, 4]] = column[:, [0, 1, 4]]
            shown = to_uint8(G.synthesis(torch.cat([row, column, expected]))).permute(0, 2, 3, 1).numpy().astype(int)
        for at, image in zip(((2, 0), (0, 3), (2, 3)), shown, strict=True):
            y, x = at[0] * height, at[1] * width
            assert abs(sheet[y : y + height, x : x + width] - image).max() <= 1


def test_latents_files_mix(networks, tmp_path):
    invoke(["generate", "--network", str(networks["rgb"]), "--seeds", "5-7", "--npz", "--out", str(tmp_path / "a")])
    mixed(networks["rgb"], tmp_path / "b")
    mixed(networks["rgb"], tmp_path / "c", cols=str(tmp_path / "a" / "latents.npz"))
    for name in ("mix-coarse", "mix-middle", "mix-fine"):
        assert abs(picture(tmp_path / "b" / f"{name}.png") - picture(tmp_path / "c" / f"{name}.png")).max() <= 1


def test_video(networks, tmp_path):
    mixed(networks["rgb"], tmp_path, "--video", str(tmp_path / "frames"), "--seconds", "1", "--fps", "12")
    frames = sorted((tmp_path / "frames").iterdir())
    assert len(frames) == 12
    first, half = picture(frames[0]), picture(frames[6])
    assert (first[16:32, 16:32] == first[16:32, :16]).all()  # all of the row
    assert (half[16:32, 16:32] == half[:16, 16:32]).all()  # all of the column


def test_what_cannot_be_mixed(networks, tmp_path, monkeypatch):
    for kind, options, code, message in [
        ("progan", [], 1, "a progan network has no styles to mix; StyleGANs have"),
        ("rgb", ["--styles", "0-6"], 2, "no range of this network's layers, 0 to 5"),
        ("rgb", ["--video", str(tmp_path / "a.mov")], 2, "a video is .mp4"),
        ("rgb", ["--row-class", "1"], 2, "this network has no classes"),
        ("rgb", ["--fps", "10"], 2, "--fps means nothing without --video"),
    ]:
        assert message in mixed(networks[kind], tmp_path / "out", *options, code=code).stderr
    monkeypatch.setattr(rendering, "MAX_GRID_PX", 1000)
    assert "a sheet of 4x3 is above 1,000 pixels; take fewer" in mixed(networks["rgb"], tmp_path / "out", code=2).stderr
    assert not (tmp_path / "out").exists()
