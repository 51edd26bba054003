"""Prompt embeddings equal those of diffusers' pipeline on the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from carv_server.teachers.protocol import (
    Classes,
    Prompts,
    RawTensors,
    SourceError,
    Teacher,
    Unconditional,
)
from tests.teachers.folders import MAX_TOKENS
from tests.teachers.loading import edit_json, load

EMBEDDING = "encoder_hidden_states"
PROMPTS = ("a red cube", "torus, side view", "", "A  RED cube", "unbekannt: 7!")


def embed(teacher: Teacher, *prompts: str) -> torch.Tensor:
    return torch.stack([row[EMBEDDING] for row in teacher.encode(Prompts(prompts))])


@pytest.mark.parametrize("attention_mask", [False, True])
def test_equal_to_the_pipeline(spoiled: Callable[[str], Path], attention_mask: bool) -> None:
    folder = spoiled("sd-epsilon")
    edit_json(folder / "text_encoder" / "config.json", use_attention_mask=attention_mask)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder)
    expected, negative = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, True)
    teacher = load(folder)
    torch.testing.assert_close(embed(teacher, *PROMPTS), expected, rtol=1e-5, atol=1e-6)
    (unconditional,) = teacher.encode(Unconditional())
    torch.testing.assert_close(unconditional[EMBEDDING], negative[0], rtol=1e-5, atol=1e-6)


def test_empty_prompt_is_unconditional(sd_epsilon: Teacher) -> None:
    (unconditional,) = sd_epsilon.encode(Unconditional())
    assert torch.equal(embed(sd_epsilon, "")[0], unconditional[EMBEDDING])


def test_a_batch_is_its_prompts_one_by_one(sd_epsilon: Teacher) -> None:
    """More than one batch of the text encoder; rows own their memory."""
    prompts = [f"cube {letter}{other}" for letter in "abcdefghi" for other in "abcdefgh"]
    rows = embed(sd_epsilon, *prompts)
    assert rows.shape[0] == 72 and rows.dtype is torch.float32
    for i in (0, 1, 63, 64, 71):
        alone = embed(sd_epsilon, prompts[i])[0]
        torch.testing.assert_close(rows[i], alone, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(rows[0], rows[1], atol=0.1)
    (row,) = sd_epsilon.encode(Prompts(("cube",)))
    assert row[EMBEDDING].untyped_storage().nbytes() == row[EMBEDDING].numel() * 4


def test_too_long_is_refused_not_cut(sd_epsilon: Teacher) -> None:
    """Start and end count: the longest prompt has two tokens less than the encoder reads."""
    fits = " ".join("x" * (MAX_TOKENS - 2))
    embed(sd_epsilon, fits)
    with pytest.raises(SourceError, match=r"25 tokens with start and end; .* at most 24") as caught:
        embed(sd_epsilon, "cube", fits + " x")
    assert caught.value.field == "prompts.prompts[1]"


def test_other_sources(sd_epsilon: Teacher) -> None:
    raw = {EMBEDDING: torch.ones(MAX_TOKENS, 24)}
    assert torch.equal(sd_epsilon.encode(RawTensors(raw))[0][EMBEDDING], raw[EMBEDDING])
    with pytest.raises(SourceError, match="takes prompts, not class ids"):
        sd_epsilon.encode(Classes((0,)))


def test_vocabulary(spoiled: Callable[[str], Path]) -> None:
    folder = spoiled("sd-epsilon")
    words = ["a", "red", "Cube", "view", "side", ","]
    (folder / "carv_teacher.json").write_text(
        json.dumps({"vocabulary": words, "description": "closed"})
    )
    teacher = load(folder)
    assert teacher.description.conditioning.vocabulary == tuple(words)
    assert teacher.description.description == "closed"
    assert embed(teacher, "", "a red cube, side view", "Red CUBE.").shape[0] == 3
    with pytest.raises(SourceError) as caught:
        embed(teacher, "a cube", "a blue zebra, red")
    assert caught.value.field == "prompts.prompts[1]"
    assert "does not know 'blue', 'zebra'" in str(caught.value)
    assert str(caught.value).endswith("it knows: a, cube, red, side, view")
