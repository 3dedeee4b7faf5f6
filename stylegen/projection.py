"""Pictures to latents: the latents whose pictures look most like given ones (Karras et al. 2020, appendix D)."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .degradations import Degradation, Whole
from .latents import draw
from .perceptual import Perceptual

SAMPLES = 10_000  # of w, whose mean and deviation are the start and the unit of the search
START_PSI = 0.7  # truncation of the samples among which the search starts
WHOLE = Whole()
PATIENCE_MIN = 5  # steps; fewer tell nothing
PIXELS = 20.0  # makes squared differences as large as perceptual ones where both are small
PYRAMID_MIN = 8  # the smallest side at which noise maps are compared with themselves


@dataclass(frozen=True)
class Settings:
    """Of a projection. Learning rate and noise of w are in units of the deviation of w's elements.

    Ramps and noise_weight are those of StyleGAN2's projector. The others were chosen on emoji at 64x64, where 200 steps
    find eight generated pictures to a median of 46 dB; lr 0.1, w_noise 0.2 and pixels 1 find them to 40.
    """

    space: str = "w"  # or "w+": every layer its own
    steps: int = 1000
    lr: float = 0.2
    rampup: float = 0.05
    rampdown: float = 0.25
    w_noise: float = 0.05
    w_noise_until: float = 0.75
    noise_weight: float = 1e5
    pixels: float = PIXELS  # weight of the mean squared difference of pixels in [-1, 1]
    deviation: float = 0.01  # w+: weight of the layers' mean squared distance from their average
    starts: int = 1000  # latents among which the search starts; 0: at the average
    patience: float = 0.15  # stops when so long a part of the steps brought nothing; 0: never
    seed: int = 0


@dataclass
class Projection:
    """w [N, num_layers, style_size] and noise maps by layer (none without noise inputs); losses [steps run, N]."""

    w: Tensor
    noise: dict[str, Tensor]
    losses: Tensor


def project(
    G: Any,
    targets: Tensor,
    perceptual: Perceptual,
    settings: Settings,
    labels: Tensor | None = None,
    *,
    degrade: Degradation = WHOLE,
    prior: Callable[[Tensor], Tensor] | None = None,
    each: Callable[[int, Tensor, Tensor], None] | None = None,
    **stage: Any,
) -> Projection:
    """The latents of `targets` float [N, C, H, W] in [-1, 1], all at once, each as if it were alone.

    Minimises perceptual distance + pixels * MSE, of degrade(picture) against `targets`, which are degraded already,
    plus the penalties of `settings` and prior(picture) [N]. `labels` [N, label_size]: whose w a conditional network
    starts from. `each` is called with (step, losses [N], w) after every step; `stage`: G's resolution and alpha.
    """
    rows = torch.arange(len(targets))
    device = G.w_avg.device
    generator = torch.Generator(device).manual_seed(settings.seed)
    with torch.no_grad():
        wanted = perceptual.embed(targets)
        centre, unit = statistics(G, labels, len(targets))
        start = best_start(G, targets, wanted, perceptual, settings, labels, degrade, centre, stage)
    layers = G.num_layers if settings.space == "w+" else 1
    offsets = ((start - centre) / unit)[:, None].repeat(1, layers, 1).requires_grad_()
    with own_noise(G, len(targets), generator) as noise:
        optimizer = torch.optim.Adam([offsets, *noise.values()], betas=(0.9, 0.999))
        history: list[Tensor] = []
        step, ends = 0, settings.steps
        while step < ends:
            t = 1 - (ends - step) / settings.steps  # jumps towards the end when a plateau brings it nearer
            optimizer.param_groups[0]["lr"] = settings.lr * ramp(t, settings)
            strength = settings.w_noise * max(0.0, 1 - t / settings.w_noise_until) ** 2
            shaken = offsets + strength * torch.randn(offsets.shape, generator=generator, device=device)
            w = (centre[:, None] + unit * shaken).expand(-1, G.num_layers, -1)
            images = G.synthesis(w, **stage)
            seen = degrade(images, rows)
            loss = distance(seen, targets, wanted, perceptual, settings.pixels, degrade.weight)
            total = loss + settings.noise_weight * noise_penalty(noise, len(targets))
            if settings.space == "w+":
                spread = (offsets - offsets.mean(1, keepdim=True)).square().mean((1, 2))
                total = total + settings.deviation * spread
            if prior is not None:
                total = total + prior(images)
            optimizer.zero_grad(set_to_none=True)
            total.sum().backward()
            optimizer.step()
            renormalise(noise)
            history.append(loss.detach().cpu())
            step += 1
            if each:
                each(step, history[-1], w.detach())
            left = round(settings.rampdown * settings.steps)
            if ends - step > left and plateau(history, settings):
                ends = step + left
        w = (centre[:, None] + unit * offsets.detach()).expand(-1, G.num_layers, -1)
        return Projection(w.cpu(), {name: x.detach().cpu() for name, x in noise.items()}, torch.stack(history))


def distance(
    images: Tensor, targets: Tensor, wanted: Tensor, perceptual: Perceptual, pixels: float, weight: Tensor | None = None
) -> Tensor:
    """[N]: perceptual distance to `wanted`, the targets' embedding, + pixels * mean squared difference, weighted."""
    loss = (perceptual.embed(images) - wanted).square().sum(1)
    if not pixels:
        return loss
    squares = (images - targets).square()
    return loss + pixels * (squares if weight is None else squares * weight).mean((1, 2, 3))


def groups(labels: Tensor | None, count: int) -> list[tuple[Tensor | None, Tensor]]:
    """(label, rows that have it) of each kind there is among `count`."""
    if labels is None:
        return [(None, torch.arange(count))]
    kinds, which = labels.unique(dim=0, return_inverse=True)
    return [(kind, (which == k).nonzero().flatten().cpu()) for k, kind in enumerate(kinds)]


