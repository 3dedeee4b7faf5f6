"""StyleGAN (Karras et al., "A Style-Based Generator Architecture for GANs", CVPR 2019), growing progressively."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stylegen.config import DiscriminatorConfig, GeneratorConfig, resolution_of
from stylegen.ops import adain_epilogue, bias_act

from .discriminator import DiscriminatorTail, FromRGB, discriminate, trunk
from .layers import Conv, Dense, Resolution, ToRGB, features, fmaps, level_of, limit, selected, upscale
from .mapping import Mapping

NOISE_MODES = ("const", "random", "none")
Noise = str | Sequence[Tensor]  # one of NOISE_MODES, or a map [N, 1, H, W] for every layer in use


class SynthesisLayer(nn.Module):
    """(up) convolution -> blur after an up-convolution -> noise, bias, activation, instance norm, style.

    The first layer has no convolution: its input is the learned constant.
    """

    noise: Tensor

    def __init__(self, config: GeneratorConfig, index: int):
        super().__init__()
        self.config, self.index = config, index
        level, first = divmod(index, 2)
        channels = fmaps(config, level + 1)
        if index > 0:
            scale = "same"
            if index % 2 == 0:
                fused = config.fused_scale == "on" or (config.fused_scale == "auto" and 4 << level >= 128)
                scale = "fused_up" if fused else "up"
            blur = config.blur_filter if scale != "same" else ()
            self.conv = Conv(fmaps(config, level + first), channels, scale=scale, bias=False, blur=blur)
        if config.noise:
            self.register_buffer("noise", torch.randn(1, 1, *resolution_of(config, level)))
            self.noise_strength = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        if config.styles:
            self.style = Dense(config.style_size, 2 * channels, gain=1.0)

    def forward(self, x: Tensor, w: Tensor, noise: Noise, generator: torch.Generator | None) -> Tensor:
        if hasattr(self, "conv"):
            x = self.conv(x)
        pattern = strength = None
        if self.config.noise and noise != "none":
            strength, pattern = self.noise_strength, self.noise
            if not isinstance(noise, str):
                pattern = noise[self.index]
            elif noise == "random":
                pattern = torch.randn(len(x), 1, *x.shape[2:], generator=generator, device=x.device)
        return adain_epilogue(
            x,
            pattern,
            strength,
            self.bias,
            self.style(w) if self.config.styles else None,
            act=self.config.activation,
            pixel_norm=self.config.pixel_norm,
            instance_norm=self.config.instance_norm,
        )


class Synthesis(nn.Module):
    """w [N, 2 levels, style_size] -> pictures [N, C, H, W] at any level; layers above that level are not computed.

    Its convolutions compute in `compute_dtype`; statistics, styles and pictures stay in float32.
    """

    compute_dtype = torch.float32

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.const = nn.Parameter(torch.ones(1, fmaps(config, 1), *config.base))
        self.layers = nn.ModuleList([SynthesisLayer(config, i) for i in range(2 * config.levels)])
        self.to_rgb = nn.ModuleList([ToRGB(fmaps(config, k + 1), config.channels) for k in range(config.levels)])

    def forward(
        self,
        w: Tensor,
        *,
        resolution: Resolution = None,
        alpha: float = 1.0,
        noise: Noise = "const",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        assert not isinstance(noise, str) or noise in NOISE_MODES
        level = level_of(self.config, resolution)
        x = features(self.const, self.compute_dtype).expand(len(w), -1, -1, -1)
        coarse = x
        for index in range(2 * (level + 1)):
            if index == 2 * level:
                coarse = x
            x = self.layers[index](x, w[:, index], noise, generator)
        image = self.to_rgb[level](x)
        if alpha < 1 and level > 0:
            image = torch.lerp(upscale(self.to_rgb[level - 1](coarse)), image, alpha)
        return image


class Generator(nn.Module):
    """Mapping, truncation and synthesis. `w_avg` [style_size] is the running average of w that truncation uses."""

    w_avg: Tensor

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.map = Mapping(config)
        self.synthesis = Synthesis(config)
        self.register_buffer("w_avg", torch.zeros(config.style_size))

    @property
    def num_layers(self) -> int:
        return 2 * self.config.levels

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [N, latent_size], labels [N, label_size] -> w [N, num_layers, style_size], the same for every layer."""
        return self.map(z, labels)[:, None].expand(-1, self.num_layers, -1)

    def truncate(self, w: Tensor, psi: float = 1.0, cutoff: int | None = 8, towards: Tensor | None = None) -> Tensor:
        """w_avg + psi * (w - w_avg) in the first `cutoff` layers (section B of the paper); None truncates none.

        `towards` [N, style_size] takes the place of w_avg, such as `latents.class_averages`.
        """
        if psi == 1 or not cutoff:
            return w
        centre = self.w_avg if towards is None else towards[:, None]
        return torch.cat([torch.lerp(centre.to(w.dtype), w[:, :cutoff], psi), w[:, cutoff:]], 1)

    @torch.no_grad()
    def update_w_avg(self, w: Tensor) -> None:
        """Moves `w_avg` towards the batch mean of un-mixed w [N, num_layers, style_size] by 1 - w_avg_beta."""
        self.w_avg.lerp_(w[:, 0].mean(0).to(self.w_avg.dtype), 1 - self.config.w_avg_beta)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        resolution: Resolution = None,
        alpha: float = 1.0,
        psi: float = 1.0,
        cutoff: int | None = 8,
        noise: Noise = "const",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """z [N, latent_size], labels [N, label_size] or None -> pictures [N, C, H, W] in about [-1, 1].

        `resolution`: a level's side or (height, width), None for the full one. `alpha` below 1 fades that level in over
        the one below. `psi`, `cutoff`: truncation, see `truncate`. `noise`: "const" (the stored maps), "random" (drawn
        from `generator`), "none", or the maps themselves. Raises UserError for labels or a resolution that do not fit.
        """
        w = self.truncate(self.mapping(z, labels), psi, cutoff)
        return self.synthesis(w, resolution=resolution, alpha=alpha, noise=noise, generator=generator)


