"""Weights that are not what the operator stated are never served: exit code 2, before anything is
loaded, with the file and both digests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from carv_server.cli import main
from carv_server.replicas.loading import load_in
from carv_server.settings.show import hash_table
from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.hashes import verify_weights, weight_digests
from carv_server.teachers.registration import TeacherRegistration
from tests.support.process import ServerProcess
from tests.teachers.test_digest import flip_last_byte

Spoiled = Callable[[str], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def _config(folder: Path, teacher: Path, sha256: str) -> Path:
    file = folder / "carv.toml"
    file.write_text(f'[[teachers]]\nid = "sd"\nfolder = "{teacher}"\n{sha256}\n')
    return file


@pytest.fixture(autouse=True)
def _never_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; a server that starts would not end."""

    async def served(*_: object) -> None:
        raise AssertionError("it would be SERVING")

    monkeypatch.setattr("carv_server.serve.serve_until_signalled", served)


def _refused(capsys: pytest.CaptureFixture[str], config: Path) -> str:
    """What `carv serve` says, which must end with exit code 2."""
    given = ["--address", "127.0.0.1:0", "--config", str(config), "--device", "cpu"]
    assert main(["serve", *given, "--evaluation-budget", "8"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_what_is_stated_is_served(spoiled: Spoiled, tmp_path: Path) -> None:
    """The table that `carv config hash` prints, for what is there."""
    folder = spoiled("sd-epsilon")
    config = _config(tmp_path, folder, hash_table(weight_digests(folder)))
    with ServerProcess(["--config", str(config), "--evaluation-budget", "8"]) as server:
        assert server.address


def test_a_flipped_bit_is_named_with_both_digests(
    spoiled: Spoiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file parses and would load. Breaks with: no `verify_weights` in `load_in`."""
    folder = spoiled("sd-epsilon")
    stated = weight_digests(folder)
    flip_last_byte(folder / UNET)
    said = _refused(capsys, _config(tmp_path, folder, hash_table(stated)))
    found = weight_digests(folder)[UNET]
    assert found != stated[UNET]
    assert f"{folder / UNET}: expected sha256 {stated[UNET]}, found {found}" in said
    assert TEXT not in said, "that one is as it was stated"


def test_a_corrupt_file_without_a_digest_is_named(
    spoiled: Spoiled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A header that says more than there is. Breaks with: an error of safetensors that is not
    turned to TeacherFolderError."""
    folder = spoiled("sd-epsilon")
    content = (folder / UNET).read_bytes()
    for broken in (content[: len(content) // 2], b"\xff" * 64, b""):
        (folder / UNET).write_bytes(broken)
        assert str(folder / UNET) in _refused(capsys, _config(tmp_path, folder, ""))


def test_every_file_that_differs_is_named_at_once(folders: dict[str, Path], tmp_path: Path) -> None:
    """Breaks with: a check that ends at the first, or that passes over files without a digest."""
    folder = shutil.copytree(folders["ddpm"], tmp_path / "ddpm")
    stated = weight_digests(folder)
    verify_weights(folder, stated)
    verify_weights(folder, {name: digits.upper() for name, digits in stated.items()})
    flip_last_byte(folder / UNET)
    shutil.copy(folder / UNET, folder / "unet" / "more.safetensors")
    with pytest.raises(TeacherFolderError) as caught:
        verify_weights(folder, {**stated, "unet/gone.safetensors": "0" * 64})
    for name in (UNET, "unet/more.safetensors", "unet/gone.safetensors"):
        assert str(folder / name) in str(caught.value)


def test_nothing_is_loaded_before_the_digests_agree(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a replica of its own process, which loads by the same function."""
    monkeypatch.setattr("carv_server.replicas.loading.load_teacher", None)
    registration = TeacherRegistration("a", folders["ddpm"], sha256={UNET: "0" * 64})
    with pytest.raises(TeacherFolderError, match="expected sha256 0000"):
        load_in(registration, torch.device("cpu"), "float32")
