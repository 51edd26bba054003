"""The forward on a CUDA device: the formula, the contract's noise, and microbatches beside each
other on streams of their own."""

from __future__ import annotations

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from carv.noise import DOMAIN_NOISE
from carv.noise import draw_noise as reference_noise
from carv_server.replicas.forward import Forward
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.loading import load_in
from carv_server.replicas.precision import probe_gradient, relative_error
from carv_server.replicas.protocol import Conditioning, Work, WorkResult
from carv_server.replicas.row_limit import RowLimit
from carv_server.sampling import noise as noise_module
from carv_server.sampling.fused_noise import fused_lanes
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.philox import philox4x32
from carv_server.teachers.protocol import Teacher, Tensors
from carv_server.teachers.registry import EMBEDDED
from carv_server.teachers.wrapped import WrappedTeacher
from tests.cuda.device import CUDA, SOURCES, needs_cuda, pair
from tests.replicas.test_forward import assert_equal, conditionings_of, gradient, relative
from tests.replicas.works import make, mixed
from tests.support.plain_forward import plain_forward

pytestmark = needs_cuda

# Float32 without TF32 in another order of the same sums; TF32 would be off by 3e-4 and more.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(SOURCES))
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Teacher, Teacher, list[Conditioning]]:
    """On the device, on the CPU, and conditionings of the latter."""
    on_cuda, on_cpu = pair(request.param, tmp_path_factory.mktemp("teacher"))
    return on_cuda, on_cpu, conditionings_of(on_cpu, SOURCES[request.param])


@pytest.fixture(scope="module")
def embedded() -> Teacher:
    return load_in(EMBEDDED, CUDA, "float32")


def test_a_mixed_microbatch_equals_the_plain_formula_on_a_cpu(
    family: tuple[Teacher, Teacher, list[Conditioning]],
) -> None:
    on_cuda, on_cpu, conditionings = family
    works = mixed(on_cpu, conditionings)
    results = Forward(on_cuda, max_rows=11).evaluate(works)
    for work, result in zip(works, results, strict=True):
        assert_equal(work, result, plain_forward(on_cpu, work), TOLERANCE)


def test_a_work_alone_and_in_company_is_the_same(
    family: tuple[Teacher, Teacher, list[Conditioning]],
) -> None:
    on_cuda, on_cpu, conditionings = family
    works = mixed(on_cpu, conditionings)
    forward = Forward(on_cuda)
    together = forward.evaluate(works)
    for work, one in zip(works, together, strict=True):
        _assert_close(work, one, forward.evaluate([work])[0], 1e-5)


def test_text_is_embedded_as_on_a_cpu(
    family: tuple[Teacher, Teacher, list[Conditioning]],
) -> None:
    on_cuda, on_cpu, _ = family
    for source in SOURCES["embedded"] if on_cpu.description.conditioning.accepts_prompts else ():
        try:
            expected = on_cpu.encode(source)
        except ValueError:
            continue  # a vocabulary of its own
        for one, other in zip(on_cuda.encode(source), expected, strict=True):
            for name, tensor in other.items():
                torch.testing.assert_close(one[name].cpu(), tensor, rtol=TOLERANCE, atol=1e-4)


def test_the_noise_is_the_contracts() -> None:
    """Integers are equal bit by bit; float32 logarithms and cosines differ in their last bits."""
    generator = torch.Generator().manual_seed(0)
    words = [torch.randint(0, 1 << 32, (1 << 16,), generator=generator) for _ in range(6)]
    counter, key = (words[0], words[1], words[2], words[3]), (words[4], words[5])
    found = philox4x32(
        (words[0].to(CUDA), words[1].to(CUDA), words[2].to(CUDA), words[3].to(CUDA)),
        (words[4].to(CUDA), words[5].to(CUDA)),
    )
    for on_cuda, on_cpu in zip(found, philox4x32(counter, key), strict=True):
        assert torch.equal(on_cuda.cpu(), on_cpu)

    for shape in ((4, 16, 16), (3, 5, 1)):  # the latter no multiple of a counter's four
        _assert_contracts_noise(shape)


