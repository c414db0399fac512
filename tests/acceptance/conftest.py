"""The programs that give crossrank to other packages, and the scores that they are to come to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.scores import PairAtATime
from tests.clients.environment import ClientProgram
from tests.conftest import ROOT

# The library is not installed where the packages are: what its wheel needs is, and it is taken from the tree.
_PYTHON_PATH = (ROOT / "server", Path(__file__).parent / "programs")


@pytest.fixture(scope="session")
def expected() -> PairAtATime:
    return PairAtATime()


@pytest.fixture(scope="session")
def frameworks() -> Iterator[ClientProgram]:
    with ClientProgram("frameworks", "frameworks", _PYTHON_PATH) as program:
        yield program


@pytest.fixture(scope="session")
def evaluators() -> Iterator[ClientProgram]:
    with ClientProgram("reference", "evaluators", _PYTHON_PATH) as program:
        yield program
