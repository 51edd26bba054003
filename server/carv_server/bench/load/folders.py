"""Teacher folders for loads: the simulated device, and a network with random weights. What a
forward costs does not depend on what its weights were trained to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DEVICE", "write_network", "write_simulated"]

DEVICE = (0.006, 0.001)
"""Seconds of a launch and of a row of the simulated device."""

_CHANNELS = (16, 32, 96, 160)
_SEED = 0


def write_simulated(
    folder: Path,
    event_shape: Sequence[int],
    launch_seconds: float,
    row_seconds: float,
    *,
    arithmetic: bool = True,
) -> Path:
    """A folder with ``simulated.json``; returned."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = {
        "event_shape": list(event_shape),
        "launch_seconds": launch_seconds,
        "row_seconds": row_seconds,
        "arithmetic": arithmetic,
    }
    (folder / "simulated.json").write_text(json.dumps(stated))
    return folder


def write_network(folder: Path, event_shape: Sequence[int]) -> int:
    """A pipeline folder in DDPM's layout with an unconditional convolutional ``UNet2DModel`` of
    about four million random weights, always the same ones.

    Args:
        event_shape: channels, height, width; the last two equal multiples of 8.

    Returns:
        Number of parameters.
    """
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    channels, size, _ = event_shape
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        unet = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=1,
            block_out_channels=_CHANNELS,
            norm_num_groups=8,
            down_block_types=("DownBlock2D",) * len(_CHANNELS),
            up_block_types=("UpBlock2D",) * len(_CHANNELS),
        )
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipeline.save_pretrained(folder, safe_serialization=True)
    return sum(parameter.numel() for parameter in unet.parameters())
