"""Adaptive discriminator augmentation: everything that D sees is altered with a probability p that follows D.

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data": reals and fakes pass the same random
transformations, in D's step and in G's, and gradients flow through. Each transformation is left out with probability
1 - p, so G learns the pictures as they are: what is seen most often is what nothing was done to. That fails where p
comes near 1 (section 2.2, figure 3): above about 0.85 quarter turns and colors may turn up in what G makes; scaling
does at no p.
"""

import math
from collections.abc import Callable, Collection
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stylegen.config import ADA_KINDS as KINDS
from stylegen.ops import sample2d, setup_filter, upfirdn2d

from .rng import Numbers

# The paper's names of what is done together: "bg", "bgc", ... "bgcfnc", each one kind more.
SETS = {"".join(kind[0] for kind in KINDS[:count]): KINDS[:count] for count in range(1, len(KINDS) + 1)}

# Low-pass filters of orthonormal wavelets (Daubechies 1992, "Ten Lectures on Wavelets", chapter 6.4): orthogonal to
# their shifts by even numbers, so that upsampling with one and downsampling with its mirror image is the identity.
SYM2 = (-0.12940952255126037, 0.2241438680420134, 0.8365163037378079, 0.48296291314453416)
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
# Where a low frequency comes out: the filter's middle, in pixels of the finer picture.
_MIDDLE = sum(i * tap for i, tap in enumerate(SYM6)) / sum(SYM6)
_CACHED_PX = 1 << 15  # of pictures that a processor core resamples within its caches
_POWER = torch.tensor([10, 1, 1, 1], dtype=torch.float64) / 13  # of natural pictures in the four bands


def ada(images: Tensor, p: float, numbers: Numbers, kinds: Collection[str] = SETS["bgc"]) -> Tensor:
    """images [N, C, H, W] in about [-1, 1], float32 or float64, each altered in its own way by the `kinds`, of KINDS.

    H and W are at least 2; p, in [0, 1], is the probability of each transformation. `numbers`, for N samples, advance
    by what `kinds` and the size of the pictures say, whatever p is. A picture to which nothing happens keeps its
    values, and where that are all, `images` comes back. Differentiable as often as wanted.

    "blit" moves whole pixels: mirroring, quarter turns (half turns where the sides differ), shifts by up to 1/8 of a
    side. "geometry" scales, turns and shifts by fractions of pixels. "color" is brightness, contrast, flipped luma, hue
    and saturation; of one or two channels, the first three of these on the first channel. "filter" makes bands of
    frequencies stronger or weaker, "noise" adds normal noise, "cutout" is 0 in a box of half the sides. Alpha and other
    channels past the colors are moved and cut out with them, and keep their values. Pictures go on as mirror images
    past their border. Distributions: appendix B of the paper.
    """
    height, width = images.shape[2:]
    colors = 3 if images.shape[1] >= 3 else 1
    back = torch.eye(3, dtype=torch.float64).repeat(len(images), 1, 1)
    if "blit" in kinds:
        back = back @ _blit(p, numbers, height, width)
    if "geometry" in kinds:
        back = back @ _geometry(p, numbers, height, width)
    images = _moved(images, back)
    x, others = images[:, :colors], images[:, colors:]
    before = x
    if "color" in kinds:
        x = _recolored(x, p, numbers)
    if "filter" in kinds:
        x = _filtered(x, p, numbers)
    if "noise" in kinds:
        x = _noisy(x, p, numbers)
    if x is not before:
        images = torch.cat([x, others], 1) if others.shape[1] else x
    return _cut(images, p, numbers) if "cutout" in kinds else images


