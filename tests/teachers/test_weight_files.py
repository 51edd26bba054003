"""What libraries could be led to load in place of safetensors that were checked: shard indices,
other formats, and files behind links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.hashes import verify_weights, weight_digests
from carv_server.teachers.weight_files import weight_files
from tests.teachers.loading import load
from tests.teachers.test_digest import flip_last_byte

Spoiled = Callable[[str], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"
INDEX = f"{UNET}.index.json"


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``torch.load`` is given."""
    given: list[Any] = []
    honest = torch.load

    def watched(file: Any, *arguments: Any, **options: Any) -> Any:
        given.append(file)
        return honest(file, *arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    return given


def _write_index(folder: Path, shard: object) -> None:
    """An index that sends all tensors of the UNet to one shard."""
    tensors = load_file(folder / UNET)
    content = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(tensors, shard)}
    (folder / INDEX).write_text(json.dumps(content))


@pytest.mark.parametrize("shard", ["w.bin", "w.weights", "w", "w.safetensors.bin", "W.SAFETENSORS"])
def test_an_index_to_pickled_weights_gets_nothing_unpickled(
    spoiled: Spoiled, unpickled: list[Any], shard: str
) -> None:
    """All files with digests are as they were stated, and diffusers takes the index first.

    Breaks with: `refuse_unsafe` left out of `load_teacher`; `weight_files` without the indices.
    """
    folder = spoiled("ddpm")
    stated = weight_digests(folder)
    torch.save(load_file(folder / UNET), folder / "unet" / shard)
    _write_index(folder, shard)
    with pytest.raises(TeacherFolderError, match=r"pickled weights are refused|shards must be"):
        load(folder)
    assert unpickled == []
    with pytest.raises(TeacherFolderError, match=r"index\.json has no sha256"):
        verify_weights(folder, stated)


@pytest.mark.parametrize(
    "shard", ["../w.safetensors", "/w.safetensors", "a/w.safetensors", "a\\w.safetensors", 3, None]
)
def test_shards_lie_beside_their_index(spoiled: Spoiled, shard: object) -> None:
    """Elsewhere they would have no digest."""
    folder = spoiled("ddpm")
    _write_index(folder, shard)
    with pytest.raises(TeacherFolderError, match="shards must be"):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none(spoiled: Spoiled, content: str) -> None:
    folder = spoiled("ddpm")
    (folder / INDEX).write_text(content)
    with pytest.raises(TeacherFolderError, match=r"index\.json"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["unet/x.bin", "text_encoder/adapter_model.bin", "vae/x.pt", "x.CKPT", "new/x.gguf", "x.pkl"],
)
def test_other_formats_are_refused_used_or_not(spoiled: Spoiled, name: str) -> None:
    folder = spoiled("sd-epsilon")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(TeacherFolderError) as caught:
        load(folder)
    assert str(folder / name) in str(caught.value)


def test_safetensors_in_shards_load_and_have_digests(spoiled: Spoiled) -> None:
    """The same noise as from one file. Breaks with: every index refused."""
    folder = spoiled("ddpm")
    whole = load(folder)
    unet: Any = UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet", max_shard_size="40KB")
    shards = [name for name in weight_files(folder) if name != INDEX]
    assert len(shards) > 1
    verify_weights(folder, weight_digests(folder))
    assert INDEX in weight_digests(folder)
    z_t, timesteps = torch.randn(2, *whole.description.event_shape), torch.tensor([3, 900])
    noise = [teacher.predict_noise(z_t, timesteps, {}) for teacher in (whole, load(folder))]
    assert torch.equal(*noise)


def test_weights_behind_links_are_checked(spoiled: Spoiled, tmp_path: Path) -> None:
    """A component that is a link to a folder elsewhere, as models that share one have it.

    Breaks with: `rglob`, which enters no linked folders before Python 3.13.
    """
    folder = spoiled("ddpm")
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / "unet", elsewhere)
    (folder / "unet").symlink_to(elsewhere, target_is_directory=True)
    stated = weight_digests(folder)
    assert list(stated) == [UNET]
    shutil.copy(elsewhere / Path(UNET).name, elsewhere / "more.safetensors")
    with pytest.raises(TeacherFolderError, match=r"unet/more\.safetensors has no sha256"):
        verify_weights(folder, stated)
    (elsewhere / "more.safetensors").unlink()
    flip_last_byte(elsewhere / Path(UNET).name)
    with pytest.raises(TeacherFolderError, match="expected sha256"):
        verify_weights(folder, stated)
    (elsewhere / "x.bin").write_bytes(b"")
    with pytest.raises(TeacherFolderError, match="pickled weights are refused"):
        load(folder)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    """One model under two names is there under both. Breaks with: no memory of the way."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "w.safetensors").write_bytes(b"")
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "none")
    assert weight_files(tmp_path) == ["a/w.safetensors", "b/w.safetensors"]


def test_a_maze_of_links_is_refused(tmp_path: Path) -> None:
    """Nine folders, each with links to all: 9! ways through them."""
    folders = [tmp_path / f"f{i}" for i in range(9)]
    for folder in folders:
        folder.mkdir()
    for folder in folders:
        for other in folders:
            (folder / other.name).symlink_to(other, target_is_directory=True)
    with pytest.raises(TeacherFolderError, match="more than 10000 folders"):
        verify_weights(tmp_path, {"x.safetensors": "0" * 64})
