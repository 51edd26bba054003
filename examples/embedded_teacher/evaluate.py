"""Measures the exported teacher on held-out renders and writes the figures next to it.

Everything is loaded from the diffusers folder with plain ``from_pretrained`` (fp16 weights, run
in fp32). Writes evaluation.json, denoising_loss.png, samples.png, views.png and the measured
section of README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import dataset as ds
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from report import fill_card, plot_loss
from torch import Tensor
from train import to_batch
from transformers import CLIPTextModel, CLIPTokenizer

HELD_OUT_SEED = 900_001  # training uses dataset seed 1 only
COMBOS = [(s, c) for s in range(len(ds.SHAPES)) for c in range(len(ds.COLOURS))]
COMBO_PROMPTS = [ds.prompt(ds.SHAPES[s], list(ds.COLOURS)[c]) for s, c in COMBOS]


class Teacher:
    """The folder's parts and the two questions put to them."""

    def __init__(self, folder: Path):
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").float().eval()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
        self.unet = self.unet.to(memory_format=torch.channels_last)
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.alphas = DDPMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
        self.scaling = self.vae.config.scaling_factor

    def embed(self, captions: list[str]) -> Tensor:
        """Captions -> text states (n, 16, width)."""
        ids = self.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        return self.text(ids).last_hidden_state

    def error(self, latents: Tensor, noise: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """Mean squared error of the predicted noise, per row (n,)."""
        parts = []
        for rows in torch.arange(len(latents)).split(64):
            a = self.alphas[t[rows]][:, None, None, None]
            noisy = a.sqrt() * latents[rows] + (1 - a).sqrt() * noise[rows]
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            predicted = self.unet(noisy, t[rows], states[rows]).sample
            parts.append((predicted - noise[rows]).square().mean((1, 2, 3)))
        return torch.cat(parts)


def wilson(hits: int, n: int, z: float = 1.96) -> dict:
    """Share with its 95% Wilson interval."""
    p, d = hits / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"share": p, "low": (centre - half) / d, "high": (centre + half) / d, "n": n}


