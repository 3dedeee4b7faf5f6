"""Operators. Each file holds one: its public signature, its plain-PyTorch reference, and what autograd needs."""

from .adain import adain_epilogue
from .bias_act import bias_act
from .native import reference
from .pixel_norm import pixel_norm
from .upfirdn2d import setup_filter, upfirdn2d

__all__ = ["adain_epilogue", "bias_act", "pixel_norm", "reference", "setup_filter", "upfirdn2d"]
