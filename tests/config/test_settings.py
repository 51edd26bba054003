"""Flags, environment and file to one configuration, and every mistake at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from carv_server.settings.document import with_tables
from carv_server.settings.kinds import Number
from carv_server.settings.mistakes import ConfigurationError
from carv_server.settings.read import Given, read_settings
from carv_server.settings.result import Settings
from carv_server.settings.show import show
from carv_server.settings.table import PUBLIC_WORDS, SECTIONS, SETTINGS
from tests.support.certificates import Authority
from tests.support.oracle import write_oracle_folder

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "ab" * 32


def _read(
    content: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
    teachers: Sequence[str] = (),
) -> Settings:
    file = folder / "carv.toml"
    file.write_text(content)
    return read_settings(Given(file, flags or {}, teachers), environment or {})


def _mistakes(content: str, folder: Path, **given: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _read(content, folder, **given)
    return [str(mistake).replace(f"{folder}/", "") for mistake in caught.value.mistakes]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.path)
def test_every_setting_is_well_described(setting) -> None:
    assert setting.section in SECTIONS
    assert not setting.text.endswith(".")
    others = [other for other in SETTINGS if other is not setting]
    assert setting.flag not in [other.flag for other in others]
    if setting.default is not None:
        assert setting.kind.check(setting.default) == setting.default
        word = setting.default_word
        assert setting.kind.parse(word) == setting.default


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    """Breaks with: any two of the sources exchanged in `read_settings`."""
    content = "[limits]\nmax_draws = 1\nmax_renders = 1\nmax_evaluations = 1\n"
    variables = {"CARV_MAX_DRAWS": "2", "CARV_MAX_RENDERS": "2"}
    settings = _read(content, tmp_path, variables, {"--max-draws": "3"})
    assert [
        settings.integer(f"limits.max_{name}")
        for name in ("draws", "renders", "evaluations", "stream_requests")
    ] == [3, 2, 1, 64]
    origins = [settings.origins[f"limits.max_{n}"] for n in ("draws", "renders", "evaluations")]
    assert origins == [
        "flag --max-draws",
        "variable CARV_MAX_RENDERS",
        f"file {tmp_path / 'carv.toml'}",
    ]


def test_every_setting_is_read_from_all_three(tmp_path: Path) -> None:
    """By the table alone: a setting that one source cannot say fails."""
    for setting in SETTINGS:
        if setting.default is None or setting.key == "public_without_credentials":
            continue
        word = setting.default_word
        toml = word if not isinstance(setting.default, str) else f'"{word}"'
        head = f"[{setting.section}]\n" if setting.section else ""
        read = [
            _read(f"{head}{setting.key} = {toml}\n", tmp_path),
            _read("", tmp_path, {setting.variable: word}),
            _read("", tmp_path, {}, {setting.flag: word}),
        ]
        assert [each.values[setting.path] for each in read] == [setting.default] * 3
        assert all(each.origins[setting.path] != "default" for each in read)


def test_all_mistakes_of_all_sources_come_together(tmp_path: Path) -> None:
    """Breaks with: any reader that raises at the first."""
    content = f"""
