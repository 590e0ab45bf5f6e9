"""Modules that are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """A stand-in for a module that takes long to import and that many calls do without.

    >>> json = LazyModule("json")
    >>> json.dumps([1])
    '[1]'
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)
