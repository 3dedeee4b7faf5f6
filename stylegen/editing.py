"""Directions in w that change a picture in one way, arithmetic of latents, and networks made of two."""

import ast
import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .config import resolution_of
from .errors import NotFoundError, UsageError, UserError
from .files import atomic_path
from .latents import draw

SAMPLES = 10_000  # of w, for PCA and for the unit of strength


@dataclass(frozen=True)
class Directions:
    """unit float32 [K, style_size], of length 1; deviation float32 [K], that of w along each; the layers they are for.

    `method` "sefa", "pca" or "attribute"; `network`: the `checkpoint.digest` of the one that they belong to.
    """

    unit: Tensor
    deviation: Tensor
    layers: list[int]
    method: str
    network: str

    def move(self, w: Tensor, k: int, strength: float, layers: list[int] | None = None) -> Tensor:
        """w [N, L, style_size] moved by `strength` deviations along direction k, in `layers` or the direction's own."""
        moved = w.clone()
        moved[:, self.layers if layers is None else layers] += strength * self.deviation[k] * self.unit[k]
        return moved


@torch.no_grad()
def sample_w(G: Any, count: int = SAMPLES) -> Tensor:
    """w [count, style_size] of `count` latents, always the same ones; of a conditional network, classes in turn."""
    device, config = G.w_avg.device, G.config
    z = draw(count, config.latent_size).to(device)
    labels = None
    if config.label_size:
        labels = torch.eye(config.label_size, device=device)[torch.arange(count) % config.label_size]
    return G.mapping(z, labels)[:, 0]


def _made(G: Any, unit: Tensor, layers: list[int], method: str, network: str) -> Directions:
    w = sample_w(G)
    sign = torch.where(
        unit.gather(1, unit.abs().argmax(1, keepdim=True)) < 0, -1.0, 1.0
    )  # the largest part is positive
    unit = unit * sign
    deviation = ((w - w.mean(0)) @ unit.T).std(0)
    return Directions(unit.cpu(), deviation.cpu(), layers, method, network)


@torch.no_grad()
def sefa(G: Any, count: int, layers: list[int], network: str = "") -> Directions:
    """The `count` directions of w that the style affines of `layers` amplify most: closed-form factorisation.

    The first eigenvectors of A^T A, A [rows, style_size] being those layers' weights below each other (Shen and Zhou
    2021, equation 5).
    """
    dense = [G.synthesis.layers[layer].style for layer in layers]
    A = torch.cat([layer.weight * layer.coef for layer in dense]).double()
    vectors = torch.linalg.eigh(A.T @ A).eigenvectors.flip(1)[:, :count].T
    return _made(G, vectors.float(), layers, "sefa", network)


@torch.no_grad()
def pca(G: Any, count: int, layers: list[int], network: str = "") -> Directions:
    """The first `count` principal axes of w (GANSpace, Härkönen et al. 2020, section 2.2)."""
    w = sample_w(G).double()
    w = w - w.mean(0)
    vectors = torch.linalg.eigh(w.T @ w).eigenvectors.flip(1)[:, :count].T
    return _made(G, vectors.float(), layers, "pca", network)


def attribute(G: Any, positive: Tensor, negative: Tensor, layers: list[int], network: str = "") -> Directions:
    """The direction from w [N, style_size] without an attribute to w with it: the normal of a linear classifier.

    Logistic regression in whitened coordinates, with weight decay: the fewer examples, the more it is the difference of
    the means (InterFaceGAN, Shen et al. 2020, section 3.1, whose classifier is a linear SVM). Raises UserError where
    there is nothing to tell them apart by.
    """
    if not (positive.mean(0) - negative.mean(0)).abs().max() > 1e-6:
        raise UserError("the examples with it and those without are the same on average; give others")
    w = torch.cat([positive, negative]).double()
    spread = sample_w(G, 2000).double().std(0)
    x = (w - w.mean(0)) / spread
    y = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).to(x)
    weight = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weight + bias, y) + 0.5 * weight.square().sum() / len(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    normal = weight.detach() * spread  # of the plane's whitened normal, the way in w that raises it most evenly
    made = _made(G, F.normalize(normal, dim=0)[None].float(), layers, "attribute", network)
    towards = (made.unit[0].to(positive) @ (positive.mean(0) - negative.mean(0))).sign()
    return Directions(made.unit * towards.cpu(), made.deviation, layers, "attribute", network)


def save_directions(path: str | Path, found: Directions) -> None:
    """Writes an .npz, whole or not at all."""
    arrays = {"unit": found.unit.numpy(), "deviation": found.deviation.numpy(), "layers": np.array(found.layers)}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, method=np.array(found.method), network=np.array(found.network), **arrays)


