"""A CUDA device kept busy: inputs, forward and sums of neighbouring microbatches on streams of
their own, so that the device goes from one forward straight into the next.

Launching is not waiting: the thread that launches forwards is free for the next one while the
device computes. Whoever wants the results waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from carv_server.replicas.forward import Forward, Inputs
from carv_server.replicas.protocol import MicrobatchResult, Work

__all__ = ["DeviceStreams", "Launched", "Prepared"]


@dataclass(frozen=True)
class Prepared:
    """Inputs of a forward, complete once ``ready`` has passed."""

    inputs: Inputs
    ready: torch.cuda.Event


@dataclass(frozen=True)
class Launched:
    """A forward under way, between two events of its stream. It holds on to its inputs: what
    other streams allocated must outlive this one's use of it."""

    inputs: Inputs
    predictions: torch.Tensor
    start: torch.cuda.Event
    end: torch.cuda.Event


class DeviceStreams:
    """The three steps of a microbatch, each to be called in a thread of its own kind.

    Streams meet by events, and tensors pass between them without ``record_stream``: every one is
    held until ``finish`` has the sums on the host, and by then no stream uses any.
    """

    def __init__(self, forward: Forward) -> None:
        device = forward.teacher.device
        self._forward = forward
        self._device = device
        self._ahead = torch.cuda.Stream(device)
        # Not the one above: what it waits for would hold up the next microbatch's inputs.
        self._behind = torch.cuda.Stream(device)

    def prepare(self, works: Sequence[Work]) -> Prepared:
        """Noise and z_t, beside the forward ahead. In any thread."""
        with torch.cuda.stream(self._ahead):
            inputs = self._forward.inputs(self._forward.stage(works))
            ready = torch.cuda.Event()
            ready.record(self._ahead)
        return Prepared(inputs, ready)

    def launch(self, prepared: Prepared) -> Launched:
        """The teacher, behind the forward ahead. In the device's thread."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(prepared.ready)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            predictions = self._forward.predict(prepared.inputs)
            end.record(stream)
        return Launched(prepared.inputs, predictions, start, end)

    def finish(self, launched: Launched) -> MicrobatchResult:
        """Sums, beside the forward behind; waits for the forward and for them. In any thread.

        The seconds are the device's own: from when it could begin, the forward ahead being over,
        to when it was done.
        """
        # On the host, ahead of the stream: told to wait, that would hold up the sums of the forward
        # before, of which some are launched only after this.
        launched.end.synchronize()
        with torch.cuda.stream(self._behind):
            results = self._forward.results(launched.inputs, launched.predictions)
        return MicrobatchResult(results, 1e-3 * launched.start.elapsed_time(launched.end))
