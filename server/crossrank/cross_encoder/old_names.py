"""Accept the argument names of earlier sentence-transformers versions, with a warning."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def accepts_old_names(*, without_effect: tuple[str, ...] = (), **renamed: str) -> Callable[[Function], Function]:
    """Return a decorator that lets a function take arguments under their earlier names, too.

    Args:
        without_effect: Names of arguments to drop.
        renamed: Present names, by earlier name.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            for name in (options.keys() & renamed.keys()) | (options.keys() & set(without_effect)):
                value = options.pop(name)
                if name not in renamed:
                    _warn(f"{name} has no effect and can be left out")
                    continue
                _warn(f"{name} is the earlier name of {renamed[name]}")
                options.setdefault(renamed[name], value)
            return function(*arguments, **options)

        return cast(Function, call)

    return decorate


def _warn(message: str) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=3)
