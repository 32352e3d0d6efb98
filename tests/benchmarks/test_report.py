from __future__ import annotations

import pandas as pd
import pytest
from benchmarks import report
from benchmarks.__main__ import main
from benchmarks._results import RESULTS, read
from benchmarks._tables import coverage, headlines, off_level, scored


def _row(protocol: str, file: str, method: str, score: float, **more) -> dict:
    row = {"file": file, "protocol": protocol, "seed": 0, "method": method, "date": "2026-01-01", "machine": "m"}
    row |= {"seconds": 2.0, "memory_mib": 1024.0, "threads": 1, "workers": 2, "versions": "abc", "failed": None, **more}
    if protocol == "thinning":
        return row | {"d2": score, "variance_explained": 0.5 + score, "log_likelihood": -0.5}
    return row | {"mse": score, "mae": 0.3, "pcc_gene": 0.5, "pcc_spot": 0.6, "floor": 0.1}


def _spread(crps: float) -> dict:
    scores = {"crps": crps, "energy": 2 * crps, "deviation_over_error": 0.95, "variance_mean": 0.9}
    for level in (50, 80, 90, 95):
        thirds = zip(("", "_low", "_middle", "_high"), (0.0, -0.03, 0.01, 0.03), strict=True)
        scores |= {f"coverage_{level}{third}": level / 100 + off for third, off in thirds}
        scores[f"width_{level}"] = 1.0
    return scores


@pytest.fixture
def rows() -> list[dict]:
    rows = []
    for file, entry, thinning in (("her2st_A", 0.20, 0.10), ("other", 0.30, 0.20)):
        rows += [_row("entry", file, "soft_impute", entry), _row("thinning", file, "poisson_nmf", thinning)]
        rows += [_row("entry", file, "gene_mean", 2 * entry), _row("thinning", file, "gene_mean", 0.0)]
        rows.append(_row("entry", file, "lgdist", entry - 0.05, **_spread(0.2)))
        rows.append(_row("thinning", file, "lgdist", thinning + 0.02, **_spread(0.1)))
    failed = {"file": "other", "protocol": "entry", "seed": 0, "method": "knn", "failed": "ValueError: no"}
    return [
        *rows,
        failed,
        {**failed, "file": "tiny", "protocol": "spot", "method": "all", "failed": "left out: 3 spots"},
    ]


def _text(rows: list[dict]) -> str:
    return report.markdown(pd.DataFrame(rows))


def test_tables_say_what_the_rows_say(rows):
    text = _text(rows)
    assert "| LGDiST | **.150** | **.250** |" in text
    assert "| soft-impute | .200 | .300 |" in text
    assert "| *Poisson floor* | *.100* | *.100* |" in text
    assert "| MSE, lower is better | HER2ST A | other |" in text
    assert "| R2 of rates, higher is better | HER2ST A | other |" in text and "| LGDiST | **.620** | **.720** |" in text
    assert "- other, Entry hold-out, kNN in PCA space: ValueError: no" in text
    assert "- tiny, Hidden spots, all: left out: 3 spots" in text
    assert "Obtained 2026-01-01 to 2026-01-01, seeds 0, on m; methods at a time: 2, threads of each: 1" in text
    assert "| Entry hold-out: LGDiST | .2000 | .4000 |" in text
    assert "| Entry hold-out: HER2ST A | .500 (.470, .510, .530) |" in text
    assert "| Entry hold-out | .500–.500 | .800–.800 | .900–.900 | .950–.950 | 8 | 8 | 24 | .030 | .950–.950 |" in text
    assert "| LGDiST | 2 | 2 | 1.00 | 1.00 | 2026-01-01 | m |" in text


