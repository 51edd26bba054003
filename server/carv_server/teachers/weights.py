"""Weights from safetensors into modules: every tensor that the model needs, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import is_accelerate_available
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from carv_server.teachers.folder import TeacherFolderError

__all__ = ["load_diffusers_model", "load_transformers_model"]

_Model = TypeVar("_Model", bound=torch.nn.Module)


def load_diffusers_model(
    model_class: type[_Model], folder: Path, *, device: torch.device, dtype: torch.dtype
) -> _Model:
    """A frozen diffusers model in evaluation mode.

    Raises:
        TeacherFolderError: the weights do not load, or not all of them are there.
    """
    # Left to its default, diffusers logs a plea for accelerate wherever that is not installed.
    low_memory = is_accelerate_available()
    model = _load(model_class, folder, device, torch_dtype=dtype, low_cpu_mem_usage=low_memory)
    # Convolutions run faster on this layout: by a fifth on CPUs, more in 16 bit on tensor cores.
    return model.to(memory_format=torch.channels_last)


def load_transformers_model(
    model_class: type[_Model], folder: Path, *, device: torch.device, dtype: torch.dtype
) -> _Model:
    """As ``load_diffusers_model``, for a transformers model."""
    return _load(model_class, folder, device, dtype=dtype)


def _load(model_class: Any, folder: Path, device: torch.device, **options: object) -> Any:
    _log_as_others_do()
    try:
        model, report = model_class.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise TeacherFolderError(f"{folder} does not load: {error}") from error
    # Both libraries fill what is missing with random numbers and only log it.
    missing = sorted(report["missing_keys"])
    if missing:
        raise TeacherFolderError(
            f"{folder} lacks {len(missing)} of the model's tensors, {missing[0]} first; the "
            "download or conversion is incomplete"
        )
    return model.to(device).eval().requires_grad_(False)


def _log_as_others_do() -> None:
    """Have both libraries log through the process's own handlers, and draw no progress bars: a log
    of JSON objects would be none with these in it."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()
