"""Simulated tissue with known rates, and loaders of real slides."""

from lgdist_scvi.datasets._read import read
from lgdist_scvi.datasets._simulated import simulated_visium

__all__ = ["read", "simulated_visium"]
