"""Augmentation of what D sees: ranges, gradients of gradients, and training with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import data_zip, error_line, invoke, train_arguments
from torch import Tensor

from stylegen.checkpoint import load_tensors
from stylegen.config import AUGMENTATIONS
from stylegen.training.augment import augment
from stylegen.training.rng import Numbers


def altered(images: Tensor, *kinds: str, seed: int = 0) -> Tensor:
    return augment(images, kinds, Numbers(torch.Generator().manual_seed(seed), len(images)))


def test_nothing_is_nothing() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert altered(images) is images


def test_numbers_are_those_of_the_sample() -> None:
    def drawn(which: list[int] | None) -> Tensor:
        numbers = Numbers(torch.Generator().manual_seed(3), 5, which)
        return torch.cat([numbers.uniform(2), numbers.normal(3)], 1)

    assert drawn(None).shape == (5, 5)
    assert torch.equal(drawn([3, 0]), drawn(None)[[3, 0]])


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_each_picture_in_its_own_way_and_the_same_again(kind: str, channels: int) -> None:
    image = torch.rand(1, channels, 16, 8) * 2 - 1
    images = image.expand(6, -1, -1, -1)
    found = altered(images, kind)
    assert found.shape == images.shape
    assert torch.equal(found, altered(images, kind))
    assert not torch.equal(found, altered(images, kind, seed=1))
    assert len(found.unique(dim=0)) > 3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_color(channels: int) -> None:
    """Brightness moves the mean by a uniform number in +-0.5; contrast and saturation do not; alpha stays."""
    count = 3 if channels >= 3 else 1
    images = torch.rand(1, channels, 6, 6).expand(4000, -1, -1, -1)
    found = altered(images, "color")
    assert torch.equal(found[:, count:], images[:, count:])
    moved = found[:, :count].mean((1, 2, 3)) - images[0, :count].mean()
    assert -0.5 <= moved.min() < -0.49 and 0.49 < moved.max() < 0.5001
    assert abs(moved.mean()) < 0.02
    gray = found[:, :count].mean(1).flatten(1).std(1) / images[0, :count].mean(0).std()
    assert 0.5 <= gray.min() < 0.51 and 1.49 < gray.max() < 1.501
    if count == 3:
        hues = (found[:, 0] - found[:, 1]).flatten(1).std(1) / (images[0, 0] - images[0, 1]).std()
        assert hues.min() < 0.02 and 2.5 < hues.max() < 3.001  # saturation times contrast


def test_translation() -> None:
    images = torch.zeros(3000, 1, 16, 8)
    images[:, :, 8, 4] = 1
    at = altered(images, "translation").nonzero()[:, 2:] - torch.tensor([8, 4])
    assert len(at) == 3000
    for column, most in ((0, 2), (1, 1)):
        shifts, counts = at[:, column].unique(return_counts=True)
        assert shifts.tolist() == list(range(-most, most + 1))
        assert counts.min() > 0.8 * 3000 / len(shifts)
    edge = altered(torch.ones(64, 1, 16, 8), "translation", seed=3)
    assert {0.0, 1.0} == set(edge.unique().tolist())


def test_cutout() -> None:
    found = altered(torch.ones(2000, 2, 12, 8), "cutout")
    assert torch.equal(found[:, 0], found[:, 1])
    gone = (found[:, 0] == 0).numpy()
    for picture in gone[:100]:
        rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
        assert picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert len(rows) <= 6 and len(columns) <= 4
    assert gone.any(0).all()
    assert (gone.sum((1, 2)) == 24).any()


def test_gradients_of_gradients() -> None:
    images = torch.randn(3, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: altered(x, *AUGMENTATIONS), images)
    assert torch.autograd.gradgradcheck(lambda x: altered(x, *AUGMENTATIONS).sin(), images)


@pytest.mark.parametrize("loss", ["nonsaturating", "rpgan", "wgan-gp", "feature-matching"])
def test_training_and_resume(loss: str, tmp_path: Path) -> None:
    """Half and half is the whole; without it the networks are others."""
    data, lists = data_zip(tmp_path / "noise.zip"), {"whole": "color,translation,cutout", "plain": ""}
    runs = {name: tmp_path / name for name in ("whole", "halves", "plain")}
    for name in ("whole", "halves", "plain"):
        chosen = lists.get(name, lists["whole"])
        options = ["--loss", loss, *(["--augment", chosen] if chosen else [])]
        for kimg in (0.032, 0.064) if name == "halves" else (0.064,):
            invoke(train_arguments(data, runs[name], *options, "--resume", kimg=kimg))
    whole, halves, plain = (load_tensors(run / "state.ckpt")[0] for run in runs.values())
    assert all(whole[key].equal(halves[key]) for key in whole)
    assert not all(whole[key].equal(plain[key]) for key in whole)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    data = data_zip(tmp_path / "noise.zip")
    result = invoke([*train_arguments(data, tmp_path / "run"), "--augment", "color,rotation"], code=2)
    assert "'rotation' is not one of 'color', 'translation', 'cutout', 'ada'" in error_line(result.stderr)
    result = invoke([*train_arguments(data, tmp_path / "run"), "--set", "training.augment=rotation"], code=2)
    assert "there is no augmentation rotation; accepted: ada, or a list of color, translation, cutout" in error_line(
        result.stderr
    )
