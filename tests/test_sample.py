"""`stylegen sample` writes data sets like any other."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny import invoke

from stylegen.training.dataset import open_dataset


def sampled(network, dest, *options, code=0):
    return invoke(["sample", "--network", str(network), "--dest", str(dest), *options], code)


@pytest.mark.parametrize("kind", ["rgb", "gray", "rgba", "progan", "classes"])
def test_samples_are_those_of_their_seeds(networks, tmp_path, kind):
    dest = tmp_path / "deep" / "a.zip"
    sampled(networks[kind], dest, "--count", "5", "--first-seed", "3")
    dataset = open_dataset(str(dest))
    assert len(dataset) == 5
    klass = ["--class", "2"] if kind == "classes" else []  # of classes in turn, seed 4 has the second, named "2"
    invoke(["generate", "--network", str(networks[kind]), "--seeds", "4", "--out", str(tmp_path / "g"), *klass])
    single = np.asarray(Image.open(tmp_path / "g" / "seed0004.png")).astype(int)
    with zipfile.ZipFile(dest) as archive, archive.open("00000/img00000001.png") as file:
        assert abs(np.asarray(Image.open(file)) - single).max() <= 1
    assert dataset.label_size == (3 if kind == "classes" else 0)


def test_classes(networks, tmp_path):
    sampled(networks["classes"], tmp_path / "a.zip", "--count", "4", "--per-class")
    dataset = open_dataset(str(tmp_path / "a.zip"))
    assert np.bincount(dataset.labels).tolist() == [4, 4, 4]
    assert dataset.class_names == ["cat", "2", "dog"]
    sampled(networks["classes"], tmp_path / "b.zip", "--count", "4", "--class", "dog")
    assert open_dataset(str(tmp_path / "b.zip")).labels.tolist() == [2] * 4
    sampled(networks["classes"], tmp_path / "c.zip", "--count", "4", "--per-class")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()


def test_what_cannot_be_sampled(networks, tmp_path):
    for kind, options, name, message in [
        ("rgb", ["--count", "1", "--per-class"], "a.zip", "--per-class is for networks with classes"),
        (
            "classes",
            ["--count", "1", "--per-class", "--class", "1"],
            "a.zip",
            "--per-class is for networks with classes",
        ),
        ("rgb", ["--count", "1"], "a.png", "must be the name of a .zip file"),
        ("rgb", ["--count", "2", "--first-seed", "4294967295"], "a.zip", "seeds end at 4294967295"),
    ]:
        assert message in sampled(networks[kind], tmp_path / name, *options, code=2).stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.zip").write_text("mine")
    message = sampled(networks["rgb"], tmp_path / "mine.zip", "--count", "1", code=1).stderr
    assert "mine.zip holds something else than a data set" in message
    assert (tmp_path / "mine.zip").read_text() == "mine"
