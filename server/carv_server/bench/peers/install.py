"""The peers' virtual environments: made with pip once, and kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from carv_server.bench.peers.registry import Peer

__all__ = ["InstallFailed", "install", "python_of"]

_STAMP = "carv-requirements.txt"
_SECONDS = 900.0
_TAIL_LINES = 3


class InstallFailed(RuntimeError):
    """pip or venv failed; the message holds the last words, the log the rest."""


def python_of(peer: Peer, folder: Path) -> Path:
    """The interpreter of a peer's environment below ``folder``; this one where it has none."""
    if not peer.environment:
        return Path(sys.executable)
    return folder / peer.environment / "bin" / "python"


def install(peer: Peer, folder: Path, say: Callable[[str], None]) -> None:
    """Make the peer's environment below ``folder``, if it has one of its own, unless it is there
    with these requirements.

    Raises:
        InstallFailed: it cannot be had here.
    """
    if not peer.environment:
        return
    environment = folder / peer.environment
    stamp = environment / _STAMP
    wanted = "\n".join([sys.version, *peer.requirements])
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    say(f"installing {peer.title}")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{peer.environment}.log"
    python = str(python_of(peer, folder))
    with log.open("w", encoding="utf-8") as sink:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [python, "-m", "pip", "install", "--disable-pip-version-check", *peer.requirements],
        ):
            try:
                done = subprocess.run(
                    command, stdout=sink, stderr=subprocess.STDOUT, timeout=_SECONDS, check=False
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise InstallFailed(f"{type(error).__name__}: {error}") from None
            if done.returncode:
                raise InstallFailed(_tail(log))
    stamp.write_text(wanted, encoding="utf-8")


def _tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return " / ".join((errors or lines)[-_TAIL_LINES:]) or f"see {log}"
