"""What a renderer must know about a teacher: its words, its cameras, its background.

A teacher folder of our own (the embedded one) says so in ``carv_teacher.json``; see
``examples/embedded_teacher``. Angles are in degrees, lengths in world units.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

__all__ = ["Convention", "PromptError", "embedded_folder", "read_convention"]


class PromptError(ValueError):
    """A prompt that the teacher cannot be asked for; the message says why and what it knows."""


@dataclass(frozen=True)
class Convention:
    """Words, cameras and colours that the teacher was trained on."""

    vocabulary: tuple[str, ...]
    """Every word (and the comma) that a prompt may hold."""
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    views: tuple[str, ...]
    """View words: front, side, back, overhead."""
    image_size: int
    """Edge of the square image in pixels."""
    fov: float
    """Full field of view in degrees."""
    distance: float
    """Distance of the camera from the origin, in the middle of its range."""
    distance_jitter: float
    """Relative half width of that range."""
    elevation: tuple[float, float]
    """Range of elevations seen in training."""
    background: tuple[float, float, float]
    """RGB in [0, 1]."""
    overhead_above: float
    """Elevation above which the view word is "overhead"."""
    front_within: float
    """Azimuth from the front within which it is "front"."""
    back_within: float
    """Azimuth from the back within which it is "back"; the rest is "side"."""

    @property
    def distances(self) -> tuple[float, float]:
        low, high = 1 - self.distance_jitter, 1 + self.distance_jitter
        return self.distance * low, self.distance * high

    def view_word(self, azimuth: float, elevation: float) -> str:
        """The word for a view; overhead goes before front, back and side."""
        if elevation > self.overhead_above:
            return "overhead"
        wrapped = abs((azimuth + 180.0) % 360.0 - 180.0)
        if wrapped <= self.front_within:
            return "front"
        return "back" if wrapped >= 180.0 - self.back_within else "side"

    def view_prompt(self, prompt: str, azimuth: float, elevation: float) -> str:
        """``prompt`` with the word of the view: "a red torus, side view"."""
        return f"{prompt}, {self.view_word(azimuth, elevation)} view"

    def check_prompt(self, prompt: str) -> str:
        """The prompt in lower case with single spaces.

        Raises PromptError where it holds a word that the teacher does not know, no shape (there
        is nothing to build), or a view (the demo adds the view of each camera itself).
        """
        clean = re.sub(r"\s+", " ", prompt.strip().lower()).rstrip(" .,")
        words = re.findall(r"[^\s,]+", clean)
        unknown = [word for word in dict.fromkeys(words) if word not in self.vocabulary]
        if unknown:
            names = ", ".join(repr(word) for word in unknown)
            known = " ".join(word for word in self.vocabulary if word.isalnum())
            plural = "s" if len(unknown) > 1 else ""
            raise PromptError(f"unknown word{plural} {names}; this teacher knows: {known}")
        if not any(word in self.shapes for word in words):
            known = ", ".join(self.shapes)
            raise PromptError(f"the prompt {prompt!r} names no shape; this teacher knows: {known}")
        if "view" in words:
            raise PromptError(
                f"the prompt {prompt!r} names a view; the demo adds the view of each camera itself"
            )
        return clean

    def alternatives(self, prompt: str) -> list[str]:
        """Prompts that differ from a checked ``prompt`` in its shape or in its colour.

        A prompt without a colour has the other shapes as its alternatives only.
        """
        words = re.findall(r"[^\s,]+|,", prompt)
        found: dict[str, None] = {}
        for group in (self.shapes, self.colours):
            for position, word in enumerate(words):
                if word not in group:
                    continue
                for other in group:
                    if other != word:
                        swapped = [*words[:position], other, *words[position + 1 :]]
                        found[_sentence(swapped)] = None
                break
        return list(found)


def _sentence(words: list[str]) -> str:
    """Words joined into a prompt, each article fitted to the word behind it."""
    fitted = list(words)
    for i, (word, after) in enumerate(itertools.pairwise(words)):
        if word in ("a", "an"):
            fitted[i] = "an" if after[0] in "aeiou" else "a"
    return " ".join(fitted).replace(" ,", ",")


def embedded_folder() -> Path:
    """The folder of the teacher that ships with the server."""
    return Path(__file__).parents[1] / "teachers" / "embedded" / "shapes"


def read_convention(folder: Path) -> Convention:
    """Reads ``carv_teacher.json`` of a teacher folder.

    Raises FileNotFoundError where the folder has none: the demo then has no cameras to use.
    """
    document = cast("Mapping[str, Any]", json.loads((folder / "carv_teacher.json").read_text()))
    camera = cast("Mapping[str, Any]", document["camera"])
    views = cast("Mapping[str, Any]", document["view_thresholds"])
    low, high = (float(value) for value in camera["elevation_deg"])
    red, green, blue = (float(value) for value in camera["background"])
    return Convention(
        vocabulary=tuple(document["vocabulary"]),
        shapes=tuple(document["shapes"]),
        colours=tuple(document["colours"]),
        views=tuple(document["views"]),
        image_size=int(document["image_size"]),
        fov=float(camera["fov_deg"]),
        distance=float(camera["radius"]),
        distance_jitter=float(camera["radius_jitter"]),
        elevation=(low, high),
        background=(red, green, blue),
        overhead_above=float(views["overhead_elevation_above_deg"]),
        front_within=float(views["front_azimuth_within_deg"]),
        back_within=float(views["back_azimuth_within_deg_of_180"]),
    )