tenants_files = "x"
[server]
drain_second = 3
max_message_mib = "64"
compile = 1
device = 5
[limits]
max_draws = true
[sheduler]
hold_percent = 1
[tls]
certificate = "none.pem"
require_client_certificate = true
[log]
level = "loud"
[[teachers]]
id = "A"
folder = "."
sha256 = {{ "../x" = "{DIGITS}" }}
[[teachers]]
id = "b"
folder = "nowhere"
dtyp = "float16"
limits = {{ max_draws = 0, max_stream_requests = 1 }}
[[teachers]]
id = "c"
folder = "."
tenants = ["nobody"]
[[teachers]]
id = "c"
folder = "nowhere"
sha256 = {{ "a.safetensors" = "12" }}
[[tenants]]
id = "t"
weight = 0
[[tenants]]
id = "t"
token_sha256 = ["{DIGITS}"]
teachers = ["d"]
[[tenants]]
id = "u"
token_sha256 = ["{DIGITS}", "{DIGITS[1:]}"]
[[tenants]]
id = "v"
token_sha256 = ["{DIGITS.upper()}"]
spiffe_ids = ["http://x"]
[[tenants]]
id = "w"
"""
    environment = {"CARV_MAX_RENDERS": "none", "CARV_HISTORY_DRAWS": "0"}
    found = _mistakes(content, tmp_path, environment=environment, flags={"--hold-percent": "101"})
    expected = [
        "carv.toml: tenants_files: unknown key; did you mean 'tenants_file'?",
        "carv.toml: server.drain_second: unknown key; did you mean 'drain_seconds'?",
        'carv.toml: server.max_message_mib: "64" is not a whole number',
        "carv.toml: server.compile: 1 is neither true nor false",
        "carv.toml: server.device: 5 is not text: put it in quotes",
        "carv.toml: limits.max_draws: true is not a whole number",
        "carv.toml: sheduler: unknown key; did you mean 'scheduler'?",
        "carv.toml: log.level: 'loud' is none of debug, info, warning, error",
        "CARV_MAX_RENDERS for --max-renders: 'none' is not a whole number",
        "CARV_HISTORY_DRAWS for --history-draws: 0 is below 1",
        "--hold-percent: 101 is above 100",
        "teachers[0].id: 'A': an id is 1 to 63",
        "teachers[0].sha256: '../x' is not a path within the folder",
        "teachers[1].limits.max_draws: 0 is below 1",
        "teachers[1].limits.max_stream_requests: unknown key",
        "teachers[1].dtyp: unknown key; did you mean 'dtype'?",
        "teachers[3].sha256: 'a.safetensors': 2 characters; a SHA-256 is 64",
        "carv.toml: tenants[0].weight: 0 is not above 0",
        "carv.toml: tenants[1].teachers: no teacher 'd' is served; there are c",
        "carv.toml: tenants[2].token_sha256: item 1: 63 characters",
        "carv.toml: tenants[3].spiffe_ids: item 0: 'http://x' is not of the form spiffe://",
        "carv.toml: tenants[4]: has no credential",
        "teacher 'c'.tenants: there is no tenant 'nobody'",
        "tls.private_key: must be set: certificate and private_key go together",
        "tls.client_ca: needs certificate and private_key too",
        "tls.require_client_certificate: needs client_ca",
        "tls.certificate: none.pem is not there",
    ]
    for line in expected:
        assert any(each.startswith(line) for each in found), (line, found)
    assert len(found) == len(expected), found


TENANT = f'[[tenants]]\nid = "t"\ntoken_sha256 = ["{DIGITS}"]\n'


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ('[server]\naddress = "0.0.0.0:1"', "callers need no credentials"),
        ('[server]\naddress = "[::]:1"', "callers need no credentials"),
        ('[server]\naddress = "0:1"', "callers need no credentials"),
        ('[server]\naddress = "*:1"', "callers need no credentials"),
        (f'[server]\naddress = "0.0.0.0:1"\n{TENANT}', "tokens would travel there in the clear"),
        ('[server]\npublic_without_credentials = "yes"', f'must say "{PUBLIC_WORDS}"'),
        ('[server]\naddress = "127.0.0.1:1"\nhealth_address = "127.0.0.1:1"', "is that of"),
        ("[ray]\nmin_replicas = 3\nmax_replicas = 2", "must be min_replicas or more"),
        (f"{TENANT}{TENANT}", "tenant id 't' is there twice"),
        ('[[tenants]]\nid = "other"\n', "tenants[0].id: 'other' stands for callers without"),
        (TENANT + TENANT.replace('"t"', '"u"'), "one of them is that of tenant 't' too"),
        (f'tenants_file = "x"\n{TENANT}', "set either these or tenants_file"),
        ('tenants_file = "x"', "x: cannot be read"),
        ('[[tenants]]\nid = "t"\nspiffe_ids = ["spiffe://a/b"]', "spiffe_ids need [tls]"),
        ("server = 1", "is a table: write [server]"),
        ("[teachers]", "write [[teachers]] above each"),
        ("[[tenants]", "is not TOML"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, content: str, mistake: str) -> None:
    assert any(mistake in each for each in _mistakes(content, tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        '[server]\naddress = "localhost:1"',
        '[server]\naddress = "[::1]:1"',
        '[server]\naddress = "127.3.2.1:1"',
        '[server]\naddress = "unix:/tmp/x"',
        f'[server]\naddress = "0.0.0.0:1"\npublic_without_credentials = "{PUBLIC_WORDS}"',
        "[[tenants]]\n" + TENANT.removeprefix("[[tenants]]\n") + "weight = 2",
        "tenants = []",
    ],
)
def test_what_is_sound_is_taken(tmp_path: Path, content: str) -> None:
    _read(content, tmp_path)


def test_tenants_and_tls_open_a_public_address(tmp_path: Path) -> None:
    authority = Authority("ca")
    certificate, key = authority.server().write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    tls = f'[tls]\ncertificate = "{certificate.name}"\nprivate_key = "{key.name}"\n'
    public = '[server]\naddress = "0.0.0.0:1"\n'
    settings = _read(public + tls + TENANT, tmp_path)
    assert settings.text("tls.certificate") == str(certificate), "relative to the file"
    assert not settings.requires_client_certificate
    settings = _read(public + tls + 'client_ca = "ca.pem"\n', tmp_path)
    assert settings.requires_client_certificate and settings.tenants is None
    assert _mistakes(public + tls, tmp_path)
    _, other = authority.server().write(tmp_path, "other")
    key.write_bytes(other.read_bytes())
    (said,) = _mistakes(public + tls + TENANT, tmp_path)
    assert "do not go together" in said


def test_teachers_of_flags_replace_those_of_the_file(tmp_path: Path) -> None:
    write_oracle_folder(tmp_path / "m")
    digest = f'sha256 = {{ "mixture.json" = "{DIGITS}" }}'
    content = f'[[teachers]]\nid = "a"\nfolder = "m"\ndtype = "float32"\n{digest}\n'
    (teacher,) = _read(content, tmp_path).teachers
    assert (teacher.id, teacher.folder, teacher.dtype) == ("a", tmp_path / "m", "float32")
    assert teacher.sha256 == {"mixture.json": DIGITS}
    one, two = f"b={tmp_path}", f"c={tmp_path}"
    assert [t.id for t in _read(content, tmp_path, {"CARV_TEACHER": f"{one};{two}"}).teachers] == [
        "b",
        "c",
    ]
    assert [t.id for t in _read(content, tmp_path, {"CARV_TEACHER": one}, {}, [two]).teachers] == [
        "c"
    ]
    assert [t.id for t in _read("", tmp_path).teachers] == ["shapes"]


def test_a_password_in_an_endpoint_is_refused_and_not_repeated(tmp_path: Path) -> None:
    """Breaks with: the whole endpoint in the message."""
    content = '[tracing]\nendpoint = "http://name:secret@collector:4317"\n'
    with pytest.raises(ConfigurationError, match=re.escape("tracing.endpoint")) as found:
        _read(content, tmp_path)
    assert "secret" not in str(found.value)


def test_what_is_shown_is_toml_without_secrets_and_reads_as_it_was(tmp_path: Path) -> None:
    """Breaks with: a digest of a token in `show`."""
    content = f"""
