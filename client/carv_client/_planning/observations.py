"""Everything that estimates have shown of their variance, in latent and in parameter space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_client._planning.decayed import Decayed
from carv_client._planning.plan import Variances
from carv_client._planning.spread import Spread, contrast, squared_norm
from carv_client._types import Estimate, Float32Array

__all__ = ["Observations", "Pulled", "Vjp", "is_finite", "pull_back"]

Vjp = Callable[[Float32Array], npt.ArrayLike]
"""From a gradient at the latents, float32 [R, *event_shape], to that at the parameters, [P]:
J^T applied, summed over renders. Linear, and called more than once."""

_BASELINE_MEMORY = 6.0
"""In units of the memory: the ratio of the two spaces moves slowly."""


def is_finite(estimate: Estimate) -> bool:
    """Whether there is anything to learn from it: infinity and NaN are in no running mean."""
    halves = estimate.half_estimates
    arrays = [estimate.gradient] if halves is None else [estimate.gradient, halves]
    return all(bool(np.isfinite(array).all()) for array in arrays)


@dataclass(frozen=True)
class Pulled:
    """What the parameters see of an estimate."""

    difference: float | None
    """‖J^T (g_A − g_B)‖²/R of its halves."""
    total: float | None
    """Of the contrast between its renders: an observation of B + W."""
    gradient: npt.NDArray[np.float32] | None
    """J^T ĝ/R, [P]."""


def pull_back(
    estimate: Estimate, vjp: Vjp | None, gradient: npt.ArrayLike | None, ask_gradient: bool
) -> Pulled:
    """Calls ``vjp`` where there are half-estimates: once for their difference, once for the
    contrast of R > 1 renders or, if ``ask_gradient``, for the gradient of the one."""
    renders, halves = len(estimate.gradient), estimate.half_estimates
    difference = total = None
    if vjp is not None and halves is not None:
        difference = squared_norm(vjp(halves[0] - halves[1])) / renders
        if renders > 1:
            weights = contrast(renders)
            shape = (-1, *[1] * (estimate.gradient.ndim - 1))
            weighted = estimate.gradient * weights.reshape(shape).astype(np.float32)
            total = squared_norm(vjp(weighted)) / squared_norm(weights)
            gradient = None
        elif gradient is None and ask_gradient:
            gradient = vjp(estimate.gradient)
    mean = None
    if gradient is not None:
        with np.errstate(over="ignore"):  # to infinity, which is passed over
            mean = np.array(gradient, dtype=np.float32).ravel() / np.float32(renders)
    return Pulled(difference, total, mean)


class Observations:
    """Running estimates of B, W(K) and the variance of a uniform draw."""

    def __init__(self, memory: float) -> None:
        self._latents, self._parameters = Spread(memory), Spread(memory)
        self._single, self._uniform = Decayed(memory), Decayed(memory)  # in latent space
        self._base_latents = Decayed(_BASELINE_MEMORY * memory)
        self._base_parameters = Decayed(_BASELINE_MEMORY * memory)
        self.in_parameters = False
        """Whether the parameters' gradient has been observed."""
        self.baseline_probes = 0
        """How many there were."""

    def age(self) -> None:
        """One step passes."""
        for mean in (
            self._latents,
            self._parameters,
            self._single,
            self._uniform,
            self._base_latents,
            self._base_parameters,
        ):
            mean.age()

    @property
    def comparisons(self) -> float:
        """Observations of B, discounted by age."""
        return (self._parameters if self.in_parameters else self._latents).comparisons

    @property
    def baselines(self) -> float:
        """Baseline probes, discounted by age."""
        return self._base_latents.weight

    def add_latents(self, estimate: Estimate) -> None:
        """An estimate as it came: B and W(K) of latents, and the variance of single draws."""
        gradient = estimate.gradient.reshape(len(estimate.gradient), -1).astype(np.float64)
        renders, halves, space = len(gradient), estimate.half_estimates, self._latents
        draws = estimate.draws_spent // renders
        space.drawn(estimate.sampler, estimate.coupling)
        if halves is not None:
            space.add_halves(squared_norm(halves[0] - halves[1]) / renders, draws // 2)
        noise = space.noise(draws, halves is not None)
        if noise is None:
            return
        if renders > 1:
            total = squared_norm(gradient - gradient.mean(axis=0)) / (renders - 1)
            space.add_total(total, noise)
        else:
            space.add_gradient(gradient[0], noise, renders)
        self._add_norms(estimate, gradient, noise)

    def _add_norms(
        self, estimate: Estimate, gradient: npt.NDArray[np.float64], noise: float
    ) -> None:
        """Variances of one draw, from the norms ‖f‖ and weights p/q of those made:
        E_q ‖(p/q)·f‖² − ‖g‖² under the proposal, E_p ‖f‖² − ‖g‖² under the prior."""
        table, halves = estimate.draws, estimate.half_estimates
        if table is None or table.norms is None:
            return
        if halves is None:
            squared = squared_norm(gradient) / len(gradient) - noise
        else:
            flat = np.asarray(halves, dtype=np.float64).reshape(2, -1)
            squared = float(flat[0] @ flat[1]) / len(gradient)
        weights = np.asarray(table.importance_weights, dtype=np.float64)
        norms = np.asarray(table.norms, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            self._single.add(float(np.mean((weights * norms) ** 2)) - squared)
            self._uniform.add(float(np.mean(weights * norms**2)) - squared)

    def add_parameters(self, estimate: Estimate, pulled: Pulled) -> None:
        """The parameters' view of an estimate."""
        renders, halves, space = len(estimate.gradient), estimate.half_estimates, self._parameters
        draws = estimate.draws_spent // renders
        if pulled.difference is not None and math.isfinite(pulled.difference):
            self.in_parameters = True
            space.drawn(estimate.sampler, estimate.coupling)
            space.add_halves(pulled.difference, draws // 2)
        noise = space.noise(draws, halves is not None)
        if noise is None:
            return
        if pulled.total is not None:
            space.add_total(pulled.total, noise)
        if pulled.gradient is not None:
            space.add_gradient(pulled.gradient, noise, renders)

    def add_baseline(self, at_parameters: float, at_latents: float) -> None:
        """Squared difference of two halves of independent uniform draws, seen from both."""
        self.baseline_probes += 1
        if not math.isfinite(at_parameters + at_latents):
            return
        self._base_parameters.add(at_parameters)
        self._base_latents.add(at_latents)

    @property
    def variances(self) -> Variances | None:
        """Of the parameters' gradient where it was observed, else of the latents'; None until
        there are half-estimates and two renders to compare."""
        space = self._parameters if self.in_parameters else self._latents
        between, fit = space.between, space.fit
        if between is None or fit is None:
            return None
        scale: float | None = 1.0
        if self.in_parameters:
            # All laws of a single draw have about the same covariance up to a factor, which
            # strata and pairs do not have: what they leave is another part of the noise.
            above, below = self._base_parameters.mean, self._base_latents.mean
            scale = above / below if above is not None and below else None
        limit, excess = fit
        single = space.single
        if single is None:
            single = _scaled(self._single, scale)
        if single is None:
            single = space.shape.single_ratio * (limit + excess)
        return Variances(between, limit, excess, single, _scaled(self._uniform, scale))


def _scaled(mean: Decayed, scale: float | None) -> float | None:
    """At least 0; None where either is not known."""
    value = mean.mean
    return None if value is None or scale is None else max(0.0, scale * value)