def test_lgdist_is_compared_with_the_best_peer_of_each_slide(rows):
    rows += [{**row, "seed": 1} for row in rows if row["method"] != "lgdist"]
    found = headlines(scored(pd.DataFrame(rows))).set_index(["score", "seed"])
    assert list(found.index) == [("excess", 0), ("d2", 0), ("variance_explained", 0)]  # LGDiST has no seed 1
    assert found.loc[("excess", 0), "value"] == pytest.approx((0.05 / 0.10 * 0.15 / 0.20) ** 0.5)
    assert found.loc[("d2", 0), "value"] == pytest.approx(0.02)
    assert found.loc[("variance_explained", 0), "value"] == pytest.approx((0.38 / 0.40 * 0.28 / 0.30) ** 0.5)
    assert found["ahead"].tolist() == [2, 2, 2]
    assert found.loc[("excess", 0), ["worst", "on", "peer"]].tolist() == pytest.approx([0.75, "other", "soft_impute"])


def test_variants_stand_apart(rows):
    """A variant neither competes with methods, nor decides of which data sets samples are averaged."""
    assert "without its parts" not in _text(rows)
    text = _text([*rows, _row("entry", "other", "lgdist_no_neighbors", 0.2, **_spread(9.0))])
    methods, variants = text.split("## LGDiST without its parts")
    assert "no neighbours" not in methods and "| LGDiST | **.150** | **.250** |" in methods
    assert "| LGDiST | .250 |\n| LGDiST, no neighbours | **.200** |" in variants
    assert "| Entry hold-out: LGDiST | .2000 | .4000 |" in variants


def test_a_score_of_some_slides_is_not_averaged(rows):
    assert "| LGDiST | **.170** | **.670** |" in _text(rows)
    for row in rows:
        if (row["file"], row["method"], row["protocol"]) == ("other", "lgdist", "thinning"):
            del row["variance_explained"]
    assert "| LGDiST | **.170** | – |" in _text(rows)


def test_a_page_with_figures_is_written(rows, tmp_path):
    page = report.write(pd.DataFrame(rows), tmp_path / "page")
    text = page.read_text()
    assert text.startswith("# Benchmark tables\n") and text.count("## Entry hold-out") == 1
    for name in ("scores", "coverage"):
        assert f"](benchmark_{name}.png)" in text
        assert 1_000 < (page.parent / f"benchmark_{name}.png").stat().st_size < 200_000


def test_few_rows_have_a_report(rows):
    assert "ValueError: no" in _text(rows[-2:-1])
    text = report.headline(pd.DataFrame([row for row in rows if row["file"] == "other"]))
    assert "| LGDiST | .2500 | .2200 |" in text


def test_the_stored_results_hold_what_the_page_says(capsys):
    """The main table of ``docs/benchmarks.md``, and its coverage."""
    rows = scored(read(RESULTS))
    found = headlines(rows).set_index(["protocol", "score", "seed"])
    ratios = {
        ("entry", 1): 0.76,
        ("entry", 0): 0.74,
        ("spot", 1): 0.57,
        ("spot", 0): 0.57,
        ("block", 1): 0.63,
        ("block", 0): 0.62,
    }
    for (protocol, seed), ratio in ratios.items():
        row = found.loc[(protocol, "excess", seed)]
        assert (round(row["value"], 2), row["ahead"], row["n"]) == (ratio, 8, 8)
    for (protocol, seed), gain in {
        ("thinning", 1): 0.019,
        ("thinning", 0): 0.019,
        ("shallow", 1): 0.037,
        ("shallow", 0): 0.036,
    }.items():
        assert round(found.loc[(protocol, "d2", seed), "value"], 3) == gain
    off = off_level(coverage(rows[rows["seed"] == 1]))
    assert off.loc["entry", ["short", "n"]].tolist() == [3, 96] and off.loc["spot", "short"] == 11
    assert [round(v, 3) for v in off.loc["block", "90 %"]] == [0.840, 0.907]
    main(["report", "--seeds", "1"])
    assert "| Entry hold-out | ratio of excess MSE | 1 | 0.76 | 8 of 8 |" in capsys.readouterr().out
