"""Arguments to request messages: pure functions, one for each part of a request.

Bounds, shapes and values are the server's to judge, all at once. What is judged here is only
what no message could carry: an unknown name, an object array, contradictory arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from carv.tensors import TensorError, encode_tensor
from carv.v1 import conditioning_pb2, objective_pb2, sampling_pb2, teacher_service_pb2
from carv.v1.tensor_pb2 import Tensor
from carv_client._errors import invalid
from carv_client._types import Branch

__all__ = [
    "coefficient",
    "explicit_draws",
    "objective",
    "profile",
    "refinement",
    "sampling",
    "set_priority",
    "set_seed",
    "source",
    "tensor",
]

T = TypeVar("T")


def tensor(field: str, values: npt.ArrayLike, dtype: str | None = None) -> Tensor:
    """Encode an array; float64 travels as float32."""
    try:
        with np.errstate(over="ignore"):  # an overflow arrives as infinity, and is refused there
            return encode_tensor(values, dtype)
    except (TensorError, TypeError, ValueError) as error:
        raise invalid(field, str(error)) from error


def source(
    prompts: Sequence[str] | None = None,
    class_ids: Sequence[int] | None = None,
    tensors: Mapping[str, npt.ArrayLike] | None = None,
    blend_weights: Sequence[float] | None = None,
) -> conditioning_pb2.ConditioningSource:
    """A conditioning source; with no argument the unconditional one."""
    pb = conditioning_pb2
    if prompts is not None:
        kind: dict[str, Any] = {"prompts": _make("prompt", pb.PromptSource, prompts=list(prompts))}
    elif class_ids is not None:
        kind = {"classes": _make("class_id", pb.ClassSource, class_ids=list(class_ids))}
    elif tensors is not None:
        encoded = {name: tensor(f"tensors[{name!r}]", value) for name, value in tensors.items()}
        kind = {"tensors": _make("tensors", pb.TensorSource, tensors=encoded)}
    elif blend_weights is not None:
        kind = {"blend": _make("blend", pb.BlendSource, weights=list(blend_weights))}
    else:
        kind = {"unconditional": pb.UnconditionalSource()}
    return pb.ConditioningSource(**kind)


def coefficient(field: str, value: npt.ArrayLike) -> objective_pb2.Coefficient:
    """A constant, or a table with one value for each timestep of the teacher's grid."""
    if np.ndim(value) == 0:
        return _make(field, objective_pb2.Coefficient, constant=_number(field, value))
    table = objective_pb2.CoefficientTable(values=_table(field, value))
    return objective_pb2.Coefficient(table=table)


def objective(
    branches: Sequence[Branch],
    noise_coefficient: npt.ArrayLike,
    weighting: npt.ArrayLike,
    timestep_range: tuple[float, float],
    prior: npt.ArrayLike | None,
) -> objective_pb2.Objective:
    """The objective, its branches still without handles, and without reference latents."""
    pb = objective_pb2
    message = pb.Objective(
        branches=[
            pb.Branch(
                coefficient=coefficient(f"branches[{j}].coefficient", branch.coefficient),
                use_reference_latents=branch.use_reference_latents,
            )
            for j, branch in enumerate(branches)
        ],
        noise_coefficient=coefficient("noise_coefficient", noise_coefficient),
    )
    if isinstance(weighting, str):
        named = _enum("weighting", pb.NamedWeighting, "NAMED_WEIGHTING_", weighting)
        message.weighting.named = named  # pyright: ignore[reportAttributeAccessIssue]
    else:
        message.weighting.table.values.extend(_table("weighting", weighting))
    if prior is not None:
        message.prior.table.mass.extend(_table("prior", prior))
    else:
        if len(timestep_range) != 2:
            raise invalid("timestep_range", "takes two fractions of the schedule")
        low, high = timestep_range
        message.prior.range.min_fraction = _number("timestep_range", low)
        message.prior.range.max_fraction = _number("timestep_range", high)
    return message


def sampling(
    draws: int,
    sampler: str | None,
    proposal: str | None,
    coupling: str | None,
    control_variate: str | None = None,
    history: str = "",
) -> sampling_pb2.Sampling:
    """How the server draws; None leaves a choice to it."""
    pb = sampling_pb2
    return _make(
        "sampling",
        pb.Sampling,
        draws=draws,
        timestep_sampler=_enum("sampler", pb.TimestepSampler, "TIMESTEP_SAMPLER_", sampler),
        proposal=_enum("proposal", pb.Proposal, "PROPOSAL_", proposal),
        noise_coupling=_enum("coupling", pb.NoiseCoupling, "NOISE_COUPLING_", coupling),
        control_variate=_enum(
            "control_variate", pb.ControlVariate, "CONTROL_VARIATE_", control_variate
        ),
        history=history,
    )


