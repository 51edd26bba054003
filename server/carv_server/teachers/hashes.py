"""Digests of a teacher's weights, against those that the operator states. Free of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from carv_server.teachers.folder import TeacherFolderError
from carv_server.teachers.weight_files import weight_files

__all__ = ["verify_weights", "weight_digests"]

# Files that stand for weights beside safetensors: teachers that one JSON file describes.
_DESCRIPTIONS = ("mixture.json", "simulated.json")


def weight_digests(folder: Path) -> dict[str, str]:
    """SHA-256 in hexadecimal digits of every file of weights in a folder, by path within it; of
    the indices that say which shards are loaded, too. Symbolic links are followed.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    if not folder.is_dir():
        raise NotADirectoryError(20, "is not a folder", str(folder))
    return {name: _sha256(folder / name) for name in _weight_files(folder)}


def verify_weights(folder: Path, expected: Mapping[str, str]) -> None:
    """Compare files with their digests, and look for weights that have none.

    The folder must not change between this and the loading: mount it read-only.

    Raises:
        TeacherFolderError: every file that is not as stated, with both digests.
    """
    wrong: list[str] = []
    for name, digits in expected.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            wrong.append(f"{folder / name} cannot be read: {error.strerror}")
            continue
        if found != digits.lower():
            wrong.append(f"{folder / name}: expected sha256 {digits.lower()}, found {found}")
    try:
        present = _weight_files(folder)
    except OSError as error:
        present = []
        wrong.append(f"{error.filename or folder} cannot be read: {error.strerror}")
    wrong += [
        f"{folder / name} has no sha256, and others have: see `carv config hash`"
        for name in present
        if name not in expected
    ]
    if wrong:
        raise TeacherFolderError("; ".join(wrong))


def _weight_files(folder: Path) -> list[str]:
    return sorted([*weight_files(folder), *(n for n in _DESCRIPTIONS if (folder / n).is_file())])


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
