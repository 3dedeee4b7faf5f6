"""What the benchmarks of mode coverage share: the divergence of counts, and results kept while their settings stand."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylegen.files import write_atomic


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


def kept(folder: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, from a file in `folder` where it was made with the same settings before. Raises OSError."""
    path = folder / f"{name_of(settings)}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    result = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"settings": settings, "result": result}))
    return result


def name_of(settings: dict[str, Any]) -> str:
    """Hex digits that change with the settings."""
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=8).hexdigest()
