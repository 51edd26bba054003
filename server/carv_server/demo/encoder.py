"""The upstream half of the teacher's latent space: images to latents, with their gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["ImageEncoder"]


class ImageEncoder(nn.Module):
    """The encoder of a diffusers ``AutoencoderKL``, frozen, in float32.

    Latents are ``(mean - shift) * scale`` of the posterior: its mean, so that the only noise in a
    gradient estimate is that of the cameras and of the teacher's draws.
    """

    def __init__(self, folder: Path) -> None:
        """Loads ``folder/vae``; the decoder is dropped."""
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        loaded: Any = AutoencoderKL.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
            folder / "vae",
            torch_dtype=torch.float32,
            use_safetensors=True,
            low_cpu_mem_usage=False,  # the default asks for accelerate
        )
        self.scale = float(loaded.config.scaling_factor)
        self.shift = float(loaded.config.shift_factor or 0.0)
        self.encoder = cast(nn.Module, loaded.encoder)
        self.quantise = cast("nn.Module | None", loaded.quant_conv)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[R, H, W, 3]`` in [0, 1] to latents ``[R, C, h, w]``; differentiable."""
        pixels = images.permute(0, 3, 1, 2) * 2 - 1
        moments = self.encoder(pixels.contiguous())
        if self.quantise is not None:
            moments = self.quantise(moments)
        mean = moments.chunk(2, dim=1)[0]
        return (mean - self.shift) * self.scale
