from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lgdist_scvi import pl


@pytest.fixture
def table() -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "reference": [0.2, 0.3, 0.01, 0.05],
            "control": [0.01, 0.25, 0.2, 0.06],
            "excess": [0.01, 0.05, 0.19, 0.01],
            "limit": [0.02, np.nan, 0.05, 0.05],
        },
        index=[
            "skill from neighbors alone",
            "skill from everything",
            "Moran's I of Poisson genes",
            "correlation of Poisson genes",
        ],
    )
    table["passed"] = (table["excess"] <= table["limit"]).astype("boolean").mask(table["limit"].isna())
    return table


def test_draws_what_the_table_holds(table):
    figure = pl.negative_controls(table)
    assert not plt.get_fignums()
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == ["neighbors alone", "everything"]
    np.testing.assert_allclose(first.collections[1].get_offsets()[:, 0], [0.2, 0.3])
    np.testing.assert_allclose(second.collections[2].get_offsets()[:, 0], [0.2, 0.06])
    # of the Poisson genes, one keeps its limit
    colors = second.collections[2].get_facecolors()
    assert not np.allclose(colors[0], colors[1])


def test_one_control(table):
    assert len(pl.negative_controls(table.iloc[2:]).axes) == 1


def test_other_tables_are_refused(table):
    with pytest.raises(ValueError, match=r"metrics.negative_controls\(model\)"):
        pl.negative_controls(table.rename(index=lambda name: "row"))
