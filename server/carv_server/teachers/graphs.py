"""CUDA graphs: a forward of one batch size captured once, then replayed with one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from carv_server.teachers.protocol import Teacher, Tensors
from carv_server.teachers.wrapped import WrappedTeacher

__all__ = ["GraphedTeacher"]

_WARM_UP_FORWARDS = 3  # before a capture: cuDNN and Triton choose their kernels


@dataclass(frozen=True)
class _Captured:
    """A graph and the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    z_t: torch.Tensor
    timesteps: torch.Tensor
    conditioning: Tensors
    noise: torch.Tensor


class GraphedTeacher(WrappedTeacher):
    """Replays a captured graph for each of a few batch sizes; other forwards run as they are.

    A graph is captured at the first forward of its size and conditioning shapes, which is what
    warming up is for. Graphs share one pool of memory, since only one runs at a time.

    Args:
        sizes: batch sizes to capture.

    Raises:
        ValueError: the teacher is not on a CUDA device.
    """

    def __init__(self, inner: Teacher, sizes: Sequence[int]) -> None:
        if inner.device.type != "cuda":
            raise ValueError(
                f"CUDA graphs need a CUDA device, and this teacher is on {inner.device}; leave "
                "--cuda-graphs out"
            )
        super().__init__(inner)
        self._sizes = frozenset(sizes)
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[object, _Captured] = {}

    @torch.inference_mode()  # what is captured in it cannot be written to outside it
    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        if len(z_t) not in self._sizes:
            return self._inner.predict_noise(z_t, timesteps, conditioning)
        key = (len(z_t), *sorted((name, tuple(t.shape)) for name, t in conditioning.items()))
        captured = self._captured.get(key)
        if captured is None:
            with torch.cuda.device(self.device):  # a thread's first one is device 0
                captured = self._capture(z_t, timesteps, conditioning)
            self._captured[key] = captured
        captured.z_t.copy_(z_t)
        captured.timesteps.copy_(timesteps)
        for name, tensor in captured.conditioning.items():
            tensor.copy_(conditioning[name])
        captured.graph.replay()
        return captured.noise.clone()  # the next replay overwrites it

    def _capture(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> _Captured:
        still = z_t.clone(), timesteps.clone(), {k: t.clone() for k, t in conditioning.items()}
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_FORWARDS):
                self._inner.predict_noise(*still)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be copying the next microbatch: its calls are not this capture's.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            noise = self._inner.predict_noise(*still)
        return _Captured(graph, *still, noise)
