"""The files of weights in a model folder, and those that would be unpickled. Free of torch.

The libraries take a shard index before a single file, load what it names, and choose the loader by
a name's ending: also where they are told to use safetensors, another ending is unpickled.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from carv_server.teachers.folder import TeacherFolderError, read_json

__all__ = ["refuse_unsafe", "weight_files"]

_SAFE = ".safetensors"
_INDEX = ".index.json"
_UNSAFE = frozenset({".bin", ".ckpt", ".gguf", ".pickle", ".pkl", ".pt", ".pth"})
# Far above what a model or its repository has; links among folders can make any number.
_MOST_FOLDERS = 10_000
_MOST_NAMED = 10


def weight_files(folder: Path) -> list[str]:
    """Every safetensors file and every index of such, as sorted paths within the folder.

    Raises:
        OSError: a folder cannot be read, or links among folders make too many of them.
    """
    endings = (_SAFE, _SAFE + _INDEX)
    found = [path for path in _files(folder) if path.name.endswith(endings)]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def refuse_unsafe(folder: Path) -> None:
    """Refuse a folder with weights that are not safetensors, used or not, or with an index of
    shards that names anything but safetensors files beside it.

    Raises:
        TeacherFolderError: names the files at fault.
    """
    try:
        files = sorted(_files(folder))
    except OSError as error:
        raise TeacherFolderError(f"{error.filename or folder}: {error.strerror}") from None
    unsafe = [str(file) for file in files if file.suffix.lower() in _UNSAFE]
    if unsafe:
        more = len(unsafe) - _MOST_NAMED
        listed = ", ".join(unsafe[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        raise TeacherFolderError(
            f"{listed}: pickled weights are refused, beside safetensors too; remove them, or "
            "convert them with diffusers' save_pretrained(safe_serialization=True)"
        )
    for file in files:
        if file.name.endswith(_INDEX):
            _check_index(file)


def _check_index(file: Path) -> None:
    shards: object = read_json(file).get("weight_map", {})
    if not isinstance(shards, dict):
        raise TeacherFolderError(f"{file}: weight_map must be an object")
    for shard in cast("dict[str, object]", shards).values():
        if not isinstance(shard, str) or not shard.endswith(_SAFE) or not _is_plain(shard):
            raise TeacherFolderError(
                f"{file} names {str(shard)[:80]!r}; shards must be {_SAFE} files beside it"
            )


def _is_plain(name: str) -> bool:
    return Path(name).name == name and "\\" not in name


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder. Links are followed as loaders follow them, but not back into a folder
    that they are in."""
    waiting = [(folder, frozenset({_identity(folder)}))]
    entered = 0
    while waiting:
        where, above = waiting.pop()
        entered += 1
        if entered > _MOST_FOLDERS:
            raise OSError(errno.ELOOP, f"has more than {_MOST_FOLDERS} folders", str(folder))
        for path in where.iterdir():
            if path.is_dir():
                own = _identity(path)
                if own not in above:
                    waiting.append((path, above | {own}))
            elif path.is_file():
                yield path


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
