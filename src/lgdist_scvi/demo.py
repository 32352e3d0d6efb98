"""Complete a slide from start to end: ``python -m lgdist_scvi.demo --output demo [--input slide.h5ad]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lgdist_scvi.cli.__main__ import main as _lgdist


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lgdist demo``; give its exit code."""
    return _lgdist(["demo", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
