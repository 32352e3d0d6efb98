"""Stub to be replaced."""
class CompletionMixin:
    pass
