"""One microbatch on the device: noise, z_t, teacher, integrand, per-render sums.

    (p/q)(t) w(t) ( sum_j a_j(t) eps_hat(alpha x + sigma eps, t, c_j) + (d(t) + c(t)) eps )

Per-draw tensors never leave the device unless predictions are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from carv_server.replicas.protocol import Conditioning, NonFiniteDraw, Work, WorkResult
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.reduce import reduce_groups
from carv_server.sampling.schedule import Schedule
from carv_server.teachers.protocol import Teacher, Tensors

__all__ = ["evaluate"]


@torch.inference_mode()
def evaluate(
    teacher: Teacher, works: Sequence[Work], max_rows: int | None = None
) -> list[WorkResult]:
    """Evaluate works of any requests in one microbatch.

    A work whose result is not finite fails alone. A group of draws is never cut over
    microbatches, so one may hold more rows than the budget: the teacher sees at most ``max_rows``
    of them at once.
    """
    description, device = teacher.description, teacher.device
    noises: list[torch.Tensor] = []
    rows: list[torch.Tensor] = []
    timesteps: list[torch.Tensor] = []
    conditionings: list[Conditioning] = []
    for work in works:
        noise = _noise(work, description.event_shape, device)
        noises.append(noise)
        z_t = _noisy(work.latents, work, noise, description.schedule, device)
        z_reference = (
            None
            if work.reference_latents is None
            else _noisy(work.reference_latents, work, noise, description.schedule, device)
        )
        for branch in work.branches:
            rows.append(z_reference if branch.use_reference and z_reference is not None else z_t)
            timesteps.append(work.timesteps)
            conditionings += [branch.conditioning(int(r)) for r in work.renders]
    z_rows, t_rows = torch.cat(rows), torch.cat(timesteps).to(device)
    step = max_rows or len(z_rows)
    predictions = torch.cat(
        [
            teacher.predict_noise(
                z_rows[start : start + step],
                t_rows[start : start + step],
                _gather(conditionings[start : start + step], device),
            )
            for start in range(0, len(z_rows), step)
        ]
    )

    results: list[WorkResult] = []
    start = 0
    for work, noise in zip(works, noises, strict=True):
        stop = start + work.evaluations
        rows_of_work = predictions[start:stop]
        branches = rows_of_work.reshape(len(work.branches), -1, *rows_of_work.shape[1:])
        results.append(_reduce(work, noise, branches))
        start = stop
    return results


def _noise(work: Work, event_shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Signed eps of every draw, float32 [n, *event_shape]."""
    words = torch.tensor([[work.seed & 0xFFFFFFFF, work.seed >> 32]], device=device)
    noise = draw_noise(
        words.expand(len(work.renders), 2),
        work.renders.to(device),
        work.noise_indices.to(device),
        event_shape,
    )
    return noise * _per_draw(work.signs.to(device), noise)


def _noisy(
    latents: torch.Tensor,
    work: Work,
    noise: torch.Tensor,
    schedule: Schedule,
    device: torch.device,
) -> torch.Tensor:
    x = latents[work.renders].to(device)
    if work.latents_are_noisy:
        return x
    t = work.timesteps.numpy()
    alpha = torch.as_tensor(schedule.alpha[t], dtype=torch.float32, device=device)
    sigma = torch.as_tensor(schedule.sigma[t], dtype=torch.float32, device=device)
    return _per_draw(alpha, x) * x + _per_draw(sigma, x) * noise


def _reduce(work: Work, noise: torch.Tensor, branches: torch.Tensor) -> WorkResult:
    """``branches``: eps_hat, float32 [B, n, *event_shape]."""
    if work.keep_predictions:
        failure = _first_failure(work, branches[0])
        return failure or WorkResult(predictions=branches[0].cpu())
    device = noise.device
    residual = _per_draw(work.noise_coefficients.to(device), noise) * noise
    for coefficient, prediction in zip(work.branch_coefficients.to(device), branches, strict=True):
        residual = residual + _per_draw(coefficient, prediction) * prediction
    controlled = residual + _per_draw(work.control_coefficients.to(device), noise) * noise
    values = _per_draw(work.scales.to(device), controlled) * controlled
    failure = _first_failure(work, values)
    if failure is not None:
        return failure
    h, eps = residual.flatten(1).double(), noise.flatten(1).double()
    scalars = torch.stack([(h * h).sum(1), (h * eps).sum(1), (eps * eps).sum(1)], dim=1)
    return WorkResult(
        reduction=reduce_groups(values, work.renders, work.groups, work.cells, work.streams),
        residuals=scalars.cpu(),
    )


def _first_failure(work: Work, values: torch.Tensor) -> WorkResult | None:
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if bool(finite.all()):
        return None
    worst = int((~finite).nonzero()[0])
    return WorkResult(
        failure=NonFiniteDraw(
            int(work.renders[worst]), int(work.timesteps[worst]), int(work.noise_indices[worst])
        )
    )


def _gather(conditionings: Sequence[Conditioning], device: torch.device) -> Tensors:
    """Rows of conditioning on the device, each distinct handle copied there once."""
    slots: dict[str, int] = {}
    distinct: list[Conditioning] = []
    index: list[int] = []
    for conditioning in conditionings:
        slot = slots.setdefault(conditioning.handle, len(distinct))
        if slot == len(distinct):
            distinct.append(conditioning)
        index.append(slot)
    order = torch.tensor(index, device=device)
    return {
        name: torch.stack([c.tensors[name] for c in distinct]).to(device)[order]
        for name in distinct[0].tensors
    }


def _per_draw(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[n] reshaped to broadcast over [n, *event_shape]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
