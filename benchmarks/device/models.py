"""Networks to serve, with random weights: what a forward costs does not depend on what its weights
were trained to."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from carv_server.bench.load.folders import write_network
from carv_server.teachers.registry import EMBEDDED

__all__ = ["MODELS", "Model"]

_SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
_STABLE_DIFFUSION_1 = {"sample_size": 64, "cross_attention_dim": 768}  # diffusers' defaults else
_TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Model:
    """A network to measure.

    Attributes:
        prompt: of its conditional branch; None where the network takes no text.
        sizes: batch sizes of the bare network.
        event_shape: of its latents.
    """

    name: str
    title: str
    prompt: str | None
    sizes: tuple[int, ...]
    event_shape: tuple[int, ...]

    def write(self, folder: Path, device: torch.device) -> Path:
        """A pipeline folder in diffusers' layout."""
        match self.name:
            case "embedded":
                return EMBEDDED.folder
            case "convolutions":
                write_network(folder, self.event_shape)
            case _:
                config = _STABLE_DIFFUSION_1 if self.name == "sd15" else _TINY
                _write_text_conditional(folder, config, device)
        return folder


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "sd15",
            "Stable Diffusion 1.5's UNet, 860 M random weights, 4x64x64",
            "a torus",
            (1, 2, 4, 8, 16, 32, 64, 128),
            (4, 64, 64),
        ),
        Model(
            "embedded",
            "The embedded teacher, 4x8x8",
            "a red torus",
            (1, 4, 16, 64, 128, 256, 512),
            (4, 8, 8),
        ),
        Model(
            "convolutions",
            "A convolutional UNet, 4 M random weights, 4x64x64",
            None,
            (1, 4, 16, 64, 128, 256, 512),
            (4, 64, 64),
        ),
        Model("tiny", "A tiny text-conditional UNet, 4x8x8", "a torus", (1, 4, 16), (4, 8, 8)),
    )
}


@torch.no_grad()
def _write_text_conditional(folder: Path, config: dict[str, Any], device: torch.device) -> None:
    """Stable Diffusion's folder: the UNet in float16; a text encoder of two layers, since texts
    are encoded once and kept; the embedded teacher's tokenizer."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**config)
        text_width = int(config["cross_attention_dim"])
        z = torch.randn(4, 4, config["sample_size"], config["sample_size"])
        out = unet(z, torch.tensor([50, 300, 600, 900]), torch.randn(4, 77, text_width)).sample
    unet.conv_out.weight /= out.std()  # answers of order one, as trained networks give
    unet.half().save_pretrained(folder / "unet", safe_serialization=True)

    tokenizer = folder / "tokenizer"
    shutil.copytree(EMBEDDED.folder / "tokenizer", tokenizer, dirs_exist_ok=True)
    stated = json.loads((tokenizer / "tokenizer_config.json").read_text())
    _write_json(tokenizer / "tokenizer_config.json", {**stated, "model_max_length": 77})
    embedded = json.loads((EMBEDDED.folder / "text_encoder" / "config.json").read_text())
    text = CLIPTextConfig(
        vocab_size=embedded["vocab_size"],
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=2,
        num_attention_heads=text_width // 12,
        max_position_embeddings=77,
        bos_token_id=embedded["bos_token_id"],
        eos_token_id=embedded["eos_token_id"],
        pad_token_id=embedded["pad_token_id"],
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder", safe_serialization=True)
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDPMScheduler"],
        },
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2))
