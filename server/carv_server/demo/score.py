"""The teacher as a classifier: how far it takes held-out views for what the prompt says.

A diffusion model's denoising error bounds -log p(x | c) from above, so the prompt under which the
noise is predicted best is the most likely one (Li et al. 2023, "Your Diffusion Model is Secretly a
Zero-Shot Classifier"). For a view x and a prompt c,

    E(x, c) = mean over a bank of (t, eps) of || eps_hat(alpha x + sigma eps, t, c) - eps ||^2

with the same bank for all prompts, so that its noise cancels in their differences. The score of a
view is the softmax of -E / temperature over the right prompt and its alternatives (the other
shapes with the same colour, the other colours with the same shape), at the right one. All prompts
carry the view's word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from carv_client import Conditioning, draw_noise
from carv_server.demo.cameras import View
from carv_server.demo.optimise import Studio, view_conditionings

__all__ = ["Bank", "Classifier", "Score", "posterior"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bank:
    """The shared draws, and the temperature of the softmax."""

    fractions: tuple[float, ...] = (0.3, 0.45, 0.6, 0.75)
    """Timesteps as fractions of the schedule: the noise levels at which shape and colour show."""
    seed: int = 20260
    temperature: float = 1.0
    """In units of E, a squared error summed over the event."""


@dataclass(frozen=True)
class Score:
    """How the teacher reads a set of views."""

    probability: float
    """Mean over the views of the right prompt's posterior probability."""
    accuracy: float
    """Share of the views where the right prompt is the most likely one."""
    margin: float
    """Mean over the views of (least E of the alternatives) - E(right)."""


def posterior(errors: FloatArray, temperature: float) -> FloatArray:
    """Softmax of ``-errors / temperature`` along the last axis; ``errors`` is ``[V, C]``."""
    logits = -errors / temperature
    logits = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True)


class Classifier:
    """Scores latents of ``views`` against a prompt and its alternatives."""

    def __init__(self, studio: Studio, views: Sequence[View], bank: Bank | None = None) -> None:
        self._client = studio.client
        self._bank = bank or Bank()
        self.prompts = [studio.prompt, *studio.convention.alternatives(studio.prompt)]
        words = [studio.convention.view_word(view.azimuth, view.elevation) for view in views]
        self._conditionings: list[list[Conditioning]] = []
        for prompt in self.prompts:
            by_word = view_conditionings(studio.client, studio.convention, prompt)
            self._conditionings.append([by_word[word] for word in words])
        teacher = studio.client.get_teacher()
        steps = [round(part * (teacher.timesteps - 1)) for part in self._bank.fractions]
        self._timesteps = np.array(steps, dtype=np.int64)
        self._noise = np.stack(
            [
                [
                    draw_noise(self._bank.seed, row, k, teacher.event_shape)
                    for k in range(len(steps))
                ]
                for row in range(len(views))
            ]
        ).astype(np.float64)
        self._scored: dict[bytes, Score] = {}

    def errors(self, latents: npt.NDArray[np.float32]) -> FloatArray:
        """E ``[V, C]`` of latents ``[V, *event]``, column 0 the right prompt. Costs
        V · draws · C evaluations."""
        columns: list[FloatArray] = []
        for conditionings in self._conditionings:
            prediction = self._client.predict_noise(
                latents, conditionings, timesteps=self._timesteps, seed=self._bank.seed
            )
            squared = (prediction.noise - self._noise) ** 2
            columns.append(squared.reshape(*squared.shape[:2], -1).sum(-1).mean(-1))
        return np.stack(columns, axis=-1)

    def score(self, latents: npt.NDArray[np.float32]) -> Score:
        """The score of latents ``[V, *event]``; kept, since all runs start from one field."""
        key = latents.tobytes()
        if key not in self._scored:
            self._scored[key] = self._score(self.errors(latents))
        return self._scored[key]

    def _score(self, errors: FloatArray) -> Score:
        probability = posterior(errors, self._bank.temperature)
        return Score(
            probability=float(probability[:, 0].mean()),
            accuracy=float((errors.argmin(-1) == 0).mean()),
            margin=float((errors[:, 1:].min(-1) - errors[:, 0]).mean()),
        )
