"""Procedural text-image pairs: shaded 3D primitives seen by an orbiting camera.

World frame: right-handed, +y up, object centred at the origin. The camera of azimuth 0 sits on
the +z axis and azimuth grows towards +x. Camera frame (OpenGL): x right, y up, looking along -z.
All lengths are in world units; images are (H, W, 3) with values in [0, 1] and a constant
background, row 0 at the top.

Run ``python dataset.py --preview out/preview.png`` to look at a contact sheet.
"""

from __future__ import annotations

import argparse
import colorsys
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "pyramid")
COLOURS = {  # HSV in [0, 1]
    "red": (0.0, 0.85, 0.85),
    "orange": (0.07, 0.92, 0.97),
    "yellow": (0.148, 0.85, 0.95),
    "green": (0.36, 0.75, 0.62),
    "cyan": (0.5, 0.75, 0.85),
    "blue": (0.625, 0.82, 0.85),
    "purple": (0.78, 0.70, 0.70),
    "grey": (0.0, 0.0, 0.52),
}
VIEWS = ("front", "side", "back", "overhead")
EXTRA_WORDS = ("a", "an", "view", ",")
VOCABULARY = tuple(sorted({*SHAPES, *COLOURS, *VIEWS, *EXTRA_WORDS}))

FOV_DEG = 40.0
RADIUS = 3.0
ELEVATION_DEG = (-5.0, 75.0)
BACKGROUND = (0.92, 0.92, 0.92)
OVERHEAD_DEG = 60.0
FRONT_BACK_HALF_WIDTH_DEG = 45.0
KEY_LIGHT = (0.30, 0.75, 0.59)  # unit vector towards the light: above, in front, a bit to the right
AMBIENT, DIFFUSE = 0.60, 0.45
OBJECT_EXTENT = 0.85  # every unjittered shape fits in a ball of this radius around the origin


@dataclass
class Spec:
    """Parameters of n renders; arrays have n rows. Angles are in degrees."""

    shape: np.ndarray  # (n,) index into SHAPES
    colour: np.ndarray  # (n,) index into COLOURS
    albedo: np.ndarray  # (n, 3) RGB in [0, 1], jittered
    azimuth: np.ndarray  # (n,) in [0, 360)
    elevation: np.ndarray  # (n,)
    radius: np.ndarray  # (n,) camera distance
    scale: np.ndarray  # (n,) object scale
    centre: np.ndarray  # (n, 3) object centre


def orbit_camera(azimuth_deg: float, elevation_deg: float, radius: float = RADIUS) -> Tensor:
    """Camera-to-world matrix (4, 4) of a camera that looks at the origin, +y up, OpenGL axes."""
    az, el = math.radians(azimuth_deg), math.radians(elevation_deg)
    backward = torch.tensor(
        [math.cos(el) * math.sin(az), math.sin(el), math.cos(el) * math.cos(az)]
    )
    right = torch.tensor([math.cos(az), 0.0, -math.sin(az)])
    c2w = torch.eye(4)
    c2w[:3, 0], c2w[:3, 1] = right, torch.linalg.cross(backward, right)
    c2w[:3, 2], c2w[:3, 3] = backward, radius * backward
    return c2w


def camera_rays(c2w: Tensor, size: int, fov_deg: float = FOV_DEG) -> tuple[Tensor, Tensor]:
    """World-space origin (3,) and unit directions (size, size, 3) through the pixel centres."""
    half = math.tan(math.radians(fov_deg) / 2)
    grid = ((torch.arange(size) + 0.5) / size * 2 - 1) * half
    y, x = torch.meshgrid(-grid, grid, indexing="ij")
    dirs = torch.stack([x, y, -torch.ones_like(x)], -1)
    dirs = dirs / dirs.norm(dim=-1, keepdim=True)
    return c2w[:3, 3], dirs @ c2w[:3, :3].T


