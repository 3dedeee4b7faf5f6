"""Operators. Each file holds one: its public signature and its plain-PyTorch reference."""

from .adain import adain_epilogue
from .bias_act import bias_act
from .pixel_norm import pixel_norm
from .upfirdn2d import setup_filter, upfirdn2d

__all__ = ["adain_epilogue", "bias_act", "pixel_norm", "setup_filter", "upfirdn2d"]
