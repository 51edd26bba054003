"""Pixel or latent teachers in DDPM's folder layout: unconditional or by class id."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DModel

from carv_server.teachers.compiling import compiled
from carv_server.teachers.folder import REGISTRATION_FILE, ModelFolder, TeacherFolderError
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
)
from carv_server.teachers.schedules import read_schedule
from carv_server.teachers.tables import NoiseConverter
from carv_server.teachers.weights import load_diffusers_model

__all__ = ["DDPMTeacher"]

_LABEL = "class_labels"


class DDPMTeacher:
    """``UNet2DModel``, unconditional or with a table of class embeddings.

    Guidance needs an unconditional input: a class-conditional model has one where the
    registration states its null class (commonly one more embedding than there are classes).
    """

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        null_class: int | None = None,
    ) -> None:
        unet_folder = folder.require_weights("unet", "UNet2DModel")
        schedule, prediction_type = read_schedule(folder.path / "scheduler")
        self._device = device
        self._dtype = dtype
        self._unet = load_diffusers_model(UNet2DModel, unet_folder, device=device, dtype=dtype)
        self._converter = NoiseConverter(schedule, prediction_type, device)
        config = self._unet.config
        if config["class_embed_type"] is not None:
            raise TeacherFolderError(
                f"{folder.path}: unet has class_embed_type={config['class_embed_type']!r}; only a "
                "table of class embeddings (num_class_embeds) is served"
            )
        if config["out_channels"] < config["in_channels"]:
            raise TeacherFolderError(
                f"{folder.path}: unet predicts {config['out_channels']} channels of its "
                f"{config['in_channels']}; the rest is an input that this family does not have"
            )
        self._embeddings = int(config["num_class_embeds"] or 0)
        if null_class is None:
            null_class = _stated_null_class(folder)
        if null_class is not None and not 0 <= null_class < self._embeddings:
            raise TeacherFolderError(
                f"{folder.path}: null_class={null_class}, but the model has "
                f"{self._embeddings} class embeddings"
            )
        self._null_class = null_class
        size = config["sample_size"]
        if size is None:
            raise TeacherFolderError(f"{folder.path}: unet/config.json states no sample_size")
        height, width = (size, size) if isinstance(size, int) else size
        self._description = TeacherDescription(
            digest=folder.digest(("unet", "scheduler"), dtype=str(dtype), null_class=null_class),
            family="ddpm",
            event_shape=(int(config["in_channels"]), int(height), int(width)),
            schedule=schedule,
            prediction_type=prediction_type,
            conditioning=ConditioningSpec(
                accepts_prompts=False,
                # A last embedding that stands for "no class" is not a class.
                classes=self._embeddings - (null_class == self._embeddings - 1),
                has_unconditional=self._embeddings == 0 or null_class is not None,
                tensors=(TensorSpec(_LABEL, torch.int64, ()),) if self._embeddings else (),
            ),
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
            case Prompts():
                raise SourceError("prompts", "this teacher takes no prompts")
            case Unconditional():
                if self._embeddings == 0:
                    return [{}]
                if self._null_class is None:
                    raise SourceError(
                        "unconditional",
                        "this class-conditional teacher states no null class; register it with "
                        "null_class=ID where the model has one",
                    )
                return [{_LABEL: torch.tensor(self._null_class)}]
            case Classes(class_ids=class_ids):
                classes = self._description.conditioning.classes
                check_each(
                    class_ids,
                    lambda i, c: self._check_class(f"classes.class_ids[{i}]", c, classes),
                )
                return [{_LABEL: torch.tensor(class_id)} for class_id in class_ids]
            case RawTensors(tensors=tensors):
                if self._embeddings:
                    label = int(tensors[_LABEL])
                    self._check_class(f"tensors.tensors[{_LABEL}]", label, self._embeddings)
                return [dict(tensors)]

    @torch.inference_mode()
    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        prediction = self._unet(
            z_t.to(self._dtype),
            self._converter.model_timesteps(timesteps),
            class_labels=conditioning.get(_LABEL),
            return_dict=False,
        )[0]
        return self._converter.to_noise(prediction, z_t, timesteps)

    def _check_class(self, field: str, class_id: int, count: int) -> None:
        if self._embeddings == 0:
            raise SourceError(field, "this teacher is unconditional and takes no class ids")
        if not 0 <= class_id < count:
            raise SourceError(field, f"{class_id} is not in 0 .. {count - 1}")


def _stated_null_class(folder: ModelFolder) -> int | None:
    stated = folder.registration.get("null_class")
    if stated is not None and type(stated) is not int:  # a bool is an int to isinstance
        raise TeacherFolderError(
            f"{folder.path / REGISTRATION_FILE}: null_class must be a whole number, not {stated!r}"
        )
    return stated
