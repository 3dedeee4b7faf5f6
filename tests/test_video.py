"""Videos decode to what was written, and are whole or not there."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegen import video
from stylegen.checkpoint import load_network
from stylegen.errors import UserError
from stylegen.images import to_uint8
from stylegen.latents import from_seeds, styles
from stylegen.paths import frames, keyed
from stylegen.video import open_video

av = pytest.importorskip("av")


def frame(i: int, channels: int = 3, height: int = 32, width: int = 48) -> torch.Tensor:
    """A smooth picture that changes with i."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    planes = [x * 200 + i, y * 200 + i, (x + y) * 100 + i, 255 - x * 100]
    return torch.stack(planes[-channels:] if channels == 2 else planes[:channels]).clamp(0, 255).to(torch.uint8)


def write(path: Path, frames: list[torch.Tensor], fps: float = 25) -> None:
    with open_video(path, fps) as send:
        for picture in frames:
            send(picture)


@pytest.mark.parametrize(("channels", "size"), [(3, (32, 48)), (1, (32, 32)), (4, (17, 31))])
def test_mp4(tmp_path, channels, size):
    path = tmp_path / "deep" / "a.mp4"
    frames = [frame(i, channels, *size) for i in range(50)]
    write(path, frames, 30000 / 1001)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shown = [picture.to_ndarray(format="rgb24") for picture in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == pytest.approx(29.97, abs=0.01)
        assert float(stream.duration * stream.time_base) == pytest.approx(50 / 29.97, abs=0.01)
    assert len(shown) == 50
    height, width = size
    assert shown[0].shape == (height + height % 2, width + width % 2, 3)
    white = 255 - frames[7][3:].float() if channels == 4 else 0
    expected = frames[7][:3].float() * (1 - white / 255) + white
    expected = expected.expand(3, *size).permute(1, 2, 0).numpy()
    assert abs(shown[7][:height, :width] - expected).mean() < 4


def test_gif_and_webp(tmp_path):
    frames = [frame(5 * i, 4) for i in range(12)]
    write(tmp_path / "a.webp", frames)
    with Image.open(tmp_path / "a.webp") as image:
        assert (image.n_frames, image.info["loop"]) == (12, 0)
        image.seek(7)
        assert (np.asarray(image) == frames[7].permute(1, 2, 0).numpy()).all()
    frames = [frame(5 * i) for i in range(12)]
    write(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.info["loop"], image.info["duration"]) == (12, 0, 40)
        image.seek(7)
        assert abs(np.asarray(image.convert("RGB")).astype(int) - frames[7].permute(1, 2, 0).numpy()).mean() < 6


def test_numbered_pictures(tmp_path):
    frames = [frame(i, 4) for i in range(3)]
    write(tmp_path / "frames", frames)
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [f"frame-00000{i}.png" for i in range(3)]
    assert (
        np.asarray(Image.open(tmp_path / "frames" / "frame-000001.png")) == frames[1].permute(1, 2, 0).numpy()
    ).all()


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_same_frames_same_bytes(tmp_path, name):
    frames = [frame(i) for i in range(30)]
    seen = set()
    for _ in range(6):
        write(tmp_path / name, frames)
        seen.add((tmp_path / name).read_bytes())
    assert len(seen) == 1


def test_same_pictures_same_mp4(tmp_path):
    """Those of a network, of which x264 made other bytes in one of four attempts."""
    G = load_network("emoji64")[0].requires_grad_(False)
    images = to_uint8(
        G.synthesis(keyed(styles(G, from_seeds([0, 1, 2, 3], 128), 0.7), "cubic", loop=True)(frames(60, closed=True)))
    )
    seen, kept = set(), []
    for i in range(16):
        with open_video(tmp_path / "a.mp4", 30) as send:
            for image in images:
                kept.append(bytes([i]) * (977 * i))  # so that memory is laid out anew
                send(image)
        seen.add((tmp_path / "a.mp4").read_bytes())
        kept = kept[-40:]
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_an_interrupted_video_is_not_there(tmp_path, name):
    (tmp_path / name).write_text("before")
    with pytest.raises(KeyboardInterrupt), open_video(tmp_path / name, 25) as send:
        send(frame(0))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "before"


def test_folders_are_whole_and_hold_nothing_else(tmp_path):
    folder = tmp_path / "frames"
    write(folder, [frame(i) for i in range(5)])
    with pytest.raises(KeyboardInterrupt), open_video(folder, 25) as send:
        send(frame(7))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]
    assert len(list(folder.iterdir())) == 5
    write(folder, [frame(9), frame(8)])
    assert sorted(path.name for path in folder.iterdir()) == ["frame-000000.png", "frame-000001.png"]
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match=r"holds mine\.txt, which is no picture of a video"):
        video.check_video(folder, 25)


def test_what_cannot_be_written(tmp_path, monkeypatch):
    for name, fps, message in [
        ("a.avi", 25, "a video is .mp4, .gif, .webp, or a folder of numbered PNGs"),
        ("a.gif", 60, "at most 50 frames a second, not 60; write .mp4 or .webp"),
    ]:
        with pytest.raises(UserError, match=message):
            video.check_video(tmp_path / name, fps)
    monkeypatch.setitem(video.FORMATS, ".mp4", ("libnothing", "", {}, {}))
    with pytest.raises(UserError, match=r"no libnothing, which \.mp4 files need"):
        video.check_video(tmp_path / "a.mp4", 25)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"need PyAV, which is not installed: pip install 'stylegen\[video\]'"):
        video.check_video(tmp_path / "a.webp", 25)
    video.check_video(tmp_path / "frames", 100)
