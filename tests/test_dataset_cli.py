"""`stylegen dataset` as a user meets it: messages, exit codes, interruption."""

import errno
import gzip
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from stylegen.tools.cli import cli
from stylegen.training.build import build_dataset
from stylegen.training.dataset import open_dataset


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["dataset", *map(str, arguments)])


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """A folder with three good pictures of hard kinds and six files that are no pictures."""
    folder = tmp_path / "troubled"
    folder.mkdir()
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    Image.fromarray(ramp).save(folder / "deep.png")
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(folder / "cmyk.jpg", quality=95)
    turned = Image.new("RGB", (96, 64), "white")
    turned.paste("red", (0, 0, 96, 32))  # stored: red above; shown, turned by 90 degrees clockwise: red at the right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.jpg")
    data = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is no picture")
    (folder / "README").write_text("nor is this")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    os.symlink("nowhere.png", folder / "dangling.png")
    return folder


def test_troubled_folder(troubled: Path) -> None:
    result = run("build", troubled, "--dest", troubled.parent / "out.zip", "--size", 64)
    assert result.exit_code == 0, result.output
    assert "Traceback" not in result.output
    assert "3 pictures, 64x64 rgb" in result.output
    report = (troubled.parent / "out.report.txt").read_text()
    expected = {
        "README": "not a picture of a known format",
        "cut.jpg": "broken: image file is truncated",
        "dangling.png": "broken: ",
        "dot.png": "too small: 1x1 would be enlarged 64 times, above 4",
        "empty.png": "empty file",
        "text.png": "not a picture of a known format",
    }
    lines = report.splitlines()
    assert len(lines) == len(expected)
    for line, (name, reason) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"{name}: {reason}"), line
        assert line in result.output
    cmyk, deep, turned = (open_dataset(troubled.parent / "out.zip").read(i).astype(int) for i in range(3))
    assert abs(cmyk - np.array([255, 0, 0])[:, None, None]).max() < 20
    assert abs(deep[0, 0] - np.linspace(0, 255, 64)).max() <= 0.51  # scaled, neither clipped nor wrapped
    assert turned[:, 32, 48:].mean(1).tolist() == pytest.approx([254, 0, 0], abs=6)
    assert turned[:, 32, :16].min() > 245


def test_report_disappears_when_all_is_well(troubled: Path) -> None:
    dest = troubled.parent / "out.zip"
    run("build", troubled, "--dest", dest, "--size", 64)
    good = troubled.parent / "good"
    good.mkdir()
    Image.new("RGB", (64, 64)).save(good / "a.png")
    assert run("build", good, "--dest", dest).exit_code == 0
    assert not (troubled.parent / "out.report.txt").exists()


