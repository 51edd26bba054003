"""Networks through torch.compile, where the machine has what that needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any, Protocol, runtime_checkable

import torch

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
    if device.type == "cuda":
        return _Compiled(torch.compile(network, dynamic=False))
    return _AnyBatch(torch.compile(network))


class _Compiled:
    """Compiles anew for every size, however many there are: beyond its limit torch would run
    further ones uncompiled, with a warning in the log."""

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        # Here and not once: torch keeps its settings for each thread apart. torch.compile has
        # imported the module, which takes two seconds that no other start shall pay.
        config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
        for name in ("recompile_limit", "accumulated_recompile_limit"):
            if getattr(config, name) < _MOST_VERSIONS:
                setattr(config, name, _MOST_VERSIONS)
        return self._network(*inputs, **named)


class _AnyBatch(_Compiled):
    """Marks the first axis of every input as one of any length."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        for value in (*inputs, *named.values()):
            if isinstance(value, torch.Tensor):
                torch._dynamo.maybe_mark_dynamic(value, 0)  # pyright: ignore[reportPrivateUsage]
        return super().__call__(*inputs, **named)


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile lacks for the device, or None."""
    if device.type == "cuda":
        if not importlib.util.find_spec("triton"):
            return "the triton package"
        # It builds what launches its kernels.
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
        return None if any(map(shutil.which, names)) else "a C compiler (gcc or clang)"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    return None if any(map(shutil.which, names)) else "a C++ compiler (g++ or clang++)"
