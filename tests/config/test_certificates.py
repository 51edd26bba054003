"""`carv config check` and `carv serve` agree on certificates: one function reads them for both."""

from __future__ import annotations

from pathlib import Path

import pytest

from carv_server.settings.mistakes import ConfigurationError
from carv_server.settings.read import Given, read_settings
from carv_server.tls import CertificateError, TlsConfig, read_certificates
from tests.support.certificates import Authority

CONTENTS = {
    "a comment beyond ASCII": ("# Prüfstelle Zürich\n{0}# Ende\n", True),
    "two authorities": ("{0}{0}", True),
    "nothing": ("", False),
    "no PEM": ("authority", False),
    "half of it": ("{1}", False),
    "one and a half": ("{0}{1}", False),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_client_ca_is_good_for_both_or_for_none(tmp_path: Path, case: str) -> None:
    """Breaks with: bytes that are decoded as ASCII in one of them."""
    text, good = CONTENTS[case]
    authority = Authority("ca")
    certificate, key = authority.server().write(tmp_path, "server")
    pem = authority.pem.decode()
    ca = tmp_path / "ca.pem"
    ca.write_text(text.format(pem, pem[: len(pem) // 2]), encoding="utf-8")
    (tmp_path / "carv.toml").write_text(
        '[tls]\ncertificate = "server.pem"\nprivate_key = "server.key"\nclient_ca = "ca.pem"\n'
    )
    config = TlsConfig(certificate, key, ca)
    if good:
        assert read_certificates(config).client_ca == ca.read_bytes()
        read_settings(Given(tmp_path / "carv.toml"), {})
        return
    with pytest.raises(CertificateError, match=r"ca\.pem holds no certificates") as served:
        read_certificates(config)
    with pytest.raises(ConfigurationError) as checked:
        read_settings(Given(tmp_path / "carv.toml"), {})
    assert [str(m) for m in checked.value.mistakes] == [f"tls.client_ca: {served.value}"]
