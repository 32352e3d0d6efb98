"""squidpy, imported where it is needed."""

from __future__ import annotations

import warnings
from types import ModuleType


def squidpy() -> ModuleType:
    """Import squidpy, whose decorators warn of keys of their own docstrings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SyntaxWarning, module=r"docrep\.")
        import squidpy as sq
    return sq
