"""Figures and tables of evaluate.py: the loss plot and the measured section of the model card."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def plot_loss(table: list[dict], path: Path) -> None:
    """Denoising error against the noise level for the three kinds of caption."""
    middle = [(row["t_from"] + row["t_to"]) / 2 for row in table]
    figure, axis = plt.subplots(figsize=(6, 3.6), dpi=110)
    labels = {"caption": "right caption", "empty": "empty caption", "wrong": "wrong caption"}
    for name, label in labels.items():
        bars = [1.96 * row[name + "_standard_error"] for row in table]
        values = [row[name] for row in table]
        axis.errorbar(middle, values, bars, marker="o", ms=3, capsize=2, label=label)
    axis.set(xlabel="timestep t", ylabel="mean squared error of eps", yscale="log")
    axis.set_title("Denoising error on held-out renders (bars: 95%)", fontsize=10)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _share(value: dict) -> str:
    low, high = 100 * value["low"], 100 * value["high"]
    return f"{100 * value['share']:.1f}% [{low:.1f}, {high:.1f}]"


def measured_section(results: dict) -> str:
    """Markdown of whatever has been measured so far."""
    lines: list[str] = []
    if "vae_psnr" in results:
        v = results["vae_psnr"]
        lines += [
            f"**VAE reconstruction** ({v['n']} held-out renders): mean PSNR {v['mean_db']:.1f} dB, "
            f"5th percentile {v['percentile_5_db']:.1f} dB; standard deviation of the scaled "
            f"latents {v['latent_std']:.3f}.",
            "",
        ]
    if "zero_shot" in results:
        z = results["zero_shot"]
        shapes = list(z["shape_confusion"])
        lines += [
            f"**Zero-shot classification** among 48 prompts, {z['shape']['n']} held-out renders "
            f"({z['draws'][0]} draws for all prompts, {z['draws'][1]} more for the best "
            f"{z['kept_after_round_1']}; 95% Wilson intervals):",
            "",
            "| shape | colour | both |",
            "|---|---|---|",
            f"| {_share(z['shape'])} | {_share(z['colour'])} | {_share(z['both'])} |",
            "",
            "| true shape \\ answer | " + " | ".join(shapes) + " |",
            "|---" * (len(shapes) + 1) + "|",
        ]
        for shape in shapes:
            row = z["shape_confusion"][shape]
            lines.append(f"| {shape} | " + " | ".join(str(row[s]) for s in shapes) + " |")
        lines.append("")
    if "loss_by_noise" in results:
        lines += [
            "**Denoising error by noise level** (mean squared error of eps, ± standard error):",
            "",
            "| t | right caption | empty caption | wrong caption |",
            "|---|---|---|---|",
        ]
        for row in results["loss_by_noise"]:
            cells = " | ".join(
                f"{row[k]:.4f} ± {row[k + '_standard_error']:.4f}"
                for k in ("caption", "empty", "wrong")
            )
            lines.append(f"| {row['t_from']}–{row['t_to']} | {cells} |")
        lines += ["", "![denoising error by noise level](denoising_loss.png)", ""]
    if "timings" in results:
        t = results["timings"]
        unet, vae = t["unet_ms_per_row"], t["vae_encode_vjp_ms_per_image"]
        lines += [
            "**Time on one CPU thread** (fp32, best of several):",
            "",
            "| UNet forward, batch | " + " | ".join(unet) + " |",
            "|---" * (len(unet) + 1) + "|",
            "| ms per row | " + " | ".join(f"{v:.2f}" for v in unet.values()) + " |",
            "",
            "VAE encoder forward + backward: "
            + ", ".join(f"{v:.1f} ms per image at batch {k}" for k, v in vae.items())
            + ".",
            "",
        ]
    return "\n".join(lines)


def fill_card(path: Path, results: dict) -> None:
    """Replaces the measured section between the markers of the model card, if there is a card."""
    if not path.exists():
        return
    text = path.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n\n{measured_section(results)}\n{END}{tail}")