def adapt(
    p: float, signs: float, images: int, target: float = 0.6, speed_kimg: float = 500.0, ceiling: float = 0.8
) -> float:
    """The next p: larger where D knows the reals by heart, smaller where it does not.

    signs: mean sign of D's scores of real pictures since the last call, in [-1, 1]; NaN changes nothing. images: how
    many reals that were. `target` is the mean sign to hold; p goes the way from 0 to 1 in `speed_kimg` thousand images
    (100 when a network is tuned to other pictures) and stays in [0, ceiling]. Section 3 of the paper, where nothing but
    0 bounds p; leaks are unlikely up to 0.8 (section 2.2).
    """
    if math.isnan(signs):
        return p
    step = images / (1000 * speed_kimg)
    return min(max(p + step * ((signs > target) - (signs < target)), 0.0), ceiling)


def _uniform(numbers: Numbers, count: int) -> Tensor:
    """[count, N] in [0, 1)."""
    return numbers.uniform(count).double().T


def _normal(numbers: Numbers, count: int) -> Tensor:
    """[count, N]."""
    return numbers.normal(count).double().T


def _some(images: Tensor, chosen: Tensor, alter: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """`images` with alter(them, *parameters) in the place of the `chosen`, bool [N]; parameters [N, ...]."""
    rows = chosen.nonzero()[:, 0]
    if len(rows) == 0:
        return images
    own = [parameter[rows].to(images) for parameter in parameters]
    if len(rows) == len(images):
        return alter(images, *own)
    rows = rows.to(images.device)
    return images.index_copy(0, rows, alter(images.index_select(0, rows), *own))


# Places. Matrices [N, 3, 3] lead from a pixel of the result to where it comes from, in pixels from the middle; every
# distribution is that of its inverse too.


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, x, c, d, y, zero, zero, one], 1).reshape(-1, 3, 3)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero = torch.zeros_like(x)
    return _matrix(x, zero, zero, y, zero, zero)


def _rotation(cos: Tensor, sin: Tensor) -> Tensor:
    zero = torch.zeros_like(cos)
    return _matrix(cos, -sin, sin, cos, zero, zero)


def _shift(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _matrix(one, zero, zero, one, x, y)


def _blit(p: float, numbers: Numbers, height: int, width: int) -> Tensor:
    on, (flip, turn, x, y) = _uniform(numbers, 3) < p, _uniform(numbers, 4)
    one = torch.ones_like(flip)
    quarters = on[1] * ((4 * turn).long() if height == width else 2 * (2 * turn).long())
    circle = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=one.dtype)
    x, y = (on[2] * ((u - 0.5) / 4 * side).round() for u, side in ((x, width), (y, height)))
    mirror = _scaling(1 - 2.0 * (on[0] & (flip < 0.5)), one)
    return mirror @ _rotation(circle[quarters], circle[(quarters + 3) % 4]) @ _shift(x, y)


def _geometry(p: float, numbers: Numbers, height: int, width: int) -> Tensor:
    either = 1 - math.sqrt(1 - p)  # of two rotations, so that the probability of any is p
    on = _uniform(numbers, 5) < torch.tensor([p, either, p, either, p], dtype=torch.float64)[:, None]
    angles, (scale, stretch, x, y) = (_uniform(numbers, 2) * 2 - 1) * math.pi, _normal(numbers, 4)
    scale, stretch = (2 ** (0.2 * z * gate) for z, gate in ((scale, on[0]), (stretch, on[2])))
    before, after = (_rotation(a.cos(), a.sin()) for a in (angles[0] * on[1], angles[1] * on[3]))
    shift = _shift(x / 8 * width * on[4], y / 8 * height * on[4])
    return _scaling(scale, scale) @ before @ _scaling(stretch, 1 / stretch) @ after @ shift


def _moved(images: Tensor, back: Tensor) -> Tensor:
    """Each picture as seen through its matrix; without interpolation where pixels come from pixels."""
    changed = (back != torch.eye(3, dtype=back.dtype)).any(2).any(1)
    whole = (back == back.round()).all(2).all(1)
    images = _some(images, changed & whole, _copied, back)
    return _some(images, changed & ~whole, _resampled, back)


def _copied(images: Tensor, back: Tensor) -> Tensor:
    rows, columns = (torch.arange(side).to(images) - (side - 1) / 2 for side in images.shape[2:])
    return sample2d(images, _places(back, rows, columns, images.shape[2:]), nearest=True)


