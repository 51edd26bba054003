"""The bare network in a process of its own: rows a second of its batched forward, with nothing in
front of it. Prints one JSON object a line, as each is found.

    python -m benchmarks.device.bare FOLDER --device cuda --parts channels_last,graphs --sizes 1,16
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["PARTS"]

PARTS = ("channels_last", "graphs", "contiguous", "float16", "parity", "compiled", "compiled_any")
_WARM_FORWARDS = 3
_PARITY_ROWS = 16
_TEXT = 77

Forward = Callable[..., torch.Tensor]


def _network(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    import diffusers

    (name,) = (json.loads((folder / "model_index.json").read_text())["unet"][1],)
    network = getattr(diffusers, name).from_pretrained(folder / "unet", torch_dtype=dtype)
    return network.to(device).eval().requires_grad_(False)


def _inputs(network: Any, rows: int, dtype: torch.dtype, device: torch.device) -> list[Any]:
    """z, t and, where the network takes it, text."""
    config = network.config
    generator = torch.Generator(device).manual_seed(rows)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype)

    size = config["sample_size"]
    inputs: list[Any] = [
        normal(rows, config["in_channels"], size, size),
        torch.linspace(20, 980, rows, device=device),
    ]
    if "cross_attention_dim" in config:
        inputs.append(normal(rows, _TEXT, config["cross_attention_dim"]))
    return inputs


def _forward(network: Any) -> Forward:
    return lambda *inputs: network(*inputs, return_dict=False)[0]


def _captured(forward: Forward, inputs: Sequence[Any]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_FORWARDS):
            forward(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = forward(*inputs)
    return lambda: (graph.replay(), kept)


def _seconds(call: Callable[[], object], device: torch.device, budget: float) -> float:
    """Of one call, over as many as fit the budget."""

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(_WARM_FORWARDS):
        call()
    synchronise()
    before = time.perf_counter()
    call()
    synchronise()
    count = max(3, round(budget / (time.perf_counter() - before)))
    before = time.perf_counter()
    for _ in range(count):
        call()
    synchronise()
    return (time.perf_counter() - before) / count


class _Bench:
    def __init__(self, folder: Path, device: torch.device, sizes: Sequence[int], budget: float):
        self._folder, self._device, self._sizes, self._budget = folder, device, sizes, budget
        self._reduced = torch.bfloat16 if device.type == "cuda" else torch.float32

    def sweep(self, part: str, sizes: Sequence[int], dtype: torch.dtype, layout: Any) -> None:
        network = _network(self._folder, dtype, self._device).to(memory_format=layout)
        forward = _forward(network)
        if part == "compiled":
            forward = _forward(torch.compile(network, dynamic=False))
        if part == "compiled_any":
            forward = _any_batch(_forward(torch.compile(network)))
        for rows in sizes:
            inputs = _inputs(network, rows, dtype, self._device)
            before = time.perf_counter()
            try:
                call = (
                    _captured(forward, inputs)
                    if part == "graphs"
                    else lambda inputs=inputs: forward(*inputs)
                )
                seconds = _seconds(call, self._device, self._budget)
            except torch.OutOfMemoryError:
                return
            first = time.perf_counter() - before
            name = str(dtype).removeprefix("torch.")
            _say(part=part, dtype=name, rows=rows, seconds=seconds, preparing=first)
            call = None

    @torch.inference_mode()
    def run(self, part: str) -> None:
        channels_last, contiguous = torch.channels_last, torch.contiguous_format
        few = [size for size in (1, 16, 64) if size in self._sizes]
        match part:
            case "channels_last":
                self.sweep(part, self._sizes, self._reduced, channels_last)
            case "graphs":
                if self._device.type == "cuda":
                    self.sweep(part, self._sizes, self._reduced, channels_last)
            case "contiguous":
                self.sweep(part, few, self._reduced, contiguous)
            case "float16":
                self.sweep(part, few, torch.float16, channels_last)
            case "compiled":
                self.sweep(part, few[-1:], self._reduced, channels_last)
            case "compiled_any":
                self.sweep(part, few, self._reduced, channels_last)
            case "parity":
                self._parity()
            case _:
                raise ValueError(f"unknown part {part!r}; there are {', '.join(PARTS)}")

    def _parity(self) -> None:
        """Relative error of eps_hat against float32 without TF32, by format; the rows are noise at
        all noise levels."""
        torch.backends.cudnn.allow_tf32 = False
        exact = _network(self._folder, torch.float32, self._device)
        inputs = _inputs(exact, _PARITY_ROWS, torch.float32, self._device)
        expected = _forward(exact)(*inputs)
        for dtype in (torch.bfloat16, torch.float16):
            network = copy.deepcopy(exact).to(dtype).to(memory_format=torch.channels_last)
            given = [inputs[0].to(dtype), inputs[1], *(x.to(dtype) for x in inputs[2:])]
            found = _forward(network)(*given).float()
            error = float((found - expected).norm() / expected.norm())
            _say(part="parity", dtype=str(dtype).removeprefix("torch."), error=error)


def _any_batch(forward: Forward) -> Forward:
    def call(*inputs: torch.Tensor) -> torch.Tensor:
        for tensor in inputs:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return forward(*inputs)

    return call


def _say(**found: Any) -> None:
    print(json.dumps(found), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device.bare")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--parts", required=True)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--seconds", type=float, default=0.4)
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    bench = _Bench(given.folder, given.device, sizes, given.seconds)
    for part in given.parts.split(","):
        bench.run(part)
        if given.device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
