"""One microbatch on the device: noise, z_t, teacher, integrand, per-render sums.

    (p/q)(t) w(t) ( sum_j a_j(t) eps_hat(alpha x + sigma eps, t, c_j) + (d(t) + c(t)) eps )

Each step is one operation over the draws of all works, so that a request of one row costs little
among others. Per-draw tensors never leave the device unless predictions are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from carv_server.replicas.conditioning_cache import ConditioningCache
from carv_server.replicas.noise_ahead import NoiseAhead
from carv_server.replicas.protocol import NonFiniteDraw, Work, WorkResult
from carv_server.replicas.row_limit import RowLimit
from carv_server.replicas.staging import Staged, stage
from carv_server.sampling.finite import all_finite
from carv_server.sampling.group_layout import DrawLabels
from carv_server.sampling.group_sums import reduce_works
from carv_server.sampling.noise import draw_noise
from carv_server.teachers.protocol import Teacher, Tensors

__all__ = ["Forward", "Inputs", "NoiseTerms", "evaluate"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

_LARGEST = float(np.finfo(np.float32).max)


def evaluate(
    teacher: Teacher, works: Sequence[Work], max_rows: int | None = None
) -> list[WorkResult]:
    """As ``Forward.evaluate``, of one microbatch alone."""
    return Forward(teacher, max_rows).evaluate(works)


class NoiseTerms(NamedTuple):
    """What sums need of the noise alone, for the draws that are summed: d eps, float32
    [n, *event_shape], and ||eps||^2, [n]."""

    residual: torch.Tensor
    squares: torch.Tensor


@dataclass(frozen=True)
class Inputs:
    """What the teacher is given.

    Attributes:
        noise: eps of every draw, float32 [n, *event_shape]; None where no draw has any use for it.
        z_t: float32 [m, *event_shape], by row.
        conditioning: by row, [m, *row shape] by name; None leaves it to ``Forward.predict``.
    """

    staged: Staged
    noise: torch.Tensor | None
    z_t: torch.Tensor
    conditioning: Tensors | None = None


class Forward:
    """Evaluates microbatches of one teacher.

    A microbatch is staged, made into the teacher's inputs, predicted and summed. Only ``predict``
    is one thread's: the other steps of the microbatches ahead and behind may run beside it.

    Args:
        max_rows: rows that the teacher sees at once. A group of draws is never cut over
            microbatches, so one may hold more rows than the budget.
        ahead: noise that has been made already.
    """

    def __init__(
        self, teacher: Teacher, max_rows: int | None = None, ahead: NoiseAhead | None = None
    ) -> None:
        self.teacher = teacher
        self.limit = RowLimit(max_rows)
        self._ahead = ahead
        self._cache = ConditioningCache(teacher.device)
        self._zero = torch.zeros((), device=teacher.device)
        self._on_cuda = teacher.device.type == "cuda"
        self._copies = torch.cuda.Stream(teacher.device) if self._on_cuda else None

    def evaluate(self, works: Sequence[Work]) -> list[WorkResult]:
        """Evaluate works of any requests in one microbatch.

        A work whose result is not finite fails alone.
        """
        return self.compute(self.stage(works))

    @torch.inference_mode()
    def stage(self, works: Sequence[Work]) -> Staged:
        """Lay out a microbatch and send it to the device."""
        teacher = self.teacher
        description = teacher.description
        return stage(
            works, description.schedule, teacher.device, self._copies, description.arithmetic
        )

    def compute(self, staged: Staged) -> list[WorkResult]:
        """Results in the order in which the works were given."""
        inputs = self.inputs(staged)
        return self.results(inputs, self.predict(inputs))

    @torch.inference_mode()
    def inputs(self, staged: Staged) -> Inputs:
        """Noise, and z_t and conditioning of every row."""
        if staged.ready is not None:
            self._await_transfers(staged)
        noise = self._noise(staged)
        z_t = self._teacher_inputs(staged, noise)
        if self._on_cuda:
            # Its cache is the forward's stream's alone, and gathering there costs one launch.
            return Inputs(staged, noise, z_t)
        return Inputs(staged, noise, z_t, self._conditioning(staged))

    @torch.inference_mode()
    def predict(self, inputs: Inputs) -> torch.Tensor:
        """eps_hat of every row, float32 [m, *event_shape]."""
        v, z, conditioning = inputs.staged.values, inputs.z_t, inputs.conditioning
        if conditioning is None:
            conditioning = self._conditioning(inputs.staged)

        def forward(rows: slice) -> torch.Tensor:
            if rows == slice(0, len(z)):
                return self.teacher.predict_noise(z, v["row_timesteps"], conditioning)
            return self.teacher.predict_noise(
                z[rows],
                v["row_timesteps"][rows],
                {name: tensor[rows] for name, tensor in conditioning.items()},
            )

        return self.limit.run(forward, len(z))

    @torch.inference_mode()
    def noise_terms(self, inputs: Inputs) -> NoiseTerms | None:
        """What of the sums can be made before there are predictions."""
        draws = _summed_draws(inputs.staged)
        if inputs.noise is None or draws == 0:
            return None
        return _noise_terms(inputs.staged, inputs.noise[:draws])

    @torch.inference_mode()
    def results(
        self, inputs: Inputs, predictions: torch.Tensor, terms: NoiseTerms | None = None
    ) -> list[WorkResult]:
        """Sums, in the order in which the works were given.

        Args:
            terms: of these inputs, where they have been made; used up.
        """
        staged = inputs.staged
        results = self._reduce(staged, inputs.noise, predictions, terms)
        in_order: list[WorkResult] = [WorkResult()] * len(results)
        for position, result in zip(staged.positions, results, strict=True):
            in_order[position] = result
        return in_order

    def _conditioning(self, staged: Staged) -> Tensors:
        """Of every row, [m, *row shape] by name."""
        table = self._cache.table(staged.conditionings)
        slots = staged.values["row_conditionings"]
        if len(slots) == len(staged.conditionings) == 1:  # nothing to gather
            return {name: rows.clone() for name, rows in table.items()}
        return {name: rows[slots] for name, rows in table.items()}

    def _await_transfers(self, staged: Staged) -> None:
        assert staged.ready is not None
        stream = torch.cuda.current_stream(self.teacher.device)
        stream.wait_event(staged.ready)
        # Or the copies' allocator would reuse them too early; the values are one block.
        for tensor in (staged.latents, staged.values["row_timesteps"]):
            tensor.record_stream(stream)

    def _noise(self, staged: Staged) -> torch.Tensor | None:
        """eps of every draw, float32 [n, *event_shape]; None where no draw has any use for it."""
        description, v = self.teacher.description, staged.values
        if staged.all_noisy:
            return None
        noise = None if self._ahead is None else self._ahead.take(staged.works)
        if noise is None:
            noise = draw_noise(
                v["noise_seeds"], v["noise_renders"], v["noise_indices"], description.event_shape
            )
        signs = _per_draw(v["signs"], noise)
        if staged.shares_noise and staged.noise_block:
            own = signs.reshape(-1, staged.noise_block, *signs.shape[1:])
            return (noise.unsqueeze(1) * own).flatten(0, 1)
        if staged.shares_noise:
            noise = noise[v["noise"]]
        noise *= signs
        return noise

    def _teacher_inputs(self, staged: Staged, noise: torch.Tensor | None) -> torch.Tensor:
        """z_t of every row, float32 [m, *event_shape]."""
        v = staged.values
        if not self.teacher.description.arithmetic:
            rows = len(v["row_timesteps"])
            return self._zero.expand(rows, *staged.latents.shape[1:])
        x = staged.latents
        # One render for all draws is broadcast.
        if staged.shares_latents and (len(x) > 1 or noise is None):
            x = x[v["latents"]]
        if noise is None:
            return x
        z = _noisy(x, v["alpha"], v["sigma"], noise)
        if staged.has_references:
            draws = v["reference_draws"]
            x = staged.latents[v["reference_latents"]]
            at_reference = _noisy(x, v["alpha"][draws], v["sigma"][draws], noise[draws])
            z = torch.cat([z, at_reference])[v["row_noisy"]]
        elif len(staged.draws_with) > 1:
            z = torch.cat([z[:count] for count in staged.draws_with])
        return z

    def _reduce(
        self,
        staged: Staged,
        noise: torch.Tensor | None,
        predictions: torch.Tensor,
        terms: NoiseTerms | None,
    ) -> list[WorkResult]:
        """By work, in the order of their draws."""
        works, bounds = staged.works, staged.bounds
        slices = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        draws = _summed_draws(staged)
        results: list[WorkResult] = []
        if draws:
            if noise is None:
                values, scalars = self._nothing(staged, draws)
            else:
                noise = noise[:draws]
                terms = terms or _noise_terms(staged, noise)
                values, scalars = _integrand(staged, noise, terms, predictions)
            results = _sums(staged, values, scalars, slices[: bounds.index(draws)])
        if any(work.keep_predictions for work in works):
            # The first branch's rows are the draws. One copy to the host, whatever the works.
            kept = predictions[: bounds[-1]].to("cpu").numpy()
            finite = all_finite(kept)
            for i, work in enumerate(works):
                if work.keep_predictions:
                    results[i : i + 1] = [_kept(work, kept[slices[i]], finite)]
        return results

    def _nothing(self, staged: Staged, draws: int) -> tuple[torch.Tensor, Float64Array]:
        """As ``_integrand``, of a teacher without arithmetic: zeros. Residuals are of unit norm,
        so that histories go on learning as they do from any teacher."""
        scalars = np.ones((draws, 3))
        scalars[:, 1] = 0.0
        return self._zero.expand(draws, *staged.latents.shape[1:]), scalars


def _kept(work: Work, predictions: Float32Array, finite: bool) -> WorkResult:
    """``finite``: whether all of the microbatch's are; false says nothing of this work's own."""
    failure = None if finite else _first_failure(work, torch.from_numpy(predictions))
    # A view would keep the whole microbatch alive for as long as its work's request.
    return failure or WorkResult(predictions=predictions.copy())


def _summed_draws(staged: Staged) -> int:
    """How many of the first draws are summed: works that keep their predictions need no sums,
    where they come last."""
    works = staged.works
    last = max((i for i, work in enumerate(works) if not work.keep_predictions), default=-1)
    return staged.bounds[last + 1]


def _noise_terms(staged: Staged, noise: torch.Tensor) -> NoiseTerms:
    """Of the first draws."""
    coefficients = _per_draw(staged.values["noise_coefficients"][: len(noise)], noise)
    return NoiseTerms(coefficients * noise, (noise * noise).flatten(1).sum(1))


def _integrand(
    staged: Staged,
    noise: torch.Tensor,
    terms: NoiseTerms,
    predictions: torch.Tensor,
) -> tuple[torch.Tensor, Float64Array]:
    """The weighted integrand of the draws with this noise, the first ones, float32
    [draws, *event_shape], and their residuals' scalars."""
    v, draws = staged.values, len(noise)
    residual = terms.residual
    start = 0
    for count in staged.draws_with:
        rows = slice(start, start + min(count, draws))
        prediction = predictions[rows]
        coefficients = _per_draw(v["branch_coefficients"][rows], prediction)
        residual[: len(prediction)].addcmul_(coefficients, prediction)
        start += count
    scalars = _residual_scalars(residual, noise, terms.squares)
    values = residual
    if staged.has_control:
        control = _per_draw(v["control_coefficients"][:draws], noise)
        values = torch.addcmul(residual, control, noise)
    values *= _per_draw(v["scales"][:draws], values)
    return values, scalars


