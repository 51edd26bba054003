"""Values that nobody means: a mistake with its place, from `carv config check` and from a running
server's second look alike, and never another exception."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv_server.cli import main
from carv_server.settings.kinds import Number
from carv_server.settings.mistakes import ConfigurationError
from carv_server.settings.tenants import load_tenants

DIGITS = "ab" * 32
ENOUGH = f'token_sha256 = ["{DIGITS}"]\n'
HUGE = "1" + "0" * 400
MANY_DIGITS = "0x1" + "0" * 8000

TENANTS = {
    "an id that is a list": ("id = [1]\n", "tenants[0].id"),
    "an id that is a table": ("id = { a = 1 }\n", "tenants[0].id"),
    "an id that is a day": ("id = 1979-05-27\n", "tenants[0].id"),
    "a huge weight": (f'id = "a"\nweight = {HUGE}\n', "tenants[0].weight: a whole number of 1329"),
    "a huge negative weight": (f'id = "a"\nweight = -{HUGE}\n', "tenants[0].weight"),
    "a huge quota": (f'id = "a"\nevaluations_in_flight = {HUGE}\n', "evaluations_in_flight"),
    "more digits than Python writes": (f'id = "a"\nweight = {MANY_DIGITS}\n', "out of range"),
    "such an id": (f"id = {MANY_DIGITS}\n", "tenants[0].id"),
    "deep arrays": (f'id = "a"\nteachers = {"[" * 5000}{"]" * 5000}\n', "levels deep"),
    "deep tables": (f'id = "a"\nweight{".a" * 5000} = 1\n', "levels deep"),
    "seventeen levels": (f'id = "a"\nteachers = {"[" * 14}{"]" * 14}\n', "levels deep"),
    "sixteen levels": (f'id = "a"\nteachers = {"[" * 13}{"]" * 13}\n', "tenants[0].teachers"),
}


@pytest.mark.parametrize("case", TENANTS)
def test_odd_tenants_are_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    """Breaks with: an id looked up ahead of its check; `math.isfinite` of any whole number; a TOML
    parser whose RecursionError is let through; values that are shown by recursion."""
    table, said = TENANTS[case]
    (tmp_path / "tenants.toml").write_text(f"[[tenants]]\n{ENOUGH}{table}")
    with pytest.raises(ConfigurationError) as caught:
        load_tenants(tmp_path / "tenants.toml", None)
    assert said in str(caught.value)
    (tmp_path / "carv.toml").write_text('tenants_file = "tenants.toml"\n')
    assert main(["config", "check", str(tmp_path / "carv.toml")]) == 2
    found = capsys.readouterr().err
    assert said in found and "Traceback" not in found
    assert len(found) < 1000, "a mistake is a line, not the file"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('tenants_file = "a\\u0000b"\n', "cannot be read"),
        ('[server]\naddress = "a\\u0000b:1"\nhealth_address = 5\n', "server.health_address"),
        (f"[server]\naddress = {MANY_DIGITS}\n", "a whole number of 32001 bits is not text"),
        (f"[limits]\nmax_draws = {HUGE}\n", "limits.max_draws: a whole number of 1329 bits"),
        (f"x{'.y' * 5000} = 1\n", "levels deep"),
        ('[tls]\ncertificate = "a\\u0000b"\nprivate_key = "b"\n', "tls.certificate"),
        ('[[teachers]]\nid = "a"\nfolder = "a\\u0000b"\n', "is not a folder"),
    ],
)
def test_odd_settings_are_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (tmp_path / "carv.toml").write_text(content)
    assert main(["config", "check", str(tmp_path / "carv.toml")]) == 2
    assert said in capsys.readouterr().err


def test_a_huge_number_of_a_flag() -> None:
    with pytest.raises(ValueError, match="out of range"):
        Number(0).parse(HUGE)
