"""Every command knows the extra that installs what it needs; tests/integration/test_wheel.py sees it say so."""

from __future__ import annotations

import sys

import pytest

from crossrank_server.cli import COMMANDS, EXTRAS, cli, main
from tests.projects import PROJECT


def test_every_command_has_an_extra_that_exists() -> None:
    assert EXTRAS.keys() == COMMANDS.keys()
    assert set(EXTRAS.values()) <= set(PROJECT["project"]["optional-dependencies"])


def test_a_package_that_is_missed_while_a_command_runs_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # None in sys.modules is what Python itself takes for "not there".
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr("sys.argv", ["crossrank", "models"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: crossrank models needs rich: pip install 'crossrank[server]'\n"


def test_a_missing_module_of_our_own_is_no_matter_of_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crossrank_server.commands.models", None)
    with pytest.raises(ModuleNotFoundError):
        cli(["models"], standalone_mode=False)
