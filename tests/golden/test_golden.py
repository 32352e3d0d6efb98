"""Numbers of small models, against those of the code that `expected.json` was made with: ``python tests/golden/compute.py --remake``.

They hold on any processor: bits may differ, and with them a count at the edge of an interval or a draw.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import scvi

_SPEC = importlib.util.spec_from_file_location("golden_compute", Path(__file__).with_name("compute.py"))
golden = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(golden)

EXPECTED = json.loads(golden.EXPECTED.read_text(encoding="utf-8"))
# whole counts, which a rounding error may move by one
DISCRETE = ("_lower", "_upper", "/predictive")


@pytest.fixture(autouse=True)
def _seed():
    yield
    scvi.settings.seed = None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", golden.SIMULATED)
def test_layers_are_those_of_before(case):
    layers = golden.SIMULATED[case](case)
    expected = {name: kept for name, kept in EXPECTED.items() if name.startswith(f"{case}/")}
    assert set(layers) == set(expected)
    for name, layer in layers.items():
        found, kept = golden.summary(layer), expected[name]
        assert found["shape"] == kept["shape"], name
        discrete = name.endswith(DISCRETE)
        n_moved = int((~np.isclose(found["entries"], kept["entries"], rtol=1e-3, atol=1e-3, equal_nan=True)).sum())
        assert n_moved <= (2 if discrete else 0), (name, found["entries"], kept["entries"])
        for moment in ("mean", "sd"):
            assert found[moment] == pytest.approx(kept[moment], rel=1e-2 if discrete else 1e-3, abs=1e-3), (
                name,
                moment,
            )