def _assert_contracts_noise(shape: tuple[int, ...]) -> None:
    seeds, renders, indices = [7, 2**64 - 3], [0, 2**32 - 1], [5, 2**31]
    halves = torch.tensor([[seed & 0xFFFFFFFF, seed >> 32] for seed in seeds], device=CUDA)
    noise = draw_noise(
        halves, torch.tensor(renders, device=CUDA), torch.tensor(indices, device=CUDA), shape
    )
    for i, row in enumerate(noise.cpu().numpy()):
        expected = reference_noise(seeds[i], renders[i], indices[i], shape)
        np.testing.assert_allclose(row, expected, rtol=0, atol=4e-6)
    blocks = -(-math.prod(shape) // 4)
    given = halves, torch.tensor(renders, device=CUDA), torch.tensor(indices, device=CUDA), blocks
    plain = noise_module._on_device(*given)
    assert (fused_lanes(*given, DOMAIN_NOISE) - plain).abs().max() < 2e-6
    assert noise_module._fuses, "kernels can be compiled here"


def test_microbatches_beside_each_other_do_not_mix(embedded: Teacher) -> None:
    """Pinned copies, inputs and sums of neighbours are under way at once, in memory that is used
    again and again: a transfer or a sum that does not wait for another would show."""
    conditionings = conditionings_of(embedded, SOURCES["embedded"])
    batches = [
        [
            make(embedded, conditionings, 10 * i + j, renders=1 + (i + j) % 3, draws=2, branches=2)
            for j in range(1 + i % 4)
        ]
        for i in range(24)
    ]
    alone = Forward(embedded)
    expected = [alone.evaluate(works) for works in batches]

    async def scenario() -> None:
        with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(2) as staging:
            replica = InProcessReplica(embedded, device, 64, staging)
            for _ in range(8):
                found = await asyncio.gather(
                    *(replica.run(works, lambda _: True) for works in batches)
                )
                for works, one, other in zip(batches, found, expected, strict=True):
                    assert one.seconds > 0.0
                    for work, result, reference in zip(works, one.results, other, strict=True):
                        assert result is not None
                        _assert_close(work, result, reference, 1e-5)
            some = await replica.run(batches[3], lambda index: index != 1)
            none = await replica.run(batches[3], lambda _: False)
        assert [result is None for result in some.results] == [False, True, False, False]
        assert none.results == [None] * 4

    asyncio.run(scenario())


# A rounding step is 2^-8 and 2^-11; guidance at 7.5 multiplies what is left of it.
@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 2**-4), ("float16", 2**-7)])
def test_reduced_precision_stays_near_float32(embedded: Teacher, dtype: str, bound: float) -> None:
    exact = probe_gradient(embedded)
    error = relative_error(probe_gradient(load_in(EMBEDDED, CUDA, dtype)), exact)
    print(f"\n{dtype}: {error:.3g}")
    assert 2**-14 < error < bound


class Hungry(WrappedTeacher):
    """Takes 64 MiB of the device's memory for each row."""

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        torch.empty(len(z_t) << 26, dtype=torch.uint8, device=CUDA)
        return self._inner.predict_noise(z_t, timesteps, conditioning)


def test_out_of_memory_halves_the_rows_and_stays_usable(embedded: Teacher) -> None:
    conditionings = conditionings_of(embedded, SOURCES["embedded"])
    works = [make(embedded, conditionings, seed, draws=16, branches=2) for seed in range(2)]
    expected = Forward(embedded).evaluate(works)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    room = torch.cuda.memory_reserved(CUDA) + (20 << 26)
    torch.cuda.set_per_process_memory_fraction(room / total)
    try:
        forward = Forward(Hungry(embedded), 64)
        for _ in range(2):
            for work, one, other in zip(works, forward.evaluate(works), expected, strict=True):
                _assert_close(work, one, other, 1e-5)
            assert forward.limit.most == 16
        with pytest.raises(torch.OutOfMemoryError):
            RowLimit().run(lambda _: torch.empty(40 << 26, dtype=torch.uint8, device=CUDA), 1)
        _assert_close(works[0], forward.evaluate(works[:1])[0], expected[0], 1e-5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _assert_close(work: Work, one: WorkResult, other: WorkResult, tolerance: float) -> None:
    assert one.failure is None and other.failure is None
    if work.keep_predictions:
        assert one.predictions is not None and other.predictions is not None
        assert relative(one.predictions, other.predictions) < tolerance
        return
    assert one.reduction is not None and other.reduction is not None
    for render in np.unique(work.renders):
        draws = int((work.renders == render).sum())
        found, expected = (
            gradient(each, int(render), draws) for each in (one.reduction, other.reduction)
        )
        assert relative(found, expected) < tolerance
