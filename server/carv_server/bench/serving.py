"""The server's estimator in this process: scheduler, replica and histories, without transport."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from carv_server.bench.laboratory import Laboratory
from carv_server.estimate import Estimate, estimate_gradient
from carv_server.history import DrawHistories, HistoryConfig, history_key
from carv_server.refine.call import Refined, refine_gradient
from carv_server.replicas.inprocess import InProcessReplica
from carv_server.replicas.protocol import Branch
from carv_server.request import DrawSpec, EstimateRequest, RefineRequest
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.past import Past
from carv_server.sampling.plan import Sampling
from carv_server.scheduler import Scheduler, SchedulerConfig
from carv_server.scheduling.terms import Terms

__all__ = ["Chain", "LiveServer"]

Float32Array = npt.NDArray[np.float32]

_FRESH_SEED = (1 << 63) + 1  # of no request


@dataclass(frozen=True)
class Chain:
    """Requests of one run, each sent when the one before is answered.

    Attributes:
        label: its history.
        latents: float32 [V, D]; request i takes render i modulo V.
        prompts: one for all latents, or one for each.
        draws: K.
    """

    label: str
    latents: Float32Array
    prompts: Sequence[str]
    objective: ObjectiveTables
    draws: int


class LiveServer:
    """Answers requests as ``carv serve`` does; a context manager."""

    def __init__(self, laboratory: Laboratory) -> None:
        self._laboratory = laboratory
        self._runner = asyncio.Runner()
        self._thread = ThreadPoolExecutor(1)
        config = SchedulerConfig()
        replica = InProcessReplica(laboratory.teacher, self._thread, config.evaluation_budget)
        self._histories = DrawHistories(laboratory.schedule, HistoryConfig(max_histories=1 << 16))
        self._scheduler = Scheduler([replica], config, time.monotonic)

    def __enter__(self) -> Self:
        self._runner.run(self._start())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._runner.run(self._scheduler.stop())
        self._runner.close()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _start(self) -> None:
        self._scheduler.start()

    def estimate(
        self,
        latents: Float32Array,
        prompt: str,
        objective: ObjectiveTables,
        sampling: Sampling,
        draws: int,
        seed: int,
        history: str,
    ) -> Estimate:
        """One request of one render, float32 [1, D]."""
        spec = DrawSpec(sampling, draws, history)
        request = self._request(latents, prompt, objective, spec, seed)
        return self._runner.run(self._answer(request))

    def warm(self, chains: Sequence[Chain], requests: int, seed: int) -> list[Past]:
        """What each run's history says after so many requests of it with default sampling.

        Runs go side by side, as those of different clients.
        """

        async def follow(chain: Chain) -> None:
            # Runs have noise of their own, whatever goes beside them.
            first = seed + (zlib.crc32(chain.label.encode()) << 8)
            for i in range(requests):
                view = i % len(chain.latents)
                prompt = chain.prompts[view if len(chain.prompts) > 1 else 0]
                spec = DrawSpec(Sampling(), chain.draws, chain.label)
                await self._answer(
                    self._request(
                        chain.latents[view : view + 1], prompt, chain.objective, spec, first + i
                    )
                )

        async def follow_all() -> None:
            await asyncio.gather(*(follow(chain) for chain in chains))

        self._runner.run(follow_all())
        return [self.past(chain) for chain in chains]

    def past(self, chain: Chain) -> Past:
        """What the run's history says now. Requires requests of it."""
        key = history_key(chain.objective, [False, False], chain.label)
        past = self._histories.recall(key, _FRESH_SEED)
        assert past is not None
        return past

    def refine(
        self,
        chain: Chain,
        target: float,
        most: int,
        seeds: Sequence[int],
        together: int = 16,
    ) -> list[Refined]:
        """Final answers of refinements of the chain's first latents, so many at a time: further
        requests of the same run, from which it goes on learning."""
        limit = asyncio.Semaphore(together)

        async def one(seed: int) -> Refined:
            request = RefineRequest(
                latents=chain.latents[:1].reshape(-1, *self._laboratory.event_shape),
                reference_latents=None,
                branches=self._branches(chain.prompts[0]),
                objective=chain.objective,
                sampling=Sampling(),
                history=chain.label,
                seed=seed,
                target=target,
                max_draws=most,
                max_seconds=None,
            )
            async with limit:
                answers = refine_gradient(request, self._scheduler, self._histories, Terms())
                final = [answer async for answer in answers][-1]
            self._laboratory.spent(final.evaluations_spent)
            return final

        async def every() -> list[Refined]:
            return await asyncio.gather(*(one(seed) for seed in seeds))

        return self._runner.run(every())

    def _request(
        self,
        latents: Float32Array,
        prompt: str,
        objective: ObjectiveTables,
        draws: DrawSpec,
        seed: int,
    ) -> EstimateRequest:
        laboratory = self._laboratory
        return EstimateRequest(
            latents=latents.reshape(-1, *laboratory.event_shape),
            reference_latents=None,
            branches=self._branches(prompt),
            objective=objective,
            draws=draws,
            seed=seed,
            return_draws=False,
        )

    def _branches(self, prompt: str) -> list[Branch]:
        conditioning = self._laboratory.conditioning
        return [Branch([conditioning(prompt)]), Branch([conditioning(None)])]

    async def _answer(self, request: EstimateRequest) -> Estimate:
        estimate = await estimate_gradient(request, self._scheduler, self._histories, Terms())
        self._laboratory.spent(estimate.evaluations)
        return estimate
