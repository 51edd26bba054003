"""Trains the embedded teacher's U-Net and text encoder on the latents of the frozen autoencoder.

Seeded; logs to stdout, and goes on from the last checkpoint under --work when called again with
the same arguments. ``train_autoencoder.py`` comes first; README.md has the exact commands.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import dataset as ds
import export
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

TRAIN_SEED = 1


def to_batch(images: np.ndarray) -> Tensor:
    """uint8 (n, 64, 64, 3) -> float (n, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save(state: dict, path: Path) -> None:
    """Atomic torch.save, so that a stop in the middle leaves the last checkpoint intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


class Ema:
    """Exponential moving average of a module's parameters, with a short memory at the start."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.model = decay, model
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)


def load_vae(work: Path) -> AutoencoderKL:
    """The trained VAE (moving average), in eval mode."""
    vae = export.build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt")["ema"])
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Posterior mean and standard deviation (n, 4, 8, 8) of all images, unscaled."""
    parts = [
        vae.encode(to_batch(images[i : i + 64])).latent_dist for i in range(0, len(images), 64)
    ]
    return torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts])


def train_unet(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    spec, images = ds.cached_images(args.work / "train.npy", args.images, TRAIN_SEED)
    vae = load_vae(args.work)
    cache = args.work / "latents.pt"
    if not cache.exists() or cache.stat().st_mtime < (args.work / "vae.pt").stat().st_mtime:
        save(dict(zip(("mean", "std"), encode_all(vae, images), strict=True)), cache)
    mean, std = torch.load(cache).values()
    scaling = 1.0 / (mean.var() + std.square().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=scaling)
    print(f"latents: scaling factor {scaling:.4f}, posterior std {std.mean() * scaling:.4f}")

    tokenizer = export.build_tokenizer()
    text_encoder = export.build_text_encoder(tokenizer).train()
    unet = export.build_unet().to(memory_format=torch.channels_last).train()
    model = nn.ModuleDict({"unet": unet, "text": text_encoder})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay
    )
    ema, start = Ema(model, args.ema), 0
    path = args.work / "unet.pt"
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow, start = state["ema"], state["step"]
    alphas = export.build_scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    # min-SNR: the lowest noise levels are fitted for their own sake otherwise
    weights = snr.clamp(max=args.min_snr) / snr
    clock, last_export, running = time.time(), time.time(), 0.0
    for step in range(start, args.stop or args.steps):
        rng = np.random.default_rng([args.seed, step])
        torch.manual_seed(args.seed * 1_000_003 + step)
        rows = rng.integers(len(mean), size=args.batch)
        latents = scaling * (mean[rows] + std[rows] * torch.randn_like(mean[rows]))
        # one timestep per equal slice of the schedule: lower variance of the loss
        t = ((torch.arange(args.batch) + torch.rand(args.batch)) * 1000 / args.batch).long()
        noise = torch.randn_like(latents)
        a = alphas[t][:, None, None, None]
        noisy = (a.sqrt() * latents + (1 - a).sqrt() * noise).contiguous(
            memory_format=torch.channels_last
        )
        captions = [ds.random_caption(spec, row, rng, args.drop) for row in rows]
        unique, index = np.unique(captions, return_inverse=True)
        states = text_encoder(export.tokenize(tokenizer, list(unique))).last_hidden_state
        error = (unet(noisy, t, states[torch.from_numpy(index)]).sample - noise).square()
        loss = (weights[t] * error.mean((1, 2, 3))).mean()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr, args.warmup)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(step)
        running += loss.item() / args.log_every
        if (step + 1) % args.log_every == 0:
            pace = (time.time() - clock) / (step + 1 - start)
            left = pace * (args.steps - step - 1) / 60
            print(
                f"unet {step + 1}/{args.steps} loss {running:.4f} {pace:.3f} s/step "
                f"{left:.1f} min left",
                flush=True,
            )
            running = 0.0
        done = step + 1 == (args.stop or args.steps)
        if done or time.time() - last_export > 60 * args.export_minutes:
            last_export = time.time()
            save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema.shadow,
                    "step": step + 1,
                },
                path,
            )
            average = nn.ModuleDict(
                {"unet": export.build_unet(), "text": export.build_text_encoder(tokenizer)}
            )
            average.load_state_dict(ema.shadow)
            export.export_folder(args.out, vae, average["unet"], average["text"], tokenizer)
            print(f"exported step {step + 1} to {args.out}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    here = Path(__file__).parent
    add = parser.add_argument
    add("--work", type=Path, default=here / "out", help="caches, checkpoints")
    add("--out", type=Path, required=True, help="diffusers folder to write")
    add("--images", type=int, default=18000, help="training renders")
    add("--seed", type=int, default=0)
    add("--threads", type=int, default=2)
    add("--steps", type=int, default=3300)
    add("--stop", type=int, help="end early; the schedule stays that of --steps")
    add("--batch", type=int, default=32)
    add("--lr", type=float, default=1e-3)
    add("--warmup", type=int, default=100)
    add("--ema", type=float, default=0.999)
    add("--weight-decay", type=float, default=0.01)
    add("--min-snr", type=float, default=5.0)
    add("--drop", type=float, default=0.12, help="share of empty captions")
    add("--log-every", type=int, default=50)
    add("--export-minutes", type=float, default=8.0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train_unet(args)


if __name__ == "__main__":
    main()
