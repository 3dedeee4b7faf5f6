"""The embedded data set is what its notice says."""

import io
import json
import zipfile

from PIL import Image

from stylegen import assets


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
