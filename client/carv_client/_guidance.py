"""Guidance conventions as branches: the linear form Σ_j a_j ε̂_j."""

from __future__ import annotations

from carv_client._errors import invalid
from carv_client._types import Branch, Conditionings, Guidance

__all__ = ["guidance_branches", "guidance_coefficients"]


def guidance_coefficients(scale: float, guidance: Guidance = "standard") -> tuple[float, float]:
    """Coefficients (conditional, unconditional) of classifier-free guidance.

    "standard", ε̂_u + s(ε̂_c − ε̂_u): (s, 1 − s). Ho and Salimans, arXiv 2207.12598.
    "text_anchored", ε̂_c + s(ε̂_c − ε̂_u): (1 + s, −s). What threestudio and its kin call the
    guidance scale: s there is s + 1 in the standard convention.
    """
    if guidance == "standard":
        return scale, 1.0 - scale
    if guidance == "text_anchored":
        return 1.0 + scale, -scale
    raise invalid("guidance", f"{guidance!r} is not known; known: standard, text_anchored")


def guidance_branches(
    conditioning: Conditionings,
    unconditional: Conditionings,
    scale: float = 7.5,
    guidance: Guidance = "standard",
) -> list[Branch]:
    """Classifier-free guidance as branches, to extend or to reweight; a branch whose
    coefficient is 0 is left out, and with it its share of the cost."""
    conditional, remainder = guidance_coefficients(scale, guidance)
    pairs = [(conditioning, conditional), (unconditional, remainder)]
    return [Branch(part, coefficient) for part, coefficient in pairs if coefficient != 0.0]
