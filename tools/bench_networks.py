"""`bench generate` and `bench train`: whole networks, at every precision, against the plain-PyTorch path in float32."""

import math
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from stylegen import ops, presets
from stylegen.checkpoint import load_network
from stylegen.config import Config, size_text
from stylegen.memory import keep_freed
from stylegen.networks import build_generator
from stylegen.precision import choose, freeze, prepare
from stylegen.training.distributed import ALONE
from stylegen.training.probe import interval, settled
from stylegen.training.state import fresh

from .bench_measure import REFERENCE, Floor, Row, interleave, row

Size = tuple[int, int]
T = TypeVar("T")
DTYPE_OF = {"fp32": "float32", "tf32": "float32", "bf16": "bfloat16", "fp16": "float16", REFERENCE: "float32"}


@dataclass(frozen=True)
class Generation:
    """What `bench generate` times: a network (None: official 1024x1024, random weights), a level and a batch."""

    network: str | None
    resolution: Size | None
    batch: int
    device: str
    quick: bool

    def build(self, variant: str) -> nn.Module:
        """The network in eval mode, prepared for a precision. Raises UserError, OSError."""
        if self.network:
            G = load_network(self.network)[0]
        else:
            torch.manual_seed(0)
            size = (32, 32) if self.quick else (1024, 1024)
            G = build_generator(presets.stylegan_1024(size, 3, 0).generator)
        G = G.to(self.device).eval().requires_grad_(False)
        return G if variant == REFERENCE else freeze(prepare(G, variant))

    def call(self, variant: str) -> Callable[[], Tensor]:
        """A function that makes one batch, the same at every precision. Raises as `build` does."""
        G = self.build(variant)
        config: Any = G.config
        z = torch.randn(self.batch, config.latent_size, generator=torch.Generator().manual_seed(1)).to(self.device)
        labels = None
        if config.label_size:
            labels = torch.eye(config.label_size, device=self.device)[:1].repeat(self.batch, 1)

        def run() -> Tensor:
            with torch.inference_mode():
                return G(z, labels, resolution=self.resolution)

        return under(variant, run)


def usual_precisions(device: torch.device) -> list[str]:
    """Float32, and what "auto" chooses for `device`."""
    return list(dict.fromkeys(["fp32", choose("auto", device)]))


def generate(floor: Floor, task: Generation, precisions: list[str], repeats: int, baseline: bool) -> Iterator[Row]:
    """A row a precision: pictures/s, peak memory of a process that does nothing else, PSNR against float32."""
    plain = task.call(REFERENCE)
    variants = {name: task.call(name) for name in precisions} | ({REFERENCE: plain} if baseline else {})
    exact, flops = plain(), count_flops(plain)
    with elsewhere(task.call, REFERENCE) as plain_elsewhere:
        timed = variants | ({REFERENCE: plain_elsewhere} if baseline else {})
        samples = interleave(timed, repeats, min_ms=0)
    size = size_text((exact.shape[2], exact.shape[3]))
    name = f"{task.network or 'stylegan-1024, random weights'}, {size}, batch {task.batch}"
    for variant, call in variants.items():
        dtype = DTYPE_OF[variant]
        more: dict[str, Any] = {"path": variant}
        more["pictures_sec"] = 1000 * task.batch / sorted(samples[variant])[len(samples[variant]) // 2]
        more["gflop"] = flops / 1e9
        more["peak_mb"] = peak_mb(task, variant)
        more["psnr_db"] = psnr(call(), exact) if variant != REFERENCE else None
        more["most_time_in"] = most_time_in(call)
        yield row(name, dtype, samples, variant, floor.ms(dtype, flops=flops), **more)


def psnr(images: Tensor, exact: Tensor) -> float:
    """Peak signal to noise of pictures clamped to [-1, 1], in dB: 10 log10(2^2 / mean square error)."""
    error = (images.float().clamp(-1, 1) - exact.float().clamp(-1, 1)).square().mean().item()
    return 10 * math.log10(4 / error) if error else math.inf


def peak_mb(task: Generation, variant: str) -> float | None:
    """The most memory that a new process takes which imports stylegen, builds the network and makes one batch.

    On a GPU: the most that PyTorch allocates there. None on other systems than Linux.
    """
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_mb, task, variant, threads).result()


def _peak_mb(task: Generation, variant: str, threads: int) -> float | None:
    if variant != REFERENCE:
        keep_freed()
    torch.set_num_threads(threads)
    task.call(variant)()
    if torch.device(task.device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if platform.system() == "Linux":  # ru_maxrss would count the parent's memory at the fork
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 / 1e6 for line in file if line.startswith("VmHWM"))
    return None


