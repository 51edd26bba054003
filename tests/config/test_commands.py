"""``carv config`` and ``carv token``, by the command's own ``main``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from carv_server.cli import main
from tests.support.oracle import write_oracle_folder


def test_check_lists_every_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "carv.toml"
    file.write_text("[limits]\nmax_draws = 0\nmax_rendrs = 1\n")
    assert main(["config", "check", str(file)]) == 2
    said = capsys.readouterr().err
    assert "2 mistakes" in said
    assert "limits.max_draws: 0 is below 1" in said
    assert "did you mean 'max_renders'" in said
    file.write_text("[limits]\nmax_draws = 1\n")
    assert main(["config", "check", str(file)]) == 0
    assert "sound: 1 teachers, no tenants" in capsys.readouterr().out
    assert main(["config", "check", str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_check_reads_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "carv.toml"
    file.write_text("[limits]\nmax_draws = 0\n")
    monkeypatch.setenv("CARV_CONFIG", str(file))
    assert main(["config", "check"]) == 2
    monkeypatch.setenv("CARV_MAX_DRAWS", "5")
    assert main(["config", "check"]) == 0
    capsys.readouterr()
    assert main(["config", "show", "--max-renders", "8", "--no-compile"]) == 0
    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["limits"]["max_draws"] == 5 and shown["limits"]["max_renders"] == 8
    assert main(["config", "show", "--max-renders", "0"]) == 2


def test_hash_prints_what_teachers_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_oracle_folder(tmp_path / "m")
    assert main(["config", "hash", str(folder)]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    digits = hashlib.sha256((folder / "mixture.json").read_bytes()).hexdigest()
    assert printed == {"sha256": {"mixture.json": digits}}
    assert main(["config", "hash", str(tmp_path / "none")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["config", "hash", str(tmp_path / "empty")]) == 2
    assert "holds no .safetensors" in capsys.readouterr().err


def test_tokens_are_fresh_and_long(capsys: pytest.CaptureFixture[str]) -> None:
    tokens: set[str] = set()
    for _ in range(2):
        assert main(["token", "new"]) == 0
        (_, token), (_, digits) = map(str.split, capsys.readouterr().out.splitlines())
        assert hashlib.sha256(token.encode()).hexdigest() == digits
        assert len(token) >= 43, "32 random bytes"
        tokens.add(token)
    assert len(tokens) == 2


def test_settings_are_checked_without_torch() -> None:
    """Mistakes are told at once: importing torch takes seconds."""
    code = (
        "import sys, carv_server.cli as cli; cli.main(['config', 'show']); "
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False"