def view_word(azimuth_deg: float, elevation_deg: float) -> str:
    """The word of the caption: overhead beats front, back and side."""
    if elevation_deg > OVERHEAD_DEG:
        return "overhead"
    wrapped = (azimuth_deg + 180.0) % 360.0 - 180.0
    if abs(wrapped) <= FRONT_BACK_HALF_WIDTH_DEG:
        return "front"
    if abs(wrapped) >= 180.0 - FRONT_BACK_HALF_WIDTH_DEG:
        return "back"
    return "side"


def signed_distance(shape: str, p: Tensor) -> Tensor:
    """Lower bound of the distance from points (..., 3) to a unit-scale shape; 0 on its surface.

    The convex shapes are a maximum of simple distances: exact enough to trace, sharp normals.
    """
    x, y, z = p.unbind(-1)
    if shape == "sphere":
        return p.norm(dim=-1) - 0.62
    if shape == "cube":
        return p.abs().amax(-1) - 0.47
    rho = torch.sqrt(x * x + z * z + 1e-12)
    if shape == "cylinder":
        return torch.maximum(rho - 0.42, y.abs() - 0.58)
    if shape == "cone":  # slim: half height 0.64, base radius 0.48
        h, r = 0.64, 0.48
        side = (2 * h * rho + r * (y - h)) / math.hypot(2 * h, r)
        return torch.maximum(side, -y - h)
    if shape == "torus":
        return torch.sqrt((rho - 0.50) ** 2 + y * y) - 0.19
    if shape == "pyramid":  # squat: half height 0.42, base half-width 0.56
        h, r = 0.42, 0.56
        side = (2 * h * torch.maximum(x.abs(), z.abs()) + r * (y - h)) / math.hypot(2 * h, r)
        return torch.maximum(side, -y - h)
    raise ValueError(f"unknown shape {shape!r}; known: {SHAPES}")


def _normals(shape: str, p: Tensor, eps: float = 2e-3) -> Tensor:
    """Central differences at p (n, 3); unit length."""
    offsets = eps * torch.eye(3)
    grad = torch.stack(
        [signed_distance(shape, p + o) - signed_distance(shape, p - o) for o in offsets], -1
    )
    return grad / grad.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def _trace(shape: str, origin: Tensor, direction: Tensor, steps: int = 56) -> Tensor:
    """Ray length to the surface for rays (n, 3), or inf; marches inside a bounding ball only."""
    bound = OBJECT_EXTENT + 0.02
    b = (origin * direction).sum(-1)
    disc = b * b - (origin * origin).sum(-1) + bound * bound
    out = torch.full_like(b, torch.inf)
    live = (disc > 0).nonzero().squeeze(-1)
    root = disc[live].sqrt()
    t, t_end = -b[live] - root, -b[live] + root
    for step in range(steps):
        dist = signed_distance(shape, origin[live] + t[:, None] * direction[live])
        t = t + dist
        if step % 8 == 7:  # drop the rays that have landed or left
            hit = dist < 5e-4
            out[live[hit]] = t[hit]
            keep = ~hit & (t < t_end)
            live, t, t_end = live[keep], t[keep], t_end[keep]
    return out


def sample_specs(n: int, seed: int) -> Spec:
    """n random renders: shapes and colours are balanced, views uniform over the orbit."""
    rng = np.random.default_rng(seed)
    combos = rng.permutation(np.arange(n) % (len(SHAPES) * len(COLOURS)))
    hsv = np.array(list(COLOURS.values()))[combos % len(COLOURS)]
    hsv[:, 0] += rng.uniform(-0.012, 0.012, n)
    hsv[:, 1] *= rng.uniform(0.94, 1.06, n)
    hsv[:, 2] *= rng.uniform(0.94, 1.03, n)
    albedo = [colorsys.hsv_to_rgb(h % 1, min(s, 1.0), min(v, 1.0)) for h, s, v in hsv]
    return Spec(
        shape=combos // len(COLOURS),
        colour=combos % len(COLOURS),
        albedo=np.array(albedo, dtype=np.float32),
        azimuth=rng.uniform(0, 360, n),
        elevation=rng.uniform(*ELEVATION_DEG, n),
        radius=RADIUS * rng.uniform(0.96, 1.04, n),
        scale=rng.uniform(0.93, 1.07, n),
        centre=rng.uniform(-0.04, 0.04, (n, 3)),
    )


