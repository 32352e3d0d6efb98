"""What a user trains and asks."""

from lgdist_scvi.model._lgdist import LGDiST

__all__ = ["LGDiST"]