def reconstruction(teacher: Teacher, images: np.ndarray) -> tuple[dict, Tensor]:
    """PSNR (dB, images in [0, 1]) of decode(encode mean) per image, and the scaled latents."""
    psnr, latents = [], []
    for chunk in np.array_split(images, max(1, len(images) // 32)):
        x = to_batch(chunk)
        z = teacher.vae.encode(x).latent_dist.mean
        y = teacher.vae.decode(z).sample.clamp(-1, 1)
        psnr.append(-10 * ((y - x) / 2).square().mean((1, 2, 3)).log10())
        latents.append(z * teacher.scaling)
    values, latents = torch.cat(psnr), torch.cat(latents)
    low = values.quantile(0.05).item()
    stats = {"mean_db": values.mean().item(), "percentile_5_db": low, "n": len(values)}
    return stats | {"latent_std": latents.std().item()}, latents


def loss_by_noise(teacher: Teacher, spec: ds.Spec, latents: Tensor, bins: int = 10) -> list[dict]:
    """Mean error per tenth of the schedule for the right, an empty and a wrong caption.

    Every image is used once per bin; the three captions share its timestep and noise.
    """
    generator = torch.Generator().manual_seed(1)
    n, width = len(latents), 1000 // bins
    right = spec.shape * len(ds.COLOURS) + spec.colour
    wrong = (right + 1 + np.random.default_rng(1).integers(len(COMBOS) - 1, size=n)) % len(COMBOS)
    states, empty = teacher.embed(COMBO_PROMPTS), teacher.embed([""]).expand(n, -1, -1)
    table = []
    for b in range(bins):
        t = torch.randint(b * width, (b + 1) * width, (n,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        row: dict = {"t_from": b * width, "t_to": (b + 1) * width - 1}
        captions = {"caption": states[right], "empty": empty, "wrong": states[wrong]}
        for name, c in captions.items():
            error = teacher.error(latents, noise, t, c)
            row[name] = error.mean().item()
            row[name + "_standard_error"] = error.std().item() / math.sqrt(n)
        table.append(row)
        print(row, flush=True)
    return table


def classify(teacher: Teacher, spec: ds.Spec, latents: Tensor, args: argparse.Namespace) -> dict:
    """Zero-shot classification by denoising error (Li et al. 2023) among all 48 prompts.

    All prompts of an image share the (t, noise) draws, t evenly spaced. As in the paper, a first
    round with few draws discards most prompts; the survivors get the second round as well.
    """
    states = teacher.embed(COMBO_PROMPTS)
    hits, shape_hits, colour_hits, n = 0, 0, 0, min(args.classify, len(latents))
    confusion = np.zeros((len(ds.SHAPES), len(ds.SHAPES)), dtype=int)
    for i in range(n):
        generator = torch.Generator().manual_seed(1000 + i)
        alive, total, draws_done = torch.arange(len(COMBOS)), torch.zeros(len(COMBOS)), 0
        for draws, keep in ((args.draws[0], args.keep), (args.draws[1], 1)):
            t = (torch.arange(draws) + torch.rand(draws, generator=generator)) * 1000 / draws
            noise = torch.randn((draws, *latents.shape[1:]), generator=generator)
            m = len(alive)
            error = teacher.error(
                latents[i].expand(draws * m, -1, -1, -1),
                noise.repeat_interleave(m, 0),
                t.long().repeat_interleave(m),
                states[alive].repeat(draws, 1, 1),
            )
            total[alive] += error.reshape(draws, m).sum(0)
            draws_done += draws
            alive = alive[(total[alive] / draws_done).argsort()[:keep]]
        shape, colour = COMBOS[int(alive[0])]
        shape_hits += shape == spec.shape[i]
        colour_hits += colour == spec.colour[i]
        hits += shape == spec.shape[i] and colour == spec.colour[i]
        confusion[spec.shape[i], shape] += 1
        if i % 20 == 19:
            print(
                f"classified {i + 1}/{n}: shape {shape_hits / (i + 1):.3f} "
                f"colour {colour_hits / (i + 1):.3f}",
                flush=True,
            )
    return {
        "shape": wilson(shape_hits, n),
        "colour": wilson(colour_hits, n),
        "both": wilson(hits, n),
        "draws": list(args.draws),
        "kept_after_round_1": args.keep,
        "shape_confusion": {
            s: dict(zip(ds.SHAPES, map(int, confusion[k]), strict=True))
            for k, s in enumerate(ds.SHAPES)
        },
    }


def sample_sheets(folder: Path, steps: int, guidance: float) -> None:
    """samples.png: rows are shapes, columns colours. views.png: rows are prompts, columns views."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).to(torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    objects = [("cube", "red"), ("pyramid", "yellow"), ("torus", "blue"), ("cylinder", "green")]
    views = [ds.prompt(s, c, v) for s, c in objects for v in ds.VIEWS for _ in range(2)]
    for name, prompts, columns in (("samples", COMBO_PROMPTS, 8), ("views", views, 8)):
        out = pipe(
            prompts,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
        tiles = (out * 255).round().astype(np.uint8).reshape(-1, columns, 64, 64, 3)
        sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(64 * len(tiles), 64 * columns, 3)
        Image.fromarray(sheet).resize(
            (128 * columns, 128 * len(tiles)), Image.Resampling.LANCZOS
        ).save(folder / f"{name}.png")


def timings(teacher: Teacher) -> dict:
    """Milliseconds on one thread: UNet forward per row, VAE encoder forward + backward."""
    torch.set_num_threads(1)
    out: dict = {"unet_ms_per_row": {}, "vae_encode_vjp_ms_per_image": {}}
    for batch in (1, 8, 16, 64):
        x, t = torch.randn(batch, 4, 8, 8), torch.full((batch,), 500)
        x = x.contiguous(memory_format=torch.channels_last)
        states = teacher.embed(["a red cube"]).expand(batch, -1, -1)
        best = min(_clock(lambda: teacher.unet(x, t, states)) for _ in range(9))  # noqa: B023
        out["unet_ms_per_row"][str(batch)] = 1000 * best / batch
    for batch in (1, 8):
        image = torch.rand(batch, 3, 64, 64, requires_grad=True)

        def vjp() -> None:
            with torch.enable_grad():
                teacher.vae.encode(image).latent_dist.mean.sum().backward()  # noqa: B023

        out["vae_encode_vjp_ms_per_image"][str(batch)] = (
            1000 * min(_clock(vjp) for _ in range(7)) / batch
        )
    return out


def _clock(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    here = Path(__file__).parent
    parser.add_argument("--folder", type=Path, required=True, help="diffusers folder; is written")
    parser.add_argument("--work", type=Path, default=here / "out")
    parser.add_argument("--only", nargs="+", choices=["vae", "loss", "classify", "samples", "time"])
    parser.add_argument("--images", type=int, default=960, help="held-out renders")
    parser.add_argument("--classify", type=int, default=240, help="renders to classify")
    parser.add_argument("--draws", type=int, nargs=2, default=[4, 12], help="per round")
    parser.add_argument("--keep", type=int, default=8, help="prompts that survive round 1")
    parser.add_argument("--steps", type=int, default=40, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = set(args.only or ["vae", "loss", "classify", "samples", "time"])
    path = args.folder / "evaluation.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    teacher = Teacher(args.folder)
    spec, images = ds.cached_images(args.work / "held_out.npy", args.images, HELD_OUT_SEED)
    stats, latents = reconstruction(teacher, images)
    if "vae" in parts:
        results["vae_psnr"] = stats
        print(stats, flush=True)
    if "loss" in parts:
        results["loss_by_noise"] = loss_by_noise(teacher, spec, latents)
        plot_loss(results["loss_by_noise"], args.folder / "denoising_loss.png")
    if "classify" in parts:
        results["zero_shot"] = classify(teacher, spec, latents, args)
    if "samples" in parts:
        sample_sheets(args.folder, args.steps, args.guidance)
    results["parameters"] = {
        name: sum(p.numel() for p in getattr(teacher, name).parameters())
        for name in ("vae", "unet", "text")
    }
    if "time" in parts:
        results["timings"] = timings(teacher)
        print(results["timings"], flush=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    fill_card(args.folder / "README.md", results)


if __name__ == "__main__":
    main()
