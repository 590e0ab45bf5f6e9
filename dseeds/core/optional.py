"""Imports of packages that not every installation has."""

from __future__ import annotations

import shlex
from importlib import import_module
from typing import Any


class MissingDependency(ImportError, ValueError):
    """An optional package that is needed is not installed."""


def import_optional(module: str, purpose: str, requirement: str) -> Any:
    """Import a module of an optional package; raise `MissingDependency` if it is not installed.

    `purpose` is the subject of the error's sentence, and `requirement` is the argument of pip: a package, or an extra
    of this one.

    >>> import_optional("math", "A square root", "math").sqrt(4)
    2.0
    >>> import_optional("there.is.none", "TIFF", "dseeds[formats]")
    Traceback (most recent call last):
    dseeds.core.optional.MissingDependency: TIFF needs one more package: pip install 'dseeds[formats]'.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(f"{purpose} needs one more package: pip install {shlex.quote(requirement)}.") from error
