"""Slides are told apart by evidence; what is no slide is left whole."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from sklearn.cluster import KMeans

from lgdist_scvi import LGDiST, datasets, pp
from lgdist_scvi._slides import choose_sample_key, slide_evidence

SHIFT = np.array([37.3, 21.9])  # pixels


def hexagonal(n: int = 12, pitch: float = 100.0) -> np.ndarray:
    i, j = np.mgrid[:n, :n]
    return pitch * np.column_stack([(j + 0.5 * (i % 2)).ravel(), (i * np.sqrt(3) / 2).ravel()])


def square(n: int = 12, pitch: float = 100.0) -> np.ndarray:
    i, j = np.mgrid[:n, :n]
    return pitch * np.column_stack([j.ravel(), i.ravel()]).astype(float)


def spots(*slides: np.ndarray, **columns) -> ad.AnnData:
    """Spots of some slides, with a column `slide` that is not called so and a clustering."""
    coordinates = np.vstack(slides)
    obs = pd.DataFrame(columns, index=[f"spot_{i}" for i in range(len(coordinates))])
    obs.insert(0, "cluster", np.random.default_rng(0).integers(0, 5, len(obs)).astype(str))
    return ad.AnnData(obs=obs, obsm={"spatial": coordinates})


def number(*slides: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(slides)), [len(slide) for slide in slides])


def concatenated(column: str, **options) -> ad.AnnData:
    parts = {}
    for i, name in enumerate(["A1", "B1"]):
        part = datasets.simulated_visium(n_spots=120, n_genes=20, seed=i)
        part.obs, part.var_names = part.obs[[]], [f"g{j}" for j in range(20)]
        part.uns = {"spatial": {name: {"scalefactors": {"spot_diameter_fullres": 55.0}}}} if options else {}
        part.obsm["spatial"] = part.obsm["spatial"] + i * SHIFT
        parts[name] = part
    return ad.concat(parts, label=column, index_unique="-", **options)


def crossing(adata: ad.AnnData, column: str) -> int:
    graph, slide = adata.obsp["spatial_connectivities"].tocoo(), adata.obs[column].to_numpy()
    return int((slide[graph.row] != slide[graph.col]).sum())


class TestSetup:
    @pytest.mark.parametrize(
        "column", ["slide_id", "batch", "section", "region", "fov", "library_id", "sample", "no_1"]
    )
    def test_whatever_the_column_is_called(self, column):
        adata = concatenated(column)
        with pytest.warns(UserWarning, match=rf"adata.obs\['{column}'\] names 2 slides and is used.*sample_key="):
            LGDiST.setup_anndata(adata)
        assert crossing(adata, column) == 0
        assert adata.obsp["spatial_connectivities"].nnz > 1000
        assert list(adata.uns["spatial_neighbors"]["params"]["geometry"]) == ["hexagonal"] * 2
        assert LGDiST(adata, n_hidden=16).registry_["setup_args"]["sample_key"] == column

    def test_a_given_graph_is_checked(self):
        adata = concatenated("batch")
        sq.gr.spatial_neighbors_knn(adata, n_neighs=6)
        with (
            pytest.warns(UserWarning, match="'batch'"),
            pytest.raises(ValueError, match=r"edges .* join spots of different slides \(adata.obs\['batch'\]\)"),
        ):
            LGDiST.setup_anndata(adata)

    def test_other_data_are_looked_at_anew(self, fit):
        one = datasets.simulated_visium(n_spots=60, n_genes=20, seed=0)
        one.var_names = [f"g{j}" for j in range(20)]
        model, several = fit(one, 1), concatenated("batch")
        with pytest.warns(UserWarning, match=r"adata.obs\['batch'\] names 2 slides"):
            model.get_completed_expression(several)
        assert crossing(several, "batch") == 0
        manager = model.get_anndata_manager(several)
        assert np.unique(manager.create_torch_dataset().samples).tolist() == [0, 1]

    def test_library_key_is_another_word(self):
        adata = concatenated("batch")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            LGDiST.setup_anndata(adata, library_key="batch")
        assert crossing(adata, "batch") == 0
        assert LGDiST(adata, n_hidden=16).registry_["setup_args"]["sample_key"] == "batch"
        with pytest.raises(ValueError, match="sample_key='a' and library_key='b' are two words"):
            LGDiST.setup_anndata(adata, sample_key="a", library_key="b")


class TestNamed:
    def test_names_of_images(self):
        adata = concatenated("batch", uns_merge="unique")
        adata.obsm["spatial"] += 1e5 * (adata.obs[["batch"]] == "B1").to_numpy()  # apart: geometry says nothing
        assert slide_evidence(adata).column == "batch"
        adata.uns["spatial"] = {"is_single": True}
        assert slide_evidence(adata).column is None

    def test_regions_of_a_spatialdata_table(self):
        adata = concatenated("element")
        adata.obsm["spatial"] += 1e5 * (adata.obs[["element"]] == "B1").to_numpy()
        adata.uns["spatialdata_attrs"] = {"region": ["A1", "B1"], "region_key": "element", "instance_key": "spot"}
        assert slide_evidence(adata).column == "element"

    def test_a_named_column_that_leaves_slides_mixed(self):
        slides = [hexagonal(), hexagonal() + SHIFT, hexagonal() + 3 * SHIFT]
        adata = spots(*slides, slide=number(*slides), patient=np.minimum(number(*slides), 1))
        with pytest.warns(UserWarning, match=r"'patient'\] does not keep all slides apart: .*candidates: 'slide'"):
            assert choose_sample_key(adata, "patient") == "patient"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert choose_sample_key(adata, "slide") == "slide"


@pytest.mark.parametrize("layout", [hexagonal, square])
class TestLattices:
    @pytest.mark.parametrize(
        "shift", [(0, 0), (3, 2), (37.3, 21.9), (50, 0), (50, 28.87), (600, 10), (1240, 30)], ids=str
    )
    @pytest.mark.parametrize("kind", [str, int, bool])
    def test_two_on_each_other_or_side_by_side(self, layout, shift, kind):
        slides = [layout(), layout() + shift]
        found = slide_evidence(spots(*slides, where=[kind(i) for i in number(*slides)]))
        assert found.column == "where"

    def test_three_of_which_two_are_turned(self, layout):
        turn = [[np.cos(0.3), np.sin(0.3)], [-np.sin(0.3), np.cos(0.3)]]
        slides = [layout(20), layout(20) @ turn, layout(20) @ turn @ turn + 700]
        assert slide_evidence(spots(*slides, piece=number(*slides))).column == "piece"
        shifted = [layout(), layout() + [37, 22], layout() + [11, 60]]
        assert slide_evidence(spots(*shifted, piece=number(*shifted))).column == "piece"

    @pytest.mark.parametrize("shift", [(0, 0), (3, 2), (37.3, 21.9), (50, 0), (600, 10)], ids=str)
    def test_without_a_column_they_are_said(self, layout, shift):
        slides = [layout(), layout() + shift]
        adata = spots(*slides)
        found = slide_evidence(adata)
        assert found.column is None
        assert found.candidates == []
        assert "lattice" in found.reason

    def test_a_column_with_gaps_is_named(self, layout):
        slides = [layout(), layout() + SHIFT]
        names = pd.Series(number(*slides).astype(str)).where(np.arange(288) >= 12)
        adata = spots(*slides, piece=names.to_numpy())
        message = r"\(adata.obs\['piece'\] has no value for 12 of them\), .*candidates: 'piece'"
        with pytest.warns(UserWarning, match=message):
            assert choose_sample_key(adata, None) is None
        adata.obs["piece"] = np.random.default_rng(0).permutation(names)  # groups that are no slides
        assert slide_evidence(adata).candidates == []

    def test_groups_finer_than_slides_are_named_and_not_used(self, layout):
        slides = [layout(), layout() + SHIFT]
        side = np.vstack(slides)[:, 0] > 600
        adata = spots(*slides, fine=[f"{i}{s}" for i, s in zip(number(*slides), side, strict=True)])
        found = slide_evidence(adata)
        assert found.column is None
        assert found.candidates == ["fine"]
        with pytest.warns(UserWarning, match=r"pass sample_key=.*candidates: 'fine'"):
            choose_sample_key(adata, None)

    def test_far_apart_there_is_nothing_to_say(self, layout):
        slides = [layout(), layout() + [5000, 0]]
        adata = spots(*slides, where=number(*slides))
        assert slide_evidence(adata) == (None, [], "")
        pp.spatial_neighbors(adata)
        assert crossing(adata, "where") == 0

    @pytest.mark.parametrize("n_groups", [2, 3, 8, 40])
    def test_groups_on_one_lattice_are_no_slides(self, layout, n_groups):
        coordinates, rng = layout(30), np.random.default_rng(n_groups)
        i, j = np.divmod(np.arange(900), 30)
        adata = spots(
            coordinates,
            batch=rng.integers(0, n_groups, 900),
            slide=KMeans(n_groups, n_init=1, random_state=0).fit_predict(coordinates).astype(str),
            section=(i + j) % 2 == 0,
            region=(i - j) % 3,
            in_tissue=rng.random(900) < 0.5,
        )
        for chosen in (adata, adata[rng.random(900) < 0.4].copy()):
            assert slide_evidence(chosen) == (None, [], "")


class TestIrregular:
    def test_only_warned_of(self):
        rng = np.random.default_rng(0)
        x = rng.random((1000, 2))
        tile = np.char.add((5 * x[:, 0]).astype(int).astype(str), (5 * x[:, 1]).astype(int).astype(str))
        tiled = spots(x, fov=tile)
        assert slide_evidence(tiled) == (None, [], "")
        mixed = spots(x % 0.2, fov=tile)
        found = slide_evidence(mixed)
        assert (found.column, found.candidates) == (None, ["fov"])
        with pytest.warns(UserWarning, match=r"spots of different adata.obs\['fov'\] .*pass sample_key="):
            pp.spatial_neighbors(mixed)
        assert "sample_key" not in mixed.uns["spatial_neighbors"]["params"]

    def test_beads_that_never_touch(self):
        slides = []
        for seed in range(2):
            kept = np.empty((0, 2))
            for bead in np.random.default_rng(seed).random((3000, 2)):
                if not len(kept) or np.min(np.sum((kept - bead) ** 2, axis=1)) > 0.03**2:
                    kept = np.vstack([kept, bead])
            slides.append(kept)
        found = slide_evidence(spots(*slides, origin=number(*slides)))
        assert (found.column, found.candidates) == (None, ["origin"])
        assert slide_evidence(spots(slides[0])) == (None, [], "")

    def test_in_space_nothing_is_said(self):
        cube = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 3)
        assert slide_evidence(spots(cube)) == (None, [], "")


@pytest.mark.parametrize(
    "name", ["human_dlpfc_151673", "mouse_muscle_Vis7B_5dpi", "mouse_hippocampus_slideseqv2_subset"]
)
def test_annotations_of_real_slides_are_no_slides(shared_data, name):
    read = ad.read_h5ad(shared_data / f"{name}.h5ad", backed="r")
    adata = ad.AnnData(obs=read.obs.drop(columns="sample", errors="ignore"), obsm={"spatial": read.obsm["spatial"]})
    read.file.close()
    adata.obs["kmeans"] = KMeans(6, n_init=1, random_state=0).fit_predict(adata.obsm["spatial"])
    adata.obs["cluster"] = np.random.default_rng(0).integers(0, 7, adata.n_obs)
    assert slide_evidence(adata) == (None, [], "")


@pytest.mark.parametrize("name", ["her2st_A", "her2st_C"])
def test_real_slides_under_another_name(shared_data, name):
    read = ad.read_h5ad(shared_data / f"{name}.h5ad", backed="r")
    adata = ad.AnnData(obs=read.obs.rename(columns={"sample": "slide_id"}), obsm={"spatial": read.obsm["spatial"]})
    read.file.close()
    with pytest.warns(UserWarning, match=rf"adata.obs\['slide_id'\] names {adata.obs['slide_id'].nunique()} slides"):
        pp.spatial_neighbors(adata)
    assert crossing(adata, "slide_id") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_sample_key(adata, "slide_id") == "slide_id"
    del adata.obs["slide_id"]
    assert slide_evidence(adata).reason