def refinement(
    drawn: sampling_pb2.Sampling,
    *,
    target: float,
    max_draws: int,
    max_seconds: float,
) -> teacher_service_pb2.RefineGradientRequest:
    """A RefineGradient without its question and seed."""
    request = _make("max_draws", teacher_service_pb2.RefineGradientRequest, max_draws=max_draws)
    request.sampling.CopyFrom(drawn)
    request.target_relative_standard_error = _number("target_relative_standard_error", target)
    request.max_seconds = _number("max_seconds", max_seconds)
    return request


def profile(
    bins: int,
    draws_per_bin: int,
    history: str,
    warm: bool,
) -> teacher_service_pb2.ProfileTeacherRequest:
    """A ProfileTeacher without its question and seed.

    Zero bins or draws would mean the server's choice, so they are refused here.
    """
    for field, value in (("bins", bins), ("draws_per_bin", draws_per_bin)):
        if value == 0:
            raise invalid(field, "0; must be at least 2")
    return _make(
        "profile",
        teacher_service_pb2.ProfileTeacherRequest,
        bins=bins,
        draws_per_bin=draws_per_bin,
        history=history,
        warm=warm,
    )


Computed = (
    teacher_service_pb2.EstimateGradientRequest
    | teacher_service_pb2.RefineGradientRequest
    | teacher_service_pb2.PredictNoiseRequest
    | teacher_service_pb2.ProfileTeacherRequest
)


def set_priority(request: Computed, priority: int) -> None:
    """Raises InvalidRequestError: no int32; the range is the server's to check."""
    try:
        request.priority = priority
    except (TypeError, ValueError) as error:
        raise invalid("priority", str(error)) from None


def set_seed(request: Computed, seed: int | None) -> None:
    """None leaves the choice to the server."""
    if seed is None:
        return
    try:
        request.seed = seed
    except (TypeError, ValueError) as error:
        raise invalid("seed", f"{seed!r} is not an integer in [0, 2^64)") from error


def explicit_draws(
    renders: int,
    timesteps: npt.ArrayLike,
    noise_indices: npt.ArrayLike | None = None,
    signs: npt.ArrayLike | None = None,
    importance_weights: npt.ArrayLike | None = None,
) -> sampling_pb2.ExplicitDraws:
    """The client's own draws. A row [K] stands for every render; noise indices are 0 .. K−1
    unless given."""

    def rows(field: str, values: npt.ArrayLike, dtype: str | None) -> Tensor:
        array = np.asarray(values)
        if array.ndim < 2:
            array = np.broadcast_to(array, (renders, array.size))
        return tensor(field, array, dtype)

    message = sampling_pb2.ExplicitDraws(timesteps=rows("timesteps", timesteps, None))
    if noise_indices is None:
        noise_indices = np.arange(message.timesteps.shape[-1])
    message.noise_indices.CopyFrom(rows("noise_indices", noise_indices, None))
    if signs is not None:
        message.signs.CopyFrom(rows("signs", signs, "float32"))
    if importance_weights is not None:
        message.importance_weights.CopyFrom(
            rows("importance_weights", importance_weights, "float32")
        )
    return message


def enum_names(wrapper: Any, prefix: str) -> list[str]:
    """The names that a keyword takes for an enum of the contract."""
    return [key.removeprefix(prefix).lower() for key, value in wrapper.items() if value != 0]


def _enum(field: str, wrapper: Any, prefix: str, name: str | None) -> Any:
    if name is None:
        return 0
    known = enum_names(wrapper, prefix)
    if name not in known:
        raise invalid(field, f"{name!r} is not known; known: {', '.join(known)}")
    return wrapper.Value(prefix + name.upper())


def _number(field: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise invalid(field, f"{value!r} is not a number") from error


def _table(field: str, values: npt.ArrayLike) -> list[float]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise invalid(field, f"not an array of numbers: {error}") from error
    if array.ndim != 1:
        raise invalid(field, f"shape {list(array.shape)}; takes one value for each timestep, [N]")
    return array.tolist()


def _make(field: str, message: Callable[..., T], **values: Any) -> T:
    """Build a message; what its field types cannot hold is an invalid request."""
    try:
        return message(**values)
    except (TypeError, ValueError) as error:
        raise invalid(field, str(error)) from error
