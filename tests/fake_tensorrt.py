"""A stand-in for TensorRT 10.4 and 11.4, which are on no package index: a module made from their recorded API.

TensorRT for RTX builds plans by itself in tests/unit/export/test_engine_rtx.py; but it runs none without a GPU, so that
running is stood in for as well (version `rtx`), by a module made from the API of the installed one.

Its classes, attributes, enum members and signatures come from the recording alone. What the real bindings lack
raises as it would there: AttributeError for a name, TypeError for an argument of the wrong name, number or class.
What they have but this fake gives no behaviour to raises NotImplementedError, so that nothing passes unproved.

Limits: overloaded methods are recorded as `(*args, **kwargs)` and lines of more than 300 characters are cut (four
plug-in methods), so arguments are not checked there; dunder methods are not recorded at all.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from keyword import iskeyword
from pathlib import Path
from types import ModuleType

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = ("10.4.0", "11.4.0")

_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
RTX = "rtx"
_PREFIX = re.compile(r"^(tensorrt|tensorrt_rtx_bindings)\.\w+\.")
# A Dims is made from any tuple of ints.
_IMPLICIT = {"Dims"}

Behaviour = dict[str, Callable]


def recorded_api(version: str) -> dict:
    if version == RTX:
        return record_api(_installed_rtx())
    return json.loads((GOLDEN / f"tensorrt-{version}-python-api.json").read_text())


@cache
def _installed_rtx() -> ModuleType:
    """Return the real module, also while a stand-in has its name."""
    return importlib.import_module("tensorrt_rtx")


def record_api(module: ModuleType) -> dict:
    """Return the API of the real bindings in the form of the golden files, but for functions of the module."""
    found = {}
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, type) and value.__module__.startswith("tensorrt"):
            record = {"kind": "class", "bases": [base.__name__ for base in value.__bases__], "members": {}}
            if hasattr(value, "__members__"):
                record["enum"] = {key: int(member) for key, member in value.__members__.items()}
            for member in ["__init__", *(member for member in dir(value) if not member.startswith("_"))]:
                given = getattr(value, member)
                doc = str(given) if isinstance(given, int) else (getattr(given, "__doc__", None) or "")
                record["members"][member] = doc.strip().partition("\n")[0]
            found[name] = record
        elif isinstance(value, module.DataType):
            found[name] = {"kind": "value", "repr": repr(value)}
    return found


def split_arguments(text: str) -> Iterator[str]:
    """Split at the commas that are outside brackets."""
    depth, start = 0, 0
    for index, char in enumerate(text):
        depth += (char in "[(<") - (char in "])>")
        if char == "," and depth == 0:
            yield text[start:index]
            start = index + 1
    if text[start:].strip():
        yield text[start:]


def signature_of(doc: str) -> inspect.Signature | None:
    """Read pybind11's `name(self: A, b: B = c) -> D`; None for an overloaded method or a line cut in recording."""
    match = re.match(r"\w+\((.*)\)(?: -> .*)?$", doc)
    if match is None or match.group(1).startswith("*args"):
        return None
    parameters, defaulted = [], False
    for argument in split_arguments(match.group(1)):
        if argument.strip() == "/":
            continue
        name, _, rest = argument.strip().partition(":")
        annotation, equals, default = rest.strip().partition(" = ")
        # add_scale_nd has a required argument after optional ones, as only C++ can
        defaulted = defaulted or bool(equals)
        parameters.append(
            inspect.Parameter(
                f"{name.strip()}_" if iskeyword(name.strip()) else name.strip(),
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=default if defaulted else inspect.Parameter.empty,
                annotation=annotation,
            )
        )
    return inspect.Signature(parameters)


class _Enum:
    """A member of an enum as pybind11 makes them: int() works, comparison with an int does not."""

    def __init__(self, owner: str, name: str, value: int) -> None:
        self.name, self.value, self._owner = name, value, owner

    def __int__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"<{self._owner}.{self.name}: {self.value}>"


def _check(value: object, annotation: str, classes: dict[str, type], where: str) -> None:
    name = _PREFIX.sub("", annotation)
    if name != annotation and name in classes and name not in _IMPLICIT:
        wanted: type | tuple[type, ...] = classes[name]
    elif annotation in ("int", "typing.SupportsInt"):
        wanted = int
    elif annotation == "str":
        wanted = str
    elif annotation == "bool":
        wanted = bool
    elif annotation in ("buffer", "typing_extensions.Buffer"):
        wanted = (bytes, bytearray, memoryview)
    else:
        return
    if not isinstance(value, wanted):
        raise TypeError(f"{where}: incompatible argument {value!r}, {annotation} is wanted")


