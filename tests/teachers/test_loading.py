"""What is refused at loading, and what real checkpoints look like and must load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.protocol import Prompts, Teacher
from tests.teachers.folders import (
    CLASSES,
    MAX_TOKENS,
    SCALING_FACTOR,
    SHIFT_FACTOR,
    TEXT_WIDTH,
    text_unet,
)
from tests.teachers.loading import edit_json, load

Spoiled = Callable[[str], Path]
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TEXT_WEIGHTS = "text_encoder/model.safetensors"


def test_description(folders: dict[str, Path], sd_epsilon: Teacher) -> None:
    description = sd_epsilon.description
    assert description.family == "stable-diffusion" and description.event_shape == (4, 8, 8)
    assert (description.scaling_factor, description.shift_factor) == (SCALING_FACTOR, SHIFT_FACTOR)
    spec = description.conditioning
    assert spec.accepts_prompts and spec.has_unconditional and spec.classes == 0
    assert [tensor.shape for tensor in spec.tensors] == [(MAX_TOKENS, TEXT_WIDTH)]
    variance = load(folders["ddpm-variance"]).description
    assert variance.family == "ddpm" and variance.event_shape == (3, 8, 4)
    assert variance.conditioning.has_unconditional and not variance.conditioning.tensors


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ddpm", UNET_WEIGHTS), ("sd-epsilon", UNET_WEIGHTS), ("sd-epsilon", TEXT_WEIGHTS)],
)
def test_pickled_weights_are_refused(spoiled: Spoiled, name: str, weights: str) -> None:
    folder = spoiled(name)
    safe = folder / weights
    torch.save(load_file(safe), safe.with_suffix(".bin"))
    safe.unlink()
    with pytest.raises(TeacherFolderError, match="pickled weights are refused"):
        load(folder)
    safe.with_suffix(".bin").unlink()
    with pytest.raises(TeacherFolderError, match=r"no \.safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ddpm", UNET_WEIGHTS), ("sd-epsilon", UNET_WEIGHTS), ("sd-epsilon", TEXT_WEIGHTS)],
)
def test_a_missing_tensor_is_refused_not_made_up(spoiled: Spoiled, name: str, weights: str) -> None:
    folder = spoiled(name)
    tensors = load_file(folder / weights)
    dropped = next(key for key in sorted(tensors) if "norm" in key)
    del tensors[dropped]
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    with pytest.raises(TeacherFolderError, match=f"lacks 1 of the model's tensors, {dropped}"):
        load(folder)


def test_truncated_weights(spoiled: Spoiled) -> None:
    folder = spoiled("ddpm")
    file = folder / UNET_WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TeacherFolderError, match="does not load"):
        load(folder)


def test_model_index(tmp_path: Path) -> None:
    with pytest.raises(TeacherFolderError, match="is not a folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(TeacherFolderError, match="no model_index"):
        load(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text("{")
    with pytest.raises(TeacherFolderError, match="is not JSON"):
        load(tmp_path)
    index.write_text("[]")
    with pytest.raises(TeacherFolderError, match="must hold an object"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"unet": ["diffusers", "FluxTransformer2DModel"]}, "unet is FluxTransformer2DModel"),
        ({"unet": [None, None]}, "unet is missing"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "needs CLIPTextModel"),
        ({"tokenizer": None}, "'tokenizer' is missing"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "does not load"),
    ],
)
def test_unknown_parts(spoiled: Spoiled, index: dict[str, Any], message: str) -> None:
    folder = spoiled("sd-epsilon")
    edit_json(folder / "model_index.json", **index)
    with pytest.raises(TeacherFolderError, match=message):
        load(folder)


@pytest.mark.parametrize("component", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_missing_folders(spoiled: Spoiled, component: str) -> None:
    folder = spoiled("sd-epsilon")
    shutil.rmtree(folder / component)
    with pytest.raises(TeacherFolderError, match=component):
        load(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "addition_embed_type='text_time'",
        ),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
        ({"in_channels": 9}, "predicts 4 channels of its 9"),
        ({"cross_attention_dim": 16}, "text of width 16, but the text encoder writes 24"),
        ({"sample_size": None}, "states no sample_size"),
    ],
)
def test_unets_of_other_families(spoiled: Spoiled, config: dict[str, Any], message: str) -> None:
    """SDXL, class-conditional, inpainting, another text encoder's, and one of any size."""
    folder = spoiled("sd-epsilon")
    shutil.rmtree(folder / "unet")
    text_unet(**config).save_pretrained(folder / "unet")
    with pytest.raises(TeacherFolderError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("name", "null_class", "message"),
    [
        ("ddpm-null", CLASSES + 1, "null_class=6, but the model has 6 class embeddings"),
        ("ddpm", 0, "null_class=0, but the model has 0 class embeddings"),
        ("sd-epsilon", 0, "null_class=0 is for a class-conditional UNet2DModel"),
    ],
)
def test_null_class_out_of_place(
    folders: dict[str, Path], name: str, null_class: int, message: str
) -> None:
    with pytest.raises(TeacherFolderError, match=message):
        load(folders[name], null_class=null_class)


def test_null_class_of_the_folder(spoiled: Spoiled) -> None:
    """``carv_teacher.json`` may state it; the command line wins."""
    folder = spoiled("ddpm-null")
    assert not load(folder).description.conditioning.has_unconditional
    assert load(folder).description.conditioning.classes == CLASSES + 1
    (folder / "carv_teacher.json").write_text(json.dumps({"null_class": CLASSES}))
    stated = load(folder).description.conditioning
    assert stated.has_unconditional and stated.classes == CLASSES
    # A null class among the others takes nothing from the count.
    assert load(folder, null_class=0).description.conditioning.classes == CLASSES + 1
    for wrong in ("5", True, 5.0):
        (folder / "carv_teacher.json").write_text(json.dumps({"null_class": wrong}))
        with pytest.raises(TeacherFolderError, match="must be a whole number"):
            load(folder)


def test_weights_of_transformers_4(spoiled: Spoiled, sd_epsilon: Teacher) -> None:
    """Stable Diffusion's own text encoders: prefixed names, and position ids among the weights."""
    folder = spoiled("sd-epsilon")
    tensors = {
        f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in load_file(folder / TEXT_WEIGHTS).items()
    }
    tensors["text_model.embeddings.position_ids"] = torch.arange(MAX_TOKENS)[None]
    save_file(tensors, folder / TEXT_WEIGHTS, metadata={"format": "pt"})
    source = Prompts(("a red cube",))
    (old,), (new,) = load(folder).encode(source), sd_epsilon.encode(source)
    assert torch.equal(old["encoder_hidden_states"], new["encoder_hidden_states"])


def test_tokenizer_without_a_length_takes_the_encoders(spoiled: Spoiled) -> None:
    folder = spoiled("sd-epsilon")
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    teacher = load(folder)
    assert teacher.description.conditioning.tensors[0].shape == (MAX_TOKENS, TEXT_WIDTH)
    teacher.encode(Prompts(("cube",)))
