"""The client's planner and its views: what they predict and gain, fed what a client observes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from carv_client import Conditioning, TeacherClient
from carv_client.cameras import ViewSampler
from carv_client.planner import AmortisationWarning, Costs, DrawPlanner, Plan, PlanLimits, plan
from carv_server.bench.cells import Measured, mean_of
from carv_server.bench.figures import Curve, plot_curves
from carv_server.bench.grid import GridStudy, measure_within
from carv_server.bench.grid_section import COST_RATIOS, GRID_GUIDANCE
from carv_server.bench.methods import OURS, guided_objective
from carv_server.bench.session import Session
from carv_server.bench.tables import Table
from carv_server.bench.targets import Target
from carv_server.demo.between import measure_bank
from carv_server.demo.optimise import Studio as DemoStudio
from carv_server.demo.process import running_server
from carv_server.demo.settings import Settings

__all__ = ["measure_planning"]

_MOST = 64
_RIVALS = {6, 12, 24}  # K beside the grid's that the best is looked for among
_BANK_SECONDS = 20.0
_FOLLOWED_RATIO = 9.0  # c_up / c_den of the client that is followed
_SEED = 1 << 45


def measure_planning(session: Session) -> None:
    """Tables ``planner`` and ``cameras``, figure ``planner``, through a server of its own."""
    session.say("starting a server for the planner")
    log = session.output / "server.log"
    with (
        running_server(log, threads=session.threads) as server,
        TeacherClient(server.address) as client,
    ):
        _measure_planner(session, client)
        _measure_cameras(session, client)


def _measure_planner(session: Session, client: TeacherClient) -> None:
    table = Table(
        "planner",
        "The planner's ECM against the measured one",
        f"A client at c_up/c_den = {_FOLLOWED_RATIO:g} follows its planner for "
        f"{session.scale.planner_steps} steps at each field, R = 1, views drawn from those of the "
        "grid, and shows it the parameters' gradient on probes. Predicted is what it then says of "
        "its K at each cost ratio; measured is the ECM of that K by the grid's replicates. "
        "Efficiency is V C at the best K measured over V C at the "
        "planned K.",
        (
            "stage", "c_up/c_den", "planned K", "predicted ECM", "measured ECM",
            "predicted / measured", "best K", "efficiency",
        ),
    )  # fmt: skip
    quotients: dict[float, list[Measured]] = {ratio: [] for ratio in COST_RATIOS}
    efficiencies: dict[float, list[Measured]] = {ratio: [] for ratio in COST_RATIOS}
    panels: dict[str, dict[str, Curve]] = {}
    for study in session.studies:
        stage = study.views.stage.stage
        session.say(f"following the planner, {stage}")
        with warnings.catch_warnings():
            # Before costs are known, upstream is nothing, and the planner would say so.
            warnings.simplefilter("ignore", AmortisationWarning)
            planner = _follow(session, client, study)
        variances, costs = planner.variances, planner.costs
        assert variances is not None and costs is not None
        plans: dict[float, Plan] = {}
        for ratio in COST_RATIOS:
            known = Costs(ratio * costs.draw_seconds, costs.evaluation_seconds, costs.branches)
            plans[ratio] = plan(known, variances, PlanLimits(_MOST))
        wider = _with_draws(session, study, {made.draws for made in plans.values()} | _RIVALS)
        draws = sorted({k for s, m, r, k in wider.within if (s, m, r) == ("parameter", "ours", 1)})
        for ratio, made in plans.items():
            measured = wider.multiplier("parameter", ratio, ("ours", 1, made.draws))
            best = max(
                draws, key=lambda k: wider.multiplier("parameter", ratio, ("ours", 1, k)).value
            )
            efficiency = wider.multiplier(
                "parameter", ratio, ("ours", 1, made.draws), ("ours", 1, best)
            )
            if best == made.draws:
                efficiency = Measured(1.0, 0.0)
            predicted = made.predicted_ecm
            quotient = None
            if predicted is not None:
                quotient = Measured(predicted, 0.0).over(measured)
            quotients[ratio].append(quotient or Measured(0.0, 0.0))  # no prediction, no claim
            efficiencies[ratio].append(efficiency)
            table.add(
                stage, f"{ratio:g}", made.draws, predicted, measured, quotient, best, efficiency
            )
        places = list(range(len(plans)))
        panels[stage] = {
            "predicted": (
                places,
                [Measured(made.predicted_ecm or np.nan, 0.0) for made in plans.values()],
                [f"K = {made.draws}" for made in plans.values()],
            ),
            "measured": (
                places,
                [
                    wider.multiplier("parameter", ratio, ("ours", 1, made.draws))
                    for ratio, made in plans.items()
                ],
                None,
            ),
        }
        session.write(table)
    session.draw(
        "planner",
        "ECM against iid uniform at (2, 1) in parameter space, by cost ratio: as the planner "
        "predicts it at its K, and as measured there.",
        lambda path: plot_curves(
            panels,
            "c_up / c_den",
            "ECM",
            path,
            baseline=1.0,
            ticks=[f"{ratio:g}" for ratio in COST_RATIOS],
        ),
    )
    session.replace_target(
        _within("planner: predicted ECM within 15 % at each cost ratio", quotients, 0.15)
    )
    session.replace_target(
        _within("planner: efficiency within 5 % of the best K at each ratio", efficiencies, 0.05)
    )


@dataclass
class _Clock:
    """Upstream work is not done here: its seconds are said."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


