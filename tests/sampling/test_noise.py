"""Noise on a torch device: the published known answers, and the numpy law of the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carv import noise as contract
from carv_server.sampling import noise
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.philox import noise_words, philox4x32

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def words(*values: int, device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("counter", "seed", "answer"), KNOWN_ANSWERS)
def test_known_answers(
    counter: tuple[int, int, int, int], seed: int, answer: tuple[int, ...], device: str
) -> None:
    c0, c1, c2, c3 = (words(value, device=device) for value in counter)
    key = words(seed & 0xFFFFFFFF, device=device), words(seed >> 32, device=device)
    assert tuple(int(word) for word in philox4x32((c0, c1, c2, c3), key)) == answer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1,), (3,), (4, 8, 8), (2, 3, 5)])
def test_equals_the_contract(shape: tuple[int, ...], device: str) -> None:
    seeds, renders, indices = [0, 5, 2**64 - 1], [0, 7, 2**32 - 1], [3, 0, 2**32 - 1]
    drawn = draw_noise(
        words(*(half for s in seeds for half in (s & 0xFFFFFFFF, s >> 32)), device=device).reshape(
            3, 2
        ),
        words(*renders, device=device),
        words(*indices, device=device),
        shape,
    )
    expected = [
        contract.draw_noise(s, r, i, shape) for s, r, i in zip(seeds, renders, indices, strict=True)
    ]
    # log, sqrt, sin and cos of two libraries: a few units in the last place of values up to 6.
    np.testing.assert_allclose(drawn.cpu().numpy(), expected, rtol=0, atol=4e-6)


def drawn(shape: tuple[int, ...], draws: int) -> tuple[torch.Tensor, np.ndarray]:
    """Noise of distinct draws, and the contract's."""
    seeds = [(3 + 2**40 * i) % 2**64 for i in range(draws)]
    renders, indices = [7 * i for i in range(draws)], [2**32 - 1 - i for i in range(draws)]
    found = draw_noise(
        torch.tensor([[s & 0xFFFFFFFF, s >> 32] for s in seeds]),
        torch.tensor(renders),
        torch.tensor(indices),
        shape,
    )
    expected = [
        contract.draw_noise(s, r, i, shape) for s, r, i in zip(seeds, renders, indices, strict=True)
    ]
    return found, np.stack(expected)


@pytest.mark.parametrize(
    ("shape", "draws"), [((5,), 11), ((64,), 3), ((3, 35), 4), ((2, 19), 1), ((4, 6, 5), 70)]
)
def test_a_cpu_takes_it_in_pieces(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], draws: int
) -> None:
    """Pieces of many draws and pieces of one draw's blocks, whole and cut off."""
    monkeypatch.setattr(noise, "_COUNTERS", 8)
    found, expected = drawn(shape, draws)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("shape", [(1,), (4, 8, 8), (3, 7)])
def test_both_ways_are_one_law(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    """What other devices compute with tensors, on the CPU."""
    monkeypatch.setattr(noise, "_on_cpu", lambda *given: noise._on_device(*given[:4]))
    found, expected = drawn(shape, 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("counters", [1, 7, 64])
def test_words_by_numpy_are_the_words_by_torch(counters: int) -> None:
    """Bit for bit; the torch ones are held to the known answers above."""
    generator = np.random.default_rng(2)
    drawn_words = generator.integers(0, 2**32, (5, 4), dtype=np.uint64)
    drawn_words[0] = 2**32 - 1
    keys, indices, renders = drawn_words[:, :2], drawn_words[:, 2], drawn_words[:, 3]
    i, r, k = (torch.from_numpy(w.astype(np.int64)) for w in (indices, renders, keys))
    counter = (torch.arange(23)[None], i[:, None], r[:, None], torch.tensor([[2]]))
    expected = [w.expand(5, 23) for w in philox4x32(counter, (k[:, :1], k[:, 1:]))]
    seen = np.zeros((5, 23), dtype=int)
    for block in noise_words(indices, renders, keys, 23, 2, counters):
        seen[block.rows, block.columns] += 1
        words = (block.even[0], block.odd[0], block.even[1], block.odd[1])
        for found, whole in zip(words, expected, strict=True):
            np.testing.assert_array_equal(found, whole[block.rows, block.columns].numpy())
    assert (seen == 1).all()
