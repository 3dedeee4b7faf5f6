"""However many workers and micro-batches a batch is shared out to, the run is the same."""

import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import NETWORKS, PROGRAM, SETTINGS, data_zip, invoke, rows, train_arguments
from torch import Tensor

from stylegen import presets
from stylegen.checkpoint import load_tensors
from stylegen.config import Config, override
from stylegen.training import distributed, step
from stylegen.training.dataset import Loader, open_dataset
from stylegen.training.distributed import ALONE, Crew
from stylegen.training.state import fresh, saved_config

CPU = torch.device("cpu")
STEPS = 20  # of 12: into the third phase
GROWING = [f"generator.{name}={value}" for name, value in NETWORKS.items()]
GROWING += [f"{name}={value}" for name, value in SETTINGS.items()]
GROWING += ["schedule.batch_default=12", "schedule.hold_kimg=.1", "schedule.fade_kimg=.1"]
PLAIN = ["generator.fmap_max=16", "discriminator.fmap_max=16", "generator.latent_size=16", "schedule.batch_default=12"]
VARIANTS: dict[str, tuple[str, str | None, list[str]]] = {  # preset, loss, settings
    "stylegan": ("small-32", None, ["loss.r1_gamma=1", "loss.penalty_interval=2", "loss.mixing_probability=0.9"]),
    "progan": ("progan-1024", "wgan-gp", ["schedule.batch=4:12"]),
    "dcgan": ("dcgan-64", None, PLAIN),
    "whole": ("small-32", None, ["loss.feature_matching=1", "discriminator.mbdisc_features=4"]),
    "pairs": ("small-32", "rpgan", ["training.augment=color,translation,cutout", "loss.label_flip=0.2"]),
}
BY_PARTS = ("stylegan", "progan", "pairs")  # the others need the whole batch at once
WAYS = {"2 workers": (2, None), "3 workers": (3, None), "micro-batches": (1, 4), "2 workers, micro-batches": (2, 4)}

Result = tuple[dict[str, Tensor], dict[str, float], dict[str, float]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_zip(tmp_path_factory.mktemp("data") / "noise.zip", classes=3)


def configured(variant: str) -> Config:
    preset, loss, settings = VARIANTS[variant]
    config = presets.preset(preset, (16, 16), 3, 3 if variant == "stylegan" else 0)
    config = presets.with_loss(config, loss) if loss else config
    for setting in (GROWING if preset != "dcgan-64" else []) + settings:
        config = override(config, setting)
    return presets.resolve(config)


def trained(data: Path, variant: str, crew: Crew, most: int | None, steps: int) -> Result:
    """(tensors, last statistics, largest gradient of each parameter) after some steps, in the default dtype."""
    config = configured(variant)
    with ExitStack() as stack:
        g = config.generator
        loader = Loader(
            open_dataset(str(data)), base=g.base, levels=g.levels, seed=0, mirror=True, cond=g.label_size > 0,
            workers=0, cache="none",
        )  # fmt: skip
        stack.enter_context(closing(loader))
        state = fresh(config, CPU)
        for network in (state.G, state.D, state.G_ema):
            distributed.share_statistics(network, crew)
            for module in network.modules():
                if hasattr(module, "compute_dtype"):
                    module.compute_dtype = torch.get_default_dtype()
        largest: dict[str, float] = {}
        for _ in range(steps):
            stats = step.iterate(state, _Wide(loader), crew, most=most)
            for prefix, network in (("G", state.G), ("D", state.D)):
                for name, parameter in network.named_parameters():
                    if parameter.grad is not None:
                        size = parameter.grad.abs().max().item()
                        largest[f"{prefix}/{name}"] = max(largest.get(f"{prefix}/{name}", 0.0), size)
    return state.tensors(), {name: value.item() for name, value in stats.items()}, largest


class _Wide:
    """A loader whose labels have the default dtype."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def batch(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        images, labels = self.loader.batch(*arguments)
        return images, labels.to(torch.get_default_dtype())


def worker(rank: int, ports: list[int], data: Path, out: Path) -> None:
    """One of three processes: what each of WAYS gives goes to a file of its name, the plain run's to "whole"."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": str(rank)}
    to_float = step.to_float
    step.to_float = lambda images: to_float(images).to(torch.get_default_dtype())

    def all_variants(crew: Crew, most: int | None) -> None:
        found = {}
        torch.set_default_dtype(torch.float32)
        found["first step"] = trained(data, "stylegan", crew, most, 1)
        torch.set_default_dtype(torch.float64)
        for variant in VARIANTS if most is None else BY_PARTS:
            found[variant] = trained(data, variant, crew, most, STEPS)
        torch.set_default_dtype(torch.float32)
        if crew.chief:
            torch.save(found, out / f"{crew.size}-{most}.pt")

    for size, port in ((3, ports[0]), (2, ports[1])):
        if rank >= size:
            break
        os.environ |= {"WORLD_SIZE": str(size), "MASTER_PORT": str(port)}
        for most in (None, 4) if size == 2 else (None,):
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(most or 0)
            if most:
                os.environ["MASTER_PORT"] = str(ports[2])
            distributed.joined(CPU, 60, lambda crew, most=most: all_variants(crew, most))
    if rank < 2:  # at the same time
        all_variants(ALONE, 4 if rank else None)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def results(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int | None], dict[str, Result]]:
    out = tmp_path_factory.mktemp("results")
    torch.multiprocessing.spawn(worker, (free_ports(3), data, out), nprocs=3)
    return lambda size, most: torch.load(out / f"{size}-{most}.pt")


