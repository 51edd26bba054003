"""The flags of ``carv serve``, made from the table of settings."""

from __future__ import annotations

import argparse
from pathlib import Path

from carv_server.settings.kinds import Flag
from carv_server.settings.read import Given
from carv_server.settings.table import SETTINGS

__all__ = ["add_arguments", "given"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--config``, ``--teacher`` and a flag for every setting. Values are checked later, all
    together."""
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file of settings; variables and flags beat it",
    )
    parser.add_argument(
        "--teacher",
        action="append",
        metavar="ID=FOLDER[,null_class=N]",
        help="a teacher to serve, repeatable; the first is the default. FOLDER is a diffusers "
        "pipeline folder (Stable Diffusion or DDPM layout, safetensors) or holds mixture.json. "
        "Without it: the embedded teacher 'shapes'",
    )
    for setting in SETTINGS:
        said = f" (default: {setting.default_word})" if setting.default_word else ""
        text = (setting.text + said).replace("%", "%%")
        if isinstance(setting.kind, Flag):
            action = argparse.BooleanOptionalAction
            parser.add_argument(setting.flag, action=action, help=text, dest=setting.path)
        else:
            parser.add_argument(
                setting.flag, help=text, dest=setting.path, metavar=setting.key.upper()
            )


def given(arguments: argparse.Namespace) -> Given:
    """What was given of them."""
    flags: dict[str, str] = {}
    for setting in SETTINGS:
        value = getattr(arguments, setting.path)
        if value is not None:
            flags[setting.flag] = str(value).lower() if isinstance(value, bool) else value
    return Given(arguments.config, flags, arguments.teacher or ())
