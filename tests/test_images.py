"""Conversions and the crossfade against the official numbers; grids and files against Pillow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylegen.errors import UserError
from stylegen.images import fade_reals, grid, save_image, to_float, to_pil, to_uint8

GOLDEN = np.load(Path(__file__).parent / "golden" / "sg1_misc.npz")


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def pictures(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lod", ["0", "0.25", "1", "1.5", "2.75"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_reals_are_the_official_ones(lod, mirrored):
    images = to_float(golden(f"process_reals/lod{lod}/in_uint8"))
    if mirrored:  # the official code mirrors samples whose random number is .5 or more; here they are .2, .7, .5
        images = torch.stack([images[0], images[1].flip(-1), images[2].flip(-1)])
    expected = golden(f"process_reals/lod{lod}/out" + ("_mirror_mask_0.2_0.7_0.5" if mirrored else ""))
    ours = fade_reals(images, alpha=1 - float(lod) % 1)
    factor = expected.shape[-1] // ours.shape[-1]  # official pictures are blown up to the full size
    blown_up = ours.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(blown_up, expected, rtol=1e-4, atol=1e-5)


def test_uint8_is_the_official_one():
    images = golden("to_uint8/in")
    assert torch.equal(to_uint8(images), golden("to_uint8/out_nhwc").permute(0, 3, 1, 2))
    shrunk = torch.nn.functional.avg_pool2d(images, 2)
    assert torch.equal(to_uint8(shrunk), golden("to_uint8/out_shrink2"))


def test_uint8_survives_a_round_trip():
    grey = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(grey)), grey)
    assert to_float(grey).min() == -1
    assert to_float(grey).max() == 1


def test_settled_reals_are_untouched():
    odd = torch.randn(2, 3, 7, 7)
    assert fade_reals(odd, 1.0) is odd


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_grid(channels):
    images = pictures(5, channels, 4, 6)
    sheet = grid(images, 3, 2)
    assert sheet.shape == (channels, 8, 18)
    for index, image in enumerate(images):
        row, column = divmod(index, 3)
        assert torch.equal(sheet[:, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6], image)
    blank = sheet[:, 4:, 12:]
    transparent = channels in (2, 4)
    assert (blank[-1] == (0 if transparent else 255)).all()
    with pytest.raises(UserError, match="5 pictures do not fit a grid of 2x2"):
        grid(images, 2, 2)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_lossless_formats_keep_every_pixel(tmp_path, channels, mode):
    image = pictures(channels, 6, 8)
    for suffix in (".png", ".webp", ".PNG"):
        path = tmp_path / f"picture{suffix}"
        save_image(image, path)
        back = np.asarray(Image.open(path).convert(mode)).reshape(6, 8, channels)
        assert np.array_equal(back, image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(tmp_path, channels):
    image = torch.full((channels, 8, 8), 90, dtype=torch.uint8)
    save_image(image, tmp_path / "picture.jpg")
    back = np.asarray(Image.open(tmp_path / "picture.jpg"))
    assert abs(back.astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    ("shape", "name", "message"),
    [
        ((4, 8, 8), "a.jpg", "no transparency"),
        ((3, 8, 8), "a.bmp", "accepted: .png, .webp, .jpg"),
        ((5, 8, 8), "a.png", "5 channels have no file format"),
        ((1, 1, 20000), "a.webp", "too large for WEBP"),
    ],
)
def test_what_a_format_cannot_hold(tmp_path, shape, name, message):
    with pytest.raises(UserError, match=message):
        save_image(torch.zeros(shape, dtype=torch.uint8), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_pil_refuses_many_channels():
    with pytest.raises(UserError, match="5 channels"):
        to_pil(torch.zeros(5, 4, 4, dtype=torch.uint8))
