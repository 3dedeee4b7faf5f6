"""Networks: one file a family, and the layers that they share."""

from torch import nn

from stylegen.config import DiscriminatorConfig, GeneratorConfig

from . import dcgan, mlp, progan, stylegan

FAMILIES = {
    "stylegan": (stylegan.Generator, stylegan.Discriminator),
    "progan": (progan.Generator, progan.Discriminator),
    "dcgan": (dcgan.Generator, dcgan.Discriminator),
    "mlp": (mlp.Generator, mlp.Discriminator),
}


def build_generator(config: GeneratorConfig) -> nn.Module:
    """G with fresh weights drawn from torch's global generator. Raises KeyError for an unknown family."""
    return FAMILIES[config.family][0](config)


def build_discriminator(config: DiscriminatorConfig) -> nn.Module:
    """D with fresh weights drawn from torch's global generator. Raises KeyError for an unknown family."""
    return FAMILIES[config.family][1](config)
