"""Optimizers as the official code has them: epsilon placed as in TensorFlow, non-finite updates skipped whole."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Adam, Optimizer, RMSprop

from stylegen.config import OptimizerConfig

NamedParameters = Iterable[tuple[str, nn.Parameter]]

_SCALE = "log2_scale"  # beside the moments, which are named after parameters


def build(parameters: Iterable[Tensor], cfg: OptimizerConfig, lr: float, log2_scale: float = 0.0) -> Optimizer:
    """Adam (Kingma and Ba 2015), RMSprop (as for the WGAN of Arjovsky et al. 2017) or SGD with momentum.

    Use it with `backward` and `step` of this module. A `log2_scale` other than 0 scales the loss by 2^log2_scale so
    that gradients in float16 do not vanish; it creeps up, and falls where they overflow (Karras et al. 2018, whose
    code goes up by 0.0005 a step and down by 1).
    """
    parameters = list(parameters)
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    makers: dict[str, Callable[[], Optimizer]] = {
        "adam": lambda: Adam(parameters, lr, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, fused=fused),
        "rmsprop": lambda: RMSprop(parameters, lr, alpha=cfg.beta2, eps=cfg.eps),
        "sgd": lambda: SGD(parameters, lr, momentum=cfg.beta1, fused=fused),
    }
    optimizer = makers[cfg.name]()
    if cfg.name == "adam":
        for group in optimizer.param_groups:
            group.update(tf_eps=cfg.eps, updates=0)
    for group in optimizer.param_groups:
        group["log2_scale"] = log2_scale
    return optimizer


def backward(loss: Tensor, optimizer: Optimizer) -> None:
    """Adds the gradients of `loss` to the optimizer's parameters, times the loss scale, which `step` divides out."""
    scale = 2.0 ** optimizer.param_groups[0]["log2_scale"]
    (loss if scale == 1 else loss * scale).backward()


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients at hand, of the parameters in use."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def step(optimizer: Optimizer) -> Tensor | None:
    """Applies the gradients at hand and returns their norm; None, with nothing changed, if one of them is not finite.

    Adam: TensorFlow computes lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps) at update t (the form that
    ends section 2 of Kingma and Ba 2015), which is PyTorch's with eps / sqrt(1 - beta2^t). t counts updates since
    `reset`: it is the same for all parameters in use as long as those change only where the moments are reset.
    """
    found, scale = gradients(optimizer), optimizer.param_groups[0]["log2_scale"]
    norm = get_total_norm(found)
    if not norm.isfinite():  # its squares may have overflowed
        norm = get_total_norm([gradient.double() for gradient in found])
    finite = bool(norm.isfinite())
    if scale and finite and found:
        for gradient in found:
            gradient.mul_(2.0**-scale)
    for group in optimizer.param_groups:
        group["log2_scale"] += 0.0 if scale == 0 else 0.0005 if finite else -1.0
    if not finite:
        return None
    for group in optimizer.param_groups:
        if "tf_eps" in group:
            group["updates"] += 1
            group["eps"] = group["tf_eps"] / math.sqrt(1 - group["betas"][1] ** group["updates"])
    optimizer.step()
    return norm * 2.0**-scale


def reset(optimizer: Optimizer) -> None:
    """Forgets moments and update counts, as if newly built."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        if "updates" in group:
            group["updates"] = 0


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def state_tensors(optimizer: Optimizer, named_parameters: NamedParameters) -> dict[str, Tensor]:
    """Moments and update counts, named "<parameter>.<moment>"; with the parameters, all that the next step needs."""
    tensors = {
        f"{name}.{moment}": value
        for name, parameter in named_parameters
        for moment, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    if scale := optimizer.param_groups[0]["log2_scale"]:
        tensors[_SCALE] = torch.tensor(scale, dtype=torch.float64)
    return tensors


def load_state_tensors(optimizer: Optimizer, named_parameters: NamedParameters, tensors: Mapping[str, Tensor]) -> None:
    """Replaces the optimizer's state by what `state_tensors` returned: it goes on as if never interrupted."""
    tensors = dict(tensors)
    scale = tensors.pop(_SCALE, None)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    index = {id(parameter): i for i, parameter in enumerate(parameters)}
    names = {name: index[id(parameter)] for name, parameter in named_parameters if id(parameter) in index}
    state: dict[int, dict[str, Tensor]] = {}
    updates = 0
    for key, value in tensors.items():
        name, _, moment = key.rpartition(".")
        if value.ndim:  # in the parameter's own memory order
            value = torch.empty_like(parameters[names[name]], dtype=value.dtype).copy_(value)
        state.setdefault(names[name], {})[moment] = value.clone()
        if moment == "step":
            updates = max(updates, int(value))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for group in optimizer.param_groups:
        if "updates" in group:
            group["updates"] = updates
        if scale is not None:
            group["log2_scale"] = float(scale)
