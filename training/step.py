"""One training iteration: D steps, the average of G, a G step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylegen.config import Config, resolution_of
from stylegen.images import fade_reals, to_float
from stylegen.networks.layers import shared_kernels
from stylegen.networks.stylegan import Generator as StyleGAN

from . import ema, losses, optim, rng
from .ada import ada, adapt
from .augment import augment
from .dataset import Loader
from .distributed import ALONE, Crew
from .schedule import Stage, due, phase_of, stage_at
from .share import Share, group_of, shares
from .state import TrainState

Stats = dict[str, Tensor]
ADA_STEPS = 4  # of D, between two looks at how well it knows the reals
AVERAGE_W = "w"  # beside the statistics: the mean of w over the batch, [style_size]


@dataclass(frozen=True)
class Part:
    """A micro-batch: reals [n, C, H, W] in [-1, 1], labels [n, label_size], and which samples of the batch they are."""

    reals: Tensor
    labels: Tensor
    share: Share


def iterate(
    state: TrainState, loader: Loader, crew: Crew = ALONE, *, most: int | None = None, also: Stats | None = None
) -> Stats:
    """`n_critic` D steps, each followed by the average of G, then one G step. Advances `state.images_seen`.

    Everything random is drawn from (seed, images_seen) and the place in the batch, so the state after it depends on the
    state before it only: each worker of the `crew` computes its share, in micro-batches of at most `most` samples, and
    all get the sum. Returns statistics of the whole batch, and `also` added up over the workers.
    """
    config, start = state.settings, state.images_seen
    stage = stage_at(config, start)
    split = shares(stage.batch, group_of(config), crew.rank, crew.size, most)
    for optimizer in (state.opt_g, state.opt_d):
        optim.set_lr(optimizer, stage.lr)
    stats = dict(also or {})
    for turn in range(config.loss.n_critic):
        crew.begin("reading pictures")
        parts = load(state, loader, stage, split)
        crew.begin("computing")
        found = (stats if turn == 0 else {}) | d_gradients(state, stage, parts)
        state.images_seen += stage.batch
        added = crew.add([*optim.gradients(state.opt_d), *found.values()])
        if turn == config.loss.n_critic - 1:  # while the others' gradients come in
            fakes = fake_images(state, stage, parts[0], "g")
        added()
        stats |= update(state, "d", stage.batch, found)
        ema.update(state.G_ema, state.G, ema.beta(config.training, stage.batch, state.images_seen))
    found = g_gradients(state, stage, parts, fakes, crew)
    crew.add([*optim.gradients(state.opt_g), *found.values()])()
    stats |= update(state, "g", stage.batch, found)
    if phase_of(config, start) != phase_of(config, state.images_seen):
        optim.reset(state.opt_g)
        optim.reset(state.opt_d)
    return stats


def load(state: TrainState, loader: Loader, stage: Stage, split: list[Share]) -> list[Part]:
    """The next batch, as far as it is this worker's."""
    which = [index for share in split for index in share.indices]
    images, labels = loader.batch(state.images_seen, stage.batch, stage.level, which)
    reals = fade_reals(to_float(images.to(state.device)), stage.alpha)
    sizes = [len(share.indices) for share in split]
    pieces = reals.split(sizes), labels.to(state.device).split(sizes), split
    return [Part(*piece) for piece in zip(*pieces, strict=True)]


