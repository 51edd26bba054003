"""Variables that were meant for settings and are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv_server.cli import main
from carv_server.settings.table import SETTINGS
from carv_server.settings.variables import unknown_variables

OF_A_SERVICE = {
    "CARV_SERVICE_HOST": "10.0.0.1",
    "CARV_SERVICE_PORT": "50051",
    "CARV_SERVICE_PORT_GRPC": "50051",
    "CARV_PORT": "tcp://10.0.0.1:50051",
    "CARV_PORT_50051_TCP": "tcp://10.0.0.1:50051",
    "CARV_PORT_50051_TCP_PROTO": "tcp",
    "CARV_PORT_50051_TCP_ADDR": "10.0.0.1",
    "CARV_RAY_HEAD_SERVICE_HOST": "10.0.0.2",
    "CARV_RAY_HEAD_PORT": "tcp://10.0.0.2:6379",
    "CARV_RAY_HEAD_PORT_6379_TCP_PORT": "6379",
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CARV_MAX_DRAW", "CARV_MAX_DRAWS"),
        ("CARV_TLS_CLIENTCA", "CARV_TLS_CLIENT_CA"),
        ("CARV_SERVER_ADDRESS", "CARV_ADDRESS"),
        ("CARV_TEACHERS", "CARV_TEACHER"),
        ("CARV_CONFIG_FILE", "CARV_CONFIG"),
        ("CARV_PORT", None),
        ("CARV_", None),
    ],
)
def test_a_misspelt_variable_is_named_with_what_was_meant(name: str, meant: str | None) -> None:
    (said,) = unknown_variables({name: "secret", "PATH": "", "carv_max_draw": "1"})
    assert f" {name} " in said and "secret" not in said
    if meant is not None:
        assert said.endswith(f"did you mean {meant}?")


def test_what_is_read_or_set_by_others_is_passed_over() -> None:
    """Breaks with: exceptions by prefix, or none."""
    known = {setting.variable: "" for setting in SETTINGS}
    others = dict.fromkeys(["CARV_CONFIG", "CARV_TEACHER", "CARV_TOKEN"], "")
    assert unknown_variables({**known, **others, **OF_A_SERVICE}) == []


def test_check_and_serve_warn(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit codes are what they are without. Breaks with: either command not asking."""
    monkeypatch.setenv("CARV_MAX_DRAW", "7")
    file = tmp_path / "carv.toml"
    file.write_text("")
    assert main(["config", "check", str(file)]) == 0
    said = capsys.readouterr()
    assert "did you mean CARV_MAX_DRAWS?" in said.err and said.out.startswith("sound")
    (tmp_path / "empty").mkdir()
    assert main(["serve", "--teacher", f"a={tmp_path / 'empty'}"]) == 2, "it holds no model"
    assert "did you mean CARV_MAX_DRAWS?" in caplog.text