def training_cases(quick: bool) -> dict[str, Config]:
    """What `bench train` times: settled at full size; R1 every step as published, every fourth in small-64."""
    if quick:
        return {"small-32 at 8x8, batch 4": settled(presets.small_32((8, 8), 3, 0), 1, 4)}
    return {
        "official widths at 32x32, batch 16": settled(presets.stylegan_1024((32, 32), 3, 0), 3, 16),
        "official widths at 128x128, batch 4": settled(presets.stylegan_1024((128, 128), 3, 0), 5, 4),
        "small-64 at 64x64, batch 16": settled(presets.small_64((64, 64), 3, 0), 4, 16),
    }


def train(
    floor: Floor, device: torch.device, precisions: list[str], repeats: int, quick: bool, baseline: bool
) -> Iterator[Row]:
    """A row a configuration and precision: one iteration, D's step and G's, averaged over one penalty interval."""
    for title, config in training_cases(quick).items():
        interval = config.loss.penalty_interval
        plain = iteration(config, device, REFERENCE)
        flops = count_flops(plain) / interval
        variants = {name: iteration(config, device, name) for name in precisions}
        variants |= {REFERENCE: plain} if baseline else {}
        with elsewhere(iteration, config, device, REFERENCE) as plain_elsewhere:
            timed = variants | ({REFERENCE: plain_elsewhere} if baseline else {})
            samples = interleave(timed, repeats, min_ms=0)
        samples = {variant: [ms / interval for ms in values] for variant, values in samples.items()}
        batch = int(config.schedule.batch_default)
        for variant in variants:
            dtype = DTYPE_OF[variant]
            median = sorted(samples[variant])[len(samples[variant]) // 2]
            more: dict[str, Any] = {"path": variant, "pictures_sec": 1000 * batch / median, "gflop": flops / 1e9}
            more["most_time_in"] = most_time_in(variants[variant])
            yield row(title, dtype, samples, variant, floor.ms(dtype, flops=flops), **more)


def iteration(config: Config, device: torch.device, variant: str) -> Callable[[], None]:
    """A function that trains for one penalty interval, through the very code that a run goes through."""
    precision = "fp32" if variant == REFERENCE else variant
    state = fresh(replace(config, training=replace(config.training, precision=precision)), device)
    if variant == REFERENCE:
        for network in (state.G, state.D, state.G_ema):
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return under(variant, interval(state, ALONE))


def under(variant: str, call: Callable[[], T]) -> Callable[[], T]:
    """`call` on the path and with the rounding of a variant, which are settings of the whole process."""

    def run() -> T:
        tf32 = variant not in ("fp32", REFERENCE)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with ops.reference() if variant == REFERENCE else nullcontext():
            return call()

    return run


@contextmanager
def elsewhere(build: Callable[..., Callable[[], object]], *arguments: Any) -> Iterator[Callable[[], None]]:
    """Calls of build(*arguments) in a process of its own that manages memory as any PyTorch program does."""
    with builder(torch.get_num_threads(), build, *arguments) as pool:
        yield lambda: pool.submit(call_built).result()


def builder(threads: int, build: Callable[..., Callable[[], object]], *arguments: Any) -> ProcessPoolExecutor:
    """A process of its own, of so many threads, that builds something to be called there by `call_built`."""
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_build, initargs=(threads, build, *arguments))


_built: list[Callable[[], object]] = []  # in that process


def _build(threads: int, build: Callable[..., Callable[[], object]], *arguments: Any) -> None:
    torch.set_num_threads(threads)
    _built.append(build(*arguments))


def call_built() -> None:
    _built[-1]()


def most_time_in(call: Callable[[], object]) -> str:
    """The four operators that take most of a call's time, with their shares of it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler's library writes to standard error
    activities = {ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_initialized() else [])}
    with profile(activities=activities) as profiler:
        call()
    attribute = "self_device_time_total" if torch.cuda.is_initialized() else "self_cpu_time_total"
    times = {event.key.partition("::")[2] or event.key: getattr(event, attribute) for event in profiler.key_averages()}
    first = sorted(times, key=lambda name: -times[name])[:4]
    return ", ".join(f"{name} {100 * times[name] / sum(times.values()):.0f}%" for name in first)


class _Flops(TorchDispatchMode):
    """PyTorch's own counter follows modules too, which fails where parameters are frozen in turn."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode PyTorch shows the whole conv2d: look inside
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call's products and convolutions, backward passes included."""
    with _Flops() as counter:
        call()
    return counter.total
