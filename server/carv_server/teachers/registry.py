"""Operator's registrations to loaded teachers: an id, a local folder, options. Clients name
ids, never paths."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from carv_server.teachers.analytic import MIXTURE_FILE, load_analytic
from carv_server.teachers.folder import TeacherFolderError, open_folder
from carv_server.teachers.protocol import Teacher
from carv_server.teachers.simulated import SIMULATED_FILE, load_simulated

__all__ = ["EMBEDDED", "TeacherRegistration", "load_teacher", "parse_registration"]

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_EMBEDDED_FOLDER = Path(__file__).parent / "embedded"


@dataclass(frozen=True)
class TeacherRegistration:
    """What ``--teacher`` states.

    Attributes:
        id: the name that clients use.
        folder: diffusers layout, or a folder with ``mixture.json`` or ``simulated.json``.
        null_class: class id of the unconditional input of a class-conditional model.
    """

    id: str
    folder: Path
    null_class: int | None = None


EMBEDDED = TeacherRegistration("shapes", _EMBEDDED_FOLDER / "shapes")
"""The trained teacher that the package ships."""


def parse_registration(text: str) -> TeacherRegistration:
    """``ID=FOLDER`` or ``ID=FOLDER,null_class=N``.

    Raises:
        ValueError: with the form that is wanted.
    """
    teacher_id, equals, rest = text.partition("=")
    if not equals or not rest or not _ID.fullmatch(teacher_id):
        raise ValueError(
            f"{text!r}: expected ID=FOLDER[,null_class=N], ID of lower-case letters, digits, "
            "'.', '_' and '-'"
        )
    folder, comma, option = rest.partition(",null_class=")
    if comma and not option.isdigit():
        raise ValueError(f"{text!r}: null_class must be a class id, 0 or more")
    return TeacherRegistration(teacher_id, Path(folder), int(option) if comma else None)


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