@torch.no_grad()
def statistics(G: Any, labels: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """Of w, over SAMPLES latents: means [count, style_size], of the own class, and the deviation of one element."""
    device = G.w_avg.device
    z = draw(SAMPLES, G.config.latent_size).to(device)
    means, variances = torch.empty(count, G.config.style_size, device=device), []
    for label, rows in groups(labels, count):
        w = G.mapping(z, None if label is None else label.expand(len(z), -1))[:, 0]
        means[rows] = w.mean(0)
        variances.append((w - w.mean(0)).square().mean())
    return means, torch.stack(variances).mean().sqrt()


@torch.no_grad()
def best_start(
    G: Any,
    targets: Tensor,
    wanted: Tensor,
    perceptual: Perceptual,
    settings: Settings,
    labels: Tensor | None,
    degrade: Degradation,
    means: Tensor,
    stage: dict[str, Any],
) -> Tensor:
    """w [N, style_size]: for each target the best of `starts` samples, or `means` where there are none."""
    found, best = means.clone(), torch.full((len(targets),), math.inf, device=means.device)
    if not settings.starts:
        return found
    z = draw(settings.starts, G.config.latent_size, settings.seed).to(means.device)
    for label, rows in groups(labels, len(targets)):
        for part in z.split(32):
            w = G.truncate(
                G.mapping(part, None if label is None else label.expand(len(part), -1)),
                START_PSI,
                G.num_layers,
                means[rows[:1]].expand(len(part), -1),
            )
            images = G.synthesis(w, **stage)
            for mine in rows[:, None] if degrade.each else [rows]:
                seen = degrade(images, mine)
                losses = torch.cdist(wanted[mine], perceptual.embed(seen)).square()
                losses += (
                    settings.pixels * torch.cdist(targets[mine].flatten(1), seen.flatten(1)).square() / seen[0].numel()
                )
                least, which = losses.min(1)
                better = mine[(least < best[mine]).cpu()]
                found[better] = w[which[(least < best[mine])], 0]
                best[mine] = torch.minimum(least, best[mine])
    return found


@contextmanager
def own_noise(G: Any, count: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """Layer name -> noise maps [count, 1, H, W] to be optimised, in the place of G's own; none of a G without noise."""
    layers = {name: layer for name, layer in G.synthesis.named_modules() if "noise" in layer._buffers}
    before = {name: layer.noise for name, layer in layers.items()}
    noise = {}
    try:
        for name, layer in layers.items():
            shape = (count, 1, *layer.noise.shape[2:])
            noise[name] = torch.randn(shape, generator=generator, device=layer.noise.device).requires_grad_()
            layer.noise = noise[name]
        yield noise
    finally:
        for name, layer in layers.items():
            layer.noise = before[name]


def noise_penalty(noise: dict[str, Tensor], count: int) -> Tensor:
    """[count]: how far maps are from noise: their squared autocorrelation one pixel away, on a pyramid.

    Karras et al. 2020, equation 6, with 2x2 averages that are scaled to unit variance again, down to PYRAMID_MIN.
    """
    total = torch.zeros(count)
    for maps in noise.values():
        total = total.to(maps.device)
        while True:
            for dim in (2, 3):
                total = total + (maps * maps.roll(1, dim)).mean((1, 2, 3)).square()
            if min(maps.shape[2:]) <= PYRAMID_MIN:
                break
            maps = 2 * F.avg_pool2d(maps, 2)
    return total


@torch.no_grad()
def renormalise(noise: dict[str, Tensor]) -> None:
    """Every map to mean 0 and mean square 1."""
    for maps in noise.values():
        maps -= maps.mean((1, 2, 3), keepdim=True)
        maps *= maps.square().mean((1, 2, 3), keepdim=True).rsqrt()


def ramp(t: float, settings: Settings) -> float:
    """Of the learning rate at the part t of the steps: linear up, cosine down."""
    down = min(1.0, (1 - t) / settings.rampdown) if settings.rampdown else 1.0
    up = min(1.0, t / settings.rampup) if settings.rampup else 1.0
    return (0.5 - 0.5 * math.cos(math.pi * down)) * up


def plateau(history: list[Tensor], settings: Settings) -> bool:
    """Whether the last `patience` part of the steps lowered no target's least loss by 1%."""
    window = round(settings.patience * settings.steps)
    if window < PATIENCE_MIN or len(history) < 2 * window:
        return False
    losses = torch.stack(history)
    return bool((losses[-window:].min(0).values > 0.99 * losses[:-window].min(0).values).all())


def tune(
    G: Any,
    w: Tensor,
    targets: Tensor,
    perceptual: Perceptual,
    *,
    steps: int = 350,
    lr: float = 2e-3,
    pixels: float = PIXELS,
    degrade: Degradation = WHOLE,
    each: Callable[[int, Tensor], None] | None = None,
    **stage: Any,
) -> Any:
    """A copy of G that makes `targets` of w: pivotal tuning (Roich et al. 2022, equation 2), all pivots at once.

    The learning rate has the ramps of a projection.
    """
    rows = torch.arange(len(targets))
    tuned = copy.deepcopy(G).requires_grad_(True)
    optimizer = torch.optim.Adam(tuned.synthesis.parameters(), lr=lr)
    with torch.no_grad():
        wanted = perceptual.embed(targets)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * ramp(step / steps, Settings())
        seen = degrade(tuned.synthesis(w, **stage), rows)
        loss = distance(seen, targets, wanted, perceptual, pixels, degrade.weight)
        optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        optimizer.step()
        if each:
            each(step + 1, loss.detach().cpu())
    return tuned.requires_grad_(False)
