"""The teacher on the bench: the server's plans and the server's forward, many requests at a
time.

A plan of M requests of R renders is one work of M R renders: noise of different renders is
independent, and one large forward replaces many small ones. eps_hat of each branch is kept, so
that the same draws serve every guidance scale (common random numbers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from carv_server.replicas.forward import evaluate
from carv_server.replicas.protocol import Branch, Conditioning
from carv_server.rows import make_work
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.objective import ObjectiveTables
from carv_server.sampling.plan import DrawPlan, Resolved, plan_draws
from carv_server.teachers.protocol import Prompts, Teacher, Unconditional

__all__ = ["Draws", "Laboratory", "join_plans", "request_plans"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

ROWS = 128  # rows of one forward: the fastest on a CPU, as larger ones fall out of cache


@dataclass(frozen=True)
class Draws:
    """Evaluated draws.

    Attributes:
        plan: [R, K].
        predictions: eps_hat, float32 [2, R, K, D], conditional then unconditional.
        noise: signed eps, float32 [R, K, D].
    """

    plan: DrawPlan
    predictions: Float32Array
    noise: Float32Array

    def estimates(
        self, objective: ObjectiveTables, control: Float64Array | None = None
    ) -> Float64Array:
        """(1/K) sum_k (p/q) w (sum_j a_j eps_hat_j + (d + c) eps), float64 [R, D].

        Args:
            control: c(t), float64 [N], in place of the plan's own.
        """
        t = self.plan.timesteps
        scale = self.plan.importance_weights * objective.weighting[t]
        added = self.plan.control_coefficients if control is None else control[t]
        terms: list[Float64Array] = [
            np.einsum("rk,rkd->rd", scale * coefficient[t], prediction)
            for coefficient, prediction in zip(
                objective.branch_coefficients, self.predictions, strict=True
            )
        ]
        terms.append(
            np.einsum("rk,rkd->rd", scale * (objective.noise_coefficient[t] + added), self.noise)
        )
        return np.sum(terms, axis=0) / self.plan.draws


class Laboratory:
    """One teacher and a memory of its conditionings.

    Args:
        spend: called with the number of evaluations after each forward.
    """

    def __init__(self, teacher: Teacher, spend: Callable[[int], None]) -> None:
        self.teacher = teacher
        self.schedule = teacher.description.schedule
        self.event_shape = teacher.description.event_shape
        self.evaluations = 0
        self._spend = spend
        self._conditionings: dict[str, Conditioning] = {}

    @property
    def size(self) -> int:
        """D."""
        return int(np.prod(self.event_shape))

    def conditioning(self, prompt: str | None) -> Conditioning:
        """Of a prompt; None is the unconditional one."""
        key = prompt if prompt is not None else ""
        if key not in self._conditionings:
            source = Unconditional() if prompt is None else Prompts((prompt,))
            (tensors,) = self.teacher.encode(source)
            self._conditionings[key] = Conditioning(f"bench-{key}", tensors)
        return self._conditionings[key]

    def evaluate(
        self, plan: DrawPlan, latents: Float32Array, prompts: Sequence[str], seed: int
    ) -> Draws:
        """Every draw of ``plan`` under the prompt and the unconditional input.

        Args:
            latents: float32 [R, D].
            prompts: one for all renders, or one for each.
        """
        x = latents.reshape(-1, *self.event_shape)
        conditional = [self.conditioning(prompt) for prompt in prompts]
        branches = [Branch(conditional), Branch([self.conditioning(None)])]
        works = [make_work(plan, x, None, [branch], None, seed) for branch in branches]
        results = evaluate(self.teacher, works, ROWS)
        shape = (plan.renders, plan.draws, self.size)
        kept: list[Float32Array] = []
        for result in results:
            if result.predictions is None:
                raise RuntimeError(f"the teacher gave a non-finite result: {result.failure}")
            kept.append(result.predictions.reshape(shape))
        # A work holds the draws of a group next to each other, which plans here do already.
        assert np.array_equal(works[0].timesteps, plan.timesteps.reshape(-1))
        self.spent(2 * plan.renders * plan.draws)
        return Draws(plan, np.stack(kept), self._noise(plan, seed).reshape(shape))

    def spent(self, evaluations: int) -> None:
        """Books evaluations made elsewhere on this teacher."""
        self.evaluations += evaluations
        self._spend(evaluations)

    def _noise(self, plan: DrawPlan, seed: int) -> Float32Array:
        renders = np.repeat(np.arange(plan.renders), plan.draws)
        words = torch.tensor([[seed & 0xFFFFFFFF, seed >> 32]]).expand(len(renders), 2)
        noise = draw_noise(
            words,
            torch.from_numpy(renders),
            torch.tensor(plan.noise_indices.reshape(-1)),
            (self.size,),
        )
        signs = plan.signs.reshape(-1, 1).astype(np.float32)
        return noise.numpy() * signs


def request_plans(
    resolved: Resolved, objective: ObjectiveTables, renders: int, draws: int, seeds: Iterable[int]
) -> DrawPlan:
    """Plans of one request for each seed, joined: [M R, K]."""
    return join_plans([plan_draws(resolved, objective, renders, draws, seed) for seed in seeds])


def join_plans(plans: Sequence[DrawPlan]) -> DrawPlan:
    """Renders of many plans of the same K as those of one."""
    return DrawPlan(
        timesteps=np.concatenate([plan.timesteps for plan in plans]),
        noise_indices=np.concatenate([plan.noise_indices for plan in plans]),
        signs=np.concatenate([plan.signs for plan in plans]),
        importance_weights=np.concatenate([plan.importance_weights for plan in plans]),
        control_coefficients=np.concatenate([plan.control_coefficients for plan in plans]),
        groups=np.concatenate([plan.groups for plan in plans]),
        cells=np.concatenate([plan.cells for plan in plans]),
        identically_distributed=plans[0].identically_distributed,
    )
