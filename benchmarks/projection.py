"""How well pictures are found again: generated ones, and real ones that NETWORK was not trained on.

HELD_OUT is a data set of those, TRAINED the one that the network knows, with whose mean picture inpainting is compared.
Prints tables of medians; with --page they go between the page's marks, and sheets into images/ beside it.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from runs import publish
from torch import Tensor
from tqdm import tqdm

from stylegen.degradations import Whole, seamless
from stylegen.images import grid, save_image, to_float, to_uint8
from stylegen.latents import from_seeds
from stylegen.metrics.similarity import psnr, ssim
from stylegen.perceptual import Perceptual, load_perceptual
from stylegen.projection import Settings, distance, project, tune
from stylegen.tools.bench_measure import markdown
from stylegen.tools.inverse import Problem, pose
from stylegen.tools.rendering import Opened, open_to_search
from stylegen.training.dataset import Dataset, open_dataset
from stylegen.training.measure import read

COUNT = 16  # pictures of each kind
FIRST_SEED = 900_000  # of the generated ones
FACTOR = 4  # of super-resolution
ALONE = 3  # pictures projected one by one
FIGURES = ["perceptual distance", "PSNR", "SSIM"]


def figures(made: Tensor, wanted: Tensor, perceptual: Perceptual) -> list[str]:
    """Medians of FIGURES, of pictures [N, C, H, W] in [-1, 1] as they would be saved."""
    made = to_float(to_uint8(made))
    with torch.no_grad():
        distances = distance(made, wanted, perceptual.embed(wanted), perceptual, 0)
    return [
        f"{float(distances.median()):.3f}",
        f"{float(psnr(made, wanted).median()):.1f}",
        f"{float(ssim(made, wanted).median()):.3f}",
    ]


def search(opened: Opened, problem: Problem, perceptual: Perceptual, settings: Settings) -> tuple[Tensor, Tensor, str]:
    """(w, pictures with what is known put in, seconds a picture)."""
    begin = time.monotonic()
    with tqdm(total=settings.steps, desc=settings.space, unit=" steps") as bar:
        options: dict[str, Any] = {"degrade": problem.degrade, "each": lambda *_: bar.update(), **opened.stage}
        found = project(opened.G, problem.targets, perceptual, settings, **options)
    seconds = (time.monotonic() - begin) / len(problem.targets)
    with torch.no_grad():
        made = opened.G.synthesis(found.w, **opened.stage)
    return found.w, problem.finish(made.clamp(-1, 1)), f"{seconds:.1f}"


def whole(images: Tensor) -> Problem:
    return Problem(Whole(), images, images)


def projections(opened: Opened, real: Tensor, perceptual: Perceptual, steps: int) -> tuple[str, Tensor]:
    """The table, and a sheet of the real pictures over what was found of them."""
    given = from_seeds(range(FIRST_SEED, FIRST_SEED + COUNT), opened.G.config.latent_size)
    generated = to_float(opened.pictures(given, show=False)[1])
    rows, shown = [["pictures", "space", *FIGURES, "seconds a picture"]], [real]
    w_only, plus = Settings(steps=steps), Settings(steps=steps, space="w+")
    _, made, seconds = search(opened, whole(generated), perceptual, w_only)
    rows.append([f"{COUNT} generated", "W", *figures(made, generated, perceptual), seconds])
    for settings in (w_only, plus):
        w, made, seconds = search(opened, whole(real), perceptual, settings)
        name = settings.space.upper()
        rows.append([f"{COUNT} held-out", name, *figures(made, real, perceptual), seconds])
        shown.append(made)
        begin = time.monotonic()
        tuned = tune(opened.G, w, real, perceptual, **opened.stage)
        seconds = f"{(time.monotonic() - begin) / COUNT:.1f} more"
        with torch.no_grad():
            made = tuned.synthesis(w, **opened.stage)
        rows.append([f"{COUNT} held-out", f"{name}, tuned", *figures(made, real, perceptual), seconds])
        shown.append(made)
    parts = [search(opened, whole(real[k : k + 1]), perceptual, w_only) for k in range(ALONE)]
    alone = sorted(float(part[2]) for part in parts)[ALONE // 2]
    made = torch.cat([part[1] for part in parts])
    rows.append(["one by one", "W", *figures(made, real[:ALONE], perceptual), f"{alone:.1f}"])
    return markdown(rows), torch.cat(shown)


def problems(
    opened: Opened, real: Tensor, mean: Tensor, perceptual: Perceptual, steps: int
) -> list[tuple[str, str, Tensor]]:
    """(name, table, sheet) of inpainting the right half, and of super-resolution."""
    height, width = opened.size
    channels = opened.G.config.channels
    with TemporaryDirectory() as folder:
        paths = tuple(Path(folder, f"{k}.png") for k in range(len(real)))
        for image, path in zip(to_uint8(real), paths, strict=True):
            save_image(image, path)
        mask = np.zeros((height, width), np.uint8)
        mask[:, width // 2 :] = 255
        Image.fromarray(mask).save(Path(folder, "mask.png"))
        settings: dict[str, Any] = {"gray": False, "denoise": None, "seed": 0}
        half = pose(paths, channels, (height, width), "crop", Path(folder, "mask.png"), None, **settings)
        small = pose(paths, channels, (height, width), "crop", None, FACTOR, **settings)
    known = half.degrade.known[0]
    means = mean.expand_as(real)
    blended = torch.stack([seamless(target, image, known) for target, image in zip(real, means, strict=True)])
    bicubic = torch.stack([enlarged(image, (width, height)) for image in to_uint8(small.targets)])
    found = []
    for name, problem, others in (
        ("right half filled in", half, {"mean picture": means, "known half, mean picture blended in": blended}),
        (f"{FACTOR} times super-resolution", small, {"bicubic": bicubic}),
    ):
        rows, shown = [[name, *FIGURES, "seconds a picture"]], [real, problem.given]
        for other, images in others.items():
            rows.append([other, *figures(images, real, perceptual), "-"])
            shown.append(images)
        for space in ("w", "w+"):
            _, made, seconds = search(opened, problem, perceptual, Settings(space=space, steps=steps))
            rows.append([f"projected, {space.upper()}", *figures(made, real, perceptual), seconds])
            shown.append(made)
        found.append((name.replace(" ", "-"), markdown(rows), torch.cat(shown)))
    return found


def enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [C, h, w] -> float [C, H, W] in [-1, 1], bicubic, by Pillow."""
    pixels = image.permute(1, 2, 0).squeeze(2).numpy()
    large = np.atleast_3d(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)))
    return to_float(torch.from_numpy(large.copy()).permute(2, 0, 1))


