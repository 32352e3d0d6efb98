"""What people read: snippets run, links lead somewhere, the first page stays short."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest
import torch
from PIL import Image

from lgdist_scvi import datasets

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def run(code: str, names: dict, replace: dict[str, str] | None = None) -> None:
    """Run a snippet as it is printed, but for a shorter training and what `replace` names."""
    code = code.replace(".train()", ".train(max_epochs=1, enable_progress_bar=False)")
    for old, new in (replace or {}).items():
        assert old in code
        code = code.replace(old, new)
    exec(compile(code, "<snippet>", "exec"), names)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrix products gain nothing from more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first_snippet() -> str:
    return snippets("README.md")[0]


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_index_shows_the_same_snippet(first_snippet):
    assert first_snippet == snippets("docs/index.md")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    copied = {f"tutorials/{name}": f"../tutorials/{name}.ipynb" for name in ("quickstart", "stem", "c2lst")}
    missing = [target for target in local if not (page.parent / copied.get(target, target)).exists()]
    assert not [target for target in missing if not target.startswith("generated/")]  # Sphinx writes those


def test_the_first_snippet_completes_and_draws(first_snippet, tmp_path):
    adata = datasets.simulated_visium(n_spots=120, n_genes=40, seed=0)
    adata.write_h5ad(tmp_path / "slide.h5ad")
    names: dict = {}
    run(
        first_snippet,
        names,
        {"slide.h5ad": str(tmp_path / "slide.h5ad"), "pl.completion(": "figure = pl.completion("},
    )
    completed = names["adata"]
    measured = completed.to_df().to_numpy() > 0
    assert (completed.layers["completed_provenance"] == ~measured).all()  # 0 kept, 1 filled zero
    assert len(names["figure"].axes) >= 3


def test_three_steps_from_an_image(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    adata = datasets.simulated_visium(n_spots=90, n_genes=20, seed=0, image=True)
    library = next(iter(adata.uns.pop("spatial").values()))
    adata.obsm["spatial"] *= library["scalefactors"]["tissue_hires_scalef"]
    adata.write_h5ad(tmp_path / "slide.h5ad")
    Image.fromarray(library["images"]["hires"]).save(tmp_path / "slide.tif")
    names: dict = {}
    files = {
        f"{name}.{suffix}": str(tmp_path / f"slide.{suffix}")
        for name in ("sequenced", "new")
        for suffix in ("h5ad", "tif")
    }
    training = {".train(max_epochs=1, ": '.train(targets="counts", max_epochs=1, '}
    run(snippets("docs/images.md")[0], names, {**files, **training, "pl.prediction(": "figure = pl.prediction("})
    assert len([ax for ax in names["figure"].axes if ax.get_title()]) == 4
    assert {"predicted", "predicted_std", "predicted_lower"} <= set(names["new"].layers)


def test_patches_for_expression_and_a_predictor_that_learns_from_them(tmp_path):
    names: dict = {}
    small = {"n_spots=300, n_genes=60": "n_spots=90, n_genes=20", "n_steps=300": "n_steps=2"}
    paths = {f'"{name}"': f'"{tmp_path / name}"' for name in ("central.ckpt", "central")}
    first, second = snippets("docs/c2lst.md")
    run(first, names, small | paths)
    assert names["patches"].shape == (10, 64, 64, 3)
    quick = {"synthetic=pairs)": 'synthetic=pairs, targets="counts", max_epochs=1, enable_progress_bar=False)'}
    run(second, names, quick | {"pairs(300,": "pairs(20, n_steps=2,"})
    assert names["stem"].training_[-1]["synthetic"]["n"] == 20


@pytest.mark.slow
def test_the_first_snippet_prepares_every_real_slide(first_snippet, shared_data):
    before = first_snippet.partition("model.train()")[0]
    files = sorted(shared_data.glob("*.h5ad"))
    assert files
    for file in files:
        names: dict = {}
        run(before, names, {"slide.h5ad": str(file)})
        adata, model = names["adata"], names["model"]
        assert adata.n_vars == 1024
        assert adata.n_obs >= 0.75 * names["datasets"].read(file).n_obs
        assert model.summary_stats["n_vars"] == 1024


@pytest.mark.slow
def test_examples_run_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in snippets("docs/examples.md"):
        run(code.replace("n_spots=300", "n_spots=150"), names)
    assert (names["adata"].layers["repeated"] == names["adata"].layers["completed"]).all()
    matplotlib.pyplot.close("all")


def test_every_public_function_has_an_example():
    code = "\n".join(snippets("docs/examples.md"))
    modules = re.findall(r"^   (\w+(?:\.\w+)+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert not [name for name in modules if f"{name}(" not in code]