def d_gradients(state: TrainState, stage: Stage, parts: list[Part]) -> Stats:
    """Puts the gradients of D's loss into its parameters; returns statistics."""
    config, seen = state.settings, state.images_seen
    loss_config = config.loss
    every = loss_config.penalty_interval * stage.batch
    draw = rng.generator(config.training.seed, "d/loss", seen)
    mixing_factors = torch.rand(stage.batch, 1, 1, 1, generator=draw)
    flips = torch.rand(stage.batch, 1, generator=draw) < loss_config.label_flip
    stats: Stats = {}
    state.opt_d.zero_grad()
    for part in parts:
        with torch.no_grad():
            fakes, averages = fake_images(state, stage, part, "d")
        with shared_kernels(state.D):
            loss, found = losses.d_loss(
                loss_config,
                _discriminate(state, stage, _eyes(state, "d", seen, part.share)),
                part.reals,
                fakes,
                part.labels,
                penalise=loss_config.penalty_interval == 1 or due(every, seen, seen + stage.batch),
                mixing_factors=part.share.of(mixing_factors).to(state.device),
                flips=part.share.of(flips).to(state.device) if loss_config.label_flip else None,
                upscale=float(1 << (config.generator.levels - 1 - stage.level)),
            )
            optim.backward(_weighed(loss, part.share.weight), state.opt_d)
        _add(stats, found | averages, part.share.weight)
    return stats


