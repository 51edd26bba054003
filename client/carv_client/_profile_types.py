"""What a profile of a teacher holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from carv_client._types import Float64Array

__all__ = ["ProfileBin", "TeacherProfile"]


@dataclass(frozen=True)
class ProfileBin:
    """f(t, ε) over a bin of neighbouring timesteps, mean over renders.

    Moments are unbiased: what belongs to a square may come out below zero where the square is
    small. NaN where two draws a bin cannot tell.
    """

    first_timestep: int
    last_timestep: int
    """Both included."""
    log_snr: float
    """Mean over the bin of log(α²/σ²), cut to ±12."""
    prior_mass: float
    """Share of the prior."""
    second_moment: float
    """E ‖f‖²."""
    second_moment_error: float
    """Standard error of ``second_moment``."""
    squared_mean: float
    """‖E f‖²: the variance that strata can remove lies in how E f changes from bin to bin."""
    even_second_moment: float
    """E ‖(f(t, ε) + f(t, −ε)) / 2‖²: what antithetic coupling leaves."""
    noise_slope: float
    """E⟨h, ε⟩ / E‖ε‖² of the residual h = f / w."""


@dataclass(frozen=True, eq=False)
class TeacherProfile:
    """Where in t the gradient's variance comes from, at given latents."""

    bins: tuple[ProfileBin, ...]
    """Ascending in t, without gaps in the prior's support."""
    prior: Float64Array = field(repr=False)
    """Mass of p at each timestep, [N]; read-only, like the proposals below."""
    weight: Float64Array = field(repr=False)
    """[N], of q ∝ p·|w|."""
    adaptive: Float64Array | None = field(repr=False)
    """[N], of the history's adaptive proposal before this profile; None where it has no past."""
    oracle: Float64Array = field(repr=False)
    """[N], of the proposal that the moments of this profile make."""
    past_draws: float
    """Draws of past requests behind ``adaptive``, discounted by age."""
    prior_variance: float
    """tr Cov of one independent draw from the prior, mean over renders; unbiased."""
    weight_variance: float
    """From the weight proposal, p/q included; unbiased."""
    oracle_variance: float
    """From the oracle; a little low, since the oracle was made from the same draws."""
    squared_gradient: float
    """‖g‖², mean over renders; unbiased, so possibly below zero."""
    evaluation_seconds: float
    """Measured seconds of one evaluation."""
    teacher_digest: str
    seed: int
    draws_spent: int
    evaluations_spent: int
