from __future__ import annotations

import numpy as np

from lgdist_scvi._poisson import variance_given_positive


def test_sampling_noise_of_captured_values():
    """That of Poisson counts, given that they are positive, also where nearly all of them are 1."""
    rng, scale = np.random.default_rng(0), 8.0
    for expected in (0.05, 0.5, 3.0, 60.0, 400.0):
        counts = rng.poisson(expected, 400_000)
        values = np.log1p(scale * counts[counts > 0])
        found = variance_given_positive(np.array([[values.mean()]]), np.array([[scale]]))
        np.testing.assert_allclose(found, [[values.var()]], rtol=0.05)
