"""Networks through torch.compile, where the machine has what that needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any, Protocol, runtime_checkable

import torch
import torch._dynamo

__all__ = ["Compilable", "compiled", "missing_compiler"]

# Batch sizes of all teachers of one architecture: they share the code whose versions are counted.
_MOST_VERSIONS = 256


@runtime_checkable
class Compilable(Protocol):
    """A teacher whose network can be compiled."""

    def compile_network(self) -> None:
        """Compile at the first forward of each batch size.

        Raises:
            ValueError: the machine has no compiler for the device.
        """
        ...


def compiled(network: Any, device: torch.device) -> Any:
    """The network, compiled: on a CUDA device anew for each batch size that it meets, where that
    makes for the fastest kernels; elsewhere for any batch size at once, since a CPU's time goes by
    rows and compiling takes it a minute.

    Raises:
        ValueError: the machine has no compiler for the device.
    """
    missing = missing_compiler(device)
    if missing is not None:
        raise ValueError(f"--compile needs {missing}; leave it out, or install that")
    # Beyond its limit torch would run further sizes uncompiled, with a warning in the log.
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
    config.recompile_limit = max(config.recompile_limit, _MOST_VERSIONS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, _MOST_VERSIONS)
    if device.type == "cuda":
        return torch.compile(network, dynamic=False)
    return _AnyBatch(torch.compile(network))


class _AnyBatch:
    """Marks the first axis of every input as one of any length."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        for value in (*inputs, *named.values()):
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)  # pyright: ignore[reportPrivateUsage]
        return self._network(*inputs, **named)


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks for the device, or None."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the triton package"
    names = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return None if any(map(shutil.which, names)) else "a C++ compiler (g++ or clang++)"
