"""Per-render, global and nested strata: the variance of the mean over renders."""

from __future__ import annotations

from dataclasses import replace

from carv_server.bench.cells import Measured
from carv_server.bench.figures import plot_curves
from carv_server.bench.grid import SPACES, measure_within
from carv_server.bench.grid_section import GRID_GUIDANCE
from carv_server.bench.methods import Method, guided_objective
from carv_server.bench.session import Session
from carv_server.bench.tables import Table
from carv_server.sampling.plan import ControlVariate, NoiseCoupling, Sampling
from carv_server.sampling.proposals import Proposal
from carv_server.sampling.timesteps import TimestepSampler

__all__ = ["measure_strata"]


def measure_strata(session: Session) -> None:
    """Table and figure ``strata``, at the grid's last field and largest R."""
    session.say("strata over renders")
    objective = guided_objective(session.laboratory.schedule, GRID_GUIDANCE)
    views = session.studies[-1].views
    renders = session.scale.grid_renders[-1]
    table = Table(
        "strata",
        f"Strata over renders, R = {renders}",
        "Variance over draws of the mean over renders, by how the strata of timesteps are laid "
        "over them: RE against iid draws of the same proposal (weight), noise iid.",
        ("space", "K", "strata", "within", "RE against iid"),
    )
    draws = [k for k in session.scale.grid_draws if k <= 8]
    samplers = {
        "per render": TimestepSampler.STRATIFIED,
        "global": TimestepSampler.GLOBAL,
        "nested": TimestepSampler.NESTED,
    }
    found: dict[tuple[str, str, int], Measured] = {}

    effort = session.scale.grid_effort

    def measure(sampler: TimestepSampler, k: int, times: int = 1) -> dict[str, Measured]:
        method = Method(
            sampler.value,
            sampler.value,
            Sampling(sampler, Proposal.WEIGHT, NoiseCoupling.IID, ControlVariate.NONE),
        )
        return measure_within(
            session.laboratory, views, method, objective, None, renders, k,
            replace(effort, most=times * effort.most), session.seeds,
        ).within  # fmt: skip

    base = measure(TimestepSampler.IID, 1, times=4)  # cheap, and all rests on it
    for k in draws:
        for name, sampler in samplers.items():
            within = measure(sampler, k)
            for space in SPACES:
                ratio = base[space].scaled(1 / k).over(within[space])
                found[space, name, k] = ratio
                table.add(space, k, name, within[space], ratio)
        session.write(table)
    session.draw(
        "strata",
        f"Strata over R = {renders} renders: RE of the mean over renders against iid draws of the "
        "same proposal.",
        lambda path: plot_curves(
            {
                f"{space} space": {
                    name: (draws, [found[space, name, k] for k in draws], None) for name in samplers
                }
                for space in SPACES
            },
            "K",
            "RE against iid",
            path,
            log_x=True,
            baseline=1.0,
            dodge=True,
        ),
    )
