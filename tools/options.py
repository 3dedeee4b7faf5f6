"""What several commands share: parameter types and the device."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import UserError

if TYPE_CHECKING:
    import torch

ARGUMENTS = "stylegen.arguments"  # in click's meta: the whole command line
DEVICES = ("auto", "cpu", "cuda", "mps")
ALL_LAYERS = 1000  # more than any network has
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")


def needs(option: str, given: object, what: str) -> None:
    """Raises click.UsageError where the command line has `option` (a parameter's name) though nothing is `given`.

    `what`: the end of "--option means nothing ...".
    """
    ctx = click.get_current_context()
    if not given and ctx.get_parameter_source(option) == click.core.ParameterSource.COMMANDLINE:
        name = next(parameter.opts[0] for parameter in ctx.command.params if parameter.name == option)
        raise click.UsageError(f"{name} means nothing {what}")


class FiniteType(click.types.FloatParamType):
    """A number, and neither nan nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class PairType(click.ParamType):
    """`AxB` -> (A, B), whole numbers from 1 up."""

    name = "AxB"

    def __init__(self, metavar: str, example: str):
        self.metavar, self.example = metavar, example

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", value, re.ASCII)
        if not match or 0 in (pair := (int(match[1]), int(match[2]))):
            self.fail(f"{value!r} is not {self.metavar}, such as {self.example}", param, ctx)
        return pair


class SizeType(PairType):
    """`WIDTHxHEIGHT`, or one number for a square -> (height, width)."""

    def __init__(self) -> None:
        super().__init__("WIDTHxHEIGHT", "512x256, or 256 for a square")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        width, height = super().convert(f"{value}x{value}" if str(value).isdigit() else value, param, ctx)
        return height, width


class SeedsType(click.ParamType):
    """`0-7,42` -> [0, ..., 7, 42]; the name of an .npz file of latents -> its Path."""

    name = "seeds"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "SEEDS|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int] | Path:
        from stylegen.latents import parse_seeds

        if isinstance(value, (list, Path)):
            return value
        if value.endswith(".npz"):
            return Path(value)
        try:
            return parse_seeds(value)
        except UserError as error:
            self.fail(str(error), param, ctx)


class SweepType(click.ParamType):
    """`A:B:STEPS` -> [A, ..., B]: so many numbers, 2 where it is not said. Without `steps` `A:B` only."""

    def __init__(self, steps: bool = True):
        self.steps, self.name = steps, "A:B:STEPS" if steps else "A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        if isinstance(value, list):
            return value
        first, last, *steps = [*str(value).split(":"), ""][:3] if ":" in str(value) else ["", ""]
        count = steps[0] if steps and steps[0] else "2"
        if str(value).count(":") not in (1, 1 + self.steps) or not count.isdecimal() or not 2 <= int(count) <= 1000:
            self.fail(f"{value!r} is not {self.name}, such as {'-3:3:7' if self.steps else '-1:1'}", param, ctx)
        a, b = (FiniteType().convert(number, param, ctx) for number in (first, last))
        return [a + (b - a) * k / (int(count) - 1) for k in range(int(count))]


class LayersType(click.ParamType):
    """A number of layers, or "all"."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all":
            return ALL_LAYERS
        if not str(value).isdecimal():
            self.fail(f'{value!r} is neither a number of layers nor "all"', param, ctx)
        return int(value)


def pick_precision(name: str, device: "torch.device") -> str:
    """The precision that `name` or "auto" means on `device`, with a note where it is of no use there."""
    from stylegen.precision import choose

    if device.type == "cpu" and name in ("fp16", "tf32"):
        what = {"fp16": "slower than fp32", "tf32": "the same as fp32"}[name]
        click.echo(f"Note: --precision {name} is meant for GPUs; on a CPU it is {what}.", err=True)
    return choose(name, device)


def pick_device(name: str) -> "torch.device":
    """The torch device of `auto`, `cpu`, `cuda` or `mps`. Raises click.UsageError where this machine has none."""
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        there = ", ".join(device for device, there in available.items() if there)
        raise click.UsageError(f"--device {name}: this machine, or this build of PyTorch, has none; available: {there}")
    return torch.device(name)
