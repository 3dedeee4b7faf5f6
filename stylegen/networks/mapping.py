"""The mapping network: latent z to style w."""

import torch
from torch import Tensor, nn

from stylegen.config import GeneratorConfig
from stylegen.ops import bias_act, pixel_norm

from .layers import Dense, check_labels


class Mapping(nn.Module):
    """z [N, latent_size] and labels [N, label_size] -> w [N, style_size] (StyleGAN, Karras et al. 2019, figure 1b).

    The label's embedding (a plain matrix, no bias) is concatenated to z; the whole is pixel-normalised once.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        width = config.latent_size
        if config.label_size:
            self.embedding = nn.Parameter(torch.randn(config.label_size, config.latent_size))
            width *= 2
        widths = [width] + [config.mapping_width] * (config.mapping_layers - 1) + [config.style_size]
        self.dense = nn.ModuleList(
            [Dense(a, b, lrmul=config.mapping_lrmul) for a, b in zip(widths, widths[1:], strict=False)]
        )

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = z
        labels = check_labels(labels, len(z), self.config.label_size)
        if labels is not None:
            x = torch.cat([x, labels.to(x.dtype) @ self.embedding], 1)
        if self.config.normalize_latents:
            x = pixel_norm(x)
        for dense in self.dense:
            x = bias_act(dense(x), act=self.config.activation, gain=1.0)
        return x
