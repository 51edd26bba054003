"""Trains the embedded teacher's autoencoder: ``encoder`` first, then ``decoder``.

The encoder serves score distillation, so it must be well behaved on half-made renders, too: most
of a batch is broadened (``broaden.py``), and a linear preview of the latents is asked for
the colours of the image, so that colour is close to linear in the latents and has one
optimum. It is trained against a small throw-away decoder; the real one then learns to invert the
frozen encoder. Both stages are seeded.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import dataset as ds
import export
import numpy as np
import torch
import torch.nn.functional as F
from broaden import broaden
from diffusers import AutoencoderKL
from torch import Tensor, nn
from train import TRAIN_SEED, Ema, learning_rate, save, to_batch

FILE = "vae.pt"


class ThrowAwayDecoder(nn.Module):
    """Latents (n, 4, 8, 8) to images (n, 3, 64, 64), all work at 8x8: a quarter of the real
    decoder's time, and enough to tell the encoder what to keep."""

    def __init__(self, width: int = 112):
        super().__init__()
        self.first = nn.Conv2d(4, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(3)
        )
        self.last = nn.Conv2d(width, 3 * 8 * 8, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.first(latents / 2)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return F.pixel_shuffle(self.last(hidden), 8)


def batches(
    images: np.ndarray, clean: int, broad: int, generator: torch.Generator
) -> Callable[[], Tensor]:
    """Draws (clean + broad, 3, 64, 64) in [-1, 1], the broadened ones last."""

    def pick(count: int) -> Tensor:
        rows = torch.randint(0, len(images), (count,), generator=generator)
        return (to_batch(images[rows.numpy()]) + 1) / 2

    def draw() -> Tensor:
        x = torch.cat([pick(clean), broaden(pick(broad), generator)])
        return (2 * x - 1).contiguous(memory_format=torch.channels_last)

    return draw


def fit(
    args: argparse.Namespace,
    label: str,
    vae: AutoencoderKL,
    groups: list[tuple[Iterable[nn.Parameter], float]],
    loss_of: Callable[[], tuple[Tensor, Tensor]],
) -> None:
    """AdamW with warm-up and cosine; saves the moving average of ``vae`` at the end.

    ``loss_of`` draws a batch and returns (loss, mean squared error).
    """
    listed = [(list(parameters), rate) for parameters, rate in groups]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in listed],
        betas=(0.9, 0.99),
        weight_decay=0,
    )
    ema = Ema(vae, args.ema)
    clock, running = time.time(), 0.0
    for step in range(args.steps):
        for group, (_, rate) in zip(optimizer.param_groups, listed, strict=True):
            group["lr"] = learning_rate(step, args.steps, rate, args.warmup)
        loss, mse = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(listed[0][0], 1.0)
        optimizer.step()
        ema.update(step)
        running += mse.item() / args.log_every
        if (step + 1) % args.log_every == 0:
            # a pixel range of 2 ([-1, 1]) against one of 1: 4 times the squared error
            psnr = -10 * math.log10(running / 4)
            pace = (time.time() - clock) / (step + 1)
            left = pace * (args.steps - step - 1) / 60
            print(
                f"{label} {step + 1}/{args.steps} loss {loss.item():.4f} psnr {psnr:.2f} dB "
                f"{pace:.3f} s/step {left:.1f} min left",
                flush=True,
            )
            running = 0.0
    save({"ema": ema.shadow}, args.work / FILE)


def train_encoder(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    _, images = ds.cached_images(args.work / "train.npy", args.images, TRAIN_SEED)
    vae = export.build_vae().to(memory_format=torch.channels_last)
    vae.decoder.requires_grad_(False)
    vae.post_quant_conv.requires_grad_(False)
    decoder = ThrowAwayDecoder().to(memory_format=torch.channels_last)
    preview = nn.Conv2d(4, 3, 1)
    generator = torch.Generator().manual_seed(args.seed)
    draw = batches(images, args.clean, args.broad, generator)

    def loss_of() -> tuple[Tensor, Tensor]:
        x = draw()
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        z = posterior.mean + posterior.std * noise
        y = decoder(z)
        mse = F.mse_loss(y[args.clean :], x[args.clean :])
        linear = F.mse_loss(preview(z), F.avg_pool2d(x, 8))
        kl = args.kl_weight * posterior.kl().mean()
        return F.l1_loss(y, x) + 2 * mse + args.preview_weight * linear + kl, mse.detach()

    encoder = [*vae.encoder.parameters(), *vae.quant_conv.parameters()]
    aside = [*decoder.parameters(), *preview.parameters()]
    fit(args, "encoder", vae, [(encoder, args.lr), (aside, 1.5 * args.lr)], loss_of)


def train_decoder(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    _, images = ds.cached_images(args.work / "train.npy", args.images, TRAIN_SEED)
    vae = export.build_vae()
    vae.load_state_dict(torch.load(args.work / FILE)["ema"])
    vae.to(memory_format=torch.channels_last).requires_grad_(False)
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in decoder:
        parameter.requires_grad_(True)
    draw = batches(images, args.clean, args.broad, torch.Generator().manual_seed(args.seed + 1))

    def loss_of() -> tuple[Tensor, Tensor]:
        x = draw()
        y = vae.decode(vae.encode(x).latent_dist.sample()).sample
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        mse = F.mse_loss(y[: args.clean], x[: args.clean])
        return F.l1_loss(y, x) + F.mse_loss(y, x) + edges, mse.detach()

    fit(args, "decoder", vae, [(decoder, args.lr)], loss_of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    here = Path(__file__).parent
    for name, run in (("encoder", train_encoder), ("decoder", train_decoder)):
        stage = stages.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        stage.set_defaults(run=run)
        encoder = name == "encoder"
        stage.add_argument("--work", type=Path, default=here / "out", help="caches, checkpoints")
        stage.add_argument("--images", type=int, default=18000, help="training renders")
        stage.add_argument("--seed", type=int, default=0)
        stage.add_argument("--threads", type=int, default=1)
        stage.add_argument("--steps", type=int, default=1100 if encoder else 900)
        stage.add_argument("--clean", type=int, default=6 if encoder else 8, help="of a batch")
        stage.add_argument("--broad", type=int, default=9 if encoder else 2, help="of a batch")
        stage.add_argument("--lr", type=float, default=2e-3)
        stage.add_argument("--warmup", type=int, default=30)
        stage.add_argument("--ema", type=float, default=0.99)
        stage.add_argument("--log-every", type=int, default=25)
        if encoder:
            stage.add_argument("--preview-weight", type=float, default=4.0)
            stage.add_argument("--kl-weight", type=float, default=1e-6)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
