"""What a user trains and asks."""

from lgdist_scvi.model._c2lst import C2LST
from lgdist_scvi.model._lgdist import LGDiST
from lgdist_scvi.model._stem import Stem

__all__ = ["C2LST", "LGDiST", "Stem"]
