"""The contract's noise in two kernels of a CUDA device, for the 250 that its tensor operations
take: launches are what a small teacher's microbatch waits for.

Kernels are compiled at first use by CUDA's own compiler library, which comes with torch; no
compiler has to be installed.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["fused_lanes"]

# Words as in ``philox``, less the low 8 bits; T is int64.
_WORDS = """
template <typename T>
void carv_words(T block, T index, T render, T low, T high, T& w0, T& w1, T& w2, T& w3) {
  unsigned int c0 = block, c1 = index, c2 = render, c3 = DOMAIN, k0 = low, k1 = high;
  for (int i = 0; i < 10; ++i) {
    unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = (unsigned int)(p1 >> 32) ^ c1 ^ k0;
    c1 = (unsigned int)p1;
    c2 = (unsigned int)(p0 >> 32) ^ c3 ^ k1;
    c3 = (unsigned int)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  w0 = c0 >> 8; w1 = c1 >> 8; w2 = c2 >> 8; w3 = c3 >> 8;
}
"""
# Box-Muller as in ``noise``, in its order of operations; T is float.
_NORMALS = """
template <typename T>
void carv_normals(T r0, T a0, T r1, T a1, T& n0, T& n1, T& n2, T& n3) {
  const T scale = 5.9604644775390625e-08f, turn = TURN;
  T radius = sqrtf(-2.0f * logf((r0 + 1.0f) * scale)), angle = turn * (a0 * scale);
  n0 = radius * cosf(angle); n1 = radius * sinf(angle);
  radius = sqrtf(-2.0f * logf((r1 + 1.0f) * scale)); angle = turn * (a1 * scale);
  n2 = radius * cosf(angle); n3 = radius * sinf(angle);
}
"""

_Kernel = Callable[..., tuple[torch.Tensor, ...]]


def fused_lanes(
    seeds: torch.Tensor, renders: torch.Tensor, indices: torch.Tensor, blocks: int, domain: int
) -> torch.Tensor:
    """Four normals of each counter, float32 [n, blocks, 4].

    Args:
        seeds: int64 [n, 2], low and high word; renders, indices: int64 [n], below 2^32.

    Raises:
        RuntimeError, ImportError, AttributeError: this build of torch cannot compile kernels.
    """
    words, normals = _kernels(domain)
    counted = words(
        torch.arange(blocks, device=seeds.device).unsqueeze(0),
        indices.unsqueeze(1),
        renders.unsqueeze(1),
        seeds[:, :1],
        seeds[:, 1:],
    )
    return torch.stack(normals(*(word.float() for word in counted)), dim=-1)


@functools.cache
def _kernels(domain: int) -> tuple[_Kernel, _Kernel]:
    # Beta, and so under no public name; where it is absent the caller does without.
    jiterator: Any = importlib.import_module("torch.cuda.jiterator")
    compiled = jiterator._create_multi_output_jit_fn
    turn = f"{2.0 * math.pi!r}f"
    return (
        compiled(_WORDS.replace("DOMAIN", f"{domain}u"), 4),
        compiled(_NORMALS.replace("TURN", turn), 4),
    )
