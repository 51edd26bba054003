"""What a benchmark set out to show, and whether it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Target", "target_lines"]


@dataclass(frozen=True)
class Target:
    """One line of a summary.

    Attributes:
        measured: the figure with its error, in words.
    """

    claim: str
    measured: str
    met: bool


def target_lines(targets: Sequence[Target]) -> list[str]:
    """As a Markdown table."""
    lines = ["| target | measured | |", "| --- | --- | --- |"]
    return lines + [
        f"| {each.claim} | {each.measured} | {'met' if each.met else '**not met**'} |"
        for each in targets
    ]
