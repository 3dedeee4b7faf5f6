"""Presets: functions that return a Config for given pictures."""

from collections.abc import Callable
from dataclasses import replace

from .config import (
    Config,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    OptimizerConfig,
    OutputConfig,
    ScheduleConfig,
    TrainingConfig,
    base_of,
)
from .errors import UserError

Size = tuple[int, int]

_BATCH: dict[int, dict[int, float]] = {  # official, by number of GPUs; both repositories
    1: {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4},
    2: {4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8},
    4: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16},
    8: {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
}
_BATCH_DEFAULT = {1: 4, 2: 8, 4: 16, 8: 32}
_STYLEGAN_LR: dict[int, float] = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
_PROGAN_LR: dict[int, dict[int, float]] = {
    1: {1024: 0.0015},
    2: {512: 0.0015, 1024: 0.002},
    4: {256: 0.0015, 512: 0.002, 1024: 0.003},
    8: _STYLEGAN_LR,
}
_TICK: dict[int, float] = {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 30, 1024: 20}
