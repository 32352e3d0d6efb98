from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lgdist_scvi import datasets, pp


@pytest.fixture(scope="module")
def slides() -> ad.AnnData:
    return datasets.simulated_visium(n_spots=600, n_genes=30, n_samples=2, seed=5, image=True)


def test_the_image_leaves_everything_else_as_it_is(slides):
    plain = datasets.simulated_visium(n_spots=600, n_genes=30, n_samples=2, seed=5)
    assert (plain.X != slides.X).nnz == 0
    np.testing.assert_array_equal(plain.obsm["spatial"], slides.obsm["spatial"])
    np.testing.assert_array_equal(plain.layers["rate"], slides.layers["rate"])
    assert set(slides.obs) - set(plain.obs) == {"cell_density"}


@pytest.mark.parametrize("n_spots", [1, 5, 600])
def test_small_and_the_same_for_a_seed(n_spots):
    first, second, other = (datasets.simulated_visium(n_spots, 4, seed=seed, image=True) for seed in (0, 0, 1))
    images = [adata.uns["spatial"]["slide_1"]["images"]["hires"] for adata in (first, second, other)]
    assert images[0].dtype == np.uint8 and images[0].shape[0] * images[0].shape[1] <= 2e6
    np.testing.assert_array_equal(images[0], images[1])
    assert images[0].shape != images[2].shape or (images[0] != images[2]).any()


def test_scale_factors_lead_to_the_tissue(slides):
    for name, library in slides.uns["spatial"].items():
        xy = slides.obsm["spatial"][slides.obs["sample"] == name]
        for resolution, image in library["images"].items():
            x, y = np.floor(xy * library["scalefactors"][f"tissue_{resolution}_scalef"]).astype(int).T
            assert image[y, x].min(axis=1).max() < 235  # no glass under a spot
            assert image[0].min() > 235 and image[:, 0].min() > 235
    with pytest.raises(ValueError, match="lie on tissue"):
        turned = slides[slides.obs["sample"] == "slide_1"].copy()
        turned.obsm["spatial"] = turned.obsm["spatial"] + [2500, 0]
        pp.image_features(turned, encoder="stain", sample_key="sample", silent=True)


def test_patches_show_domain_and_cells_of_their_spot(slides):
    pp.image_features(slides, encoder="stain", sample_key="sample", silent=True)
    features, domains = slides.obsm["X_image"], slides.obs["domain"].to_numpy()
    largest = slides.obs["domain"].value_counts(normalize=True).max()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    assert cross_val_score(model, features, domains, cv=4).mean() > 0.85 > largest + 0.2
    shuffled = np.random.default_rng(0).permutation(features)
    assert cross_val_score(model, shuffled, domains, cv=4).mean() < largest + 0.08
    # the same look on another slide
    first = (slides.obs["sample"] == "slide_1").to_numpy()
    assert model.fit(features[first], domains[first]).score(features[~first], domains[~first]) > 0.8
    haematoxylin = features[:, 3]
    assert np.corrcoef(haematoxylin, slides.obs["cell_density"])[0, 1] > 0.8
