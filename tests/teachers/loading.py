"""Folders as the server loads them, in this process, and edits that spoil them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from carv_server.teachers.protocol import Teacher
from carv_server.teachers.registry import TeacherRegistration, load_teacher

__all__ = ["edit_json", "load"]


def load(
    folder: Path, *, dtype: torch.dtype = torch.float32, null_class: int | None = None
) -> Teacher:
    """A folder as the server loads it, in this process."""
    registration = TeacherRegistration("teacher", folder, null_class)
    return load_teacher(registration, device=torch.device("cpu"), dtype=dtype)


def edit_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
