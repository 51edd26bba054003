"""A teacher's live profile as inline SVG: ||f|| against t, and the laws that t is drawn from.

Colours are classes of the page's style sheet, so that both its themes hold here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from carv_server.observability.efficiency import LiveProfile

__all__ = ["profile_svg"]

Float64Array = npt.NDArray[np.float64]

_WIDTH, _PANEL, _GAP = 640.0, 132.0, 34.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 22.0, 34.0
_MOST_POINTS = 160
_TICKS = 4


class _Panel:
    """Maps t and a value to the drawing.

    Args:
        top: y of its upper edge.
        most: largest value, above zero.
    """

    def __init__(self, top: float, first: int, last: int, most: float) -> None:
        self._top = top
        self._first, self._span = first, max(1, last - first)
        self._most = most

    @property
    def bottom(self) -> float:
        return self._top + _PANEL

    def x(self, t: float) -> float:
        return _LEFT + (t - self._first) / self._span * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return self.bottom - min(value / self._most, 1.0) * _PANEL

    def line(self, kind: str, timesteps: Iterable[int], values: Iterable[float]) -> str:
        points = " ".join(
            f"{self.x(t):.1f},{self.y(value):.1f}"
            for t, value in zip(timesteps, values, strict=True)
        )
        return f'<polyline class="{kind}" points="{points}"/>'

    def axes(self, title: str) -> list[str]:
        right = _WIDTH - _RIGHT
        parts = [f'<text class="title" x="{_LEFT:g}" y="{self._top - 8:.1f}">{title}</text>']
        for value in _ticks(self._most):
            y = self.y(value)
            parts += [
                f'<line class="grid" x1="{_LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>',
                f'<text class="tick" x="{_LEFT - 6:g}" y="{y + 3.5:.1f}" text-anchor="end">'
                f"{value:g}</text>",
            ]
        return parts


def profile_svg(profile: LiveProfile, name: str) -> str:
    """Args:
    name: of the teacher, escaped already.
    """
    t = profile.timesteps
    first, last = int(t[0]), int(t[-1])
    kept = np.unique(np.linspace(0, len(t) - 1, _MOST_POINTS).astype(np.int64))
    times: list[int] = t[kept].tolist()
    laws = [
        ("prior", _relative(profile.prior)),
        ("weight", _relative(profile.weight)),
        ("proposal", _relative(profile.proposal)),
    ]
    norm = np.nan_to_num(profile.norm, posinf=0.0)
    highest = max([float(norm.max()), *(each.norm for each in profile.bins)])
    upper = _Panel(_TOP, first, last, _round_up(highest))
    most = _round_up(max(float(law.max()) for _, law in laws))
    lower = _Panel(_TOP + _PANEL + _GAP, first, last, most)
    parts = upper.axes("‖f‖, root mean square: each bin of log-SNR, and smoothed")
    heaviest = max((each.draws for each in profile.bins), default=1.0)
    for each in profile.bins:
        y, opacity = upper.y(each.norm), 0.35 + 0.65 * each.draws / heaviest
        parts.append(
            f'<line class="bin" x1="{upper.x(each.first):.1f}" x2="{upper.x(each.last):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}" opacity="{opacity:.2f}"/>'
        )
    parts.append(upper.line("norm", times, norm[kept].tolist()))
    parts += lower.axes("density over t, 1 is uniform")
    parts += [lower.line(kind, times, law[kept].tolist()) for kind, law in laws]
    parts += _legend(lower)
    parts += _time_axis(lower, first, last)
    height = lower.bottom + _BOTTOM
    text = (
        f"Above, the norm of the integrand over timesteps {first} to {last}; below, the densities "
        "of the prior, of prior times weighting, and of the proposal in use."
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {height:g}" role="img" '
        f'aria-label="Profile of {name}. {text}">{"".join(parts)}</svg>'
    )


def _legend(panel: _Panel) -> list[str]:
    parts: list[str] = []
    y = panel.bottom - _PANEL - 12
    names = (
        ("proposal", "proposal in use", 108),
        ("weight", "prior × |w|", 82),
        ("prior", "prior", 46),
    )
    x = _WIDTH - _RIGHT
    for kind, said, width in names:
        x -= width
        parts += [
            f'<line class="{kind}" x1="{x:g}" x2="{x + 16:g}" y1="{y:g}" y2="{y:g}"/>',
            f'<text class="tick" x="{x + 20:g}" y="{y + 3.5:g}">{said}</text>',
        ]
        x -= 14
    return parts


def _time_axis(panel: _Panel, first: int, last: int) -> list[str]:
    y = panel.bottom
    parts: list[str] = []
    for share in range(_TICKS + 1):
        t = first + round((last - first) * share / _TICKS)
        x = panel.x(t)
        anchor = "start" if share == 0 else "end" if share == _TICKS else "middle"
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{y + 14:.1f}" text-anchor="{anchor}">{t}</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="tick" x="{middle:g}" y="{y + 29:.1f}" text-anchor="middle">'
        "timestep t, from data to noise</text>"
    )
    return parts


def _relative(law: Float64Array) -> Float64Array:
    return law * len(law)


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten; 1 for nothing."""
    if not 0 < value < math.inf:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value
    )


def _ticks(most: float) -> Sequence[float]:
    return [float(f"{most * share / 2:.6g}") for share in range(3)]
