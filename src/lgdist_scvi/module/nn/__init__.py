"""Attention and feed-forward blocks."""
