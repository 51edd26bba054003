"""Bridge to torch autograd: the estimated gradient goes to the renderer as it is.

The usual trick, a mean-squared error against ``(latents − grad).detach()``, rounds the gradient
away in 16-bit latents. Here backward hands the gradient itself to ``latents``.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Literal, Unpack, cast

import numpy as np
import numpy.typing as npt
import torch

from carv_client._options import EstimateOptions
from carv_client._sync import TeacherClient
from carv_client._types import Conditionings, Estimate
from carv_client.planner import Vjp

__all__ = [
    "PendingLoss",
    "attach_gradient",
    "score_distillation",
    "score_distillation_with_estimate",
    "submit_score_distillation",
    "vjp_of",
]

Reduction = Literal["mean", "sum"]


def score_distillation(
    latents: torch.Tensor,
    conditioning: Conditionings | None = None,
    *,
    client: TeacherClient,
    reduction: Reduction = "mean",
    **options: Unpack[EstimateOptions],
) -> torch.Tensor:
    """A scalar loss whose backward pass gives ``latents`` the teacher's estimated gradient.

        loss = score_distillation(latents, conditioning, client=client, draws=8)
        loss.backward()

    d loss / d latents = ĝ / R for "mean" over the R renders, ĝ for "sum", times whatever comes
    from above (a loss scale, a coefficient). ĝ is unbiased for the estimand of
    ``estimate_gradient``, so through any renderer the parameter gradient is too.

    The value of the loss is Σ_r ½‖ĝ_r‖², over R for "mean": a diagnostic of how far the teacher
    wants to move the latents, and no objective. Score distillation has none in general; the
    value holds the noise of the estimate, and need not fall as training succeeds.

    Cost: one request, made in the forward pass, which blocks. Backward costs nothing, and can
    be taken once only: a second derivative raises RuntimeError.

    Args:
        latents: [R, *event_shape], any device; sent in its own dtype (float64 as float32). The
            gradient is kept in float32 and given back in the dtype of ``latents``.
        conditioning: as in ``estimate_gradient``.
        client: where to ask.
        reduction: "mean" or "sum" over renders.
        options: keyword arguments of ``TeacherClient.estimate_gradient``.
    """
    loss, _ = score_distillation_with_estimate(
        latents, conditioning, client=client, reduction=reduction, **options
    )
    return loss


def score_distillation_with_estimate(
    latents: torch.Tensor,
    conditioning: Conditionings | None = None,
    *,
    client: TeacherClient,
    reduction: Reduction = "mean",
    **options: Unpack[EstimateOptions],
) -> tuple[torch.Tensor, Estimate]:
    """``score_distillation``, and the estimate behind it with its diagnostics."""
    _divisor(latents, reduction)  # a bad reduction is told before anything is spent
    _convert(latents, options)
    estimate = client.estimate_gradient(_to_numpy(latents), conditioning, **options)
    return attach_gradient(latents, estimate.gradient, reduction), estimate


def submit_score_distillation(
    latents: torch.Tensor,
    conditioning: Conditionings | None = None,
    *,
    client: TeacherClient,
    reduction: Reduction = "mean",
    **options: Unpack[EstimateOptions],
) -> PendingLoss:
    """``score_distillation`` by ``TeacherClient.submit``: returns at once, so that the next view
    is rendered while the teacher works on this one.

        pending = [
            submit_score_distillation(render(view), conditioning, client=client) for view in views
        ]
        torch.stack([each.loss() for each in pending]).mean().backward()
        optimiser.step()

    The graph behind ``latents`` is kept until the loss is let go of. Backpropagate through it
    before the optimiser's next step: that changes parameters in place, and autograd refuses a
    graph whose parameters have changed since.
    """
    _divisor(latents, reduction)
    _convert(latents, options)
    coming = client.submit(_to_numpy(latents), conditioning, **options)
    return PendingLoss(latents, coming, reduction)


class PendingLoss:
    """A loss whose gradient is still on its way; made by ``submit_score_distillation``."""

    def __init__(
        self, latents: torch.Tensor, coming: Future[Estimate], reduction: Reduction
    ) -> None:
        self._latents, self._coming = latents, coming
        self._reduction: Reduction = reduction

    def done(self) -> bool:
        """Whether ``loss`` and ``estimate`` return, or raise, without waiting."""
        return self._coming.done()

    def cancel(self) -> bool:
        """Give the request up; False where it is over."""
        return self._coming.cancel()

    def estimate(self, timeout: float | None = None) -> Estimate:
        """Wait for the estimate, at most so many seconds; raises what ``estimate_gradient``
        raises, or TimeoutError."""
        return self._coming.result(timeout)

    def loss(self, timeout: float | None = None) -> torch.Tensor:
        """Wait likewise; the loss of ``score_distillation``."""
        estimate = self.estimate(timeout)
        return attach_gradient(self._latents, estimate.gradient, self._reduction)


def attach_gradient(
    latents: torch.Tensor, gradient: npt.NDArray[np.float32], reduction: Reduction = "mean"
) -> torch.Tensor:
    """The loss of ``score_distillation`` for a gradient that is already at hand, for instance
    from ``AsyncTeacherClient``."""
    if tuple(gradient.shape) != tuple(latents.shape):
        raise ValueError(f"gradient {gradient.shape} does not fit latents {tuple(latents.shape)}")
    divisor = _divisor(latents, reduction)
    value = torch.tensor(gradient, dtype=torch.float32, device=latents.device)
    attach = cast(Any, _AttachGradient)  # torch leaves ``apply`` untyped
    return cast(torch.Tensor, attach.apply(latents, value, divisor))


def vjp_of(latents: torch.Tensor, parameters: Iterable[torch.Tensor]) -> Vjp:
    """J^T of ``latents`` with respect to ``parameters``, for ``DrawPlanner.observe``.

        loss, estimate = score_distillation_with_estimate(
            latents, conditioning, client=client, draws="auto", planner=planner
        )
        planner.observe(estimate, vjp=vjp_of(latents, field.parameters()))
        loss.backward()

    Takes float32 [R, *event_shape] to float32 [P], all parameters one after another, summed over
    renders. Each call is a backward pass; the graph behind ``latents`` must still be there, so
    observe before ``backward``.
    """
    sources = list(parameters)

    def pull_back(gradient: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        above = torch.as_tensor(gradient, dtype=latents.dtype, device=latents.device)
        parts = cast(
            "tuple[torch.Tensor | None, ...]",
            torch.autograd.grad(latents, sources, above, retain_graph=True, allow_unused=True),
        )
        flat = [
            source.new_zeros(source.numel()) if part is None else part.flatten()
            for source, part in zip(sources, parts, strict=True)
        ]
        return torch.cat([part.float().cpu() for part in flat]).numpy()

    return pull_back


class _AttachGradient(torch.autograd.Function):
    """loss = ½‖g‖²/n forward; g/n to the latents backward."""

    @staticmethod
    def forward(
        ctx: Any, latents: torch.Tensor, gradient: torch.Tensor, divisor: int
    ) -> torch.Tensor:
        ctx.save_for_backward(gradient)
        ctx.divisor, ctx.dtype = divisor, latents.dtype
        return 0.5 * gradient.square().sum() / divisor

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        # Scaled in float32, and only then rounded to the latents' dtype.
        scaled = (gradient * (grad_outputs[0] / ctx.divisor)).to(ctx.dtype)
        if torch.is_grad_enabled():  # create_graph=True
            refuse = cast(Any, _RefuseDerivative)
            scaled = refuse.apply(scaled, scaled.new_zeros((), requires_grad=True))
        return scaled, None, None


class _RefuseDerivative(torch.autograd.Function):
    """The identity; its derivative is an error. ``once_differentiable`` would take the gradient
    for a constant wherever the loss is the root of the graph, and say nothing."""

    @staticmethod
    def forward(ctx: Any, gradient: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> None:
        raise RuntimeError(
            "score distillation has no second derivative: the server returns the gradient alone"
        )


def _divisor(latents: torch.Tensor, reduction: str) -> int:
    if reduction == "mean":
        return max(latents.shape[0], 1)
    if reduction == "sum":
        return 1
    raise ValueError(f'reduction is {reduction!r}; it is "mean" or "sum"')


def _convert(latents: torch.Tensor, options: EstimateOptions) -> None:
    """Options to what the client takes."""
    reference = options.get("reference_latents")
    if isinstance(reference, torch.Tensor):
        options["reference_latents"] = _to_numpy(reference)
    if options.get("wire_dtype") is None and latents.dtype == torch.bfloat16:
        options["wire_dtype"] = "bfloat16"


def _to_numpy(latents: torch.Tensor) -> npt.NDArray[Any]:
    values = latents.detach()
    if values.dtype == torch.bfloat16:  # numpy has none; exact in float32
        values = values.float()
    return values.cpu().numpy()
