"""Bias, activation, gain and clamp in one operator."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# name -> (function of (x, alpha), default alpha, default gain); the gains keep the variance of unit normal input
# about 1 (StyleGAN2, Karras et al. 2020, which scales after the activation; StyleGAN1 and ProGAN pass gain=1).
_ACTIVATIONS = {
    "linear": (lambda x, a: x, 0.0, 1.0),
    "relu": (lambda x, a: F.relu(x), 0.0, math.sqrt(2)),
    "lrelu": (F.leaky_relu, 0.2, math.sqrt(2)),
    "tanh": (lambda x, a: torch.tanh(x), 0.0, 1.0),
    "sigmoid": (lambda x, a: torch.sigmoid(x), 0.0, 1.0),
    "elu": (lambda x, a: F.elu(x), 0.0, 1.0),
    "selu": (lambda x, a: F.selu(x), 0.0, 1.0),
    "softplus": (lambda x, a: F.softplus(x), 0.0, 1.0),
    "swish": (lambda x, a: torch.sigmoid(x) * x, 0.0, math.sqrt(2)),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    *,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * act(x + b), -clamp, clamp), of the same shape as `x`.

    `x` has any shape, `b` is [x.shape[dim]] or None. `alpha` is the slope of "lrelu" below zero (default 0.2); other
    activations take none. `gain` defaults to sqrt(2) for relu, lrelu and swish and to 1 otherwise; `clamp` None
    clamps nothing. Raises KeyError for an unknown activation.
    """
    function, default_alpha, default_gain = _ACTIVATIONS[act]
    if b is not None:
        x = x + b.reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    x = function(x, default_alpha if alpha is None else alpha)
    gain = default_gain if gain is None else gain
    if gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)
