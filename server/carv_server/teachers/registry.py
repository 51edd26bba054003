"""Operator's registrations to loaded teachers: an id, a local folder, options. Clients name
ids, never paths."""

from __future__ import annotations

from collections.abc import Callable

import torch

from carv_server.teachers.analytic import MIXTURE_FILE, load_analytic
from carv_server.teachers.folder import TeacherFolderError, open_folder
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registration import (
    EMBEDDED,
    TeacherRegistration,
    parse_registration,
)
from carv_server.teachers.simulated import SIMULATED_FILE, load_simulated
from carv_server.teachers.weight_files import refuse_unsafe

__all__ = ["EMBEDDED", "TeacherRegistration", "load_teacher", "parse_registration"]


def load_teacher(
    registration: TeacherRegistration, *, device: torch.device, dtype: torch.dtype
) -> Teacher:
    """Load a teacher onto a device.

    Raises:
        TeacherFolderError: the folder cannot be served; the message says why.
    """
    folder = registration.folder
    if (folder / MIXTURE_FILE).is_file():
        return _from_file(registration, MIXTURE_FILE, lambda: load_analytic(folder, device))
    if (folder / SIMULATED_FILE).is_file():
        return _from_file(registration, SIMULATED_FILE, lambda: load_simulated(folder))
    model = open_folder(folder)
    refuse_unsafe(folder)
    # Imported late: diffusers and transformers take seconds, and an analytic teacher needs
    # neither.
    match model.components.get("unet"):
        case "UNet2DConditionModel":
            from carv_server.teachers.stable_diffusion import StableDiffusionTeacher

            _refuse_null_class(registration)
            return StableDiffusionTeacher(model, device=device, dtype=dtype)
        case "UNet2DModel":
            from carv_server.teachers.ddpm import DDPMTeacher

            return DDPMTeacher(
                model, device=device, dtype=dtype, null_class=registration.null_class
            )
        case found:
            raise TeacherFolderError(
                f"{folder}: unet is {found or 'missing'}; served are UNet2DConditionModel "
                "(Stable Diffusion layout) and UNet2DModel (DDPM layout)"
            )


def _from_file(
    registration: TeacherRegistration, file: str, load: Callable[[], Teacher]
) -> Teacher:
    """A teacher that one JSON file describes."""
    _refuse_null_class(registration)
    try:
        return load()
    except TeacherFolderError:
        raise
    except (ValueError, TypeError) as error:
        raise TeacherFolderError(f"{registration.folder / file}: {error}") from None


def _refuse_null_class(registration: TeacherRegistration) -> None:
    if registration.null_class is not None:
        raise TeacherFolderError(
            f"{registration.folder}: null_class={registration.null_class} is for a "
            "class-conditional UNet2DModel; this teacher has an unconditional input of its own"
        )
