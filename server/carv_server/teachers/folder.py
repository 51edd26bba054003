"""A model folder in diffusers layout: what it holds, whether it is safe to load, its digest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["REGISTRATION_FILE", "ModelFolder", "TeacherFolderError", "open_folder", "read_json"]

REGISTRATION_FILE = "carv_teacher.json"
_HASH_CHUNK = 1 << 20


class TeacherFolderError(ValueError):
    """A folder that cannot be served, with what to do about it."""


@dataclass(frozen=True)
class ModelFolder:
    """A checked folder.

    Attributes:
        components: component name to its class name, from ``model_index.json``.
        registration: ``carv_teacher.json``, or empty: what the operator states of the teacher
            (description, vocabulary, null_class).
    """

    path: Path
    components: dict[str, str]
    registration: dict[str, Any]

    def config(self, component: str) -> dict[str, Any]:
        """The component's ``config.json``.

        Raises:
            TeacherFolderError: there is none, or it is no JSON object.
        """
        return read_json(self.path / component / "config.json")

    def require(self, component: str, class_name: str) -> Path:
        """The component's folder.

        Raises:
            TeacherFolderError: it is missing or of another class.
        """
        found = self.components.get(component)
        if found != class_name:
            raise TeacherFolderError(
                f"{self.path}: component {component!r} is {found or 'missing'}; "
                f"this family needs {class_name}"
            )
        folder = self.path / component
        if not folder.is_dir():
            raise TeacherFolderError(f"{folder} is named in model_index.json but does not exist")
        return folder

    def require_weights(self, component: str, class_name: str) -> Path:
        """As ``require``, and the folder holds safetensors.

        Raises:
            TeacherFolderError: there are none (pickled weights are never loaded).
        """
        folder = self.require(component, class_name)
        if not any(folder.glob("*.safetensors")):
            raise TeacherFolderError(
                f"{folder} has no .safetensors file; pickled weights are refused, convert them "
                "with diffusers' save_pretrained(safe_serialization=True)"
            )
        return folder

    def digest(self, components: tuple[str, ...], **options: object) -> str:
        """SHA-256 over the files of the named components and the options that change answers."""
        total = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
        for component in components:
            for file in sorted((self.path / component).iterdir()):
                if not file.is_file():
                    continue
                # The size keeps one file's end from reading like the next one's start.
                total.update(f"{component}/{file.name}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while chunk := stream.read(_HASH_CHUNK):
                        total.update(chunk)
        return total.hexdigest()


def open_folder(path: Path) -> ModelFolder:
    """Read ``model_index.json`` and ``carv_teacher.json``.

    Raises:
        TeacherFolderError: no such folder, no index, or an index that is no pipeline's.
    """
    if not path.is_dir():
        raise TeacherFolderError(f"{path} is not a folder")
    index_file = path / "model_index.json"
    if not index_file.is_file():
        raise TeacherFolderError(
            f"{path} has no model_index.json; expected a diffusers pipeline folder"
        )
    index = read_json(index_file)
    registration_file = path / REGISTRATION_FILE
    registration = read_json(registration_file) if registration_file.is_file() else {}
    components = {name: str(entry[1]) for name, entry in index.items() if _names_a_class(entry)}
    return ModelFolder(path, components, registration)


def _names_a_class(entry: Any) -> bool:
    """[library, class]; [null, null] is an optional part left out, the rest are plain settings."""
    return type(entry) is list and len(entry) == 2 and bool(entry[1])  # pyright: ignore[reportUnknownArgumentType]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        TeacherFolderError: no such file, or it holds something else.
    """
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise TeacherFolderError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TeacherFolderError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise TeacherFolderError(f"{file} must hold an object")
    return content  # pyright: ignore[reportUnknownVariableType]
