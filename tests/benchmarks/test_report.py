from __future__ import annotations

import json

import pytest
from benchmarks import _tables, report


def _row(protocol: str, file: str, method: str, score: float, **more) -> dict:
    row = {"file": file, "protocol": protocol, "seed": 0, "method": method, "date": "2026-01-01", "code": "c"}
    row |= {"seconds": 2.0, "memory_mib": 1024.0, **more}
    if protocol == "thinning":
        return row | {"d2": score, "variance_explained": 0.5 + score, "log_likelihood": -0.5}
    return row | {"mse": score, "mae": 0.3, "pcc_gene": 0.5, "pcc_spot": 0.6, "floor": 0.1, "excess": score - 0.1}


def _spread(crps: float) -> dict:
    strata = [("all", 0.88), ("low", 0.85), ("middle", 0.9), ("high", 0.91)]
    records = [{"level": q, "stratum": s, "coverage": c, "width": 1.0, "n": 9} for q in (0.5, 0.9) for s, c in strata]
    names = ("variance_sample", "variance_sample_within", "variance_mean")
    return {
        "crps": crps,
        "energy": 2 * crps,
        "deviation_over_error": 0.95,
        "n_samples": 20,
        **dict.fromkeys(names, 0.9),
        "coverage": records,
    }


@pytest.fixture
def document() -> dict:
    rows = []
    for file, entry, thinning in (("her2st_A", 0.20, 0.10), ("other", 0.30, 0.20)):
        rows += [_row("entry", file, "soft_impute", entry), _row("thinning", file, "poisson_nmf", thinning)]
        rows += [_row("entry", file, "gene_mean", 2 * entry), _row("thinning", file, "gene_mean", 0.0)]
        rows.append(_row("entry", file, "lgdist", entry - 0.05, spread=_spread(0.2)))
        rows.append(_row("thinning", file, "lgdist", thinning + 0.02, spread=_spread(0.1)))
    rows.append(
        {
            "file": "other",
            "protocol": "entry",
            "seed": 0,
            "method": "knn",
            "date": "2026-01-02",
            "failed": "ValueError: no",
        }
    )
    return {
        "versions": {"python": "3.11", "torch": "2"},
        "machine": "m",
        "cores": 2,
        "threads_per_method": 1,
        "methods_at_a_time": 2,
        "left_out": [{"file": "tiny", "protocol": "spot", "reason": "3 spots"}],
        "results": rows,
    }


def test_tables_say_what_the_rows_say(document):
    text = report.markdown(document)
    assert "| LGDiST | **.150** | **.250** |" in text
    assert "| soft-impute | .200 | .300 |" in text
    assert "| *Poisson floor* | *.100* | *.100* |" in text
    assert "| MSE, lower is better | HER2ST A | other |" in text
    # (0.05 / 0.10 * 0.15 / 0.20) ** 0.5
    assert "best other method on each data set: 0.61 (geometric mean" in text and "ahead on 2 of 2" in text
    assert "gains +0.020 D2 on average" in text and "(against Poisson NMF)" in text
    assert "| R2 of rates, higher is better | HER2ST A | other |" in text and "| LGDiST | **.620** | **.720** |" in text
    # (0.38 / 0.40 * 0.28 / 0.30) ** 0.5
    assert "leaves unexplained, divided by that of the best other method on each data set: 0.94" in text
    assert "kNN in PCA space, other, Entry hold-out, seed 0: ValueError: no" in text
    assert "tiny, Hidden spots: 3 spots" in text
    assert "2026-01-01 to 2026-01-02" in text and "torch 2" in text
    assert "| Entry hold-out: LGDiST | .2000 | .4000 |" in text
    covered = ".880 (.850, .900, .910)"
    assert f"| Entry hold-out: HER2ST A | {covered} | {covered} | 1.000 | .950 |" in text


def test_variants_stand_apart(document):
    """A variant neither competes with methods, nor decides of which data sets samples are averaged."""
    without = report.markdown(document)
    assert "without its parts" not in without
    document["results"].append(_row("entry", "other", "lgdist_no_neighbors", 0.2, spread=_spread(9.0)))
    text = report.markdown(document)
    methods, variants = text.split("### LGDiST without its parts")
    assert "no neighbours" not in methods
    assert "| LGDiST | **.150** | **.250** |" in methods
    assert "| LGDiST | .250 |\n| LGDiST, no neighbours | **.200** |" in variants
    assert "| Entry hold-out: LGDiST | .2000 | .4000 |" in variants


def test_a_score_of_some_slides_is_not_averaged(document):
    (row,) = (
        r for r in document["results"] if (r["file"], r["method"], r["protocol"]) == ("other", "lgdist", "thinning")
    )
    assert "| LGDiST | **.170** | **.670** |" in report.markdown(document)
    del row["variance_explained"]
    assert "| LGDiST | **.170** | – |" in report.markdown(document)


def test_a_page_is_written_between_its_marks(document, tmp_path, capsys):
    results, page = tmp_path / "r.json", tmp_path / "benchmarks.md"
    results.write_text(json.dumps(document))
    page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    for _ in range(2):
        report.main([str(results), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    assert text.count("### Entry hold-out") == 1
    for name in ("scores", "coverage", "cost"):
        assert f"_static/benchmarks/{name}.svg" in text
        assert (tmp_path / "_static" / "benchmarks" / f"{name}.svg").stat().st_size > 1000
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        report.main([str(results), "--page", str(page)])


def test_several_files_make_one_report(document):
    early, late = document["results"][0], document["results"][1:]
    again = {**late[0], "seconds": 1234.0}
    found = _tables.merged(
        [{**document, "results": [early, late[0]]}, {**document, "methods_at_a_time": 1, "results": [again, *late[1:]]}]
    )
    assert found["results"] == [{"machine": "m", **row} for row in (early, again, *late[1:])]
    assert found["methods_at_a_time"] == "1 or 2"
    # rows of another machine say so, and seconds are told apart
    other = {**document, "machine": "another", "results": [again]}
    text = report.markdown(_tables.merged([document, other]))
    assert "another and m, 2 cores" in text
    assert "| another; m |" in text and "| m |" in text
    assert "| on |" not in report.markdown(document)
    with pytest.raises(ValueError, match="differ in versions"):
        _tables.merged([document, {**document, "versions": {"torch": "1"}}])


def test_an_empty_or_failed_run_has_a_report(document, capsys):
    document["results"] = document["results"][-1:]
    report.print_report(document)
    assert "ValueError: no" in capsys.readouterr().out
    document["results"] = []
    report.print_report(document)