def pictures(data: Dataset, indices: np.ndarray) -> Tensor:
    return to_float(torch.cat(list(read(data, indices))))


@click.command()
@click.argument("network")
@click.argument("held_out")
@click.argument("trained")
@click.option("--steps", default=1000, show_default=True, help="Of projections.")
@click.option("--inverse-steps", default=300, show_default=True, help="Of inpainting and super-resolution.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the tables between this page's marks.")
def main(network: str, held_out: str, trained: str, steps: int, inverse_steps: int, page: Path | None) -> None:
    opened = open_to_search(network, "cpu", COUNT)
    perceptual, name = load_perceptual("lite0"), Path(network).stem
    held, known = open_dataset(held_out), open_dataset(trained)
    each = len(held) // COUNT
    real = pictures(held, np.array([each * k + k % each for k in range(COUNT)]))  # one of each person, in all skins
    mean = pictures(known, np.arange(len(known))).mean(0)
    table, sheet = projections(opened, real, perceptual, steps)
    found = [("projection", table, sheet), *problems(opened, real, mean, perceptual, inverse_steps)]
    text = []
    for title, table, sheet in found:
        text.append(table)
        if page:
            image = f"images/{name}-{title}.png"
            save_image(grid(to_uint8(sheet), COUNT, len(sheet) // COUNT), page.parent / image)
            text.append(f"![{title.replace('-', ' ')}]({image})")
    publish(f"projection {name}", "\n\n".join(text), page)


if __name__ == "__main__":
    main()
