"""How evenly samples spread over modes."""

import torch
from torch import Tensor


def divergence(counts: Tensor) -> float:
    """KL(samples || uniform) in nats: how unevenly samples, counts [modes], spread over equally likely modes.

    0 is even, log(modes) is a single mode. It compares the model to the data, as Metz et al. 2017 (Unrolled GAN,
    section 3.3.1) and Lin et al. 2018 (PacGAN, there called reverse KL) do. N samples of the data itself give about
    (modes - 1) / (2 N). Raises ValueError without samples.
    """
    if not (total := counts.sum()) > 0:
        raise ValueError("no samples")
    shares = counts.double() / total
    return float(torch.special.xlogy(shares, shares * len(counts)).sum())
