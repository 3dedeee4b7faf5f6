"""Networks and latents as commands take them, and pictures of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stylegen.errors import NotFoundError, UserError

from .options import DEVICES, PRECISIONS, FiniteType, LayersType, SizeType, pick_device, pick_precision

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stylegen.config import Config, GeneratorConfig
    from stylegen.editing import Directions
    from stylegen.latents import Latents

Size = tuple[int, int]

NOISE_MODES = ("const", "random", "none")
MAX_GRID_PX = 2**28
FRAMES = 8  # of a video at a time

_RENDERING = [
    click.option("--network", required=True, metavar="N", help="A network file, a run folder or an embedded name."),
    click.option(
        "--trunc", "psi", type=FiniteType(), default=0.7, show_default=True, help="Truncation psi: 1 none, 0 the mean."
    ),
    click.option("--trunc-cutoff", "cutoff", type=LayersType(), default=8, show_default=True, help='Or "all".'),
    click.option(
        "--trunc-to",
        "towards",
        type=click.Choice(["class", "all"]),
        default="class",
        show_default=True,
        help="Whose mean.",
    ),
    click.option("--noise-mode", "noise", type=click.Choice(NOISE_MODES), default="const", show_default=True),
    click.option("--resolution", type=SizeType(), help="A level of the network.  [default: the one it is trained to]"),
    click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures at a time."),
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
    click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Arithmetic."),
]


def rendering_options(command: Callable) -> Callable:
    """--network, how pictures look and where they are computed: the arguments of `open_network`."""
    for option in reversed(_RENDERING):
        command = option(command)
    return command


def video_options(command: Callable) -> Callable:
    """--fps and --seconds."""
    for option in (
        click.option("--seconds", type=click.FloatRange(0, 3600, min_open=True), default=8.0, show_default=True),
        click.option("--fps", type=click.FloatRange(0, 240, min_open=True), default=30.0, show_default=True),
    ):
        command = option(command)
    return command


def check_grid(columns: int, rows: int, size: Size) -> None:
    """Raises click.UsageError for a sheet that no viewer would open."""
    if columns * rows * size[0] * size[1] > MAX_GRID_PX:
        raise click.UsageError(f"a sheet of {columns}x{rows} is above {MAX_GRID_PX:,} pixels; take fewer cells")


def write_video(path: Path, fps: float, times: "Tensor", frame: Callable[["Tensor"], "Tensor"]) -> None:
    """The video of frame(t [n]) -> uint8 [n, C, H, W] at `times`, a few at a time, with progress."""
    from tqdm import tqdm

    from stylegen.video import open_video

    with (
        open_video(path, fps) as write,
        tqdm(total=len(times), unit=" frames", delay=1, leave=False, disable=None) as bar,
    ):
        for part in times.split(FRAMES):
            for image in frame(part):
                write(image)
            bar.update(len(part))


@dataclass(frozen=True)
class Opened:
    """A generator that is ready to make pictures, and how they look: arguments of `render`."""

    G: Any  # of any family
    provenance: dict[str, Any]
    networks: list[str]  # digests: its own, then those whose w it understands too
    looks: dict[str, Any]

    @property
    def size(self) -> Size:
        """(height, width) of its pictures."""
        return self.looks["resolution"]

    @property
    def stage(self) -> dict[str, Any]:
        """resolution and alpha, as networks take them."""
        return {key: self.looks[key] for key in ("resolution", "alpha")}

    @property
    def styled(self) -> bool:
        """Whether it has styles w."""
        return self.G.config.family == "stylegan"

    def latents(self, given: "list[int] | Path", klass: str | None = None) -> "Latents":
        """Those of seeds or of a file. Raises UserError, click.UsageError for a class that there is not."""
        from dataclasses import replace

        import torch

        from stylegen.latents import from_seeds, load_latents

        config = self.G.config
        if isinstance(given, Path):
            found = load_latents(given, config, self.networks)
            if found.w is not None:
                _unused(("psi", "cutoff", "towards", "klass"), f"the w of {given}, which is used as it is")
                return found
            if found.classes is not None and klass is None:
                return found
            numbers = list(range(len(found))) if found.seeds is None else found.seeds.tolist()
            classes = choose_classes(config, self.provenance, numbers, klass)
            return found if classes is None else replace(found, classes=torch.tensor(classes))
        classes = choose_classes(config, self.provenance, given, klass)
        return from_seeds(given, config.latent_size, classes, self.networks[0])

    def styles(self, given: "Latents", psi: float | None = None) -> "Tensor":
        """w [N, L, style_size] on the CPU, truncated as the pictures are or by `psi`."""
        import torch

        from stylegen.latents import styles

        looks = self.looks if psi is None else self.looks | {"psi": psi}
        averages = _averages(self.G, given, looks["psi"], looks["towards"], looks["averages"])
        with torch.no_grad():
            return styles(self.G, given, looks["psi"], looks["cutoff"], averages).cpu()

    def pictures(self, given: "Latents", show: bool = True) -> "tuple[Latents, Tensor]":
        """The latents with their w, where there are styles, and pictures uint8 [N, C, H, W]; `show` progress."""
        import torch

        from stylegen.latents import concatenate

        parts = list(render(self.G, given, show=show, **self.looks))
        return concatenate([part for part, _ in parts]), torch.cat([images for _, images in parts])


def open_network(
    network: str,
    resolution: Size | None,
    device: str,
    precision: str,
    frozen: bool = True,
    **looks: Any,
) -> Opened:
    """The network that these options mean; `frozen` is faster, and good for pictures only.

    Raises UserError, click.UsageError.
    """
    from stylegen.checkpoint import digest, load_network
    from stylegen.precision import freeze, prepare

    place = pick_device(device)
    G: Any
    G, provenance = load_network(network)
    networks = [digest(G), *provenance.get("parents", ())]
    size, alpha = choose_stage(G.config, provenance, resolution)
    if G.config.family != "stylegan":
        looks = _without_styles(looks, G.config.family)
    looks |= {"resolution": size, "alpha": alpha}
    looks |= {"averages": {}} if G.config.family == "stylegan" else {}
    G = prepare(G.to(place), pick_precision(precision, place)).requires_grad_(False)
    return Opened(freeze(G) if frozen else G, provenance, networks, looks)


def open_to_search(network: str, device: str, batch: int) -> Opened:
    """The network as projection takes it: untruncated, with gradients. Raises UserError for one without styles."""
    looks = {"psi": 1.0, "cutoff": None, "towards": "all", "noise": "const", "batch": batch}
    opened = open_network(network, None, device, "fp32", frozen=False, **looks)
    if not opened.styled:
        raise UserError(f"a {opened.G.config.family} network has no styles to search; StyleGANs have")
    return opened


def open_discriminator(
    name: str, like: "GeneratorConfig | None", place: "torch.device"
) -> "tuple[Any, Config, dict[str, Any]]":
    """(D of a run's state, in eval mode; the run's config; resolution and alpha that it has grown to).

    `like`: of a network whose pictures D must take. Raises UserError.
    """
    from stylegen.training.schedule import stage_at
    from stylegen.training.state import STATE_NAME, fresh, saved_config

    path = Path(name) / STATE_NAME if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise NotFoundError(f"{name}: there is no {STATE_NAME}, which holds D; give the --out of `stylegen train`")
    config, images_seen = saved_config(path)
    for key in ("base", "levels", "channels", "label_size") if like else ():
        if getattr(like, key) != getattr(config.discriminator, key):
            given = f"{key} {getattr(config.discriminator, key)}, and the network {getattr(like, key)}"
            raise UserError(f"{name}: its discriminator has {given}; give the run that made the network")
    state, stage = fresh(config, place), stage_at(config, images_seen)
    state.load(path)
    return state.D.eval().requires_grad_(False), config, {"resolution": stage.resolution, "alpha": stage.alpha}


def choose_stage(config: "GeneratorConfig", provenance: dict[str, Any], wanted: Size | None) -> tuple[Size, float]:
    """(resolution, alpha) to make pictures at: `wanted`, or what the network is trained to.

    Raises click.BadParameter for what is not a level of the network.
    """
    from stylegen.config import levels_of, resolution_of, size_text

    levels = [resolution_of(config, level) for level in levels_of(config)]
    trained, alpha = tuple(provenance.get("resolution") or levels[-1]), provenance.get("alpha")
    if wanted and wanted not in levels:
        known = ", ".join(map(size_text, levels))
        raise click.BadParameter(
            f"{size_text(wanted)} is not a level of this network; it has {known}", param_hint="--resolution"
        )
    size = wanted or trained
    if size > trained:
        click.echo(
            f"Note: the network is trained up to {size_text(trained)} so far; above that, expect noise.", err=True
        )
    return size, 1.0 if alpha is None or size != trained else alpha


def choose_classes(
    config: "GeneratorConfig", provenance: dict[str, Any], seeds: list[int], klass: str | None
) -> list[int] | None:
    """A class a seed, None for a network without: `klass` (a name, else an index), or the seed modulo the classes.

    Raises click.UsageError for a class that the network does not know.
    """
    count, names = config.label_size, provenance.get("class_names") or []
    if klass is None:
        if count:
            click.echo(f"Note: no class given; seed s makes class s mod {count}.", err=True)
        return [seed % count for seed in seeds] if count else None
    if not count:
        raise click.UsageError(f"class {klass!r}: this network has no classes")
    if klass in names:
        return [names.index(klass)] * len(seeds)
    if klass.isdecimal() and int(klass) < count:
        return [int(klass)] * len(seeds)
    known = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
    raise click.UsageError(f"{klass!r} is not a class of this network; it has {known}")


def render(
    G: Any,
    given: "Latents",
    batch: int = 8,
    psi: float = 1.0,
    cutoff: int | None = 8,
    towards: str = "class",
    noise: str = "const",
    show: bool = True,
    averages: "dict[int, Tensor] | None" = None,
    **stage: Any,
) -> Iterator[tuple["Latents", "Tensor"]]:
    """Batch by batch the latents, with their w where the network has styles, and pictures uint8 [n, C, H, W].

    `towards`: the average of the latents' own "class", or of "all"; `averages` keeps the former from call to call.
    `stage`: G's resolution and alpha. Random noise is drawn from the seed, so those pictures are made one at a time.
    """
    from dataclasses import replace

    import torch
    from tqdm import tqdm

    from stylegen.images import to_uint8
    from stylegen.latents import one_hot, styles

    config, device = G.config, next(G.parameters()).device
    batch = 1 if noise == "random" else batch
    averages = _averages(G, given, psi, towards, {} if averages is None else averages)
    with tqdm(total=len(given), unit=" pictures", delay=1, leave=False, disable=None if show else True) as bar:
        for start in range(0, len(given), batch):
            part = given.part(slice(start, start + batch))
            with torch.inference_mode():
                if config.family == "stylegan":
                    w = styles(G, part, psi, cutoff, averages)
                    seed = start if part.seeds is None or part.seeds[0] < 0 else int(part.seeds[0])
                    generator = torch.Generator(device).manual_seed(seed) if noise == "random" else None
                    images = G.synthesis(w, noise=noise, generator=generator, **stage)
                    part = replace(part, w=w.cpu())
                else:
                    assert part.z is not None
                    kinds = [] if part.classes is None else part.classes.tolist()
                    labels = None if part.classes is None else one_hot(kinds, config.label_size).to(device)
                    images = G(part.z.to(device), labels, **stage)
            yield part, to_uint8(images).cpu()
            bar.update(len(part))


def _averages(
    G: Any, given: "Latents", psi: float, towards: str, known: "dict[int, Tensor]"
) -> "dict[int, Tensor] | None":
    """Where truncation is towards the average of a class: each class's, kept in `known`."""
    from stylegen.latents import class_averages, one_hot

    if G.config.family != "stylegan" or given.w is not None or given.classes is None or towards == "all" or psi == 1:
        return None
    missing = sorted(set(given.classes.tolist()) - known.keys())
    labels = one_hot(missing, G.config.label_size).to(G.w_avg.device)
    known.update(zip(missing, class_averages(G, labels), strict=True))
    return known