def relative(difference: Tensor, scale: Tensor) -> float:
    return (difference.double().norm() / scale.double().norm().clamp_min(1e-300)).item()


def part_of(name: str) -> str:
    """The parameter that a tensor of the state belongs to."""
    network, _, rest = name.removeprefix("opt_").partition("/")
    network = network.removesuffix("_ema").upper()
    return f"{network}/{rest.partition('.exp_avg')[0]}"


# Their gradients are 0 but for rounding, which Adam turns into steps as large as any: instance norm takes out what is
# added to a constant map, and a relativistic loss sees differences of scores only. Nothing else depends on them.
ADRIFT = {
    "stylegan": {"G/synthesis.layers.0.bias"},
    "whole": {"G/synthesis.layers.0.bias"},
    "pairs": {"G/synthesis.layers.0.bias", "D/tail.dense1.bias"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_float64_all_is_the_same(variant: str, results: Callable[[int, int | None], dict[str, Result]]) -> None:
    """Growth, noise, mixing, penalties, batch statistics, augmentation: 20 steps of Adam differ by rounding only."""
    whole, statistics, largest = results(1, None)[variant]
    assert {name for name, gradient in largest.items() if gradient < 1e-10} == ADRIFT.get(variant, set())
    torch.set_default_dtype(torch.float64)
    try:
        start = fresh(configured(variant), CPU).tensors()
    finally:
        torch.set_default_dtype(torch.float32)
    moved = {name: tensor - start[name] if name in start else tensor for name, tensor in whole.items()}
    assert sum(bool(change.any()) for change in moved.values()) > 0.8 * len(moved)
    for way, (size, most) in WAYS.items():
        if most and variant not in BY_PARTS:
            continue
        ours, said, _ = results(size, most)[variant]
        assert ours.keys() == whole.keys() and said.keys() == statistics.keys()
        worst = {
            name: relative(ours[name] - whole[name], change)
            for name, change in moved.items()
            if part_of(name) not in ADRIFT.get(variant, ()) and not ours[name].equal(whole[name])
        }
        assert not {name: value for name, value in worst.items() if value > 1e-9}, way
        assert said == pytest.approx(statistics, rel=1e-9), way


def test_in_float32_the_first_step_is_the_same(results: Callable[[int, int | None], dict[str, Result]]) -> None:
    """Later ones drift apart: while moments are young, Adam's updates are little more than signs of gradients."""
    whole = results(1, None)["first step"][0]
    start = fresh(configured("stylegan"), CPU).tensors()
    for way, (size, most) in WAYS.items():
        ours = results(size, most)["first step"][0]
        for prefix in ("G/", "D/"):
            before, theirs, found = (together(tensors, prefix) for tensors in (start, whole, ours))
            assert relative(found - theirs, theirs) < 1e-5, way
            assert relative(found - theirs, theirs - before) < 1e-4, way


def together(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    """All of a network that is not adrift."""
    names = [name for name in sorted(tensors) if name.startswith(prefix) and name not in ADRIFT["stylegan"]]
    return torch.cat([tensors[name].flatten() for name in names])


SGD = ["--batch", "12", "--precision", "fp32", "--set", "optimizer.name=sgd", "--set", "optimizer.beta1=0.5"]
SGD += ["--lr", ".0003", "--gamma", "1", "--set", "loss.mixing_probability=0.9", "--mirror"]
OFTEN = ["--set", "schedule.tick_kimg_default=.024"]


def program(arguments: list[str]) -> str:
    """What the real command line says on its way to success."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "alone"
    invoke(train_arguments(data, run, *SGD, *OFTEN, kimg=0.24))
    return run


@pytest.mark.parametrize("workers", [2, 3])
def test_in_float32_with_sgd(workers: int, data: Path, alone: Path, tmp_path: Path) -> None:
    """Rounding stays rounding where no moments blow it up, through the real command line."""
    run = tmp_path / "run"
    program(train_arguments(data, run, *SGD, *OFTEN, "--gpus", workers, kimg=0.24))
    ours, theirs = (load_tensors(folder / "state.ckpt")[0] for folder in (run, alone))
    assert ours.keys() == theirs.keys()
    worst = {name: relative(ours[name] - theirs[name], theirs[name]) for name in ours if name.startswith(("G", "D"))}
    first = {name for name in worst if name.endswith("synthesis.layers.0.bias")}  # its gradient is 0 but for rounding
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in first)
    assert not {name: value for name, value in worst.items() if value > 1e-5 and name not in first}
    files = [{path.name for path in folder.rglob("*") if "tfevents" not in path.name} for folder in (run, alone)]
    assert files[0] == files[1]
    for a, b in zip(rows(run), rows(alone), strict=True):
        assert a.keys() == b.keys()
        assert (a["images_seen"], a["alpha"]) == (b["images_seen"], b["alpha"])
        assert a["loss/d"] == pytest.approx(b["loss/d"], rel=1e-4)


def test_the_same_number_of_workers_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    """Adam, growth, two workers with two micro-batches each; twice at once, which takes two ports."""
    a, b = tmp_path / "a", tmp_path / "b"
    options = ["--gpus", "2", "--micro-batch", "2", "--set", "discriminator.mbstd_group=2"]
    commands = [[*PROGRAM, *train_arguments(data, run, *options)] for run in (a, b)]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in started:
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    for name in ("state.ckpt", "network-000000.safetensors", "previews/kimg-000000.104.png", "config.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_workers_may_change_on_resume(data: Path, alone: Path, tmp_path: Path) -> None:
    """One worker, then two, then one: no step is lost or repeated, and the figures stay those of one."""
    run = tmp_path / "run"
    for kimg, workers in ((0.072, 1), (0.168, 2), (0.24, 1)):
        arguments = train_arguments(data, run, *SGD, *OFTEN, "--resume", "--gpus", workers, kimg=kimg)
        said = invoke(arguments).stderr if workers == 1 else program(arguments)
        assert f"Finished at {kimg:g} kimg" in said
        assert saved_config(run / "state.ckpt")[1] == 1000 * kimg
    for a, b in zip(rows(run), rows(alone), strict=True):
        assert a["images_seen"] == b["images_seen"]
        assert a["loss/d"] == pytest.approx(b["loss/d"], rel=1e-4)
    ours, theirs = (load_tensors(folder / "state.ckpt")[0] for folder in (run, alone))
    for name in ours:
        if name.startswith("G_ema"):
            assert relative(ours[name] - theirs[name], theirs[name]) < 1e-5 or not theirs[name].any(), name