def _follow(session: Session, client: TeacherClient, study: GridStudy) -> DrawPlanner:
    views = study.views
    prompts = list(dict.fromkeys(views.prompts))
    # Fields have views and noise of their own.
    place = next(i for i, each in enumerate(session.studies) if each is study)
    made = dict(zip(prompts, client.create_conditioning(prompts), strict=True))
    clock = _Clock()
    planner, rng = DrawPlanner(clock=clock), np.random.default_rng([3, place])
    shape = (1, *session.laboratory.event_shape)
    draw_seconds = 0.0
    for step in range(session.scale.planner_steps):
        view = int(rng.integers(views.count))
        conditioning: Conditioning = made[views.prompts[view]]
        if planner.costs is not None:
            draw_seconds = planner.costs.draw_seconds
        with planner.upstream():
            clock.seconds += _FOLLOWED_RATIO * draw_seconds
        estimate = client.estimate_gradient(
            views.latents[view].reshape(shape),
            conditioning,
            draws="auto",
            planner=planner,
            guidance_scale=GRID_GUIDANCE,
            history=f"planner {views.stage.stage}",
            seed=_SEED + (place << 32) + step,
        )
        factor = views.factors[view]

        def pull_back(
            gradient: npt.NDArray[np.float32], factor: npt.NDArray[np.float64] = factor
        ) -> npt.NDArray[np.float64]:
            """J^T, in coordinates that keep every inner product of parameter space."""
            return gradient.reshape(-1).astype(np.float64) @ factor

        # The loop of a client that optimises has the parameters' gradient at hand.
        planner.observe(estimate, vjp=pull_back, gradient=pull_back(estimate.gradient))
        session.laboratory.spent(estimate.evaluations_spent)
    return planner


def _with_draws(session: Session, study: GridStudy, draws: set[int]) -> GridStudy:
    """The study with W(1, K) of ours at further K."""
    objective = guided_objective(session.laboratory.schedule, GRID_GUIDANCE)
    within = dict(study.within)
    for k in sorted(draws):
        if ("parameter", "ours", 1, k) in within:
            continue
        session.say(f"(R, K) = (1, {k}), {study.views.stage.stage}: as planned")
        found = measure_within(
            session.laboratory, study.views, OURS, objective, study.past, 1, k,
            session.scale.grid_effort, session.seeds,
        ).within  # fmt: skip
        within |= {(space, "ours", 1, k): value for space, value in found.items()}
    return replace(study, within=within)


def _within(claim: str, found: Mapping[float, Sequence[Measured]], bound: float) -> Target:
    """The mean over stages within the bound of 1 at every cost ratio."""
    means = {ratio: mean_of(values) for ratio, values in found.items() if values}
    if not means:
        return Target(claim, "nothing to compare", False)
    worst = max(means, key=lambda ratio: abs(means[ratio].value - 1))
    single = max((v for values in found.values() for v in values), key=lambda v: abs(v.value - 1))
    return Target(
        claim,
        f"worst {means[worst].value:.3f} ± {means[worst].error:.3f}, at {worst:g}; of single "
        f"stages {single.value:.3f} ± {single.error:.3f}",
        abs(means[worst].value - 1) <= bound,
    )


def _measure_cameras(session: Session, client: TeacherClient) -> None:
    stage = session.studies[-1].views.stage
    session.say(f"views on a grid, {stage.stage}")
    studio = DemoStudio.open(
        client, session.studio.convention, session.studio.encoder, stage.prompt
    )
    settings = Settings(budget=1.0)
    bank = measure_bank(
        studio,
        stage.field,
        settings,
        azimuths=session.scale.camera_azimuths,
        progress=lambda part: session.advance(part * _BANK_SECONDS),
    )
    table = Table(
        "cameras",
        "Views that spread out",
        "Variance between views of the mean exact gradient of R views in parameter space, by how "
        f"the views are drawn, at the {stage.stage} field; the gain is over independent views. "
        f"On a grid of {bank.azimuths} azimuths and {bank.elevations} elevations; the error is "
        "that of the sets of views drawn.",
        ("R", "views", "variance between views", "gain"),
    )
    samplers: tuple[ViewSampler, ...] = (
        "independent",
        "stratified",
        "antithetic",
        "stratified_antithetic",
    )
    for renders in (2, 4, 8):
        base = Measured(*bank.between_variance("independent", renders))
        for sampler in samplers:
            value = Measured(*bank.between_variance(sampler, renders))
            gain = base.over(value) if sampler != "independent" else None
            table.add(renders, sampler, value, gain)
    session.write(table)