def test_limit_counts_good_pictures(troubled: Path) -> None:
    assert run("build", troubled, "--dest", troubled.parent / "out.zip", "--size", 64, "--limit", 2).exit_code == 0
    assert len(open_dataset(troubled.parent / "out.zip")) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", "--dest", "o.zip"], 2, "no source at nowhere"),
        (["mixed", "--dest", "o.zip"], 1, "of 32x32 (2), 48x16 (1); choose one with --size"),
        (["mixed", "--dest", "o.png", "--size", "32"], 1, "must be the name of a .zip file"),
        (["mixed", "--dest", "no/where/o.zip", "--size", "32"], 1, "no folder"),
        (
            ["bad", "--dest", "o.zip", "--size", "32"],
            1,
            "nothing usable in bad: all 1 files skipped, first a.png: not a",
        ),
        (["bad", "--dest", "o.zip"], 1, "nothing usable in bad"),
        (["void", "--dest", "o.zip", "--size", "32"], 1, "holds no files"),
        (["bad/a.png", "--dest", "o.zip"], 1, "of no known kind"),
        (["mixed", "--dest", "o.zip", "--size", "32", "--labels", "x.csv"], 1, "no such file"),
        (["mixed", "--dest", "o.zip", "--size", "32", "--labels", "short.csv"], 1, "for 2 of 3 files, e.g. b.png"),
        (["float.npy", "--dest", "o.zip"], 1, "floats must lie in 0..1, these reach from 0 to 126.5"),
        (["objects.npy", "--dest", "o.zip"], 1, "is not a whole NumPy file of plain numbers"),
        (["cut-idx3-ubyte.gz", "--dest", "o.zip"], 1, "is a damaged gzip file"),
        (["mixed", "--dest", "o.zip", "--size", "huge"], 2, "'huge' is not WIDTHxHEIGHT"),
        (["mixed", "--dest", "o.zip", "--background", "nocolor"], 2, "is not a colour"),
        (["mixed"], 2, "Missing option '--dest'"),
    ],
)
def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list, code: int, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("mixed", "bad", "void"):
        Path(folder).mkdir()
    for name, size in (("a.png", (32, 32)), ("b.png", (32, 32)), ("c.png", (48, 16))):
        Image.new("RGB", size).save(Path("mixed") / name)
    Path("bad/a.png").write_text("no picture")
    Path("short.csv").write_text("a.png,0\n")
    np.save("float.npy", np.linspace(0, 255, 2 * 8 * 8).reshape(2, 8, 8))
    np.save("objects.npy", np.array([{}], object))
    Path("cut-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(1000))[:-12])
    result = run("build", *arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert not list(tmp_path.glob("*o.zip*"))


def test_size_that_cannot_grow_is_built_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (99, 33)).save(tmp_path / "in" / "a.png")
    result = run("build", tmp_path / "in", "--dest", tmp_path / "o.zip")
    assert result.exit_code == 0
    assert "Warning: cannot grow pictures of 99x33" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    np.save(tmp_path / "many.npy", np.zeros((200_000, 16, 16), np.uint8))
    command = [sys.executable, "-m", "stylegen.tools.cli", "dataset", "build", "many.npy", "--dest", "out.zip"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.time() + 30
    while not list(tmp_path.glob(".out.zip.*.tmp")) and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0].decode()
    assert process.returncode not in (0, -number), output
    assert "Traceback" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["many.npy"]


def test_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "a.png")
    run("build", tmp_path / "in", "--dest", tmp_path / "out.zip")
    before = (tmp_path / "out.zip").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    result = run("build", tmp_path / "in", "--dest", tmp_path / "out.zip")
    assert result.exit_code == 1
    assert f"Error: {tmp_path / 'out.zip'}: No space left on device" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.zip"]
    assert (tmp_path / "out.zip").read_bytes() == before


def test_show_and_check(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "ant/3.png", "bee/4.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (ord(name[0]), 0, 0)).save(tmp_path / "in" / name)
    data = tmp_path / "data.zip"
    build_dataset(tmp_path / "in", data, labels="folders")
    shown = run("show", data, "--out", tmp_path / "sheet.png")
    assert shown.exit_code == 0, shown.output
    assert "4 pictures, 32x32 rgb" in shown.output
    assert "3 classes: ant 1, bee 1, cat 2" in shown.output
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (96, 64, 3)  # a row a class
    assert sheet[64, 32].tolist() == [ord("c"), 0, 0]
    assert sheet[0, 63].tolist() == [255, 255, 255]
    checked = run("check", data)
    assert checked.exit_code == 0
    assert "every picture is whole" in checked.output
    damaged = bytearray(data.read_bytes())
    damaged[damaged.rindex(b"IDAT") + 8] ^= 255
    data.write_bytes(damaged)
    checked = run("check", data)
    assert checked.exit_code == 1
    assert "00000/img00000003.png is broken" in checked.output
    assert "Error: 1 of 4 pictures" in checked.output


def test_sheet_of_large_pictures_is_small(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGBA", (512, 256), (i, 0, 0, 255)).save(tmp_path / "in" / f"{i}.png")
    build_dataset(tmp_path / "in", tmp_path / "data.zip", channels=4)
    assert run("show", tmp_path / "data.zip", "--out", tmp_path / "sheet.png").exit_code == 0
    assert Image.open(tmp_path / "sheet.png").size == (3 * 128, 64)
