"""Alarms: what the rows of stats.jsonl say when a run goes wrong, in plain sentences.

Each kind of trouble has a severity in every row: 1 and more is bad, below CLEAR is well. An alarm takes PATIENCE bad
rows in succession, of one level, since statistics jump where a level begins. It is raised once, until RECOVERY rows in
succession have been well.
docs/training.md has the runs by which the limits were chosen.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from stylegen.config import LOGISTIC, Config, resolution_of
from stylegen.presets import AUTO_GAMMA, resolve

Row = dict[str, Any]

PATIENCE = 3  # rows
FAR = (100.0, 1000.0)  # severities that count for a row more each
RECOVERY = 6
CLEAR = 0.7
FATAL = ("collapse", "blow-up")  # for which --on-collapse may end a run; the others may pass by themselves

LOW_DIVERSITY = 0.45
DIVERSE = 0.5  # when G counts as trained: before that it has nothing to lose, and D wins easily
UNTRAINED = 2000  # steps of G, after which it does in any case
HIGH_LOSS = 50.0
HIGH_GRADIENTS = 1000.0  # times their median at this level
LOW_LOSS = 0.03  # of D
FLAT = 0.02  # difference of D's mean scores
HIGH_SIGNS = 0.985
SIGN_ROWS = 8
EPOCHS = 20  # before which D cannot have learnt pictures by heart
SEEN_ROWS = 50


@dataclass(frozen=True)
class Alarm:
    """What is written to alarms.jsonl."""

    kimg: float
    images_seen: int
    kind: str  # of RULES
    sentence: str


class Judge:
    """Reads the rows of a run one after another; what it holds follows from those that it has read."""

    def __init__(self, config: Config, pictures: int):
        """pictures: in the data set."""
        self.config, self.pictures = config, pictures
        self.active: list[str] = []  # kinds raised that have not recovered
        self.well = False  # whether the last row is far from every alarm of FATAL: a state to come back to
        self.streaks: dict[str, int] = {}
        self.rows: deque[Row] = deque(maxlen=SEEN_ROWS)  # of this level, the last one included
        self.images, self.g_steps, self.trained = 0, 0.0, False

    def __call__(self, row: Row) -> list[Alarm]:
        """The alarms that a row raises. Rows may lack figures, or hold NaN: those say nothing."""
        if self.rows and self.rows[-1]["level"] != row["level"]:
            self.rows.clear()
            self.streaks = {kind: rows for kind, rows in self.streaks.items() if kind in self.active}
        self.rows.append(row)
        self.g_steps += (row["images_seen"] - self.images) / (row["batch"] * self.config.loss.n_critic)
        self.images = row["images_seen"]
        self.trained |= _figure(row, "health/diversity") >= DIVERSE or self.g_steps >= UNTRAINED
        found = [(kind, *rule(self, row)) for kind, rule in RULES.items()]
        self.well = not any(kind in self.active or severity >= CLEAR for kind, severity, _ in found if kind in FATAL)
        raised = [self._count(kind, severity) for kind, severity, _ in found]
        return [
            Alarm(row["kimg"], row["images_seen"], kind, sentence)
            for (kind, _, sentence), new in zip(found, raised, strict=True)
            if new
        ]

    def _count(self, kind: str, severity: float) -> bool:
        """Whether this makes a new alarm."""
        active = kind in self.active
        if math.isnan(severity):
            return False
        telling = severity < CLEAR if active else severity >= 1
        rows = 1 + sum(severity >= far for far in FAR)
        self.streaks[kind] = self.streaks.get(kind, 0) + rows if telling else 0
        if self.streaks[kind] < (RECOVERY if active else PATIENCE):
            return False
        self.streaks[kind] = 0
        (self.active.remove if active else self.active.append)(kind)
        return not active


def alarms(rows: Iterable[Row], config: Config, pictures: int) -> list[Alarm]:
    """All alarms of a run, from the rows of its stats.jsonl in order; `pictures`: in the data set."""
    judge = Judge(config, pictures)
    return [alarm for row in rows for alarm in judge(row)]


def calmer(config: Config) -> Config:
    """What a run may go on with after an alarm: half the learning rate, twice the weights of R1 and R2.

    R1 begins at its default where there was none, but for Wasserstein objectives, which have penalties of their own.
    """
    s, loss = config.schedule, config.loss
    schedule = replace(s, lr={key: lr / 2 for key, lr in s.lr.items()}, lr_default=s.lr_default / 2)
    r1 = 2 * loss.r1_gamma or (0.0 if loss.objective == "wasserstein" else AUTO_GAMMA)
    return resolve(replace(config, schedule=schedule, loss=replace(loss, r1_gamma=r1, r2_gamma=2 * loss.r2_gamma)))


def _collapse(judge: Judge, row: Row) -> tuple[float, str]:
    now = _figure(row, "health/diversity")
    if not judge.trained:
        return math.nan, ""
    best = max(judge.rows, key=lambda old: _figure(old, "health/diversity", 0.0))
    most = _figure(best, "health/diversity")
    before = f" ({most:.0%} at {best['kimg']:g} kimg)" if most >= DIVERSE else ""
    return LOW_DIVERSITY / max(now, 1e-9), (
        f"Modes collapse: generated pictures differ {now:.0%} as much from each other as real ones do{before}. "
        f"Go back to an earlier network; in a new --out, try {_remedy(judge.config, row)}"
    )


def _blow_up(judge: Judge, row: Row) -> tuple[float, str]:
    loss, limit = max(abs(_figure(row, name, 0.0)) for name in ("loss/d", "loss/g")), _loss_limit(judge.config)
    growth = max(_growth(judge.rows, name) for name in ("health/grad_norm_d", "health/grad_norm_g"))
    if loss / limit >= growth / HIGH_GRADIENTS:
        seen = f"the losses are at {loss:.3g}, where less than {limit:.3g} is usual"
    else:
        seen = f"gradients are {growth:.3g} times what they were at {row['resolution']}"
    return max(loss / limit, growth / HIGH_GRADIENTS), (
        f"The run blows up: {seen}. What it had learnt is going, and numbers may become infinite. "
        f"Go back to an earlier network; in a new --out, try {_remedy(judge.config, row)}"
    )


def _saturation(judge: Judge, row: Row) -> tuple[float, str]:
    loss, low = judge.config.loss, _figure(row, "loss/d")
    gap = abs(_figure(row, "scores/real") - _figure(row, "scores/fake"))
    if loss.objective == "wasserstein":
        return math.nan, ""
    wins = LOW_LOSS * (0.1 if loss.objective == "least_squares" else 1) / max(low, 1e-9)
    flat = FLAT / max(gap, 1e-9)
    if wins >= flat:
        return wins, (
            f"D wins: its loss is {low:.2g}, it tells real and generated pictures apart almost without error, and G "
            f"has little to learn from. In a new --out, try {_remedy(judge.config, row)}"
        )
    return flat, (
        f"D is flat: its scores of real and generated pictures differ by {gap:.2g} in the mean, and G has little to "
        f"learn from. In a new --out, try a lower --gamma (now {loss.r1_gamma:g})"
    )


def _overfitting(judge: Judge, row: Row) -> tuple[float, str]:
    signs = [_figure(old, "signs/real") for old in list(judge.rows)[-SIGN_ROWS:]]
    epochs = row["images_seen"] / judge.pictures
    if judge.config.loss.objective not in LOGISTIC or min(epochs / EPOCHS, len(signs) / SIGN_ROWS, judge.trained) < 1:
        return math.nan, ""
    training, tries = judge.config.training, ["more pictures"]
    tries += [] if training.mirror else ["--mirror (where left and right mean nothing)"]
    tries += [] if training.augment else ["--augment ada"]
    return (1 - HIGH_SIGNS) / max(1 - median(signs), 1e-9), (
        f"D overfits: it takes {(1 + median(signs)) / 2:.1%} of the real pictures for real, seen {epochs:.0f} times "
        f"each. It knows them by heart, and generated pictures get worse or become copies. Keep the best network "
        f"so far; in a new --out, try {' or '.join(tries)}"
    )


def _remedy(config: Config, row: Row) -> str:
    lr, gamma = f"a lower --lr (now {row['lr']:g})", config.loss.r1_gamma
    if config.loss.objective == "wasserstein":
        return lr
    return f"{lr}, or {'a higher --gamma' if gamma else '--gamma auto'} (now {gamma:g})"


def _loss_limit(config: Config) -> float:
    """What the losses stay below by far in a run that is well.

    With a gradient penalty, D's scores change by about 1 a unit of distance, and no two pictures are farther apart than
    black and white. With clipped weights they have no scale.
    """
    loss, (height, width) = config.loss, resolution_of(config.generator, config.generator.levels - 1)
    if loss.objective != "wasserstein":
        return HIGH_LOSS
    return 20 * math.sqrt(config.generator.channels * height * width) if loss.gp_weight else math.inf


def _growth(rows: Sequence[Row], name: str) -> float:
    """The last value relative to the median of those before; 0 where they are too few."""
    values = [value for row in rows if (value := _figure(row, name, 0.0)) > 0]
    return values[-1] / median(values[:-1]) if len(values) > 5 else 0.0


# Kind -> (severity, or NaN where a row says nothing of it; the sentence of an alarm).
RULES: dict[str, Callable[[Judge, Row], tuple[float, str]]] = {
    "collapse": _collapse,
    "blow-up": _blow_up,
    "saturation": _saturation,
    "overfitting": _overfitting,
}


def _figure(row: Row, name: str, missing: float = math.nan) -> float:
    value = row.get(name)
    return missing if value is None or not math.isfinite(value) else value
