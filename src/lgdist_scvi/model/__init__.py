"""What a user trains and asks."""

from lgdist_scvi.model._lgdist import LGDiST
from lgdist_scvi.model._stem import Stem

__all__ = ["LGDiST", "Stem"]
