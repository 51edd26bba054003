"""Tiny teachers in diffusers' folder layouts: built from their configs, random weights.

Random weights are rescaled so that outputs are of order one and answer to their conditioning:
a lost branch or a wrong sign then moves a gradient by far more than any tolerance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

__all__ = [
    "CLASSES",
    "MAX_TOKENS",
    "SCALING_FACTOR",
    "SHIFT_FACTOR",
    "TEXT_WIDTH",
    "text_unet",
    "write_ddpm",
    "write_stable_diffusion",
]

MAX_TOKENS = 24
TEXT_WIDTH = 24
CLASSES = 5
SCALING_FACTOR, SHIFT_FACTOR = 0.31, 0.07
_START, _END = "<|startoftext|>", "<|endoftext|>"
_STABLE_DIFFUSION_NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def write_stable_diffusion(
    folder: Path, seed: int, *, flow_shift: float | None = None, **scheduler: Any
) -> Path:
    """A whole text-to-image pipeline, saved by diffusers itself."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder, unet, vae = _text_encoder(tokenizer), text_unet(), _vae()
        _normalise(unet, encoder_hidden_states=torch.randn(8, MAX_TOKENS, TEXT_WIDTH))
    noise = (
        DDPMScheduler(**{**_STABLE_DIFFUSION_NOISE, **scheduler})
        if flow_shift is None
        else FlowMatchEulerDiscreteScheduler(shift=flow_shift)
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=noise,  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def write_ddpm(
    folder: Path,
    seed: int,
    *,
    embeddings: int | None = None,
    size: int | tuple[int, int] = 8,
    learned_variance: bool = False,
    registration: dict[str, Any] | None = None,
    **scheduler: Any,
) -> Path:
    """A pixel-space pipeline, unconditional or with a table of class embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=size,
            in_channels=3,
            out_channels=6 if learned_variance else 3,
            block_out_channels=(16, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=8,
            norm_num_groups=4,
            num_class_embeds=embeddings,
        )
        labels = None if embeddings is None else torch.arange(8) % embeddings
        _normalise(unet, class_labels=labels)
    DDPMPipeline(unet, DDPMScheduler(**scheduler)).save_pretrained(folder, safe_serialization=True)
    if registration is not None:
        (folder / "carv_teacher.json").write_text(json.dumps(registration))
    return folder


def text_unet(**changes: Any) -> UNet2DConditionModel:
    """A text-conditional UNet on 4x8x8 latents."""
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    unet = UNet2DConditionModel(**{**config, **changes})
    for name, parameter in unet.named_parameters():
        if "attn2.to_out" in name or "attn2.to_v" in name:
            parameter.data *= 4.0  # at its default scale the text would hardly count
    return unet


def _text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    encoder = CLIPTextModel(CLIPTextConfig(**config))
    for name, parameter in encoder.named_parameters():
        if "embedding.weight" in name:
            torch.nn.init.normal_(parameter)
    return encoder


def _vae() -> AutoencoderKL:
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 16,
        "scaling_factor": SCALING_FACTOR,
        "shift_factor": SHIFT_FACTOR,
    }
    return AutoencoderKL(**config)


def _tokenizer() -> CLIPTokenizer:
    """Letters, the comma and a few merges; anything else is the unknown token, as in CLIP."""
    letters = [chr(ord("a") + i) for i in range(26)]
    merges: Any = [("r", "e"), ("re", "d</w>"), ("t", "o"), ("c", "u"), ("b", "e</w>")]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *(first + second for first, second in merges),
        ",</w>",
        _START,
        _END,
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


@torch.no_grad()
def _normalise(unet: Any, **conditioning: Any) -> None:
    """Rescale the last convolution so that outputs have mean zero and deviation one."""
    size = unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    noisy = torch.randn(8, unet.config["in_channels"], height, width)
    unet.conv_out.bias.zero_()
    out = unet(noisy, torch.linspace(0, 999, 8).long(), **conditioning).sample
    unet.conv_out.weight /= out.std()
    unet.conv_out.bias -= (out / out.std()).mean(dim=(0, 2, 3))