[limits]
max_draws = 7
[tracing]
endpoint = "http://collector:4317"
[ray]
gpus_per_replica = 0.5
{TENANT}weight = 2.5
teachers = ["shapes"]
"""
    settings = _read(content, tmp_path, {"CARV_MAX_RENDERS": "9"})
    shown = show(settings)
    assert DIGITS not in shown
    assert f"max_draws = 7  # file {tmp_path / 'carv.toml'}" in shown
    assert "max_renders = 9  # variable CARV_MAX_RENDERS" in shown
    assert "max_evaluations = 16384  # default" in shown
    parsed = tomllib.loads(shown)
    assert parsed["tenants"][0]["weight"] == 2.5
    del parsed["tenants"]
    parsed_again = tmp_path / "again.toml"
    parsed_again.write_text(shown.partition("[[tenants]]")[0])
    again = read_settings(Given(parsed_again), {})
    changed = {"tracing.endpoint"}
    assert {k: v for k, v in again.values.items() if k not in changed} == {
        k: v for k, v in settings.values.items() if k not in changed
    }
    assert again.teachers == settings.teachers


def test_the_page_has_the_tables_of_today() -> None:
    """Made by `python -m carv_server.settings.document docs/configuration.md`."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert with_tables(page) == page
    assert all(f"`{setting.variable}`" in page for setting in SETTINGS)
    assert PUBLIC_WORDS in page


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Number(0, whole=False, whole_above=1, auto=True), ["auto", "0", ".5", "1", "2"], ["1.5"]),
        (Number(0, above=True, whole=False), ["1e-9"], ["0", "nan", "inf", "-1", ""]),
        (Number(1), ["1", "007"], ["auto", "1.0", "0"]),
    ],
)
def test_numbers(kind: Number, good: Sequence[str], bad: Sequence[str]) -> None:
    for text in good:
        kind.parse(text)
    for text in bad:
        with pytest.raises(ValueError, match=r"."):
            kind.parse(text)