def render(spec: Spec, size: int = 64, supersample: int = 2, chunk: int = 32) -> np.ndarray:
    """Images (n, size, size, 3) uint8 of the given renders."""
    images = np.empty((len(spec.shape), size, size, 3), dtype=np.uint8)
    fine, light = size * supersample, torch.tensor(KEY_LIGHT)
    light = light / light.norm()
    for index, shape in enumerate(SHAPES):
        members = np.flatnonzero(spec.shape == index)
        for rows in np.array_split(members, max(1, math.ceil(len(members) / chunk))):
            if not len(rows):
                continue
            rays = [
                camera_rays(orbit_camera(spec.azimuth[r], spec.elevation[r], spec.radius[r]), fine)
                for r in rows
            ]
            scale = torch.tensor(spec.scale[rows], dtype=torch.float32)[:, None]
            centre = torch.tensor(spec.centre[rows], dtype=torch.float32)
            origin = (torch.stack([o for o, _ in rays]) - centre) / scale
            direction = torch.stack([d for _, d in rays]).reshape(-1, 3)
            origin = origin.repeat_interleave(fine * fine, 0)
            t = _trace(shape, origin, direction)
            hit = t.isfinite().nonzero().squeeze(-1)
            normal = _normals(shape, origin[hit] + t[hit, None] * direction[hit])
            shade = AMBIENT + DIFFUSE * (normal @ light).clamp_min(0)
            albedo = torch.from_numpy(spec.albedo[rows]).repeat_interleave(fine * fine, 0)
            pixels = torch.tensor(BACKGROUND).repeat(len(origin), 1)
            pixels[hit] = (albedo[hit] * shade[:, None]).clamp(0, 1)
            pixels = pixels.reshape(len(rows), size, supersample, size, supersample, 3)
            images[rows] = (pixels.mean((2, 4)) * 255).round().to(torch.uint8).numpy()
    return images


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def prompt(shape: str, colour: str | None = None, view: str | None = None) -> str:
    """A caption of the training distribution, such as 'a red cube, front view'."""
    words = f"{colour} {shape}" if colour else shape
    return f"{article(words)} {words}" + (f", {view} view" if view else "")


def random_caption(spec: Spec, row: int, rng: np.random.Generator, drop: float = 0.12) -> str:
    """Random caption of one render; empty with probability ``drop`` (for guidance)."""
    if rng.random() < drop:
        return ""
    names = tuple(COLOURS)
    colour = names[spec.colour[row]] if rng.random() < 0.88 else None
    view = view_word(spec.azimuth[row], spec.elevation[row]) if rng.random() < 0.5 else None
    text = prompt(SHAPES[spec.shape[row]], colour, view)
    # "a orange cube" is what templates without grammar produce; it should work as well
    return "a " + text[3:] if text.startswith("an ") and rng.random() < 0.5 else text


def cached_images(path: Path, n: int, seed: int) -> tuple[Spec, np.ndarray]:
    """The renders of (n, seed), read from ``path`` when they were made before."""
    spec = sample_specs(n, seed)
    if path.exists():
        images = np.load(path)
        if len(images) == n:
            return spec, images
    path.parent.mkdir(parents=True, exist_ok=True)
    images = render(spec)
    np.save(path, images)
    return spec, images


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preview", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    from PIL import Image

    sheet = render(sample_specs(96, seed=7)).reshape(8, 12, 64, 64, 3)
    args.preview.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(512, 768, 3)).save(args.preview)