def _method(owner: str, name: str, doc: str, behaviour: Behaviour, classes: dict[str, type]) -> Callable:
    signature = signature_of(doc)
    where = f"{owner}.{name}"

    def call(self, *args, **kwargs):
        if signature is not None:
            bound = signature.bind(self, *args, **kwargs)
            for key, value in list(bound.arguments.items())[1:]:
                _check(value, signature.parameters[key].annotation, classes, where)
        if where not in behaviour:
            raise NotImplementedError(f"the fake gives no behaviour to {where}")
        return behaviour[where](self, *args, **kwargs)

    return call


def _attribute(owner: str, name: str, behaviour: Behaviour) -> property:
    def get(self):
        if f"{owner}.{name}" in behaviour:
            return behaviour[f"{owner}.{name}"](self)
        if name in self.__dict__:
            return self.__dict__[name]
        raise NotImplementedError(f"the fake gives no value to {owner}.{name}")

    def put(self, value):
        self.__dict__[name] = value

    return property(get, put)


def _constructor(owner: str, doc: str, behaviour: Behaviour, classes: dict[str, type]) -> Callable:
    if not doc.startswith("__init__("):  # made by factories only

        def refuse(self, *args, **kwargs):
            raise TypeError(f"tensorrt.tensorrt.{owner}: No constructor defined!")

        return refuse
    behaviour.setdefault(f"{owner}.__init__", lambda *_, **__: None)
    return _method(owner, "__init__", doc, behaviour, classes)


def _strict_setattr(self, name: str, value: object) -> None:
    # A subclass written in Python may hold what it likes, as with pybind11.
    if type(self).__module__ == "tensorrt" and not name.startswith("_") and not hasattr(type(self), name):
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
    object.__setattr__(self, name, value)


def _make_class(name: str, record: dict, bases: tuple, behaviour: Behaviour, classes: dict[str, type]) -> type:
    body: dict[str, object] = {"__module__": "tensorrt", "__setattr__": _strict_setattr}
    enum = record.get("enum")
    for member, doc in record["members"].items():
        if member in _SEVERITIES or member == "Severity" or (enum and member != "__init__"):
            continue
        if member == "__init__":
            body[member] = _Enum.__init__ if enum else _constructor(name, doc, behaviour, classes)
        elif doc.startswith(f"{member}("):
            body[member] = _method(name, member, doc, behaviour, classes)
        elif doc.lstrip("-").isdigit():
            body[member] = int(doc)
        else:
            body[member] = _attribute(name, member, behaviour)
    if enum:
        return type(name, (_Enum,), {"__module__": "tensorrt"})
    return type(name, bases or (object,), body)


def fake_tensorrt(version: str, behaviour: Behaviour | None = None) -> ModuleType:
    """Return a module that has exactly what `tensorrt` of that version has.

    Args:
        version: One of VERSIONS, or RTX.
        behaviour: What methods do and attributes read, by `Class.member`.
    """
    api, classes = recorded_api(version), {}
    behaviour = {} if behaviour is None else behaviour  # filled by the caller, who needs the classes for it

    def make(name: str) -> type:
        if name not in classes:
            record = api[name]
            bases = tuple(make(base) for base in record["bases"] if base in api)
            classes[name] = _make_class(name, record, bases, behaviour, classes)
            for member, value in record.get("enum", {}).items():
                setattr(classes[name], member, classes[name](name, member, value))
        return classes[name]

    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.__version__ = version if version != RTX else _installed_rtx().__version__
    for name, record in api.items():
        if record["kind"] == "class":
            setattr(module, name, make(name))
    for name, record in api.items():
        if record["kind"] == "value":
            member = re.match(r"<DataType\.(\w+):", record["repr"]).group(1)
            setattr(module, name, getattr(module.DataType, member))
    severity = type("Severity", (_Enum,), {"__module__": "tensorrt"})
    for value, name in enumerate(_SEVERITIES):
        for logger in ("ILogger", "Logger"):
            if name in api[logger]["members"]:
                setattr(classes[logger], name, severity("Severity", name, value))
    classes["ILogger"].Severity = classes["Logger"].Severity = classes["ILogger.Severity"] = severity
    return module
