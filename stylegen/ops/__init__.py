"""Operators. Each file holds one: its public signature, its plain-PyTorch reference, and what autograd needs."""

from .adain import adain_epilogue
from .bias_act import bias_act
from .cast import scaled_cast
from .conv import conv2d, conv_transpose2d, input_gradients_only
from .native import reference, referenced
from .pixel_norm import pixel_norm
from .resample import blur2d, down_conv2d, down_kernel, up_conv2d, up_kernel
from .sample2d import sample2d
from .upfirdn2d import setup_filter, upfirdn2d

__all__ = [
    "adain_epilogue",
    "bias_act",
    "blur2d",
    "conv2d",
    "conv_transpose2d",
    "down_conv2d",
    "down_kernel",
    "input_gradients_only",
    "pixel_norm",
    "reference",
    "referenced",
    "sample2d",
    "scaled_cast",
    "setup_filter",
    "up_conv2d",
    "up_kernel",
    "upfirdn2d",
]
