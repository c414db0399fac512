"""Every public annotation can be read at run time, as documentation tools, validators and agent frameworks do."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator

import pytest

PACKAGES = ("crossrank", "crossrank_server", "crossrank_client", "crossrank_export", "crossrank_perf")

# Behind CrossEncoder, they name classes of modules that are loaded with the first model: an import of crossrank would
# load pydantic, tokenizers and engines for these annotations.
LOADED_LATER = {
    "crossrank.cross_encoder.config.config_from_manifest",
    "crossrank.cross_encoder.handle.ModelHandle.model",
    "crossrank.cross_encoder.opening.Opening.open",
}


def modules(package: str) -> Iterator[types.ModuleType]:
    """Import every Python module of a package; `__main__` would run."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        module = found.name.rpartition(".")[2]
        # Native libraries lie beside the code in a checkout; they are no modules. Integrations need their frameworks:
        # tests/acceptance has those.
        if not module.startswith("_") and ".integrations." not in found.name:
            yield importlib.import_module(found.name)


def annotated(module: types.ModuleType) -> Iterator[tuple[str, object]]:
    """Yield what a module defines under public names: functions, classes, methods and properties."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for attribute, member in vars(value).items():
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if inspect.isfunction(function) and (attribute == "__init__" or not attribute.startswith("_")):
                    yield f"{name}.{attribute}", function


@pytest.mark.parametrize("package", PACKAGES)
def test_type_hints_of_everything_public_resolve(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Triton's Python backend puts this module into its own processes only.
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils"))
    checked = 0
    unresolved = {}
    for module in modules(package):
        for name, value in annotated(module):
            checked += 1
            try:
                typing.get_type_hints(value)
            except NameError as error:
                unresolved[f"{module.__name__}.{name}"] = str(error)
    assert checked > 20, "the package was not walked"
    expected = {name for name in LOADED_LATER if name.startswith(f"{package}.")}
    assert unresolved.keys() == expected, unresolved
