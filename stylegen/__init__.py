"""StyleGAN / ProGAN image synthesis: networks, operators, checkpoints and latent tools."""

__version__ = "0.1.0"
