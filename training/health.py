"""How a run fares: figures that stand in its rows beside the losses, and a watch that raises the alarms."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pdist

from stylegen.config import Config
from stylegen.images import fade_reals, to_float

from . import rng
from .alarms import FATAL, Alarm, Judge
from .dataset import Dataset
from .report import Reporter, append, cut_rows
from .schedule import Stage
from .state import TrainState

ALARMS = "alarms.jsonl"
PICTURES = 32
SIDE_PX = 16


def diversity(fakes: Tensor, reals: Tensor) -> float:
    """How much generated pictures differ from each other, relative to real ones: 1 is as diverse as the data.

    fakes, reals: [N, C, H, W] in about [-1, 1], of one size, N at least 2. Pictures are compared as 16x16 averages
    without their mean colour, which a generator varies when it varies nothing else any more. Distances are averaged
    geometrically, so that a few pictures made over and over count as well as a single one; below a fiftieth of the
    reals' mean they are equal. Not finite where the real pictures are all the same.
    """
    ours, theirs = _distances(fakes), _distances(reals)
    least = theirs.mean() / 50
    return float((ours.clamp(min=least).log().mean() - theirs.clamp(min=least).log().mean()).exp())


def _distances(images: Tensor) -> Tensor:
    images = coarse(images)
    return pdist((images - images.mean((2, 3), keepdim=True)).flatten(1).cpu().double())


def coarse(images: Tensor) -> Tensor:
    """[N, C, H, W], clamped to [-1, 1] -> averages of 2x2 pixels, until the shorter side is at most SIDE_PX."""
    images = images.float().clamp(-1, 1)
    while min(images.shape[2:]) > SIDE_PX:
        images = avg_pool2d(images, 2)
    return images


@torch.no_grad()
def relative_distance(ours: nn.Module, theirs: nn.Module) -> float:
    """Mean over the parameters p of |p - q| / |p|, with q the other network's; parameters that are 0 do not count.

    Each counts the same: by one norm over all of them, StyleGAN's mapping network, which stores its weights a hundred
    times as large as it uses them, would hide the others.
    """
    sizes = torch.stack([p.norm() for p in ours.parameters()])
    distances = torch.stack([(p - q).norm() for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)])
    return float((distances / sizes)[sizes > 0].mean())


def tell(run_dir: Path, alarm: Alarm) -> None:
    """Writes an alarm into the run's list. Raises OSError."""
    append(run_dir / ALARMS, f"{json.dumps(vars(alarm))}\n".encode())


class Watch:
    """Puts figures of health into a run's rows, and raises alarms by them.

    The figures see the same latents and the same real pictures every time, both named by the run's seed.
    """

    def __init__(self, state: TrainState, dataset: Dataset, run_dir: Path):
        """Of a run as it stands: alarms after `state.images_seen` are dropped, earlier rows are taken in."""
        seed, g = state.config.training.seed, state.config.generator
        self.path, self.dataset = run_dir / ALARMS, dataset
        self.z = torch.randn(PICTURES, g.latent_size, generator=rng.generator(seed, "health/latents")).to(state.device)
        draw = rng.generator(seed, "health/reals")
        self.which = torch.randint(len(dataset), (PICTURES,), generator=draw).numpy()
        labels = torch.from_numpy(dataset.label_vectors(self.which)) if g.label_size else None
        self.labels = None if labels is None else labels.to(state.device)
        self.reals: dict[int, Tensor] = {}  # by level
        cut_rows(self.path, state.images_seen)
        self.judge = Judge(state.config, len(dataset))
        for row in cut_rows(run_dir / "stats.jsonl", state.images_seen):
            self.judge(row)

    def report(self, state: TrainState, stage: Stage, reporter: Reporter) -> Alarm | None:
        """Writes a row with the figures of health. Returns an alarm that the run must end for, if one is raised."""
        begin = time.monotonic()
        figures = self.figures(state, stage)
        reporter.note(figures, time.monotonic() - begin)
        row = reporter.report(stage, state.images_seen)
        ending = state.config.output.on_collapse != "warn"
        fatal = None
        for alarm in self.judge(row):
            tell(self.path.parent, alarm)
            fatal = alarm if ending and alarm.kind in FATAL else fatal
            reporter.log(f"Alarm at {alarm.kimg:g} kimg: {alarm.sentence}", show=alarm is not fatal)
        reporter.show(row, self.judge.active)
        return fatal

    def figures(self, state: TrainState, stage: Stage) -> dict[str, float]:
        """health/diversity, of G's pictures as they are now, and health/ema_distance."""
        reals = self._reals(state.config, stage)
        figures = {
            "health/diversity": diversity(self._fakes(state.G, stage), reals),
            "health/ema_distance": relative_distance(state.G, state.G_ema),
        }
        return {name: value for name, value in figures.items() if np.isfinite(value)}

    @torch.no_grad()
    def _fakes(self, G: Any, stage: Stage) -> Tensor:
        training = G.training
        G.eval()
        made = []
        for start in range(0, PICTURES, stage.batch):
            part = slice(start, start + stage.batch)
            of = None if self.labels is None else self.labels[part]
            made.append(coarse(G(self.z[part], of, resolution=stage.resolution, alpha=stage.alpha)))
        G.train(training)
        return torch.cat(made)

    def _reals(self, config: Config, stage: Stage) -> Tensor:
        """At the level whose shorter side is SIDE_PX, or below it at the stage's, where a fade can be seen."""
        levels, level = config.generator.levels, stage.level
        while level and min(config.generator.base) << level > SIDE_PX:
            level -= 1
        if level not in self.reals:
            pixels = [self.dataset.read(int(i), levels - 1 - level) for i in self.which]
            self.reals[level] = to_float(torch.from_numpy(np.stack(pixels)))
        return fade_reals(self.reals[level], stage.alpha if level == stage.level else 1.0)
