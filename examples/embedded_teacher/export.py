"""Writes the diffusers folder of the teacher: tokenizer, weights, pipeline index, CARV metadata."""

from __future__ import annotations

import json
import os
import tempfile
from copy import deepcopy
from pathlib import Path

import dataset as ds
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 16
TEXT_WIDTH = 128
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes of GPT-2 and CLIP, so that any text tokenizes."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(spare))]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that assemble each word from left to right."""
    merges: dict[tuple[str, str], None] = {}  # an ordered set
    for word in words:
        head, *tail = [*word[:-1], word[-1] + "</w>"]
        for piece in tail:
            merges[head, piece] = None
            head += piece
    return list(merges)


def build_tokenizer() -> CLIPTokenizer:
    """CLIP byte-pair tokenizer whose merges make every vocabulary word a single token."""
    alphabet = _byte_alphabet()
    words = sorted(ds.VOCABULARY)
    for _ in range(len(words) ** 2):
        merges = _merges(words)
        tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges), BOS, EOS]
        vocab = {token: index for index, token in enumerate(tokens)}
        tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
        split = [word for word in words if len(tokenizer(word).input_ids) != 3]
        if not split:
            return tokenizer
        # An earlier word's merge cut this one up ("or" of orange in torus): let it go first.
        words.remove(split[0])
        words.insert(0, split[0])
    raise RuntimeError("no order of the vocabulary gives one token per word")


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_vae() -> AutoencoderKL:
    """64x64x3 -> 8x8x4; thin at full resolution since that is where the time goes on a CPU."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def build_unet() -> UNet2DConditionModel:
    """Two levels, 8x8 and 4x4; attention to the caption at 4x4 only, where it is cheap."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        steps_offset=1,  # what StableDiffusionPipeline expects
    )


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids (n, 16), padded as Stable Diffusion pads."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def metadata() -> dict:
    """carv_teacher.json: what a client has to know to render for this teacher."""
    return {
        "family": "diffusers",
        "description": "Embedded text-to-image latent diffusion teacher of shaded 3D primitives",
        "image_size": 64,
        "vocabulary": list(ds.VOCABULARY),
        "shapes": list(ds.SHAPES),
        "colours": list(ds.COLOURS),
        "views": list(ds.VIEWS),
        "prompt_templates": ["a {colour} {shape}", "a {colour} {shape}, {view} view"],
        "camera": {
            "fov_deg": ds.FOV_DEG,
            "radius": ds.RADIUS,
            "radius_jitter": 0.04,
            "elevation_deg": list(ds.ELEVATION_DEG),
            "azimuth_deg": [0.0, 360.0],
            "up_axis": "+y",
            "handedness": "right",
            "camera_axes": "OpenGL: x right, y up, looking along -z",
            "azimuth_zero": "camera on the +z axis; azimuth grows towards +x",
            "position": "radius * (cos(el) sin(az), sin(el), cos(el) cos(az)), looks at the origin",
            "background": list(ds.BACKGROUND),
            "object_extent": ds.OBJECT_EXTENT,
        },
        "light": {
            "direction_towards": list(ds.KEY_LIGHT),
            "ambient": ds.AMBIENT,
            "diffuse": ds.DIFFUSE,
            "frame": "world",
        },
        "view_thresholds": {
            "order": ["overhead", "front", "back", "side"],
            "overhead_elevation_above_deg": ds.OVERHEAD_DEG,
            "front_azimuth_within_deg": ds.FRONT_BACK_HALF_WIDTH_DEG,
            "back_azimuth_within_deg_of_180": ds.FRONT_BACK_HALF_WIDTH_DEG,
        },
    }


def export_folder(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    """Writes fp16 safetensors and configs next to ``folder``, then renames file by file.

    A reader of the folder sees each file either old or new, never half written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as name:
        temp = Path(name)
        for part, model in (("vae", vae), ("unet", unet), ("text_encoder", text_encoder)):
            _half_copy(model).save_pretrained(temp / part, safe_serialization=True)
        tokenizer.save_pretrained(temp / "tokenizer")
        _save_classic_vocabulary(tokenizer, temp / "tokenizer")
        build_scheduler().save_pretrained(temp / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDPMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (temp / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        (temp / "carv_teacher.json").write_text(json.dumps(metadata(), indent=2) + "\n")
        for source in sorted(p for p in temp.rglob("*") if p.is_file()):
            target = folder / source.relative_to(temp)
            target.parent.mkdir(exist_ok=True)
            os.chmod(source, 0o644)
            os.replace(source, target)


def _save_classic_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """vocab.json and merges.txt, which transformers 4 and other CLIP tokenizers read."""
    bpe = json.loads((folder / "tokenizer.json").read_text())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in bpe["merges"]]
    (folder / "vocab.json").write_text(json.dumps(bpe["vocab"], ensure_ascii=False) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def _half_copy(model: nn.Module) -> nn.Module:
    """A contiguous fp16 copy; the original keeps its precision and layout."""
    copy = deepcopy(model)
    for parameter in copy.parameters():
        parameter.data = parameter.data.to(torch.float16).contiguous()
    return copy
