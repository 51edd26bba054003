"""The tables of docs/configuration.md, from the table of settings.

python -m carv_server.settings.document docs/configuration.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from carv_server.settings.setting import Setting
from carv_server.settings.table import SECTIONS, SETTINGS

__all__ = ["with_tables"]

_BETWEEN = re.compile(r"(?<= -->\n).*?(?=<!-- settings: end -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page, what lies between its two marks made anew."""
    return _BETWEEN.sub(lambda _: _tables(), page, count=1)


def _tables() -> str:
    parts: list[str] = []
    for section, text in SECTIONS.items():
        title = f"`[{section}]`" if section else "Top of the file"
        parts.append(
            f"\n## {title}\n\n{text}\n\n| key | flag | variable | type | default | meaning |\n"
            "|---|---|---|---|---|---|\n"
        )
        parts += [_row(setting) for setting in SETTINGS if setting.section == section]
    return "".join(parts) + "\n"


def _row(setting: Setting) -> str:
    default = f"`{setting.default_word}`" if setting.default_word else ""
    cells = (
        f"`{setting.key}`",
        f"`{setting.flag}`",
        f"`{setting.variable}`",
        setting.kind.wanted,
        default,
        setting.text,
    )
    return "| " + " | ".join(cells) + " |\n"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(with_tables(file.read_text()))
