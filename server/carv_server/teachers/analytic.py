"""A Gaussian-mixture teacher with closed forms: the oracle that estimators are tested against.

The data law is sum_m pi_m N(mu_m, s_m^2 I). Under z = alpha x + sigma eps a component's
marginal is N(alpha mu_m, (alpha^2 s_m^2 + sigma^2) I), so

    eps_hat(z, t, m) = sigma (z - alpha mu_m) / (alpha^2 s_m^2 + sigma^2),

and eps_hat(z, t) of the mixture is its mean under the posterior of m given z.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from carv_server.sampling.prediction import PredictionType
from carv_server.sampling.schedule import Schedule, discrete_schedule, flow_schedule
from carv_server.teachers.folder import read_json
from carv_server.teachers.protocol import (
    Classes,
    ConditioningSpec,
    Prompts,
    RawTensors,
    Source,
    SourceError,
    TeacherDescription,
    Tensors,
    TensorSpec,
    Unconditional,
    check_each,
)

__all__ = ["AnalyticTeacher", "GaussianMixture", "load_analytic"]

Float64Array = npt.NDArray[np.float64]
MIXTURE_FILE = "mixture.json"


@dataclass(frozen=True)
class GaussianMixture:
    """Isotropic components.

    Attributes:
        weights: float64 [M], sums to one.
        means: float64 [M, *event_shape].
        scales: float64 [M], s_m.
    """

    weights: Float64Array
    means: Float64Array
    scales: Float64Array

    def expected_noise(
        self, latents: npt.ArrayLike, component: int, schedule: Schedule
    ) -> Float64Array:
        """E over eps of eps_hat(alpha x + sigma eps, t, m), exactly: linear in eps, so it is the
        value at eps = 0.

        Args:
            latents: x, [R, *event_shape].

        Returns:
            float64 [R, N, *event_shape], at every timestep of the schedule.
        """
        x = np.asarray(latents, dtype=np.float64)
        gap = (x - self.means[component])[:, None]
        gain = (
            schedule.sigma
            * schedule.alpha
            / ((schedule.alpha * self.scales[component]) ** 2 + schedule.sigma**2)
        )
        return gain.reshape(1, -1, *(1,) * (x.ndim - 1)) * gap


class AnalyticTeacher:
    """A Gaussian mixture, conditional on the component label; unconditional is the mixture.

    The label is the conditioning tensor ``class_label``; the number of components stands for
    "unconditional".
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        schedule: Schedule,
        *,
        device: torch.device | None = None,
        description: str = "Gaussian mixture with closed-form noise predictions",
    ) -> None:
        self._device = device or torch.device("cpu")
        self._components = len(mixture.weights)
        event_shape = mixture.means.shape[1:]
        digest = hashlib.sha256(schedule.kind.value.encode())
        for array in (
            mixture.weights,
            mixture.means,
            mixture.scales,
            schedule.alpha,
            schedule.sigma,
        ):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        self._description = TeacherDescription(
            digest=digest.hexdigest(),
            family="analytic",
            event_shape=tuple(int(size) for size in event_shape),
            schedule=schedule,
            prediction_type=PredictionType.EPSILON,
            conditioning=ConditioningSpec(
                accepts_prompts=False,
                classes=self._components,
                has_unconditional=True,
                tensors=(TensorSpec("class_label", torch.int64, ()),),
            ),
            description=description,
        )

        def to_device(values: Float64Array) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=self._device)

        self._log_weights = to_device(np.log(mixture.weights))
        self._means = to_device(mixture.means.reshape(self._components, -1))
        self._scales = to_device(mixture.scales)
        self._alpha = to_device(schedule.alpha)
        self._sigma = to_device(schedule.sigma)

    @property
    def description(self) -> TeacherDescription:
        return self._description

    @property
    def device(self) -> torch.device:
        return self._device

    def encode(self, source: Source) -> Sequence[Tensors]:
        match source:
            case Prompts():
                raise SourceError("prompts", "this teacher takes class ids, not prompts")
            case Unconditional():
                labels = (self._components,)
            case Classes(class_ids=labels):
                check_each(labels, self._check_label)
            case RawTensors(tensors=tensors):
                label = int(tensors["class_label"])
                if not 0 <= label <= self._components:
                    raise SourceError(
                        "tensors.tensors[class_label]",
                        f"{label} is not in 0 .. {self._components}",
                    )
                labels = (label,)
        return [{"class_label": torch.tensor(label)} for label in labels]

    def _check_label(self, index: int, label: int) -> None:
        if not 0 <= label < self._components:
            raise SourceError(
                f"classes.class_ids[{index}]", f"{label} is not in 0 .. {self._components - 1}"
            )

    def predict_noise(
        self, z_t: torch.Tensor, timesteps: torch.Tensor, conditioning: Tensors
    ) -> torch.Tensor:
        z = z_t.flatten(1)
        alpha, sigma = self._alpha[timesteps, None], self._sigma[timesteps, None]
        variance = (alpha * self._scales) ** 2 + sigma**2  # [n, M]
        gaps = z[:, None] - alpha[..., None] * self._means  # [n, M, D]
        log_density = -0.5 * (gaps.square().sum(-1) / variance + z.shape[1] * variance.log())
        posterior = torch.softmax(self._log_weights + log_density, dim=1)
        labels = conditioning["class_label"]
        one_hot = torch.nn.functional.one_hot(labels, self._components + 1)[:, :-1].to(z.dtype)
        chosen = torch.where((labels == self._components).unsqueeze(1), posterior, one_hot)
        noise = sigma * ((chosen / variance).unsqueeze(1) @ gaps).squeeze(1)
        return noise.reshape(z_t.shape)


