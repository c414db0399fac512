"""Build command line options from a settings class, so that a setting is declared once."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from crossrank.errors import SetupError

Settings = TypeVar("Settings", bound=BaseSettings)
Function = TypeVar("Function", bound=Callable[..., Any])


def options_from_settings(settings: type[BaseSettings], only: set[str] | None = None) -> Callable[[Function], Function]:
    """Add an option for each field of a settings class, or for those named in `only`, to a click command."""

    def decorate(function: Function) -> Function:
        for name, field in reversed(settings.model_fields.items()):
            if only is None or name in only:
                function = _option(settings, name, field)(function)
        return function

    return decorate


def settings_from_options(settings: type[Settings], options: dict[str, Any]) -> Settings:
    """Build the settings: an option that was given, else the environment, else the default.

    Raises:
        SetupError: A value is out of range; the message names the flag and the environment variable.
    """
    try:
        return settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise SetupError(
            f"{flag_name(name)} ({variable_name(settings, name)}) is {first['input']!r}: {first['msg']}"
        ) from None


def _option(settings: type[BaseSettings], name: str, field: FieldInfo) -> Callable[[Function], Function]:
    default = field.get_default(call_default_factory=True)
    shown = "empty" if default in ("", None) else default
    text = f"{field.description}  [{variable_name(settings, name)}; default {shown}]"
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    if annotation is bool:
        return click.option(f"{flag_name(name)}/--no-{flag_name(name)[2:]}", name, default=None, help=text)
    if get_origin(annotation) is Literal:
        return click.option(flag_name(name), name, type=click.Choice(get_args(annotation)), default=None, help=text)
    kind = annotation if annotation in (int, float) else str
    return click.option(flag_name(name), name, type=kind, default=None, help=text)


def flag_name(name: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + name.replace("_", "-")


def variable_name(settings: type[BaseSettings], name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{settings.model_config.get('env_prefix', '')}{name}".upper()
