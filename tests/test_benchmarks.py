"""The arithmetic of the scripts in benchmarks/."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from gaussians import MODES, ROWS, configure, draw_data, figures, measure
from modes import divergence, kept

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
