"""Progressive growing and everything else that varies during a run, as pure functions of the images shown to D.

Growth is that of Karras et al. 2018 ("Progressive Growing of GANs", section 2 and appendix A): every level is held for
`hold_kimg`, then the next one fades in over `fade_kimg`. Resolution, batch, learning rate and tick change when a
fade begins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from stylegen.config import Config, resolution_of, size_text


@dataclass(frozen=True)
class Stage:
    """One instant of a run."""

    level: int  # 0 is the base
    resolution: tuple[int, int]  # height, width in pixels
    alpha: float  # 1: settled; in (0, 1): fading in over the level below
    batch: int  # images a step, over all GPUs
    lr: float
    tick: int  # images between two reports


def stage_at(config: Config, images_seen: int) -> Stage:
    """The stage after `images_seen` real images."""
    s = config.schedule
    level, fade = _position(config, images_seen)
    level, alpha = (level + 1, fade) if fade else (level, 1.0)
    nominal = 4 << level
    batch = int(s.batch.get(nominal, s.batch_default))
    batch = max(batch // s.gpus, 1) * s.gpus
    if nominal in s.batch_max_per_gpu:
        batch = min(batch, int(s.batch_max_per_gpu[nominal]) * s.gpus)
    return Stage(
        level=level,
        resolution=resolution_of(config.generator, level),
        alpha=alpha,
        batch=batch,
        lr=s.lr.get(nominal, s.lr_default),
        tick=_images(s.tick_kimg.get(nominal, s.tick_kimg_default)),
    )


def phase_of(config: Config, images_seen: int) -> int:
    """A number that changes when a fade starts and when it ends: there the optimizers' moments are reset."""
    level, fade = _position(config, images_seen)
    return 2 * level + (fade > 0)


def due(interval_images: float, before: int, after: int) -> bool:
    """Whether a multiple of the interval lies in (before, after]."""
    return after // interval_images > before // interval_images


def total_images(config: Config) -> int:
    """Length of the run in images."""
    return _images(config.schedule.total_kimg)


def ends_early(config: Config) -> str:
    """A sentence for a run that ends before its last level has settled; empty for others."""
    s, last, total = config.schedule, config.generator.levels - 1, total_images(config)
    whole = (last - s.initial_level) * (_images(s.hold_kimg) + _images(s.fade_kimg))
    if total >= whole:
        return ""
    reached, full = (size_text(resolution_of(config.generator, level)) for level in (_position(config, total)[0], last))
    return (
        f"the run ends at {total / 1000:g} kimg, with {reached} settled; {full} settles at {whole / 1000:g} "
        "(--hold-kimg and --fade-kimg say how fast it grows)"
    )


def describe(config: Config, first: int = 0, more: Sequence[Sequence[str]] = ()) -> str:
    """The schedule from image `first` on as a table: one row for every level held and every fade.

    more: columns to add to it, their heads first.
    """
    rows = [["level", "resolution", "growth", "from kimg", "to kimg", "batch", "lr"]]
    for (start, end), stage in spans(config, first):
        growth = "hold" if stage.alpha == 1 else "fade"
        kimg = f"{start / 1000:g}", f"{end / 1000:g}"
        rows.append([str(stage.level), size_text(stage.resolution), growth, *kimg, str(stage.batch), f"{stage.lr:g}"])
    for column in more:
        rows = [[*row, text] for row, text in zip(rows, column, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def spans(config: Config, first: int = 0) -> Iterator[tuple[tuple[int, int], Stage]]:
    """((first image, one past the last), the stage in the middle) of every level held and every fade.

    first: leaves out what is before this image.
    """
    for start, end in pairwise(_boundaries(config)):
        if end > first:
            yield (max(start, first), end), stage_at(config, (start + end) // 2)


def _boundaries(config: Config) -> list[int]:
    hold, fade = _images(config.schedule.hold_kimg), _images(config.schedule.fade_kimg)
    steps = config.generator.levels - 1 - config.schedule.initial_level
    starts = {start for i in range(steps) for start in (i * (hold + fade), i * (hold + fade) + hold)}
    total = total_images(config)
    return [*sorted(start for start in starts | {0, steps * (hold + fade)} if start < total), total]


def _position(config: Config, images_seen: int) -> tuple[int, float]:
    """(level, how far the next one has faded in, in [0, 1))."""
    s, last = config.schedule, config.generator.levels - 1
    hold, fade = _images(s.hold_kimg), _images(s.fade_kimg)
    phase, into = divmod(images_seen, max(hold + fade, 1))
    if s.initial_level + phase >= last:
        return last, 0.0
    return s.initial_level + phase, max(into - hold, 0) / max(fade, 1)


def _images(kimg: float) -> int:
    return round(kimg * 1000)
