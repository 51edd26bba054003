"""The two methods that the demo compares, and everything that they share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from carv_client import EstimateOptions
from carv_server.demo.field import FieldConfig

__all__ = ["BASELINE", "CARV", "Method", "Settings"]


@dataclass(frozen=True)
class Method:
    """How a gradient is asked for. Nothing here changes its expectation."""

    name: str
    """Short, for file names."""
    label: str
    """For people."""
    draws: int
    """K for each render."""
    sampling: EstimateOptions = field(default_factory=EstimateOptions)
    """Sampler, proposal and noise coupling; the server's defaults where empty."""

    def options(
        self, settings: Settings, fraction: float, seed: int, history: str = ""
    ) -> EstimateOptions:
        """Keyword arguments of ``estimate_gradient`` at a fraction of the budget, of the run
        that ``history`` names: runs do not learn from each other's draws."""
        return {
            **self.sampling,
            "draws": self.draws,
            "guidance_scale": settings.guidance_scale,
            "timestep_range": settings.timestep_range(fraction),
            "seed": seed,
            "history": history,
        }

    def with_draws(self, draws: int) -> Method:
        """The same sampling at another K."""
        return replace(self, draws=draws)


BASELINE = Method(
    "baseline",
    "plain SDS, K = 1",
    draws=1,
    sampling={"sampler": "iid", "proposal": "prior", "coupling": "iid"},
)
CARV = Method("carv", "CARV, K = 4", draws=4)


@dataclass(frozen=True)
class Settings:
    """One optimisation. Schedules run on the fraction of the compute budget that is spent, so
    that a method with fewer iterations goes through the whole of each."""

    budget: float
    """Compute in seconds, upstream and denoise together."""
    guidance_scale: float = 7.5
    learning_rate: float = 0.05
    """Of Adam, at the start."""
    final_learning_rate: float = 0.005
    """At the end; the decay between is exponential."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of Adam."""
    first_range: tuple[float, float] = (0.02, 0.98)
    """Timesteps at the start, as fractions of the schedule."""
    last_range: tuple[float, float] = (0.02, 0.5)
    """At the end; linear between. Late draws carry less noise and work on detail."""
    samples: int = 40
    """Points along a ray."""
    checkpoints: int = 9
    """Looks at the held-out views, spread over the budget and dense at its start."""
    field: FieldConfig = field(default_factory=FieldConfig)

    def rate(self, fraction: float) -> float:
        """Learning rate at a fraction of the budget."""
        return self.learning_rate * (self.final_learning_rate / self.learning_rate) ** fraction

    def timestep_range(self, fraction: float) -> tuple[float, float]:
        """Range of timesteps at a fraction of the budget."""
        (low, high), (last_low, last_high) = self.first_range, self.last_range
        return low + fraction * (last_low - low), high + fraction * (last_high - high)

    def looks(self) -> list[float]:
        """Fractions of the budget at which the held-out views are looked at, from 0 to 1."""
        last = max(1, self.checkpoints - 1)
        return [(i / last) ** 1.5 for i in range(last + 1)]
