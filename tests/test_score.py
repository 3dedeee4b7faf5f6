"""`stylegen score`: ranks, separates, keeps features."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import data_zip, invoke, train_arguments

from stylegen.images import to_float
from stylegen.tools.rendering import open_discriminator
from stylegen.tools.score import separated
from stylegen.training.dataset import open_dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    invoke(train_arguments(data_zip(folder / "data.zip"), folder / "run", kimg=0.2))
    return folder / "run"


def scored(run, data, out, *options, code=0):
    return invoke(["score", str(run), str(data), "--out", str(out), *options], code)


def test_scores_are_those_of_the_discriminator(run, tmp_path):
    data = run.parent / "data.zip"
    scored(run, data, tmp_path / "a", "--features-out", str(tmp_path / "f.npz"))
    with open(tmp_path / "a" / "scores.csv", newline="") as file:
        rows = [(row["picture"], float(row["score"])) for row in csv.DictReader(file)]
    assert len(rows) == 40
    assert [value for _, value in rows] == sorted(value for _, value in rows)
    D, _, stage = open_discriminator(str(run), None, torch.device("cpu"))
    dataset = open_dataset(str(data), size=stage["resolution"])
    image = to_float(torch.from_numpy(dataset.read(dataset.names.index(rows[0][0]))))
    assert float(D(image[None], **stage)[0, 0]) == pytest.approx(rows[0][1], rel=1e-3, abs=1e-4)
    kept = np.load(tmp_path / "f.npz")
    assert kept["features"].shape[0] == 40
    assert kept["names"].tolist() == dataset.names
    assert dict(rows)[kept["names"][7]] == pytest.approx(float(kept["scores"][7]), rel=1e-4, abs=1e-5)
    side = stage["resolution"][0]
    assert Image.open(tmp_path / "a" / "ranked.png").size == (16 * side, 3 * side)


def test_separation():
    assert separated(torch.tensor([1.0, 2]), torch.tensor([3.0, 4, 5])) == 1
    assert separated(torch.tensor([3.0, 4, 5]), torch.tensor([1.0, 2])) == 0
    assert separated(torch.tensor([1.0, 3]), torch.tensor([2.0, 3])) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert separated(torch.ones(3), torch.ones(5)) == 0.5


def test_against(run, tmp_path):
    data_zip(tmp_path / "same.zip", seed=0)
    result = scored(run, run.parent / "data.zip", tmp_path / "a", "--against", str(tmp_path / "same.zip"))
    assert "Note: D has grown to " in result.stderr
    assert result.stdout.startswith("0.500 ROC AUC of ")


def test_residuals_tell_what_the_generator_cannot_make(run, tmp_path):
    """Its own pictures are found again; noise is not."""
    size = open_discriminator(str(run), None, torch.device("cpu"))[2]["resolution"]
    invoke(["sample", "--network", str(run), "--count", "6", "--trunc", "1", "--dest", str(tmp_path / "own.zip")])
    noise = np.random.RandomState(0).randint(0, 256, (4, *size, 3)).astype(np.uint8)
    np.save(tmp_path / "noise.npy", noise)
    invoke(["dataset", "build", str(tmp_path / "noise.npy"), "--dest", str(tmp_path / "noise.zip")])
    options = ["--against", str(tmp_path / "noise.zip"), "--residual", "--steps", "40"]
    result = scored(run, tmp_path / "own.zip", tmp_path / "a", *options)
    assert "1.000 ROC AUC" in result.stdout.splitlines()[1]
    with open(tmp_path / "a" / "scores.csv", newline="") as file:
        residuals = [float(row["residual"]) for row in csv.DictReader(file)]
    assert len(residuals) == 6
    assert residuals == sorted(residuals, reverse=True)


def test_what_cannot_be_scored(run, tmp_path):
    data_zip(tmp_path / "gray.zip", mode="L")
    for where, data, code, message in [
        (tmp_path, run.parent / "data.zip", 2, "there is no state.ckpt, which holds D"),
        (run, tmp_path / "gray.zip", 1, "has 1 channels, the discriminator 3"),
        (run, tmp_path / "none.zip", 2, "none.zip"),
    ]:
        assert message in scored(where, data, tmp_path / "out", code=code).stderr
    steps = scored(run, run.parent / "data.zip", tmp_path / "out", "--steps", "9", code=2)
    assert "--steps means nothing without --residual" in steps.stderr
    assert not (tmp_path / "out").exists()
