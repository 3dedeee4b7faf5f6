"""What `stylegen project` is given: pictures, or what is left of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import NotFoundError, UsageError, UserError

if TYPE_CHECKING:
    from torch import Tensor

Size = tuple[int, int]


def _itself(made: "Tensor") -> "Tensor":
    return made


@dataclass(frozen=True)
class Problem:
    """targets [N, C, h, w], what the search compares with; given [N, C, H, W], the same to be looked at.

    finish: pictures that were found [N, C, H, W] -> results, with what is known put in.
    """

    degrade: Any
    targets: "Tensor"
    given: "Tensor"
    finish: Callable[["Tensor"], "Tensor"] = field(default=_itself)


def pose(
    paths: tuple[Path, ...],
    channels: int,
    size: Size,
    fit: str,
    mask: Path | None,
    downsample: int | None,
    gray: bool,
    denoise: float | None,
    seed: int,
) -> Problem:
    """The problem of these options, on the CPU. Raises UserError, click.UsageError for what does not go together."""
    import torch
    import torch.nn.functional as F

    from stylegen import degradations

    chosen = {"--mask": mask, "--downsample": downsample, "--gray": gray or None, "--denoise": denoise}
    names = [name for name, value in chosen.items() if value is not None]
    if len(names) > 1:
        raise click.UsageError(f"{' and '.join(names)} are different problems; give one")
    if downsample:
        if any(side % downsample for side in size):
            raise click.UsageError(f"--downsample {downsample} does not divide this network's {size[1]}x{size[0]}")
        small = (size[0] // downsample, size[1] // downsample)
        targets = torch.stack([read(path, channels, small, fit) for path in paths])
        given = F.interpolate(targets, size, mode="nearest")
        return Problem(degradations.Downsampled(downsample), targets, given)
    targets = torch.stack([read(path, channels, size, fit) for path in paths])
    if mask:
        known = read_mask(mask, size)

        def fill(made: "Tensor") -> "Tensor":
            pairs = zip(targets, made, strict=True)
            return torch.stack([degradations.seamless(target, found, known) for target, found in pairs])

        holes = targets * known
        return Problem(degradations.Masked(known[None]), holes, holes, fill)
    if gray:
        if channels < 3:
            raise click.UsageError("--gray: this network makes grey pictures already")
        grey = degradations.Grey()
        targets = grey(targets, torch.arange(len(targets)))

        def colour(made: "Tensor") -> "Tensor":
            """Colours of `made`, brightness as given."""
            return torch.cat([made[:, :3] - degradations.luma(made) + targets[:, :3], made[:, 3:]], 1)

        return Problem(grey, targets, targets, colour)
    if denoise is not None:
        return Problem(degradations.Noisy(denoise, targets.shape[1:], seed), targets, targets)
    return Problem(degradations.Whole(), targets, targets)


def read(path: Path, channels: int, size: Size, fit: str) -> "Tensor":
    """A picture as float [C, H, W] in [-1, 1]. Raises UserError for what is no picture, OSError."""
    import torch

    from stylegen.images import to_float
    from stylegen.training import pictures

    if channels not in pictures.MODES:
        raise UserError(f"this network makes pictures of {channels} channels; projection compares 1, 3 or 4")
    background = (255, 255, 255, 0 if channels == 4 else 255)
    image = pictures.to_channels(_decode(path), channels, background)
    image = pictures.center(pictures.fit(image, size, fit), size, background)
    return to_float(torch.from_numpy(pictures.to_pixels(image).copy()))


def read_mask(path: Path, size: Size) -> "Tensor":
    """float [1, H, W]: 0 where the mask is white, which is to be filled, 1 elsewhere. Raises UserError."""
    import torch

    from stylegen.config import size_text
    from stylegen.training import pictures

    image = _decode(path)
    if (image.height, image.width) != size:
        given = size_text((image.height, image.width))
        raise UserError(f"{path} is {given}; a mask must have the network's {size_text(size)}, white where to fill")
    pixels = torch.from_numpy(pictures.to_pixels(pictures.to_channels(image, 1, (0, 0, 0, 255))).copy())
    known = (pixels < 128).float()
    if not known.any() or known.all():
        raise UserError(f"{path} is {'black: there is nothing to fill' if known.any() else 'white: nothing is known'}")
    return known


def _decode(path: Path) -> Any:
    from stylegen.training import pictures

    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the pictures in it, as {path}/*.png")
    if not path.is_file():
        raise NotFoundError(f"there is no picture {path}")
    try:
        return pictures.decode(path)
    except OSError:
        raise UserError(f"{path} is not a picture that can be read; give PNG, JPEG, WebP, TIFF or BMP") from None
