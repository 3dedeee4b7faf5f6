"""Everything that changes during a run, in one object that is saved and loaded whole."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylegen import __version__, config as configs
from stylegen.checkpoint import load_tensors, read_metadata, save_tensors
from stylegen.config import GROWING, Config
from stylegen.errors import UserError
from stylegen.networks import build_discriminator, build_generator
from stylegen.precision import prepare

from . import optim, rng
from .alarms import calmer
from .schedule import stage_at

FORMAT, VERSION = "stylegen-state", "1"
STATE_NAME = "state.ckpt"
REMEDY = "this run cannot go on, but its networks still work: give another --out"


@dataclass
class TrainState:
    """The networks, their average, the optimizers, and how many real images D has seen."""

    config: Config
    G: nn.Module
    D: nn.Module
    G_ema: nn.Module
    opt_g: torch.optim.Optimizer
    opt_d: torch.optim.Optimizer
    images_seen: int = 0
    ada: Tensor = field(
        default_factory=lambda: torch.zeros(3, dtype=torch.float64)
    )  # p, signs of reals, reals since p moved

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    @property
    def settings(self) -> Config:
        """The configuration as it is in force: calmer after every time that the run went back to a healthy state."""
        config = self.config
        for _ in range(config.training.rollbacks):
            config = calmer(config)
        return config

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state by name; they share memory with the state."""
        named: dict[str, Tensor] = {}
        for prefix, module in (("G", self.G), ("D", self.D), ("G_ema", self.G_ema)):
            named |= {f"{prefix}/{name}": tensor for name, tensor in module.state_dict().items()}
        for prefix, optimizer, module in (("opt_g", self.opt_g, self.G), ("opt_d", self.opt_d, self.D)):
            moments = optim.state_tensors(optimizer, list(module.named_parameters()))
            named |= {f"{prefix}/{name}": tensor for name, tensor in moments.items()}
        return named | ({"ada": self.ada} if "ada" in self.config.training.augment else {})

    def metadata(self) -> dict[str, str]:
        """What a file of the state says beside the tensors."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "stylegen": __version__,
            "images_seen": str(self.images_seen),
            "config": json.dumps(configs.to_dict(self.config)),
        }

    def save(self, path: Path) -> None:
        """Writes the state to `path`, whole or not at all, with a checksum. Raises OSError."""
        save_tensors(path, self.tensors(), self.metadata(), checksum=True)

    def load(self, path: Path) -> None:
        """Goes on from a saved state, bit for bit. Raises UserError for a file that does not fit, OSError.

        DamagedError: the file is not what was written.
        """
        tensors, metadata = load_tensors(path, REMEDY)
        saved, images_seen = parse_state(path, metadata)
        if lines := configs.difference(self.config, saved):
            raise UserError(f"{path} belongs to another configuration ({'; '.join(lines)}); choose another --out")
        try:
            self.restore(tensors, images_seen)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} does not fit its own config ({reason}); start again with another --out") from error

    def restore(self, tensors: dict[str, Tensor], images_seen: int) -> None:
        """Puts back what `tensors` gave. Raises RuntimeError, KeyError for tensors of another state."""
        for prefix, module in (("G", self.G), ("D", self.D), ("G_ema", self.G_ema)):
            module.load_state_dict(_part(tensors, prefix))
        for prefix, optimizer, module in (("opt_g", self.opt_g, self.G), ("opt_d", self.opt_d, self.D)):
            optim.load_state_tensors(optimizer, list(module.named_parameters()), _part(tensors, prefix))
        if "ada" in tensors:
            self.ada = tensors["ada"].cpu()
        self.images_seen = images_seen


def fresh(config: Config, device: torch.device) -> TrainState:
    """The state of a run that starts: weights drawn from the seed, on the CPU, so that every device begins alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(config.training.seed, "weights"))
        G, D = build_generator(config.generator), build_discriminator(config.discriminator)
    G, D = (prepare(network.to(device), config.training.precision) for network in (G, D))
    G_ema = copy.deepcopy(G).eval().requires_grad_(False)
    lr = stage_at(config, 0).lr
    scale = 16.0 if config.training.precision == "fp16" else 0.0
    freeze(D, config.training.freeze_d)
    trained = ([p for p in module.parameters() if p.requires_grad] for module in (G, D))
    opt_g, opt_d = (optim.build(parameters, config.optimizer, lr, scale) for parameters in trained)
    return TrainState(config, G, D, G_ema, opt_g, opt_d)


def freeze(D: Any, count: int) -> None:
    """Has the `count` layers of D next to the pictures keep their weights (Mo et al. 2020, "Freeze the Discriminator").

    A layer of a growing D is a level: its block, and what takes pictures in.
    """
    layers: list[nn.Module]
    if D.config.family in GROWING:
        levels = range(D.config.levels - 1, D.config.levels - 1 - count, -1)
        layers = [module for level in levels for module in (D.from_rgb[level], D.blocks[level - 1])]
    else:
        layers = list(getattr(D, "layers", None) or D.hidden)[:count]
    for layer in layers:
        layer.requires_grad_(False)


def parse_state(path: Path, metadata: dict[str, str]) -> tuple[Config, int]:
    """(config, images seen) from a state file's metadata; `path` is for messages. Raises UserError."""
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        given = f"{metadata.get('format', 'nothing known')} {metadata.get('version', '')}".strip()
        raise UserError(f"{path} holds {given}, expected {FORMAT} {VERSION}; {REMEDY}")
    try:
        return configs.from_dict(Config, json.loads(metadata["config"])), int(metadata["images_seen"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its config cannot be read ({error}); {REMEDY}") from error


def saved_config(path: Path) -> tuple[Config, int]:
    """(config, images seen) of a state file, without reading its tensors. Raises UserError, OSError."""
    return parse_state(path, read_metadata(path, REMEDY))


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}