def g_gradients(state: TrainState, stage: Stage, parts: list[Part], first: tuple[Tensor, Stats], crew: Crew) -> Stats:
    """Puts the gradients of G's loss into its parameters; returns statistics.

    first: the pictures of the first part. Reals matter to relativistic objectives and feature matching only.
    """
    stats: Stats = {}
    trained = [parameter for parameter in state.D.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    state.opt_g.zero_grad()
    for number, part in enumerate(parts):
        fakes, averages = first if number == 0 else fake_images(state, stage, part, "g")
        eyes = _eyes(state, "g", state.images_seen, part.share)
        discriminate = _discriminate(state, stage, eyes)
        features = _features(state, stage, eyes, crew, part.share.total)
        loss, found = losses.g_loss(
            state.settings.loss, discriminate, fakes, part.labels, reals=part.reals, features=features
        )
        _add(stats, found | averages, part.share.weight)
        optim.backward(_weighed(loss, part.share.weight), state.opt_g)
    for parameter in trained:
        parameter.requires_grad_(True)
    return stats


def update(state: TrainState, role: str, batch: int, stats: Stats) -> Stats:
    """Applies the gradients at hand to D ("d") or G ("g"), and moves the average of w; returns the statistics."""
    stats = dict(stats)
    if AVERAGE_W in stats:
        assert isinstance(state.G, StyleGAN)
        state.G.update_w_avg(stats.pop(AVERAGE_W)[None, None])
    norm = optim.step(state.opt_d if role == "d" else state.opt_g)
    stats[f"skipped/{role}"] = torch.tensor(float(norm is None))
    if norm is not None:
        stats[f"health/grad_norm_{role}"] = norm
    if role == "d" and "ada" in state.config.training.augment:
        _adapt(state, float(stats["signs/real"]), batch)
        stats["augment/p"] = state.ada[0].clone()
    if role == "d" and (limit := state.config.loss.weight_clip) > 0:
        losses.clip_weights(state.D, limit)
    return stats


def fake_images(state: TrainState, stage: Stage, part: Part, role: str) -> tuple[Tensor, Stats]:
    """(pictures [n, C, H, W] of G in training mode: random noise, style mixing; the mean of w as AVERAGE_W, if any)."""
    config, G, seen = state.config, state.G, state.images_seen
    draw = rng.generator(config.training.seed, f"{role}/latents", seen)
    z1, z2 = torch.randn(2, stage.batch, config.generator.latent_size, generator=draw)
    z1, z2 = (part.share.of(z).to(state.device) for z in (z1, z2))
    where = {"resolution": stage.resolution, "alpha": stage.alpha}
    if not isinstance(G, StyleGAN):
        return G(z1, part.labels, **where), {}
    w = G.mapping(z1, part.labels)
    averages = {AVERAGE_W: w[:, 0].detach().mean(0)}
    cut = mixing_cut(config, stage, torch.rand(2, generator=draw).tolist())
    if cut < G.num_layers:
        w = torch.cat([w[:, :cut], G.mapping(z2, part.labels)[:, cut:]], 1)
    return G.synthesis(w, **where, noise=noise_maps(state, stage, part.share, role)), averages


def noise_maps(state: TrainState, stage: Stage, share: Share, role: str) -> list[Tensor]:
    """A map [n, 1, H, W] for each layer in use, each sample's from its own seed; none where G takes no noise."""
    config = state.config
    if not config.generator.noise:
        return []
    sizes = [resolution_of(config.generator, index // 2) for index in range(2 * (stage.level + 1))]
    areas = [height * width for height, width in sizes]
    draw = torch.Generator(state.device)
    flat = torch.empty(len(share.indices), sum(areas), device=state.device)
    for row, index in zip(flat, share.indices, strict=True):
        draw.manual_seed(rng.key(config.training.seed, f"{role}/noise", state.images_seen, index))
        row.normal_(generator=draw)
    return [piece.reshape(-1, 1, *size) for piece, size in zip(flat.split(areas, 1), sizes, strict=True)]


def mixing_cut(config: Config, stage: Stage, uniform: list[float]) -> int:
    """The layer where the second style takes over; the number of layers where no mixing happens.

    Drawn once a batch, uniformly from 1 to the last layer of the current level (Karras et al. 2019, section 3.1).
    """
    if uniform[0] >= config.loss.mixing_probability:
        return 2 * config.generator.levels
    return 1 + int(uniform[1] * (2 * (stage.level + 1) - 1))


def _adapt(state: TrainState, signs: float, batch: int) -> None:
    """Counts a batch of reals in, and every ADA_STEPS batches moves the probability of `ada`."""
    training, seen = state.config.training, state.images_seen
    state.ada[1:] += torch.tensor([signs * batch, batch])
    if due(ADA_STEPS * batch, seen - batch, seen):
        p, total, reals = state.ada.tolist()
        limits = training.ada_target, training.ada_speed_kimg, training.ada_ceiling
        state.ada = torch.tensor([adapt(p, total / reals, int(reals), *limits), 0, 0], dtype=torch.float64)


def _add(sums: Stats, found: Stats, weight: float) -> None:
    for name, value in found.items():
        sums[name] = sums.get(name, 0) + _weighed(value, weight)


def _weighed(value: Tensor, weight: float) -> Tensor:
    return value if weight == 1 else value * weight


def _eyes(state: TrainState, role: str, seen: int, share: Share) -> Callable[[Tensor], Tensor]:
    """What D is shown in place of pictures: the same, or augmented; random numbers are new at every call.

    Pictures come as several batches of the share's samples, one after another.
    """
    training = state.config.training
    draw = rng.generator(training.seed, f"{role}/augment", seen)

    def eyes(images: Tensor) -> Tensor:
        batches = range(len(images) // len(share.indices))
        which = [batch * share.total + index for batch in batches for index in share.indices]
        numbers = rng.Numbers(draw, len(batches) * share.total, which)
        if "ada" in training.augment:
            return ada(images, float(state.ada[0]), numbers, training.ada_kinds)
        return augment(images, training.augment, numbers)

    return eyes


def _discriminate(state: TrainState, stage: Stage, eyes: Callable[[Tensor], Tensor]) -> losses.Discriminate:
    def discriminate(images: Tensor, labels: Tensor, parts: int) -> tuple[Tensor, Tensor | None]:
        result = state.D(eyes(images), labels, resolution=stage.resolution, alpha=stage.alpha, parts=parts)
        return result if isinstance(result, tuple) else (result, None)

    return discriminate


def _features(
    state: TrainState, stage: Stage, eyes: Callable[[Tensor], Tensor], crew: Crew, total: int
) -> losses.Features:
    D: Any = state.D  # of any family

    def features(images: Tensor) -> Tensor:
        found = D.features(eyes(images), resolution=stage.resolution, alpha=stage.alpha)
        return found.mean(0) if crew.size == 1 else crew.all_sum(found.sum(0)) / total

    return features
