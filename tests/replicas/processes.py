"""Processes of this machine, from /proc."""

from __future__ import annotations

from pathlib import Path

__all__ = ["alive", "descendants"]


def alive(pid: int) -> bool:
    """Whether a process exists and is more than its parent's memory of it."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(root: int) -> set[int]:
    """Children, their children and so on."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(_stat(int(entry.name))[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
    found: set[int] = set()
    level = {root}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        found |= level
    return found


def _stat(pid: int) -> list[str]:
    """Fields of stat behind the name, which may hold anything: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