def _resampled(images: Tensor, back: Tensor) -> Tensor:
    if images.device.type != "cpu":
        return _resampled_at_once(images, back)
    few = max(1, _CACHED_PX * torch.get_num_threads() // images[0, 0].numel())
    return torch.cat([_resampled_at_once(*pair) for pair in zip(images.split(few), back.split(few), strict=True)])


def _resampled_at_once(images: Tensor, back: Tensor) -> Tensor:
    """Twice as fine, there bilinear, and back: between the two low-passes there is room for what shrinking folds.

    A pixel of `images` is at _MIDDLE + 1 in `fine`, the next one 2 further, and is made again from what is read at
    _MIDDLE and around it. With `back` the identity the pixels of `fine` are read, and all of it is the identity.
    """
    size, taps = images.shape[2:], setup_filter(SYM6, device=images.device)
    images = images.contiguous()  # faster with so few channels
    fine = upfirdn2d(_mirrored(_mirrored(images, 2, 6), 3, 6), taps, up=2, padding=(0, -1, 0, -1), gain=4.0)
    rows, columns = ((torch.arange(2 * side + 10).to(images) - _MIDDLE - (side - 1)) / 2 for side in size)
    read = sample2d(fine, _places(back, rows, columns, size, 2, 3, _MIDDLE - 5.5))
    return upfirdn2d(read, taps, down=2, flip_filter=True)


def _places(
    back: Tensor, rows: Tensor, columns: Tensor, size: torch.Size, factor: int = 1, margin: int = 0, off: float = 0
) -> Tensor:
    """Where what is seen at (row, column) [P], [Q] comes from: [N, P, Q, 2] for `sample2d`.

    rows, columns: in pixels from the middle of pictures of `size` (H, W). What is read is `factor` times as fine, goes
    on for a `margin` of the same pixels, mirrored, and has the pictures' middle `off` of its own pixels past its own.
    """
    found = back.new_empty(len(back), len(rows), len(columns), 2)
    for axis, side in enumerate((size[1], size[0])):
        period = 2 * side - 2  # of a picture and its mirror image
        last = factor * (side + 2 * margin) - 1
        a, b, c = (back[:, axis, :, None, None] / period).unbind(1)
        place = (a * columns + c) + b * rows[:, None]
        place -= place.round()
        beyond = F.hardshrink(place - place.clamp(-0.25, 0.25), margin / period)
        found[..., axis] = place.sub_(beyond, alpha=2).mul_(2 * factor * period / last).add_(2 * off / last)
    return found


def _mirrored(x: Tensor, dim: int, margin: int) -> Tensor:
    """`x` [N, C, H, W] with `margin` more pixels at both ends of `dim`.

    As F.pad, but by any margin, and with a gradient that GPUs add up in one order.
    """
    side = x.shape[dim]
    now = min(margin, side - 1)
    ends = x.narrow(dim, 1, now).flip(dim), x.narrow(dim, side - 1 - now, now).flip(dim)
    x = torch.cat([ends[0], x, ends[1]], dim)
    return x if now == margin else _mirrored(x, dim, margin - now)


# Colors.


def _recolored(x: Tensor, p: float, numbers: Numbers) -> Tensor:
    """x [N, 3 or 1, H, W] through one affine map of the colors.

    With v the unit vector of grays, brightness b moves along v, a flipped luma is I - 2 v v', hue turns around v and
    saturation s scales across it, all of it times the contrast c: c (+-v v' + s R (I - v v')) (x + b).
    """
    on, (flip, hue), z = _uniform(numbers, 5) < p, _uniform(numbers, 2), _normal(numbers, 3)
    brightness, contrast, flip = 0.2 * z[0] * on[0], 0.5 * z[1] * on[1], 1.0 * (on[2] & (flip < 0.5))
    hue, saturation = (2 * hue - 1) * math.pi * on[3], z[2] * on[4]
    changes = [brightness, contrast, flip]
    gray = 2**contrast * (1 - 2 * flip)
    if x.shape[1] == 1:
        matrix = gray[:, None, None]
    else:
        changes += [hue, saturation]
        along = torch.full((3, 3), 1 / 3, dtype=torch.float64)
        across = torch.eye(3, dtype=torch.float64) - along
        turned = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
        chroma = (2 ** (contrast + saturation))[:, None, None]
        hue = hue[:, None, None]
        matrix = gray[:, None, None] * along + chroma * (hue.cos() * across + hue.sin() * turned)
    return _some(x, (torch.stack(changes) != 0).any(0), _mapped, matrix, gray * brightness)


def _mapped(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Sums of few terms, not a matrix product, which GPUs may round."""
    y = offset[:, None, None, None]
    for column, channel in zip(matrix.unbind(2), x.split(1, 1), strict=True):
        y = y + column[..., None, None] * channel
    return y


# Corruptions.


@lru_cache(maxsize=1)
def bands() -> Tensor:
    """Four zero-phase filters [4, 43], low to high, of [0, 1/8], [1/8, 1/4], [1/4, 1/2], [1/2, 1] of the frequencies.

    Their sum is the identity: each low-pass L(z) = h(z) h(1/z) / 2 of SYM2 leaves 1 - L to the band above.
    """
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = np.eye(7)[3] - low
    passed, found = np.ones(1), []
    for step in (1, 2, 4):
        wide_low, wide_high = (np.kron(taps, np.eye(step)[0])[: 6 * step + 1] for taps in (low, high))
        found.append(np.convolve(passed, wide_high))
        passed = np.convolve(passed, wide_low)
    found.append(passed)
    length = len(passed)
    return torch.from_numpy(np.stack([np.pad(f, (length - len(f)) // 2) for f in reversed(found)]))


def _filtered(x: Tensor, p: float, numbers: Numbers) -> Tensor:
    """Each band stronger or weaker, the expected power as before."""
    on, z = _uniform(numbers, 4) < p, _normal(numbers, 4)
    gains = torch.ones(len(x), 4, dtype=torch.float64)
    for band in range(4):
        gain = torch.ones_like(gains)
        gain[:, band] = 2 ** (z[band] * on[band])
        gains = gains * gain / (gain.square() @ _POWER).sqrt()[:, None]
    return _some(x, on.any(0), _convolved, gains @ bands())


def _convolved(x: Tensor, taps: Tensor) -> Tensor:
    """Both axes with each picture's own symmetric taps [N, k]: shifted pictures, which are cheap to differentiate."""
    for dim in (2, 3):
        side, y = x.shape[dim], None
        padded = _mirrored(x, dim, taps.shape[1] // 2)
        for i, tap in enumerate(taps.T[..., None, None, None]):
            part = padded.narrow(dim, i, side)
            y = tap * part if y is None else torch.addcmul(y, tap, part)
        assert y is not None
        x = y
    return x


def _noisy(x: Tensor, p: float, numbers: Numbers) -> Tensor:
    on, deviation = _uniform(numbers, 1)[0] < p, numbers.normal(1).abs() / 10
    noise = deviation * numbers.normal(x.shape[1:].numel())
    return _some(x, on, torch.add, noise.reshape(x.shape))


def _cut(images: Tensor, p: float, numbers: Numbers) -> Tensor:
    on, middles = _uniform(numbers, 1)[0] < p, _uniform(numbers, 2)
    size = torch.tensor([images.shape[3], images.shape[2]])[:, None]
    low, high = (((middles + quarter) * size).round() for quarter in (-0.25, 0.25))
    return _some(images, on, _boxed, *low, *high)


def _boxed(images: Tensor, *box: Tensor) -> Tensor:
    """0 from left and top to right and bottom, the pixels before these, [N] each."""
    left, top, right, bottom = (edge[:, None, None, None] for edge in box)
    y, x = (torch.arange(side).to(images) for side in images.shape[2:])
    inside = (x >= left) & (x < right) & (y[:, None] >= top) & (y[:, None] < bottom)
    return images.masked_fill(inside, 0)
