"""The digest names everything that changes an answer, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.teachers.folders import CLASSES
from tests.teachers.loading import edit_json, load

Spoiled = Callable[[str], Path]


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def test_stable(folders: dict[str, Path], spoiled: Spoiled) -> None:
    digest = load(folders["sd-epsilon"]).description.digest
    assert len(digest) == 64 and int(digest, 16) >= 0
    copy = spoiled("sd-epsilon")
    (copy / "README.md").write_text("elsewhere, at another time, with a card")
    assert load(copy).description.digest == digest


@pytest.mark.parametrize(
    "file",
    ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
)
def test_one_weight_bit(folders: dict[str, Path], spoiled: Spoiled, file: str) -> None:
    copy = spoiled("sd-epsilon")
    flip_last_byte(copy / file)
    assert load(copy).description.digest != load(folders["sd-epsilon"]).description.digest


def test_configs(folders: dict[str, Path], spoiled: Spoiled) -> None:
    digests = {load(folders["sd-epsilon"]).description.digest}
    copy = spoiled("sd-epsilon")
    edit_json(copy / "scheduler" / "scheduler_config.json", beta_end=0.0121)
    digests.add(load(copy).description.digest)
    edit_json(copy / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    digests.add(load(copy).description.digest)
    edit_json(copy / "tokenizer" / "tokenizer_config.json", model_max_length=10)
    digests.add(load(copy).description.digest)
    edit_json(copy / "unet" / "config.json", norm_eps=1e-4)
    digests.add(load(copy).description.digest)
    assert len(digests) == 5


def test_dtype(folders: dict[str, Path]) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    assert len({load(folders["ddpm"], dtype=d).description.digest for d in dtypes}) == 3


def test_null_class(folders: dict[str, Path], spoiled: Spoiled) -> None:
    folder = folders["ddpm-null"]
    by_option = load(folder, null_class=CLASSES).description.digest
    digests = {load(folder).description.digest, load(folder, null_class=0).description.digest}
    assert len(digests | {by_option}) == 3
    copy = spoiled("ddpm-null")
    (copy / "carv_teacher.json").write_text(f'{{"null_class": {CLASSES}}}')
    assert load(copy).description.digest == by_option  # the same teacher, stated elsewhere


def test_bytes_that_move_between_files(spoiled: Spoiled) -> None:
    """The end of one file is not the start of the next."""
    copy = spoiled("ddpm")
    (copy / "unet" / "a.txt").write_bytes(b"one")
    (copy / "unet" / "b.txt").write_bytes(b"two")
    before = load(copy).description.digest
    (copy / "unet" / "a.txt").write_bytes(b"oneunet/b.txt\0two")
    (copy / "unet" / "b.txt").unlink()
    assert load(copy).description.digest != before
