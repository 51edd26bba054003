"""Attribution: gradients of the denoising loss with respect to parameters of the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers import UNet2DConditionModel

from carv_server.bench.cells import Measured, jackknife, mean_of
from carv_server.bench.figures import plot_curves
from carv_server.bench.laboratory import ROWS
from carv_server.bench.methods import STRATA, guided_objective
from carv_server.bench.session import Session
from carv_server.bench.states import State
from carv_server.bench.tables import Table
from carv_server.demo.convention import embedded_folder
from carv_server.sampling.noise import draw_noise
from carv_server.sampling.plan import DrawPlan, plan_draws, resolve
from carv_server.teachers.weights import load_diffusers_model

__all__ = ["measure_attribution", "strata_variance_of_pool"]

Float64Array = npt.NDArray[np.float64]

_STRATA = 64
_BUDGETS = (4, 8, 16, 32, 64)
_PROJECTED = 256


def measure_attribution(session: Session) -> None:
    """Table and figure ``attribution``.

    A pool of replicates, each with one draw in each of 64 strata, holds the variance of every
    coarser stratification: that of K draws is the sum over K runs of strata of the variance
    within them, over K^2; K = 1 gives iid draws.
    """
    session.say("attribution")
    examples = session.samples[: session.scale.attribution_examples]
    objective = guided_objective(session.laboratory.schedule, 1.0)
    resolved = resolve(STRATA.sampling, objective, None, _STRATA)
    replicates = max(4, session.scale.attribution_draws // _STRATA)
    seed = session.seeds.take(1).start
    plan = plan_draws(resolved, objective, replicates, _STRATA, seed)
    features = [_features(session, example, plan, seed) for example in examples]
    table = Table(
        "attribution",
        "Attribution: strata against iid draws",
        "The feature of an example is E over (t, eps) of the gradient of ||eps_hat - eps||^2 with "
        "respect to the weights of the UNet's last convolution, taken to "
        f"{_PROJECTED} dimensions by a fixed Rademacher projection. RE = ECM, as an example costs "
        "nothing upstream. All examples share the bank of (t, eps); the last column is the "
        "variance of the difference of two features with banks of their own over that with a "
        "shared one.",
        ("K", "RE of strata", "gain of sharing"),
    )
    rows: list[Measured] = []
    for budget in _BUDGETS:
        efficiency = _mean_of_shared([_efficiency(feature, budget) for feature in features])
        pairs = [
            _sharing(first, second, budget)
            for i, first in enumerate(features)
            for second in features[i + 1 :]
        ]
        rows.append(efficiency)
        table.add(budget, efficiency, _mean_of_shared(pairs))
    session.write(table)
    session.draw(
        "attribution",
        "Attribution features: RE of strata over iid timesteps, mean over examples.",
        lambda path: plot_curves(
            {"attribution": {"strata": (list(_BUDGETS), rows, None)}},
            "K, draws of the shared bank",
            "RE against iid",
            path,
            log_x=True,
            baseline=1.0,
        ),
    )


def _mean_of_shared(values: Sequence[Measured]) -> Measured:
    """Mean of figures that rest on the same draws: their errors do not average out."""
    errors = [value.error for value in values]
    return Measured(mean_of(values).value, sum(errors) / len(errors))


def strata_variance_of_pool(pool: Float64Array, draws: int) -> float:
    """tr Cov of a mean of K stratified draws from a pool [replicates, strata, P] of one draw in
    each fine stratum; K divides the number of strata."""
    replicates, strata, size = pool.shape
    runs = pool.reshape(replicates, draws, strata // draws, size).transpose(1, 0, 2, 3)
    runs = runs.reshape(draws, -1, size)
    return float(runs.var(axis=1, ddof=1).sum()) / draws**2


def _efficiency(pool: Float64Array, draws: int) -> Measured:
    return _over_replicates(
        pool,
        lambda p: strata_variance_of_pool(p, 1) / draws / strata_variance_of_pool(p, draws),
    )


def _sharing(first: Float64Array, second: Float64Array, draws: int) -> Measured:
    both = np.stack([first, second], axis=2)

    def gain(pool: Float64Array) -> float:
        apart = sum(strata_variance_of_pool(pool[:, :, i], draws) for i in (0, 1))
        return apart / strata_variance_of_pool(pool[:, :, 0] - pool[:, :, 1], draws)

    return _over_replicates(both, gain)


def _over_replicates(pool: Float64Array, statistic: Callable[[Float64Array], float]) -> Measured:
    def without(left_out: int | None) -> float:
        keep = [i for i in range(len(pool)) if i != left_out]
        return statistic(pool[keep])

    return jackknife(len(pool), without)


def _features(session: Session, example: State, plan: DrawPlan, seed: int) -> Float64Array:
    """Projected gradients of every draw, [replicates, strata, P]."""
    folder = embedded_folder() / "unet"
    loaded = load_diffusers_model(
        UNet2DConditionModel, folder, device=torch.device("cpu"), dtype=torch.float32
    )
    # Untyped in its library.
    unet = cast(Any, loaded)
    seen: list[torch.Tensor] = []

    def remember(module: torch.nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
        seen[:] = [inputs[0]]

    unet.conv_out.register_forward_hook(remember)
    laboratory = session.laboratory
    schedule, shape = laboratory.schedule, laboratory.event_shape
    renders = np.repeat(np.arange(plan.renders), plan.draws)
    t = plan.timesteps.reshape(-1)
    words = torch.tensor([[seed & 0xFFFFFFFF, seed >> 32]]).expand(len(t), 2)
    noise = draw_noise(
        words, torch.from_numpy(renders), torch.tensor(plan.noise_indices.reshape(-1)), shape
    )
    x = torch.from_numpy(example.latents).reshape(1, *shape)
    alpha, sigma = (
        torch.from_numpy(values[t]).float().reshape(-1, 1, 1, 1)
        for values in (schedule.alpha, schedule.sigma)
    )
    z = alpha * x + sigma * noise
    embedding = laboratory.conditioning(example.conditioning).tensors["encoder_hidden_states"]
    projection = _projection(int(unet.conv_out.weight.numel()))
    found: list[torch.Tensor] = []
    for start in range(0, len(t), ROWS):
        rows = slice(start, start + ROWS)
        with torch.inference_mode():
            steps = torch.from_numpy(schedule.model_timesteps[t[rows]]).float()
            condition = embedding.expand(len(steps), *embedding.shape)
            predicted = cast(
                torch.Tensor, unet(z[rows], steps, encoder_hidden_states=condition).sample
            )
            residual = 2.0 * (predicted - noise[rows]).flatten(2)
            patches = torch.nn.functional.unfold(seen[0], 3, padding=1)
            gradient = torch.einsum("nop,ncp->noc", residual, patches).flatten(1)
            found.append(gradient @ projection)
        session.laboratory.spent(len(steps))
    return torch.cat(found).double().numpy().reshape(plan.renders, plan.draws, -1)


def _projection(size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (size, _PROJECTED), generator=generator).float() * 2 - 1
    return signs / _PROJECTED**0.5