def load_directions(path: str | Path, G: Any, networks: list[str]) -> Directions:
    """Those of a file, for a network that has one of the digests `networks`. Raises UserError."""
    if not Path(path).is_file():
        raise NotFoundError(f"there is no file {path}; `stylegen directions` writes directions.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            unit, deviation = (torch.from_numpy(file[name].astype(np.float32)) for name in ("unit", "deviation"))
            layers, method, network = file["layers"].astype(int).tolist(), str(file["method"]), str(file["network"])
    except (ValueError, KeyError, EOFError, OSError) as error:
        raise UserError(f"{path} is not a file of directions, as `stylegen directions` writes it") from error
    if network and network not in networks:
        raise UserError(f"{path} belongs to another network, {network}; this one is {networks[0]}: find its own")
    if unit.ndim != 2 or unit.shape[1] != G.config.style_size or max(layers, default=0) >= G.num_layers:
        raise UserError(f"{path}: its directions {tuple(unit.shape)} do not fit styles of {G.config.style_size}")
    return Directions(unit, deviation, layers, method, network)


def evaluate(expression: str, latent: Callable[[int | str], Tensor]) -> Tensor:
    """Arithmetic of latents, as in "mean(1, 2, 3) - mean(4, 5) + 'hat.npz'": whole numbers are seeds, texts are files.

    latent(seed or file) -> w [N, L, style_size], whose average is meant. Numbers with a point scale: "0.5 * (3 - 4)".
    Radford et al. 2016, section 6.3.2. Raises UserError.
    """

    def value(node: ast.AST) -> Tensor | float:
        match node:
            case ast.Expression():
                return value(node.body)
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int(seed)) if seed >= 0:
                return latent(seed).mean(0)
            case ast.Constant(value=str(name)):
                return latent(name).mean(0)
            case ast.Constant(value=float(number)) if math.isfinite(number):
                return number
            case ast.UnaryOp(op=ast.USub()):
                return -value(node.operand)
            case ast.BinOp(op=ast.Add()):
                return value(node.left) + value(node.right)
            case ast.BinOp(op=ast.Sub()):
                return value(node.left) - value(node.right)
            case ast.BinOp(op=ast.Mult()):
                left, right = value(node.left), value(node.right)
                if isinstance(left, Tensor) and isinstance(right, Tensor):
                    raise UsageError(
                        f"--expr {expression!r} multiplies latents; a factor has a point, as in 2.0 * (3 - 4)"
                    )
                return left * right
            case ast.Call(func=ast.Name(id="mean"), args=[_, *_], keywords=[]):
                parts = [value(part) for part in node.args]
                return sum(parts[1:], start=parts[0]) / len(parts)
        raise UsageError(f"--expr {expression!r}: write seeds, 'files', mean(a, b, ...), + and -, and factors as 0.5")

    try:
        found = value(ast.parse(expression.strip(), mode="eval"))
    except SyntaxError:
        raise UsageError(f"--expr {expression!r} cannot be read; write it as mean(1,2,3) - mean(4,5,6) + 7") from None
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise UsageError(f"--expr {expression!r} is a number; it needs seeds or files")
    return found


def blend(first: Any, second: Any, side: int, smooth: float = 0.0) -> Any:
    """A network of `first`'s mapping and levels below `side`, and `second`'s from there on: layer swapping.

    Pinkney and Adler 2020, equations 1 and 2. `smooth`: above 0, weights cross over by a logistic curve of so many
    levels instead of at once. Both must have the same config; raises UserError.
    """
    if first.config != second.config:
        raise UserError("these networks differ in their configurations; only related networks blend")
    config = first.config
    sides = [max(resolution_of(config, level)) for level in range(config.levels)]
    if side not in sides:
        raise UsageError(f"--swap-at {side}: this network has levels of {', '.join(map(str, sides))}")
    blended = copy.deepcopy(first)
    theirs = dict(second.named_parameters()) | dict(second.named_buffers())
    with torch.no_grad():
        for name, tensor in [*blended.named_parameters(), *blended.named_buffers()]:
            level = _level_of(name)
            if level is None:
                continue
            away = level - sides.index(side) + 0.5
            share = 1 / (1 + math.exp(-away * 4 / smooth)) if smooth else float(away > 0)
            tensor.lerp_(theirs[name], share)
    return blended


def _level_of(name: str) -> int | None:
    """synthesis.layers.5.bias -> 2, synthesis.to_rgb.1.weight -> 1; what belongs to no level, None."""
    parts = name.split(".")
    if parts[0] != "synthesis":
        return None
    if parts[1] == "const":
        return 0
    return int(parts[2]) // 2 if parts[1] == "layers" else int(parts[2])
