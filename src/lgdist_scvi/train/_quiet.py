"""Fewer lines on the screen while a model trains."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from scvi import settings

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
# what Lightning says of every training, or of a module of which parts are frozen on purpose
_WARNINGS = (
    ".*LeafSpec.*",
    "The number of training batches",
    r"Found \d+ module\(s\) in eval mode",
    "The '.*_dataloader' does not have many workers",
    "Last batch will have a small size",
    "You have not specified a `stop_before_epoch`",
    "early_stopping was automatically disabled due to the use of DDP",  # scvi-tools' own; stages have theirs
)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence Lightning's notes on devices and loops; warnings of other kinds are shown.

    Whoever asks for more (``scvi.settings.verbosity = logging.DEBUG``) sees all of them.
    """
    if settings.verbosity < logging.INFO:
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        try:
            for logger, level in zip(loggers, levels, strict=True):
                if level == logging.INFO:  # Lightning's own; others are the user's choice
                    logger.setLevel(logging.WARNING)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