def _sums(
    staged: Staged, values: torch.Tensor, scalars: Float64Array, slices: Sequence[slice]
) -> list[WorkResult]:
    """Results of the first works."""
    works = staged.works[: len(slices)]
    labels = [DrawLabels(w.renders, w.groups, w.cells, w.streams) for w in works]
    reductions = reduce_works(values, labels)
    failures: list[WorkResult | None] = [None] * len(works)
    if not _surely_finite(staged, scalars):
        failures = [_first_failure(w, values[s]) for w, s in zip(works, slices, strict=True)]
    return [
        failure or WorkResult(reduction=reduction, residuals=scalars[rows])
        for failure, reduction, rows in zip(failures, reductions, slices, strict=True)
    ]


def _residual_scalars(
    residual: torch.Tensor, noise: torch.Tensor, noise_squares: torch.Tensor
) -> Float64Array:
    """||h||^2, <h, eps> and ||eps||^2 of each draw, float64 [n, 3]. Summed pairwise in
    float32, which is accurate to 1e-7 of the norms; in float64 where that overflows."""
    h, eps = residual.flatten(1), noise.flatten(1)

    def products(h: torch.Tensor, eps: torch.Tensor) -> Float64Array:
        found = [(h * h).sum(1), (h * eps).sum(1), noise_squares]
        return torch.stack(found, dim=1).cpu().double().numpy()

    scalars = products(h, eps)
    if not np.isfinite(scalars).all():
        scalars = products(h.double(), eps.double())
    return scalars


def _surely_finite(staged: Staged, scalars: Float64Array) -> bool:
    """Whether norms bound every value scale (h + c eps) away from overflow; false says nothing."""
    draws = len(scalars)
    scales, control = staged.scales[:draws], staged.control_coefficients[:draws]
    norms = np.sqrt(scalars[:, 0]) + np.abs(control) * np.sqrt(scalars[:, 2])
    return bool((np.abs(scales) * norms < _LARGEST).all())


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


def _noisy(
    x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    return (_per_draw(alpha, x) * x).addcmul_(_per_draw(sigma, x), noise)


def _per_draw(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[n] reshaped to broadcast over [n, *event_shape]."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