class DiscriminatorBlock(nn.Module):
    """One level of D: conv, activation, blur, down-convolution, activation. Halves the resolution."""

    def __init__(self, config: DiscriminatorConfig, level: int):
        super().__init__()
        self.activation = config.activation
        self.conv0 = Conv(fmaps(config, level + 1), fmaps(config, level + 1))
        self.conv1 = Conv(fmaps(config, level + 1), fmaps(config, level), scale="down", blur=config.blur_filter)

    def forward(self, x: Tensor) -> Tensor:
        x = bias_act(self.conv0(x), self.conv0.bias, act=self.activation, gain=1.0, clamp=limit(x))
        return bias_act(self.conv1(x), self.conv1.bias, act=self.activation, gain=1.0, clamp=limit(x))


class Discriminator(nn.Module):
    """Pictures -> scores [N, 1]. With labels, the score is the labels' selection from one output a class.

    Its convolutions compute in `compute_dtype`, but for the coarsest level.
    """

    compute_dtype = torch.float32

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        self.from_rgb = nn.ModuleList([FromRGB(config, k) for k in range(config.levels)])
        self.blocks = nn.ModuleList([DiscriminatorBlock(config, k) for k in range(1, config.levels)])
        self.tail = DiscriminatorTail(config, max(config.label_size, 1))

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        resolution: Resolution = None,
        alpha: float = 1.0,
        parts: int = 1,
    ) -> Tensor:
        """images [N, C, H, W] in [-1, 1], labels [N, label_size] or None -> scores [N, 1], high for real.

        The level is that of the pictures' size, or `resolution` (larger pictures are box-reduced to it); `alpha` below
        1 fades it in. `parts`: how many equal batches, one after another, these are; statistics are those of each batch
        alone. Raises UserError for labels or a resolution that do not fit.
        """
        scores = discriminate(self, images, resolution, alpha, parts)
        return selected(scores, labels, self.config.label_size)

    def features(self, images: Tensor, *, resolution: Resolution = None, alpha: float = 1.0) -> Tensor:
        """images as above -> [N, F], what feature matching compares: see `DiscriminatorTail.features`."""
        return self.tail.features(trunk(self, images, resolution, alpha))
