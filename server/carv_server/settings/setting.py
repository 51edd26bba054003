"""What one setting is: its key, variable, flag, type, default and text."""

from __future__ import annotations

from dataclasses import dataclass

from carv_server.settings.kinds import Kind, Value

__all__ = ["Setting"]


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        section: its table in the file; "" is the top of the file.
        text: one sentence, for ``--help`` and the documentation.
        flag: where it is not the key with dashes.
    """

    section: str
    key: str
    kind: Kind
    default: Value
    text: str
    named: str = ""

    @property
    def path(self) -> str:
        """``section.key``, as mistakes name it."""
        return f"{self.section}.{self.key}" if self.section else self.key

    @property
    def flag(self) -> str:
        return "--" + (self.named or self.key).replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "CARV_" + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def default_word(self) -> str:
        """As a person would write the default."""
        if self.default is None:
            return "auto" if getattr(self.kind, "auto", False) else ""
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)
