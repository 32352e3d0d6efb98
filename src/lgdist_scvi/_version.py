"""The package's version."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lgdist-scvi")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+unknown"
