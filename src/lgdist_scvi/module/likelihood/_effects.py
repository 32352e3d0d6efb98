"""How a region effect acts on an expected value: as a factor or as a summand; for arrays and tensors."""

from __future__ import annotations

from typing import Any


class Factor:
    """A factor of rates, gamma distributed around 1; `none` is the one that changes nothing.

    `found` and `expected` are counts: the posterior mean is (c + found) / (c + expected), with the shape c of the prior.
    """

    none = 1.0

    def apply(self, value: Any, effect: Any) -> Any:
        """Value, or effect so far, with a further effect."""
        return value * effect

    def posterior_mean(self, found: Any, expected: Any, shrinkage: float) -> Any:
        """Effect estimated from sums over spots, shrunk toward none by a prior as strong as `shrinkage`."""
        return (found + shrinkage) / (expected + shrinkage)

    def beside(self, found: Any, expected: Any, effect: Any) -> tuple[Any, Any]:
        """The sums that are left to explain beside another effect."""
        return found, expected * effect


class Summand:
    """A summand of values, Gaussian around 0; methods are those of :class:`Factor`.

    `found` are residuals, `expected` their number: the posterior mean is found / (c + expected).
    """

    none = 0.0

    def apply(self, value: Any, effect: Any) -> Any:
        return value + effect

    def posterior_mean(self, found: Any, expected: Any, shrinkage: float) -> Any:
        return found / (expected + shrinkage)

    def beside(self, found: Any, expected: Any, effect: Any) -> tuple[Any, Any]:
        return found - expected * effect, expected


Effect = Factor | Summand