def _without_styles(looks: dict[str, Any], family: str) -> dict[str, Any]:
    _unused([name for name in looks if name != "batch"], f"a {family} network")
    return {"batch": looks["batch"]}


def _unused(names: Iterable[str], what: str) -> None:
    """Notes those of the command's arguments that were given and mean nothing to `what`."""
    ctx = click.get_current_context()
    options = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    typed = [options[k] for k in names if ctx.get_parameter_source(k) == click.core.ParameterSource.COMMANDLINE]
    if typed:
        click.echo(f"Note: {', '.join(typed)} means nothing to {what}.", err=True)


def moved_sheet(
    opened: Opened, w: "Tensor", found: "Directions", k: int, strength: list[float], layers: list[int]
) -> "Tensor":
    """Pictures of w [N, L, S] moved along direction k, a row a w, a column a strength -> one picture."""
    import torch

    from stylegen.images import grid
    from stylegen.latents import Latents

    moved = torch.stack([found.move(w, k, value, layers) for value in strength], 1)
    _, images = opened.pictures(Latents(w=moved.flatten(0, 1)))
    return grid(images, len(strength), len(w))


@contextmanager
def background() -> Iterator[Callable[..., None]]:
    """Yields submit(function, *arguments), which runs calls in threads, few of them waiting; raises what they raise."""
    pending: deque[Future] = deque()
    with ThreadPoolExecutor(2) as pool:

        def submit(*call: Any) -> None:
            pending.append(pool.submit(*call))
            if len(pending) > 16:
                pending.popleft().result()

        yield submit
        for future in pending:
            future.result()
