"""The command ``lgdist``."""
