"""The README's tables are those of the code."""

from __future__ import annotations

import re

from crossrank import errors
from crossrank_server.commands.options import flag_name, variable_name
from crossrank_server.settings import ServeSettings
from tests.conftest import ROOT
from tests.unit.server.test_errors import answered

README = (ROOT / "README.md").read_text()


def settings_table() -> str:
    rows = ["| flag | environment | default | what it does, and the trade-off |", "|---|---|---|---|"]
    for name, field in ServeSettings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = (
            "the user's cache"
            if name == "cache_dir"
            else ""
            if default in ("", None)
            else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        )
        rows.append(f"| `{flag_name(name)}` | `{variable_name(ServeSettings, name)}` | {shown} | {field.description} |")
    return "\n".join(rows)


def errors_table() -> str:
    rows = ["| status | code | when |", "|---|---|---|"]
    for error in sorted(answered(), key=lambda error: (error.http_status, error.default_code)):
        if error is errors.InvalidInput:
            continue  # the library's own: no request to a server ends with it
        first = re.split(r"(?<=[.;])\s", (error.__doc__ or "").strip())[0].rstrip(".;")
        rows.append(f"| {error.http_status} | `{error.default_code}` | {first} |")
    return "\n".join(rows)


def test_the_settings_table_is_that_of_the_settings_class() -> None:
    assert settings_table() in README, f"put this into README.md:\n{settings_table()}"


def test_the_error_table_is_that_of_the_error_tree() -> None:
    assert errors.CrossrankError.__subclasses__()
    assert errors_table() in README, f"put this into README.md:\n{errors_table()}"