def load_analytic(folder: Path, device: torch.device) -> AnalyticTeacher:
    """Read ``mixture.json``: weights [M], means [M, *event_shape], scales [M] and a schedule,
    either {"alphas_cumprod": [N]} or {"flow_timesteps": N, "shift": s}.

    Raises:
        TeacherFolderError: the file is no JSON object.
        ValueError: it is incomplete or contradicts itself.
    """
    content = read_json(folder / MIXTURE_FILE)
    missing = [key for key in ("weights", "means", "scales", "schedule") if key not in content]
    if missing:
        raise ValueError(f"it does not state {', '.join(missing)}")
    mixture = GaussianMixture(
        *(np.asarray(content[key], dtype=np.float64) for key in ("weights", "means", "scales"))
    )
    counts = {len(mixture.weights), len(mixture.means), len(mixture.scales)}
    one_each = mixture.weights.ndim == mixture.scales.ndim == 1
    if len(counts) != 1 or not one_each or mixture.means.ndim < 2:
        raise ValueError("weights [M], means [M, *event_shape] and scales [M] must agree in length")
    if not all(np.isfinite(a).all() for a in (mixture.weights, mixture.means, mixture.scales)):
        raise ValueError("weights, means and scales must be finite")
    if np.any(mixture.weights <= 0) or np.any(mixture.scales <= 0):
        raise ValueError("weights and scales must be above zero")
    weights = mixture.weights / mixture.weights.sum()
    schedule = content["schedule"]
    if not {"flow_timesteps", "alphas_cumprod"} & set(schedule):
        raise ValueError("its schedule states neither alphas_cumprod nor flow_timesteps")
    return AnalyticTeacher(
        GaussianMixture(weights, mixture.means, mixture.scales),
        flow_schedule(int(schedule["flow_timesteps"]), float(schedule.get("shift", 1.0)))
        if "flow_timesteps" in schedule
        else discrete_schedule(schedule["alphas_cumprod"]),
        device=device,
        description=str(content.get("description", "Gaussian mixture")),
    )
