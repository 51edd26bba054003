"""Text-conditional latent teachers in Stable Diffusion's folder layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from carv_server.teachers.compiling import compiled
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
    check_each,
    check_prompts,
)
from carv_server.teachers.schedules import read_schedule
from carv_server.teachers.tables import NoiseConverter
from carv_server.teachers.weights import load_diffusers_model, load_transformers_model

__all__ = ["StableDiffusionTeacher"]

_EMBEDDING = "encoder_hidden_states"
_TEXT_BATCH = 64


class StableDiffusionTeacher:
    """``UNet2DConditionModel`` with a CLIP text encoder; epsilon, v or sample prediction.

    The VAE is not loaded: clients send latents. Its scaling is part of the description.
    """

    def __init__(self, folder: ModelFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        unet_folder = folder.require_weights("unet", "UNet2DConditionModel")
        text_folder = folder.require_weights("text_encoder", "CLIPTextModel")
        tokenizer_folder = folder.require("tokenizer", "CLIPTokenizer")
        schedule, prediction_type = read_schedule(folder.path / "scheduler")
        _refuse_extra_inputs(folder)
        self._device = device
        self._unet = load_diffusers_model(
            UNet2DConditionModel, unet_folder, device=device, dtype=dtype
        )
        self._text_encoder = load_transformers_model(
            CLIPTextModel, text_folder, device=device, dtype=dtype
        )
        # Untyped in its library.
        self._tokenizer = cast(
            Any, CLIPTokenizer.from_pretrained(str(tokenizer_folder), local_files_only=True)
        )
        text_config: Any = self._text_encoder.config
        # A tokenizer that states no length says 10^30.
        self._max_tokens = min(
            int(self._tokenizer.model_max_length), int(text_config.max_position_embeddings)
        )
        self._converter = NoiseConverter(schedule, prediction_type, device)
        config = self._unet.config
        _refuse_unfit_parts(folder, dict(config), int(text_config.hidden_size))
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
                        (self._max_tokens, int(config["cross_attention_dim"])),
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

    def compile_network(self) -> None:
        self._unet = compiled(self._unet, self._device)

    def encode(self, source: Source) -> Sequence[Tensors]:
        match source:
            case Prompts(prompts=prompts):
                check_prompts(prompts, self._description.conditioning.vocabulary)
                check_each(prompts, self._check_length)
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
        limit = self._max_tokens
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
                max_length=self._max_tokens,
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


def _refuse_extra_inputs(folder: ModelFolder) -> None:
    """UNets that need more than text (SDXL's pooled text and time ids, image embeddings): told
    from their config, before gigabytes are read."""
    config = folder.config("unet")
    for key in (
        "addition_embed_type",
        "encoder_hid_dim_type",
        "class_embed_type",
        "num_class_embeds",
    ):
        if config.get(key) is not None:
            raise TeacherFolderError(
                f"{folder.path}: unet has {key}={config[key]!r}; this family conditions on text "
                "alone"
            )


def _refuse_unfit_parts(folder: ModelFolder, unet: dict[str, Any], text_width: int) -> None:
    """Inpainting and image-conditioned UNets, and a text encoder of another width."""
    if unet["out_channels"] < unet["in_channels"]:
        raise TeacherFolderError(
            f"{folder.path}: unet predicts {unet['out_channels']} channels of its "
            f"{unet['in_channels']}; the rest is an input that this family does not have"
        )
    if unet["cross_attention_dim"] != text_width:
        raise TeacherFolderError(
            f"{folder.path}: unet reads text of width {unet['cross_attention_dim']}, but the text "
            f"encoder writes {text_width}"
        )
    if unet["sample_size"] is None:
        raise TeacherFolderError(f"{folder.path}: unet/config.json states no sample_size")
