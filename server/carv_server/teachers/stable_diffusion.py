"""Text-conditional latent teachers in Stable Diffusion's folder layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from carv_server.teachers.folder import ModelFolder, TeacherFolderError
from carv_server.teachers.protocol import (
    Classes,
    ConditioningSpec,
    Prompts,
    RawTensors,
    Source,
    SourceError,
    TeacherDescription,
    Tensors,
    TensorSpec,
    Unconditional,
    check_prompts,
)
from carv_server.teachers.schedules import read_schedule
from carv_server.teachers.tables import NoiseConverter

__all__ = ["StableDiffusionTeacher"]

_EMBEDDING = "encoder_hidden_states"
_TEXT_BATCH = 64

_Model = TypeVar("_Model", bound=torch.nn.Module)


class StableDiffusionTeacher:
    """``UNet2DConditionModel`` with a CLIP text encoder; epsilon, v or sample prediction.

    The VAE is not loaded: clients send latents. Its scaling is part of the description.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        unet_folder = folder.require_weights("unet", "UNet2DConditionModel")
        text_folder = folder.require_weights("text_encoder", "CLIPTextModel")
        tokenizer_folder = folder.require("tokenizer", "CLIPTokenizer")
        schedule, prediction_type = read_schedule(folder.path / "scheduler")
        self._device = device
        self._unet = _frozen(
            UNet2DConditionModel.from_pretrained(
                str(unet_folder), use_safetensors=True, local_files_only=True, torch_dtype=dtype
            ),
            device,
        )
        self._text_encoder = _frozen(
            CLIPTextModel.from_pretrained(
                str(text_folder), use_safetensors=True, local_files_only=True, dtype=dtype
            ),
            device,
        )
        self._tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
        self._converter = NoiseConverter(schedule, prediction_type, device)
        config = self._unet.config
        _refuse_extra_inputs(folder.path, dict(config))
        size = config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self._dtype = dtype
        vae = folder.config("vae") if (folder.path / "vae" / "config.json").is_file() else {}
        self._description = TeacherDescription(
            digest=folder.digest(
                ("unet", "text_encoder", "tokenizer", "scheduler"), dtype=str(dtype)
            ),
            family="stable-diffusion",
            event_shape=(int(config["in_channels"]), int(height), int(width)),
            schedule=schedule,
            prediction_type=prediction_type,
            conditioning=ConditioningSpec(
                accepts_prompts=True,
                classes=0,
                has_unconditional=True,
                tensors=(
                    TensorSpec(
                        _EMBEDDING,
                        torch.float32,
                        (int(self._tokenizer.model_max_length), int(config["cross_attention_dim"])),
                    ),
                ),
                vocabulary=tuple(map(str, folder.registration.get("vocabulary", ()))),
            ),
            scaling_factor=float(vae.get("scaling_factor") or 1.0),
            shift_factor=float(vae.get("shift_factor") or 0.0),
            description=str(folder.registration.get("description", "")),
        )

    @property
    def description(self) -> TeacherDescription:
        return self._description

    @property
    def device(self) -> torch.device:
        return self._device

    def encode(self, source: Source) -> Sequence[Tensors]:
        match source:
            case Prompts(prompts=prompts):
                check_prompts(prompts, self._description.conditioning.vocabulary)
                for i, prompt in enumerate(prompts):
                    self._check_length(i, prompt)
                return self._embed(prompts)
            case Unconditional():
                return self._embed([""])
            case Classes():
                raise SourceError("classes", "this teacher takes prompts, not class ids")
            case RawTensors(tensors=tensors):
                return [dict(tensors)]

    @torch.inference_mode()
    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        prediction = self._unet(
            z_t.to(self._dtype),
            self._converter.model_timesteps(timesteps),
            encoder_hidden_states=conditioning[_EMBEDDING].to(self._dtype),
            return_dict=False,
        )[0]
        return self._converter.to_noise(prediction, z_t, timesteps)

    def _check_length(self, index: int, prompt: str) -> None:
        limit = self._tokenizer.model_max_length
        length = len(self._tokenizer(prompt, truncation=False)["input_ids"])
        if length > limit:
            raise SourceError(
                f"prompts.prompts[{index}]",
                f"{length} tokens with start and end; this teacher reads at most {limit}",
            )

    @torch.inference_mode()
    def _embed(self, prompts: Sequence[str]) -> list[Tensors]:
        rows: list[Tensors] = []
        for start in range(0, len(prompts), _TEXT_BATCH):
            tokens = self._tokenizer(
                list(prompts[start : start + _TEXT_BATCH]),
                padding="max_length",
                max_length=self._tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            mask = None
            if getattr(self._text_encoder.config, "use_attention_mask", False):
                mask = tokens["attention_mask"].to(self._device)
            embedded = self._text_encoder(
                tokens["input_ids"].to(self._device), attention_mask=mask
            )[0]
            rows += [{_EMBEDDING: row.clone()} for row in embedded.float().cpu()]
        return rows


def _frozen(model: _Model, device: torch.device) -> _Model:
    return model.to(device).eval().requires_grad_(False)


def _refuse_extra_inputs(path: Path, config: dict[str, object]) -> None:
    """UNets that need more than text (SDXL's pooled text and time ids, image embeddings)."""
    for key in ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type"):
        if config.get(key) is not None:
            raise TeacherFolderError(
                f"{path}: unet has {key}={config[key]!r}; this family conditions on text alone"
            )
